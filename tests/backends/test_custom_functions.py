"""Functions of the user's in every backend: against differences, textbook loops, and built-ins."""

import gc
import math
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest

import fastnn
from fastnn.backends import get_backend
from fastnn.errors import DivergenceError
from fastnn.tables import vector_math


def snake(z):
    """Ziyin, Hartwig and Ueda 2020, arXiv:2006.08195."""
    return z + math.sin(z) ** 2


def series(z):
    """sqrt(1 + z^2) by Newton's method: a loop whose length depends on z."""
    square, x = 1.0 + z * z, 1.0
    while abs(x * x - square) > 1e-3 * square:
        x = 0.5 * (x + square / x)
    for _ in range(3):
        x = 0.5 * (x + square / x)
    return x


def log_cosh(y, t):
    e = abs(y - t)
    return e + math.log1p(math.exp(-2.0 * e)) - math.log(2.0)


SNAKE = fastnn.Activation("test_snake", snake)
SERIES = fastnn.Activation("test_series", series)
TANH = fastnn.Activation("test_tanh", lambda z: math.tanh(z))
SOFT = fastnn.Activation("test_soft", lambda z: math.log1p(math.exp(z)), range=(0, math.inf))
LOG_COSH = fastnn.Loss("test_log_cosh", log_cosh)
SQUARED = fastnn.Loss("test_squared", lambda y, t: 0.5 * (y - t) * (y - t), lambda y, t: y - t)
FOCAL = fastnn.Loss(
    "test_focal",
    lambda y, t: -t * (1 - y) ** 2 * math.log(y) if t > 0 else 0.0,
    domain=(0, math.inf),
    target_kind="classes",
)

same_bits = pytest.mark.skipif(
    not vector_math.HAS_FMA, reason="without fused multiply-adds compilers round differently"
)


def data(n, n_inputs, n_outputs, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(n, n_inputs)), random.normal(size=(n, n_outputs))


def differences(function, x, moves=None, h=1e-3):
    """Central differences of fourth order along unit moves; their error is about 1e-11 here."""
    moves = np.eye(x.size) if moves is None else moves
    result = np.empty((len(moves), *np.shape(function(x))))
    for i, move in enumerate(moves):
        values = [function(x + k * h * move.reshape(x.shape)) for k in (-2, -1, 1, 2)]
        result[i] = (8 * (values[2] - values[1]) - (values[3] - values[0])) / (12 * h)
    return result


def moves_for(backend, n):
    """Each axis, or, where a call takes long, a few directions that all axes take part in."""
    if backend != "cuda":
        return np.eye(n)
    moves = np.random.default_rng(2).normal(size=(3, n))
    return moves / np.linalg.norm(moves, axis=1, keepdims=True)


NETS = {
    "hidden": ([3, 5, 4, 2], SNAKE, "identity", LOG_COSH),
    "mixed": ([3, 5, 4, 2], [SERIES, "sigmoid"], "tanh", LOG_COSH),
    "output": ([3, 4, 2], "tanh", SNAKE, "squared_error"),
    "both": ([3, 4, 2], SNAKE, SNAKE, LOG_COSH),
    "poisson": ([3, 4, 2], SNAKE, SOFT, "poisson"),
    "softmax": ([3, 4, 3], SNAKE, "softmax", LOG_COSH),
    "classes": ([3, 4, 3], SNAKE, "softmax", FOCAL),
    "one": ([2, 3, 1], SNAKE, "sigmoid", LOG_COSH),
}


FEW = ("mixed", "classes")  # all there is, once


def make(name, backend, dtype="float64"):
    if backend == "numba" and name not in FEW and os.environ.get("FASTNN_FULL", "0") == "0":
        pytest.skip("it compiles a kernel for each function, which takes seconds: FASTNN_FULL=1")
    sizes, activation, output, loss = NETS[name]
    model = fastnn.MLP(
        sizes, activation=activation, output=output, dtype=dtype, seed=3, backend=backend
    )
    model.parameters[:] += np.random.default_rng(5).normal(size=model.parameters.size) * 0.1
    X, Y = data(6, sizes[0], sizes[-1])
    if loss == "poisson":
        Y = np.abs(Y)
    elif loss is FOCAL:
        Y = np.arange(6) % sizes[-1]
    return model, X, Y, loss


@pytest.mark.parametrize("net", NETS)
def test_gradients_are_those_of_differences(backend_name, net):
    model, X, Y, loss = make(net, backend_name)
    weight = np.random.default_rng(1).uniform(0.2, 2.0, len(X))
    keep = {"loss": loss, "sample_weight": weight, "l2": 0.02}
    _, gradient = model.loss_and_gradient(X, Y, **keep)
    start = model.parameters.copy()

    def objective(parameters):
        model.parameters[:] = parameters
        return model.loss_and_gradient(X, Y, **keep)[0]

    moves = moves_for(backend_name, start.size)
    expected = differences(objective, start, moves)
    model.parameters[:] = start
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(moves @ gradient, expected, rtol=1e-7, atol=1e-8)
    jacobian = model.input_gradient(X)
    for row in range(1 if backend_name == "cuda" else 3):
        slopes = differences(lambda x: model.predict(x), X[row])
        np.testing.assert_allclose(jacobian[row], slopes.T, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("net", NETS)
def test_results_are_those_of_the_textbook(net, dtype, backend_name):
    tight = {"float64": (1e-9, 1e-10), "float32": (2e-4, 2e-5)}[dtype]
    results = []
    for backend in (backend_name, "reference"):
        model, X, Y, loss = make(net, backend, dtype)
        first = [model.predict(X), *model.layer_outputs(X), model.input_gradient(X)]
        trainer = fastnn.Trainer(
            model, loss=loss, optimizer=fastnn.SGD(0.05), batch_size=4, l2=0.01, seed=0
        )
        history = trainer.fit(X, Y, epochs=3, sample_weight=np.arange(1.0, 7.0))
        last = trainer.evaluate(X, Y)
        results.append([*first, np.asarray(history.loss), last, model.parameters])
    assert np.abs(results[0][-1]).max() > 0.1
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, rtol=tight[0], atol=tight[1])


def train(activation, loss, sizes, dtype, batch_size=24, dropout=0.0, clip_norm=None, n_threads=1):
    model = fastnn.MLP(sizes, activation=activation, dtype=dtype, dropout=dropout, seed=0)
    X, Y = data(70, sizes[0], sizes[-1])
    trainer = fastnn.Trainer(
        model,
        loss=loss,
        batch_size=batch_size,
        seed=0,
        clip_norm=clip_norm,
        n_threads=n_threads,
    )
    history = trainer.fit(X, Y, epochs=2)
    return [model.parameters, np.asarray(history.loss), model.predict(X), model.input_gradient(X)]


@same_bits
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ([5, 16, 3], {}),  # padded memory of small networks
        ([5, 7, 1], {"dropout": 0.3}),
        ([5, 1, 2], {"clip_norm": 1.0}),  # rows far apart
        ([3, 66, 100, 4], {}),
        ([3, 130, 200, 1], {"batch_size": 70}),
        ([80, 9, 33, 2], {"batch_size": 1}),
    ],
)
def test_bits_are_those_of_a_built_in(sizes, options, dtype):
    if get_backend("native").name != "native" or _isa() == "baseline":
        pytest.skip("the baseline has no fused multiply-adds")
    own = train(TANH, SQUARED, sizes, dtype, **options)
    built_in = train("tanh", "squared_error", sizes, dtype, **options)
    for a, b in zip(own, built_in, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all()


def _isa():
    from fastnn.backends import _native

    return _native.isa()


@pytest.mark.parametrize("activation", [SNAKE, SERIES], ids=lambda a: a.name)
def test_bits_do_not_depend_on_threads_or_batches(activation):
    from fastnn.backends import _native

    before = _native.set_work_per_thread(0.0)
    try:
        results = [
            train(activation, LOG_COSH, [3, 37, 20, 2], "float32", 70, n_threads=n)
            for n in (1, 2, 3)
        ]
    finally:
        _native.set_work_per_thread(before)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a, b)
    model = fastnn.MLP([3, 37, 20, 2], activation=activation, output=activation, seed=0)
    X = data(40, 3, 1)[0].astype(np.float32)
    whole = model.predict(X)
    alone = [model.predict(x) for x in X]
    np.testing.assert_array_equal(whole, alone)
    np.testing.assert_array_equal(whole[3:20], model.predict(X[3:20]))


def test_steps_resume_pickle_and_many_models(tmp_path):
    X, Y = data(50, 3, 2)

    def trainer():
        model = fastnn.MLP([3, 6, 2], activation=SNAKE, seed=1)
        return fastnn.Trainer(model, loss=LOG_COSH, batch_size=8, seed=2)

    once = trainer()
    once.fit(X, Y, epochs=4)
    parts = trainer()
    parts.fit(X, Y, epochs=1)
    parts = pickle.loads(pickle.dumps(parts))
    parts.fit(X, Y, epochs=1)
    parts.save(tmp_path / "file")
    parts = fastnn.Trainer.load(tmp_path / "file")
    parts.fit(X, Y, epochs=2)
    np.testing.assert_array_equal(parts.model.parameters, once.model.parameters)
    many = [trainer() for _ in range(3)]
    fastnn.train_many(many, X, Y, epochs=4, n_threads=2)
    for one in many:
        np.testing.assert_array_equal(one.model.parameters, once.model.parameters)
    assert once.step(X[:8], Y[:8]) == pytest.approx(
        parts.model.loss_and_gradient(X[:8], Y[:8], loss=LOG_COSH)[0], rel=1e-6
    )


def test_functions_outlive_everything_but_their_name():
    # the compiled code is reached from a plan that is cached, and from the registry
    def build():
        own = fastnn.Activation("test_kept", lambda z: 2.0 * math.tanh(z))
        return fastnn.MLP([2, 3, 1], activation=own, dtype="float64", seed=0)

    model = build()
    x = np.array([0.3, -0.2])
    expected = model.predict(x)
    for _ in range(3):
        gc.collect()
    np.testing.assert_array_equal(model.predict(x), expected)
    hidden = 2 * np.tanh(x @ model.weights[0] + model.biases[0])
    np.testing.assert_allclose(expected, hidden @ model.weights[1] + model.biases[1], rtol=1e-13)


def test_first_use_from_several_threads_compiles_once():
    own = fastnn.Activation("test_threads", lambda z: math.tanh(z) + 0.1 * z)
    outputs, barrier = [], threading.Barrier(4)

    def work():
        barrier.wait()
        model = fastnn.MLP([2, 3, 1], activation=own, seed=0)
        outputs.append((id(own.compiled(np.dtype("float32"))), model.predict([0.5, 1.0]).item()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 4
    assert len(set(outputs)) == 1


def long_training():
    model = fastnn.MLP([20, 60, 60, 1], activation=SNAKE, seed=0)
    X, Y = data(4000, 20, 1)
    return fastnn.Trainer(model, loss=LOG_COSH, batch_size=50, seed=0), X, Y


def test_training_holds_no_gil():
    trainer, X, Y = long_training()
    trainer.fit(X, Y, epochs=1)  # compiled by now
    worker = threading.Thread(target=trainer.fit, args=(X, Y), kwargs={"epochs": 100000})
    worker.start()
    ticks, end = 0, time.perf_counter() + 0.5
    while time.perf_counter() < end:
        ticks += 1  # with the GIL held there would be none until the training ends
        time.sleep(0.001)
    assert worker.is_alive()
    trainer.stop()
    worker.join(10)
    assert not worker.is_alive()
    assert ticks > 20


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers here")
def test_ctrl_c_ends_at_a_whole_step():
    trainer, X, Y = long_training()
    trainer.fit(X, Y, epochs=1)
    before = time.perf_counter()
    old = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(X, Y, epochs=100000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert time.perf_counter() - before < 5
    assert np.isfinite(trainer.model.parameters).all()


def test_nan_is_divergence(backend_name):
    with pytest.warns(UserWarning, match="is nan, though it is not for smaller"):
        own = fastnn.Activation("test_falls_off", lambda z: z * math.sqrt(100.0 - z))
    model = fastnn.MLP([1, 2, 1], activation=own, seed=0, backend=backend_name)
    trainer = fastnn.Trainer(model, optimizer=fastnn.SGD(1e-3), shuffle=False, seed=0)
    before = model.parameters.copy()
    X = np.array([[1.0], [-3e4], [3e4]])
    with pytest.raises(DivergenceError, match="epoch 0"):
        trainer.fit(X, X, epochs=3)
    np.testing.assert_array_equal(model.parameters, before)
