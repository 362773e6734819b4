"""What is measured: workloads, their data, and an evaluator that scores what a peer hands back.

Data are generated, from fixed seeds, but for Fashion-MNIST. Its four files are looked for in the
folder that FASTNN_FASHION_MNIST names, else where Debian's package dataset-fashion-mnist puts them;
without them generated images of the same shape, range and share of zeros stand in, and every
report says which it was.

FASTNN_BENCH_TINY=1 cuts the data and the epochs to a second's work, to try the programs out.
"""

import functools
import gzip
import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

FASHION = Path(os.environ.get("FASTNN_FASHION_MNIST") or "/usr/share/datasets/fashion-mnist")
TINY = os.environ.get("FASTNN_BENCH_TINY", "0") not in ("", "0")
MAX_ROWS = 1000 if TINY else None
N_IMAGES = MAX_ROWS or 60_000


@dataclass(frozen=True)
class Training:
    """One training from given weights: the same updates, whoever makes them.

    `band` is how far, as a share, the final loss may lie from that of the plain NumPy version:
    orders of rows differ between peers, and one epoch of a small batch is noisy.
    """

    name: str
    data: str
    layer_sizes: tuple[int, ...]
    activation: str  # relu, tanh, sigmoid
    output: str  # softmax, sigmoid, identity: cross-entropy, binary cross-entropy, squared error
    optimizer: str  # adam, momentum
    learning_rate: float
    batch_size: int
    epochs: int
    n_models: int = 1
    band: float = 0.15


@dataclass(frozen=True)
class Inference:
    """Predictions: the latency of one row, or all rows at once."""

    name: str
    layer_sizes: tuple[int, ...]
    activation: str
    output: str
    one_row: bool


@dataclass(frozen=True)
class ErrorCorrection:
    """Epochs of the simple perceptron, one unit for each class (one unit for two classes)."""

    name: str
    data: str
    n_classes: int
    epochs: int


def _by_name(*workloads):
    if TINY:
        workloads = map(_tiny, workloads)
    return {workload.name: workload for workload in workloads}


def _tiny(workload):
    if isinstance(workload, Inference):
        return workload
    workload = replace(workload, epochs=min(workload.epochs, 2))
    many = isinstance(workload, Training) and workload.n_models > 1
    return replace(workload, n_models=3) if many else workload


WORKLOADS = _by_name(
    Training("W1", "fashion", (784, 128, 10), "relu", "softmax", "adam", 1e-3, 64, 1),
    Training("W1b", "fashion", (784, 512, 512, 10), "relu", "softmax", "adam", 1e-3, 256, 1),
    Training("W1c", "fashion", (784, 128, 10), "relu", "softmax", "momentum", 1e-2, 32, 1),
    Training("W2", "table", (30, 64, 32, 2), "relu", "softmax", "adam", 1e-3, 128, 20, band=0.1),
    Training("W3", "curve", (4, 16, 16, 1), "tanh", "identity", "adam", 1e-3, 32, 200, band=0.5),
    Training("W4a", "xor", (2, 2, 1), "sigmoid", "sigmoid", "momentum", 0.1, 4, 10_000, band=0.5),
    Training("W4b", "xor", (2, 8, 1), "sigmoid", "sigmoid", "momentum", 0.1, 4, 10_000, band=0.5),
    Inference("W5lat", (784, 128, 10), "relu", "softmax", one_row=True),
    Inference("W5tiny", (4, 16, 16, 1), "tanh", "identity", one_row=True),
    Inference("W5thr", (784, 128, 10), "relu", "softmax", one_row=False),
    Inference("W5thrb", (784, 512, 512, 10), "relu", "softmax", one_row=False),
    ErrorCorrection("W6a", "fashion", 10, 5),
    ErrorCorrection("W6b", "line", 2, 10),
    Training("W7", "table5", (30, 32, 2), "relu", "softmax", "adam", 1e-3, 32, 10, n_models=64),
    # Images of which four fifths are zeros, as in MNIST; and the same ones with no zero in them.
    Training("W1z", "sparse", (784, 128, 10), "relu", "softmax", "adam", 1e-3, 64, 1),
    Training("W1d", "dense", (784, 128, 10), "relu", "softmax", "adam", 1e-3, 64, 1),
)


@functools.cache
def load(name: str, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """(X of the dtype, C-contiguous; y: int64 labels, or targets (n, 1) of the dtype)."""
    rng = np.random.default_rng(7)
    if name == "fashion":
        X, y = _fashion() if FASHION.is_dir() else _images(rng, zeros=0.5)
    elif name in ("sparse", "dense"):
        X, y = _images(rng, zeros=0.8)
        if name == "dense":
            X[X == 0] = 2.0**-20
    elif name in ("table", "table5"):
        n = 20_000 if name == "table" else 5_000
        X = rng.standard_normal((n, 30))
        score = np.tanh(2 * X @ rng.standard_normal((30, 16)) / 30**0.5) @ rng.standard_normal(16)
        y = (score + 0.3 * rng.standard_normal(n) > np.median(score)).astype(np.int64)
    elif name == "curve":
        X = rng.uniform(-1, 1, (1000, 4))
        y = np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2] - 0.5 * X[:, 3] ** 2
        y = (y + 0.05 * rng.standard_normal(1000))[:, None]
    elif name == "xor":
        X, y = np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0], [1], [1], [0]])
    elif name == "line":
        X = rng.standard_normal((100_000, 20))
        side = X @ rng.standard_normal(20) + 0.3 * rng.standard_normal(100_000)
        y = (side > 0).astype(np.int64)
    else:
        raise KeyError(name)
    labels = y.ndim == 1
    X, y = X[:MAX_ROWS], y[:MAX_ROWS]
    return np.ascontiguousarray(X, dtype), y if labels else np.ascontiguousarray(y, dtype)


def source(name: str) -> str:
    """Where the data came from, for reports."""
    if name == "fashion":
        return "Fashion-MNIST" if FASHION.is_dir() else "generated images in Fashion-MNIST's place"
    return "generated"


def _fashion():
    def read(name, offset, n):
        with gzip.open(FASHION / name) as file:
            return np.frombuffer(file.read(offset + n), np.uint8, offset=offset)

    X = read("train-images-idx3-ubyte.gz", 16, 784 * N_IMAGES).reshape(-1, 784)
    y = read("train-labels-idx1-ubyte.gz", 8, N_IMAGES)
    return X.astype(np.float32) / np.float32(255), y.astype(np.int64)


def _images(rng, zeros: float, n: int = N_IMAGES):
    """Ten smooth pictures, each row one of them, brighter or darker, with noise where it is lit.

    One label in ten is drawn anew, so that the loss stays away from 0 and its band means something.
    """
    rough = rng.standard_normal((10, 28, 28))
    for axis in (1, 2):
        rough = sum(np.roll(rough, shift, axis) for shift in range(-3, 4))
    picture = rough.reshape(10, 784)
    picture -= np.quantile(picture, zeros, axis=1, keepdims=True)
    picture = np.clip(picture / picture.max(), 0, None).astype(np.float32)
    y = rng.integers(0, 10, n)
    X = picture[y] * rng.uniform(0.3, 1.0, (n, 1)).astype(np.float32)
    X *= 1 + rng.standard_normal((n, 784), np.float32)
    y = np.where(rng.random(n) < 0.1, rng.integers(0, 10, n), y)
    return np.clip(X, 0, 1), y


def initial_parameters(layer_sizes, activation, seed, dtype="float32"):
    """Glorot's uniform weights and zero biases: [(W (n_in, n_out), b (n_out,)), ...]."""
    rng = np.random.default_rng(seed)
    pairs = []
    for n_in, n_out in itertools.pairwise(layer_sizes):
        # XOR starts wide enough to leave its plateau.
        limit = 1.0 if activation == "sigmoid" else (6 / (n_in + n_out)) ** 0.5
        W = rng.uniform(-limit, limit, (n_in, n_out))
        pairs.append((W.astype(dtype), np.zeros(n_out, dtype)))
    return pairs


def orders(n: int, workload: Training, seed: int) -> np.ndarray:
    """The rows of each epoch; a batch of all rows keeps them as they are."""
    if n <= workload.batch_size:
        return np.tile(np.arange(n), (workload.epochs, 1))
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(n) for _ in range(workload.epochs)])


# Scores -------------------------------------------------------------------------------------------


def outputs(parameters, X, activation, output):
    """Plain NumPy in float64, by chunks: what every peer's predictions and losses are held to."""
    hidden = {"relu": lambda z: np.maximum(z, 0), "tanh": np.tanh, "sigmoid": _sigmoid}[activation]
    results = []
    for start in range(0, len(X), 4096):
        h = X[start : start + 4096].astype(np.float64)
        for k, (W, b) in enumerate(parameters):
            h = h @ np.asarray(W, np.float64) + np.asarray(b, np.float64)
            if k < len(parameters) - 1:
                h = hidden(h)
        if output == "softmax" and h.shape[1] == 1:  # scikit-learn's one logistic output
            h = np.hstack([0 * h, h])
        if output == "softmax":
            h = np.exp(h - h.max(1, keepdims=True))
            h /= h.sum(1, keepdims=True)
        elif output == "sigmoid":
            h = _sigmoid(h)
        results.append(h)
    return np.concatenate(results)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


def training_loss(workload: Training, parameters, X, y) -> float:
    """Mean loss on all rows, from the parameters that a peer hands back."""
    p = outputs(parameters, X, workload.activation, workload.output)
    tiny = 1e-12
    if workload.output == "softmax":
        return float(-np.log(p[np.arange(len(y)), y] + tiny).mean())
    if workload.output == "sigmoid":
        return float(-(y * np.log(p + tiny) + (1 - y) * np.log(1 - p + tiny)).mean())
    return float(0.5 * ((p - y) ** 2).mean())


def accuracy(scores: np.ndarray, y: np.ndarray) -> float:
    """Of a perceptron's scores, (n,) for two classes or (n, n_classes)."""
    predicted = scores.argmax(axis=1) if scores.ndim == 2 else scores > 0
    return float((predicted == y).mean())


# Work ---------------------------------------------------------------------------------------------


def flop(workload) -> float:
    """Floating-point operations of the matrix products, and of nothing else."""
    if isinstance(workload, ErrorCorrection):
        n, n_features = load(workload.data)[0].shape
        units = workload.n_classes if workload.n_classes > 2 else 1
        return 2.0 * n * n_features * units * workload.epochs
    sizes = workload.layer_sizes
    products = [a * b for a, b in itertools.pairwise(sizes)]
    if isinstance(workload, Inference):
        return 2.0 * sum(products) * (1 if workload.one_row else N_IMAGES)
    # Forward, gradient of the weights, and what goes back: not into the inputs.
    per_row = 2 * (2 * sum(products) + sum(products[1:]))
    return float(per_row * len(load(workload.data)[0]) * workload.epochs * workload.n_models)
