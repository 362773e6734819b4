"""What a callback raises comes out of that fit, whole and once, and leaves nothing behind."""

import gc
import sys
import traceback
import weakref

import numpy as np
import pytest

from fastnn import MLP, Trainer


class Fault(Exception):
    pass


class Failing:
    def __init__(self, where, error, epoch=2):
        self.where, self.error, self.epoch = where, error, epoch

    def on_fit_begin(self, trainer, monitors):
        if self.where == "on_fit_begin":
            raise self.error

    def on_epoch_end(self, trainer, logs):
        if self.where == "on_epoch_end" and trainer.epoch == self.epoch:
            raise self.error

    def on_fit_end(self, trainer):
        if self.where == "on_fit_end":
            raise self.error


@pytest.fixture
def unraisable(monkeypatch):
    """Exceptions that somebody swallowed on the way."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    return seen


X = np.random.default_rng(0).normal(size=(40, 5))


@pytest.mark.parametrize("kind", [Fault, KeyboardInterrupt, SystemExit, MemoryError, StopIteration])
@pytest.mark.parametrize("where", ["on_fit_begin", "on_epoch_end", "on_fit_end"])
def test_callbacks_that_raise(backend_name, where, kind, unraisable):
    trainer = Trainer(MLP([5, 4, 1], seed=0, backend=backend_name), seed=1)
    twin = Trainer(MLP([5, 4, 1], seed=0, backend=backend_name), seed=1)
    error = kind("mine")
    with pytest.raises(kind) as caught:
        trainer.fit(X, X[:, :1], epochs=4, callbacks=[Failing(where, error)])
    assert caught.value is error
    assert "in on_" in "".join(traceback.format_exception(caught.value))
    epochs = {"on_fit_begin": 0, "on_epoch_end": 2, "on_fit_end": 4}[where]
    assert trainer.epoch == len(trainer.history) == epochs
    # whatever comes next is clean, and continues where the trainer stood
    trainer.model.predict(X)
    trainer.evaluate(X, X[:, :1])
    trainer.fit(X, X[:, :1], epochs=6 - epochs)
    twin.fit(X, X[:, :1], epochs=6)
    assert np.array_equal(trainer.model.parameters, twin.model.parameters)
    assert not unraisable


def test_exceptions_are_not_kept(backend_name, unraisable):
    trainer = Trainer(MLP([5, 4, 1], seed=0, backend=backend_name), seed=1)

    def fail():
        error = Fault("mine")
        with pytest.raises(Fault):
            trainer.fit(X, X[:, :1], epochs=9, callbacks=[Failing("on_epoch_end", error)])
        return weakref.ref(error)

    kept = fail()
    gc.collect()
    assert kept() is None
    assert not unraisable


def test_an_error_of_the_schedule_changes_nothing(backend_name):
    def schedule(step):
        if step >= 4:
            raise Fault(f"step {step}")
        return 0.01

    trainer = Trainer(
        MLP([5, 1], seed=0, backend=backend_name), seed=1, batch_size=20, schedule=schedule
    )
    trainer.fit(X, X[:, :1], epochs=2)
    before = trainer.model.parameters.copy()
    with pytest.raises(Fault, match="step 4"):
        trainer.fit(X, X[:, :1], epochs=1)
    assert np.array_equal(trainer.model.parameters, before)
    assert trainer.n_steps == 4
    assert trainer.epoch == 2
