"""Activations: the Python half of each row; the C half is csrc/activations.def.

``f(z)`` and ``df(z, y)``, with ``y = f(z)``, are formulas on float64 arrays. They are exact in the
limits (no overflow, no warning, for any finite z), and the oracle that the compiled kernels are
held against.

``scalar(z)`` and ``scalar_df(z, y)`` are the same for one number, for code that is compiled at run
time: floats, `math` and conditional expressions, and nothing else (`fastnn.tables.scalars` has the
rules). NaN goes in, NaN comes out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fastnn.tables.scalars import Scalar

__all__ = [
    "ACTIVATIONS",
    "LINKS",
    "REGISTERED_ACTIVATIONS",
    "SELU_ALPHA",
    "SELU_SCALE",
    "ActivationRow",
    "get_activation",
]

Array = np.ndarray

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
SELU_SCALED_ALPHA = SELU_SCALE * SELU_ALPHA
LEAKY_SLOPE = 0.01
SQRT_HALF = math.sqrt(0.5)
NORMAL_PEAK = 1.0 / math.sqrt(2.0 * math.pi)
SIXTH = 1.0 / 6.0
INFINITY = math.inf
LARGEST_EXPONENT = math.log(sys.float_info.max)  # of e; math.exp raises beyond it

_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class ActivationRow:
    """One activation.

    Attributes
    ----------
    name : str
    f : callable (z) -> y
    df : callable (z, y) -> dy/dz
        softmax couples the outputs of a row and has none; `fastnn.backends.reference` knows it.
    needs_z : bool
        Whether the derivative reads z. Where it follows from y, z is not kept.
    range : tuple (low, high)
        The closed interval that y lies in.
    formula : str
    source : str
        Paper or textbook, where there is one.
    scalar : callable (z) -> y, of floats
    scalar_df : callable (z, y) -> dy/dz, of floats
        None where df is, and both for softmax.
    """

    name: str
    f: Callable[[Array], Array]
    df: Callable[[Array, Array], Array] | None
    needs_z: bool
    range: tuple[float, float]
    formula: str
    source: str = ""
    scalar: Scalar | None = None
    scalar_df: Scalar | None = None


def _sigmoid(z: Array) -> Array:
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, 1.0) / (1.0 + e)


def _softplus(z: Array) -> Array:
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def _expm1_below_zero(z: Array) -> Array:
    return np.expm1(np.minimum(z, 0.0))


def _normal_cdf(z: Array) -> Array:
    return 0.5 * (1.0 + _erf(np.asarray(z) / math.sqrt(2.0)))


def _normal_pdf(z: Array) -> Array:
    # exp(-40^2 / 2) is 0 already; the square of more could overflow.
    return np.exp(-0.5 * np.minimum(np.abs(z), 40.0) ** 2) / math.sqrt(2.0 * math.pi)


def _silu_derivative(z: Array) -> Array:
    s = _sigmoid(z)
    return s * (1.0 + z * (1.0 - s))


def _mish_derivative(z: Array) -> Array:
    t = np.tanh(_softplus(z))
    return t + z * (1.0 - t * t) * _sigmoid(z)


# The same for one float. A comparison with NaN is false, so the branch of false lets it through.
# Conditional expressions rather than min and max, which treat NaN as the order of arguments has it.


def _scalar_sigmoid(z: float) -> float:
    e = math.exp(-abs(z))
    return (e if z < 0.0 else 1.0) / (1.0 + e)


def _scalar_tanh(z: float) -> float:
    return math.tanh(z)


def _scalar_gelu_df(z: float, y: float) -> float:
    pdf = NORMAL_PEAK * math.exp(-0.5 * z * z)
    return 0.5 * (1.0 + math.erf(z * SQRT_HALF)) + (z * pdf if pdf > 0.0 else 0.0)


def _scalar_silu(z: float) -> float:
    e = math.exp(-abs(z))
    s = (e if z < 0.0 else 1.0) / (1.0 + e)
    return 0.0 if s == 0.0 else z * s  # not -inf * 0


def _scalar_silu_df(z: float, y: float) -> float:
    e = math.exp(-abs(z))
    if e == 0.0:
        return 1.0 if z > 0.0 else 0.0  # not inf * 0
    s = (e if z < 0.0 else 1.0) / (1.0 + e)
    return s * (1.0 + z * ((1.0 if z < 0.0 else e) / (1.0 + e)))


def _scalar_softplus(z: float) -> float:
    return (0.0 if z < 0.0 else z) + math.log1p(math.exp(-abs(z)))


def _scalar_softsign(z: float) -> float:
    a = abs(z)
    return (1.0 if z > 0.0 else -1.0) if a == INFINITY else z / (1.0 + a)


def _scalar_hard_sigmoid(z: float) -> float:
    y = (z + 3.0) * SIXTH  # exact at the kinks
    return 0.0 if y < 0.0 else 1.0 if y > 1.0 else y


def _scalar_mish(z: float) -> float:
    # tanh(log(1 + e)) = n / (n + 2); it is 1 from 40 on, and e^40 squared is a float32, too.
    e = math.exp(40.0 if z > 40.0 else z)
    n = e * (e + 2.0)
    return z * (n / (n + 2.0))


def _scalar_mish_df(z: float, y: float) -> float:
    c = 40.0 if z > 40.0 else z
    e = math.exp(c)
    n = e * (e + 2.0)
    t = n / (n + 2.0)
    one_minus_t_squared = (2.0 / (n + 2.0)) * (1.0 + t)
    return t + c * one_minus_t_squared * (e / (1.0 + e))


_ROWS = (
    ActivationRow(
        "identity", lambda z: z + 0.0, lambda z, y: np.ones_like(y), False,
        (-INFINITY, INFINITY), "z",
        scalar=lambda z: z, scalar_df=lambda z, y: 1.0,
    ),
    ActivationRow(
        "step", lambda z: np.where(z > 0, 1.0, np.where(np.isnan(z), z, 0.0)),
        lambda z, y: np.zeros_like(y), False, (0.0, 1.0), "1 where z > 0, else 0",
        "Rosenblatt 1958, doi 10.1037/h0042519",
        scalar=lambda z: 1.0 if z > 0.0 else z if math.isnan(z) else 0.0,
        scalar_df=lambda z, y: 0.0,
    ),
    ActivationRow(
        "sigmoid", _sigmoid, lambda z, y: y * (1.0 - y), False, (0.0, 1.0), "1 / (1 + exp(-z))",
        "Rumelhart, Hinton & Williams 1986, doi 10.1038/323533a0",
        scalar=_scalar_sigmoid, scalar_df=lambda z, y: y * (1.0 - y),
    ),
    ActivationRow(
        "tanh", np.tanh, lambda z, y: 1.0 - y * y, False, (-1.0, 1.0), "tanh(z)",
        "LeCun et al. 1998, doi 10.1007/3-540-49430-8_2",
        scalar=_scalar_tanh, scalar_df=lambda z, y: 1.0 - y * y,
    ),
    ActivationRow(
        "relu", lambda z: np.maximum(z, 0.0), lambda z, y: np.where(y > 0, 1.0, 0.0), False,
        (0.0, INFINITY), "max(0, z)", "Nair & Hinton 2010",
        scalar=lambda z: 0.0 if z < 0.0 else z, scalar_df=lambda z, y: 1.0 if y > 0.0 else 0.0,
    ),
    ActivationRow(
        "leaky_relu", lambda z: np.where(z < 0, LEAKY_SLOPE * z, z),
        lambda z, y: np.where(y > 0, 1.0, LEAKY_SLOPE), False, (-INFINITY, INFINITY),
        "z where z >= 0, else 0.01 z", "Maas, Hannun & Ng 2013",
        scalar=lambda z: LEAKY_SLOPE * z if z < 0.0 else z,
        scalar_df=lambda z, y: 1.0 if y > 0.0 else LEAKY_SLOPE,
    ),
    ActivationRow(
        "elu", lambda z: np.where(z < 0, _expm1_below_zero(z), z),
        lambda z, y: np.where(y > 0, 1.0, y + 1.0), False, (-1.0, INFINITY),
        "z where z >= 0, else exp(z) - 1",
        "Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
        scalar=lambda z: math.expm1(z) if z < 0.0 else z,
        scalar_df=lambda z, y: 1.0 if y > 0.0 else y + 1.0,
    ),
    ActivationRow(
        "selu",
        lambda z: SELU_SCALE * np.where(z < 0, SELU_ALPHA * _expm1_below_zero(z), z),
        lambda z, y: np.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA), False,
        (-SELU_SCALE * SELU_ALPHA, INFINITY),
        "1.0507 z where z >= 0, else 1.0507 * 1.6733 (exp(z) - 1)",
        "Klambauer et al. 2017, arXiv:1706.02515",
        scalar=lambda z: SELU_SCALED_ALPHA * math.expm1(z) if z < 0.0 else SELU_SCALE * z,
        scalar_df=lambda z, y: SELU_SCALE if y > 0.0 else y + SELU_SCALED_ALPHA,
    ),
    ActivationRow(
        "gelu", lambda z: z * _normal_cdf(z),
        lambda z, y: _normal_cdf(z) + z * _normal_pdf(z), True,
        (-0.17, INFINITY), "z (1 + erf(z / sqrt(2))) / 2",
        "Hendrycks & Gimpel 2016, arXiv:1606.08415",
        scalar=lambda z: z * (0.5 * (1.0 + math.erf(z * SQRT_HALF))), scalar_df=_scalar_gelu_df,
    ),
    ActivationRow(
        "silu", lambda z: z * _sigmoid(z), lambda z, y: _silu_derivative(z), True,
        (-0.279, INFINITY), "z / (1 + exp(-z))", "Elfwing, Uchibe & Doya 2018, arXiv:1702.03118",
        scalar=_scalar_silu, scalar_df=_scalar_silu_df,
    ),
    ActivationRow(
        "softplus", _softplus, lambda z, y: -np.expm1(-y), False, (0.0, INFINITY),
        "log(1 + exp(z))", "Dugas et al. 2001",
        scalar=_scalar_softplus, scalar_df=lambda z, y: -math.expm1(-y),
    ),
    ActivationRow(
        "softsign", lambda z: z / (1.0 + np.abs(z)), lambda z, y: (1.0 - np.abs(y)) ** 2, False,
        (-1.0, 1.0), "z / (1 + |z|)", "Glorot & Bengio 2010",
        scalar=_scalar_softsign, scalar_df=lambda z, y: (1.0 - abs(y)) * (1.0 - abs(y)),
    ),
    ActivationRow(
        "hard_sigmoid", lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda z, y: np.where((y > 0) & (y < 1), 1.0 / 6.0, 0.0), False, (0.0, 1.0),
        "clip(z / 6 + 1/2, 0, 1)", "Courbariaux, Bengio & David 2015, arXiv:1511.00363",
        scalar=_scalar_hard_sigmoid, scalar_df=lambda z, y: SIXTH if 0.0 < y < 1.0 else 0.0,
    ),
    ActivationRow(
        "hard_tanh", lambda z: np.clip(z, -1.0, 1.0),
        lambda z, y: np.where((y > -1) & (y < 1), 1.0, 0.0), False, (-1.0, 1.0), "clip(z, -1, 1)",
        "Collobert 2004",
        scalar=lambda z: -1.0 if z < -1.0 else 1.0 if z > 1.0 else z,
        scalar_df=lambda z, y: 1.0 if -1.0 < y < 1.0 else 0.0,
    ),
    ActivationRow(
        "mish", lambda z: z * np.tanh(_softplus(z)), lambda z, y: _mish_derivative(z), True,
        (-0.309, INFINITY), "z tanh(log(1 + exp(z)))", "Misra 2020, arXiv:1908.08681",
        scalar=_scalar_mish, scalar_df=_scalar_mish_df,
    ),
)  # fmt: skip


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _exp(z: Array) -> Array:
    with np.errstate(over="ignore"):  # infinity is what exp is there
        return np.exp(z)


ACTIVATIONS = {row.name: row for row in _ROWS}
"""Activations of any layer, by name."""

LINKS = {
    "exp": ActivationRow(
        "exp", _exp, lambda z, y: y, False, (0.0, INFINITY), "exp(z)",
        scalar=lambda z: INFINITY if z > LARGEST_EXPONENT else math.exp(z),
        scalar_df=lambda z, y: y,
    ),
    "softmax": ActivationRow(
        "softmax", _softmax, None, False, (0.0, 1.0), "exp(z_i) / sum_j exp(z_j)",
        "Bridle 1990, doi 10.1007/978-3-642-76153-9_28",
    ),
}  # fmt: skip
"""What else an output layer may have."""


REGISTERED_ACTIVATIONS: dict[str, ActivationRow] = {}
"""The user's own, by name (`fastnn.tables.custom.Activation`). A name keeps its function."""


def get_activation(name: str) -> ActivationRow:
    """The row of an activation or output link.

    Raises
    ------
    ValueError
        There is none of that name.
    """
    for table in (ACTIVATIONS, LINKS, REGISTERED_ACTIVATIONS):
        if name in table:
            return table[name]
    raise ValueError(
        f"there is no activation {name!r}: one of your own has to be registered first in every "
        f"process, with fastnn.Activation({name!r}, f)"
    )
