"""Where the arithmetic runs. `get_backend` imports an implementation when it is first asked for."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from fastnn.backends.base import Backend
from fastnn.errors import BackendUnavailable

__all__ = ["BACKENDS", "get_backend"]

# name: (module, class, what to do where the module cannot be imported)
_IMPLEMENTATIONS = {
    "native": (
        "fastnn.backends.native",
        "NativeBackend",
        (
            "the compiled extension is missing: install a wheel of fastnn-mlp, or build one with "
            "`pip install .`; backend='numba' runs without it, backend='reference' too, slowly"
        ),
    ),
    "numba": (
        "fastnn.backends.numba_cpu",
        "NumbaBackend",
        "Numba is missing or does not work here: `pip install numba`",
    ),
    "reference": ("fastnn.backends.reference", "ReferenceBackend", ""),
    "cuda": ("fastnn.backends.numba_cuda", "CudaBackend", ""),
}

BACKENDS = tuple(_IMPLEMENTATIONS)
"""Names that `get_backend` takes, the default first."""


@cache
def get_backend(name: str) -> Backend:
    """The backend of this name, one object for all.

    Raises
    ------
    ValueError
        There is no such name.
    BackendUnavailable
        It cannot run here; the message says what is missing.
    """
    try:
        module, class_name, remedy = _IMPLEMENTATIONS[name]
    except KeyError:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}") from None
    try:
        return getattr(import_module(module), class_name)()
    except ImportError as error:
        # A backend's own message says what to do.
        why = str(error) if isinstance(error, BackendUnavailable) else f"{remedy} ({error})"
        raise BackendUnavailable(f"backend {name!r} is not available: {why}") from error
