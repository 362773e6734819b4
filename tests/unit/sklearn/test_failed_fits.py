"""A call that fails leaves its estimator as it was: attributes, predictions, what comes next."""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pytest

pytest.importorskip("sklearn", "1.9")

from estimators import BOTH

from fastnn.sklearn import MLPClassifier, MLPRegressor, Perceptron

pytestmark = pytest.mark.usefixtures("no_convergence_warnings")

X = np.random.RandomState(0).randn(40, 3)
Y3 = np.digitize(X[:, 0], [-0.5, 0.5])
T = np.sin(X[:, 0]) + X[:, 1]
NAN = np.where(np.arange(120).reshape(40, 3) == 50, np.nan, X)
MODES = {
    "fit": {},
    "resume": {"warm_start": True, "resume": True},
    "own stream": {"warm_start": True, "random_state": np.random.RandomState(3)},
    "partial_fit": {},
}


class Failing:
    """A callback that raises, as `moment` says: in its first or second epoch, before, or after."""

    def __init__(self, moment, error=RuntimeError):
        self.moment, self.error = moment, error

    def on_fit_begin(self, trainer, monitors):
        self.count = 0
        if self.moment == "begin":
            raise self.error("on purpose")

    def on_epoch_end(self, trainer, logs):
        self.count += 1
        if self.moment == self.count:
            raise self.error("on purpose")

    def on_fit_end(self, trainer):
        if self.moment == "end":
            raise self.error("on purpose")


def schedule(last_step, error=RuntimeError):
    def rate(step):
        if step > last_step:
            raise error("on purpose")
        return 1e-3

    return rate


def scorer(estimator, rows, y):
    raise RuntimeError("on purpose")


def targets(cls):
    return T if cls is MLPRegressor else Y3


# name: parameters, arguments of the call where they are not X and y, and whether it also fails
# without a fit before
FAILURES = {
    "parameter": ({"alpha": -1.0}, {}),
    "no units": ({"hidden_layer_sizes": (0,)}, {}),
    "too large": ({"hidden_layer_sizes": (10**6, 10**6)}, {}),
    "other shape": ({"activation": ["relu", "relu"]}, {}),
    "NaN": ({}, {"X": NAN}),
    "fewer columns and NaN": ({}, {"X": NAN[:, 1:]}),
    "fewer targets": ({}, {"y": slice(0, 39)}),
    "negative weight": ({}, {"sample_weight": -np.ones(40)}),
    "fewer weights": ({}, {"sample_weight": np.ones(39)}),
    "no validation data": ({}, {"validation_data": (X, Y3[1:])}),
    "validation columns": ({}, {"validation_data": (X[:, 1:], Y3)}),
    "small hold-out": ({"early_stopping": True, "validation_fraction": 0.01}, {}),
    "scoring": ({"scoring": "no such", "early_stopping": True}, {}),
    "scorer": ({"scoring": scorer, "early_stopping": True}, {}),
    "no callback": ({"callbacks": [print]}, {}),
    "schedule by name": ({"schedule": "no such"}, {}),
    "schedule": ({"schedule": schedule(-1)}, {}),
    "schedule later": ({"schedule": schedule(7), "batch_size": 8, "max_seconds": 60}, {}),
    "lbfgs and dropout": ({"solver": "lbfgs", "dropout": 0.5}, {}),
    "callback before": ({"callbacks": [Failing("begin")]}, {}),
    "callback 1": ({"callbacks": [Failing(1)]}, {}),
    "callback 2": ({"callbacks": [Failing(2)]}, {}),
    "callback of lbfgs": ({"callbacks": [Failing(2)], "solver": "lbfgs"}, {}),
    "callback after": ({"callbacks": [Failing("end")]}, {}),
    "Ctrl-C before": ({"callbacks": [Failing("begin", KeyboardInterrupt)]}, {}),
    "Ctrl-C in the schedule": ({"schedule": schedule(-1, KeyboardInterrupt)}, {}),
    "diverging": ({"schedule": lambda step: 1e300, "batch_size": 8}, {}),
    "diverging later": (
        {"schedule": lambda step: 1e-3 if step < 7 else 1e300, "batch_size": 8},
        {},
    ),
    "warning as error": ({"max_iter": 3}, {}),
}
ONLY_FIT = {
    *("parameter", "no validation data", "validation columns", "small hold-out", "scoring"),
    *("scorer", "lbfgs and dropout", "schedule later", "callback 2", "callback of lbfgs"),
    *("diverging later", "warning as error"),
}
AFTER_AN_EPOCH = {
    *("schedule later", "callback 1", "callback 2", "callback of lbfgs", "callback after"),
    *("diverging later", "scorer", "warning as error"),
}


def call(estimator, mode, given):
    y = targets(type(estimator))
    arguments = {"X": X, "y": y, **given}
    if isinstance(arguments["y"], slice):
        arguments["y"] = y[arguments["y"]]
    if mode == "partial_fit":
        if not hasattr(estimator, "coefs_") and type(estimator) is MLPClassifier:
            arguments["classes"] = np.unique(y)
        return estimator.partial_fit(**arguments)
    return estimator.fit(**arguments)


def make(cls, mode, solver="sgd"):
    settings = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0, "solver": solver}
    return cls(**{**settings, **copy.deepcopy(MODES[mode])})


def contents(estimator):
    """Every attribute, bit for bit."""
    return pickle.dumps({**vars(estimator), "_net": None})


def flat(estimator):
    """Parameters and optimizer's state."""
    slots = estimator._state.slots
    extra = [] if slots is None else [slots.ravel()]
    return np.concatenate([a.ravel() for a in (*estimator.coefs_, *estimator.intercepts_, *extra)])


def fail(estimator, name, mode):
    """Let a call fail as it should; afterwards the parameters are what they were."""
    params, given = FAILURES[name]
    before = estimator.get_params(deep=False)
    estimator.set_params(**params)
    with warnings.catch_warnings():
        if name == "warning as error":
            warnings.simplefilter("error")
        with pytest.raises((Exception, KeyboardInterrupt)):
            call(estimator, mode, given)
    estimator.set_params(**before)


CASES = [
    (name, mode)
    for name in FAILURES
    for mode in MODES
    if mode != "partial_fit" or name not in ONLY_FIT
]


@pytest.mark.parametrize(("cls", "solver"), [(MLPClassifier, "sgd"), (MLPRegressor, "adam")])
@pytest.mark.parametrize(("name", "mode"), CASES)
def test_a_failed_call_changes_nothing(cls, solver, name, mode):
    estimator = make(cls, mode, solver)
    for _ in range(2):
        call(estimator, mode, {})
    twin = copy.deepcopy(estimator)
    before, arrays = contents(estimator), [*estimator.coefs_, *estimator.intercepts_]
    predicted = estimator.predict(X)
    fail(estimator, name, mode)
    assert contents(estimator) == before
    same = zip(arrays, [*estimator.coefs_, *estimator.intercepts_], strict=True)
    assert all(a is b for a, b in same)
    np.testing.assert_array_equal(estimator.predict(X), predicted)
    for one in (estimator, twin):
        call(one, mode, {})
        one.partial_fit(X, targets(cls))
    np.testing.assert_array_equal(flat(estimator), flat(twin))
    assert estimator.loss_curve_ == twin.loss_curve_


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(("name", "mode"), [c for c in CASES if c[1] in ("fit", "partial_fit")])
def test_a_failed_first_call(cls, name, mode):
    """Not fitted, or, where there was a whole epoch, with the weights of the last one."""
    estimator = make(cls, mode)
    before = vars(estimator).copy()
    fail(estimator, name, mode)
    if name in AFTER_AN_EPOCH:
        assert estimator.n_iter_ >= 1
        assert np.isfinite(flat(estimator)).all()
        estimator.predict(X)
    else:
        assert vars(estimator) == before
        call(estimator, mode, {})
        expected = make(cls, mode)
        call(expected, mode, {})
        np.testing.assert_array_equal(flat(estimator), flat(expected))


@pytest.mark.parametrize("mode", ["fit", "own stream", "resume"])
@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("cls", BOTH)
def test_ctrl_c_keeps_the_steps_that_were_done(cls, solver, mode):
    """In the second epoch, by a callback: the model of two epochs."""
    y = targets(cls)
    estimator = make(cls, mode, solver).fit(X, y)
    shorter = copy.deepcopy(estimator).set_params(max_iter=2).fit(X, y)
    estimator.set_params(callbacks=[Failing(2, KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X, y)
    assert estimator.n_iter_ == shorter.n_iter_ == 2
    np.testing.assert_array_equal(flat(estimator), flat(shorter))
    assert estimator.loss_curve_ == shorter.loss_curve_


@pytest.mark.parametrize("mode", ["resume", "partial_fit"])
@pytest.mark.parametrize("cls", BOTH)
def test_a_failed_call_after_weights_were_set(cls, mode):
    """Weights of the user's own are learned from in a copy, the optimizer's state is not."""
    estimator = make(cls, mode, "adam")
    call(estimator, mode, {})
    estimator.coefs_[0] = np.ones((3, 5))
    twin, before = copy.deepcopy(estimator), contents(estimator)
    fail(estimator, "callback 1", mode)
    assert contents(estimator) == before
    for one in (estimator, twin):
        call(one, mode, {})
    np.testing.assert_array_equal(flat(estimator), flat(twin))


@pytest.mark.parametrize("cls", BOTH)
def test_a_first_partial_fit_names_no_classes(cls):
    estimator = make(cls, "partial_fit")
    if cls is MLPClassifier:
        for y, classes in (([0, 1], [0, 2]), ([0], [0, 1])):
            with pytest.raises(ValueError):
                estimator.partial_fit(X[:2], y, classes=classes)
            assert not hasattr(estimator, "classes_")
    call(estimator, "partial_fit", {})


@pytest.mark.parametrize("cls", BOTH)
def test_partial_fit_of_a_mapped_model(cls, tmp_path):
    """joblib maps the optimizer's state, too, read-only."""
    estimator = make(cls, "fit", "adam").fit(X, targets(cls))
    joblib.dump(estimator, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    for one in (estimator, mapped):
        one.partial_fit(X, targets(cls))
    np.testing.assert_array_equal(flat(mapped), flat(estimator))


# Perceptron -----------------------------------------------------------------------------------

PERCEPTRON = {
    "parameter": ({"eta0": -1.0}, {}),
    "NaN": ({}, {"X": NAN}),
    "fewer columns and NaN": ({}, {"X": NAN[:, 1:]}),
    "fewer targets": ({}, {"y": Y3[1:]}),
    "negative weight": ({}, {"sample_weight": -np.ones(40)}),
    "one class": ({}, {"y": np.zeros(40)}),
    "class weight": ({"class_weight": {5: 1.0}}, {}),
    "first weights": ({}, {"coef_init": np.zeros((3, 2))}),
    "small hold-out": ({"early_stopping": True, "validation_fraction": 0.01}, {}),
    "outgrown": ({"eta0": 1e308}, {}),
    "outgrown later": ({"eta0": 1e307, "tol": None}, {"X": X * np.repeat([1, 30], 20)[:, None]}),
    "warning as error": ({"max_iter": 1}, {}),
}
PERCEPTRON_ONLY_FIT = {"parameter", "one class", "first weights", "small hold-out"}
PERCEPTRON_ONLY_FIT |= {"warning as error", "class weight", "outgrown later"}
PERCEPTRON_MODES = ["fit", "own stream", "partial_fit"]


def learn(estimator, mode, given):
    arguments = {"X": X, "y": Y3, **given}
    if mode == "partial_fit":
        return estimator.partial_fit(**arguments, classes=[0, 1, 2])
    return estimator.fit(**arguments)


def perceptron_contents(estimator):
    return pickle.dumps({**vars(estimator), "_scorer": None})


def fail_to_learn(estimator, name, mode):
    params, given = PERCEPTRON[name]
    before = estimator.get_params()
    estimator.set_params(**params)
    with warnings.catch_warnings():
        if name == "warning as error":
            warnings.simplefilter("error")
        with pytest.raises((ValueError, TypeError, Warning)):
            learn(estimator, mode, given)
    estimator.set_params(**before)


@pytest.mark.parametrize("mode", PERCEPTRON_MODES)
@pytest.mark.parametrize("name", PERCEPTRON)
def test_a_failed_call_of_a_perceptron(name, mode):
    if mode == "partial_fit" and name in PERCEPTRON_ONLY_FIT:
        return
    settings = {"max_iter": 5, **copy.deepcopy(MODES[mode])}
    fresh = Perceptron(**settings)
    params = vars(fresh).copy()
    fail_to_learn(fresh, name, mode)
    assert vars(fresh) == params or (fresh.n_iter_ >= 1 and np.isfinite(fresh.coef_).all())
    estimator = Perceptron(**settings)
    learn(estimator, mode, {})
    learn(estimator, mode, {})
    twin, before = copy.deepcopy(estimator), perceptron_contents(estimator)
    fail_to_learn(estimator, name, mode)
    assert perceptron_contents(estimator) == before
    for one in (estimator, twin):
        learn(one, mode, {})
        one.partial_fit(X, Y3)
    np.testing.assert_array_equal(estimator.coef_, twin.coef_)
    np.testing.assert_array_equal(estimator.intercept_, twin.intercept_)
    assert estimator.t_ == twin.t_
