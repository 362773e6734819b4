"""fastnn.sklearn.Perceptron: what it does otherwise than scikit-learn, errors, copies, signals."""

import copy
import os
import pickle
import signal
import sys
import threading
import time
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn", "1.9")

import joblib
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import Perceptron as SklearnPerceptron
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.utils.estimator_checks import check_estimator

from fastnn.sklearn import Perceptron


@pytest.fixture(scope="module", params=[2, 3])
def data(request):
    X, y = make_classification(
        120, 8, n_informative=5, n_classes=request.param, flip_y=0.1, random_state=0
    )
    return X, np.array(["no", "perhaps", "yes"])[y]


def state_of(clf) -> tuple:
    return clf.coef_.copy(), clf.intercept_.copy(), clf.classes_.copy()


def assert_same_state(one: tuple, other: tuple) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_rule_by_hand():
    """Two rows of Rosenblatt's rule: x1 is on the edge at w = 0, x2 then on the right side."""
    X = np.array([[2.0, 1.0], [-1.0, 3.0]])
    clf = Perceptron(shuffle=False, max_iter=1, tol=None).fit(X, [1, 0])
    # Row 1: p = 0, so w = (2, 1), b = 1. Row 2: p = -2 + 3 + 1 = 2 > 0 but y = -1: w -= x, b -= 1.
    np.testing.assert_array_equal(clf.coef_, [[3.0, -2.0]])
    np.testing.assert_array_equal(clf.intercept_, [0.0])
    np.testing.assert_array_equal(clf.decision_function(X), [4.0, -9.0])
    np.testing.assert_array_equal(clf.predict(X), [1, 0])


def test_it_is_a_perceptron_of_scikit_learn():
    clf = Perceptron()
    assert isinstance(clf, SklearnPerceptron)
    theirs = SklearnPerceptron().get_params()
    assert {name: clf.get_params()[name] for name in theirs} == theirs
    assert set(clf.get_params()) - set(theirs) == {"n_threads"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"penalty": "elasticnet", "alpha": 0.01},
        {"penalty": "l1", "shuffle": False, "fit_intercept": False},
        {"early_stopping": True, "validation_fraction": 0.4},
        {"eta0": 0.5, "max_iter": 2, "warm_start": True, "n_jobs": 2},
    ],
    ids=str,
)
def test_check_estimator(settings):
    """What scikit-learn's own class with these settings passes, and at least all but two checks.

    No learner that takes rows one after the other can pass those: they demand that a weight of 2
    be the same as a row twice.
    """

    def failures(cls) -> set:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = check_estimator(cls(**settings), on_fail=None, on_skip=None)
        assert len(results) > 40
        skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
        assert skipped <= {"check_array_api_input"}  # needs SCIPY_ARRAY_API=1 at start
        return {r["check_name"] for r in results if r["status"] == "failed"}

    ours = failures(Perceptron)
    weights = {
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weight_equivalence_on_sparse_data",
    }
    if settings:
        # Such as data too few to hold out some of each class, or without an intercept.
        assert ours <= failures(SklearnPerceptron)
    else:
        assert ours == weights


def test_ones_as_weights_change_no_bit(data):
    """Row W1."""
    X, y = data
    plain = Perceptron().fit(X, y)
    weighted = Perceptron().fit(X, y, sample_weight=np.ones(len(y)))
    assert_same_state(state_of(plain), state_of(weighted))


def test_weights_that_are_all_zero(data):
    """Row W5: `partial_fit` moves nothing, `fit` says so."""
    X, y = data
    zeros = np.zeros(len(y))
    clf = Perceptron(penalty="l2").partial_fit(X, y, classes=np.unique(y))
    before, t = state_of(clf), clf.t_
    clf.partial_fit(X, y, sample_weight=zeros)
    assert_same_state(state_of(clf), before)
    assert clf.t_ == t
    first = Perceptron().partial_fit(X, y, classes=np.unique(y), sample_weight=zeros)
    assert not first.coef_.any()
    with pytest.raises(ValueError, match="non-zero"):
        Perceptron().fit(X, y, sample_weight=zeros)


def test_negative_weights(data):
    """Row W8."""
    X, y = data
    for method in (
        Perceptron().fit,
        lambda *a, **k: Perceptron().partial_fit(*a, np.unique(y), **k),
    ):
        with pytest.raises(ValueError, match=r"[Nn]egative"):
            method(X, y, sample_weight=-np.ones(len(y)))


def test_warm_start_with_other_classes(data):
    """Row S11: the error lists both sets, and nothing has changed."""
    X, y = data
    clf = Perceptron(warm_start=True).fit(X, y)
    before = state_of(clf)
    with pytest.raises(ValueError, match=r"'no'.*'other'"):
        clf.fit(X, np.where(y == "no", "other", y))
    assert_same_state(state_of(clf), before)


@pytest.mark.parametrize("weights", [None, "sample"])
def test_one_class(weights):
    """Row L4."""
    with pytest.raises(ValueError, match=r"greater than one; got 1 class.*'a'"):
        Perceptron().fit(np.eye(3), ["a", "a", "a"])


@pytest.mark.parametrize(
    "labels", [(10, 20, 30), (5, 7), (-1, 1), (True, False), (0.0, 1.0), ("b", "a"), (-1, 0, 1)]
)
def test_labels_of_any_kind(labels):
    """Rows L1 and L3: the model of 0 .. k - 1, and predictions that are labels."""
    X, codes = make_classification(90, 6, n_informative=4, n_classes=len(labels), random_state=1)
    y = np.sort(np.array(labels))[codes]
    clf = Perceptron().fit(X, y)
    np.testing.assert_array_equal(clf.classes_, np.sort(labels))
    plain = Perceptron().fit(X, codes)
    np.testing.assert_array_equal(clf.coef_, plain.coef_)
    np.testing.assert_array_equal(clf.predict(X), np.sort(np.array(labels))[plain.predict(X)])
    assert clf.predict(X).dtype == y.dtype


def test_class_weight_pushes(data):
    """Row W7."""
    X, y = data
    pushed = Perceptron(class_weight={"no": 1000.0}, max_iter=5, tol=None).fit(X, y)
    plain = Perceptron(max_iter=5, tol=None).fit(X, y)
    assert (pushed.predict(X) == "no").sum() > (plain.predict(X) == "no").sum()
    n, n_classes = len(y), len(np.unique(y))
    balance = {label: n / (n_classes * np.sum(y == label)) for label in np.unique(y)}
    assert_same_state(
        state_of(Perceptron(class_weight="balanced").fit(X, y)),
        state_of(Perceptron(class_weight=balance).fit(X, y)),
    )


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_weights_that_outgrow_the_dtype(data, method):
    X, y = data
    clf = Perceptron(eta0=1e306)
    clf.partial_fit(X / 1e10, y, classes=np.unique(y))
    before = state_of(clf)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"overflow.*epoch #1"):
        getattr(clf, method)(X * 1e4, y)
    assert np.isfinite(clf.coef_).all()
    if method == "partial_fit":
        assert_same_state(state_of(clf), before)


def test_initial_weights_that_do_not_fit(data):
    X, y = data
    n_units = 1 if len(np.unique(y)) == 2 else 3
    with pytest.raises(ValueError, match=rf"expected shape \({n_units}, 8\), got \(8, 3\)"):
        Perceptron().fit(X, y, coef_init=np.zeros((8, 3)))
    with pytest.raises(ValueError, match=rf"expected shape \({n_units},\), got \(7,\)"):
        Perceptron().fit(X, y, intercept_init=np.zeros(7))
    with pytest.raises(ValueError, match="NaN or infinity"):
        Perceptron().fit(X, y, coef_init=np.full((n_units, 8), np.nan))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("value", [-1, 8, 2**31 - 1])
def test_sparse_indices_out_of_range(data, bits, value):
    X, y = data
    S = sp.csr_array(X)
    S.indices = S.indices.astype(f"int{bits}")
    S.indptr = S.indptr.astype(f"int{bits}")
    S.indices[17] = value
    with pytest.raises(ValueError, match="row 2 of the sparse matrix"):
        Perceptron().fit(S, y)


def test_sparse_indices_of_two_widths(data):
    """Row A7."""
    X, y = data
    S = sp.csr_array(X)
    plain = Perceptron().fit(S, y)
    S.indptr = S.indptr.astype(np.int64)
    assert_same_state(state_of(Perceptron().fit(S, y)), state_of(plain))


def test_arrays_as_they_come(data):
    """Rows A1, A4, A8: read-only, strided, byte-swapped, small types."""
    X, y = data
    X = np.round(X * 4)
    expected = state_of(Perceptron().fit(X, y))
    frozen = X.copy()
    frozen.flags.writeable = False
    wide = np.full((len(X), 20), np.nan)
    wide[:, 3:11] = X
    tall = np.full((2 * len(X), 8), np.nan)
    tall[::2] = X
    for form in (
        frozen,
        wide[:, 3:11],
        tall[::2],
        X[::-1][::-1],
        np.asfortranarray(X),
        X.astype(np.int8),
        X.astype(np.int64),
        X.astype(np.float16),
        X.astype(">f8"),
        X.tolist(),
    ):
        clf = Perceptron().fit(form, y)
        if clf.coef_.dtype == np.float64:
            assert_same_state(state_of(clf), expected)
        np.testing.assert_array_equal(clf.predict(form), Perceptron().fit(X, y).predict(X))


def test_float32_stays_float32(data):
    """Row A5; with byte order, row A4."""
    X, y = data
    for form in (X.astype(np.float32), X.astype(">f4")):
        clf = Perceptron().fit(form, y)
        assert clf.coef_.dtype == clf.intercept_.dtype == np.float32
        assert clf.decision_function(form).dtype == np.float32


def test_no_copy_of_x():
    """The peak beside X grows with rows by the bytes of an order, not of a row."""
    X, y = make_classification(20000, 60, n_informative=10, random_state=0)
    wide = np.hstack([X, X])[:, :60]
    clf = Perceptron(max_iter=3, tol=None)
    clf.fit(wide, y)
    tracemalloc.start()
    clf.fit(wide, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.nbytes / 2


def test_one_row_as_in_a_batch(data):
    """Row R2."""
    X, y = data
    clf = Perceptron().fit(X, y)
    scores = clf.decision_function(X)
    for n in (1, 2, 7, 40):
        np.testing.assert_array_equal(clf.decision_function(X[:n]), scores[:n])
        np.testing.assert_array_equal(clf.predict(X[:n]), clf.predict(X)[:n])
    for i in range(40):
        assert clf.predict(X[i : i + 1])[0] == clf.predict(X)[i]


def test_bad_rows_to_predict(data):
    X, y = data
    clf = Perceptron().fit(X, y)
    bad = X.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        clf.predict(bad)
    with pytest.raises(ValueError, match="infinity"):
        clf.predict(np.where(np.isnan(bad), np.inf, bad))
    with pytest.raises(ValueError, match="7 features"):
        clf.predict(X[:, :7])
    with pytest.raises(ValueError, match="2D array"):
        clf.predict(X[0])
    with pytest.raises(NotFittedError):
        Perceptron().predict(X)


def test_weights_that_the_user_sets(data):
    X, y = data
    clf = Perceptron().fit(X, y)
    clf.coef_[...] = 1.0
    clf.intercept_[...] = 0.5
    expected = np.repeat(X.sum(axis=1)[:, None] + 0.5, len(clf.coef_), axis=1)
    got = clf.decision_function(X).reshape(expected.shape)
    np.testing.assert_allclose(got, expected)
    clf.coef_ = clf.coef_ * 2
    got = clf.decision_function(X).reshape(expected.shape)
    np.testing.assert_allclose(got, 2 * expected - 0.5)


def test_sparsify_and_learn_on(data):
    X, y = data
    clf = Perceptron(penalty="l1", alpha=0.01).fit(X, y)
    twin = copy.deepcopy(clf)
    clf.sparsify()
    assert sp.issparse(clf.coef_)
    np.testing.assert_allclose(clf.decision_function(X), twin.decision_function(X))
    np.testing.assert_allclose(
        clf.densify().decision_function(sp.csr_array(X)), twin.decision_function(X)
    )
    assert_same_state(state_of(clf.sparsify().partial_fit(X, y)), state_of(twin.partial_fit(X, y)))


def test_copies(data, tmp_path):
    """Rows P1, P2 and P4."""
    X, y = data
    pickle.loads(pickle.dumps(Perceptron()))
    clf = Perceptron().fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    copies = [pickle.loads(pickle.dumps(clf, protocol)) for protocol in range(2, 6)]
    copies += [copy.deepcopy(clf), joblib.load(tmp_path / "clf.joblib", mmap_mode="r")]
    for twin in copies:
        np.testing.assert_array_equal(twin.decision_function(X), clf.decision_function(X))
        assert twin._scorer is not None  # the fast way
        twin.partial_fit(X, y)
        assert not np.array_equal(twin.coef_, clf.coef_)
    assert not [name for name in vars(clone(clf)) if name.endswith("_")]


def test_inside_searches(data):
    X, y = data
    search = GridSearchCV(Perceptron(), {"alpha": [0.1, 0.001], "penalty": ["l2", "l1"]}, cv=3)
    with joblib.parallel_backend("threading", n_jobs=2):
        search.fit(X, y)
        predicted = cross_val_predict(Perceptron(), X, y, cv=3)
    np.testing.assert_array_equal(predicted, cross_val_predict(SklearnPerceptron(), X, y, cv=3))
    assert search.best_score_ > 0.4


def test_a_fit_at_a_time(data):
    """Row T9."""
    X, y = make_classification(3000, 20, flip_y=0.5, random_state=0)
    clf = Perceptron(max_iter=100_000, tol=None)
    done = []

    def fit():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done.append(clf.set_params(max_iter=300).fit(X, y))

    thread = threading.Thread(target=fit)
    thread.start()
    refused = 0
    while thread.is_alive():
        try:
            clf.fit(X[:10], y[:10])
        except RuntimeError as error:
            assert "fitted already" in str(error)
            refused += 1
        time.sleep(0.002)
    thread.join()
    assert refused
    assert done


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_ctrl_c(n_classes, early_stopping):
    """Row T12: KeyboardInterrupt soon, and a model that is finite and whole."""
    X, y = make_classification(
        4000, 30, n_informative=10, n_classes=n_classes, flip_y=0.3, random_state=0
    )
    clf = Perceptron(
        max_iter=10**8, tol=None, penalty="l2", early_stopping=early_stopping, n_threads=2
    )
    sent = []

    def send():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.15, send)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, y)
    late = time.perf_counter() - sent[0]
    timer.join()
    assert late < 1.0  # 50 ms, and what a busy machine adds
    assert np.isfinite(clf.coef_).all()
    assert clf.coef_[0].any()
    assert clf.n_iter_ >= 1
    assert clf.predict(X).shape == (4000,)
    clf.set_params(max_iter=1, early_stopping=False).partial_fit(X, y)


def test_max_iter_warns(data):
    X, y = data
    with pytest.warns(ConvergenceWarning, match="Maximum number of iteration"):
        Perceptron(max_iter=1).fit(X, y)


def test_early_stopping_that_cannot_stratify():
    """Row S3: with a single row of a class, it says so."""
    X, _ = make_classification(40, 5, random_state=0)
    y = np.r_[np.zeros(20), np.ones(19), 2]
    with pytest.raises(ValueError, match="least populated class"):
        Perceptron(early_stopping=True, validation_fraction=0.2).fit(X, y)


def test_memory_does_not_grow(data):
    """Row T14: fits, good and bad, leave nothing behind."""
    psutil = pytest.importorskip("psutil")
    X, y = make_classification(20000, 10, random_state=0)

    def work(n: int) -> None:
        for _ in range(n):
            Perceptron(max_iter=1, tol=None).fit(X, y)
            with pytest.raises(ValueError, match="sample_weight"):
                Perceptron().fit(X, y, sample_weight=-y - 1.0)

    work(3)
    process = psutil.Process()
    before = process.memory_info().rss
    work(40)  # orders alone are 240 kB a fit
    assert process.memory_info().rss - before < 5e6


def test_digits_are_read():
    X, y = load_digits(return_X_y=True)
    assert Perceptron().fit(X, y).score(X, y) > 0.93  # scikit-learn's docstring: 0.939
