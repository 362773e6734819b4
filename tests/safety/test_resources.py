"""Threads, memory, processor time and processor state: only for as long as a call lasts."""

import itertools
import os
import sys
import time

import numpy as np
import pytest

import fastnn
from fastnn import MLP, Trainer

_native = pytest.importorskip("fastnn.backends._native")

linux = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts in /proc")

COUNT = """
import os, threading, time
import numpy as np

def n_threads():
    return len(os.listdir("/proc/self/task"))

def wait_for(n):
    '''The kernel drops a thread that was joined a moment later.'''
    end = time.monotonic() + 2
    while n_threads() != n and time.monotonic() < end:
        time.sleep(0.001)
    return n_threads()

def most_during(call):
    '''The largest number of threads beside the watching one while the call runs.'''
    most, done = [0], threading.Event()
    def watch():
        while not done.is_set():
            most[0] = max(most[0], n_threads() - 1)
    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return most[0]
"""


# Threads -----------------------------------------------------------------------------------------


@linux
def test_no_thread_outside_a_call(run_script):  # T6
    run_script(
        COUNT
        + """
before = n_threads()
import fastnn
assert n_threads() == before
from fastnn import MLP, Perceptron, Trainer
from fastnn.backends import _native
_native.set_work_per_thread(0)
X = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
model = MLP([16, 64, 4], seed=0)
trainer = Trainer(model, n_threads=5, seed=0)
assert n_threads() == before
fit = most_during(lambda: trainer.fit(X, X[:, :4], epochs=20))
assert wait_for(before) == before
assert fit == before + 4, fit
os.environ["FASTNN_NUM_THREADS"] = "3"
predict = most_during(lambda: [model.predict(X) for _ in range(200)])
assert wait_for(before) == before
assert predict == before + 2, predict
for call in (
    lambda: trainer.fit(X * np.nan, X[:, :4], epochs=1),
    lambda: Trainer(model, optimizer=fastnn.SGD(1e30), n_threads=3).fit(X, X[:, :4], epochs=9),
    lambda: trainer.fit(X, X[:, :4], epochs=9, callbacks=[object()]),
):
    try:
        call()
    except (ValueError, TypeError, fastnn.DivergenceError):
        assert wait_for(before) == before
    else:
        raise AssertionError("no error")
Perceptron(max_epochs=5).fit(X, X > 0)
assert wait_for(before) == before
"""
    )


@linux
def test_little_work_stays_on_the_calling_thread(run_script):
    run_script(
        COUNT
        + """
from fastnn import MLP, Trainer
X = np.ones((64, 8), np.float32)
model = MLP([8, 8, 1], seed=0)
trainer = Trainer(model, n_threads=8, seed=0)
before = n_threads()
assert most_during(lambda: trainer.fit(X, X[:, :1], epochs=2000)) == before
assert most_during(lambda: [model.predict(X) for _ in range(5000)]) == before
"""
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_one_core_is_one_thread(run_script):
    run_script(
        COUNT
        + """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from fastnn import MLP, Trainer
from fastnn.threads import resolve_n_threads
assert resolve_n_threads() == 1
X = np.ones((20_000, 32), np.float32)
model = MLP([32, 64, 1], seed=0)
before = n_threads()
work = lambda: (Trainer(model, batch_size=2000).fit(X, X[:, :1], epochs=5), model.predict(X))
assert most_during(work) == before
assert resolve_n_threads(3) == 3  # asked for by name
"""
    )


def test_one_row_predictions_use_one_core():  # T2
    model = MLP([64, 128, 10], seed=0)
    x = np.ones(64, np.float32)
    model.predict(x)
    cpu, wall = time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < 0.4:
        for _ in range(200):
            model.predict(x)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert cpu <= 1.2 * wall


@linux
def test_nothing_runs_after_a_call(run_script):  # T2
    """Workers that were needed a moment ago take no processor time when idle."""
    run_script("""
import time
import numpy as np
from fastnn import MLP, Trainer
X = np.ones((20_000, 32), np.float32)
model = MLP([32, 64, 1], seed=0)
Trainer(model, batch_size=5000, n_threads=4).fit(X, X[:, :1], epochs=5)
model.predict(X)
start = time.process_time()
time.sleep(0.3)
assert time.process_time() - start < 0.03
""")


# Memory ------------------------------------------------------------------------------------------

MEMORY = """
import gc, os
import numpy as np
import fastnn
from fastnn import MLP, Perceptron, Trainer
from fastnn.backends import _native

def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def growth(call, n):
    '''Bytes by which n calls let the process grow, after some to warm up.'''
    for i in range(n // 5 + 1):
        call(i)
    before = resident_bytes()
    for i in range(n):
        call(i)
    return resident_bytes() - before

generator = np.random.default_rng(0)
X = generator.normal(size=(64, 8)).astype(np.float32)
y = X[:, :2].copy()
model = MLP([8, 16, 2], seed=0)
MOST = 1 << 20
"""


@linux
def test_predictions_keep_no_memory(run_script):  # T14
    run_script(
        MEMORY
        + """
integers = np.arange(16).reshape(2, 8)
for name, call, n in (
    ("one row", lambda i: model.predict(X[0]), 100_000),
    ("rows", lambda i: model.predict(X), 10_000),
    ("converted", lambda i: model.predict(integers), 10_000),
    ("out", lambda i: model.predict(X, out=y), 5_000),
    ("layers", lambda i: model.layer_outputs(X), 2_000),
    ("slopes", lambda i: model.input_gradient(X), 1_000),
    ("gradient", lambda i: model.loss_and_gradient(X, y), 2_000),
):
    grown = growth(call, n)
    assert grown < MOST, f"{name}: {grown} bytes"
_native.set_work_per_thread(0)
os.environ["FASTNN_NUM_THREADS"] = "3"
grown = growth(lambda i: model.predict(X), 1000)
assert grown < MOST, f"threads: {grown} bytes"
"""
    )


@linux
def test_failing_predictions_keep_no_memory(run_script):  # T14
    run_script(
        MEMORY
        + """
bad = X.copy()
bad[3, 3] = np.nan
for name, argument in (
    ("NaN", bad), ("shape", X[:, :5]), ("kind", X * 1j), ("text", "abc"), ("ragged", [[1], [2, 3]]),
    ("overflow", np.full((3, 8), 1e300)),
):
    def call(i):
        try:
            model.predict(argument)
        except (ValueError, TypeError):
            return
        raise AssertionError(name)
    grown = growth(call, 3000)
    assert grown < MOST, f"{name}: {grown} bytes"
"""
    )


@linux
def test_fits_keep_no_memory(run_script):  # T14
    run_script(
        MEMORY
        + """
class Callback:
    def on_epoch_end(self, trainer, logs):
        pass

def once(i):
    Trainer(MLP([8, 16, 2], dropout=0.1, seed=i), seed=i, clip_norm=1).fit(X, y, epochs=2)

def watched(i):
    trainer = Trainer(MLP([8, 16, 2], seed=i), seed=i)
    trainer.fit(X, y, epochs=2, callbacks=[Callback()], validation_data=(X, y))

one = Trainer(model, seed=0)

def same(i):
    one.fit(X, y, epochs=1)

def shapes(i):  # each plan is another one: a cache of plans has to be bounded
    MLP([8, 1 + i % 700, 2], seed=0).predict(X)

_native.set_work_per_thread(0)
for name, call, n in (
    ("fits", once, 1000), ("watched", watched, 500), ("one trainer", same, 1000),
    ("shapes", shapes, 1400),
    ("threads", lambda i: Trainer(model, n_threads=3).fit(X, y, epochs=1), 300),
    ("perceptron", lambda i: Perceptron(max_epochs=3).fit(X, X[:, 0] > 0), 1000),
):
    grown = growth(call, n)
    assert grown < MOST, f"{name}: {grown} bytes"
"""
    )


@linux
def test_failing_fits_keep_no_memory(run_script):  # T14
    run_script(
        MEMORY
        + """
class Fault(Exception):
    pass

class Failing:
    def on_epoch_end(self, trainer, logs):
        raise Fault(np.ones(1000))

bad = X.copy()
bad[3, 3] = np.inf
diverging = dict(optimizer=fastnn.SGD(1e38), seed=0)
for name, error, settings, arguments in (
    ("diverging", fastnn.DivergenceError, diverging, dict(X=X, y=y, epochs=3)),
    ("callback", Fault, {}, dict(X=X, y=y, epochs=3, callbacks=[Failing()])),
    ("rows", ValueError, {}, dict(X=bad, y=y, epochs=1)),
    ("targets", ValueError, {}, dict(X=X, y=bad[:, 2:4], epochs=1)),
    ("weights", ValueError, {}, dict(X=X, y=y, epochs=1, sample_weight=-np.ones(64))),
):
    def call(i):
        try:
            Trainer(MLP([8, 16, 2], seed=i), **settings).fit(**arguments)
        except error:
            return
        raise AssertionError(name)
    grown = growth(call, 1000)
    assert grown < MOST, f"{name}: {grown} bytes"
"""
    )


@linux
def test_a_leak_would_be_seen(run_script):
    with pytest.raises(AssertionError, match="leak"):
        run_script(
            MEMORY
            + """
kept = []
grown = growth(lambda i: kept.append(model.predict(X).tobytes()), 10_000)
assert grown < MOST, f"leak: {grown} bytes"
"""
        )


@linux
def test_memory_beside_the_data_does_not_grow_with_them(run_script):
    """Law 5: a full batch of many rows, of another type, needs no copy of them (case A5)."""
    run_script("""
import resource
import numpy as np
from fastnn import MLP, Trainer
n = 1_000_000
X = np.ones((n, 32), np.float64)  # 256 MB, converted on the way
y = np.zeros((n, 1), np.float32)
model = MLP([32, 8, 1], seed=0)
trainer = Trainer(model, batch_size="full", n_threads=2)
trainer.fit(X[:1000], y[:1000], epochs=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
trainer.fit(X, y, epochs=1)
trainer.evaluate(X, y)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert grown < 16e6, grown
""")


# Allocations that fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[10**6, 10**7, 1], [10**9, 10**9], [2**62, 2**62]])
def test_a_model_too_large_says_its_size(sizes):  # B11
    n_bytes = 4 * sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    with pytest.raises(MemoryError, match=str(n_bytes)):
        MLP(sizes)
    assert MLP([3, 2], seed=0).predict(np.ones((1, 3))).shape == (1, 2)


@linux
def test_no_memory_left_for_the_workspace(run_script):
    """Every call says so, changes nothing, and works again with less to do."""
    run_script("""
import os, resource
import numpy as np
from fastnn import MLP, Trainer
X = np.ones((2000, 4), np.float32)
model = MLP([4, 30_000, 1], seed=0)
trainer = Trainer(model, optimizer="sgd", batch_size="full", seed=0, n_threads=1)
fitting = Trainer(model.copy(), optimizer="sgd", batch_size=4, seed=0, n_threads=1)
model.predict(X[:1])
before = model.parameters.copy()
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (10 << 20), limits[1]))
n = 0
for call in (
    lambda: model.predict(X),
    lambda: model.layer_outputs(X),
    lambda: model.input_gradient(X),
    lambda: model.loss_and_gradient(X, X[:, :1]),
    lambda: trainer.fit(X, X[:, :1], epochs=1),
    lambda: trainer.step(X, X[:, :1]),
    lambda: trainer.evaluate(X, X[:, :1]),
):
    for _ in range(3):
        try:
            call()
        except MemoryError as error:
            assert str(error), "no message"
            n += 1
assert n == 21, n
assert np.array_equal(model.parameters, before) and trainer.n_steps == 0
assert model.predict(X[:2]).shape == (2, 1)
fitting.fit(X[:8], X[:8, :1], epochs=1)  # a small batch still fits
resource.setrlimit(resource.RLIMIT_AS, limits)
trainer.fit(X, X[:, :1], epochs=1)
assert trainer.n_steps == 1
""")


@linux
def test_fewer_threads_than_asked_for(run_script):
    """Where the system grants no more threads, the ones that started do the work: same bits."""
    run_script(
        COUNT
        + """
import resource
from fastnn import MLP, Trainer
from fastnn.backends import _native
_native.set_work_per_thread(0)
X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)

def train():
    model = MLP([8, 16, 2], seed=0)
    Trainer(model, n_threads=60, seed=0).fit(X, X[:, :2], epochs=2)
    return model.parameters.tobytes()

expected, limits = train(), resource.getrlimit(resource.RLIMIT_AS)
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + (50 << 20), limits[1]))
counts = []
threading.stack_size(1 << 20)
most = most_during(lambda: counts.append(train()))
assert counts == [expected]
assert most < 40, most
"""
    )


# Time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
def test_late_epochs_cost_what_early_ones_did(watched):  # T15
    X = np.ones((64, 8), np.float32)
    ratios = []
    for _ in range(3):  # a busy machine may spoil one
        trainer = Trainer(MLP([8, 8, 1], seed=0), seed=0, n_threads=1)
        clock = Clock()
        if watched:
            validation = (X[:9], X[:9, :1])
            trainer.fit(X, X[:, :1], epochs=2050, callbacks=[clock], validation_data=validation)
        else:
            for _ in range(2050):
                trainer.fit(X, X[:, :1], epochs=1)
                clock.on_epoch_end(trainer, {})
        assert len(clock.times) == len(trainer.history) == 2050
        seconds = np.diff(clock.times)
        ratios.append(np.median(seconds[1980:2045]) / np.median(seconds[10:60]))
        if ratios[-1] <= 1.5:
            return
    pytest.fail(f"late epochs took {ratios} times as long as early ones")


class Clock:
    """Processor time of this thread at the end of every epoch."""

    def __init__(self):
        self.times = []

    def on_epoch_end(self, trainer, logs):
        self.times.append(time.thread_time())


# State of the processor --------------------------------------------------------------------------


def control_bits():
    """Rounding, masks, flush-to-zero and denormals-are-zero of this thread (x86's MXCSR)."""
    import ctypes
    import ctypes.util

    environment = (ctypes.c_uint32 * 16)()
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    assert libm.fegetenv(ctypes.byref(environment)) == 0
    return environment[7] & ~0x3F  # without the flags of what happened so far


@pytest.mark.skipif(
    not (sys.platform == "linux" and os.uname().machine == "x86_64"),
    reason="looks into glibc's x86-64 environment",
)
def test_state_of_the_processor_is_left_alone():
    before = control_bits()
    assert before & 0x1F80 == 0x1F80  # all exceptions masked: it is that word
    X = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    model = MLP([8, 16, 2], activation="gelu", output="softmax", seed=0)
    work = _native.set_work_per_thread(0)
    try:
        Trainer(model, n_threads=3, clip_norm=1).fit(X, np.arange(300) % 2, epochs=2)
        model.predict(X)
        model.input_gradient(X)
        fastnn.Perceptron(max_epochs=3).fit(X, X[:, :3] > 0)
        with pytest.raises(fastnn.DivergenceError):
            Trainer(MLP([8, 2]), optimizer=fastnn.SGD(1e38)).fit(X, X[:, :2], epochs=9)
    finally:
        _native.set_work_per_thread(work)
    assert control_bits() == before


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_subnormal_numbers_survive(dtype):
    """Nothing is flushed to zero: neither what comes in nor what goes out."""
    tiny = np.finfo(dtype).smallest_subnormal
    model = MLP([1, 1], dtype=dtype)
    model.parameters[:] = 1, 0
    X = np.array([[3], [-5], [1000]], dtype) * tiny
    for threads in (1, 3):
        before = _native.set_work_per_thread(0 if threads > 1 else 1e6)
        try:
            assert np.array_equal(model.predict(X), X)
        finally:
            _native.set_work_per_thread(before)
    assert (X != 0).all()
    assert X[0, 0] * np.array(0.5, dtype) != 0  # NumPy's arithmetic has them still
