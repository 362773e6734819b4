"""Activations and their derivatives against the textbook, at 50 digits."""

import mpmath
import numpy as np
import pytest
from kernel_calls import ACTIVATIONS
from kernel_references import needs_z, same_bits
from mpmath import erf, exp, log1p, mpf, pi, sqrt, tanh

# Klambauer, Unterthiner, Mayr & Hochreiter 2017 (arXiv:1706.02515).
SELU_SCALE = mpf("1.0507009873554804934193349852946")
SELU_ALPHA = mpf("1.6732632423543772848170429916717")


def logistic(z):
    return 1 / (1 + exp(-z))


def softplus(z):
    return max(z, 0) + log1p(exp(-abs(z)))


def normal_cdf(z):
    return (1 + erf(z / sqrt(2))) / 2


def normal_pdf(z):
    return exp(-z * z / 2) / sqrt(2 * pi)


def sech2(x):
    return 1 / mpmath.cosh(x) ** 2


# name: (f, f'), the derivative at a kink as PyTorch has it.
TEXTBOOK = {
    "identity": (lambda z: z, lambda z: 1),
    "step": (lambda z: z > 0, lambda z: 0),
    "sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
    "tanh": (tanh, sech2),
    "relu": (lambda z: max(z, 0), lambda z: z > 0),
    "leaky_relu": (lambda z: z if z > 0 else z / 100, lambda z: 1 if z > 0 else mpf(1) / 100),
    "elu": (lambda z: z if z > 0 else mpmath.expm1(z), lambda z: exp(min(z, 0))),
    "selu": (
        lambda z: SELU_SCALE * (z if z > 0 else SELU_ALPHA * mpmath.expm1(z)),
        lambda z: SELU_SCALE * (1 if z > 0 else SELU_ALPHA * exp(z)),
    ),
    "gelu": (lambda z: z * normal_cdf(z), lambda z: normal_cdf(z) + z * normal_pdf(z)),
    "silu": (lambda z: z * logistic(z), lambda z: logistic(z) * (1 + z * logistic(-z))),
    "softplus": (softplus, logistic),
    "softsign": (lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2),
    "hard_sigmoid": (
        lambda z: min(max(z / 6 + mpf(1) / 2, 0), 1),
        lambda z: mpf(1) / 6 if -3 < z < 3 else 0,
    ),
    "hard_tanh": (lambda z: min(max(z, -1), 1), lambda z: -1 < z < 1),
    "mish": (
        lambda z: z * tanh(softplus(z)),
        lambda z: tanh(softplus(z)) + z * sech2(softplus(z)) * logistic(z),
    ),
    "exp": (exp, exp),
}

EXTREMES = [0.0, 88.7, 104.0, 745.0, 1e30, 3.4028234e38]


def test_every_activation_has_a_textbook():
    assert list(TEXTBOOK) == ACTIVATIONS


def points(dtype):
    """Dense around 0, kinks and their neighbors, extremes of both signs."""
    x = np.concatenate(
        [np.linspace(-12, 12, 193), [-3, -1, 1, 3], np.logspace(-30, 0, 16), EXTREMES]
    )
    x = np.concatenate([x, -x, [np.finfo(dtype).max, -np.finfo(dtype).max]]).astype(dtype)
    return np.unique(x)


def exact(function, x):
    with mpmath.workdps(50):
        return np.array([float(function(mpf(float(v)))) for v in x])


def assert_close(got, expected, z, units, absolute):
    """Within `units` rounding errors of the value, or of `absolute` where the formula cancels."""
    info = np.finfo(got.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        inside = np.abs(expected) <= info.max
        error = np.abs(got.astype(np.float64) - expected)
        allowed = units * info.eps / 2 * np.maximum(np.abs(expected), absolute)
        # a product with a number that has rounded to a subnormal one
        allowed += (
            2
            * float(info.smallest_subnormal)
            * (1 + np.minimum(np.abs(z), 1000).astype(np.float64))
        )
        wrong = np.where(inside, ~(error <= allowed), ~np.isinf(got))
    assert not wrong.any(), list(zip(z[wrong], got[wrong], expected[wrong], strict=True))[:5]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(kernels, name):
    z = points(kernels.dtype)
    y = kernels.activate(name, z[None])[0]
    # gelu's normal_cdf is (1 + erf) / 2, hard_sigmoid adds 1/2: errors relative to z and to 1
    absolute = {"gelu": np.abs(z).astype(np.float64), "hard_sigmoid": 1.0}.get(name, 0.0)
    assert_close(y, exact(TEXTBOOK[name][0], z), z, 6, absolute)
    assert np.isfinite(y[np.abs(z) < 80]).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives(kernels, name):
    z = points(kernels.dtype)
    y = kernels.activate(name, z[None])
    delta = kernels.activate_backward(name, z[None] if needs_z(name) else None, y, np.ones_like(y))[
        0
    ]
    expected = exact(TEXTBOOK[name][1], z)
    # z times something near 1 or 0 in gelu, silu and mish: errors relative to z where that
    # has not died away
    absolute = np.clip(np.abs(z).astype(np.float64), 1, 40) if needs_z(name) else 1.0
    assert_close(delta, expected, z, 10, absolute)
    scaled = kernels.activate_backward(
        name, z[None] if needs_z(name) else None, y, np.full_like(y, -0.5)
    )[0]
    assert np.array_equal(scaled, -0.5 * delta, equal_nan=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_finite_numbers_stay_finite(kernels, name):
    z = points(kernels.dtype)[None]
    y = kernels.activate(name, z)
    delta = kernels.activate_backward(name, z, y, np.ones_like(y))
    if name == "exp":  # overflows, as e^z does
        z, y, delta = z[:, z[0] < 88], y[:, z[0] < 88], delta[:, z[0] < 88]
    if name == "selu":  # 1.05 z
        y, delta = y[np.abs(z) < 1e38], delta[np.abs(z) < 1e38]
    assert np.isfinite(y).all()
    assert np.isfinite(delta).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_let_through(kernels, name):
    z = np.array([[1.0, np.nan, 2.0]])
    y = kernels.activate(name, z)
    assert np.array_equal(np.isnan(y), [[False, True, False]])
    delta = kernels.activate_backward(
        name, z, np.ones((1, 3)) * 0.5, np.array([[1.0, np.nan, 1.0]])
    )
    assert np.isnan(delta[0, 1])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_any_shape_and_place_has_the_same_bits(kernels, misaligned, name, rng):
    """Every width to two vectors and one, in place or not, aligned or not."""
    for n_cols in kernels.lengths:
        z, delta = rng.uniform(-4, 4, (3, n_cols)), rng.uniform(-1, 1, (3, n_cols))
        flat = kernels.activate(name, z.reshape(1, -1)).reshape(z.shape)
        backward = kernels.activate_backward(
            name, z.reshape(1, -1), flat.reshape(1, -1), delta.reshape(1, -1)
        )
        for k in (kernels, misaligned):
            assert same_bits(k.activate(name, z), flat)
            assert same_bits(k.activate(name, z, in_place=True), flat)
            assert same_bits(k.activate_backward(name, z, flat, delta), backward.reshape(z.shape))
    assert name == "step" or len(np.unique(flat)) > 1
