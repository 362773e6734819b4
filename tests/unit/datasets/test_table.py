"""CSV files: what is read, and the line that is named where something is wrong."""

import numpy as np
import pytest

from fastnn.datasets import encode_classes, read_csv


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        path = tmp_path / "data.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def test_numbers_and_a_categorical_target(write):
    table = read_csv(write('a,kind, b \n1,red,2.5\n\n-3e2,"blue, dark", 4 \n'), target="kind")
    np.testing.assert_array_equal(table.X, [[1, 2.5], [-300, 4]])
    assert table.feature_names == ("a", "b")
    assert table.target == ("red", "blue, dark")
    assert table.target_name == "kind"
    assert table.target_numbers() is None


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(write, newline, mark):
    table = read_csv(write(mark + newline.join(["a,b", "1,2", "3,4"])))
    assert table.feature_names == ("a", "b")
    assert table.X.tolist() == [[1, 2], [3, 4]]
    assert table.target is None


def test_columns_are_taken_by_name_and_the_rest_is_not_read(write):
    table = read_csv(write("a,text,b\n1,x,2\n3,,4\n"), columns=["b", "a"])
    assert table.X.tolist() == [[2, 1], [4, 3]]


def test_numeric_target(write):
    table = read_csv(write("x,y\n1,0.5\n2,-1\n"), target="y")
    assert table.target_numbers().tolist() == [0.5, -1]


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("", {}, "is empty: expected a first line that names the columns"),
        ("\n1,2\n", {}, "is empty"),
        ("1,2\n3,4\n", {}, "line 1: only numbers, expected the names"),
        ("a,b\n", {}, "has a header, but no rows"),
        ("a,,c\n1,2,3\n", {}, "line 1: column 2 has no name"),
        ("a,b,a\n1,2,3\n", {}, "line 1: two columns are named 'a'"),
        ("a;b\n1;2\n", {}, "line 1: fields are separated by semicolons, expected commas"),
        ("a\tb\n1\t2\n", {}, "separated by tabs"),
        ("a,b\n1,2\n3\n", {}, "line 3: 1 fields, but the header names 2"),
        ("a,b\n1,2\n\n3,4,5\n", {}, "line 4: 3 fields, but the header names 2"),
        ("a,b\n1,x\n", {}, "line 2, column 'b': expected a finite number, got 'x'"),
        ("a,b\n1,\n", {}, "line 2, column 'b': expected a finite number, got nothing"),
        ("a,b\n1,nan\n", {}, "line 2, column 'b': expected a finite number, got 'nan'"),
        ("a,b\n1,inf\n", {}, "got 'inf'"),
        ("a,b\n1,1_000\n", {}, "got '1_000'"),
        ("a,b\n1,2\n3, \n", {"target": "b"}, "line 3: the target 'b' is empty"),
        ("a,b\n1,2\n", {"target": "c"}, "has no column 'c': its columns are 'a', 'b'"),
        ("a\n1\n", {"target": "a"}, "has no column beside the target 'a'"),
        ("a,b\n1,2\n", {"columns": ["a", "z"]}, "lacks 'z': its columns are 'a', 'b'"),
        ('a,b\n1,"2\n', {}, "line 2: unexpected end of data"),
        ('a,b\n1,"2"3\n', {}, "line 2: ',' expected after '\"'"),
        ("a,b\n1," + "9" * 200_000, {}, "line 2: field larger than field limit"),
    ],
)
def test_everything_else_is_an_error_that_names_the_line(write, text, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_csv(write(text), **arguments)


def test_other_encodings_are_refused(write):
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_csv(write("a,b\n1,é\n", "latin-1"))


@pytest.mark.parametrize(
    ("target", "names", "y"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "9", "-1"], ("-1", "9", "10"), [2, 1, 0]),
        (["10", "9", "x"], ("10", "9", "x"), [0, 1, 2]),
        (["only"], ("only",), [0]),
    ],
)
def test_classes(target, names, y):  # case L1
    got = encode_classes(target)
    assert got[0] == names
    assert got[1].tolist() == y
    assert got[1].dtype == np.int64
