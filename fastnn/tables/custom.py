"""Activations and losses of the user's own: scalar Python functions, registered by name.

A function is translated into a formula (`fastnn.tables.formulas`), which every backend compiles
for itself; where that cannot be done and the derivative is given too, Numba is handed the function
as it is. Files and pickles hold the name alone, never code.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
import threading
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numpy as np

from fastnn.tables.activations import (
    ACTIVATIONS,
    LINKS,
    REGISTERED_ACTIVATIONS,
    ActivationRow,
    get_activation,
)
from fastnn.tables.formulas import FORMULA_NAME, Unsupported, plain_function, translate
from fastnn.tables.losses import LOSSES, REGISTERED_LOSSES, TARGET_KINDS, LossRow, get_loss
from fastnn.tables.scalars import ieee_math, with_constants

__all__ = ["Activation", "Loss"]

_LOCK = threading.RLock()
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
KNOWN_TO_FORMULAS = "arithmetic, math, conditions, loops, functions of these"


class Activation(ActivationRow):
    """An activation of your own, for hidden layers and outputs of any model.

    Parameters
    ----------
    name : str
        What models, files and messages call it: letters, digits, ``_ . -``, a letter first. In
        every process that loads such a model, this call has to come first.
    f : function
        ``f(z)``: a number from a number, in plain Python with `math` or NumPy's functions of one
        number; conditions, local variables, loops and helper functions are fine. What it reads
        from outside is read once, now.
    df : function, optional
        ``df(z)``, or ``df(z, y)`` with ``y = f(z)``: its derivative. By default it is found by
        differentiating the source of f; at a kink it is that of the branch that f takes there, and
        of abs, max and min the mean of both sides.
    range : (low, high), optional
        What f's values lie between, for losses that are defined on an interval only.
    check : bool, default True
        Whether a given df is held against differences of f. False allows another one on purpose,
        such as a smooth one for a step.

    Raises
    ------
    TypeError
        An argument of the wrong type.
    ValueError
        The name is taken, f or df cannot be compiled (the message has the line and the reason),
        f has no value somewhere in -8..8, or the derivative is not f's.

    Notes
    -----
    In the native backend f and df are compiled, by Numba and once for each dtype, into loops over
    rows, which run without the GIL and at the speed of the built-in activations. In compiled code
    nothing raises: division by 0 gives infinity, the square root of a negative number NaN, and a
    model whose loss is NaN raises `DivergenceError`.

    On a GPU they are part of its kernels. A function that Numba has as it is (one without a
    formula, df given) is compiled for it at the first use; where that cannot be done, or where the
    function could raise, that is a ValueError with the line and the reason.

    Weights of layers before such an activation start as `init` says; "auto" is "glorot_uniform".

    Examples
    --------
    >>> snake = fastnn.Activation("snake", lambda z: z + math.sin(z) ** 2)
    >>> model = fastnn.MLP([2, 32, 1], activation=snake)
    """

    _key: tuple[Any, ...]
    _compiled: dict[str, Any]

    def __init__(
        self,
        name: str,
        f: Callable[[float], float],
        df: Callable[..., float] | None = None,
        *,
        range: tuple[float, float] = (-math.inf, math.inf),  # noqa: A002
        check: bool = True,
    ) -> None:
        what = f"activation {_check_name(name, 'activation', {**ACTIVATIONS, **LINKS})!r}"
        interval = _check_interval(range, "range", what)
        value, value_key = _function(f, ("z",), 1, f"{what}: f", None if df else "df")
        if df is None:
            derivative, derivative_key = _derivative(f, ("z", "y"), 1, what, "f", "df")
        else:
            n = _count_parameters(df, f"{what}: df", (1, 2))
            derivative, derivative_key = _function(df, ("z", "y"), n, f"{what}: df")
        plain_value, plain_derivative = _ieee(value), _ieee(derivative)
        _check_activation(
            what, plain_value, plain_derivative, interval, df is None, check or df is None
        )
        fields = {
            "name": name,
            "f": _over_arrays(plain_value),
            "df": _over_arrays(plain_derivative),
            "needs_z": True,
            "range": interval,
            "formula": _text(f),
            "source": "",
            "scalar": value,
            "scalar_df": derivative,
            "_key": (value_key, derivative_key, interval),
            "_compiled": {},
        }
        for field, content in fields.items():
            object.__setattr__(self, field, content)
        _register(REGISTERED_ACTIVATIONS, self, "activation")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Activation) and (self.name, self._key) == (other.name, other._key)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<Activation {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_activation, (self.name,)

    def compiled(self, dtype: np.dtype) -> Any:
        """Its machine code for a dtype, made when it is first asked for: a `CompiledRows`."""
        from fastnn.tables.compiled import compile_activation

        assert self.scalar is not None
        assert self.scalar_df is not None
        with _LOCK:
            key = np.dtype(dtype).name
            if key not in self._compiled:
                self._compiled[key] = compile_activation(self.scalar, self.scalar_df, dtype)
            return self._compiled[key]


class Loss(LossRow):
    """A loss of your own, for `Trainer` and `MLP.loss_and_gradient`.

    Parameters
    ----------
    name : str
        What files and messages call it, as for `Activation`.
    value : function
        ``value(y, t)``: the loss of one output y for its target t. That of a row of data is the
        sum over its outputs, that of a batch the weighted mean of its rows'.
    gradient : function, optional
        ``gradient(y, t)``: the derivative of value by y. By default it is found by
        differentiating the source of value, with the same rules as for an Activation.
    domain : (low, high), optional
        Outputs for which the loss is defined: a model whose outputs can leave it is refused.
    target_kind : str, default "real"
        Which targets are accepted: "real", "nonnegative", "unit" (0 to 1), "sign" (-1 or 1), or
        "classes" (labels, or rows of probabilities; t is 1 for the class of the row and 0 for the
        others).
    check : bool, default True
        Whether a given gradient is held against differences of value.

    Raises
    ------
    TypeError
        An argument of the wrong type.
    ValueError
        The name is taken, a function cannot be compiled (the message has the line and the
        reason), value is NaN somewhere in the domain, or the gradient is not value's.

    Notes
    -----
    It works with every output link, through the link's derivative. See `Activation` for how it is
    compiled.

    Examples
    --------
    >>> log_cosh = fastnn.Loss("log_cosh", lambda y, t: math.log(math.cosh(y - t)))
    >>> fastnn.Trainer(model, loss=log_cosh).fit(X, y, epochs=10)
    """

    _key: tuple[Any, ...]
    _compiled: dict[str, Any]

    def __init__(
        self,
        name: str,
        value: Callable[[float, float], float],
        gradient: Callable[[float, float], float] | None = None,
        *,
        domain: tuple[float, float] = (-math.inf, math.inf),
        target_kind: str = "real",
        check: bool = True,
    ) -> None:
        what = f"loss {_check_name(name, 'loss', LOSSES)!r}"
        interval = _check_interval(domain, "domain", what)
        if target_kind not in TARGET_KINDS:
            raise ValueError(
                f"target_kind must be one of {', '.join(TARGET_KINDS)}; got {target_kind!r}"
            )
        parameters = ("y", "t", "p")
        missing = None if gradient else "gradient"
        scalar, key = _function(value, parameters, 2, f"{what}: value", missing)
        if gradient is None:
            slope, slope_key = _derivative(value, parameters, 2, what, "value", "gradient")
        else:
            _count_parameters(gradient, f"{what}: gradient", (2,))
            slope, slope_key = _function(gradient, parameters, 2, f"{what}: gradient")
        plain, plain_slope = _ieee(scalar), _ieee(slope)
        _check_loss(
            what,
            plain,
            plain_slope,
            interval,
            target_kind,
            gradient is None,
            check or gradient is None,
        )
        over, over_slope = _over_arrays(plain), _over_arrays(plain_slope)

        def array_value(y: np.ndarray, t: np.ndarray, params: dict[str, float]) -> np.ndarray:
            return over(y, t, 0.0)

        def array_gradient(y: np.ndarray, t: np.ndarray, params: dict[str, float]) -> np.ndarray:
            return over_slope(y, t, 0.0)

        fields = {
            "name": name,
            "value": array_value,
            "gradient": array_gradient,
            "logit_value": array_value,
            "logit_gradient": array_gradient,
            "natural_output": "identity",
            "target_kind": target_kind,
            "domain": interval,
            "formula": _text(value),
            "params": {},
            "scalar_value": scalar,
            "scalar_gradient": slope,
            "scalar_logit_value": scalar,
            "scalar_logit_gradient": slope,
            "_key": (key, slope_key, interval, target_kind),
            "_compiled": {},
        }
        for field, content in fields.items():
            object.__setattr__(self, field, content)
        _register(REGISTERED_LOSSES, self, "loss")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loss) and (self.name, self._key) == (other.name, other._key)

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"<Loss {self.name!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return get_loss, (self.name,)

    def compiled(self, dtype: np.dtype) -> Any:
        """Its machine code for a dtype, made when it is first asked for: a `CompiledRows`."""
        from fastnn.tables.compiled import compile_loss

        assert self.scalar_value is not None
        assert self.scalar_gradient is not None
        with _LOCK:
            key = np.dtype(dtype).name
            if key not in self._compiled:
                self._compiled[key] = compile_loss(self.scalar_value, self.scalar_gradient, dtype)
            return self._compiled[key]


# Names --------------------------------------------------------------------------------------------


def _check_name(name: Any, kind: str, taken: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a {kind} must be a string, got {name!r}")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of a {kind} must be letters, digits and _ . - with a letter first, at most "
            f"64 of them; got {name!r}"
        )
    if name in taken:
        raise ValueError(f"{name!r} is a built-in {kind}: choose another name")
    return name


def _register(registry: dict[str, Any], row: Any, kind: str) -> None:
    with _LOCK:
        earlier = registry.setdefault(row.name, row)
    if earlier != row:
        raise ValueError(
            f"{kind} {row.name!r} was registered before with another function, which models may "
            "be using: choose another name, or start a new process"
        )


def _check_interval(value: Any, name: str, what: str) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in value)
    except (TypeError, ValueError):
        raise TypeError(f"{what}: {name} must be a pair of numbers, got {value!r}") from None
    if not low < high:
        raise ValueError(f"{what}: {name} must be (low, high) with low < high, got {value!r}")
    return low, high


def owner_of(function: Callable[..., Any]) -> str:
    """Whose function it is, for messages: ``activation 'snake': f``."""
    for activation in REGISTERED_ACTIVATIONS.values():
        for part, own in (("f", activation.scalar), ("df", activation.scalar_df)):
            if own is function:
                return f"activation {activation.name!r}: {part}"
    for loss in REGISTERED_LOSSES.values():
        for part, own in (("value", loss.scalar_value), ("gradient", loss.scalar_gradient)):
            if own is function:
                return f"loss {loss.name!r}: {part}"
    return function.__qualname__


# Functions ----------------------------------------------------------------------------------------


def _count_parameters(function: Any, what: str, allowed: tuple[int, ...]) -> int:
    """How many numbers a function takes by position."""
    if not callable(function):
        raise TypeError(f"{what} must be a function, got {function!r}")
    try:
        plain = plain_function(function)
    except TypeError as error:
        raise TypeError(f"{what}: {error}") from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(plain).parameters.values())
    most = sum(p.kind in positional for p in parameters)
    least = sum(p.kind in positional and p.default is p.empty for p in parameters)
    fits = [n for n in allowed if least <= n <= most]
    if not fits:
        wanted = " or ".join(str(n) for n in allowed)
        raise TypeError(f"{what} must take {wanted} numbers, but takes {least}")
    return fits[0]


def _function(
    function: Any,
    parameters: tuple[str, ...],
    take: int,
    what: str,
    missing: str | None = None,
) -> tuple[Callable[..., Any], Any]:
    """A function of `parameters` for every backend, and what tells it from others.

    `missing` is the argument for the derivative, where that is not given.
    """
    _count_parameters(function, what, (take,))
    try:
        formula = translate(function, parameters, take=take)
    except Unsupported as unsupported:
        if missing is not None:
            raise _not_differentiable(what, unsupported, missing) from None
        plain = plain_function(function)
        from fastnn.tables.compiled import compiler_error

        if take != len(parameters):
            plain = _with_parameters(plain, len(parameters))
        reason = compiler_error(plain, len(parameters))
        if reason is not None:
            raise ValueError(f"{what} cannot be compiled: {reason} ({unsupported})") from None
        return plain, _raw_key(plain)
    return formula.function, formula.source


def _derivative(
    function: Any, parameters: tuple[str, ...], take: int, what: str, name: str, argument: str
) -> tuple[Callable[..., Any], Any]:
    try:
        result = "y" if parameters == ("z", "y") else None
        formula = translate(function, parameters, by=parameters[0], take=take, result=result)
    except Unsupported as unsupported:
        raise _not_differentiable(f"{what}: {name}", unsupported, argument) from None
    return formula.function, formula.source


def _not_differentiable(what: str, unsupported: Unsupported, argument: str) -> ValueError:
    return ValueError(
        f"{what} cannot be differentiated: {unsupported}. Write it with what formulas know "
        f"({KNOWN_TO_FORMULAS}), or give {argument}"
    )


def _with_parameters(function: FunctionType, n: int) -> FunctionType:
    """The same function with more parameters, which it does not look at."""
    code = function.__code__
    more = n - code.co_argcount
    # Locals are numbered: the new ones would have to stand between the parameters and the rest.
    if code.co_nlocals != code.co_argcount or code.co_cellvars:
        raise ValueError(
            f"{function.__qualname__} takes {code.co_argcount} numbers, but has to take {n} where "
            "it is compiled as it is: add parameters that it does not use"
        )
    names = tuple(f"unused_{i}" for i in range(more))
    code = code.replace(
        co_argcount=n, co_nlocals=code.co_nlocals + more, co_varnames=code.co_varnames + names
    )
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def _raw_key(function: FunctionType) -> tuple[Any, ...]:
    """What tells one function from another where there is no formula."""

    def of(code: CodeType) -> tuple[Any, ...]:
        constants = tuple(of(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts)
        return code.co_code, code.co_names, constants

    reads = tuple(repr(function.__globals__.get(name)) for name in function.__code__.co_names)
    cells = tuple(repr(cell.cell_contents) for cell in function.__closure__ or ())
    return (*of(function.__code__), reads, cells)


def _text(function: Any) -> str:
    """The source of a function, for people; empty where it is not known."""
    try:
        return inspect.getsource(plain_function(function)).strip()
    except (OSError, TypeError):
        return ""


# Plain Python with the arithmetic of compiled code ------------------------------------------------


def _ieee(function: Any) -> Callable[..., Any]:
    """A function with constants and `math` of float64, which follow IEEE 754 and never raise."""
    plain = plain_function(function)
    ieee = with_constants(plain, np.float64, ieee_math(np.float64))
    if plain.__name__ == FORMULA_NAME:
        return ieee

    def or_nan(*arguments: Any) -> Any:
        try:
            return ieee(*arguments)
        except Exception:  # anything that the user's function does
            return math.nan

    return or_nan


def _over_arrays(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A function of numbers as one of arrays; slow, for the reference backend."""

    def apply(*arrays: Any) -> np.ndarray:
        wide = np.broadcast_arrays(*(np.asarray(a, np.float64) for a in arrays))
        with np.errstate(all="ignore"):
            flat = [function(*numbers) for numbers in zip(*(a.ravel() for a in wide), strict=True)]
        return np.array(flat, np.float64).reshape(wide[0].shape)

    return apply


# Checks of the numbers ----------------------------------------------------------------------------


def _check_activation(
    what: str,
    f: Callable[..., Any],
    df: Callable[..., Any],
    interval: tuple[float, float],
    found: bool,
    compare: bool,
) -> None:
    points = [0.0, *np.linspace(-8.0, 8.0, 65) + 0.0137]
    with np.errstate(all="ignore"):
        for z in map(np.float64, points):
            y = float(f(z))
            if math.isnan(y):
                raise ValueError(
                    f"{what}: f({z:g}) is nan, but a layer can reach every number: let f have a "
                    "value everywhere, as with a condition or max(z, ...)"
                )
            if not interval[0] <= y <= interval[1]:
                raise ValueError(f"{what}: f({z:g}) is {y:g}, outside of range {interval}")
        _check_slopes(
            what, [(z,) for z in points], f, lambda z: df(z, f(z)), "f", "df", found, compare
        )
        _warn_about_overflow(what, f)


def _warn_about_overflow(what: str, f: Callable[..., Any]) -> None:
    import warnings

    bad = [z for z in (-1e4, -750.0, -90.0, 90.0, 750.0, 1e4) if math.isnan(f(np.float64(z)))]
    if bad:
        warnings.warn(
            f"{what}: f({bad[0]:g}) is nan, though it is not for smaller numbers: training that "
            "gets there ends with DivergenceError. Write f so that nothing in it overflows",
            UserWarning,
            stacklevel=5,
        )


def _check_loss(
    what: str,
    value: Callable[..., Any],
    gradient: Callable[..., Any],
    domain: tuple[float, float],
    target_kind: str,
    found: bool,
    compare: bool,
) -> None:
    low, high = domain
    if math.isinf(low) and math.isinf(high):
        outputs: np.ndarray = np.linspace(-4.0, 4.0, 17) + 0.0137
    elif math.isinf(high):
        outputs = low + np.exp(np.linspace(-4.0, 3.0, 15))
    elif math.isinf(low):
        outputs = high - np.exp(np.linspace(-4.0, 3.0, 15))
    else:
        outputs = low + (high - low) * (np.arange(15) + 0.537) / 15.0
    targets = {
        "real": (-2.31, -0.4, 0.0, 0.73, 1.9),
        "nonnegative": (0.0, 0.5, 1.0, 3.0),
        "unit": (0.0, 0.3, 1.0),
        "sign": (-1.0, 1.0),
        "classes": (0.0, 0.3, 1.0),
    }[target_kind]
    points: list[tuple[float, ...]] = list(itertools.product(outputs.tolist(), targets))
    with np.errstate(all="ignore"):
        for y, t in points:
            result = float(value(np.float64(y), np.float64(t), np.float64(0)))
            if math.isnan(result):
                raise ValueError(
                    f"{what}: value({y:g}, {t:g}) is nan: let it have a value for every output "
                    "and target, or say with domain=(low, high) and target_kind which there are"
                )
        _check_slopes(
            what,
            points,
            lambda y, t: value(y, t, np.float64(0)),
            lambda y, t: gradient(y, t, np.float64(0)),
            "value",
            "gradient",
            found,
            compare,
        )


def _check_slopes(
    what: str,
    points: list[tuple[float, ...]],
    f: Callable[..., Any],
    df: Callable[..., Any],
    f_name: str,
    df_name: str,
    found: bool,
    compare: bool,
) -> None:
    """Hold a derivative against differences; raise where it is another's, or NaN."""
    for point in points:
        z, *others = map(np.float64, point)
        slope = float(df(z, *others))
        shown = ", ".join(f"{number:g}" for number in point)
        if math.isnan(slope) and math.isfinite(f(z, *others)):
            advice = f"give {df_name}" if found else "let it have a value wherever f has one"
            raise ValueError(f"{what}: the derivative of {f_name} at {shown} is nan: {advice}")
        if not compare or not math.isfinite(slope):
            continue
        low, high = _slope_between(lambda x: float(f(x, *others)), float(z))  # noqa: B023
        if low <= slope <= high:
            continue
        if found:
            advice = f"give {df_name}, and report this"
        else:
            advice = f"correct {df_name}, or pass check=False if this is meant"
        raise ValueError(
            f"{what}: the derivative of {f_name} at {shown} is {slope:.9g} by {df_name}, but "
            f"differences of {f_name} give {(low + high) / 2:.9g}: {advice}"
        )


def _slope_between(f: Callable[[float], float], z: float) -> tuple[float, float]:
    """Bounds of the slope of f at z, from differences; at a kink from one side's to the other's."""
    everything = -math.inf, math.inf
    h = 1e-3 * max(1.0, abs(z))
    values = {k: f(np.float64(z + k * h)) for k in (-2, -1, -0.5, -1 / 16, 0, 1 / 16, 0.5, 1, 2)}
    if not all(map(math.isfinite, values.values())):
        return everything

    def fourth_order(step: float) -> float:
        near = values[step] - values[-step]
        far = values[2 * step] - values[-2 * step]
        return (8 * near - far) / (12 * step * h)

    def sides(step: float) -> tuple[float, float]:
        return (values[0] - values[-step]) / (step * h), (values[step] - values[0]) / (step * h)

    left, right = sides(1 / 16)
    bend, bend_before = abs(left - right), abs(sides(1)[0] - sides(1)[1])
    size = max(1.0, abs(left), abs(right))
    if bend > 1e-5 * size and bend > 0.3 * bend_before:  # a smooth function's is 1/16
        margin = bend_before + 1e-3 * size
        return min(left, right) - margin, max(left, right) + margin
    slope = fourth_order(0.5)
    error = 10.0 * abs(slope - fourth_order(1)) + 1e-6 * max(1.0, abs(slope))
    return slope - error, slope + error
