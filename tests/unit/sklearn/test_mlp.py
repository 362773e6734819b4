"""What MLPClassifier and MLPRegressor do beyond scikit-learn's numbers (tests/peers has those).

Names in brackets, as [W1], are those of faults that users of other packages met: the kind of fault
is written beside each test.
"""

import copy
import os
import pickle
import re
import signal
import threading
import time
import warnings

import joblib
import numpy as np
import pytest
import scipy.sparse as sp

pytest.importorskip("sklearn", "1.9")

from estimators import BOTH, flat
from sklearn import neural_network
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.utils.class_weight import compute_sample_weight

import fastnn
from fastnn.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.usefixtures("no_convergence_warnings")

SOLVERS = ["sgd", "adam", "lbfgs"]


def rows(n=40, seed=0):
    return np.random.RandomState(seed).randn(n, 4)


X = rows()
Y = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int)
Y3 = np.digitize(X[:, 0], [-0.5, 0.5])
T = np.sin(X[:, 0]) + X[:, 1]
T2 = np.column_stack([T, X[:, 2] ** 2])


def targets(cls):
    return Y3 if cls is MLPClassifier else T


def make(cls, **params):
    params = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0, **params}
    return cls(**params)


def equal(a, b):
    """Bit for bit."""
    np.testing.assert_array_equal(flat(a), flat(b))


# Non-finite values ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "z"), [(np.float64, 1000.0), (np.float32, 200.0)])
def test_the_loss_of_a_certain_row_is_exact(dtype, z):
    """[N5, N6] log(0), or a clip that float32 does not feel: -log sigmoid(-z) is z."""
    for label, loss in ((0, z), (1, 0.0)):
        unit = MLPClassifier.from_weights(
            [np.ones((1, 1), dtype)], [np.zeros(1, dtype)], solver="sgd", momentum=0.0, alpha=0.0
        )
        before = unit.coefs_[0].copy()
        unit.partial_fit(np.array([[z]], dtype), [label])
        assert unit.loss_ == loss
        assert unit.coefs_[0].dtype == dtype
        # The gradient is sigmoid(z) - t: 1, or 0.
        moved = -unit.learning_rate_init * z if label == 0 else 0.0
        np.testing.assert_allclose(unit.coefs_[0] - before, moved, rtol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cls", BOTH)
def test_divergence_is_said_and_leaves_finite_weights(cls, solver):
    """[N10, P10] Columns of 1e5 and a large rate made NaN weights."""
    estimator = make(cls, solver=solver, learning_rate_init=1e3, momentum=0.9, max_iter=50)
    y = targets(cls) if cls is MLPClassifier else T * 1e150
    big = X * 1e150
    try:
        estimator.fit(big, y)
    except ValueError as error:
        assert "non-finite" in str(error)
    assert np.isfinite(flat(estimator)).all()


def test_divergence_of_sgd_raises():
    with pytest.raises(ValueError, match="non-finite parameter weights"):
        make(MLPRegressor, solver="sgd", learning_rate_init=0.01).fit(X * 1e5, T * 1e5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_probabilities_of_extreme_rows(solver):
    """[N7] Finite, and their sum is 1."""
    clf = make(MLPClassifier, solver=solver).fit(X, Y3)
    p = clf.predict_proba(np.array([[1e30, 0, 0, 0], [-1e30, 1e30, 0, 5]]))
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-12)
    assert np.isfinite(np.log(p)).all()
    np.testing.assert_array_equal(
        clf.predict_log_proba(X), np.log(clf.predict_proba(X)), strict=True
    )


def test_no_probability_rounds_to_zero():
    unit = MLPClassifier.from_weights([[[1.0]]], [[0.0]])
    p = unit.predict_proba([[40.0], [-40.0], [1e4]])
    # sigmoid(-40) = e^-40 / (1 + e^-40)
    np.testing.assert_allclose(p[:2], [[np.exp(-40), 1], [1, np.exp(-40)]], rtol=1e-14)
    assert p[2, 0] == np.finfo(float).tiny
    labels = MLPClassifier.from_weights([np.eye(2)], [np.zeros(2)], multilabel=True)
    p = labels.predict_proba([[1e3, -1e3]])
    assert np.isfinite(np.log(p)).all()
    assert np.isfinite(np.log(1 - p)).all()


# Labels and targets ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [[10, 20, 30], [5, 7], [-1, 1], [-1, 0, 1], [True, False], [0.0, 1.0], ["b", "a"]]
)
@pytest.mark.parametrize("early_stopping", [False, True])
def test_labels_of_any_kind(names, early_stopping):
    """[L1, L2, L3] Labels that are not 0..k-1 crashed, or trained on garbage."""
    names = np.array(names)
    y = Y if len(names) == 2 else Y3
    ordered = np.sort(names)
    settings = {"early_stopping": early_stopping, "validation_fraction": 0.2}
    named = make(MLPClassifier, **settings).fit(X, ordered[y])
    plain = make(MLPClassifier, **settings).fit(X, y)
    np.testing.assert_array_equal(named.classes_, ordered)
    assert named.classes_.dtype == names.dtype
    np.testing.assert_array_equal(named.predict(X), ordered[plain.predict(X)])
    np.testing.assert_array_equal(named.predict_proba(X), plain.predict_proba(X))
    assert named.validation_scores_ == plain.validation_scores_


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_class(solver):
    """[L4] Two columns of probabilities for one class."""
    clf = make(MLPClassifier, solver=solver).fit(X, np.full(len(X), "only"))
    assert clf.classes_.tolist() == ["only"]
    np.testing.assert_array_equal(clf.predict_proba(X), np.ones((len(X), 1)))
    np.testing.assert_array_equal(clf.predict_log_proba(X), np.zeros((len(X), 1)))
    assert set(clf.predict(X)) == {"only"}
    assert clf.score(X, np.full(len(X), "only")) == 1.0


def test_shapes_of_y():
    """[L6] (n, 1) targets that broadcast to (n, n)."""
    assert make(MLPRegressor).fit(X, T).predict(X).shape == (40,)
    with pytest.warns(DataConversionWarning):
        column = make(MLPRegressor).fit(X, T[:, None])
    assert column.predict(X).shape == (40,)
    assert make(MLPRegressor).fit(X, T2).predict(X).shape == (40, 2)
    with pytest.warns(DataConversionWarning):
        assert make(MLPClassifier).fit(X, Y[:, None]).predict(X).shape == (40,)
    held = make(MLPRegressor, early_stopping=True, validation_fraction=0.3).fit(X, T)
    assert np.isfinite(held.validation_scores_).all()


def test_several_outputs_of_several_classes_are_named_in_the_error():
    """[L9] An obscure message."""
    with pytest.raises(ValueError, match="multiclass-multioutput"):
        make(MLPClassifier).fit(X, np.column_stack([Y3, Y3[::-1]]))


def test_poisson_needs_targets_that_are_not_negative():
    """[L10] A loss of NaN."""
    y = np.abs(T)
    y[3] = -0.1
    with pytest.raises(ValueError, match=r"row 3"):
        make(MLPRegressor, loss="poisson").fit(X, y)


# Weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cls", BOTH)
def test_weights_of_one_are_no_weights(cls, solver):
    """[W1] Another model."""
    y = targets(cls)
    equal(
        make(cls, solver=solver).fit(X, y, np.ones(len(X))),
        make(cls, solver=solver).fit(X, y),
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cls", BOTH)
def test_a_weight_is_a_number_of_copies(cls, solver):
    """[W3] In a full batch: 2 is a row twice, 0 none; all times 10 changes only the penalty."""
    y, weight = targets(cls), np.random.RandomState(1).randint(0, 3, len(X)).astype(float)
    copies = np.repeat(np.arange(len(X)), weight.astype(int))
    settings = {"solver": solver, "alpha": 0.0, "batch_size": 1000}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Got `batch_size` less than 1 or larger")
        weighted = make(cls, **settings).fit(X, y, weight)
        repeated = make(cls, **settings).fit(X[copies], y[copies])
        scaled = make(cls, **settings).fit(X, y, 10 * weight)
    np.testing.assert_allclose(flat(weighted), flat(repeated), rtol=1e-7)
    np.testing.assert_allclose(flat(weighted), flat(scaled), rtol=1e-7)


@pytest.mark.parametrize("cls", BOTH)
def test_weights_that_are_all_zero(cls):
    """[W5] They moved the step counter, or raised where they are harmless."""
    y = targets(cls)
    estimator = make(cls).fit(X, y)
    before, t, steps = flat(estimator).copy(), estimator.t_, estimator._state.optimizer.steps
    estimator.partial_fit(X, y, sample_weight=np.zeros(len(X)))
    np.testing.assert_array_equal(flat(estimator), before)
    assert (estimator.t_, estimator._state.optimizer.steps) == (t, steps)
    with pytest.raises(ValueError, match="zero"):
        make(cls).fit(X, y, np.zeros(len(X)))


@pytest.mark.parametrize("cls", BOTH)
def test_negative_weights(cls):
    """[W8] They pushed the fit uphill."""
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        make(cls).fit(X, targets(cls), -np.ones(len(X)))


def test_class_weight():
    """[W7] It pushes, "balanced" is n / (k count), and it multiplies the weights of rows."""
    rare = np.array([1] * 4 + [0] * 36)
    pushed = make(MLPClassifier, class_weight={0: 1, 1: 1000}, max_iter=100).fit(X, rare)
    plain = make(MLPClassifier, max_iter=100).fit(X, rare)
    assert pushed.predict(X).sum() > plain.predict(X).sum()
    weight = np.random.RandomState(2).uniform(size=len(X))
    equal(
        make(MLPClassifier, class_weight="balanced").fit(X, rare, weight),
        make(MLPClassifier).fit(X, rare, weight * compute_sample_weight("balanced", rare)),
    )
    with pytest.raises(ValueError, match="partial_fit"):
        make(MLPClassifier, class_weight="balanced").partial_fit(X, rare, classes=[0, 1])
    with pytest.raises(ValueError, match="negative"):
        make(MLPClassifier, class_weight={0: -1.0, 1: 1.0}).fit(X, rare)


# Early stopping, warm start, curves -----------------------------------------------------------


def test_the_only_row_of_a_class_stays_in_the_training():
    """[S3] The hold-out took it in 7 of 100 seeds."""
    y = np.array([0] * 20 + [1] * 19 + [2])
    for seed in range(40):
        clf = make(MLPClassifier, early_stopping=True, validation_fraction=0.5, max_iter=1)
        clf.set_params(random_state=seed).fit(X, y)
        train, held = clf._state.hold_out
        assert set(y[train]) == {0, 1, 2}
        assert sorted([*train, *held]) == list(range(40))


def test_stratified_hold_out_of_three_classes():
    y = np.repeat([0, 1, 2], [24, 8, 8])
    for seed in range(5):
        clf = make(
            MLPClassifier,
            early_stopping=True,
            validation_fraction=0.25,
            stratify=True,
            random_state=seed,
        ).fit(X, y)
        assert np.bincount(y[clf._state.hold_out[1]]).tolist() == [6, 2, 2]


def test_a_regressor_never_stratifies():
    """[S4] Every target of its own class."""
    make(MLPRegressor, early_stopping=True, validation_fraction=0.2).fit(X, np.arange(40.0))


@pytest.mark.parametrize("cls", BOTH)
def test_partial_fit_after_early_stopping(cls):
    """[S6] An unrelated attribute error."""
    estimator = make(cls, early_stopping=True, validation_fraction=0.2).fit(X, targets(cls))
    assert not hasattr(estimator, "partial_fit")
    with pytest.raises(ValueError, match="early_stopping=True"):
        estimator.partial_fit(X, targets(cls))
    estimator.set_params(early_stopping=False).partial_fit(X, targets(cls))
    assert len(estimator.loss_curve_) == 6


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("scoring", [None, "loss", "scorer"])
def test_frames_and_early_stopping(cls, scoring):
    """[S7] Warnings about feature names from inside fit."""
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(X, columns=list("abcd"))
    y = targets(cls)
    if scoring == "scorer":
        scoring = "balanced_accuracy" if cls is MLPClassifier else "neg_mean_absolute_error"
    estimator = make(cls, early_stopping=True, validation_fraction=0.2, scoring=scoring)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator.fit(frame, y)
        estimator.predict(frame)
    assert estimator.feature_names_in_.tolist() == list("abcd")
    with pytest.warns(UserWarning, match="valid feature names"):
        estimator.predict(X)


@pytest.mark.parametrize("cls", BOTH)
def test_loss_and_score_of_the_validation_rows_are_kept_apart(cls):
    """[S8] A score taken for a loss."""
    y, held = targets(cls), slice(0, 10)
    estimator = make(cls, max_iter=3, alpha=0.5)
    estimator.fit(X[10:], y[10:], validation_data=(X[held], y[held]))
    assert len(estimator.loss_curve_) == 3
    assert len(estimator.validation_loss_curve_) == len(estimator.validation_scores_) == 3
    assert estimator.validation_scores_[-1] == pytest.approx(estimator.score(X[held], y[held]))
    if cls is MLPClassifier:
        p = estimator.predict_proba(X[held])
        loss = -np.log(p[np.arange(10), y[held]]).mean()
    else:
        loss = 0.5 * np.mean((estimator.predict(X[held]) - y[held]) ** 2)
    assert estimator.validation_loss_curve_[-1] == pytest.approx(loss)
    assert estimator.best_validation_score_ is None  # nobody stops early


@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"early_stopping": True, "validation_fraction": 0.2, "n_iter_no_change": 100},
        {"dropout": 0.3, "schedule": fastnn.CosineDecay(n_steps=20), "batch_size": 7},
        {"learning_rate": "invscaling", "batch_size": 7},
    ],
)
def test_resumed_fits_are_one_fit(cls, solver, more):
    """[S9] Adam's moments were reset between warm-started fits."""
    y = targets(cls)
    settings = {"solver": solver, "warm_start": True, "resume": True, **more}
    whole = make(cls, max_iter=6, **settings).fit(X, y)
    parts = make(cls, max_iter=2, **settings)
    for _ in range(3):
        parts.fit(X, y)
        parts = pickle.loads(pickle.dumps(parts))
    equal(whole, parts)
    assert whole.loss_curve_ == parts.loss_curve_
    assert whole.validation_scores_ == parts.validation_scores_


@pytest.mark.parametrize("cls", BOTH)
def test_warm_start_counts(cls):
    """[S10] It stopped after a single epoch."""
    estimator = make(cls, warm_start=True)
    for length in (5, 10):
        estimator.fit(X, targets(cls))
        assert estimator.n_iter_ == 5
        assert len(estimator.loss_curve_) == length


def test_warm_start_with_other_classes():
    """[S11] It died deep inside NumPy."""
    clf = make(MLPClassifier, warm_start=True).fit(X, Y3)
    with pytest.raises(ValueError, match=r"(?s)0 1 2.*0 1 5"):
        clf.fit(X, np.where(Y3 == 2, 5, Y3))


@pytest.mark.parametrize("cls", BOTH)
def test_warm_start_with_another_shape(cls):
    """[S12] The old net was kept in silence."""
    estimator = make(cls, warm_start=True).fit(X, targets(cls))
    before = flat(estimator).copy()
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        estimator.set_params(hidden_layer_sizes=(7,)).fit(X, targets(cls))
    np.testing.assert_array_equal(flat(estimator), before)
    estimator.set_params(warm_start=False).fit(X, targets(cls))
    assert estimator.coefs_[0].shape == (4, 7)


def test_partial_fit_draws_another_order_in_every_call():
    """[S14] The same order from the second call on; also where it was pickled in between."""
    reg = make(MLPRegressor, batch_size=1)
    orders = []
    for _ in range(4):
        reg.partial_fit(X, T)
        orders.append(tuple(reg._state.order))
        reg = pickle.loads(pickle.dumps(reg))
    assert len(set(orders)) == 4
    again = make(MLPRegressor, batch_size=1)
    for _ in range(4):
        again.partial_fit(X, T)
    equal(reg, again)


def test_a_lucky_epoch_cuts_the_rate_once():
    """[S15] The mark was never renewed: `ReduceOnPlateau` does, "adaptive" is scikit-learn's."""
    callback = fastnn.ReduceOnPlateau("loss", factor=0.5, patience=2)

    class Series:
        def __init__(self):
            self.factors = []

        def on_epoch_end(self, trainer, logs):
            losses = [1.0, 0.1, 0.9, 0.8, 0.7, 0.6, 0.5]
            callback.on_epoch_end(trainer, {"loss": losses[len(self.factors)]})
            self.factors.append(trainer.rate_factor)

    series = Series()
    make(MLPRegressor, max_iter=7, callbacks=[series]).fit(X, T)
    assert series.factors == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("cls", BOTH)
def test_every_attribute_is_there(cls, solver, early_stopping):
    """[P7] Missing on some paths."""
    estimator = make(cls, solver=solver, early_stopping=early_stopping, validation_fraction=0.2)
    estimator.fit(X, targets(cls))
    stochastic = solver != "lbfgs"
    stops = early_stopping and stochastic
    assert (estimator.best_loss_ is None) == stops
    assert (estimator.validation_scores_ is None) != stops
    assert (estimator.validation_loss_curve_ is None) != stops
    assert (estimator.best_validation_score_ is None) != stops
    assert len(estimator.loss_curve_) == estimator.n_iter_
    assert estimator.loss_ == estimator.loss_curve_[-1]
    assert estimator.n_layers_ == 3
    assert estimator.n_features_in_ == 4
    assert estimator.out_activation_ == ("softmax" if cls is MLPClassifier else "identity")
    assert estimator.t_ == (estimator.n_iter_ * (32 if stops else 40) if stochastic else 0)


# Penalty and optimizers -----------------------------------------------------------------------


def test_the_penalty_is_divided_by_the_rows_of_a_batch():
    """[G1] scikit-learn's rule: 200 rows in batches of 30 pay it seven times."""
    big, y = rows(200), rows(200)[:, 0]
    losses = {}
    for batch_size in (30, 200):
        reg = make(
            MLPRegressor, solver="sgd", alpha=1.0, batch_size=batch_size, learning_rate_init=1e-12
        )
        losses[batch_size] = reg.fit(big, y).loss_
    squares = sum((coef**2).sum() for coef in reg.coefs_)
    data = 0.5 * np.mean((reg.predict(big) - y) ** 2)
    assert losses[200] == pytest.approx(data + 0.5 * squares / 200, rel=1e-9)
    assert losses[30] == pytest.approx(data + 0.5 * squares * 7 / 200, rel=1e-9)


def test_alpha_moves_a_weight_by_rate_alpha_w_over_m():
    """[G2] Weight decay without effect."""
    w = np.random.RandomState(0).randn(4, 1)
    moved = []
    for alpha in (0.0, 1.0):
        reg = MLPRegressor.from_weights(
            [w], [[0.0]], solver="sgd", alpha=alpha, learning_rate_init=0.1, momentum=0.0
        )
        moved.append(reg.partial_fit(X, T).coefs_[0])
    np.testing.assert_allclose(moved[1] - moved[0], -0.1 * w / 40, rtol=1e-9)


@pytest.mark.parametrize(("gradient", "step"), [(1e-3, -9.99684e-4), (1e-7, -2.4025e-4)])
def test_first_step_of_adam(gradient, step):
    """[G3, G4, G5] scikit-learn's form, epsilon before the correction, and the first step is 1."""
    reg = MLPRegressor.from_weights([[[0.0]]], [[0.0]], alpha=0.0)
    reg.partial_fit([[1.0]], [-gradient])
    assert reg.coefs_[0][0, 0] == pytest.approx(step, rel=2e-5)


# Batches and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_sizes_at_the_edge(cls):
    """[B3, B4, B5] A last batch of one row; no rows; no columns."""
    y = targets(cls)
    make(cls, batch_size=16).fit(X[:17], y[:17])
    fitted = make(cls).fit(X, y)
    for call in (lambda: make(cls).fit(X[:0], y[:0]), lambda: fitted.predict(X[:0])):
        with pytest.raises(ValueError, match="0 sample"):
            call()
    with pytest.raises(ValueError, match="0 feature"):
        make(cls).fit(np.empty((40, 0)), y)
    with pytest.raises(ValueError, match="features"):
        fitted.predict(X[:, :3])
    with pytest.warns(UserWarning, match="batch_size"):
        make(cls, batch_size=41).fit(X, y)


@pytest.mark.parametrize("cls", BOTH)
def test_huge_numbers(cls):
    """[B10, B11] A C cast, or "cannot allocate" without a size."""
    make(cls, random_state=2**32 - 1).fit(X, targets(cls))
    estimator = make(cls, hidden_layer_sizes=(70000, 70000))
    with pytest.raises(MemoryError, match=r"hidden_layer_sizes=\[70000, 70000\]"):
        estimator.fit(X, targets(cls))
    assert not hasattr(estimator, "coefs_")


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("sizes", [(6,), [6], np.array([6]), 6, np.int64(6)])
def test_hidden_layer_sizes_of_any_kind(cls, sizes):
    """[P9, A10] Tuples, lists, arrays, numbers of NumPy."""
    estimator = make(cls, hidden_layer_sizes=sizes, shuffle=np.bool_(True), max_iter=np.int32(5))
    equal(estimator.fit(X, targets(cls)), make(cls).fit(X, targets(cls)))
    assert estimator.get_params()["hidden_layer_sizes"] is sizes
    equal(clone(estimator).fit(X, targets(cls)), estimator)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_hidden_layer(cls, solver):
    estimator = make(cls, hidden_layer_sizes=(), solver=solver, max_iter=300).fit(X, targets(cls))
    assert len(estimator.coefs_) == 1
    if cls is MLPRegressor and solver == "lbfgs":
        estimator.set_params(alpha=0.0, tol=1e-10).fit(X, T)
        expected = LinearRegression().fit(X, T).predict(X)
        np.testing.assert_allclose(estimator.predict(X), expected, atol=1e-4)


# Array kinds ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_read_only_and_mapped_arrays(cls, tmp_path):
    """[A1] A writable buffer was asked for."""
    y, weight = targets(cls), np.linspace(1, 2, 40)
    expected = make(cls).fit(X, y, weight)
    arrays = [X.copy(), y.copy(), weight.copy()]
    for array in arrays:
        array.flags.writeable = False
    equal(make(cls).fit(*arrays), expected)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    equal(make(cls).fit(mapped, y, weight), expected)
    np.testing.assert_array_equal(expected.predict(mapped), expected.predict(X))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("code", ["f4", "f8"])
def test_byte_order(cls, code):
    """[A4] '>f4' became float64 in silence."""
    native = X.astype(code)
    swapped = native.astype(">" + code)
    estimator = make(cls).fit(swapped, targets(cls))
    assert estimator.coefs_[0].dtype == np.dtype(code)
    equal(estimator, make(cls).fit(native, targets(cls)))
    np.testing.assert_array_equal(estimator.predict(swapped), estimator.predict(native))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_stays_float32(cls, solver):
    """[A5] float64 copies doubled the memory."""
    estimator = make(cls, solver=solver).fit(X.astype(np.float32), targets(cls))
    assert {a.dtype for a in (*estimator.coefs_, *estimator.intercepts_)} == {np.dtype("f4")}
    output = estimator.predict_proba if cls is MLPClassifier else estimator.predict
    assert output(X.astype(np.float32)).dtype == np.float32
    assert output(X).dtype == np.float64  # as scikit-learn computes these rows
    assert make(cls, dtype="float32").fit(X, targets(cls)).coefs_[0].dtype == np.float32
    assert make(cls, dtype=np.float64).fit(X.astype("f4"), targets(cls)).coefs_[0].dtype == "f8"


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.coo_matrix])
def test_sparse_rows_are_dense_rows(cls, solver, kind):
    """[A7] Also with 64-bit indices."""
    thin = np.where(X > 0.3, X, 0.0)
    sparse = kind(thin)
    if hasattr(sparse, "indices"):
        sparse.indices = sparse.indices.astype(np.int64)
        sparse.indptr = sparse.indptr.astype(np.int64)
    settings = {"solver": solver, "batch_size": 7}
    a, b = make(cls, **settings).fit(sparse, targets(cls)), make(cls, **settings)
    b.fit(thin, targets(cls))
    np.testing.assert_allclose(flat(a), flat(b), rtol=1e-12)
    np.testing.assert_array_equal(a.predict(sparse), a.predict(thin))
    held = {"early_stopping": True, "validation_fraction": 0.2, **settings}
    np.testing.assert_allclose(
        flat(make(cls, **held).fit(sparse, targets(cls))),
        flat(make(cls, **held).fit(thin, targets(cls))),
        rtol=1e-12,
    )


def test_sparse_rows_do_not_become_dense_at_once():
    """Memory beside X is bounded by a batch."""
    import tracemalloc

    columns = np.random.RandomState(0).randint(0, 10000, (2000, 3))
    wide = sp.csr_matrix((np.ones(6000), columns.ravel(), np.arange(0, 6001, 3)), (2000, 10000))
    y = np.random.RandomState(0).randn(2000)
    reg = make(MLPRegressor, hidden_layer_sizes=(2,), max_iter=1)
    tracemalloc.start()
    reg.fit(wide, y).predict(wide)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 10000 * 8 / 3  # a third of X as an array


@pytest.mark.parametrize("dtype", ["u1", "i8", "?", "f2", "g", "O"])
@pytest.mark.parametrize("cls", BOTH)
def test_rows_of_any_number(cls, dtype):
    """[A8] Bytes were refused."""
    numbers = (10 * np.abs(X)).astype(dtype)
    same = numbers.astype("f8")
    estimator = make(cls).fit(numbers, targets(cls))
    equal(estimator, make(cls).fit(same, targets(cls)))
    np.testing.assert_array_equal(estimator.predict(numbers), estimator.predict(same))


@pytest.mark.parametrize("cls", BOTH)
def test_what_is_no_row(cls):
    """[A8, A9] Complex numbers, NaN, infinity, in X and y."""
    y = targets(cls)
    fitted = make(cls).fit(X, y)
    for bad in (X * 1j, np.where(X[3, 1] == X, np.nan, X), np.where(X[3, 1] == X, np.inf, X)):
        with pytest.raises(ValueError, match=r"Complex|NaN|infinity"):
            make(cls).fit(bad, y)
        with pytest.raises(ValueError, match=r"Complex|NaN|infinity"):
            fitted.predict(bad)
    with pytest.raises(ValueError, match="NaN"):
        make(cls).fit(X, np.where(np.arange(40) == 5, np.nan, y))
    with pytest.raises(NotFittedError):
        make(cls).predict(X)


# Repeatability --------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_any_number_of_threads(cls, solver):
    """[R1, R6, T11] Other results with other threads; dropout masks, too."""
    n, k = 700, 20
    big = np.random.RandomState(0).randn(n, k)
    y = np.digitize(big[:, 0], [-0.5, 0.5]) if cls is MLPClassifier else big[:, 0]
    settings = {"hidden_layer_sizes": (64, 32), "max_iter": 2, "solver": solver}
    if solver != "lbfgs":
        settings["dropout"] = 0.2
    first = make(cls, n_threads=1, **settings).fit(big, y)
    for n_threads in (2, 3, 8):
        equal(make(cls, n_threads=n_threads, **settings).fit(big, y), first)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("cls", BOTH)
def test_a_row_alone_and_in_a_batch(cls, dtype):
    """[R2] Another output."""
    mine = X.astype(dtype)
    estimator = make(cls, hidden_layer_sizes=(33, 17)).fit(mine, targets(cls))
    output = estimator.predict_proba if cls is MLPClassifier else estimator.predict
    whole = output(mine)
    for n in range(1, 41):
        np.testing.assert_array_equal(output(mine[:n]), whole[:n])
        np.testing.assert_array_equal(output(mine[n - 1 : n])[0], whole[n - 1])


@pytest.mark.parametrize("cls", BOTH)
def test_the_global_generator_does_not_matter(cls):
    """[R4] A fixed seed, whatever other code drew."""
    first = make(cls, early_stopping=True, validation_fraction=0.2, dropout=0.1)
    first.fit(X, targets(cls))
    np.random.rand(7)  # noqa: NPY002
    equal(clone(first).fit(X, targets(cls)), first)


# Threads, interrupts, memory ------------------------------------------------------------------


def test_predicting_side_by_side():
    """[T9] Four threads predict while a fifth copies."""
    clf = make(MLPClassifier, hidden_layer_sizes=(50,)).fit(X, Y3)
    expected, wrong = clf.predict_proba(X), []

    def predict():
        wrong.extend(not np.array_equal(clf.predict_proba(X), expected) for _ in range(100))

    def copies():
        for _ in range(50):
            twin = copy.deepcopy(clf)
            wrong.append(not np.array_equal(twin.predict_proba(X), expected))

    threads = [threading.Thread(target=t) for t in (predict, predict, predict, predict, copies)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 450


def test_one_fit_at_a_time():
    """[T9] Two threads fitting one object: an attribute error in one of them."""
    reg = make(MLPRegressor, max_iter=10**6, tol=0.0, n_iter_no_change=10**6)
    outcome = []

    class Meddle:
        def on_epoch_end(self, trainer, logs):
            def fit():
                try:
                    reg.fit(X, T)
                except RuntimeError as error:
                    outcome.append(str(error))

            thread = threading.Thread(target=fit)
            thread.start()
            thread.join()
            trainer.stop()

    reg.set_params(callbacks=[Meddle()]).fit(X, T)
    assert len(outcome) == 1
    assert "being fitted already" in outcome[0]
    assert reg.n_iter_ == 1
    reg.set_params(callbacks=None, max_iter=1).fit(X, T)  # and afterwards it can be fitted again


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("cls", BOTH)
def test_ctrl_c(cls, solver):
    """[T12] Swallowed without a word; half-written weights."""
    big = np.random.RandomState(0).randn(3000, 50)
    y = (big[:, 0] > 0).astype(int) if cls is MLPClassifier else big[:, 0]
    estimator = make(
        cls,
        solver=solver,
        hidden_layer_sizes=(100, 100),
        max_iter=10**6,
        max_fun=10**9,
        tol=0.0,
        n_iter_no_change=10**6,
        n_threads=1,
    )
    sent = []

    def interrupt():
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(big, y)
    assert time.monotonic() - sent[0] < 2.0  # generous: other work runs beside the tests
    timer.join()
    assert np.isfinite(flat(estimator)).all()
    assert len(estimator.loss_curve_) == estimator.n_iter_ > 0
    estimator.predict(big)
    estimator.set_params(max_iter=2, warm_start=True).fit(big, y)


def test_memory_does_not_grow():
    """[T14] 200 fits, also those that raise half way."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    big = np.random.RandomState(0).randn(500, 20)

    def some_fits(n):
        for i in range(n):
            reg = make(MLPRegressor, hidden_layer_sizes=(200,), max_iter=1)
            if i % 2:
                reg.set_params(solver="sgd", learning_rate_init=1e200)
                with pytest.raises(ValueError, match="non-finite"):
                    reg.fit(big, big[:, 0])
            else:
                reg.fit(big, big[:, 0])

    some_fits(30)
    before = process.memory_info().rss
    some_fits(170)
    assert process.memory_info().rss - before < 20e6  # each keeps 35 kB of weights, 600 kB at work


# Pickle, clone, parameters --------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("solver", SOLVERS)
def test_pickles_and_copies(cls, solver, tmp_path):
    """[P1, P2, S18] Fitted or not, in all protocols, and training goes on with the same bits."""
    y = targets(cls)
    for estimator in (make(cls, solver=solver), make(cls, solver=solver).fit(X, y)):
        path = tmp_path / "model.joblib"
        joblib.dump(estimator, path)
        twins = [
            pickle.loads(pickle.dumps(estimator, p)) for p in range(pickle.HIGHEST_PROTOCOL + 1)
        ]
        twins += [copy.deepcopy(estimator), joblib.load(path)]
        for twin in twins:
            assert twin.get_params() == estimator.get_params()
            if not hasattr(estimator, "coefs_"):
                assert not hasattr(twin, "coefs_")
                continue
            equal(twin, estimator)
            assert twin.loss_curve_ == estimator.loss_curve_
            np.testing.assert_array_equal(twin.predict(X), estimator.predict(X))
            if solver != "lbfgs":
                equal(twin.partial_fit(X, y), copy.deepcopy(estimator).partial_fit(X, y))


@pytest.mark.parametrize("cls", BOTH)
def test_mapped_models(cls, tmp_path):
    """joblib's mmap_mode: read-only weights on the disk, and a fit that goes on from them."""
    estimator = make(cls, hidden_layer_sizes=(300,), warm_start=True).fit(X, targets(cls))
    joblib.dump(estimator, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    assert not mapped.coefs_[0].flags.writeable
    np.testing.assert_array_equal(mapped.predict(X), estimator.predict(X))
    equal(mapped.fit(X, targets(cls)), estimator.fit(X, targets(cls)))
    equal(mapped.partial_fit(X, targets(cls)), estimator.partial_fit(X, targets(cls)))


@pytest.mark.parametrize("cls", BOTH)
def test_clones_are_not_fitted(cls):
    """[P4] A clone came back fitted."""
    twin = clone(make(cls).fit(X, targets(cls)))
    assert [name for name in vars(twin) if name.endswith("_")] == []
    assert "_net" not in vars(twin)


@pytest.mark.parametrize("cls", BOTH)
def test_positions_of_the_parameters(cls):
    """[P6] scikit-learn's, and what is more comes after them by name only."""
    import inspect

    from sklearn import neural_network

    mine = list(inspect.signature(cls).parameters.values())
    theirs = list(inspect.signature(getattr(neural_network, cls.__name__)).parameters.values())
    assert mine[: len(theirs)] == theirs
    assert all(p.kind is p.KEYWORD_ONLY for p in mine[len(theirs) :])


def test_old_positions_are_explained():
    """[P6] MLPRegressor((50,)), and partial_fit(X, y, classes)."""
    with pytest.raises(ValueError, match=r"hidden_layer_sizes=\(50,\)"):
        MLPRegressor((50,)).fit(X, T)
    with pytest.raises(ValueError, match="by name"):
        make(MLPClassifier).partial_fit(X, Y, np.unique(Y))


@pytest.mark.parametrize("cls", BOTH)
def test_weights_may_be_replaced(cls):
    """coefs_ and intercepts_ are lists of arrays, which users change in place or replace."""
    estimator = make(cls).fit(X, targets(cls))
    other = copy.deepcopy(estimator)
    other.coefs_[0] = np.zeros_like(other.coefs_[0])
    estimator.coefs_[0][:] = 0
    np.testing.assert_array_equal(estimator.predict(X), other.predict(X))
    equal(estimator.partial_fit(X, targets(cls)), other.partial_fit(X, targets(cls)))


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_the_short_way_to_predict(cls, dtype):
    """Lists, integers, strides, other floats: what the validated long way gives, or its errors."""
    estimator = make(cls).fit(X.astype(dtype), targets(cls))
    whole = np.round(X * 4)
    for given in (
        whole,
        whole.tolist(),
        whole.astype("i4"),
        whole.astype("u1"),
        whole.astype("f4"),
        np.asfortranarray(whole),
        np.repeat(whole, 2, axis=1)[::-1, ::2],
    ):
        expected = estimator._forward(estimator._check_rows(given))
        np.testing.assert_array_equal(estimator._outputs(given), expected, strict=True)
    for bad in (X[0], X[0].tolist(), [[1, 2], [3]], [["a"] * 4], [[1, 2, 3]], [], np.array(1.0)):
        with pytest.raises(ValueError):
            estimator.predict(bad)


@pytest.mark.parametrize("kind", ["nan", "inf", "width", "empty", "complex", "float16", "unsorted"])
def test_sparse_rows_have_a_short_way_to_the_same_answers(kind):
    """Answers and errors of one CSR matrix are those of scikit-learn's own estimator."""
    random = np.random.RandomState(0)
    dense = np.where(random.uniform(size=(40, 12)) < 0.3, random.randn(40, 12), 0.0)
    y = dense[:, 0] > 0
    settings = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, their = (
            cls(**settings).fit(sp.csr_array(dense), y)
            for cls in (MLPClassifier, neural_network.MLPClassifier)
        )
    rows = sp.csr_array(dense[:6])
    if kind in ("nan", "inf"):
        rows.data[3] = float(kind)
    elif kind == "width":
        rows = rows[:, :11]
    elif kind == "empty":
        rows = rows[:0]
    elif kind == "complex":
        rows = rows.astype(complex)
    elif kind == "float16":
        rows.data = rows.data.astype(np.float16)
    else:
        rows.indices[:] = rows.indices[::-1].copy()
        rows.indptr[1:] = len(rows.data)
        rows.has_sorted_indices = rows.has_canonical_format = True
    try:
        expected = their.predict_proba(rows)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error), match=re.escape(str(error).splitlines()[0])):
            ours.predict_proba(rows)
    else:
        np.testing.assert_allclose(ours.predict_proba(rows), expected, rtol=1e-6)
