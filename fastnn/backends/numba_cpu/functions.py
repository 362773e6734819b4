"""How the backend has Numba compile, and what its kernels are written in.

Elementary functions and scalar formulas come from `fastnn.tables`: the native polynomials with
explicit fused multiply-adds, so that they vectorise and give the native bits where the processor
has FMA. Without it, both round twice.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending
from numba.core import cgutils

from fastnn.tables import vector_math
from fastnn.tables.compiled import inlined as inlined_formula
from fastnn.tables.scalars import Scalar
from fastnn.tables.vector_math import HAS_FMA, MACHINE_FEATURES, inline

__all__ = [
    "CACHED",
    "HAS_FMA",
    "MACHINE_FEATURES",
    "emit_fma",
    "fma",
    "inline",
    "inner",
    "intrinsic",
    "jit",
    "library",
    "scalar_function",
]

# mypy would take an intrinsic for the function that types it.
intrinsic: Any = extending.intrinsic
fma: Any = vector_math.fma
_njit: Any = numba.njit  # whose annotations lack options

# No fastmath: the order of operations is part of what the tests compare.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
# Numba's cache on disk knows a function by its file and line, not by what its constants and globals
# are: safe for the driver, whose kernels reach it as addresses, and not for kernels made here.
CACHED = os.environ.get("FASTNN_NUMBA_CACHE", "0").strip() not in ("", "0")
jit: Any = _njit(**_OPTIONS, cache=CACHED)
# Called from compiled code only: what Python needs to call them is left out, it takes long.
inner: Any = _njit(**_OPTIONS, no_cpython_wrapper=True, cache=CACHED)


def emit_fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """IR of ``a * b + c``, of numbers or vectors."""
    if not HAS_FMA:
        return builder.fadd(builder.fmul(a, b), c)
    vector = isinstance(a.type, ir.VectorType)
    element = a.type.element if vector else a.type
    name = f"llvm.fma.{f'v{a.type.count}' if vector else ''}{element.intrinsic_name}"
    signature = ir.FunctionType(a.type, [a.type] * 3)
    function = cgutils.get_or_insert_function(builder.module, signature, name)
    return builder.call(function, [a, b, c])


def library(dtype: Any) -> Any:
    """`math` with functions of our own, compiled for a dtype."""
    return vector_math.module(np.dtype(dtype))


@lru_cache(maxsize=1024)
def scalar_function(formula: Scalar, dtype: Any) -> Any:
    """A scalar formula of the tables, or of the user's, compiled for a dtype."""
    return inlined_formula(formula, np.dtype(dtype))
