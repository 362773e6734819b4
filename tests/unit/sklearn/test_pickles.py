"""What a pickle holds: parameters once, the optimizer's state where it goes on, and no rows."""

import copy
import pickle

import joblib
import numpy as np
import pytest

pytest.importorskip("sklearn", "1.9")

from estimators import BOTH

from fastnn.sklearn import MLPClassifier, MLPRegressor, Perceptron

pytestmark = pytest.mark.usefixtures("no_convergence_warnings")

N = 3000
X = np.random.RandomState(0).randn(N, 12)
Y = (X[:, 0] > 0).astype(int)
T = X[:, 0] + X[:, 1]
FEW_KIB = 6 * 1024  # names, settings, curves, and 2.5 KiB of a Mersenne Twister
HELD = {"early_stopping": True}
RESUME = {"warm_start": True, "resume": True}


def targets(cls):
    return Y if cls is MLPClassifier else T


def make(cls, **params):
    params = {"hidden_layer_sizes": (40, 9), "max_iter": 3, "random_state": 0, **params}
    return cls(**params)


def bytes_of(cls):
    """12 inputs, 40 and 9 units, 1 output, in float64."""
    assert make(cls).fit(X[:20], targets(cls)[:20]).coefs_[-1].shape == (9, 1)
    return 8 * (13 * 40 + 41 * 9 + 10)


# Settings; how many arrays of the size of the parameters; how many bytes for each row.
SIZES = [
    ({"solver": "lbfgs"}, 1, 0),
    ({"solver": "lbfgs", **HELD}, 1, 0),
    ({"solver": "sgd", "momentum": 0.0}, 1, 0),
    ({"solver": "sgd"}, 2, 0),
    ({"solver": "adam"}, 3, 0),
    ({"solver": "rmsprop"}, 2, 0),
    ({"solver": "adam", "warm_start": True}, 3, 0),
    ({"solver": "adam", **HELD}, 1, 0),
    ({"solver": "sgd", "dropout": 0.1, **HELD}, 1, 0),
    ({"solver": "adam", **RESUME}, 3, 2),  # the order, in two bytes a row
    ({"solver": "adam", "batch_size": N, **RESUME}, 3, 0),
    ({"solver": "adam", **HELD, **RESUME}, 4, 4),  # best and last; and the hold-out
]


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("settings", "arrays", "of_a_row"), SIZES)
def test_size(cls, settings, arrays, of_a_row):
    estimator = make(cls, **settings).fit(X, targets(cls))
    limit = arrays * bytes_of(cls) + of_a_row * N + FEW_KIB
    assert len(pickle.dumps(estimator)) < limit
    if "partial_fit" in dir(estimator):
        estimator.partial_fit(X, targets(cls))
        assert len(pickle.dumps(estimator)) < limit


def test_size_of_a_perceptron():
    clf = Perceptron().fit(X, Y)
    assert len(pickle.dumps(clf)) < clf.coef_.nbytes + 2048


@pytest.mark.parametrize("stream", [0, None, "own"])
@pytest.mark.parametrize("cls", BOTH)
def test_sizes_of_streams(cls, stream):
    """NumPy's global stream is not a part of it; the user's is pickled by NumPy, once."""
    given = np.random.RandomState(3) if stream == "own" else stream
    estimator = make(cls, solver="lbfgs", random_state=given).fit(X, targets(cls))
    size = len(pickle.dumps(estimator)) - bytes_of(cls)
    one = len(pickle.dumps(np.random.RandomState(3)))
    assert one > 2500
    assert size < {0: FEW_KIB, None: 2400, "own": 2400 + one}[stream]
    twin = pickle.loads(pickle.dumps(estimator))
    if stream == "own":
        assert twin._state.random_state is twin.random_state
        assert twin.random_state.randint(1000) == estimator.random_state.randint(1000)


@pytest.mark.parametrize(
    "settings",
    [{}, {"solver": "sgd"}, RESUME, {"warm_start": True}, HELD, {**HELD, **RESUME}],
    ids=str,
)
@pytest.mark.parametrize("cls", BOTH)
def test_what_was_pickled_goes_on(cls, settings):
    """Fits, and calls of partial_fit where there are some, with the bits of the original."""
    estimator = make(cls, **settings).fit(X, targets(cls))
    twins = [pickle.loads(pickle.dumps(estimator, 2)), copy.deepcopy(estimator)]
    for one in (estimator, *twins):
        one.fit(X, targets(cls))
        one.set_params(early_stopping=False)
        for _ in range(2):
            one.partial_fit(X[:500], targets(cls)[:500])
    for twin in twins:
        for a, b in zip(estimator.coefs_, twin.coefs_, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(estimator._state.slots, twin._state.slots)
        assert estimator.loss_curve_ == twin.loss_curve_
        assert estimator.validation_scores_ == twin.validation_scores_


@pytest.mark.parametrize("cls", BOTH)
def test_weights_that_were_set_after_a_resumed_fit_are_kept(cls):
    """The fit goes on from the last epoch only where the estimator shows the best still."""
    estimator = make(cls, max_iter=6, **HELD, **RESUME).fit(X, targets(cls))
    estimator = pickle.loads(pickle.dumps(estimator))
    assert all(abs(coef).max() > 0.2 for coef in estimator.coefs_)
    for coef in estimator.coefs_:
        coef[:] = 0
    estimator.set_params(max_iter=1).fit(X, targets(cls))  # 14 steps of about 0.001
    assert all(abs(coef).max() < 0.05 for coef in estimator.coefs_)


def test_joblib_maps_what_is_large(tmp_path):
    estimator = make(MLPRegressor, **RESUME).fit(X, T)
    joblib.dump(estimator, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert not mapped.coefs_[0].flags.writeable
    for one in (estimator, mapped):
        one.fit(X, T)
    np.testing.assert_array_equal(mapped.coefs_[0], estimator.coefs_[0])
