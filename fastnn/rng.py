"""Counter-based random numbers: Philox4x32-10.

A number follows from its counter and the seed alone, so batches, threads and restarts cannot
change it. This is the definition in NumPy; csrc/random.tmpl.h and csrc/shuffle.c compute the same
numbers.

References
----------
Salmon, Moraes, Dror and Shaw (2011), Parallel random numbers: as easy as 1, 2, 3,
doi 10.1145/2063384.2063405.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["dropout_mask", "permutation", "philox4x32"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

SHUFFLE_STREAM = 1


def philox4x32(counter: Any, seed: int) -> np.ndarray:
    """Ten rounds of Philox on 128-bit counters.

    Parameters
    ----------
    counter : array-like of shape (4, ...), unsigned integers below 2**32
        Words c0..c3 of each counter.
    seed : int
        The 64-bit key.

    Returns
    -------
    ndarray of shape (4, ...), uint32
        The four random words of each counter.
    """
    c = [np.asarray(word, np.uint64) for word in counter]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c[0], _MULTIPLIERS[1] * c[2]
        c = [
            (p1 >> _HALF) ^ c[1] ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _HALF) ^ c[3] ^ np.uint64(k1),
            p0 & _LOW,
        ]
        k0, k1 = k0 + _WEYL[0] & 0xFFFFFFFF, k1 + _WEYL[1] & 0xFFFFFFFF
    return np.stack(np.broadcast_arrays(*c)).astype(np.uint32)


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch.

    Fisher-Yates (Durstenfeld 1964) from the last place down: for q = 0, 1, ... place
    ``i = n - 1 - q`` is swapped with ``j = draw[q] * (i + 1) >> 64``, where the draws are 64-bit
    numbers, two from each Philox block.

    Parameters
    ----------
    n : int
    seed, epoch : int

    Returns
    -------
    ndarray of shape (n,), int64
    """
    order = np.arange(n, dtype=np.int64)
    if n < 2:
        return order
    block = np.arange(n // 2, dtype=np.uint64)
    epoch_word, stream_word = np.uint64(epoch & 0xFFFFFFFF), np.uint64(SHUFFLE_STREAM << 28)
    words = philox4x32((block & _LOW, block >> _HALF, epoch_word, stream_word), seed)
    words = words.astype(np.uint64)
    draws = np.empty(2 * len(block), np.uint64)
    draws[0::2] = words[0] | words[1] << _HALF
    draws[1::2] = words[2] | words[3] << _HALF
    for q in range(n - 1):
        i = n - 1 - q
        j = int(draws[q]) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def dropout_mask(
    n_units: int, rate: float, seed: int, epoch: int, layer: int, rows: Any, stream: int = 2
) -> np.ndarray:
    """Which units of a hidden layer stay in, for each row.

    Parameters
    ----------
    n_units : int
    rate : float
        Share of units left out, ``0 <= rate < 1``.
    seed, epoch : int
    layer : int
        0 is the first hidden layer.
    rows : array-like of shape (n_rows,), int64
        Row numbers in the data set.
    stream : int, default 2
        2 in `Trainer.fit`; 3 in `Trainer.step`, where epoch counts the calls.

    Returns
    -------
    ndarray of shape (n_rows, n_units), bool
        True where the unit is kept: where its random word is at least ``floor(rate * 2**32)``.
    """
    rows = np.asarray(rows, np.uint64)[:, None]
    groups = np.arange(-(-n_units // 4), dtype=np.uint64)[None, :]
    high = np.uint64(stream << 28 | (layer & 0xFFF) << 16) | (rows >> _HALF & np.uint64(0xFFFF))
    words = philox4x32((rows & _LOW, groups, np.uint64(epoch & 0xFFFFFFFF), high), seed)
    words = np.moveaxis(words, 0, -1).reshape(len(rows), -1)[:, :n_units]
    return words >= np.uint32(int(rate * 2**32))
