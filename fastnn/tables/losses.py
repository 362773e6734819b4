"""Losses: the Python half of each row; the C half is csrc/losses.def.

Per row of data the loss is the sum over the outputs; a batch's is the weighted mean of its rows'.
Each loss has a natural output link, through which it is computed from the logits z: stable where
the output itself would round to 0 or 1. Through any other link it is computed from the outputs y,
and its gradient goes through the link's derivative. y, z, t: float64 of shape (n, n_outputs).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastnn.tables.activations import (
    ACTIVATIONS,
    INFINITY,
    LARGEST_EXPONENT,
    LINKS,
    get_activation,
)
from fastnn.tables.scalars import Scalar

__all__ = [
    "LOSSES",
    "REGISTERED_LOSSES",
    "TARGET_KINDS",
    "Huber",
    "LossRow",
    "Quantile",
    "encode_targets",
    "get_loss",
    "resolve_loss",
]

Array = np.ndarray
Params = dict[str, float]

TARGET_KINDS = ("real", "nonnegative", "unit", "sign", "classes")
"""Of `LossRow.target_kind`; CUDA kernels know them by their places."""


@dataclass(frozen=True)
class LossRow:
    """One loss.

    Attributes
    ----------
    name : str
    value, gradient : callable (y, t, params)
        Loss of each output, and its derivative by y. Shape (n, n_outputs).
    logit_value, logit_gradient : callable (z, t, params)
        The same through the natural link, the derivative by z.
    natural_output : str
    target_kind : str, one of TARGET_KINDS
        Targets: any number; >= 0; in 0..1; -1 or 1; labels or rows of probabilities.
    domain : tuple (low, high)
        Outputs for which the loss is defined.
    formula : str
    params : dict
        Of Huber and Quantile.
    scalar_value, scalar_gradient : callable (y, t, p), of floats
        value and gradient of one output, compiled at run time (see `fastnn.tables.scalars`); p is
        `parameter`.
    scalar_logit_value, scalar_logit_gradient : callable (z, t, p), of floats
        The same through the natural link. None for cross_entropy, whose link couples the outputs:
        backends know softmax.
    """

    name: str
    value: Callable[[Array, Array, Params], Array]
    gradient: Callable[[Array, Array, Params], Array]
    logit_value: Callable[[Array, Array, Params], Array]
    logit_gradient: Callable[[Array, Array, Params], Array]
    natural_output: str
    target_kind: str
    domain: tuple[float, float]
    formula: str
    params: Params = field(default_factory=dict)
    scalar_value: Scalar | None = None
    scalar_gradient: Scalar | None = None
    scalar_logit_value: Scalar | None = None
    scalar_logit_gradient: Scalar | None = None

    @property
    def parameter(self) -> float:
        """The one number in `params`, or 0."""
        return next(iter(self.params.values()), 0.0)

    def __hash__(self) -> int:
        return hash((self.name, *self.params.items()))

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.name}({inner})" if inner else self.name

    def get_config(self) -> dict[str, Any]:
        """Name and parameters, for files."""
        return {"name": self.name, **self.params}

    def __reduce__(self) -> tuple[Any, ...]:
        return get_loss, (self.get_config(),)

    def rows_from_logits(self, z: Array, t: Array) -> Array:
        """Loss of each row, through the natural link."""
        return self.logit_value(z, t, self.params).sum(axis=1)

    def rows_from_outputs(self, y: Array, t: Array) -> Array:
        """Loss of each row, through any other link."""
        return self.value(y, t, self.params).sum(axis=1)


def _xlog(t: Array, y: Array) -> Array:
    """``t log(y)``, and 0 where t is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(t == 0, 0.0, t * np.log(y))


def _ratio(t: Array, y: Array) -> Array:
    """``t / y``, and 0 where t is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(t == 0, 0.0, t / y)


def _exp(z: Array) -> Array:
    return LINKS["exp"].f(z)


def _sigmoid(z: Array) -> Array:
    return ACTIVATIONS["sigmoid"].f(z)


def _huber(e: Array, delta: float) -> Array:
    a = np.abs(e)
    return np.where(a > delta, delta * (a - 0.5 * delta), 0.5 * e * e)


def _pinball(e: Array, q: float) -> Array:
    return np.where(e < 0, (q - 1.0) * e, q * e)


def _pinball_slope(e: Array, q: float) -> Array:
    return np.where(e > 0, -q, np.where(e < 0, 1.0 - q, 0.0))


def _log_softmax(z: Array) -> Array:
    shifted = z - z.max(axis=1, keepdims=True)
    first = z.argmax(axis=1)[:, None]
    e = np.exp(shifted)
    # The largest is 1: kept out, so that log1p sees what the others leave.
    np.put_along_axis(e, first, 0.0, axis=1)
    return shifted - np.log1p(e.sum(axis=1, keepdims=True))


# The same for one output. A NaN is let through, whatever the target.


def _scalar_huber(y: float, t: float, delta: float) -> float:
    e = y - t
    a = abs(e)
    return delta * (a - 0.5 * delta) if a > delta else 0.5 * e * e


def _scalar_huber_gradient(y: float, t: float, delta: float) -> float:
    e = y - t
    return -delta if e < -delta else delta if e > delta else e


def _scalar_pinball(y: float, t: float, q: float) -> float:
    e = t - y
    return (q - 1.0) * e if e < 0.0 else q * e


def _scalar_pinball_gradient(y: float, t: float, q: float) -> float:
    e = t - y
    return -q if e > 0.0 else 1.0 - q if e < 0.0 else 0.0 * e


def _scalar_sign(y: float, t: float, p: float) -> float:
    e = y - t
    return 1.0 if e > 0.0 else -1.0 if e < 0.0 else e


def _scalar_poisson(y: float, t: float, p: float) -> float:
    if t == 0.0:
        return y
    return INFINITY if y == 0.0 else y - t * math.log(y)


def _scalar_poisson_gradient(y: float, t: float, p: float) -> float:
    if t == 0.0:
        return y if math.isnan(y) else 1.0
    return -INFINITY if y == 0.0 else 1.0 - t / y


def _scalar_poisson_logit(z: float, t: float, p: float) -> float:
    return (INFINITY if z > LARGEST_EXPONENT else math.exp(z)) - t * z


def _scalar_poisson_logit_gradient(z: float, t: float, p: float) -> float:
    return (INFINITY if z > LARGEST_EXPONENT else math.exp(z)) - t


def _scalar_binary(y: float, t: float, p: float) -> float:
    # Sums of two terms, of which one is 0 for a hard target: 0 log 0 is 0.
    of_one = 0.0 if t == 0.0 else INFINITY if y == 0.0 else -t * math.log(y)
    of_zero = 0.0 if t == 1.0 else INFINITY if y == 1.0 else -(1.0 - t) * math.log(1.0 - y)
    return y if math.isnan(y) else of_one + of_zero


def _scalar_binary_gradient(y: float, t: float, p: float) -> float:
    of_one = 0.0 if t == 0.0 else INFINITY if y == 0.0 else t / y
    of_zero = 0.0 if t == 1.0 else INFINITY if y == 1.0 else (1.0 - t) / (1.0 - y)
    return y if math.isnan(y) else of_zero - of_one


def _scalar_logistic(z: float, t: float, p: float) -> float:
    return ((0.0 if z < 0.0 else z) - t * z) + math.log1p(math.exp(-abs(z)))


def _scalar_logistic_gradient(z: float, t: float, p: float) -> float:
    e = math.exp(-abs(z))
    return (e if z < 0.0 else 1.0) / (1.0 + e) - t


def _scalar_cross_entropy(y: float, t: float, p: float) -> float:
    if t == 0.0:
        return y if math.isnan(y) else 0.0
    return INFINITY if y == 0.0 else -t * math.log(y)


def _scalar_cross_entropy_gradient(y: float, t: float, p: float) -> float:
    if t == 0.0:
        return y if math.isnan(y) else 0.0
    return -INFINITY if y == 0.0 else -(t / y)


def _scalar_hinge(y: float, t: float, p: float) -> float:
    margin = t * y
    return 1.0 - margin if margin < 1.0 else 0.0 if margin >= 1.0 else margin


def _through_identity(
    value: Callable[[Array, Array, Params], Array],
    gradient: Callable[[Array, Array, Params], Array],
    scalar_value: Scalar,
    scalar_gradient: Scalar,
) -> dict[str, Any]:
    """The functions of a loss whose natural link is the identity."""
    return {
        "scalar_value": scalar_value,
        "scalar_gradient": scalar_gradient,
        "scalar_logit_value": scalar_value,
        "scalar_logit_gradient": scalar_gradient,
        "value": value,
        "gradient": gradient,
        "logit_value": value,
        "logit_gradient": gradient,
        "natural_output": "identity",
    }


_ALL = (-math.inf, math.inf)
_ROWS = (
    LossRow(
        "squared_error",
        **_through_identity(
            lambda y, t, p: 0.5 * (y - t) ** 2,
            lambda y, t, p: y - t,
            lambda y, t, p: 0.5 * (y - t) * (y - t),
            lambda y, t, p: y - t,
        ),
        target_kind="real",
        domain=_ALL,
        formula="(y - t)^2 / 2",
    ),
    LossRow(
        "absolute_error",
        **_through_identity(
            lambda y, t, p: np.abs(y - t),
            lambda y, t, p: np.sign(y - t),
            lambda y, t, p: abs(y - t),
            _scalar_sign,
        ),
        target_kind="real",
        domain=_ALL,
        formula="|y - t|",
    ),
    LossRow(
        "huber",
        **_through_identity(
            lambda y, t, p: _huber(y - t, p["delta"]),
            lambda y, t, p: np.clip(y - t, -p["delta"], p["delta"]),
            _scalar_huber,
            _scalar_huber_gradient,
        ),
        target_kind="real",
        domain=_ALL,
        formula="e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); e = y - t",
        params={"delta": 1.0},
    ),
    LossRow(
        "quantile",
        **_through_identity(
            lambda y, t, p: _pinball(t - y, p["q"]),
            lambda y, t, p: _pinball_slope(t - y, p["q"]),
            _scalar_pinball,
            _scalar_pinball_gradient,
        ),
        target_kind="real",
        domain=_ALL,
        formula="q e where e >= 0, else (q - 1) e; e = t - y",
        params={"q": 0.5},
    ),
    LossRow(
        "poisson",
        value=lambda y, t, p: y - _xlog(t, y),
        gradient=lambda y, t, p: 1.0 - _ratio(t, y),
        logit_value=lambda z, t, p: _exp(z) - t * z,
        logit_gradient=lambda z, t, p: _exp(z) - t,
        natural_output="exp",
        target_kind="nonnegative",
        domain=(0.0, math.inf),
        formula="y - t log(y)",
        scalar_value=_scalar_poisson,
        scalar_gradient=_scalar_poisson_gradient,
        scalar_logit_value=_scalar_poisson_logit,
        scalar_logit_gradient=_scalar_poisson_logit_gradient,
    ),
    LossRow(
        "binary_cross_entropy",
        value=lambda y, t, p: -_xlog(t, y) - _xlog(1.0 - t, 1.0 - y),
        gradient=lambda y, t, p: _ratio(1.0 - t, 1.0 - y) - _ratio(t, y),
        # max(z, 0) - t z first: for t = 0 and 1 it is exact, and drowns nothing of the rest
        logit_value=lambda z, t, p: np.maximum(z, 0.0) - t * z + np.log1p(np.exp(-np.abs(z))),
        logit_gradient=lambda z, t, p: _sigmoid(z) - t,
        natural_output="sigmoid",
        target_kind="unit",
        domain=(0.0, 1.0),
        formula="-t log(y) - (1 - t) log(1 - y)",
        scalar_value=_scalar_binary,
        scalar_gradient=_scalar_binary_gradient,
        scalar_logit_value=_scalar_logistic,
        scalar_logit_gradient=_scalar_logistic_gradient,
    ),
    LossRow(
        "cross_entropy",
        value=lambda y, t, p: -_xlog(t, y),
        gradient=lambda y, t, p: -_ratio(t, y),
        logit_value=lambda z, t, p: -t * _log_softmax(z),
        logit_gradient=lambda z, t, p: np.exp(_log_softmax(z)) * t.sum(axis=1, keepdims=True) - t,
        natural_output="softmax",
        target_kind="classes",
        domain=(0.0, math.inf),
        formula="-sum_i t_i log(y_i)",
        scalar_value=_scalar_cross_entropy,
        scalar_gradient=_scalar_cross_entropy_gradient,
    ),
    LossRow(
        "hinge",
        **_through_identity(
            lambda y, t, p: np.maximum(0.0, 1.0 - t * y),
            lambda y, t, p: np.where(t * y < 1, -t, 0.0),
            _scalar_hinge,
            lambda y, t, p: -t if t * y < 1.0 else 0.0,
        ),
        target_kind="sign",
        domain=_ALL,
        formula="max(0, 1 - t y)",
    ),
)

LOSSES = {row.name: row for row in _ROWS}
"""Losses by name, with the default parameters."""

REGISTERED_LOSSES: dict[str, LossRow] = {}
"""The user's own, by name (`fastnn.tables.custom.Loss`). A name keeps its function."""

_NATURAL = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy", "exp": "poisson"}


def _with_params(name: str, params: Params) -> LossRow:
    return replace(LOSSES[name], params=params)


def Huber(delta: float = 1.0) -> LossRow:
    """Squared error near the target, absolute error beyond `delta` (Huber 1964).

    Parameters
    ----------
    delta : float, default 1.0
        Greater than 0.

    Raises
    ------
    TypeError, ValueError
        delta is no such number.
    """
    return _with_params("huber", {"delta": _check_param(delta, "delta", math.inf)})


def Quantile(q: float = 0.5) -> LossRow:
    """The pinball loss, whose minimum is the q-quantile (Koenker & Bassett 1978).

    Parameters
    ----------
    q : float, default 0.5
        Between 0 and 1, both excluded.

    Raises
    ------
    TypeError, ValueError
        q is no such number.
    """
    return _with_params("quantile", {"q": _check_param(q, "q", 1.0)})


def _check_param(value: Any, name: str, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not 0 < value < high:
        raise ValueError(f"{name} must be > 0 and < {high}, got {value}")
    return float(value)


_CONSTRUCTORS: dict[str, Callable[..., LossRow]] = {"huber": Huber, "quantile": Quantile}


def get_loss(config: str | dict[str, Any]) -> LossRow:
    """A loss from its name, or from what `LossRow.get_config` returned.

    Raises
    ------
    TypeError, ValueError
        There is no such loss, or no such parameter.
    """
    params = dict(config) if isinstance(config, dict) else {"name": config}
    name: Any = params.pop("name", None)
    row = LOSSES.get(name) or REGISTERED_LOSSES.get(name)
    if row is None:
        raise ValueError(
            f"loss must be one of {', '.join([*LOSSES, *REGISTERED_LOSSES])}; got {name!r}: one of "
            f"your own has to be registered first in every process, with fastnn.Loss({name!r}, "
            "value)"
        )
    if not params:
        return row
    if set(params) != set(row.params):
        raise ValueError(f"loss {name!r} has no parameters {sorted(params)}")
    return _CONSTRUCTORS[name](**params)


def resolve_loss(loss: str | LossRow | None, output: str) -> LossRow:
    """The loss that goes with an output.

    Parameters
    ----------
    loss : str, LossRow or None
        None is the natural one of the output: cross_entropy for softmax, binary_cross_entropy
        for sigmoid, poisson for exp, else squared_error.
    output : str
        The output link or activation.

    Raises
    ------
    TypeError
        Neither a name nor a loss object.
    ValueError
        There is no such loss, or the outputs can leave its domain.
    """
    if loss is None:
        return LOSSES[_NATURAL.get(output, "squared_error")]
    if isinstance(loss, str):
        row = get_loss(loss)
    elif isinstance(loss, LossRow):
        row = loss
    else:
        raise TypeError(
            f"loss must be one of {', '.join(LOSSES)}, or a loss object such as Huber(delta=1.0); "
            f"got {loss!r}"
        )
    low, high = get_activation(output).range
    if low < row.domain[0] or high > row.domain[1]:
        raise ValueError(
            f"loss {row.name!r} is defined for outputs in {list(row.domain)}, but output "
            f"{output!r} gives {[low, high]}: use output={row.natural_output!r}"
        )
    return row


# Targets ------------------------------------------------------------------------------------------


def encode_targets(
    loss: LossRow, y: Any, n_samples: int, n_outputs: int, dtype: np.dtype, name: str = "y"
) -> Array:
    """Targets as the backends take them.

    Parameters
    ----------
    loss : LossRow
    y : array-like of shape (n_samples, n_outputs), or (n_samples,) with one output
        For cross_entropy also integer labels of shape (n_samples,), 0 to n_outputs - 1.
    n_samples, n_outputs : int
    dtype : dtype
        Of the model.
    name : str, default "y"
        For messages.

    Returns
    -------
    ndarray
        Labels int64 (n_samples,), or targets of `dtype` (n_samples, n_outputs), C-contiguous.

    Raises
    ------
    TypeError
        Not numbers.
    ValueError
        The wrong shape, NaN or infinity, or values that the loss does not have.
    """
    array = _as_numbers(y, name)
    if loss.target_kind == "classes" and _are_labels(array, n_outputs):
        return _encode_labels(array, n_samples, n_outputs, name)
    given = array.shape
    if array.ndim == 1 and n_outputs == 1:
        array = array[:, None]
    if array.shape != (n_samples, n_outputs):
        shapes = f"({n_samples}, {n_outputs})"
        if loss.target_kind == "classes":
            shapes = f"({n_samples},) with integer labels, or {shapes} with a probability per class"
        elif n_outputs == 1:
            shapes += f" or ({n_samples},)"
        hint = ""
        if loss.target_kind == "classes" and len(given) == 1 and array.dtype.kind == "f":
            hint = f": labels must be integers, as {name}.astype(int)"
        raise ValueError(
            f"{name} must have shape {shapes}, got {given} of dtype {array.dtype}{hint}"
        )
    targets = array
    if array.dtype != dtype or not (array.flags.c_contiguous and array.flags.aligned):
        with np.errstate(over="ignore", invalid="ignore"):
            targets = np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED"])
    finite = np.isfinite(targets)
    if not finite.all():
        bad = _first(~finite)
        raise ValueError(
            f"{name} contains {array[bad]} at row {bad[0]}, column {bad[1]}: remove or replace "
            f"such entries, or scale the column into the range of {np.dtype(dtype)}"
        )
    _check_kind(loss, targets, array, name)
    return targets


def _as_numbers(y: Any, name: str) -> Array:
    if hasattr(y, "toarray") and hasattr(y, "nnz"):
        raise TypeError(f"{name} is sparse ({type(y).__name__}): use {name}.toarray()")
    # Nobody can hold a masked array without having loaded numpy.ma, which is slow to import.
    masked = sys.modules.get("numpy.ma")
    if masked is not None and masked.is_masked(y):
        raise ValueError(f"{name} has masked entries: leave these rows out, or fill them first")
    try:
        array = np.asarray(y)
        if array.dtype.kind == "O":
            if any(item is None or isinstance(item, str | bytes | complex) for item in array.flat):
                raise TypeError
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of real numbers, got {type(y).__name__}: encode classes as "
            f"integers 0, 1, ... first {error}".rstrip()
        ) from None
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"{name} must hold real numbers, got dtype {array.dtype}: encode classes as integers "
            "0, 1, ... first (np.unique(y, return_inverse=True))"
        )
    return array


def _are_labels(array: Array, n_outputs: int) -> bool:
    if array.dtype.kind not in "iub":
        return False
    return array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1 and n_outputs > 1)


def _encode_labels(array: Array, n_samples: int, n_outputs: int, name: str) -> Array:
    labels = array.reshape(-1)
    if len(labels) != n_samples:
        raise ValueError(f"{name} has {len(labels)} labels, but X has {n_samples} rows")
    wrong = (labels < 0) | (labels >= n_outputs)
    if wrong.any():
        values = np.unique(labels[wrong])
        shown = ", ".join(str(v) for v in values[:5]) + (", ..." if len(values) > 5 else "")
        raise ValueError(
            f"{name} must hold labels 0 to {n_outputs - 1} (one per output), got {shown}: encode "
            f"them first, as np.unique({name}, return_inverse=True)[1]"
        )
    # A copy: C indexes by labels, and another thread may write to the caller's array meanwhile.
    return np.array(labels, np.int64, order="C")


def _check_kind(loss: LossRow, targets: Array, array: Array, name: str) -> None:
    """Raise for values that the loss does not have."""
    if loss.target_kind == "real":
        return
    if loss.target_kind == "sign":
        wrong, expected = np.abs(targets) != 1, "-1 or 1: with 0 and 1, use 2 * y - 1"
    elif loss.target_kind == "unit":
        wrong, expected = (targets < 0) | (targets > 1), "between 0 and 1"
    else:
        wrong, expected = targets < 0, "0 or greater"
    if wrong.any():
        bad = _first(wrong)
        raise ValueError(
            f"{name} has {array[bad]} at row {bad[0]}, but targets of {loss.name} are {expected}"
        )
    if loss.target_kind == "classes":
        with np.errstate(over="ignore"):  # a sum beyond the range is far from 1, too
            sums = targets.sum(axis=1, dtype=np.float64)
        wrong = np.abs(sums - 1.0) > 1e-3
        if wrong.any():
            bad = _first(wrong)
            raise ValueError(
                f"row {bad[0]} of {name} sums to {sums[bad]:g}, but the probabilities of a row sum "
                "to 1: divide by the sum, or give integer labels"
            )


def _first(mask: Array) -> tuple[int, ...]:
    """Index of the first True; there is one."""
    return tuple(int(i) for i in np.unravel_index(int(mask.argmax()), mask.shape))
