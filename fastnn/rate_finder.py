"""A learning rate to start with, found by trying them all in one short run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn.errors import DivergenceError
from fastnn.history import import_pyplot
from fastnn.mlp import MLP, check_data
from fastnn.trainer import Trainer
from fastnn.validation import check_int, check_real, resolve_seed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RateSearch", "find_learning_rate"]

SAMPLE_ROWS = 1024  # whose loss is watched, at most: the same ones, so that noise cannot mislead
SMOOTHED_STEPS = 5  # that the slope is taken over
BLOW_UP = 3.0  # times the first loss above the lowest: beyond, larger rates tell nothing
BOUNCE = 0.1  # of the whole fall, above the lowest so far: the rate that does this is too large


@dataclass(frozen=True, eq=False)
class RateSearch:
    """What `find_learning_rate` saw.

    Attributes
    ----------
    rates : ndarray of shape (n_steps,), float64
        Growing; ends early where training blew up.
    losses : ndarray of shape (n_steps,), float64
        On one fixed sample of the rows, each after the step with that rate.
    suggestion : float
        The rate where the loss fell fastest, of those before it first bounced back up.
    """

    rates: np.ndarray
    losses: np.ndarray
    suggestion: float

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss over rate, and mark the suggestion.

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
        ax.plot(self.rates, self.losses)
        ax.axvline(self.suggestion, linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        ax.set_xscale("log")
        ax.set_xlabel("learning rate")
        ax.set_ylabel("loss")
        ax.legend()
        return ax


def find_learning_rate(
    model: MLP,
    X: Any,
    y: Any,
    *,
    sample_weight: Any = None,
    lowest: float = 1e-6,
    highest: float = 10.0,
    n_steps: int = 100,
    batch_size: int = 32,
    seed: int | None = None,
    **settings: Any,
) -> RateSearch:
    """Train a copy of the model with a rate that grows at every step, and watch the loss.

    Parameters
    ----------
    model : MLP
        Stays as it is.
    X, y, sample_weight
        As in `Trainer.fit`.
    lowest, highest : float, default 1e-6 and 10
        The range, ``0 < lowest < highest``; rates grow by one factor per step.
    n_steps : int, default 100
        At least 10.
    batch_size : int, default 32
        Rows per step, drawn with `seed`, again and again where there are few.
    seed : int, optional
    **settings
        ``loss``, ``optimizer``, ``l2``, ``clip_norm`` and ``n_threads`` of `Trainer`.

    Returns
    -------
    RateSearch

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type, shape or value; or the loss fell at no rate of the range.

    References
    ----------
    Smith (2017), Cyclical learning rates for training neural networks, arXiv:1506.01186.
    """
    lowest = check_real(lowest, "lowest", low=0, low_open=True)
    highest = check_real(highest, "highest", low=lowest, low_open=True)
    n_steps = check_int(n_steps, "n_steps", low=10)
    batch_size = check_int(batch_size, "batch_size", low=1)
    unknown = set(settings) - {"loss", "optimizer", "l2", "clip_norm", "n_threads"}
    if unknown:
        raise TypeError(f"find_learning_rate has no parameter {sorted(unknown)}")
    if not isinstance(model, MLP):
        raise TypeError(f"model must be an MLP, got {type(model).__name__}")
    seed = resolve_seed(seed)
    tried = np.geomspace(lowest, highest, n_steps)
    trainer = Trainer(model.copy(), schedule=lambda step: float(tried[step]), seed=seed, **settings)
    X, y, weight = check_data(model.plan, trainer.loss, X, y, sample_weight)
    batch_size = min(batch_size, len(X))

    def of(rows: np.ndarray) -> tuple[Any, ...]:
        return X[rows], y[rows], None if weight is None else weight[rows]

    generator = np.random.Generator(np.random.PCG64(seed))
    # Rows without weight say nothing, and alone could not be averaged.
    counting = np.arange(len(X)) if weight is None else np.flatnonzero(weight)
    sample = of(np.sort(generator.permutation(counting)[:SAMPLE_ROWS]))
    left = np.empty(0, np.int64)
    losses: list[float] = []
    for _ in range(n_steps):
        if len(left) < batch_size:
            left = generator.permutation(len(X))
        rows, left = left[:batch_size], left[batch_size:]
        try:
            trainer.step(*of(rows))
        except DivergenceError:
            break
        losses.append(trainer.evaluate(*sample))
        if not losses[-1] - min(losses) <= BLOW_UP * abs(losses[0]):
            losses.pop()
            break
    return _suggest(tried[: len(losses)], np.array(losses))


def _suggest(rates: np.ndarray, losses: np.ndarray) -> RateSearch:
    if len(losses) < SMOOTHED_STEPS:
        raise ValueError("training blew up at once: lower `lowest`, or scale the features")
    # Where a rate is too large the loss bounces, and the way down from a peak can be the steepest
    # of all: the search ends at the lowest loss before the first such peak.
    lowest = np.minimum.accumulate(losses)
    bounces = losses - lowest > BOUNCE * (losses[0] - lowest[-1])
    end = int(bounces.argmax()) if bounces.any() else len(losses)
    end = max(int(losses[:end].argmin()) + 1, SMOOTHED_STEPS)
    # Rates grow by one factor, so differences are slopes over the logarithm of the rate.
    falls = losses[: end - SMOOTHED_STEPS + 1] - losses[SMOOTHED_STEPS - 1 : end]
    steepest = int(np.argmax(falls))
    if not falls[steepest] > 0:
        raise ValueError(
            f"the loss fell at no rate from {rates[0]:g} to {rates[-1]:g}: widen the range"
        )
    return RateSearch(rates, losses, float(rates[steepest + SMOOTHED_STEPS // 2]))
