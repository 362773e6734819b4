"""The tables' formulas for one number: equal to the array formulas, as Python and compiled.

The array formulas are held against textbooks elsewhere. Compiled float32 is allowed a few units in
the last place (ULPS) of the terms that a formula adds up; nothing may be computed in float64 there.
"""

import math
import os
import warnings

import numba
import numpy as np
import pytest
from numba.core import types

from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import (
    SCALAR_UPDATES,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Nadam,
    RMSprop,
    Rprop,
)
from fastnn.tables.scalars import ieee_math, with_constants

ROWS = {**ACTIVATIONS, "exp": LINKS["exp"]}
# N1, N5, N6: pre-activations that overflow exp, and what lies between.
EXTREME = [-1e30, -1e4, -750.0, -90.0, -40.0, 0.0, -0.0, 40.0, 88.0, 90.0, 200.0, 750.0, 1e4, 1e30]
PLAIN = list(np.linspace(-9, 9, 73)) + [-3.0, -1.0, 1.0, 3.0, 1e-7, -1e-7, 1e-20, -1e-20]
# Compiling takes time: by default the dtype in which something can go wrong with types.
FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
DTYPES = [np.float32, np.float64] if FULL else [np.float32]
ULPS = 8


def compiled(formula, dtype, n_arguments):
    """The formula jitted for a dtype, as a loop over arrays."""
    real = types.float32 if dtype == np.float32 else types.float64
    f = numba.njit(error_model="numpy")(with_constants(formula, dtype))
    f.compile((real,) * n_arguments)
    assert f.nopython_signatures[0].return_type == real  # not float64 for float32
    return lambda *arrays: np.array([f(*row) for row in zip(*arrays, strict=True)], dtype)


def plain(formula):
    return lambda *arrays: np.array(
        [formula(*map(float, row)) for row in zip(*arrays, strict=True)], np.float64
    )


def array_formula(formula, *arrays):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("error")
        return np.asarray(formula(*(np.asarray(a, np.float64) for a in arrays)))


def close(got, expected, dtype, scale=1.0):
    """Within ULPS of the value, or of the largest term that it is a sum of, `scale`."""
    with np.errstate(over="ignore"):
        expected = expected.astype(dtype)
    assert got.dtype == dtype
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(got[~finite], expected[~finite])
    assert finite.any()
    error = np.abs(got[finite].astype(np.float64) - expected[finite].astype(np.float64))
    unit = np.finfo(dtype).eps
    scale = np.broadcast_to(scale, expected.shape)[finite]
    bound = ULPS * unit * np.maximum(np.abs(expected[finite].astype(np.float64)), scale)
    bound = np.maximum(bound, ULPS * float(np.finfo(dtype).smallest_subnormal))
    worst = np.argmax(error - bound)
    assert (error <= bound).all(), (got[finite][worst], expected[finite][worst])


def of_dtype(values, dtype):
    return np.asarray(values, np.float64).astype(dtype)


def largest_term(name, z):
    """1 + erf cancels, and z + 3; all others are accurate to the value, down to the last number."""
    return np.abs(z) if name == "gelu" else 1.0 if name == "hard_sigmoid" else 0.0


@pytest.mark.parametrize("name", ROWS)
def test_activations_are_the_array_formulas(name):
    row = ROWS[name]
    z = np.array(EXTREME + PLAIN)
    y = array_formula(row.f, z)
    slope = array_formula(row.df, z, y)
    close(plain(row.scalar)(z), y, np.float64, largest_term(name, z))
    close(plain(row.scalar_df)(z, y), slope, np.float64)
    for dtype in DTYPES:
        z = of_dtype(EXTREME + PLAIN, dtype)
        y = array_formula(row.f, z)
        close(compiled(row.scalar, dtype, 1)(z), y, dtype, largest_term(name, z))
        with np.errstate(over="ignore"):
            y = y.astype(dtype)
        finite = np.isfinite(y)
        slope = array_formula(row.df, z, y)
        close(compiled(row.scalar_df, dtype, 2)(z, y)[finite], slope[finite], dtype)


@pytest.mark.parametrize("name", ROWS)
def test_activations_let_nan_through(name):
    assert math.isnan(ROWS[name].scalar(math.nan))


@pytest.mark.parametrize("dtype", DTYPES)
def test_logistic_and_tanh_at_the_ends(dtype):
    """N1: opencv 6394, 6562."""
    z = of_dtype([-1e4, -750, -90, 0, 90, 750, 1e4], dtype)
    sigmoid = compiled(ACTIVATIONS["sigmoid"].scalar, dtype, 1)(z)
    assert sigmoid[0] == 0
    assert (sigmoid[1:3] < 1e-38).all()
    np.testing.assert_array_equal(sigmoid[3:], [0.5, 1, 1, 1])
    tanh = compiled(ACTIVATIONS["tanh"].scalar, dtype, 1)(z)
    np.testing.assert_array_equal(tanh, [-1, -1, -1, 0, 1, 1, 1])


TARGETS = {
    "real": [-2.5, 0.0, 0.3, 1.0],
    "nonnegative": [0.0, 0.3, 1.0, 7.0],
    "unit": [0.0, 0.25, 1.0],
    "sign": [-1.0, 1.0],
    "classes": [0.0, 0.25, 1.0],
}
PARAMETERS = {"huber": 0.75, "quantile": 0.3}


def losses_and_points(name, dtype):
    """Outputs y or logits z, and targets, in all pairs."""
    row = LOSSES[name]
    y = np.array(PLAIN + [-1e4, 1e4])
    if row.domain[0] == 0:
        y = np.abs(y)
    if row.domain[1] == 1 or name == "cross_entropy":
        y = np.concatenate([np.linspace(0, 1, 65), [1e-30, 1e-7, 1 - 1e-7]])
    z = np.array(EXTREME + PLAIN) if row.natural_output != "identity" else y
    for points in (y, z):
        pairs = np.stack(np.meshgrid(points, TARGETS[row.target_kind]), -1).reshape(-1, 2)
        yield of_dtype(pairs[:, 0], dtype), of_dtype(pairs[:, 1], dtype)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_the_array_formulas(name):
    row = LOSSES[name]
    for dtype in (np.float32, np.float64):
        (y, t_y), (z, t_z) = losses_and_points(name, dtype)
        for formula, scalar, x, t in [
            (row.value, row.scalar_value, y, t_y),
            (row.gradient, row.scalar_gradient, y, t_y),
            (row.logit_value, row.scalar_logit_value, z, t_z),
            (row.logit_gradient, row.scalar_logit_gradient, z, t_z),
        ]:
            if name == "cross_entropy" and formula in (row.logit_value, row.logit_gradient):
                assert scalar is None  # its link couples the outputs of a row
                continue
            p = of_dtype(np.full(len(x), PARAMETERS.get(name, 0.0)), dtype)
            exact = {key: float(p[0]) for key in row.params}
            expected = array_formula(
                lambda a, b, formula=formula, exact=exact: formula(a, b, exact), x, t
            )
            scale = 1 + np.abs(x.astype(np.float64)) * np.maximum(1, np.abs(t))
            if dtype == np.float64:
                close(plain(scalar)(x, t, p), expected, dtype, scale)
            if dtype in DTYPES:
                close(compiled(scalar, dtype, 3)(x, t, p), expected, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_binary_cross_entropy_of_sure_logits(dtype):
    """N5, N6: from the logits, so that neither log(0) nor 0 * log(0) can appear."""
    row = LOSSES["binary_cross_entropy"]
    value = compiled(row.scalar_logit_value, dtype, 3)
    gradient = compiled(row.scalar_logit_gradient, dtype, 3)
    z, t = of_dtype([1000, 1000, 40, 200], dtype), of_dtype([1, 0, 1, 0], dtype)
    p = np.zeros_like(z)
    expected = [0, 1000, 4.248354255291589e-18, 200]  # exp(-40)
    np.testing.assert_allclose(value(z, t, p), expected, rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(gradient(z, t, p)[[0, 1]], [0, 1])


@pytest.mark.parametrize("name", LOSSES)
def test_losses_let_nan_through(name):
    row = LOSSES[name]
    for t in TARGETS[row.target_kind]:
        assert math.isnan(row.scalar_value(math.nan, t, PARAMETERS.get(name, 0.0)))
        if row.scalar_logit_value is not None:
            assert math.isnan(row.scalar_logit_value(math.nan, t, PARAMETERS.get(name, 0.0)))


def test_plain_python_does_not_raise_at_the_edges():
    """Where Numba gives infinity: in the CUDA simulator the formulas run as they are."""
    poisson, binary = LOSSES["poisson"], LOSSES["binary_cross_entropy"]
    assert LINKS["exp"].scalar(1e4) == math.inf
    assert poisson.scalar_logit_value(1e4, 1.0, 0.0) == math.inf
    assert poisson.scalar_value(0.0, 1.0, 0.0) == math.inf
    assert poisson.scalar_gradient(0.0, 1.0, 0.0) == -math.inf
    assert poisson.scalar_value(0.0, 0.0, 0.0) == 0
    assert binary.scalar_value(0.0, 1.0, 0.0) == binary.scalar_value(1.0, 0.0, 0.0) == math.inf
    assert binary.scalar_gradient(1.0, 0.0, 0.0) == math.inf
    assert binary.scalar_value(0.0, 0.0, 0.0) == binary.scalar_value(1.0, 1.0, 0.0) == 0


OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01),
    AdamW(0.01),
    Nadam(0.01),
    RMSprop(0.01),
    RMSprop(0.01, momentum=0.5),
    Adagrad(0.1),
    Rprop(0.1),
]


def test_every_kernel_has_an_update():
    assert [optimizer.kernel for optimizer in OPTIMIZERS] == list(SCALAR_UPDATES)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.kernel)
def test_updates_are_the_array_formulas(optimizer):
    random = np.random.default_rng(0)
    n = 300
    w, g = random.normal(size=n), random.normal(size=n) * 10.0 ** random.integers(-8, 4, n)
    g[:20] = 0
    slots = np.zeros((optimizer.n_slots, n))
    optimizer.init_slots(slots)
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), np.full(2, 0.01))
    optimizer.update(w, g, slots, scalars[0])  # a first step, so that the slots hold something
    g = g * np.where(random.random(n) < 0.3, -1, 1)
    for dtype in (np.float32, np.float64):
        state = [of_dtype(x, dtype) for x in (w, g, *slots)]
        state += [np.zeros(n, dtype)] * (4 - len(state))
        h = scalars[1].astype(dtype)
        expected = [x.astype(np.float64) for x in state]
        after = np.stack(expected[2 : 2 + optimizer.n_slots]) if optimizer.n_slots else slots
        optimizer.update(expected[0], expected[1], after, h.astype(np.float64))
        expected = [expected[0], *after]
        runs = []
        if dtype == np.float64:
            plain = optimizer.scalar_update
            runs.append([plain(*map(float, row), h.tolist()) for row in zip(*state, strict=True)])
        if dtype in DTYPES:
            update = numba.njit(error_model="numpy")(with_constants(optimizer.scalar_update, dtype))
            runs.append([update(*row, h) for row in zip(*state, strict=True)])
            returned = update.nopython_signatures[0].return_type
            assert set(returned) == {types.float32 if dtype == np.float32 else types.float64}
        for results in runs:
            for k, right in enumerate(expected):
                got = np.array([result[k] for result in results], dtype)
                # a sum of two terms may cancel: the bound is of the terms
                before = state[0 if k == 0 else k + 1].astype(np.float64)
                close(got, right, dtype, np.abs(before) + np.abs(right - (0 if k else before)))


def test_constants_of_closures_and_nested_code():
    slope = 0.25

    def f(z):
        return slope * z + 0.5

    g = with_constants(f, np.float32)
    assert g(np.float32(2)).dtype == np.float32
    assert g(np.float32(2)) == 1
    assert f(2.0) == 1
    assert with_constants(f, np.float64)(2.0) == 1


def test_replaced_globals():
    class Doubling:
        tanh = staticmethod(lambda z: 2 * z)

    f = with_constants(ACTIVATIONS["tanh"].scalar, np.float64, Doubling)
    assert f(3.0) == 6
    assert ACTIVATIONS["tanh"].scalar(0.0) == 0


def test_what_is_read_from_outside_has_the_dtype():
    """Whatever a float64 may come from: `math`, tuples, arrays, conversions."""
    table, pair, sine, real, whole = np.array([0.5, 3.0]), (0.25, 2.0), math.sin, float, int

    def f(z, i):
        low = z if z > -math.inf else math.nan
        return sine(low) + table[1] * (0.5, 0.75)[i] + pair[0] * math.pi + real(whole(z))

    exact = math.sin(2.5) + 3.0 * 0.75 + 0.25 * math.pi + 2
    for dtype, kind in ((np.float32, types.float32), (np.float64, types.float64)):
        compiled = numba.njit(error_model="numpy")(with_constants(f, dtype))
        compiled.compile((kind, types.int64))
        assert compiled.nopython_signatures[0].return_type == kind
        assert compiled(dtype(2.5), 1) == pytest.approx(exact, rel=float(4 * np.finfo(dtype).eps))


def test_math_for_plain_python_keeps_the_dtype_and_never_raises():
    with np.errstate(all="ignore"):
        for dtype in (np.float32, np.float64):
            own = ieee_math(dtype)
            for got, expected in (
                (own.exp(dtype(1e4)), math.inf),
                (own.log(dtype(-1)), math.nan),
                (own.lgamma(dtype(-1)), math.nan),
                (own.gamma(dtype(1e4)), math.inf),
                (own.erf(dtype(0.5)), dtype(math.erf(0.5))),
                (own.acos(dtype(0.25)), dtype(math.acos(0.25))),
                (own.floor(dtype(2.5)), 2.0),
                (own.inf, math.inf),
                (own.pi, dtype(math.pi)),
            ):
                assert type(got) is dtype
                np.testing.assert_allclose(got, expected, rtol=2 * np.finfo(dtype).eps)
