"""The Numba backend: the same training, compiled on the spot.

For platforms where the compiled extension is not to be had, and for what is known at run time only.
`functions` has the elementary functions, `kernels` the kernels and the driver, `backend` the rest.
"""

from fastnn.backends.numba_cpu.backend import NumbaBackend

__all__ = ["NumbaBackend"]
