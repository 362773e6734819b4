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

from collections.abc import Callable, Mapping
from types import CellType, CodeType, FunctionType
from typing import Any

import numpy as np

__all__ = ["Scalar", "with_constants"]

Scalar = Callable[..., Any]
"""A formula on floats."""


def with_constants(
    function: Scalar, dtype: Any, replacements: Mapping[str, Any] | None = None
) -> Scalar:
    """A copy of a function whose float constants are of a dtype.

    Parameters
    ----------
    function : function
        In pure Python. What it calls is left as it is.
    dtype : dtype
        float32 or float64.
    replacements : mapping, optional
        Other values for global names, such as another ``math``.

    Returns
    -------
    function
        Literals, globals and closed-over variables that are floats are NumPy scalars of the dtype;
        for float64 they stay as they are.
    """
    scalar = np.dtype(dtype).type

    def convert(value: Any) -> Any:
        if isinstance(value, float) and scalar is not np.float64:
            return scalar(value)
        if isinstance(value, CodeType):
            return value.replace(co_consts=tuple(convert(c) for c in value.co_consts))
        return value

    own_globals = {name: convert(value) for name, value in function.__globals__.items()}
    own_globals.update(replacements or {})
    closure = function.__closure__
    if closure is not None:
        closure = tuple(CellType(convert(cell.cell_contents)) for cell in closure)
    copy = FunctionType(
        convert(function.__code__), own_globals, function.__name__, function.__defaults__, closure
    )
    copy.__module__ = function.__module__
    copy.__qualname__ = function.__qualname__
    return copy
