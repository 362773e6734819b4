"""Training on sparse rows against training on dense ones."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn", "1.9")

from fastnn.sklearn import MLPClassifier, MLPRegressor

RANDOM = np.random.RandomState(0)
N = 150
DENSE = np.where(RANDOM.uniform(size=(N, 30)) < 0.2, RANDOM.randn(N, 30), 0.0)
DENSE[5] = 0.0
X = sp.csr_matrix(DENSE)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 5)])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"clip_norm": 0.05, "alpha": 1.0},
        {"solver": "sgd", "shuffle": False},
        {"solver": "lbfgs"},
        {"dropout": 0.3},
        {"early_stopping": True},
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_on_sparse_rows_is_training_on_dense_ones(hidden, more, weighted):
    if "dropout" in more:
        hidden = hidden or (3,)  # masks of hidden units
    y = (DENSE[:, 0] + DENSE[:, 1] > 0).astype(int) + (DENSE[:, 2] > 0)
    weight = np.where(np.arange(N) < 64, 0.0, 1.0 + np.arange(N) % 3) if weighted else None
    settings = {"hidden_layer_sizes": hidden, "random_state": 0, "max_iter": 4, "batch_size": 32}
    sparse = MLPClassifier(**settings, **more)
    dense = MLPClassifier(**settings, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse.fit(X, y, weight)
        dense.fit(DENSE, y, weight)
    np.testing.assert_allclose(sparse.loss_curve_, dense.loss_curve_, rtol=1e-10)
    for a, b in zip(sparse.coefs_, dense.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_divergence_on_sparse_rows_is_undone():
    reg = MLPRegressor(solver="sgd", learning_rate_init=1e200, random_state=0, max_iter=5)
    with pytest.raises(ValueError, match="non-finite"):
        reg.fit(X, DENSE[:, 0])
    assert all(np.isfinite(coef).all() for coef in reg.coefs_)
