"""Checks of arguments: each says what was expected, what came, and what to do.

Scalars: every check accepts a NumPy scalar where it accepts a Python one, and returns the Python
one. ``True`` is not the integer 1.

Arrays: what the backends can read in place passes through without a copy; anything else becomes
one array of the model's dtype.
"""

from __future__ import annotations

import math
import numbers
import operator
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np

from fastnn.sparse_rows import SparseRows, is_sparse
from fastnn.threads import resolve_n_threads

__all__ = [
    "NATIVE_DTYPES",
    "check_X",
    "check_choice",
    "check_dtype",
    "check_flag",
    "check_int",
    "check_out",
    "check_path",
    "check_real",
    "check_sample_weight",
    "describe",
    "on_gpu",
    "raise_not_finite",
    "resolve_seed",
]

NATIVE_DTYPES = frozenset(
    np.dtype(name)
    for name in (
        *("float32", "float64", "bool"),
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    )
)
"""Element types that the backends read in place, in native byte order."""

LARGE_WEIGHTS = 1e100
"""Weights that sum to more are scaled down, so that weight times loss does not overflow."""

CHUNK_ELEMS = 1 << 16
"""Elements looked at in one go where an array is scanned: small enough to stay in the cache."""

SHARED_ELEMS = 1 << 20
"""Elements from which threads share a scan: it then takes longer than starting them."""


def describe(value: object) -> str:
    """A short picture of a value for an error message."""
    if isinstance(value, np.ndarray) and value.ndim:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    text = repr(value)
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({type(value).__name__})"


# Scalars ------------------------------------------------------------------------------------------


def check_int(value: Any, name: str, *, low: int | None = None, high: int | None = None) -> int:
    """An integer in ``low..high``, both included. bool and float are no integers."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be an integer, got {describe(value)}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {describe(value)}") from None
    _check_range(result, name, low, high, False, False)
    return result


def check_real(
    value: Any,
    name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """A finite real number between `low` and `high`; an open end excludes the bound itself."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a real number, got {describe(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{name} must be finite, got {value!r}")
    _check_range(result, name, low, high, low_open, high_open)
    return result


def _check_range(
    value: float,
    name: str,
    low: float | None,
    high: float | None,
    low_open: bool,
    high_open: bool,
) -> None:
    too_low = low is not None and (value <= low if low_open else value < low)
    too_high = high is not None and (value >= high if high_open else value > high)
    if not (too_low or too_high):
        return
    bounds = []
    if low is not None:
        bounds.append(f"{'>' if low_open else '>='} {low}")
    if high is not None:
        bounds.append(f"{'<' if high_open else '<='} {high}")
    raise ValueError(f"{name} must be {' and '.join(bounds)}, got {value}")


def check_flag(value: Any, name: str) -> bool:
    """True or False."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {describe(value)}")


def check_choice(value: Any, name: str, choices: Iterable[str]) -> str:
    """One of several names."""
    choices = list(choices)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be one of {', '.join(choices)}; got {describe(value)}")
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return str(value)


def resolve_seed(seed: Any, name: str = "seed") -> int:
    """An integer in ``0..2**64 - 1``; None draws a fresh one."""
    if seed is None:
        return int.from_bytes(os.urandom(8), "little")
    return check_int(seed, name, low=0, high=2**64 - 1)


def check_dtype(dtype: Any, name: str = "dtype") -> np.dtype:
    """float32 or float64 in native byte order."""
    if dtype is not None:  # which NumPy takes for float64
        try:
            result = np.dtype(dtype)
        except TypeError:
            pass
        else:
            if result in (np.float32, np.float64):
                return result
    raise ValueError(f"{name} must be float32 or float64, got {dtype!r}")


def check_path(path: Any, name: str = "path") -> str:
    """A path of the file system."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"{name} must be a path, got {describe(path)}") from None


# Arrays -------------------------------------------------------------------------------------------


_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def on_gpu(value: Any) -> bool:
    """Whether an array-like lies in the memory of a CUDA GPU: of CuPy, PyTorch, JAX, Numba, ..."""
    if isinstance(value, np.ndarray | list | tuple) or value is None:
        return False
    try:
        if getattr(value, "__cuda_array_interface__", None) is not None:
            return True
        device = getattr(value, "__dlpack_device__", None)
        return device is not None and device()[0] in _DLPACK_CUDA
    except RuntimeError:  # PyTorch's word for a tensor on a GPU that requires a gradient
        return True
    except Exception:  # an object that cannot say is read like any other
        return False


def as_array(value: Any, name: str) -> np.ndarray:
    """Anything array-like as a base-class ndarray, without a copy where NumPy can avoid one.

    Raises
    ------
    TypeError
        A sparse matrix, or an object whose conversion fails.
    ValueError
        A ragged list, or a masked array with masked entries.
    """
    if type(value) is np.ndarray:
        return value
    if is_sparse(value):
        raise TypeError(f"{name} is sparse ({type(value).__name__}): use {name}.toarray()")
    if on_gpu(value):
        raise TypeError(
            f"{name} lies on a GPU ({type(value).__name__}), but is needed in the host's memory "
            f"here: copy it, as {name}.get() or {name}.cpu(), or train and predict where it is, "
            "with MLP(..., backend='cuda')"
        )
    # Nobody can hold a masked array without having loaded numpy.ma, which is slow to import.
    masked = sys.modules.get("numpy.ma")
    if masked is not None and masked.is_masked(value):
        raise ValueError(f"{name} has masked entries: fill them first, with {name}.filled(...)")
    try:
        return np.asarray(value)
    except MemoryError:
        raise
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array of numbers: {error}") from error
    except Exception as error:
        raise TypeError(
            f"{name} could not be read as an array ({type(value).__name__}): {error}"
        ) from error


def as_real_array(value: Any, name: str, dtype: np.dtype) -> np.ndarray:
    """Array-like of real numbers as an array that the backends may read in place.

    Arrays of a type in `NATIVE_DTYPES`, aligned, pass through with whatever strides they have.
    The rest is converted once to `dtype`.
    """
    array = as_array(value, name)
    if array.dtype in NATIVE_DTYPES and array.dtype.isnative:
        # Reading through a misaligned pointer is undefined in C.
        return array if array.flags.aligned else array.copy()
    kind = array.dtype.kind
    if kind == "O":
        array = _objects_to_float64(array, name)
    elif kind == "c":
        raise TypeError(f"{name} is complex: give the real numbers that you mean, as {name}.real")
    elif kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}: encode text and dates as "
            "numbers first"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        # An overflow gives inf, which the caller reports with its place.
        return array.astype(dtype)


def _objects_to_float64(array: np.ndarray, name: str) -> np.ndarray:
    for index, item in np.ndenumerate(array):
        if not isinstance(item, numbers.Real | np.bool_) and (
            isinstance(item, str | bytes | numbers.Complex) or not hasattr(item, "__float__")
        ):
            raise TypeError(
                f"{name} must hold real numbers, got {describe(item)} at {_place(index)}"
            )
    try:
        return array.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"{name} has a number too large for float64: {error}") from None
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} must hold real numbers: {error}") from None


def check_X(
    X: Any,
    n_features: int | None,
    dtype: np.dtype,
    name: str = "X",
    allow_1d: bool = False,
    finite: bool = True,
    sparse: bool = False,
) -> Any:
    """Rows of features as an array that the backends may read in place.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Arrays of a type in `NATIVE_DTYPES` in native byte order are not copied, whatever their
        strides; read-only and memory-mapped ones are fine. Lists, float16, longdouble,
        byte-swapped arrays, objects of floats, data frames and tensors are converted to `dtype`.
    n_features : int or None
        What the model was built for; None accepts any number.
    dtype : dtype
        The model's.
    allow_1d : bool
        Whether one row of shape (n_features,) is accepted too; it comes back 1-D.
    finite : bool
        False leaves the search for NaN and infinity to a backend that looks as it reads.
    sparse : bool
        Whether a sparse matrix of SciPy's is accepted, which comes back as `SparseRows`.

    Returns
    -------
    ndarray or SparseRows

    Raises
    ------
    TypeError
        Complex numbers, text, dates; a sparse matrix unless `sparse`.
    ValueError
        The wrong shape, NaN, infinity, or a number beyond the range of `dtype`.
    """
    if sparse and is_sparse(X):
        X = SparseRows(X, dtype, name)
        check_stored_finite(X, name)
        finite = False
    else:
        X = as_real_array(X, name, dtype)
    if X.ndim != 2 and not (allow_1d and X.ndim == 1):
        shapes = "(n_samples, n_features)" + (" or (n_features,)" if allow_1d else "")
        hint = ""
        if X.ndim == 1:
            hint = f": use {name}.reshape(1, -1) for one row, {name}.reshape(-1, 1) for one column"
        raise ValueError(f"{name} must have shape {shapes}, got {X.shape}{hint}")
    if n_features is not None and X.shape[-1] != n_features:
        raise ValueError(
            f"{name} has {X.shape[-1]} features, but this model was built for {n_features} "
            "(layer_sizes[0])"
        )
    if finite:
        check_finite(X, name, dtype)
    return X


def check_finite(array: np.ndarray, name: str, dtype: np.dtype) -> None:
    """Raise ValueError with the place of the first number that is not finite as `dtype`."""
    if array.dtype.kind != "f" or _all_finite(array, dtype):
        return
    for index in np.ndindex(array.shape[:-1]):  # found one: now it is worth a slow search
        finite = _finite(array[index], dtype)
        if not finite.all():
            at = (*index, int(np.argmin(finite)))
            value = array[at]
            what = f"{value}, beyond the range of {dtype}" if np.isfinite(value) else f"{value}"
            raise ValueError(
                f"{name} contains {what} at {_place(at)}: remove or replace such entries, or "
                "scale the column"
            )


def check_stored_finite(rows: SparseRows, name: str) -> None:
    """Raise ValueError with the place of the first stored value that is not finite."""
    if _all_finite(rows.data, rows.dtype):
        return
    stored = int(np.argmin(np.isfinite(rows.data)))
    raise ValueError(
        f"{name} contains {rows.data[stored]} at {_place(rows.place(stored))}: remove or replace "
        "such entries, or scale the column"
    )


def raise_not_finite(array: np.ndarray, name: str, dtype: np.dtype) -> NoReturn:
    """Raise for a number that a backend met and that was not finite."""
    check_finite(array, name, dtype)
    raise ValueError(
        f"{name} held a number that is not finite while it was read, and does no longer: do not "
        "change it meanwhile"
    )


def _finite(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(array.astype(dtype, copy=False))


def _all_finite(array: np.ndarray, dtype: np.dtype) -> bool:
    if array.size == 0:
        return True
    try:
        from fastnn.backends._native import all_finite
    except ImportError:
        pass
    else:
        n_threads = resolve_n_threads() if array.size >= SHARED_ELEMS else 1
        return bool(all_finite(array, dtype == np.float32, n_threads))
    if array.size <= CHUNK_ELEMS or array.ndim == 1:
        return bool(_finite(array, dtype).all())
    rows = max(1, CHUNK_ELEMS * len(array) // array.size)
    return all(
        bool(_finite(array[at : at + rows], dtype).all()) for at in range(0, len(array), rows)
    )


def _place(index: tuple[int, ...]) -> str:
    names = ("row", "column") if len(index) == 2 else ("index",)
    if len(names) != len(index):
        return str(list(index))
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=True))


def check_sample_weight(
    sample_weight: Any,
    n_samples: int,
    name: str = "sample_weight",
    *,
    allow_all_zero: bool = False,
) -> np.ndarray | None:
    """Weights of the rows as float64 (n_samples,), C-contiguous; None stays None.

    Raises
    ------
    TypeError
        Not real numbers.
    ValueError
        The wrong shape, NaN, infinity, a negative weight, a sum that overflows; or weights that
        are all zero, unless `allow_all_zero`.
    """
    if sample_weight is None:
        return None
    float64 = np.dtype(np.float64)
    weight = as_real_array(sample_weight, name, float64)
    if weight.shape != (n_samples,):
        raise ValueError(
            f"{name} must have shape ({n_samples},), one weight per row of X, got {weight.shape}"
        )
    check_finite(weight, name, float64)
    # A copy: all threads of a training have to see the same weights, whoever writes to the
    # caller's.
    weight = np.array(weight, dtype=float64, order="C")
    if n_samples and weight.min() < 0:
        at = int(np.argmax(weight < 0))
        raise ValueError(f"{name} must be >= 0, got {weight[at]} at index {at}")
    with np.errstate(over="ignore"):
        total = weight.sum()
    if not math.isfinite(total):
        raise ValueError(f"{name} sums to infinity: scale the weights down")
    if total == 0 and n_samples and not allow_all_zero:
        raise ValueError(f"{name} is zero for every row: at least one row must count")
    if total > LARGE_WEIGHTS:
        # Only their ratios count, and a power of 2 leaves those as they are, to the bit.
        weight = np.ldexp(weight, -math.frexp(total)[1])
    return weight


def check_out(
    out: Any, shape: tuple[int, ...], dtype: np.dtype, *apart: np.ndarray, name: str = "out"
) -> np.ndarray:
    """An array that results may be written to: exact shape and dtype, C-contiguous, writable.

    `apart` are arrays that it must not share memory with.
    """
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {describe(out)}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise ValueError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if not (out.flags.c_contiguous and out.flags.aligned):
        raise ValueError(f"{name} must be C-contiguous and aligned: use np.empty(shape, dtype)")
    if not out.flags.writeable:
        raise ValueError(f"{name} is read-only: give a writable array")
    if any(np.may_share_memory(out, other) for other in apart):
        raise ValueError(f"{name} overlaps the memory of X or of the parameters: give its own")
    return out
