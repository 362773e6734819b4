"""What this machine gives: the figures of ``fastnn bench``.

Contenders do the same work in turn, round after round, so that a noisy moment hits all of them; a
ratio is the median of the rounds' ratios. A contender whose result is not one of the same work (a
loss outside a band, outputs that differ) gets no ratio.
"""

from __future__ import annotations

import itertools
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastnn import _numpy_training
from fastnn.backends.peak import instruction_set, multiply_add_gflops
from fastnn.many import train_many
from fastnn.mlp import MLP
from fastnn.perceptron import Perceptron
from fastnn.tables.optimizers import Adam
from fastnn.threads import resolve_n_threads
from fastnn.trainer import Trainer

__all__ = ["FULL_SECONDS", "Figure", "figures", "machine"]

FULL_SECONDS = 20.0
"""With this much time the data have their full size."""

MIN_ROUNDS, MAX_ROUNDS = 3, 50
CALLS_PER_ROUND = 200
MAX_OUTPUT_ERROR = 1e-4

Pairs = list[tuple[np.ndarray, np.ndarray]]
Rows = tuple[np.ndarray, np.ndarray]
Runs = Mapping[str, Callable[[int], Any]]
Predictors = Mapping[str, Callable[[np.ndarray], np.ndarray]]
Score = Callable[[Any], float]


@dataclass(frozen=True)
class Work:
    """A network and its training, in the words that `_numpy_training` takes.

    `band` is how far another's final loss may lie from ours, as a share of it: the orders of rows
    differ between packages.
    """

    layer_sizes: tuple[int, ...]
    activation: str
    output: str
    batch_size: int
    epochs: int
    band: float
    learning_rate: float = 1e-3
    optimizer: str = "adam"

    @property
    def name(self) -> str:
        return "-".join(map(str, self.layer_sizes))

    def flop(self, n_rows: int, *, training: bool) -> float:
        """Operations of the matrix products, and of nothing else."""
        products = [a * b for a, b in itertools.pairwise(self.layer_sizes)]
        if not training:
            return 2.0 * sum(products) * n_rows
        # Forward, gradient of the weights, and back: not into the inputs.
        return 2.0 * (2 * sum(products) + sum(products[1:])) * n_rows * self.epochs


@dataclass
class Figure:
    """One line of the table.

    Attributes
    ----------
    group, name : str
    seconds : float
        Median of the rounds; for single rows, of the calls.
    rows : int
        How many rows one run works on, each epoch's counted.
    gflops : float or None
        10^9 operations a second in the products, in the fastest round.
    share_of_peak : float or None
        Of the multiply-adds that all threads could do in that time.
    p99 : float or None
        Seconds: the 99th percentile of single calls.
    ratios : dict
        By name, how many times as long the others take; None where they did other work.
    """

    group: str
    name: str
    seconds: float
    rows: int
    gflops: float | None = None
    share_of_peak: float | None = None
    p99: float | None = None
    ratios: dict[str, float | None] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """`rows` over `seconds`."""
        return self.rows / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """The attributes, for JSON."""
        return {**vars(self), "rows_per_second": self.rows_per_second}


def machine() -> dict[str, Any]:
    """What the figures depend on. The peak is measured now."""
    sklearn = _sklearn()
    return {
        "processor": _processor(),
        "instruction_set": instruction_set() or "none (the compiled extension is missing)",
        "threads": resolve_n_threads(),
        "peak_gflops": {dtype: multiply_add_gflops(dtype) for dtype in ("float32", "float64")},
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__ if sklearn else None,
    }


def figures(dtype: str = "float32", seconds: float = FULL_SECONDS) -> Iterator[Figure]:
    """Measure one figure after the other.

    Parameters
    ----------
    dtype : {"float32", "float64"}
    seconds : float
        About how long all of them may take. Below FULL_SECONDS the data are smaller, too.

    Yields
    ------
    Figure
    """
    scale, each = min(1.0, seconds / FULL_SECONDS), seconds / 9
    image = Work((784, 128, 10), "relu", "softmax", batch_size=64, epochs=1, band=0.15)
    table = Work((30, 64, 32, 2), "relu", "softmax", batch_size=128, epochs=3, band=0.15)
    small = Work((4, 16, 16, 1), "tanh", "identity", batch_size=32, epochs=30, band=0.5)
    several = Work((30, 32, 2), "relu", "softmax", batch_size=32, epochs=5, band=0.15)
    images = _images(max(256, int(20_000 * scale)), dtype)
    people = _table(max(256, int(20_000 * scale)), dtype)
    curve = _curve(max(64, int(1000 * scale)), dtype)
    some = people[0][:2000], people[1][:2000]
    yield _training(image, images, each)
    yield _training(table, people, each)
    yield _training(small, curve, each)
    yield _many(several, some, max(2, int(8 * scale)), each)
    yield _error_correction(images, each)
    yield _predictions(image, images[0], each)
    yield _predictions(table, people[0], each)
    yield _one_row(image, images[0], each)
    yield _one_row(small, curve[0], each)


# Kinds of figures ---------------------------------------------------------------------------------


def _training(work: Work, rows: Rows, seconds: float) -> Figure:
    X, y = rows

    def ours(seed: int) -> Pairs:
        trainer = _trainer(work, X.dtype, seed)
        trainer.fit(X, y, epochs=work.epochs)
        return _pairs(trainer.model)

    runs = {
        "fastnn": ours,
        "NumPy": lambda seed: _by_numpy(work, rows, seed),
        "scikit-learn": lambda seed: _by_sklearn(work, rows, seed),
    }
    times, ratios = _in_turn(runs, lambda pairs: _loss(work, pairs, *rows), work.band, seconds)
    name = f"{work.name} {work.activation}, batch {work.batch_size}"
    figure = Figure("training, Adam", name, statistics.median(times), len(X) * work.epochs)
    return _with_share(figure, work.flop(len(X), training=True), times, X.dtype, ratios)


def _many(work: Work, rows: Rows, n_models: int, seconds: float) -> Figure:
    X, y = rows

    def ours(seed: int) -> list[Pairs]:
        trainers = [_trainer(work, X.dtype, seed + k, n_threads=1) for k in range(n_models)]
        train_many(trainers, X, y, epochs=work.epochs)
        return [_pairs(trainer.model) for trainer in trainers]

    runs: Runs = {
        "fastnn": ours,
        "NumPy": lambda seed: [_by_numpy(work, rows, seed + k) for k in range(n_models)],
        "scikit-learn": lambda seed: [_by_sklearn(work, rows, seed + k) for k in range(n_models)],
    }

    def mean_loss(nets: list[Pairs]) -> float:
        return statistics.fmean(_loss(work, pairs, *rows) for pairs in nets)

    times, ratios = _in_turn(runs, mean_loss, work.band, seconds)
    name = f"{n_models} x {work.name} {work.activation}, batch {work.batch_size}"
    n_rows = n_models * len(X) * work.epochs
    figure = Figure("train_many, Adam", name, statistics.median(times), n_rows)
    flop = n_models * work.flop(len(X), training=True)
    return _with_share(figure, flop, times, X.dtype, ratios)


def _error_correction(rows: Rows, seconds: float) -> Figure:
    X, y = rows
    n_classes = 10
    targets = (y[:, None] == np.arange(n_classes)).astype(np.int8)

    def ours(seed: int) -> Rows:
        unit = Perceptron(max_epochs=1, shuffle=True, seed=seed, dtype=X.dtype.name)
        unit.fit(X, targets)
        return unit.weights, np.asarray(unit.bias)

    def by_numpy(seed: int) -> Rows:
        W, b = np.zeros((X.shape[1], n_classes), X.dtype), np.zeros(n_classes, X.dtype)
        for i in np.random.default_rng(seed).permutation(len(X)):
            x = X[i]
            error = targets[i] - (x @ W + b > 0)
            for c in error.nonzero()[0]:
                W[:, c] += x if error[c] > 0 else -x
                b[c] += error[c]
        return W, b

    def by_sklearn(seed: int) -> Rows:
        from sklearn.linear_model import Perceptron as Other

        unit = Other(max_iter=1, tol=None, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unit.fit(X, y)
        return unit.coef_.T, unit.intercept_

    def accuracy(unit: Rows) -> float:
        return float(((X @ unit[0] + unit[1]).argmax(axis=1) == y).mean())

    runs = {"fastnn": ours, "NumPy": by_numpy, "scikit-learn": by_sklearn}
    times, ratios = _in_turn(runs, accuracy, 0.25, seconds)
    name = f"{X.shape[1]} features, {n_classes} units"
    figure = Figure("error correction", name, statistics.median(times), len(X))
    figure.ratios = ratios
    return figure


def _predictions(work: Work, X: np.ndarray, seconds: float) -> Figure:
    runs, error = _predictors(work, X)

    def all_rows(predict: Callable[[np.ndarray], np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda seed: predict(X)

    calls = {name: all_rows(predict) for name, predict in runs.items()}
    times, ratios = _in_turn(calls, error, 0.0, seconds)
    figure = Figure("prediction", f"{work.name}, {len(X):,} rows", statistics.median(times), len(X))
    return _with_share(figure, work.flop(len(X), training=False), times, X.dtype, ratios)


def _one_row(work: Work, X: np.ndarray, seconds: float) -> Figure:
    runs, error = _predictors(work, X)
    rows = [np.ascontiguousarray(X[i : i + 1]) for i in range(min(64, len(X)))]
    medians: dict[str, list[float]] = {name: [] for name in runs}
    same, own_calls = {}, []
    for name, predict in runs.items():
        outputs = np.concatenate([np.reshape(predict(row), (1, -1)) for row in rows])
        same[name] = error(outputs) <= MAX_OUTPUT_ERROR
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(medians["fastnn"]) < MIN_ROUNDS:
        for name, predict in runs.items():
            calls = _call_seconds(predict, rows)
            medians[name].append(statistics.median(calls))
            own_calls += calls if name == "fastnn" else []
    own_calls.sort()
    figure = Figure("prediction", f"{work.name}, one row", own_calls[len(own_calls) // 2], 1)
    figure.p99 = own_calls[len(own_calls) * 99 // 100]
    figure.ratios = _ratios(medians, same)
    return figure


def _call_seconds(predict: Callable[[np.ndarray], Any], rows: list[np.ndarray]) -> list[float]:
    clock, times = time.perf_counter, []
    for k in range(CALLS_PER_ROUND):
        row = rows[k % len(rows)]
        start = clock()
        predict(row)
        times.append(clock() - start)
    return times


# Contenders ---------------------------------------------------------------------------------------


def _trainer(work: Work, dtype: np.dtype, seed: int, n_threads: int | None = None) -> Trainer:
    return Trainer(
        _model(work, dtype, seed),
        optimizer=Adam(work.learning_rate),
        batch_size=work.batch_size,
        seed=seed,
        n_threads=n_threads,
    )


def _model(work: Work, dtype: np.dtype, seed: int) -> MLP:
    return MLP(
        work.layer_sizes,
        activation=work.activation,
        output=work.output,
        dtype=dtype.name,
        seed=seed,
    )


def _pairs(model: MLP) -> Pairs:
    return list(zip(model.weights, model.biases, strict=True))


def _by_numpy(work: Work, rows: Rows, seed: int) -> Pairs:
    X, y = rows
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(len(X)) for _ in range(work.epochs)])
    return _numpy_training.train(work, _pairs(_model(work, X.dtype, seed)), X, y, orders)


def _by_sklearn(work: Work, rows: Rows, seed: int) -> Pairs:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    X, y = rows
    estimator = (MLPClassifier if work.output == "softmax" else MLPRegressor)(
        hidden_layer_sizes=work.layer_sizes[1:-1],
        activation=work.activation,
        alpha=0.0,
        batch_size=min(work.batch_size, len(X)),
        learning_rate_init=work.learning_rate,
        max_iter=work.epochs,
        tol=0.0,
        n_iter_no_change=10**9,  # every epoch is done
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X, y.ravel())
    return list(zip(estimator.coefs_, estimator.intercepts_, strict=True))


def _predictors(work: Work, X: np.ndarray) -> tuple[Predictors, Score]:
    """Functions of rows, by name; and how far given outputs are from NumPy's in float64."""
    model = _model(work, X.dtype, 0)
    pairs = _pairs(model)
    exact = _numpy_training.predict(
        work, [(W.astype(float), b.astype(float)) for W, b in pairs], X[:64].astype(float)
    )
    runs = {"fastnn": model.predict, "NumPy": lambda x: _numpy_training.predict(work, pairs, x)}
    if _sklearn():
        runs["scikit-learn"] = _sklearn_predict(work, pairs, X)

    def error(outputs: np.ndarray) -> float:
        outputs = np.reshape(outputs, (-1, exact.shape[1]))[: len(exact)]
        return float(np.abs(outputs - exact).max())

    return runs, error


def _sklearn_predict(work: Work, pairs: Pairs, X: np.ndarray) -> Callable[[np.ndarray], Any]:
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    classes = work.output == "softmax"
    estimator = (MLPClassifier if classes else MLPRegressor)(
        hidden_layer_sizes=work.layer_sizes[1:-1], activation=work.activation, max_iter=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(X[:20], np.arange(20) % max(3, work.layer_sizes[-1]))
    estimator.coefs_, estimator.intercepts_ = map(list, zip(*pairs, strict=True))
    return estimator.predict_proba if classes else estimator.predict


# Measuring ----------------------------------------------------------------------------------------


def _in_turn(
    runs: Runs, score: Score, band: float, seconds: float
) -> tuple[list[float], dict[str, float | None]]:
    """(our times, ratios of the others), after one round that warms up and is checked."""
    runs = {name: run for name, run in runs.items() if name != "scikit-learn" or _sklearn()}
    scores = {name: score(run(0)) for name, run in runs.items()}
    own = scores["fastnn"]
    if band:
        same = {name: abs(value - own) <= band * abs(own) for name, value in scores.items()}
    else:  # the score is an error
        same = {name: value <= MAX_OUTPUT_ERROR for name, value in scores.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for seed in range(1, MAX_ROUNDS + 1):
        # Where others keep the machine busy, fewer rounds than one would like have to do.
        patience = seconds if seed > MIN_ROUNDS else 2 * seconds
        if seed > 1 and time.perf_counter() > begin + patience:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            run(seed)
            times[name].append(time.perf_counter() - start)
    return times["fastnn"], _ratios(times, same)


def _ratios(times: dict[str, list[float]], same: dict[str, bool]) -> dict[str, float | None]:
    own = times["fastnn"]
    if not same["fastnn"]:
        raise ArithmeticError("fastnn's own outputs differ from those of NumPy in float64")
    return {
        name: statistics.median(b / a for a, b in zip(own, others, strict=True))
        if same[name]
        else None
        for name, others in times.items()
        if name != "fastnn"
    }


def _with_share(
    figure: Figure,
    flop: float,
    times: list[float],
    dtype: np.dtype,
    ratios: dict[str, float | None],
) -> Figure:
    figure.ratios = ratios
    figure.gflops = flop / min(times) / 1e9
    peak = multiply_add_gflops(dtype.name)
    if peak is not None:
        figure.share_of_peak = figure.gflops / (peak * resolve_n_threads())
    return figure


def _loss(work: Work, pairs: Pairs, X: np.ndarray, y: np.ndarray) -> float:
    """Mean loss on all rows, from whoever's parameters."""
    if work.output == "softmax" and pairs[-1][0].shape[1] == 1:  # scikit-learn's one logistic unit
        W, b = pairs[-1]
        pairs = [*pairs[:-1], (np.hstack([0 * W, W]), np.hstack([0 * b, b]))]
    p = _numpy_training.predict(work, pairs, X).astype(float)
    if work.output == "softmax":
        return float(-np.log(p[np.arange(len(y)), y] + 1e-12).mean())
    return float(0.5 * ((p - y) ** 2).mean())


# Data ---------------------------------------------------------------------------------------------


def _images(n: int, dtype: str) -> Rows:
    """Ten pictures, half of each dark, in changing light and with noise; some labels are wrong."""
    rng = np.random.default_rng(7)
    pictures = np.clip(rng.standard_normal((10, 784), np.float32), 0, 1)
    y = rng.integers(0, 10, n)
    X = pictures[y] * rng.uniform(0.3, 1.0, (n, 1)).astype(np.float32)
    X *= 1 + rng.standard_normal((n, 784), np.float32)
    np.clip(X, 0, 1, out=X)
    y = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), y)
    return np.ascontiguousarray(X, dtype), y


def _table(n: int, dtype: str) -> Rows:
    rng = np.random.default_rng(7)
    X = rng.standard_normal((n, 30))
    score = np.tanh(2 * X @ rng.standard_normal((30, 16)) / 30**0.5) @ rng.standard_normal(16)
    y = score + 0.3 * rng.standard_normal(n) > np.median(score)
    return np.ascontiguousarray(X, dtype), y.astype(np.int64)


def _curve(n: int, dtype: str) -> Rows:
    rng = np.random.default_rng(7)
    X = rng.uniform(-1, 1, (n, 4))
    y = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2] - 0.5 * X[:, 3] ** 2
    y += 0.05 * rng.standard_normal(n)
    return np.ascontiguousarray(X, dtype), np.ascontiguousarray(y[:, None], dtype)


def _processor() -> str:
    """The name that the processor gives itself, with family and model, since some hide the rest."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text(encoding="utf-8", errors="replace")

    def value(name: str) -> str:
        match = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
        return match[1].strip() if match else "?"

    if value("model name") == "?":
        return platform.machine()
    return f"{value('model name')} (family {value('cpu family')}, model {value('model')})"


def _sklearn() -> Any:
    """The package, or None where it is not installed or does not work here."""
    try:
        import sklearn
    except ImportError:
        return None
    return sklearn
