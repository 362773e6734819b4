"""`fastnn bench`: it measures what it says, and a contender that did other work gets no ratio."""

import json
import sys
from itertools import pairwise

import numpy as np
import pytest

import fastnn
from fastnn import _bench, _numpy_training, cli
from fastnn.backends.peak import instruction_set, multiply_add_gflops

GROUPS = ["training, Adam", "train_many, Adam", "error correction", "prediction"]


@pytest.fixture(scope="module")
def measured():
    """What `fastnn bench --json` prints, on data cut small."""
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *args, **kwargs: lines.append(args[0]))
        assert cli.main(["bench", "--json", "--seconds", "0.2"]) == 0
    return json.loads("\n".join(lines))


def test_json(measured):
    assert measured["fastnn"] == fastnn.__version__
    assert measured["dtype"] == "float32"
    assert measured["machine"]["threads"] >= 1
    assert measured["machine"]["numpy"] == np.__version__
    assert list(dict.fromkeys(f["group"] for f in measured["figures"])) == GROUPS
    for figure in measured["figures"]:
        assert figure["seconds"] > 0
        assert figure["rows_per_second"] == pytest.approx(figure["rows"] / figure["seconds"])
        assert set(figure["ratios"]) <= {"NumPy", "scikit-learn"}
        assert figure["ratios"]["NumPy"] is None or figure["ratios"]["NumPy"] > 0
        assert (figure["p99"] is not None) == (figure["rows"] == 1)
        if figure["p99"] is not None:
            assert figure["p99"] >= figure["seconds"]


def test_shares_are_of_the_peak(measured):
    shares = [f["share_of_peak"] for f in measured["figures"] if f["gflops"] is not None]
    assert len(shares) == 6
    if instruction_set() is None:
        assert shares == [None] * 6
    else:
        # The peak is measured apart from them: clocks may move by a little between.
        assert all(0 < share < 1.2 for share in shares)


def test_scikit_learn_is_left_out_where_it_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    figure = _bench.Figure("g", "n", 2e-3, 500, ratios={"NumPy": 2.5})
    monkeypatch.setattr(_bench, "figures", lambda dtype, seconds: iter([figure]))
    assert cli.main(["bench"]) == 0
    assert "scikit" not in capsys.readouterr().out
    runs = {"fastnn": lambda seed: 1.0, "NumPy": lambda seed: 1.0, "scikit-learn": None}
    _, ratios = _bench._in_turn(runs, lambda result: result, 0.1, 0.0)
    assert set(ratios) == {"NumPy"}


def test_table(monkeypatch, capsys):
    some = [
        _bench.Figure("training", "wide", 0.25, 5000, 10.0, 0.5, None, {"NumPy": 1.5}),
        _bench.Figure("training", "narrow", 2e-3, 5000, 10.0, None, None, {"NumPy": None}),
        _bench.Figure("prediction", "a row", 8e-7, 1, None, None, 1.25e-5, {"NumPy": 12.345}),
    ]
    for figure in some:
        figure.ratios["scikit-learn"] = 150.4
    asked = []

    def figures(dtype, seconds):
        asked.append((dtype, seconds))
        return iter(some)

    monkeypatch.setattr(_bench, "figures", figures)
    assert cli.main(["bench", "--dtype", "float64", "--seconds", "3"]) == 0
    assert asked == [("float64", 3.0)]
    out = capsys.readouterr().out
    assert "float64, threads: " in out
    lines = [line.split() for line in out.splitlines()]
    assert ["wide", "250", "ms", "20,000", "50%", "1.5x", "150x"] in lines
    assert ["narrow", "2", "ms", "2,500,000", "other", "result", "150x"] in lines
    assert ["a", "row", "800", "ns", "1,250,000", "12.3x", "150x"] in lines
    assert ["99", "of", "100", "calls", "within", "12.5", "µs"] in lines
    assert sum("rows/s" in line for line in lines) == 2  # a head for each group


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf"])
def test_seconds_have_to_be_a_number_above_0(capsys, seconds):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", "--seconds", seconds])
    assert caught.value.code == 2
    assert "expected a number above 0" in capsys.readouterr().err


# measuring


def test_ratio_is_the_median_of_the_rounds():
    times = {"fastnn": [1.0, 1.0, 10.0], "NumPy": [2.0, 3.0, 100.0], "other": [1.0, 1.0, 1.0]}
    same = {"fastnn": True, "NumPy": True, "other": False}
    assert _bench._ratios(times, same) == {"NumPy": 3.0, "other": None}


@pytest.mark.parametrize(("result", "good"), [(1.09, True), (0.91, True), (1.11, False)])
def test_other_work_has_no_ratio(result, good):
    runs = {"fastnn": lambda seed: 1.0, "NumPy": lambda seed: result}
    times, ratios = _bench._in_turn(runs, lambda value: value, 0.1, 0.01)
    assert len(times) >= 3
    assert (ratios["NumPy"] is not None) == good


def test_wrong_outputs_of_our_own_are_an_error():
    runs = {"fastnn": lambda seed: 0.1, "NumPy": lambda seed: 0.0}
    with pytest.raises(ArithmeticError, match="fastnn's own outputs differ"):
        _bench._in_turn(runs, lambda value: value, 0.0, 0.01)


def test_operations_of_the_products():
    work = _bench.Work((3, 5, 2), "relu", "softmax", batch_size=4, epochs=7, band=0.1)
    assert work.flop(10, training=False) == 10 * 2 * (3 * 5 + 5 * 2)
    # Forward and gradient for both layers, back through the second only.
    assert work.flop(10, training=True) == 7 * 10 * 2 * (2 * (3 * 5 + 5 * 2) + 5 * 2)


def test_half_of_the_images_is_dark():
    X, y = _bench._images(500, "float32")
    assert 0.4 < (X == 0).mean() < 0.8
    assert set(y) == set(range(10))
    assert X.min() == 0
    assert X.max() <= 1


def test_multiply_adds():
    if instruction_set() is None:
        assert multiply_add_gflops() is None
        return
    single, double = (multiply_add_gflops(t, seconds=0.02) for t in ("float32", "float64"))
    # Vectors hold twice as many float32.
    assert 1.4 < single / double < 2.8


def test_no_peak_without_compiled_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastnn.backends._native", None)
    monkeypatch.delattr(fastnn.backends, "_native", raising=False)
    assert instruction_set() is None
    assert multiply_add_gflops() is None


# NumPy by hand is the same training as ours


@pytest.mark.parametrize(
    ("activation", "output", "optimizer"),
    [
        ("relu", "softmax", "adam"),
        ("tanh", "identity", "adam"),
        ("sigmoid", "sigmoid", "momentum"),
    ],
)
def test_numpy_by_hand_against_trainer(activation, output, optimizer):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 6))
    sizes = (6, 9, 4, 3)
    y = {
        "softmax": rng.integers(0, 3, 50),
        "identity": rng.standard_normal((50, 3)),
        "sigmoid": rng.integers(0, 2, (50, 3)).astype(float),
    }[output]
    work = _bench.Work(sizes, activation, output, 16, 4, 0.0, 0.01, optimizer)
    model = fastnn.MLP(sizes, activation=activation, output=output, dtype="float64", seed=1)
    start = [(W.copy(), b.copy()) for W, b in zip(model.weights, model.biases, strict=True)]
    rule = fastnn.Adam(0.01) if optimizer == "adam" else fastnn.SGD(0.01, momentum=0.9)
    fastnn.Trainer(model, optimizer=rule, batch_size=16, shuffle=False).fit(X, y, epochs=4)
    orders = np.tile(np.arange(50), (4, 1))
    pairs = _numpy_training.train(work, start, X, y, orders)
    for (W, b), V, a, (W0, _) in zip(pairs, model.weights, model.biases, start, strict=True):
        np.testing.assert_allclose(W, V, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
        assert np.abs(W - W0).max() > 1e-3
    np.testing.assert_allclose(
        _numpy_training.predict(work, pairs, X), model.predict(X), rtol=1e-9, atol=1e-12
    )
    assert len(pairs) == len(list(pairwise(sizes)))
