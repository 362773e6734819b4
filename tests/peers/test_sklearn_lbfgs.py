"""LBFGS on a net without hidden layers finds the optimum of scikit-learn's LogisticRegression."""

import numpy as np
import pytest

from fastnn import MLP, Trainer
from fastnn.tables.optimizers import LBFGS

pytest.importorskip("scipy")
linear_model = pytest.importorskip("sklearn.linear_model")
datasets = pytest.importorskip("sklearn.datasets")


def standardized(X):
    return (X - X.mean(axis=0)) / X.std(axis=0)


IRIS = datasets.load_iris()
CANCER = datasets.load_breast_cancer()
CASES = {
    "iris": (standardized(IRIS.data), IRIS.target),
    "breast cancer": (standardized(CANCER.data), CANCER.target),
}


def peer(X, y, C, sample_weight=None):
    model = linear_model.LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
    return model.fit(X, y, sample_weight=sample_weight)


@pytest.mark.parametrize("C", [0.1, 10.0])
def test_softmax(backend_name, C):
    """Its objective is ``C * sum(loss) + sum(W^2) / 2``; divided by C n, that is l2 = 1 / (C n)."""
    X, y = CASES["iris"]
    model = MLP([4, 3], output="softmax", dtype="float64", seed=0, backend=backend_name)
    trainer = Trainer(model, optimizer="lbfgs", l2=1 / (C * len(X)))
    trainer.fit(X, y, epochs=300)
    expected = peer(X, y, C)
    np.testing.assert_allclose(model.weights[0].T, expected.coef_, atol=1e-5)
    # An offset common to all classes changes nothing, and nothing holds it back.
    centered = model.biases[0] - model.biases[0].mean()
    np.testing.assert_allclose(centered, expected.intercept_, atol=1e-5)
    np.testing.assert_allclose(model.predict(X), expected.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_sigmoid(backend_name, weighted):
    X, y = CASES["breast cancer"]
    weight = np.random.default_rng(0).uniform(0.2, 3, len(X)) if weighted else None
    total = len(X) if weight is None else weight.sum()
    model = MLP([30, 1], output="sigmoid", dtype="float64", seed=0, backend=backend_name)
    Trainer(model, optimizer=LBFGS(history=20), l2=1 / total).fit(
        X, y, epochs=400, sample_weight=weight
    )
    expected = peer(X, y, 1.0, weight)
    np.testing.assert_allclose(model.weights[0].T, expected.coef_, atol=1e-5)
    np.testing.assert_allclose(model.biases[0], expected.intercept_, atol=1e-5)


def test_the_objective_is_as_low(backend_name):
    X, y = CASES["iris"]
    l2 = 1 / len(X)
    model = MLP([4, 3], output="softmax", dtype="float64", seed=1, backend=backend_name)
    Trainer(model, optimizer="lbfgs", l2=l2).fit(X, y, epochs=300)
    reached, gradient = model.loss_and_gradient(X, y, l2=l2)
    expected = peer(X, y, 1.0)
    other = model.copy()
    other.weights[0] = expected.coef_.T
    other.biases[0] = expected.intercept_
    assert reached <= other.loss_and_gradient(X, y, l2=l2)[0] + 1e-12
    assert np.abs(gradient).max() < 1e-7
