"""Learning rates as functions of the step.

A schedule is callable: ``schedule(step)`` is the rate of that update, counted from 0; an array of
steps gives an array of rates. Each rate follows from its step alone, so training in one call or
in many gives the same rates. Any other callable (step) -> rate will do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

__all__ = [
    "SCHEDULES",
    "ConstantRate",
    "CosineDecay",
    "ExponentialDecay",
    "InverseScaling",
    "OneCycle",
    "Schedule",
    "StepDecay",
    "Warmup",
    "get_schedule",
    "resolve_schedule",
]


@dataclass(frozen=True)
class Schedule:
    """What all schedules have: a base rate and a factor for each step.

    Parameters
    ----------
    learning_rate : float, optional
        The rate that the factors multiply; by default the optimizer's.
    """

    learning_rate: float | None = None
    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.learning_rate is not None:
            self._keep("learning_rate", _real(self.learning_rate, "learning_rate", 0.0))

    def _keep(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def factor(self, step: int) -> float:
        """The rate of a step over the base rate."""
        raise NotImplementedError

    def bind(self, learning_rate: float) -> Schedule:
        """The same schedule, with this base rate where it has none of its own."""
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=learning_rate)

    def __call__(self, step: Any) -> Any:
        if self.learning_rate is None:
            raise ValueError(
                f"{self.name} has no learning_rate yet: give one, or pass the schedule to a Trainer"
            )
        if np.ndim(step) == 0:
            return self.learning_rate * self.factor(int(step))
        # math functions on single steps: NumPy's may round differently by place in the array
        return np.array([self.learning_rate * self.factor(int(s)) for s in step], np.float64)

    def get_config(self) -> dict[str, Any]:
        """Name and settings, for files; `get_schedule` takes them."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


def _real(value: Any, name: str, low: float, high: float = math.inf) -> float:
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not low <= value <= high or math.isinf(value):
        raise ValueError(f"{name} must be finite and in {[low, high]}, got {value}")
    return float(value)


def _steps(value: Any, name: str) -> int:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return int(value)


@dataclass(frozen=True)
class ConstantRate(Schedule):
    """The same rate for every step."""

    name: ClassVar[str] = "constant"

    def factor(self, step: int) -> float:
        return 1.0

    def __call__(self, step: Any) -> Any:
        if self.learning_rate is not None and np.ndim(step):
            return np.full(len(step), self.learning_rate)
        return super().__call__(step)


@dataclass(frozen=True)
class StepDecay(Schedule):
    """``rate * drop ** (step // every)``.

    Parameters
    ----------
    learning_rate : float, optional
    drop : float, default 0.5
        In 0..1.
    every : int, default 1000
        Steps from one drop to the next.
    """

    drop: float = 0.5
    every: int = 1000
    name: ClassVar[str] = "step_decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("drop", _real(self.drop, "drop", 0.0, 1.0))
        self._keep("every", _steps(self.every, "every"))

    def factor(self, step: int) -> float:
        return self.drop ** (step // self.every)


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``rate * decay ** (step / n_steps)``.

    Parameters
    ----------
    learning_rate : float, optional
    decay : float, default 0.1
        In 0..1: what is left of the rate after n_steps.
    n_steps : int, default 1000
    """

    decay: float = 0.1
    n_steps: int = 1000
    name: ClassVar[str] = "exponential_decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("decay", _real(self.decay, "decay", 0.0, 1.0))
        self._keep("n_steps", _steps(self.n_steps, "n_steps"))

    def factor(self, step: int) -> float:
        return self.decay ** (step / self.n_steps)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from the rate down to `final` of it, then constant.

    Parameters
    ----------
    learning_rate : float, optional
    n_steps : int, default 1000
    final : float, default 0.0
        In 0..1: what is left of the rate at the end.

    References
    ----------
    Loshchilov and Hutter (2017), SGDR, arXiv:1608.03983.
    """

    n_steps: int = 1000
    final: float = 0.0
    name: ClassVar[str] = "cosine_decay"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("n_steps", _steps(self.n_steps, "n_steps"))
        self._keep("final", _real(self.final, "final", 0.0, 1.0))

    def factor(self, step: int) -> float:
        return _cosine(1.0, self.final, min(step / self.n_steps, 1.0))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * share))


@dataclass(frozen=True)
class OneCycle(Schedule):
    """Up to the rate along half a cosine, then down along another.

    Parameters
    ----------
    learning_rate : float, optional
        The highest.
    n_steps : int, default 1000
        Of the whole cycle; after it the rate stays at its end.
    warm : float, default 0.3
        Share of the steps that go up.
    start : float, default 0.04
    final : float, default 4e-6
        Where the rate starts and ends, over the highest.

    References
    ----------
    Smith and Topin (2018), Super-convergence, arXiv:1708.07120.
    """

    n_steps: int = 1000
    warm: float = 0.3
    start: float = 0.04
    final: float = 4e-6
    name: ClassVar[str] = "one_cycle"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("n_steps", _steps(self.n_steps, "n_steps"))
        for name in ("warm", "start", "final"):
            self._keep(name, _real(getattr(self, name), name, 0.0, 1.0))

    def factor(self, step: int) -> float:
        top = self.warm * self.n_steps
        if step < top:
            return _cosine(self.start, 1.0, step / top)
        if step >= self.n_steps:
            return self.final
        return _cosine(1.0, self.final, (step - top) / (self.n_steps - top))


@dataclass(frozen=True)
class InverseScaling(Schedule):
    """``rate / (1 + step) ** power``.

    Parameters
    ----------
    learning_rate : float, optional
    power : float, default 0.5
    """

    power: float = 0.5
    name: ClassVar[str] = "inverse_scaling"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("power", _real(self.power, "power", 0.0))

    def factor(self, step: int) -> float:
        return (1 + step) ** -self.power


@dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line from 0 up to the rate, then another schedule, which starts there.

    Parameters
    ----------
    then : schedule, name or callable, optional
        Called with the steps since the end of the warm-up; by default constant.
    n_steps : int, default 100
        Step s < n_steps has ``(s + 1) / n_steps`` of the first rate of `then`.
    learning_rate : float, optional
    """

    then: Any = None
    n_steps: int = 100
    name: ClassVar[str] = "warmup"

    def __init__(
        self, then: Any = None, n_steps: int = 100, learning_rate: float | None = None
    ) -> None:
        self._keep("learning_rate", learning_rate)
        self._keep("then", _as_schedule(then))
        self._keep("n_steps", _steps(n_steps, "n_steps"))
        Schedule.__post_init__(self)

    def bind(self, learning_rate: float) -> Schedule:
        base = learning_rate if self.learning_rate is None else self.learning_rate
        then = self.then.bind(base) if isinstance(self.then, Schedule) else self.then
        return Warmup(then, self.n_steps, base)

    def __call__(self, step: Any) -> Any:
        if np.ndim(step):
            return np.array([self(int(s)) for s in step], np.float64)
        then = self.then
        if isinstance(then, Schedule) and self.learning_rate is not None:
            then = then.bind(self.learning_rate)
        step = int(step)
        if step < self.n_steps:
            return (step + 1) / self.n_steps * _rate(then(0), step)
        return _rate(then(step - self.n_steps), step)

    def get_config(self) -> dict[str, Any]:
        if not isinstance(self.then, Schedule):
            raise TypeError(
                f"a schedule that calls {self.then!r} cannot be written to a file, as code is not "
                "data: use a schedule of fastnn.schedules, or give the schedule again when loading"
            )
        return {**super().get_config(), "then": self.then.get_config()}


_CLASSES = (
    ConstantRate, StepDecay, ExponentialDecay, CosineDecay, OneCycle, InverseScaling, Warmup,
)  # fmt: skip

SCHEDULES: dict[str, type[Schedule]] = {cls.name: cls for cls in _CLASSES}
"""Schedule classes by name."""


def get_schedule(config: str | dict[str, Any]) -> Schedule:
    """A schedule from its name, or from what `Schedule.get_config` returned.

    Raises
    ------
    TypeError, ValueError
        There is no such schedule or setting, or a setting is out of its bounds.
    """
    settings: dict[str, Any] = dict(config) if isinstance(config, dict) else {"name": config}
    name = settings.pop("name", None)
    if name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    if isinstance(settings.get("then"), dict):
        settings["then"] = get_schedule(settings["then"])
    return SCHEDULES[name](**settings)


def _as_schedule(schedule: Any) -> Any:
    if schedule is None:
        return ConstantRate()
    if isinstance(schedule, str):
        return get_schedule(schedule)
    if not callable(schedule) or isinstance(schedule, type):
        raise TypeError(
            f"schedule must be a name, a schedule object such as CosineDecay(n_steps=1000), or a "
            f"callable (step) -> rate; got {schedule!r}"
        )
    return schedule


def resolve_schedule(schedule: Any, learning_rate: float) -> Callable[[Any], np.ndarray]:
    """A function from an array of steps to their rates, float64.

    Parameters
    ----------
    schedule : None, str, Schedule or callable (step) -> rate
        None is the constant rate.
    learning_rate : float
        The optimizer's, for schedules without one of their own.

    Raises
    ------
    TypeError
        None of these, or a rate is no number.
    ValueError
        There is no such name; or, when called, a rate is negative or not finite.
    """
    resolved = _as_schedule(schedule)
    if isinstance(resolved, Schedule):
        resolved = resolved.bind(learning_rate)

    def rates(steps: np.ndarray) -> np.ndarray:
        if isinstance(resolved, Schedule):
            values = np.asarray(resolved(steps), np.float64)
        else:
            values = np.array([_rate(resolved(int(step)), int(step)) for step in steps], np.float64)
        wrong = ~(values >= 0) | np.isinf(values)
        if wrong.any():
            at = int(wrong.argmax())
            raise ValueError(
                f"the schedule's rate of step {int(steps[at])} must be finite and >= 0, "
                f"got {values[at]}"
            )
        return values

    return rates


def _rate(value: Any, step: int) -> float:
    try:
        if isinstance(value, str | bytes | bool):  # which float() takes
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"the schedule's rate of step {step} must be a number, got {value!r}"
        ) from None
