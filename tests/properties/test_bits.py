"""The law of one order: shapes alone decide the bits of a result.

Not the number of threads, not the batch a row sits in, not the number of calls that training was
cut into, not a file in between, not the type or the layout that the rows came in. Every example
draws a network, its training and its data; what is compared are bytes, never closeness.
"""

import contextlib
import copy
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import fastnn
from fastnn import MLP, Perceptron, Trainer
from fastnn.backends import get_backend
from fastnn.backends.base import StopFlag, TrainJob
from fastnn.tables.activations import ACTIVATIONS
from fastnn.tables.losses import LOSSES, resolve_loss
from fastnn.tables.optimizers import resolve_optimizer

_native = pytest.importorskip("fastnn.backends._native")

# Each example compares one of these with one thread: 64 take a hundred times as long as 2.
THREADS = st.sampled_from([2, 3, 3, 8, 8, 64])

OPTIMIZERS = {
    "sgd": fastnn.SGD(0.05),
    "momentum": fastnn.SGD(0.02, momentum=0.9),
    "nesterov": fastnn.SGD(0.02, momentum=0.9, nesterov=True),
    "adam": fastnn.Adam(0.01),
    "adamw": fastnn.AdamW(0.01, weight_decay=0.1),
    "nadam": fastnn.Nadam(0.01),
    "rmsprop": fastnn.RMSprop(0.003),
    "rmsprop with momentum": fastnn.RMSprop(0.003, momentum=0.8),
    "adagrad": fastnn.Adagrad(0.05),
    "rprop": fastnn.Rprop(0.01),
}
SCHEDULES = [
    None,
    fastnn.StepDecay(drop=0.5, every=3),
    fastnn.ExponentialDecay(decay=0.3, n_steps=5),
    fastnn.CosineDecay(n_steps=7),
    fastnn.OneCycle(n_steps=9),
    fastnn.InverseScaling(power=0.4),
    fastnn.Warmup(fastnn.CosineDecay(n_steps=8), n_steps=4),
]


@pytest.fixture(scope="module", autouse=True)
def threads_for_the_smallest_work():
    """Start the threads that are asked for, however little there is to do."""
    before = _native.set_work_per_thread(0)
    yield
    _native.set_work_per_thread(before)


@contextlib.contextmanager
def threads(n):
    """Let every call inside use n threads; nothing of the caller's environment bounds them."""
    with mock.patch.dict(os.environ, {"FASTNN_NUM_THREADS": str(n)}):
        assert fastnn.threads.resolve_n_threads() == n
        yield


# What is drawn -----------------------------------------------------------------------------------


@dataclass
class Case:
    """A network, its training and its data, small enough to read when a test fails."""

    layer_sizes: list
    model: dict
    loss: Any
    trainer: dict
    n_rows: int
    weighted: bool
    seed: int
    share_of_zeros: float = 0.0  # of X: where there are many, they are skipped

    def __post_init__(self):
        # X, y and weight are no fields: nobody wants to read them in a failure.
        generator = np.random.default_rng(self.seed)
        n, n_outputs = self.n_rows, self.layer_sizes[-1]
        dtype = self.model["dtype"]
        self.X = generator.normal(size=(n, self.layer_sizes[0])).astype(dtype)
        self.X *= generator.uniform(size=self.X.shape) >= self.share_of_zeros
        kind = resolve_loss(self.loss, self.model["output"]).target_kind
        if kind == "classes":
            self.y = generator.integers(0, n_outputs, n)
        elif kind == "sign":
            self.y = generator.choice([-1.0, 1.0], (n, n_outputs))
        elif kind == "unit":
            self.y = generator.uniform(size=(n, n_outputs))
        else:
            self.y = np.abs(generator.normal(size=(n, n_outputs)))
        self.weight = None
        if self.weighted:
            # a third of the rows count for nothing, often a whole batch
            self.weight = generator.uniform(0.1, 3.0, n) * (generator.uniform(size=n) > 0.3)
            self.weight[generator.integers(n)] = 1.0

    def make_model(self):
        return MLP(self.layer_sizes, seed=self.seed, **self.model)

    def make_trainer(self, **changes):
        return Trainer(
            self.make_model(), loss=self.loss, seed=self.seed + 1, **{**self.trainer, **changes}
        )

    @property
    def data(self):
        return {"X": self.X, "y": self.y, "sample_weight": self.weight}


WIDTHS = st.one_of(
    st.integers(1, 16), st.integers(1, 16), st.sampled_from([17, 24, 31, 33, 48, 65, 100])
)
MANY_WIDTHS = st.one_of(WIDTHS, st.sampled_from([255, 257, 300, 520]))  # more than a block of sums
FEW_ROWS = st.integers(1, 40)
ROWS = st.one_of(FEW_ROWS, FEW_ROWS, st.sampled_from([129, 256, 257, 300, 513, 1100]))
BATCHES = st.one_of(
    st.integers(1, 40), st.sampled_from([128, 256, 257, 300, 512, 600, 5000]), st.just("full")
)


@st.composite
def models(draw, widths=WIDTHS):
    sizes = [draw(widths) for _ in range(draw(st.integers(1, 3)))] + [draw(st.integers(1, 16))]
    n_hidden = len(sizes) - 2
    names = [name for name in ACTIVATIONS if name != "step"]
    loss = draw(st.sampled_from([None, *LOSSES]))
    output = "identity" if loss is None else LOSSES[loss].natural_output
    if loss is None:
        output = draw(st.sampled_from(["identity", "sigmoid", "softmax", "exp", "tanh", "gelu"]))
    model = {
        "activation": [draw(st.sampled_from(names)) for _ in range(n_hidden)],
        "output": output,
        "dtype": draw(st.sampled_from(["float32", "float64"])),
        "dropout": [draw(st.sampled_from([0.0, 0.0, 0.2, 0.5])) for _ in range(n_hidden)],
    }
    return sizes, model, loss


@st.composite
def cases(draw, rows=ROWS, batches=BATCHES, widths=WIDTHS):
    sizes, model, loss = draw(models(widths))
    n_rows, batch_size = draw(rows), draw(batches)
    if n_rows > 100 and batch_size != "full":
        batch_size = max(batch_size, n_rows // 4)  # a few steps are enough
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    event(f"optimizer {name}")
    trainer = {
        "optimizer": OPTIMIZERS[name],
        "batch_size": batch_size,
        "shuffle": draw(st.booleans()),
        "l2": draw(st.sampled_from([0.0, 0.01])),
        "clip_norm": draw(st.sampled_from([None, None, 0.5])),
        "schedule": draw(st.sampled_from(SCHEDULES)),
    }
    weighted, seed = draw(st.booleans()), draw(st.integers(0, 2**32))
    zeros = draw(st.sampled_from([0.0, 0.0, 0.6, 0.9]))
    return Case(sizes, model, loss, trainer, n_rows, weighted, seed, zeros)


def examples(count):
    """Settings of a test with this many examples; ten times as many with the full profile."""
    return settings(
        max_examples=count * (10 if settings.default.max_examples > 1000 else 1),
        suppress_health_check=list(HealthCheck),
    )


def bits(*arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays]


def state(trainer):
    """Everything that training leaves, as bytes: parameters, slots, counters, curve, clock."""
    history = trainer.history
    return [
        *bits(trainer.model.parameters, trainer._slots, history.loss, history.learning_rate),
        *bits(*trainer._lbfgs.s, *trainer._lbfgs.y),
        trainer._counters,
        trainer.epoch,
        trainer.n_steps,
    ]


def fit(trainer, case, epochs):
    """Train; a divergence is a result like another, and has to come at the same place."""
    try:
        trainer.fit(**case.data, epochs=epochs)
    except fastnn.DivergenceError as error:
        return ["diverged", error.epoch, error.batch]
    return ["done"]


def looks(model, case, loss):
    """Everything that reads a model, as bytes."""
    value, gradient = model.loss_and_gradient(
        case.X, case.y, loss=loss, sample_weight=case.weight, l2=0.01
    )
    return [
        *bits(model.predict(case.X), *model.layer_outputs(case.X)),
        *bits(model.input_gradient(case.X[:20]), gradient, value),
    ]


# Threads (R1, R6, T11) ---------------------------------------------------------------------------


@examples(120)
@given(cases(), THREADS)
def test_training_does_not_depend_on_threads(case, many):  # R1, R6, T11
    results = []
    for n in (1, many):
        trainer = case.make_trainer(n_threads=n)
        with threads(n):  # an unset bound would be the machine's
            how = fit(trainer, case, 2)
        results.append(how + state(trainer))
    assert results[0] == results[1]
    # It must have done something, or equal bits say nothing; one class, or a row beyond the hinge's
    # margin, has nothing to learn.
    model = case.make_model()
    l2 = case.trainer["l2"]
    gradient = model.loss_and_gradient(
        case.X, case.y, loss=case.loss, sample_weight=case.weight, l2=l2
    )[1]
    changed = results[0][1] != bits(model.parameters)[0]
    assert results[0][0] == "diverged" or changed or not gradient.any()


@examples(120)
@given(cases(widths=MANY_WIDTHS), THREADS)
def test_reading_does_not_depend_on_threads(case, many):  # R1, T11
    model = case.make_model()
    results = []
    for n in (1, many):
        with threads(n):
            evaluated = case.make_trainer().evaluate(**case.data)
            results.append(looks(model, case, case.loss) + bits(evaluated))
    assert results[0] == results[1]


def test_threads_differ_in_how_a_long_batch_is_cut(monkeypatch):  # R1
    # 64 threads take the 5000 rows in three chunks and one thread in twenty: the block sums must
    # be added in one order all the same, with and without the gradient kept.
    monkeypatch.delenv("FASTNN_NUM_THREADS", raising=False)
    for dtype in ("float32", "float64"):
        for clip_norm in (None, 1e-3):
            case = Case(
                [7, 33, 5],
                {"activation": "tanh", "output": "softmax", "dtype": dtype, "dropout": 0.3},
                None,
                {"optimizer": "adam", "batch_size": 3000, "clip_norm": clip_norm, "l2": 0.1},
                n_rows=5000,
                weighted=True,
                seed=3,
            )
            results = []
            for n in (1, 2, 5, 13, 64):
                trainer = case.make_trainer(n_threads=n)
                results.append(fit(trainer, case, 2) + state(trainer))
            assert all(result == results[0] for result in results[1:])


def test_only_as_many_threads_as_were_allowed():
    """The comparisons above would say nothing if every call used one thread."""
    counts = set()
    model = MLP([16, 16, 4], seed=0)
    X = np.ones((64, 16), np.float32)
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc to count threads")
    before = len(os.listdir("/proc/self/task"))
    done = threading.Event()

    def look():
        while not done.is_set():
            counts.add(len(os.listdir("/proc/self/task")) - before - 1)

    watcher = threading.Thread(target=look)
    watcher.start()
    with threads(8):
        Trainer(model, n_threads=8, batch_size=8, seed=0).fit(X, np.ones((64, 4)), epochs=300)
    done.set()
    watcher.join()
    assert max(counts) == 7  # and the calling thread


# Rows (R2) ---------------------------------------------------------------------------------------


@examples(180)
@given(models(MANY_WIDTHS), st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([1, 3]))
def test_a_row_alone_is_the_row_in_any_slice(drawn, n_rows, seed, n_threads):  # R2
    sizes, kwargs, _ = drawn
    model = MLP(sizes, seed=seed, **kwargs)
    X = np.random.default_rng(seed).normal(size=(n_rows, sizes[0])).astype(kwargs["dtype"])
    with threads(n_threads):
        whole = model.predict(X)
        layers = model.layer_outputs(X)
        slopes = model.input_gradient(X)
        assert bits(layers[-1]) == bits(whole)
        for i in range(n_rows):
            assert bits(whole[i]) == bits(model.predict(X[i]))
            assert bits(whole[i : i + 1]) == bits(model.predict(X[i : i + 1]))
        for a in range(0, n_rows, 1 + n_rows // 6):
            for b in range(a + 1, n_rows + 1, 1 + n_rows // 9):
                assert bits(whole[a:b]) == bits(model.predict(X[a:b]))
            assert bits(*[layer[a : a + 5] for layer in layers]) == bits(
                *model.layer_outputs(X[a : a + 5])
            )
            assert bits(slopes[a : a + 3]) == bits(model.input_gradient(X[a : a + 3]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_outputs", range(1, 17))
def test_rows_of_narrow_layers_in_long_batches(n_outputs, dtype):  # R2
    # Narrow layers lay vector lanes across rows: where a row falls in a vector must not show.
    generator = np.random.default_rng(n_outputs)
    for sizes, n_rows in (
        ([5, n_outputs], 300),
        ([300, n_outputs], 150),
        ([9, n_outputs, 3, n_outputs], 700),
    ):
        model = MLP(sizes, dtype=dtype, activation="tanh", seed=n_outputs)
        X = generator.normal(size=(n_rows, sizes[0])).astype(dtype)
        with threads(1):
            whole = model.predict(X)
            assert np.unique(whole).size > n_rows / 2
            for i in (*range(40), *range(120, 150), n_rows - 1):
                assert bits(whole[i]) == bits(model.predict(X[i]))
            for a, b in ((1, n_rows), (3, 130), (127, n_rows), (n_rows - 17, n_rows)):
                assert bits(whole[a:b]) == bits(model.predict(X[a:b]))
        with threads(3):
            assert bits(whole) == bits(model.predict(X))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["same", "float64", "uint8", "Fortran", "reversed"])
@pytest.mark.parametrize(
    ("sizes", "activation"),
    [
        ([20, 11, 3], "gelu"),
        ([20, 3], "tanh"),
        ([300, 16, 16, 1], "tanh"),
        ([20, 40, 4000, 7, 5], "relu"),  # more memory than is kept for the next call
        ([20, 9, 30, 2], fastnn.Activation("test_bits_cube", lambda z: z * z * z)),
    ],
    ids=str,
)
def test_the_short_way_of_predict_is_the_long_way(sizes, activation, kind, dtype):
    """`predict` reads plain rows itself and hands the rest on: both are one computation."""
    generator = np.random.default_rng(1)
    X = generator.integers(0, 9, (129, sizes[0])) / 8
    X = {
        "same": X.astype(dtype),
        "float64": X.astype(np.float64),
        "uint8": (X * 8).astype(np.uint8),
        "Fortran": np.asfortranarray(X.astype(dtype)),
        "reversed": X.astype(dtype)[::-1],
    }[kind]
    output = "softmax" if sizes[-1] > 1 else "sigmoid"
    model = MLP(sizes, activation=activation, output=output, dtype=dtype, seed=0)
    before = _native.set_work_per_thread(0)
    try:
        long = [model.predict(X), model.predict(X[5]), model.predict(X[7:10])]
        _native.set_work_per_thread(1e12)
        for give in (False, True):
            for rows, expected in zip((X, X[5], X[7:10]), long, strict=True):
                out = np.full_like(expected, np.nan) if give else None
                assert bits(model.predict(rows, out=out)) == bits(expected)
    finally:
        _native.set_work_per_thread(before)


def test_summed_losses_of_rows_are_the_loss_of_all():
    """Losses are added in float64, row after row, however they were chunked."""
    generator = np.random.default_rng(2)
    model = MLP([6, 5, 3], output="softmax", dtype="float32", seed=1)
    X = generator.normal(size=(700, 6)).astype(np.float32)
    y = generator.integers(0, 3, 700)
    trainer = Trainer(model)
    total = 0.0
    for i in range(700):
        total += trainer.evaluate(X[i : i + 1], y[i : i + 1])
    assert trainer.evaluate(X, y) == total / 700


# Calls, files (S9, S14, S18) ---------------------------------------------------------------------


@examples(180)
@given(cases(), st.integers(2, 5))
def test_k_epochs_are_k_calls_of_one(case, k):  # S9, S14
    once, often = case.make_trainer(), case.make_trainer()
    how = fit(once, case, k)
    assume(how == ["done"])
    for _ in range(k):
        assert fit(often, case, 1) == ["done"]
    assert state(often) == state(once)
    assert len(set(once.history.loss)) > 1 or once.history.loss[0] in (0.0, once.history.loss[-1])


@examples(180)
@given(cases(), st.integers(1, 4))
def test_saved_and_resumed_after_every_epoch(case, k):  # S9, S14, S18
    straight, resumed = case.make_trainer(), case.make_trainer()
    assume(fit(straight, case, k) == ["done"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "training.safetensors"
        for _ in range(k):
            resumed.save(path)
            resumed = Trainer.load(path)
            fit(resumed, case, 1)
        resumed.save(path)
        resumed = Trainer.load(path)
    assert state(resumed) == state(straight)
    assert bits(resumed.model.predict(case.X)) == bits(straight.model.predict(case.X))
    # and one epoch more, from both
    assert fit(resumed, case, 1) == fit(straight, case, 1)
    assert state(resumed) == state(straight)


RESUME = """
import hashlib, sys
import numpy as np
from fastnn import Trainer
from fastnn.backends import _native

_native.set_work_per_thread(0)
data = dict(np.load(sys.argv[1]))
for line in sys.stdin:  # a file and how many epochs are left
    path, epochs = line.rsplit(None, 1)
    trainer = Trainer.load(path, n_threads=3)
    trainer.fit(**data, epochs=int(epochs))
    state = [trainer.model.parameters, trainer._slots, trainer.history.loss]
    print(hashlib.sha256(b"".join(a.tobytes() for a in state)).hexdigest())
"""


def test_resumed_in_a_new_process(tmp_path):  # S9, S18, for every optimizer and epoch
    expected, lines = [], []
    data = None
    for i, name in enumerate(OPTIMIZERS):
        case = Case(
            [5, 9, 3],
            {
                "activation": "silu",
                "output": "softmax",
                "dtype": ["float32", "float64"][i % 2],
                "dropout": 0.3,
            },
            None,
            {
                "optimizer": OPTIMIZERS[name],
                "batch_size": 7,
                "schedule": SCHEDULES[i % len(SCHEDULES)],
                "l2": 0.01,
                "clip_norm": [None, 0.5][i % 2],
            },
            n_rows=30,
            weighted=True,
            seed=1,
        )
        data = data or {k: v.astype(np.float64) if k == "X" else v for k, v in case.data.items()}
        straight, stopped = case.make_trainer(n_threads=1), case.make_trainer(n_threads=2)
        straight.fit(**data, epochs=4)
        state = [straight.model.parameters, straight._slots, straight.history.loss]
        for epoch in range(4):
            path = tmp_path / f"{i} {epoch}.safetensors"
            stopped.save(path)
            stopped.fit(**data, epochs=1)
            lines.append(f"{path} {4 - epoch}\n")
            expected.append(hashlib.sha256(b"".join(bits(*state))).hexdigest())
    np.savez(tmp_path / "data.npz", **data)
    done = subprocess.run(
        [sys.executable, "-c", RESUME, str(tmp_path / "data.npz")],
        input="".join(lines),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected
    assert len(set(expected)) == len(OPTIMIZERS)


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lbfgs_resumed(dtype, cut, tmp_path):  # S9, S18
    pytest.importorskip("scipy")
    case = Case(
        [4, 6, 3],
        {"activation": "tanh", "output": "softmax", "dtype": dtype},
        None,
        {"optimizer": fastnn.LBFGS(history=3), "l2": 1e-3},
        n_rows=60,
        weighted=True,
        seed=5,
    )
    straight, resumed = case.make_trainer(n_threads=3), case.make_trainer(n_threads=1)
    fit(straight, case, 6)
    for _ in range(cut):
        fit(resumed, case, 1)
    resumed.save(tmp_path / "training.safetensors")
    resumed = Trainer.load(tmp_path / "training.safetensors", n_threads=8)
    fit(resumed, case, 6 - cut)
    assert state(resumed) == state(straight)
    assert straight.history.loss[-1] < straight.history.loss[0]


@examples(75)
@given(cases(rows=st.integers(3, 40)), st.integers(1, 6))
def test_a_stop_between_epochs_does_not_show(case, at):  # S9
    class Stop:
        def on_epoch_end(self, trainer, logs):
            if trainer.epoch == at:
                trainer.stop()

    straight, stopped = case.make_trainer(), case.make_trainer()
    assume(fit(straight, case, 6) == ["done"])
    stopped.fit(**case.data, epochs=6, callbacks=[Stop()])
    assert stopped.epoch == at
    fit(stopped, case, 6 - at)
    assert state(stopped) == state(straight)


# Types and layouts (A4, A8, W1) ------------------------------------------------------------------


def memory_mapped(X):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "X.npy"
        np.save(path, X)
        mapped = np.load(path, mmap_mode="r")
        if os.name == "posix":
            return mapped  # the pages outlive the name
    return np.asarray(X)


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def beside_zeros(X, step, axis):
    shape = list(X.shape)
    shape[axis] *= step
    wide = np.full(shape, 77, X.dtype)
    index = [slice(None)] * X.ndim
    index[axis] = slice(None, None, step)
    wide[tuple(index)] = X
    return wide[tuple(index)]


LAYOUTS = {
    "Fortran": np.asfortranarray,
    "reversed": lambda X: X[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
    "memory-mapped": memory_mapped,
    "every second row": lambda X: beside_zeros(X, 2, 0),
    "every third column": lambda X: beside_zeros(X, 3, 1),
    "byte-swapped": lambda X: X.astype(X.dtype.newbyteorder()),
    "list": lambda X: X.tolist(),
    "broadcast": lambda X: X,
}
TYPES = ["float32", "float64", "float16", "bool", "uint8"]
TYPES += ["int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@examples(240)
@given(cases(rows=ROWS), st.sampled_from(TYPES), st.sampled_from(sorted(LAYOUTS)))
def test_types_and_layouts_do_not_show(case, dtype, layout):  # A4, A8, B13
    generator = np.random.default_rng(case.seed)
    values = generator.integers(0, 2 if dtype == "bool" else 100, case.X.shape)
    if "float" in dtype:
        values = values / 64 - 1  # exact in float16
    elif dtype.startswith("int"):
        values -= 50
    X = values.astype(dtype)
    if layout == "broadcast":
        X = np.broadcast_to(X[0], X.shape)  # rows without a stride
    plain = np.array(X.astype(case.model["dtype"]), order="C")
    assert layout == "broadcast" or case.n_rows < 9 or np.ptp(plain) > 0
    strange = LAYOUTS[layout](X)
    results = []
    for rows in (plain, strange):
        case.X = rows
        trainer = case.make_trainer()
        how = fit(trainer, case, 2)
        value, gradient = case.make_model().loss_and_gradient(rows, case.y, loss=case.loss)
        model = case.make_model()
        few = rows[:20]
        results.append(
            [
                *(how + state(trainer)),
                *bits(model.predict(rows), *model.layer_outputs(rows), gradient),
                *bits(model.input_gradient(few), model.predict(rows[0])),
                *bits(value, trainer.evaluate(rows, case.y)),  # maybe NaN, after a divergence
            ]
        )
    assert results[0] == results[1]


@examples(120)
@given(
    st.integers(1, 40),
    WIDTHS,
    st.integers(1, 4),
    st.sampled_from(TYPES),
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from(["float32", "float64"]),
    st.booleans(),
)
def test_types_and_layouts_do_not_show_in_a_perceptron(
    n, n_features, n_outputs, kind, layout, dtype, shuffle
):  # A4, A8
    generator = np.random.default_rng(n)
    X = generator.integers(0, 2 if kind == "bool" else 9, (n, n_features)).astype(kind)
    t = generator.integers(0, 2, (n, n_outputs))
    results = []
    for rows in (X.astype(dtype), LAYOUTS[layout](X)):
        unit = Perceptron(max_epochs=6, shuffle=shuffle, seed=1, dtype=dtype, learning_rate=0.3)
        unit.fit(rows, t)
        scores = unit.decision_function(rows)
        results.append(bits(unit.weights, unit.bias, unit.errors_, scores, unit.predict(rows)))
        assert bits(scores[n // 2]) == bits(unit.decision_function(rows[n // 2 : n // 2 + 1])[0])
    assert results[0] == results[1]


@examples(120)
@given(cases())
def test_ones_as_weights_are_none(case):  # W1
    results = []
    for weight in (None, np.ones(case.n_rows), np.ones(case.n_rows, np.uint8)):
        case.weight = weight
        trainer = case.make_trainer()
        how = fit(trainer, case, 2)
        results.append(how + state(trainer) + looks(case.make_model(), case, case.loss))
    assert results[0] == results[1] == results[2]


@examples(75)
@given(cases(rows=st.integers(2, 40)))
def test_rows_without_weight_are_not_read(case):  # W3
    """What stands in a row of weight 0 cannot matter."""
    case.weight = np.arange(case.n_rows) % 2.0
    case.trainer["shuffle"] = False
    results = []
    for filler in (0.0, 1.0):
        X = case.X.copy()
        X[::2] = filler
        trainer = case.make_trainer()
        case.X, X = X, case.X
        how = fit(trainer, case, 2)
        case.X = X
        results.append(how + state(trainer))
    assert results[0] == results[1]


@examples(75)
@given(cases(), st.booleans())
def test_a_copy_is_the_model(case, pickled):  # P1
    trainer = case.make_trainer()
    assume(fit(trainer, case, 1) == ["done"])
    twin = pickle.loads(pickle.dumps(trainer)) if pickled else copy.deepcopy(trainer)
    assert state(twin) == state(trainer)
    assert fit(twin, case, 2) == fit(trainer, case, 2)
    assert state(twin) == state(trainer)
    assert np.shares_memory(twin.model.weights[0], twin.model.parameters)
    assert not np.shares_memory(twin.model.parameters, trainer.model.parameters)


# Weights that live in a packed copy while training -----------------------------------------------


def wide_data(dtype):
    generator = np.random.default_rng(5)
    return generator.normal(size=(70, 300)).astype(dtype), generator.integers(0, 3, 70)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"lbfgs"}))
def test_packed_weights_train_like_plain_ones(name, dtype):
    """A wide first layer is updated in its packed copy alone. Clipping to a norm that no gradient
    has changes nothing, but goes through the plain weights.
    """
    X, y = wide_data(dtype)
    results = []
    for clip_norm, epochs in ((None, 4), (1e30, 4), (None, 1)):
        model = MLP([300, 70, 3], output="softmax", dtype=dtype, seed=0)
        trainer = Trainer(
            model, optimizer=OPTIMIZERS[name], batch_size=16, l2=0.01, clip_norm=clip_norm, seed=1
        )
        for _ in range(4 // epochs):
            trainer.fit(X, y, epochs=epochs)
        results.append([*bits(model.parameters, trainer._slots), model.predict(X).tobytes()])
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_packed_weights_are_put_back_when_training_stops(n_threads):
    """A stop that is set before ends training after one step, and the model has made it."""
    X, y = wide_data("float32")
    stepped = MLP([300, 70, 3], output="softmax", seed=0)
    Trainer(stepped, optimizer="sgd", seed=1).step(X[:16], y[:16])
    model = MLP([300, 70, 3], output="softmax", seed=0)
    stop = StopFlag()
    stop.set()
    optimizer = resolve_optimizer("sgd")
    job = TrainJob(
        X=X,
        y=y.astype(np.int64),
        weight=None,
        loss=resolve_loss(None, "softmax"),
        optimizer=optimizer,
        scalars=optimizer.step_scalars({}, np.full(10, optimizer.learning_rate))[0],
        orders=None,
        batch_size=16,
        n_epochs=2,
        n_threads=n_threads,
        stop=stop,
    )
    result = get_backend("native").train(model.plan, model.parameters, np.empty((0, 0)), job)
    assert (result.status, result.steps_done) == ("stopped", 1)
    assert bits(model.parameters) == bits(stepped.parameters)
