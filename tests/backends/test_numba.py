"""The Numba backend: the native bits where it promises them, any X, Ctrl-C, no extension."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import fastnn
from fastnn import rng
from fastnn.backends import get_backend
from fastnn.backends.base import TrainJob
from fastnn.plan import Plan
from fastnn.tables import activations
from fastnn.tables.activations import ACTIVATIONS, ActivationRow
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import SGD, Adam

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
NUMBA = get_backend("numba")
_native = pytest.importorskip("fastnn.backends._native")
NATIVE = get_backend("native")

from fastnn.backends.numba_cpu.functions import HAS_FMA  # noqa: E402

# Both round a * b + c once, or both twice.
same_fma = pytest.mark.skipif(
    (_native.isa() != "baseline") != HAS_FMA, reason="another rounding of a * b + c"
)
# Formulas of csrc with a fused multiply-add that a formula for one number cannot ask for.
OWN_FMA = {"gelu", "silu", "mish"}


def make(sizes, dtype=np.float64, activation="tanh", output="identity", dropout=0.0, seed=0):
    n_hidden = len(sizes) - 2
    plan = Plan(sizes, dtype, (activation,) * n_hidden, output, (dropout,) * n_hidden)
    parameters = np.random.default_rng(seed).normal(size=plan.n_parameters) * 0.4
    return plan, parameters.astype(dtype)


def targets(loss, n, n_outputs, dtype):
    random = np.random.default_rng(5)
    kind = LOSSES[loss].target_kind
    if kind == "classes":
        return random.integers(0, n_outputs, n)
    y = random.normal(size=(n, n_outputs))
    y = {"sign": np.where(y > 0, 1.0, -1.0), "unit": (y > 0) * 1.0}.get(kind, np.abs(y))
    return y.astype(dtype)


def bits(*arrays):
    return [np.asarray(array).tobytes() for array in arrays]


# Bits ---------------------------------------------------------------------------------------------


@same_fma
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fan_out", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 130])
def test_products_are_the_native_bits(dtype, fan_out):
    """Every width of tile, rows that leave some over, and more than one block to add up."""
    random = np.random.default_rng(fan_out)
    for n, fan_in in [(1, 1), (2, 300), (3, 5), (4, 256), (7, 257), (13, 600)]:
        plan, parameters = make((fan_in, fan_out, 3), dtype, "identity")
        X = random.normal(size=(n, fan_in)).astype(dtype)
        got = NUMBA.layer_outputs(plan, parameters, X, 1)
        assert bits(*got) == bits(*NATIVE.layer_outputs(plan, parameters, X, 1))
        assert len(np.unique(got[0])) == n * fan_out


@same_fma
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_native_bits(name):
    plan, parameters = make((3, 40), output=name)
    scale = np.array([[1e-3], [1.0], [10.0], [1e3], [1e6]])
    X = np.random.default_rng(1).normal(size=(5, 3)) * scale
    got = NUMBA.layer_outputs(plan, parameters, X, 1)
    assert bits(*got) == bits(*NATIVE.layer_outputs(plan, parameters, X, 1))


@same_fma
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_the_native_bits(loss):
    """More rows than a chunk, rows without weight, hard targets."""
    n, row = 300, LOSSES[loss]
    plan, parameters = make((4, 6, 5), np.float64, "tanh", row.natural_output)
    X = np.random.default_rng(2).normal(size=(n, 4))
    weight = np.random.default_rng(3).integers(0, 3, n).astype(float)
    y = targets(loss, n, 5, np.float64)
    arguments = (plan, parameters, X, y, weight, row, 0.1, 1)
    assert bits(*NUMBA.loss_and_gradient(*arguments)) == bits(*NATIVE.loss_and_gradient(*arguments))
    got = NUMBA.input_gradient(plan, parameters, X[:20], 1)
    assert bits(got) == bits(NATIVE.input_gradient(plan, parameters, X[:20], 1))


def trained(backend, plan, parameters, optimizer, **settings):
    n, n_epochs, batch_size = 70, 3, settings.pop("batch_size", 16)
    X = np.random.default_rng(4).normal(size=(n, plan.n_features)).astype(plan.dtype)
    steps = n_epochs * -(-n // batch_size)
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), np.full(steps, 0.05))
    job = TrainJob(
        X,
        targets("cross_entropy", n, plan.n_outputs, plan.dtype),
        np.random.default_rng(6).uniform(size=n),
        LOSSES["cross_entropy"],
        optimizer,
        scalars,
        np.array([rng.permutation(n, 9, epoch) for epoch in range(n_epochs)]),
        batch_size,
        n_epochs,
        dropout_seed=2**63 + 1,
        first_epoch=3,
        **settings,
    )
    parameters = parameters.copy()
    slots = np.zeros((optimizer.n_slots, plan.n_parameters), plan.dtype)
    result = backend.train(plan, parameters, slots, job)
    assert result.status == "done"
    return parameters, slots, result.losses


@same_fma
@pytest.mark.parametrize("settings", [{}, {"l2": 0.1, "clip_norm": 0.5}], ids=["plain", "clipped"])
def test_training_by_sgd_is_the_native_bits(settings):
    plan, parameters = make((5, 17, 4), np.float64, "tanh", "softmax", dropout=0.3)
    results = [trained(b, plan, parameters, SGD(), **settings) for b in (NUMBA, NATIVE)]
    assert bits(*results[0]) == bits(*results[1])
    assert not np.allclose(results[0][0], parameters)


def test_training_by_adam_is_within_rounding():
    plan, parameters = make((5, 17, 4), np.float64, "silu", "softmax", dropout=0.3)
    results = [trained(b, plan, parameters, Adam()) for b in (NUMBA, NATIVE)]
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 1001])
def test_orders(n):
    order = np.empty(n, np.int64)
    NUMBA.fill_permutation(order, 2**64 - 3, 5)
    np.testing.assert_array_equal(order, rng.permutation(n, 2**64 - 3, 5))


# X in place ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"],
)
def test_any_kind_of_number(dtype):
    plan, parameters = make((6, 3))
    X = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, (20, 6)).astype(dtype)
    out = np.empty((20, 3))
    NUMBA.predict(plan, parameters, X, out, 1)
    (W,), (b,) = plan.views(parameters)
    np.testing.assert_allclose(out, X.astype(float) @ W + b, rtol=1e-12, atol=1e-12)


def test_any_strides_and_read_only():
    plan, parameters = make((4, 3))
    base = np.random.default_rng(0).normal(size=(40, 9))
    record = np.zeros(20, [("pad", "u1"), ("x", "f8", (4,))])  # 33 bytes from row to row
    record["x"] = base[:20, :4]
    views = [
        base[::-2, 1:8:2],
        np.asfortranarray(base[:, :4]),
        np.broadcast_to(base[0, :4], (5, 4)),
        base[:, 7:3:-1],
        record["x"].copy(),
        base[:0, :4],
    ]
    for X in views:
        X = X.view()
        X.flags.writeable = False
        out, expected = np.full((len(X), 3), np.nan), np.empty((len(X), 3))
        NUMBA.predict(plan, parameters, X, out, 1)
        NUMBA.predict(plan, parameters, np.ascontiguousarray(X), expected, 1)
        assert bits(out) == bits(expected)
        (W,), (b,) = plan.views(parameters)
        np.testing.assert_allclose(out, X @ W + b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["native", "numba"])
@pytest.mark.parametrize("optimizer", [SGD(momentum=0.5), Adam(beta1=0.5, beta2=0.6)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_subnormal_number_stays(optimizer, dtype, backend):
    """Columns that become zero: their weights' momentum shrinks to nothing."""
    X = np.random.default_rng(0).normal(size=(64, 6))
    model = fastnn.MLP([6, 8, 2], dtype=dtype, seed=0, backend=backend)
    trainer = fastnn.Trainer(model, optimizer=optimizer, seed=0, batch_size=16)
    trainer.fit(X, X[:, :2], epochs=1)
    trainer.fit(X * [1, 1, 1, 0, 0, 0], X[:, :2], epochs=400)
    momentum = trainer._slots[0][: 6 * 8].reshape(6, 8)
    assert momentum[:3].any()
    assert not momentum[3:].any()
    for a in (trainer._slots, model.parameters):
        assert (np.abs(a[a != 0]) >= np.finfo(dtype).smallest_normal).all()


# While it runs ------------------------------------------------------------------------------------


def long_training(model, **settings):
    X = np.random.default_rng(0).normal(size=(20_000, 30))
    trainer = fastnn.Trainer(model, seed=0, batch_size=128, **settings)
    return trainer, X, X[:, :2] ** 2


def test_another_thread_runs_and_stops_it(monkeypatch, stop_once_it_trains):
    """Within one call of compiled code: where that held the GIL, nobody could set the flag."""
    from fastnn.backends.numba_cpu import backend as numba_cpu

    class Pacer(numba_cpu._Pacer):
        def start(self):
            return 10**12

    model = fastnn.MLP([30, 64, 2], dtype="float64", seed=0, backend="numba")
    trainer, X, y = long_training(model)
    trainer.fit(X[:200], y[:200], epochs=1)  # compiles
    results = []
    train = NUMBA.train

    def recorded(_, *arguments):
        results.append(train(*arguments))
        return results[-1]

    monkeypatch.setattr(numba_cpu, "_Pacer", Pacer)
    monkeypatch.setattr(type(NUMBA), "train", recorded)
    thread = stop_once_it_trains(trainer, 0)
    history = trainer.fit(X, y, epochs=100_000)
    thread.join()
    # A flag that could only be set between two calls would end the second before its first step.
    assert results[-1].status == "stopped"
    assert results[-1].steps_done > 0
    assert len(history.loss) < 100_000


def test_ctrl_c():
    model = fastnn.MLP([30, 64, 2], dtype="float64", seed=0, backend="numba")
    trainer, X, y = long_training(model)
    trainer.fit(X[:200], y[:200], epochs=1)
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    def fit():
        threading.Timer(0.5, interrupt).start()
        trainer.fit(X, y, epochs=100_000)

    with pytest.raises(KeyboardInterrupt):
        fit()
    assert time.perf_counter() - sent[0] < 1.0  # 50 ms, and what a busy machine adds
    assert np.isfinite(model.parameters).all()
    trainer.fit(X[:200], y[:200], epochs=1)  # and goes on


def test_an_interrupt_leaves_a_whole_step(monkeypatch):
    """An exception between two pieces: as many steps as it says, to the bit."""
    from fastnn.backends.numba_cpu import backend as numba_cpu

    plan, parameters = make((5, 8, 3), np.float64, "tanh", "softmax")
    pieces = []

    class Pacer(numba_cpu._Pacer):
        def start(self):
            pieces.append(1)
            if len(pieces) == 4:
                raise KeyboardInterrupt
            return 7  # rows: less than a batch

    n, optimizer = 40, SGD()
    X = np.random.default_rng(0).normal(size=(n, 5))
    y = targets("cross_entropy", n, 3, np.float64)
    scalars, _ = optimizer.step_scalars({}, np.full(6, 0.1))
    job = TrainJob(X, y, None, LOSSES["cross_entropy"], optimizer, scalars, None, 16, 2)
    monkeypatch.setattr(numba_cpu, "_Pacer", Pacer)
    interrupted = parameters.copy()
    result = NUMBA.train(plan, interrupted, np.zeros((0, plan.n_parameters)), job)
    assert result.status == "interrupted"
    assert isinstance(result.exception, KeyboardInterrupt)
    monkeypatch.undo()
    assert (result.epochs_done, result.steps_done) == (1, 3)
    expected = parameters.copy()
    one = replace(job, n_epochs=1, scalars=scalars[:3])
    NUMBA.train(plan, expected, np.zeros((0, plan.n_parameters)), one)
    assert bits(interrupted) == bits(expected)


def test_pieces_change_no_bit(monkeypatch):
    """A batch of several chunks, left and entered again after each."""
    from fastnn.backends.numba_cpu import backend as numba_cpu

    plan, parameters = make((5, 8, 3), np.float64, "tanh", "softmax")
    n, optimizer = 700, SGD()
    X = np.random.default_rng(0).normal(size=(n, 5))
    y = targets("cross_entropy", n, 3, np.float64)
    scalars, _ = optimizer.step_scalars({}, np.full(6, 0.1))
    job = TrainJob(X, y, None, LOSSES["cross_entropy"], optimizer, scalars, None, 600, 3)
    results = []
    for rows in (10**9, 1):

        class Pacer(numba_cpu._Pacer):
            def start(self, rows=rows):
                return rows

        monkeypatch.setattr(numba_cpu, "_Pacer", Pacer)
        trained = parameters.copy()
        result = NUMBA.train(plan, trained, np.zeros((0, plan.n_parameters)), job)
        assert result.status == "done"
        results.append((trained, result.losses))
    assert bits(*results[0]) == bits(*results[1])


# Where there is no extension ----------------------------------------------------------------------

WITHOUT = """
import sys, threading
sys.modules["fastnn.backends._native"] = None  # not to be imported
import numpy as np
import fastnn
assert "numba" not in sys.modules
try:
    fastnn.MLP([2, 1])
except fastnn.BackendUnavailable as error:
    assert "backend='numba'" in str(error), error
else:
    raise AssertionError("native without its extension")
X, y = fastnn.datasets.load_digits()
model = fastnn.MLP([64, 32, 10], output="softmax", dropout=0.1, seed=0, backend="numba")
trainer = fastnn.Trainer(model, seed=0)
trainer.fit(np.tile(X, (6, 1)), np.tile(y, 6), epochs=2, validation_data=(X, y))
accuracy = (model.predict(X).argmax(axis=1) == y).mean()
assert accuracy > 0.9, accuracy
model.save(sys.argv[1])
again = fastnn.MLP.load(sys.argv[1], backend="numba")
assert again.predict(X).tobytes() == model.predict(X).tobytes()
unit = fastnn.Perceptron(dtype="float32", backend="numba")
assert unit.fit([[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 1]).converged_
fastnn.train_many([fastnn.Trainer(again, seed=0)], X, y, epochs=1)
for bad in (np.nan, np.inf):
    try:
        model.predict(np.where(X > 2, X, bad))
    except ValueError as error:
        assert "row 0, column 0" in str(error), error
    else:
        raise AssertionError("not finite")
fastnn.show_config()
"""


def test_everything_runs_without_the_extension(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(WITHOUT)
    result = subprocess.run(
        [sys.executable, "-P", str(path), str(tmp_path / "model")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "the compiled extension is missing" in result.stdout
    assert "backends:        numba, reference" in result.stdout


# One more row -------------------------------------------------------------------------------------


def test_an_activation_that_is_added_to_the_table_reaches_numba(monkeypatch):
    """The Python half of a row is all that Numba asks for: z / sqrt(1 + z^2), not a known one."""
    row = ActivationRow(
        "isru",
        lambda z: z / np.sqrt(1.0 + z * z),
        lambda z, y: (1.0 + z * z) ** -1.5,
        True,
        (-1.0, 1.0),
        "z / sqrt(1 + z^2)",
        scalar=lambda z: z / activations.math.sqrt(1.0 + z * z),
        scalar_df=lambda z, y: 1.0 / ((1.0 + z * z) * activations.math.sqrt(1.0 + z * z)),
    )
    monkeypatch.setitem(ACTIVATIONS, "isru", row)
    results = []
    for backend in ("numba", "reference"):
        model = fastnn.MLP(
            [3, 6, 5, 2], activation="isru", dtype="float64", seed=1, backend=backend
        )
        X = np.random.default_rng(0).normal(size=(40, 3))
        fastnn.Trainer(model, seed=1).fit(X, X[:, :2] ** 2, epochs=5)
        results.append(model.predict(X))
    np.testing.assert_allclose(*results, rtol=1e-9, atol=1e-12)


PLAIN = """
import numpy as np, fastnn
from fastnn.backends import _native, get_backend
from fastnn.backends.numba_cpu.functions import HAS_FMA
from fastnn.plan import Plan
assert not HAS_FMA
assert _native.isa() == "baseline"
plan = Plan((300, 19, 5), np.float32, ("tanh",), "softmax", (0.0,))
parameters = (np.random.default_rng(0).normal(size=plan.n_parameters) * 0.2).astype(np.float32)
X = np.random.default_rng(1).normal(size=(30, 300)).astype(np.float32)
numba, native = (get_backend(name).layer_outputs(plan, parameters, X, 1)
                 for name in ("numba", "native"))
assert all(a.tobytes() == b.tobytes() for a, b in zip(numba, native))
"""


@pytest.mark.skipif(not FULL, reason="FASTNN_FULL=1: compiles in a process of its own")
def test_a_processor_without_fused_multiply_add():
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "FASTNN_ISA": "baseline"}
    command = [sys.executable, "-P", "-c", PLAIN]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
