"""The simple perceptron: threshold units that learn from their mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastnn.backends import BACKENDS, get_backend
from fastnn.backends.base import StopFlag
from fastnn.errors import DivergenceError
from fastnn.plan import Plan, check_memory
from fastnn.threads import resolve_n_threads
from fastnn.validation import (
    as_real_array,
    check_choice,
    check_dtype,
    check_finite,
    check_flag,
    check_int,
    check_real,
    check_X,
    resolve_seed,
)

__all__ = ["Perceptron"]


class Perceptron:
    """Threshold units that learn by error correction, one row at a time.

    A unit computes ``u = x @ w + b`` and ``y = 1 where u > 0 else 0``. After each row
    ``w += learning_rate * (t - y) * x`` and ``b += learning_rate * (t - y)``; learning ends with
    the first epoch without a mistake. Where a plane divides the classes, that epoch comes
    (Novikoff 1962).

    Parameters
    ----------
    learning_rate : float, default 1.0
        Greater than 0. As all weights start at 0, it scales them and changes no decision, apart
        from rounding.
    max_epochs : int, default 1000
        Where no plane divides the classes, learning ends here.
    shuffle : bool, default False
        Draw a new order of the rows for every epoch.
    seed : int, optional
        Of the orders, ``0 <= seed < 2**64``. By default a fresh one is drawn, and kept.
    dtype : "float32" or "float64", default "float64"
        Of the weights and of `decision_function`.
    backend : str, default "native"
        Who computes: "native" (compiled; several outputs are shared among as many threads as
        FASTNN_NUM_THREADS allows, else as there are CPUs, without changing a bit), "numba"
        (compiled when first used, where the extension is not to be had), or "reference" (plain
        NumPy).

    Attributes
    ----------
    weights : ndarray of shape (n_features,) or (n_features, n_outputs)
    bias : float, or ndarray of shape (n_outputs,)
    errors_ : ndarray of shape (n_epochs,), int64
        Mistakes per epoch, over all outputs.
    converged_ : bool
        Whether the last epoch made no mistake.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value.
    BackendUnavailable
        The backend does not exist on this machine.

    References
    ----------
    Rosenblatt (1958), The perceptron, doi 10.1037/h0042519.
    Novikoff (1962), On convergence proofs on perceptrons.

    Examples
    --------
    >>> X = [[0, 0], [0, 1], [1, 0], [1, 1]]
    >>> unit = fastnn.Perceptron().fit(X, [0, 0, 0, 1])
    >>> unit.predict(X)
    array([0, 0, 0, 1])
    """

    errors_: np.ndarray
    converged_: bool

    def __init__(
        self,
        *,
        learning_rate: float = 1.0,
        max_epochs: int = 1000,
        shuffle: bool = False,
        seed: int | None = None,
        dtype: npt.DTypeLike = "float64",
        backend: str = "native",
    ) -> None:
        self.learning_rate = check_real(learning_rate, "learning_rate", low=0, low_open=True)
        self.max_epochs = check_int(max_epochs, "max_epochs", low=1)
        self.shuffle = check_flag(shuffle, "shuffle")
        self.seed = resolve_seed(seed)
        self.dtype = check_dtype(dtype)
        self.backend = check_choice(backend, "backend", BACKENDS)
        get_backend(self.backend)
        # A network without hidden layers; flat parameters as there: the weights, then the bias.
        self._plan: Plan | None = None
        self._parameters = np.empty(0, self.dtype)
        self._one_output = True

    @classmethod
    def from_weights(
        cls,
        weights: Any,
        bias: Any,
        *,
        dtype: npt.DTypeLike = "float64",
        backend: str = "native",
    ) -> Perceptron:
        """Units with weights set by hand.

        Parameters
        ----------
        weights : array-like of shape (n_features,) or (n_features, n_outputs)
        bias : float, or array-like of shape (n_outputs,)

        Returns
        -------
        Perceptron

        Raises
        ------
        TypeError, ValueError
            Not finite numbers of these shapes.

        Examples
        --------
        >>> fastnn.Perceptron.from_weights([1, 1], -1.5).predict([[0, 1], [1, 1]])  # AND
        array([0, 1])
        """
        unit = cls(dtype=dtype, backend=backend)
        arrays = []
        for name, value in (("weights", weights), ("bias", bias)):
            array = as_real_array(value, name, unit.dtype)
            check_finite(np.atleast_1d(array), name, unit.dtype)
            arrays.append(array.astype(unit.dtype))
        W, b = arrays
        if W.ndim not in (1, 2) or W.size == 0:
            raise ValueError(
                f"weights must have shape (n_features,) or (n_features, n_outputs), got {W.shape}"
            )
        if b.shape != W.shape[1:]:
            expected = "a number" if W.ndim == 1 else f"of shape {W.shape[1:]}"
            raise ValueError(f"bias must be {expected}, one per output, got shape {b.shape}")
        unit._bind(np.concatenate([W.ravel(), b.ravel()]), W.shape)
        return unit

    def _bind(self, parameters: np.ndarray, shape: tuple[int, ...]) -> None:
        self._plan = _plan(shape[0], 1 if len(shape) == 1 else shape[1], self.dtype)
        self._parameters = parameters
        self._one_output = len(shape) == 1

    def _bound(self) -> Plan:
        if self._plan is None:
            raise AttributeError(
                "this Perceptron has no weights yet: call fit, or use Perceptron.from_weights"
            )
        return self._plan

    @property
    def weights(self) -> np.ndarray:
        W = self._bound().views(self._parameters)[0][0]
        return W[:, 0] if self._one_output else W

    @property
    def bias(self) -> Any:
        b = self._bound().views(self._parameters)[1][0]
        return float(b[0]) if self._one_output else b

    def fit(self, X: Any, t: Any) -> Perceptron:
        """Learn from zero weights until an epoch makes no mistake.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        t : array-like of shape (n_samples,) or (n_samples, n_outputs)
            0 or 1.

        Returns
        -------
        Perceptron
            This one.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, shape or value; nothing has changed.
        DivergenceError
            The weights outgrew the dtype; nothing has changed.
        """
        X = check_X(X, None, self.dtype)
        n, n_features = X.shape
        if not n or not n_features:
            raise ValueError(f"X has shape {X.shape}, but at least one row and feature is needed")
        targets = _check_targets(t, n)
        shape = (n_features, *targets.shape[1:])
        plan = _plan(n_features, targets.size // n, self.dtype)
        check_memory(plan.n_bytes, f"weights of shape {shape}")
        parameters = plan.allocate(1)[0]
        (weights,), (bias,) = plan.views(parameters)
        errors, _, exception = get_backend(self.backend).perceptron_fit(
            X,
            targets.reshape(n, -1),
            weights,
            bias,
            self.learning_rate,
            self.max_epochs,
            self.shuffle,
            self.seed,
            resolve_n_threads(),
            StopFlag(),
        )
        if exception is not None:
            raise exception
        if not np.isfinite(parameters).all():
            raise DivergenceError(
                f"the weights outgrew {self.dtype}: scale the features down", len(errors)
            )
        self._bind(parameters, shape)
        self.errors_ = np.asarray(errors, np.int64)
        self.converged_ = bool(self.errors_[-1] == 0)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """``u = X @ weights + bias``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)

        Raises
        ------
        AttributeError
            There are no weights yet.
        TypeError, ValueError
            X of the wrong type, shape or value.
        """
        plan = self._bound()
        X = check_X(X, plan.n_features, plan.dtype)
        scores = np.empty((len(X), plan.n_outputs), plan.dtype)
        get_backend(self.backend).predict(plan, self._parameters, X, scores, resolve_n_threads())
        return scores[:, 0] if self._one_output else scores

    def predict(self, X: Any) -> np.ndarray:
        """1 where `decision_function` is greater than 0, else 0.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs), int64

        Raises
        ------
        AttributeError
            There are no weights yet.
        TypeError, ValueError
            X of the wrong type, shape or value.
        """
        return (self.decision_function(X) > 0).astype(np.int64)

    def __repr__(self) -> str:
        state = "no weights" if self._plan is None else f"weights of shape {self.weights.shape}"
        return f"Perceptron({state}, dtype='{self.dtype}')"


def _plan(n_features: int, n_outputs: int, dtype: np.dtype) -> Plan:
    return Plan((n_features, n_outputs), dtype, (), "identity", ())


def _check_targets(t: Any, n_samples: int) -> np.ndarray:
    """Targets as uint8 of their own shape, C-contiguous."""
    targets = as_real_array(t, "t", np.dtype(np.float64))
    if targets.ndim not in (1, 2) or len(targets) != n_samples or targets.size == 0:
        raise ValueError(
            f"t must have shape ({n_samples},) or ({n_samples}, n_outputs), got {targets.shape}"
        )
    good = (targets == 0) | (targets == 1)
    if not good.all():
        raise ValueError(
            f"t must be 0 or 1, got {targets[~good][0]}: encode the classes as 0 and 1"
        )
    return np.ascontiguousarray(targets, np.uint8)
