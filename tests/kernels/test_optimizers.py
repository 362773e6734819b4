"""Optimizers' updates and the passes over whole gradients, against textbooks in float64."""

import math

import numpy as np
import pytest
from kernel_calls import OPTIMIZERS
from kernel_references import fma, same_bits

from fastnn.backends import _native

# Hyperparameters of a step in the middle of a training: t = 7.
RATE, MOMENTUM, BETA1, BETA2, EPS, DECAY, T = 0.02, 0.9, 0.8, 0.95, 1e-4, 0.1, 7
C1, C2 = 1 - BETA1**T, 1 - BETA2**T
MU, MU_NEXT, MU_PRODUCT = 0.41, 0.43, 0.37  # Dozat's schedule at some step


def adam(w, g, m, v, decay=0.0):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2, with decay."""
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
    return w - RATE * decay * w - RATE * (m / C1) / (np.sqrt(v / C2) + EPS), m, v


def sgd_momentum(w, g, v):
    v = MOMENTUM * v + g
    return w - RATE * v, v


def sgd_nesterov(w, g, v):
    v = MOMENTUM * v + g
    return w - RATE * (g + MOMENTUM * v), v


def nadam(w, g, m, v):
    """Dozat 2016: the momentum of the next step is looked ahead to."""
    m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g**2
    look_ahead = MU_NEXT * m / (1 - MU_PRODUCT * MU_NEXT) + (1 - MU) * g / (1 - MU_PRODUCT)
    return w - RATE * look_ahead / (np.sqrt(v / C2) + EPS), m, v


def rmsprop(w, g, v):
    v = BETA2 * v + (1 - BETA2) * g**2
    return w - RATE * g / (np.sqrt(v) + EPS), v


def rmsprop_momentum(w, g, v, b):
    v = BETA2 * v + (1 - BETA2) * g**2
    b = MOMENTUM * b + g / (np.sqrt(v) + EPS)
    return w - RATE * b, v, b


def adagrad(w, g, v):
    v = v + g**2
    return w - RATE * g / (np.sqrt(v) + EPS), v


ETA_MINUS, ETA_PLUS, STEP_MIN, STEP_MAX = 0.5, 1.2, 0.05, 0.6


def rprop(w, g, before, step):
    """Riedmiller & Braun 1993; the gradient is forgotten where its sign has changed."""
    w, before, step = w.copy(), before.copy(), step.copy()
    for i in np.ndindex(w.shape):
        product = g[i] * before[i]
        if product > 0:
            step[i] = min(step[i] * ETA_PLUS, STEP_MAX)
        elif product < 0:
            step[i] = max(step[i] * ETA_MINUS, STEP_MIN)
        before[i] = 0 if product < 0 else g[i]
        w[i] -= math.copysign(1, before[i]) * step[i] if before[i] else 0
    return w, before, step


MOMENTS = [BETA1, 1 - BETA1, BETA2, 1 - BETA2, EPS]
# name: (scalars as fastnn/tables/optimizers.py computes them, the textbook's step)
TEXTBOOK = {
    "sgd": ([RATE], lambda w, g: (w - RATE * g,)),
    "sgd_momentum": ([RATE, MOMENTUM], sgd_momentum),
    "sgd_nesterov": ([RATE, MOMENTUM], sgd_nesterov),
    "adam": ([RATE / C1, 1 / math.sqrt(C2), *MOMENTS], adam),
    "adamw": (
        [RATE / C1, 1 / math.sqrt(C2), *MOMENTS, 1 - RATE * DECAY],
        lambda *a: adam(*a, decay=DECAY),
    ),
    "nadam": (
        [
            *(RATE * (1 - MU) / (1 - MU_PRODUCT), RATE * MU_NEXT / (1 - MU_PRODUCT * MU_NEXT)),
            *(1 / math.sqrt(C2), *MOMENTS),
        ],
        nadam,
    ),
    "rmsprop": ([RATE, BETA2, 1 - BETA2, EPS], rmsprop),
    "rmsprop_momentum": ([RATE, BETA2, 1 - BETA2, EPS, MOMENTUM], rmsprop_momentum),
    "adagrad": ([RATE, EPS], adagrad),
    "rprop": ([1.0, ETA_MINUS, ETA_PLUS, STEP_MIN, STEP_MAX], rprop),
}


def test_every_optimizer_has_a_textbook():
    assert list(TEXTBOOK) == OPTIMIZERS
    for i, (name, (scalars, _)) in enumerate(TEXTBOOK.items()):
        assert _native.optimizer_shape(i)[1] == len(scalars), name


def state(name, rng, shape):
    n_slots = _native.optimizer_shape(OPTIMIZERS.index(name))[0]
    slots = [rng.uniform(0.05, 0.5, shape) for _ in range(n_slots)]
    if slots:
        # moments and Rprop's last gradient have signs; what is under a root, or a step, has not
        slots[0] *= (
            rng.choice([-1, 0, 1], shape) if name in ("rprop", "adam", "adamw", "nadam") else 1
        )
    return rng.standard_normal(shape), rng.standard_normal(shape), slots


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_the_textbooks(kernels, name, rng):
    scalars, step = TEXTBOOK[name]
    w, g, slots = state(name, rng, (3, 2 * kernels.lanes + 1))
    g[0, :2] = 0
    w, g, *slots = (a.astype(kernels.dtype).astype(np.float64) for a in (w, g, *slots))
    expected = step(w, g, *slots)
    got = kernels.update(name, scalars, w, g, slots)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= 16 * np.finfo(kernels.dtype).eps * max(1, np.abs(b).max())
    assert np.abs(got[0] - w).max() > 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_penalty_and_scale(kernels, name, rng):
    """The gradient that a step sees is scale (g + l2 w)."""
    scalars, _ = TEXTBOOK[name]
    w, g, slots = (np.asarray(a).astype(kernels.dtype) for a in state(name, rng, (2, 11)))
    l2, scale = kernels.dtype.type(0.125), kernels.dtype.type(0.3)
    seen = (fma(l2, w, g) if kernels.fused else l2 * w + g) * scale
    for a, b in zip(
        kernels.update(name, scalars, w, g, slots, l2=float(l2), scale=float(scale)),
        kernels.update(name, scalars, w, seen, slots),
        strict=True,
    ):
        assert same_bits(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_shape_and_place_has_the_same_bits(kernels, misaligned, name, rng):
    scalars, _ = TEXTBOOK[name]
    for n_cols in kernels.lengths:
        w, g, slots = state(name, rng, (3, n_cols))
        flat = kernels.update(
            name, scalars, w.reshape(1, -1), g.reshape(1, -1), [s.reshape(1, -1) for s in slots]
        )
        for k in (kernels, misaligned):
            for a, b in zip(k.update(name, scalars, w, g, slots), flat, strict=True):
                assert same_bits(a, b.reshape(w.shape))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_subnormal_number_stays(kernels, name):
    """Of a weight that has no gradient any more: 0.9 of 4 units of the last place is 4 again."""
    scalars, _ = TEXTBOOK[name]
    least = np.finfo(kernels.dtype).smallest_normal
    w = np.array([[1.0, 1.02 * least, -1.02 * least, 0.9 * least, 1.0]])
    slots = [np.full(w.shape, 1.02 * least) for _ in state(name, np.random.default_rng(0), (1,))[2]]
    for _ in range(3):
        w, *slots = kernels.update(name, scalars, w, 0 * w, slots)
        for a in (w, *slots):
            assert (np.abs(a[a != 0]) >= least).all()
    assert np.abs(w[0, [0, 4]] - 1).max() < 0.3
    if name == "sgd":
        assert (np.abs(w[0, 1:3]) > least).all()
        assert w[0, 3] == 0


# the slot that is momentum
MOMENTUM_SLOT = {
    "sgd_momentum": 0,
    "sgd_nesterov": 0,
    "adam": 0,
    "adamw": 0,
    "nadam": 0,
    "rmsprop_momentum": 1,
}


@pytest.mark.parametrize("name", MOMENTUM_SLOT)
def test_momentum_fades_before_its_quotient_is_subnormal(kernels, name):
    """And no sum of squares does, whose root may be all of a denominator; nor does NaN."""
    scalars, _ = TEXTBOOK[name]
    info = np.finfo(kernels.dtype)
    least = info.smallest_normal * 2.0**24
    w = np.array([[1.0, 1.0, 1.0, 1.0, 1.0]], kernels.dtype)
    start = np.array([[2 * least, -2 * least, least / 2, -least / 2, np.nan]], kernels.dtype)
    slots = [np.abs(start) for _ in state(name, np.random.default_rng(0), (1,))[2]]
    slots[MOMENTUM_SLOT[name]] = start
    _, *after = kernels.update(name, scalars, w, 0 * w, slots)
    momentum = after.pop(MOMENTUM_SLOT[name])
    assert (np.abs(momentum[0, :2]) >= least).all()
    assert (momentum[0, 2:4] == 0).all()
    assert np.isnan(momentum[0, 4])
    for squares in after:
        assert squares[0, 2] > 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nan_reaches_the_parameter(kernels, name, rng):
    """A NaN in the gradient is seen in the weights: divergence cannot hide."""
    scalars, _ = TEXTBOOK[name]
    w, g, slots = state(name, rng, (1, 9))
    g[0, 4] = np.nan
    moved = kernels.update(name, scalars, w, g, slots)[0]
    assert np.isnan(moved[0, 4])
    assert np.isfinite(np.delete(moved, 4)).all()


# --- passes over whole arrays ---------------------------------------------------------------------


def test_sum_of_squares(kernels, misaligned, rng):
    for n in [0, *kernels.lengths, 1000]:
        x = rng.standard_normal(n).astype(kernels.dtype)
        exact = math.fsum(float(v) ** 2 for v in x)
        assert kernels.sum_of_squares(x) == pytest.approx(exact, rel=1e-14, abs=0)
        assert misaligned.sum_of_squares(x) == kernels.sum_of_squares(x)
    # the documented order: eight chains over the indices modulo 8, added pairwise
    s = [0.0] * 8
    for i, v in enumerate(x.astype(np.float64)):
        s[i % 8] += v * v
    assert kernels.sum_of_squares(x) == ((s[0] + s[1]) + (s[2] + s[3])) + (
        (s[4] + s[5]) + (s[6] + s[7])
    )
    assert np.isnan(kernels.sum_of_squares([1.0, np.nan]))


def test_sum_of_squares_does_not_overflow_in_float32(kernels):
    assert kernels.sum_of_squares([3e38, 3e38]) == pytest.approx(2 * 9e76, rel=1e-6)


def test_add_scaled(kernels, misaligned, rng):
    scale = kernels.dtype.type(0.3)
    for n in kernels.lengths:
        x, y = (rng.standard_normal(n).astype(kernels.dtype) for _ in range(2))
        expected = fma(scale, x, y) if kernels.fused else scale * x + y
        assert same_bits(kernels.add_scaled(float(scale), x, y), expected)
        assert same_bits(misaligned.add_scaled(float(scale), x, y), expected)


def test_multiply(kernels, misaligned, rng):
    for n in kernels.lengths:
        a, b = (rng.standard_normal((3, n)).astype(kernels.dtype) for _ in range(2))
        for k in (kernels, misaligned):
            assert same_bits(k.multiply(a, b), a * b)
            assert same_bits(k.multiply(a, b, in_place=True), a * b)
    special = np.array(
        [[0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo(kernels.dtype).max]], kernels.dtype
    )
    with np.errstate(invalid="ignore", over="ignore"):
        assert same_bits(kernels.multiply(special, special[:, ::-1]), special * special[:, ::-1])


def test_all_finite(kernels, misaligned):
    info = np.finfo(kernels.dtype)
    for n in kernels.lengths:
        x = np.resize(
            np.array([0.0, -0.0, info.max, -info.max, info.tiny, info.smallest_subnormal]), n
        )
        for k in (kernels, misaligned):
            assert k.all_finite(x)
            for i in range(n):
                for bad in (np.nan, np.inf, -np.inf):
                    y = x.copy()
                    y[i] = bad
                    assert not k.all_finite(y), (n, i, bad)
    assert kernels.all_finite([])
