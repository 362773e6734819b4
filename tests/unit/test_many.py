"""train_many: each result is the one of training alone, whatever becomes of the others."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastnn
from fastnn import LBFGS, MLP, SGD, DivergenceError, RMSprop, Trainer, train_many
from fastnn import many as many_module

_data = np.random.default_rng(3)
X = _data.normal(size=(61, 5)).astype(np.float32)
Y = np.tanh(X @ _data.normal(size=(5, 3))).astype(np.float32)
LABELS = Y.argmax(axis=1)

PATIENCE = 60  # seconds that a deadlock costs


def varied(backend):
    """Trainers that differ in everything that suits X and LABELS."""

    def model(*sizes, **arguments):
        return MLP([5, *sizes, 3], output="softmax", seed=len(sizes), backend=backend, **arguments)

    return [
        Trainer(model(8), seed=0),
        Trainer(model(8), seed=1, batch_size=7, clip_norm=0.1),
        Trainer(model(7, 6, activation="gelu", dropout=0.3), optimizer=SGD(0.05), seed=2),
        Trainer(model(9, dtype="float64"), optimizer=LBFGS(), l2=1e-3),
        Trainer(model(30, dtype="float64"), optimizer=RMSprop(), shuffle=False),
        Trainer(model(4), batch_size="full", schedule=fastnn.CosineDecay(0.05, 9), seed=3),
        Trainer(model(), optimizer="rprop", batch_size="full", n_threads=2),
    ]


def state(trainer):
    return {
        "parameters": trainer.model.parameters.tobytes(),
        "slots": trainer._slots.tobytes(),
        "counters": dict(trainer._counters),
        "epoch": trainer.epoch,
        "steps": trainer.n_steps,
        "loss": trainer.history.loss.tobytes(),
    }


def diverging():
    """A trainer whose loss becomes infinite, not at once."""
    model = MLP([5, 3], output="identity", seed=0)
    return Trainer(model, loss="squared_error", optimizer=SGD(1e6), seed=0)


def regression(seed, sizes=(5, 8, 3), **arguments):
    return Trainer(MLP(sizes, activation="tanh", seed=seed), seed=seed, **arguments)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 20, None])
def test_bits_are_those_of_training_alone(backend_name, n_threads):
    alone, together = varied(backend_name), varied(backend_name)
    expected = [trainer.fit(X, LABELS, epochs=3) for trainer in alone]
    before = set(threading.enumerate())
    histories = train_many(together, X, LABELS, epochs=3, n_threads=n_threads)
    assert set(threading.enumerate()) == before
    for i, (one, other) in enumerate(zip(alone, together, strict=True)):
        assert state(one) == state(other), i
        assert np.array_equal(histories[i].loss, expected[i].loss)
        assert len(histories[i]) == 3


def test_goes_on_from_where_each_trainer_stands(backend_name):
    alone, together = varied(backend_name), varied(backend_name)
    for i, trainer in enumerate(alone):
        trainer.fit(X, LABELS, epochs=i + 3)
    for i, trainer in enumerate(together):
        trainer.fit(X, LABELS, epochs=i)
    histories = train_many(together, X, LABELS, epochs=1)
    histories = train_many(reversed(together), X, LABELS, epochs=2, n_threads=2)
    assert [state(trainer) for trainer in alone] == [state(trainer) for trainer in together]
    for history, trainer in zip(histories, reversed(together), strict=True):
        assert np.array_equal(history.loss, trainer.history.loss[-2:])


def test_nothing_to_do():
    assert train_many([], X, LABELS, epochs=3) == []
    trainers = varied("native")
    before = [state(trainer) for trainer in trainers]
    assert [len(h) for h in train_many(trainers, X, LABELS, epochs=0)] == [0] * len(trainers)
    assert [state(trainer) for trainer in trainers] == before


def test_data_are_checked_once_and_shared(monkeypatch):
    calls = []

    def check_data(*arguments, **settings):
        calls.append(arguments)
        return original(*arguments, **settings)

    original = many_module.check_data
    monkeypatch.setattr(many_module, "check_data", check_data)
    trainers = [regression(seed) for seed in range(9)]
    double = Trainer(MLP([5, 4, 3], dtype="float64", seed=0), seed=0)
    huber = regression(0, loss=fastnn.Huber(0.5))
    data = many_module._check_data([*trainers, double, huber], X, Y)
    assert len(calls) == 3
    assert all(rows is X for rows, _, _ in data)
    assert len({id(targets) for _, targets, _ in data[:9]}) == 1
    assert data[9][1].dtype == np.float64


def test_trains_as_many_at_a_time_as_there_are_threads():
    """The schedules of two trainers wait for each other."""
    meeting = threading.Barrier(2)

    def schedule(step):
        meeting.wait(PATIENCE)
        return 0.01

    trainers = [regression(s, schedule=schedule, batch_size="full") for s in range(2)]
    train_many(trainers, X, Y, epochs=1, n_threads=2)
    assert not meeting.broken


def test_never_more_at_a_time_than_threads():
    running, most = set(), []

    def schedule(step):
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.002)
        running.discard(threading.get_ident())
        return 0.01

    trainers = [regression(s, schedule=schedule, batch_size="full") for s in range(12)]
    train_many(trainers, X, Y, epochs=2, n_threads=3)
    assert max(most) <= 3


@pytest.mark.parametrize(
    ("n_trainers", "own", "n_threads", "inside"),
    [(1, None, 4, 4), (2, None, 5, 2), (5, None, 4, 1), (1, 3, 8, 3), (1, 8, 2, 2)],
)
def test_threads_inside_a_training(monkeypatch, n_trainers, own, n_threads, inside):
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.delenv("FASTNN_NUM_THREADS", raising=False)
    seen = []
    fit = Trainer._fit
    monkeypatch.setattr(
        Trainer, "_fit", lambda self, data, epochs, n: seen.append(n) or fit(self, data, epochs, n)
    )
    trainers = [regression(seed, n_threads=own) for seed in range(n_trainers)]
    train_many(trainers, X, Y, epochs=1, n_threads=n_threads)
    assert seen == [inside] * n_trainers


# What goes wrong ----------------------------------------------------------------------------------


def test_twins_are_refused():
    one, other = regression(0), regression(1)
    before = one.model.parameters.copy()
    with pytest.raises(ValueError, match=r"trainers\[0\] and trainers\[2\] are the same trainer"):
        train_many([one, other, one], X, Y, epochs=1)
    twin = Trainer(other.model)
    with pytest.raises(ValueError, match=r"trainers\[1\] and trainers\[2\] train the same model"):
        train_many([one, other, twin], X, Y, epochs=1)
    assert np.array_equal(one.model.parameters, before)


@pytest.mark.parametrize("trainers", [None, 3, regression(0)])
def test_not_a_list(trainers):
    with pytest.raises(TypeError, match="trainers must be a list of Trainer objects, got"):
        train_many(trainers, X, Y, epochs=1)


def test_not_trainers():
    with pytest.raises(TypeError, match=r"trainers\[1\] must be a Trainer, got MLP"):
        train_many([regression(0), MLP([5, 3])], X, Y, epochs=1)


@pytest.mark.parametrize("epochs", [-1, 1.5, True, None])
def test_bad_epochs(epochs):
    with pytest.raises((TypeError, ValueError), match="epochs"):
        train_many([regression(0)], X, Y, epochs=epochs)


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, True])
def test_bad_n_threads(n_threads):
    with pytest.raises((TypeError, ValueError), match="n_threads"):
        train_many([regression(0)], X, Y, epochs=1, n_threads=n_threads)


def test_data_that_one_trainer_cannot_take():
    trainers = [regression(0), regression(1, sizes=(4, 8, 3)), regression(2)]
    before = [state(trainer) for trainer in trainers]
    with pytest.raises(ValueError, match="X has 5 features") as caught:
        train_many(trainers, X, Y, epochs=1)
    assert caught.value.__notes__ == ["trainers[1] cannot take this X and y; nothing was trained"]
    assert [state(trainer) for trainer in trainers] == before


@pytest.mark.parametrize("n_threads", [1, 2])
def test_one_that_fails_does_not_lose_the_others(n_threads):
    def failing(step):
        raise ZeroDivisionError("no rate")

    def trainers():
        return [regression(0), diverging(), regression(1), regression(2, schedule=failing)]

    alone, together = trainers(), trainers()
    for trainer in alone:
        with contextlib.suppress(DivergenceError, ZeroDivisionError):
            trainer.fit(X, Y, epochs=40)
    with pytest.raises(DivergenceError, match="no longer finite") as caught:
        train_many(together, X, Y, epochs=40, n_threads=n_threads)
    assert 0 < together[1].epoch < 40
    assert caught.value.epoch == together[1].epoch
    assert np.array_equal(caught.value.history.loss, together[1].history.loss)
    assert [state(trainer) for trainer in together] == [state(trainer) for trainer in alone]
    assert [trainer.epoch for trainer in together[::2]] == [40, 40]
    summary, *notes = caught.value.__notes__
    assert summary == "2 of 4 trainers failed; 2 are done:"
    assert [note.partition(": ")[0] for note in notes] == ["trainers[1]", "trainers[3]"]
    assert notes[1].endswith("no rate")


def test_when_many_fail_the_notes_stay_short():
    with pytest.raises(DivergenceError) as caught:
        train_many([diverging() for _ in range(11)], X, Y, epochs=40)
    notes = caught.value.__notes__
    assert notes[0] == "11 of 11 trainers failed; 0 are done:"
    assert len(notes) == 10
    assert notes[-1] == "and trainers [8, 9, 10]"


def test_a_model_that_is_being_trained_elsewhere():
    busy, free = regression(0), regression(1)
    inside, done = threading.Event(), threading.Event()

    class Hold:
        def on_epoch_end(self, trainer, logs):
            inside.set()
            assert done.wait(PATIENCE)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(busy.fit, X, Y, epochs=1, callbacks=[Hold()])
        assert inside.wait(PATIENCE)
        with pytest.raises(RuntimeError, match="being trained already"):
            train_many([busy, free], X, Y, epochs=2)
        done.set()
        other.result()
    assert (busy.epoch, free.epoch) == (1, 2)


def test_stop_ends_one():
    first = regression(0)

    def schedule(step):
        if step == 40:
            first.stop()
        return 0.01

    first._set_schedule(schedule)
    trainers = [first, regression(1)]
    train_many(trainers, X, Y, epochs=50, n_threads=1)
    assert 0 < first.epoch < 50
    assert trainers[1].epoch == 50


def test_stop_ends_lbfgs_within_an_iteration():
    """Between two evaluations; the model is where the iteration began."""
    trainer = Trainer(MLP([5, 8, 3], dtype="float64", seed=0), optimizer=LBFGS())
    twin = Trainer(MLP([5, 8, 3], dtype="float64", seed=0), optimizer=LBFGS())
    twin.fit(X, Y, epochs=3)
    calls = 0
    engine = trainer.model._backend
    loss_and_gradient = type(engine).loss_and_gradient

    def counting(*arguments):
        nonlocal calls
        calls += trainer.epoch == 3
        if calls == 1:
            trainer.stop()
        return loss_and_gradient(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine), "loss_and_gradient", counting)
        history = trainer.fit(X, Y, epochs=9)
    assert (len(history), trainer.epoch, calls) == (3, 3, 1)
    assert state(trainer) == state(twin)
    for one in (trainer, twin):
        one.fit(X, Y, epochs=2)
    assert state(trainer) == state(twin)


def test_fewer_threads_than_asked_for(monkeypatch):
    """Where no more threads are to be had, those that run do the work."""
    start = threading.Thread.start
    started = []

    def limited(self):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", limited)
    trainers = [regression(seed) for seed in range(5)]
    train_many(trainers, X, Y, epochs=2, n_threads=4)
    assert [trainer.epoch for trainer in trainers] == [2] * 5
    with pytest.raises(RuntimeError, match="can't start new thread"):
        train_many(trainers, X, Y, epochs=2, n_threads=4)
    assert [trainer.epoch for trainer in trainers] == [2] * 5
