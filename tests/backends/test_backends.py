"""The protocol of backends, one suite for all: textbook loops, and one backend against another."""

import inspect
import math
import sys
from dataclasses import replace

import numpy as np
import pytest

import fastnn.backends
from fastnn import rng
from fastnn.backends import BACKENDS, get_backend
from fastnn.backends.base import Backend, StopFlag, TrainJob
from fastnn.errors import BackendUnavailable
from fastnn.plan import Plan
from fastnn.tables.activations import ACTIVATIONS, LINKS, ActivationRow, get_activation
from fastnn.tables.losses import LOSSES, resolve_loss
from fastnn.tables.optimizers import OPTIMIZERS, SGD, Adam, resolve_optimizer

SIZES = (5, 7, 6, 3)
N_ROWS = 23
STEPPED = [name for name in OPTIMIZERS if name != "lbfgs"]

_rng = np.random.default_rng(11)
X = _rng.normal(size=(N_ROWS, SIZES[0]))
Y = _rng.normal(size=(N_ROWS, SIZES[-1]))
WEIGHT = _rng.uniform(0.1, 2, N_ROWS)
LABELS = _rng.integers(0, SIZES[-1], N_ROWS)


def make_plan(dtype=np.float64, activation="tanh", output="identity", dropout=0.0, sizes=SIZES):
    n_hidden = len(sizes) - 2
    return Plan(sizes, dtype, (activation,) * n_hidden, output, (dropout,) * n_hidden)


def start(plan, seed=0):
    parameters = np.random.default_rng(seed).normal(size=plan.n_parameters) * 0.4
    return parameters.astype(plan.dtype)


def make_job(plan, optimizer, *, n_epochs=1, batch_size=4, rates=None, **settings):
    n_steps = n_epochs * -(-N_ROWS // batch_size)
    rates = np.full(n_steps, optimizer.learning_rate) if rates is None else rates
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), rates)
    return TrainJob(
        **{
            "X": X.astype(plan.dtype),
            "y": Y.astype(plan.dtype),
            "weight": None,
            "loss": LOSSES["squared_error"],
            "optimizer": optimizer,
            "scalars": scalars,
            "orders": None,
            "batch_size": batch_size,
            "n_epochs": n_epochs,
            **settings,
        }
    )


def make_slots(plan, optimizer):
    slots = plan.allocate(optimizer.n_slots)
    optimizer.init_slots(slots)
    return slots


def orders_of(n_epochs, seed=4):
    return np.array([rng.permutation(N_ROWS, seed, epoch) for epoch in range(n_epochs)])


# The door -----------------------------------------------------------------------------------------


def test_backends_have_the_methods_of_the_protocol(backend_name):
    """Same parameters in the same order, so that callers need not know whom they call."""
    backend = get_backend(backend_name)
    assert isinstance(backend, Backend)
    assert backend.name == backend_name
    assert get_backend(backend_name) is backend
    for name in Backend.__abstractmethods__:
        expected = list(inspect.signature(getattr(Backend, name)).parameters)
        assert list(inspect.signature(getattr(type(backend), name)).parameters) == expected, name


def test_reference_needs_no_compiled_code():
    assert "reference" in BACKENDS
    assert BACKENDS[0] == "native"


@pytest.mark.parametrize("wrong", ["nope", "", "Native"])
def test_unknown_backends(wrong):
    with pytest.raises(ValueError, match="backend must be one of native, "):
        get_backend(wrong)


def test_a_missing_extension_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastnn.backends.native", None)
    get_backend.cache_clear()
    try:
        with pytest.raises(BackendUnavailable, match=r"pip install \."):
            get_backend("native")
    finally:
        get_backend.cache_clear()
    assert issubclass(BackendUnavailable, ImportError)
    assert fastnn.backends.get_backend is get_backend


# Textbook loops -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["identity", "tanh", "softmax", "exp"])
def test_forward_pass(backend_name, output):
    backend, plan = get_backend(backend_name), make_plan(output=output)
    parameters = start(plan)
    a, expected = X, []
    for W, b, name in zip(*plan.views(parameters), (*plan.activations, output), strict=True):
        a = get_activation(name).f(a @ W + b)
        expected.append(a)
    outputs = backend.layer_outputs(plan, parameters, X, 1)
    assert [y.shape for y in outputs] == [(N_ROWS, size) for size in SIZES[1:]]
    for got, want in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-14)
    out = np.full((N_ROWS, SIZES[-1]), np.nan)
    assert backend.predict(plan, parameters, X, out, 1) is out
    np.testing.assert_allclose(out, expected[-1], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["alike", "weighted"])
@pytest.mark.parametrize("batch_size", [1, 4, N_ROWS, 50])
def test_sgd_by_hand(backend_name, weight, batch_size):  # cases G1, S13, W3
    """One hidden layer: every formula of the update written out."""
    plan = make_plan(sizes=(5, 6, 3))
    l2, clip_norm, rates = 0.1, 0.7, 0.2 / (1 + np.arange(2 * -(-N_ROWS // batch_size)))
    orders, parameters = orders_of(2), start(plan)
    job = make_job(
        plan, SGD(), n_epochs=2, batch_size=batch_size, rates=rates, weight=weight, orders=orders,
        l2=l2, clip_norm=clip_norm,
    )  # fmt: skip
    (W0, W1), (b0, b1) = plan.views(parameters.copy())
    share = np.ones(N_ROWS) if weight is None else weight
    step, losses, clipped = 0, [], 0
    for order in orders:
        total = 0.0
        for at in range(0, N_ROWS, batch_size):
            rows = order[at : at + batch_size]
            r = share[rows] / share[rows].sum()
            h = np.tanh(X[rows] @ W0 + b0)
            e = h @ W1 + b1 - Y[rows]
            total += share[rows] @ (e**2).sum(axis=1) / 2
            d1 = r[:, None] * e
            d0 = (d1 @ W1.T) * (1 - h**2)
            gradient = [X[rows].T @ d0 + l2 * W0, d0.sum(0), h.T @ d1 + l2 * W1, d1.sum(0)]
            norm = np.sqrt(sum((g**2).sum() for g in gradient))
            clipped += norm > clip_norm
            for p, g in zip((W0, b0, W1, b1), gradient, strict=True):
                p -= rates[step] * g * min(1, clip_norm / norm)
            step += 1
        losses.append(total / share.sum())
    assert clipped
    result = get_backend(backend_name).train(plan, parameters, make_slots(plan, SGD()), job)
    assert (result.status, result.epochs_done, result.steps_done) == ("done", 2, step)
    assert result.seconds.shape == (2,)
    assert (result.seconds > 0).all()
    np.testing.assert_allclose(result.losses, losses, rtol=1e-12)
    expected = np.concatenate([W0.ravel(), b0, W1.ravel(), b1])
    np.testing.assert_allclose(parameters, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("stream", [2, 3])
def test_dropout_by_hand(backend_name, stream):
    """Two hidden layers with masks from their definition; kept units are scaled up."""
    rates, first_epoch, seed = (0.5, 0.25), 3, 2**63 + 5
    plan = Plan(SIZES, np.float64, ("tanh", "sigmoid"), "identity", rates)
    parameters, orders, batch_size = start(plan), orders_of(2), 5
    job = make_job(
        plan, SGD(), n_epochs=2, batch_size=batch_size, rates=np.full(10, 0.1), orders=orders,
        dropout_seed=seed, dropout_stream=stream, first_epoch=first_epoch,
    )  # fmt: skip
    (W0, W1, W2), (b0, b1, b2) = plan.views(parameters.copy())
    dropped, losses = 0, []
    for epoch, order in enumerate(orders):
        total = 0.0
        for at in range(0, N_ROWS, batch_size):
            rows = order[at : at + batch_size]
            masks = [
                rng.dropout_mask(SIZES[layer + 1], rates[layer], seed, first_epoch + epoch, layer,
                                 rows, stream)
                for layer in (0, 1)
            ]  # fmt: skip
            dropped += sum((~mask).sum() for mask in masks)
            h0 = np.tanh(X[rows] @ W0 + b0)
            a0 = h0 * masks[0] / 0.5
            h1 = 1 / (1 + np.exp(-(a0 @ W1 + b1)))
            a1 = h1 * masks[1] / 0.75
            e = a1 @ W2 + b2 - Y[rows]
            total += (e**2).sum() / 2
            d2 = e / len(rows)
            d1 = (d2 @ W2.T) * masks[1] / 0.75 * h1 * (1 - h1)
            d0 = (d1 @ W1.T) * masks[0] / 0.5 * (1 - h0**2)
            gradient = [X[rows].T @ d0, d0.sum(0), a0.T @ d1, d1.sum(0), a1.T @ d2, d2.sum(0)]
            for p, g in zip((W0, b0, W1, b1, W2, b2), gradient, strict=True):
                p -= 0.1 * g
        losses.append(total / N_ROWS)
    assert dropped > 100
    result = get_backend(backend_name).train(plan, parameters, make_slots(plan, SGD()), job)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-12)
    expected = np.concatenate([W0.ravel(), b0, W1.ravel(), b1, W2.ravel(), b2])
    np.testing.assert_allclose(parameters, expected, rtol=0, atol=1e-13)


# Weights ------------------------------------------------------------------------------------------


def full_gradient(backend_name, rows, weight, l2=0.0):
    plan = make_plan()
    return get_backend(backend_name).loss_and_gradient(
        plan, start(plan), X[rows], Y[rows], weight, LOSSES["squared_error"], l2, 1
    )


def check_equal(got, expected):
    assert got[0] == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("clip_norm", [None, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_l2_and_records_of_each_step(backend_name, clip_norm, weighted, n_threads):
    """A training with one l2 per step is the chain of trainings of one step each."""
    plan, optimizer = make_plan(), Adam(learning_rate=0.03)
    backend, weight = get_backend(backend_name), WEIGHT if weighted else None
    orders = orders_of(2)
    batches = [order[at : at + 4] for order in orders for at in range(0, N_ROWS, 4)]
    step_l2 = np.linspace(0.0, 0.5, len(batches))
    record = np.full((len(batches), 2), np.nan)
    parameters, slots = start(plan), make_slots(plan, optimizer)
    job = make_job(
        plan,
        optimizer,
        n_epochs=2,
        orders=orders,
        weight=weight,
        clip_norm=clip_norm,
        n_threads=n_threads,
        l2=99.0,  # step_l2 takes its place
        step_l2=step_l2,
        step_record=record,
    )
    result = backend.train(plan, parameters, slots, job)
    assert result.status == "done"

    by_hand, hand_slots = start(plan), make_slots(plan, optimizer)
    for step, rows in enumerate(batches):
        squares = sum(float((W**2).sum()) for W in plan.views(by_hand)[0])
        share = None if weight is None else weight[rows]
        loss = backend.loss(plan, by_hand, X[rows], Y[rows], share, LOSSES["squared_error"], 1)
        np.testing.assert_allclose(record[step], [loss, squares], rtol=1e-12)
        one = replace(
            job,
            X=X[rows],
            y=Y[rows],
            weight=share,
            orders=None,
            n_epochs=1,
            scalars=job.scalars[step : step + 1],
            l2=float(step_l2[step]),
            step_l2=None,
            step_record=None,
        )
        backend.train(plan, by_hand, hand_slots, one)
    np.testing.assert_allclose(parameters, by_hand, rtol=1e-10, atol=1e-12)
    assert not np.allclose(parameters, start(plan))


def test_a_weight_of_two_is_a_row_twice(backend_name):  # case W3
    weight = np.ones(N_ROWS)
    weight[3] = 2
    rows = [*range(N_ROWS), 3]
    check_equal(
        full_gradient(backend_name, slice(None), weight), full_gradient(backend_name, rows, None)
    )


def test_a_weight_of_zero_is_no_row(backend_name):  # case W3
    weight = np.ones(N_ROWS)
    weight[[0, 7]] = 0
    rows = [i for i in range(N_ROWS) if i not in (0, 7)]
    check_equal(
        full_gradient(backend_name, slice(None), weight), full_gradient(backend_name, rows, None)
    )


def test_scaling_all_weights_changes_nothing(backend_name):  # case W3
    check_equal(
        full_gradient(backend_name, slice(None), 10 * WEIGHT, l2=0.3),
        full_gradient(backend_name, slice(None), WEIGHT, l2=0.3),
    )


def test_ones_are_the_same_bits_as_none(backend_name):  # case W1
    value, gradient = full_gradient(backend_name, slice(None), np.ones(N_ROWS))
    plain, plain_gradient = full_gradient(backend_name, slice(None), None)
    assert value == plain
    assert gradient.tobytes() == plain_gradient.tobytes()


def test_no_weight_at_all_is_no_loss(backend_name):
    plan = make_plan()
    loss = get_backend(backend_name).loss(
        plan, start(plan), X, Y, np.zeros(N_ROWS), LOSSES["squared_error"], 1
    )
    assert loss == 0


@pytest.mark.parametrize("name", STEPPED)
def test_a_batch_without_weight_uses_up_its_step_only(backend_name, name):  # case W5
    """Skipping it leaves what the same steps do without it, where the optimizer has no memory of
    steps: so it is compared with the parameters and slots before."""
    plan, optimizer = make_plan(), resolve_optimizer(name)
    parameters, slots = start(plan), make_slots(plan, optimizer)
    weight = np.zeros(N_ROWS)
    before = parameters.tobytes(), slots.tobytes()
    job = make_job(plan, optimizer, weight=weight, batch_size=4, l2=0.5)
    result = get_backend(backend_name).train(plan, parameters, slots, job)
    assert (parameters.tobytes(), slots.tobytes()) == before
    assert (result.status, result.steps_done) == ("done", 6)
    assert result.losses.tolist() == [0]


# Trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_divergence_is_undone(backend_name, name, bad):  # case N10
    """The third batch of the second epoch meets a target that no loss can be finite for."""
    plan, optimizer = make_plan(), resolve_optimizer(name)
    orders = orders_of(2)
    targets = Y.copy()
    targets[orders[1][9]] = bad
    # The same row in the first epoch has no weight there: two jobs, then one that diverges.
    parameters, slots = start(plan), make_slots(plan, optimizer)
    backend = get_backend(backend_name)
    first = make_job(plan, optimizer, n_epochs=2, orders=orders)
    one = replace(first, n_epochs=1, scalars=first.scalars[:6], orders=orders[:1])
    assert backend.train(plan, parameters, slots, one).status == "done"
    before = parameters.tobytes(), slots.tobytes()
    two = replace(first, n_epochs=1, y=targets, scalars=first.scalars[6:], orders=orders[1:])
    result = backend.train(plan, parameters, slots, two)
    assert (result.status, result.epoch, result.batch) == ("diverged", 0, 2)
    assert (result.epochs_done, len(result.losses)) == (0, 0)
    assert (parameters.tobytes(), slots.tobytes()) == before


def test_earlier_epochs_stay_when_a_later_one_diverges(backend_name):
    plan = make_plan(activation="relu")
    rates = np.concatenate([np.full(12, 1e-3), np.full(12, 1e30)])
    job = make_job(plan, SGD(), n_epochs=4, rates=rates)
    parameters, twin = start(plan), start(plan)
    result = get_backend(backend_name).train(plan, parameters, make_slots(plan, SGD()), job)
    assert result.status == "diverged"
    assert result.epoch == result.epochs_done == len(result.losses) == 2
    two = replace(job, n_epochs=2, scalars=job.scalars[:12])
    expected = get_backend(backend_name).train(plan, twin, make_slots(plan, SGD()), two)
    assert parameters.tobytes() == twin.tobytes()
    assert result.losses.tolist() == expected.losses.tolist()


def test_a_parameter_that_leaves_the_dtype_is_found_at_the_end_of_the_epoch(backend_name):
    """The last update overflows; no later batch is there to notice."""
    plan = make_plan(np.float32)
    job = make_job(plan, SGD(), batch_size=N_ROWS, rates=np.array([1e38]), y=1e3 * Y.astype("f4"))
    parameters = start(plan)
    result = get_backend(backend_name).train(plan, parameters, make_slots(plan, SGD()), job)
    assert (result.status, result.epoch, result.batch) == ("diverged", 0, 0)
    assert parameters.tobytes() == start(plan).tobytes()


def test_a_flag_that_is_set_stops_at_a_whole_step(backend_name):
    plan, stop, backend = make_plan(), StopFlag(), get_backend(backend_name)
    stop.set()
    assert stop.is_set()
    parameters = start(plan)
    job = make_job(plan, SGD(), n_epochs=5, stop=stop)
    result = backend.train(plan, parameters, make_slots(plan, SGD()), job)
    assert (result.status, result.epochs_done, len(result.losses)) == ("stopped", 0, 0)
    assert result.steps_done <= 1
    moved = parameters.tobytes() != start(plan).tobytes()
    assert moved == (result.steps_done == 1)
    stop.clear()
    assert not stop.is_set()
    result = backend.train(plan, parameters, make_slots(plan, SGD()), job)
    assert (result.status, result.epochs_done) == ("done", 5)


def test_losses_that_are_not_finite_are_returned_as_they_are(backend_name):
    plan = make_plan(output="relu", sizes=(5, 3))
    parameters = np.zeros(plan.n_parameters)  # every output is 0: log 0
    t = np.abs(Y)
    loss = get_backend(backend_name).loss(plan, parameters, X, t, None, LOSSES["poisson"], 1)
    assert not np.isfinite(loss)


# One backend against another ----------------------------------------------------------------------

REFERENCE = get_backend("reference")
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_agree(other, dtype, activation):  # case N1
    """From moderate inputs to those where exp has long overflowed."""
    plan = make_plan(dtype, activation, activation)
    scale = np.array([[1.0], [30.0], [1e3], [1e6]], dtype).repeat(6, axis=0)[:N_ROWS]
    rows = (X * scale).astype(dtype)
    got = other.layer_outputs(plan, start(plan), rows, 1)
    expected = REFERENCE.layer_outputs(plan, start(plan), rows, 1)
    if activation == "step":  # a sum that rounds to another side of 0 is another number
        got, expected = got[:1], expected[:1]
    for a, b in zip(got, expected, strict=True):
        assert np.isfinite(b).all()
        for row in range(N_ROWS):
            bound = TOLERANCE[dtype] * max(1, np.abs(b[row]).max(), np.abs(rows[row]).max())
            np.testing.assert_allclose(a[row], b[row], rtol=0, atol=bound)


PAIRS = []
for _output in [*ACTIVATIONS, *LINKS]:
    for _loss in LOSSES:
        try:
            resolve_loss(_loss, _output)
        except ValueError:
            continue
        PAIRS.append((_output, _loss))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("output", "loss"), PAIRS)
def test_gradients_agree(other, dtype, output, loss):
    plan = make_plan(dtype, "silu", output)
    row = LOSSES[loss]
    parameters = start(plan)
    weights, biases = plan.views(parameters)
    weights[-1] *= 0.3
    biases[-1][:] = 1  # off the 0 of relu, whose log some losses take
    t = {
        "real": Y,
        "nonnegative": np.floor(np.abs(Y)),
        "unit": 1 / (1 + np.exp(-Y)),
        "sign": np.where(Y > 0, 1, -1),
        "classes": np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True),
    }[row.target_kind].astype(dtype)
    arguments = (plan, parameters, X.astype(dtype), t, WEIGHT, row, 0.1, 1)
    value, gradient = other.loss_and_gradient(*arguments)
    expected, expected_gradient = REFERENCE.loss_and_gradient(*arguments)
    if not np.isfinite(expected):
        assert not np.isfinite(value)
        return
    assert value == pytest.approx(expected, rel=TOLERANCE[dtype])
    scale = np.abs(expected_gradient).max()
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=TOLERANCE[dtype] * scale)
    assert other.loss(*arguments[:6], 1) == pytest.approx(
        REFERENCE.loss(*arguments[:6], 1), rel=TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", STEPPED)
def test_trainings_agree(other, dtype, name):
    """Everything at once: shuffles, dropout, weights, penalty, clipping, a short last batch."""
    plan, optimizer = make_plan(dtype, "tanh", "softmax", dropout=0.3), resolve_optimizer(name)
    n_epochs = 4
    rates = np.linspace(1.0, 0.2, n_epochs * 5) * optimizer.learning_rate
    job = make_job(
        plan, optimizer, n_epochs=n_epochs, batch_size=5, rates=rates, y=LABELS, weight=WEIGHT,
        loss=LOSSES["cross_entropy"], orders=orders_of(n_epochs), l2=0.01, clip_norm=0.5,
        dropout_seed=9, first_epoch=2,
    )  # fmt: skip
    states = []
    for backend in (other, REFERENCE):
        parameters, slots = start(plan), make_slots(plan, optimizer)
        result = backend.train(plan, parameters, slots, job)
        assert result.status == "done"
        states.append((parameters, slots, result.losses))
    assert np.abs(states[1][0] - start(plan)).max() > 1e-3
    tolerance = {np.float32: 1e-3 if name == "rprop" else 1e-4, np.float64: 1e-11}[dtype]
    for got, expected in zip(*states, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_input_gradients_agree(other, n_threads):
    plan = make_plan(activation="mish", output="softmax")
    got = other.input_gradient(plan, start(plan), X, n_threads)
    expected = REFERENCE.input_gradient(plan, start(plan), X, n_threads)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-14)


def test_perceptrons_agree(other):
    t = np.ascontiguousarray((X @ _rng.normal(size=(SIZES[0], 2)) > 0.3).astype(np.uint8))
    states = []
    for backend in (other, REFERENCE):
        weights, bias = np.zeros((SIZES[0], 2)), np.zeros(2)
        errors, status, exception = backend.perceptron_fit(
            X, t, weights, bias, 0.5, 50, True, 7, 2, StopFlag()
        )
        assert (status, exception) == ("done", None)
        states.append((weights, bias, errors))
    assert len(states[0][2]) > 1
    for got, expected in zip(*states, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_adam_slots_are_the_moments(backend_name):
    """m and v after one step: (1 - b1) g and (1 - b2) g^2."""
    plan, optimizer = make_plan(), Adam(beta1=0.8, beta2=0.9)
    backend = get_backend(backend_name)
    parameters, slots = start(plan), make_slots(plan, optimizer)
    _, g = backend.loss_and_gradient(plan, parameters, X, Y, None, LOSSES["squared_error"], 0.0, 1)
    backend.train(plan, parameters, slots, make_job(plan, optimizer, batch_size=N_ROWS))
    np.testing.assert_allclose(slots[0], 0.2 * g, rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(slots[1], 0.1 * g * g, rtol=1e-12, atol=1e-18)


# A new row ----------------------------------------------------------------------------------------


def test_an_activation_takes_a_row_of_the_table_and_nothing_else(backend_name, monkeypatch):
    """Squareplus (Barron 2021, arXiv:2112.11687), from one row.

    Of the native backend the row is in C: tests/architecture/test_new_row.py compiles one.
    """
    if backend_name == "native":
        pytest.skip("its row is compiled")

    def f(z):
        return (z + np.sqrt(z * z + 4)) / 2

    row = ActivationRow(
        "squareplus",
        f=f,
        df=lambda z, y: y / np.sqrt(z * z + 4),
        needs_z=True,
        range=(0.0, np.inf),
        formula="(z + sqrt(z^2 + 4)) / 2",
        scalar=lambda z: 0.5 * (z + math.sqrt(z * z + 4.0)),
        scalar_df=lambda z, y: y / math.sqrt(z * z + 4.0),
    )
    monkeypatch.setitem(ACTIVATIONS, row.name, row)
    backend, loss = get_backend(backend_name), LOSSES["squared_error"]
    plan = make_plan(activation=row.name, output=row.name, sizes=(5, 3, 2))
    (W0, W1), (b0, b1) = plan.views(start(plan))
    expected = f(f(X @ W0 + b0) @ W1 + b1)
    got = backend.predict(plan, start(plan), X, np.empty((N_ROWS, 2)), 1)
    np.testing.assert_allclose(got, expected, rtol=1e-13)

    def objective(parameters):
        return backend.loss(plan, parameters, X, Y[:, :2], None, loss, 1)

    _, gradient = backend.loss_and_gradient(plan, start(plan), X, Y[:, :2], None, loss, 0.0, 1)
    move = np.random.default_rng(8).normal(size=plan.n_parameters)
    h = 1e-3
    at = [objective(start(plan) + k * h * move) for k in (-2, -1, 1, 2)]
    slope = (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * h)  # the error is of the order of h^4
    assert abs(slope) > 0.1
    assert gradient @ move == pytest.approx(slope, rel=1e-7)
    parameters = start(plan)
    job = make_job(plan, SGD(), batch_size=N_ROWS, y=Y[:, :2], loss=loss)
    result = backend.train(plan, parameters, make_slots(plan, SGD()), job)
    assert result.status == "done"
    np.testing.assert_allclose(
        parameters, start(plan) - SGD().learning_rate * gradient, rtol=0, atol=1e-14
    )
