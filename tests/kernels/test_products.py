"""The three matrix products: exact on integers, law 1's bits on real numbers, the same bits in any
split.
"""

import ctypes
import ctypes.util
import itertools
import sys

import numpy as np
import pytest
from kernel_calls import BLOCK, FULL, OPTIMIZERS, SIGNATURES, Kernels
from kernel_references import fma, product, same_bits

from fastnn.backends import _native

EDGES = [255, 256, 257, 513]


def real(rng, *shape):
    """Numbers of both signs, no two alike in size: any change of order shows."""
    return rng.standard_normal(shape) * np.exp2(rng.integers(-6, 7, shape))


def test_every_slot_has_a_caller():
    assert list(SIGNATURES) == _native.slot_names()
    assert all(hasattr(Kernels, name) for name in SIGNATURES)


# --- the reference itself -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reference_fma_is_the_c_librarys(dtype, rng):
    libm = ctypes.CDLL(ctypes.util.find_library("m") if sys.platform != "win32" else "ucrtbase")
    kind = ctypes.c_float if dtype == "float32" else ctypes.c_double
    function = libm.fmaf if dtype == "float32" else libm.fma
    function.argtypes, function.restype = [kind] * 3, kind
    a, b = real(rng, 20_000).astype(dtype), real(rng, 20_000).astype(dtype)
    # Halves of the cases: c cancels the product up to its rounding, where one rounding and
    # two differ.
    c = np.where(rng.random(20_000) < 0.5, -a * b, real(rng, 20_000)).astype(dtype)
    expected = np.array([function(*t) for t in zip(a, b, c, strict=True)], dtype)
    assert same_bits(fma(a, b, c), expected)
    assert (fma(a, b, c) != a * b + c).mean() > 0.3


# --- integers -------------------------------------------------------------------------------------


def random_shape(rng):
    """(n_rows, fan_in, fan_out): small, around vector widths, and around blocks of 256; at most
    2^21 products.
    """
    while True:
        kind = rng.random(3)
        small = rng.integers(1, 91, 3)
        vectors = rng.choice([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65], 3)
        blocks = rng.choice([1, *EDGES], 3)
        shape = np.where(kind < 0.6, small, np.where(kind < 0.85, vectors, blocks))
        if shape.prod() <= 1 << 21:
            return tuple(int(s) for s in shape)


def test_small_integers_are_exact(kernels, rng):
    """Sums of small integers are exact in any order, so that any difference is a fault.

    FASTNN_FULL=1 tries 100,000 shapes.
    """
    kernels.padding = 1
    pool = rng.integers(1, 9, 1 << 20) * rng.choice([-1, 1], 1 << 20)
    pool = pool.astype(kernels.dtype)
    count = total = nonzero = 0
    shapes = set()

    def numbers(*shape):
        n = int(np.prod(shape))
        start = int(rng.integers(0, pool.size - n))
        return pool[start : start + n].reshape(shape)

    for _ in range(100_000 if FULL else 800):
        shape = n, fan_in, fan_out = random_shape(rng)
        shapes.add(shape)
        X, W, b, delta = (
            numbers(n, fan_in), numbers(fan_in, fan_out), numbers(fan_out), numbers(n, fan_out),
        )  # fmt: skip
        X64, W64, delta64 = (a.astype(np.float64) for a in (X, W, delta))
        forward, backward, gradient = X64 @ W64 + b, delta64 @ W64.T, X64.T @ delta64
        assert np.array_equal(kernels.dense_forward(X, W, b), forward), shape
        assert np.array_equal(kernels.dense_backward(delta, W), backward), shape
        g, gb = kernels.dense_gradient(X, delta, cuts=rng.random(count % 3))
        assert np.array_equal(g, gradient), shape
        assert np.array_equal(gb, delta64.sum(0)), shape
        count += 1
        total += forward.size + backward.size + gradient.size
        nonzero += sum(np.count_nonzero(a) for a in (forward, backward, gradient))
    assert nonzero > 0.9 * total
    assert len(shapes) > 0.6 * count


# --- law 1 ----------------------------------------------------------------------------------------

# Narrow outputs, one row, few rows, whole tiles and parts of them, one to three blocks in each
# reduction.
SHAPES = [
    (1, 1, 1), (1, 7, 5), (2, 300, 9), (3, 17, 70), (5, 64, 33), (13, 257, 3), (16, 256, 2),
    (40, 30, 1), (50, 19, 17), (255, 3, 8), (257, 9, 4), (300, 40, 2), (513, 12, 20), (600, 21, 1),
    (7, 513, 6), (6, 5, 513), (33, 2, 300), (4, 600, 40), (70, 130, 12), (100, 33, 7), (64, 65, 16),
]  # fmt: skip


@pytest.mark.parametrize(
    "shape", [(9, 300, 21), (1, 700, 50), (70, 64, 200), (4, 2000, 20)], ids=str
)
def test_packed_weights_change_no_bit(kernels, misaligned, shape, rng):
    """The copy that training keeps, made at once or in parts, or renewed by an update."""
    n, fan_in, fan_out = shape
    X, W, b, delta = (
        real(rng, *s).astype(kernels.dtype)
        for s in ((n, fan_in), (fan_in, fan_out), (fan_out,), (n, fan_out))
    )
    update = {"optimizer": "sgd", "scalars": [0.5], "l2": 0.0, "weights": W, "bias": b, "slots": []}
    for k in (kernels, misaligned):
        packed = k.pack_weights(W)
        assert same_bits(packed, k.pack_weights(W, 0.3))
        assert same_bits(k.dense_forward_packed(X, packed, b), k.dense_forward(X, W, b))
        w, _, renewed = k.dense_gradient(X, delta, update=update, into="drop", cuts=[0.5])
        assert not np.array_equal(w, W)
        assert same_bits(k.unpack_weights(packed, W.shape), W)
        stale, _, only = k.dense_gradient(
            X, delta, update=update, into="drop", cuts=[0.5], only=True
        )
        assert same_bits(stale, W)
        assert same_bits(k.unpack_weights(only, W.shape), w)
        assert same_bits(
            k.dense_forward_packed(X, renewed, b), k.dense_forward(X, np.asarray(w), b)
        )
        assert all(
            same_bits(a, c)
            for a, c in zip(
                k.dense_gradient(X, delta), k.dense_gradient(X, delta, spaced=True), strict=True
            )
        )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_order_of_summation(kernels, shape, rng):
    """Chains of fused multiply-adds over blocks of 256 indices from zero, and the block sums in
    order.
    """
    n, fan_in, fan_out = shape
    X, W, b, delta = (
        real(rng, *s).astype(kernels.dtype)
        for s in ((n, fan_in), (fan_in, fan_out), (fan_out,), (n, fan_out))
    )
    assert same_bits(kernels.dense_forward(X, W, b), product(X, W, kernels.fused) + b)
    assert same_bits(
        kernels.dense_backward(delta, W), product(delta, np.ascontiguousarray(W.T), kernels.fused)
    )
    g, gb = kernels.dense_gradient(X, delta)
    assert same_bits(g, product(np.ascontiguousarray(X.T), delta, kernels.fused))
    assert same_bits(gb, product(np.ones((1, n), kernels.dtype), delta, kernels.fused)[0])


def test_order_is_seen(kernels, rng):
    """The data of the test above tell orders apart: a pairwise sum has other bits."""
    X, W = (real(rng, *s).astype(kernels.dtype) for s in ((20, 300), (300, 20)))
    ours = kernels.dense_forward(X, W, np.zeros(20))
    pairwise = (X[:, :, None] * W[None]).sum(1, dtype=kernels.dtype)
    one_chain = np.zeros((20, 20), kernels.dtype)
    for p in range(300):
        one_chain = fma(X[:, p, None], W[None, p], one_chain)
    assert (ours != pairwise).mean() > 0.5
    assert (ours != one_chain).mean() > 0.1


def random_real_shape(rng):
    return tuple(
        int(rng.choice([rng.integers(1, 30), rng.integers(30, 80), rng.integers(250, 600)]))
        for _ in range(3)
    )


def test_any_split_of_rows_has_the_same_bits(kernels, rng):
    """A row alone, or in any slice of a batch: forward and backward."""
    for _ in range(40):
        n, fan_in, fan_out = random_real_shape(rng)
        n = min(n, 60)
        X, W, b, delta = (
            real(rng, *s) for s in ((n, fan_in), (fan_in, fan_out), (fan_out,), (n, fan_out))
        )
        forward, backward = kernels.dense_forward(X, W, b), kernels.dense_backward(delta, W)
        cuts = sorted({0, n, *rng.integers(0, n, 3)})
        for begin, end in itertools.pairwise(cuts):
            assert same_bits(kernels.dense_forward(X[begin:end], W, b), forward[begin:end])
            assert same_bits(kernels.dense_backward(delta[begin:end], W), backward[begin:end])
        row = int(rng.integers(0, n))
        assert same_bits(kernels.dense_forward(X[row : row + 1], W, b), forward[row : row + 1])


def test_any_split_of_columns_has_the_same_bits(kernels, rng):
    """An output of a layer does not know how many others there are, nor an input."""
    for _ in range(40):
        n, fan_in, fan_out = random_real_shape(rng)
        n = min(n, 40)
        X, W, b, delta = (
            real(rng, *s) for s in ((n, fan_in), (fan_in, fan_out), (fan_out,), (n, fan_out))
        )
        g, gb = kernels.dense_gradient(X, delta)
        some = slice(*sorted(rng.choice(fan_out + 1, 2, replace=False)))
        part = kernels.dense_forward(X, W[:, some], b[some])
        assert same_bits(part, kernels.dense_forward(X, W, b)[:, some])
        part, part_bias = kernels.dense_gradient(X, delta[:, some])
        assert same_bits(part, g[:, some])
        assert same_bits(part_bias, gb[some])
        some = slice(*sorted(rng.choice(fan_in + 1, 2, replace=False)))
        assert same_bits(
            kernels.dense_backward(delta, W[some]), kernels.dense_backward(delta, W)[:, some]
        )
        assert same_bits(kernels.dense_gradient(X[:, some], delta)[0], g[some])


def test_any_split_of_units_has_the_same_bits(kernels, rng):
    """dense_gradient's units of work, in one call or in many: what threads share out."""
    for _ in range(40):
        n, fan_in, fan_out = random_real_shape(rng)
        X, delta = real(rng, min(n, 300), fan_in), real(rng, min(n, 300), fan_out)
        whole = kernels.dense_gradient(X, delta)
        parts = kernels.dense_gradient(X, delta, cuts=rng.random(5))
        assert same_bits(whole[0], parts[0])
        assert same_bits(whole[1], parts[1])


@pytest.mark.parametrize("fan_out", [1, 2, 3, 4, 5, 8, 9, 40])
def test_chunks_of_blocks_have_the_bits_of_the_whole(kernels, fan_out, rng):
    """A gradient gathered over chunks of rows, in whole blocks: however many blocks a chunk has."""
    X, delta = real(rng, 5 * BLOCK + 3, 37), real(rng, 5 * BLOCK + 3, fan_out)
    whole = kernels.dense_gradient(X, delta)
    for ends in ([1], [2], [3, 4], [1, 3], [2, 4]):
        total, begin = None, 0
        for end in [*(e * BLOCK for e in ends), len(X)]:
            total = kernels.dense_gradient(X[begin:end], delta[begin:end], into=total)
            begin = end
        assert same_bits(total[0], whole[0]), ends
        assert same_bits(total[1], whole[1]), ends


def test_long_reductions_stay_accurate(kernels, rng):
    """Over 10^5 rows the error stays far below the n u / 2 that one chain would gather."""
    X, delta = rng.random((100_000, 3)), rng.random((100_000, 5))
    X, delta = X.astype(kernels.dtype), delta.astype(kernels.dtype)
    g, gb = kernels.dense_gradient(X, delta)
    exact = X.astype(np.longdouble).T @ delta.astype(np.longdouble)
    u = np.finfo(kernels.dtype).eps / 2
    # u per link of a chain of 256, u per block sum, each at most the total: (256 + 391) u
    assert np.abs(g / exact - 1).max() < 650 * u
    assert np.abs(gb / delta.astype(np.longdouble).sum(0) - 1).max() < 650 * u


# --- the update fused into the gradient -----------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(9, 40, 3), (300, 5, 7), (20, 70, 70), (5, 3, 1)], ids=str)
def test_fused_update_is_the_update_of_the_gradient(kernels, optimizer, shape, rng):
    """Kept or not, fused or apart: one result. The l2 term is in the weights' gradient, not in the
    bias's.
    """
    n, fan_in, fan_out = shape
    n_slots, n_scalars = _native.optimizer_shape(OPTIMIZERS.index(optimizer))
    X, delta, W, b = (
        real(rng, *s) for s in ((n, fan_in), (n, fan_out), (fan_in, fan_out), (1, fan_out))
    )
    scalars, l2 = rng.uniform(0.1, 0.9, n_scalars), 0.03
    slots = [(rng.random((fan_in, fan_out)), rng.random(fan_out)) for _ in range(n_slots)]
    update = {
        "optimizer": optimizer, "scalars": scalars, "l2": l2,
        "weights": W, "bias": b[0], "slots": slots,
    }  # fmt: skip
    g, gb = kernels.dense_gradient(X, delta)
    w, *s = kernels.update(optimizer, scalars, W, g, [a for a, _ in slots], l2=l2)
    bias, *sb = kernels.update(optimizer, scalars, b, gb[None], [c[None] for _, c in slots])
    expected = [w, bias[0], *(x for pair in zip(s, (a[0] for a in sb), strict=True) for x in pair)]

    dropped = kernels.dense_gradient(X, delta, update=update, into="drop", cuts=rng.random(2))
    kept = kernels.dense_gradient(X, delta, update=update, cuts=rng.random(2))
    assert same_bits(kept[0], g)
    assert same_bits(kept[1], gb)
    assert not same_bits(w, W.astype(kernels.dtype))
    if kernels.packed_elems(fan_in, fan_out):
        expected.append(kernels.pack_weights(w))
    for one, two, three in zip(expected, dropped, kept[2:], strict=True):
        assert same_bits(one, two)
        assert same_bits(one, three)


# --- special values -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_special_values_reach_their_outputs_and_no_other(kernels, value, rng):
    """NaN and infinity in one row or column of an argument: every output that depends on it, and
    only those.
    """
    for n, fan_in, fan_out in [(1, 5, 9), (3, 20, 40), (20, 9, 3), (30, 300, 17), (260, 9, 2)]:
        X, W, delta = (
            rng.uniform(1, 2, (n, fan_in)),
            rng.uniform(1, 2, (fan_in, fan_out)),
            rng.uniform(1, 2, (n, fan_out)),
        )
        r, k, j = (int(rng.integers(0, m)) for m in (n, fan_in, fan_out))
        X[r, k] = value
        z = kernels.dense_forward(X, W, np.zeros(fan_out))
        assert np.array_equal(z[r], np.full(fan_out, value), equal_nan=True)
        assert np.isfinite(np.delete(z, r, 0)).all()
        g, gb = kernels.dense_gradient(X, delta)
        assert np.array_equal(g[k], np.full(fan_out, value), equal_nan=True)
        assert np.isfinite(np.delete(g, k, 0)).all()
        assert np.isfinite(gb).all()
        delta[r, j] = value
        d = kernels.dense_backward(delta, W)
        assert np.array_equal(d[r], np.full(fan_in, value), equal_nan=True)
        assert np.isfinite(np.delete(d, r, 0)).all()
        b = np.zeros(fan_out)
        b[j] = value
        z = kernels.dense_forward(np.ones((n, fan_in)), W, b)
        assert np.array_equal(z[:, j], np.full(n, value), equal_nan=True)
        assert np.isfinite(np.delete(z, j, 1)).all()


def test_zero_times_infinity_is_not_skipped(kernels):
    X = np.zeros((9, 12))
    X[4, 5] = np.inf
    z = kernels.dense_forward(X, np.zeros((12, 3)), np.ones(3))
    assert np.isnan(z[4]).all()
    assert (np.delete(z, 4, 0) == 1).all()


def test_subnormal_numbers_are_kept(kernels):
    tiny = np.finfo(kernels.dtype).smallest_subnormal
    for n, fan_in, fan_out in [(1, 3, 5), (20, 6, 2), (9, 20, 33)]:
        X, W = np.full((n, fan_in), tiny), np.ones((fan_in, fan_out))
        assert (kernels.dense_forward(X, W, np.zeros(fan_out)) == fan_in * tiny).all()
        assert (kernels.dense_backward(np.full((n, fan_out), tiny), W) == fan_out * tiny).all()
        assert (kernels.dense_gradient(X, np.ones((n, fan_out)))[0] == n * tiny).all()


def test_no_rows(kernels):
    """An empty batch: outputs untouched, and a gradient of zeros or of what was there."""
    X, W, delta = np.zeros((0, 9)), np.ones((9, 5)), np.zeros((0, 5))
    assert kernels.dense_forward(X, W, np.zeros(5)).shape == (0, 5)
    assert kernels.dense_backward(delta, W).shape == (0, 9)


# --- memory ---------------------------------------------------------------------------------------


def test_misaligned_arrays_give_the_same_bits(kernels, misaligned, rng):
    """Aligned for the dtype and no more, rows of any stride; the gaps between rows stay as they
    were.
    """
    for _ in range(60):
        n, fan_in, fan_out = (int(v) for v in rng.integers(1, 2 * kernels.lanes + 2, 3))
        X, W, b, delta = (
            real(rng, *s) for s in ((n, fan_in), (fan_in, fan_out), (fan_out,), (n, fan_out))
        )
        assert same_bits(misaligned.dense_forward(X, W, b), kernels.dense_forward(X, W, b))
        assert same_bits(misaligned.dense_backward(delta, W), kernels.dense_backward(delta, W))
        for one, two in zip(
            misaligned.dense_gradient(X, delta), kernels.dense_gradient(X, delta), strict=True
        ):
            assert same_bits(one, two)
