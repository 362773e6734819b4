"""What can happen between two epochs.

A callback is any object with ``on_epoch_end(trainer, logs)``. `logs` is a dict with ``epoch``
(counted from 1 over the trainer's life), ``loss``, ``learning_rate``, ``seconds`` and, where
there are validation data, ``validation_loss``. Two more methods are called where an object has
them: ``on_fit_begin(trainer, monitors)`` with the keys that `logs` will have, and
``on_fit_end(trainer)`` when `fit` ends without an exception. ``trainer.stop()`` ends the training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fastnn.validation import check_choice, check_flag, check_int, check_path, check_real

if TYPE_CHECKING:
    from fastnn.trainer import Trainer

__all__ = ["Callback", "Checkpoint", "EarlyStopping", "ReduceOnPlateau", "TimeLimit"]


class Callback(Protocol):
    """What `Trainer.fit` asks of a callback."""

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        """Look at an epoch that just ended."""


class _Plateau:
    """Counts epochs without progress of a monitored value; NaN is never progress."""

    def __init__(self, monitor: str, patience: int, min_delta: float) -> None:
        self.monitor = check_choice(monitor, "monitor", ("validation_loss", "loss"))
        self.patience = check_int(patience, "patience", low=1)
        self.min_delta = check_real(min_delta, "min_delta", low=0.0)
        self.restart()

    def restart(self, best: float = math.inf) -> None:
        """Begin to wait anew, with a mark to beat."""
        self.best = math.inf if math.isnan(best) else best
        self.epochs_waited = 0

    def require(self, monitors: Set[str]) -> None:
        """Raise where what is monitored will not be there."""
        if self.monitor not in monitors:
            raise ValueError(
                f"monitor={self.monitor!r} needs validation data: give fit validation_data=(X, y), "
                "or monitor='loss'"
            )

    def improved(self, logs: Mapping[str, float]) -> bool:
        """Whether this epoch is better than the best so far by more than `min_delta`."""
        value = logs[self.monitor]
        if value < self.best - self.min_delta:
            self.best = value
            self.epochs_waited = 0
            return True
        self.epochs_waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        return self.epochs_waited >= self.patience


class EarlyStopping:
    """Stop once a value has not improved for `patience` epochs.

    Parameters
    ----------
    monitor : "validation_loss" or "loss", default "validation_loss"
    patience : int, default 10
        Epochs without progress after which to stop.
    min_delta : float, default 0.0
        Progress is a decrease by more than this.
    restore_best : bool, default True
        At the end of `fit`, whatever ended it, put the parameters of the best epoch back. The
        optimizer's state stays that of the last epoch. Nothing is put back where no epoch had a
        finite value.

    Attributes
    ----------
    best : float
        The best value seen.
    best_epoch : int or None
        Its epoch, counted from 1.
    stopped_epoch : int or None
        The epoch after which this callback stopped the training.

    Notes
    -----
    Each call of `fit` starts anew.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value; at the start of `fit`, a monitor that is not there.
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        patience: int = 10,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ) -> None:
        self._plateau = _Plateau(monitor, patience, min_delta)
        self.restore_best = check_flag(restore_best, "restore_best")
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._best_parameters: np.ndarray | None = None

    @property
    def best(self) -> float:
        return self._plateau.best

    def on_fit_begin(self, trainer: Trainer, monitors: Set[str]) -> None:
        """Forget the last fit."""
        self._plateau.require(monitors)
        self._plateau.restart()
        self.best_epoch = self.stopped_epoch = self._best_parameters = None

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        """Keep the best epoch, or stop."""
        if self._plateau.improved(logs):
            self.best_epoch = int(logs["epoch"])
            if self.restore_best:
                self._best_parameters = trainer.model.parameters.copy()
        elif self._plateau.exhausted:
            self.stopped_epoch = int(logs["epoch"])
            trainer.stop()

    def on_fit_end(self, trainer: Trainer) -> None:
        """Put the best parameters back."""
        if self._best_parameters is not None:
            trainer.model.parameters[:] = self._best_parameters
            self._best_parameters = None


class ReduceOnPlateau:
    """Lower the learning rate once a value has not improved for `patience` epochs.

    The rate of every later step is multiplied by `factor`, whatever schedule it comes from. After
    a cut, the value at the cut is the new mark to beat: one lucky epoch long ago does not cut the
    rate again and again.

    Parameters
    ----------
    monitor : "validation_loss" or "loss", default "validation_loss"
    factor : float, default 0.5
        Between 0 and 1.
    patience : int, default 5
        Epochs without progress after which to cut.
    min_delta : float, default 0.0
        Progress is a decrease by more than this.
    min_factor : float, default 1e-4
        All cuts together do not go below this.

    Notes
    -----
    The cuts belong to the trainer, and are saved with it; the count of epochs does not outlive a
    call of `fit`.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value; at the start of `fit`, a monitor that is not there.
    """

    def __init__(
        self,
        monitor: str = "validation_loss",
        factor: float = 0.5,
        patience: int = 5,
        min_delta: float = 0.0,
        min_factor: float = 1e-4,
    ) -> None:
        self._plateau = _Plateau(monitor, patience, min_delta)
        self.factor = check_real(factor, "factor", low=0, high=1, low_open=True, high_open=True)
        self.min_factor = check_real(min_factor, "min_factor", low=0, high=1)

    def on_fit_begin(self, trainer: Trainer, monitors: Set[str]) -> None:
        """Forget the last fit."""
        self._plateau.require(monitors)
        self._plateau.restart()

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        """Cut the rate where it is time."""
        if not self._plateau.improved(logs) and self._plateau.exhausted:
            self._plateau.restart(logs[self._plateau.monitor])
            reduced = max(trainer.rate_factor * self.factor, self.min_factor)
            trainer.rate_factor = min(trainer.rate_factor, reduced)


class TimeLimit:
    """Stop after the first epoch that ends later than `seconds` after the start of `fit`.

    Parameters
    ----------
    seconds : float
        Greater than 0.

    Raises
    ------
    TypeError, ValueError
        `seconds` is no positive number.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = check_real(seconds, "seconds", low=0.0, low_open=True)
        self._start = time.monotonic()

    def on_fit_begin(self, trainer: Trainer, monitors: Set[str]) -> None:
        """Start the clock."""
        self._start = time.monotonic()

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        """Stop where the time is over."""
        if time.monotonic() - self._start >= self.seconds:
            trainer.stop()


class Checkpoint:
    """Save the whole training every few epochs, for `Trainer.load`.

    A kill or a power cut at any moment leaves the last checkpoint or the new one, never half of
    one.

    Parameters
    ----------
    path : path-like
        Where to; "{epoch}" stands for the epoch, counted from 1: without it there is one file,
        which is replaced.
    every : int, default 1
        Epochs between two files.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value.
    OSError
        From `fit`, where a file cannot be written.
    """

    def __init__(self, path: Any, every: int = 1) -> None:
        self.path = check_path(path)
        self.every = check_int(every, "every", low=1)

    def on_epoch_end(self, trainer: Trainer, logs: Mapping[str, float]) -> None:
        """Write a file where it is time."""
        epoch = int(logs["epoch"])
        if epoch % self.every == 0:
            trainer.save(self.path.replace("{epoch}", str(epoch)))
