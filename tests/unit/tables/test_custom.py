"""Activations and losses of the user's own: names, checks, errors, files."""

import copy
import itertools
import math
import pickle
import subprocess
import sys

import numba
import numpy as np
import pytest

import fastnn
from fastnn.tables.activations import ACTIVATIONS, LINKS, get_activation
from fastnn.tables.losses import LOSSES, get_loss, resolve_loss

_numbers = itertools.count()


def fresh(word="own"):
    """A name that nothing else has: a name keeps its function as long as the process lives."""
    return f"{word}_{next(_numbers)}"


def swish(z):
    return z / (1 + math.exp(-z))


def test_rows_have_what_backends_read():
    row = fastnn.Activation(fresh(), swish)
    y = float(row.f(np.array([1.5]))[0])
    assert y == pytest.approx(swish(1.5), rel=1e-15)
    assert row.scalar(1.5) == pytest.approx(y, rel=1e-15)
    s = 1 / (1 + math.exp(-1.5))
    assert row.scalar_df(1.5, y) == pytest.approx(s * (1 + 1.5 * (1 - s)), rel=1e-14)
    np.testing.assert_allclose(row.df(np.array([[1.5]]), np.array([[y]])), row.scalar_df(1.5, y))
    assert row.needs_z
    assert row.range == (-math.inf, math.inf)
    assert "math.exp(-z)" in row.formula
    assert get_activation(row.name) is row
    assert repr(row) == f"<Activation {row.name!r}>"


def test_losses_have_what_backends_read():
    row = fastnn.Loss(fresh(), lambda y, t: (y - t) ** 4)
    y, t = np.array([[1.0, 2.0]]), np.array([[0.0, 0.5]])
    assert row.rows_from_outputs(y, t).tolist() == [1 + 1.5**4]
    assert row.rows_from_logits(y, t).tolist() == [1 + 1.5**4]
    assert row.gradient(y, t, row.params).tolist() == [[4, 4 * 1.5**3]]
    assert row.scalar_value(2.0, 0.5, 0.0) == 1.5**4
    assert row.scalar_gradient(2.0, 0.5, 0.0) == 4 * 1.5**3
    assert row.natural_output == "identity"
    assert row.target_kind == "real"
    assert get_loss(row.name) is row
    assert get_loss(row.get_config()) is row
    assert resolve_loss(row.name, "softmax") is row
    assert repr(row) == f"<Loss {row.name!r}>"


def test_given_derivatives_are_used():
    row = fastnn.Activation(fresh(), swish, lambda z: -3.0, check=False)
    assert row.scalar_df(0.3, 1.0) == -3
    row = fastnn.Activation(fresh(), math_tanh, lambda z, y: 1 - y * y)
    assert row.scalar_df(math.nan, 0.5) == 0.75
    loss = fastnn.Loss(fresh(), lambda y, t: (y - t) ** 2, lambda y, t: 2 * (y - t))
    assert loss.scalar_gradient(3.0, 1.0, 0.0) == 4


def math_tanh(z):
    return math.tanh(z)


@pytest.mark.parametrize("name", [*ACTIVATIONS, *LINKS])
def test_names_of_built_in_activations_are_taken(name):
    with pytest.raises(ValueError, match=f"{name!r} is a built-in activation: choose another"):
        fastnn.Activation(name, swish)


@pytest.mark.parametrize("name", LOSSES)
def test_names_of_built_in_losses_are_taken(name):
    with pytest.raises(ValueError, match=f"{name!r} is a built-in loss: choose another name"):
        fastnn.Loss(name, lambda y, t: (y - t) ** 2)


@pytest.mark.parametrize("name", ["", " ", "a b", "1st", "é", "x" * 65, "a/b", "_hidden", "a\n"])
def test_names_are_words(name):
    with pytest.raises(ValueError, match="must be letters, digits"):
        fastnn.Activation(name, swish)
    with pytest.raises(ValueError, match="must be letters, digits"):
        fastnn.Loss(name, lambda y, t: (y - t) ** 2)


def test_names_are_strings():
    with pytest.raises(TypeError, match="must be a string, got 3"):
        fastnn.Activation(3, swish)


def test_a_name_keeps_its_function():
    name = fresh()
    first = fastnn.Activation(name, lambda z: z + 0.1 * math.sin(z))
    again = fastnn.Activation(name, lambda z: z + 0.1 * math.sin(z))
    assert again == first
    assert hash(again) == hash(first)
    assert get_activation(name) is first
    with pytest.raises(ValueError, match=r"registered before with another function.*another name"):
        fastnn.Activation(name, lambda z: z + 0.2 * math.sin(z))
    with pytest.raises(ValueError, match="registered before"):
        fastnn.Activation(name, lambda z: z + 0.1 * math.sin(z), range=(-100, 100))
    assert get_activation(name) is first
    loss = fastnn.Loss(fresh(), lambda y, t: (y - t) ** 4)
    assert fastnn.Loss(loss.name, lambda y, t: (y - t) ** 4) == loss
    with pytest.raises(ValueError, match="registered before"):
        fastnn.Loss(loss.name, lambda y, t: (y - t) ** 6)
    assert first != loss


def test_what_a_function_reads_counts_as_part_of_it():
    name, factor = fresh(), 2.0

    def f(z):
        return factor * z

    fastnn.Activation(name, f)
    factor = 3.0
    with pytest.raises(ValueError, match="registered before"):
        fastnn.Activation(name, f)


@pytest.mark.parametrize(
    ("f", "df", "message"),
    [
        (3, None, "f must be a function, got 3"),
        (math.tanh, None, "expected a Python function of numbers"),
        (lambda: 1.0, None, "f must take 1 numbers, but takes 0"),
        (lambda z, y: z, None, "f must take 1 numbers, but takes 2"),
        (swish, lambda a, b, c: a, "df must take 1 or 2 numbers, but takes 3"),
        (swish, "df", "df must be a function, got 'df'"),
    ],
)
def test_functions_have_the_right_arguments(f, df, message):
    with pytest.raises(TypeError, match=message):
        fastnn.Activation(fresh(), f, df)


def test_losses_take_two_numbers():
    with pytest.raises(TypeError, match="value must take 2 numbers, but takes 1"):
        fastnn.Loss(fresh(), lambda y: y)
    with pytest.raises(TypeError, match="gradient must take 2 numbers, but takes 1"):
        fastnn.Loss(fresh(), lambda y, t: y - t, lambda y: 1.0)
    with pytest.raises(ValueError, match="target_kind must be one of real, nonnegative"):
        fastnn.Loss(fresh(), lambda y, t: y - t, target_kind="complex")


def without_translation(z):
    return eval("z")


def test_what_cannot_be_differentiated_names_the_line_and_asks_for_the_derivative():
    with pytest.raises(ValueError) as caught:
        fastnn.Activation(fresh(), without_translation)
    for part in ("test_custom.py, line ", 'return eval("z")', "give df"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"lgamma is not known.*give gradient"):
        fastnn.Loss(fresh(), lambda y, t: math.lgamma(3.0 + abs(y)) - t)


def test_what_numba_cannot_compile_names_the_line_and_the_reason():
    with pytest.raises(ValueError) as caught:
        fastnn.Activation(fresh(), without_translation, lambda z: 2.0)
    text = str(caught.value)
    assert "f cannot be compiled" in text
    assert "test_custom.py, line " in text
    assert "eval" in text


def through_an_array(z):
    values = np.zeros(2)  # Numba knows arrays, formulas do not
    values[1] = math.tanh(z)
    return values.sum()


def test_functions_beyond_formulas_are_numbas_where_the_derivative_is_given():
    name = fresh()
    row = fastnn.Activation(name, through_an_array, lambda z, y: 1 - y * y)
    assert fastnn.Activation(name, through_an_array, lambda z, y: 1 - y * y) == row
    model = fastnn.MLP([3, 4, 1], activation=row, dtype="float64", seed=0)
    tanh = fastnn.MLP([3, 4, 1], activation="tanh", dtype="float64", seed=0)
    X = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(model.predict(X), tanh.predict(X), rtol=1e-12)
    # what needs memory or raises has no place in a loop over rows: it gives NaN, not a crash


def may_raise(z):
    if z > 100:
        raise ValueError("too large")
    return z


def test_functions_that_raise_give_nan(backend_name):
    with pytest.warns(UserWarning, match=r"f\(750\) is nan"):
        row = fastnn.Activation("raises_beyond_100", may_raise, lambda z: 1.0)
    model = fastnn.MLP([1, 1, 1], activation=row, dtype="float64", backend=backend_name, seed=0)
    model.parameters[:] = [1, 0, 1, 0]
    if backend_name == "cuda":  # on a GPU it would end in silence: it is not compiled
        with pytest.raises(ValueError, match=r"can raise ValueError|too large"):
            model.predict([[200.0]])
        return
    assert model.predict([[5.0]]) == 5
    assert math.isnan(model.predict([[200.0]]).item())


def test_integers_of_what_is_no_number_do_not_raise():
    """In compiled code any number comes out; in plain Python int(nan) is an error."""
    row = fastnn.Activation(fresh(), lambda z: 2.0 * z - int(z) ** 2 / 7)
    y = row.f(np.array([math.nan, math.inf, -3.9]))
    assert math.isnan(y[0])
    assert y[2] == pytest.approx(-7.8 - 9 / 7, rel=1e-15)


def test_functions_without_source_need_their_derivative():
    namespace = {"math": math}
    exec("def f(z):\n    return math.tanh(z)\ndef df(z, y):\n    return 1.0 - y * y\n", namespace)
    with pytest.raises(ValueError, match=r"source of f cannot be read.*give df"):
        fastnn.Activation(fresh(), namespace["f"])
    row = fastnn.Activation(fresh(), namespace["f"], namespace["df"])
    assert row.scalar(0.5) == math.tanh(0.5)
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-14)):
        model = fastnn.MLP([2, 3, 1], activation=row, dtype=dtype, seed=0)
        tanh = fastnn.MLP([2, 3, 1], activation="tanh", dtype=dtype, seed=0)
        X = np.random.default_rng(0).normal(size=(9, 2))
        np.testing.assert_allclose(model.predict(X), tanh.predict(X), rtol=tolerance)


@pytest.mark.parametrize(
    ("f", "df"),
    [
        (math_tanh, lambda z: 1 - z * z),
        (swish, lambda z: 1 / (1 + math.exp(-z))),
        (lambda z: abs(z), lambda z: 2.0 if z > 0 else -1.0),
        (lambda z: z**3, lambda z: 3.0001 * z**2),
    ],
)
def test_wrong_derivatives_are_found(f, df):
    with pytest.raises(ValueError, match=r"derivative of f at .* by df, but differences .* give"):
        fastnn.Activation(fresh(), f, df)
    assert fastnn.Activation(fresh(), f, df, check=False).scalar(0.5) == f(0.5)


def test_wrong_gradients_are_found():
    with pytest.raises(ValueError, match="by gradient, but differences of value give"):
        fastnn.Loss(fresh(), lambda y, t: (y - t) ** 2, lambda y, t: y - t)


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0])
def test_any_slope_at_a_kink_is_right(slope):
    def df(z):
        return 1.0 if z > 0 else slope if z == 0 else 0.0

    assert fastnn.Activation(fresh(), lambda z: max(z, 0.0), df).scalar_df(0.0, 0.0) == slope


@pytest.mark.parametrize(
    "f",
    [
        lambda z: max(0.0, z) ** 2,
        lambda z: 1.0 if z > 0 else 0.0,  # a jump
        lambda z: math.sin(40 * z),
        lambda z: min(max(z / 6 + 0.5, 0.0), 1.0),
        lambda z: math.exp(z),
        lambda z: 1e6 * z,
        lambda z: 1e-9 * z,
        lambda z: math.sqrt(abs(z)),
        lambda z: z % 1.0,
        lambda z: 0.5 * z * (1 + math.erf(z / math.sqrt(2))),
    ],
)
def test_right_derivatives_pass_the_check(f):
    fastnn.Activation(fresh(), f)


def test_derivatives_that_the_rules_get_wrong_are_found():
    # the branch at 0 is a constant, and says nothing of the slope there (1/2)
    with pytest.raises(ValueError, match=r"the derivative of f at 0 is 0 by df.*give df"):
        fastnn.Activation(fresh(), lambda z: z / (1 - math.exp(-z)) if z != 0 else 1.0)


def test_activations_have_a_value_everywhere():
    with pytest.raises(ValueError, match=r"f\(-7\.98.*\) is nan, but a layer can reach every"):
        fastnn.Activation(fresh(), lambda z: math.log(z))
    with pytest.raises(ValueError, match="the derivative of f at 0 is nan"):
        fastnn.Activation(fresh(), lambda z: abs(z), lambda z: z / abs(z))


def test_overflow_on_the_way_is_said():
    def naive_tanh(z):
        e = math.exp(2 * z)
        return (e - 1) / (e + 1)

    with pytest.warns(UserWarning, match=r"f\(750\) is nan, though it is not for smaller"):
        fastnn.Activation(fresh(), naive_tanh)


def test_ranges():
    row = fastnn.Activation(fresh(), lambda z: 1 / (1 + math.exp(-z)), range=(0, 1))
    assert row.range == (0.0, 1.0)
    assert resolve_loss("binary_cross_entropy", row.name).name == "binary_cross_entropy"
    free = fastnn.Activation(fresh(), lambda z: 1 / (1 + math.exp(-z)))
    with pytest.raises(ValueError, match=r"binary_cross_entropy.*is defined for outputs in"):
        resolve_loss("binary_cross_entropy", free.name)
    with pytest.raises(ValueError, match="outside of range"):
        fastnn.Activation(fresh(), math_tanh, range=(0, 1))
    with pytest.raises(ValueError, match="low < high"):
        fastnn.Activation(fresh(), math_tanh, range=(1, 0))
    with pytest.raises(TypeError, match="pair of numbers"):
        fastnn.Activation(fresh(), math_tanh, range=3)


def test_domains():
    def log_loss(y, t):
        return -t * math.log(y)

    with pytest.raises(ValueError, match=r"value\(-3\.98.*\) is nan: .* domain=\(low, high\)"):
        fastnn.Loss(fresh(), log_loss)
    row = fastnn.Loss(fresh(), log_loss, domain=(0, math.inf), target_kind="classes")
    assert row.domain == (0.0, math.inf)
    with pytest.raises(ValueError, match="is defined for outputs in"):
        resolve_loss(row, "identity")
    assert resolve_loss(row, "softmax") is row
    assert resolve_loss(row, "exp") is row


def test_copies_and_pickles_are_the_row_of_that_name():
    for row in (
        fastnn.Activation(fresh(), swish),
        fastnn.Loss(fresh(), lambda y, t: abs(y - t)),
    ):
        assert copy.deepcopy(row) is row
        assert copy.copy(row) is row
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            dumped = pickle.dumps(row, protocol)
            assert pickle.loads(dumped) is row
            assert b"swish" not in dumped  # never code


def test_models_take_them_by_name_and_by_object():
    row = fastnn.Activation(fresh(), swish)
    by_name = fastnn.MLP([2, 3, 4, 1], activation=row.name, output=row.name, seed=0)
    by_object = fastnn.MLP([2, 3, 4, 1], activation=row, output=row, seed=0)
    listed = fastnn.MLP([2, 3, 4, 1], activation=[row, row.name], output=row, seed=0)
    assert by_name.plan == by_object.plan == listed.plan
    assert by_object.plan.activations == (row.name, row.name)
    assert row.name in repr(by_object)
    assert fastnn.MLP([2, 3, 1], activation=ACTIVATIONS["tanh"]).plan.activations == ("tanh",)
    with pytest.raises(ValueError, match=r"activation\[0\] must be .*fastnn\.Activation\('no"):
        fastnn.MLP([2, 3, 1], activation="nowhere_registered")
    with pytest.raises(ValueError, match="there is no activation 'nowhere_registered'"):
        get_activation("nowhere_registered")
    with pytest.raises(ValueError, match=r"loss must be .*fastnn\.Loss\('nowhere_registered'"):
        fastnn.Trainer(by_name, loss="nowhere_registered")


def test_files_hold_names(tmp_path):
    row = fastnn.Activation(fresh(), lambda z: z + math.sin(z) ** 2)
    loss = fastnn.Loss(fresh(), lambda y, t: math.log(math.cosh(y - t)))
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.ones((30, 1))
    model = fastnn.MLP([2, 5, 1], activation=row, dtype="float64", seed=0)
    trainer = fastnn.Trainer(model, loss=loss, seed=1)
    trainer.fit(X, y, epochs=2)
    trainer.save(tmp_path / "trainer")
    model.save(tmp_path / "model")
    again = fastnn.Trainer.load(tmp_path / "trainer")
    assert again.loss is loss
    assert fastnn.MLP.load(tmp_path / "model").plan == model.plan
    for one in (trainer, again, pickle.loads(pickle.dumps(trainer))):
        one.fit(X, y, epochs=1)
        np.testing.assert_array_equal(one.model.parameters, trainer.model.parameters)
    assert b"sin" not in (tmp_path / "model").read_bytes()

    code = """
import math, pickle, sys, fastnn
folder, activation, loss = sys.argv[1:]
def message(action):
    try:
        action()
    except ValueError as error:
        return type(error).__name__, str(error)
print(*message(lambda: fastnn.MLP.load(folder + "/model")))
fastnn.Activation(activation, lambda z: z + math.sin(z) ** 2, lambda z: 1 + math.sin(2 * z))
fastnn.MLP.load(folder + "/model").predict([[0.0, 1.0]])
print(*message(lambda: fastnn.Trainer.load(folder + "/trainer")))
print(*message(lambda: pickle.load(open(folder + "/pickle", "rb"))))
"""
    with open(tmp_path / "pickle", "wb") as file:
        pickle.dump(trainer, file)
    out = subprocess.run(
        [sys.executable, "-P", "-c", code, str(tmp_path), row.name, loss.name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert out[0].startswith("ModelFormatError")
    assert f"fastnn.Activation('{row.name}', f)" in out[0]
    assert out[1].startswith("ModelFormatError")
    assert f"fastnn.Loss('{loss.name}', value)" in out[1]
    assert out[2].startswith("ValueError")
    assert f"fastnn.Loss('{loss.name}', value)" in out[2]


def test_helpers_decorated_by_numba_are_read():
    @numba.njit
    def half(x):
        return 0.5 * x

    row = fastnn.Activation(fresh(), lambda z: half(z) + half(abs(z)))
    assert row.scalar(3.0) == 3
    assert row.scalar_df(-3.0, 0.0) == 0


def test_names_alone_do_not_import_numba():
    program = "import sys, fastnn; fastnn.Activation; fastnn.Loss; print('numba' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
