"""A training written by hand in NumPy, as well as NumPy allows: what `fastnn bench` compares with.

All parameters lie in one array, so that the optimizer is one sweep; every intermediate has a buffer
of its own; the products are BLAS calls into those buffers.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

__all__ = ["BETA1", "BETA2", "EPSILON", "MOMENTUM", "FlatNet", "activate", "predict", "train"]

MOMENTUM = 0.9
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

Pairs = list[tuple[np.ndarray, np.ndarray]]


def train(work: Any, pairs: Pairs, X: np.ndarray, y: np.ndarray, orders: np.ndarray) -> Pairs:
    """Train from the given weights and biases, over the rows in the given orders.

    Parameters
    ----------
    work : object
        Has `layer_sizes`, `activation` (relu, tanh, sigmoid), `output` (softmax: cross-entropy,
        labels; sigmoid: binary cross-entropy; identity: half the squared error), `optimizer`
        (adam, momentum), `learning_rate` and `batch_size`.
    pairs : list of (weights of shape (n_in, n_out), biases of shape (n_out,))
        Where to start; not changed.
    X : ndarray of shape (n_samples, n_features)
    y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    orders : ndarray of int, shape (n_epochs, n_samples)

    Returns
    -------
    list of (weights, biases)
    """
    net = FlatNet(work, pairs)
    for order in orders:
        for start in range(0, len(order), work.batch_size):
            rows = order[start : start + work.batch_size]
            net.gradients(X[rows], y[rows])
            net.update()
    return list(zip(net.W, net.b, strict=True))


def predict(work: Any, pairs: Pairs, x: np.ndarray) -> np.ndarray:
    """The outputs of rows x; `work` as for `train`."""
    for k, (W, b) in enumerate(pairs):
        x = x @ W
        x += b
        if k < len(pairs) - 1:
            activate(work.activation, x)
    if work.output == "softmax":
        x -= x.max(1, keepdims=True)
        np.exp(x, out=x)
        x /= x.sum(1, keepdims=True)
    elif work.output == "sigmoid":
        activate("sigmoid", x)
    return x


def activate(name: str, z: np.ndarray) -> None:
    """In place."""
    if name == "relu":
        np.maximum(z, 0, out=z)
    elif name == "tanh":
        np.tanh(z, out=z)
    else:
        np.negative(z, out=z)
        np.exp(z, out=z)
        z += 1
        np.reciprocal(z, out=z)


class FlatNet:
    """Parameters, optimizer state and buffers of one training.

    Attributes
    ----------
    p, g, m, v : ndarray of shape (n_parameters,)
        Parameters, their gradient, and the optimizer's two moments.
    W, b, gW, gb : list of ndarray
        Weights, biases and their gradients: views of `p` and `g`.
    H, D : list of ndarray of shape (batch_size, n_out)
        Each layer's output, and the derivative of the loss by its weighted sums.
    """

    def __init__(self, work: Any, pairs: Pairs):
        self.work, self.n_steps = work, 0
        self.p = np.concatenate([a.ravel() for pair in pairs for a in pair])
        self.g, self.m, self.v, self.t1, self.t2 = (np.zeros_like(self.p) for _ in range(5))
        self.W, self.b = self._split(self.p)
        self.gW, self.gb = self._split(self.g)
        shapes = [(work.batch_size, n) for n in work.layer_sizes[1:]]
        self.H, self.D = ([np.empty(s, self.p.dtype) for s in shapes] for _ in range(2))

    def _split(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        at, weights, biases = 0, [], []
        for n_in, n_out in itertools.pairwise(self.work.layer_sizes):
            weights.append(flat[at : at + n_in * n_out].reshape(n_in, n_out))
            at += n_in * n_out
            biases.append(flat[at : at + n_out])
            at += n_out
        return weights, biases

    def gradients(self, x: np.ndarray, y: np.ndarray) -> None:
        work, n, last = self.work, len(x), len(self.W) - 1
        h = x
        for k in range(last + 1):
            z = self.H[k][:n]
            np.dot(h, self.W[k], out=z)
            z += self.b[k]
            if k < last:
                activate(work.activation, z)
            h = z
        d = self.D[last][:n]
        if work.output == "softmax":
            np.subtract(h, h.max(1, keepdims=True), out=d)
            np.exp(d, out=d)
            d /= d.sum(1, keepdims=True)
            d[np.arange(n), y] -= 1
        else:
            if work.output == "sigmoid":
                activate("sigmoid", h)
            np.subtract(h, y, out=d)
        d *= x.dtype.type(1 / n)
        for k in range(last, -1, -1):
            below = x if k == 0 else self.H[k - 1][:n]
            np.dot(below.T, d, out=self.gW[k])
            d.sum(0, out=self.gb[k])
            if k:
                back = self.D[k - 1][:n]
                np.dot(d, self.W[k].T, out=back)
                if work.activation == "relu":
                    back *= below > 0
                elif work.activation == "tanh":
                    back *= 1 - below * below
                else:
                    back *= below * (1 - below)
                d = back

    def update(self) -> None:
        work, real = self.work, self.p.dtype.type
        p, g, m, v, t1, t2 = self.p, self.g, self.m, self.v, self.t1, self.t2
        self.n_steps += 1
        if work.optimizer == "momentum":
            m *= real(MOMENTUM)
            m += g
            np.multiply(m, real(work.learning_rate), out=t1)
            p -= t1
            return
        np.subtract(g, m, out=t1)
        t1 *= real(1 - BETA1)
        m += t1
        np.multiply(g, g, out=t1)
        t1 -= v
        t1 *= real(1 - BETA2)
        v += t1
        correction = (1 - BETA2**self.n_steps) ** 0.5
        np.sqrt(v, out=t1)
        t1 += real(EPSILON * correction)
        np.divide(m, t1, out=t2)
        t2 *= real(work.learning_rate * correction / (1 - BETA1**self.n_steps))
        p -= t2
