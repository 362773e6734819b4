"""200 steps of every optimizer next to PyTorch's, each on its own path from the same start."""

import math

import numpy as np
import pytest

from fastnn.backends import get_backend
from fastnn.backends.base import TrainJob
from fastnn.plan import Plan
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import (
    OPTIMIZERS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Nadam,
    RMSprop,
    Rprop,
)

torch = pytest.importorskip("torch")

SIZES = (4, 6, 2)
N_ROWS, BATCH_SIZE, N_STEPS = 40, 8, 200
L2 = 1e-3
PLAN = Plan(SIZES, np.float64, ("tanh",), "identity", (0.0,))

_rng = np.random.default_rng(3)
X = _rng.normal(size=(N_ROWS, SIZES[0]))
Y = np.sin(X @ _rng.normal(size=(SIZES[0], SIZES[-1]))) + 0.1 * _rng.normal(size=(N_ROWS, 2))
START = 0.5 * _rng.normal(size=PLAN.n_parameters)

# Ours, and PyTorch's of the same meaning.
PAIRS = {
    "sgd": (SGD(0.05), lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": (SGD(0.02, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "nesterov": (
        SGD(0.02, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    ),
    "adam": (Adam(), lambda p: torch.optim.Adam(p)),
    "adam settings": (
        Adam(0.01, beta1=0.8, beta2=0.95, epsilon=1e-3),
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adamw": (AdamW(), lambda p: torch.optim.AdamW(p)),
    "adamw settings": (
        AdamW(0.01, beta1=0.8, beta2=0.95, epsilon=1e-5, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.3),
    ),
    "nadam": (Nadam(), lambda p: torch.optim.NAdam(p)),
    "nadam settings": (
        Nadam(0.01, beta1=0.8, beta2=0.95, epsilon=1e-5, momentum_decay=0.05),
        lambda p: torch.optim.NAdam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-5, momentum_decay=0.05),
    ),
    "rmsprop": (RMSprop(), lambda p: torch.optim.RMSprop(p, lr=1e-3, alpha=0.9)),
    "rmsprop momentum": (
        RMSprop(0.002, rho=0.99, epsilon=1e-4, momentum=0.7),
        lambda p: torch.optim.RMSprop(p, lr=0.002, alpha=0.99, eps=1e-4, momentum=0.7),
    ),
    "adagrad": (Adagrad(), lambda p: torch.optim.Adagrad(p)),
    "adagrad settings": (
        Adagrad(0.1, epsilon=1e-3),
        lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3),
    ),
    "rprop": (Rprop(), lambda p: torch.optim.Rprop(p)),
    "rprop settings": (
        Rprop(0.02, eta_minus=0.3, eta_plus=1.1, min_step=1e-4, max_step=0.05),
        lambda p: torch.optim.Rprop(p, lr=0.02, etas=(0.3, 1.1), step_sizes=(1e-4, 0.05)),
    ),
}

STEPS_PER_EPOCH = N_ROWS // BATCH_SIZE


def batch_of(name):
    """Rprop compares signs from step to step: that takes the full batch."""
    return N_ROWS if name.startswith("rprop") else BATCH_SIZE


def run(backend_name, optimizer, batch_size, rates):
    """Our free-running path, float64 (n_parameters,), in one call of the backend."""
    parameters = START.copy()
    slots = np.empty((optimizer.n_slots, PLAN.n_parameters))
    optimizer.init_slots(slots)
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), rates)
    job = TrainJob(
        X=X,
        y=Y,
        weight=None,
        loss=LOSSES["squared_error"],
        optimizer=optimizer,
        scalars=scalars,
        orders=None,
        batch_size=batch_size,
        n_epochs=len(rates) * batch_size // N_ROWS,
        l2=L2,
    )
    result = get_backend(backend_name).train(PLAN, parameters, slots, job)
    assert (result.status, result.steps_done) == ("done", len(rates))
    return parameters


def torch_gradient(flat, step, batch_size):
    """The gradient at `flat` by autograd: the batches of `run` in the same order."""
    leaf = flat.detach().clone().requires_grad_()
    begin = step * batch_size % N_ROWS
    a, objective = torch.tensor(X[begin : begin + batch_size]), 0.0
    for layer in range(2):
        fan_in, fan_out = SIZES[layer : layer + 2]
        weight_at, bias_at = PLAN.offsets[layer]
        W = leaf[weight_at:bias_at].reshape(fan_in, fan_out)
        z = a @ W + leaf[bias_at : bias_at + fan_out]
        objective = objective + L2 / 2 * (W * W).sum()
        a = torch.tanh(z) if layer == 0 else z
    error = a - torch.tensor(Y[begin : begin + batch_size])
    objective = objective + 0.5 * (error * error).sum(dim=1).mean()
    objective.backward()
    return leaf.grad


def torch_path(make, batch_size, rates):
    flat = torch.tensor(START, requires_grad=True)
    optimizer = make([flat])
    base = optimizer.param_groups[0]["lr"]
    for step, rate in enumerate(rates):
        flat.grad = torch_gradient(flat, step, batch_size)
        if rate != base:
            optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    return flat.detach().numpy()


def test_every_kernel_has_a_pair():
    kernels = {ours.kernel for ours, _ in PAIRS.values()}
    expected = {"sgd", "sgd_momentum", "sgd_nesterov", "adam", "adamw", "nadam"}
    expected |= {"rmsprop", "rmsprop_momentum", "adagrad", "rprop"}
    assert kernels == expected
    assert {type(ours) for ours, _ in PAIRS.values()} == set(OPTIMIZERS.values()) - {
        OPTIMIZERS["lbfgs"]
    }


@pytest.mark.parametrize("name", PAIRS)
def test_free_running_steps(backend_name, name):
    ours, make = PAIRS[name]
    rates = np.full(N_STEPS, ours.learning_rate)
    got = run(backend_name, ours, batch_of(name), rates)
    expected = torch_path(make, batch_of(name), rates)
    assert np.abs(expected - START).max() > 0.05  # it went somewhere
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("rprop")])
def test_rates_that_change(backend_name, name):
    """A schedule only changes the rate: moments, momenta and corrections go on."""
    ours, make = PAIRS[name]
    rates = np.array(
        [ours.learning_rate * (0.55 + 0.45 * math.cos(0.05 * step)) for step in range(N_STEPS)]
    )
    got = run(backend_name, ours, BATCH_SIZE, rates)
    np.testing.assert_allclose(got, torch_path(make, BATCH_SIZE, rates), rtol=0, atol=1e-8)


# PyTorch's Rprop reads its rate once, for the first step. Here a schedule scales every step, so the
# peer of that is the textbook's loop.


def test_rprop_with_rates_that_change(backend_name):
    ours = Rprop(0.02, eta_minus=0.4, eta_plus=1.3, min_step=1e-5, max_step=0.1)
    rates = np.array([0.02 / (1 + 0.01 * step) for step in range(N_STEPS)])
    got = run(backend_name, ours, N_ROWS, rates)
    w = torch.tensor(START)
    steps, previous = [0.02] * w.numel(), [0.0] * w.numel()
    for step, rate in enumerate(rates):
        gradient = torch_gradient(w, step, N_ROWS).tolist()
        for i, g in enumerate(gradient):
            if g * previous[i] > 0:
                steps[i] = min(steps[i] * 1.3, 0.1)
            elif g * previous[i] < 0:
                steps[i] = max(steps[i] * 0.4, 1e-5)
                g = 0.0
            if g != 0:
                w[i] -= math.copysign(steps[i], g) * rate / 0.02
            previous[i] = g
    np.testing.assert_allclose(got, w.numpy(), rtol=0, atol=1e-8)
