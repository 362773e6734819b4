"""What training reports: one number per epoch and quantity."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["History", "import_pyplot"]

_MANY_PARTS = 64  # as many short calls of `extend` are kept apart until somebody looks


class History:
    """The course of a training, one entry per finished epoch.

    Attributes
    ----------
    loss : ndarray of shape (n_epochs,), float64
        Weighted mean of the loss over all rows of the epoch, each batch before its update;
        without the l2 term.
    validation_loss : ndarray of shape (n_epochs,), float64
        Loss on the validation data after the epoch; NaN where there were none.
    learning_rate : ndarray of shape (n_epochs,), float64
        The rate of the epoch's last step; NaN for an optimizer without one.
    seconds : ndarray of shape (n_epochs,), float64
        Time that training took, validation and callbacks left out.

    Notes
    -----
    The arrays are read-only views that cost the same however long the history is; an array got
    before an epoch does not grow with it.
    """

    COLUMNS = ("loss", "validation_loss", "learning_rate", "seconds")

    def __init__(self) -> None:
        self._table = np.empty((len(self.COLUMNS), 0))
        self._size = 0
        self._parts: list[tuple[int, dict[str, np.ndarray]]] = []
        self._lock = threading.Lock()

    def extend(self, **columns: Iterable[float]) -> None:
        """Append epochs; a column that is not given is NaN.

        Arrays are kept as they are until somebody looks: they must not change.
        """
        arrays = {name: np.ascontiguousarray(v, np.float64) for name, v in columns.items()}
        n_epochs = max(len(values) for values in arrays.values())
        with self._lock:
            self._parts.append((n_epochs, arrays))
            self._size += n_epochs
            if len(self._parts) >= _MANY_PARTS:
                self._join()

    def _join(self) -> None:
        """Copy what `extend` has kept into the table; the caller holds the lock."""
        at = self._size - sum(n_epochs for n_epochs, _ in self._parts)
        if self._size > self._table.shape[1]:
            # Doubling keeps the cost of an epoch constant on average.
            table = np.empty((len(self.COLUMNS), max(self._size, 2 * self._table.shape[1], 16)))
            table[:, :at] = self._table[:, :at]
            self._table = table
        for n_epochs, arrays in self._parts:
            for row, name in zip(self._table, self.COLUMNS, strict=True):
                row[at : at + n_epochs] = arrays.get(name, np.nan)
            at += n_epochs
        self._parts.clear()

    def _joined(self) -> np.ndarray:
        """All columns: a view of shape (4, n_epochs)."""
        with self._lock:
            if self._parts:
                self._join()
            return self._table[:, : self._size]

    def amend(self, **values: float) -> None:
        """Set columns of the last epoch."""
        last = self._joined()[:, -1]
        for name, value in values.items():
            last[self.COLUMNS.index(name)] = value

    def last(self) -> dict[str, float]:
        """The columns of the last epoch by name, without those that were not measured (NaN)."""
        column = self._joined()[:, -1].tolist()
        return {k: v for k, v in zip(self.COLUMNS, column, strict=True) if not math.isnan(v)}

    def _column(self, name: str) -> np.ndarray:
        view = self._joined()[self.COLUMNS.index(name)]
        view.flags.writeable = False
        return view

    @property
    def loss(self) -> np.ndarray:
        return self._column("loss")

    @property
    def validation_loss(self) -> np.ndarray:
        return self._column("validation_loss")

    @property
    def learning_rate(self) -> np.ndarray:
        return self._column("learning_rate")

    @property
    def seconds(self) -> np.ndarray:
        return self._column("seconds")

    @property
    def table(self) -> np.ndarray:
        """All columns, in the order of `COLUMNS`: a copy of shape (4, n_epochs)."""
        return self._joined().copy()

    def __len__(self) -> int:
        """Number of epochs."""
        return self._size

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"table": self.table}

    def __setstate__(self, state: dict[str, np.ndarray]) -> None:
        self.__init__()  # type: ignore[misc]
        self._table = state["table"]
        self._size = self._table.shape[1]

    def __repr__(self) -> str:
        if not self._size:
            return "History(0 epochs)"
        text = f"History({self._size} epochs, loss {self.loss[-1]:.4g}"
        if np.isfinite(self.validation_loss[-1]):
            text += f", validation_loss {self.validation_loss[-1]:.4g}"
        return text + ")"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the loss curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where to draw; a new figure by default.

        Returns
        -------
        Axes

        Raises
        ------
        ImportError
            Matplotlib is not installed.
        """
        if ax is None:
            ax = import_pyplot().subplots()[1]
        epochs = np.arange(1, self._size + 1)
        ax.plot(epochs, self.loss, label="training")
        if np.isfinite(self.validation_loss).any():
            ax.plot(epochs, self.validation_loss, label="validation")
            ax.legend()
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        return ax


def import_pyplot() -> Any:
    """matplotlib.pyplot, or an ImportError that says how to get it."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install 'fastnn-mlp[plot]'") from error
    return pyplot
