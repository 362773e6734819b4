"""Perceptron: scikit-learn's interface and numbers, learned in a compiled loop."""

from __future__ import annotations

import time
import warnings
from itertools import count
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import scipy.sparse as sp
from joblib import effective_n_jobs
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Perceptron as _SklearnPerceptron
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from fastnn.backends.base import StopFlag
from fastnn.plan import Plan, check_memory
from fastnn.sklearn._common import Attempt, attempt_of, n_threads_of, native_order
from fastnn.sklearn._training import BACKEND
from fastnn.trainer import _interrupts_stop

__all__ = ["Perceptron"]

_PENALTIES = {None: 0, "l1": 1, "l2": 2, "elasticnet": 3}
_MAX_INT = np.iinfo(np.int32).max
# Values of an epoch over all classes that make another thread worth its start.
_WORK_PER_THREAD = 400_000


class _Scorer:
    """coef_ and intercept_ as views into the parameters of a network without hidden layers."""

    def __init__(self, parameters: np.ndarray, n_features: int, n_units: int) -> None:
        self.parameters = parameters
        self.plan = Plan((n_features, n_units), parameters.dtype, (), "identity", ())
        (weights,), (self.intercept,) = self.plan.views(parameters)
        self.coef = weights.T
        # None: rows of another kind; the careful way takes them.
        self.predict = BACKEND.predictor(self.plan, parameters, lambda X, out: None)


class Perceptron(_SklearnPerceptron):
    """scikit-learn's Perceptron at this package's speed.

    Learns from one row at a time, each class against the rest:
    ``w += eta0 * y * x`` where ``y * (w @ x + b) <= 0``, y being +1 or -1 (Rosenblatt 1958). It is
    a `sklearn.linear_model.Perceptron` in every parameter, default and attribute; n_threads is
    more.

    Parameters
    ----------
    penalty : {"l2", "l1", "elasticnet"} or None, default None
    alpha : float, default 0.0001
        Of the penalty.
    l1_ratio : float, default 0.15
        Share of L1 in "elasticnet".
    fit_intercept : bool, default True
    max_iter : int, default 1000
        Epochs.
    tol : float or None, default 1e-3
        Stop when the objective, or the score of the rows held out, has not been better by this for
        n_iter_no_change epochs. None: go on to max_iter.
    shuffle : bool, default True
    verbose : int, default 0
        Print what each epoch did.
    eta0 : float, default 1.0
    n_jobs : int, optional
        Threads for the classes. None leaves it to n_threads.
    random_state : int, RandomState instance or None, default 0
        Draws the orders and the hold-out as scikit-learn draws them.
    early_stopping : bool, default False
        Judge every epoch by rows held out, a share of each class.
    validation_fraction : float, default 0.1
    n_iter_no_change : int, default 5
    class_weight : dict, "balanced" or None, default None
    warm_start : bool, default False
        Begin with the weights of the fit before.
    n_threads : int, optional
        By default 1 inside a worker of joblib or Dask, else FASTNN_NUM_THREADS, else
        OMP_NUM_THREADS, else the CPUs of this process. Results do not depend on it.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted.
    coef_ : ndarray of shape (1, n_features) or (n_classes, n_features)
        One row where there are two classes.
    intercept_ : ndarray of shape (1,) or (n_classes,)
    n_iter_ : int
        Epochs of the last call; of the class that took the most.
    t_ : float
        ``1 + n_iter_ * n_samples``, summed over calls of `partial_fit`.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where X had names that are strings.

    Raises
    ------
    ValueError, TypeError
        From `fit`: a parameter, X, y or a weight is wrong, or the weights outgrew the dtype. An
        estimator that was fitted before is then what it was; one that was not, and whose training
        got so far, has the weights before the epoch that diverged.

    See Also
    --------
    fastnn.Perceptron : Without scikit-learn: all units see a row before any of them moves.

    Notes
    -----
    With the same random_state, scikit-learn's own estimator gives the same coef_, intercept_ and
    n_iter_: every sum is taken in its order. These differences are meant:

    - Ctrl-C raises KeyboardInterrupt within 50 ms and leaves the weights of the last whole row.
    - A call that fails leaves a fitted estimator as it was.
    - A weight below 0 is an error. So is a warm start with other classes than before.
    - `partial_fit` with weights that are all 0 changes nothing.
    - Weights that outgrow the dtype are an error.
    - coef_init and intercept_init are copied; scikit-learn learns in the caller's array.
    - intercept_ has the dtype of coef_; with two classes and float32 rows, scikit-learn's is
      float64.
    - Sparse X may have 64-bit indices. Indices out of range are an error.
    - float32 of another byte order stays float32. After `partial_fit` with float64, float32 rows
      are taken as float64.
    - The classes share the threads that n_threads says; the weights are the same bits.
    - Two threads that fit one estimator at a time get a RuntimeError.

    Kept as they are, since the numbers are to agree: `partial_fit` with an int as random_state
    takes the rows in the same order in every call; with a penalty, the objective counts the norm
    of the features that the last mistake touched, and early stopping scores the weights before
    they are scaled; the intercept of sparse X learns at a hundredth of the rate; and the rows seen
    first weigh more, so that a weight of 2 is not the same as a row twice.

    Rows that lie contiguous are read where they lie; other dense X is copied once.

    References
    ----------
    Rosenblatt 1958, The perceptron, doi 10.1037/h0042519.
    Tsuruoka, Tsujii & Ananiadou 2009, Stochastic gradient descent training for L1-regularized
    log-linear models with cumulative penalty, doi 10.3115/1687878.1687946.

    Examples
    --------
    >>> from fastnn.sklearn import Perceptron
    >>> clf = Perceptron(class_weight="balanced").fit(X_train, y_train)
    >>> clf.score(X_test, y_test)
    """

    _parameter_constraints: ClassVar[dict] = {
        **_SklearnPerceptron._parameter_constraints,
        "n_threads": [None, Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        penalty=None,
        alpha=0.0001,
        l1_ratio=0.15,
        fit_intercept=True,
        max_iter=1000,
        tol=1e-3,
        shuffle=True,
        verbose=0,
        eta0=1.0,
        n_jobs=None,
        random_state=0,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=5,
        class_weight=None,
        warm_start=False,
        n_threads=None,
    ):
        super().__init__(
            penalty=penalty,
            alpha=alpha,
            l1_ratio=l1_ratio,
            fit_intercept=fit_intercept,
            max_iter=max_iter,
            tol=tol,
            shuffle=shuffle,
            verbose=verbose,
            eta0=eta0,
            n_jobs=n_jobs,
            random_state=random_state,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            n_iter_no_change=n_iter_no_change,
            class_weight=class_weight,
            warm_start=warm_start,
        )
        self.n_threads = n_threads

    # Public ---------------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, coef_init=None, intercept_init=None, sample_weight=None):
        """Fit to rows X and labels y.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        coef_init : array-like of the shape of coef_, optional
            Weights to begin with; zeros by default.
        intercept_init : array-like of the shape of intercept_, optional
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero. Multiplied with class_weight.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            An argument of the wrong shape or value, or the weights outgrew the dtype.
        KeyboardInterrupt
            Ctrl-C. The model is that of the last whole row.
        """
        with attempt_of(self, "coef_") as attempt:
            return self._learn(attempt, X, y, coef_init, intercept_init, sample_weight)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Learn one epoch more from these rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
        y : array-like of shape (n_samples,)
        classes : array-like of shape (n_classes,), optional
            All classes that will ever come; needed in the first call.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. Weights that are all zero move nothing.

        Returns
        -------
        self
        """
        with attempt_of(self, "coef_") as attempt:
            return self._learn_more(attempt, X, y, classes, sample_weight)

    def decision_function(self, X):
        """``X @ coef_.T + intercept_``.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            With two classes, one score: above 0 for ``classes_[1]``.
        """
        attributes = self.__dict__
        scorer = attributes.get("_scorer")
        if (
            scorer is None
            or attributes.get("coef_") is not scorer.coef
            or attributes.get("intercept_") is not scorer.intercept
        ):
            return super().decision_function(X)
        if type(X) is np.ndarray and X.ndim == 2 and "feature_names_in_" not in attributes:
            scores = scorer.predict(X)
            if scores is not None:
                return scores[:, 0] if scores.shape[1] == 1 else scores
        check_is_fitted(self)
        X = validate_data(self, native_order(X), accept_sparse="csr", reset=False)
        dtype = scorer.plan.dtype
        if sp.issparse(X) or np.result_type(X.dtype, dtype) != dtype:
            scores = np.asarray(safe_sparse_dot(X, self.coef_.T)) + scorer.intercept
        else:
            if X.dtype.kind == "f" and X.dtype.itemsize == 2:
                X = X.astype(dtype)
            scores = np.empty((len(X), scorer.plan.n_outputs), dtype)
            BACKEND.predict(scorer.plan, scorer.parameters, X, scores, n_threads_of(self.n_threads))
        return scores[:, 0] if scores.shape[1] == 1 else scores

    def predict(self, X):
        """Labels of rows.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        scores = self.decision_function(X)
        indices = (scores > 0).view(np.int8) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_.take(indices)

    # Learning -------------------------------------------------------------------------------------

    def _learn(
        self,
        attempt: Attempt,
        X: Any,
        y: Any,
        coef_init: Any,
        intercept_init: Any,
        sample_weight: Any,
    ) -> Perceptron:
        X, y = self._check_rows(X, y, True, [np.float64, np.float32])
        classes = unique_labels(y)
        if len(classes) < 2:
            raise ValueError(
                "The number of classes has to be greater than one; got 1 class: "
                f"every label is {classes[0]!r}"
            )
        weight = self._check_weight(sample_weight, X, allow_zeros=bool(self.early_stopping))
        if self.warm_start and hasattr(self, "coef_"):
            if not np.array_equal(self.classes_, classes):
                raise ValueError(
                    f"warm_start goes on with the classes {self.classes_}, but y has {classes}: "
                    "fit with warm_start=False, or give y all classes"
                )
            coef_init = self.coef_ if coef_init is None else coef_init
            intercept_init = self.intercept_ if intercept_init is None else intercept_init
        n_units = 1 if len(classes) == 2 else len(classes)
        W, intercepts = self._first_weights(X, n_units, coef_init, intercept_init)
        class_weight = compute_class_weight(self.class_weight, classes=classes, y=y)
        self.t_ = 1.0
        max_iter = int(self.max_iter)
        self._run(attempt, X, y, classes, weight, class_weight, W, intercepts, max_iter)
        if self.tol is not None and self.tol > -np.inf and self.n_iter_ == self.max_iter:
            warnings.warn(
                "Maximum number of iteration reached before convergence. Consider increasing "
                "max_iter to improve the fit.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return self

    def _learn_more(
        self, attempt: Attempt, X: Any, y: Any, classes: Any, sample_weight: Any
    ) -> Perceptron:
        first = not hasattr(self, "coef_")
        if first and self.early_stopping:
            raise ValueError("early_stopping should be False with partial_fit")
        if first and isinstance(self.class_weight, str):
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit. In order to use "
                "'balanced' weights, use compute_class_weight('balanced', classes=classes, y=y). "
                "In place of y you can use a large enough sample of the full training set target "
                "to properly estimate the class frequency distributions. Pass the resulting "
                "weights as the class_weight parameter."
            )
        X, y = self._check_rows(
            X, y, first, [np.float64, np.float32] if first else self.coef_.dtype
        )
        if first:
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit.")
            classes = unique_labels(classes)
            if len(classes) < 2:
                raise ValueError(
                    f"The number of classes has to be greater than one; got 1 class: {classes[0]!r}"
                )
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(
                f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                f"{self.classes_!r}"
            )
        else:
            classes = self.classes_
        weight = self._check_weight(sample_weight, X, allow_zeros=True)
        class_weight = compute_class_weight(self.class_weight, classes=classes, y=y)
        n_units = 1 if len(classes) == 2 else len(classes)
        if first:
            W, intercepts = self._first_weights(X, n_units, None, None)
            self.t_ = 1.0
        else:
            W, intercepts = self._first_weights(X, n_units, self.coef_, self.intercept_)
        if weight is not None and not weight.any():
            if first:
                self._keep(classes, W, intercepts)
                self.n_iter_ = 0
            return self
        self._run(attempt, X, y, classes, weight, class_weight, W, intercepts, 1)
        return self

    def _check_rows(self, X: Any, y: Any, reset: bool, dtype: Any) -> Any:
        X, y = validate_data(
            self, native_order(X), y, accept_sparse="csr", dtype=dtype, reset=reset
        )
        if not sp.issparse(X) and (
            (X.strides[1] != X.itemsize and X.shape[1] > 1) or X.strides[0] % X.itemsize
        ):
            X = np.ascontiguousarray(X)
        return X, y

    @staticmethod
    def _check_weight(sample_weight: Any, X: Any, allow_zeros: bool) -> np.ndarray | None:
        if sample_weight is None:
            return None
        return _check_sample_weight(
            sample_weight,
            X,
            dtype=X.dtype,
            ensure_non_negative=True,
            allow_all_zero_weights=allow_zeros,
        )

    @staticmethod
    def _first_weights(
        X: Any, n_units: int, coef_init: Any, intercept_init: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the weights (n_units, n_features), and float64 intercepts, to begin with."""
        n_features = X.shape[1]
        check_memory(n_units * n_features * X.dtype.itemsize, f"{n_units} units")
        W = np.zeros((n_units, n_features), X.dtype)
        intercepts = np.zeros(n_units)
        if coef_init is not None:
            coef = coef_init.toarray() if sp.issparse(coef_init) else np.asarray(coef_init)
            if coef.shape != W.shape and not (n_units == 1 and coef.shape == (n_features,)):
                raise ValueError(
                    f"Provided coef_init does not match dataset: expected shape {W.shape}, got "
                    f"{coef.shape}"
                )
            W[...] = coef
        if intercept_init is not None:
            intercept = np.asarray(intercept_init)
            if intercept.shape != (n_units,) and not (n_units == 1 and intercept.shape == ()):
                raise ValueError(
                    f"Provided intercept_init does not match dataset: expected shape ({n_units},), "
                    f"got {intercept.shape}"
                )
            intercepts[...] = intercept.astype(X.dtype)
        if not (np.isfinite(W).all() and np.isfinite(intercepts).all()):
            raise ValueError("coef_init or intercept_init has NaN or infinity")
        return W, intercepts

    def _hold_out(self, labels: np.ndarray, weight: np.ndarray | None) -> np.ndarray | None:
        """A mask of the rows held out, drawn as scikit-learn draws it."""
        if not self.early_stopping:
            return None
        splitter = StratifiedShuffleSplit(
            test_size=self.validation_fraction, random_state=self.random_state
        )
        _, held = next(splitter.split(np.zeros((len(labels), 1)), labels))
        if weight is not None and not weight[held].any():
            raise ValueError(
                "The sample weights for validation set are all zero, consider using a different "
                "random state."
            )
        mask = np.zeros(len(labels), np.uint8)
        mask[held] = 1
        return mask

    def _draw(
        self, labels: np.ndarray, n_units: int, weight: np.ndarray | None
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The rows held out, and a seed for the order of each unit."""
        if n_units == 1:
            stream = check_random_state(self.random_state)
            stream.randint(1, _MAX_INT)  # scikit-learn draws a number here that it does not use
            held = self._hold_out(labels, weight)
            return held, np.array([stream.randint(_MAX_INT)], np.uint32)
        held = self._hold_out(labels, weight)
        seeds = check_random_state(self.random_state).randint(_MAX_INT, size=n_units)
        of_units = np.empty(n_units, np.uint32)
        stream = np.random.RandomState()  # to make one takes a hundred times as long as to seed it
        for unit, seed in enumerate(seeds):
            stream.seed(seed)
            stream.randint(1, _MAX_INT)
            of_units[unit] = stream.randint(_MAX_INT)
        return held, of_units

    def _run(
        self,
        attempt: Attempt,
        X: Any,
        y: np.ndarray,
        classes: np.ndarray,
        weight: np.ndarray | None,
        class_weight: np.ndarray,
        W: np.ndarray,
        intercepts: np.ndarray,
        max_iter: int,
    ) -> None:
        n_units = len(W)
        labels = np.searchsorted(classes, y).astype(np.int32)
        known = classes[np.minimum(labels, len(classes) - 1)] == y
        if not np.all(known):
            # As in scikit-learn: a label that no class has stands on the other side of all.
            labels[~known] = -1
        held, seeds = self._draw(labels, n_units, weight)
        if n_units == 1:
            positives = np.array([1], np.int32)
            of_classes = np.ascontiguousarray(class_weight.reshape(1, 2), np.float64)
        else:
            positives = np.arange(n_units, dtype=np.int32)
            of_classes = np.column_stack([np.ones(n_units), class_weight])
        learner = BACKEND.online(
            _csr_parts(X) if sp.issparse(X) else X,
            X.shape[1],
            labels,
            weight,
            held,
            W,
            intercepts,
            positives,
            np.ascontiguousarray(of_classes, np.float64),
            seeds,
            _PENALTIES[self.penalty],
            float(self.alpha),
            float(self.l1_ratio),
            float(self.eta0),
            bool(self.fit_intercept),
            bool(self.shuffle),
            -np.inf if self.tol is None else float(self.tol),
            int(self.n_iter_no_change),
            not self.early_stopping,
            bool(self.verbose),
        )
        stop = StopFlag()
        start = W.copy(), intercepts.copy()
        with _interrupts_stop(stop):
            exception = self._run_units(learner, W, labels, weight, held, X, max_iter, stop)
            states = [learner.state(unit) for unit in range(n_units)]
            for unit, (_, _, _, _, intercept, _) in enumerate(states):
                learner.end(unit)
                intercepts[unit] = intercept
            self._keep(classes, W, intercepts)
            self.n_iter_ = max(epoch - (status == "diverged") for status, epoch, *_ in states)
            self.t_ += self.n_iter_ * X.shape[0]
            attempt.epochs = lambda: self.n_iter_
            # Rows that moved nothing are as good as rows that were not seen.
            moved = not all(map(np.array_equal, start, (W, intercepts)))
            attempt.progress = lambda: self.n_iter_ + moved
        if exception is not None:
            raise exception
        diverged = [epoch for status, epoch, *_ in states if status == "diverged"]
        if diverged:
            raise ValueError(
                f"Floating-point under-/overflow occurred at epoch #{diverged[0]}. Scaling input "
                "data with StandardScaler or MinMaxScaler might help."
            )

    def _run_units(
        self,
        learner: Any,
        W: np.ndarray,
        labels: np.ndarray,
        weight: np.ndarray | None,
        held: np.ndarray | None,
        X: Any,
        max_iter: int,
        stop: StopFlag,
    ) -> BaseException | None:
        """All units to their end; what a signal raised."""
        if held is None and not self.verbose:
            return learner.run(0, len(W), max_iter, self._threads(X, len(W)), stop.flag)
        rows = None if held is None else np.flatnonzero(held)
        for unit, weights in enumerate(W):
            epochs = _Epochs(self, learner, unit, weights, len(labels), weight, rows, stop)
            exception = epochs.run(max_iter)
            if exception is not None or stop.is_set() or learner.state(unit)[0] == "diverged":
                return exception
        return None

    def _threads(self, X: Any, n_units: int) -> int:
        if self.n_jobs is not None:
            n_threads = effective_n_jobs(self.n_jobs)
        else:
            n_threads = n_threads_of(self.n_threads)
        size = X.nnz if sp.issparse(X) else X.size
        return int(min(n_threads, n_units, 1 + size * n_units // _WORK_PER_THREAD))

    # Keeping --------------------------------------------------------------------------------------

    def _keep(self, classes: np.ndarray, W: np.ndarray, intercepts: np.ndarray) -> None:
        n_units, n_features = W.shape
        parameters = np.empty((n_features + 1) * n_units, W.dtype)
        parameters[: W.size].reshape(n_features, n_units)[...] = W.T
        with np.errstate(over="ignore"):
            parameters[W.size :] = intercepts
        self.classes_ = classes
        self._bind(_Scorer(parameters, n_features, n_units))

    def _bind(self, scorer: _Scorer) -> None:
        self.coef_ = scorer.coef
        self.intercept_ = scorer.intercept
        self._scorer = scorer

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        scorer = state.pop("_scorer", None)
        if (
            scorer is not None
            and state["coef_"] is scorer.coef
            and state["intercept_"] is scorer.intercept
        ):
            # One array, which joblib can map into memory.
            del state["coef_"], state["intercept_"]
            state["_parameters"] = (scorer.parameters, *scorer.plan.layer_sizes)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        parameters = state.pop("_parameters", None)
        super().__setstate__(state)
        if parameters is not None:
            array, n_features, n_units = parameters
            self._bind(_Scorer(np.asarray(array), n_features, n_units))


class _Epochs:
    """The epochs of one unit where each is judged or shown in Python."""

    def __init__(
        self,
        estimator: Perceptron,
        learner: Any,
        unit: int,
        weights: np.ndarray,
        n_rows: int,
        sample_weight: np.ndarray | None,
        held: np.ndarray | None,
        stop: StopFlag,
    ) -> None:
        self.estimator = estimator
        self.learner = learner
        self.unit = unit
        self.weights = weights
        self.held = held
        self.stop = stop
        self.n_train = n_rows - (0 if held is None else len(held))
        dtype = weights.dtype
        if held is not None:
            self.held_weight = (
                np.ones(len(held), dtype) if sample_weight is None else sample_weight[held]
            )

    def run(self, max_iter: int) -> BaseException | None:
        estimator, unit, began = self.estimator, self.unit, time.time()
        tol = -np.inf if estimator.tol is None else estimator.tol
        best, no_improvement = -np.inf, 0
        for epoch in count(1):
            if estimator.verbose:
                print(f"-- Epoch {epoch}")  # noqa: T201
            exception = self.learner.run(unit, unit + 1, epoch, 1, self.stop.flag)
            status = self.learner.state(unit)[0]
            if exception is not None or self.stop.is_set() or status == "diverged":
                return exception
            converged = status == "converged"
            score = None
            if self.held is not None:
                correct = self.learner.judge(unit, self.held).view(bool)
                score = float(np.average(correct, weights=self.held_weight))
                worse = tol > -np.inf and score < best + tol
                no_improvement = no_improvement + 1 if worse else 0
                best = max(best, score)
                converged = no_improvement >= estimator.n_iter_no_change
            if estimator.verbose:
                self._show(score, time.time() - began)
                if converged:
                    seconds = time.time() - began
                    print(f"Convergence after {epoch} epochs took {seconds:.2f} seconds")  # noqa: T201
            if converged or epoch == max_iter:
                return None
        raise AssertionError("count() does not end")

    def _show(self, score: float | None, seconds: float) -> None:
        _, epoch, loss, objective, intercept, norm = self.learner.state(self.unit)
        print(  # noqa: T201
            f"Norm: {norm:.2f}, NNZs: {np.count_nonzero(self.weights)}, Bias: {intercept:.6f}, "
            f"T: {epoch * self.n_train}, Avg. loss: {loss:f}, Objective: {objective:f}"
            + ("" if score is None else f", Validation score: {score:f}")
        )
        print(f"Total training time: {seconds:.2f} seconds.")  # noqa: T201


def _csr_parts(X: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(data, indices, indptr) of a CSR matrix, both kinds of indices of one width."""
    indices, indptr = X.indices, X.indptr
    if indices.dtype != indptr.dtype or indices.dtype not in (np.int32, np.int64):
        indices, indptr = indices.astype(np.int64), indptr.astype(np.int64)
    return (
        np.ascontiguousarray(X.data),
        np.ascontiguousarray(indices),
        np.ascontiguousarray(indptr),
    )
