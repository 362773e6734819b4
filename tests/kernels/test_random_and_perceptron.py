"""Dropout factors and shuffle draws against Philox in NumPy; the perceptron's step against
Rosenblatt's rule.
"""

import itertools

import numpy as np
import pytest
from kernel_references import fma, same_bits


def philox(counter, key):
    """Philox4x32-10 (Salmon et al. 2011), one block: four words in Python's integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def test_philox_is_the_papers():
    """Known answers of the authors' Random123 library, kat_vectors."""
    assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox([ones] * 4, [ones] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


SEED = 0x0123_4567_89AB_CDEF
KEY = (SEED & 0xFFFFFFFF, SEED >> 32)


def dropout_words(row, n_units, epoch, layer, stream):
    """The word of each unit of a row: one of the four of block unit // 4."""
    high = stream << 28 | layer << 16 | row >> 32 & 0xFFFF
    return [philox((row & 0xFFFFFFFF, u // 4, epoch, high), KEY)[u % 4] for u in range(n_units)]


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.999])
def test_dropout_factors(kernels, misaligned, rate):
    samples, epoch, layer, stream = [0, 5, 2**32 + 7, 2**47], 3, 2, 2
    for n_units in [1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 200]:
        words = np.array([dropout_words(row, n_units, epoch, layer, stream) for row in samples])
        expected = np.where(
            words >= np.floor(rate * 2**32),
            kernels.dtype.type(1 / (1 - rate)),
            kernels.dtype.type(0),
        )
        for k in (kernels, misaligned):
            assert same_bits(
                k.dropout_factors(SEED, stream, epoch, layer, rate, samples, n_units), expected
            )
    assert abs((expected == 0).mean() - rate) < 0.06


def test_shuffle_draws(kernels):
    for first in (0, 2**32 - 3):
        for n_blocks in (8, 24):
            words = [
                philox((b & 0xFFFFFFFF, b >> 32, 9, 1 << 28), KEY)
                for b in range(first, first + n_blocks)
            ]
            expected = np.array(
                [d for w in words for d in (w[0] | w[1] << 32, w[2] | w[3] << 32)], np.uint64
            )
            assert same_bits(kernels.shuffle_draws(SEED, 9, first, n_blocks), expected)


def multiply_add(a, b, c):
    """`fma`, also where the result is not finite: nothing overflows on the way there."""
    with np.errstate(all="ignore"):
        result = fma(a, b, c)
        if np.isfinite(result).all():
            return result
        wide = np.longdouble(a) * b.astype(np.longdouble) + c
        return np.where(np.isfinite(result), result, wide.astype(c.dtype))


def textbook_row(kernels, x, target, rate, W, b):
    """One row by Rosenblatt's rule: u = x . w + b in law 1's order, then w += rate (t - y) x, where
    each product is rounded, then each sum. W and b are changed; returns the mistakes.
    """
    u = np.zeros(len(b), kernels.dtype)
    for begin in range(0, len(x), 256):
        chain = np.zeros(len(b), kernels.dtype)
        for p in range(begin, min(begin + 256, len(x))):
            chain = multiply_add(x[p], W[p], chain) if kernels.fused else x[p] * W[p] + chain
        u = u + chain if begin else chain
    error = target.astype(int) - (u + b > 0)
    step = kernels.dtype.type(rate) * error.astype(kernels.dtype)
    moved = step != 0
    W[:, moved] += step[moved] * x[:, None]
    b += step
    return np.count_nonzero(error)


def test_perceptron_rows(kernels, misaligned, rng):
    """Many rows at once are one row after another: no unit sees weights that it should not."""
    seen = set()
    widths = itertools.cycle((1, 2, kernels.lanes, 2 * kernels.lanes + 1, 3 * kernels.lanes))
    for fan_in in [*kernels.lengths, 255, 300, 520, 800, 1100, 1030]:
        for n_outputs in itertools.islice(widths, 2):
            n_rows = int(rng.choice([1, 2, 3, 4, 9, 16]))
            X, W, b = (
                rng.standard_normal(s).astype(kernels.dtype)
                for s in ((n_rows, fan_in), (fan_in, n_outputs), n_outputs)
            )
            # targets that the units mostly meet, so that rows without a mistake come too
            targets = (X @ W + b > 0) ^ (rng.random((n_rows, n_outputs)) < 0.5 / n_outputs)
            w, bias = W.copy(), b.copy()
            each = [
                textbook_row(kernels, x, t, 0.03, w, bias) for x, t in zip(X, targets, strict=True)
            ]
            seen.update(each)
            for k in (kernels, misaligned):
                mistakes, got_w, got_b = k.perceptron_rows(X, targets, 0.03, W, b)
                assert mistakes == sum(each), (fan_in, n_outputs, n_rows)
                assert np.array_equal(got_w, w)
                assert np.array_equal(got_b, bias)
    assert {0, 1, 2} <= seen  # units that move together, too


@pytest.mark.parametrize(
    "case", ["near zero", "small", "vanishing", "large", "overflowing", "other"]
)
def test_perceptron_estimates_decide_as_the_sums_do(kernels, rng, case):
    """Sums that are summed in another order first: where rounding could turn their sign, too."""
    lowest, highest = np.finfo(kernels.dtype).tiny, np.finfo(kernels.dtype).max
    fan_in, n_outputs, n_rows = 300, 3, 9
    undecided = 0
    for trial in range(3):
        W = rng.standard_normal((fan_in, n_outputs))
        X = rng.standard_normal((n_rows, fan_in))
        b = rng.standard_normal(n_outputs)
        if case == "near zero":
            # rows without a part along the units, but for what rounding leaves
            X -= X @ W @ np.linalg.inv(W.T @ W) @ W.T
            b[:] = 0
        elif case == "small":
            X, W, b = X * lowest**0.5, W * lowest**0.5, b * lowest
        elif case == "vanishing":
            X, b = X * lowest / 8, b * 0
        elif case == "large":
            X, W = X * highest**0.5, W * highest**0.25
        elif case == "overflowing":
            X, W = X * highest**0.6, W * highest**0.42
        else:
            X[rng.integers(n_rows), rng.integers(fan_in)] = [np.inf, -np.inf, np.nan][trial % 3]
            X[rng.integers(n_rows)] = 0
            W[:, 1] = 0
        X, W, b = (a.astype(kernels.dtype) for a in (X, W, b))
        targets = rng.integers(0, 2, (n_rows, n_outputs)).astype(bool)
        w, bias = W.copy(), b.copy()
        rate = {"small": lowest, "vanishing": 1.0, "large": 1e-3}.get(case, 0.03)
        with np.errstate(all="ignore"):
            exact = X.astype(float) @ W.astype(float) + b
            sums = np.abs(X).astype(float) @ np.abs(W).astype(float)
            undecided += np.count_nonzero(np.abs(exact) < np.finfo(kernels.dtype).eps * sums)
            mistakes = sum(
                textbook_row(kernels, x, t, rate, w, bias) for x, t in zip(X, targets, strict=True)
            )
        got, got_w, got_b = kernels.perceptron_rows(X, targets, rate, W, b)
        assert got == mistakes, trial
        assert np.array_equal(got_w, w, equal_nan=True)
        assert np.array_equal(got_b, bias, equal_nan=True)
    if case == "near zero":
        assert undecided > 20  # signs that another order of summing would get wrong


def test_perceptron_decides_at_zero(kernels):
    """y = 1 where u > 0: a row on the line counts as 0, and NaN too."""
    for x, target, mistakes in [
        (0.0, 0, 0),
        (0.0, 1, 1),
        (np.nan, 0, 0),
        (np.nan, 1, 1),
        (1.0, 1, 0),
        (1.0, 0, 1),
    ]:
        got, _, _ = kernels.perceptron_rows([[x]], [[target]], 1.0, [[1.0]], [0.0])
        assert got == mistakes, (x, target)


def test_fma_chains(kernels, misaligned, rng):
    """x = x / 2 + 1 / 2 in every value, whole vectors of them."""
    n = kernels.fma_chains(0)
    assert n % kernels.lanes == 0
    x = rng.standard_normal(n).astype(kernels.dtype)
    for n_rounds in (0, 1, 2, 9):
        expected = x
        for _ in range(n_rounds):
            expected = expected * kernels.dtype.type(0.5) + kernels.dtype.type(0.5)
        for k in (kernels, misaligned):
            # a half of x is exact, so that one rounding and two are the same
            assert same_bits(k.fma_chains(n_rounds, x), expected)
