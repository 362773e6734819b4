"""What happened to the data before the network saw it: kept beside a model, and in its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn.validation import check_X

if TYPE_CHECKING:
    from fastnn.persistence import Section, Tensors

__all__ = ["Preprocessing"]


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """Standardisation of the features, and the names of features, classes and target.

    Every part is optional. ``model.preprocessing`` holds one where a model needs it; `MLP.predict`
    does not apply it: give it ``model.preprocessing.transform(X)``.

    Parameters
    ----------
    mean, scale : array-like of shape (n_features,), optional
        ``transform`` computes ``(X - mean) / scale`` in float64. Both or none; scale > 0.
    feature_names : sequence of str, optional
        One per column of X.
    class_names : sequence of str, optional
        The class of each output: of a softmax output one name per unit; of one sigmoid unit two
        names, for 0 and 1.
    target_name : str, optional
        What is predicted.

    Raises
    ------
    TypeError, ValueError
        Arrays of different shapes, NaN, infinity, a scale that is not positive; names that are
        not strings.
    """

    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    feature_names: tuple[str, ...] | None = None
    class_names: tuple[str, ...] | None = None
    target_name: str | None = None
    n_features: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        put = object.__setattr__
        if (self.mean is None) != (self.scale is None):
            raise ValueError("mean and scale belong together: give both or none")
        sizes = set()
        for name in ("mean", "scale"):
            vector = getattr(self, name)
            if vector is not None:
                float64 = np.dtype(np.float64)
                vector = check_X(vector, None, float64, name, allow_1d=True)
                if vector.ndim != 1:
                    raise ValueError(f"{name} must have shape (n_features,), got {vector.shape}")
                vector = np.array(vector, float64)
                vector.flags.writeable = False
                put(self, name, vector)
                sizes.add(vector.size)
        if self.scale is not None and not (self.scale > 0).all():
            raise ValueError("scale must be > 0 in every column: use 1 for constant columns")
        for name in ("feature_names", "class_names"):
            names = getattr(self, name)
            if names is not None:
                put(self, name, _names(names, name))
        if self.target_name is not None and not isinstance(self.target_name, str):
            raise TypeError(f"target_name must be a string, got {self.target_name!r}")
        if self.feature_names is not None:
            sizes.add(len(self.feature_names))
        if len(sizes) > 1:
            raise ValueError(
                f"mean, scale and feature_names must have one length, got {sorted(sizes)}"
            )
        put(self, "n_features", next(iter(sizes), None))

    @classmethod
    def standardizing(cls, X: Any, **names: Any) -> Preprocessing:
        """The one whose ``transform(X)`` has mean 0 and standard deviation 1 in every column.

        Columns that do not vary are only centred. `names` are the other parameters of the class.
        """
        X = check_X(X, None, np.dtype(np.float64))
        if not len(X):
            raise ValueError("X has no rows: at least one is needed to find mean and scale")
        mean = X.mean(axis=0, dtype=np.float64)
        scale = X.std(axis=0, dtype=np.float64)
        # A constant column's computed deviation is rounding noise, not zero.
        noise = np.finfo(np.float64).eps * np.sqrt(len(X)) * np.abs(mean)
        return cls(mean=mean, scale=np.where(scale > noise, scale, 1.0), **names)

    def transform(self, X: Any) -> Any:
        """``(X - mean) / scale`` as float64 where there is a standardisation, else X itself."""
        if self.mean is None:
            return X
        X = check_X(X, self.n_features, np.dtype(np.float64), allow_1d=True)
        return (X - self.mean) / self.scale

    def to_file(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The header section and the tensors of a model file."""
        section: dict[str, Any] = {"standardized": self.mean is not None}
        for name in ("feature_names", "class_names"):
            names = getattr(self, name)
            section[name] = None if names is None else list(names)
        section["target_name"] = self.target_name
        if self.mean is None or self.scale is None:
            return section, {}
        return section, {"preprocessing.mean": self.mean, "preprocessing.scale": self.scale}

    @classmethod
    def from_file(cls, section: Section, tensors: Tensors, n_features: int) -> Preprocessing:
        """Read what `to_file` wrote; raises ModelFormatError."""
        with section:
            moments = {}
            if section.take("standardized", bool):
                for name in ("mean", "scale"):
                    tensor = f"preprocessing.{name}"
                    moments[name] = tensors.take(tensor, (n_features,), np.float64)
            result = cls(
                **moments,
                feature_names=section.take("feature_names", list, type(None)),
                class_names=section.take("class_names", list, type(None)),
                target_name=section.take("target_name", str, type(None)),
            )
            if result.n_features not in (None, n_features):
                raise ValueError(f"{result.n_features} features, the model has {n_features}")
        return result


def _names(names: Any, what: str) -> tuple[str, ...]:
    if isinstance(names, np.ndarray):
        names = names.tolist()
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{what} must be a sequence of strings, got {names!r}")
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{what} must be strings, got {name!r}")
    return tuple(names)
