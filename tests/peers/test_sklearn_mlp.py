"""MLPClassifier and MLPRegressor against scikit-learn's: the same numbers over whole fits.

Every case fits both on the same rows with the same random_state for up to 50 epochs in float64.
The cases are the product of what can be combined; by default a sample of them in which every pair
of settings occurs, with FASTNN_FULL=1 all of them.
"""

import itertools
import os
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import threadpoolctl

pytest.importorskip("sklearn", "1.9")

from sklearn import neural_network as theirs
from sklearn.datasets import make_classification, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning

from fastnn import sklearn as ours

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
RTOL = 1e-6
N_ROWS, N_FEATURES, EPOCHS = 60, 6, 50


@pytest.fixture(scope="module", autouse=True)
def _one_thread_of_blas():
    """SciPy's L-BFGS-B spends its time in starting threads where the machine is busy."""
    with threadpoolctl.threadpool_limits(1):
        yield


KINDS = ("binary", "multiclass", "multilabel", "regression", "multioutput", "poisson")
FACTORS = {
    "solver": ("sgd", "adam", "lbfgs"),
    "activation": ("identity", "logistic", "tanh", "relu"),
    "shuffle": (True, False),
    "early_stopping": (False, True),
    "learning_rate": ("constant", "invscaling", "adaptive"),
    "kind": KINDS,
    "weighted": (False, True),
    "procedure": ("fit", "partial_fit", "warm_start"),
    "sparse": (False, True),
}


def possible(case: dict) -> bool:
    """Whether scikit-learn takes this combination, and no other one says the same."""
    if case["solver"] == "lbfgs":
        plain = case["shuffle"] and not case["early_stopping"]
        if not plain or case["procedure"] == "partial_fit":
            return False
    if case["solver"] != "sgd" and case["learning_rate"] != "constant":
        return False
    return not (case["procedure"] == "partial_fit" and case["early_stopping"])


def all_cases() -> list[dict]:
    product = itertools.product(*FACTORS.values())
    cases = [dict(zip(FACTORS, values, strict=True)) for values in product]
    return [case for case in cases if possible(case)]


def pairs(case: dict) -> set:
    return set(itertools.combinations(case.items(), 2))


def covering(cases: list[dict]) -> list[dict]:
    """A sample in which every pair of settings that occurs in the cases occurs."""
    left = set().union(*map(pairs, cases))
    shuffled = np.random.RandomState(0).permutation(len(cases))
    chosen = []
    for i in shuffled:
        new = pairs(cases[i]) & left
        # Many at first; whatever is left at the end, each by a case that brings something.
        if len(new) > 8 or (i in shuffled[len(cases) // 2 :] and new):
            chosen.append(cases[i])
            left -= new
    assert not left
    return chosen


CASES = all_cases()
SAMPLE = CASES if FULL else covering(CASES)


def name_of(case: dict) -> str:
    words = [case["kind"], case["solver"], case["activation"], case["procedure"]]
    if case["solver"] == "sgd":
        words.append(case["learning_rate"])
    words += [flag for flag in ("shuffle", "early_stopping", "weighted", "sparse") if case[flag]]
    return "-".join(words)


def make_data(kind: str):
    if kind in ("binary", "multiclass"):
        X, y = make_classification(
            N_ROWS,
            N_FEATURES,
            n_informative=4,
            n_classes=2 if kind == "binary" else 3,
            flip_y=0.2,  # else the net is soon certain, and scikit-learn clips certainty
            random_state=3,
        )
        return X, np.array(["no", "perhaps", "yes"])[y]
    if kind == "multilabel":
        X, y = make_multilabel_classification(N_ROWS, N_FEATURES, n_classes=4, random_state=3)
        return X / 10, y
    rng = np.random.RandomState(3)
    X = rng.randn(N_ROWS, N_FEATURES)
    if kind == "poisson":
        return X, rng.poisson(np.exp(X[:, 0] / 2)).astype(float)
    y = np.column_stack([np.sin(X[:, 0]) + X[:, 1], X[:, 2] * X[:, 3]])
    return X, y[:, 0] if kind == "regression" else y


def make_estimator(package, case: dict):
    # exp(z) overflows at the rate that suits the others.
    rate = 0.005 if case["solver"] == "adam" or case["kind"] == "poisson" else 0.05
    params = {name: case[name] for name in ("solver", "activation", "shuffle", "learning_rate")}
    params |= {
        "early_stopping": case["early_stopping"],
        "warm_start": case["procedure"] == "warm_start",
        "hidden_layer_sizes": (7, 5),
        "batch_size": 16,  # the last batch of an epoch is shorter
        "max_iter": case.get("max_iter", EPOCHS),
        "random_state": 1,
        # Line searches try large steps, after which scikit-learn would clip log(0).
        "alpha": 1.0 if case["solver"] == "lbfgs" else 0.02,
        "learning_rate_init": rate,
        "n_iter_no_change": 3 if case["learning_rate"] == "adaptive" else 10,
        "validation_fraction": 0.2,
        "tol": 1e-3 if case["learning_rate"] == "adaptive" else 1e-4,
    }
    if case["kind"] in ("binary", "multiclass", "multilabel"):
        return package.MLPClassifier(**params)
    loss = "poisson" if case["kind"] == "poisson" else "squared_error"
    return package.MLPRegressor(loss=loss, **params)


def train(estimator, case: dict, X, y, weight) -> list[int]:
    """Fit as the case says; the numbers of epochs after each call."""
    n_iter = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if case["procedure"] == "partial_fit":
            if isinstance(estimator.random_state, int):
                # scikit-learn draws the same order in every call with an int (its fault); a
                # stream of its own goes on in both.
                estimator.random_state = np.random.RandomState(estimator.random_state)
            first = {}
            if hasattr(estimator, "predict_proba"):
                first = {"classes": np.unique(y) if np.ndim(y) == 1 else np.arange(y.shape[1])}
            for call in range(EPOCHS):
                estimator.partial_fit(X, y, sample_weight=weight, **(first if call == 0 else {}))
                n_iter.append(estimator.n_iter_)
        else:
            if case["procedure"] == "warm_start":
                estimator.max_iter //= 2
            for _ in range(2 if case["procedure"] == "warm_start" else 1):
                estimator.fit(X, y, sample_weight=weight)
                n_iter.append(estimator.n_iter_)
    return n_iter


def same(actual, expected) -> None:
    np.testing.assert_allclose(actual, expected, rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("case", SAMPLE, ids=name_of)
def test_same_numbers(case):
    X, y = make_data(case["kind"])
    if case["solver"] == "lbfgs":
        # Its line searches make rounding ten times larger every few iterations.
        case = {**case, "max_iter": 16}
    weight = np.random.RandomState(4).uniform(0, 3, N_ROWS) if case["weighted"] else None
    if case["sparse"]:
        X = sp.csr_matrix(np.where(np.abs(X) > 0.5, X, 0.0))
    mine, peer = make_estimator(ours, case), make_estimator(theirs, case)
    assert train(mine, case, X, y, weight) == train(peer, case, X, y, weight)
    same(mine.loss_, peer.loss_)
    for coef, expected in zip(mine.coefs_, peer.coefs_, strict=True):
        np.testing.assert_allclose(coef, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())
    if hasattr(peer, "predict_proba"):
        same(mine.predict_proba(X), peer.predict_proba(X))
        same(mine.predict_log_proba(X), peer.predict_log_proba(X))
        np.testing.assert_array_equal(mine.predict(X), peer.predict(X))
        assert mine.predict(X).dtype == peer.predict(X).dtype
    else:
        same(mine.predict(X), peer.predict(X))
    same(mine.score(X, y, weight), peer.score(X, y, weight))
    if case["solver"] == "lbfgs":
        return  # there scikit-learn keeps no books of the epochs
    assert mine.t_ == peer.t_
    same(mine.loss_curve_, peer.loss_curve_)
    for name in ("validation_scores_", "best_validation_score_", "best_loss_"):
        expected = getattr(peer, name)
        if expected is None:
            assert getattr(mine, name) is None
        else:
            same(getattr(mine, name), expected)


@pytest.mark.parametrize("case", [c for c in SAMPLE if c["solver"] == "lbfgs"], ids=name_of)
def test_lbfgs_reaches_the_same_loss(case):
    """50 iterations: as near to scikit-learn as it is to itself on rows that differ by rounding."""
    X, y = make_data(case["kind"])
    draw = np.random.RandomState(5)
    noise = [np.zeros(X.shape), *(draw.uniform(-1, 1, (3, *X.shape)) * 2.0**-52)]
    peers = [make_estimator(theirs, case) for _ in noise]
    n_iter = [train(peer, case, X * (1 + e), y, None) for peer, e in zip(peers, noise, strict=True)]
    losses = [peer.loss_ for peer in peers]
    mine = make_estimator(ours, case)
    spread = np.ptp(n_iter, axis=0)
    assert (abs(np.subtract(train(mine, case, X, y, None), n_iter[0])) <= 3 * spread).all()
    np.testing.assert_allclose(mine.loss_, losses[0], rtol=RTOL, atol=10 * np.ptp(losses))
    assert mine.loss_curve_[-1] == mine.loss_
