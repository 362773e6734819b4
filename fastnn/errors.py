"""The exceptions that are fastnn's own; every other error is a Python built-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastnn.history import History

__all__ = ["BackendUnavailable", "DivergenceError", "ModelFormatError"]


class ModelFormatError(ValueError):
    """A model or trainer file is truncated, altered, or was never one."""


class DivergenceError(ArithmeticError):
    """Training met a loss or a parameter that is not finite.

    The model and the optimizer state are back at the start of the epoch in which it happened.

    Parameters
    ----------
    message : str
        What happened and what to try.
    epoch, batch : int
        Where it happened, both counted from 0: the epoch over the trainer's whole life, the batch
        within that epoch.
    history : History or None
        The epochs that this call finished before.
    """

    def __init__(
        self, message: str, epoch: int = 0, batch: int = 0, history: History | None = None
    ) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.batch = batch
        self.history = history

    def __reduce__(self) -> tuple[type[DivergenceError], tuple[str, int, int, History | None]]:
        # The default would call the class with `args`, which holds the message alone.
        return type(self), (self.args[0], self.epoch, self.batch, self.history)


class BackendUnavailable(ImportError):
    """The backend that was asked for does not exist on this machine."""
