"""What kernels are compared with: fused multiply-adds in plain NumPy, and law 1's order of
summation.
"""

import numpy as np

from fastnn.backends import _native

BLOCK = 256


def two_sum(a, b):
    """a + b = s + e exactly (Knuth 1969)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def two_product(a, b):
    """a * b = p + e exactly, by splitting (Dekker 1971, doi:10.1007/BF01397083)."""

    def split(x):
        c = 134217729.0 * x  # 2^27 + 1
        high = c - (c - x)
        return high, x - high

    p = a * b
    (ah, al), (bh, bl) = split(a), split(b)
    return p, ((ah * bh - p) + ah * bl + al * bh) + al * bl


def to_odd(s, e):
    """s + e rounded to odd: where e != 0, the neighbor with an odd last bit."""
    bits = np.ascontiguousarray(s).view(np.int64)
    away = np.where((e > 0) == (s > 0), 1, -1)
    return np.where((e != 0) & (bits & 1 == 0), bits + away, bits).view(np.float64)


def fma(a, b, c):
    """a * b + c rounded once, for results in the normal range.

    float32 through float64, float64 by Boldo & Melquiond 2008 (doi:10.1109/TC.2007.70819): a sum
    that is rounded to odd may be rounded again without harm.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    if c.dtype == np.float32:
        s, e = two_sum(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
        return to_odd(s, e).astype(np.float32)
    product_high, product_low = two_product(a, b)
    sum_high, sum_low = two_sum(c, product_low)
    high, low = two_sum(product_high, sum_high)
    s, e = two_sum(sum_low, low)
    return high + to_odd(s, e)


def product(A, B, fused: bool):
    """A @ B in law 1's order: chains over blocks of 256 from +0; block sums added in order.

    `fused`: whether each link of a chain is rounded once or, for want of an instruction, twice.
    """
    total = None
    for begin in range(0, A.shape[1], BLOCK):
        chain = np.zeros((A.shape[0], B.shape[1]), A.dtype)
        for p in range(begin, min(begin + BLOCK, A.shape[1])):
            a, b = A[:, p, None], B[None, p, :]
            chain = fma(a, b, chain) if fused else a * b + chain
        total = chain if total is None else total + chain
    return total


def same_bits(a, b) -> bool:
    """Equal shapes, dtypes and bits; any NaN is any other, since its bits are the processor's."""
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    as_bits = np.dtype(f"u{a.dtype.itemsize}")
    equal = np.ascontiguousarray(a).view(as_bits) == np.ascontiguousarray(b).view(as_bits)
    if a.dtype.kind == "f":
        equal |= np.isnan(a) & np.isnan(b)
    return bool(equal.all())


def ulp(exact, dtype):
    """Distance between numbers of the dtype around the exact values (float64 or longdouble)."""
    info = np.finfo(dtype)
    _, exponent = np.frexp(exact)
    exponent = np.maximum(exponent, info.minexp + 1)
    return np.ldexp(np.ones_like(exact), exponent - info.nmant - 1)


def ulp_errors(values, exact):
    """Errors of `values` in units of their last place; infinite where one is finite and the other
    is not.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(values.dtype)
        error = np.abs(values.astype(exact.dtype) - exact) / ulp(exact, values.dtype)
        finite = np.isfinite(rounded) & np.isfinite(values)
        same = (rounded == values) | (np.isnan(rounded) & np.isnan(values))
    return np.where(finite, error, np.where(same, 0.0, np.inf)).astype(np.float64)


def needs_z(name: str) -> bool:
    return _native.activation_needs_z(_native.activation_names().index(name))
