"""Functions of the user's as machine code over contiguous values, for the native backend.

Numba writes the user's function into a loop, and LLVM vectorizes it: no call per number, no GIL.
It imports Numba, and is imported where the first model with such a function is built.
"""

from __future__ import annotations

import dis
import math
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, types
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaError

from fastnn.tables import vector_math
from fastnn.tables.formulas import plain_function
from fastnn.tables.scalars import with_constants

__all__ = [
    "CompiledRows",
    "compile_activation",
    "compile_loss",
    "compiler_error",
    "inlined",
    "place_of",
    "reason_of",
]


class CompiledRows:
    """Addresses of C functions, valid as long as this object lives.

    Attributes
    ----------
    addresses : tuple of int
        Of an activation: an ``fnn_user_value`` and an ``fnn_user_derivative``; of a loss: an
        ``fnn_user_loss`` (csrc/fastnn.h).
    any_number : bool
        Whether they surely come to an end for every number.
    """

    def __init__(self, functions: tuple[Any, ...], any_number: bool) -> None:
        self._functions = functions
        self.any_number = any_number
        self.addresses = tuple(int(function.address) for function in functions)


def _can_raise(function: FunctionType) -> bool:
    """Whether a function may leave by an exception, which machine code has nowhere to hand to."""
    known = {id(value) for value in vars(math).values()}
    for instruction in dis.get_instructions(function):
        if instruction.opname in ("RAISE_VARARGS", "LOAD_ASSERTION_ERROR"):
            return True
    for name in function.__code__.co_names:
        found = function.__globals__.get(name)
        helper = callable(found) and not isinstance(found, type | np.ufunc)
        if isinstance(found, Dispatcher) or (helper and id(found) not in known):
            return True
    return bool(function.__closure__)


def _has_loop(function: FunctionType) -> bool:
    """Whether a function jumps back, or calls one that may."""
    jumps = any(
        "BACKWARD" in instruction.opname or instruction.opname == "FOR_ITER"
        for instruction in dis.get_instructions(function)
    )
    return jumps or _can_raise(function)


def inlined(function: Any, dtype: np.dtype) -> Any:
    """A formula as Numba puts it into a loop: its constants of the dtype, its math vectorized."""
    inner = vector_math.inline(with_constants(function, dtype, vector_math.module(dtype)))
    if not _can_raise(function):
        return inner
    real = np.dtype(dtype).type
    nan = real(math.nan)

    @njit(error_model="numpy", nogil=True)
    def guarded(*arguments):
        try:
            return real(inner(*arguments))
        except Exception:
            return nan

    return guarded


def compile_activation(
    scalar: Callable[..., Any], scalar_df: Callable[..., Any], dtype: np.dtype
) -> CompiledRows:
    """``y = f(y)`` and ``delta *= df(z, y)`` over n values.

    Parameters
    ----------
    scalar, scalar_df : function
        As in an ActivationRow.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    numba.core.errors.NumbaError
        Numba cannot compile a function.
    """
    real = np.dtype(dtype).type
    pointer = types.CPointer(numba.from_dtype(np.dtype(dtype)))
    f, df = inlined(scalar, dtype), inlined(scalar_df, dtype)

    @cfunc(types.void(types.intp, pointer), error_model="numpy")
    def value(n, y):
        for i in range(n):
            y[i] = real(f(y[i]))

    @cfunc(types.void(types.intp, pointer, pointer, pointer), error_model="numpy")
    def derivative(n, z, y, delta):
        for i in range(n):
            delta[i] = delta[i] * real(df(z[i], y[i]))

    any_number = not (_has_loop(plain_function(scalar)) or _has_loop(plain_function(scalar_df)))
    return CompiledRows((value, derivative), any_number)


def compile_loss(
    scalar_value: Callable[..., Any], scalar_gradient: Callable[..., Any], dtype: np.dtype
) -> CompiledRows:
    """Value and gradient of n outputs y and targets t, into two arrays.

    Parameters
    ----------
    scalar_value, scalar_gradient : function
        As in a LossRow.
    dtype : dtype
        float32 or float64.

    Raises
    ------
    numba.core.errors.NumbaError
        Numba cannot compile a function.
    """
    real = np.dtype(dtype).type
    zero = real(0)
    pointer = types.CPointer(numba.from_dtype(np.dtype(dtype)))
    f, df = inlined(scalar_value, dtype), inlined(scalar_gradient, dtype)

    @cfunc(types.void(types.intp, pointer, pointer, pointer, pointer), error_model="numpy")
    def value_and_gradient(n, y, t, value, gradient):
        for i in range(n):
            value[i] = real(f(y[i], t[i], zero))
            gradient[i] = real(df(y[i], t[i], zero))

    return CompiledRows((value_and_gradient,), False)


def compiler_error(function: Any, n_arguments: int) -> str | None:
    """Why Numba cannot compile a function of floats: the line and the reason; None where it can."""
    try:
        compiled = njit(error_model="numpy")(function)
        compiled.compile((types.float64,) * n_arguments)
        result = compiled.nopython_signatures[0].return_type
    except NumbaError as error:
        return reason_of(error, function)
    if not isinstance(result, types.Number | types.Boolean):
        return f"it returns {result}, not a number"
    if isinstance(result, types.Complex):
        return "it returns complex numbers"
    return None


def reason_of(error: Exception, function: FunctionType) -> str:
    """Where and why Numba, for whichever machine, could not compile a function."""
    text = str(getattr(error, "msg", error))
    location = getattr(error, "loc", None)
    places = [] if location is None else [(location.filename, location.line)]
    places += re.findall(r'File "(.+)", line (\d+)', text)
    # Numba has functions of Python too, in which it finds that something does not fit.
    own = [at for at in places if not re.search(r"[\\/]numba(_cuda)?[\\/]", at[0])]
    place = f"{own[0][0]}, line {own[0][1]}" if own else place_of(function)
    lines = [line.strip() for line in text.partition('\nFile "')[0].splitlines()]
    lines = [s for s in lines if s and not s.startswith(("Failed in", "During:"))]
    if not type(error).__module__.startswith("numba."):
        # An error in Numba itself, at something that it does not expect.
        guarded = bool(getattr(function.__code__, "co_exceptiontable", b""))
        words = "try or with is not supported" if guarded else type(error).__name__
        lines = [words] if guarded else [f"{words}: {' '.join(lines)}"]
    return f"{place}: {' '.join(lines[:3])}"


def place_of(function: FunctionType) -> str:
    """Where a function begins."""
    return f"{function.__code__.co_filename}, line {function.__code__.co_firstlineno}"
