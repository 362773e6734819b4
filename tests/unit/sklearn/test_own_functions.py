"""Activations and losses of the user's own in the estimators, by name and as objects.

The oracles are formulas, central differences, and the built-in functions that some of these are.
"""

import math
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest

pytest.importorskip("sklearn", "1.9")

from estimators import BOTH, flat
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

import fastnn
from fastnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.usefixtures("no_convergence_warnings")

SNAKE = fastnn.Activation("sk_snake", lambda z: z + math.sin(z) ** 2)
TANH = fastnn.Activation("sk_tanh", lambda z: math.tanh(z), lambda z, y: 1.0 - y * y)
SQUARED = fastnn.Loss("sk_squared", lambda y, t: 0.5 * (y - t) ** 2)
LOGISTIC = fastnn.Loss(
    "sk_logistic",
    lambda y, t: -t * math.log(y) - (1 - t) * math.log(1 - y) if 0 < t < 1 else
    -math.log(y) if t == 1 else -math.log(1 - y),
    domain=(0, 1),
    target_kind="unit",
)  # fmt: skip
ENTROPY = fastnn.Loss(
    "sk_entropy",
    lambda y, t: -t * math.log(y) if t > 0 else 0.0,
    domain=(0, math.inf),
    target_kind="classes",
)
HINGE = fastnn.Loss("sk_hinge", lambda y, t: 1 - y * t if y * t < 1 else 0.0, target_kind="sign")
DEVIANCE = fastnn.Loss(
    "sk_gamma", lambda y, t: math.log(y) + t / y, domain=(0, math.inf), target_kind="nonnegative"
)
RHO = fastnn.Loss("sk_rho", lambda y, t: -math.log1p(y * t), domain=(-1, 1), target_kind="sign")

SOLVERS = ["sgd", "adam", "rmsprop", "lbfgs"]
X = np.random.RandomState(0).randn(60, 3)
Y = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int)
Y3 = np.digitize(X[:, 0], [-0.5, 0.5])
LABELS = np.column_stack([X[:, 0] > 0, X[:, 1] > 0]).astype(int)
T = np.sin(X[:, 0]) + X[:, 1]


def targets(cls):
    return Y3 if cls is MLPClassifier else T


def make(cls, **params):
    params = {"hidden_layer_sizes": (5, 4), "max_iter": 5, "random_state": 0, **params}
    return cls(**params)


def close(a, b):
    np.testing.assert_allclose(flat(a), flat(b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cls", BOTH)
def test_an_own_tanh_is_the_built_in_one(cls, solver):
    """As object and by name, alone and in a list: the weights of activation="tanh"."""
    y = targets(cls)
    expected = make(cls, activation="tanh", solver=solver).fit(X, y)
    for given in (TANH, "sk_tanh", [TANH, "tanh"], ("sk_tanh", TANH)):
        estimator = make(cls, activation=given, solver=solver).fit(X, y)
        close(estimator, expected)
        assert estimator.get_params()["activation"] is given
        assert clone(estimator).get_params()["activation"] == given
        assert "sk_tanh" in repr(estimator)
        np.testing.assert_allclose(
            estimator.hidden_layer_outputs(X)[0],
            np.tanh(X @ estimator.coefs_[0] + estimator.intercepts_[0]),
            rtol=1e-9,
            atol=1e-12,
        )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("cls", "y", "own", "built_in"),
    [
        (MLPRegressor, T, SQUARED, "squared_error"),
        (MLPClassifier, Y3, SQUARED, "brier"),
        (MLPClassifier, Y, LOGISTIC, "log_loss"),
        (MLPClassifier, LABELS, LOGISTIC, "log_loss"),
        (MLPClassifier, Y3, ENTROPY, "log_loss"),
        (MLPClassifier, Y, HINGE, "hinge"),
        (MLPClassifier, Y3, HINGE, "hinge"),
    ],
)
def test_own_losses_that_are_built_in_ones(cls, y, own, built_in, solver):
    """Their weights, curves, scores and methods, with rows held out where there are epochs."""
    settings = {"solver": solver, "activation": "tanh"}
    if solver != "lbfgs":
        settings |= {"early_stopping": True, "validation_fraction": 0.2}
    expected = make(cls, loss=built_in, **settings).fit(X, y)
    for given in (own, own.name):
        estimator = make(cls, loss=given, **settings).fit(X, y)
        close(estimator, expected)
        np.testing.assert_allclose(estimator.loss_curve_, expected.loss_curve_, rtol=1e-6)
        assert estimator.validation_scores_ == pytest.approx(expected.validation_scores_)
        assert estimator.get_params()["loss"] is given
        assert estimator.out_activation_ == expected.out_activation_
        for method in ("predict", "predict_proba", "decision_function", "predict_log_proba"):
            assert hasattr(estimator, method) == hasattr(expected, method)
            if hasattr(expected, method):
                np.testing.assert_allclose(
                    getattr(estimator, method)(X), getattr(expected, method)(X), rtol=1e-6
                )


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_two_classes_with_a_loss_for_classes(solver):
    """Two outputs, whose softmax is that of scikit-learn's one with the difference of weights."""
    names = np.array(["no", "yes"])[Y]
    clf = make(MLPClassifier, loss=ENTROPY, solver=solver, max_iter=50, alpha=0.0).fit(X, names)
    assert clf.coefs_[-1].shape == (4, 2)
    assert clf.out_activation_ == "softmax"
    p = clf.predict_proba(X)
    one = MLPClassifier.from_weights(
        [*clf.coefs_[:-1], np.diff(clf.coefs_[-1])],
        [*clf.intercepts_[:-1], np.diff(clf.intercepts_[-1])],
        classes=["no", "yes"],
    )
    np.testing.assert_allclose(p, one.predict_proba(X), rtol=1e-9)
    np.testing.assert_array_equal(clf.predict(X), one.predict(X))
    loss = -np.log(p[np.arange(60), Y]).mean()
    solo = MLPClassifier.from_weights(clf.coefs_, clf.intercepts_, loss=ENTROPY, alpha=0.0)
    assert solo.partial_fit(X, Y).loss_ == pytest.approx(loss)  # before its step
    only = make(MLPClassifier, loss=ENTROPY).fit(X, np.full(60, "only"))
    np.testing.assert_array_equal(only.predict_proba(X), np.ones((60, 1)))
    assert set(only.predict(X)) == {"only"}
    early = make(MLPClassifier, loss=ENTROPY, early_stopping=True, validation_fraction=0.3)
    early.fit(X, Y)
    held = early._state.hold_out[1]
    assert early.best_validation_score_ == pytest.approx(early.score(X[held], Y[held]))


def test_outputs_of_a_regressor_keep_to_the_domain():
    """A gamma deviance wants y > 0: the outputs are exp(z), and fit the mean of each group."""
    groups = np.repeat(np.eye(3), 20, axis=0)
    t = np.random.RandomState(1).gamma(2.0, 1.5, 60)
    means = t.reshape(3, 20).mean(axis=1)
    reg = MLPRegressor(DEVIANCE, (), solver="lbfgs", alpha=0.0, tol=1e-9, random_state=0)
    reg.fit(groups, t)
    np.testing.assert_allclose(reg.predict(np.eye(3)), means, rtol=1e-5)
    assert reg.out_activation_ == "exp"
    assert make(MLPRegressor, loss=LOGISTIC).fit(X, Y).out_activation_ == "logistic"
    assert make(MLPRegressor, loss=SQUARED).fit(X, T).out_activation_ == "identity"
    weights = [np.ones((3, 1))], [np.zeros(1)]
    gamma = MLPRegressor.from_weights(*weights, loss="sk_gamma")
    np.testing.assert_allclose(gamma.predict(X), np.exp(X.sum(axis=1)))


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_targets_outside_of_what_the_loss_is_for(solver):
    """The first bad row, before anything is trained."""
    t = np.abs(T)
    t[[7, 30]] = -0.5, -2.0
    reg = make(MLPRegressor, loss="sk_gamma", solver=solver)
    with pytest.raises(ValueError, match=r"y has -0\.5 at row 7.*sk_gamma are 0 or greater"):
        reg.fit(X, t)
    with pytest.raises(ValueError, match=r"y has -0\.5 at row 7"):
        reg.set_params(early_stopping=True, validation_fraction=0.5).fit(X, t)
    with pytest.raises(ValueError, match=r"validation y has -0\.5 at row 2"):
        reg.fit(X, np.abs(t), validation_data=(X[5:9], t[5:9]))
    with pytest.raises(ValueError, match=r"y has 1\.25 at row 5.*between 0 and 1"):
        make(MLPRegressor, loss=LOGISTIC, solver=solver).fit(X, np.arange(60) * 0.25)


def test_losses_that_do_not_fit():
    for loss in (ENTROPY, HINGE):
        with pytest.raises(ValueError, match="a loss for classes"):
            make(MLPRegressor, loss=loss).fit(X, T)
    with pytest.raises(ValueError, match=r"several labels.*target_kind='unit'"):
        make(MLPClassifier, loss=ENTROPY).fit(X, LABELS)
    with pytest.raises(ValueError, match=r"\[-1\.0, 1\.0\].*margins"):
        make(MLPClassifier, loss=RHO).fit(X, Y)
    with pytest.raises(ValueError, match="own"):
        make(MLPClassifier, loss=fastnn.Huber(2.0)).fit(X, Y)
    with pytest.raises(ValueError, match=r"1 outputs.*2 classes.*difference"):
        MLPClassifier.from_weights([np.eye(2)], [np.zeros(2)])
    with pytest.raises(ValueError, match="2 outputs"):
        MLPClassifier.from_weights([np.ones((2, 1))], [np.zeros(1)], loss=ENTROPY)


@pytest.mark.parametrize("parameter", ["activation", "loss"])
@pytest.mark.parametrize("cls", BOTH)
def test_names_that_nobody_registered(cls, parameter):
    call = "fastnn.Activation" if parameter == "activation" else "fastnn.Loss"
    for given in ("sk_missing", *([["relu", "sk_missing"]] if parameter == "activation" else [])):
        estimator = make(cls, **{parameter: given})
        assert hasattr(estimator, "predict")
        if cls is MLPClassifier:
            assert hasattr(estimator, "predict_proba")  # may be registered before it is fitted
        with pytest.raises(ValueError, match=rf"(?s){parameter}.*registered.*{call}") as caught:
            estimator.fit(X, targets(cls))
        assert "sk_missing" in str(caught.value)


@pytest.mark.parametrize("y", [T, Y, Y3, LABELS], ids=["real", "two", "three", "labels"])
def test_input_gradient(y):
    """Against central differences of fourth order."""
    own = {"real": SQUARED, "two": ENTROPY, "three": ENTROPY, "labels": LOGISTIC}
    kind = "real" if y is T else "labels" if y is LABELS else "two" if y is Y else "three"
    cls = MLPRegressor if y is T else MLPClassifier
    estimator = make(cls, activation=["sk_snake", TANH], loss=own[kind], max_iter=20).fit(X, y)
    gradient = estimator.input_gradient(X[:5])
    assert gradient.shape == (5, estimator.n_outputs_, 3)
    assert np.ptp(gradient) > 0.01
    h = 1e-3
    for j in range(3):
        f = {k: estimator._outputs(X[:5] + k * h * np.eye(3)[j]) for k in (-2, -1, 1, 2)}
        slope = (8 * (f[1] - f[-1]) - (f[2] - f[-2])) / (12 * h)
        np.testing.assert_allclose(gradient[:, :, j], slope, rtol=1e-8, atol=1e-10)


def test_float32_and_sparse_rows():
    import scipy.sparse as sp

    thin = np.where(X > 0, X, 0.0)
    dense = make(MLPRegressor, activation=SNAKE, loss=SQUARED).fit(thin, T)
    close(make(MLPRegressor, activation=SNAKE, loss=SQUARED).fit(sp.csr_matrix(thin), T), dense)
    single = make(MLPRegressor, activation=SNAKE, loss=SQUARED).fit(thin.astype("f4"), T)
    assert single.coefs_[0].dtype == np.float32
    np.testing.assert_allclose(single.predict(thin), dense.predict(thin), rtol=1e-3, atol=1e-4)


def test_searches():
    grid = {"activation": [SNAKE, "sk_snake", "tanh", [TANH, "relu"]], "loss": ["sk_squared"]}
    search = GridSearchCV(make(MLPRegressor), grid, cv=2)
    with joblib.parallel_config("threading", n_jobs=2):
        search.fit(X, T)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] == scores[1]
    assert len(set(scores)) == 3
    best = grid["activation"][int(np.argmax(scores))]
    assert search.best_params_ == {"activation": best, "loss": "sk_squared"}
    expected = make(MLPRegressor, activation=best, loss=SQUARED).fit(X, T).predict(X)
    np.testing.assert_allclose(search.predict(X), expected)


LOAD = """
import math, pickle, sys
import fastnn
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        try:
            pickle.load(file)
        except ValueError as error:
            print(error)
fastnn.Activation("sk_snake", lambda z: z + math.sin(z) ** 2)
fastnn.Loss("sk_squared", lambda y, t: 0.5 * (y - t) ** 2)
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        print(pickle.load(file).predict([[0.1, 0.2, 0.3]]).tolist())
"""


def test_pickles_hold_names(tmp_path):
    settings = [
        {"activation": SNAKE},
        {"activation": ["tanh", "sk_snake"]},
        {"loss": SQUARED},
        {"loss": "sk_squared", "activation": "sk_snake"},
    ]
    paths, predicted = [], []
    for i, own in enumerate(settings):
        reg = make(MLPRegressor, **own).fit(X, T)
        joblib.dump(reg, tmp_path / "model.joblib")
        for twin in (pickle.loads(pickle.dumps(reg)), joblib.load(tmp_path / "model.joblib")):
            np.testing.assert_array_equal(twin.predict(X), reg.predict(X))
            assert twin.get_params() == reg.get_params()
            a, b = twin.partial_fit(X, T), pickle.loads(pickle.dumps(reg)).partial_fit(X, T)
            np.testing.assert_array_equal(flat(a), flat(b))
        paths.append(tmp_path / f"{i}.pickle")
        paths[-1].write_bytes(pickle.dumps(reg))
        predicted.append(str(reg.predict([[0.1, 0.2, 0.3]]).tolist()))
    script = tmp_path / "load.py"  # a file, whose source can be read
    script.write_text(LOAD)
    result = subprocess.run(
        [sys.executable, "-P", str(script), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 8
    for line, call in zip(
        lines,
        ["Activation('sk_snake', f)"] * 2 + ["Loss('sk_squared', value)", "Activation('sk_snake'"],
        strict=False,
    ):
        assert "registered first in every process" in line
        assert f"fastnn.{call}" in line
    assert lines[4:] == predicted


def test_scikit_learn_has_none_of_them():
    for own, name in (
        ({"activation": SNAKE}, "activation"),
        ({"activation": ["sk_snake", "relu"]}, "activation"),
        ({"loss": SQUARED}, "loss"),
    ):
        for cls in BOTH:
            with pytest.raises(ValueError, match=rf"scikit-learn has no {name}=.*sk_s"):
                make(cls, **own).fit(X, targets(cls)).to_sklearn()
    taken = make(MLPRegressor, activation=["relu", "relu"]).fit(X, T).to_sklearn()
    assert taken.activation == "relu"
    with pytest.raises(ValueError, match="for all hidden layers"):
        make(MLPRegressor, activation=["relu", "tanh"]).fit(X, T).to_sklearn()
