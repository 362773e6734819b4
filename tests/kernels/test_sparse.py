"""Zeros that are skipped change no bit: the sparse kernels against the dense ones."""

import numpy as np
import pytest
from kernel_calls import OPTIMIZERS
from kernel_references import same_bits

from fastnn.backends import _native

SHAPES = [
    (1, 1, 1),
    (1, 300, 9),
    (3, 17, 2),
    (7, 256, 8),
    (64, 784, 128),
    (33, 257, 31),
    (255, 40, 65),
    (256, 33, 16),
    (257, 33, 17),
    (600, 20, 140),
    (5, 2000, 3),
]
DENSITIES = [0.0, 0.05, 0.3, 1.0]


def problem(rng, dtype, shape, density):
    n, fan_in, fan_out = shape
    X = rng.standard_normal((n, fan_in)) * (rng.random((n, fan_in)) < density)
    X[0] = 0  # a row without anything
    X[:, fan_in // 2] = 0  # and a column
    arrays = X, *(rng.standard_normal(s) for s in ((fan_in, fan_out), fan_out, (n, fan_out)))
    return [a.astype(dtype) for a in arrays]


@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_have_the_bits_of_the_dense_ones(kernels, misaligned, rng, shape, wide):
    for density in DENSITIES:
        X, W, b, delta = problem(rng, kernels.dtype, shape, density)
        z, (g, bias) = kernels.dense_forward(X, W, b), kernels.dense_gradient(X, delta)
        for k in (kernels, misaligned):
            assert same_bits(k.sparse_forward(X, W, b, wide), z)
            got = k.sparse_gradient(X, delta, wide, cuts=(0.3, 0.31, 0.8))
            assert same_bits(got[0], g)
            assert same_bits(got[1], bias)
        into = W, b
        more = kernels.dense_gradient(X, delta, into=into)
        got = kernels.sparse_gradient(X, delta, wide, into=into)
        assert same_bits(got[0], more[0])
        assert same_bits(got[1], more[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_updates_have_the_bits_of_the_dense_ones(kernels, rng, optimizer):
    n_slots, n_scalars = _native.optimizer_shape(OPTIMIZERS.index(optimizer))
    for shape in SHAPES:
        X, W, b, delta = problem(rng, kernels.dtype, shape, 0.2)
        update = {
            "optimizer": optimizer,
            "scalars": rng.uniform(0.1, 0.9, n_scalars),
            "l2": 0.01,
            "weights": W,
            "bias": b,
            "slots": [
                tuple(rng.uniform(0.1, 1, a.shape).astype(kernels.dtype) for a in (W, b))
                for _ in range(n_slots)
            ],
        }
        for into in (None, "drop"):
            expected = kernels.dense_gradient(X, delta, into=into, update=update)
            got = kernels.sparse_gradient(X, delta, into=into, update=update)
            for a, e in zip(got, expected, strict=False):  # the dense one has a packed copy, too
                assert same_bits(a, e), shape


def test_compressed_rows_hold_what_is_not_zero(kernels, misaligned, rng):
    for n_cols in [*kernels.lengths, 100, 784]:
        for density in DENSITIES:
            X = problem(rng, kernels.dtype, (4, n_cols, 1), density)[0]
            X[1, 0], X[2, -1], X[3, n_cols // 3] = (
                np.nan,
                -0.0,
                5e-324 if X.itemsize == 8 else 1e-45,
            )
            for k in (kernels, misaligned):
                for row, (index, value) in zip(X, k.compress_rows(X), strict=True):
                    assert np.array_equal(index, np.flatnonzero(row))
                    assert same_bits(value, row[np.flatnonzero(row)])
