"""Counter-based random numbers: known answers, the textbook's shuffle, and no hidden state."""

import itertools
from collections import Counter
from importlib.util import find_spec

import numpy as np
import pytest

from fastnn import rng

# (counter, key, output) from kat_vectors of Random123, the authors' own library.
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, expected):
    words = rng.philox4x32(counter, key[0] | key[1] << 32)
    assert words.dtype == np.uint32
    assert [int(word) for word in words] == list(expected)


def test_philox_takes_arrays_of_counters():
    counters = np.random.default_rng(0).integers(0, 2**32, size=(4, 5, 3))
    words = rng.philox4x32(counters, 77)
    assert words.shape == (4, 5, 3)
    for place in itertools.product(range(5), range(3)):
        alone = rng.philox4x32(counters[(slice(None), *place)], 77)
        assert words[(slice(None), *place)].tolist() == alone.tolist()


def block(counter, seed):
    return [int(word) for word in rng.philox4x32(counter, seed)]


def textbook_permutation(n, seed, epoch):
    """Durstenfeld's shuffle in Python integers, one draw at a time."""
    order = list(range(n))
    for q in range(n - 1):
        words = block((q // 2 % 2**32, q // 2 >> 32, epoch % 2**32, 1 << 28), seed)
        low, high = words[2 * (q % 2) : 2 * (q % 2) + 2]
        i = n - 1 - q
        j = (low + (high << 32)) * (i + 1) // 2**64
        order[i], order[j] = order[j], order[i]
    return order


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 50])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**64 - 1, 3), (12345, 2**32 - 1)])
def test_permutation_is_the_textbooks(n, seed, epoch):
    order = rng.permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert order.tolist() == textbook_permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))


def test_permutations_differ_by_seed_and_epoch():
    orders = {
        tuple(rng.permutation(20, seed, epoch)) for seed in (0, 1, 2**32) for epoch in range(20)
    }
    assert len(orders) == 60


def test_all_permutations_are_equally_likely():
    """Pearson's test: 23 degrees of freedom exceed 49.7 once in a thousand."""
    n_epochs = 4800
    counts = Counter(tuple(rng.permutation(4, 5, epoch)) for epoch in range(n_epochs))
    assert len(counts) == 24
    expected = n_epochs / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7


@pytest.mark.parametrize("n", [0, 1, 2, 9, 511, 512, 513, 514, 1030, 5000])
def test_the_compiled_permutation_is_the_same(n):
    if find_spec("fastnn.backends._native") is None:
        pytest.skip("no compiled extension")
    from fastnn.backends import _native

    for seed, epoch in ((0, 0), (2**64 - 1, 2**32 - 1), (3, 10**6)):
        expected = rng.permutation(n, seed, epoch)
        assert _native.permutation(n, seed, epoch).tolist() == expected.tolist()


# Dropout ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 7, 2**32 + 5, 2**40])
@pytest.mark.parametrize(("layer", "stream"), [(0, 2), (3, 2), (1, 3)])
def test_dropout_mask_follows_its_definition(row, layer, stream):
    n_units, rate, seed, epoch = 11, 0.3, 99, 6
    mask = rng.dropout_mask(n_units, rate, seed, epoch, layer, [row], stream)
    expected = []
    for unit in range(n_units):
        high = stream << 28 | layer << 16 | row >> 32
        word = block((row % 2**32, unit // 4, epoch, high), seed)[unit % 4]
        expected.append(word >= int(rate * 2**32))
    assert mask.dtype == bool
    assert mask.tolist() == [expected]


def test_dropout_does_not_depend_on_the_batch():  # case R6
    rows = np.array([4, 1, 900, 17])
    together = rng.dropout_mask(13, 0.5, 1, 2, 0, rows)
    for row, mask in zip(rows, together, strict=True):
        assert rng.dropout_mask(13, 0.5, 1, 2, 0, [row]).tolist() == [mask.tolist()]
    # Nor on the width of the layer: the first units of a wider one are the same.
    assert (rng.dropout_mask(40, 0.5, 1, 2, 0, rows)[:, :13] == together).all()


def test_dropout_masks_of_different_keys_differ():
    keys = [
        {},
        {"seed": 8},
        {"seed": 7 + 2**32},
        {"epoch": 1},
        {"layer": 1},
        {"stream": 3},
    ]
    rows = np.arange(8)
    masks = [
        rng.dropout_mask(
            16, 0.5, **{"seed": 7, "epoch": 0, "layer": 0, "rows": rows, "stream": 2, **key}
        )
        for key in keys
    ]
    assert len({mask.tobytes() for mask in masks}) == len(keys)
    assert (masks[0] == rng.dropout_mask(16, 0.5, 7, 0, 0, rows)).all()  # stream 2 is the default


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9, 1 - 2**-53])
def test_share_of_dropped_units(rate):
    mask = rng.dropout_mask(200, rate, 3, 0, 0, np.arange(500))
    # 10^5 draws: five standard deviations
    assert abs((~mask).mean() - rate) <= 5 * (rate * (1 - rate) / mask.size) ** 0.5 + 1e-12
    if rate == 0:
        assert mask.all()
