"""The Numba backend: plans, jobs and signals around the driver in `kernels`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any

import numba
import numpy as np

from fastnn.backends.base import Backend, StopFlag, TrainJob, TrainResult
from fastnn.backends.numba_cpu import kernels as k
from fastnn.backends.numba_cpu.functions import CACHED
from fastnn.plan import Plan
from fastnn.tables.activations import get_activation
from fastnn.tables.losses import LossRow

__all__ = ["NumbaBackend"]

# Compiled code returns this often, so that Python may look for signals.
PIECE_SECONDS = 0.02

_STATUS = {k.DONE: "done", k.STOPPED: "stopped", k.DIVERGED: "diverged"}


class _Pacer:
    """Rows for the next call of compiled code, so that it takes about PIECE_SECONDS."""

    def __init__(self, multiply_adds: int) -> None:
        # A first guess; also a bound for what one row can take.
        self.rows = max(1, int(2e6 / multiply_adds))
        self.began = perf_counter()

    def start(self) -> int:
        self.began = perf_counter()
        return self.rows

    def finish(self, rows: int) -> float:
        seconds = perf_counter() - self.began
        wanted = rows * PIECE_SECONDS / max(seconds, 1e-6)
        self.rows = max(1, int(min(wanted, 4 * self.rows)))
        return seconds


class _Net:
    """A plan in the driver's terms: shapes, offsets into one block of buffers, kernels."""

    def __init__(self, plan: Any, rows: int, backward: bool, dropout: bool = False) -> None:
        self.dtype: Any = plan.dtype.type
        n_layers = plan.n_layers
        self.layers = np.zeros((n_layers, k.N_LAYER_COLUMNS), np.int64)
        self.rates = np.zeros(n_layers)
        self.rates[: n_layers - 1] = plan.dropout
        self.n_elems = 0
        self.batch_at = self._take(rows * plan.n_features)
        self.targets_at = self._take(rows * plan.n_outputs if backward else 0)
        names = (*plan.activations, plan.output)
        at, before = 0, self.batch_at
        for layer in range(n_layers):
            row = self.layers[layer]
            fan_in, fan_out = plan.layer_sizes[layer : layer + 2]
            row[k.FAN_IN], row[k.FAN_OUT] = fan_in, fan_out
            row[k.WEIGHT], row[k.BIAS] = at, at + fan_in * fan_out
            at += (fan_in + 1) * fan_out
            row[k.INPUT] = before
            for buffer in (k.Z, k.Y):
                row[buffer] = self._take(rows * fan_out)
            row[k.DROPPED] = before = row[k.Y]
            if dropout and self.rates[layer] > 0:
                row[k.FACTOR] = self._take(rows * fan_out)
                row[k.DROPPED] = before = self._take(rows * fan_out)
            if backward:
                row[k.DELTA] = self._take(rows * fan_out)
                row[k.TRANSPOSED] = self._take(fan_in * fan_out)
            activation = get_activation(names[layer])
            row[k.ACTIVATE] = k.activate_kernel(activation.scalar, self.dtype)
            if backward:
                row[k.SLOPE] = k.slope_kernel(activation.scalar_df, self.dtype)
        self.work = np.empty(self.n_elems, plan.dtype)
        self.samples = np.empty(rows, np.int64)
        self.job = np.zeros(k.N_JOB, np.int64)
        self.job[k.BATCH_AT], self.job[k.TARGETS_AT] = self.batch_at, self.targets_at
        self.job[k.N_FEATURES] = plan.n_features
        self.job[k.PRODUCT] = k.product_kernel(self.dtype)

    def _take(self, n_elems: int) -> int:
        at = self.n_elems
        self.n_elems += -(-n_elems // 16) * 16  # the next buffer begins on a cache line
        return at

    def read(self, X: np.ndarray) -> None:
        """Make X what the driver reads."""
        self.job[k.GATHER] = k.gather_kernel(X.dtype, self.dtype)
        self.job[k.X] = k.address(X)
        self.job[k.X_ROW_BYTES], self.job[k.X_COL_BYTES] = X.strides
        self.job[k.N_SAMPLES] = len(X)


def _multiply_adds(plan: Any) -> int:
    sizes = plan.layer_sizes
    return sum(a * b + b for a, b in pairwise(sizes))


class NumbaBackend(Backend):
    """See `fastnn.backends.base.Backend`; one thread, no GIL while it computes."""

    name = "numba"

    def predict(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, out: np.ndarray, n_threads: int
    ) -> np.ndarray:
        _predict(plan, parameters, X, [None] * (plan.n_layers - 1) + [out])
        return out

    def layer_outputs(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> list[np.ndarray]:
        outputs = [np.empty((len(X), width), plan.dtype) for width in plan.layer_sizes[1:]]
        _predict(plan, parameters, X, outputs)
        return outputs

    def input_gradient(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> np.ndarray:
        jacobian = np.empty((len(X), plan.n_outputs, plan.n_features), plan.dtype)
        net = _Net(plan, min(max(len(X), 1), k.CHUNK_ROWS), True)
        work = _multiply_adds(plan) * (1 + plan.n_outputs)
        _in_pieces(k.input_gradient, net, parameters, X, k.address(jacobian), work)
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
        job = _whole(X, y, weight, loss)
        return float(_Run(plan, parameters, None, job, k.LOSS_ONLY).to_end().losses[0])

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
        run = _Run(plan, parameters, None, _whole(X, y, weight, loss), k.GRADIENT).to_end()
        value = float(run.losses[0])
        if l2 != 0:
            k.add_penalty(parameters, run.net.layers, run.gradient, l2)
            value += 0.5 * l2 * k.squared_weights(parameters, run.net.layers)
        return value, run.gradient

    def train(
        self, plan: Any, parameters: np.ndarray, slots: np.ndarray, job: TrainJob
    ) -> TrainResult:
        run = _Run(plan, parameters, slots, job, k.TRAIN)
        exception = None
        try:
            run.to_end()
        except BaseException as error:  # the caller raises it
            exception = error
        epochs, steps = int(run.state[k.EPOCH]), int(run.state[k.STEP])
        status = _STATUS.get(int(run.state[k.STATUS]), "interrupted")
        batch = int(run.state[k.BATCH])
        return TrainResult(
            run.losses[:epochs],
            run.seconds[:epochs],
            epochs,
            steps,
            status,
            epochs if status == "diverged" else 0,
            batch if status == "diverged" else 0,
            exception if status == "interrupted" else None,
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
        n, n_outputs = t.shape
        plan = Plan((X.shape[1], n_outputs), weights.dtype, (), "identity", ())
        net = _Net(plan, 1, False)
        net.read(X)
        sums, t = np.empty(n_outputs, weights.dtype), np.ascontiguousarray(t)
        order = np.empty(n, np.int64) if shuffle else None
        errors: list[int] = []
        pacer = _Pacer(_multiply_adds(plan))
        try:
            while len(errors) < max_epochs and (not errors or errors[-1]):
                if order is not None:
                    self.fill_permutation(order, seed, len(errors))
                at = mistakes = 0
                while at < n:
                    if stop.is_set():
                        return np.array(errors, np.int64), "stopped", None
                    rows = min(n - at, pacer.start())
                    mistakes += k.perceptron(
                        net.work, sums, net.samples, net.job, k.address(weights), k.address(bias),
                        k.address(t), k.address(order), learning_rate, at, rows,
                    )  # fmt: skip
                    pacer.finish(rows)
                    at += rows
                errors.append(mistakes)
        except BaseException as error:  # the caller raises it
            return np.array(errors, np.int64), "interrupted", error
        return np.array(errors, np.int64), "done", None

    def compile(
        self, plan: Any, parameters: np.ndarray, predict: Callable[[Any, Any], np.ndarray]
    ) -> Any:
        """A net with its sizes fixed; `predict` is what its report compares it with."""
        from fastnn.backends.numba_cpu.predictor import CompiledNet

        return CompiledNet(plan, parameters, predict)

    def describe(self) -> str:
        """The version of Numba, and what it has compiled so far, for `show_config`."""
        n, seconds = k.compiled()
        cache = "on" if CACHED else "off (FASTNN_NUMBA_CACHE=1 turns it on)"
        return (
            f"{numba.__version__}, {n} functions compiled in {seconds:.1f} s by this process, "
            f"cache on disk {cache}"
        )

    def fill_permutation(self, order: np.ndarray, seed: int, epoch: int) -> None:
        """Write the order of one epoch, `fastnn.rng.permutation`, into an int64 array."""
        k.fill_permutation(order, np.uint64(seed), epoch)


def _whole(X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, loss: LossRow) -> TrainJob:
    """All rows as one batch, for a loss or a gradient."""
    return TrainJob(X, y, weight, loss, None, np.empty((1, 0)), None, len(X), 1)


def _predict(
    plan: Any, parameters: np.ndarray, X: np.ndarray, outputs: Sequence[np.ndarray | None]
) -> None:
    """The outputs of the layers whose arrays are given."""
    addresses = np.array([k.address(y) for y in outputs], np.int64)
    net = _Net(plan, min(max(len(X), 1), k.CHUNK_ROWS), False)
    _in_pieces(k.predict, net, parameters, X, addresses, _multiply_adds(plan))


def _in_pieces(
    function: Any, net: _Net, parameters: np.ndarray, X: np.ndarray, target: Any, work: int
) -> None:
    """Rows through a function of the driver; between pieces Python may raise what it has to."""
    net.read(X)
    pacer, at = _Pacer(work), 0
    while at < len(X):
        rows = min(len(X) - at, pacer.start())
        function(
            parameters, net.layers, net.rates, net.job, net.work, net.samples, target, at, rows
        )
        pacer.finish(rows)
        at += rows


class _Run:
    """A training, a gradient or a loss: the driver's arguments, and its way to the end."""

    def __init__(
        self, plan: Any, parameters: np.ndarray, slots: np.ndarray | None, job: TrainJob, mode: int
    ) -> None:
        n = len(job.X)
        batch_size = min(job.batch_size, n)
        rows = min(batch_size, k.CHUNK_ROWS)
        dropout = mode == k.TRAIN and any(plan.dropout)
        self.net = net = _Net(plan, rows, True, dropout)
        net.read(job.X)
        self.kept = [job.X, job.y, job.weight, parameters, slots]  # whose addresses the driver has
        self.parameters = parameters
        self.state = np.zeros(k.N_STATE, np.int64)
        self.totals = np.zeros(k.N_TOTALS)
        self.losses = np.zeros(job.n_epochs)
        self.seconds = np.zeros(job.n_epochs)
        self.gradient = np.zeros(plan.n_parameters if mode != k.LOSS_ONLY else 1, plan.dtype)
        n_slots = job.optimizer.n_slots if mode == k.TRAIN else 0
        size = plan.n_parameters * (1 + n_slots) if mode == k.TRAIN else 1
        self.snapshot = np.empty(size, plan.dtype)
        self.row_loss = np.empty(rows)
        # the shares of the rows, and ones
        self.scale = np.ones(2 * rows, plan.dtype)
        self.labels = np.empty(rows, np.int64)
        self.ones = np.ones(1, plan.dtype)
        self.h = np.zeros(8, plan.dtype)
        self.stop = job.stop.flag
        self.numbers = np.zeros(k.N_NUMBERS)
        self.numbers[k.LOSS_PARAMETER] = job.loss.parameter
        self.numbers[k.L2] = job.l2
        self.numbers[k.CLIP_NORM] = job.clip_norm or 0.0
        # forward, backward and gradient
        self.pacer = _Pacer(3 * _multiply_adds(plan))
        self._describe(plan, slots, job, mode, batch_size, n_slots, dropout)

    def _describe(
        self,
        plan: Any,
        slots: np.ndarray | None,
        job: TrainJob,
        mode: int,
        batch_size: int,
        n_slots: int,
        dropout: bool,
    ) -> None:
        entries = self.net.job
        labels = job.y.ndim == 1
        through_logits = plan.output == job.loss.natural_output
        if through_logits:
            formulas = job.loss.scalar_logit_value, job.loss.scalar_logit_gradient
        else:
            formulas = job.loss.scalar_value, job.loss.scalar_gradient
        entries[k.MODE] = mode
        entries[k.LABELS] = k.address(job.y if labels else None)
        entries[k.TARGETS] = k.address(None if labels else job.y)
        entries[k.SAMPLE_WEIGHT] = k.address(job.weight)
        entries[k.LOSS] = k.loss_kernel(*formulas, self.net.dtype)
        entries[k.THROUGH_LOGITS] = through_logits
        entries[k.SOFTMAX_LABELS] = labels and formulas[0] is None
        entries[k.BATCH_SIZE], entries[k.N_EPOCHS] = batch_size, job.n_epochs
        entries[k.ORDERS] = k.address(self._keep(job.orders, np.int64))
        if mode != k.TRAIN:
            return
        entries[k.N_SLOTS], entries[k.SLOTS] = n_slots, k.address(slots)
        entries[k.SLOT_STRIDE] = 0 if slots is None else slots.strides[0] // slots.itemsize
        entries[k.UPDATE] = k.update_kernel(
            job.optimizer.scalar_update, n_slots, job.optimizer.momentum_slot, self.net.dtype
        )
        entries[k.SCALARS] = k.address(self._keep(job.scalars, np.float64))
        entries[k.N_SCALARS] = job.scalars.shape[1]
        entries[k.STEP_L2] = k.address(self._keep(job.step_l2, np.float64))
        entries[k.STEP_RECORD] = k.address(job.step_record)
        entries[k.CLIP] = job.clip_norm is not None
        entries[k.DROPOUT] = k.dropout_kernel(self.net.dtype) if dropout else 0
        entries[k.SEED] = np.uint64(job.dropout_seed).view(np.int64)
        entries[k.STREAM], entries[k.FIRST_EPOCH] = job.dropout_stream, job.first_epoch

    def _keep(self, array: np.ndarray | None, dtype: Any) -> np.ndarray | None:
        if array is not None:
            array = np.ascontiguousarray(array, dtype)
            self.kept.append(array)
        return array

    def to_end(self) -> _Run:
        """Run until all is done; between pieces Python may raise what a signal handler raises."""
        net, epoch = self.net, 0
        while self.state[k.STATUS] == k.RUNNING:
            budget = self.pacer.start()
            k.train(
                self.parameters, net.layers, net.rates, net.job, self.numbers, self.state,
                self.totals, self.losses, net.work, self.gradient, self.snapshot, net.samples,
                self.row_loss, self.scale, self.labels, self.ones, self.h, self.stop, budget,
            )  # fmt: skip
            seconds = self.pacer.finish(budget)
            # The time of a piece is that of its epochs, in equal shares.
            now = int(self.state[k.EPOCH])
            self.seconds[epoch : now + 1] += seconds / (now - epoch + 1)
            epoch = now
        return self
