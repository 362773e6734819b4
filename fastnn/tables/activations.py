"""Activations: the Python half of each row; the C half is csrc/activations.def.

``f(z)`` and ``df(z, y)``, with ``y = f(z)``, are formulas on float64 arrays. They are exact in the
limits (no overflow, no warning, for any finite z), and the oracle that the compiled kernels are
held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

__all__ = ["ACTIVATIONS", "LINKS", "SELU_ALPHA", "SELU_SCALE", "ActivationRow", "get_activation"]

Array = np.ndarray

SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
LEAKY_SLOPE = 0.01

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
    """

    name: str
    f: Callable[[Array], Array]
    df: Callable[[Array, Array], Array] | None
    needs_z: bool
    range: tuple[float, float]
    formula: str
    source: str = ""


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


_INFINITE = math.inf
_ROWS = (
    ActivationRow(
        "identity", lambda z: z + 0.0, lambda z, y: np.ones_like(y), False,
        (-_INFINITE, _INFINITE), "z",
    ),
    ActivationRow(
        "step", lambda z: np.where(z > 0, 1.0, np.where(np.isnan(z), z, 0.0)),
        lambda z, y: np.zeros_like(y), False, (0.0, 1.0), "1 where z > 0, else 0",
        "Rosenblatt 1958, doi 10.1037/h0042519",
    ),
    ActivationRow(
        "sigmoid", _sigmoid, lambda z, y: y * (1.0 - y), False, (0.0, 1.0), "1 / (1 + exp(-z))",
        "Rumelhart, Hinton & Williams 1986, doi 10.1038/323533a0",
    ),
    ActivationRow(
        "tanh", np.tanh, lambda z, y: 1.0 - y * y, False, (-1.0, 1.0), "tanh(z)",
        "LeCun et al. 1998, doi 10.1007/3-540-49430-8_2",
    ),
    ActivationRow(
        "relu", lambda z: np.maximum(z, 0.0), lambda z, y: np.where(y > 0, 1.0, 0.0), False,
        (0.0, _INFINITE), "max(0, z)", "Nair & Hinton 2010",
    ),
    ActivationRow(
        "leaky_relu", lambda z: np.where(z < 0, LEAKY_SLOPE * z, z),
        lambda z, y: np.where(y > 0, 1.0, LEAKY_SLOPE), False, (-_INFINITE, _INFINITE),
        "z where z >= 0, else 0.01 z", "Maas, Hannun & Ng 2013",
    ),
    ActivationRow(
        "elu", lambda z: np.where(z < 0, _expm1_below_zero(z), z),
        lambda z, y: np.where(y > 0, 1.0, y + 1.0), False, (-1.0, _INFINITE),
        "z where z >= 0, else exp(z) - 1",
        "Clevert, Unterthiner & Hochreiter 2016, arXiv:1511.07289",
    ),
    ActivationRow(
        "selu",
        lambda z: SELU_SCALE * np.where(z < 0, SELU_ALPHA * _expm1_below_zero(z), z),
        lambda z, y: np.where(y > 0, SELU_SCALE, y + SELU_SCALE * SELU_ALPHA), False,
        (-SELU_SCALE * SELU_ALPHA, _INFINITE),
        "1.0507 z where z >= 0, else 1.0507 * 1.6733 (exp(z) - 1)",
        "Klambauer et al. 2017, arXiv:1706.02515",
    ),
    ActivationRow(
        "gelu", lambda z: z * _normal_cdf(z),
        lambda z, y: _normal_cdf(z) + z * _normal_pdf(z), True,
        (-0.17, _INFINITE), "z (1 + erf(z / sqrt(2))) / 2",
        "Hendrycks & Gimpel 2016, arXiv:1606.08415",
    ),
    ActivationRow(
        "silu", lambda z: z * _sigmoid(z), lambda z, y: _silu_derivative(z), True,
        (-0.279, _INFINITE), "z / (1 + exp(-z))", "Elfwing, Uchibe & Doya 2018, arXiv:1702.03118",
    ),
    ActivationRow(
        "softplus", _softplus, lambda z, y: -np.expm1(-y), False, (0.0, _INFINITE),
        "log(1 + exp(z))", "Dugas et al. 2001",
    ),
    ActivationRow(
        "softsign", lambda z: z / (1.0 + np.abs(z)), lambda z, y: (1.0 - np.abs(y)) ** 2, False,
        (-1.0, 1.0), "z / (1 + |z|)", "Glorot & Bengio 2010",
    ),
    ActivationRow(
        "hard_sigmoid", lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda z, y: np.where((y > 0) & (y < 1), 1.0 / 6.0, 0.0), False, (0.0, 1.0),
        "clip(z / 6 + 1/2, 0, 1)", "Courbariaux, Bengio & David 2015, arXiv:1511.00363",
    ),
    ActivationRow(
        "hard_tanh", lambda z: np.clip(z, -1.0, 1.0),
        lambda z, y: np.where((y > -1) & (y < 1), 1.0, 0.0), False, (-1.0, 1.0), "clip(z, -1, 1)",
        "Collobert 2004",
    ),
    ActivationRow(
        "mish", lambda z: z * np.tanh(_softplus(z)), lambda z, y: _mish_derivative(z), True,
        (-0.309, _INFINITE), "z tanh(log(1 + exp(z)))", "Misra 2020, arXiv:1908.08681",
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
    "exp": ActivationRow("exp", _exp, lambda z, y: y, False, (0.0, _INFINITE), "exp(z)"),
    "softmax": ActivationRow(
        "softmax", _softmax, None, False, (0.0, 1.0), "exp(z_i) / sum_j exp(z_j)",
        "Bridle 1990, doi 10.1007/978-3-642-76153-9_28",
    ),
}  # fmt: skip
"""What else an output layer may have."""


def get_activation(name: str) -> ActivationRow:
    """The row of an activation or output link."""
    return ACTIVATIONS[name] if name in ACTIVATIONS else LINKS[name]
