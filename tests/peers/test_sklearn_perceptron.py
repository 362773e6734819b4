"""Perceptron against scikit-learn's: the same weights, intercepts and epochs, bit for bit.

Decimal features put rows exactly on the edge, where the rounding of a sum decides; so every sum
has to be taken in scikit-learn's order, and what is compared here are bits. (Where a compiler has
fused scikit-learn's multiplications and additions, as on ARM, its last bits are others: there
generated data are compared within rounding.) By default a sample of the cases in which every pair
of settings occurs, with FASTNN_FULL=1 all of them.
"""

import itertools
import os
import platform
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn", "1.9")

from sklearn.datasets import load_digits, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Perceptron as Theirs

from fastnn.sklearn import Perceptron as Ours

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
SAME_BITS = platform.machine() in ("x86_64", "AMD64")

FACTORS = {
    "kind": ("binary", "multiclass", "decimals") if SAME_BITS else ("binary", "multiclass"),
    "dtype": ("float64", "float32"),
    "penalty": (None, "l1", "l2", "elasticnet"),
    "early_stopping": (False, True),
    "shuffle": (True, False),
    "weighted": (False, True),
    "class_weight": (None, "balanced"),
    "fit_intercept": (True, False),
    "format": ("dense", "csr", "csr64", "frame order"),
}
CASES = [dict(zip(FACTORS, values, strict=True)) for values in itertools.product(*FACTORS.values())]


def covering(cases: list[dict]) -> list[dict]:
    """Cases in which every pair of settings occurs."""

    def pairs(case: dict) -> set:
        return set(itertools.combinations(case.items(), 2))

    left = set().union(*map(pairs, cases))
    order = np.random.RandomState(0).permutation(len(cases))
    chosen = []
    for wanted in (24, 12, 4, 1):
        for i in order:
            if len(pairs(cases[i]) & left) >= wanted:
                chosen.append(cases[i])
                left -= pairs(cases[i])
    assert not left
    return chosen


def make_data(kind: str):
    if kind == "decimals":
        return load_iris(return_X_y=True)
    return make_classification(
        80,
        6,
        n_informative=4,
        n_classes=2 if kind == "binary" else 3,
        flip_y=0.2,
        random_state=3,
    )


def as_format(X: np.ndarray, form: str, ours: bool):
    if form.startswith("csr"):
        X = sp.csr_array(X * (np.abs(X) > 0.5))
        if form == "csr64" and ours:  # scikit-learn takes no 64-bit indices
            X.indices, X.indptr = X.indices.astype(np.int64), X.indptr.astype(np.int64)
    return np.asfortranarray(X) if form == "frame order" else X


def check_same(ours: Ours, theirs: Theirs, exact: bool = SAME_BITS) -> None:
    assert (ours.n_iter_, ours.t_) == (theirs.n_iter_, theirs.t_)
    np.testing.assert_array_equal(ours.classes_, theirs.classes_)
    assert ours.coef_.dtype == theirs.coef_.dtype
    assert ours.coef_.shape == theirs.coef_.shape
    intercept = theirs.intercept_.astype(theirs.coef_.dtype)
    if exact:
        np.testing.assert_array_equal(ours.coef_, theirs.coef_)
        np.testing.assert_array_equal(ours.intercept_, intercept)
    else:
        rtol = 1e-9 if ours.coef_.dtype == np.float64 else 1e-3
        np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=rtol, atol=rtol)
        np.testing.assert_allclose(ours.intercept_, intercept, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "case",
    CASES if FULL else covering(CASES),
    ids=lambda case: "-".join(str(value) for value in case.values()),
)
def test_the_same_weights(case):
    X, y = make_data(case["kind"])
    X = X.astype(case["dtype"])
    settings = {
        name: case[name]
        for name in ("penalty", "early_stopping", "shuffle", "class_weight", "fit_intercept")
    }
    settings.update(max_iter=40, alpha=0.003, eta0=0.7, random_state=7)
    weight = 0.3 * np.random.RandomState(1).randint(0, 4, len(y)) if case["weighted"] else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs = Theirs(**settings).fit(
            as_format(X, case["format"], False), y, sample_weight=weight
        )
        ours = Ours(**settings).fit(as_format(X, case["format"], True), y, sample_weight=weight)
    assert theirs.n_iter_ > 1
    check_same(ours, theirs)
    np.testing.assert_allclose(
        ours.decision_function(X),
        theirs.decision_function(X),
        rtol=1e-3 if case["dtype"] == "float32" else 1e-9,
        atol=1e-3 if case["dtype"] == "float32" else 1e-9,
    )


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("tol", [1e-3, None])
def test_ten_classes_of_real_digits(tol, n_threads):
    X, y = load_digits(return_X_y=True)
    settings = {"tol": tol, "max_iter": 1000 if tol else 7}
    theirs = Theirs(**settings).fit(X, y)
    ours = Ours(**settings, n_threads=n_threads).fit(X, y)
    check_same(ours, theirs, exact=True)  # the pixels are whole numbers: no sum is rounded
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("penalty", [None, "elasticnet"])
def test_a_shared_random_stream_and_early_stopping(kind, penalty):
    X, y = make_data(kind)
    settings = {"penalty": penalty, "early_stopping": True, "max_iter": 30}
    theirs = Theirs(**settings, random_state=np.random.RandomState(5))
    ours = Ours(**settings, random_state=np.random.RandomState(5))
    for _ in range(2):  # the second fit goes on in the stream
        check_same(ours.fit(X, y), theirs.fit(X, y))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("penalty", [None, "l1", "l2"])
def test_partial_fit_in_pieces(kind, penalty):
    X, y = make_data(kind)
    settings = {"penalty": penalty, "class_weight": {0: 1.0, 1: 2.5}, "alpha": 0.01}
    theirs, ours = Theirs(**settings), Ours(**settings)
    for piece in np.array_split(np.arange(len(y)), 5) * 3:
        theirs.partial_fit(X[piece], y[piece], classes=np.unique(y))
        ours.partial_fit(X[piece], y[piece], classes=np.unique(y))
        check_same(ours, theirs)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_warm_start_and_given_weights(kind):
    X, y = make_data(kind)
    theirs = Theirs(warm_start=True, penalty="l2", max_iter=3, tol=None)
    ours = Ours(warm_start=True, penalty="l2", max_iter=3, tol=None)
    for _ in range(3):
        check_same(ours.fit(X, y), theirs.fit(X, y))
    coef, intercept = theirs.coef_ + 0.25, theirs.intercept_ - 0.5
    before = coef.copy()
    # scikit-learn learns in the caller's arrays
    theirs = Theirs().fit(X, y, coef_init=coef.copy(), intercept_init=intercept.copy())
    ours = Ours().fit(X, y, coef_init=coef, intercept_init=intercept)
    check_same(ours, theirs)
    np.testing.assert_array_equal(coef, before)


def test_the_books_of_each_epoch(capsys):
    X, y = make_data("multiclass")

    def shown(estimator) -> str:
        estimator.fit(X, y)
        lines = capsys.readouterr().out.splitlines()
        # the seconds differ; joblib's own lines are scikit-learn's business
        return [
            line.split(" took ")[0] for line in lines if line.startswith(("-- ", "Norm", "Conv"))
        ]

    for settings in ({}, {"penalty": "elasticnet"}, {"early_stopping": True, "penalty": "l2"}):
        theirs = shown(Theirs(verbose=1, **settings))
        assert len(theirs) > 30
        assert shown(Ours(verbose=1, **settings)) == theirs
