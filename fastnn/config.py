"""What this installation is made of."""

from __future__ import annotations

import platform

import numpy as np

from fastnn.backends import BACKENDS, get_backend
from fastnn.errors import BackendUnavailable
from fastnn.threads import resolve_n_threads

__all__ = ["show_config"]


def show_config() -> None:
    """Print the version, the instruction set, the number of threads, and the backends.

    Of Numba also what it has compiled in this process, and how long that took.

    FASTNN_ISA chooses the instruction set, FASTNN_NUM_THREADS bounds the threads,
    FASTNN_NUMBA_CACHE=1 lets Numba keep its compiled driver on disk.
    """
    from fastnn import __version__  # the package is still being imported when this module is

    found, missing, described = [], [], {}
    for name in BACKENDS:
        try:
            backend = get_backend(name)
        except BackendUnavailable as error:
            missing.append(f"{name} ({error})")
        else:
            found.append(name)
            if hasattr(backend, "describe"):
                described[name] = backend.describe()
    lines = {
        "fastnn": __version__,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "instruction set": _instruction_set(),
        "threads": str(resolve_n_threads()),
        "backends": ", ".join(found),
        **described,
    }
    if missing:
        lines["not available"] = "; ".join(missing)
    for name, value in lines.items():
        print(f"{name + ':':17}{value}")


def _instruction_set() -> str:
    try:
        from fastnn.backends import _native
    except ImportError:
        return "none (the compiled extension is missing)"
    return f"{_native.isa()} (this machine has {', '.join(_native.available_isas())})"
