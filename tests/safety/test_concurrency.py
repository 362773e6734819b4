"""Python threads that train, predict and copy at once (cases T9, T10, T11)."""

import copy
import sys
import threading

import numpy as np
import pytest

import fastnn
from fastnn import MLP, Trainer

_native = pytest.importorskip("fastnn.backends._native")


@pytest.fixture(autouse=True)
def eager_switching(monkeypatch):
    """Threads for the smallest work, and Python threads that change places often."""
    monkeypatch.delenv("FASTNN_NUM_THREADS", raising=False)
    before = sys.getswitchinterval(), _native.set_work_per_thread(0)
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before[0])
    _native.set_work_per_thread(before[1])


def at_once(*tasks):
    """Run all in threads that start together; raise what any of them raised."""
    errors = []
    gate = threading.Barrier(len(tasks))

    def run(task):
        try:
            gate.wait(20)
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if errors:
        raise errors[0]


def rows(n=200, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 9)).astype(np.float32)


def make_trainer(i, **settings):
    model = MLP([9, 12 + i, 3], activation="gelu", output="softmax", dropout=0.2, seed=i)
    return Trainer(model, seed=i, n_threads=1 + i % 4, **settings)


def test_eight_train_and_predict_while_a_ninth_copies():  # T9, T10
    X, y = rows(), np.arange(200) % 3
    shared = MLP([9, 32, 4], output="softmax", seed=5)
    alone = shared.predict(X)
    slopes = shared.input_gradient(X[:20])
    expected = []
    for i in range(8):
        trainer = make_trainer(i)
        trainer.fit(X, y, epochs=6)
        expected.append(trainer.model.parameters.copy())
    results = [None] * 8
    done = threading.Event()

    def work(i):
        try:
            for _ in range(3):
                trainer = make_trainer(i)
                for _ in range(6):
                    trainer.fit(X, y, epochs=1)
                    assert np.array_equal(shared.predict(X), alone)
                    assert np.array_equal(shared.predict(X[i]), alone[i])
                    assert np.array_equal(shared.input_gradient(X[:20]), slopes)
                assert results[i] is None or np.array_equal(results[i], trainer.model.parameters)
                results[i] = trainer.model.parameters
        finally:
            working.discard(i)
            if not working:
                done.set()

    def copies():
        while not done.is_set():
            twin = copy.deepcopy(shared)
            assert np.array_equal(twin.parameters, shared.parameters)
            assert np.array_equal(twin.predict(X), alone)

    working = set(range(8))
    at_once(*[lambda i=i: work(i) for i in range(8)], copies)
    assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))
    assert len({p.tobytes() for p in results}) == 8  # each trained something of its own


@pytest.mark.parametrize("shared", ["trainer", "model"])
def test_fits_of_one_object_take_turns_or_raise(shared):  # T9
    X, y = rows(), np.arange(200) % 3
    trainer = make_trainer(0, optimizer="sgd", shuffle=False)
    model = trainer.model
    start = model.copy()
    trainers = [trainer] * 4 if shared == "trainer" else [
        Trainer(model, optimizer="sgd", shuffle=False, seed=0) for _ in range(4)
    ]  # fmt: skip
    fits, refusals = [], []

    def work(own):
        for _ in range(30):
            try:
                own.fit(X, y, epochs=2)
                fits.append(own)
            except RuntimeError as error:
                assert "being trained already" in str(error)
                refusals.append(own)

    at_once(*[lambda own=own: work(own) for own in trainers])
    assert len(fits) + len(refusals) == 120
    assert fits
    assert np.isfinite(model.parameters).all()
    if shared == "trainer":  # then the fits that went through were one after the other
        assert trainer.epoch == len(trainer.history) == 2 * len(fits)
        twin = Trainer(start, optimizer="sgd", shuffle=False, seed=trainer.seed)
        twin.fit(X, y, epochs=trainer.epoch)
        assert np.array_equal(twin.model.parameters, model.parameters)


def test_more_threads_than_rows():  # T11
    X = rows(3)
    results = []
    for n_threads in (1, 2, 3, 4, 64):
        trainer = Trainer(MLP([9, 5, 2], seed=0), n_threads=n_threads, seed=0)
        trainer.fit(X, X[:, :2], epochs=4)
        trainer.fit(X[:1], X[:1, :2], epochs=4)
        results.append(trainer.model.parameters.tobytes())
    assert len(set(results)) == 1


def test_predictions_while_the_model_is_trained():
    """What they see is some mixture of steps, but never a crash, a hang or a NaN."""
    X, y = rows(), np.arange(200) % 3
    trainer = make_trainer(3)
    done = threading.Event()

    def train():
        try:
            trainer.fit(X, y, epochs=300)
        finally:
            done.set()

    def look():
        while not done.is_set():
            assert np.isfinite(trainer.model.predict(X)).all()
            assert np.isfinite(trainer.evaluate(X, y))
            assert len(trainer.history.loss) <= 300

    at_once(train, look, look)


@pytest.mark.parametrize("n_rows", [1, 40])
def test_short_predictions_at_once(n_rows):
    """On several threads, with the GIL and without, of nets that share a block of memory."""
    _native.set_work_per_thread(1e9)
    X = rows(n_rows)
    models = [MLP([9, width, 40, 3], activation="tanh", seed=width) for width in (8, 300, 2000)]
    expected = [model.predict(X).tobytes() for model in models]

    def predict():
        for i in range(200):
            out = np.empty((n_rows, 3), np.float32) if i % 2 else None
            assert models[i % 3].predict(X, out=out).tobytes() == expected[i % 3]

    at_once(*[predict] * 8)


def test_threads_with_small_stacks(run_script):
    """Servers with thousands of threads give each the least that is allowed."""
    run_script("""
import threading
import numpy as np
import fastnn

X = np.ones((1000, 30), np.float32)
model = fastnn.MLP([30, 64, 10], output="softmax", seed=0)
trainer = fastnn.Trainer(model, n_threads=2)
trainer.fit(X[:50], np.arange(50) % 10, epochs=1)
found = []

def work():
    found.append(model.predict(X[:1]).tobytes() + model.predict(X).tobytes())
    trainer.fit(X, np.arange(1000) % 10, epochs=1)

expected = model.predict(X[:1]).tobytes() + model.predict(X).tobytes()
threading.stack_size(1 << 16)
thread = threading.Thread(target=work)
thread.start()
thread.join()
assert found == [expected]
""")


def test_data_that_change_meanwhile(run_script):
    """Another thread writes to rows, labels and weights: nothing crashes, nothing hangs."""
    run_script("""
import threading
import numpy as np
import fastnn
from fastnn.backends import _native

_native.set_work_per_thread(0)
generator = np.random.default_rng(0)
X = generator.normal(size=(3000, 8)).astype(np.float32)
labels = np.arange(3000) % 4
targets = generator.normal(size=(3000, 4)).astype(np.float32)
weight = np.ones(3000)
done = threading.Event()

def disturb():
    while not done.is_set():
        X[::7], labels[::5], targets[::3], weight[::4] = np.nan, 10**9, np.inf, np.nan
        weight[:100] = 0
        X[::7], labels[::5], targets[::3], weight[::4] = 1, 1, 1, 1
        weight[:100] = 1

other = threading.Thread(target=disturb)
other.start()
outcomes = {"trained": 0}
for i in range(60):
    for output, y in (("softmax", labels), ("identity", targets)):
        model = fastnn.MLP([8, 16, 4], output=output, seed=i)
        trainer = fastnn.Trainer(model, n_threads=1 + i % 4, clip_norm=1 if i % 2 else None)
        try:
            trainer.fit(X, y, epochs=3, sample_weight=weight)
            outcomes["trained"] += 1
        except (ValueError, fastnn.DivergenceError) as error:
            outcomes[type(error).__name__] = outcomes.get(type(error).__name__, 0) + 1
        assert np.isfinite(model.parameters).all()
done.set()
other.join()
assert sum(outcomes.values()) == 120 and len(outcomes) > 1, outcomes
""")


def test_divergence_on_many_threads_does_not_hang(run_script):
    """Parameters that overflow in the last step: every thread has to leave by the same door."""
    printed = run_script("""
import numpy as np
import fastnn
from fastnn.backends import _native

_native.set_work_per_thread(0)
X, y = np.ones((8, 3), np.float32), np.full((8, 2), 1e3, np.float32)
n = 0
for i in range(2000):
    model = fastnn.MLP([3, 2], seed=i)
    before = model.parameters.copy()
    optimizer = fastnn.SGD(3e38)
    trainer = fastnn.Trainer(model, optimizer=optimizer, batch_size=8, n_threads=2 + i % 3)
    try:
        trainer.fit(X, y, epochs=1)
    except fastnn.DivergenceError:
        n += np.array_equal(before, model.parameters)
print(n)
""")
    assert printed == "2000\n"


def test_the_free_threaded_interpreter_stays_free():  # T10
    if not hasattr(sys, "_is_gil_enabled"):
        pytest.skip("this Python has no build without the GIL")
    import sysconfig

    if not sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("this is not that build")
    assert fastnn.MLP  # imported above
    assert not sys._is_gil_enabled()
