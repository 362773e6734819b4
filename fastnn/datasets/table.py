"""CSV files: a header, numeric features, and one column that is to be predicted."""

from __future__ import annotations

import array
import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnn.validation import check_path

__all__ = ["Table", "encode_classes", "read_csv"]


@dataclass(frozen=True, eq=False)
class Table:
    """What a CSV file held.

    Attributes
    ----------
    X : ndarray of shape (n_rows, n_features), float64
    feature_names : tuple of str
    target : tuple of str or None
        The target column as text, one entry per row; None where none was asked for.
    target_name : str or None
    """

    X: np.ndarray
    feature_names: tuple[str, ...]
    target: tuple[str, ...] | None = None
    target_name: str | None = None

    def target_numbers(self) -> np.ndarray | None:
        """The target as float64 (n_rows,), or None where an entry is not a finite number."""
        if self.target is None:
            return None
        numbers = [_number(text) for text in self.target]
        return None if None in numbers else np.array(numbers, np.float64)


def read_csv(path: Any, target: str | None = None, columns: Sequence[str] | None = None) -> Table:
    """Read a comma-separated file in UTF-8 whose first line names the columns.

    Parameters
    ----------
    path : path-like
    target : str, optional
        The column to predict: text or numbers, never empty.
    columns : sequence of str, optional
        The columns to take as features, in this order; by default all but the target.

    Raises
    ------
    ValueError
        Anything but what is described here: no header, a column that is not there, a line with
        too many or too few fields, an entry that is empty or not a finite number. The message
        names the line.
    OSError
        The file cannot be read.
    """
    name = check_path(path)
    with open(name, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            return _read(reader, name, target, columns)
        except csv.Error as error:
            raise ValueError(f"{name}, line {reader.line_num}: {error}") from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, after line {reader.line_num}: not UTF-8 text: {error}"
            ) from error


def encode_classes(target: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes by name and by number.

    Returns
    -------
    class_names : tuple of str
        Each class once: in numeric order where all are numbers, else in alphabetic order.
    y : ndarray of shape (n_rows,), int64
        Positions in `class_names`.
    """
    names = set(target)
    numbers = {name: _number(name) for name in names}
    if None in numbers.values():
        ordered = sorted(names)
    else:
        ordered = sorted(names, key=lambda name: (numbers[name], name))
    position = {name: i for i, name in enumerate(ordered)}
    return tuple(ordered), np.array([position[name] for name in target], np.int64)


def _read(reader: Any, name: str, target: str | None, columns: Sequence[str] | None) -> Table:
    header = [field.strip() for field in next(reader, [])]
    _check_header(header, name)
    if target is not None and target not in header:
        raise ValueError(f"{name} has no column {target!r}: its columns are {_list(header)}")
    features = [c for c in header if c != target] if columns is None else list(columns)
    missing = [column for column in features if column not in header]
    if missing:
        raise ValueError(f"{name} lacks {_list(missing)}: its columns are {_list(header)}")
    if not features:
        raise ValueError(f"{name} has no column beside the target {target!r}")
    positions = [(column, header.index(column)) for column in features]
    target_at = None if target is None else header.index(target)

    numbers = array.array("d")
    labels: list[str] = []
    for fields in reader:
        if not fields:
            continue  # an empty line
        line = reader.line_num
        if len(fields) != len(header):
            raise ValueError(
                f"{name}, line {line}: {len(fields)} fields, but the header names {len(header)}"
            )
        for column, at in positions:
            number = _number(fields[at])
            if number is None:
                got = repr(fields[at][:40]) if fields[at].strip() else "nothing"
                raise ValueError(
                    f"{name}, line {line}, column {column!r}: expected a finite number, got {got}"
                )
            numbers.append(number)
        if target_at is not None:
            label = fields[target_at].strip()
            if not label:
                raise ValueError(f"{name}, line {line}: the target {target!r} is empty")
            labels.append(label)
    if not numbers:
        raise ValueError(f"{name} has a header, but no rows")
    X = np.frombuffer(numbers, np.float64).reshape(-1, len(features))
    return Table(X, tuple(features), None if target is None else tuple(labels), target)


def _check_header(header: list[str], name: str) -> None:
    if not any(header):
        raise ValueError(f"{name} is empty: expected a first line that names the columns")
    for delimiter, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and delimiter in header[0]:
            raise ValueError(f"{name}, line 1: fields are separated by {word}, expected commas")
    if all(_number(field) is not None for field in header):
        raise ValueError(
            f"{name}, line 1: only numbers, expected the names of the columns: add a header"
        )
    for position, field in enumerate(header):
        if not field:
            raise ValueError(f"{name}, line 1: column {position + 1} has no name")
        if field in header[:position]:
            raise ValueError(f"{name}, line 1: two columns are named {field!r}")


def _number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    # Python reads 1_000 as a number; no other program that wrote a CSV file meant that.
    return number if math.isfinite(number) and "_" not in text else None


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:10]))
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
