"""Activations: formulas against the textbook, limits, kinks, and what the rows declare."""

import math

import numpy as np
import pytest

from fastnn.tables.activations import ACTIVATIONS, LINKS, get_activation

SCALE, ALPHA = 1.0507009873554804934, 1.6732632423543772848  # Klambauer et al. 2017


def logistic(z):
    return 1 / (1 + math.exp(-z))


def log1pexp(z):
    return math.log(1 + math.exp(z))


# The formulas as the papers print them, for one moderate number.
TEXTBOOK = {
    "identity": lambda z: z,
    "step": lambda z: 1.0 if z > 0 else 0.0,
    "sigmoid": logistic,
    "tanh": lambda z: (math.exp(z) - math.exp(-z)) / (math.exp(z) + math.exp(-z)),
    "relu": lambda z: max(0.0, z),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "selu": lambda z: SCALE * (z if z > 0 else ALPHA * (math.exp(z) - 1)),
    "gelu": lambda z: z * 0.5 * math.erfc(-z / math.sqrt(2)),
    "silu": lambda z: z * logistic(z),
    "softplus": log1pexp,
    "softsign": lambda z: z / (1 + abs(z)),
    "hard_sigmoid": lambda z: min(1.0, max(0.0, z / 6 + 0.5)),
    "hard_tanh": lambda z: min(1.0, max(-1.0, z)),
    "mish": lambda z: z * math.tanh(log1pexp(z)),
}

# Slopes at 0 and at the other kinks: a choice where two one-sided derivatives meet.
KINKS = {
    "step": [(0.0, 0.0)],
    "relu": [(0.0, 0.0)],
    "leaky_relu": [(0.0, 0.01)],
    "elu": [(0.0, 1.0)],
    "selu": [(0.0, SCALE * ALPHA)],
    "softsign": [(0.0, 1.0)],
    "hard_sigmoid": [(-3.0, 0.0), (0.0, 1 / 6), (3.0, 0.0)],
    "hard_tanh": [(-1.0, 0.0), (0.0, 1.0), (1.0, 0.0)],
}

EXTREME = np.array([-1e300, -1e4, -750.0, -90.0, 0.0, 90.0, 750.0, 1e4, 1e300])


def test_every_activation_has_a_textbook():
    assert list(TEXTBOOK) == list(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name):
    z = np.concatenate([[0.0, -0.0, 1.0, -1.0, 3.0, -3.0], np.linspace(-8, 8, 101)])
    expected = [TEXTBOOK[name](float(value)) for value in z]
    np.testing.assert_allclose(ACTIVATIONS[name].f(z), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives(name):
    """Against central differences with Richardson's extrapolation, away from the kinks."""
    row, h = ACTIVATIONS[name], 1e-3
    z = np.linspace(-6, 6, 97) + 0.0137
    assert np.abs(z[:, None] - [-3, -1, 0, 1, 3]).min() > 4 * h

    def slope(h):
        return (row.f(z + h) - row.f(z - h)) / (2 * h)

    expected = (4 * slope(h / 2) - slope(h)) / 3
    np.testing.assert_allclose(row.df(z, row.f(z)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", KINKS)
def test_slopes_at_kinks(name):
    row = ACTIVATIONS[name]
    z, expected = np.array(KINKS[name]).T
    np.testing.assert_allclose(row.df(z, row.f(z)), expected, rtol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivative_reads_z_only_where_the_row_says_so(name):
    row = ACTIVATIONS[name]
    z = np.linspace(-3, 3, 11)
    y = row.f(z)
    without = row.df(np.full_like(z, np.nan), y)
    if row.needs_z:
        assert np.isnan(without).any()
    else:
        assert without.tolist() == row.df(z, y).tolist()


# Warnings are errors in this suite, so these also see that NumPy had no reason for one.


@pytest.mark.parametrize("name", [*ACTIVATIONS, "exp"])
def test_extreme_inputs_are_finite_or_honest_infinities(name):  # case N1
    row = get_activation(name)
    for z in (EXTREME, EXTREME[1:-1].astype(np.float32)):
        y = row.f(z)
        assert not np.isnan(y).any()
        low, high = row.range
        assert (y >= low).all()
        assert (y <= high).all()
        if name != "exp":
            assert np.isfinite(y).all()
            assert np.isfinite(row.df(z, y)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_and_tanh_saturate(dtype):  # case N1
    z = np.array([-1e4, -750, -90, 0, 90, 750, 1e4], dtype)
    sigmoid, tanh = ACTIVATIONS["sigmoid"].f(z), ACTIVATIONS["tanh"].f(z)
    assert sigmoid[0] == 0
    assert (sigmoid[1:3] < 1e-38).all()
    assert sigmoid[3:].tolist() == [0.5, 1, 1, 1]
    assert tanh.tolist() == [-1, -1, -1, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_limits(name):
    """Far out, each follows its asymptote."""
    value = ACTIVATIONS[name].f(np.array([-1e4, 1e4]))
    low, high = {
        "identity": (-1e4, 1e4),
        "step": (0, 1),
        "sigmoid": (0, 1),
        "tanh": (-1, 1),
        "leaky_relu": (-100, 1e4),
        "elu": (-1, 1e4),
        "selu": (-SCALE * ALPHA, SCALE * 1e4),
        "softsign": (-1e4 / 10001, 1e4 / 10001),
        "hard_sigmoid": (0, 1),
        "hard_tanh": (-1, 1),
    }.get(name, (0, 1e4))
    np.testing.assert_allclose(value, [low, high], rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_ranges_are_tight(name):
    row = ACTIVATIONS[name]
    y = row.f(np.concatenate([np.linspace(-10, 10, 20001), EXTREME]))
    low, high = row.range
    assert low <= y.min()
    assert y.max() <= high
    for bound, reached in ((low, y.min()), (high, y.max())):
        if math.isinf(bound):
            assert abs(reached) > 1e297
        else:
            assert reached == pytest.approx(bound, abs=2e-3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_goes_through(name):
    y = ACTIVATIONS[name].f(np.array([np.nan, 1.0]))
    assert np.isnan(y).tolist() == [True, False]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rows_describe_themselves(name):
    row = ACTIVATIONS[name]
    assert row.name == name
    assert row.formula
    assert get_activation(name) is row


def test_values_do_not_share_memory_with_their_input():
    z = np.linspace(-2, 2, 5)
    before = z.copy()
    for row in ACTIVATIONS.values():
        y = row.f(z)
        assert not np.shares_memory(y, z), row.name
        row.df(z, y)
        assert (z == before).all(), row.name


def test_softmax():  # case N4
    softmax = LINKS["softmax"].f
    assert softmax(np.array([[1000.0, 0.0, -1000.0]])).tolist() == [[1, 0, 0]]
    z = np.array([[0.1, -0.4, 1.3], [700.0, 701.0, 699.5]])
    p = softmax(z)
    shifted = z - z[:, :1]
    expected = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in shifted.tolist()]
    np.testing.assert_allclose(p, expected, rtol=1e-14)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-15)
    # Neither order nor a common offset matters.
    np.testing.assert_allclose(softmax(z[:, ::-1] + 3), p[:, ::-1], rtol=1e-12)


def test_links_are_for_outputs_only():
    assert set(LINKS) == {"softmax", "exp"}
    assert not set(LINKS) & set(ACTIVATIONS)
    assert LINKS["softmax"].df is None
    assert LINKS["exp"].f(np.array([0.0, 1.0, -np.inf])).tolist() == [1, math.e, 0]
