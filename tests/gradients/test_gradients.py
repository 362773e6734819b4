"""Gradients against central differences: every activation with every loss, in float64.

Differences are taken with steps h and h / 2 and extrapolated to 0 (Richardson), which leaves an
error of about 1e-12. A draw near a kink of an activation or a loss is drawn again: there the
differences themselves disagree. The gradient has no part in that choice.
"""

import numpy as np
import pytest

from fastnn.backends import get_backend
from fastnn.plan import Plan
from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES, Huber, Quantile, resolve_loss

SIZES = (3, 4, 3)
N_ROWS = 5
L2 = 0.03
H = 2e-3

ROWS = {**LOSSES, "huber": Huber(0.4), "quantile": Quantile(0.3)}


def pairs_of_output_and_loss():
    pairs = []
    for output in [*ACTIVATIONS, *LINKS]:
        for name, row in ROWS.items():
            try:
                resolve_loss(row, output)
            except ValueError:
                continue  # outputs outside of the loss's domain: refused (test_losses)
            pairs.append((output, name))
    return pairs


PAIRS = pairs_of_output_and_loss()


def make_targets(kind, rng):
    shape = (N_ROWS, SIZES[-1])
    if kind == "real":
        return rng.normal(size=shape)
    if kind == "nonnegative":
        return rng.poisson(1.0, size=shape).astype(float)
    if kind == "unit":
        return np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape))
    if kind == "sign":
        return rng.choice([-1.0, 1.0], size=shape)
    rows = rng.dirichlet(np.ones(SIZES[-1]), size=N_ROWS)
    rows[0] = np.eye(SIZES[-1])[1]
    return rows


def draw(plan, kind, seed):
    """Parameters, rows, targets and weights; outputs lean to the positive side, as log needs it."""
    rng = np.random.default_rng(seed)
    parameters = rng.normal(size=plan.n_parameters)
    weights, biases = plan.views(parameters)
    weights[-1] *= 0.4
    biases[-1] *= 0.2
    biases[-1] += 1.0
    weight = rng.uniform(0.2, 2, N_ROWS)
    return parameters, rng.normal(size=(N_ROWS, SIZES[0])), make_targets(kind, rng), weight


def differences(function, x, h):
    """Central differences of a scalar function by each component of x, extrapolated."""
    result = np.empty_like(x)
    for i in range(x.size):
        slopes = []
        for step in (h, h / 2):
            ends = []
            for sign in (1, -1):
                moved = x.copy()
                moved[i] += sign * step
                ends.append(function(moved))
            slopes.append((ends[0] - ends[1]) / (2 * step))
        result[i] = (4 * slopes[1] - slopes[0]) / 3
    return result


def smooth(coarse, fine):
    return np.isfinite(fine).all() and np.abs(coarse - fine).max() <= 1e-9 * np.abs(fine).max()


def check_parameters(backend, plan, loss, labels=False):
    for seed in range(60):
        parameters, X, t, weight = draw(plan, loss.target_kind, seed)
        if labels:
            t = np.random.default_rng(seed).integers(0, SIZES[-1], N_ROWS)
        elif plan.output == "step" and loss.domain != LOSSES["squared_error"].domain:
            # A wrong 0 or 1 has an infinite loss: ask for the ones that the net gives.
            t = backend.layer_outputs(plan, parameters, X, 1)[-1]

        def objective(p, X=X, t=t, weight=weight):
            return backend.loss_and_gradient(plan, p, X, t, weight, loss, L2, 1)[0]

        expected = differences(objective, parameters, H / 2)
        if not smooth(differences(objective, parameters, H), expected):
            continue
        _, gradient = backend.loss_and_gradient(plan, parameters, X, t, weight, loss, L2, 1)
        assert gradient.dtype == np.float64
        assert gradient.shape == (plan.n_parameters,)
        scale = np.abs(expected).max()
        assert scale > 1e-3
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-9 * scale)
        return
    pytest.fail("no draw was away from all kinks")


@pytest.mark.parametrize("loss", ROWS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hidden_activations(backend_name, activation, loss):  # case G8
    row = ROWS[loss]
    plan = Plan(SIZES, np.float64, (activation,), row.natural_output, (0.0,))
    check_parameters(get_backend(backend_name), plan, row)


@pytest.mark.parametrize(("output", "loss"), PAIRS)
def test_outputs(backend_name, output, loss):  # case G8
    plan = Plan(SIZES, np.float64, ("tanh",), output, (0.0,))
    check_parameters(get_backend(backend_name), plan, ROWS[loss])


# Not step: its 0 has an infinite loss wherever it is wrong.
@pytest.mark.parametrize(
    "output", [o for o, loss in PAIRS if loss == "cross_entropy" and o != "step"]
)
def test_labels(backend_name, output):
    plan = Plan(SIZES, np.float64, ("tanh",), output, (0.0,))
    check_parameters(get_backend(backend_name), plan, ROWS["cross_entropy"], labels=True)


def test_pairs_cover_the_tables():
    assert {output for output, _ in PAIRS} == {*ACTIVATIONS, *LINKS}
    assert {loss for _, loss in PAIRS} == set(LOSSES)
    assert len(PAIRS) > 100


@pytest.mark.parametrize("depth", [0, 2, 4])
def test_depths(backend_name, depth):
    hidden = ("tanh", "gelu", "sigmoid", "softplus")[:depth]
    sizes = (SIZES[0], *(2 + i for i in range(depth)), SIZES[-1])
    plan = Plan(sizes, np.float64, hidden, "softmax", (0.0,) * depth)
    check_parameters(get_backend(backend_name), plan, ROWS["cross_entropy"])


@pytest.mark.parametrize(
    ("activation", "output"),
    [(name, "identity") for name in ACTIVATIONS]
    + [("tanh", name) for name in [*ACTIVATIONS, *LINKS]],
)
def test_input_gradient(backend_name, activation, output):
    backend = get_backend(backend_name)
    plan = Plan(SIZES, np.float64, (activation,), output, (0.0,))
    for seed in range(60):
        parameters, X, _, _ = draw(plan, "real", seed)

        def outputs(X, parameters=parameters):
            return backend.predict(plan, parameters, X, np.empty((N_ROWS, SIZES[-1])), 1)

        def jacobian(h, X=X, outputs=outputs):
            columns = []
            for j in range(SIZES[0]):
                e = np.eye(SIZES[0])[j]
                slopes = [(outputs(X + s * e) - outputs(X - s * e)) / (2 * s) for s in (h, h / 2)]
                columns.append((4 * slopes[1] - slopes[0]) / 3)
            return np.stack(columns, axis=2)

        expected = jacobian(H / 2)
        if not smooth(jacobian(H), expected):
            continue
        gradient = backend.input_gradient(plan, parameters, X, 1)
        assert gradient.shape == (N_ROWS, SIZES[-1], SIZES[0])
        scale = np.abs(expected).max()
        assert scale > 1e-3 or "step" in (activation, output)
        np.testing.assert_allclose(gradient, expected, rtol=1e-8, atol=1e-9 * scale)
        return
    pytest.fail("no draw was away from all kinks")


# What no difference can reach: saturated outputs -------------------------------------------------


def one_unit(backend_name, z, target, dtype, output="sigmoid", loss="binary_cross_entropy"):
    """Loss and dLoss/dz of logits z: the weights of a net that reads a single 1 are its logits."""
    z = np.atleast_1d(z)
    plan = Plan((1, z.size), dtype, (), output, ())
    parameters = np.concatenate([z, np.zeros_like(z)]).astype(dtype)
    t = np.array([target]) if loss == "cross_entropy" else np.array([[target]], dtype)
    value, gradient = get_backend(backend_name).loss_and_gradient(
        plan, parameters, np.ones((1, 1), dtype), t, None, LOSSES[loss], 0.0, 1
    )
    assert (gradient[: z.size] == gradient[z.size :]).all()
    return value, gradient[: z.size].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("z", [200.0, 1000.0])
def test_binary_cross_entropy_of_a_certain_unit(backend_name, dtype, z):  # cases N5, N6
    value, slope = one_unit(backend_name, z, 1, dtype)
    assert value == pytest.approx(np.exp(-z), rel=1e-6, abs=1e-45 if dtype == np.float32 else 0)
    assert slope == [0]
    assert one_unit(backend_name, z, 0, dtype) == (z, [1])
    assert one_unit(backend_name, -z, 1, dtype) == (z, [-1])
    value, (slope,) = one_unit(backend_name, -z, 0, dtype)
    assert 0 <= value < 1e-38
    assert 0 <= slope < 1e-38


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_keeps_what_is_left(backend_name, dtype):  # case N5
    value, _ = one_unit(backend_name, 40.0, 1, dtype)
    assert value == pytest.approx(4.248354255291589e-18, rel=1e-6)  # exp(-40)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_of_a_certain_class(backend_name, dtype):  # case N4
    z = np.array([1000.0, 0.0, -1000.0])
    expected = {0: (0, [0, 0, 0]), 1: (1000, [1, -1, 0]), 2: (2000, [1, 0, -1])}
    for label, (loss, slopes) in expected.items():
        got = one_unit(backend_name, z, label, dtype, "softmax", "cross_entropy")
        assert got == (loss, slopes)


def test_cross_entropy_gradient_is_p_minus_onehot(backend_name):  # case G8
    z = np.random.default_rng(0).normal(size=7) * 3
    p = np.exp(z) / np.exp(z).sum()
    for label in range(7):
        value, slopes = one_unit(backend_name, z, label, np.float64, "softmax", "cross_entropy")
        assert value == pytest.approx(-np.log(p[label]), rel=1e-12)
        np.testing.assert_allclose(slopes, p - np.eye(7)[label], atol=1e-12)


def test_poisson_of_a_large_logit_is_honest(backend_name):
    value, (slope,) = one_unit(backend_name, 300.0, 2, np.float64, "exp", "poisson")
    assert value == pytest.approx(np.exp(300.0), rel=1e-12)
    assert slope == pytest.approx(np.exp(300.0), rel=1e-12)
