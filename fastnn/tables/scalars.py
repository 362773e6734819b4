"""What the tables' formulas for one number may hold, so that every compiler takes them.

The scalar formulas of the rows are compiled at run time by Numba for the processor and for the GPU,
and run as plain Python in the CUDA simulator. So they are module-level functions (or lambdas) of
floats, complete in themselves, with

- arithmetic, comparisons, conditional expressions, local variables, `abs`, and functions of `math`;
- float constants (``1.0``, never ``1``), written out or as floats of their module;
- nothing that raises in plain Python, where Numba gives infinity or NaN: `math.exp` of more than
  709.78, `math.log` of 0, division by 0.

A float constant is a float64 to Numba, and makes a float32 expression a float64 one: slow on most
GPUs, and off the CPU's vectors of floats. `with_constants` gives a formula the constants of the
type that a backend works in. On GPUs, where `math.exp` of a float32 is one, the whole formula is
then computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

__all__ = ["Scalar", "ieee_math", "math_of", "with_constants"]

Scalar = Callable[..., Any]
"""A formula on floats."""

_NAMES = [name for name in vars(math) if not name.startswith("_")]
_FUNCTIONS = {id(getattr(math, name)): name for name in _NAMES if callable(getattr(math, name))}


def with_constants(function: Scalar, dtype: Any, stand_in: Any = None) -> Scalar:
    """A copy of a function whose float constants are of a dtype.

    Parameters
    ----------
    function : function
        In pure Python. Other functions that it calls are left as they are.
    dtype : dtype
        float32 or float64.
    stand_in : module or other namespace, optional
        What takes the place of `math` and of its functions; by default `math_of` the dtype.

    Returns
    -------
    function
        Literals, globals and closed-over variables that are floats (tuples and arrays of them, too)
        are of the dtype; the names `float` and `int` of its globals, as formulas have them, are the
        dtype's and int64, so that what is converted has the dtype as well.
    """
    scalar = np.dtype(dtype).type
    own = math_of(dtype) if stand_in is None else stand_in

    def convert(value: Any) -> Any:
        if isinstance(value, float):
            return scalar(value)
        if isinstance(value, tuple):
            return tuple(map(convert, value)) if type(value) is tuple else value
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            return value.astype(scalar)
        if isinstance(value, CodeType):
            return value.replace(co_consts=tuple(convert(c) for c in value.co_consts))
        if value is float or value is int:
            return scalar if value is float else np.int64
        if value is math:
            return own
        return getattr(own, _FUNCTIONS[id(value)]) if id(value) in _FUNCTIONS else value

    own_globals = dict(function.__globals__)
    with np.errstate(over="ignore"):  # a constant beyond float32 is infinity there
        for name in set(_global_names(function.__code__)) & own_globals.keys():
            own_globals[name] = convert(own_globals[name])
        closure = function.__closure__
        if closure is not None:
            closure = tuple(CellType(convert(cell.cell_contents)) for cell in closure)
        code = convert(function.__code__)
    copy = FunctionType(code, own_globals, function.__name__, function.__defaults__, closure)
    copy.__module__ = function.__module__
    copy.__qualname__ = function.__qualname__
    return copy


def _global_names(code: CodeType) -> Iterator[str]:
    """Names that a function may look up outside, with those of functions inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_names(constant)


@cache
def math_of(dtype: Any) -> ModuleType:
    """`math` for compiled code: its constants of a dtype, its functions as they are."""
    real = np.dtype(dtype).type
    found = ModuleType("math", f"math for {np.dtype(dtype)}")
    for name in _NAMES:
        value = getattr(math, name)
        setattr(found, name, real(value) if isinstance(value, float) else value)
    return found


# NumPy's names where they are others.
_UFUNCS = {
    "acos": "arccos",
    "acosh": "arccosh",
    "asin": "arcsin",
    "asinh": "arcsinh",
    "atan": "arctan",
    "atan2": "arctan2",
    "atanh": "arctanh",
    "fabs": "abs",
    "pow": "power",
}


@cache
def ieee_math(dtype: Any) -> ModuleType:
    """`math` for plain Python with the arithmetic of compiled code.

    Infinity and NaN where Python raises (with NumPy's warnings), results of the dtype.
    """
    real = np.dtype(dtype).type
    found = math_of(dtype)
    plain = ModuleType("math", f"math for {np.dtype(dtype)} in plain Python")
    for name in _NAMES:
        value = getattr(found, name)
        ufunc = getattr(np, _UFUNCS.get(name, name), None)
        if isinstance(ufunc, np.ufunc) and ufunc.nin <= 2 and name not in ("gcd", "lcm"):
            value = ufunc
        elif callable(value):
            value = _forgiving(value, real)
        setattr(plain, name, value)
    return plain


def _forgiving(function: Callable[..., float], real: Any) -> Callable[..., Any]:
    """A function of `math` that gives NaN or infinity where Python raises."""

    def call(*arguments: float) -> Any:
        try:
            return real(function(*arguments))
        except OverflowError:
            return real(math.inf)
        except ValueError:
            return real(math.nan)

    return call
