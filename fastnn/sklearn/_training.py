"""What stands between scikit-learn's rules of training and the backend's epochs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import xlogy
from sklearn.utils import check_random_state

from fastnn.backends import get_backend
from fastnn.backends.base import StopFlag, TrainJob
from fastnn.plan import Plan, check_memory
from fastnn.schedules import resolve_schedule
from fastnn.sparse_rows import SparseRows
from fastnn.tables.losses import LossRow
from fastnn.tables.optimizers import Optimizer
from fastnn.trainer import (
    FIT_STREAM,
    MAX_CHUNK_INDICES,
    MAX_CHUNK_STEPS,
)

BACKEND: Any = get_backend("native")  # it has more than every backend: the short way to predict

# Optimizers ---------------------------------------------------------------------------------------


@dataclass
class SklearnSGD:
    """scikit-learn's SGD, whose velocity contains the learning rate.

    ``v = momentum v - rate g; w += v``, or with Nesterov ``w += momentum v - rate g``. The kernels
    keep ``u = -v / rate``; so u is rescaled where the rate changes between epochs.
    """

    momentum: float
    nesterov: bool
    learning_rate: float  # of the next step
    steps: int = 0

    @property
    def kernel(self) -> str:
        if self.momentum == 0:
            return "sgd"
        return "sgd_nesterov" if self.nesterov else "sgd_momentum"

    @property
    def n_slots(self) -> int:
        return 0 if self.momentum == 0 else 1

    def init_slots(self, slots: np.ndarray) -> None:
        slots[:] = 0

    def scalars(self, rates: np.ndarray) -> np.ndarray:
        if self.momentum == 0:
            return np.ascontiguousarray(rates[:, None])
        return np.column_stack([rates, np.full(len(rates), self.momentum)])

    def advance(self, n_steps: int, rates: np.ndarray) -> None:
        self.steps += n_steps

    def change_rate(self, rate: float, slots: np.ndarray) -> None:
        """Another rate from the next step on."""
        if rate != self.learning_rate:
            slots *= self.learning_rate / rate if rate > 0 else 0.0
            self.learning_rate = rate


@dataclass
class SklearnAdam:
    """scikit-learn's Adam: ``w -= rate sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)``.

    Epsilon is added to the root of the second moment before its correction.
    """

    learning_rate: float
    beta1: float
    beta2: float
    epsilon: float
    steps: int = 0

    kernel = "adam"
    n_slots = 2

    def init_slots(self, slots: np.ndarray) -> None:
        slots[:] = 0

    def scalars(self, rates: np.ndarray) -> np.ndarray:
        t = np.arange(self.steps + 1, self.steps + 1 + len(rates))
        scalars = np.empty((len(rates), 7))
        scalars[:, 0] = rates * np.sqrt(1 - self.beta2**t) / (1 - self.beta1**t)
        scalars[:, 1] = 1.0
        scalars[:, 2] = self.beta1
        scalars[:, 3] = 1 - self.beta1
        scalars[:, 4] = self.beta2
        scalars[:, 5] = 1 - self.beta2
        scalars[:, 6] = self.epsilon
        return scalars

    def advance(self, n_steps: int, rates: np.ndarray) -> None:
        self.steps += n_steps


@dataclass
class TableOptimizer:
    """A row of `fastnn.tables.optimizers`, with the counters that belong to it."""

    optimizer: Optimizer
    steps: int = 0
    counters: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counters = self.optimizer.init_counters()

    @property
    def kernel(self) -> str:
        return self.optimizer.kernel

    @property
    def n_slots(self) -> int:
        return self.optimizer.n_slots

    @property
    def learning_rate(self) -> float:
        return self.optimizer.learning_rate

    def init_slots(self, slots: np.ndarray) -> None:
        self.optimizer.init_slots(slots)

    def scalars(self, rates: np.ndarray) -> np.ndarray:
        return self.optimizer.step_scalars(self.counters, rates)[0]

    def advance(self, n_steps: int, rates: np.ndarray) -> None:
        self.counters = self.optimizer.step_scalars(self.counters, rates[:n_steps])[1]
        self.steps += n_steps


AnyOptimizer = SklearnSGD | SklearnAdam | TableOptimizer


# Data ---------------------------------------------------------------------------------------------


@dataclass
class Rows:
    """Rows to train or judge on.

    Attributes
    ----------
    X : ndarray or CSR matrix of shape (n, n_features)
    y : ndarray
        As the backends take it: labels (n,) or targets (n, n_outputs).
    weight : ndarray of shape (n,), float64, or None
    """

    X: Any
    y: np.ndarray
    weight: np.ndarray | None
    _sparse: SparseRows | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.X.shape[0]

    def take(self, rows: np.ndarray) -> Rows:
        """A copy of some rows."""
        return Rows(self.X[rows], self.y[rows], None if self.weight is None else self.weight[rows])

    def total_weight(self) -> float:
        return float(len(self)) if self.weight is None else float(self.weight.sum())

    def readable(self, dtype: np.dtype) -> Any:
        """X as the backend reads it."""
        if not sp.issparse(self.X):
            return self.X
        if self._sparse is None or self._sparse.dtype != dtype:
            self._sparse = SparseRows(self.X, dtype)
        return self._sparse


@dataclass(frozen=True)
class Objective:
    """What is minimised, and how scikit-learn reports it.

    Attributes
    ----------
    loss : LossRow
    alpha : float
        Each batch adds ``alpha / 2 * sum(W**2) / (weight of its rows)``.
    reported_share : float
        scikit-learn reports the squared error as the mean over the outputs, but minimises the sum.
    """

    loss: LossRow
    alpha: float
    reported_share: float

    def constants(self, y: np.ndarray) -> np.ndarray | None:
        """What scikit-learn's loss of each row has beyond ours, and no parameter changes."""
        if self.loss.name != "poisson":
            return None
        t = y.astype(np.float64)
        return (xlogy(t, t) - t).sum(axis=1)

    def value(self, plan: Plan, parameters: np.ndarray, rows: Rows, n_threads: int) -> float:
        """Loss as reported, without the penalty."""
        X = rows.readable(plan.dtype)
        value = BACKEND.loss(plan, parameters, X, rows.y, rows.weight, self.loss, n_threads)
        constants = self.constants(rows.y)
        constant = 0.0 if constants is None else float(np.average(constants, weights=rows.weight))
        return self.reported_share * value + constant

    def value_and_gradient(
        self, plan: Plan, parameters: np.ndarray, rows: Rows, n_threads: int
    ) -> tuple[float, np.ndarray]:
        """Loss as reported, with the penalty; and the gradient of what is minimised."""
        l2 = self.alpha / rows.total_weight()
        X = rows.readable(plan.dtype)
        value, gradient = BACKEND.loss_and_gradient(
            plan, parameters, X, rows.y, rows.weight, self.loss, l2, n_threads
        )
        penalty = 0.0
        if self.reported_share != 1:
            # value contains the penalty; only the rest is scaled
            squares = sum(float(np.vdot(W, W)) for W in plan.views(parameters)[0])
            penalty = 0.5 * l2 * squares
            value -= penalty
        if self.loss.name == "poisson":
            constants = self.constants(rows.y)
            assert constants is not None
            value += float(np.average(constants, weights=rows.weight))
        return self.reported_share * value + penalty, gradient


# Epochs -------------------------------------------------------------------------------------------


@dataclass
class State:
    """Where a training stands; what later calls of `fit` and `partial_fit` may continue.

    Attributes
    ----------
    optimizer, slots
        None before the first epoch of a stochastic solver.
    random_state : RandomState
    seed : int or None
        What random_state was made from; None where it is the user's, or NumPy's global one.
    order : ndarray of int64, or None
        The rows as the last epoch took them.
    hold_out : tuple of ndarray, or None
        Rows to train on, and rows held out.
    epoch : int
        Epochs so far, for dropout.
    last : ndarray or None
        With early stopping and `resume`: parameters of the last epoch, where the next fit goes on.
    best : bytes or None
        Then also the digest of the best ones, which the estimator shows.

    Notes
    -----
    A pickle holds what another process needs, and no array twice: RandomState pickles itself with
    its state written out two times, and row numbers seldom need eight bytes.
    """

    random_state: np.random.RandomState
    seed: int | None
    optimizer: AnyOptimizer | None = None
    slots: np.ndarray | None = None
    no_improvement_count: int = 0
    rate_factor: float = 1.0
    order: np.ndarray | None = None
    hold_out: tuple[np.ndarray, np.ndarray] | None = None
    dropout_seed: int = 0
    epoch: int = 0
    last: np.ndarray | None = None
    best: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.seed is not None:
            state["random_state"] = self.random_state.get_state(legacy=False)
        elif self.random_state is check_random_state(None):
            state["random_state"] = None  # NumPy's global one, of whatever process
        if self.order is not None:
            in_order = np.array_equal(self.order, np.arange(len(self.order)))
            state["order"] = None if in_order else _narrow(self.order)
        if self.hold_out is not None:
            state["hold_out"] = tuple(map(_narrow, self.hold_out))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        stream = state["random_state"]
        if stream is None:
            self.random_state = check_random_state(None)
        elif isinstance(stream, dict):
            self.random_state = np.random.RandomState(0)
            self.random_state.set_state(stream)
        if self.order is not None:
            self.order = self.order.astype(np.int64)
        if self.hold_out is not None:
            train, held = self.hold_out
            self.hold_out = train.astype(np.int64), held.astype(np.int64)


def _narrow(rows: np.ndarray) -> np.ndarray:
    """Row numbers in as few bytes as they need."""
    return rows.astype(np.min_scalar_type(int(rows.max(initial=0))))


@dataclass
class Epochs:
    """What some epochs brought."""

    losses: np.ndarray
    rates: np.ndarray
    status: str
    exception: BaseException | None


class Engine:
    """Trains one net on one data set, by the rules that it is given.

    Parameters
    ----------
    plan : Plan
    parameters : ndarray of shape (n_parameters,)
        Changed in place.
    state : State
        Changed with them.
    rows : Rows
    objective : Objective
    batch_size : int
    shuffle : bool
    clip_norm : float or None
    schedule : schedule, callable, str or None
    n_threads : int
    """

    def __init__(
        self,
        plan: Plan,
        parameters: np.ndarray,
        state: State,
        rows: Rows,
        objective: Objective,
        batch_size: int,
        shuffle: bool,
        clip_norm: float | None,
        schedule: Any,
        n_threads: int,
    ) -> None:
        self.plan = plan
        self.parameters = parameters
        self.state = state
        self.rows = rows
        self.objective = objective
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.clip_norm = clip_norm
        self.schedule = schedule
        self.n_threads = n_threads
        n = len(rows)
        self.n_batches = -(-n // batch_size)
        self.starts = np.arange(0, n, batch_size)
        self.batch_rows = np.diff(np.append(self.starts, n)).astype(np.float64)
        self.constants = objective.constants(rows.y)
        self._plain: tuple[int, np.ndarray, np.ndarray] | None = None
        self.stop = StopFlag()
        # A stream that somebody else reads on must stand where scikit-learn would leave it; else
        # an order within a single batch is nothing that anybody sees.
        self.draws = shuffle and (self.n_batches > 1 or state.seed is None)
        if state.order is None or len(state.order) != n:
            state.order = np.arange(n)

    def max_epochs(self) -> int:
        """Epochs for which orders and scalars stay small beside the data."""
        return max(1, min(MAX_CHUNK_INDICES // len(self.rows), MAX_CHUNK_STEPS // self.n_batches))

    def run(self, n_epochs: int) -> Epochs:
        """Train so many epochs, and keep the books; fewer where it was interrupted.

        Who calls lets Ctrl-C set `stop`.
        """
        state, plan = self.state, self.plan
        optimizer = state.optimizer
        assert optimizer is not None
        assert state.slots is not None
        start = None
        if self.draws and n_epochs > 1:
            assert state.order is not None
            start = state.random_state.get_state(legacy=False), state.order.copy()
        orders = self._draw(n_epochs)
        n_steps = n_epochs * self.n_batches
        rates = self._rates(n_steps)
        step_l2, record = self._step_arrays(orders, n_epochs)
        job = TrainJob(
            X=self.rows.readable(plan.dtype),
            y=self.rows.y,
            weight=self.rows.weight,
            loss=self.objective.loss,
            optimizer=optimizer,
            scalars=optimizer.scalars(rates),
            orders=orders if self.n_batches > 1 else None,
            batch_size=self.batch_size,
            n_epochs=n_epochs,
            clip_norm=self.clip_norm,
            dropout_seed=state.dropout_seed,
            dropout_stream=FIT_STREAM,
            first_epoch=state.epoch,
            n_threads=self.n_threads,
            stop=self.stop,
            step_l2=step_l2,
            step_record=record,
        )
        result = BACKEND.train(plan, self.parameters, state.slots, job)
        done = result.epochs_done
        undone = result.status == "diverged"
        n_steps_done = done * self.n_batches if undone else result.steps_done
        optimizer.advance(n_steps_done, rates)
        state.epoch += done
        if start is not None and done < n_epochs:
            state.random_state.set_state(start[0])
            state.order = start[1]
            self._draw(done)
        steps = done * self.n_batches
        losses = self.objective.reported_share * record[:steps, 0]
        if self.constants is not None:
            losses += self._batch_means(self.constants, orders, n_epochs)[:steps]
        losses += 0.5 * step_l2[:steps] * record[:steps, 1]
        per_epoch = losses.reshape(done, self.n_batches) @ self.batch_rows / len(self.rows)
        last_rates = rates[self.n_batches - 1 :: self.n_batches][:done]
        return Epochs(per_epoch, last_rates, result.status, result.exception)

    def _draw(self, n_epochs: int) -> np.ndarray | None:
        """Orders of the next epochs, each a shuffle of the one before, as scikit-learn draws."""
        if not self.draws:
            return None
        order = self.state.order
        assert order is not None
        orders = np.empty((n_epochs, len(order)), np.int64)
        for i in range(n_epochs):
            self.state.random_state.shuffle(order)
            orders[i] = order
        return orders

    def _batch_sums(self, values: np.ndarray, orders: np.ndarray | None, k: int) -> np.ndarray:
        """Sums of a value of the rows over each batch of k epochs."""
        if orders is None or self.n_batches == 1:
            return np.tile(np.add.reduceat(values, self.starts), k)
        return np.add.reduceat(values[orders], self.starts, axis=1).reshape(-1)

    def _step_arrays(self, orders: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The penalty of each step, and room for its record; the same for most calls."""
        if self.rows.weight is None and self._plain is not None and self._plain[0] == k:
            return self._plain[1:]
        weights = self._batch_weights(orders, k)
        with np.errstate(divide="ignore"):
            step_l2 = np.where(weights > 0, self.objective.alpha / weights, 0.0)
        record = np.empty((len(step_l2), 2))
        self._plain = k, step_l2, record
        return step_l2, record

    def _batch_weights(self, orders: np.ndarray | None, k: int) -> np.ndarray:
        if self.rows.weight is None:
            return np.tile(self.batch_rows, k)
        return self._batch_sums(self.rows.weight, orders, k)

    def _batch_means(self, values: np.ndarray, orders: np.ndarray | None, k: int) -> np.ndarray:
        weight = self.rows.weight
        if weight is None:
            return self._batch_sums(values, orders, k) / np.tile(self.batch_rows, k)
        sums = self._batch_sums(values * weight, orders, k)
        weights = self._batch_sums(weight, orders, k)
        return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)

    def _rates(self, n_steps: int) -> np.ndarray:
        optimizer = self.state.optimizer
        assert optimizer is not None
        base = optimizer.learning_rate
        if self.schedule is None:
            return np.full(n_steps, base * self.state.rate_factor)
        steps = np.arange(optimizer.steps, optimizer.steps + n_steps)
        return resolve_schedule(self.schedule, base)(steps) * self.state.rate_factor

    def change_rate(self, rate: float) -> None:
        """Go on with another rate (scikit-learn's rules for sgd)."""
        optimizer = self.state.optimizer
        assert isinstance(optimizer, SklearnSGD)
        assert self.state.slots is not None
        optimizer.change_rate(rate, self.state.slots)


def new_slots(optimizer: AnyOptimizer, plan: Plan) -> np.ndarray:
    """Fresh state arrays of an optimizer."""
    check_memory(optimizer.n_slots * plan.n_bytes, f"the state of {optimizer.kernel}")
    slots = plan.allocate(optimizer.n_slots)
    optimizer.init_slots(slots)
    return slots
