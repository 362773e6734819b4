"""Calls every slot on arrays between guard pages; a byte read or written outside ends this process.

    python guard_sweep.py ISA DTYPE start|end     prints "done" and the slots that ran
    python guard_sweep.py --fault "read before"   commits that fault, to show that the guards hold

Results must have the bits that the same call gives in ordinary memory.
"""

import ctypes
import itertools
import sys

import numpy as np
from kernel_calls import ACTIVATIONS, FUNCTIONS, LOSSES, OPTIMIZERS, Guarded, Kernels
from kernel_references import needs_z, same_bits

from fastnn.backends import _native

SWEEPS = {}


def sweep(*slots):
    def register(function):
        SWEEPS.update(dict.fromkeys(slots, function))
        return function

    return register


def shapes(lengths):
    """Triples in which every length stands in every place, and long ones that cross a block of
    256.
    """
    lengths = list(lengths)
    for i, n in enumerate(lengths):
        a, b = lengths[(3 * i + 1) % len(lengths)], lengths[(7 * i + 2) % len(lengths)]
        yield from ((n, a, b), (a, n, b), (a, b, n))
    yield from ((2, 257, 5), (257, 5, 2), (5, 2, 257), (9, 40, 300), (300, 9, 1))


def with_zeros(X, rng):
    return X * (rng.random(X.shape) < 0.4)


@sweep("dense_forward")
def dense_forward(k, rng, lengths):
    for n, fan_in, fan_out in [*shapes(lengths), (1, 90, 140)]:
        arguments = [rng.standard_normal(s) for s in ((n, fan_in), (fan_in, fan_out), (fan_out,))]
        check(k, "dense_forward", *arguments)
        check(k, "dense_forward", with_zeros(arguments[0], rng), *arguments[1:], 1.0)


@sweep("packed_elems", "pack_weights", "unpack_weights", "dense_forward_packed")
def packed(k, rng, lengths):
    seen = 0
    for n, fan_in, fan_out in [*shapes(lengths), (3, 300, 21), (9, 90, 140), (1, 257, 33)]:
        X, W, b = (rng.standard_normal(s) for s in ((n, fan_in), (fan_in, fan_out), (fan_out,)))
        if not k.packed_elems(fan_in, fan_out):
            continue
        check(k, "pack_weights", W, 0.4)
        check(k, "unpack_weights", k.pack_weights(W), W.shape)
        check(k, "dense_forward_packed", X, k.pack_weights(W), b)
        check(k, "dense_forward_packed", with_zeros(X, rng), k.pack_weights(W), b, 1.0)
        seen += 1
    assert seen


@sweep("dense_backward")
def dense_backward(k, rng, lengths):
    for n, fan_in, fan_out in [*shapes(lengths), (9, 140, 70)]:
        delta, W = rng.standard_normal((n, fan_out)), rng.standard_normal((fan_in, fan_out))
        check(k, "dense_backward", delta, W)
        check(k, "dense_backward", with_zeros(delta, rng), W, 1.0)


@sweep("dense_gradient")
def dense_gradient(k, rng, lengths):
    for i, (n, fan_in, fan_out) in enumerate([*shapes(lengths), (70, 90, 140)]):
        X, delta = rng.standard_normal((n, fan_in)), rng.standard_normal((n, fan_out))
        check(k, "dense_gradient", X, delta, cuts=[0.5])
        check(k, "dense_gradient", X, delta, spaced=True)
        check(k, "dense_gradient", with_zeros(X, rng), delta, density=1.0)
        check(k, "dense_gradient", X, delta, into=(np.ones((fan_in, fan_out)), np.ones(fan_out)))
        optimizer = OPTIMIZERS[i % len(OPTIMIZERS)]
        n_slots, n_scalars = _native.optimizer_shape(OPTIMIZERS.index(optimizer))
        update = {
            "optimizer": optimizer, "scalars": np.linspace(0.1, 0.9, n_scalars), "l2": 0.1,
            "weights": rng.standard_normal((fan_in, fan_out)), "bias": rng.standard_normal(fan_out),
            "slots": [(rng.random((fan_in, fan_out)), rng.random(fan_out)) for _ in range(n_slots)],
        }  # fmt: skip
        check(k, "dense_gradient", X, delta, update=update, into="drop", cuts=[0.3])
        check(k, "dense_gradient", X, delta, update=update)


@sweep("gradient_units")
def gradient_units(k, rng, lengths):
    for fan_in in lengths:
        assert k.gradient_units(fan_in, 3) >= 1


@sweep("activate")
def activate(k, rng, lengths):
    for name in ACTIVATIONS:
        for n in lengths:
            check(k, "activate", name, rng.standard_normal((3, n)))
            check(k, "activate", name, rng.standard_normal((2, n)), in_place=True)


@sweep("activate_backward")
def activate_backward(k, rng, lengths):
    for name in ACTIVATIONS:
        for n in lengths:
            z, y, delta = (rng.uniform(0.1, 0.9, (3, n)) for _ in range(3))
            check(k, "activate_backward", name, z if needs_z(name) else None, y, delta)


@sweep("multiply")
def multiply(k, rng, lengths):
    for n in lengths:
        check(k, "multiply", rng.standard_normal((3, n)), rng.standard_normal((3, n)))


@sweep("softmax")
def softmax(k, rng, lengths):
    for n_rows in lengths:
        for n in (1, 2, 7, *list(lengths)[-2:]):
            check(k, "softmax", rng.standard_normal((n_rows, n)))


@sweep("loss")
def loss(k, rng, lengths):
    links = ["identity", "sigmoid", "exp", "softmax"]
    for name in LOSSES:
        for n_rows in lengths:
            for n in (1, 3, 10):
                z, t = rng.uniform(-1, -0.1, (n_rows, n)), rng.uniform(0.1, 0.9, (n_rows, n))
                weight = rng.uniform(0.5, 1, n_rows)
                for link in links:
                    if link == "identity" and name in (
                        "poisson",
                        "binary_cross_entropy",
                        "cross_entropy",
                    ):
                        continue
                    check(k, "loss", name, link, z, targets=t, weight=weight, parameter=0.5)
                labels = rng.integers(0, n, n_rows)
                if name == "cross_entropy":
                    check(k, "loss", name, "softmax", z, labels=labels)
                    check(
                        k,
                        "loss",
                        name,
                        "sigmoid",
                        z,
                        labels=labels,
                        samples=rng.permutation(n_rows),
                    )


@sweep("link_jacobian")
def link_jacobian(k, rng, lengths):
    for n in lengths:
        for link in ("identity", "sigmoid", "softmax", "gelu"):
            check(k, "link_jacobian", link, n - 1, rng.random((2, n)), rng.random((2, n)))


@sweep("update")
def update(k, rng, lengths):
    for i, name in enumerate(OPTIMIZERS):
        n_slots, n_scalars = _native.optimizer_shape(i)
        for n in lengths:
            w, g, *slots = (rng.uniform(0.1, 1, (2, n)) for _ in range(2 + n_slots))
            check(
                k, "update", name, np.linspace(0.1, 0.9, n_scalars), w, g, slots, l2=0.1, scale=0.5
            )


@sweep("sum_of_squares")
def sum_of_squares(k, rng, lengths):
    for n in lengths:
        check(k, "sum_of_squares", rng.standard_normal(n))


@sweep("add_scaled")
def add_scaled(k, rng, lengths):
    for n in lengths:
        check(k, "add_scaled", 0.3, rng.standard_normal(n), rng.standard_normal(n))


@sweep("all_finite")
def all_finite(k, rng, lengths):
    for n in lengths:
        check(k, "all_finite", rng.standard_normal(n))


@sweep("elementwise")
def elementwise(k, rng, lengths):
    for name in FUNCTIONS:
        for n in lengths:
            check(k, "elementwise", name, rng.uniform(0.1, 3, n))


@sweep("dropout_factors")
def dropout_factors(k, rng, lengths):
    for n in [*lengths, 31, 32, 33, 64, 65]:
        check(k, "dropout_factors", 1, 2, 3, 4, 0.5, [1, 2, 3], n)


@sweep("shuffle_draws")
def shuffle_draws(k, rng, lengths):
    for n in (8, 16, 24):
        check(k, "shuffle_draws", 1, 2, 3, n)


@sweep("perceptron_rows")
def perceptron_rows(k, rng, lengths):
    for fan_in, n_rows in zip([*lengths, 300], itertools.cycle((1, 3, 16, 9)), strict=False):
        for n in (1, 2, *list(lengths)[-2:]):
            check(
                k,
                "perceptron_rows",
                rng.standard_normal((n_rows, fan_in)),
                rng.integers(0, 2, (n_rows, n)),
                0.5,
                np.ones((fan_in, n)),
                np.ones(n),
            )


@sweep("sparse_forward", "sparse_gradient")
def sparse(k, rng, lengths):
    for i, (n, fan_in, fan_out) in enumerate(shapes(lengths)):
        X = rng.standard_normal((n, fan_in)) * (rng.random((n, fan_in)) < (0, 0.2, 0.9)[i % 3])
        W, b, delta = (rng.standard_normal(s) for s in ((fan_in, fan_out), fan_out, (n, fan_out)))
        wide = i % 2 == 1
        check(k, "sparse_forward", X, W, b, wide)
        check(k, "sparse_gradient", X, delta, wide)


@sweep("small_layout", "small_load", "small_store", "small_step")
def small_networks(k, rng, lengths):
    for i, width in enumerate(lengths):
        optimizer = OPTIMIZERS[i % len(OPTIMIZERS)]
        n_slots, n_scalars = _native.optimizer_shape(OPTIMIZERS.index(optimizer))
        sizes = [(1, width, 2), (width, 3, 1), (5, 2, width)][i % 3]
        n_parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        network = (
            sizes,
            [ACTIVATIONS[i % len(ACTIVATIONS)], "identity"],
            "squared_error",
            rng.standard_normal(n_parameters),
            [rng.uniform(0.1, 1, n_parameters) for _ in range(n_slots)],
        )
        n = [1, 3, 7, 64][i % 4]
        check(
            *(k, "small_step", network, rng.standard_normal((n, sizes[0]))),
            *(rng.standard_normal((n, sizes[-1])), optimizer, np.full(n_scalars, 0.1), 0.01, 2),
            given=i % 2 == 1,
        )


@sweep("fma_chains")
def fma_chains(k, rng, lengths):
    check(k, "fma_chains", 5, rng.standard_normal(k.fma_chains(0)))


def check(kernels, slot, *args, **kwargs):
    """Call the slot in the kernels' memory and in ordinary memory: the same bits."""
    ordinary = Kernels(kernels.isa, kernels.dtype.name)
    results, expected = (getattr(k, slot)(*args, **kwargs) for k in (kernels, ordinary))
    if not isinstance(results, tuple):
        results, expected = (results,), (expected,)
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
        assert same_bits(a, b), (slot, args, kwargs)


def commit(fault):
    memory = Guarded("start" if fault.endswith("before") else "end")
    array = memory.put(np.ones(5, np.uint8))
    at = array.ctypes.data + (-1 if fault.endswith("before") else 5)
    print("alive", flush=True)
    if fault.startswith("read"):
        ctypes.string_at(at, 1)
    else:
        ctypes.memset(at, 0, 1)
    print("survived")


def main():
    if sys.argv[1] == "--fault":
        commit(sys.argv[2])
        return
    isa, dtype, side = sys.argv[1:]
    rng = np.random.default_rng(3)
    done = []
    for name, function in SWEEPS.items():
        for padding in (0, 1):
            kernels = Kernels(isa, dtype, Guarded(side), padding)
            function(kernels, rng, kernels.lengths)
        done.append(name)
    print("done", *done)


if __name__ == "__main__":
    main()
