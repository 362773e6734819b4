"""Losses on logits, softmax and the links' Jacobians against the textbook, at 50 digits."""

import mpmath
import numpy as np
import pytest
from kernel_calls import LINKS, LOSSES
from kernel_references import same_bits
from mpmath import exp, log, log1p, mpf
from test_activations import TEXTBOOK as ACTIVATION_TEXTBOOK

HUBER_DELTA, QUANTILE = 0.75, 0.3
PARAMETER = {"huber": HUBER_DELTA, "quantile": QUANTILE}
NATURAL = {"poisson": "exp", "binary_cross_entropy": "sigmoid", "cross_entropy": "softmax"}
EXTREMES = [
    0.0,
    88.7,
    -88.7,
    104.0,
    -104.0,
    745.0,
    -745.0,
    1e30,
    -1e30,
    3.4028234e38,
    -3.4028234e38,
]


def sign(x):
    return (x > 0) - (x < 0)


def huber(e):
    a, d = abs(e), mpf(HUBER_DELTA)
    return e * e / 2 if a <= d else d * (a - d / 2)


# (loss of one output, its derivative by y)
TEXTBOOK = {
    "squared_error": (lambda y, t: (y - t) ** 2 / 2, lambda y, t: y - t),
    "absolute_error": (lambda y, t: abs(y - t), lambda y, t: sign(y - t)),
    "huber": (lambda y, t: huber(y - t), lambda y, t: min(max(y - t, -HUBER_DELTA), HUBER_DELTA)),
    "quantile": (
        lambda y, t: QUANTILE * (t - y) if t >= y else (QUANTILE - mpf(1)) * (t - y),
        lambda y, t: -QUANTILE if t > y else 1 - mpf(QUANTILE) if t < y else 0,
    ),
    "poisson": (lambda y, t: y - (t * log(y) if t else 0), lambda y, t: 1 - t / y),
    "binary_cross_entropy": (
        lambda y, t: -(t * log(y) if t else 0) - ((1 - t) * log(1 - y) if t != 1 else 0),
        lambda y, t: (1 - t) / (1 - y) - t / y,
    ),
    "cross_entropy": (lambda y, t: -t * log(y) if t else mpf(0), lambda y, t: -t / y),
    "hinge": (lambda y, t: max(0, 1 - t * y), lambda y, t: -t if t * y < 1 else 0),
}
# Outputs for which each loss is defined.
POSITIVE, UNIT = {"exp", "sigmoid", "softmax", "softplus"}, {"sigmoid", "softmax"}
DOMAIN = {"poisson": POSITIVE, "binary_cross_entropy": UNIT, "cross_entropy": UNIT}


def pairs():
    return [(loss, link) for loss in LOSSES for link in LINKS if link in DOMAIN.get(loss, LINKS)]


def decay(x):
    """e^x for x <= 0, 0 where that is below any number of use."""
    return exp(x) if x > -100_000 else mpf(0)


def softmax(z):
    top = max(z)
    e = [decay(v - top) for v in z]
    return [v / sum(e) for v in e]


def exact_row(loss, link, z, t):
    """(loss, dL/dz) of one row of exact numbers."""
    value, slope = TEXTBOOK[loss]
    if link == "softmax":
        y = softmax(z)
        d = [slope(a, b) for a, b in zip(y, t, strict=True)]
        mean = sum(a * b for a, b in zip(d, y, strict=True))
        return sum(value(a, b) for a, b in zip(y, t, strict=True)), [
            a * (b - mean) for a, b in zip(y, d, strict=True)
        ]
    f, df = ACTIVATION_TEXTBOOK[link]
    y = [mpf(f(v)) for v in z]
    return sum(value(a, b) for a, b in zip(y, t, strict=True)), [
        slope(a, b) * df(v) for a, b, v in zip(y, t, z, strict=True)
    ]


def exact_rows(loss, link, z, t):
    with mpmath.workdps(60):
        rows = [
            exact_row(loss, link, [mpf(float(v)) for v in a], [mpf(float(v)) for v in b])
            for a, b in zip(z, t, strict=True)
        ]
        return np.array([float(v) for v, _ in rows]), np.array(
            [[float(v) for v in g] for _, g in rows]
        )


def some_targets(loss, rng, n_rows, n_outputs):
    if loss == "cross_entropy":
        t = rng.random((n_rows, n_outputs))
        return t / t.sum(1, keepdims=True)
    if loss == "hinge":
        return rng.choice([-1.0, 1.0], (n_rows, n_outputs))
    if loss == "poisson":
        return rng.integers(0, 4, (n_rows, n_outputs)).astype(float)
    t = rng.uniform(0, 1, (n_rows, n_outputs))
    return np.where(rng.random(t.shape) < 0.3, t.round(), t)


def test_every_loss_has_a_textbook():
    assert list(TEXTBOOK) == LOSSES


@pytest.mark.parametrize(("loss", "link"), pairs())
def test_values_and_gradients(kernels, loss, link, rng):
    n_rows, n_outputs = kernels.lanes + 3, 3
    z = rng.uniform(-3, 3, (n_rows, n_outputs)).astype(kernels.dtype)
    t = some_targets(loss, rng, n_rows, n_outputs).astype(kernels.dtype)
    weight = rng.uniform(0.5, 2, n_rows)
    value, slope = exact_rows(loss, link, z, t)
    parameter = PARAMETER.get(loss, 0.0)
    got, delta = kernels.loss(loss, link, z, targets=t, weight=weight, parameter=parameter)
    u = np.finfo(kernels.dtype).eps / 2
    # every path is a few operations on numbers below 25 = e^3 + margin, or their reciprocals
    assert np.abs(got - value).max() <= 300 * u * max(1, np.abs(value).max())
    scaled = slope * (weight / weight.sum())[:, None]
    assert np.abs(delta - scaled).max() <= 300 * u * max(
        np.abs(scaled).max(), weight.max() / weight.sum()
    )
    assert np.abs(value).max() > 0.05
    if link != "step":
        assert np.abs(delta).max() > 1e-3


@pytest.mark.parametrize("link", sorted(UNIT))
def test_labels_are_rows_of_ones(kernels, link, rng):
    """Labels and one-hot rows: the same loss to rounding, through any output that has
    probabilities.
    """
    n_rows, n = 2 * kernels.lanes + 1, 5
    z, labels = rng.uniform(-3, 3, (n_rows, n)), rng.permutation(n_rows) % n
    assert len(set(labels)) > 2
    a, da = kernels.loss("cross_entropy", link, z, labels=labels)
    b, db = kernels.loss("cross_entropy", link, z, targets=np.eye(n)[labels])
    u = np.finfo(kernels.dtype).eps
    assert np.abs(a - b).max() <= 8 * u * a.max()
    assert np.abs(da - db).max() <= 8 * u


def test_samples_choose_targets_labels_and_weights(kernels, rng):
    """Rows of a batch in any order: targets are gathered by sample number, delta by row."""
    n = 4 * kernels.lanes + 1
    z, t, weight = rng.standard_normal((n, 4)), rng.random((n, 4)), rng.uniform(0.5, 2, n)
    order = rng.permutation(n)
    for kind in ({"targets": t}, {"labels": rng.integers(0, 4, n)}):
        loss = "squared_error" if "targets" in kind else "cross_entropy"
        link = "identity" if "targets" in kind else "softmax"
        straight = kernels.loss(loss, link, z, weight=weight, **kind)
        shuffled = kernels.loss(loss, link, z[order], weight=weight, samples=order, **kind)
        assert same_bits(shuffled[0], straight[0][order])
        # total_weight is summed in another order: equal up to that
        assert np.allclose(shuffled[1], straight[1][order], rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy", "cross_entropy"])
def test_a_row_alone_has_the_same_bits(kernels, misaligned, loss, rng):
    link = NATURAL.get(loss, "identity")
    for n in [*kernels.lengths][:: max(1, kernels.lanes // 4)]:
        n_rows = 2 * kernels.lanes + 1
        z, t = rng.uniform(-4, 4, (n_rows, n)), some_targets(loss, rng, n_rows, n)
        value, delta = kernels.loss(loss, link, z, targets=t)
        for k in (kernels, misaligned):
            for r in (0, n_rows // 2, n_rows - 1):
                one, d = k.loss(loss, link, z[r : r + 1], targets=t[r : r + 1])
                assert same_bits(one, value[r : r + 1])
                assert np.allclose(
                    d / n_rows, delta[r : r + 1], rtol=4 * np.finfo(kernels.dtype).eps, atol=0
                )
            assert same_bits(k.loss(loss, link, z, targets=t)[0], value)
            assert same_bits(k.loss(loss, link, z, targets=t)[1], delta)


# --- extremes -------------------------------------------------------------------------------------


def extremes(dtype):
    values = EXTREMES + (
        [1e300, -1e300, np.finfo(dtype).max, -np.finfo(dtype).max] if dtype == np.float64 else []
    )
    return np.array(values, dtype)


def within(got, exact, allowed, dtype, message):
    """Infinite where, and only where, the true value is beyond the dtype."""
    with np.errstate(over="ignore"):
        beyond = np.isinf(exact.astype(dtype))
    assert np.array_equal(np.isinf(got), beyond), message
    assert not np.isnan(got).any(), message
    with np.errstate(invalid="ignore"):
        error = np.abs(got.astype(np.float64) - exact)[~beyond]
    assert (error <= np.broadcast_to(allowed, exact.shape)[~beyond]).all(), message


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_binary_cross_entropy_of_extreme_logits(kernels, target):
    """Loss within 4 units in the last place, gradient within 4u; z from 0 to the largest number."""
    z = np.concatenate([extremes(kernels.dtype), np.linspace(-40, 40, 81)]).astype(kernels.dtype)[
        :, None
    ]
    with mpmath.workdps(400):
        value = [
            max(mpf(float(v)), 0) - target * mpf(float(v)) + log1p(decay(-abs(mpf(float(v)))))
            for v in z[:, 0]
        ]
        slope = [softmax([mpf(float(v)), mpf(0)])[0] - target for v in z[:, 0]]
        value, slope = np.array([float(v) for v in value]), np.array([float(v) for v in slope])
    got, delta = kernels.loss(
        "binary_cross_entropy",
        "sigmoid",
        z,
        targets=np.full_like(z, target),
        weight=np.ones(len(z)) / len(z),
    )
    u = np.finfo(kernels.dtype).eps / 2
    tiny = float(np.finfo(kernels.dtype).smallest_subnormal)
    within(got, value, 8 * u * value + 4 * tiny, kernels.dtype, z)
    within(delta[:, 0] * len(z), slope, 4 * u + 4 * tiny, kernels.dtype, z)


@pytest.mark.parametrize("form", ["labels", "rows"])
def test_cross_entropy_of_extreme_logits(kernels, form):
    """Loss within 4u max(1, loss), gradient within 4u, for every pair of extreme logits beside a
    third of 0.
    """
    e = extremes(kernels.dtype)
    z = np.array([(a, b, 0) for a in e for b in e], kernels.dtype)
    for label in range(3):
        t = np.eye(3)[np.full(len(z), label)]
        with mpmath.workdps(400):
            value, slope = [], []
            for row in z:
                row = [mpf(float(v)) for v in row]
                top = max(row)
                value.append(float(top - row[label] + log(sum(decay(v - top) for v in row))))
                slope.append([float(p - (j == label)) for j, p in enumerate(softmax(row))])
        value, slope = np.array(value), np.array(slope)
        kind = {"labels": np.full(len(z), label)} if form == "labels" else {"targets": t}
        got, delta = kernels.loss(
            "cross_entropy", "softmax", z, **kind, weight=np.full(len(z), 1 / len(z))
        )
        u = np.finfo(kernels.dtype).eps / 2
        within(got, value, 4 * u * np.maximum(1, value), kernels.dtype, z)
        within(delta * len(z), slope, 6 * u, kernels.dtype, z)


@pytest.mark.parametrize(
    "loss", ["squared_error", "absolute_error", "huber", "quantile", "hinge", "poisson"]
)
def test_other_losses_of_extreme_logits(kernels, loss):
    """Never NaN, infinite only where the true loss is beyond the dtype."""
    z = extremes(kernels.dtype)[:, None]
    link = NATURAL.get(loss, "identity")
    for target in (1.0, -1.0) if loss == "hinge" else (0.0, 1.0):
        t = np.full_like(z, target)
        with mpmath.workdps(400):
            value = []
            for v in z[:, 0]:
                v = mpf(float(v))
                value.append(
                    (exp(min(v, mpf(10) ** 4)) if v > 0 else decay(v)) - target * v
                    if loss == "poisson"
                    else TEXTBOOK[loss][0](v, mpf(target))
                )
            value = np.array([float(v) for v in value])
        got, delta = kernels.loss(loss, link, z, targets=t, parameter=PARAMETER.get(loss, 0.0))
        u = np.finfo(kernels.dtype).eps / 2
        tiny = float(np.finfo(kernels.dtype).smallest_subnormal)
        within(got, value, 8 * u * np.abs(value) + tiny, kernels.dtype, (loss, target))
        assert not np.isnan(delta).any()


@pytest.mark.parametrize(("loss", "link"), pairs())
def test_nan_makes_the_loss_nan(kernels, loss, link, rng):
    z = rng.uniform(-2, 2, (kernels.lanes + 1, 3))
    t = some_targets(loss, rng, *z.shape)
    z[1, 2] = np.nan
    value, _ = kernels.loss(loss, link, z, targets=t, parameter=PARAMETER.get(loss, 0.0))
    assert np.isnan(value[1])
    assert np.isfinite(np.delete(value, 1)).all()


# --- softmax and Jacobians ------------------------------------------------------------------------


def test_softmax(kernels, misaligned, rng):
    for n in kernels.lengths:
        z = rng.uniform(-9, 9, (kernels.lanes + 2, n)).astype(kernels.dtype)
        with mpmath.workdps(40):
            expected = np.array(
                [[float(p) for p in softmax([mpf(float(v)) for v in row])] for row in z]
            )
        y = kernels.softmax(z)
        # z - max is rounded before exp sees it
        units = 5 + (z.max(1, keepdims=True) - z)
        assert (np.abs(y / expected - 1) <= units * np.finfo(kernels.dtype).eps).all()
        for k in (kernels, misaligned):
            assert same_bits(k.softmax(z, in_place=True), y)
            assert same_bits(k.softmax(z[:1]), y[:1])


def test_softmax_of_extreme_logits(kernels):
    top = np.finfo(kernels.dtype).max
    z = np.array([[top, -top, 0], [-top, -top, -top], [1000, 999, -np.inf], [np.nan, 1, 2]])
    p = 1 / (1 + np.exp(-1.0))
    expected = np.array([[1, 0, 0], [1 / 3] * 3, [p, 1 - p, 0], [np.nan] * 3])
    assert np.allclose(kernels.softmax(z), expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("link", LINKS)
def test_link_jacobian(kernels, misaligned, link, rng):
    z = rng.uniform(-2, 2, (4, 5)).astype(kernels.dtype)
    y = kernels.softmax(z) if link == "softmax" else kernels.activate(link, z)
    for output in range(5):
        if link == "softmax":
            p = np.exp(z.astype(float)) / np.exp(z.astype(float)).sum(1, keepdims=True)
            expected = p[:, output, None] * (np.eye(5)[output] - p)
        else:
            expected = np.zeros((4, 5))
            expected[:, output] = [
                float(ACTIVATION_TEXTBOOK[link][1](mpf(float(v)))) for v in z[:, output]
            ]
        got = kernels.link_jacobian(link, output, z, y)
        assert np.allclose(
            got,
            expected,
            rtol=0,
            atol=20 * np.finfo(kernels.dtype).eps * max(1, np.abs(expected).max()),
        )
        assert same_bits(misaligned.link_jacobian(link, output, z, y), got)
