"""Optimizers: the Python half of each row; the C half is csrc/optimizers.def.

An optimizer object holds settings and no state, so that one object can serve many trainers. State
has two parts, which the Trainer keeps and saves: slots, arrays of the parameters' shape; and
counters, the running products that a step's scalars are computed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np

from fastnn.tables.scalars import Scalar

__all__ = [
    "LBFGS",
    "OPTIMIZERS",
    "SCALAR_UPDATES",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "LBFGSState",
    "Nadam",
    "Optimizer",
    "RMSprop",
    "Rprop",
    "get_optimizer",
    "resolve_optimizer",
]

Array = np.ndarray
Counters = dict[str, float]

# Bounds of settings: (lowest, highest, whether the lowest itself is allowed).
_RATE = (0.0, math.inf, True)
_POSITIVE = (0.0, math.inf, False)
_SHARE = (0.0, 1.0, True)  # 1 itself is not allowed


@dataclass(frozen=True)
class Optimizer:
    """What all optimizers have.

    Attributes
    ----------
    kernel : str
        Row of csrc/optimizers.def.
    n_slots : int
        State arrays of the parameters' shape.
    momentum_slot : int or None
        The one that is a running mean of gradients; the kernels let it fade to zero.
    learning_rate : float
    """

    name: ClassVar[str] = ""
    _bounds: ClassVar[dict[str, tuple[float, float, bool]]] = {}

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in self._bounds:
                value = _check_real(value, setting.name, *self._bounds[setting.name])
            elif setting.type == "bool":
                if not isinstance(value, bool | np.bool_):
                    raise TypeError(f"{setting.name} must be True or False, got {value!r}")
                value = bool(value)
            object.__setattr__(self, setting.name, value)

    @property
    def kernel(self) -> str:
        return self.name

    @property
    def n_slots(self) -> int:
        raise NotImplementedError

    @property
    def momentum_slot(self) -> int | None:
        return None

    @property
    def learning_rate(self) -> float:
        raise NotImplementedError

    def init_slots(self, slots: Array) -> None:
        """Fill fresh state, (n_slots, n_parameters)."""
        slots[:] = 0

    def init_counters(self) -> Counters:
        """Counters before the first step."""
        return {}

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        """The scalars that each of the next steps needs.

        Parameters
        ----------
        counters : dict
            From `init_counters`, or from the last call.
        rates : ndarray of shape (n_steps,), float64
            Learning rates.

        Returns
        -------
        scalars : ndarray of shape (n_steps, K), float64, C-contiguous
            Columns as csrc/optimizers.def reads them.
        counters : dict
            After the last step. Running products are taken step by step, so any split of the
            steps into calls gives the same bits.
        """
        raise NotImplementedError

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        """One step in NumPy: the parameters w and the slots are changed in place.

        g is the gradient, h one row of `step_scalars`.
        """
        raise NotImplementedError

    @property
    def scalar_update(self) -> Scalar:
        """`update` for one parameter: (w, g, a, b, h) -> (w, a, b), of floats.

        a and b are the parameter's values in the two slots, 0 where there is none; h is indexed
        like a row of `step_scalars`. Compiled at run time (see `fastnn.tables.scalars`).
        """
        return SCALAR_UPDATES[self.kernel]

    def get_config(self) -> dict[str, Any]:
        """Name and settings, for files; `get_optimizer` takes them."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}


def _check_real(value: Any, name: str, low: float, high: float, low_allowed: bool) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, bool | np.bool_) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    value = float(value)
    if not (value >= low if low_allowed else value > low) or not value < high:
        sign = ">=" if low_allowed else ">"
        bound = f" and < {high}" if high < math.inf else ""
        raise ValueError(f"{name} must be finite, {sign} {low}{bound}; got {value}")
    return value


def _columns(rates: Array, *columns: Array | float) -> Array:
    scalars = np.empty((len(rates), len(columns)))
    for k, column in enumerate(columns):
        scalars[:, k] = column
    return scalars


def _running_product(start: float, factor: Array | float, n: int) -> Array:
    """Start * factor, start * factor**2, ... each from the one before: n products."""
    products = np.empty(n + 1)
    products[0] = start
    products[1:] = factor
    return np.multiply.accumulate(products)[1:]


def _last(products: Array, start: float) -> float:
    return float(products[-1]) if len(products) else start


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, with momentum.

    ``v = momentum v + g; w -= rate v``; with nesterov ``w -= rate (g + momentum v)``.

    Parameters
    ----------
    learning_rate : float, default 0.01
    momentum : float, default 0.0
        In ``0 <= momentum < 1``.
    nesterov : bool, default False

    References
    ----------
    Polyak (1964), doi 10.1016/0041-5553(64)90137-5.
    Sutskever, Martens, Dahl and Hinton (2013), On the importance of initialization and momentum.
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    name: ClassVar[str] = "sgd"
    _bounds: ClassVar[dict] = {"learning_rate": _RATE, "momentum": _SHARE}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True needs momentum > 0: it looks ahead along the momentum")

    @property
    def kernel(self) -> str:
        if self.momentum == 0:
            return "sgd"
        return "sgd_nesterov" if self.nesterov else "sgd_momentum"

    @property
    def n_slots(self) -> int:
        return 0 if self.momentum == 0 else 1

    @property
    def momentum_slot(self) -> int | None:
        return None if self.momentum == 0 else 0

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        if self.momentum == 0:
            return _columns(rates, rates), counters
        return _columns(rates, rates, self.momentum), counters

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        if self.momentum == 0:
            w -= h[0] * g
            return
        v = slots[0]
        v[:] = h[1] * v + g
        w -= h[0] * (g + h[1] * v if self.nesterov else v)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: steps scaled by running moments of the gradient.

    ``m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2;``
    ``w -= rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)``

    Parameters
    ----------
    learning_rate : float, default 0.001
    beta1, beta2 : float, default 0.9 and 0.999
        In ``0 <= beta < 1``.
    epsilon : float, default 1e-8
        Added to the square root of the corrected second moment, as in the paper.

    References
    ----------
    Kingma and Ba (2015), Adam: a method for stochastic optimization, arXiv:1412.6980.
    """

    learning_rate: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    name: ClassVar[str] = "adam"
    _bounds: ClassVar[dict] = {
        "learning_rate": _RATE,
        "beta1": _SHARE,
        "beta2": _SHARE,
        "epsilon": _POSITIVE,
    }

    @property
    def n_slots(self) -> int:
        return 2

    @property
    def momentum_slot(self) -> int | None:
        return 0

    def init_counters(self) -> Counters:
        return {"beta1_power": 1.0, "beta2_power": 1.0}

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        n = len(rates)
        power1 = _running_product(counters["beta1_power"], self.beta1, n)
        power2 = _running_product(counters["beta2_power"], self.beta2, n)
        scalars = _columns(
            rates,
            rates / (1.0 - power1),
            1.0 / np.sqrt(1.0 - power2),
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            self.epsilon,
        )
        return scalars, {
            "beta1_power": _last(power1, counters["beta1_power"]),
            "beta2_power": _last(power2, counters["beta2_power"]),
        }

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        m, v = slots
        m[:] = h[2] * m + h[3] * g
        v[:] = h[4] * v + h[5] * g * g
        w -= h[0] * m / (np.sqrt(v) * h[1] + h[6])


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with weight decay that is not part of the gradient.

    Every parameter, biases included, is first multiplied by ``1 - rate weight_decay``; then the
    step of Adam.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon : float
        As in Adam.
    weight_decay : float, default 0.01

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled weight decay regularization, arXiv:1711.05101.
    """

    weight_decay: float = 0.01
    name: ClassVar[str] = "adamw"
    _bounds: ClassVar[dict] = {**Adam._bounds, "weight_decay": _RATE}

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        scalars, counters = super().step_scalars(counters, rates)
        return np.column_stack([scalars, 1.0 - rates * self.weight_decay]), counters

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        w *= h[7]
        super().update(w, g, slots, h)


@dataclass(frozen=True)
class Nadam(Adam):
    """Adam with Nesterov momentum, whose momentum warms up.

    ``mu_t = beta1 (1 - 0.96^(t momentum_decay) / 2)``; the gradient enters with weight
    ``(1 - mu_t) / (1 - mu_1 ... mu_t)``, the first moment with
    ``mu_{t+1} / (1 - mu_1 ... mu_{t+1})``.

    Parameters
    ----------
    learning_rate : float, default 0.002
    beta1, beta2, epsilon : float
        As in Adam.
    momentum_decay : float, default 0.004

    References
    ----------
    Dozat (2016), Incorporating Nesterov momentum into Adam.
    """

    learning_rate: float = 2e-3
    momentum_decay: float = 4e-3
    name: ClassVar[str] = "nadam"
    _bounds: ClassVar[dict] = {**Adam._bounds, "momentum_decay": _RATE}

    def init_counters(self) -> Counters:
        return {"warm_power": 1.0, "mu_product": 1.0, "beta2_power": 1.0}

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        n = len(rates)
        warm = _running_product(counters["warm_power"], 0.96**self.momentum_decay, n + 1)
        mu = self.beta1 * (1.0 - 0.5 * warm)  # of this step and the one after
        product = _running_product(counters["mu_product"], mu[:n], n)
        power2 = _running_product(counters["beta2_power"], self.beta2, n)
        scalars = _columns(
            rates,
            rates * (1.0 - mu[:n]) / (1.0 - product),
            rates * mu[1:] / (1.0 - product * mu[1:]),
            1.0 / np.sqrt(1.0 - power2),
            self.beta1,
            1.0 - self.beta1,
            self.beta2,
            1.0 - self.beta2,
            self.epsilon,
        )
        return scalars, {
            "warm_power": _last(warm[:n], counters["warm_power"]),
            "mu_product": _last(product, counters["mu_product"]),
            "beta2_power": _last(power2, counters["beta2_power"]),
        }

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        m, v = slots
        m[:] = h[3] * m + h[4] * g
        v[:] = h[5] * v + h[6] * g * g
        w -= (h[0] * g + h[1] * m) / (np.sqrt(v) * h[2] + h[7])


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """Steps scaled by a running mean of the squared gradient.

    ``v = rho v + (1 - rho) g^2; b = momentum b + g / (sqrt(v) + epsilon); w -= rate b``

    Parameters
    ----------
    learning_rate : float, default 0.001
    rho : float, default 0.9
        In ``0 <= rho < 1``.
    epsilon : float, default 1e-8
    momentum : float, default 0.0

    References
    ----------
    Tieleman and Hinton (2012), Neural networks for machine learning, lecture 6.5.
    """

    learning_rate: float = 1e-3
    rho: float = 0.9
    epsilon: float = 1e-8
    momentum: float = 0.0
    name: ClassVar[str] = "rmsprop"
    _bounds: ClassVar[dict] = {
        "learning_rate": _RATE,
        "rho": _SHARE,
        "epsilon": _POSITIVE,
        "momentum": _SHARE,
    }

    @property
    def kernel(self) -> str:
        return "rmsprop" if self.momentum == 0 else "rmsprop_momentum"

    @property
    def n_slots(self) -> int:
        return 1 if self.momentum == 0 else 2

    @property
    def momentum_slot(self) -> int | None:
        return None if self.momentum == 0 else 1

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        columns: list[Array | float] = [rates, self.rho, 1.0 - self.rho, self.epsilon]
        if self.momentum != 0:
            columns.append(self.momentum)
        return _columns(rates, *columns), counters

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        v = slots[0]
        v[:] = h[1] * v + h[2] * g * g
        scaled = g / (np.sqrt(v) + h[3])
        if self.momentum != 0:
            b = slots[1]
            b[:] = h[4] * b + scaled
            scaled = b
        w -= h[0] * scaled


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """Steps scaled by the sum of all squared gradients.

    ``v += g^2; w -= rate g / (sqrt(v) + epsilon)``

    Parameters
    ----------
    learning_rate : float, default 0.01
    epsilon : float, default 1e-10

    References
    ----------
    Duchi, Hazan and Singer (2011), Adaptive subgradient methods, JMLR 12.
    """

    learning_rate: float = 0.01
    epsilon: float = 1e-10
    name: ClassVar[str] = "adagrad"
    _bounds: ClassVar[dict] = {"learning_rate": _RATE, "epsilon": _POSITIVE}

    @property
    def n_slots(self) -> int:
        return 1

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        return _columns(rates, rates, self.epsilon), counters

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        v = slots[0]
        v += g * g
        w -= h[0] * g / (np.sqrt(v) + h[1])


@dataclass(frozen=True)
class Rprop(Optimizer):
    """Steps of their own for each parameter, led by the gradient's sign; for full batches.

    Where the sign stays, the step grows by eta_plus; where it changes, it shrinks by eta_minus
    and the parameter waits for one step. Without weight backtracking.

    Parameters
    ----------
    learning_rate : float, default 0.01
        The first step. A schedule scales all steps by rate / learning_rate.
    eta_minus, eta_plus : float, default 0.5 and 1.2
    min_step, max_step : float, default 1e-6 and 50

    References
    ----------
    Riedmiller and Braun (1993), doi 10.1109/ICNN.1993.298623.
    """

    learning_rate: float = 0.01
    eta_minus: float = 0.5
    eta_plus: float = 1.2
    min_step: float = 1e-6
    max_step: float = 50.0
    name: ClassVar[str] = "rprop"
    _bounds: ClassVar[dict] = {
        "learning_rate": _POSITIVE,
        "eta_minus": (0.0, 1.0, False),
        "eta_plus": (1.0, math.inf, False),
        "min_step": _RATE,
        "max_step": _POSITIVE,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_step > self.max_step:
            raise ValueError(
                f"min_step must not exceed max_step, got {self.min_step} and {self.max_step}"
            )

    @property
    def n_slots(self) -> int:
        return 2

    def init_slots(self, slots: Array) -> None:
        slots[0] = 0
        slots[1] = self.learning_rate

    def step_scalars(self, counters: Counters, rates: Array) -> tuple[Array, Counters]:
        scalars = _columns(
            rates,
            rates / self.learning_rate,
            self.eta_minus,
            self.eta_plus,
            self.min_step,
            self.max_step,
        )
        return scalars, counters

    def update(self, w: Array, g: Array, slots: Array, h: Array) -> None:
        previous, step = slots
        s = g * previous
        step[:] = np.clip(step * np.where(s > 0, h[2], np.where(s < 0, h[1], 1.0)), h[3], h[4])
        g = np.where(s < 0, 0.0, g)
        w -= h[0] * np.sign(g) * step
        previous[:] = g


# One parameter at a time --------------------------------------------------------------------------

Step = tuple[float, float, float]


def _scalar_sgd(w: float, g: float, a: float, b: float, h: Array) -> Step:
    return w - h[0] * g, a, b


def _scalar_sgd_momentum(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[1] * a + g
    return w - h[0] * a, a, b


def _scalar_sgd_nesterov(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[1] * a + g
    return w - h[0] * (h[1] * a + g), a, b


def _scalar_adam(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[2] * a + h[3] * g
    b = h[4] * b + h[5] * g * g
    return w - h[0] * a / (math.sqrt(b) * h[1] + h[6]), a, b


def _scalar_adamw(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[2] * a + h[3] * g
    b = h[4] * b + h[5] * g * g
    return h[7] * w - h[0] * a / (math.sqrt(b) * h[1] + h[6]), a, b


def _scalar_nadam(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[3] * a + h[4] * g
    b = h[5] * b + h[6] * g * g
    return w - (h[0] * g + h[1] * a) / (math.sqrt(b) * h[2] + h[7]), a, b


def _scalar_rmsprop(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[1] * a + h[2] * g * g
    return w - h[0] * g / (math.sqrt(a) + h[3]), a, b


def _scalar_rmsprop_momentum(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = h[1] * a + h[2] * g * g
    b = h[4] * b + g / (math.sqrt(a) + h[3])
    return w - h[0] * b, a, b


def _scalar_adagrad(w: float, g: float, a: float, b: float, h: Array) -> Step:
    a = a + g * g
    return w - h[0] * g / (math.sqrt(a) + h[1]), a, b


def _scalar_rprop(w: float, g: float, a: float, b: float, h: Array) -> Step:
    s = g * a
    b = b * (h[2] if s > 0.0 else h[1] if s < 0.0 else 1.0)
    b = h[3] if b < h[3] else h[4] if b > h[4] else b
    g = 0.0 if s < 0.0 else g
    return w - h[0] * (1.0 if g > 0.0 else -1.0 if g < 0.0 else g) * b, g, b


SCALAR_UPDATES: dict[str, Scalar] = {
    "sgd": _scalar_sgd,
    "sgd_momentum": _scalar_sgd_momentum,
    "sgd_nesterov": _scalar_sgd_nesterov,
    "adam": _scalar_adam,
    "adamw": _scalar_adamw,
    "nadam": _scalar_nadam,
    "rmsprop": _scalar_rmsprop,
    "rmsprop_momentum": _scalar_rmsprop_momentum,
    "adagrad": _scalar_adagrad,
    "rprop": _scalar_rprop,
}
"""`Optimizer.scalar_update` of each kernel."""


# LBFGS --------------------------------------------------------------------------------------------

Objective = Callable[[Array], tuple[float, Array]]


@dataclass
class LBFGSState:
    """What LBFGS remembers between iterations.

    Attributes
    ----------
    s, y : list of ndarray, each (n_parameters,), float64
        The last moves of the parameters and of the gradient, oldest first.
    converged : bool
        No step lowers the objective any more.
    """

    s: list[Array] = field(default_factory=list)
    y: list[Array] = field(default_factory=list)
    converged: bool = False


@dataclass(frozen=True)
class LBFGS(Optimizer):
    """Limited-memory BFGS over all rows; one epoch is one iteration.

    Each iteration searches along the quasi-Newton direction for a step that satisfies the strong
    Wolfe conditions (SciPy's line search), so there is no learning rate to set.

    Parameters
    ----------
    history : int, default 10
        Pairs of moves that the curvature is estimated from.
    max_line_search : int, default 20
        Evaluations along a direction.
    tolerance : float, default 1e-10
        Converged where no component of the gradient exceeds it.

    Raises
    ------
    ImportError
        While training, where SciPy is not installed.

    References
    ----------
    Nocedal and Wright (2006), Numerical optimization, algorithms 7.4 and 3.5.
    """

    history: int = 10
    max_line_search: int = 20
    tolerance: float = 1e-10
    name: ClassVar[str] = "lbfgs"
    learning_rate: ClassVar[float] = 1.0
    _bounds: ClassVar[dict] = {"tolerance": _RATE}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("history", "max_line_search"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
            object.__setattr__(self, name, int(value))

    @property
    def n_slots(self) -> int:
        return 0

    def iterate(self, objective: Objective, x: Array, state: LBFGSState) -> tuple[Array, float]:
        """One iteration.

        Parameters
        ----------
        objective : callable (x) -> (value, gradient)
            gradient float64 (n_parameters,).
        x : ndarray of shape (n_parameters,), float64
        state : LBFGSState
            Changed in place.

        Returns
        -------
        x : ndarray
            The next point; the same where the search has converged.
        value : float
            The objective at the point that came in.
        """
        cached: dict[bytes, tuple[float, Array]] = {}

        def evaluate(point: Array) -> tuple[float, Array]:
            key = point.tobytes()
            if key not in cached:
                if len(cached) > 1:  # the start, and the last point asked for
                    del cached[next(reversed(cached))]
                cached[key] = objective(point)
            return cached[key]

        value, gradient = evaluate(x)
        state.converged = bool(np.abs(gradient).max() <= self.tolerance)
        if state.converged or not math.isfinite(value):
            return x, value
        for direction in (self._direction(gradient, state), -gradient):
            if not direction @ gradient < 0:
                continue
            step = self._search(evaluate, x, direction, value, gradient, bool(state.s))
            if step is None:
                state.s.clear()
                state.y.clear()
                continue
            following = x + step * direction
            moved, turned = following - x, evaluate(following)[1] - gradient
            if moved @ turned > 1e-12 * (turned @ turned):  # keeps the estimate positive definite
                state.s.append(moved)
                state.y.append(turned)
                del state.s[: -self.history], state.y[: -self.history]
            return following, value
        state.converged = True
        return x, value

    def _direction(self, gradient: Array, state: LBFGSState) -> Array:
        """The quasi-Newton direction by the two-loop recursion."""
        q = -gradient
        factors = []
        for s, y in zip(reversed(state.s), reversed(state.y), strict=True):
            a = (s @ q) / (s @ y)
            q = q - a * y
            factors.append(a)
        if state.s:
            q *= (state.s[-1] @ state.y[-1]) / (state.y[-1] @ state.y[-1])
        for s, y, a in zip(state.s, state.y, reversed(factors), strict=True):
            q = q + (a - (y @ q) / (s @ y)) * s
        return q

    def _search(
        self,
        evaluate: Objective,
        x: Array,
        direction: Array,
        value: float,
        gradient: Array,
        scaled: bool,
    ) -> float | None:
        """A step along the direction that satisfies the strong Wolfe conditions, or lowers."""
        try:
            from scipy.optimize import line_search
        except ImportError as error:
            raise ImportError("LBFGS needs SciPy for its line search: pip install scipy") from error
        import warnings

        # Without curvature the direction's length means nothing: start with a move of length 1.
        length = 1.0 if scaled else 1.0 / max(1.0, float(np.linalg.norm(direction)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # LineSearchWarning: None below says the same
            step = line_search(
                lambda p: evaluate(p)[0],
                lambda p: evaluate(p)[1],
                x,
                length * direction,
                gradient,
                value,
                maxiter=self.max_line_search,
            )[0]
        if step is not None:
            return float(step) * length
        for _ in range(self.max_line_search):  # Wolfe cannot be met near rounding; lower will do
            if evaluate(x + length * direction)[0] < value:
                return length
            length *= 0.5
        return None


_CLASSES = (SGD, Adam, AdamW, Nadam, RMSprop, Adagrad, Rprop, LBFGS)

OPTIMIZERS: dict[str, type[Optimizer]] = {cls.name: cls for cls in _CLASSES}
"""Optimizer classes by name."""


def get_optimizer(config: str | dict[str, Any]) -> Optimizer:
    """An optimizer from its name, or from what `Optimizer.get_config` returned.

    Raises
    ------
    TypeError, ValueError
        There is no such optimizer or setting, or a setting is out of its bounds.
    """
    settings: dict[str, Any] = dict(config) if isinstance(config, dict) else {"name": config}
    name = settings.pop("name", None)
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {name!r}")
    return OPTIMIZERS[name](**settings)


def resolve_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer that a name or an object stands for.

    Raises
    ------
    TypeError, ValueError
        Neither; or there is no such name.
    """
    if isinstance(optimizer, str):
        return get_optimizer(optimizer)
    if isinstance(optimizer, Optimizer):
        return optimizer
    raise TypeError(
        f"optimizer must be one of {', '.join(OPTIMIZERS)}, or an optimizer object such as "
        f"Adam(learning_rate=1e-3); got {optimizer!r}"
    )
