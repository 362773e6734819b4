"""`MLP.compile`: the same bits as predict, from Python and from compiled code."""

import copy
import gc
import os
import pickle
import re
import sys
import types
import warnings

import numba
import numpy as np
import pytest

import fastnn
from fastnn.backends.numba_cpu import predictor


@pytest.fixture(scope="module")
def model():
    return fastnn.MLP([4, 16, 16, 1], activation="tanh", seed=0)


@pytest.fixture(scope="module")
def net(model):
    return model.compile()


X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)


def with_numba(model):
    state = model.__getstate__()
    twin = fastnn.MLP.__new__(fastnn.MLP)
    twin.__setstate__({**state, "backend": "numba"})
    return twin


def test_from_python(model, net):
    expected = with_numba(model).predict(X)
    # Sums of up to 17 terms below 1, rounded otherwise where kernels have no fused multiply-add.
    np.testing.assert_allclose(expected, model.predict(X), rtol=1e-6, atol=1e-6)
    assert net(X).tobytes() == expected.tobytes()
    assert net(X[3]).tobytes() == expected[3].tobytes()
    assert net(X[3]).shape == (1,)
    assert net(X[:0]).shape == (0, 1)
    out = np.empty((30, 1), np.float32)
    assert net(X, out) is out
    assert out.tobytes() == expected.tobytes()
    assert net.layer_sizes == (4, 16, 16, 1)
    assert net.dtype == np.float32


def test_other_kinds_of_x(net):
    for x in (X.tolist(), X.astype(float), np.asfortranarray(X), X[::-1], X.astype(">f4")):
        np.testing.assert_allclose(net(x), net(np.array(x, np.float32)), rtol=1e-6, atol=1e-6)
    frozen = X.copy()
    frozen.flags.writeable = False
    assert net(frozen).tobytes() == net(X).tobytes()


def test_from_compiled_code(net):
    """As a global, as an argument, row by row and in batches, with and without out."""

    @numba.njit(nogil=True)
    def as_global(X, out):
        for i in range(len(X)):
            net(X[i], out[i])

    @numba.njit
    def as_argument(f, X):
        total = 0.0
        for i in range(len(X)):
            total += f(X[i])[0]
        return total, f(X)

    out = np.empty((30, 1), np.float32)
    as_global(X, out)
    assert out.tobytes() == net(X).tobytes()
    total, rows = as_argument(net, X)
    assert rows.tobytes() == out.tobytes()
    assert total == pytest.approx(float(out.sum(dtype=float)), rel=1e-12)
    as_global(X.astype(float).T.copy().T, out)  # another type, another layout
    assert out.tobytes() == net(X).tobytes()


NETS = [
    ((7, 40, 9, 4), ("relu", "softplus"), "softmax", "float32"),
    ((300, 6, 33), ("identity",), "tanh", "float64"),
    ((3, 1), (), "sigmoid", "float64"),
    ((1, 5, 2), ("gelu",), "identity", "float32"),
    ((40, 100, 3), ("elu",), "exp", "float32"),
]
FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")


@pytest.mark.parametrize("case", NETS if FULL else NETS[:1], ids=str)
def test_all_sizes_and_links(case):
    """Tails of vectors, chains of several blocks, odd and even depths."""
    sizes, activation, output, dtype = case
    model = fastnn.MLP(sizes, activation=activation, output=output, dtype=dtype, seed=1)
    model.parameters[:] += np.random.default_rng(1).normal(size=model.parameters.shape) * 0.1
    rows = np.random.default_rng(2).normal(size=(11, sizes[0])).astype(dtype)
    got = model.compile()(rows)
    assert got.tobytes() == with_numba(model).predict(rows).tobytes()
    assert len(np.unique(got)) > 1
    np.testing.assert_allclose(got, model.predict(rows), rtol=1e-5, atol=1e-6)


def test_weights_are_those_of_the_moment(model):
    mine = model.copy()
    net = mine.compile()

    @numba.njit
    def evaluate(x):
        return net(x)[0]

    before = evaluate(X[0])
    mine.parameters[:] *= 0.5
    assert net(X[0])[0] == evaluate(X[0]) == before
    net.refresh()
    assert evaluate(X[0]) != before
    assert evaluate(X[0]) == net(X[0])[0]
    assert net(X).tobytes() == with_numba(mine).predict(X).tobytes()


def test_code_outlives_the_net():
    """What it reads stays, whoever is gone."""

    def make():
        net = fastnn.MLP([4, 8, 1], seed=3).compile()

        @numba.njit
        def evaluate(x):
            return net(x)

        return evaluate, evaluate(X)

    evaluate, expected = make()
    gc.collect()
    np.random.default_rng(0).normal(size=10_000)  # memory that is free is written to
    assert evaluate(X).tobytes() == expected.tobytes()
    assert any(kept.shape == (49,) for kept in predictor._KEPT)


def test_bad_input(net):
    with pytest.raises(ValueError, match="x has 3 features, but this model was built for 4"):
        net(X[:, :3])
    with pytest.raises(TypeError, match="real numbers"):
        net(np.array(["a", "b", "c", "d"]))
    with pytest.raises(ValueError, match="x must have shape"):
        net(X[None])
    with pytest.raises(ValueError, match="NaN or infinity"):
        net(np.array([0, 1, np.nan, 2], np.float32))
    with pytest.raises(ValueError, match="out must have shape"):
        net(X, np.empty((30, 2), np.float32))


def test_bad_input_in_compiled_code(net):
    @numba.njit
    def call(x, out):
        return net(x, out)

    out = np.empty(1, np.float32)
    with pytest.raises(ValueError, match="number of features"):
        call(X[0, :3], out)
    with pytest.raises(ValueError, match="another length"):
        call(X[0], np.empty(2, np.float32))
    with pytest.raises(ValueError, match="NaN or infinity"):
        call(np.full(4, np.inf), out)
    with pytest.raises(ValueError, match="beyond the model's dtype"):
        call(np.full(4, 1e200), out)
    with pytest.raises(numba.TypingError, match="x must be an array"):
        call(1.0, out)
    with pytest.raises(numba.TypingError, match="out must be None or an array"):
        call(X[0], 3)


def test_code_that_calls_it_is_not_cached_on_disk(net, tmp_path, monkeypatch):
    """There, the address of weights would outlive them."""
    (tmp_path / "cached.py").write_text(
        "import numba\nfrom handed_over import net\n"
        "@numba.njit(cache=True)\ndef f(x):\n    return net(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    handed_over = types.ModuleType("handed_over")
    handed_over.net = net
    monkeypatch.setitem(sys.modules, "handed_over", handed_over)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import cached

        cached.f(X[0])
    assert any("dynamic globals" in str(warning.message) for warning in caught)
    assert not list(tmp_path.rglob("*.nbc"))


def test_what_cannot_be(net):
    with pytest.raises(ValueError, match="at most 4096 units; this one has 5000: use predict"):
        fastnn.MLP([2, 5000, 1], seed=0).compile()
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="save the model"):
            copying(net)


def test_report_and_repr(net):
    assert "4-16-16-1 of float32, compiled in" in repr(net)
    report = net.report(n_calls=50)
    lines = report.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "one row, from compiled code",
        "one row, from Python",
        "a row of 1000, from Python",
    ]
    for line in lines[1:]:
        mine, other = (
            float(number) * (1 if unit == "ns" else 1000)
            for number, unit in re.findall(r"([\d.]+) (ns|us)", line)
        )
        assert line.endswith("not faster, use predict") == (mine >= other)
