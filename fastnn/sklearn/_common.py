"""What all estimators share: threads inside workers, one fit at a time, byte order."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from fastnn.threads import resolve_n_threads

__all__ = ["exclusive", "inside_worker", "n_threads_of", "native_order"]


def n_threads_of(n_threads: int | None) -> int:
    """Threads that a call may use: one inside a worker of joblib or Dask, unless told otherwise."""
    if n_threads is None and inside_worker():
        return 1
    return resolve_n_threads(n_threads)


def inside_worker() -> bool:
    """Whether other workers run beside this thread, so that it should take one CPU."""
    from joblib.parallel import get_active_backend

    if (get_active_backend()[0].nesting_level or 0) > 0:
        return True
    if multiprocessing.parent_process() is not None and "FASTNN_NUM_THREADS" not in os.environ:
        return True
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except Exception:  # it raises ValueError, or what its parts raise: then there is no worker
        return False
    return True


_FITTING: set[int] = set()
_FITTING_LOCK = threading.Lock()


@contextmanager
def exclusive(estimator: Any) -> Iterator[None]:
    """Let one thread at a time fit an estimator.

    Raises
    ------
    RuntimeError
        Another one does.
    """
    key = id(estimator)
    with _FITTING_LOCK:
        if key in _FITTING:
            raise RuntimeError(
                "this estimator is being fitted already, by another thread or by the fit that "
                "called this callback: fit a clone instead (sklearn.base.clone)"
            )
        _FITTING.add(key)
    try:
        yield
    finally:
        with _FITTING_LOCK:
            _FITTING.discard(key)


def native_order(X: Any) -> Any:
    """The same numbers in this machine's byte order, which says nothing of their precision."""
    if isinstance(X, np.ndarray) and not X.dtype.isnative and X.dtype.kind in "fiu":
        return X.astype(X.dtype.newbyteorder("="))
    return X
