"""Callbacks: when they stop, cut and save, with values that a test chooses."""

import math

import numpy as np
import pytest

from fastnn import MLP, Checkpoint, EarlyStopping, ReduceOnPlateau, TimeLimit, Trainer

X = np.random.default_rng(0).normal(size=(12, 2))
Y = X @ [[1.0], [-1.0]]


@pytest.fixture
def trainer(backend_name):
    return Trainer(MLP([2, 1], seed=0, backend=backend_name), seed=0, batch_size=4)


class Scripted:
    """Feeds a callback with given values instead of the true losses, and marks the parameters."""

    def __init__(self, callback, values, key="loss"):
        self.callback, self.values, self.key = callback, values, key
        self.factors = []

    def on_fit_begin(self, trainer, monitors):
        self.callback.on_fit_begin(trainer, {*monitors, self.key})

    def on_epoch_end(self, trainer, logs):
        epoch = int(logs["epoch"])
        trainer.model.parameters[:] = epoch
        self.callback.on_epoch_end(trainer, {**logs, self.key: self.values[epoch - 1]})
        self.factors.append(trainer.rate_factor)

    def on_fit_end(self, trainer):
        if hasattr(self.callback, "on_fit_end"):
            self.callback.on_fit_end(trainer)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("values", "arguments", "stopped", "best"),
    [
        ([5, 4, 3, 3, 3, 3, 3], {"patience": 2}, 5, 3),
        ([5, 4, 5, 3, 5, 5, 1], {"patience": 2}, 6, 4),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.15}, None, 3),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3, 1),
        ([NAN, NAN, NAN, 1], {"patience": 3}, 3, None),
        ([2, NAN, 1, NAN, NAN, 0], {"patience": 2}, 5, 3),
        ([INF, 2, INF, INF, 0], {"patience": 2}, 4, 2),
        ([1, 2, 3], {"patience": 5}, None, 1),
    ],
)
def test_early_stopping(trainer, values, arguments, stopped, best):  # case N: NaN is never better
    callback = EarlyStopping("loss", **arguments)
    history = trainer.fit(X, Y, epochs=len(values), callbacks=[Scripted(callback, values)])
    assert callback.stopped_epoch == stopped
    assert callback.best_epoch == best
    assert len(history) == (stopped or len(values))
    # Scripted writes the epoch's number into every parameter.
    assert trainer.model.parameters[0] == (best or len(history))
    if best:
        assert callback.best == values[best - 1]


def test_best_parameters_stay_where_not_wanted_back(trainer):
    callback = EarlyStopping("loss", patience=2, restore_best=False)
    trainer.fit(X, Y, epochs=9, callbacks=[Scripted(callback, [1, 2, 3, 4, 5, 6, 7, 8, 9])])
    assert callback.best_epoch == 1
    assert trainer.model.parameters[0] == 3


def test_each_fit_starts_anew(trainer):  # case S6
    callback = EarlyStopping("loss", patience=1)
    script = Scripted(callback, [1, 2, 9, 8, 7, 6])
    trainer.fit(X, Y, epochs=6, callbacks=[script])
    assert (callback.stopped_epoch, callback.best) == (2, 1)
    trainer.fit(X, Y, epochs=4, callbacks=[script])
    assert (callback.stopped_epoch, callback.best, callback.best_epoch) == (None, 6, 6)


def test_early_stopping_on_true_validation_data(trainer):
    callback = EarlyStopping(patience=3)
    history = trainer.fit(X, Y, epochs=500, validation_data=(X, Y), callbacks=[callback])
    assert callback.best == history.validation_loss.min()
    assert trainer.evaluate(X, Y) == callback.best


@pytest.mark.parametrize("callback", [EarlyStopping(), ReduceOnPlateau()])
def test_monitoring_what_is_not_there(trainer, callback):
    before = trainer.model.parameters.copy()
    with pytest.raises(ValueError, match=r"monitor='validation_loss' needs validation data"):
        trainer.fit(X, Y, epochs=1, callbacks=[callback])
    np.testing.assert_array_equal(trainer.model.parameters, before)
    assert trainer.epoch == 0


def test_one_lucky_epoch_cuts_the_rate_once(trainer):  # case S15
    values = [1, 0.1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    script = Scripted(ReduceOnPlateau("loss", factor=0.5, patience=2), values)
    trainer.fit(X, Y, epochs=len(values), callbacks=[script])
    assert script.factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_rate_is_cut_again_where_nothing_helps_down_to_a_floor(trainer):
    values = [1, 1, NAN, 1, 1, 1, 1, 1, 1]
    script = Scripted(ReduceOnPlateau("loss", factor=0.1, patience=2, min_factor=0.05), values)
    trainer.fit(X, Y, epochs=len(values), callbacks=[script])
    # The cut at the NaN leaves no mark: the 1 after it is progress.
    np.testing.assert_allclose(script.factors, [1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_cut_rates_are_those_that_training_uses_and_saves(trainer, tmp_path):
    trainer.fit(X, Y, epochs=1)
    trainer.rate_factor = 0.25
    trainer.fit(X, Y, epochs=1)
    assert trainer.history.learning_rate.tolist() == [1e-3, 0.25e-3]
    trainer.save(tmp_path / "t")
    resumed = Trainer.load(tmp_path / "t", backend=trainer.model.backend)
    assert resumed.rate_factor == 0.25


def test_time_limit(trainer, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("fastnn.callbacks.time.monotonic", lambda: now[0])

    class Clock:
        def on_epoch_end(self, trainer, logs):
            now[0] += 1.0

    assert len(trainer.fit(X, Y, epochs=50, callbacks=[Clock(), TimeLimit(2.5)])) == 3
    assert len(trainer.fit(X, Y, epochs=50, callbacks=[Clock(), TimeLimit(np.float32(1))])) == 1


def test_checkpoints(trainer, tmp_path):
    trainer.fit(
        X,
        Y,
        epochs=5,
        callbacks=[Checkpoint(tmp_path / "e{epoch}", every=2), Checkpoint(tmp_path / "last")],
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e2", "e4", "last"]
    backend = trainer.model.backend
    assert Trainer.load(tmp_path / "e4", backend=backend).epoch == 4
    last = Trainer.load(tmp_path / "last", backend=backend)
    assert last.model.parameters.tobytes() == trainer.model.parameters.tobytes()
    assert last.history.loss.tolist() == trainer.history.loss.tolist()


def test_a_checkpoint_that_cannot_be_written(trainer, tmp_path):
    with pytest.raises(FileNotFoundError):
        trainer.fit(X, Y, epochs=3, callbacks=[Checkpoint(tmp_path / "no" / "file")])
    assert trainer.epoch == 1


def test_logs_are_what_the_history_holds(trainer):
    class Collect:
        def __init__(self):
            self.seen = []

        def on_epoch_end(self, trainer, logs):
            self.seen.append(dict(logs))

    collect = Collect()
    history = trainer.fit(X, Y, epochs=2, validation_data=(X, Y), callbacks=[collect])
    assert [logs["epoch"] for logs in collect.seen] == [1, 2]
    for name in ("loss", "validation_loss", "learning_rate", "seconds"):
        assert [logs[name] for logs in collect.seen] == getattr(history, name).tolist()


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: EarlyStopping("accuracy"), ValueError),
        (lambda: EarlyStopping(3), TypeError),
        (lambda: EarlyStopping(patience=0), ValueError),
        (lambda: EarlyStopping(patience=2.0), TypeError),
        (lambda: EarlyStopping(min_delta=-1), ValueError),
        (lambda: EarlyStopping(restore_best="yes"), TypeError),
        (lambda: ReduceOnPlateau(factor=1.0), ValueError),
        (lambda: ReduceOnPlateau(factor=0.0), ValueError),
        (lambda: ReduceOnPlateau(min_factor=-1), ValueError),
        (lambda: TimeLimit(0), ValueError),
        (lambda: TimeLimit("1"), TypeError),
        (lambda: Checkpoint(3), TypeError),
        (lambda: Checkpoint("x", every=0), ValueError),
    ],
)
def test_wrong_arguments(build, kind):
    with pytest.raises(kind):
        build()
