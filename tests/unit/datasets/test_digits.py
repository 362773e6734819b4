"""The digits that ship with the package are UCI's, by way of scikit-learn."""

import numpy as np
import pytest

from fastnn.datasets import digits, load_digits


def test_shapes_types_and_range():
    X, y = load_digits()
    assert (X.shape, X.dtype) == ((1797, 64), np.float32)
    assert (y.shape, y.dtype) == ((1797,), np.int64)
    assert (X.min(), X.max()) == (0, 1)
    assert sorted(set(y.tolist())) == list(range(10))


def test_same_as_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    X, y = load_digits()
    np.testing.assert_array_equal(X * 16, theirs.data)
    np.testing.assert_array_equal(y, theirs.target)


def test_each_call_gives_its_own_arrays():
    load_digits()[0][:] = 7
    assert load_digits()[0].max() == 1


def test_attribution_lies_beside_the_data():
    from pathlib import Path

    text = Path(digits.__file__).with_name("digits.LICENSE.txt").read_text()
    assert "CC BY 4.0" in text
    assert "10.24432/C50P49" in text
