"""Functions translated into formulas, and their derivatives: against Python, and differences."""

import math

import mpmath
import numba
import numpy as np
import pytest

from fastnn.tables.custom import _ieee
from fastnn.tables.formulas import Unsupported, plain_function, translate

SCALE = 1.5
COEFFICIENTS = (0.5, -0.3, 0.2)
TABLE = np.array([1, 2, 4])


def helper(x, power=2, *, factor=1.0):
    """Used by others."""
    if x > 1:
        return factor * x**power
    return x


def pair(x):
    s = x * x
    return s, x + s


@numba.njit
def decorated(x):
    return x / (1.0 + abs(x))


def silu(z):
    return z / (1 + math.exp(-z))


def docstring_and_branches(z):
    """Of several lines, and a chain of branches."""
    if z > 1:
        return SCALE * z
    elif z > 0:
        y = z
    else:
        y = math.expm1(z)
    return y + 0.5 * (z > 1)


def horner(z):
    y = 0
    for c in COEFFICIENTS:
        y = y * z + c
    return y


def enumerated(z):
    y = 0.0
    for i, c in enumerate(COEFFICIENTS):
        y += c * z**i * TABLE[i] + len(TABLE)
    for a, b in zip(COEFFICIENTS, reversed(COEFFICIENTS)):  # noqa: B905
        y -= a * b * z
    for i in range(2, 5):
        y += z / i
    return y


def helpers(z):
    return helper(z, 3) + helper(z, factor=2.0) + decorated(z)


def several_numbers(z):
    a, b = pair(z)
    a, b = b, a
    c = (a, z)
    return a - b * c[1] + c[0]


def newton(z):
    x = 1
    i = 0
    while i < 6:
        x = 0.5 * (x + (1 + z * z) / x)
        i += 1
    return x


def with_break(z):
    s = 0.0
    for i in range(100):
        if i == 1:
            continue
        s += z**2 / (i + 1)
        if i > 7:
            break
    return s


def return_in_loop(z):
    s = z
    while True:
        s = s * 0.5
        if abs(s) < 1:
            return s * z


def booleans(z):
    inside = (z > -1) & (z < 1)
    if not inside and -3 < z <= 3:
        return z * 2
    return (inside or z > 5) * math.sinh(z) + (z > 0) * 1


def integers(z):
    n = 7 // 2 + 7 % 4 - (-1)
    return z * n + 2**3 + int(2.7) + float(True)


def numpy_names(z):
    low = np.clip(z, -0.7, 1.1) + np.where(z > 0.4, np.sin(z), z)
    return low + np.square(z) * np.tanh(z) + np.sign(z) * np.arctan(z) + np.reciprocal(2 + z * z)


def imports(z):
    from math import cos

    return cos(z) * math.pi


def everything_of_math(z):
    y = math.sqrt(1 + z * z) + math.log(2 + z * z) + math.log1p(z * z) + math.log2(3 + z * z)
    y += math.log10(3 + z * z) + math.log(5 + z * z, 3) + math.exp(z / 3) + math.tan(z / 9)
    y += math.asin(z / 9) + math.acos(z / 9) + math.atan(z) + math.atan2(z, 2 + z) + math.cosh(z)
    y += math.asinh(z) + math.acosh(2 + z * z) + math.atanh(z / 9) + math.erf(z) + math.erfc(z)
    y += math.fabs(z) + math.hypot(z, 1 + z) + math.fmod(z, 0.7) + math.copysign(z, -1.0 - z * z)
    y += math.degrees(z) / 90 + math.radians(z) + z % 0.6 + z // 0.6 + math.floor(z) + math.ceil(z)
    y += math.trunc(z) + (2 + z * z) ** z + math.pow(3.5 + z, 1.3) + 2.0**z + abs(z) ** 0.5
    y += 1 / (3 + z) ** 2 + z**5 - z**1 + z**0 + pow(z, 3) + math.gamma(3) + math.lgamma(2.5)
    y += float(math.isnan(z)) + math.isfinite(z) + math.isinf(z) + max(z, 0.1, z * z) + min(z, 2.0)
    return y


def cube_roots(z):
    return np.cbrt(1 + z * z) + np.exp2(z) + np.hypot(z, 2) + np.maximum(z, 0.2) + np.minimum(z, 1)


FUNCTIONS = [
    silu,
    docstring_and_branches,
    horner,
    enumerated,
    helpers,
    several_numbers,
    newton,
    with_break,
    return_in_loop,
    booleans,
    integers,
    numpy_names,
    imports,
    everything_of_math,
    cube_roots,
]
LAMBDAS = [lambda z: z if z > 0 else 0.1 * z, lambda z, a=3.0: a * math.sin(z)]  # two on a line
POINTS = (-2.317, -0.831, -0.313, 0.271, 0.913, 1.771, 2.53)


@pytest.mark.parametrize("f", [*FUNCTIONS, *LAMBDAS], ids=lambda f: f.__name__)
def test_values_are_those_of_python(f):
    formula = translate(f, ("z",)).function
    got = [formula(z) for z in POINTS]
    np.testing.assert_allclose(got, [float(f(z)) for z in POINTS], rtol=1e-13, atol=1e-14)
    assert len({round(y, 9) for y in got}) > 3  # a constant would prove nothing


@pytest.mark.parametrize("f", [*FUNCTIONS, *LAMBDAS], ids=lambda f: f.__name__)
def test_derivatives_are_those_of_differences(f):
    df = translate(f, ("z", "y"), by="z", take=1).function
    from_y = translate(f, ("z", "y"), by="z", take=1, result="y").function
    for z in POINTS:
        h = 1e-3
        near, far = f(z + h) - f(z - h), f(z + 2 * h) - f(z - 2 * h)
        expected = (8 * near - far) / (12 * h)  # error h^4 f'''''/30
        assert df(z, math.nan) == pytest.approx(expected, rel=2e-9, abs=2e-9), z
        assert from_y(z, float(f(z))) == pytest.approx(expected, rel=2e-9, abs=2e-9), z


def test_derivatives_against_mpmath():
    # to 15 digits, where differences give 9
    def f(z):
        return math.erf(z) * math.exp(-z * z) / (1 + math.tanh(z) ** 2) + math.asinh(z) ** 3

    def exact(z):
        w = mpmath.exp(-z * z)
        return mpmath.erf(z) * w / (1 + mpmath.tanh(z) ** 2) + mpmath.asinh(z) ** 3

    df = translate(f, ("z",), by="z").function
    with mpmath.workdps(40):
        for z in POINTS:
            assert df(z) == pytest.approx(float(mpmath.diff(exact, z)), rel=1e-14)


def test_two_arguments():
    def f(y, t):
        e = y - t
        return 0.5 * e * e if abs(e) <= 1 else abs(e) - 0.5

    value = translate(f, ("y", "t", "p"), take=2).function
    slope = translate(f, ("y", "t", "p"), by="y", take=2).function
    assert value(3.0, 1.0, math.nan) == 1.5
    assert [slope(y, 1.0, 0.0) for y in (-3.0, 0.5, 1.0, 1.25, 9.0)] == [-1, -0.5, 0, 0.25, 1]


@pytest.mark.parametrize(
    ("f", "z", "expected"),
    [
        (lambda z: abs(z), 0.0, 0.0),
        (lambda z: max(z, 0.0), 0.0, 0.5),
        (lambda z: max(0.0, z), 0.0, 0.5),
        (lambda z: min(z, 0.0), 0.0, 0.5),
        (lambda z: max(z, 0.0) + math.log1p(math.exp(-abs(z))), 0.0, 0.5),  # softplus
        (lambda z: z if z > 0 else 0.0, 0.0, 0.0),
        (lambda z: z if z >= 0 else 0.0, 0.0, 1.0),
        (lambda z: math.sqrt(z * z), 0.0, 0.0),  # infinity times 0
        (lambda z: (z * z) ** 0.3, 0.0, 0.0),
        (lambda z: math.exp(-1 / (z * z)) if z != 0 else 0.0, 0.0, 0.0),
        (lambda z: math.hypot(z, 0.0), 0.0, 0.0),
        (lambda z: math.floor(z), 2.0, 0.0),
        (lambda z: 3.0, 1.0, 0.0),
    ],
)
def test_derivatives_at_kinks(f, z, expected):
    df = translate(f, ("z",), by="z").function
    with np.errstate(all="ignore"):  # infinite on the way, as in compiled code
        assert _ieee(df)(np.float64(z)) == expected


def test_quotients_whose_denominator_overflows_keep_their_limit():
    # numbers of NumPy overflow to infinity, as in compiled code
    sigmoid = _ieee(translate(lambda z: 1 / (1 + math.exp(-z)), ("z",), by="z").function)
    with np.errstate(all="ignore"):
        assert sigmoid(np.float64(-1000)) == 0
        assert sigmoid(np.float64(1000)) == 0
        assert sigmoid(np.float64(0)) == 0.25
        assert math.isnan(sigmoid(np.float64(math.nan)))


def no_value(z):  # noqa: RET503
    if z > 0:
        return z


def unset(z):
    if z > 0:
        q = 1.0
    return q + z


def comprehension(z):
    return sum([z for _ in range(3)])


def raising(z):
    if z < 0:
        raise ValueError
    return z


def recursive(z):
    return recursive(z / 2) if z > 1 else z


def digamma(z):
    return math.lgamma(z)


def unknown_name(z):
    return z + nowhere  # noqa: F821


def text(z):
    return z + "1"


def unknown_function(z):
    return round(z, 2)


def inner_function(z):
    def g(x):
        return x

    return g(z)


def indexed(z):
    return COEFFICIENTS[int(z)] * z


def changing(z):
    a = z
    for _ in range(1000):
        a = (a, z)
    return a[0]


def many_arguments(*z):
    return z[0]


@pytest.mark.parametrize(
    ("f", "line", "reason"),
    [
        (no_value, "def no_value(z):", "can end without returning"),
        (unset, "return q + z", "'q' is not set on every way"),
        (comprehension, "sum([z for _ in range(3)])", "comprehension"),
        (raising, "raise ValueError", "raise"),
        (recursive, "recursive(z / 2)", "calls itself"),
        (digamma, "math.lgamma(z)", "derivative of math.lgamma is not known"),
        (unknown_name, "z + nowhere", "'nowhere' is not defined"),
        (text, 'z + "1"', "'1' is no number"),
        (unknown_function, "round(z, 2)", "round is no function"),
        (inner_function, "def g(x):", "a function inside"),
        (indexed, "COEFFICIENTS[int(z)]", "only constants can be indexed"),
        (changing, "a = (a, z)", "'a' is not always a number"),
        (many_arguments, "def many_arguments", r"\*args"),
    ],
)
def test_what_has_no_translation_says_where_and_why(f, line, reason):
    with pytest.raises(Unsupported, match=reason) as caught:
        translate(f, ("z", "y"), by="z", take=1)
    assert line in caught.value.place
    assert "test_formulas.py, line " in caught.value.place


def test_functions_without_source():
    namespace = {}
    exec("def f(z):\n    return z\n", namespace)
    with pytest.raises(Unsupported, match="source of f cannot be read"):
        translate(namespace["f"], ("z",))


def test_functions_of_notebooks():
    # statement by statement, with the text of the cell where `inspect` looks for it
    import ast
    import linecache

    cell = "import math\nf = lambda z: math.tanh(z)\ndef g(z):\n    return 2.0 * math.exp(z)\n"
    name, namespace = "<a cell of test_formulas>", {}
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    for statement in ast.parse(cell).body:
        exec(compile(ast.Module([statement], []), name, "exec"), namespace)
    assert translate(namespace["f"], ("z",)).function(0.5) == math.tanh(0.5)
    assert translate(namespace["g"], ("z",), by="z").function(0.5) == 2 * math.exp(0.5)


def test_functions_whose_file_has_changed(tmp_path):
    import importlib.util

    path = tmp_path / "changing_module.py"
    path.write_text("def f(z):\n    return 2.0 * z\n")
    spec = importlib.util.spec_from_file_location("changing_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert translate(module.f, ("z",)).function(3.0) == 6
    path.write_text("def f(z):\n    return 30.0 * z + 0.0\n")
    with pytest.raises(Unsupported, match="is not what was imported"):
        translate(module.f, ("z",))


def test_what_a_formula_reads_is_read_once():
    factor = 2.0

    def f(z):
        return factor * z

    formula = translate(f, ("z",))
    factor = 3.0
    assert f(1.0) == 3.0
    assert formula.function(1.0) == 2.0
    assert translate(f, ("z",)).source != formula.source


def test_formulas_are_complete_in_themselves():
    # every backend compiles them: nothing but math and arithmetic on their own parameters
    for f in FUNCTIONS:
        for by in (None, "z"):
            code = translate(f, ("z",), by=by).function.__code__
            assert set(code.co_names) <= {"math", *dir(math), "abs", "float", "int", "range"}, f
            assert code.co_freevars == ()


@pytest.mark.parametrize("f", [everything_of_math, with_break, numpy_names])
def test_numba_compiles_every_formula(f):
    formula = translate(f, ("z",), by="z").function
    compiled = numba.njit(error_model="numpy")(formula)
    for z in POINTS[::3]:
        assert compiled(z) == pytest.approx(formula(z), rel=1e-12, abs=1e-12)


def test_plain_function():
    assert plain_function(decorated) is decorated.py_func
    with pytest.raises(TypeError, match="expected a Python function"):
        plain_function(math.exp)
