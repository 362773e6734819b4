"""Rows of which only some values are stored: CSR matrices, as the backends read them."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["SparseRows", "is_sparse"]

# Stored values looked at in one go: what is allocated meanwhile stays small.
CHUNK = 1 << 20


def is_sparse(value: object) -> bool:
    """Whether it is one of SciPy's sparse matrices or arrays; SciPy need not be there."""
    return hasattr(value, "tocsr") and hasattr(value, "nnz")


class SparseRows:
    """A matrix in compressed sparse row format, whose arrays are read in place.

    Row i holds ``data[indptr[i]:indptr[i + 1]]`` in the columns
    ``indices[indptr[i]:indptr[i + 1]]``, which rise. Indexing gives dense rows.

    Parameters
    ----------
    matrix : scipy.sparse matrix or array
        A CSR matrix of this dtype whose columns rise within each row is not copied; duplicate
        entries are added up, in a copy.
    dtype : dtype
        float32 or float64: the model's.
    name : str
        For messages.

    Attributes
    ----------
    shape : tuple (n_rows, n_columns)
    dtype : dtype
    indptr : ndarray of shape (n_rows + 1,), int32 or int64
    indices : ndarray of shape (n_stored,), int32 or int64
    data : ndarray of shape (n_stored,), of the dtype

    Raises
    ------
    TypeError
        Values that are not real numbers.
    ValueError
        Arrays that do not describe a matrix.
    """

    ndim = 2

    def __init__(self, matrix: Any, dtype: Any, name: str = "X"):
        if len(matrix.shape) != 2:
            raise ValueError(f"{name} must have two dimensions, got shape {matrix.shape}")
        csr = matrix.tocsr()
        if csr.data.dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers, got dtype {csr.data.dtype}")
        self.shape: tuple[int, int] = (int(csr.shape[0]), int(csr.shape[1]))
        self.dtype = np.dtype(dtype)
        self._take(csr)
        problem = self._problem()
        if problem == "order":
            csr = csr.copy()
            csr.has_canonical_format = csr.has_sorted_indices = False  # what it says may be wrong
            csr.sum_duplicates()
            self._take(csr)
            problem = self._problem()
        if problem:
            raise ValueError(
                f"{name} is not a CSR matrix of shape {self.shape}: {problem}; build it anew with "
                "scipy.sparse.csr_array"
            )

    def _take(self, csr: Any) -> None:
        self.indptr = _index_array(csr.indptr)
        self.indices = _index_array(csr.indices)
        with np.errstate(over="ignore", invalid="ignore"):
            # An overflow gives inf, which the caller reports with its place.
            self.data = np.ascontiguousarray(csr.data, self.dtype)

    def _problem(self) -> str:
        """What is wrong with the arrays: kernels rely on each of these."""
        n_rows, n_columns = self.shape
        n_stored = len(self.indices)
        if self.indptr.shape != (n_rows + 1,) or self.indptr[0] != 0:
            return f"indptr must hold {n_rows + 1} numbers from 0 on"
        if (np.diff(self.indptr) < 0).any() or self.indptr[-1] > n_stored:
            return "indptr must rise up to the number of stored values"
        if len(self.data) != n_stored:
            return f"{len(self.data)} values for {n_stored} column numbers"
        starts = np.zeros(n_stored + 1, bool)
        starts[self.indptr] = True
        for at in range(0, n_stored, CHUNK):
            part = self.indices[at : at + CHUNK + 1]
            here = part[:CHUNK]
            if here.min() < 0 or here.max() >= n_columns:
                return f"column numbers must lie in 0..{n_columns - 1}"
            rising = np.diff(part) > 0
            if not (rising | starts[at + 1 : at + len(part)]).all():
                return "order"
        return ""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """These rows (a slice, or their numbers), dense."""
        numbers = np.arange(len(self))[rows]
        dense = np.zeros((*numbers.shape, self.shape[1]), self.dtype)
        for target, row in zip(np.atleast_2d(dense), np.atleast_1d(numbers), strict=True):
            stored = slice(self.indptr[row], self.indptr[row + 1])
            target[self.indices[stored]] = self.data[stored]
        return dense

    def astype(self, dtype: Any, **options: Any) -> np.ndarray:
        """All rows, dense."""
        return self[:].astype(dtype, **options)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self.astype(dtype)

    def place(self, stored: int) -> tuple[int, int]:
        """Row and column of a stored value."""
        row = int(np.searchsorted(self.indptr, stored, side="right")) - 1
        return row, int(self.indices[stored])


def _index_array(numbers: Any) -> np.ndarray:
    array = np.asarray(numbers)
    if array.dtype not in (np.int32, np.int64) or not array.dtype.isnative:
        array = array.astype(np.int64)
    return np.ascontiguousarray(array)
