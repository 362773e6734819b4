"""What the estimators have that scikit-learn's lack: losses, optimizers, callbacks, extras."""

import copy
import pickle
import threading
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.9")

from estimators import BOTH, flat
from sklearn import neural_network as theirs
from sklearn.linear_model import LinearRegression, QuantileRegressor

import fastnn
from fastnn.sklearn import MLPClassifier, MLPRegressor
from fastnn.tables.activations import ACTIVATIONS
from fastnn.tables.optimizers import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("no_convergence_warnings")

X = np.random.RandomState(0).randn(60, 4)
Y = (X[:, 0] + 0.5 * X[:, 1] > 0).astype(int)
Y3 = np.digitize(X[:, 0], [-0.5, 0.5])
L = np.column_stack([X[:, 0] > 0, X[:, 1] > 0, X[:, 2] + X[:, 3] > 0]).astype(int)
T = np.sin(X[:, 0]) + X[:, 1]
T2 = np.column_stack([T, X[:, 2] ** 2])


def targets(cls):
    return Y3 if cls is MLPClassifier else T


def make(cls, **params):
    params = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0, **params}
    return cls(**params)


# Activations and losses -----------------------------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
def test_an_activation_for_each_layer(cls):
    names = [*ACTIVATIONS, "logistic"]
    sizes = tuple(range(2, 2 + len(names)))
    estimator = make(cls, hidden_layer_sizes=sizes, activation=names, max_iter=1)
    hidden = estimator.fit(X, targets(cls)).hidden_layer_outputs(X)
    below = X
    for i, name in enumerate(names):
        z = below @ estimator.coefs_[i] + estimator.intercepts_[i]
        row = ACTIVATIONS["sigmoid" if name == "logistic" else name]
        np.testing.assert_allclose(hidden[i], row.f(z), rtol=1e-7, atol=1e-12)
        below = hidden[i]
    assert len(hidden) == len(names)


def test_logistic_is_sigmoid():
    a = make(MLPClassifier, activation="logistic").fit(X, Y)
    b = make(MLPClassifier, activation=["sigmoid"]).fit(X, Y)
    np.testing.assert_array_equal(flat(a), flat(b))
    assert a.out_activation_ == "logistic"


@pytest.mark.parametrize("activation", ["swish", ["relu", "relu"], [], 3])
def test_activations_that_do_not_exist(activation):
    with pytest.raises((ValueError, TypeError), match="activation"):
        make(MLPRegressor, activation=activation).fit(X, T)


def brier(p, y):
    return 0.5 * ((p - y) ** 2).sum(axis=1).mean()


def hinge(z, y):
    return np.maximum(0, 1 - np.where(y, 1, -1) * z).sum(axis=1).mean()


@pytest.mark.parametrize("y", [Y, Y3, L], ids=["binary", "multiclass", "multilabel"])
def test_losses_of_a_classifier(y):
    one_hot = np.eye(3)[y] if y is Y3 else y.reshape(60, -1)
    for loss, row in (("brier", "squared_error"), ("hinge", "hinge")):
        clf = make(MLPClassifier, loss=loss, alpha=0.0, max_iter=300, learning_rate_init=0.02)
        clf.fit(X, y)
        assert clf.score(X, y) > 0.8
        # partial_fit reports the loss before its step
        rate = {"solver": "sgd", "batch_size": 60, "alpha": 0.0}
        unit = MLPClassifier.from_weights(
            clf.coefs_, clf.intercepts_, loss=loss, multilabel=y is L, **rate
        )
        if loss == "brier":
            p = clf.predict_proba(X)
            expected = brier(p if y is not Y else p[:, 1:], one_hot)
            assert not hasattr(clf, "decision_function")
        else:
            z = clf.decision_function(X)
            expected = hinge(z.reshape(60, -1), one_hot)
            assert not hasattr(clf, "predict_proba")
            with pytest.raises(AttributeError, match="no probabilities"):
                clf.predict_proba
            chosen = z.argmax(axis=1) if y is Y3 else (z > 0).astype(int)
            np.testing.assert_array_equal(clf.predict(X), chosen)
        unit.partial_fit(X, y)
        assert unit.loss_ == pytest.approx(expected, rel=1e-9)
        by_object = make(MLPClassifier, loss=fastnn.tables.losses.LOSSES[row], alpha=0.0)
        by_name = make(MLPClassifier, loss=loss, alpha=0.0)
        np.testing.assert_array_equal(flat(by_object.fit(X, y)), flat(by_name.fit(X, y)))


def test_losses_that_a_classifier_cannot_minimise():
    with pytest.raises(ValueError, match="classifier cannot minimise"):
        make(MLPClassifier, loss=fastnn.Huber()).fit(X, Y)
    with pytest.raises(ValueError, match="regressor cannot minimise"):
        make(MLPRegressor, loss=fastnn.tables.losses.LOSSES["hinge"]).fit(X, T)


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        ("absolute_error", lambda e: np.abs(e)),
        ("huber", lambda e: np.where(np.abs(e) > 1, np.abs(e) - 0.5, 0.5 * e**2)),
        (fastnn.Huber(0.3), lambda e: np.where(abs(e) > 0.3, 0.3 * (abs(e) - 0.15), 0.5 * e**2)),
        ("quantile", lambda e: 0.5 * np.abs(e)),
        (fastnn.Quantile(0.9), lambda e: np.where(e < 0, -0.9 * e, 0.1 * e)),
    ],
)
def test_losses_of_a_regressor(loss, value):
    """The sum over the outputs, the mean over the rows."""
    reg = make(MLPRegressor, loss=loss, solver="sgd", learning_rate_init=1e-14, alpha=0.0)
    reg.fit(X, T2)
    expected = value(reg.predict(X) - T2).sum(axis=1).mean()
    assert reg.loss_ == pytest.approx(expected, rel=1e-9)


def test_the_quantile_is_met():
    """Without a hidden layer it is linear quantile regression."""
    settings = {"loss": fastnn.Quantile(0.8), "hidden_layer_sizes": (), "alpha": 0.0}
    reg = make(MLPRegressor, max_iter=3000, tol=0.0, n_iter_no_change=10**6, **settings).fit(X, T)
    expected = QuantileRegressor(quantile=0.8, alpha=0.0).fit(X, T)

    def pinball(e):
        return np.where(e >= 0, 0.8 * e, -0.2 * e).mean()

    assert pinball(T - reg.predict(X)) == pytest.approx(pinball(T - expected.predict(X)), rel=0.01)


# Optimizers, schedules, dropout, clipping -----------------------------------------------------


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_any_optimizer_by_name_and_by_object(cls, name):
    y = targets(cls)
    named = make(cls, solver=name, learning_rate_init=0.005, max_iter=30).fit(X, y)
    assert named.loss_curve_[-1] < named.loss_curve_[0]
    optimizer = OPTIMIZERS[name]() if name == "lbfgs" else OPTIMIZERS[name](learning_rate=0.005)
    given = make(cls, solver=optimizer, max_iter=30).fit(X, y)
    assert given.loss_curve_[-1] < given.loss_curve_[0]
    if name not in ("sgd", "adam", "lbfgs"):  # these are scikit-learn's forms by name
        np.testing.assert_array_equal(flat(named), flat(given))
    twin = pickle.loads(pickle.dumps(given))
    np.testing.assert_array_equal(flat(twin), flat(given))
    assert repr(twin.solver) == repr(optimizer)


@pytest.mark.parametrize("solver", ["sgd", "adam", "rmsprop"])
def test_schedules(solver):
    """They give the rate of every step, whatever the solver: here seen by the callbacks."""
    seen = []

    class Look:
        def on_epoch_end(self, trainer, logs):
            seen.append(logs["learning_rate"])

    settings = {"solver": solver, "batch_size": 20, "callbacks": [Look()]}
    reg = make(MLPRegressor, schedule=lambda step: 0.1 / (1 + step), **settings).fit(X, T)
    # three steps an epoch
    np.testing.assert_allclose(seen, 0.1 / np.arange(3, 16, 3))
    constant = make(MLPRegressor, solver=solver, batch_size=20, learning_rate_init=0.01)
    same = make(MLPRegressor, solver=solver, batch_size=20, schedule=lambda step: 0.01)
    np.testing.assert_array_equal(flat(constant.fit(X, T)), flat(same.fit(X, T)))
    decay = fastnn.ExponentialDecay(decay=0.9, n_steps=1)
    assert flat(make(MLPRegressor, schedule=decay, **settings).fit(X, T)).shape == flat(reg).shape


def test_a_rate_of_zero_keeps_the_velocity_finite():
    reg = make(MLPRegressor, solver="sgd", schedule=lambda step: 0.0 if step < 2 else 0.1)
    assert np.isfinite(flat(reg.fit(X, T))).all()


@pytest.mark.parametrize("cls", BOTH)
def test_dropout(cls):
    y = targets(cls)
    whole = make(cls, hidden_layer_sizes=(20, 20)).fit(X, y)
    dropped = make(cls, hidden_layer_sizes=(20, 20), dropout=[0.5, 0.1]).fit(X, y)
    assert not np.array_equal(flat(whole), flat(dropped))
    np.testing.assert_array_equal(dropped.predict(X), dropped.predict(X))  # only while it trains
    with pytest.raises(ValueError, match="dropout"):
        make(cls, dropout=1.0).fit(X, y)
    with pytest.raises(ValueError, match="dropout"):
        make(cls, dropout=[0.1, 0.1]).fit(X, y)


def test_clip_norm():
    """One step of plain gradient descent is as long as the clipped gradient times the rate."""
    reg = make(
        MLPRegressor,
        solver="sgd",
        momentum=0.0,
        learning_rate_init=0.1,
        clip_norm=1e-3,
        max_iter=1,
        warm_start=True,
    ).fit(X, T)
    before = flat(reg).copy()
    reg.fit(X, 100 * T)
    assert np.linalg.norm(flat(reg) - before) == pytest.approx(0.1 * 1e-3)


@pytest.mark.parametrize("given", [{"dropout": 0.1}, {"clip_norm": 1.0}, {"schedule": "constant"}])
def test_what_lbfgs_cannot_do(given):
    with pytest.raises(ValueError, match=next(iter(given))):
        make(MLPRegressor, solver="lbfgs", **given).fit(X, T)


# Validation data, scoring ---------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("cls", BOTH)
def test_validation_data(cls, solver):
    y, weight = targets(cls), np.linspace(0, 1, 20)
    estimator = make(cls, solver=solver, early_stopping=True, max_iter=8)
    estimator.fit(X[:40], y[:40], validation_data=(X[40:], y[40:], weight))
    assert len(estimator.validation_loss_curve_) == estimator.n_iter_
    if solver == "adam":
        best = max(estimator.validation_scores_)
        assert estimator.best_validation_score_ == best
        assert estimator.score(X[40:], y[40:], weight) == pytest.approx(best)  # the best weights
    for wrong, error in (
        ((X[40:],), TypeError),
        ((X[40:], y[41:]), ValueError),
        ((X[40:, :3], y[40:]), ValueError),
        ((X[40:], y[40:], -weight), ValueError),
    ):
        with pytest.raises(error):
            make(cls).fit(X, y, validation_data=wrong)


def test_validation_labels_must_be_known():
    with pytest.raises(ValueError, match="7"):
        make(MLPClassifier).fit(X, Y, validation_data=(X[:2], [0, 7]))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("scoring", ["f1_macro", "loss", "callable"])
def test_scoring_of_early_stopping(kind, scoring):
    from sklearn.metrics import f1_score

    y = {"binary": np.array(["b", "a"])[Y], "multiclass": Y3 * 10, "multilabel": L}[kind]

    def score(estimator, rows, labels):
        return f1_score(labels, estimator.predict(rows), average="macro", zero_division=0.0)

    clf = make(
        MLPClassifier,
        early_stopping=True,
        validation_fraction=0.3,
        scoring=score if scoring == "callable" else scoring,
        n_iter_no_change=3,
        max_iter=20,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="F-score is ill-defined|Precision|Recall")
        clf.fit(X, y)
    held = clf._state.hold_out[1]
    best = clf.best_validation_score_
    assert best == max(clf.validation_scores_)
    if scoring == "loss":
        assert best == -min(clf.validation_loss_curve_)
    else:
        assert best == pytest.approx(score(clf, X[held], y[held]))


def test_scoring_of_a_regressor():
    reg = make(
        MLPRegressor, early_stopping=True, validation_fraction=0.3, scoring="neg_max_error"
    ).fit(X, T)
    held = reg._state.hold_out[1]
    worst = np.abs(reg.predict(X[held]) - T[held]).max()
    assert reg.best_validation_score_ == pytest.approx(-worst)
    with pytest.raises(ValueError, match="scor"):
        make(MLPRegressor, early_stopping=True, scoring="no such").fit(X, T)


# Callbacks, progress, time --------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("cls", BOTH)
def test_callbacks(cls, solver, tmp_path):
    calls = []

    class Record:
        def on_fit_begin(self, trainer, monitors):
            calls.append(sorted(monitors))

        def on_epoch_end(self, trainer, logs):
            calls.append(dict(logs))
            assert trainer.estimator is estimator
            assert trainer.epoch == logs["epoch"]

        def on_fit_end(self, trainer):
            calls.append("end")

    y = targets(cls)
    checkpoint = fastnn.Checkpoint(tmp_path / "{epoch}.pickle", every=2)
    estimator = make(cls, solver=solver, max_iter=4)
    estimator.set_params(callbacks=[Record(), checkpoint])
    with pytest.raises((AttributeError, pickle.PicklingError)):
        estimator.fit(X, y)  # a class of a test has no name to pickle by
    calls.clear()
    estimator.set_params(callbacks=[Record()]).fit(X, y, validation_data=(X, y))
    assert calls[0] == sorted(
        ["epoch", "loss", "learning_rate", "seconds", "validation_loss", "validation_score"]
    )
    assert [call["epoch"] for call in calls[1:-1]] == [1, 2, 3, 4]
    assert [call["loss"] for call in calls[1:-1]] == estimator.loss_curve_
    assert [c["validation_loss"] for c in calls[1:-1]] == estimator.validation_loss_curve_
    assert calls[-1] == "end"

    estimator.set_params(callbacks=[checkpoint]).fit(X, y)
    saved = pickle.loads((tmp_path / "4.pickle").read_bytes())
    np.testing.assert_array_equal(saved.predict(X), estimator.predict(X))
    assert len(pickle.loads((tmp_path / "2.pickle").read_bytes()).loss_curve_) == 2

    with pytest.raises(TypeError, match="on_epoch_end"):
        make(cls, callbacks=[print]).fit(X, y)


def test_callbacks_of_the_package():
    stopping = fastnn.EarlyStopping("loss", patience=2, min_delta=10.0)
    reg = make(MLPRegressor, max_iter=50, callbacks=[stopping]).fit(X, T)
    assert reg.n_iter_ == stopping.stopped_epoch == 3
    assert stopping.best_epoch == 1
    first = make(MLPRegressor, max_iter=1).fit(X, T)
    np.testing.assert_array_equal(flat(reg), flat(first))  # the best weights are put back


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_max_seconds(solver):
    big = np.random.RandomState(0).randn(2000, 50)
    reg = make(
        MLPRegressor,
        solver=solver,
        hidden_layer_sizes=(100, 100),
        max_iter=10**6,
        max_fun=10**9,
        tol=0.0,
        n_iter_no_change=10**6,
        max_seconds=0.3,
    )
    start = time.monotonic()
    reg.fit(big, big[:, 0] ** 3)
    assert 0.3 <= time.monotonic() - start < 5.0
    assert 1 <= reg.n_iter_ < 10**6


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_progress_and_verbose(solver, capsys):
    make(MLPRegressor, solver=solver, progress=True, max_iter=3).fit(X, T)
    assert "3/3" in capsys.readouterr().err
    make(MLPRegressor, solver=solver, verbose=True, max_iter=3).fit(X, T)
    assert "Iteration 3, loss = " in capsys.readouterr().out


def test_one_thread_may_be_asked_for():
    with pytest.raises(ValueError, match="n_threads"):
        make(MLPRegressor, n_threads=0).fit(X, T)


# Looking inside -------------------------------------------------------------------------------


@pytest.mark.parametrize("y", [Y, Y3, L, T, T2], ids=["binary", "multi", "labels", "one", "two"])
def test_input_gradient(y):
    """Against central differences."""
    cls = MLPRegressor if y.dtype.kind == "f" else MLPClassifier
    estimator = make(cls, activation="tanh", max_iter=20).fit(X, y)
    gradient = estimator.input_gradient(X[:5])
    assert gradient.shape == (5, estimator.n_outputs_, 4)
    h = 1e-5
    for j in range(4):
        step = h * np.eye(4)[j]
        slope = (estimator._outputs(X[:5] + step) - estimator._outputs(X[:5] - step)) / (2 * h)
        np.testing.assert_allclose(gradient[:, :, j], slope, rtol=1e-6, atol=1e-8)


# To and from scikit-learn, and from weights ---------------------------------------------------


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("y", [Y, Y3, L, T, T2], ids=["binary", "multi", "labels", "one", "two"])
def test_to_and_from_scikit_learn(y, solver):
    name = "MLPRegressor" if y.dtype.kind == "f" else "MLPClassifier"
    cls, their = getattr(fastnn.sklearn, name), getattr(theirs, name)
    params = {"hidden_layer_sizes": (6,), "max_iter": 5, "random_state": 0, "solver": solver}
    fitted = their(**params).fit(X, y)
    taken = cls.from_sklearn(fitted)
    assert type(taken) is cls
    theirs_params = fitted.get_params()
    assert {k: taken.get_params()[k] for k in theirs_params} == theirs_params
    np.testing.assert_allclose(taken.predict(X), fitted.predict(X), rtol=1e-12)
    back = taken.to_sklearn()
    assert type(back) is their
    np.testing.assert_array_equal(back.predict(X), fitted.predict(X))
    assert back.get_params() == theirs_params
    for attribute in vars(fitted):
        if attribute.endswith("_") and not attribute.endswith("__"):
            assert hasattr(back, attribute), attribute
    assert back.coefs_[0] is not taken.coefs_[0]
    if solver != "lbfgs":
        taken.partial_fit(X, y)
        back.partial_fit(X, y)
    with pytest.raises(TypeError, match="fitted"):
        cls.from_sklearn(LinearRegression())


def test_what_scikit_learn_cannot_be_given():
    for extra in (
        {"activation": "gelu"},
        {"dropout": 0.1},
        {"solver": "rmsprop"},
        {"loss": "hinge"},
        {"class_weight": "balanced"},
    ):
        with pytest.raises(ValueError, match=next(iter(extra))):
            make(MLPClassifier, **extra).fit(X, Y).to_sklearn()


def test_from_weights():
    """XOR: two units that count ones, and an output that wants exactly one."""
    coefs = [[[1, 1], [1, 1]], [[1.0], [-2.0]]]
    xor = [[0, 0], [0, 1], [1, 0], [1, 1]]
    reg = MLPRegressor.from_weights(coefs, [[0, -1], [0]], activation="relu")
    np.testing.assert_array_equal(reg.predict(xor), [0, 1, 1, 0])
    clf = MLPClassifier.from_weights(coefs, [[0, -1], [-0.5]], classes=["same", "differ"])
    assert clf.classes_.tolist() == ["differ", "same"]
    np.testing.assert_array_equal(clf.predict(xor), ["differ", "same", "same", "differ"])
    assert clf.n_layers_ == 3
    assert clf.hidden_layer_sizes == (2,)
    clf.partial_fit(xor, ["same", "differ", "differ", "same"])  # it can learn on
    for wrong in (
        ([[[1.0]]], []),
        ([[[1.0, 2.0]]], [[1.0]]),
        ([[[1.0]], [[1.0], [1.0]]], [[0.0], [0.0]]),
        ([[[np.nan]]], [[0.0]]),
        ([], []),
    ):
        with pytest.raises(ValueError):
            MLPRegressor.from_weights(*wrong)
    with pytest.raises(ValueError, match="2 classes"):
        MLPClassifier.from_weights([[[1.0]]], [[0.0]], classes=[1, 2, 3])
    three = MLPClassifier.from_weights([np.eye(3)], [np.zeros(3)], classes=[7, 8, 9])
    np.testing.assert_array_equal(three.predict(np.eye(3)), [7, 8, 9])
    mine = np.ones((2, 1))
    reg = MLPRegressor.from_weights([mine], [np.zeros(1)])
    reg.coefs_[0][:] = 5
    assert mine[0, 0] == 1  # copies


# Searches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_searches(backend):
    """[S5, T4] With early stopping, on rows above joblib's threshold for mapping them."""
    from joblib import parallel_config
    from sklearn.model_selection import GridSearchCV

    big = np.random.RandomState(0).randn(3000, 60)  # 1.4 MB
    y = (big[:, 0] > 0).astype(int)
    grid = {"alpha": [1e-4, 10.0], "hidden_layer_sizes": [(8,), (4, 4)]}
    search = GridSearchCV(make(MLPClassifier, early_stopping=True, max_iter=3), grid, cv=2)
    alone = copy.deepcopy(search).fit(big, y)
    with parallel_config(backend=backend, n_jobs=2):
        search.fit(big, y)
    np.testing.assert_array_equal(
        search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"]
    )
    np.testing.assert_array_equal(search.predict_proba(big), alone.predict_proba(big))


def test_one_thread_inside_a_worker():
    from joblib import Parallel, delayed

    from fastnn.sklearn._common import n_threads_of

    assert n_threads_of(3) == 3
    for backend in ("threading", "loky"):
        counts = Parallel(n_jobs=2, backend=backend)(
            delayed(n_threads_of)(given) for given in (None, None, 3)
        )
        assert counts == [1, 1, 3]


def test_bagging_and_cross_val_predict_in_threads():
    from joblib import parallel_config
    from sklearn.ensemble import BaggingClassifier
    from sklearn.model_selection import cross_val_predict

    with parallel_config(backend="threading", n_jobs=2):
        bag = BaggingClassifier(make(MLPClassifier), n_estimators=4, random_state=0).fit(X, Y3)
        p = cross_val_predict(make(MLPClassifier), X, Y3, method="predict_proba", cv=3)
    alone = BaggingClassifier(make(MLPClassifier), n_estimators=4, random_state=0).fit(X, Y3)
    np.testing.assert_array_equal(bag.predict_proba(X), alone.predict_proba(X))
    assert p.shape == (60, 3)


def test_metadata_routing():
    from sklearn import config_context
    from sklearn.model_selection import cross_validate
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weight = np.random.RandomState(1).uniform(size=60)
    with config_context(enable_metadata_routing=True):
        clf = make(MLPClassifier).set_fit_request(sample_weight=True)
        clf.set_partial_fit_request(sample_weight=True, classes=True)
        clf.set_score_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        routed = make_pipeline(scaler, clf).fit(X, Y3, sample_weight=weight)
        cross_validate(clf, X, Y3, params={"sample_weight": weight}, cv=2)
    by_hand = make(MLPClassifier).fit(StandardScaler().fit_transform(X), Y3, weight)
    np.testing.assert_array_equal(flat(routed[-1]), flat(by_hand))


def test_fits_side_by_side_are_those_alone():
    alone = [make(MLPRegressor, random_state=i, solver="lbfgs").fit(X, T) for i in range(6)]
    side = [make(MLPRegressor, random_state=i, solver="lbfgs") for i in range(6)]
    threads = [threading.Thread(target=reg.fit, args=(X, T)) for reg in side]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for a, b in zip(alone, side, strict=True):
        np.testing.assert_array_equal(flat(a), flat(b))
