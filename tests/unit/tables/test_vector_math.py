"""The vector mathematics of compiled formulas: the kernels' own, and right."""

import functools
import math

import mpmath
import numpy as np
import pytest
from numba import njit

from fastnn.tables import vector_math

FUNCTIONS = ["exp", "expm1", "log", "log1p", "tanh", "erf"]
DTYPES = ["float32", "float64"]


def numbers(dtype):
    bits = np.uint32 if dtype == "float32" else np.uint64
    random = np.random.default_rng(0)
    everything = random.integers(0, np.iinfo(bits).max, 20000, dtype=bits, endpoint=True)
    special = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 5e-324, 88.8, -103.9]
    near = random.normal(size=20000) * random.choice([1e-3, 1.0, 10.0, 100.0], 20000)
    return np.concatenate([everything.view(dtype), np.array([*special, *near], dtype)])


@functools.cache
def over(name, dtype):
    """A function of the module, over arrays."""
    function = getattr(vector_math.module(dtype), name)

    @njit(error_model="numpy")
    def loop(x, y):
        for i in range(x.size):
            y[i] = function(x[i])

    def apply(x):
        y = np.empty_like(x)
        loop(x, y)
        return y

    return apply


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_are_those_of_the_kernels(name, dtype):
    kernel_calls = pytest.importorskip("fastnn.backends._native")
    if not vector_math.HAS_FMA or kernel_calls.isa() == "baseline":
        pytest.skip("without fused multiply-adds, LLVM and the C compiler may round differently")
    import ctypes

    address = kernel_calls.kernel_address(kernel_calls.isa(), dtype, "elementwise")
    c = ctypes
    elementwise = c.CFUNCTYPE(None, c.c_int, c.c_ssize_t, c.c_void_p, c.c_void_p)(address)
    x = numbers(dtype)
    expected = np.empty_like(x)
    elementwise(FUNCTIONS.index(name), x.size, x.ctypes.data, expected.ctypes.data)
    got = over(name, dtype)(x)
    assert np.isfinite(got).sum() > 1000
    np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    bits = np.uint32 if dtype == "float32" else np.uint64
    numeric = ~np.isnan(got)
    np.testing.assert_array_equal(got.view(bits)[numeric], expected.view(bits)[numeric])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*FUNCTIONS, "log2", "log10", "floor", "ceil", "trunc"])
def test_values_are_those_of_mpmath(name, dtype):
    exact = {"log2": lambda x: mpmath.log(x, 2), "log10": mpmath.log10}
    exact["trunc"] = lambda x: mpmath.floor(x) if x >= 0 else mpmath.ceil(x)
    function = exact.get(name) or getattr(mpmath, name)
    x = np.random.default_rng(1).uniform(-20, 20, 300).astype(dtype)
    if name.startswith("log"):
        x = np.abs(x)
    got = over(name, dtype)(x)
    assert got.dtype == dtype
    with mpmath.workdps(40):
        expected = np.array([float(function(mpmath.mpf(float(v)))) for v in x])
    np.testing.assert_allclose(got, expected, rtol=4 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copysign_and_constants(dtype):
    stand_in = vector_math.module(dtype)

    @njit(error_model="numpy")
    def f(x, y):
        return stand_in.copysign(x, y), stand_in.inf, stand_in.pi * x

    real = np.dtype(dtype).type
    assert f(real(2), real(-0.0)) == (-2, math.inf, real(math.pi) * real(2))
    assert [type(value) for value in (stand_in.pi, stand_in.e, stand_in.nan)] == [real] * 3
