"""Losses: formulas against the textbook, refused pairs, and targets that say what is wrong."""

import copy
import math
import pickle
import re

import numpy as np
import pytest

from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import (
    LOSSES,
    Huber,
    LossRow,
    Quantile,
    encode_targets,
    get_loss,
    resolve_loss,
)

INF = math.inf

# Loss of one output, as a textbook prints it.
TEXTBOOK = {
    "squared_error": lambda y, t: (y - t) ** 2 / 2,
    "absolute_error": lambda y, t: abs(y - t),
    "huber": lambda y, t: (y - t) ** 2 / 2 if abs(y - t) <= 1 else abs(y - t) - 0.5,
    "quantile": lambda y, t: 0.5 * (t - y) if t >= y else 0.5 * (y - t),
    "poisson": lambda y, t: y - t * math.log(y),
    "binary_cross_entropy": lambda y, t: -t * math.log(y) - (1 - t) * math.log(1 - y),
    "cross_entropy": lambda y, t: -t * math.log(y),
    "hinge": lambda y, t: max(0.0, 1 - t * y),
}


def samples(name, n=200):
    """Outputs inside of the loss's domain, and targets of its kind."""
    rng = np.random.default_rng(0)
    low, high = LOSSES[name].domain
    y = {
        (-INF, INF): rng.normal(size=(n, 1)) * 3,
        (0, INF): rng.exponential(size=(n, 1)),
        (0, 1): rng.uniform(0.01, 0.99, size=(n, 1)),
    }[low, high]
    t = {
        "real": rng.normal(size=(n, 1)),
        "nonnegative": rng.poisson(1.0, (n, 1)) + 0.0,
        "unit": rng.uniform(size=(n, 1)),
        "sign": rng.choice([-1.0, 1.0], (n, 1)),
        "classes": rng.uniform(size=(n, 1)),
    }[LOSSES[name].target_kind]
    return y, t


def test_every_loss_has_a_textbook():
    assert list(TEXTBOOK) == list(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_values(name):
    y, t = samples(name)
    expected = [TEXTBOOK[name](a, b) for a, b in zip(y[:, 0], t[:, 0], strict=True)]
    got = LOSSES[name].rows_from_outputs(y, t)
    assert got.shape == (len(y),)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_logits_go_through_the_natural_link(name):
    row = LOSSES[name]
    link = {**ACTIVATIONS, **LINKS}[row.natural_output].f
    z = np.random.default_rng(1).normal(size=(200, 3)) * 2
    t = np.hstack([samples(name)[1], np.roll(samples(name)[1], 1), np.roll(samples(name)[1], 2)])
    expected = row.rows_from_outputs(link(z), t)
    np.testing.assert_allclose(row.rows_from_logits(z, t), expected, rtol=1e-12, atol=1e-12)


def test_the_loss_of_a_row_is_the_sum_over_its_outputs():
    y = np.array([[1.0, 2.0], [0.0, 0.5]])
    t = np.array([[0.0, 4.0], [0.0, 0.0]])
    assert LOSSES["squared_error"].rows_from_outputs(y, t).tolist() == [0.5 + 2, 0.125]
    assert LOSSES["absolute_error"].rows_from_outputs(y, t).tolist() == [3, 0.5]
    assert Huber(0.5).rows_from_outputs(y, t).tolist() == [0.375 + 0.875, 0.125]
    assert Quantile(0.25).rows_from_outputs(y, t).tolist() == [0.75 + 0.5, 0.375]


@pytest.mark.parametrize(
    ("loss", "y", "t", "slope"),
    [
        (LOSSES["absolute_error"], 2.0, 2.0, 0.0),
        (Huber(0.5), 1.5, 1.0, 0.5),  # both branches have this slope
        (Quantile(0.3), 2.0, 2.0, 0.0),
        (Quantile(0.3), 1.9, 2.0, -0.3),
        (Quantile(0.3), 2.1, 2.0, 0.7),
        (LOSSES["hinge"], 1.0, 1.0, 0.0),  # t y = 1: no longer inside of the margin
        (LOSSES["hinge"], -1.0, -1.0, 0.0),
        (LOSSES["hinge"], 0.5, -1.0, 1.0),
        (LOSSES["poisson"], 0.0, 0.0, 1.0),  # 0 / 0 counts as 0
        (LOSSES["cross_entropy"], 0.0, 0.0, 0.0),
        (LOSSES["binary_cross_entropy"], 0.0, 0.0, 1.0),
        (LOSSES["binary_cross_entropy"], 1.0, 1.0, -1.0),
    ],
)
def test_slopes_at_kinks_and_bounds(loss, y, t, slope):
    assert loss.gradient(np.array([[y]]), np.array([[t]]), loss.params).tolist() == [[slope]]


def test_certain_outputs():  # cases N4, N5, N6
    bce, ce, poisson = (LOSSES[n] for n in ("binary_cross_entropy", "cross_entropy", "poisson"))
    z = np.array([[1000.0], [-1000.0], [200.0], [40.0]])
    zeros, ones = np.zeros_like(z), np.ones_like(z)
    assert bce.rows_from_logits(z, zeros)[[0, 1, 2]].tolist() == [1000, 0, 200]
    assert bce.rows_from_logits(z, ones)[:3].tolist() == [0, 1000, pytest.approx(0, abs=1e-80)]
    assert bce.rows_from_logits(z, ones)[3] == pytest.approx(4.248354255291589e-18, rel=1e-10)
    assert bce.logit_gradient(z, zeros, {})[:2].tolist() == [[1], [0]]
    assert bce.logit_gradient(z, ones, {})[:2].tolist() == [[0], [-1]]
    z = np.array([[1000.0, 0.0, -1000.0]])
    assert ce.rows_from_logits(z, np.eye(3)[[1]]).tolist() == [1000]
    assert ce.rows_from_logits(z, np.eye(3)[[0]]).tolist() == [0]
    assert ce.logit_gradient(z, np.eye(3)[[1]], {}).tolist() == [[1, -1, 0]]
    assert poisson.rows_from_logits(np.array([[-1000.0]]), np.array([[3.0]])).tolist() == [3000]
    # y exactly 0 or 1 through another link: no 0 * log(0)
    certain = np.array([[0.0], [1.0]])
    assert bce.rows_from_outputs(certain, certain).tolist() == [0, 0]
    assert bce.rows_from_outputs(certain, 1 - certain).tolist() == [INF, INF]


def test_cross_entropy_keeps_what_is_left_of_a_certain_class():
    z = np.array([[40.0, 0.0]])
    got = LOSSES["cross_entropy"].rows_from_logits(z, np.eye(2)[[0]])
    assert got[0] == pytest.approx(math.exp(-40), rel=1e-10)


# Objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Huber, Quantile])
def test_parameters_are_kept(make):
    (name,) = make().params
    loss = make(**{name: np.float32(0.25)})
    assert loss.params == {name: 0.25}
    assert type(loss.params[name]) is float
    assert loss == make(0.25)
    assert loss != make()
    assert hash(loss) == hash(make(0.25))
    assert repr(loss) == f"{loss.name}({name}=0.25)"
    assert make() == LOSSES[loss.name]
    for other in (
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        get_loss(loss.get_config()),
    ):
        assert other == loss
        assert other.rows_from_outputs(np.ones((1, 1)), np.zeros((1, 1))) == loss.rows_from_outputs(
            np.ones((1, 1)), np.zeros((1, 1))
        )


@pytest.mark.parametrize(
    ("make", "value", "kind"),
    [
        (Huber, 0.0, ValueError),
        (Huber, -1.0, ValueError),
        (Huber, math.nan, ValueError),
        (Huber, INF, ValueError),
        (Huber, "1", TypeError),
        (Huber, True, TypeError),
        (Huber, None, TypeError),
        (Quantile, 0, ValueError),
        (Quantile, 1, ValueError),
        (Quantile, math.nan, ValueError),
        (Quantile, 1j, TypeError),
    ],
)
def test_wrong_parameters(make, value, kind):
    with pytest.raises(kind, match=r"^(delta|q) must be"):
        make(value)


@pytest.mark.parametrize("name", LOSSES)
def test_names_and_configs(name):
    assert LOSSES[name].name == name
    assert get_loss(name) is LOSSES[name]
    assert get_loss(LOSSES[name].get_config()) == LOSSES[name]
    assert pickle.loads(pickle.dumps(LOSSES[name])) == LOSSES[name]
    assert LOSSES[name].formula


def test_natural_losses():
    natural = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy", "exp": "poisson"}
    for output in [*ACTIVATIONS, *LINKS]:
        loss = resolve_loss(None, output)
        assert loss.name == natural.get(output, "squared_error")
        assert resolve_loss(loss.name, output) == loss  # a natural loss is never refused


# A loss of log y needs y >= 0, and that of log(1 - y) y <= 1. All other pairs go together.
NONNEGATIVE = {"step", "sigmoid", "relu", "softplus", "hard_sigmoid", "softmax", "exp"}
UNIT = {"step", "sigmoid", "hard_sigmoid", "softmax"}


@pytest.mark.parametrize("output", [*ACTIVATIONS, *LINKS])
@pytest.mark.parametrize("name", LOSSES)
def test_pairs_of_output_and_loss(name, output):
    fits = {"poisson": NONNEGATIVE, "cross_entropy": NONNEGATIVE, "binary_cross_entropy": UNIT}
    if output in fits.get(name, {output}):
        assert resolve_loss(name, output) is LOSSES[name]
    else:
        hint = f"use output='{LOSSES[name].natural_output}'"
        with pytest.raises(ValueError, match=hint):
            resolve_loss(name, output)


def test_objects_are_taken_as_they_are():
    loss = Huber(3.0)
    assert resolve_loss(loss, "identity") is loss


@pytest.mark.parametrize("wrong", ["nope", "", "Huber"])
def test_unknown_names(wrong):
    with pytest.raises(ValueError, match=f"squared_error, absolute_error, .*got '{wrong}'"):
        resolve_loss(wrong, "identity")


@pytest.mark.parametrize("wrong", [3, Huber, {"name": "huber"}, ["huber"]])
def test_wrong_objects(wrong):
    with pytest.raises(TypeError, match="loss must be one of"):
        resolve_loss(wrong, "identity")


@pytest.mark.parametrize(
    "config",
    [
        {"name": "huber", "q": 1},
        {"name": "huber", "delta": 1, "q": 1},
        {"name": "hinge", "delta": 1},
        {},
        {"delta": 1},
    ],
)
def test_wrong_configs(config):
    with pytest.raises(ValueError, match="loss"):
        get_loss(config)


# Targets ------------------------------------------------------------------------------------------

ERRORS = LOSSES["squared_error"]
CLASSES = LOSSES["cross_entropy"]


def encode(loss, y, n_samples, n_outputs, dtype=np.float64):
    return encode_targets(loss, y, n_samples, n_outputs, np.dtype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_real_targets(dtype):
    got = encode(ERRORS, [[1, 2], [3, 4], [5, 6]], 3, 2, dtype)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    assert got.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert encode(ERRORS, [1.5, 2, 3], 3, 1, dtype).tolist() == [[1.5], [2], [3]]
    assert encode(ERRORS, [[1.5], [2], [3]], 3, 1, dtype).shape == (3, 1)


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.tolist(),
        np.asfortranarray,
        lambda y: np.repeat(y, 2, axis=0)[::2],
        lambda y: y.astype(">f8"),
        lambda y: y.astype(np.float16),
        lambda y: y.astype(np.longdouble),
        lambda y: y.astype(object),
        lambda y: y.astype(np.int8),
        lambda y: np.lib.stride_tricks.as_strided(y, writeable=False),
    ],
)
def test_kinds_of_arrays(convert):  # cases A1, A4, A8
    y = np.array([[1.0, -2.0], [3.0, 4.0], [0.0, 7.0]])
    got = encode(ERRORS, convert(y), 3, 2)
    assert got.dtype == np.float64
    assert got.dtype.isnative
    assert got.flags.c_contiguous
    assert got.tolist() == y.tolist()


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1, 2],
        np.array([2, 0, 1, 2], np.uint8),
        np.array([2, 0, 1, 2], ">i4"),
        np.array([2, 0, 1, 2], np.uint64),
        np.array([[2], [0], [1], [2]]),
        np.array([2, 9, 0, 9, 1, 9, 2, 9])[::2],
    ],
)
def test_labels(labels):  # case L1
    got = encode(CLASSES, labels, 4, 3)
    assert got.dtype == np.int64
    assert got.flags.c_contiguous
    assert got.tolist() == [2, 0, 1, 2]


def test_labels_of_truth():
    assert encode(CLASSES, [True, False], 2, 2).tolist() == [1, 0]


def test_rows_of_probabilities():
    rows = [[0.2, 0.8, 0], [1, 0, 0]]
    got = encode(CLASSES, rows, 2, 3, np.float32)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, rows, rtol=1e-7)
    assert encode(CLASSES, [[0, 1], [1, 0]], 2, 2).tolist() == [[0, 1], [1, 0]]  # one-hot integers


def test_the_callers_array_is_not_changed():
    y = np.array([[1.0, 2.0]])
    got = encode(ERRORS, y, 1, 2)
    assert y.tolist() == [[1, 2]]
    assert got.tolist() == y.tolist()


@pytest.mark.parametrize(
    ("loss", "y", "shape", "kind", "message"),
    [
        (ERRORS, [1, 2, 3], (3, 2), ValueError, r"shape (3, 2), got (3,)"),
        (ERRORS, [[1, 2]], (3, 2), ValueError, r"shape (3, 2), got (1, 2)"),
        (ERRORS, [1, 2], (3, 1), ValueError, r"shape (3, 1) or (3,), got (2,)"),
        (ERRORS, np.zeros((3, 1, 1)), (3, 1), ValueError, "got (3, 1, 1)"),
        (ERRORS, 3.0, (1, 1), ValueError, "got ()"),
        (ERRORS, [[1, np.nan]], (1, 2), ValueError, "nan at row 0, column 1"),
        (ERRORS, [[1], [-np.inf]], (2, 1), ValueError, "-inf at row 1, column 0"),
        (ERRORS, ["a", "b"], (2, 1), TypeError, "encode classes as integers"),
        (ERRORS, [1j, 2], (2, 1), TypeError, "real numbers"),
        (ERRORS, np.array(["a", 1], object), (2, 1), TypeError, "real numbers"),
        (ERRORS, np.array([1, 2], "datetime64[s]"), (2, 1), TypeError, "real numbers"),
        (CLASSES, ["a", "b"], (2, 2), TypeError, "np.unique"),
        (CLASSES, [0.0, 1.0], (2, 2), ValueError, "labels must be integers"),  # case G11
        (CLASSES, [0, 1, 3], (3, 3), ValueError, "labels 0 to 2 (one per output), got 3"),
        (CLASSES, [0, -1, 1], (3, 2), ValueError, "labels 0 to 1 (one per output), got -1"),
        (CLASSES, [10, 20, 30], (3, 3), ValueError, "got 10, 20, 30: encode them first"),
        (CLASSES, list(range(9)), (9, 2), ValueError, "got 2, 3, 4, 5, 6, ...:"),
        (CLASSES, [0, 1], (3, 2), ValueError, "2 labels, but X has 3 rows"),
        (CLASSES, [[0.5, 0.6]], (1, 2), ValueError, "row 0 of y sums to 1.1"),
        (CLASSES, [[1.2, -0.2]], (1, 2), ValueError, "targets of cross_entropy are 0 or greater"),
        (CLASSES, [[0, 0]], (1, 2), ValueError, "row 0 of y sums to 0"),
        (LOSSES["poisson"], [1, -0.1], (2, 1), ValueError, "-0.1 at row 1"),  # case L10
        (LOSSES["binary_cross_entropy"], [0, 1.5], (2, 1), ValueError, "between 0 and 1"),
        (LOSSES["binary_cross_entropy"], [0, -1], (2, 1), ValueError, "between 0 and 1"),
        (LOSSES["hinge"], [0, 1], (2, 1), ValueError, "use 2 * y - 1"),
    ],
)
def test_wrong_targets(loss, y, shape, kind, message):
    with pytest.raises(kind, match=re.escape(message)) as caught:
        encode(loss, y, *shape)
    assert re.match(r"(row \d+ of )?y ", str(caught.value))


def test_the_argument_has_its_name():
    with pytest.raises(ValueError, match=r"^validation y "):
        encode_targets(ERRORS, [1, 2], 3, 1, np.dtype(np.float64), name="validation y")


def test_a_target_beyond_float32():
    assert np.isfinite(encode(ERRORS, [1e300], 1, 1)).all()
    with pytest.raises(ValueError, match=r"1e\+300 at row 0, column 0.*range of float32"):
        encode(ERRORS, [1e300], 1, 1, np.float32)


def test_sparse_and_masked_targets():
    class Sparse:
        nnz = 1

        def toarray(self):
            raise AssertionError("nobody should be asked to make it dense")

    with pytest.raises(TypeError, match="toarray"):
        encode(ERRORS, Sparse(), 1, 1)
    masked = np.ma.masked_array([1.0, 2.0], mask=[False, True])
    with pytest.raises(ValueError, match="masked"):
        encode(ERRORS, masked, 2, 1)
    assert encode(ERRORS, np.ma.masked_array([1.0, 2.0]), 2, 1).tolist() == [[1], [2]]


def test_rows_are_of_one_class():
    assert all(type(row) is LossRow for row in [*LOSSES.values(), Huber(), Quantile()])


def test_probabilities_beyond_the_range_are_named_without_a_warning():
    rows = np.full((1, 3), 1e308)
    with pytest.raises(ValueError, match="sums to inf"):
        encode_targets(LOSSES["cross_entropy"], rows, 1, 3, np.dtype("float64"))
