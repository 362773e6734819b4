"""Plan: sizes, offsets, and the arguments that make no network."""

import sys

import numpy as np
import pytest

import fastnn
from fastnn import plan as plan_module
from fastnn.plan import Plan, check_memory


def make(sizes=(3, 4, 2), dtype="float32", activations=("relu",), output="softmax", dropout=(0.5,)):
    return Plan(sizes, dtype, activations, output, dropout)


def test_sizes_and_offsets():
    plan = make()
    assert (plan.n_layers, plan.n_features, plan.n_outputs) == (2, 3, 2)
    # W0 3*4, b0 4, W1 4*2, b1 2
    assert plan.offsets == ((0, 12), (16, 24))
    assert plan.n_parameters == 26
    assert plan.n_bytes == 104
    assert plan.dtype == np.dtype(np.float32)


def test_equal_and_hashable():
    assert make() == make([3, np.int64(4), 2], np.float32, ["relu"], "softmax", [np.float32(0.5)])
    assert hash(make()) == hash(make())
    assert make() != make(dtype="float64")


@pytest.mark.parametrize("sizes", [(3, 4, 2), [3, 4, 2], np.array([3, 4, 2]), range(2, 5)])
def test_any_sequence_of_sizes(sizes):  # case P9
    assert make(sizes).layer_sizes == tuple(int(size) for size in sizes)


def test_views_cover_the_flat_array_once():
    plan = make((5, 1, 7, 2), activations=("tanh",) * 2, dropout=(0, 0))
    flat = np.zeros(plan.n_parameters, np.float32)
    weights, biases = plan.views(flat)
    assert [W.shape for W in weights] == [(5, 1), (1, 7), (7, 2)]
    assert [b.shape for b in biases] == [(1,), (7,), (2,)]
    for view in weights + biases:
        view += 1
    assert (flat == 1).all()


def test_memory_begins_with_cache_lines():
    """A vector across two lines takes longer: rows of odd length have to lie apart."""
    for dtype in ("float32", "float64"):
        plan = make((7, 5, 3), dtype)
        for n in (0, 1, 2):
            rows = plan.allocate(n)
            assert rows.shape == (n, plan.n_parameters)
            assert rows.dtype == plan.dtype
            assert not rows.any()
            assert all(row.flags.c_contiguous and row.ctypes.data % 64 == 0 for row in rows)
    model = fastnn.MLP([7, 5, 3], seed=0)
    trainer = fastnn.Trainer(model, optimizer="adam", seed=0)
    for array in (model.parameters, model.copy().parameters, *trainer._slots):
        assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"sizes": 3}, TypeError, "layer_sizes must be a list, a tuple or a 1-D array, got 3"),
        ({"sizes": "345"}, TypeError, "layer_sizes must be a list"),
        ({"sizes": {3, 4, 2}}, TypeError, "layer_sizes must be a list"),
        ({"sizes": [3]}, ValueError, "layer_sizes has 1 entries, but a network needs at least 2"),
        ({"sizes": [3, 0, 2]}, ValueError, r"layer_sizes\[1\] must be >= 1, got 0"),
        ({"sizes": [0, 4, 2]}, ValueError, r"layer_sizes\[0\] must be >= 1, got 0"),  # case B5
        ({"sizes": [3, 4.0, 2]}, TypeError, r"layer_sizes\[1\] must be an integer, got 4.0"),
        ({"sizes": [3, True, 2]}, TypeError, r"layer_sizes\[1\] must be an integer"),
        (
            {"activations": ["relu"] * 2},
            ValueError,
            "activation has 2 entries, but there are 1 hidden",
        ),
        (
            {"activations": ["nope"]},
            ValueError,
            r"activation\[0\] must be one of identity, .*'nope'",
        ),
        ({"activations": ["softmax"]}, ValueError, r"activation\[0\] must be one of"),
        ({"output": "nope"}, ValueError, "output must be one of .*softmax.*; got 'nope'"),
        ({"output": None}, TypeError, "output must be one of"),
        ({"dropout": [1.0]}, ValueError, r"dropout\[0\] must be >= 0.0 and < 1.0, got 1.0"),
        ({"dropout": [-0.1]}, ValueError, r"dropout\[0\] must be >= 0.0"),
        ({"dropout": [np.nan]}, ValueError, r"dropout\[0\] must be finite"),
        ({"dropout": [0.1, 0.1]}, ValueError, "dropout has 2 entries"),
        ({"dtype": "float16"}, ValueError, "dtype must be float32 or float64, got 'float16'"),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        make(**arguments)


def test_sizes_beyond_the_address_space():  # cases B8, B10, B11
    with pytest.raises(
        MemoryError, match=r"18446744082299486209 parameters, 73786976329197944836 "
    ):
        make((2**32, 2**32, 1))
    # 2**31 + 8 elements need 64 bits, and are fine.
    plan = make((2**28 + 1, 8, 1))
    assert plan.offsets[0] == (0, 2**31 + 8)


def test_more_than_the_machine_has(monkeypatch):  # case B11
    monkeypatch.setattr(plan_module.os, "sysconf", lambda name: 1024)
    check_memory(2**20, "it")
    with pytest.raises(MemoryError, match="it needs 1048577 bytes, but this machine has 1048576"):
        check_memory(2**20 + 1, "it")
    with pytest.raises(MemoryError):
        check_memory(sys.maxsize + 1, "it")
