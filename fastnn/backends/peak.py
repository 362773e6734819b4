"""The multiply-add peak of a core: what speeds are shares of."""

from __future__ import annotations

import time

import numpy as np

__all__ = ["instruction_set", "multiply_add_gflops"]


def instruction_set() -> str | None:
    """The instruction set of the compiled kernels in use; None where there are none."""
    try:
        from fastnn.backends import _native
    except ImportError:
        return None
    return _native.isa()


def multiply_add_gflops(
    dtype: str = "float32", isa: str | None = None, seconds: float = 0.05
) -> float | None:
    """Measure what one core does in multiply-adds alone: nothing is loaded, nothing is stored.

    Measure it in the same run as what is compared with it: clocks and neighbours change.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    isa : str, optional
        An instruction set of this machine; by default the one in use.
    seconds : float
        How long to try. The fastest of many short runs counts.

    Returns
    -------
    float or None
        10^9 operations a second, a multiply-add being two; None without the compiled kernels.
    """
    name = isa or instruction_set()
    if name is None:
        return None
    import ctypes

    from fastnn.backends import _native

    address = _native.kernel_address(name, dtype, "fma_chains")
    chains = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_void_p)(address)
    values = np.ones(chains(0, None), dtype)
    rounds, best, end = 20_000, 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        start = time.perf_counter()
        chains(rounds, values.ctypes.data)
        best = max(best, 2 * rounds * values.size / (time.perf_counter() - start) / 1e9)
    return best
