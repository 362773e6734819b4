"""Handwritten digits that ship with the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

__all__ = ["load_digits"]


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 handwritten digits of 8 x 8 pixels, scanned from 13 writers.

    Returns
    -------
    X : ndarray of shape (1797, 64), float32
        Ink per pixel in 0..1, row by row: ``X[i].reshape(8, 8)`` is an image.
    y : ndarray of shape (1797,), int64
        The digits, 0 to 9.

    Notes
    -----
    Alpaydin, E. and Kaynak, C. (1998), Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, doi 10.24432/C50P49, licensed CC BY 4.0; the test set, in the copy that
    ships with scikit-learn. See ``digits.LICENSE.txt`` beside this file.
    """
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        return file["pixels"].astype(np.float32) / 16, file["labels"].astype(np.int64)
