"""The one module that imports `numba.cuda`, and says what is missing where it cannot be used.

The package is numba-cuda (``pip install 'fastnn-mlp[cuda]'``), which puts itself in the place of
the `numba.cuda` that Numba once had. With NUMBA_ENABLE_CUDASIM=1 the same names run in Python
threads, without a GPU.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np

from fastnn.errors import BackendUnavailable

INSTALL = "pip install 'fastnn-mlp[cuda]'"
SIMULATE = (
    "To try the backend without a GPU, slowly, set NUMBA_ENABLE_CUDASIM=1 before Python starts"
)

if find_spec("numba") is None:
    raise BackendUnavailable(f"Numba is missing: {INSTALL}")
if find_spec("numba_cuda") is None:
    raise BackendUnavailable(
        f"numba-cuda is missing, which compiles the kernels: {INSTALL} (with a driver for CUDA 12, "
        "pip install 'numba-cuda[cu12]')"
    )

# Not import statements, whose names mypy would look up in Numba's own numba.cuda.
cuda: Any = importlib.import_module("numba.cuda")
types: Any = importlib.import_module("numba.types")

SIMULATED: bool = bool(cuda.config.ENABLE_CUDASIM)
"""Whether kernels run in Python threads, as NUMBA_ENABLE_CUDASIM=1 asks."""

LOWEST_COMPUTE_CAPABILITY = (7, 5)
"""What the compilers of CUDA 13 still serve: Turing, 2018."""


@cache
def require_gpu() -> None:
    """Raise where no GPU can be used, naming the first thing that is missing.

    Raises
    ------
    BackendUnavailable
        No driver; a driver that sees no GPU or fails; no compiler libraries; a GPU too old.
    """
    if SIMULATED:
        return
    error = _driver_error()
    if error is not None:
        raise BackendUnavailable(error)
    missing = _missing_libraries()
    if missing:
        raise BackendUnavailable(
            f"the CUDA compiler ({', '.join(missing)}) was not found: {INSTALL}, or set CUDA_HOME "
            "to a CUDA toolkit"
        )
    capability = cuda.get_current_device().compute_capability
    if tuple(capability) < LOWEST_COMPUTE_CAPABILITY:
        raise BackendUnavailable(
            f"the GPU has compute capability {capability[0]}.{capability[1]}, but the compiler "
            f"needs {LOWEST_COMPUTE_CAPABILITY[0]}.{LOWEST_COMPUTE_CAPABILITY[1]} or more "
            "(Turing, 2018): choose another with CUDA_VISIBLE_DEVICES"
        )


def _driver_error() -> str | None:
    """What keeps the driver from serving us; None where it does."""
    from numba.cuda.cudadrv.error import CudaSupportError

    try:
        if cuda.is_available() or cuda.cuda_error() is None:
            return None if len(cuda.gpus) else _no_gpu("no GPU")
    except CudaSupportError:
        pass
    error = str(cuda.cuda_error())
    if "NO_DEVICE" in error:
        return _no_gpu(error)
    if "not found" in error or "could not be located" in error or "CUDA driver library" in error:
        return (
            "no NVIDIA driver was found: install one from https://www.nvidia.com/drivers; in a "
            f"container, start it with --gpus all. {SIMULATE} ({_first_line(error)})"
        )
    return (
        "the NVIDIA driver does not start: run nvidia-smi to see why; after an update of the "
        f"driver, restart the machine. {SIMULATE} ({_first_line(error)})"
    )


def _no_gpu(error: str) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hint = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    return (
        f"the NVIDIA driver sees no GPU ({_first_line(error)}{hint}): run nvidia-smi to list them. "
        f"{SIMULATE}"
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(":") if text.strip() else "no message"


def _missing_libraries() -> list[str]:
    """Compiler libraries that cannot be loaded, of those that every kernel needs."""
    from cuda import pathfinder

    missing = []
    for name in ("nvrtc", "nvvm"):
        try:
            pathfinder.load_nvidia_dynamic_lib(name)
        except Exception:
            missing.append(name)
    return missing


def device_name() -> str:
    """The GPU in use, for people: ``NVIDIA H100 (compute capability 9.0, 80 GB)``."""
    if SIMULATED:
        return "none (NUMBA_ENABLE_CUDASIM=1 simulates one)"
    device = cuda.get_current_device()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    major, minor = device.compute_capability
    _, total = cuda.current_context().get_memory_info()
    return f"{name} (compute capability {major}.{minor}, {total / 1e9:.0f} GB)"


# Kernels ------------------------------------------------------------------------------------------

_one_at_a_time = Lock()


class Kernel:
    """A kernel and its types, compiled when it is first launched.

    Parameters
    ----------
    function : function
    argument_types : sequence of Numba types
    """

    def __init__(self, function: Callable[..., None], argument_types: Sequence[Any]) -> None:
        self.function = function
        self.signature = types.void(*argument_types)
        self._compiled: Any = None

    def __call__(self, grid: Any, block: Any, *arguments: Any, shared_bytes: int = 0) -> None:
        """Launch on the default stream; returns before it has run."""
        self.configured(grid, block, shared_bytes)(*arguments)

    def configured(self, grid: Any, block: Any, shared_bytes: int = 0) -> Callable[..., None]:
        """A function that launches it so, again and again; compiled now, where it was not."""
        if self._compiled is None:
            with _one_at_a_time:
                if self._compiled is None:
                    self._compiled = cuda.jit([self.signature])(self.function)
        return configured(self._compiled, grid, block, shared_bytes)


def configured(compiled: Any, grid: Any, block: Any, shared_bytes: int = 0) -> Callable[..., None]:
    """A function that launches what `cuda.jit` returned, on the default stream."""
    if SIMULATED:

        def launch(*arguments: Any) -> None:
            with _one_at_a_time:  # the simulator knows one launch at a time
                compiled[grid, block, 0, shared_bytes](*arguments)

        return launch
    with warnings.catch_warnings():
        # Of grids that do not fill a GPU: small networks have no larger ones.
        warnings.simplefilter("ignore")
        return compiled[grid, block, 0, shared_bytes]


def result_type(function: Any, argument_types: tuple[Any, ...]) -> Any:
    """Numba's type of what a device function returns for such arguments, compiled for that.

    Raises
    ------
    ValueError
        It does not compile, or it can raise: on a GPU that would end the thread and leave the
        result undefined, in silence. The message has the place and the reason.
    """
    from fastnn.tables.compiled import place_of, reason_of

    plain = function.py_func
    try:
        compiled = function.compile_device(argument_types)
    except Exception as error:  # not only Numba's own
        raise ValueError(reason_of(error, plain)) from error
    if _can_fail(compiled.library):
        place, what = place_of(plain), "a function that it calls can raise an exception"
        for kind, _, location in compiled.call_helper.exceptions.values():
            place = place if location is None else f"{location[1]}, line {location[2]}"
            what = f"it can raise {kind.__name__}"
        raise ValueError(f"{place}: {what}, which code on a GPU cannot")
    return compiled.signature.return_type


def _can_fail(library: Any) -> bool:
    """Whether a device function may return another status than 0; exceptions count from 1."""
    if not re.search(r"\bret i32 [1-9]", library.get_llvm_str()):
        return False
    # What the optimizer has left of it: a range of constants, for one, raises nothing.
    ptx = library.get_asm_str(cc=tuple(cuda.get_current_device().compute_capability)[:2])
    returned = set(re.findall(r"st\.param\.b32\s+\[func_retval0(?:\+0)?\],\s*(\S+);", ptx))
    written = [
        how
        for register in returned
        for how in re.findall(rf"(?m)^\s*(?:@\S+\s+)?([\w.]+)\s+{register}\b,?\s*(.*);", ptx)
    ]
    return set(written) != {("mov.u32", "0")}


# Memory -------------------------------------------------------------------------------------------


def allocate(shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A device array, C-contiguous, its contents undefined.

    Raises
    ------
    MemoryError
        The GPU has not that much left; the message says how much was asked for.
    """
    # An allocation of no bytes is an error to the driver.
    holds = shape if all(shape) else (1,) * len(shape)
    try:
        array = cuda.device_array(holds, dtype)
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        n_bytes = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        free, total = cuda.current_context().get_memory_info()
        raise MemoryError(
            f"{n_bytes} bytes do not fit into the GPU's memory, of whose {total} bytes {free} are "
            "free: take smaller batches, fewer rows at once, or another GPU"
        ) from error
    return array if all(shape) else array[tuple(slice(0, size) for size in shape)]


def upload(array: np.ndarray) -> Any:
    """A copy of a host array on the device, C-contiguous."""
    array = np.ascontiguousarray(array)
    on_device = allocate(array.shape, array.dtype)
    if array.size:
        on_device.copy_to_device(array)
    return on_device


@dataclass(frozen=True)
class _Foreign:
    """Memory of another library, described as Numba reads it; `owner` keeps it alive."""

    __cuda_array_interface__: dict[str, Any]
    owner: Any


def view_of(value: Any, name: str) -> Any:
    """A device array over memory of another library, without a copy.

    Through ``__cuda_array_interface__``, else through DLPack. Work that the other library has
    launched on its own stream is waited for.

    Raises
    ------
    TypeError
        The library does not hand it out, or not in a type that there is here.
    """
    try:
        if getattr(value, "__cuda_array_interface__", None) is not None:
            return cuda.as_cuda_array(value)
        return cuda.as_cuda_array(_from_dlpack(value))
    except Exception as error:
        raise TypeError(
            f"{name} ({type(value).__name__}) could not be read from the GPU's memory: {error}. A "
            f"tensor that requires a gradient has to be given as {name}.detach(); types smaller "
            f"than float32 as {name}.float()"
        ) from error


def _from_dlpack(value: Any) -> _Foreign:
    from cuda.core.utils import StridedMemoryView

    # 1 is DLPack's number for the legacy default stream, which everything here runs on.
    view = StridedMemoryView.from_dlpack(value, stream_ptr=1)
    dtype = np.dtype(view.dtype)
    strides = view.strides
    if strides is not None:
        strides = tuple(int(stride) * dtype.itemsize for stride in strides)
    interface = {
        "shape": tuple(int(size) for size in view.shape),
        "typestr": dtype.str,
        "data": (view.ptr, False),
        "strides": strides,
        "version": 3,
    }
    return _Foreign(interface, view)


def synchronize() -> None:
    """Wait for everything that has been launched."""
    cuda.synchronize()
