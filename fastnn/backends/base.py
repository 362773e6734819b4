"""What a backend is: a few coarse methods, from whole predictions to whole epochs.

All backends see the same validated arrays and the same batches (the Trainer draws the orders), so
their results can be compared number by number. `fastnn.backends.reference` is the one to read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Backend", "StopFlag", "TrainJob", "TrainResult"]


class StopFlag:
    """A flag that any thread may set, and that compiled code polls without the GIL.

    Attributes
    ----------
    flag : ndarray of shape (1,), int32
        Not 0 where set.
    """

    def __init__(self) -> None:
        self.flag = np.zeros(1, np.int32)

    def set(self) -> None:
        """Ask the running work to end at the next whole step."""
        self.flag[0] = 1

    def clear(self) -> None:
        """Take the request back."""
        self.flag[0] = 0

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return bool(self.flag[0])


@dataclass
class TrainJob:
    """Epochs to train.

    Attributes
    ----------
    X : ndarray or SparseRows of shape (n, n_features)
        As `fastnn.validation.check_X` returns it: any native number type, any strides.
    y : ndarray of shape (n,) int64, or (n, n_outputs) of the plan's dtype
        Labels, or targets, as `encode_targets` returns them.
    weight : ndarray of shape (n,), float64, or None
        Weights of the rows.
    loss : LossRow
    optimizer : Optimizer
    scalars : ndarray of shape (n_steps, K), float64
        A row for each update, as `Optimizer.step_scalars` gives them.
    orders : ndarray of shape (n_epochs, n), int64, or None
        The rows of each epoch in their order; None is the natural order.
    batch_size : int
        Rows of an update; the last of an epoch may have fewer.
    n_epochs : int
    l2 : float
        Adds ``l2 / 2 * sum(W**2)`` to the objective.
    clip_norm : float or None
        Largest norm of the gradient.
    dropout_seed, dropout_stream, first_epoch : int
        Key of the dropout masks (see `fastnn.rng.dropout_mask`); first_epoch is the number of
        orders[0].
    n_threads : int
    stop : StopFlag
    check_rows : bool
        Nobody has looked for NaN and infinity in X: the backend does, in the first epoch. Only
        for backends with `checks_rows`.
    step_l2 : ndarray of shape (n_steps,), float64, or None
        The l2 of each update, in place of `l2`.
    step_record : ndarray of shape (n_steps, 2), float64, or None
        Written where given: the mean data loss of each update's batch, and the sum of the squared
        weights before the update. What it holds of an unfinished or diverged epoch is undefined.
    """

    X: Any
    y: np.ndarray
    weight: np.ndarray | None
    loss: Any
    optimizer: Any
    scalars: np.ndarray
    orders: np.ndarray | None
    batch_size: int
    n_epochs: int
    l2: float = 0.0
    clip_norm: float | None = None
    dropout_seed: int = 0
    dropout_stream: int = 2
    first_epoch: int = 0
    n_threads: int = 1
    stop: StopFlag = field(default_factory=StopFlag)
    check_rows: bool = False
    step_l2: np.ndarray | None = None
    step_record: np.ndarray | None = None


@dataclass
class TrainResult:
    """What a training call did.

    Attributes
    ----------
    losses : ndarray of shape (epochs_done,), float64
        Weighted mean of the rows' losses in each epoch, each row with the parameters of its
        batch; without the l2 term.
    seconds : ndarray of shape (epochs_done,), float64
    epochs_done : int
    steps_done : int
        Updates made, counting those of an unfinished epoch.
    status : "done", "stopped", "interrupted", "diverged" or "bad rows"
        "bad rows": a row is not finite (see `TrainJob.check_rows`), and nothing has changed.
    epoch, batch : int
        Where it diverged, counted from 0 within this call.
    exception : BaseException or None
        What a signal handler raised; the caller raises it again when its books are in order.
    """

    losses: np.ndarray
    seconds: np.ndarray
    epochs_done: int
    steps_done: int
    status: str
    epoch: int
    batch: int
    exception: BaseException | None


class Backend(ABC):
    """Computes what a `fastnn.plan.Plan` and its flat parameters describe.

    Arguments have been validated. X is (n, n_features) as `check_X` returns it, y as
    `encode_targets` returns it, weight float64 (n,) or None for ones.
    """

    name: str

    checks_rows = False
    """Whether `train` and `predict_checked` look for NaN and infinity as they read the rows, which
    spares a pass over X."""

    takes_sparse_rows = False
    """Whether X may be `fastnn.sparse_rows.SparseRows`."""

    takes_device_arrays = False
    """Whether arrays in a GPU's memory may go through `adopt_rows` and `adopt_targets`."""

    def place(self, plan: Any, X: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Rows, targets and weights of a whole fit, where the computing is done.

        A backend that computes in memory of its own copies them there once; what it returns goes
        into its other methods in their stead, and has their `len`, `shape` and `dtype`.
        """
        return X, y, weight

    def adopt_rows(
        self, X: Any, n_features: int, dtype: np.dtype, name: str, allow_1d: bool = False
    ) -> Any:
        """`fastnn.validation.check_X` for rows in the memory of a GPU, without a copy to the host.

        Called only where `takes_device_arrays`; what it returns goes into the other methods.
        """
        raise NotImplementedError

    def adopt_targets(
        self, loss: Any, y: Any, n_samples: int, n_outputs: int, dtype: np.dtype, name: str
    ) -> Any:
        """`fastnn.tables.losses.encode_targets` for targets in the memory of a GPU."""
        raise NotImplementedError

    def fetch(self, value: Any, name: str) -> np.ndarray:
        """A copy on the host of an array in the memory of a GPU."""
        raise NotImplementedError

    def check_device_out(
        self, out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str = "out"
    ) -> Any:
        """An array in the memory of a GPU that `predict` may write to: exact shape and dtype."""
        raise NotImplementedError

    @abstractmethod
    def predict(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, out: np.ndarray, n_threads: int
    ) -> np.ndarray:
        """Write the outputs after the output link into out, (n, n_outputs), and return it."""

    def predict_checked(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, out: np.ndarray, n_threads: int
    ) -> bool:
        """`predict` for rows that nobody has checked; False where one is not finite."""
        with np.errstate(over="ignore"):
            if not np.isfinite(X.astype(plan.dtype, copy=False)).all():
                return False
        self.predict(plan, parameters, X, out, n_threads)
        return True

    @abstractmethod
    def layer_outputs(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> list[np.ndarray]:
        """The outputs of every layer after its activation, each (n, fan_out)."""

    @abstractmethod
    def input_gradient(
        self, plan: Any, parameters: np.ndarray, X: np.ndarray, n_threads: int
    ) -> np.ndarray:
        """Derivatives of the outputs by the inputs, (n, n_outputs, n_features)."""

    @abstractmethod
    def loss(
        self,
        plan: Any,
        parameters: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        loss: Any,
        n_threads: int,
    ) -> float:
        """Weighted mean over the rows of their losses; 0.0 where all weights are 0."""

    @abstractmethod
    def loss_and_gradient(
        self,
        plan: Any,
        parameters: np.ndarray,
        X: np.ndarray,
        y: np.ndarray,
        weight: np.ndarray | None,
        loss: Any,
        l2: float,
        n_threads: int,
    ) -> tuple[float, np.ndarray]:
        """The loss plus ``l2 / 2 * sum(W**2)``, and its flat gradient in the plan's dtype."""

    @abstractmethod
    def train(
        self, plan: Any, parameters: np.ndarray, slots: np.ndarray, job: TrainJob
    ) -> TrainResult:
        """Train epochs; parameters (P,) and slots (n_slots, P) are changed in place.

        The rows of slots are contiguous, each by itself (`Plan.allocate`).
        The gradient of a batch is ``sum_r w_r / sum(w) dL_r + l2 W``, scaled down to clip_norm.
        A batch whose weights are all 0 moves nothing. Where the loss of a batch, or a parameter
        at the end of an epoch, is not finite, parameters and slots are put back to the start of
        that epoch and the status is "diverged".
        """

    @abstractmethod
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
        """Error-correction learning until an epoch without a mistake.

        t is uint8 (n, k) of 0 and 1; weights (n_features, k) and bias (k,) are changed in place.
        The order of an epoch is ``rng.permutation(n, seed, epoch)`` with shuffle, else the
        natural one. n_threads, at most, share the units. Returns (mistakes of each epoch int64,
        status, exception).
        """
