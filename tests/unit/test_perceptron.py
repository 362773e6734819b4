"""Perceptron: error-correction learning by the book, and units set by hand."""

import copy
import pickle

import numpy as np
import pytest

from fastnn import Perceptron

INPUTS = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
AND, OR, NAND, XOR = ([0, 0, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0])


@pytest.fixture
def make(backend_name):
    return lambda **arguments: Perceptron(backend=backend_name, **arguments)


def textbook(X, t, rate, max_epochs):
    """u = x w + b, y = H(u), w += rate (t - y) x, b += rate (t - y), until no mistake."""
    w, b, errors = np.zeros((X.shape[1], t.shape[1])), np.zeros(t.shape[1]), []
    for _ in range(max_epochs):
        mistakes = 0
        for x, target in zip(X, t, strict=True):
            y = (x @ w + b > 0).astype(float)
            mistakes += int((y != target).sum())
            w += rate * np.outer(x, target - y)
            b += rate * (target - y)
        errors.append(mistakes)
        if not mistakes:
            break
    return w, b, errors


@pytest.mark.parametrize("target", [AND, OR, NAND])
def test_learns_what_a_line_divides(make, target):
    unit = make().fit(INPUTS, target)
    assert unit.converged_
    assert unit.predict(INPUTS).tolist() == target
    assert unit.errors_[-1] == 0
    w, b, errors = textbook(INPUTS, np.array(target)[:, None], 1.0, 1000)
    assert unit.weights.tolist() == w[:, 0].tolist()
    assert unit.bias == b[0]
    assert unit.errors_.tolist() == errors


def test_xor_is_impossible_for_one_unit(make):
    unit = make(max_epochs=57).fit(INPUTS, XOR)
    assert not unit.converged_
    assert unit.errors_.shape == (57,)
    assert unit.errors_.min() > 0


def test_xor_out_of_three_units_set_by_hand(backend_name):
    first = Perceptron.from_weights([[1, -1], [1, -1]], [-0.5, 1.5], backend=backend_name)
    hidden = first.predict(INPUTS)
    np.testing.assert_array_equal(hidden, np.column_stack([OR, NAND]))
    last = Perceptron.from_weights([1, 1], -1.5, backend=backend_name)
    assert last.predict(hidden).tolist() == XOR


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_several_outputs_by_the_book(make, dtype, rate):
    generator = np.random.default_rng(1)
    X = generator.integers(-5, 6, (40, 7)).astype(float)  # integers: the sums are exact
    t = (X @ generator.normal(size=(7, 3)) > 0).astype(int)
    unit = make(learning_rate=rate, max_epochs=9, dtype=dtype).fit(X, t)
    w, b, errors = textbook(X, t, rate, 9)
    np.testing.assert_array_equal(unit.weights, w)
    np.testing.assert_array_equal(unit.bias, b)
    assert unit.errors_.tolist() == errors
    assert unit.weights.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(unit.decision_function(X), X @ w + b)


@pytest.mark.parametrize("t", [AND, np.array(AND)[:, None], np.column_stack([AND, OR])])
def test_shapes_follow_the_targets(make, t):
    unit = make().fit(INPUTS, t)
    assert unit.predict(INPUTS).shape == np.shape(t)
    assert unit.decision_function(INPUTS).shape == np.shape(t)
    assert unit.weights.shape == (2, *np.shape(t)[1:])
    assert np.shape(unit.bias) == np.shape(t)[1:]
    assert unit.predict(INPUTS).dtype == np.int64
    assert unit.predict(INPUTS[:0]).shape == (0, *np.shape(t)[1:])
    again = Perceptron.from_weights(unit.weights, unit.bias, backend=unit.backend)
    np.testing.assert_array_equal(again.predict(INPUTS), t)


def test_zero_is_not_above_zero(backend_name):
    unit = Perceptron.from_weights([1.0], 0.0, backend=backend_name)
    assert unit.predict([[0.0], [-0.0], [5e-324], [-5e-324]]).tolist() == [0, 0, 1, 0]


def test_fit_starts_over(make):
    unit = make()
    first = unit.fit(INPUTS, AND).weights.tolist()
    assert unit.fit(INPUTS, OR).predict(INPUTS).tolist() == OR
    assert unit.fit(INPUTS, AND).weights.tolist() == first


def test_shuffling_by_seed(make):
    generator = np.random.default_rng(2)
    X = generator.normal(size=(30, 3))
    t = (X @ [1, 2, 3] > 0.5).astype(int)

    def weights(**arguments):
        return make(**arguments).fit(X, t).weights.tolist()

    assert weights(shuffle=True, seed=1) == weights(shuffle=True, seed=1)
    assert weights(shuffle=True, seed=1) != weights(shuffle=True, seed=2)
    assert weights(seed=1) == weights(seed=2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_no_bit_depends_on_the_number_of_threads(monkeypatch, dtype, shuffle):
    """Units are shared out; every one sees all rows in the same order."""
    _native = pytest.importorskip("fastnn.backends._native")
    rng = np.random.default_rng(4)
    before = _native.set_work_per_thread(0.0)
    try:
        for n_outputs, n_features in ((1, 5), (2, 300), (7, 3), (11, 70)):
            X = rng.integers(-9, 9, (90, n_features))
            t = X @ rng.standard_normal((n_features, n_outputs)) > rng.standard_normal(n_outputs)
            t[::7] ^= rng.random(t[::7].shape) < 0.2
            for rows in (X, X.astype(dtype)):
                seen = []
                for n_threads in (1, 2, 3, 8):
                    monkeypatch.setenv("FASTNN_NUM_THREADS", str(n_threads))
                    unit = Perceptron(max_epochs=20, shuffle=shuffle, seed=1, dtype=dtype)
                    unit.fit(rows, t)
                    seen.append((unit.weights.tobytes(), unit.bias.tobytes(), list(unit.errors_)))
                assert all(other == seen[0] for other in seen[1:])
                assert 0 in seen[0][2] or len(seen[0][2]) == 20
    finally:
        _native.set_work_per_thread(before)


def test_kinds_of_arrays(make):  # cases A1, A4, A8, B13
    X = np.random.default_rng(3).integers(0, 256, (50, 4))
    t = (X[:, 0] > X[:, 1]).astype(int)
    expected = make(max_epochs=20).fit(X.astype(float), t).weights.tolist()
    for rows in (
        X.astype(np.uint8),
        np.asfortranarray(X),
        X.tolist(),
        X.astype(">f4"),
        X[::-1][::-1],
    ):
        for targets in (t, t.astype(bool), t.astype(float), t.tolist()):
            assert make(max_epochs=20).fit(rows, targets).weights.tolist() == expected


@pytest.mark.parametrize(
    ("X", "t", "kind", "message"),
    [
        (INPUTS, [0, 1, 2, 1], ValueError, "t must be 0 or 1, got 2:"),
        (INPUTS, [-1, 1, 1, 1], ValueError, "t must be 0 or 1, got -1:"),
        (INPUTS, [0, 1, np.nan, 1], ValueError, "t must be 0 or 1, got nan"),
        (INPUTS, [0, 1], ValueError, r"t must have shape \(4,\) or \(4, n_outputs\), got \(2,\)"),
        (INPUTS, np.zeros((4, 0)), ValueError, "t must have shape"),
        (INPUTS, list("abab"), TypeError, "t must hold real numbers"),
        (INPUTS[:0], [], ValueError, r"X has shape \(0, 2\)"),
        (INPUTS[:, :0], AND, ValueError, r"X has shape \(4, 0\)"),
        (INPUTS + np.inf, AND, ValueError, "X contains inf"),
        (INPUTS[0], AND, ValueError, "X must have shape"),
    ],
)
def test_wrong_data_change_nothing(make, X, t, kind, message):
    unit = make().fit(INPUTS, OR)
    with pytest.raises(kind, match=message):
        unit.fit(X, t)
    assert unit.predict(INPUTS).tolist() == OR


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"learning_rate": 0}, ValueError),
        ({"learning_rate": "1"}, TypeError),
        ({"max_epochs": 0}, ValueError),
        ({"shuffle": "yes"}, TypeError),
        ({"seed": -1}, ValueError),
        ({"dtype": "int32"}, ValueError),
    ],
)
def test_wrong_arguments(make, arguments, kind):
    with pytest.raises(kind):
        make(**arguments)


@pytest.mark.parametrize(
    ("weights", "bias", "message"),
    [
        ([1, 2], [1, 2], r"bias must be a number, one per output, got shape \(2,\)"),
        ([[1], [2]], 1, r"bias must be of shape \(1,\), one per output, got shape \(\)"),
        ([1, np.nan], 1, "weights contains nan"),
        ([1, 2], np.inf, "bias contains inf"),
        (1, 1, "weights must have shape"),
        ([], 1, "weights must have shape"),
    ],
)
def test_wrong_weights(backend_name, weights, bias, message):
    with pytest.raises(ValueError, match=message):
        Perceptron.from_weights(weights, bias, backend=backend_name)


def test_asking_before_learning(make):
    unit = make()
    for ask in (lambda: unit.predict(INPUTS), lambda: unit.weights, lambda: unit.bias):
        with pytest.raises(AttributeError, match="has no weights yet: call fit"):
            ask()
    with pytest.raises(ValueError, match="X has 3 features, but this model was built for 2"):
        unit.fit(INPUTS, OR).predict([[1, 2, 3]])


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))])
@pytest.mark.parametrize("fitted", [False, True])
def test_copies(make, way, fitted):  # cases P1, P2
    unit = make(learning_rate=0.5)
    if fitted:
        unit.fit(INPUTS, OR)
    other = way(unit)
    assert other.fit(INPUTS, AND).predict(INPUTS).tolist() == AND
    if fitted:
        assert unit.predict(INPUTS).tolist() == OR
    else:
        assert not hasattr(unit, "errors_")
