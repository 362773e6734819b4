"""What all estimators share: threads, one fit at a time, methods that come and go."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from fastnn.threads import resolve_n_threads

__all__ = [
    "Attempt",
    "Unavailable",
    "attempt_of",
    "available_when",
    "exclusive",
    "inside_worker",
    "n_threads_of",
    "native_order",
    "one_blas_thread",
]


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


class Attempt:
    """What an estimator was before a fit, and how far that has come.

    Attributes
    ----------
    progress : callable () -> int
        Steps of this training so far; the fit sets it as it begins.
    epochs : callable () -> int
        Whole epochs, likewise.
    """

    def __init__(self, estimator: Any, fitted: str) -> None:
        self.estimator = estimator
        self.fitted = fitted in vars(estimator)
        self.progress: Callable[[], int] = lambda: 0
        self.epochs: Callable[[], int] = lambda: 0
        self._attributes = dict(vars(estimator))
        # Curves grow in place.
        self._lengths = [
            (value, len(value))
            for name, value in self._attributes.items()
            if type(value) is list and name.endswith("_")
        ]
        self._arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self._streams: list[tuple[np.random.RandomState, Any]] = []
        if isinstance(estimator.random_state, np.random.RandomState):
            self.keep_stream(estimator.random_state)

    def keep_stream(self, stream: np.random.RandomState) -> None:
        """Remember where a stream of random numbers stands, which takes 40 microseconds."""
        # NumPy's global stream is everybody's.
        if stream is not check_random_state(None) and stream not in (s for s, _ in self._streams):
            self._streams.append((stream, stream.get_state(legacy=False)))

    def keep(self, array: np.ndarray) -> None:
        """Remember what an array holds, which the fit changes in place."""
        self._arrays.append((array, array.copy()))

    def counts(self, error: BaseException) -> bool:
        """Whether what the training has reached is kept, in spite of an error."""
        if isinstance(error, KeyboardInterrupt):
            return self.progress() > 0
        return not self.fitted and self.epochs() > 0

    def put_back(self) -> None:
        """Make the estimator what it was."""
        attributes = vars(self.estimator)
        for name in attributes.keys() - self._attributes.keys():
            del attributes[name]
        attributes.update(self._attributes)
        for values, length in self._lengths:
            del values[length:]
        for array, content in self._arrays:
            array[...] = content
        for stream, state in self._streams:
            stream.set_state(state)


@contextmanager
def attempt_of(estimator: Any, fitted: str) -> Iterator[Attempt]:
    """A fit that, where it fails, leaves its estimator as it was.

    Two kinds of failure leave what the training has reached: Ctrl-C after a step, and any after an
    epoch in an estimator that was not fitted before.

    Parameters
    ----------
    estimator : estimator
        One thread at a time may fit it.
    fitted : str
        The attribute that it has where it is fitted.
    """
    with exclusive(estimator):
        attempt = Attempt(estimator, fitted)
        try:
            yield attempt
        except BaseException as error:
            if not attempt.counts(error):
                attempt.put_back()
            raise


class _BlasLimit:
    """One thread for BLAS while anybody wants that.

    The limit is the process's, so the first to come sets it, and the last to go takes it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.limiter: Any = None

    @functools.cached_property
    def controller(self) -> Any:
        from threadpoolctl import ThreadpoolController

        return ThreadpoolController()  # it looks through all libraries that are loaded

    def __enter__(self) -> None:
        with self.lock:
            if self.users == 0:
                self.limiter = self.controller.limit(limits=1, user_api="blas")
            self.users += 1

    def __exit__(self, *exception: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                self.limiter.restore_original_limits()
                self.limiter = None


one_blas_thread = _BlasLimit()
"""SciPy's L-BFGS-B solves tiny systems, where threads of BLAS cost ten times what they bring."""


class Unavailable(AttributeError, ValueError):
    """The method is there with other settings only.

    `hasattr` is then False, as scikit-learn has it, and who calls the method reads why; some of
    these are ValueErrors there.
    """


class available_when:  # noqa: N801  # a decorator
    """A method that is there where ``check(self)`` does not raise `Unavailable`.

    `sklearn.utils.metaestimators.available_if` with the reason in place of "has no attribute".
    """

    def __init__(self, check: Callable[[Any], None]) -> None:
        self.check = check

    def __call__(self, method: Callable[..., Any]) -> Any:
        return _Conditional(method, self.check)


class _Conditional:
    def __init__(self, method: Callable[..., Any], check: Callable[[Any], None]) -> None:
        self.method = method
        self.check = check
        self.__doc__ = method.__doc__

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None:
            self.check(instance)
            return MethodType(self.method, instance)

        @functools.wraps(self.method)
        def unbound(instance: Any, *args: Any, **kwargs: Any) -> Any:
            self.check(instance)
            return self.method(instance, *args, **kwargs)

        return unbound


def native_order(X: Any) -> Any:
    """The same numbers in this machine's byte order, which says nothing of their precision."""
    if isinstance(X, np.ndarray) and not X.dtype.isnative and X.dtype.kind in "fiu":
        return X.astype(X.dtype.newbyteorder("="))
    return X
