"""The IDX format of MNIST: arrays with a big-endian header, often gzipped.

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastnn.validation import check_path

__all__ = ["IdxData", "load_idx", "read_idx"]

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# Deflate cannot compress further than this: a header that promises more is wrong.
_MAX_GZIP_RATIO = 1032


class IdxData(NamedTuple):
    """A training and a test set; the test set is None, None where the folder has none."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray | None
    y_test: np.ndarray | None


def load_idx(folder: Any) -> IdxData:
    """Read a folder in the layout of MNIST, Fashion-MNIST and their kin.

    Parameters
    ----------
    folder : path-like
        Holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and, as a rule, the same
        with ``t10k`` for the test set; each with or without ``.gz``.

    Returns
    -------
    X_train : ndarray of shape (n, n_pixels), float32
        Bytes are scaled to 0..1; other types keep their values.
    y_train : ndarray of shape (n,), int64
    X_test, y_test
        The same for the test set, or None.

    Raises
    ------
    FileNotFoundError
        The folder lacks the training images or labels, or one half of the test set.
    ValueError
        A file is malformed; the message names it.
    """
    path = Path(check_path(folder, "folder"))
    train = _load_part(path, "train")
    test: tuple[Any, Any] = (None, None)
    if _find(path, "t10k", "images") or _find(path, "t10k", "labels"):
        test = _load_part(path, "t10k")
        if test[0].shape[1] != train[0].shape[1]:
            raise ValueError(
                f"{path}: test images have {test[0].shape[1]} pixels, training images "
                f"{train[0].shape[1]}"
            )
    return IdxData(*train, *test)


def read_idx(path: Any) -> np.ndarray:
    """Read one IDX file, gzipped where its first bytes say so.

    Returns
    -------
    ndarray in native byte order, with the file's shape and type

    Raises
    ------
    ValueError
        The file is malformed. It never costs more memory than a true file of its size.
    OSError
        It cannot be read.
    """
    name = check_path(path)
    try:
        with open(name, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if zipped:
                with gzip.open(raw, "rb") as file:
                    return _read(file, name, size * _MAX_GZIP_RATIO)
            return _read(raw, name, size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{name} is truncated or damaged: {error}") from error


def _read(file: BinaryIO | gzip.GzipFile, name: str, size_limit: int) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not magic[3]:
        raise ValueError(f"{name} is not an IDX file: it starts with {magic!r}")
    n_dimensions = magic[3]
    header = file.read(4 * n_dimensions)
    if len(header) < 4 * n_dimensions:
        raise ValueError(f"{name} is truncated: it ends within its header")
    shape = tuple(int(length) for length in np.frombuffer(header, ">u4"))
    dtype = np.dtype(_DTYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    if expected > size_limit or n_dimensions > 32:
        raise ValueError(f"{name} is truncated: its header promises an array of shape {shape}")
    data = file.read(expected)
    if len(data) < expected:
        raise ValueError(f"{name} is truncated: {len(data)} of {expected} bytes of data")
    if file.read(1):
        raise ValueError(f"{name} goes on after the {expected} bytes that its header promises")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _find(folder: Path, part: str, content: str) -> Path | None:
    n_dimensions = {"images": 3, "labels": 1}[content]
    for separator in "-.":
        for suffix in ("", ".gz"):
            file = folder / f"{part}-{content}{separator}idx{n_dimensions}-ubyte{suffix}"
            if file.is_file():
                return file
    return None


def _load_part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    paths = [_find(folder, part, content) for content in ("images", "labels")]
    for path, name in zip(paths, ("images-idx3-ubyte", "labels-idx1-ubyte"), strict=True):
        if path is None:
            raise FileNotFoundError(f"{folder} lacks {part}-{name} (or the same with .gz)")
    images, labels = map(read_idx, paths)
    if images.ndim < 2:
        raise ValueError(f"{paths[0]} has shape {images.shape}, expected images")
    if labels.ndim != 1 or labels.dtype.kind == "f":
        raise ValueError(f"{paths[1]} has shape {labels.shape}, expected one label per image")
    if len(images) != len(labels):
        raise ValueError(f"{folder} has {len(images)} {part} images, but {len(labels)} labels")
    X = images.reshape(len(images), math.prod(images.shape[1:])).astype(np.float32)
    if images.dtype == np.uint8:
        X /= 255
    return X, labels.astype(np.int64)
