"""Ctrl-C ends every long call within 0.2 s, at a whole step (case T12); so does `Trainer.stop`.

A child process runs the calls; this one sends it real signals. Both read the same clock. The
machine may be busy, so one of a few attempts has to be quick; all have to be right.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from fastnn import MLP, Trainer

pytest.importorskip("fastnn.backends._native")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")

SECONDS = 0.2
SECONDS_ON_A_BUSY_MACHINE = 2.0

CHILD = """
import json, signal, sys, threading, time
import numpy as np
import fastnn
from fastnn import LBFGS, MLP, Perceptron, Trainer, rng, train_many
from fastnn.backends import _native

# a shell may have started us with signals ignored
signal.signal(signal.SIGINT, signal.default_int_handler)
generator = np.random.default_rng(0)
EVER = 10**9

def check_step(trainer, start, X, y):
    '''The parameters are exactly those after n_steps whole steps.'''
    n = len(X)
    size = n if trainer._batch_size == "full" else trainer._batch_size
    per_epoch = -(-n // size)
    done = trainer.epoch * per_epoch
    assert 0 <= trainer.n_steps - done <= per_epoch, (trainer.n_steps, trainer.epoch)
    assert len(trainer.history) == trainer.epoch
    twin = Trainer(start, optimizer="adam", batch_size=trainer._batch_size,
                   clip_norm=trainer._clip_norm, seed=trainer.seed, n_threads=2)
    twin.fit(X, y, epochs=trainer.epoch)
    order = rng.permutation(n, trainer.seed, trainer.epoch) if size < n else np.arange(n)
    for b in range(trainer.n_steps - done):
        rows = order[b * size : (b + 1) * size]
        twin.step(X[rows], y[rows])
    assert np.isfinite(trainer.model.parameters).all()
    assert trainer.n_steps == twin.n_steps
    assert np.array_equal(trainer.model.parameters, twin.model.parameters)
    assert np.array_equal(trainer._slots, twin._slots)
    assert trainer._counters == twin._counters
    return trainer.n_steps

def fitting(sizes, n, callbacks=(), **settings):
    X = generator.normal(size=(n, sizes[0])).astype(np.float32)
    y = generator.normal(size=(n, sizes[-1])).astype(np.float32)
    model = MLP(sizes, activation="tanh", seed=1)
    start = model.copy()
    trainer = Trainer(model, optimizer="adam", seed=2, **settings)
    return (lambda: trainer.fit(X, y, epochs=EVER, callbacks=callbacks),
            lambda: check_step(trainer, start, X, y),
            lambda: not np.array_equal(model.parameters, start.parameters))

class Idle:
    def on_epoch_end(self, trainer, logs):
        pass

WIDE = [64, 1024, 1024, 8]
ROWS = 100_000

def reading(name):
    model = MLP(WIDE, seed=1)
    X = generator.normal(size=(ROWS, 64)).astype(np.float32)
    y = np.zeros((ROWS, 8), np.float32)
    before = model.parameters.copy()
    call = {
        "predict": lambda: model.predict(X),
        "input_gradient": lambda: model.input_gradient(X[:40_000]),
        "evaluate": lambda: Trainer(model).evaluate(X, y),
        "loss_and_gradient": lambda: model.loss_and_gradient(X, y),
    }[name]
    return call, lambda: int(not np.array_equal(model.parameters, before))

def perceptron(n, n_features, n_outputs=1):
    unit = Perceptron(max_epochs=10**7, shuffle=True, seed=0)
    unit.fit([[0.0], [1.0]], [0, 1])
    weights = unit.weights.copy()
    X, t = generator.normal(size=(n, n_features)), generator.integers(0, 2, (n, n_outputs))

    def check():
        assert np.array_equal(unit.weights, weights) and unit.converged_
        return 0

    return lambda: unit.fit(X, t), check

def lbfgs():
    X = generator.normal(size=(60_000, 64)).astype(np.float32)
    model = MLP([64, 128, 3], activation="tanh", output="softmax", seed=1)
    trainer = Trainer(model, optimizer=LBFGS(), seed=0)
    call = lambda: trainer.fit(X, generator.integers(0, 3, len(X)), epochs=EVER)

    def check():
        assert np.isfinite(model.parameters).all() and trainer.epoch == len(trainer.history)
        return trainer.epoch

    return call, check

def many():
    X = generator.normal(size=(500, 32)).astype(np.float32)
    y = generator.normal(size=(500, 10)).astype(np.float32)
    starts = [MLP([32, 64, 10], activation="tanh", seed=s) for s in range(5)]
    trainers = [Trainer(start.copy(), seed=2) for start in starts]

    def check():
        steps = [check_step(*pair, X, y) for pair in zip(trainers, starts)]
        assert sum(n > 0 for n in steps) == 3, steps  # the rest was not begun
        return max(steps)

    def moved():
        pairs = zip(trainers, starts)
        return sum(not np.array_equal(t.model.parameters, s.parameters) for t, s in pairs) == 3

    return lambda: train_many(trainers, X, y, epochs=EVER, n_threads=3), check, moved

def many_lbfgs():
    X = generator.normal(size=(20_000, 64)).astype(np.float32)
    y = generator.integers(0, 3, len(X))
    models = [MLP([64, 128, 3], activation="tanh", output="softmax", seed=s) for s in range(3)]
    trainers = [Trainer(model, optimizer=LBFGS(), seed=0) for model in models]

    def check():
        assert all(trainer.epoch == len(trainer.history) for trainer in trainers)
        assert all(np.isfinite(trainer.model.parameters).all() for trainer in trainers)
        return trainers[0].epoch

    return lambda: train_many(trainers, X, y, epochs=EVER, n_threads=2), check

CASES = {
    "fit, tiny steps": lambda: fitting([2, 4, 1], 50, batch_size=1, n_threads=1),
    "fit, mini-batches": lambda: fitting([32, 64, 10], 2000, n_threads=2),
    "fit, watched": lambda: fitting([4, 8, 1], 100, callbacks=[Idle()]),
    "fit, full batch": lambda: fitting([64, 256, 10], 150_000, batch_size="full", n_threads=1),
    "fit, full batch, 3 threads": lambda: fitting([64, 256, 10], 150_000, batch_size="full",
                                                  n_threads=3),
    "fit, full batch, clipped": lambda: fitting([64, 256, 10], 100_000, batch_size="full",
                                                n_threads=2, clip_norm=0.1),
    "fit, large model": lambda: fitting([512, 1024, 256], 4000, batch_size=64, n_threads=2),
    "predict": lambda: reading("predict"),
    "input_gradient": lambda: reading("input_gradient"),
    "evaluate": lambda: reading("evaluate"),
    "loss_and_gradient": lambda: reading("loss_and_gradient"),
    "perceptron": lambda: perceptron(2000, 50),
    "perceptron, long epochs": lambda: perceptron(200_000, 40),
    "perceptron, threads": lambda: perceptron(200_000, 40, 7),
    "lbfgs": lambda: lbfgs(),
    "many": lambda: many(),
    "many, lbfgs": lambda: many_lbfgs(),
}

def go(moved=lambda: True):
    while not moved():
        time.sleep(0.001)
    print("go", flush=True)

for line in sys.stdin:
    call, check, *moved = CASES[line.strip()]()
    # a training says when it is under way: on a busy machine nobody knows when that will be
    threading.Thread(target=go, args=moved, daemon=True).start()
    answer = {}
    try:
        call()
        answer["error"] = "the call ended by itself"
    except KeyboardInterrupt:
        answer["time"] = time.monotonic()
    try:
        answer["steps"] = check()
        # nothing of the interrupt is left over
        assert MLP([3, 2], seed=0).predict(np.ones((5, 3))).shape == (5, 2)
    except BaseException as error:
        answer["error"] = repr(error)
    print(json.dumps(answer), flush=True)
"""

CASES = re.findall(r'^    "(.+?)": lambda', CHILD.split("CASES = {")[1], re.MULTILINE)


class Child:
    """The process that works, and its end of the conversation."""

    def __init__(self, environment, folder, n_threads=None):
        if n_threads:
            environment = {**environment, "FASTNN_NUM_THREADS": str(n_threads)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def interrupt(self, case, delay):
        """(seconds that the signal took, steps done) of one interrupted call."""
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        try:
            print(case, file=self.process.stdin, flush=True)
            assert self.process.stdout.readline() == "go\n", "the child died"
            time.sleep(delay)
            sent = time.monotonic()
            self.process.send_signal(signal.SIGINT)
            answer = json.loads(self.process.stdout.readline() or '{"error": "no answer"}')
        finally:
            watchdog.cancel()
        assert "error" not in answer, answer["error"]
        assert answer["time"] > sent
        return answer["time"] - sent, answer["steps"]

    def close(self):
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def child(clean_environment, tmp_path_factory):
    child = Child(clean_environment, tmp_path_factory.mktemp("interrupts"))
    yield child
    child.close()


def check_interrupts(child, case):
    seconds, steps = [], []
    for delay in (0.15, 0.31, 0.08, 0.43, 0.25):
        latency, n_steps = child.interrupt(case, delay)
        seconds.append(latency)
        steps.append(n_steps)
        assert latency < SECONDS_ON_A_BUSY_MACHINE, f"{case}: took {latency:.2f} s"
        if len(seconds) > 1 and min(seconds) < SECONDS:
            break
    assert min(seconds) < SECONDS, f"{case}: took {seconds}"
    return steps


@pytest.mark.parametrize("case", CASES)
def test_ctrl_c(child, case):  # T12
    steps = check_interrupts(child, case)
    if case in ("fit, tiny steps", "fit, mini-batches", "fit, watched", "fit, large model", "many"):
        assert max(steps) > 0  # it was in the middle of something
    elif not case.startswith(("fit", "lbfgs", "many")):
        assert steps == [0] * len(steps)  # the model is as it was


def test_ctrl_c_with_many_threads(clean_environment, tmp_path):  # T12
    child = Child(clean_environment, tmp_path, n_threads=16)
    try:
        for case in ("predict", "evaluate"):
            check_interrupts(child, case)
    finally:
        child.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="looks for threads in /proc")
def test_ctrl_c_while_another_thread_lags(run_script):  # T12
    """The calling thread is done early, as the other one gets no processor: it still listens."""
    run_script(
        """
import os, signal, threading, time
import numpy as np
from fastnn import MLP

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
signal.signal(signal.SIGINT, signal.default_int_handler)
model = MLP([64, 1024, 1024, 8], seed=1)
X = np.ones((3000, 64), np.float32)
model.predict(X)  # warm
start = time.perf_counter()
model.predict(X)
seconds = time.perf_counter() - start
X = np.ones((int(3000 * 3.0 / seconds), 64), np.float32)  # 3 s of work: 1.5 for each thread
before = set(os.listdir("/proc/self/task"))
sent = []

def disturb():
    new = set()
    mine = str(threading.get_native_id())
    while not new:
        new = set(os.listdir("/proc/self/task")) - before - {mine}
    for thread in new:  # the worker gets a sixtieth of what the calling thread gets
        os.setpriority(os.PRIO_PROCESS, int(thread), 19)
    time.sleep(1.8)
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=disturb).start()
try:
    model.predict(X)
except KeyboardInterrupt:
    now = time.monotonic()
    assert now - sent[0] < 0.5, now - sent[0]
else:
    raise AssertionError("it ended by itself")
""",
        FASTNN_NUM_THREADS="2",
    )


def test_a_handler_of_the_user(run_script):  # T12
    """Whatever a signal handler raises comes out of the call, once, and is not kept."""
    run_script("""
import gc, os, signal, threading, time, weakref
import numpy as np
from fastnn import MLP, Trainer, train_many

class Alarm(Exception):
    pass

alarms = []

def handler(signum, frame):
    alarm = Alarm("now")
    alarms.append(weakref.ref(alarm))
    raise alarm

signal.signal(signal.SIGALRM, handler)
X = np.ones((3000, 16), np.float32)
big = np.ones((100_000, 64), np.float32)
model, wide = MLP([16, 32, 2], seed=0), MLP([64, 1024, 1024, 8], seed=0)
trainer = Trainer(model, seed=0)
many = [Trainer(MLP([16, 32, 2], seed=s), seed=s) for s in range(3)]
for call in (
    lambda: trainer.fit(X, X[:, :2], epochs=10**9),
    lambda: train_many(many, X, X[:, :2], epochs=10**9, n_threads=2),
    lambda: wide.predict(big),
    lambda: Trainer(wide).evaluate(big, big[:, :8]),
):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    start = time.monotonic()
    try:
        call()
    except Alarm as error:
        assert str(error) == "now"
        assert time.monotonic() - start < 2.1
    else:
        raise AssertionError("the call ended")
    trainer.fit(X, X[:, :2], epochs=1)  # nothing left over
    model.predict(X)
gc.collect()
assert len(alarms) == 4 and not any(alarm() for alarm in alarms), "exceptions are kept"
""")


def test_signals_that_raise_nothing_change_nothing(run_script):
    """A handler that only counts: the training goes on, with the same bits."""
    run_script("""
import signal
import numpy as np
from fastnn import MLP, Trainer

def train():
    X = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)
    model = MLP([16, 64, 2], seed=0)
    Trainer(model, seed=0, n_threads=2).fit(X, X[:, :2], epochs=60)
    return model.parameters.tobytes()

quiet = train()
count = 0

def handler(signum, frame):
    global count
    count += 1

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.005, 0.005)
noisy = train()
signal.setitimer(signal.ITIMER_REAL, 0)
assert noisy == quiet
assert count > 0
""")


@pytest.mark.parametrize("batch_size", [8, "full"])
def test_stop_from_another_thread(batch_size):
    """`stop` also ends a step of many rows, before its update."""
    n = 120_000 if batch_size == "full" else 2000
    X = np.random.default_rng(0).normal(size=(n, 64)).astype(np.float32)
    model = MLP([64, 256, 4], seed=0)
    before = model.copy()
    trainer = Trainer(model, batch_size=batch_size, seed=1, n_threads=2)
    runner = threading.Thread(target=trainer.fit, args=(X, X[:, :4]), kwargs={"epochs": 10**9})
    runner.start()
    time.sleep(0.1)
    asked = time.monotonic()
    while runner.is_alive():
        trainer.stop()  # again, should it have come before the training began
        runner.join(0.05)
        assert time.monotonic() - asked < SECONDS_ON_A_BUSY_MACHINE
    assert np.isfinite(model.parameters).all()
    if batch_size == "full":
        twin = Trainer(before, batch_size="full", seed=1, n_threads=2)
        twin.fit(X, X[:, :4], epochs=trainer.n_steps)
        assert np.array_equal(model.parameters, before.parameters)
        assert trainer.n_steps == trainer.epoch
