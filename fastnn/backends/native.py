"""The compiled backend: C kernels chosen for this machine, driven without the GIL."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from fastnn.backends import _native
from fastnn.backends.base import Backend, StopFlag, TrainJob, TrainResult
from fastnn.tables.activations import get_activation
from fastnn.tables.losses import LossRow, get_loss

__all__ = ["NativeBackend"]

_ACTIVATIONS = {name: i for i, name in enumerate(_native.activation_names())}
_LOSSES = {name: i for i, name in enumerate(_native.loss_names())}
_OPTIMIZERS = {name: i for i, name in enumerate(_native.optimizer_names())}


def _activation(name: str, dtype: np.dtype) -> Any:
    """A row of activations.def, or the machine code of the user's own activation."""
    if name in _ACTIVATIONS:
        return _ACTIVATIONS[name]
    return get_activation(name).compiled(dtype)  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _native_plan(plan: Any) -> _native.NativePlan:
    """A Plan in the driver's terms. It holds shapes and table rows, no arrays."""
    return _native.NativePlan(
        plan.layer_sizes,
        plan.dtype == np.float32,
        [_activation(name, plan.dtype) for name in (*plan.activations, plan.output)],
        plan.dropout,
    )


_USER = -1  # FNN_USER of csrc/fastnn.h


def _targets(
    y: np.ndarray, loss: LossRow
) -> tuple[np.ndarray | None, np.ndarray | None, int, float]:
    """(labels, targets, row of losses.def, its parameter) as the driver takes them."""
    labels, targets = (y, None) if y.ndim == 1 else (None, y)
    parameter = next(iter(loss.params.values()), 0.0)
    return labels, targets, _LOSSES.get(loss.name, _USER), parameter


def _user_loss(loss: LossRow, dtype: np.dtype) -> int:
    """The address of the user's own loss, which lives as long as its name: for ever. Else 0."""
    if loss.name in _LOSSES:
        return 0
    return get_loss(loss.name).compiled(dtype).addresses[0]  # type: ignore[attr-defined]


class NativeBackend(Backend):
    """See `fastnn.backends.base.Backend`; same bits for any number of threads and any batch."""

    name = "native"
    checks_rows = True
    takes_sparse_rows = True

    def predictor(
        self, plan: Any, parameters: np.ndarray, fallback: Callable[[Any, Any], np.ndarray]
    ) -> Callable[[Any, Any], np.ndarray]:
        """A callable (X, out) with the shortest way to the kernels for rows that allow it."""
        return _native.Predictor(_native_plan(plan), parameters, fallback).predict

    def predict(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, out: np.ndarray, n_threads: int
    ) -> np.ndarray:
        outputs = [None] * (plan.n_layers - 1) + [out]
        _native.predict(_native_plan(plan), parameters, X, outputs, None, False, n_threads)
        return out

    def predict_checked(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, out: np.ndarray, n_threads: int
    ) -> bool:
        """`predict` for rows that nobody has checked; False where one is not finite."""
        outputs = [None] * (plan.n_layers - 1) + [out]
        return _native.predict(_native_plan(plan), parameters, X, outputs, None, True, n_threads)

    def layer_outputs(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> list[np.ndarray]:
        outputs = [np.empty((len(X), width), plan.dtype) for width in plan.layer_sizes[1:]]
        _native.predict(_native_plan(plan), parameters, X, outputs, None, False, n_threads)
        return outputs

    def input_gradient(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> np.ndarray:
        jacobian = np.empty((len(X), plan.n_outputs, plan.n_features), plan.dtype)
        nothing = [None] * plan.n_layers
        _native.predict(_native_plan(plan), parameters, X, nothing, jacobian, False, n_threads)
        return jacobian

    def loss(
        self,
        plan: Any,
        parameters: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        loss: LossRow,
        n_threads: int,
    ) -> float:
        labels, targets, row, parameter = _targets(y, loss)
        native_plan = _native_plan(plan)
        return _native.loss_and_gradient(
            native_plan,
            X,
            labels,
            targets,
            weight,
            row,
            parameter,
            parameters,
            0.0,
            None,
            n_threads,
            _user_loss(loss, plan.dtype),
        )

    def loss_and_gradient(
        self,
        plan: Any,
        parameters: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        loss: LossRow,
        l2: float,
        n_threads: int,
    ) -> tuple[float, np.ndarray]:
        labels, targets, row, parameter = _targets(y, loss)
        gradient = np.empty(plan.n_parameters, plan.dtype)
        native_plan = _native_plan(plan)
        value = _native.loss_and_gradient(
            native_plan,
            X,
            labels,
            targets,
            weight,
            row,
            parameter,
            parameters,
            l2,
            gradient,
            n_threads,
            _user_loss(loss, plan.dtype),
        )
        return value, gradient

    def train(
        self, plan: Any, parameters: np.ndarray, slots: np.ndarray, job: TrainJob
    ) -> TrainResult:
        labels, targets, row, parameter = _targets(job.y, job.loss)
        return TrainResult(
            *_native.train(
                _native_plan(plan),
                job.X,
                labels,
                targets,
                job.weight,
                row,
                parameter,
                parameters,
                slots,
                _OPTIMIZERS[job.optimizer.kernel],
                job.scalars,
                job.orders,
                job.batch_size,
                job.n_epochs,
                job.l2,
                job.clip_norm,
                job.dropout_seed,
                job.dropout_stream,
                job.first_epoch,
                job.n_threads,
                job.stop.flag,
                job.step_l2,
                job.step_record,
                job.check_rows,
                _user_loss(job.loss, plan.dtype),
            )
        )

    def perceptron_fit(
        self,
        X: np.ndarray,
        t: np.ndarray,
        weights: np.ndarray,
        bias: np.ndarray,
        learning_rate: float,
        max_epochs: int,
        shuffle: bool,
        seed: int,
        n_threads: int,
        stop: StopFlag,
    ) -> tuple[np.ndarray, str, BaseException | None]:
        units = np.ascontiguousarray(weights.T)
        result = _native.perceptron_fit(
            X, t, units, bias, learning_rate, max_epochs, shuffle, seed, n_threads, stop.flag
        )
        weights[:] = units.T
        return result

    def online(self, *args: Any) -> _native.Online:
        """Units that learn row after row for scikit-learn's Perceptron: see _online.pxi."""
        return _native.Online(*args)
