"""How many threads a call may use."""

from __future__ import annotations

import operator
import os
from typing import Any

__all__ = ["resolve_n_threads"]


def resolve_n_threads(n_threads: Any = None) -> int:
    """The largest number of threads that a call may use; results do not depend on it.

    `n_threads` where given; else FASTNN_NUM_THREADS, else OMP_NUM_THREADS (the first number of a
    list), else the CPUs that this process may run on. FASTNN_NUM_THREADS also bounds `n_threads`.

    Parameters
    ----------
    n_threads : int, optional

    Returns
    -------
    int
        At least 1.

    Raises
    ------
    TypeError
        n_threads is no integer.
    ValueError
        n_threads, or the variable that decides, is not a positive integer.
    """
    bound = _from_environment("FASTNN_NUM_THREADS")
    if n_threads is not None:
        if isinstance(n_threads, bool):
            raise TypeError(f"n_threads must be a positive integer, got {n_threads!r}")
        try:
            n_threads = operator.index(n_threads)
        except TypeError:
            raise TypeError(f"n_threads must be a positive integer, got {n_threads!r}") from None
        if n_threads < 1:
            raise ValueError(f"n_threads must be at least 1, got {n_threads}")
        return n_threads if bound is None else min(n_threads, bound)
    return bound or _from_environment("OMP_NUM_THREADS") or _cpu_count()


def _from_environment(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    first = text.split(",")[0].strip() if name == "OMP_NUM_THREADS" else text
    if not first.isdecimal() or int(first) < 1:
        raise ValueError(f"{name} must be a positive integer, got {text!r}: correct or unset it")
    return int(first)


def _cpu_count() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS and Windows have no affinity to ask for
        return os.cpu_count() or 1
