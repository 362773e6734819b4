"""Kernels called through their addresses, with arguments prepared once.

Each function gives a `Call`: what to call, and how many operations it does. The signatures are
those of the kernel tests, which fail where they do not fit csrc/kernels.def.
"""

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastnn.backends import _native

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "kernels"))

from kernel_calls import LINKS, LOSSES, OPTIMIZERS, SIGNATURES, Gradient, Loss

N_SCALARS_EXAMPLE = {
    "sgd": [1e-3],
    "sgd_momentum": [1e-3, 0.9],
    "sgd_nesterov": [1e-3, 0.9],
    "adam": [1e-3, 1.0, 0.9, 0.1, 0.999, 0.001, 1e-8],
    "adamw": [1e-3, 1.0, 0.9, 0.1, 0.999, 0.001, 1e-8, 0.999],
    "nadam": [1e-4, 1e-3, 1.0, 0.9, 0.1, 0.999, 0.001, 1e-8],
    "rmsprop": [1e-3, 0.9, 0.1, 1e-8],
    "rmsprop_momentum": [1e-3, 0.9, 0.1, 1e-8, 0.9],
    "adagrad": [1e-3, 1e-8],
    "rprop": [1.0, 0.5, 1.2, 1e-6, 50.0],
}


@dataclass
class Call:
    """A prepared call, its floating-point operations, and the elements that it writes.

    The call itself keeps the arrays that it points into.
    """

    call: Callable[[], object]
    flop: float
    elements: float


def call_seconds() -> float:
    """What a call through ctypes costs: the fastest of many that do nothing."""
    function = Kernels().slots["fma_chains"]
    times = []
    for _ in range(200):
        start = time.perf_counter()
        function(0, None)
        times.append(time.perf_counter() - start)
    return min(times)


class Kernels:
    """Slots of one instruction set and dtype."""

    def __init__(self, dtype="float32", isa=None):
        self.dtype, self.isa = np.dtype(dtype), isa or _native.isa()
        self.rng = np.random.default_rng(0)
        self.slots = {
            name: ctypes.CFUNCTYPE(*signature)(_native.kernel_address(self.isa, dtype, name))
            for name, signature in SIGNATURES.items()
        }

    def array(self, *shape, scale=1.0):
        return (scale * self.rng.standard_normal(shape)).astype(self.dtype)

    def matrix(self, n_rows, n_cols, scale=1.0):
        """(rows with the driver's stride, elements from row to row)."""
        ld = _native.row_stride(n_cols, self.dtype.itemsize)
        return self.array(n_rows, ld, scale=scale), ld

    def pointers(self, X):
        return np.array([row.ctypes.data for row in X], np.uintp)

    def scratch(self, width):
        room = np.zeros(_native.scratch_bytes(width) + 64, np.uint8)
        return room, room.ctypes.data + -room.ctypes.data % 64

    def prepared(self, slot, arguments, flop, elements, *keep):
        function = self.slots[slot]
        return Call(lambda _keep=keep: function(*arguments), flop, elements)

    # Products -------------------------------------------------------------------------------------

    def forward(self, n_rows, n_in, n_out):
        """z = x W + b; from a packed copy of W where a training would keep one."""
        X, W, b = self.array(n_rows, n_in), self.array(n_in, n_out), self.array(n_out)
        z, ldz = self.matrix(n_rows, n_out)
        rows = self.pointers(X)
        flop, elements = 2.0 * n_rows * n_in * n_out, n_rows * n_out
        copy = self.packed(W)
        if copy is not None:
            arguments = (rows.ctypes.data, n_rows, n_in, copy.ctypes.data, b.ctypes.data, n_out)
            scratch, at = self.scratch(n_out)
            arguments += (z.ctypes.data, ldz, -1.0, at)
            keep = (X, b, z, rows, copy, scratch)
            return self.prepared("dense_forward_packed", arguments, flop, elements, *keep)
        scratch, at = self.scratch(max(n_in, n_out))
        arguments = (rows.ctypes.data, n_rows, n_in, W.ctypes.data, b.ctypes.data, n_out)
        arguments += (z.ctypes.data, ldz, -1.0, at)
        return self.prepared("dense_forward", arguments, flop, elements, X, W, b, z, rows, scratch)

    def packed(self, W):
        """The copy that `dense_forward_packed` reads, or None where it would not pay."""
        n_in, n_out = W.shape
        n = self.slots["packed_elems"](n_in, n_out)
        if not n:
            return None
        copy = np.empty(n, self.dtype)
        self.slots["pack_weights"](n_in, n_out, 0, n_in, W.ctypes.data, copy.ctypes.data)
        return copy

    def backward(self, n_rows, n_in, n_out):
        """d_input = delta W'."""
        delta, _ = self.matrix(n_rows, n_out)
        d, ldd = self.matrix(n_rows, n_in)
        W, rows = self.array(n_in, n_out), self.pointers(delta)
        scratch, at = self.scratch(max(n_in, n_out))
        arguments = (rows.ctypes.data, n_rows, n_in, W.ctypes.data, n_out)
        arguments += (d.ctypes.data, ldd, -1.0, at)
        keep = (delta, d, W, rows, scratch)
        return self.prepared(
            "dense_backward", arguments, 2.0 * n_rows * n_in * n_out, n_rows * n_in, *keep
        )

    def gradient(self, n_rows, n_in, n_out, optimizer=None):
        """G = x' delta, with the update of the weights where an optimizer is given."""
        X, (delta, ldd) = self.array(n_rows, n_in), self.matrix(n_rows, n_out, scale=1e-3)
        rows = self.pointers(X)
        scratch, at = self.scratch(max(n_in, n_out))
        job = Gradient(
            input_rows=rows.ctypes.data, delta=delta.ctypes.data, ldd=ldd, n_rows=n_rows,
            fan_in=n_in, fan_out=n_out, density=-1.0, accumulate=0, optimizer=-1,
        )  # fmt: skip
        keep = [X, delta, rows, scratch, job]
        if optimizer is None:
            G, g = self.array(n_in, n_out), self.array(n_out)
            job.gradient, job.bias_gradient = G.ctypes.data, g.ctypes.data
            keep += [G, g]
        else:
            h = np.array(N_SCALARS_EXAMPLE[optimizer])
            job.optimizer, job.scalars = OPTIMIZERS.index(optimizer), h.ctypes.data
            arrays = {}
            for name in ("", "_a", "_b"):
                arrays["weight" + name if name else "weights"] = abs(self.array(n_in, n_out))
                arrays["bias" + name] = abs(self.array(n_out))
            arrays["packed"] = self.packed(arrays["weights"])
            for name, array in arrays.items():
                setattr(job, name, None if array is None else array.ctypes.data)
            keep += [h, arrays]
        units = self.slots["gradient_units"](n_in, n_out)
        arguments = (ctypes.addressof(job), 0, units, at)
        return self.prepared(
            "dense_gradient", arguments, 2.0 * n_rows * n_in * n_out, n_in * n_out, *keep
        )

    # Element by element ---------------------------------------------------------------------------

    def activate(self, name, n_rows, n_cols):
        z, ld = self.matrix(n_rows, n_cols)
        y = np.empty_like(z)
        arguments = (LINKS.index(name), n_rows, n_cols, z.ctypes.data, ld, y.ctypes.data, ld)
        return self.prepared("activate", arguments, 0, n_rows * n_cols, z, y)

    def activate_backward(self, name, n_rows, n_cols):
        z, ld = self.matrix(n_rows, n_cols)
        y, delta = self.matrix(n_rows, n_cols)[0], self.matrix(n_rows, n_cols, scale=0.0)[0]
        arguments = (LINKS.index(name), n_rows, n_cols, z.ctypes.data, y.ctypes.data, ld)
        arguments += (delta.ctypes.data, ld)
        return self.prepared("activate_backward", arguments, 0, n_rows * n_cols, z, y, delta)

    def loss(self, name, link, n_rows, n_outputs):
        """Value and gradient on the logits."""
        z, ld = self.matrix(n_rows, n_outputs)
        delta = np.empty_like(z)
        samples, row_loss = np.arange(n_rows), np.empty(n_rows)
        labels = self.rng.integers(0, n_outputs, n_rows)
        targets = (self.rng.random((n_rows, n_outputs)) > 0.5).astype(self.dtype)
        has_labels = name == "cross_entropy"
        job = Loss(
            LOSSES.index(name), LINKS.index(link), 0.5, n_outputs,
            labels.ctypes.data if has_labels else None,
            None if has_labels else targets.ctypes.data, None, float(n_rows),
        )  # fmt: skip
        scratch, at = self.scratch(n_outputs)
        arguments = (ctypes.addressof(job), n_rows, z.ctypes.data, ld, samples.ctypes.data)
        arguments += (delta.ctypes.data, ld, row_loss.ctypes.data, at)
        keep = (z, delta, samples, row_loss, labels, targets, job, scratch)
        return self.prepared("loss", arguments, 0, n_rows * n_outputs, *keep)

    def update(self, optimizer, n):
        """One step of an optimizer on n parameters."""
        g = self.array(1, n, scale=1e-3)
        w, a, b = (abs(self.array(1, n)) for _ in range(3))
        h = np.array(N_SCALARS_EXAMPLE[optimizer])
        arguments = (OPTIMIZERS.index(optimizer), h.ctypes.data, 0.0, 1.0, 1, n, g.ctypes.data, n)
        arguments += (w.ctypes.data, a.ctypes.data, b.ctypes.data, n)
        return self.prepared("update", arguments, 0, n, g, w, a, b, h)
