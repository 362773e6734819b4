"""Zeros that are skipped change no bit: rows stored without them, and dense ones, where it pays."""

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


# Dense arrays whose zeros are skipped -------------------------------------------------------------

ALL, NONE = 1.0, -1.0  # densities up to which zeros are skipped

# Whole groups of columns and what is left beside them, parts of chains, several blocks, one row.
SKIPPED = [
    (64, 784, 128),
    (40, 300, 512),
    (1, 90, 140),
    (3, 257, 100),
    (33, 140, 257),
    (257, 130, 70),
    (600, 70, 129),
    (70, 520, 64),
    (50, 270, 97),
    (40, 130, 32),
]


def half_zeros(rng, dtype, shape, density):
    """X and delta with zeros of both signs, and the least of normal numbers. (A product that
    underflows leaves a -0, which a +0 that is not skipped would turn.)"""
    X, W, b, delta = problem(rng, dtype, shape, density)
    delta *= rng.random(delta.shape) < density
    for a in (X, delta):
        a[rng.random(a.shape) < 0.1] = -0.0
        a[0, 0] = np.finfo(dtype).tiny
    return X, W, b, delta


@pytest.mark.parametrize("shape", SKIPPED, ids=str)
def test_zeros_are_skipped_without_changing_a_bit(kernels, misaligned, rng, shape):
    for density in (0.0, 0.02, 0.5, 1.0):
        X, W, b, delta = half_zeros(rng, kernels.dtype, shape, density)
        packed = kernels.pack_weights(W)
        z = kernels.dense_forward(X, W, b)
        d = kernels.dense_backward(delta, W)
        for k in (kernels, misaligned):
            assert same_bits(k.dense_forward_packed(X, packed, b, ALL), z)
            for r in (0, len(X) // 2):  # a row by itself
                assert same_bits(k.dense_forward(X[r : r + 1], W, b, ALL), z[r : r + 1])
            assert same_bits(k.dense_backward(delta, W, ALL), d)
        for options in ({}, {"cuts": (0.3, 0.31, 0.8)}, {"spaced": True}, {"into": (W, b)}):
            expected = kernels.dense_gradient(X, delta, **options)
            for k in (kernels, misaligned):
                got = k.dense_gradient(X, delta, density=ALL, **options)
                assert all(same_bits(*pair) for pair in zip(got, expected, strict=True)), options


def test_what_is_not_finite_is_not_skipped(kernels, rng):
    X, W, b, delta = half_zeros(rng, kernels.dtype, (50, 300, 200), 0.4)
    X[3, 7], X[20, 290], delta[9, 60], delta[40, 199] = np.nan, np.inf, np.nan, -np.inf
    X[[9, 40]] = 1  # what multiplies them is not zero
    packed = kernels.pack_weights(W)
    for density in (ALL, NONE):
        z = kernels.dense_forward_packed(X, packed, b, density)
        for r in (0, 3, 20):
            assert same_bits(kernels.dense_forward(X[r : r + 1], W, b, density), z[r : r + 1])
        assert np.isnan(z[3]).all()
        assert not np.isfinite(z[20]).any()
        assert np.isfinite(np.delete(z, (3, 20), axis=0)).all()
        d = kernels.dense_backward(delta, W, density)
        assert np.isnan(d[9]).all()
        assert not np.isfinite(d[40]).any()
        g, _ = kernels.dense_gradient(X, delta, density=density)
        assert np.isnan(g[:, 60]).all()
        assert not np.isfinite(g[[7, 290]][:, delta[[3, 20]].all(axis=0)]).any()


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_sample_decides_whether_zeros_are_skipped(kernels, rng, share):
    """Seen by what 0 times infinity becomes, which only a product that does not skip computes."""
    for density in (0.1, 0.25, 0.4, 0.55, 0.7, 0.9):
        if abs(density - share) < 0.1:
            continue
        X, W, b, delta = problem(rng, kernels.dtype, (80, 512, 128), density)
        delta *= rng.random(delta.shape) < density
        skips = density < share
        packed = kernels.pack_weights(np.full_like(W, np.inf))
        z = kernels.dense_forward_packed(X, packed, b, share)
        assert np.isnan(z[0]).all() != skips  # its inputs are zeros
        delta[0] = 0
        d = kernels.dense_backward(delta, np.full_like(W, np.inf), share)
        assert np.isnan(d[0]).all() != skips
        delta[:] = np.inf
        g, _ = kernels.dense_gradient(X, delta, density=share)
        assert np.isnan(g[256]).all() != skips
