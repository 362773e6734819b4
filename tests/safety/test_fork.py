"""fork before, during and after training; processes of every kind (cases T3, T4, T5, T6)."""

import multiprocessing
import os

import pytest

pytest.importorskip("fastnn.backends._native")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

COMMON = """
import hashlib, os, signal, sys, threading, time, traceback
import numpy as np
import fastnn
from fastnn.backends import _native

_native.set_work_per_thread(0)  # threads for the smallest work

def work(n_threads=3):
    '''A training and a prediction that use threads, as a hash.'''
    X = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
    model = fastnn.MLP([12, 16, 3], output="softmax", dropout=0.1, seed=1)
    trainer = fastnn.Trainer(model, n_threads=n_threads, seed=2)
    trainer.fit(X, np.arange(300) % 3, epochs=3)
    return hashlib.sha256(model.parameters.tobytes() + model.predict(X).tobytes()).hexdigest()

def in_child(task, *arguments, seconds=10.0):
    '''Run in a forked process, which has to end well within 10 seconds.'''
    pid = os.fork()
    if pid == 0:
        try:
            task(*arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"the child ended with {status}"
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child did not end in time")

def same(expected, n_threads=3):
    assert work(n_threads) == expected
"""


def test_fork_before_and_after_training(run_script):  # T3
    run_script(
        COMMON
        + """
reading, writing = os.pipe()
in_child(lambda: os.write(writing, work().encode()))  # before anything ran here
first = os.read(reading, 100).decode()
assert len(first) == 64
assert work() == first
for n_threads in (1, 2, 8):
    in_child(same, first, n_threads)
in_child(lambda: in_child(same, first))  # and a child of the child
assert work() == first
""",
        timeout=60,
    )


def test_fork_during_training(run_script):  # T3, T6
    run_script(
        COMMON
        + """
expected = work()
X = np.random.default_rng(0).normal(size=(2000, 12)).astype(np.float32)
trainer = fastnn.Trainer(fastnn.MLP([12, 32, 2], seed=0), n_threads=4, seed=0)
runner = threading.Thread(target=trainer.fit, args=(X, X[:, :2]), kwargs={"epochs": 10**9})
runner.start()

def child():
    same(expected)
    # the model that the parent was training: whatever stands in it, it must be usable
    assert trainer.model.predict(X).shape == (2000, 2)
    fastnn.Trainer(trainer.model.copy(), n_threads=2).fit(X, X[:, :2], epochs=1)
    trainer.fit(X, X[:, :2], epochs=1)

while trainer.n_steps == 0:
    time.sleep(0.001)
for i in range(12):
    time.sleep(0.003 * i)
    in_child(child)
assert runner.is_alive()
before = trainer.n_steps
while trainer.n_steps == before:  # the parent goes on
    time.sleep(0.001)
trainer.stop()
runner.join(10)
assert not runner.is_alive()
assert np.isfinite(trainer.model.parameters).all()
""",
        timeout=150,
    )


def test_fork_during_predictions(run_script):  # T3
    run_script(
        COMMON
        + """
expected = work()
X = np.ones((4000, 12), np.float32)
model = fastnn.MLP([12, 64, 2], seed=0)
alone = model.predict(X).tobytes()
stop = threading.Event()
wrong = []

def predict():
    while not stop.is_set():
        if model.predict(X).tobytes() != alone:
            wrong.append(1)

def child():
    same(expected)
    assert model.predict(X).tobytes() == alone

runner = threading.Thread(target=predict)
runner.start()
for i in range(8):
    time.sleep(0.002 * i)
    in_child(child)
stop.set()
runner.join(10)
assert not runner.is_alive() and not wrong
""",
        timeout=100,
        FASTNN_NUM_THREADS="4",
    )


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_multiprocessing(run_script, method):  # T4
    run_script(
        COMMON
        + """
import multiprocessing

def trained(trainer):
    '''A trainer that travelled through a pickle continues with the same bits.'''
    X = np.random.default_rng(5).normal(size=(50, 4))
    trainer.fit(X, X[:, :1], epochs=2)
    return trainer.model.parameters.tobytes()

if __name__ == "__main__":
    expected = work()
    trainer = fastnn.Trainer(fastnn.MLP([4, 5, 1], dropout=0.2, seed=0), n_threads=2, seed=0)
    trained(trainer)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        jobs = [pool.apply_async(work, (n,)) for n in (1, 2, 3, 8)]
        copy = pool.apply_async(trained, (trainer,))
        assert [job.get(timeout=40) for job in jobs] == [expected] * 4
        assert copy.get(timeout=40) == trained(trainer)
""",
        method,
        timeout=100,
    )


@pytest.mark.parametrize("kind", ["threading", "loky"])
def test_joblib(run_script, kind):  # T5
    pytest.importorskip("joblib")
    run_script(
        COMMON
        + """
import joblib

if __name__ == "__main__":
    expected = work()
    jobs = (joblib.delayed(work)(n) for n in (1, 2, 3, 8))
    with joblib.parallel_config(sys.argv[1], n_jobs=2):
        assert joblib.Parallel()(jobs) == [expected] * 4
""",
        kind,
        timeout=100,
    )


def test_a_child_that_hangs_is_noticed(run_script):
    """The helper above can fail."""
    with pytest.raises(AssertionError, match="did not end in time"):
        run_script(COMMON + "\nin_child(time.sleep, 60, seconds=0.2)\n")
