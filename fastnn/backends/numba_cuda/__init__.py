"""The CUDA backend; needs numba-cuda (``pip install 'fastnn-mlp[cuda]'``) and an NVIDIA GPU.

`shim` is the one module that imports `numba.cuda`, `kernels` and `fused` hold the device code,
`backend` the order of its launches.
"""

from fastnn.backends.numba_cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
