"""Arguments: what passes untouched, what is converted, and what is refused with which words."""

import decimal
import fractions
from pathlib import Path

import numpy as np
import pytest

from fastnn import validation
from fastnn.validation import (
    NATIVE_DTYPES,
    check_choice,
    check_dtype,
    check_flag,
    check_int,
    check_out,
    check_path,
    check_real,
    check_sample_weight,
    check_X,
    resolve_seed,
)

F32, F64 = np.dtype(np.float32), np.dtype(np.float64)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_int_takes_numpy_scalars(value):  # case A10
    result = check_int(value, "n")
    assert result == 3
    assert type(result) is int


@pytest.mark.parametrize("value", [True, np.True_, 3.0, np.float32(3), "3", None, [3], 3j])
def test_int_refuses_other_types(value):
    with pytest.raises(TypeError, match="n must be an integer, got"):
        check_int(value, "n")


def test_int_range():
    assert check_int(5, "n", low=5, high=5) == 5
    with pytest.raises(ValueError, match="n must be >= 1, got 0"):
        check_int(0, "n", low=1)
    with pytest.raises(ValueError, match="n must be >= 1 and <= 3, got 4"):
        check_int(4, "n", low=1, high=3)


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.array(0.5), fractions.Fraction(1, 2)])
def test_real_takes_any_real(value):
    result = check_real(value, "x")
    assert result == 0.5
    assert type(result) is float


@pytest.mark.parametrize("value", [True, np.False_, "0.5", None, [0.5], 1j, decimal.Decimal(1)])
def test_real_refuses_other_types(value):
    with pytest.raises(TypeError, match="x must be a real number, got"):
        check_real(value, "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.float32("inf"), 10**400])
def test_real_must_be_finite(value):
    with pytest.raises(ValueError, match="x must be finite"):
        check_real(value, "x")


def test_real_open_ends():
    assert check_real(0, "x", low=0) == 0.0
    with pytest.raises(ValueError, match=r"x must be > 0 and < 1, got 0\.0"):
        check_real(0, "x", low=0, high=1, low_open=True, high_open=True)
    with pytest.raises(ValueError, match=r"x must be < 1, got 1\.0"):
        check_real(1, "x", high=1, high_open=True)


def test_flag():
    assert check_flag(np.bool_(True), "f") is True
    assert check_flag(False, "f") is False
    for value in (1, 0, None, "True"):
        with pytest.raises(TypeError, match="f must be True or False"):
            check_flag(value, "f")


def test_choice():
    assert check_choice(np.str_("a"), "c", ["a", "b"]) == "a"
    with pytest.raises(ValueError, match="c must be one of a, b; got 'z'"):
        check_choice("z", "c", ["a", "b"])
    with pytest.raises(TypeError, match="c must be one of a, b; got 1"):
        check_choice(1, "c", ["a", "b"])


def test_seed():
    assert resolve_seed(np.uint64(2**64 - 1)) == 2**64 - 1  # case B10
    assert resolve_seed(None) != resolve_seed(None)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match="seed must be"):
            resolve_seed(seed)


@pytest.mark.parametrize("dtype", ["float32", np.float32, F32, "f4"])
def test_dtype(dtype):
    assert check_dtype(dtype) == F32


@pytest.mark.parametrize("dtype", ["float16", "int32", None, "nonsense", 7, "complex64"])
def test_dtype_refuses_the_rest(dtype):
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        check_dtype(dtype)


def test_path():
    assert check_path(Path("a") / "b") == str(Path("a") / "b")
    with pytest.raises(TypeError, match="path must be a path, got 3"):
        check_path(3)


# X ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", sorted(map(str, NATIVE_DTYPES)))
def test_native_arrays_are_not_copied(dtype):  # cases A1, A5, A8
    base = np.ones((6, 8), dtype)
    base.flags.writeable = False
    for X in (
        base,
        base[::2],
        base[:, ::-1],
        base.T,
        base[:, 1:2],
        np.broadcast_to(base[0], (4, 8)),
    ):
        assert np.shares_memory(check_X(X, None, F32), X)


def test_memory_maps_are_not_copied(tmp_path):  # case A1
    np.save(tmp_path / "x.npy", np.ones((3, 2), np.float32))
    X = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.shares_memory(check_X(X, 2, F32), X)


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.tolist(),
        lambda X: X.astype(np.float16),
        lambda X: X.astype(np.longdouble),
        lambda X: X.astype(">f8"),  # case A4
        lambda X: X.astype(">f4"),
        lambda X: X.astype(">i2"),
        lambda X: X.astype(object),
        lambda X: [list(map(fractions.Fraction, map(int, row))) for row in X],
        lambda X: np.ma.masked_array(X, mask=False),
        lambda X: pytest.importorskip("pandas").DataFrame(X),
    ],
)
def test_other_kinds_give_the_same_numbers(convert):  # cases A4, A8
    X = np.arange(12.0).reshape(4, 3)
    np.testing.assert_array_equal(check_X(convert(X), 3, F32), X)


def test_misaligned_arrays_are_realigned():
    raw = np.zeros(1 + 8 * 6, np.uint8)
    X = raw[1:].view(np.float64).reshape(2, 3)
    X[:] = np.arange(6).reshape(2, 3)
    checked = check_X(X, 3, F32)
    assert checked.flags.aligned
    np.testing.assert_array_equal(checked, X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.ones((2, 3), complex), "X is complex: .* X.real"),
        ([["a", "b"]], "X must hold real numbers, got dtype <U1"),
        ([[b"a"]], "X must hold real numbers"),
        (
            np.array([["1.5"]], object),
            "X must hold real numbers, got '1.5' .str. at row 0, column 0",
        ),
        (np.array([[1.0, None]], object), "got None .NoneType. at row 0, column 1"),
        (np.array([[1j]], object), "X must hold real numbers"),
        (np.array([["2020-01-01"]], "M8[D]"), "X must hold real numbers"),
        (np.zeros(2, [("a", "f4")]), "X must hold real numbers"),
    ],
)
def test_wrong_types(X, message):
    with pytest.raises(TypeError, match=message):
        check_X(X, None, F32)


def test_sparse_says_what_to_do():
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(TypeError, match=r"X is sparse .*: use X.toarray\(\)"):
        check_X(sparse.eye(3, format="csr"), 3, F32)


def test_failing_conversions_are_type_errors():
    class Bad:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("requires grad")

    with pytest.raises(TypeError, match=r"X could not be read as an array \(Bad\): requires grad"):
        check_X(Bad(), 3, F32)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([[1.0], [1.0, 2.0]], "X is not a rectangular array of numbers"),
        (3.0, r"X must have shape \(n_samples, n_features\), got \(\)"),
        ([1.0, 2.0], r"got \(2,\): use X.reshape\(1, -1\) for one row"),
        (np.ones((2, 3, 4)), r"got \(2, 3, 4\)"),
        (
            np.ones((2, 12)),
            r"X has 12 features, but this model was built for 3 \(layer_sizes\[0\]\)",
        ),
        ([[1, 2, np.nan]], "X contains nan at row 0, column 2"),
        ([[1, -np.inf, np.nan]], "X contains -inf at row 0, column 1"),
        ([[1, 2, 1e39]], r"X contains 1e\+39, beyond the range of float32 at row 0, column 2"),
        (np.array([[10**400, 1, 1]], object), "X has a number too large for float64"),
        (np.ma.masked_array(np.ones((1, 3)), mask=[[0, 1, 0]]), "X has masked entries"),
    ],
)
def test_wrong_values(X, message):
    with pytest.raises(ValueError, match=message):
        check_X(X, 3, F32)


def test_one_row_where_allowed():
    assert check_X([1, 2, 3], 3, F32, allow_1d=True).shape == (3,)
    with pytest.raises(ValueError, match=r"or \(n_features,\), got \(\)"):
        check_X(1, 3, F32, allow_1d=True)


def test_largest_float64_is_fine_for_float64_and_rounding_for_float32():
    largest32 = float(np.finfo(np.float32).max)
    assert check_X([[np.finfo(np.float64).max]], 1, F64).size == 1
    check_X(np.array([[largest32 * (1 + 2.0**-26)]]), 1, F32)  # rounds down to the largest
    with pytest.raises(ValueError, match="beyond the range of float32"):
        check_X(np.array([[largest32 * (1 + 2.0**-24)]]), 1, F32)


@pytest.mark.parametrize("n_rows", [1, 3, 70_000])
def test_bad_numbers_are_found_anywhere(n_rows, monkeypatch):
    monkeypatch.setattr(validation, "CHUNK_ELEMS", 16)
    X = np.zeros((n_rows, 2), np.float32)
    X[-1, 1] = np.nan
    with pytest.raises(ValueError, match=f"at row {n_rows - 1}, column 1"):
        check_X(X, 2, F32)


def test_empty_arrays():  # case B4
    assert check_X(np.empty((0, 3)), 3, F32).shape == (0, 3)
    assert check_X(np.empty((4, 0)), 0, F32).shape == (4, 0)


# Weights and outputs ------------------------------------------------------------------------------


def test_sample_weight():
    assert check_sample_weight(None, 3) is None
    weight = check_sample_weight(np.array([1, 0, 2], np.int8)[::-1], 3)
    assert weight.dtype == F64
    assert weight.tolist() == [2, 0, 1]
    assert weight.flags.c_contiguous


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1, 2], r"sample_weight must have shape \(3,\), one weight per row of X, got \(2,\)"),
        ([[1], [2], [3]], r"got \(3, 1\)"),
        ([1, -1, 1], "sample_weight must be >= 0, got -1.0 at index 1"),  # case W8
        ([1, np.nan, 1], "sample_weight contains nan at index 1"),
        ([1e308] * 3, "sample_weight sums to infinity"),
        ([0, 0, 0], "sample_weight is zero for every row"),  # case W5
    ],
)
def test_wrong_sample_weight(weight, message):
    with pytest.raises(ValueError, match=message):
        check_sample_weight(weight, 3)


def test_huge_weights_keep_their_ratios():
    weight = np.array([1.0, 0.3, 7.0]) * 1e307
    checked = check_sample_weight(weight, 3)
    assert checked.sum() <= 1
    np.testing.assert_array_equal(checked / checked[0], weight / weight[0])


def test_zero_weights_where_allowed():
    assert check_sample_weight([0, 0], 2, allow_all_zero=True).tolist() == [0, 0]


def test_out():
    good = np.empty((2, 3), np.float32)
    assert check_out(good, (2, 3), F32) is good
    read_only = good.copy()
    read_only.flags.writeable = False
    for out, kind, message in (
        ([[0.0]], TypeError, "out must be a NumPy array"),
        (np.empty((3, 2), np.float32), ValueError, r"out must have shape \(2, 3\), got \(3, 2\)"),
        (np.empty((2, 3)), ValueError, "out must have dtype float32, got float64"),
        (np.empty((2, 3), ">f4"), ValueError, "out must have dtype float32"),
        (np.empty((3, 2), np.float32).T, ValueError, "out must be C-contiguous"),
        (read_only, ValueError, "out is read-only"),
    ):
        with pytest.raises(kind, match=message):
            check_out(out, (2, 3), F32)
    with pytest.raises(ValueError, match="out overlaps the memory of X"):
        check_out(good, (2, 3), F32, good[:1])


@pytest.mark.parametrize("n_threads", ["1", "2", "5"])
def test_a_large_array_is_scanned_by_threads_to_the_end(monkeypatch, n_threads):
    monkeypatch.setenv("FASTNN_NUM_THREADS", n_threads)
    X = np.ones((3001, 500), np.float32)
    assert X.size > validation.SHARED_ELEMS
    for rows in (X, np.asfortranarray(X), X[:, ::-1]):
        validation.check_finite(rows, "X", np.dtype(np.float32))
        for row in (0, 523, 524, 1500, 3000):
            rows[row, 499] = np.inf
            with pytest.raises(ValueError, match=rf"X contains inf at .*\b{row}\b"):
                validation.check_finite(rows, "X", np.dtype(np.float32))
            rows[row, 499] = 1
