"""MLPClassifier and MLPRegressor: scikit-learn's interface and numbers, this package's kernels."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from numbers import Integral, Real
from operator import is_
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import scipy.optimize
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier as _SklearnClassifier
from sklearn.neural_network import MLPRegressor as _SklearnRegressor
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastnn.plan import Plan, check_memory
from fastnn.schedules import resolve_schedule
from fastnn.sklearn._common import (
    Attempt,
    Unavailable,
    attempt_of,
    available_when,
    n_threads_of,
    native_order,
    one_blas_thread,
)
from fastnn.sklearn._training import (
    BACKEND,
    AnyOptimizer,
    Engine,
    Objective,
    Rows,
    SklearnAdam,
    SklearnSGD,
    State,
    TableOptimizer,
    new_slots,
)
from fastnn.sparse_rows import SparseRows
from fastnn.tables.activations import (
    ACTIVATIONS,
    REGISTERED_ACTIVATIONS,
    ActivationRow,
    get_activation,
)
from fastnn.tables.custom import Activation, Loss
from fastnn.tables.losses import (
    LOSSES,
    REGISTERED_LOSSES,
    LossRow,
    encode_targets,
    get_loss,
)
from fastnn.tables.optimizers import LBFGS, OPTIMIZERS, Optimizer
from fastnn.trainer import _check_callbacks, _interrupts_stop, _progress_bar

__all__ = ["MLPClassifier", "MLPRegressor"]

_STOCHASTIC = [name for name in OPTIMIZERS if name != "lbfgs"]
_ALIASES = {"logistic": "sigmoid"}  # scikit-learn's names of what the tables call otherwise
_SKLEARN_NAMES = {ours: theirs for theirs, ours in _ALIASES.items()}

_EXTRAS = {
    "class_weight": None,
    "dropout": 0.0,
    "clip_norm": None,
    "schedule": None,
    "stratify": "auto",
    "scoring": None,
    "resume": False,
    "max_seconds": None,
    "callbacks": None,
    "progress": False,
    "n_threads": None,
    "dtype": None,
}


def _check_partial_fit(estimator: _BaseMLP) -> None:
    if estimator._solver() == "lbfgs":
        raise Unavailable(
            "partial_fit is only available for stochastic optimizers. "
            f"{estimator._solver()} is not stochastic."
        )
    if estimator.early_stopping:
        raise Unavailable(
            "partial_fit does not support early_stopping=True: set_params(early_stopping=False), "
            "and judge the model by rows of your own"
        )


def _check_probabilities(estimator: MLPClassifier) -> None:
    if estimator._has_margins():
        raise Unavailable(
            f"loss={estimator.loss!r} gives no probabilities: use decision_function, or "
            "loss='log_loss'"
        )


def _check_margins(estimator: MLPClassifier) -> None:
    if not estimator._has_margins():
        raise Unavailable(
            f"loss={estimator.loss!r} gives probabilities: use predict_proba; decision_function "
            "comes with loss='hinge'"
        )


class _Names(StrOptions):
    """Names of a table, and those that users register beside it."""

    def __init__(self, names: Iterable[str], registered: dict[str, Any], register: str) -> None:
        super().__init__(set(names))
        self.registered = registered
        self.register = register

    def is_satisfied_by(self, val: Any) -> bool:
        return super().is_satisfied_by(val) or (isinstance(val, str) and val in self.registered)

    def __str__(self) -> str:
        names = ", ".join(map(repr, sorted(self.options)))
        return (
            f"a str among {{{names}}} (or the name of one of your own, registered first in every "
            f"process with {self.register})"
        )


class _Net:
    """Flat parameters, and the views into them that users know as coefs_ and intercepts_."""

    def __init__(self, plan: Plan, parameters: np.ndarray) -> None:
        self.plan = plan
        self.parameters = parameters
        self.coefs, self.intercepts = plan.views(parameters)
        # None: a row of another kind; the careful way takes it.
        self.predict = BACKEND.predictor(plan, parameters, lambda X, out: None)

    def is_of(self, coefs: list[np.ndarray], intercepts: list[np.ndarray]) -> bool:
        """Whether these lists hold the views, and not arrays that the user put there."""
        return (
            len(coefs) == len(self.coefs)
            and all(map(is_, coefs, self.coefs))
            and all(map(is_, intercepts, self.intercepts))
        )


class Training:
    """What callbacks see of a fit, with the names of `fastnn.Trainer`.

    Attributes
    ----------
    estimator : MLPClassifier or MLPRegressor
    model : Training
        Itself: ``trainer.model.parameters`` are the flat parameters.
    parameters : ndarray of shape (n_parameters,)
    plan : Plan
    epoch : int
        Epochs finished since the net was drawn.
    rate_factor : float
        Multiplies every learning rate.
    """

    def __init__(self, estimator: _BaseMLP, net: _Net, state: State) -> None:
        self.estimator = estimator
        self.plan = net.plan
        self.parameters = net.parameters
        self.stopped = False
        self._state = state

    @property
    def model(self) -> Training:
        return self

    @property
    def epoch(self) -> int:
        return len(self.estimator.loss_curve_)

    @property
    def rate_factor(self) -> float:
        return self._state.rate_factor

    @rate_factor.setter
    def rate_factor(self, factor: float) -> None:
        self._state.rate_factor = factor

    def stop(self) -> None:
        """End the fit after this epoch."""
        self.stopped = True

    def save(self, path: Any) -> None:
        """Pickle the estimator, whole or not at all."""
        target = Path(os.fspath(path))
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            try:
                pickle.dump(self.estimator, file)
                file.close()
                os.replace(file.name, target)
            except BaseException:
                file.close()
                Path(file.name).unlink(missing_ok=True)
                raise


class _BaseMLP(BaseEstimator, ABC):
    """What both share."""

    _parameter_constraints: ClassVar[dict] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [
            _Names([*ACTIVATIONS, *_ALIASES], REGISTERED_ACTIVATIONS, "fastnn.Activation(name, f)"),
            Activation,
            list,
            tuple,
        ],
        "solver": [StrOptions(set(OPTIMIZERS)), Optimizer],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [
            Interval(Integral, 1, None, closed="left"),
            Options(Real, {np.inf}),
        ],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
        "clip_norm": [None, Interval(Real, 0, None, closed="neither")],
        "schedule": [None, str, callable],
        "scoring": [None, str, callable],
        "resume": ["boolean"],
        "max_seconds": [None, Interval(Real, 0, None, closed="neither")],
        "callbacks": [None, list, tuple],
        "progress": ["boolean"],
        "n_threads": [None, Interval(Integral, 1, None, closed="left")],
        "dtype": [None, StrOptions({"float32", "float64"}), type(np.float32), np.dtype],
    }

    @abstractmethod
    def _loss_and_output(self, y: np.ndarray) -> tuple[LossRow, str]:
        """The loss, and the output activation that goes with it, for checked targets."""

    @abstractmethod
    def _check_targets(self, X: Any, y: Any, incremental: bool, reset: bool) -> Any:
        """(X, y) as validated; classes are noted."""

    @abstractmethod
    def _encode(self, y: np.ndarray, dtype: np.dtype, name: str = "y") -> np.ndarray:
        """Targets as the backends take them; `name` is for messages."""

    @abstractmethod
    def _decode_targets(self, y: np.ndarray) -> np.ndarray:
        """What `_check_targets` or `_check_validation_targets` returned, as the user gave it."""

    @abstractmethod
    def _scorer(
        self, target: np.ndarray, weight: np.ndarray | None
    ) -> Callable[[np.ndarray], float]:
        """A function of outputs, their score against encoded targets."""

    def _solver(self) -> str:
        return self.solver if isinstance(self.solver, str) else self.solver.name

    def _activations(self, n_hidden: int) -> tuple[Any, ...]:
        """The hidden activations, by the tables' names or as objects."""
        one = isinstance(self.activation, str | Activation)
        given = [self.activation] * n_hidden if one else list(self.activation)
        return tuple(_ALIASES.get(row, row) if isinstance(row, str) else row for row in given)

    def _dropout(self, n_hidden: int) -> tuple[float, ...]:
        if np.ndim(self.dropout) == 0:
            return (float(self.dropout),) * n_hidden
        return tuple(self.dropout)

    # Fitting --------------------------------------------------------------------------------------

    def _fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        validation_data: tuple[Any, ...] | None = None,
        incremental: bool = False,
        classes: Any = None,
    ) -> Self:
        with attempt_of(self, "coefs_") as attempt:
            if incremental:
                self._name_classes(y, classes)
            return self._fit_alone(attempt, X, y, sample_weight, validation_data, incremental)

    def _name_classes(self, y: Any, classes: Any) -> None:
        """Note all classes that `partial_fit` will ever see."""
        return

    def _fit_alone(
        self,
        attempt: Attempt,
        X: Any,
        y: Any,
        sample_weight: Any,
        validation_data: tuple[Any, ...] | None,
        incremental: bool,
    ) -> Self:
        hidden = self.hidden_layer_sizes
        hidden = list(hidden) if hasattr(hidden, "__iter__") else [hidden]
        if np.any(np.array(hidden) <= 0):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {hidden}.")
        self._check_combinations(incremental)
        first_pass = not hasattr(self, "coefs_") or (not self.warm_start and not incremental)

        X, y = self._check_targets(native_order(X), y, incremental, first_pass)
        weight = self._check_weights(sample_weight, X, y, incremental)
        if y.ndim == 1:
            y = y.reshape(-1, 1)
        n_outputs = self._n_outputs(y)
        sizes = [X.shape[1], *hidden, n_outputs]
        loss, output = self._loss_and_output(y)
        n_hidden = len(hidden)
        plan = Plan(
            tuple(sizes), X.dtype, self._activations(n_hidden), output, self._dropout(n_hidden)
        )
        if first_pass:
            check_memory(plan.n_bytes, f"hidden_layer_sizes={hidden}")
        else:
            self._check_same_shape(plan)
        state = self._next_state(first_pass, incremental)
        if first_pass:
            net = self._draw(plan, state)
        else:
            # The parameters keep their dtype, whatever that of these rows.
            old = self._packed()
            plan = replace(plan, dtype=old.plan.dtype)
            parameters = old.parameters
            in_place = old is self.__dict__.get("_net") and parameters.flags.writeable
            if not in_place:
                parameters = parameters.copy()
            if not incremental or self.callbacks or self.verbose or self.progress:
                # Else nothing can fail after the one epoch, and one that diverges is undone.
                if in_place:
                    attempt.keep(parameters)
                if state.slots is not None:
                    attempt.keep(state.slots)
            net = _Net(plan, parameters)
        self.n_outputs_ = n_outputs
        self.n_layers_ = len(sizes)
        self.out_activation_: str = _SKLEARN_NAMES.get(output, output)
        self._bind(net)
        self._state = state
        if incremental and weight is not None and not weight.any():
            return self

        if not sp.issparse(X) and not X.flags.c_contiguous:
            X = np.ascontiguousarray(X)  # every epoch takes rows
        elif sp.issparse(X):
            X = X.tocsr()
        rows = Rows(X, self._encode(y, plan.dtype), weight)
        validation = None
        if validation_data is not None:
            validation = self._check_validation_data(validation_data, plan)
        objective = Objective(loss, float(self.alpha), self._reported_share(loss, n_outputs))
        if self._solver() == "lbfgs":
            self._fit_lbfgs(attempt, net, state, rows, validation, objective)
        else:
            self._fit_stochastic(attempt, net, state, rows, y, validation, objective, incremental)
        return self

    def _check_combinations(self, incremental: bool) -> None:
        """Raise for settings that do not go together."""
        if self.resume and not (self.warm_start or incremental):
            raise ValueError("resume=True continues the fit before: it needs warm_start=True")
        if self._solver() != "lbfgs":
            if self.schedule is not None:
                resolve_schedule(self.schedule, 1.0)
            return
        for name, given in (
            ("dropout", np.any(np.asarray(self.dropout) != 0)),
            ("clip_norm", self.clip_norm is not None),
            ("schedule", self.schedule is not None),
        ):
            if given:
                raise ValueError(
                    f"solver='lbfgs' searches along a line on the exact objective and knows no "
                    f"{name}: leave {name} out, or take another solver"
                )

    def _validate(self, X: Any, y: Any, reset: bool, **settings: Any) -> tuple[Any, np.ndarray]:
        dtype = (np.float64, np.float32) if self.dtype is None else np.dtype(self.dtype)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=dtype,
            reset=reset,
            **settings,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _check_weights(
        self, sample_weight: Any, X: Any, y: np.ndarray, incremental: bool
    ) -> np.ndarray | None:
        if sample_weight is None:
            return None
        return _check_sample_weight(
            sample_weight,
            X,
            dtype=np.float64,
            ensure_non_negative=True,
            allow_all_zero_weights=incremental,
        )

    def _n_outputs(self, y: np.ndarray) -> int:
        return y.shape[1]

    def _reported_share(self, loss: LossRow, n_outputs: int) -> float:
        return 1.0

    def _check_same_shape(self, plan: Plan) -> None:
        sizes = [self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_)]
        if sizes != list(plan.layer_sizes):
            raise ValueError(
                f"the net that was fitted has layers of {sizes} units, but hidden_layer_sizes and "
                f"the data ask for {list(plan.layer_sizes)}: a net cannot change its shape while "
                "it goes on learning. Fit with warm_start=False to begin anew"
            )

    def _next_state(self, first_pass: bool, incremental: bool) -> State:
        """The state that this fit goes on from."""
        old: State | None = self.__dict__.get("_state")
        seed = self.random_state
        seed = int(seed) if isinstance(seed, Integral) else None
        if first_pass or old is None:
            return State(check_random_state(self.random_state), seed)
        if self.resume or (incremental and old.seed is not None and old.seed == seed):
            # A stream that began with this seed goes on: each call another order.
            stream = old.random_state
        else:
            stream = check_random_state(self.random_state)
        # What training changes in place is copied: the old state may be wanted back. Slots are
        # as large as the net, and kept by the attempt where that can happen.
        optimizer, slots = copy.copy(old.optimizer), old.slots
        if slots is not None and not slots.flags.writeable:  # mapped by joblib
            slots = slots.copy()
        if self.resume:
            return replace(
                old,
                random_state=stream,
                seed=seed,
                optimizer=optimizer,
                slots=slots,
                order=None if old.order is None else old.order.copy(),
            )
        return State(
            stream,
            seed,
            optimizer=optimizer if incremental else None,
            slots=slots if incremental else None,
            no_improvement_count=old.no_improvement_count,
            rate_factor=old.rate_factor if incremental else 1.0,
            dropout_seed=old.dropout_seed,
            epoch=old.epoch,
        )

    def _draw(self, plan: Plan, state: State) -> _Net:
        """A fresh net, its parameters drawn as scikit-learn draws them, and fresh curves."""
        net = _Net(plan, plan.allocate(1)[0])
        names = [*plan.activations, *plan.activations[-1:]]
        for layer, (fan_in, fan_out) in enumerate(pairwise(plan.layer_sizes)):
            factor = 2.0 if names and names[layer] == "sigmoid" else 6.0
            if not names and self.activation in ("logistic", "sigmoid"):
                factor = 2.0
            bound = np.sqrt(factor / (fan_in + fan_out))
            net.coefs[layer][:] = state.random_state.uniform(-bound, bound, (fan_in, fan_out))
            net.intercepts[layer][:] = state.random_state.uniform(-bound, bound, fan_out)
        if any(plan.dropout):
            state.dropout_seed = int(state.random_state.randint(2**31 - 1))
        self._reset_curves()
        return net

    def _reset_curves(self) -> None:
        self.n_iter_ = 0
        self.t_ = 0
        self.loss_: Any = None
        self.loss_curve_: list[float] = []
        self.best_loss_: Any = None if self._stops_early() else np.inf
        self.validation_scores_: Any = None
        self.best_validation_score_: Any = None
        self.validation_loss_curve_: Any = None

    def _stops_early(self) -> bool:
        return bool(self.early_stopping) and self._solver() != "lbfgs"

    def _bind(self, net: _Net) -> None:
        self._plan = net.plan
        self.coefs_ = list(net.coefs)
        self.intercepts_ = list(net.intercepts)
        self._net = net

    def _new_optimizer(self) -> AnyOptimizer:
        if isinstance(self.solver, Optimizer):
            return TableOptimizer(self.solver)
        rate = float(self.learning_rate_init)
        if self.solver == "sgd":
            return SklearnSGD(float(self.momentum), bool(self.nesterovs_momentum), rate)
        if self.solver == "adam":
            return SklearnAdam(rate, float(self.beta_1), float(self.beta_2), float(self.epsilon))
        settings: dict[str, Any] = {"learning_rate": rate}
        if self.solver in ("adamw", "nadam"):
            settings.update(beta1=self.beta_1, beta2=self.beta_2, epsilon=self.epsilon)
        return TableOptimizer(OPTIMIZERS[self.solver](**settings))

    def _check_validation_data(self, given: Any, plan: Plan) -> tuple[Rows, np.ndarray]:
        if not isinstance(given, tuple | list) or len(given) not in (2, 3):
            raise TypeError("validation_data must be a tuple (X, y) or (X, y, sample_weight)")
        X, y, weight = (*given, None)[:3]
        X = validate_data(
            self, native_order(X), accept_sparse=["csr", "csc"], dtype=plan.dtype, reset=False
        )
        y = self._check_validation_targets(y)
        if len(y) != X.shape[0]:
            raise ValueError(f"validation y has {len(y)} rows, but validation X has {X.shape[0]}")
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=np.float64, ensure_non_negative=True)
        if sp.issparse(X):
            X = X.tocsr()
        return Rows(X, self._encode(y, plan.dtype, "validation y"), weight), y

    @abstractmethod
    def _check_validation_targets(self, y: Any) -> np.ndarray:
        """Targets of validation data, two-dimensional."""

    def _hold_out(
        self, rows: Rows, y: np.ndarray, state: State
    ) -> tuple[Rows, tuple[Rows, np.ndarray]]:
        """Rows to train on and rows to judge by, split as scikit-learn splits."""
        if not (self.resume and state.hold_out is not None):
            train, held = train_test_split(
                np.arange(len(rows)),
                random_state=state.random_state,
                test_size=self.validation_fraction,
                stratify=self._strata(y),
            )
            train, held = self._keep_classes(y, train, held)
            if len(held) < 2:
                raise ValueError(
                    "The validation set is too small. Increase 'validation_fraction' "
                    "or the size of your dataset."
                )
            state.hold_out = train, held
        train, held = state.hold_out
        return rows.take(train), (rows.take(held), y[held])

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        return None

    def _keep_classes(
        self, y: np.ndarray, train: np.ndarray, held: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return train, held

    def _fit_stochastic(
        self,
        attempt: Attempt,
        net: _Net,
        state: State,
        rows: Rows,
        y: np.ndarray,
        validation: tuple[Rows, np.ndarray] | None,
        objective: Objective,
        incremental: bool,
    ) -> None:
        early_stopping = bool(self.early_stopping)
        if state.optimizer is None:
            state.optimizer = self._new_optimizer()
            state.slots = new_slots(state.optimizer, net.plan)
        optimizer, first_step = state.optimizer, state.optimizer.steps
        if not incremental:
            attempt.keep_stream(state.random_state)
        if early_stopping and validation is None:
            rows, validation = self._hold_out(rows, y, state)
        if early_stopping:
            self.best_loss_ = None
            if self.validation_scores_ is None or self.best_validation_score_ is None:
                self.validation_scores_, self.best_validation_score_ = [], -np.inf
        elif self.best_loss_ is None:
            self.best_loss_ = np.inf
        if validation is not None:
            self.validation_scores_ = self.validation_scores_ or []
            self.validation_loss_curve_ = self.validation_loss_curve_ or []

        n = len(rows)
        if self.batch_size == "auto":
            batch_size = min(200, n)
        else:
            if self.batch_size > n:
                warnings.warn(
                    "Got `batch_size` less than 1 or larger than "
                    "sample size. It is going to be clipped",
                    stacklevel=5,
                )
            batch_size = int(np.clip(self.batch_size, 1, n))
        engine = Engine(
            net.plan,
            net.parameters,
            state,
            rows,
            objective,
            batch_size,
            bool(self.shuffle),
            self.clip_norm,
            self.schedule,
            n_threads_of(self.n_threads),
        )
        if incremental and engine.draws:
            attempt.keep_stream(state.random_state)
        epochs = _Epochs(self, net, engine, validation, incremental)
        self.n_iter_ = 0
        attempt.progress = lambda: optimizer.steps - first_step
        attempt.epochs = lambda: self.n_iter_
        epochs.run()

    def _fit_lbfgs(
        self,
        attempt: Attempt,
        net: _Net,
        state: State,
        rows: Rows,
        validation: tuple[Rows, np.ndarray] | None,
        objective: Objective,
    ) -> None:
        """SciPy's L-BFGS-B, in float64 whatever the dtype of the parameters."""
        plan = replace(net.plan, dtype=np.dtype(np.float64))
        rows = Rows(rows.X, self._encode_again(rows.y, plan.dtype), rows.weight)
        n_threads = n_threads_of(self.n_threads)
        watch = _Watch(self, net, state, validation, n_threads)
        start = net.parameters.copy()
        self.n_iter_ = 0
        attempt.progress = attempt.epochs = lambda: self.n_iter_
        if self.best_loss_ is None:
            self.best_loss_ = np.inf
        halted = False

        def after_iteration(intermediate_result: Any) -> None:
            nonlocal halted
            # Ctrl-C may come between any two of these: parameters are whole, n_iter_ is last.
            net.parameters[:] = intermediate_result.x
            self.loss_ = float(intermediate_result.fun)
            self.best_loss_ = min(self.loss_, self.best_loss_)
            self.loss_curve_.append(self.loss_)
            self.n_iter_ += 1
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_:.8f}")  # noqa: T201
            watch.epoch_ended(np.nan, 0.0)
            if watch.should_stop():
                halted = True
                raise StopIteration

        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        if isinstance(self.solver, LBFGS):
            options.update(
                maxcor=self.solver.history,
                maxls=self.solver.max_line_search,
                gtol=self.solver.tolerance,
            )
        with watch, one_blas_thread, np.errstate(over="ignore", invalid="ignore"):
            result = scipy.optimize.minimize(
                lambda x: objective.value_and_gradient(plan, x, rows, n_threads),
                net.parameters.astype(np.float64),
                method="L-BFGS-B",
                jac=True,
                callback=after_iteration,
                options=options,
            )
        with np.errstate(over="ignore"):
            x = result.x.astype(net.plan.dtype)
        if not np.isfinite(x).all():
            if not np.isfinite(net.parameters).all():
                net.parameters[:] = start
            raise ValueError(_NON_FINITE)
        net.parameters[:] = x
        self.loss_ = float(result.fun)
        self.n_iter_ = min(result.nit, self.max_iter)
        if result.status != 0 and not halted:
            more = (
                f"\nIncrease the number of iterations to improve the convergence "
                f"(max_iter={self.max_iter})."
                if self.n_iter_ == self.max_iter
                else ""
            )
            warnings.warn(
                f"lbfgs failed to converge after {self.n_iter_} iteration(s) "
                f"(status={result.status}):\n{result.message}\n{more}\n"
                "You might also want to scale the data as shown in:\n"
                "    https://scikit-learn.org/stable/modules/preprocessing.html",
                ConvergenceWarning,
                stacklevel=5,
            )

    def _encode_again(self, target: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Encoded targets in another dtype; labels stay labels."""
        return target if target.ndim == 1 else target.astype(dtype, copy=False)

    # Predicting -----------------------------------------------------------------------------------

    def _packed(self) -> _Net:
        """The net as it stands, whatever arrays the user put into coefs_ and intercepts_."""
        net: _Net | None = self.__dict__.get("_net")
        if net is not None and net.is_of(self.coefs_, self.intercepts_):
            return net
        sizes = (self.coefs_[0].shape[0], *(coef.shape[1] for coef in self.coefs_))
        dtype = np.dtype(np.float32 if self.coefs_[0].dtype == np.float32 else np.float64)
        plan = self.__dict__.get("_plan")
        if plan is not None:
            plan = replace(plan, layer_sizes=sizes, dtype=dtype)
        else:
            n_hidden = len(sizes) - 2
            output = _ALIASES.get(self.out_activation_, self.out_activation_)
            plan = Plan(sizes, dtype, self._activations(n_hidden), output, (0.0,) * n_hidden)
        net = _Net(plan, plan.allocate(1)[0])
        for views, arrays in ((net.coefs, self.coefs_), (net.intercepts, self.intercepts_)):
            for view, array in zip(views, arrays, strict=True):
                view[...] = array
        return net

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs after the output activation, (n, n_outputs)."""
        attributes = self.__dict__
        net = attributes.get("_net")
        if (
            net is not None
            and "feature_names_in_" not in attributes
            and net.is_of(attributes["coefs_"], attributes["intercepts_"])
        ):
            outputs = self._outputs_soon(net, X)
            if outputs is not None:
                return outputs
        return self._forward(self._check_rows(X))

    def _outputs_soon(self, net: _Net, X: Any) -> np.ndarray | None:
        """Outputs of plain rows, which the backend itself checks; None: the long way, or an error.

        scikit-learn's validation takes a hundred times as long as a row.
        """
        if type(X) is list:
            try:
                X = np.array(X)
            except ValueError:  # of different lengths
                return None
        sparse = sp.issparse(X) and X.format == "csr" and X.ndim == 2
        if not sparse and (type(X) is not np.ndarray or X.ndim != 2):
            return None
        outputs = None if sparse else net.predict(X)
        if outputs is not None:
            return outputs
        if (
            X.dtype.char not in "fdbBhHiIlLqQ"
            or not X.dtype.isnative
            or X.shape[0] == 0
            or X.shape[1] != net.plan.n_features
        ):
            return None
        plan, parameters = self._dtype_for(X, net)
        outputs = np.empty((X.shape[0], plan.n_outputs), plan.dtype)
        n_threads = n_threads_of(self.n_threads)
        if sparse:
            rows = SparseRows(X, plan.dtype)
            if not np.isfinite(rows.data).all():
                return None
            return BACKEND.predict(plan, parameters, rows, outputs, n_threads)
        done = BACKEND.predict_checked(plan, parameters, X, outputs, n_threads)
        return outputs if done else None

    def _check_rows(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, native_order(X), accept_sparse=["csr", "csc"], reset=False)

    def _dtype_for(self, X: Any, net: _Net) -> tuple[Plan, np.ndarray]:
        """Plan and parameters in the dtype that scikit-learn would compute these rows in."""
        if net.plan.dtype == np.float32 and np.result_type(X.dtype, np.float32) != np.float32:
            plan = replace(net.plan, dtype=np.dtype(np.float64))
            return plan, net.parameters.astype(np.float64)
        return net.plan, net.parameters

    def _forward(self, X: Any, output: str | None = None) -> np.ndarray:
        """Outputs of checked rows; `output` in place of the net's own output activation."""
        plan, parameters = self._dtype_for(X, self._packed())
        if output is not None:
            plan = replace(plan, output=output)
        outputs = np.empty((X.shape[0], plan.n_outputs), plan.dtype)
        rows = _readable(X, plan.dtype)
        BACKEND.predict(plan, parameters, rows, outputs, n_threads_of(self.n_threads))
        return outputs

    def hidden_layer_outputs(self, X: Any) -> list[np.ndarray]:
        """What the hidden layers compute.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        list of ndarray, each (n_samples, hidden_layer_sizes[i])
            After the activation of each hidden layer.
        """
        X = self._check_rows(X)
        plan, parameters = self._dtype_for(X, self._packed())
        rows = _readable(X, plan.dtype)
        return BACKEND.layer_outputs(plan, parameters, rows, n_threads_of(self.n_threads))[:-1]

    def input_gradient(self, X: Any) -> np.ndarray:
        """How the outputs change with the inputs.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_outputs, n_features)
            Derivatives of every output, after the output activation, by every input.
        """
        X = self._check_rows(X)
        plan, parameters = self._dtype_for(X, self._packed())
        rows = _readable(X, plan.dtype)
        return BACKEND.input_gradient(plan, parameters, rows, n_threads_of(self.n_threads))

    # Keeping --------------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        net = state.pop("_net", None)
        if net is not None and net.is_of(state["coefs_"], state["intercepts_"]):
            # One array for all layers, which joblib can map into memory.
            del state["coefs_"], state["intercepts_"]
            state["_parameters"] = net.parameters
        training = state.get("_state")
        if training is not None and not self.resume:
            # One number per row; the next fit draws its own.
            state["_state"] = replace(training, order=None, hold_out=None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        parameters = state.pop("_parameters", None)
        super().__setstate__(state)
        if parameters is not None:
            self._bind(_Net(self._plan, np.asarray(parameters)))
            if not self._parameter_constraints["loss"][0].is_satisfied_by(self.loss):
                _ = self.loss if isinstance(self.loss, LossRow) else get_loss(self.loss)

    @classmethod
    def _from_arrays(
        cls, coefs: Iterable[Any], intercepts: Iterable[Any], params: dict[str, Any]
    ) -> Self:
        """An estimator that holds copies of given weights; the outputs are still to be named."""
        coefs = [np.asarray(coef) for coef in coefs]
        intercepts = [np.asarray(intercept) for intercept in intercepts]
        if not coefs or len(coefs) != len(intercepts):
            raise ValueError(
                f"expected as many coefs as intercepts, and at least one; got {len(coefs)} and "
                f"{len(intercepts)}"
            )
        for i, (coef, intercept) in enumerate(zip(coefs, intercepts, strict=True)):
            fan_in = coefs[i - 1].shape[-1] if i else coef.shape[0]
            if coef.ndim != 2 or coef.shape[0] != fan_in or intercept.shape != coef.shape[1:]:
                raise ValueError(
                    f"coefs[{i}] must have shape ({fan_in}, units) and intercepts[{i}] (units,); "
                    f"got {coef.shape} and {intercept.shape}"
                )
            if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
                raise ValueError(f"coefs[{i}] or intercepts[{i}] has NaN or infinity")
        params.setdefault("hidden_layer_sizes", tuple(coef.shape[1] for coef in coefs[:-1]))
        self = cls(**params)
        self._validate_params()
        dtype = np.float32 if all(coef.dtype == np.float32 for coef in coefs) else np.float64
        self.coefs_ = [coef.astype(dtype) for coef in coefs]
        self.intercepts_ = [intercept.astype(dtype) for intercept in intercepts]
        self._reset_curves()
        self.n_features_in_ = coefs[0].shape[0]
        self.n_layers_ = len(coefs) + 1
        self.n_outputs_ = coefs[-1].shape[1]
        return self

    def _name_output(self, output: str) -> Self:
        self.out_activation_ = _SKLEARN_NAMES.get(output, output)
        self._bind(self._packed())
        return self

    _sklearn_class: ClassVar[Any]

    @classmethod
    def from_sklearn(cls, estimator: Any) -> Self:
        """Take a fitted estimator of scikit-learn.

        Parameters
        ----------
        estimator : sklearn.neural_network.MLPClassifier or MLPRegressor
            Fitted; of the kind that this class stands for.

        Returns
        -------
        estimator of this class
            With copies of its weights, its parameters and its curves. The optimizer's state stays
            behind: `partial_fit` begins with a fresh one.
        """
        if not isinstance(estimator, cls._sklearn_class):
            raise TypeError(
                f"expected a fitted sklearn.neural_network.{cls._sklearn_class.__name__}, got "
                f"{type(estimator).__name__}"
            )
        check_is_fitted(estimator)
        self = cls._from_arrays(
            estimator.coefs_, estimator.intercepts_, estimator.get_params(deep=False)
        )
        for name in _SHARED_ATTRIBUTES:
            if name in estimator.__dict__:
                value = estimator.__dict__[name]
                self.__dict__[name] = list(value) if isinstance(value, list) else value
        return self._name_output(_ALIASES.get(estimator.out_activation_, estimator.out_activation_))

    def to_sklearn(self) -> Any:
        """The same model as an estimator of scikit-learn.

        Returns
        -------
        sklearn.neural_network.MLPClassifier or MLPRegressor
            Fitted, with copies of the weights.

        Raises
        ------
        ValueError
            It has a parameter or an activation that scikit-learn does not have.
        """
        check_is_fitted(self)
        params = self.get_params(deep=False)
        theirs = self._sklearn_class().get_params(deep=False)
        for name in [name for name in params if name not in theirs]:
            default = _EXTRAS.get(name, "log_loss")
            if name not in ("n_threads", "progress", "dtype") and params[name] != default:
                raise ValueError(f"scikit-learn has no {name}={params[name]!r}")
        twin = self._sklearn_class(**{name: params[name] for name in theirs})
        names = {
            _SKLEARN_NAMES.get(name, name)
            for name in map(_name_of, self._activations(max(1, self.n_layers_ - 2)))
        }
        if len(names) > 1 or not names <= _THEIR_ACTIVATIONS:
            raise ValueError(
                f"scikit-learn has no activation={self.activation!r}: one of "
                f"{', '.join(sorted(_THEIR_ACTIVATIONS))} for all hidden layers is what it has"
            )
        twin.activation = names.pop() if names else "relu"
        if "loss" in theirs:
            twin.loss = _name_of(self.loss)
            if twin.loss not in _THEIR_LOSSES:
                raise ValueError(
                    f"scikit-learn has no loss={self.loss!r}: {', '.join(sorted(_THEIR_LOSSES))} "
                    "are what it has"
                )
        twin._validate_params()
        twin.coefs_ = [coef.copy() for coef in self.coefs_]
        twin.intercepts_ = [intercept.copy() for intercept in self.intercepts_]
        for name in (*_SHARED_ATTRIBUTES, "out_activation_"):
            if name in self.__dict__:
                value = self.__dict__[name]
                twin.__dict__[name] = list(value) if isinstance(value, list) else value
        state = self.__dict__.get("_state")
        twin._no_improvement_count = 0 if state is None else state.no_improvement_count
        return twin

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


_SHARED_ATTRIBUTES = (
    "classes_",
    "_label_binarizer",
    "n_features_in_",
    "feature_names_in_",
    "n_layers_",
    "n_outputs_",
    "n_iter_",
    "t_",
    "loss_",
    "loss_curve_",
    "best_loss_",
    "validation_scores_",
    "best_validation_score_",
)

_THEIR_ACTIVATIONS = {"identity", "logistic", "tanh", "relu"}
_THEIR_LOSSES = {"squared_error", "poisson"}  # of the regressor

_NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and "
    "need to be preprocessed."
)


class _Watch:
    """What is looked at between two epochs: validation, callbacks, time, progress.

    A context in which a fit runs; callbacks are told of its beginning and of its regular end.
    """

    def __init__(
        self,
        estimator: _BaseMLP,
        net: _Net,
        state: State,
        validation: tuple[Rows, np.ndarray] | None,
        n_threads: int,
    ) -> None:
        self.estimator = estimator
        self.net = net
        self.validation = validation
        self.n_threads = n_threads
        self.callbacks = _check_callbacks(estimator.callbacks or ())
        self.training: Any = Training(estimator, net, state)
        self.deadline = (
            None if estimator.max_seconds is None else time.monotonic() + estimator.max_seconds
        )
        self.by_the_epoch = bool(
            validation is not None
            or self.callbacks
            or estimator.verbose
            or estimator.progress
            or self.deadline is not None
        )
        self._bar = _progress_bar(estimator.max_iter, bool(estimator.progress))
        self.scorer: Any = None
        self.outputs: np.ndarray | None = None
        self.score: Any = None
        if validation is not None:
            if estimator.scoring not in (None, "loss"):
                self.scorer = check_scoring(estimator, estimator.scoring)
                # The same parameters, for rows that have lost their names on the way in.
                self.twin = copy.copy(estimator)
                self.twin.__dict__.pop("feature_names_in_", None)
                self.y = estimator._decode_targets(validation[1])
            loss, _ = estimator._loss_and_output(validation[1])
            share = estimator._reported_share(loss, net.plan.n_outputs)
            self.objective = Objective(loss, 0.0, share)

    def __enter__(self) -> _Watch:
        self._show = self._bar.__enter__()
        keys = {"epoch", "loss", "learning_rate", "seconds"}
        if self.validation is not None:
            keys |= {"validation_loss", "validation_score"}
        for callback in self.callbacks:
            if hasattr(callback, "on_fit_begin"):
                callback.on_fit_begin(self.training, keys)
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        try:
            if kind is None:
                for callback in self.callbacks:
                    if hasattr(callback, "on_fit_end"):
                        callback.on_fit_end(self.training)
        finally:
            self._bar.__exit__(kind, value, traceback)

    def epoch_ended(self, learning_rate: float, seconds: float) -> None:
        """Judge the epoch that just ended, and tell everybody."""
        estimator = self.estimator
        if not self.by_the_epoch:
            return
        logs: dict[str, Any] = {
            "epoch": len(estimator.loss_curve_),
            "loss": estimator.loss_,
            "learning_rate": learning_rate,
            "seconds": seconds,
        }
        if self.validation is not None:
            loss, score = self._judge()
            estimator.validation_loss_curve_ = estimator.validation_loss_curve_ or []
            estimator.validation_scores_ = estimator.validation_scores_ or []
            estimator.validation_loss_curve_.append(loss)
            estimator.validation_scores_.append(score)
            logs.update(validation_loss=loss, validation_score=score)
        self._show(logs)
        for callback in self.callbacks:
            callback.on_epoch_end(self.training, logs)

    def _judge(self) -> tuple[float, float]:
        """Loss and score on the validation rows."""
        assert self.validation is not None
        rows, _ = self.validation
        plan, parameters = self.net.plan, self.net.parameters
        loss = self.objective.value(plan, parameters, rows, self.n_threads)
        if self.estimator.scoring == "loss":
            return loss, -loss
        if self.scorer is not None:
            weight = {} if rows.weight is None else {"sample_weight": rows.weight}
            return loss, float(self.scorer(self.twin, rows.X, self.y, **weight))
        if self.outputs is None:
            self.outputs = np.empty((len(rows), plan.n_outputs), plan.dtype)
            self.score = self.estimator._scorer(rows.y, rows.weight)
        X = rows.readable(plan.dtype)
        BACKEND.predict(plan, parameters, X, self.outputs, self.n_threads)
        return loss, self.score(self.outputs)

    def should_stop(self) -> bool:
        """Whether a callback or the clock asked for an end."""
        if self.training.stopped:
            return True
        return self.deadline is not None and time.monotonic() >= self.deadline


class _Epochs:
    """scikit-learn's loop over epochs: its books, its stopping rules, its learning rates."""

    def __init__(
        self,
        estimator: _BaseMLP,
        net: _Net,
        engine: Engine,
        validation: tuple[Rows, np.ndarray] | None,
        incremental: bool,
    ) -> None:
        self.estimator = estimator
        self.net = net
        self.engine = engine
        self.state = engine.state
        self.incremental = incremental
        self.early_stopping = bool(estimator.early_stopping)
        self.watch = _Watch(estimator, net, engine.state, validation, engine.n_threads)
        self.best: np.ndarray | None = None
        last, best = self.state.last, self.state.best
        self.state.last = self.state.best = None
        if (
            estimator.resume
            and self.early_stopping
            and last is not None
            and best == _digest(net.parameters)  # else the user has set others since
        ):
            self.best = net.parameters.copy()
            net.parameters[:] = last
        optimizer = self.state.optimizer
        self.sgd = optimizer if isinstance(optimizer, SklearnSGD) else None
        # The rates of these change with every epoch, and a velocity with them.
        self.one_by_one = self.watch.by_the_epoch or (
            self.sgd is not None and estimator.learning_rate == "invscaling"
        )

    def run(self) -> None:
        estimator, state = self.estimator, self.state
        max_iter = 1 if self.incremental else int(estimator.max_iter)
        chunk, done = 16, False
        with self.watch:
            with _interrupts_stop(self.engine.stop):
                while not done and estimator.n_iter_ < max_iter:
                    n_epochs = min(max_iter - estimator.n_iter_, self.engine.max_epochs(), chunk)
                    # The rules cannot end the training before so many epochs brought nothing.
                    patience = estimator.n_iter_no_change + 1 - state.no_improvement_count
                    n_epochs = 1 if self.one_by_one else int(min(n_epochs, max(1, patience)))
                    start = time.perf_counter()
                    done = self._advance(n_epochs)
                    if time.perf_counter() - start < 0.1:
                        chunk *= 2
            if self.best is not None:
                if estimator.resume:
                    state.last, state.best = self.net.parameters.copy(), _digest(self.best)
                self.net.parameters[:] = self.best
        if self.early_stopping and not estimator.resume:
            # They belong to the last epoch, and nothing but another epoch would want them.
            state.optimizer = state.slots = None
        if not done and not self.incremental:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({max_iter}) "
                "reached and the optimization hasn't converged yet.",
                ConvergenceWarning,
                stacklevel=7,
            )

    def _advance(self, n_epochs: int) -> bool:
        """Train so many epochs; whether that was all."""
        engine = self.engine
        start = time.perf_counter()
        epochs = engine.run(n_epochs)
        finished = False
        for loss, rate in zip(epochs.losses.tolist(), epochs.rates.tolist(), strict=True):
            finished = self._count(loss, rate, time.perf_counter() - start)
        if epochs.exception is not None:
            raise epochs.exception
        if epochs.status == "diverged":
            self._diverged()
            return True
        return finished or self.watch.should_stop() or engine.stop.is_set()

    def _count(self, loss: float, rate: float, seconds: float) -> bool:
        """The books of one epoch; whether the rules end the training after it."""
        estimator, state = self.estimator, self.state
        estimator.n_iter_ += 1
        estimator.loss_ = loss
        estimator.t_ += len(self.engine.rows)
        estimator.loss_curve_.append(loss)
        if estimator.verbose:
            print(f"Iteration {estimator.n_iter_}, loss = {loss:.8f}")  # noqa: T201
        self.watch.epoch_ended(rate, seconds)
        improved = self._improved(loss)
        state.no_improvement_count = 0 if improved else state.no_improvement_count + 1
        if self.sgd is not None and estimator.learning_rate == "invscaling":
            decay = (estimator.t_ + 1) ** estimator.power_t
            self.engine.change_rate(float(estimator.learning_rate_init) / decay)
        if state.no_improvement_count <= estimator.n_iter_no_change:
            return False
        return self._out_of_patience()

    def _improved(self, loss: float) -> bool:
        """Whether the epoch was better by tol; the best is noted."""
        estimator = self.estimator
        if self.early_stopping:
            score = estimator.validation_scores_[-1]
            if estimator.verbose:
                print(f"Validation score: {score:f}")  # noqa: T201
            best = estimator.best_validation_score_
            if score > best:
                estimator.best_validation_score_ = score
                self.best = self.net.parameters.copy()
            return not score < best + estimator.tol
        best = estimator.best_loss_
        estimator.best_loss_ = min(loss, best)
        return not loss > best - estimator.tol

    def _out_of_patience(self) -> bool:
        """Stop, or cut the learning rate where it adapts; whether to stop."""
        estimator = self.estimator
        what = "Validation score" if self.early_stopping else "Training loss"
        message = (
            f"{what} did not improve more than tol={estimator.tol:f} for "
            f"{estimator.n_iter_no_change} consecutive epochs."
        )
        if self.sgd is None or estimator.learning_rate != "adaptive":
            action, stop = "Stopping.", True
        elif self.sgd.learning_rate <= 1e-6:
            action, stop = "Learning rate too small. Stopping.", True
        else:
            self.engine.change_rate(self.sgd.learning_rate / 5.0)
            action, stop = f"Setting learning rate to {self.sgd.learning_rate:f}", False
            self.state.no_improvement_count = 0
        if estimator.verbose:
            print(f"{message} {action}")  # noqa: T201
        return stop

    def _diverged(self) -> None:
        """The parameters are those before the epoch that diverged; use the best, or raise."""
        estimator = self.estimator
        best = self.best is not None or (
            estimator.best_validation_score_ is not None
            and np.isfinite(estimator.best_validation_score_)
        )
        if not (self.early_stopping and best):
            raise ValueError(_NON_FINITE)
        estimator.n_iter_ += 1
        estimator.loss_ = np.nan
        estimator.loss_curve_.append(np.nan)
        estimator.validation_scores_.append(np.nan)
        estimator.validation_loss_curve_.append(np.nan)
        warnings.warn(
            f"the training diverged in epoch {estimator.n_iter_}: the weights are those of the "
            "best validation score before. Try a lower learning_rate_init, clip_norm, or features "
            "of the size of 1",
            ConvergenceWarning,
            stacklevel=8,
        )


def _name_of(row: Any) -> Any:
    """The name of a table's row, which may be given by its name."""
    return row.name if isinstance(row, ActivationRow | LossRow) else row


def _covers(loss: LossRow, output: str) -> bool:
    """Whether a loss is defined for everything that an output gives."""
    low, high = get_activation(output).range
    return loss.domain[0] <= low and high <= loss.domain[1]


def _digest(parameters: np.ndarray) -> bytes:
    return hashlib.blake2b(parameters.data).digest()


def _readable(X: Any, dtype: np.dtype) -> Any:
    """Checked rows as the backend reads them."""
    if sp.issparse(X):
        return SparseRows(X, dtype)
    if X.dtype.kind not in "fiub" or (X.dtype.itemsize in (2, 16) and X.dtype.kind == "f"):
        return X.astype(np.float64)
    return X


class MLPClassifier(ClassifierMixin, _BaseMLP):
    """scikit-learn's MLPClassifier at this package's speed, and more.

    Minimises the log loss by stochastic gradient descent or L-BFGS. Everything that
    `sklearn.neural_network.MLPClassifier` has is here under the same name, with the same default
    and at the same position; what comes after `max_fun` is more.

    Parameters
    ----------
    hidden_layer_sizes : int or array-like of int, default (100,)
        Units of each hidden layer. ``()`` is a linear model. To search depth and width as two
        numbers, build the tuple: ``(width,) * depth``.
    activation : str or Activation, or a list with one per hidden layer, default "relu"
        "identity", "logistic", "tanh", "relu" as in scikit-learn, any other activation of
        `fastnn`, or one of your own, a `fastnn.Activation`, by its name or as the object.
    solver : str or optimizer object, default "adam"
        "lbfgs", "sgd", "adam" as in scikit-learn; or "adamw", "nadam", "rmsprop", "adagrad",
        "rprop" with learning_rate_init; or an object such as ``fastnn.RMSprop(rho=0.95)``, whose
        settings then hold.
    alpha : float, default 0.0001
        Each batch adds ``alpha / 2 * sum(W**2) / (weight of its rows)``.
    batch_size : int or "auto", default "auto"
        "auto" is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        For solver="sgd"; see scikit-learn.
    learning_rate_init : float, default 0.001
    power_t : float, default 0.5
        Of "invscaling".
    max_iter : int, default 200
        Epochs; iterations of "lbfgs".
    shuffle : bool, default True
    random_state : int, RandomState instance or None, default None
        Draws weights, hold-out and orders as scikit-learn draws them; and the seed of dropout.
    tol : float, default 1e-4
    verbose : bool, default False
        Print the loss of each epoch.
    warm_start : bool, default False
        Begin with the weights of the fit before.
    momentum : float, default 0.9
        Of "sgd".
    nesterovs_momentum : bool, default True
        Of "sgd".
    early_stopping : bool, default False
        Judge every epoch by rows held out, or by `validation_data`; stop when they bring nothing,
        and keep the best weights.
    validation_fraction : float, default 0.1
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        Of "adam", "adamw" and "nadam".
    n_iter_no_change : int, default 10
    max_fun : int, default 15000
        Evaluations of "lbfgs".
    loss : str or loss object, default "log_loss"
        "log_loss", "brier" (squared error of the probabilities, Brier 1950) or "hinge" (one
        against the rest; `decision_function` in place of `predict_proba`); the same as a loss of
        `fastnn`; or a `fastnn.Loss` of your own, by its name or as the object. Its target_kind says
        what it gets: with "sign" margins of any size, and -1 or 1; with "classes" a probability for
        each class (two outputs for two classes), and 1 for that of the row; else the probability
        of each output, and 0 or 1.
    class_weight : dict, "balanced" or None, default None
        Multiplies the weights of the rows; "balanced" is ``n / (n_classes * count)``.
    dropout : float, or a list with one per hidden layer, default 0.0
        Share of the units dropped while training (Srivastava et al. 2014); not with "lbfgs".
    clip_norm : float, optional
        Scales the gradient of a batch down where its norm is larger; not with "lbfgs".
    schedule : str, schedule object or callable, optional
        The learning rate of each step, counted from 0: ``fastnn.CosineDecay(n_steps=1000)`` or a
        function of the step. Works with every solver but "lbfgs", beside `learning_rate`.
    stratify : "auto" or bool, default "auto"
        Of the hold-out: "auto" keeps the shares of two classes, as scikit-learn does, and draws
        freely for more; True keeps them for any number; False never. Rows of labels are
        drawn freely.
    scoring : str, callable or None, default None
        What early stopping maximises, by a name of scikit-learn or a scorer; None is `score`,
        "loss" the negative validation loss.
    resume : bool, default False
        With warm_start: go on where the fit before ended, with its optimizer's state, random
        stream, hold-out and patience, so that k fits of one epoch and one of k epochs are the same
        bit for bit. Without it, as in scikit-learn, a warm start begins with a fresh optimizer and
        fresh random numbers, and a pickle has no hold-out: set it before the first fit.
    max_seconds : float, optional
        Stop after the first epoch that ends later.
    callbacks : list, optional
        As in `fastnn.callbacks`; of their trainer they get `model.parameters`, `rate_factor`,
        `stop()`, `save(path)`, and `estimator`.
    progress : bool, default False
        Show a progress bar.
    n_threads : int, optional
        By default 1 inside a worker of joblib or Dask, else FASTNN_NUM_THREADS, else
        OMP_NUM_THREADS, else the CPUs of this process. Results do not depend on it.
    dtype : "float32", "float64" or None, default None
        None follows scikit-learn: float32 where X is, else float64.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted.
    coefs_ : list of ndarray, each (fan_in, fan_out)
    intercepts_ : list of ndarray, each (fan_out,)
    loss_ : float
        Of the last epoch, with the penalty.
    loss_curve_ : list of float
        `loss_` of every epoch; of every iteration with "lbfgs", where scikit-learn has none.
    best_loss_ : float or None
        None with early stopping.
    validation_scores_ : list of float, or None
        The *score* on the validation rows after every epoch, the larger the better.
    best_validation_score_ : float or None
    validation_loss_curve_ : list of float, or None
        The *loss* on the validation rows after every epoch, without the penalty.
    n_iter_ : int
        Epochs of the last call.
    t_ : int
        Rows seen.
    n_features_in_, n_layers_, n_outputs_ : int
    feature_names_in_ : ndarray of str
        Where X had names that are strings.
    out_activation_ : str

    Raises
    ------
    ValueError, TypeError
        From `fit`: a parameter, X, y or a weight is wrong, or the training diverged. An estimator
        that was fitted before is then what it was; one that was not, and whose training got so far,
        has the weights of the last finite epoch.

    See Also
    --------
    fastnn.MLP, fastnn.Trainer : The same nets without scikit-learn.

    Notes
    -----
    With the same random_state, scikit-learn's own estimator gives the same curves, scores and
    probabilities, but for rounding. These differences are meant:

    - Ctrl-C raises KeyboardInterrupt, after a whole step; scikit-learn warns and goes on.
    - The loss is computed from the inputs of the output activation, and is exact for rows that the
      net is certain of; scikit-learn clips probabilities at the machine epsilon.
    - No probability is 0, and none of a label is 1, so that their logarithms are finite: what would
      round there is the smallest normal number, or the largest below 1.
    - A class whose rows would all be held out by early stopping stays in the training.
    - With a single class in y, `predict_proba` has one column, of ones.
    - A weight below 0 is an error. So is a warm start after `hidden_layer_sizes` changed, or with
      another number of features or outputs.
    - `partial_fit` with an int as random_state goes on in the stream of random numbers: another
      order in every call, also after pickling. scikit-learn repeats one order from the second on.
    - `partial_fit` with weights that are all 0 changes nothing.
    - `partial_fit` after a fit that stopped early (with early_stopping=False since) begins with a
      fresh optimizer: what the old one knows is of the last epoch, not of the best.
    - A call that fails leaves a fitted estimator as it was, to the last bit, and so does Ctrl-C
      before the first step is done.
    - Training that diverges is an error, or, with early stopping, a ConvergenceWarning that leaves
      the best weights.
    - Two threads that fit one estimator at a time get a RuntimeError.
    - float32 of another byte order stays float32. Every attribute exists after each `fit`, None
      where it has no meaning.

    Kept as they are, since the numbers are to agree: the penalty is divided by the rows of the
    batch, so that it is stronger in small ones; "adaptive" compares with the best loss ever, so
    that a lucky one cuts the rate again and again (`fastnn.ReduceOnPlateau` does not).

    Searches with n_jobs over functions of your own want ``joblib.parallel_config("threading")``:
    worker processes do not know them, and training holds no lock that threads would wait for.

    Sparse X stays sparse: the first layer reads what is stored of each row.

    References
    ----------
    Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    Kingma & Ba 2015, Adam: a method for stochastic optimization, arXiv:1412.6980.
    Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.

    Examples
    --------
    >>> from fastnn.sklearn import MLPClassifier
    >>> clf = MLPClassifier((50,), random_state=0).fit(X_train, y_train)
    >>> clf.score(X_test, y_test)
    """

    _sklearn_class = _SklearnClassifier

    _parameter_constraints: ClassVar[dict] = {
        **_BaseMLP._parameter_constraints,
        "loss": [
            _Names(["log_loss", "brier", "hinge"], REGISTERED_LOSSES, "fastnn.Loss(name, value)"),
            LossRow,
        ],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "stratify": [StrOptions({"auto"}), "boolean"],
    }

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        loss="log_loss",
        class_weight=None,
        dropout=0.0,
        clip_norm=None,
        schedule=None,
        stratify="auto",
        scoring=None,
        resume=False,
        max_seconds=None,
        callbacks=None,
        progress=False,
        n_threads=None,
        dtype=None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.loss = loss
        self.class_weight = class_weight
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.schedule = schedule
        self.stratify = stratify
        self.scoring = scoring
        self.resume = resume
        self.max_seconds = max_seconds
        self.callbacks = callbacks
        self.progress = progress
        self.n_threads = n_threads
        self.dtype = dtype

    # Targets --------------------------------------------------------------------------------------

    def _kind(self) -> str:
        """Of the targets: binary, multiclass or multilabel-indicator."""
        return self._label_binarizer.y_type_

    def _own_loss(self) -> Loss | None:
        """The loss, where it is one of the user's."""
        row = REGISTERED_LOSSES.get(self.loss) if isinstance(self.loss, str) else self.loss
        return row if isinstance(row, Loss) else None

    def _loss_name(self) -> str:
        """The loss by its name here; one of the user's by its own."""
        if isinstance(self.loss, str):
            return self.loss
        names = {
            "cross_entropy": "log_loss",
            "binary_cross_entropy": "log_loss",
            "squared_error": "brier",
            "hinge": "hinge",
        }
        if self._own_loss() is None and self.loss.name not in names:
            raise ValueError(
                f"a classifier cannot minimise {self.loss!r}: take 'log_loss', 'brier', 'hinge', "
                "or a fastnn.Loss of your own"
            )
        return names.get(self.loss.name, self.loss.name)

    def _has_margins(self) -> bool:
        """Whether outputs are margins, not probabilities."""
        own = self._own_loss()
        return own.target_kind == "sign" if own is not None else self._loss_name() == "hinge"

    def _one_hot(self) -> bool:
        """Whether each class has an output of its own: two as well, where the loss is for them."""
        own = self._own_loss()
        for_classes = own is not None and own.target_kind == "classes"
        return self._kind() == "multiclass" or (self._kind() == "binary" and for_classes)

    def _loss_and_output(self, y: np.ndarray) -> tuple[LossRow, str]:
        output = "softmax" if self._one_hot() else "sigmoid"
        own = self._own_loss()
        if own is None:
            name = self._loss_name()
            if name == "hinge":
                return LOSSES["hinge"], "identity"
            if name == "brier":
                return LOSSES["squared_error"], output
            return LOSSES["cross_entropy" if self._one_hot() else "binary_cross_entropy"], output
        if self._has_margins():
            output = "identity"
        if own.target_kind == "classes" and self._kind() == "multilabel-indicator":
            raise ValueError(
                f"{own!r} is for classes of which a row has one, but rows of y have several "
                "labels: register it with target_kind='unit', and let value(y, t) be that of a "
                "label, t being 0 or 1"
            )
        if not _covers(own, output):
            what = "margins, any number" if output == "identity" else "probabilities, 0 to 1"
            raise ValueError(
                f"{own!r} is defined for outputs in {list(own.domain)}, but those of a classifier "
                f"are {what} with target_kind={own.target_kind!r}: register it with another domain"
            )
        return own, output

    def _check_targets(self, X: Any, y: Any, incremental: bool, reset: bool) -> Any:
        X, y = self._validate(X, y, reset)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            kind = type_of_target(y, input_name="y")
            if "multioutput" in kind:
                raise ValueError(
                    f"y is of kind {kind!r}: several classes for each of several outputs. "
                    "Multioutput target data is not supported with label binarization; fit one "
                    "classifier per column (sklearn.multioutput.MultiOutputClassifier)"
                )
            binarizer = LabelBinarizer().fit(y)
            self._label_binarizer = binarizer
            self.classes_ = binarizer.classes_
        else:
            classes = unique_labels(y)
            if self.warm_start and not incremental:
                if set(classes) != set(self.classes_):
                    raise ValueError(
                        "warm_start can only be used where `y` has the same "
                        "classes as in the previous call to fit. Previously "
                        f"got {self.classes_}, `y` has {classes}"
                    )
            elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
                raise ValueError(
                    "`y` has classes not in `self.classes_`. "
                    f"`self.classes_` has {self.classes_}. 'y' has {classes}."
                )
        return X, self._to_indices(y)

    def _to_indices(self, y: Any) -> np.ndarray:
        """Numbers of the classes, (n, 1); or 0 and 1 for each label, (n, n_labels)."""
        if self._kind() == "multilabel-indicator":
            return np.asarray(y.toarray() if sp.issparse(y) else y).astype(bool)
        return np.searchsorted(self.classes_, y).reshape(-1, 1)

    def _check_validation_targets(self, y: Any) -> np.ndarray:
        if self._kind() != "multilabel-indicator":
            y = column_or_1d(y, warn=True)
        strange = np.setdiff1d(unique_labels(y), self.classes_)
        if len(strange):
            raise ValueError(f"validation y has classes {strange}, which y does not have")
        return self._to_indices(y)

    def _decode_targets(self, y: np.ndarray) -> np.ndarray:
        if self._kind() == "multilabel-indicator":
            return y.astype(np.int64)
        return self.classes_[y[:, 0]]

    def _n_outputs(self, y: np.ndarray) -> int:
        if self._one_hot():
            return max(2, len(self.classes_))
        return 1 if self._kind() == "binary" else y.shape[1]

    def _encode(self, y: np.ndarray, dtype: np.dtype, name: str = "y") -> np.ndarray:
        loss, _ = self._loss_and_output(y)
        if loss is LOSSES["cross_entropy"]:
            return np.array(y[:, 0], np.int64)
        t = (y == np.arange(self._n_outputs(y))) if self._one_hot() else y
        t = t.astype(dtype)
        return 2 * t - 1 if loss.target_kind == "sign" else t

    def _check_weights(
        self, sample_weight: Any, X: Any, y: np.ndarray, incremental: bool
    ) -> np.ndarray | None:
        weight = super()._check_weights(sample_weight, X, y, incremental)
        if self.class_weight is None:
            return weight
        if self._kind() == "multilabel-indicator":
            raise ValueError("class_weight is not supported for multilabel targets")
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not supported for partial_fit, which does not know "
                "how often a class will come: use compute_class_weight('balanced', "
                "classes=classes, y=y) of scikit-learn, and pass the result as a dict"
            )
        labels = self.classes_[y[:, 0]]
        per_class = compute_class_weight(self.class_weight, classes=self.classes_, y=labels)
        if (per_class < 0).any():
            raise ValueError(f"class_weight must not be negative, got {self.class_weight}")
        of_rows = per_class[y[:, 0]]
        return of_rows if weight is None else of_rows * weight

    def _strata(self, y: np.ndarray) -> np.ndarray | None:
        if self.stratify == "auto":
            # As scikit-learn has it, whose message names the classes 'False' and 'True'.
            return np.where(y[:, 0], "True", "False") if self._kind() == "binary" else None
        if not self.stratify or self._kind() == "multilabel-indicator":
            return None
        return self.classes_[y[:, 0]]

    def _keep_classes(
        self, y: np.ndarray, train: np.ndarray, held: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A class whose rows were all held out is trained on instead."""
        if self._kind() == "multilabel-indicator":
            return train, held
        lost = ~np.isin(y[held, 0], y[train, 0])
        return np.concatenate([train, held[lost]]), held[~lost]

    # Public ---------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, validation_data=None):
        """Fit to rows X and labels y.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or (n_samples, n_labels) of 0 and 1
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero.
        validation_data : tuple (X, y) or (X, y, sample_weight), optional
            Judged after every epoch; early stopping uses it in place of rows held out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            An argument of the wrong shape or value, or the training diverged.
        KeyboardInterrupt
            Ctrl-C. The model is that of the last whole step.
        """
        return self._fit(X, y, sample_weight, validation_data)

    @available_when(_check_partial_fit)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None, classes=None):
        """Train one epoch more on these rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), or (n_samples, n_labels) of 0 and 1
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. Weights that are all zero move nothing.
        classes : array-like of shape (n_classes,), optional
            All classes that will ever come; needed in the first call.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True, classes=classes)

    def _name_classes(self, y: Any, classes: Any) -> None:
        known = getattr(self, "classes_", None)
        if known is None:
            if classes is None:
                raise ValueError(
                    "classes must be passed on the first call to partial_fit, by name: the third "
                    "argument is sample_weight."
                )
            self.classes_ = unique_labels(classes)
            multilabel = type_of_target(y).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(y if multilabel else classes)
        elif classes is not None and not np.array_equal(known, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call "
                f"to partial_fit, was: {known!r}"
            )

    def _decode(self, outputs: np.ndarray) -> np.ndarray:
        kind = self._label_binarizer.y_type_
        if kind == "binary" and len(self.classes_) == 1:
            return np.repeat(self.classes_, len(outputs))
        if self._exclude_each_other(outputs):
            return self.classes_[outputs.argmax(axis=1)]
        chosen = outputs > (0.0 if self._plan.output == "identity" else 0.5)
        if kind == "binary":
            return self.classes_[chosen[:, 0].view(np.int8)]
        labels = chosen.astype(np.int64)
        return sp.csr_array(labels) if self._label_binarizer.sparse_input_ else labels

    def _exclude_each_other(self, outputs: np.ndarray) -> bool:
        """Whether the largest of the outputs says the class."""
        return outputs.shape[1] > 1 and self._kind() != "multilabel-indicator"

    def _scorer(
        self, target: np.ndarray, weight: np.ndarray | None
    ) -> Callable[[np.ndarray], float]:
        """Accuracy; of all labels of a row at once."""
        threshold = 0.0 if self._plan.output == "identity" else 0.5
        labels = target > threshold
        if target.ndim == 1 or self._exclude_each_other(target):
            labels = target if target.ndim == 1 else target.argmax(axis=1)

        def score(outputs: np.ndarray) -> float:
            if labels.ndim == 1:
                right = outputs.argmax(axis=1) == labels
            else:
                right = ((outputs > threshold) == labels).all(axis=1)
            if weight is None:
                return np.count_nonzero(right) / len(right)
            return float(np.average(right, weights=weight))

        return score

    def predict(self, X):
        """Classes of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_labels)
        """
        return self._decode(self._outputs(X))

    def score(self, X, y, sample_weight=None):
        """Share of rows whose class, or whose every label, is predicted.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return super().score(X, y, sample_weight)

    @available_when(_check_probabilities)
    def predict_proba(self, X):
        """Probabilities of the classes.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`. None is 0: what would round to it is the smallest normal
            number of the dtype.
        """
        p = self._outputs(X)
        kind = self._kind()
        limits = np.finfo(p.dtype)
        if kind == "multilabel-indicator":
            # 1 - p is not 0 either.
            return np.clip(p, limits.tiny, 1 - limits.epsneg, out=p)
        if kind == "binary" and len(self.classes_) == 1:
            return np.ones_like(p[:, :1])
        if kind == "binary" and p.shape[1] == 1:
            certain = p[:, 0] == 1
            p = np.concatenate([1 - p, p], axis=1)
            if certain.any():
                # 1 - p has rounded to 0; sigmoid(-z) is exp(-z) there.
                rows = self._check_rows(X)[certain]
                p[certain, 0] = np.exp(-self._forward(rows, output="identity")[:, 0])
        return np.maximum(p, limits.tiny, out=p)

    @available_when(_check_probabilities)
    def predict_log_proba(self, X):
        """Logarithms of `predict_proba`, all finite.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return np.log(self.predict_proba(X))

    @available_when(_check_margins)
    def decision_function(self, X):
        """Margins; with loss='hinge' only.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        z = self._outputs(X)
        return z[:, 0] if self._kind() == "binary" else z

    @classmethod
    def from_weights(cls, coefs, intercepts, *, classes=None, multilabel=False, **params):
        """A classifier with weights set by hand.

        Parameters
        ----------
        coefs : sequence of array-like, each (fan_in, fan_out)
        intercepts : sequence of array-like, each (fan_out,)
        classes : array-like, optional
            Sorted. One output stands for two classes, k outputs for k; by default 0, 1, ...
        multilabel : bool, default False
            The outputs are labels of their own, which do not exclude each other.
        **params
            Parameters of the class, such as activation.

        Returns
        -------
        MLPClassifier
            Fitted, with copies of the weights.
        """
        self = cls._from_arrays(coefs, intercepts, params)
        n_classes = max(2, self.n_outputs_) if not multilabel else self.n_outputs_
        classes = np.arange(n_classes) if classes is None else unique_labels(classes)
        if len(classes) != n_classes:
            raise ValueError(f"the last layer is for {n_classes} classes, got {len(classes)}")
        y = np.eye(n_classes, dtype=int) if multilabel else classes
        if multilabel:
            y = np.vstack([y, np.ones_like(y[:1])])
        self._label_binarizer = LabelBinarizer().fit(y)
        self.classes_ = classes if not multilabel else self._label_binarizer.classes_
        if self._n_outputs(y) != self.n_outputs_:
            raise ValueError(
                f"loss={self.loss!r} has {self._n_outputs(y)} outputs for these {n_classes} "
                f"classes, but the last layer has {self.n_outputs_}: the logit of one output is "
                "the difference of two, coefs[-1][:, 1:] - coefs[-1][:, :1], and so the intercept"
            )
        return self._name_output(self._loss_and_output(y)[1])

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class MLPRegressor(RegressorMixin, _BaseMLP):
    """scikit-learn's MLPRegressor at this package's speed, and more.

    Minimises the squared error, or another loss, by stochastic gradient descent or L-BFGS.
    Everything that `sklearn.neural_network.MLPRegressor` has is here under the same name, with the
    same default and at the same position; what comes after `max_fun` is more.

    Parameters
    ----------
    loss : str or loss object, default "squared_error"
        "squared_error", "poisson" (the outputs are then exp(z), and y >= 0), "absolute_error",
        "huber", "quantile"; an object such as ``fastnn.Huber(2.0)``, ``fastnn.Quantile(0.9)``; or a
        `fastnn.Loss` of your own, by its name or as the object. Its domain says which outputs it
        gets: any number, exp(z) for positive ones, sigmoid(z) for 0 to 1, or tanh(z).
    hidden_layer_sizes : int or array-like of int, default (100,)
        Units of each hidden layer. ``()`` is a linear model. To search depth and width as two
        numbers, build the tuple: ``(width,) * depth``.
    activation : str or Activation, or a list with one per hidden layer, default "relu"
        "identity", "logistic", "tanh", "relu" as in scikit-learn, any other activation of
        `fastnn`, or one of your own, a `fastnn.Activation`, by its name or as the object.
    solver : str or optimizer object, default "adam"
        "lbfgs", "sgd", "adam" as in scikit-learn; or "adamw", "nadam", "rmsprop", "adagrad",
        "rprop" with learning_rate_init; or an object such as ``fastnn.RMSprop(rho=0.95)``, whose
        settings then hold.
    alpha : float, default 0.0001
        Each batch adds ``alpha / 2 * sum(W**2) / (weight of its rows)``.
    batch_size : int or "auto", default "auto"
        "auto" is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default "constant"
        For solver="sgd"; see scikit-learn.
    learning_rate_init : float, default 0.001
    power_t : float, default 0.5
        Of "invscaling".
    max_iter : int, default 200
        Epochs; iterations of "lbfgs".
    shuffle : bool, default True
    random_state : int, RandomState instance or None, default None
        Draws weights, hold-out and orders as scikit-learn draws them; and the seed of dropout.
    tol : float, default 1e-4
    verbose : bool, default False
        Print the loss of each epoch.
    warm_start : bool, default False
        Begin with the weights of the fit before.
    momentum : float, default 0.9
        Of "sgd".
    nesterovs_momentum : bool, default True
        Of "sgd".
    early_stopping : bool, default False
        Judge every epoch by rows held out, or by `validation_data`; stop when they bring nothing,
        and keep the best weights.
    validation_fraction : float, default 0.1
    beta_1, beta_2, epsilon : float, default 0.9, 0.999, 1e-8
        Of "adam", "adamw" and "nadam".
    n_iter_no_change : int, default 10
    max_fun : int, default 15000
        Evaluations of "lbfgs".
    dropout : float, or a list with one per hidden layer, default 0.0
        Share of the units dropped while training (Srivastava et al. 2014); not with "lbfgs".
    clip_norm : float, optional
        Scales the gradient of a batch down where its norm is larger; not with "lbfgs".
    schedule : str, schedule object or callable, optional
        The learning rate of each step, counted from 0: ``fastnn.CosineDecay(n_steps=1000)`` or a
        function of the step. Works with every solver but "lbfgs", beside `learning_rate`.
    scoring : str, callable or None, default None
        What early stopping maximises, by a name of scikit-learn or a scorer; None is `score`,
        "loss" the negative validation loss.
    resume : bool, default False
        With warm_start: go on where the fit before ended, with its optimizer's state, random
        stream, hold-out and patience, so that k fits of one epoch and one of k epochs are the same
        bit for bit. Without it, as in scikit-learn, a warm start begins with a fresh optimizer and
        fresh random numbers, and a pickle has no hold-out: set it before the first fit.
    max_seconds : float, optional
        Stop after the first epoch that ends later.
    callbacks : list, optional
        As in `fastnn.callbacks`; of their trainer they get `model.parameters`, `rate_factor`,
        `stop()`, `save(path)`, and `estimator`.
    progress : bool, default False
        Show a progress bar.
    n_threads : int, optional
        By default 1 inside a worker of joblib or Dask, else FASTNN_NUM_THREADS, else
        OMP_NUM_THREADS, else the CPUs of this process. Results do not depend on it.
    dtype : "float32", "float64" or None, default None
        None follows scikit-learn: float32 where X is, else float64.

    Attributes
    ----------
    coefs_ : list of ndarray, each (fan_in, fan_out)
    intercepts_ : list of ndarray, each (fan_out,)
    loss_ : float
        Of the last epoch, with the penalty.
    loss_curve_ : list of float
        `loss_` of every epoch; of every iteration with "lbfgs", where scikit-learn has none.
    best_loss_ : float or None
        None with early stopping.
    validation_scores_ : list of float, or None
        The *score* on the validation rows after every epoch, the larger the better.
    best_validation_score_ : float or None
    validation_loss_curve_ : list of float, or None
        The *loss* on the validation rows after every epoch, without the penalty.
    n_iter_ : int
        Epochs of the last call.
    t_ : int
        Rows seen.
    n_features_in_, n_layers_, n_outputs_ : int
    feature_names_in_ : ndarray of str
        Where X had names that are strings.
    out_activation_ : str

    Raises
    ------
    ValueError, TypeError
        From `fit`: a parameter, X, y or a weight is wrong, or the training diverged. An estimator
        that was fitted before is then what it was; one that was not, and whose training got so far,
        has the weights of the last finite epoch.

    See Also
    --------
    fastnn.MLP, fastnn.Trainer : The same nets without scikit-learn.

    Notes
    -----
    With the same random_state, scikit-learn's own estimator gives the same curves, scores and
    probabilities, but for rounding. These differences are meant:

    - Ctrl-C raises KeyboardInterrupt, after a whole step; scikit-learn warns and goes on.
    - The loss is computed from the inputs of the output activation, and is exact for rows that the
      net is certain of; scikit-learn clips probabilities at the machine epsilon.
    - loss="poisson" with a negative y is an error; scikit-learn's loss becomes NaN.
    - `MLPRegressor((50,))`: the first parameter is the loss since scikit-learn 1.7; the error says
      so.
    - A weight below 0 is an error. So is a warm start after `hidden_layer_sizes` changed, or with
      another number of features or outputs.
    - `partial_fit` with an int as random_state goes on in the stream of random numbers: another
      order in every call, also after pickling. scikit-learn repeats one order from the second on.
    - `partial_fit` with weights that are all 0 changes nothing.
    - `partial_fit` after a fit that stopped early (with early_stopping=False since) begins with a
      fresh optimizer: what the old one knows is of the last epoch, not of the best.
    - A call that fails leaves a fitted estimator as it was, to the last bit, and so does Ctrl-C
      before the first step is done.
    - Training that diverges is an error, or, with early stopping, a ConvergenceWarning that leaves
      the best weights.
    - Two threads that fit one estimator at a time get a RuntimeError.
    - float32 of another byte order stays float32. Every attribute exists after each `fit`, None
      where it has no meaning.

    Kept as they are, since the numbers are to agree: the penalty is divided by the rows of the
    batch, so that it is stronger in small ones; "adaptive" compares with the best loss ever, so
    that a lucky one cuts the rate again and again (`fastnn.ReduceOnPlateau` does not).

    Searches with n_jobs over functions of your own want ``joblib.parallel_config("threading")``:
    worker processes do not know them, and training holds no lock that threads would wait for.

    Sparse X stays sparse: the first layer reads what is stored of each row.

    References
    ----------
    Glorot & Bengio 2010, Understanding the difficulty of training deep feedforward neural networks.
    Kingma & Ba 2015, Adam: a method for stochastic optimization, arXiv:1412.6980.
    Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.

    Examples
    --------
    >>> from fastnn.sklearn import MLPRegressor
    >>> reg = MLPRegressor(loss="huber", random_state=0).fit(X_train, y_train)
    >>> reg.score(X_test, y_test)
    """

    _sklearn_class = _SklearnRegressor

    _parameter_constraints: ClassVar[dict] = {
        **_BaseMLP._parameter_constraints,
        "loss": [
            _Names(
                ["squared_error", "poisson", "absolute_error", "huber", "quantile"],
                REGISTERED_LOSSES,
                "fastnn.Loss(name, value)",
            ),
            LossRow,
        ],
    }

    def __init__(
        self,
        loss="squared_error",
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        dropout=0.0,
        clip_norm=None,
        schedule=None,
        scoring=None,
        resume=False,
        max_seconds=None,
        callbacks=None,
        progress=False,
        n_threads=None,
        dtype=None,
    ):
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.clip_norm = clip_norm
        self.schedule = schedule
        self.scoring = scoring
        self.resume = resume
        self.max_seconds = max_seconds
        self.callbacks = callbacks
        self.progress = progress
        self.n_threads = n_threads
        self.dtype = dtype

    # Targets --------------------------------------------------------------------------------------

    def _validate_params(self) -> None:
        if isinstance(self.loss, tuple | list | int):
            raise ValueError(
                f"loss={self.loss!r}: the first argument is the loss since scikit-learn 1.7. Use "
                f"hidden_layer_sizes={self.loss!r}"
            )
        super()._validate_params()

    def _loss_row(self) -> LossRow:
        row = get_loss(self.loss) if isinstance(self.loss, str) else self.loss
        numbers = ["real", "nonnegative", *(["unit"] if isinstance(row, Loss) else [])]
        if row.target_kind not in numbers:
            raise ValueError(f"a regressor cannot minimise {row!r}, a loss for classes")
        return row

    def _loss_and_output(self, y: np.ndarray) -> tuple[LossRow, str]:
        row = self._loss_row()
        if not isinstance(row, Loss):
            return row, row.natural_output
        for output in ("identity", "exp", "sigmoid", "tanh"):
            if _covers(row, output):
                return row, output
        raise ValueError(
            f"{row!r} is defined for outputs in {list(row.domain)}, but those of a regressor are "
            "any numbers, positive, or within 0 to 1 or -1 to 1: register it with a domain that "
            "has one of these, and let value shift and scale them"
        )

    def _reported_share(self, loss: LossRow, n_outputs: int) -> float:
        return 1.0 / n_outputs if loss.name == "squared_error" else 1.0

    def _check_targets(self, X: Any, y: Any, incremental: bool, reset: bool) -> Any:
        return self._validate(X, y, reset, y_numeric=True)

    def _check_validation_targets(self, y: Any) -> np.ndarray:
        y = np.asarray(y, np.float64)
        return y.reshape(-1, 1) if y.ndim == 1 else y

    def _decode_targets(self, y: np.ndarray) -> np.ndarray:
        return y[:, 0] if y.shape[1] == 1 else y

    def _encode(self, y: np.ndarray, dtype: np.dtype, name: str = "y") -> np.ndarray:
        return encode_targets(self._loss_row(), y, len(y), y.shape[1], dtype, name)

    def _scorer(
        self, target: np.ndarray, weight: np.ndarray | None
    ) -> Callable[[np.ndarray], float]:
        """R squared, the mean over the outputs; NaN where an output is not finite."""
        w = 1.0 if weight is None else weight[:, None]
        spread = (w * (target - np.average(target, axis=0, weights=weight)) ** 2).sum(axis=0)
        varied = bool(spread.all())

        def score(outputs: np.ndarray) -> float:
            if not np.isfinite(outputs).all():
                return float("nan")
            with np.errstate(over="ignore"):  # of a training that diverges
                error = (w * (target - outputs) ** 2).sum(axis=0)
            if varied and error.all():
                return float((1.0 - error / spread).mean())
            # A constant target: 1 where it is met, else 0, as r2_score has it.
            scores = np.where(error == 0, 1.0, 0.0)
            np.subtract(
                1.0,
                np.divide(error, spread, out=np.ones_like(error), where=spread != 0),
                out=scores,
                where=(spread != 0) & (error != 0),
            )
            return float(scores.mean())

        return score

    # Public ---------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None, *, validation_data=None):
        """Fit to rows X and targets y.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero.
        validation_data : tuple (X, y) or (X, y, sample_weight), optional
            Judged after every epoch; early stopping uses it in place of rows held out.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            An argument of the wrong shape or value, or the training diverged.
        KeyboardInterrupt
            Ctrl-C. The model is that of the last whole step.
        """
        return self._fit(X, y, sample_weight, validation_data)

    @available_when(_check_partial_fit)
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """Train one epoch more on these rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. Weights that are all zero move nothing.

        Returns
        -------
        self
        """
        return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X):
        """Outputs for rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
        """
        outputs = self._outputs(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def score(self, X, y, sample_weight=None):
        """R squared; the mean over the outputs.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like of shape (n_samples,), optional

        Returns
        -------
        float
        """
        return super().score(X, y, sample_weight)

    @classmethod
    def from_weights(cls, coefs, intercepts, **params):
        """A regressor with weights set by hand.

        Parameters
        ----------
        coefs : sequence of array-like, each (fan_in, fan_out)
        intercepts : sequence of array-like, each (fan_out,)
        **params
            Parameters of the class, such as activation and loss.

        Returns
        -------
        MLPRegressor
            Fitted, with copies of the weights.
        """
        self = cls._from_arrays(coefs, intercepts, params)
        return self._name_output(self._loss_and_output(np.zeros((1, self.n_outputs_)))[1])
