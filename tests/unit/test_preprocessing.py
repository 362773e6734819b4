"""Preprocessing: standardisation and names, checked and kept."""

import numpy as np
import pytest

from fastnn.preprocessing import Preprocessing


def test_standardizing():
    X = np.random.default_rng(0).normal(5, [1, 10, 100], (50, 3)).astype(np.float32)
    Z = Preprocessing.standardizing(X).transform(X)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(Z.std(axis=0), 1, rtol=1e-12)


def test_constant_columns_are_only_centred():
    X = np.full((7, 2), 0.1)
    X[:, 1] = 1e9
    result = Preprocessing.standardizing(X)
    assert result.scale.tolist() == [1, 1]
    np.testing.assert_allclose(result.transform(X), 0, atol=1e-6)


def test_transform_checks_its_input():
    preprocessing = Preprocessing(mean=[0, 0], scale=[1, 2])
    assert preprocessing.transform([[2, 2]]).tolist() == [[2, 1]]
    assert preprocessing.transform([2, 2]).tolist() == [2, 1]
    with pytest.raises(ValueError, match="X has 3 features, but this model was built for 2"):
        preprocessing.transform([[1, 2, 3]])
    assert Preprocessing().transform("anything") == "anything"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"mean": [0]}, ValueError, "mean and scale belong together"),
        ({"mean": [0, 1], "scale": [1]}, ValueError, r"must have one length, got \[1, 2\]"),
        ({"mean": [0], "scale": [0]}, ValueError, "scale must be > 0"),
        ({"mean": [np.nan], "scale": [1]}, ValueError, "mean contains nan"),
        ({"mean": [[0]], "scale": [[1]]}, ValueError, r"mean must have shape \(n_features,\)"),
        ({"feature_names": "abc"}, TypeError, "feature_names must be a sequence of strings"),
        ({"class_names": [1]}, TypeError, "class_names must be strings, got 1"),
        ({"target_name": 1}, TypeError, "target_name must be a string"),
        (
            {"mean": [0], "scale": [1], "feature_names": ["a", "b"]},
            ValueError,
            "must have one length",
        ),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        Preprocessing(**arguments)
