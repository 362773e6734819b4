"""A user's function of numbers, turned into a formula that every backend compiles.

`translate` reads the source of a Python function and writes another one: one function of floats,
with nothing in it but what `fastnn.tables.scalars` allows. Helper functions are put in where they
are called, loops over constants are unrolled, integers that meet floats become floats. The same
pass can carry a derivative along (forward-mode differentiation: each number x has a twin dx), and
then the new function returns that.

What is meant by a derivative where there is none: at a kink it is that of the branch which Python
takes there; of `abs`, `max` and `min` it is the mean of both sides; rounding, comparisons and
integers have 0 everywhere. Two limits are taken where the chain rule alone would give infinity
times zero: the derivative of ``a / b`` where b has overflowed is that of a constant b, and an outer
derivative without bounds (sqrt at 0) times an inner one of 0 is 0.

References
----------
Griewank and Walther (2008), Evaluating Derivatives, doi 10.1137/1.9780898717761.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any, NoReturn

import numpy as np

__all__ = ["FORMULA_NAME", "Formula", "Unsupported", "plain_function", "translate"]

FORMULA_NAME = "formula"
MAX_UNROLLED = 64
MAX_DEPTH = 32
MAX_STATEMENTS = 5000
MAX_POWER = 64


class Unsupported(Exception):
    """Something that a formula cannot hold.

    Attributes
    ----------
    reason : str
    place : str
        ``line 3: the text of the line``, or an empty string.
    """

    def __init__(self, reason: str, place: str = "") -> None:
        super().__init__(f"{place}: {reason}" if place else reason)
        self.reason = reason
        self.place = place


@dataclass(frozen=True)
class Formula:
    """What `translate` returns.

    Attributes
    ----------
    source : str
        Of the one function, complete in itself: two formulas with equal sources are equal.
    function : function
        It, as plain Python.
    """

    source: str
    function: Callable[..., Any]


def plain_function(function: Any) -> FunctionType:
    """The Python function in a function, or in one that Numba has decorated.

    Raises
    ------
    TypeError
        It is something else.
    """
    inner = getattr(function, "py_func", function)
    if not isinstance(inner, FunctionType):
        raise TypeError(f"expected a Python function of numbers, got {function!r}")
    return inner


def translate(
    function: Any,
    parameters: Sequence[str],
    *,
    by: str | None = None,
    take: int | None = None,
    result: str | None = None,
) -> Formula:
    """Translate a function of floats, or its derivative.

    Parameters
    ----------
    function : function
        Takes and returns numbers, by position.
    parameters : sequence of str
        The names of the new function's parameters.
    by : str, optional
        The parameter to differentiate by; None translates the function itself.
    take : int, optional
        How many of `parameters`, from the first, the function takes; by default all.
    result : str, optional
        The parameter of a derivative that holds the function's value: what was computed once need
        not be computed again (tanh' = 1 - y^2).

    Raises
    ------
    Unsupported
        Something in it has no translation, or its source cannot be found.
    TypeError
        It is no Python function.
    """
    plain = plain_function(function)
    known: dict[str, tuple[str, bool]] = {}
    for _ in range(20):
        writer = _Writer(dict(known), derivative=by is not None)
        arguments = [_Value("real", name, "1.0" if name == by else None) for name in parameters]
        writer.run(plain, arguments[:take])
        if result is not None:
            writer.take_result(result)
        if writer.known == known:
            break
        known = writer.known
    body = "\n".join(writer.lines)
    source = f"def {FORMULA_NAME}({', '.join(parameters)}):\n{body}\n"
    # Not found as builtins, so that `with_constants` has the types of a backend in their place.
    namespace: dict[str, Any] = {"math": math, "float": float, "int": int}
    # The source was written by this module, from an abstract syntax tree: no text of the user's.
    exec(compile(source, f"<formula of {plain.__qualname__}>", "exec"), namespace)  # noqa: S102
    return Formula(source, namespace[FORMULA_NAME])


# Values -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    """What an expression gives: kind, an atom of code, the atom of its derivative (None: 0).

    Kinds: "real", "int", "bool"; "sequence" (of values) and "object" (a module, a function) exist
    only during translation. `const` is what is known of a number during translation.
    """

    kind: str
    code: str = ""
    d: str | None = None
    const: Any = None
    items: tuple[_Value, ...] = ()


def _literal(value: float) -> str:
    if math.isnan(value):
        return "math.nan"
    if math.isinf(value):
        return "math.inf" if value > 0 else "(-math.inf)"
    return repr(value) if math.copysign(1.0, value) > 0 else f"({value!r})"


def _constant(value: Any) -> _Value | None:
    """A Python object as a value; None where there is no such kind."""
    if isinstance(value, bool | np.bool_):
        return _Value("bool", repr(bool(value)), const=bool(value))
    if isinstance(value, int | np.integer):
        return _Value("int", f"({int(value)})", const=int(value))
    if isinstance(value, float | np.floating):
        return _Value("real", _literal(float(value)), const=float(value))
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "fiub":
        value = value.tolist()
    if isinstance(value, tuple | list):
        items = [_constant(item) for item in value]
        if all(item is not None for item in items):
            return _Value("sequence", items=tuple(items), const=value)  # type: ignore[arg-type]
    if isinstance(value, ModuleType | type) or callable(value):
        return _Value("object", const=value)
    return None


_RANK = {"bool": 0, "int": 1, "real": 2}


def _join(a: str, b: str) -> str:
    return a if _RANK[a] >= _RANK[b] else b


# Functions with one argument: the outer derivative, from x and the value v; whether it is taken as
# 0 where the inner one is 0 (it may be infinite), or where it is itself 0 (the inner one may be).
_ELEMENTARY: dict[str, tuple[str, bool]] = {
    "exp": ("{v}", True),
    "expm1": ("({v} + 1.0)", True),
    "log": ("(1.0 / {x})", True),
    "log2": ("(1.4426950408889634 / {x})", True),
    "log10": ("(0.4342944819032518 / {x})", True),
    "log1p": ("(1.0 / (1.0 + {x}))", True),
    "sqrt": ("(0.5 / {v})", True),
    "sin": ("math.cos({x})", False),
    "cos": ("(-math.sin({x}))", False),
    "tan": ("({v} * {v} + 1.0)", False),
    "asin": ("(1.0 / math.sqrt(1.0 - {x} * {x}))", True),
    "acos": ("(-1.0 / math.sqrt(1.0 - {x} * {x}))", True),
    "atan": ("(1.0 / (1.0 + {x} * {x}))", False),
    "sinh": ("math.cosh({x})", False),
    "cosh": ("math.sinh({x})", False),
    "tanh": ("(1.0 - {v} * {v})", False),
    "asinh": ("(1.0 / math.sqrt({x} * {x} + 1.0))", False),
    "acosh": ("(1.0 / math.sqrt({x} * {x} - 1.0))", True),
    "atanh": ("(1.0 / (1.0 - {x} * {x}))", True),
    "erf": ("(1.1283791670955126 * math.exp(-{x} * {x}))", False),
    "erfc": ("(-1.1283791670955126 * math.exp(-{x} * {x}))", False),
    "gamma": ("", False),
    "lgamma": ("", False),
}
_NUMPY_NAMES = {
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
    **{
        name: name
        for name in (
            *("exp", "expm1", "log", "log2", "log10", "log1p", "sqrt", "sin", "cos", "tan"),
            *("sinh", "cosh", "tanh"),
        )
    },
}
# Callables that the translation knows, and the methods of _Writer that write them.
_KNOWN: dict[Any, str] = {
    **{getattr(math, name): "elementary" for name in _ELEMENTARY},
    **{getattr(np, name): "elementary" for name in _NUMPY_NAMES},
    **dict.fromkeys((abs, math.fabs, np.abs, np.fabs), "absolute"),
    **dict.fromkeys((max, min), "extreme"),
    **dict.fromkeys((np.maximum, np.minimum), "extreme_or_nan"),
    **dict.fromkeys((pow, math.pow, np.power), "power"),
    **dict.fromkeys((float, np.float64, np.float32), "to_real"),
    **dict.fromkeys((math.floor, np.floor, math.ceil, np.ceil, math.trunc, np.trunc), "rounded"),
    **dict.fromkeys((math.isnan, np.isnan), "is_nan"),
    **dict.fromkeys((math.isinf, np.isinf), "is_inf"),
    **dict.fromkeys((math.isfinite, np.isfinite), "is_finite"),
    int: "to_int",
    bool: "to_bool",
    len: "length",
    math.copysign: "copysign",
    np.copysign: "copysign",
    math.hypot: "hypot",
    np.hypot: "hypot",
    math.atan2: "atan2",
    np.arctan2: "atan2",
    math.fmod: "fmod",
    np.fmod: "fmod",
    math.degrees: "degrees",
    math.radians: "radians",
    math.exp2 if hasattr(math, "exp2") else np.exp2: "exp2",
    np.exp2: "exp2",
    math.cbrt if hasattr(math, "cbrt") else np.cbrt: "cbrt",
    np.cbrt: "cbrt",
    np.sign: "sign",
    np.square: "square",
    np.reciprocal: "reciprocal",
    np.clip: "clip",
    np.where: "where",
}
_SPELLING = {getattr(np, numpy): name for numpy, name in _NUMPY_NAMES.items()}


# The writer ---------------------------------------------------------------------------------------


class _Scope:
    """One function, or one place where a helper was put in."""

    def __init__(self, function: FunctionType, source: _Source, number: int) -> None:
        self.function = function
        self.source = source
        self.number = number
        code = function.__code__
        self.locals = {*code.co_varnames, *code.co_cellvars}
        self.bound: dict[str, _Value] = {}  # names that exist only during translation
        self.defined: set[str] = set()
        self.assignments = _count_assignments(source.node)
        self.loop_targets: dict[str, int] = {}
        for node in ast.walk(source.node):
            if isinstance(node, ast.For):
                for name, count in _count_assignments(node.target).items():
                    self.loop_targets[name] = self.loop_targets.get(name, 0) + count
        self.result = ""  # the variable that a helper's value goes to
        self.loops = 0  # that are running around the statement at hand
        self.free = dict(
            zip(code.co_freevars, (c for c in function.__closure__ or ()), strict=True)
        )


class _Writer:
    """Writes the body of the new function. `known`: kind of each variable, and whether it moves.

    A pass finds out more about the variables than the pass before; the last changes nothing.
    """

    def __init__(self, known: dict[str, tuple[str, bool]], derivative: bool) -> None:
        self.known = known
        self.derivative = derivative
        self.lines: list[str] = []
        self.indent = 1
        self.n_temporaries = 0
        self.n_scopes = 0
        self.n_statements = 0
        self.stack: list[_Scope] = []
        self.node: ast.AST | None = None
        # Where each temporary is written, unless that is in a loop; what each conditional
        # expression comes to, and from which line on; what is returned.
        self.written: dict[str, int] = {}
        self.parts: dict[str, list[tuple[str, int]]] = {}
        self.returned: list[str] = []

    # Lines and names

    @property
    def scope(self) -> _Scope:
        return self.stack[-1]

    def refuse(self, reason: str, node: ast.AST | None = None) -> NoReturn:
        """Raise for the statement at hand."""
        node = node or self.node
        place = self.scope.source.place(node) if node is not None else ""
        raise Unsupported(reason, place)

    def emit(self, line: str) -> None:
        self.lines.append("    " * self.indent + line)

    def temporary(self, expression: str) -> str:
        self.n_temporaries += 1
        name = f"t{self.n_temporaries}"
        if not any(scope.loops for scope in self.stack):
            self.written[name] = len(self.lines)
        self.emit(f"{name} = {expression}")
        return name

    def take_result(self, parameter: str) -> None:
        """Replace what computes the function's value by the parameter that holds it."""
        if len(self.returned) != 1:
            return
        todo = [(self.returned[0], 0)]
        while todo:
            atom, first = todo.pop()
            todo.extend(self.parts.get(atom, []))
            line = self.written.get(atom, -1)
            # What was written before the branch that gives it may serve another branch, too.
            if line >= first:
                text = self.lines[line]
                self.lines[line] = f"{text[: text.index('=')]}= {parameter}"

    def variable(self, name: str) -> str:
        return f"{name}_{self.scope.number}"

    # Functions

    def run(self, function: FunctionType, arguments: list[_Value]) -> None:
        """The whole function: its value, or its derivative, is returned."""
        self.enter(function, [(value, None) for value in arguments], {})
        scope = self.scope
        if isinstance(scope.source.node, ast.Lambda):
            self.finish(self.expression(scope.source.node.body))
        elif not self.block(list(scope.source.node.body)):
            self.refuse("the function can end without returning a number", scope.source.node)

    def enter(
        self,
        function: FunctionType,
        arguments: list[tuple[_Value, ast.AST | None]],
        keywords: dict[str, _Value],
    ) -> None:
        if len(self.stack) >= MAX_DEPTH or any(
            scope.function.__code__ is function.__code__ for scope in self.stack
        ):
            self.refuse(f"{function.__name__} calls itself")
        source = _Source.of(function)
        signature = source.node.args
        if signature.vararg or signature.kwarg:
            raise Unsupported("*args and **kwargs are not supported", source.place(source.node))
        names = [a.arg for a in (*signature.posonlyargs, *signature.args)]
        given = dict(zip(names, (value for value, _ in arguments), strict=False))
        given.update(keywords)
        defaults = dict(zip(names[::-1], (function.__defaults__ or ())[::-1], strict=False))
        defaults.update(function.__kwdefaults__ or {})
        for name in (*names, *(a.arg for a in signature.kwonlyargs)):
            if name not in given and name in defaults:
                constant = _constant(defaults[name])
                if constant is not None:
                    given[name] = constant
            if name not in given:
                raise Unsupported(f"no value for parameter {name!r}", source.place(source.node))
        if len(given) > len(names) + len(signature.kwonlyargs) or len(arguments) > len(names):
            raise Unsupported(
                f"{function.__name__} takes {len(names)} arguments, got {len(arguments)}",
                source.place(source.node),
            )
        self.n_scopes += 1
        self.stack.append(_Scope(function, source, self.n_scopes))
        for name, value in given.items():
            if self.scope.assignments[name] == 1:
                # never assigned to, and what it stands for does not change during the call
                self.scope.bound[name] = value
                self.scope.defined.add(name)
            else:
                self.assign(name, value)

    def finish(self, value: _Value) -> None:
        """A return statement."""
        value = self.to_real_value(value)
        if not self.scope.result:
            self.returned.append(value.code)
        if self.scope.result:
            self.store(self.scope.result, value)
        elif self.derivative:
            self.emit(f"return {value.d or '0.0'}")
        else:
            self.emit(f"return {value.code}")

    def helper(
        self, function: FunctionType, arguments: list[_Value], keywords: dict[str, _Value]
    ) -> _Value:
        """A call of another function, put in here."""
        outer = self.node
        self.enter(function, [(value, None) for value in arguments], keywords)
        scope = self.scope
        node = scope.source.node
        if isinstance(node, ast.Lambda):
            value = self.expression(node.body)
        else:
            scope.result = f"result_{scope.number}"
            returned = _only_return(node)
            if returned is not None:  # also of several numbers
                scope.result = ""
                self.block(list(node.body)[:-1])
                self.node = node.body[-1]
                value = self.expression(returned)
            else:
                if not self.block(list(node.body)):
                    self.refuse("the function can end without returning a number", node)
                value = self.load(scope.result)
        self.stack.pop()
        self.node = outer
        return value

    # Variables

    def store(self, variable: str, value: _Value) -> None:
        """``variable = value``, in the widest kind that the variable has anywhere."""
        kind, moves = self.known.get(variable, (value.kind, False))
        kind, moves = _join(kind, value.kind), moves or value.d is not None
        self.known[variable] = kind, moves
        value = self.convert(value, kind)
        self.emit(f"{variable} = {value.code}")
        if moves:
            self.emit(f"d{variable} = {value.d or '0.0'}")

    def load(self, variable: str) -> _Value:
        kind, moves = self.known[variable]
        return _Value(kind, variable, f"d{variable}" if moves else None)

    def assign(self, name: str, value: _Value) -> None:
        scope = self.scope
        if value.kind in ("object", "sequence"):
            if scope.assignments.get(name, 0) > 1 or scope.loops:
                self.refuse(f"{name!r} is not always a number")
            if value.kind == "sequence":
                value = _Value("sequence", items=tuple(self.keep(item) for item in value.items))
            scope.bound[name] = value
        elif value.const is not None and not scope.loops and scope.assignments.get(name, 0) <= 1:
            scope.bound[name] = value
        else:
            if name in scope.bound:
                self.refuse(f"{name!r} is not always a number")
            self.store(self.variable(name), value)
        scope.defined.add(name)

    def keep(self, value: _Value) -> _Value:
        """The value as it is now, whatever is assigned to its variables later."""
        if value.kind == "sequence":
            return _Value("sequence", items=tuple(self.keep(item) for item in value.items))
        if value.const is not None or value.kind == "object":
            return value
        d = value.d if value.d in (None, "1.0") else self.temporary(str(value.d))
        return _Value(value.kind, self.temporary(value.code), d)

    # Statements

    def block(self, statements: list[Any]) -> bool:
        """Write statements; whether each way through them ends in a return."""
        for i, statement in enumerate(statements):
            self.n_statements += 1
            if self.n_statements > MAX_STATEMENTS:
                self.refuse(f"more than {MAX_STATEMENTS} statements once loops are unrolled")
            rest = statements[i + 1 :]
            if isinstance(statement, _Bind):
                self.scope.bound[statement.name] = statement.value
                self.scope.defined.add(statement.name)
                continue
            self.node = statement
            if isinstance(statement, ast.Return):
                if self.scope.result and self.scope.loops:
                    self.refuse("return inside of a loop of a helper function")
                if statement.value is None:
                    self.refuse("return without a number")
                self.finish(self.expression(statement.value))
                return True
            if isinstance(statement, ast.If):
                if self.branch(statement, rest):
                    return True
                if _returns(statement):
                    return False  # the branches have taken the rest along
            elif isinstance(statement, ast.For):
                items = self.unrolled(statement)
                if items is not None:
                    return self.block([*items, *rest])
                self.loop_over_range(statement)
            elif isinstance(statement, ast.While):
                if self.loop_while(statement):
                    return True
            elif isinstance(statement, ast.Break | ast.Continue):
                self.emit("break" if isinstance(statement, ast.Break) else "continue")
                return False
            else:
                self.simple(statement)
        return False

    def simple(self, statement: ast.stmt) -> None:
        """A statement that is no return, no branch and no loop."""
        if isinstance(statement, ast.Assign):
            value = self.expression(statement.value)
            for target in statement.targets:
                self.assign_to(target, value)
        elif isinstance(statement, ast.AnnAssign):
            if statement.value is not None:
                self.assign_to(statement.target, self.expression(statement.value))
        elif isinstance(statement, ast.AugAssign):
            if not isinstance(statement.target, ast.Name):
                self.refuse("only variables can be assigned to")
            old = self.name(statement.target)
            new = self.binary(statement.op, old, self.expression(statement.value))
            self.assign(statement.target.id, new)
        elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            pass  # a docstring
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            self.imports(statement)
        elif not isinstance(statement, ast.Pass):
            self.refuse(f"{_describe(statement)} is not supported")

    def imports(self, statement: ast.Import | ast.ImportFrom) -> None:
        modules = {"math": math, "numpy": np}
        for alias in statement.names:
            module = alias.name if isinstance(statement, ast.Import) else statement.module
            if module not in modules:
                self.refuse("only math and numpy can be imported in a formula")
            found: Any = modules[module]
            if isinstance(statement, ast.ImportFrom):
                found = getattr(found, alias.name)
            value = _constant(found)
            assert value is not None
            self.assign(alias.asname or alias.name, value)

    def assign_to(self, target: ast.expr, value: _Value) -> None:
        if isinstance(target, ast.Name):
            self.assign(target.id, value)
        elif isinstance(target, ast.Tuple | ast.List):
            if value.kind != "sequence" or len(value.items) != len(target.elts):
                self.refuse(f"there are not {len(target.elts)} numbers to assign")
            items = [self.keep(item) for item in value.items]  # a, b = b, a
            for inner, item in zip(target.elts, items, strict=True):
                self.assign_to(inner, item)
        else:
            self.refuse("only variables can be assigned to")

    def branch(self, statement: ast.If, rest: list[Any]) -> bool:
        test = self.to_bool_value(self.expression(statement.test))
        bodies = [list(statement.body), list(statement.orelse)]
        if _returns(statement):
            bodies = [body + rest for body in bodies]
        if test.const is not None:
            return self.block(bodies[0 if test.const else 1]) or False
        defined, ends = [], []
        before = set(self.scope.defined)
        bound = dict(self.scope.bound)
        for word, body in zip((f"if {test.code}:", "else:"), bodies, strict=True):
            self.scope.defined = set(before)
            self.scope.bound = dict(bound)
            self.emit(word)
            self.indent += 1
            length = len(self.lines)
            ends.append(self.block(body))
            if len(self.lines) == length:
                self.emit("pass")
            self.indent -= 1
            defined.append(self.scope.defined)
        alive = [names for names, end in zip(defined, ends, strict=True) if not end]
        self.scope.defined = set.intersection(*alive) if alive else before
        self.scope.bound = bound
        # A name that exists only during translation is gone after the branch that made it.
        self.scope.defined &= {
            name
            for name in self.scope.defined
            if name in bound or self.variable(name) in self.known
        }
        return all(ends)

    def unrolled(self, statement: ast.For) -> list[Any] | None:
        """The statements of a loop over constants, one turn after the other."""
        items = self.static_items(statement.iter)
        targets = [n.id for n in ast.walk(statement.target) if isinstance(n, ast.Name)]
        jumps = any(isinstance(n, ast.Break | ast.Continue) for n in _own_jumps(statement.body))
        alone = all(
            self.scope.assignments.get(name, 0) <= self.scope.loop_targets.get(name, 0)
            for name in targets
        )
        if statement.orelse:
            self.refuse("else after a loop is not supported")
        if items is None or jumps or len(items) > MAX_UNROLLED:
            return None
        if not alone or self.scope.loops:
            return None
        turns: list[Any] = []
        for item in items:
            for target, value in _pair(statement.target, item):
                if target is None:
                    self.refuse("the loop's variables do not fit what it runs over")
                turns.append(_Bind(target, value))
            turns.extend(statement.body)
        return turns

    def static_items(self, node: ast.expr) -> list[_Value] | None:
        """What a loop runs over, where that is known during translation."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            function = self.name(node.func).const
            if function is range:
                bounds = [self.expression(argument) for argument in node.args]
                if any(b.kind != "int" for b in bounds):
                    self.refuse("range takes integers")
                if any(b.const is None for b in bounds):
                    return None
                numbers = range(*(b.const for b in bounds))
                if len(numbers) > MAX_UNROLLED:
                    return None
                return [_constant(number) for number in numbers]  # type: ignore[misc]
            if function in (enumerate, reversed, zip):
                inner = [self.static_items(argument) for argument in node.args]
                if not inner or any(items is None for items in inner):
                    return None
                lists: list[list[_Value]] = inner  # type: ignore[assignment]
                if function is reversed:
                    return lists[0][::-1]
                if function is enumerate:
                    lists = [[_constant(i) for i in range(len(lists[0]))], lists[0]]  # type: ignore[misc]
                return [_Value("sequence", items=pair) for pair in zip(*lists, strict=False)]
        if isinstance(node, ast.Name | ast.Attribute | ast.Tuple | ast.List):
            value = self.expression(node)
            if value.kind == "sequence":
                return list(value.items)
        return None

    def loop_over_range(self, statement: ast.For) -> None:
        call = statement.iter
        is_range = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if not (is_range and self.name(call.func).const is range):  # type: ignore[attr-defined]
            self.refuse("a loop runs over range(...) or over constants")
        if not isinstance(statement.target, ast.Name):
            self.refuse("a loop over a range has one variable")
        bounds = [self.expression(a) for a in call.args]  # type: ignore[attr-defined]
        if any(b.kind != "int" for b in bounds):
            self.refuse("range takes integers")
        counter = f"i{len(self.lines)}_{self.indent}"
        self.emit(f"for {counter} in range({', '.join(b.code for b in bounds)}):")
        name = statement.target.id
        before = set(self.scope.defined)
        self.scope.loops += 1
        self.indent += 1
        self.assign(name, _Value("int", counter))
        self.block(list(statement.body))
        self.indent -= 1
        self.scope.loops -= 1
        self.scope.defined = before

    def loop_while(self, statement: ast.While) -> bool:
        """Write the loop; whether only a return leaves it."""
        if statement.orelse:
            self.refuse("else after a loop is not supported")
        before = set(self.scope.defined)
        self.emit("while True:")
        self.scope.loops += 1
        self.indent += 1
        test = self.to_bool_value(self.expression(statement.test))
        if test.const is not True:
            self.emit(f"if not {test.code}:")
            self.emit("    break")
        self.block(list(statement.body))
        self.indent -= 1
        self.scope.loops -= 1
        self.scope.defined = before
        leaves = any(isinstance(n, ast.Break) for n in _own_jumps(statement.body))
        return test.const is True and not leaves

    # Expressions

    def expression(self, node: ast.expr) -> _Value:
        if isinstance(node, ast.Constant):
            value = _constant(node.value)
            if value is None:
                self.refuse(f"{node.value!r} is no number", node)
            return value
        if isinstance(node, ast.Name):
            return self.name(node)
        if isinstance(node, ast.Attribute):
            return self.attribute(node)
        if isinstance(node, ast.BinOp):
            return self.binary(node.op, self.expression(node.left), self.expression(node.right))
        if isinstance(node, ast.UnaryOp):
            return self.unary(node)
        if isinstance(node, ast.Compare):
            return self.compare(node)
        if isinstance(node, ast.BoolOp):
            return self.boolean(node)
        if isinstance(node, ast.IfExp):
            return self.conditional(node)
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Tuple | ast.List):
            return _Value("sequence", items=tuple(self.expression(e) for e in node.elts))
        if isinstance(node, ast.Subscript):
            return self.subscript(node)
        return self.refuse(f"{_describe(node)} is not supported", node)

    def name(self, node: ast.Name) -> _Value:
        scope, name = self.scope, node.id
        if name in scope.locals:
            if name not in scope.defined:
                self.refuse(f"variable {name!r} is not set on every way here", node)
            return scope.bound[name] if name in scope.bound else self.load(self.variable(name))
        if name in scope.free:
            try:
                found = scope.free[name].cell_contents
            except ValueError:
                self.refuse(f"name {name!r} is not defined", node)
        elif name in scope.function.__globals__:
            found = scope.function.__globals__[name]
        else:
            builtins = scope.function.__globals__.get("__builtins__", {})
            builtins = builtins if isinstance(builtins, dict) else vars(builtins)
            if name not in builtins:
                self.refuse(f"name {name!r} is not defined", node)
            found = builtins[name]
        return self.from_object(found, name, node)

    def from_object(self, found: Any, name: str, node: ast.expr) -> _Value:
        value = _constant(found)
        if value is None:
            self.refuse(f"{name!r} is {type(found).__name__}, no number or function", node)
        return value

    def attribute(self, node: ast.Attribute) -> _Value:
        owner = self.expression(node.value)
        if owner.kind != "object" or not isinstance(owner.const, ModuleType | type):
            self.refuse(f"attribute {node.attr!r} of something that is no module", node)
        try:
            found = getattr(owner.const, node.attr)
        except AttributeError:
            self.refuse(f"{owner.const.__name__} has no {node.attr!r}", node)
        return self.from_object(found, node.attr, node)

    def subscript(self, node: ast.Subscript) -> _Value:
        owner, index = self.expression(node.value), self.expression(node.slice)
        if owner.kind != "sequence" or index.kind != "int" or index.const is None:
            self.refuse("only constants can be indexed, by numbers known beforehand", node)
        try:
            return owner.items[index.const]
        except IndexError:
            self.refuse(f"index {index.const} is out of range", node)

    def number(self, value: _Value) -> _Value:
        if value.kind not in _RANK:
            self.refuse("a number is needed here")
        return value

    def convert(self, value: _Value, kind: str) -> _Value:
        if kind == "real":
            return self.to_real_value(value)
        value = self.number(value)
        if kind == "int" and value.kind == "bool":
            if value.const is not None:
                return _Value("int", f"({int(value.const)})", const=int(value.const))
            return _Value("int", self.temporary(f"1 if {value.code} else 0"))
        return value

    def to_real_value(self, value: _Value) -> _Value:
        value = self.number(value)
        if value.kind == "real":
            return value
        if value.const is not None:
            return _Value("real", _literal(float(value.const)), const=float(value.const))
        if value.kind == "bool":
            return _Value("real", self.temporary(f"1.0 if {value.code} else 0.0"))
        return _Value("real", self.temporary(f"float({value.code})"))

    def to_bool_value(self, value: _Value) -> _Value:
        value = self.number(value)
        if value.kind == "bool":
            return value
        if value.const is not None:
            return _Value("bool", repr(bool(value.const)), const=bool(value.const))
        zero = "0.0" if value.kind == "real" else "0"
        return _Value("bool", self.temporary(f"{value.code} != {zero}"))

    def unary(self, node: ast.UnaryOp) -> _Value:
        value = self.number(self.expression(node.operand))
        if isinstance(node.op, ast.Not) or (
            isinstance(node.op, ast.Invert) and value.kind == "bool"
        ):
            value = self.to_bool_value(value)
            if value.const is not None:
                return _Value("bool", repr(not value.const), const=not value.const)
            return _Value("bool", self.temporary(f"not {value.code}"))
        if isinstance(node.op, ast.Invert):
            self.refuse("~ of a number is not supported", node)
        if value.kind == "bool":
            value = self.convert(value, "int")
        if isinstance(node.op, ast.UAdd):
            return value
        if value.const is not None:
            return _constant(-value.const)  # type: ignore[return-value]
        return self.negative(value)

    def negative(self, value: _Value) -> _Value:
        d = None if value.d is None else self.temporary(f"-{value.d}")
        return _Value(value.kind, self.temporary(f"-{value.code}"), d)

    def binary(self, op: ast.operator, a: _Value, b: _Value) -> _Value:
        if a.kind == b.kind == "bool" and isinstance(op, ast.BitAnd | ast.BitOr | ast.BitXor):
            word = {ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "!="}[type(op)]
            return _Value("bool", self.temporary(f"{a.code} {word} {b.code}"))
        a, b = self.number(a), self.number(b)
        if isinstance(op, ast.Pow):
            return self.power(a, b)
        signs = {
            ast.Add: "+",
            ast.Sub: "-",
            ast.Mult: "*",
            ast.Div: "/",
            ast.FloorDiv: "//",
            ast.Mod: "%",
        }
        sign = signs.get(type(op))
        if sign is None:
            self.refuse(f"operator {_describe(op)} is not supported")
        if "real" not in (a.kind, b.kind) and sign != "/":
            return self.integers(sign, self.convert(a, "int"), self.convert(b, "int"))
        a, b = self.to_real_value(a), self.to_real_value(b)
        if sign == "/":
            return self.quotient(a, b)
        code = self.temporary(f"{a.code} {sign} {b.code}")
        return _Value("real", code, self.derivative_of(sign, a, b, code))

    def integers(self, sign: str, a: _Value, b: _Value) -> _Value:
        if a.const is not None and b.const is not None:
            if sign in ("//", "%") and b.const == 0:
                self.refuse("division of an integer by 0")
            functions: dict[str, Callable[[int, int], int]] = {
                "+": lambda x, y: x + y,
                "-": lambda x, y: x - y,
                "*": lambda x, y: x * y,
                "//": lambda x, y: x // y,
                "%": lambda x, y: x % y,
            }
            return _constant(functions[sign](a.const, b.const))  # type: ignore[return-value]
        return _Value("int", self.temporary(f"{a.code} {sign} {b.code}"))

    def derivative_of(self, sign: str, a: _Value, b: _Value, code: str) -> str | None:
        """Of a sum, a difference, a product or a remainder."""
        if sign == "+":
            return self.sum(a.d, b.d)
        if sign == "-":
            return self.sum(a.d, None if b.d is None else self.temporary(f"-{b.d}"))
        if sign == "*":
            return self.sum(self.product(a.d, b.code), self.product(b.d, a.code))
        if sign == "%" and b.d is not None:
            turns = self.temporary(f"-({a.code} // {b.code})")
            return self.sum(a.d, self.product(b.d, turns))
        return a.d if sign == "%" else None

    def sum(self, a: str | None, b: str | None) -> str | None:
        if a is None or b is None:
            return a if b is None else b
        return self.temporary(f"{a} + {b}")

    def product(self, d: str | None, factor: str) -> str | None:
        if d is None:
            return None
        return factor if d == "1.0" else self.temporary(f"{d} * {factor}")

    def chain(self, d: str | None, outer: str, limit: bool = False) -> str | None:
        """``d * outer``; with `limit` 0 where either is 0, though the other may be infinite."""
        if d is None:
            return None
        if d == "1.0":
            return self.temporary(outer)
        if not limit:
            return self.temporary(f"{d} * {outer}")
        outer = self.temporary(outer)
        return self.temporary(f"0.0 if {d} == 0.0 or {outer} == 0.0 else {d} * {outer}")

    def quotient(self, a: _Value, b: _Value) -> _Value:
        q = self.temporary(f"{a.code} / {b.code}")
        if b.d is None:
            if a.d is None:
                return _Value("real", q)
            return _Value("real", q, self.temporary(f"{a.d} / {b.code}"))
        fall = self.temporary(f"{q} * {b.d}")
        top = self.temporary(f"{a.d or '0.0'} - {fall}")
        # Where b has overflowed, fall is infinity times zero, but the quotient changes no more.
        top = self.temporary(f"{top} if {b.code} - {b.code} == 0.0 else {a.d or '0.0'}")
        return _Value("real", q, self.temporary(f"{top} / {b.code}"))

    def compare(self, node: ast.Compare) -> _Value:
        words = {
            ast.Lt: "<",
            ast.LtE: "<=",
            ast.Gt: ">",
            ast.GtE: ">=",
            ast.Eq: "==",
            ast.NotEq: "!=",
        }
        left = self.number(self.expression(node.left))
        parts = []
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            if type(op) not in words:
                self.refuse(f"{_describe(op)} is not supported", node)
            right = self.number(self.expression(right_node))
            a, b = left, right
            if "real" in (a.kind, b.kind):
                a, b = self.to_real_value(a), self.to_real_value(b)
            parts.append(f"{a.code} {words[type(op)]} {b.code}")
            left = right
        if len(parts) == 1:
            return _Value("bool", self.temporary(parts[0]))
        return _Value("bool", self.temporary(" and ".join(f"({part})" for part in parts)))

    def boolean(self, node: ast.BoolOp) -> _Value:
        # All parts are computed: nothing here can fail, and a vector computes them anyway.
        values = [self.number(self.expression(part)) for part in node.values]
        if any(value.kind != "bool" for value in values):
            self.refuse("'and' and 'or' need comparisons on both sides", node)
        word = " and " if isinstance(node.op, ast.And) else " or "
        return _Value("bool", self.temporary(word.join(value.code for value in values)))

    def conditional(self, node: ast.IfExp) -> _Value:
        test = self.to_bool_value(self.expression(node.test))
        if test.const is not None:
            return self.expression(node.body if test.const else node.orelse)
        self.n_temporaries += 1
        result = f"c{self.n_temporaries}"
        for word, part in ((f"if {test.code}:", node.body), ("else:", node.orelse)):
            self.emit(word)
            self.indent += 1
            first = len(self.lines)
            value = self.number(self.expression(part))
            self.parts.setdefault(result, []).append((value.code, first))
            self.store(result, value)
            self.indent -= 1
        if any(scope.loops for scope in self.stack):
            del self.parts[result]
        return self.load(result)

    # Calls

    def call(self, node: ast.Call) -> _Value:
        if any(isinstance(a, ast.Starred) for a in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            self.refuse("* in a call is not supported", node)
        callee = self.expression(node.func)
        if callee.kind != "object":
            self.refuse("what is called here is no function", node)
        function = callee.const
        arguments = [self.expression(argument) for argument in node.args]
        keywords = {str(k.arg): self.expression(k.value) for k in node.keywords}
        try:
            method = _KNOWN.get(function)
        except TypeError:  # not hashable
            method = None
        if method is None:
            inner = getattr(function, "py_func", function)
            if isinstance(inner, FunctionType):
                return self.helper(inner, arguments, keywords)
            name = getattr(function, "__name__", repr(function))
            self.refuse(f"{name} is no function that formulas know", node)
        if keywords:
            self.refuse(f"{function.__name__} takes no keywords here", node)
        if method != "length":
            arguments = [self.number(argument) for argument in arguments]
        if function is math.log and len(arguments) == 2:
            return self.quotient(*(self.elementary("log", argument) for argument in arguments))
        try:
            return getattr(self, method)(*self.prepared(method, function, arguments))
        except TypeError:
            if len(arguments) == self.arity(method):
                raise
            self.refuse(f"{function.__name__} does not take {len(arguments)} arguments", node)

    def arity(self, method: str) -> int:
        return len(inspect.signature(getattr(self, method)).parameters)

    def prepared(self, method: str, function: Any, arguments: list[_Value]) -> list[Any]:
        """What the method takes: for families of functions also which of them."""
        name = _SPELLING.get(function, getattr(function, "__name__", ""))
        if method in ("elementary", "rounded"):
            return [name, *arguments]
        if method in ("extreme", "extreme_or_nan"):
            if len(arguments) < 2 or (method == "extreme_or_nan" and len(arguments) != 2):
                self.refuse(f"{name} does not take {len(arguments)} arguments")
            return [">" if name.startswith("max") else "<", arguments]
        return list(arguments)

    def elementary(self, name: str, x: _Value) -> _Value:
        x = self.to_real_value(x)
        v = self.temporary(f"math.{name}({x.code})")
        outer, limit = _ELEMENTARY[name]
        if x.d is not None and not outer:
            self.refuse(f"the derivative of math.{name} is not known here")
        return _Value("real", v, self.chain(x.d, outer.format(x=x.code, v=v), limit))

    def absolute(self, x: _Value) -> _Value:
        if x.kind != "real":
            x = self.convert(x, "int")
            return _Value("int", self.temporary(f"abs({x.code})"))
        v = self.temporary(f"abs({x.code})")
        if x.d is None:
            return _Value("real", v)
        down = self.temporary(f"-{x.d} if {x.code} < 0.0 else {x.code} * 0.0")
        return _Value("real", v, self.temporary(f"{x.d} if {x.code} > 0.0 else {down}"))

    def pick(self, test: str, a: _Value, b: _Value) -> _Value:
        """``a if test else b``, both computed."""
        kind = _join(a.kind, b.kind)
        a, b = self.convert(a, kind), self.convert(b, kind)
        d = None
        if a.d is not None or b.d is not None:
            d = self.temporary(f"{a.d or '0.0'} if {test} else {b.d or '0.0'}")
        return _Value(kind, self.temporary(f"{a.code} if {test} else {b.code}"), d)

    def extreme(self, sign: str, values: list[_Value]) -> _Value:
        best = values[0]
        for other in values[1:]:
            kind = _join(best.kind, other.kind)
            best, other = self.convert(best, kind), self.convert(other, kind)  # noqa: PLW2901
            test = self.temporary(f"{other.code} {sign} {best.code}")
            best = self.at_a_tie(best, other, self.pick(test, other, best))
        return best

    def at_a_tie(self, a: _Value, b: _Value, chosen: _Value) -> _Value:
        """The mean of both derivatives, so that max(z, 0) + log1p(exp(-abs(z))) is smooth at 0."""
        if chosen.d is None:
            return chosen
        mean = self.temporary(f"0.5 * ({a.d or '0.0'} + {b.d or '0.0'})")
        d = self.temporary(f"{mean} if {a.code} == {b.code} else {chosen.d}")
        return _Value(chosen.kind, chosen.code, d)

    def extreme_or_nan(self, sign: str, values: list[_Value]) -> _Value:
        a, b = (self.to_real_value(value) for value in values)
        test = self.temporary(f"{b.code} {sign} {a.code} or {b.code} != {b.code}")
        return self.at_a_tie(a, b, self.pick(test, b, a))

    def clip(self, x: _Value, low: _Value, high: _Value) -> _Value:
        return self.extreme_or_nan("<", [self.extreme_or_nan(">", [x, low]), high])

    def where(self, test: _Value, a: _Value, b: _Value) -> _Value:
        return self.pick(self.to_bool_value(test).code, a, b)

    def power(self, x: _Value, y: _Value) -> _Value:
        n = y.const
        if n is not None and float(n).is_integer() and abs(n) <= MAX_POWER:
            if y.kind != "real" and x.kind != "real" and n >= 0:
                if x.const is not None:
                    return _constant(int(x.const) ** int(n))  # type: ignore[return-value]
                return _Value("int", self.multiplied(x.code, int(n)) if n else "(1)")
            return self.whole_power(self.to_real_value(x), int(n))
        x = self.to_real_value(x)
        if n == 0.5:
            return self.elementary("sqrt", x)
        y = self.to_real_value(y)
        v = self.temporary(f"math.pow({x.code}, {y.code})")
        d = None
        if x.d is not None:
            less = self.temporary(f"{y.code} - 1.0")
            d = self.chain(x.d, f"({y.code} * math.pow({x.code}, {less}))", True)
        if y.d is not None:
            logarithm = self.temporary(f"math.log({x.code}) if {v} != 0.0 else 0.0")
            d = self.sum(d, self.chain(y.d, f"({v} * {logarithm})", True))
        return _Value("real", v, d)

    def whole_power(self, x: _Value, n: int) -> _Value:
        if n == 0:
            return _Value("real", "1.0", const=1.0)
        if n < 0:
            return self.quotient(_Value("real", "1.0", const=1.0), self.whole_power(x, -n))
        if n == 1:
            return x
        below = self.multiplied(x.code, n - 1)
        v = self.temporary(f"{below} * {x.code}")
        d = None if x.d is None else self.chain(x.d, f"({float(n)!r} * {below})")
        return _Value("real", v, d)

    def multiplied(self, x: str, n: int) -> str:
        """X to the n-th, n >= 1, by squaring."""
        if n == 1:
            return x
        half = self.multiplied(x, n // 2)
        square = self.temporary(f"{half} * {half}")
        return square if n % 2 == 0 else self.temporary(f"{square} * {x}")

    def to_real(self, x: _Value) -> _Value:
        return self.to_real_value(x)

    def to_int(self, x: _Value) -> _Value:
        if x.const is not None and (x.kind != "real" or math.isfinite(x.const)):
            return _constant(int(x.const))  # type: ignore[return-value]
        return _Value("int", self.temporary(f"int({x.code})"))

    def to_bool(self, x: _Value) -> _Value:
        return self.to_bool_value(x)

    def length(self, x: _Value) -> _Value:
        if x.kind != "sequence":
            self.refuse("len of something that is no constant")
        return _constant(len(x.items))  # type: ignore[return-value]

    def rounded(self, name: str, x: _Value) -> _Value:
        if x.kind != "real":
            return self.convert(x, "int")
        return _Value("real", self.temporary(f"math.{name}({x.code})"))

    def is_nan(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        return _Value("bool", self.temporary(f"{x.code} != {x.code}"))

    def is_inf(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        return _Value("bool", self.temporary(f"abs({x.code}) == math.inf"))

    def is_finite(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        return _Value("bool", self.temporary(f"{x.code} - {x.code} == 0.0"))

    def copysign(self, x: _Value, sign: _Value) -> _Value:
        x, sign = self.to_real_value(x), self.to_real_value(sign)
        v = self.temporary(f"math.copysign({x.code}, {sign.code})")
        turn = f"math.copysign(math.copysign(1.0, {x.code}), {sign.code})"
        if x.d is None:
            return _Value("real", v)
        # +1 where the sign stays, -1 where it turns
        turn = self.temporary(f"{turn} * math.copysign(1.0, {x.code})")
        return _Value("real", v, self.chain(x.d, turn))

    def hypot(self, a: _Value, b: _Value) -> _Value:
        a, b = self.to_real_value(a), self.to_real_value(b)
        v = self.temporary(f"math.hypot({a.code}, {b.code})")
        top = self.sum(self.product(a.d, a.code), self.product(b.d, b.code))
        if top is None:
            return _Value("real", v)
        return _Value("real", v, self.temporary(f"{top} / {v} if {v} != 0.0 else 0.0"))

    def atan2(self, y: _Value, x: _Value) -> _Value:
        y, x = self.to_real_value(y), self.to_real_value(x)
        v = self.temporary(f"math.atan2({y.code}, {x.code})")
        fall = self.product(x.d, y.code)
        top = self.sum(
            self.product(y.d, x.code), None if fall is None else self.temporary(f"-{fall}")
        )
        if top is None:
            return _Value("real", v)
        square = self.temporary(f"{x.code} * {x.code} + {y.code} * {y.code}")
        return _Value("real", v, self.temporary(f"{top} / {square}"))

    def fmod(self, a: _Value, b: _Value) -> _Value:
        a, b = self.to_real_value(a), self.to_real_value(b)
        # Numba has no math.fmod; of positive numbers it is the remainder, exactly
        positive = self.temporary(f"abs({a.code}) % abs({b.code})")
        v = self.temporary(f"math.copysign({positive}, {a.code})")
        if b.d is None:
            return _Value("real", v, a.d)
        turns = self.temporary(f"({v} - {a.code}) / {b.code}")
        return _Value("real", v, self.sum(a.d, self.product(b.d, turns)))

    def scaled(self, x: _Value, factor: float) -> _Value:
        return self.binary(ast.Mult(), self.to_real_value(x), _Value("real", _literal(factor)))

    def degrees(self, x: _Value) -> _Value:
        return self.scaled(x, 180.0 / math.pi)

    def radians(self, x: _Value) -> _Value:
        return self.scaled(x, math.pi / 180.0)

    def exp2(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        v = self.temporary(f"math.pow(2.0, {x.code})")
        return _Value("real", v, self.chain(x.d, f"({v} * {_literal(math.log(2.0))})", True))

    def cbrt(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        third = _literal(1.0 / 3.0)
        root = self.temporary(f"math.pow(abs({x.code}), {third})")
        v = self.temporary(f"math.copysign({root}, {x.code})")
        return _Value("real", v, self.chain(x.d, f"({third} / ({root} * {root}))", True))

    def sign(self, x: _Value) -> _Value:
        x = self.to_real_value(x)
        down = self.temporary(f"-1.0 if {x.code} < 0.0 else {x.code} * 0.0")
        return _Value("real", self.temporary(f"1.0 if {x.code} > 0.0 else {down}"))

    def square(self, x: _Value) -> _Value:
        return self.whole_power(self.to_real_value(x), 2)

    def reciprocal(self, x: _Value) -> _Value:
        return self.quotient(_Value("real", "1.0", const=1.0), self.to_real_value(x))


# The syntax tree ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bind:
    """A statement of an unrolled loop: this name is this constant now."""

    name: str
    value: _Value


def _pair(target: ast.expr, item: _Value) -> Iterator[tuple[str | None, _Value]]:
    """Names of a loop's target, and what they are."""
    if isinstance(target, ast.Name):
        yield target.id, item
    elif (
        isinstance(target, ast.Tuple)
        and item.kind == "sequence"
        and len(item.items) == len(target.elts)
    ):
        for inner, value in zip(target.elts, item.items, strict=True):
            yield from _pair(inner, value)
    else:
        yield None, item


def _returns(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Return) for inner in ast.walk(node))


def _only_return(node: ast.FunctionDef) -> ast.expr | None:
    """The value of the last statement, where that is the only return."""
    last = node.body[-1]
    if isinstance(last, ast.Return) and not any(_returns(s) for s in node.body[:-1]):
        return last.value
    return None


def _own_jumps(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a loop, without those of loops inside of it."""
    for statement in statements:
        yield statement
        if isinstance(statement, ast.If):
            yield from _own_jumps(statement.body)
            yield from _own_jumps(statement.orelse)


def _count_assignments(node: ast.AST) -> dict[str, int]:
    """How often each name is assigned to; being a parameter counts too."""
    counts: dict[str, int] = {}
    for inner in ast.walk(node):
        name = None
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            name = inner.id
        elif isinstance(inner, ast.arg):
            name = inner.arg
        elif isinstance(inner, ast.alias):
            name = inner.asname or inner.name
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    return counts


_NAMES = {
    ast.Raise: "raise",
    ast.Assert: "assert",
    ast.Try: "try",
    ast.With: "with",
    ast.FunctionDef: "a function inside of the function",
    ast.Lambda: "a lambda inside of the function",
    ast.NamedExpr: "':='",
    ast.Match: "match",
    ast.Delete: "del",
    ast.Global: "global",
    ast.Nonlocal: "nonlocal",
    ast.Expr: "an expression whose value is not used",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "text",
    ast.Dict: "a dictionary",
    ast.MatMult: "'@'",
    ast.In: "'in'",
    ast.NotIn: "'not in'",  # codespell:ignore notin
    ast.Is: "'is'",
    ast.IsNot: "'is not'",
}


def _describe(node: ast.AST) -> str:
    return _NAMES.get(type(node), type(node).__name__)


@dataclass(frozen=True)
class _Source:
    """Where a function's text is."""

    node: Any  # ast.FunctionDef or ast.Lambda
    lines: list[str]
    filename: str

    def place(self, node: ast.AST) -> str:
        line = getattr(node, "lineno", getattr(self.node, "lineno", 0))
        text = self.lines[line - 1].strip() if 0 < line <= len(self.lines) else ""
        return f"{self.filename}, line {line} ({text})"

    @staticmethod
    def of(function: FunctionType) -> _Source:
        """Find the syntax tree of a function, and make sure that it is its own."""
        code = function.__code__
        linecache.checkcache(code.co_filename)
        try:
            lines, _ = inspect.findsource(code)
            tree, compiled = _parsed("".join(lines), code.co_filename)
        except (OSError, SyntaxError, ValueError, IndexError) as error:
            raise Unsupported(
                f"the source of {function.__qualname__} cannot be read "
                f"({code.co_filename}): define it in a file or a notebook"
            ) from error
        for candidate in compiled:
            if _same_code(candidate, code) and candidate.co_firstlineno == code.co_firstlineno:
                node = _node_of(candidate, tree)
                if node is not None:
                    return _Source(node, lines, code.co_filename)
        raise Unsupported(
            f"the source of {function.__qualname__} in {code.co_filename} is not what was "
            "imported: import it again"
        )


@lru_cache(maxsize=8)
def _parsed(text: str, filename: str) -> tuple[ast.Module, tuple[CodeType, ...]]:
    """The syntax tree of a file, and all code in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever imported it has seen them
        tree = ast.parse(text)
        # A notebook compiles statement by statement, which may give other code: what is imported
        # in the same piece is called in a way of its own.
        pieces = [tree, *(ast.Module([statement], []) for statement in tree.body)]
        codes = [compile(piece, filename, "exec", dont_inherit=True) for piece in pieces]
        return tree, tuple(inner for code in codes for inner in _codes(code))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """All code inside of a module's."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _node_of(code: CodeType, tree: ast.AST) -> ast.FunctionDef | ast.Lambda | None:
    """The definition that was compiled to this code."""
    best: ast.Lambda | None = None
    innermost = (0, 0)
    places = [p for p in code.co_positions() if None not in p and p[2] != p[3]]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if min([node.lineno, *(d.lineno for d in node.decorator_list)]) == code.co_firstlineno:
                return node
        elif isinstance(node, ast.Lambda) and code.co_name == "<lambda>":
            begin = node.body.lineno, node.body.col_offset
            end = node.body.end_lineno, node.body.end_col_offset
            inside = all(begin <= (p[0], p[2]) and (p[1], p[3]) <= end for p in places)
            if not places:  # Python 3.12 says of no constant where it is returned
                inside = node.lineno == code.co_firstlineno and _is_compiled_to(node, code)
            if inside and begin > innermost:
                best, innermost = node, begin
    return best


def _is_compiled_to(node: ast.Lambda, code: CodeType) -> bool:
    alone = compile(ast.Expression(node), code.co_filename, "eval", dont_inherit=True)
    return any(_same_code(inner, code) for inner in _codes(alone))


def _same_code(a: CodeType, b: CodeType) -> bool:
    same = (
        a.co_code == b.co_code
        and a.co_name == b.co_name
        and a.co_names == b.co_names
        and a.co_varnames == b.co_varnames
        and a.co_freevars == b.co_freevars
        and len(a.co_consts) == len(b.co_consts)
    )
    return same and all(
        _same_code(x, y)
        if isinstance(x, CodeType) and isinstance(y, CodeType)
        # 0.0 == -0.0 == False, and NaN is not itself
        else repr(x) == repr(y)
        for x, y in zip(a.co_consts, b.co_consts, strict=True)
    )
