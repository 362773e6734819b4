"""Loss and gradient against PyTorch's autograd, float64, for all activations and losses it has."""

import numpy as np
import pytest

from fastnn.backends import get_backend
from fastnn.plan import Plan
from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES, Huber, Quantile, resolve_loss

torch = pytest.importorskip("torch")
F = torch.nn.functional

SIZES = (4, 7, 5, 3)
N_ROWS = 11
L2 = 0.05
DELTA, Q = 0.4, 0.3

# step is missing: PyTorch has no function with its derivative, 0 everywhere.
TORCH_ACTIVATIONS = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.01),
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": lambda z: F.softplus(z, threshold=1000),
    "softsign": F.softsign,
    # Its formula in PyTorch's documentation: F.hardsigmoid itself rounds 1/6 to float32.
    "hard_sigmoid": lambda z: F.relu6(z + 3) / 6,
    "hard_tanh": F.hardtanh,
    "mish": F.mish,
}
TORCH_LINKS = {"softmax": lambda z: torch.softmax(z, dim=1), "exp": torch.exp}

# Losses of outputs y. Pinball and hinge of one score are no functions of PyTorch; it derives them.
TORCH_LOSSES = {
    "squared_error": lambda y, t: 0.5 * F.mse_loss(y, t, reduction="none"),
    "absolute_error": lambda y, t: F.l1_loss(y, t, reduction="none"),
    "huber": lambda y, t: F.huber_loss(y, t, delta=DELTA, reduction="none"),
    "quantile": lambda y, t: torch.maximum(Q * (t - y), (Q - 1) * (t - y)),
    "poisson": lambda y, t: F.poisson_nll_loss(y, t, log_input=False, eps=0, reduction="none"),
    "binary_cross_entropy": lambda y, t: F.binary_cross_entropy(y, t, reduction="none"),
    "cross_entropy": lambda y, t: -torch.special.xlogy(t, y),
    "hinge": lambda y, t: torch.clamp(1 - t * y, min=0),
}

# The same on logits, through the natural link: what PyTorch offers for them.
TORCH_LOGIT_LOSSES = {
    "poisson": lambda z, t: F.poisson_nll_loss(z, t, log_input=True, reduction="none"),
    "binary_cross_entropy": lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none"),
    "cross_entropy": lambda z, t: F.cross_entropy(z, t, reduction="none")[:, None],
}

ROWS = {**LOSSES, "huber": Huber(DELTA), "quantile": Quantile(Q)}


def test_only_step_has_no_peer():
    assert set(ACTIVATIONS) - set(TORCH_ACTIVATIONS) == {"step"}
    assert set(LINKS) == set(TORCH_LINKS)
    assert set(TORCH_LOSSES) == set(LOSSES)


def draw(plan, kind, output):
    rng = np.random.default_rng(7)
    parameters = rng.normal(size=plan.n_parameters)
    weights, biases = plan.views(parameters)
    weights[-1] *= 0.15
    biases[-1][:] = 1.5  # relu and hard_sigmoid stay off their 0, whose log a loss may take
    shape = (N_ROWS, SIZES[-1])
    t = {
        "real": rng.normal(size=shape),
        "nonnegative": rng.poisson(1.0, size=shape).astype(float),
        "unit": np.where(rng.random(shape) < 0.5, rng.integers(0, 2, shape), rng.random(shape)),
        "sign": rng.choice([-1.0, 1.0], size=shape),
        "classes": rng.dirichlet(np.ones(SIZES[-1]), size=N_ROWS),
    }[kind]
    return parameters, rng.normal(size=(N_ROWS, SIZES[0])), t, rng.uniform(0.1, 2, N_ROWS)


def torch_objective(plan, parameters, X, t, weight, loss_name):
    """Objective and flat gradient of the same network, written in PyTorch."""
    flat = torch.tensor(parameters, requires_grad=True)
    functions = {**TORCH_ACTIVATIONS, **TORCH_LINKS}
    a, penalty = torch.tensor(X), 0.0
    for layer, name in enumerate((*plan.activations, plan.output)):
        fan_in, fan_out = plan.layer_sizes[layer : layer + 2]
        weight_at, bias_at = plan.offsets[layer]
        W = flat[weight_at:bias_at].reshape(fan_in, fan_out)
        z = a @ W + flat[bias_at : bias_at + fan_out]
        penalty = penalty + L2 / 2 * (W * W).sum()
        a = functions[name](z)
    if plan.output == LOSSES[loss_name].natural_output and loss_name in TORCH_LOGIT_LOSSES:
        losses = TORCH_LOGIT_LOSSES[loss_name](z, torch.tensor(t))
    else:
        losses = TORCH_LOSSES[loss_name](a, torch.tensor(t))
    rows, weight = losses.sum(dim=1), torch.tensor(weight)
    objective = (rows * weight).sum() / weight.sum() + penalty
    objective.backward()
    return objective.item(), flat.grad.numpy()


def compare(backend_name, activations, output, loss_name, labels=False):
    plan = Plan(SIZES, np.float64, activations, output, (0.0, 0.0))
    parameters, X, t, weight = draw(plan, ROWS[loss_name].target_kind, output)
    if labels:
        t = np.random.default_rng(1).integers(0, SIZES[-1], N_ROWS)
    expected, expected_gradient = torch_objective(plan, parameters, X, t, weight, loss_name)
    assert np.isfinite(expected)
    assert np.isfinite(expected_gradient).all()
    value, gradient = get_backend(backend_name).loss_and_gradient(
        plan, parameters, X, t, weight, ROWS[loss_name], L2, 1
    )
    assert value == pytest.approx(expected, rel=1e-11)
    scale = np.abs(expected_gradient).max()
    assert scale > 1e-2
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-11 * scale)


@pytest.mark.parametrize("loss", TORCH_LOSSES)
@pytest.mark.parametrize("activation", TORCH_ACTIVATIONS)
def test_hidden_activations(backend_name, activation, loss):
    compare(backend_name, (activation, activation), ROWS[loss].natural_output, loss)


def allowed_pairs():
    for output in [*TORCH_ACTIVATIONS, *TORCH_LINKS]:
        for loss, row in ROWS.items():
            try:
                resolve_loss(row, output)
            except ValueError:
                continue
            yield output, loss


@pytest.mark.parametrize(("output", "loss"), list(allowed_pairs()))
def test_outputs(backend_name, output, loss):
    compare(backend_name, ("tanh", "sigmoid"), output, loss)


def test_labels(backend_name):
    compare(backend_name, ("tanh", "gelu"), "softmax", "cross_entropy", labels=True)
