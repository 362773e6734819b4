"""Sparse rows: the first layer's kernels, and training on them against training on dense ones."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn", "1.9")

from fastnn.backends import get_backend
from fastnn.plan import Plan
from fastnn.sklearn import MLPClassifier, MLPRegressor
from fastnn.sklearn._training import SparseNet, csr_arrays
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import OPTIMIZERS

BACKEND = get_backend("native")
RANDOM = np.random.RandomState(0)
N = 150  # more than two pieces
DENSE = np.where(RANDOM.uniform(size=(N, 30)) < 0.2, RANDOM.randn(N, 30), 0.0)
DENSE[5] = 0.0
X = sp.csr_matrix(DENSE)
PLAN = Plan((30, 9, 4), np.dtype("f8"), ("tanh",), "identity", (0.0,))
PARAMETERS = RANDOM.randn(PLAN.n_parameters)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("rows", [None, np.array([7, 7, 0, 149, 5])])
def test_products_with_sparse_rows(dtype, rows):
    plan = Plan((30, 9, 4), np.dtype(dtype), ("tanh",), "identity", (0.0,))
    parameters = PARAMETERS.astype(dtype)
    some = DENSE if rows is None else DENSE[rows]
    z = np.full((len(some), 9), np.nan, dtype)
    BACKEND.csr_forward(plan, parameters, csr_arrays(X, plan.dtype), rows, z)
    tolerance = {"rtol": 1e-5 if dtype == "f4" else 1e-13, "atol": 1e-5 if dtype == "f4" else 1e-13}
    W = parameters[: 30 * 9].reshape(30, 9)
    np.testing.assert_allclose(z, some.astype(dtype) @ W, **tolerance)
    gradient = np.ones(plan.n_parameters, dtype)
    BACKEND.csr_gradient(plan, csr_arrays(X, plan.dtype), rows, z, gradient)
    expected = 1 + some.astype(dtype).T @ z
    np.testing.assert_allclose(gradient[: 30 * 9].reshape(30, 9), expected, **tolerance)
    np.testing.assert_array_equal(gradient[30 * 9 :], 1)


def test_matrices_that_lie_about_their_size_are_refused():
    """Nothing is read or written beyond the arrays, whatever a matrix says."""
    data, indices, indptr = csr_arrays(X, PLAN.dtype)
    z = np.zeros((N, 9))
    for column in (-1, 30, 2**40):
        wrong = indices.copy()
        wrong[3] = column
        with pytest.raises(ValueError, match="columns of X"):
            BACKEND.csr_forward(PLAN, PARAMETERS, (data, wrong, indptr), None, z)
        with pytest.raises(ValueError, match="columns of X"):
            BACKEND.csr_gradient(PLAN, (data, wrong, indptr), None, z, PARAMETERS.copy())
    for start in (-1, len(data) + 1):
        wrong = indptr.copy()
        wrong[-1 if start > 0 else 0] = start
        with pytest.raises(ValueError, match="indptr"):
            BACKEND.csr_forward(PLAN, PARAMETERS, (data, indices, wrong), None, z)
    with pytest.raises(ValueError, match="row numbers"):
        BACKEND.csr_forward(PLAN, PARAMETERS, (data, indices, indptr), np.array([N]), z[:1])
    with pytest.raises(ValueError, match="z must hold"):
        BACKEND.csr_forward(PLAN, PARAMETERS, (data, indices, indptr), None, z[:-1])
    with pytest.raises(ValueError, match="data must hold"):
        BACKEND.csr_forward(PLAN, PARAMETERS, (data[:-1], indices, indptr), None, z)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "lbfgs"])
def test_an_update_is_the_step_of_a_training(name):
    from fastnn.backends.base import TrainJob

    optimizer = OPTIMIZERS[name]()
    y = RANDOM.randn(N, 4)
    loss = LOSSES["squared_error"]
    trained, updated = PARAMETERS.copy(), PARAMETERS.copy()
    slots = [np.zeros((optimizer.n_slots, PLAN.n_parameters)) for _ in range(2)]
    for slot in slots:
        optimizer.init_slots(slot)
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), np.full(1, 0.01))
    job = TrainJob(DENSE, y, None, loss, optimizer, scalars, None, N, 1, l2=0.3)
    BACKEND.train(PLAN, trained, slots[0], job)
    gradient = np.zeros(PLAN.n_parameters)
    _, gradient = BACKEND.loss_and_gradient(PLAN, updated, DENSE, y, None, loss, 0.0, 1)
    BACKEND.update(PLAN, optimizer, scalars[0], 0.3, 1.0, gradient, updated, slots[1])
    np.testing.assert_allclose(updated, trained, rtol=1e-12)
    np.testing.assert_allclose(slots[1], slots[0], rtol=1e-12, atol=1e-15)


def test_the_net_of_sparse_rows_is_the_net():
    net = SparseNet(PLAN, 1)
    out = np.empty((N, 4))
    net.predict(PARAMETERS, csr_arrays(X, PLAN.dtype), out)
    expected = BACKEND.predict(PLAN, PARAMETERS, DENSE, np.empty((N, 4)), 1)
    np.testing.assert_array_equal(out, expected)  # bit for bit: zeros change nothing


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
        hidden = hidden or (3,)
    y = (DENSE[:, 0] + DENSE[:, 1] > 0).astype(int) + (DENSE[:, 2] > 0)
    weight = np.where(np.arange(N) < 64, 0.0, 1.0 + np.arange(N) % 3) if weighted else None
    settings = {"hidden_layer_sizes": hidden, "random_state": 0, "max_iter": 4, "batch_size": 32}
    sparse = MLPClassifier(**settings, **more)
    dense = MLPClassifier(**settings, **more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sparse.fit(X, y, weight)
        dense.fit(DENSE, y, weight)
    if "dropout" in more:
        # Masks are drawn for the place of a row in its batch, or in X.
        assert np.isfinite(sparse.loss_curve_).all()
        assert sparse.loss_curve_[-1] < sparse.loss_curve_[0]
        return
    np.testing.assert_allclose(sparse.loss_curve_, dense.loss_curve_, rtol=1e-10)
    for a, b in zip(sparse.coefs_, dense.coefs_, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def test_divergence_on_sparse_rows_is_undone():
    reg = MLPRegressor(solver="sgd", learning_rate_init=1e200, random_state=0, max_iter=5)
    with pytest.raises(ValueError, match="non-finite"):
        reg.fit(X, DENSE[:, 0])
    assert all(np.isfinite(coef).all() for coef in reg.coefs_)
