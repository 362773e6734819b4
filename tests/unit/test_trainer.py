"""Trainer: what one epoch does, where it stands afterwards, and that no split of a run shows."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest

import fastnn
from fastnn import MLP, DivergenceError, ModelFormatError, Trainer, persistence, rng
from fastnn import trainer as trainer_module
from fastnn.tables.optimizers import OPTIMIZERS

N, N_IN, N_OUT = 23, 3, 2
_data = np.random.default_rng(5)
X = _data.normal(size=(N, N_IN))
Y = np.tanh(X @ _data.normal(size=(N_IN, N_OUT))) + 0.1 * _data.normal(size=(N, N_OUT))
LABELS = (X[:, 0] > X[:, 1]).astype(int)
WEIGHT = _data.uniform(0.1, 2, N)

STEPPED = sorted(set(OPTIMIZERS) - {"lbfgs"})
SCHEDULES = {
    "none": None,
    "step": fastnn.StepDecay(0.05, every=7, drop=0.5),
    "cosine": fastnn.CosineDecay(0.05, 40),
    "callable": lambda step: 0.05 / (1 + step),
}


@pytest.fixture
def make(backend_name):
    """A trainer on a fresh model: the same one every time for the same arguments."""

    def make(*, sizes=(N_IN, 6, N_OUT), model=None, **arguments):
        network = MLP(
            sizes, **{"activation": "tanh", "seed": 1, "backend": backend_name, **(model or {})}
        )
        return Trainer(network, **{"batch_size": 4, "seed": 2, **arguments})

    return make


def state(trainer):
    """Everything that a later epoch depends on, and the record of the earlier ones."""
    return {
        "parameters": trainer.model.parameters.tobytes(),
        "slots": trainer._slots.tobytes(),
        "counters": dict(trainer._counters),
        "epoch": trainer.epoch,
        "steps": trainer.n_steps,
        "loss": trainer.history.loss.tolist(),
        "rate": trainer.history.learning_rate.tobytes(),  # NaN, unlike NaN, equals itself
    }


# One epoch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, N, 100, "full"])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_is_the_written_out_loop(make, batch_size, shuffle, weighted):  # S13, W3, B3
    """w -= rate * (sum_r w_r dL_r / sum_r w_r + l2 W) over the batches in the drawn order."""
    trainer = make(
        optimizer=fastnn.SGD(learning_rate=0.1),
        batch_size=batch_size,
        shuffle=shuffle,
        l2=0.01,
        model={"dtype": "float64"},
    )
    twin = trainer.model.copy()
    weight = WEIGHT if weighted else np.ones(N)
    losses = []
    for epoch in range(2):
        order = rng.permutation(N, 2, epoch) if shuffle else np.arange(N)
        size = N if batch_size == "full" else min(batch_size, N)
        total = 0.0
        for at in range(0, N, size):
            rows = order[at : at + size]
            loss, _ = twin.loss_and_gradient(X[rows], Y[rows], sample_weight=weight[rows])
            total += loss * weight[rows].sum()
            _, gradient = twin.loss_and_gradient(
                X[rows], Y[rows], sample_weight=weight[rows], l2=0.01
            )
            twin.parameters[:] -= 0.1 * gradient
        losses.append(total / weight.sum())
    history = trainer.fit(X, Y, epochs=2, sample_weight=WEIGHT if weighted else None)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    np.testing.assert_allclose(trainer.model.parameters, twin.parameters, rtol=1e-10, atol=1e-13)
    assert trainer.epoch == 2
    assert trainer.n_steps == 2 * -(-N // size)


def test_every_epoch_has_its_own_order(make):  # case S14
    orders = [rng.permutation(N, 2, epoch).tolist() for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 4
    # From the same weights, the second epoch of one trainer differs from the first of another.
    first, second = make(), make()
    second.fit(X, Y, epochs=1)
    second.model.parameters[:] = first.model.parameters
    second._slots[:] = 0
    second._counters = second.optimizer.init_counters()
    first.fit(X, Y, epochs=1)
    second.fit(X, Y, epochs=1)
    assert first.model.parameters.tobytes() != second.model.parameters.tobytes()


def test_ones_as_weights_change_nothing(make):  # case W1
    plain, weighted = make(), make()
    plain.fit(X, Y, epochs=3)
    weighted.fit(X, Y, epochs=3, sample_weight=np.ones(N))
    assert state(plain) == state(weighted)


def test_scaled_weights_change_nothing_but_rounding(make):  # case W3
    plain, scaled = make(model={"dtype": "float64"}), make(model={"dtype": "float64"})
    plain.fit(X, Y, epochs=3, sample_weight=WEIGHT)
    scaled.fit(X, Y, epochs=3, sample_weight=8 * WEIGHT)
    np.testing.assert_allclose(scaled.model.parameters, plain.model.parameters, rtol=1e-9)


@pytest.mark.parametrize("name", STEPPED)
def test_a_batch_without_weight_moves_nothing(make, name):  # case W5
    """Rows 4..7 weigh nothing: their step leaves parameters and slots as they are."""
    weight = np.ones(8)
    weight[4:] = 0
    whole, part = (make(optimizer=name, shuffle=False) for _ in range(2))
    whole.fit(X[:8], Y[:8], epochs=1, sample_weight=weight)
    part.fit(X[:4], Y[:4], epochs=1)
    assert whole.model.parameters.tobytes() == part.model.parameters.tobytes()
    assert whole._slots.tobytes() == part._slots.tobytes()
    assert whole.history.loss[0] == part.history.loss[0]


def test_weights_that_are_all_zero(make):  # case W5
    trainer = make()
    trainer.fit(X, Y, epochs=1)
    before = state(trainer)
    assert trainer.step(X, Y, np.zeros(N)) == 0.0
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
        trainer.fit(X, Y, epochs=1, sample_weight=np.zeros(N))
    assert state(trainer) == before


def test_penalty_does_not_depend_on_the_batch_size(make):  # cases G1, G2
    """With a loss that is flat, one step moves W by exactly rate * l2 * W, and b not at all."""
    for batch_size in (4, 23):
        trainer = make(
            optimizer=fastnn.SGD(learning_rate=0.5),
            l2=0.25,
            batch_size=batch_size,
            sizes=(1, 1),
            model={"dtype": "float64"},
            shuffle=False,
        )
        trainer.model.weights[0] = [[3.0]]
        trainer.fit(np.zeros((batch_size, 1)), np.zeros((batch_size, 1)), epochs=1)
        assert trainer.model.weights[0][0, 0] == pytest.approx(3.0 * (1 - 0.5 * 0.25), rel=1e-15)
        assert trainer.model.biases[0][0] == 0


def test_reported_losses_leave_the_penalty_out(make):
    with_penalty, without = make(l2=10.0), make()
    first = with_penalty.evaluate(X, Y)
    assert first == without.evaluate(X, Y)
    assert with_penalty.step(X, Y) == pytest.approx(first, rel=1e-6)


def test_clipping(make):
    for clip_norm, factor in ((1e-3, None), (1e9, 1.0)):
        trainer = make(
            optimizer=fastnn.SGD(learning_rate=1.0), clip_norm=clip_norm, model={"dtype": "float64"}
        )
        _, gradient = trainer.model.loss_and_gradient(X, Y)
        before = trainer.model.parameters.copy()
        trainer.step(X, Y)
        factor = factor or clip_norm / np.linalg.norm(gradient)
        np.testing.assert_allclose(before - trainer.model.parameters, factor * gradient, rtol=1e-9)


@pytest.mark.parametrize("optimizer", STEPPED)
def test_every_parameter_with_a_gradient_moves(make, optimizer):  # case G10
    trainer = make(optimizer=optimizer, model={"dtype": "float64"})
    _, gradient = trainer.model.loss_and_gradient(X, Y)
    assert (gradient != 0).all()
    before = trainer.model.parameters.copy()
    trainer.step(X, Y)
    assert (trainer.model.parameters != before).all()


@pytest.mark.parametrize(("gradient", "expected"), [(1e-3, -9.99990e-4), (1e-7, -9.0909e-4)])
def test_first_step_of_adam_is_the_textbook_one(make, gradient, expected):  # cases G3, G4, G5
    trainer = make(
        sizes=(1, 1),
        optimizer=fastnn.Adam(learning_rate=1e-3, epsilon=1e-8),
        model={"dtype": "float64"},
    )
    trainer.model.parameters[:] = 0
    trainer.step([[0.0]], [[-gradient]])  # dL/db = y - t
    assert trainer.model.biases[0][0] == pytest.approx(expected, rel=1e-5)
    assert trainer.model.weights[0][0, 0] == 0


def test_targets_of_one_column_and_labels(make):  # cases L6, L1
    flat, column = (make(sizes=(N_IN, 4, 1)) for _ in range(2))
    flat.fit(X, Y[:, 0], epochs=2)
    column.fit(X, Y[:, :1], epochs=2)
    assert state(flat) == state(column)
    labels, strings = (make(model={"output": "softmax"}) for _ in range(2))
    labels.fit(X, LABELS, epochs=2)
    strings.fit(X.tolist(), LABELS.tolist(), epochs=2)
    assert state(labels) == state(strings)


@pytest.mark.parametrize(
    "convert",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 3, axis=0)[::3],
        lambda a: a.astype(">f8"),
        lambda a: a.astype(object),
        lambda a: a.tolist(),
    ],
)
def test_every_kind_of_array_gives_the_same_bits(make, convert):  # cases A1, A4, A8
    plain, other = make(), make()
    plain.fit(X, Y, epochs=2, sample_weight=WEIGHT)
    arrays = [convert(X), convert(Y)]
    for array in arrays:
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    other.fit(*arrays, epochs=2, sample_weight=WEIGHT.tolist())
    assert state(plain) == state(other)


def test_float32_data_are_not_copied(make):  # case A5
    trainer = make(sizes=(400, 2), batch_size=50)
    data = np.zeros((5_000, 400), np.float32)
    targets = np.zeros((5_000, 2), np.float32)
    trainer.fit(data, targets, epochs=1)
    tracemalloc.start()
    try:
        trainer.fit(data, targets, epochs=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < data.nbytes / 4


# Splitting a run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("batch_size", [5, "full"])
def test_k_calls_are_one_call_of_k(make, name, batch_size):  # case S9
    dropout = 0.0 if name == "lbfgs" else 0.3
    one, many = (
        make(optimizer=name, batch_size=batch_size, l2=1e-3, model={"dropout": dropout})
        for _ in range(2)
    )
    one.fit(X, Y, epochs=6, sample_weight=WEIGHT)
    for epochs in (1, 2, 1, 0, 2):
        many.fit(X, Y, epochs=epochs, sample_weight=WEIGHT)
    assert state(many) == state(one)
    assert len(one.history) == 6


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_count_steps_over_calls(make, schedule):
    one, many = (make(schedule=SCHEDULES[schedule]) for _ in range(2))
    one.fit(X, Y, epochs=5)
    for _ in range(5):
        many.fit(X, Y, epochs=1)
    assert state(many) == state(one)
    if SCHEDULES[schedule] is not None:
        last_steps = np.arange(1, 6) * 6 - 1  # six batches an epoch, counted from 0
        expected = [SCHEDULES[schedule](int(step)) for step in last_steps]
        np.testing.assert_allclose(one.history.learning_rate, expected, rtol=1e-14)


def test_chunks_of_epochs_do_not_show(make, monkeypatch):
    one, many = make(model={"dropout": 0.5}), make(model={"dropout": 0.5})
    one.fit(X, Y, epochs=7)
    monkeypatch.setattr(trainer_module, "MAX_CHUNK_INDICES", 2 * N)
    many.fit(X, Y, epochs=7)
    assert state(many) == state(one)
    other = make(model={"dropout": 0.5})
    monkeypatch.setattr(trainer_module, "MAX_CHUNK_STEPS", 1)
    monkeypatch.setattr(trainer_module, "FIRST_CHUNK_EPOCHS", 3)
    other.fit(X, Y, epochs=7)
    assert state(other) == state(one)


def test_watching_does_not_change_the_training(make):
    plain, watched = make(model={"dropout": 0.5}), make(model={"dropout": 0.5})
    plain.fit(X, Y, epochs=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watched.fit(X, Y, epochs=4, validation_data=(X, Y), progress=True)
    assert state(plain) == state(watched)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_saved_and_loaded_after_any_epoch(make, tmp_path, name):  # cases S9, S14, S18
    lbfgs = name == "lbfgs"
    settings = {
        "optimizer": name,
        "batch_size": 5,
        "l2": 1e-3,
        "clip_norm": None if lbfgs else 0.5,
        "schedule": None if lbfgs else fastnn.Warmup(fastnn.CosineDecay(0.03, 20), 6),
        "model": {"dropout": 0.0 if lbfgs else 0.3, "output": "softmax"},
    }
    whole = make(**settings)
    whole.fit(X, LABELS, epochs=5, sample_weight=WEIGHT)
    for epochs_before in range(6):
        first = make(**settings)
        first.fit(X, LABELS, epochs=epochs_before, sample_weight=WEIGHT)
        first.save(tmp_path / "t")
        resumed = Trainer.load(tmp_path / "t", backend=first.model.backend)
        assert state(resumed) == state(first)
        assert repr(resumed) == repr(first)
        resumed.fit(X, LABELS, epochs=5 - epochs_before, sample_weight=WEIGHT)
        assert state(resumed) == state(whole)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ["nadam", "rprop", "lbfgs"])
def test_copies_continue_alike(make, way, name):  # cases P1, S14
    trainer = make(optimizer=name)
    trainer.fit(X, Y, epochs=2)
    other = copy.deepcopy(trainer) if way == "deepcopy" else pickle.loads(pickle.dumps(trainer))
    assert other.model is not trainer.model
    trainer.fit(X, Y, epochs=2)
    other.fit(X, Y, epochs=2)
    assert state(other) == state(trainer)


def test_saved_steps_continue_with_their_masks(make, tmp_path):
    whole, first = (make(model={"dropout": 0.5}) for _ in range(2))
    losses = [whole.step(X, Y) for _ in range(4)]
    got = [first.step(X, Y) for _ in range(2)]
    first.save(tmp_path / "t")
    resumed = Trainer.load(tmp_path / "t", backend=first.model.backend)
    got += [resumed.step(X, Y) for _ in range(2)]
    assert got == losses
    assert len(set(losses)) == 4
    assert resumed.model.parameters.tobytes() == whole.model.parameters.tobytes()


def test_custom_schedule_has_to_be_given_again(make, tmp_path):
    def schedule(step):
        return 0.1 / (1 + step)

    whole, first = make(schedule=schedule), make(schedule=schedule)
    whole.fit(X, Y, epochs=3)
    first.fit(X, Y, epochs=1)
    first.save(tmp_path / "t")
    backend = first.model.backend
    with pytest.raises(ValueError, match=r"schedule .*cannot be saved.*schedule="):
        Trainer.load(tmp_path / "t", backend=backend)
    resumed = Trainer.load(tmp_path / "t", backend=backend, schedule=schedule)
    resumed.fit(X, Y, epochs=2)
    assert state(resumed) == state(whole)


def test_the_model_of_a_saved_training(make, tmp_path):
    trainer = make()
    trainer.fit(X, Y, epochs=1)
    trainer.save(tmp_path / "t")
    model = MLP.load(tmp_path / "t", backend=trainer.model.backend)
    assert model.parameters.tobytes() == trainer.model.parameters.tobytes()
    trainer.model.save(tmp_path / "m")
    with pytest.raises(ModelFormatError, match="holds a 'model', expected 'trainer'"):
        Trainer.load(tmp_path / "m", backend=trainer.model.backend)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epoch", -1),
        ("epoch", 2.0),
        ("n_steps", "7"),
        ("seed", -3),
        ("rate_factor", -1.0),
        ("batch_size", 0),
        ("batch_size", "some"),
        ("shuffle", 1),
        ("clip_norm", 0.0),
        ("l2", None),
        ("loss", {"name": "nope"}),
        ("loss", {"name": "huber", "delta": -1.0}),
        ("loss", "huber"),
        ("optimizer", {"name": "nope"}),
        ("optimizer", {"name": "adam", "learning_rate": -1.0}),
        ("optimizer", {"name": "adam", "wings": 2}),
        ("optimizer", {"name": "sgd"}),
        ("schedule", {"name": "nope"}),
        ("schedule", 3),
        ("counters", {}),
        ("counters", {"steps": 1}),
        ("more", 1),
    ],
)
def test_headers_that_make_no_trainer(make, tmp_path, monkeypatch, key, value):
    trainer = make()
    trainer.fit(X, Y, epochs=1)
    true_write = persistence.write_file

    def write(path, kind, sections, tensors):
        sections["trainer"][key] = value
        true_write(path, kind, sections, tensors)

    monkeypatch.setattr(persistence, "write_file", write)
    trainer.save(tmp_path / "t")
    with pytest.raises(ModelFormatError):
        Trainer.load(tmp_path / "t", backend=trainer.model.backend)


# Steps --------------------------------------------------------------------------------------------


def test_steps_over_the_batches_are_an_epoch(make):
    whole, stepped = make(shuffle=False), make(shuffle=False)
    history = whole.fit(X, Y, epochs=1)
    losses = [stepped.step(X[at : at + 4], Y[at : at + 4]) for at in range(0, N, 4)]
    assert stepped.model.parameters.tobytes() == whole.model.parameters.tobytes()
    assert stepped.n_steps == whole.n_steps == 6
    assert stepped.epoch == 0
    sizes = [4, 4, 4, 4, 4, 3]
    assert history.loss[0] == pytest.approx(np.average(losses, weights=sizes), rel=1e-12)


def test_step_returns_the_loss_before_the_update(make):
    trainer = make(optimizer=fastnn.SGD(learning_rate=0.1))
    before = trainer.evaluate(X, Y, WEIGHT)
    assert trainer.step(X, Y, WEIGHT) == pytest.approx(before, rel=1e-6)
    assert trainer.evaluate(X, Y, WEIGHT) < before


def test_evaluate_is_the_weighted_mean(make):
    trainer = make(model={"dtype": "float64", "dropout": 0.9})
    y = trainer.model.predict(X)
    expected = np.average(((y - Y) ** 2).sum(axis=1) / 2, weights=WEIGHT)
    assert trainer.evaluate(X, Y, WEIGHT) == pytest.approx(expected, rel=1e-12)


def test_validation_loss_is_that_of_evaluate(make):
    trainer = make()
    history = trainer.fit(X[:15], Y[:15], epochs=3, validation_data=(X[15:], Y[15:], WEIGHT[15:]))
    assert history.validation_loss[-1] == trainer.evaluate(X[15:], Y[15:], WEIGHT[15:])
    assert np.isnan(trainer.fit(X, Y, epochs=1).validation_loss).all()
    assert np.isfinite(trainer.history.validation_loss).tolist() == [True, True, True, False]


# Arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"loss": "nope"}, ValueError),
        ({"loss": "cross_entropy"}, ValueError),  # identity leaves the probabilities' range
        ({"optimizer": "nope"}, ValueError),
        ({"optimizer": fastnn.Adam}, TypeError),
        ({"optimizer": 3}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 4.0}, TypeError),
        ({"batch_size": "all"}, ValueError),
        ({"batch_size": True}, TypeError),
        ({"shuffle": 1}, TypeError),
        ({"l2": -1e-9}, ValueError),
        ({"l2": np.nan}, ValueError),
        ({"clip_norm": 0}, ValueError),
        ({"clip_norm": np.inf}, ValueError),
        ({"schedule": 0.1}, TypeError),
        ({"seed": -1}, ValueError),
        ({"seed": "a"}, TypeError),
        ({"n_threads": 0}, ValueError),
        ({"n_threads": 1.5}, TypeError),
        ({"optimizer": "lbfgs", "clip_norm": 1.0}, ValueError),
        ({"optimizer": "lbfgs", "schedule": fastnn.StepDecay(0.1)}, ValueError),
        ({"optimizer": "lbfgs", "model": {"dropout": 0.5}}, ValueError),
    ],
)
def test_wrong_settings(make, arguments, kind):
    with pytest.raises(kind):
        make(**arguments)


def test_model_must_be_one():
    with pytest.raises(TypeError, match="model must be an MLP, got list"):
        Trainer([3, 2])


HUGE = 1e200  # squared, it is beyond float64
NAN_ROW = X.copy()
NAN_ROW[3, 1] = np.nan


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"X": X[:0], "y": Y[:0]}, ValueError, "X has no rows"),  # case B4
        ({"X": X[:, :2]}, ValueError, "X has 2 features"),
        ({"X": NAN_ROW}, ValueError, "X contains nan at row 3, column 1"),
        ({"X": X[:-1]}, ValueError, "y"),
        ({"y": Y[:, :1]}, ValueError, "y"),
        ({"y": None}, TypeError, "y"),
        ({"epochs": -1}, ValueError, "epochs must be >= 0"),
        ({"epochs": 1.0}, TypeError, "epochs must be an integer"),
        ({"sample_weight": -WEIGHT}, ValueError, "sample_weight must be >= 0"),  # case W8
        ({"sample_weight": WEIGHT[:3]}, ValueError, "sample_weight must have shape"),
        ({"validation_data": X}, TypeError, "validation_data must be a tuple"),
        ({"validation_data": (X,)}, TypeError, "validation_data must be a tuple"),
        ({"validation_data": (NAN_ROW, Y)}, ValueError, "validation X contains nan"),
        ({"validation_data": (X[:0], Y[:0])}, ValueError, "validation X has no rows"),
        ({"validation_data": (X, Y[:3])}, ValueError, "validation y"),
        ({"callbacks": fastnn.TimeLimit(3)}, TypeError, r"use callbacks=\[...\]"),
        ({"callbacks": [print]}, TypeError, "has no method on_epoch_end"),
        ({"progress": 1}, TypeError, "progress must be True or False"),
    ],
)
def test_wrong_data_change_nothing(make, arguments, kind, message):
    trainer = make()
    trainer.fit(X, Y, epochs=1)
    before = state(trainer)
    with pytest.raises(kind, match=message):
        trainer.fit(**{"X": X, "y": Y, "epochs": 1, **arguments})
    assert state(trainer) == before
    if arguments.keys() <= {"X", "y"}:
        for method in (trainer.step, trainer.evaluate):
            with pytest.raises(kind, match=message):
                method(arguments.get("X", X), arguments.get("y", Y))
        assert state(trainer) == before
    trainer.fit(X, Y, epochs=1)  # and goes on


def test_rates_of_a_callable_are_checked(make):
    for bad, kind in ((np.nan, ValueError), (-1.0, ValueError), ("a", TypeError)):
        trainer = make(schedule=lambda step, bad=bad: 0.1 if step < 8 else bad)
        trainer.fit(X, Y, epochs=1)
        before = state(trainer)
        with pytest.raises(kind):
            trainer.fit(X, Y, epochs=1)
        assert state(trainer) == before


def test_a_layer_of_steps_is_warned_about(make):
    with pytest.warns(UserWarning, match="'step', whose derivative is 0"):
        make(model={"activation": "step"})


def test_attributes_that_hold_state_cannot_be_set(make):
    trainer = make()
    for name in ("model", "optimizer", "loss", "epoch", "n_steps", "seed"):
        with pytest.raises(AttributeError):
            setattr(trainer, name, getattr(trainer, name))
    with pytest.raises(ValueError, match="rate_factor must be >= 0"):
        trainer.rate_factor = -1


# Trouble ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STEPPED)
def test_divergence_puts_back_the_start_of_the_epoch(make, name):  # cases N10, P10
    """Three good epochs, then one whose third batch cannot have a finite loss."""
    trainer, twin = (
        make(optimizer=name, shuffle=False, model={"dtype": "float64"}) for _ in range(2)
    )
    trainer.fit(X, Y, epochs=3)
    twin.fit(X, Y, epochs=3)
    huge = Y.copy()
    huge[9] = HUGE
    with pytest.raises(DivergenceError, match="epoch 3, batch 2") as caught:
        trainer.fit(X, huge, epochs=2)
    assert (caught.value.epoch, caught.value.batch) == (3, 2)
    assert len(caught.value.history) == 0
    assert state(trainer) == state(twin)
    trainer.fit(X, Y, epochs=1)
    twin.fit(X, Y, epochs=1)
    assert state(trainer) == state(twin)


def test_divergence_keeps_the_epochs_before(make):  # case N10
    raw = X * 1e5
    trainer = make(
        optimizer=fastnn.SGD(learning_rate=0.01, momentum=0.9, nesterov=True),
        model={"activation": "relu"},
    )
    with pytest.raises(DivergenceError) as caught:
        trainer.fit(raw, Y, epochs=200)
    assert np.isfinite(trainer.model.parameters).all()
    assert len(caught.value.history) == caught.value.epoch == trainer.epoch == len(trainer.history)
    assert isinstance(caught.value, ArithmeticError)


@pytest.mark.parametrize("batch_size", [3, "full"])
@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_divergence_after_any_number_of_short_epochs(batch_size, slope):
    """Short epochs are looked at some at a time; which one has gone wrong must not depend on it.

    The weights grow from epoch to epoch by a factor that decides when they overflow: with the
    squared error the loss does first; with targets that the net cannot see (slope 0: rows of zeros,
    and a weight decay that blows up) a parameter is infinite while every loss is finite.
    """
    X = np.linspace(-1, 1, 6, dtype=np.float32)[:, None] * slope
    y = np.ones((6, 1), np.float32)
    places = set()
    for factor in (2.0, 3.0, 5.0, 9.0, 17.0, 40.0, 150.0, 1e4, 1e9):
        settings = {
            "optimizer": fastnn.SGD(1.0),
            "batch_size": batch_size,
            "l2": 1 + factor,
            "seed": 3,
        }
        one_by_one = Trainer(MLP([1, 3, 1], output="identity", seed=1), **settings)
        with pytest.raises(DivergenceError) as expected:
            [one_by_one.fit(X, y, epochs=1) for _ in range(200)]
        at_once = Trainer(MLP([1, 3, 1], output="identity", seed=1), **settings)
        with pytest.raises(DivergenceError) as caught:
            at_once.fit(X, y, epochs=200)
        place = caught.value.epoch, caught.value.batch
        assert place == (expected.value.epoch, expected.value.batch)
        np.testing.assert_array_equal(at_once.model.parameters, one_by_one.model.parameters)
        assert np.isfinite(at_once.model.parameters).all()
        np.testing.assert_array_equal(at_once.history.loss, one_by_one.history.loss)
        assert (at_once.history.seconds >= 0).all()
        places.add(place[0] % 16)
    assert len(places) > (1 if slope else 4)  # here and there in the groups


def test_divergence_in_a_step_changes_nothing(make):
    trainer = make(model={"dtype": "float64"})
    trainer.step(X, Y)
    before = state(trainer)
    with pytest.raises(DivergenceError):
        trainer.step(X, np.full_like(Y, HUGE))
    assert state(trainer) == before


def test_divergence_with_lbfgs(make):
    trainer = make(optimizer="lbfgs", sizes=(N_IN, N_OUT), model={"dtype": "float64"})
    before = state(trainer)
    with pytest.raises(DivergenceError):
        trainer.fit(X, np.full_like(Y, HUGE), epochs=3)
    assert state(trainer) == before


class StopAt:
    """A callback that stops after some epochs."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_end(self, trainer, logs):
        if logs["epoch"] == self.epoch:
            trainer.stop()


def test_stop_from_a_callback(make):
    trainer, twin = make(), make()
    history = trainer.fit(X, Y, epochs=10, callbacks=[StopAt(3)])
    twin.fit(X, Y, epochs=3)
    assert len(history) == 3
    assert state(trainer) == state(twin)
    trainer.fit(X, Y, epochs=2)  # the stop is used up
    twin.fit(X, Y, epochs=2)
    assert state(trainer) == state(twin)


def test_stop_from_another_thread(make, stop_once_it_trains):
    trainer = make()
    thread = stop_once_it_trains(trainer, 0.3)
    start = time.perf_counter()
    history = trainer.fit(X, Y, epochs=10**7)
    assert time.perf_counter() - start < 5
    thread.join()
    assert 0 < len(history) == trainer.epoch < 10**7
    assert trainer.n_steps >= 6 * trainer.epoch
    assert np.isfinite(trainer.model.parameters).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [20, 64, 80])  # in L1; with weights that others would pack; large
def test_stop_leaves_the_parameters_of_its_last_step(dtype, width, stop_once_it_trains):
    random = np.random.default_rng(0)
    rows, targets = random.standard_normal((2, 64, width))

    def trainer():
        model = MLP([width, width, width], dtype=dtype, seed=0)
        return Trainer(model, optimizer="sgd", batch_size=32, shuffle=False, n_threads=1)

    stopped, replay = trainer(), trainer()
    thread = stop_once_it_trains(stopped, 0.02)
    stopped.fit(rows, targets, epochs=10**6)
    thread.join()
    replay.fit(rows, targets, epochs=stopped.n_steps // 2)
    for _ in range(stopped.n_steps % 2):
        replay.step(rows[:32], targets[:32])
    assert np.array_equal(stopped.model.parameters, replay.model.parameters)


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
@pytest.mark.parametrize("delay", [0.01, 0.05, 0.2])
def test_interrupt_leaves_a_whole_step_and_true_counters(make, delay):  # case T12
    trainer = make(shuffle=False, optimizer="sgd")
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(delay, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(X, Y, epochs=10**7)
    assert time.perf_counter() - sent[0] < 0.5  # 0.2 s promised; the machine is shared
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(trainer.history) == trainer.epoch
    # SGD has no memory: as many steps as the counter says lead to the same weights.
    n_steps = trainer.n_steps
    assert n_steps // 6 in (trainer.epoch, trainer.epoch + 1)
    replay = make(shuffle=False, optimizer="sgd")
    if n_steps // 6:
        replay.fit(X, Y, epochs=n_steps // 6)
    for batch in range(n_steps % 6):
        replay.step(X[4 * batch : 4 * batch + 4], Y[4 * batch : 4 * batch + 4])
    assert replay.model.parameters.tobytes() == trainer.model.parameters.tobytes()
    trainer.fit(X, Y, epochs=1)


def test_concurrent_fits_of_one_model_raise_and_corrupt_nothing(make):  # case T9
    trainer = make()
    entered, leave, results = threading.Event(), threading.Event(), []

    class Wait:
        def on_epoch_end(self, trainer, logs):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=lambda: trainer.fit(X, Y, epochs=2, callbacks=[Wait()]))
    thread.start()
    assert entered.wait(10)
    other = Trainer(trainer.model)
    for attempt in (
        lambda: trainer.fit(X, Y, epochs=1),
        lambda: trainer.step(X, Y),
        lambda: other.fit(X, Y, epochs=1),
        lambda: trainer.save("nowhere"),
    ):
        with pytest.raises(RuntimeError, match="being trained already"):
            attempt()
        results.append(attempt)
    leave.set()
    thread.join()
    twin = make()
    twin.fit(X, Y, epochs=2)
    assert len(results) == 4
    assert state(trainer) == state(twin)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_forked_in_the_middle_of_a_training_can_train(make):  # case T3
    statuses = []

    class Fork:
        def on_epoch_end(self, trainer, logs):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    trainer.fit(X, Y, epochs=1)
                    with pytest.raises(RuntimeError):
                        trainer.fit(X, Y, epochs=1, callbacks=[Nested()])
                    status = 0
                finally:
                    os._exit(status)
            statuses.append(os.waitpid(child, 0)[1])

    trainer, twin = make(), make()
    trainer.fit(X, Y, epochs=2, callbacks=[Fork()])
    twin.fit(X, Y, epochs=2)
    assert statuses == [0, 0]
    assert state(trainer) == state(twin)


class Nested:
    """A callback that trains."""

    def on_epoch_end(self, trainer, logs):
        trainer.fit(X, Y, epochs=1)


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_an_exception_of_the_users_own_handler_leaves_true_counters(make):
    """A time limit by SIGALRM, say: compiled training passes the handler's exception on."""
    trainer = make(shuffle=False, optimizer="sgd")
    if trainer.model.backend == "reference":
        pytest.skip("in plain Python a signal handler may raise in the middle of a step")

    class TimeIsUp(Exception):
        pass

    def handler(signum, frame):
        raise TimeIsUp

    data = np.tile(X, (200, 1)), np.tile(Y, (200, 1))  # epochs long enough to be interrupted
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeIsUp):
            trainer.fit(*data, epochs=10**6)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    per_epoch = 200 * N // 4
    replay = make(shuffle=False, optimizer="sgd")
    replay.fit(*data, epochs=trainer.n_steps // per_epoch)
    for batch in range(trainer.n_steps % per_epoch):
        rows = slice(4 * batch, 4 * batch + 4)
        replay.step(data[0][rows], data[1][rows])
    assert replay.model.parameters.tobytes() == trainer.model.parameters.tobytes()


def test_a_failing_callback_leaves_a_usable_trainer(make):
    class Fail:
        def on_epoch_end(self, trainer, logs):
            raise ZeroDivisionError

    trainer, twin = make(), make()
    with pytest.raises(ZeroDivisionError):
        trainer.fit(X, Y, epochs=3, callbacks=[Fail()])
    twin.fit(X, Y, epochs=1)
    assert state(trainer) == state(twin)
    trainer.fit(X, Y, epochs=1)


def test_training_from_a_callback_is_refused(make):
    with pytest.raises(RuntimeError, match="fit that called this callback"):
        make().fit(X, Y, epochs=1, callbacks=[Nested()])


def test_an_epoch_costs_the_same_however_many_came_before(make):  # case T15
    class Look:
        def on_epoch_end(self, trainer, logs):
            assert trainer.history.loss[-1] == logs["loss"]

    def seconds(trainer):
        # The processor's clock: another program on the machine does not count.
        start = time.process_time()
        trainer.fit(X, Y, epochs=50, callbacks=[Look()])
        return time.process_time() - start

    young, old = (make(batch_size="full", sizes=(N_IN, N_OUT)) for _ in range(2))
    old.fit(X, Y, epochs=5_000, callbacks=[Look()])
    times = [(seconds(young), seconds(old)) for _ in range(15)]  # in turns: caches, clock rates
    early, late = (min(column) for column in zip(*times, strict=True))
    assert late <= 1.5 * early


def test_many_fits_keep_no_memory(make):  # case T14
    def fits(n):
        for _ in range(n):
            trainer = make(model={"dtype": "float64"})
            trainer.fit(X, Y, epochs=1)
            with pytest.raises(ValueError):
                trainer.fit(X, Y[:3], epochs=1)
            with pytest.raises(DivergenceError):
                trainer.fit(X, np.full_like(Y, HUGE), epochs=1)

    fits(20)
    gc.collect()
    tracemalloc.start()
    try:
        fits(20)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        fits(180)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()


def test_a_trainer_is_freed_without_the_collector(make):
    import weakref

    trainer = make()
    trainer.fit(X, Y, epochs=1)
    references = [weakref.ref(trainer), weakref.ref(trainer.model)]
    gc.disable()
    try:
        del trainer
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()


def test_lbfgs_finds_the_least_squares_solution(make):
    """Without hidden layers and with squared error, the optimum is that of the normal equations."""
    trainer = make(optimizer="lbfgs", sizes=(N_IN, N_OUT), model={"dtype": "float64"})
    trainer.fit(X, Y, epochs=50)
    solution = np.linalg.lstsq(np.column_stack([X, np.ones(N)]), Y, rcond=None)[0]
    np.testing.assert_allclose(trainer.model.weights[0], solution[:-1], atol=1e-6)
    np.testing.assert_allclose(trainer.model.biases[0], solution[-1], atol=1e-6)
    assert np.isnan(trainer.history.learning_rate).all()
    assert (np.diff(trainer.history.loss) <= 0).all()
    with pytest.raises(ValueError, match="LBFGS makes no single steps"):
        trainer.step(X, Y)


@pytest.mark.parametrize("n_threads", [1, 8])
@pytest.mark.parametrize("kind", ["in place", "gathered", "too large"])
def test_a_bad_row_anywhere_undoes_the_first_epoch(backend_name, kind, n_threads):
    """The rows are looked at as they are read; what came before the bad one is undone."""
    X = np.random.default_rng(0).standard_normal((600, 5)).astype("float32")
    y = (X[:, 0] > 0).astype(int)
    model = MLP([5, 40, 2], output="softmax", seed=0, backend=backend_name)
    trainer = Trainer(model, batch_size=64, seed=3, n_threads=n_threads)
    trainer.fit(X, y, epochs=1)
    before = model.parameters.copy(), trainer._slots.copy(), trainer.n_steps, trainer._counters
    last = rng.permutation(600, 3, 1)[-1]  # the row that the epoch comes to last
    bad = X if kind == "in place" else X.astype("float64")
    bad[last, 4] = 1e39 if kind == "too large" else np.nan
    with pytest.raises(ValueError, match=rf"row {last}, column 4"):
        trainer.fit(bad, y, epochs=3)
    assert np.array_equal(model.parameters, before[0])
    assert np.array_equal(trainer._slots, before[1])
    assert (trainer.n_steps, trainer._counters) == before[2:]
    assert trainer.epoch == len(trainer.history) == 1


def test_predictions_name_a_bad_row(backend_name):
    X = np.zeros((3000, 4), "float32")
    model = MLP([4, 30, 2], seed=0, backend=backend_name)
    X[2777, 1] = np.inf
    with pytest.raises(ValueError, match="row 2777, column 1"):
        model.predict(X)
    out = np.full((3000, 2), 7, "float32")
    with pytest.raises(ValueError, match="row 2777, column 1"):
        model.predict(X, out=out)
    assert (out == 7).all()  # the caller's array is left alone
