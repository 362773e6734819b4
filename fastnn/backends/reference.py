"""The reference backend: backpropagation as a textbook writes it, in plain NumPy.

Everything is computed in float64 and rounded to the model's dtype where it is kept. Slow, and the
oracle for the other backends.

With ``a[0] = X`` and layers l = 0 .. L-1:

    z[l] = a[l] W[l] + b[l],   a[l+1] = f[l](z[l])
    delta[L-1] = dLoss / dz[L-1]
    delta[l-1] = (delta[l] W[l]^T) * f'[l-1](z[l-1])
    dLoss/dW[l] = a[l]^T delta[l],   dLoss/db[l] = sum of the rows of delta[l]

References
----------
Rumelhart, Hinton and Williams (1986), Learning representations by back-propagating errors,
doi 10.1038/323533a0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from time import perf_counter
from typing import Any

import numpy as np

from fastnn import rng
from fastnn.backends.base import Backend, StopFlag, TrainJob, TrainResult
from fastnn.tables.activations import get_activation
from fastnn.tables.losses import LossRow

__all__ = ["ReferenceBackend"]

Array = np.ndarray


def _quietly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Without NumPy's warnings: infinities and NaN are results here, as in compiled code."""

    @wraps(method)
    def quiet(*args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):
            return method(*args, **kwargs)

    return quiet


@dataclass
class _Pass:
    """What a forward pass leaves for the backward pass; all float64."""

    inputs: list[Array]  # a[l], after dropout: what layer l reads
    z: list[Array]
    outputs: list[Array]  # before dropout
    factors: list[Array | None]  # dropout's, of each layer


def _forward(plan: Any, parameters: Array, X: Array, masks: list[Array | None]) -> _Pass:
    weights, biases = plan.views(parameters.astype(np.float64))
    names = (*plan.activations, plan.output)
    # Like every backend: the rows as the model's dtype holds them, whatever type they came in.
    result = _Pass([X.astype(plan.dtype, order="C").astype(np.float64)], [], [], [])
    for layer in range(plan.n_layers):
        z = result.inputs[-1] @ weights[layer] + biases[layer]
        y = get_activation(names[layer]).f(z)
        factor = None
        mask = masks[layer] if layer < len(masks) else None
        if mask is not None:
            factor = mask / (1.0 - plan.dropout[layer])
        result.z.append(z)
        result.outputs.append(y)
        result.factors.append(factor)
        result.inputs.append(y if factor is None else y * factor)
    return result


def _backward(plan: Any, parameters: Array, passed: _Pass, delta: Array) -> list[Array]:
    """Deltas of all layers, first to last, and before them the gradient to the inputs."""
    weights, _ = plan.views(parameters.astype(np.float64))
    deltas = [delta]
    for layer in range(plan.n_layers - 1, -1, -1):
        d = deltas[0] @ weights[layer].T
        if layer > 0:
            if passed.factors[layer - 1] is not None:
                d = d * passed.factors[layer - 1]
            derivative = get_activation(plan.activations[layer - 1]).df
            assert derivative is not None
            d = d * derivative(passed.z[layer - 1], passed.outputs[layer - 1])
        deltas.insert(0, d)
    return deltas


def _through_link(output: str, z: Array, y: Array, dy: Array) -> Array:
    """From the derivative by the outputs to that by the logits."""
    derivative = get_activation(output).df
    if derivative is None:  # softmax
        return y * (dy - (dy * y).sum(axis=1, keepdims=True))
    return dy * derivative(z, y)


def _losses(plan: Any, loss: LossRow, z: Array, y: Array, t: Array) -> tuple[Array, Array]:
    """Loss of each row, and its derivative by the logits."""
    if t.ndim == 1:
        t = np.eye(plan.n_outputs)[t]
    t = t.astype(np.float64)
    if plan.output == loss.natural_output:
        return loss.rows_from_logits(z, t), loss.logit_gradient(z, t, loss.params)
    dy = loss.gradient(y, t, loss.params)
    return loss.rows_from_outputs(y, t), _through_link(plan.output, z, y, dy)


class ReferenceBackend(Backend):
    """See `fastnn.backends.base.Backend`."""

    name = "reference"
    takes_sparse_rows = True

    @_quietly
    def predict(self, plan: Any, parameters: Array, X: Array, out: Array, n_threads: int) -> Array:
        out[:] = _forward(plan, parameters, X, []).outputs[-1]
        return out

    @_quietly
    def layer_outputs(self, plan: Any, parameters: Array, X: Array, n_threads: int) -> list[Array]:
        return [y.astype(plan.dtype) for y in _forward(plan, parameters, X, []).outputs]

    @_quietly
    def input_gradient(self, plan: Any, parameters: Array, X: Array, n_threads: int) -> Array:
        passed = _forward(plan, parameters, X, [])
        z, y = passed.z[-1], passed.outputs[-1]
        gradient = np.empty((len(X), plan.n_outputs, plan.n_features), plan.dtype)
        for output in range(plan.n_outputs):
            dy = np.zeros_like(y)
            dy[:, output] = 1.0
            delta = _through_link(plan.output, z, y, dy)
            gradient[:, output] = _backward(plan, parameters, passed, delta)[0]
        return gradient

    @_quietly
    def loss(
        self,
        plan: Any,
        parameters: Array,
        X: Array,
        y: Array,
        weight: Array | None,
        loss: LossRow,
        n_threads: int,
    ) -> float:
        passed = _forward(plan, parameters, X, [])
        rows, _ = _losses(plan, loss, passed.z[-1], passed.outputs[-1], y)
        return _weighted_mean(rows, weight)

    @_quietly
    def loss_and_gradient(
        self,
        plan: Any,
        parameters: Array,
        X: Array,
        y: Array,
        weight: Array | None,
        loss: LossRow,
        l2: float,
        n_threads: int,
    ) -> tuple[float, Array]:
        value, gradient = self._gradient(plan, parameters, X, y, weight, loss, l2, [])
        weights, _ = plan.views(parameters.astype(np.float64))
        penalty = 0.5 * l2 * sum(float((W * W).sum()) for W in weights)
        return value + penalty, gradient.astype(plan.dtype)

    def _gradient(
        self,
        plan: Any,
        parameters: Array,
        X: Array,
        y: Array,
        weight: Array | None,
        loss: LossRow,
        l2: float,
        masks: list[Array | None],
    ) -> tuple[float, Array]:
        """Mean loss without the l2 term, and the gradient with it; float64."""
        passed = _forward(plan, parameters, X, masks)
        rows, delta = _losses(plan, loss, passed.z[-1], passed.outputs[-1], y)
        share = np.ones(len(X)) if weight is None else weight
        if share.sum() == 0:
            return 0.0, np.zeros(plan.n_parameters)
        deltas = _backward(plan, parameters, passed, delta * (share / share.sum())[:, None])[1:]
        gradient = np.empty(plan.n_parameters)
        dW, db = plan.views(gradient)
        weights, _ = plan.views(parameters.astype(np.float64))
        for layer in range(plan.n_layers):
            dW[layer][:] = passed.inputs[layer].T @ deltas[layer] + l2 * weights[layer]
            db[layer][:] = deltas[layer].sum(axis=0)
        return _weighted_mean(rows, weight), gradient

    @_quietly
    def train(self, plan: Any, parameters: Array, slots: Array, job: TrainJob) -> TrainResult:
        n = len(job.X)
        losses: list[float] = []
        seconds: list[float] = []
        step = 0
        for epoch in range(job.n_epochs):
            began = perf_counter()
            before = parameters.copy(), slots.copy()
            order = np.arange(n) if job.orders is None else job.orders[epoch]
            total = 0.0
            for batch, start in enumerate(range(0, n, job.batch_size)):
                if job.stop.is_set():
                    return _result(losses, seconds, step, "stopped")
                rows = order[start : start + job.batch_size]
                value = self._step(plan, parameters, slots, job, rows, epoch, step)
                total += value
                step += 1
                if not np.isfinite(value):
                    parameters[:], slots[:] = before
                    return _result(losses, seconds, step, "diverged", epoch, batch)
            if not np.isfinite(parameters).all():
                parameters[:], slots[:] = before
                return _result(losses, seconds, step, "diverged", epoch, batch)
            weight = float(n) if job.weight is None else float(job.weight.sum())
            losses.append(total / weight if weight else 0.0)
            seconds.append(perf_counter() - began)
        return _result(losses, seconds, step, "done")

    def _step(
        self,
        plan: Any,
        parameters: Array,
        slots: Array,
        job: TrainJob,
        rows: Array,
        epoch: int,
        step: int,
    ) -> float:
        """One update; returns the weighted sum of the rows' losses before it."""
        weight = None if job.weight is None else job.weight[rows]
        total_weight = float(len(rows)) if weight is None else float(weight.sum())
        masks: list[Array | None] = [
            rng.dropout_mask(
                plan.layer_sizes[layer + 1],
                rate,
                job.dropout_seed,
                job.first_epoch + epoch,
                layer,
                rows,
                job.dropout_stream,
            )
            if rate > 0
            else None
            for layer, rate in enumerate(plan.dropout)
        ]
        l2 = job.l2 if job.step_l2 is None else job.step_l2[step]
        value, g = self._gradient(
            plan, parameters, job.X[rows], job.y[rows], weight, job.loss, l2, masks
        )
        if job.step_record is not None:
            weights = [W.astype(np.float64) for W in plan.views(parameters)[0]]
            job.step_record[step] = value, sum(float((W * W).sum()) for W in weights)
        if total_weight == 0 or not np.isfinite(value):
            return value * total_weight
        if job.clip_norm is not None:
            norm = float(np.sqrt(g @ g))
            if norm > job.clip_norm:
                g *= job.clip_norm / norm
        w, s = parameters.astype(np.float64), slots.astype(np.float64)
        job.optimizer.update(w, g, s, job.scalars[step])
        parameters[:], slots[:] = w, s
        return value * total_weight

    def perceptron_fit(
        self,
        X: Array,
        t: Array,
        weights: Array,
        bias: Array,
        learning_rate: float,
        max_epochs: int,
        shuffle: bool,
        seed: int,
        n_threads: int,
        stop: StopFlag,
    ) -> tuple[Array, str, BaseException | None]:
        errors: list[int] = []
        for epoch in range(max_epochs):
            mistakes = 0
            order = rng.permutation(len(X), seed, epoch) if shuffle else np.arange(len(X))
            for row in order:
                if stop.is_set():
                    return np.array(errors, np.int64), "stopped", None
                x = X[row].astype(weights.dtype)
                y = x @ weights + bias > 0
                error = t[row].astype(weights.dtype) - y
                weights += learning_rate * np.outer(x, error)
                bias += learning_rate * error
                mistakes += int(np.count_nonzero(error))
            errors.append(mistakes)
            if mistakes == 0:
                break
        return np.array(errors, np.int64), "done", None


def _weighted_mean(rows: Array, weight: Array | None) -> float:
    if weight is None:
        return float(rows.mean())
    total = float(weight.sum())
    # A row of weight 0 counts for nothing, even where its loss is infinite.
    return float(rows[weight > 0] @ weight[weight > 0]) / total if total else 0.0


def _result(
    losses: list[float],
    seconds: list[float],
    steps: int,
    status: str,
    epoch: int = 0,
    batch: int = 0,
) -> TrainResult:
    return TrainResult(
        np.array(losses), np.array(seconds), len(losses), steps, status, epoch, batch, None
    )
