"""Many models at once: one per worker, over the same rows."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastnn.backends import get_backend
from fastnn.history import History
from fastnn.mlp import check_data
from fastnn.threads import resolve_n_threads
from fastnn.trainer import Data, Trainer
from fastnn.validation import check_int, describe

__all__ = ["train_many"]

# Between two looks for Ctrl-C on systems where a waiting thread does not hear it (Windows).
LOOK_SECONDS = 0.05
STOP_SECONDS = 0.005
SHOWN_ERRORS = 8


def train_many(
    trainers: Iterable[Trainer], X: Any, y: Any, *, epochs: int, n_threads: int | None = None
) -> list[History]:
    """Train many models on the same rows, several at a time.

    Each worker takes the next trainer and trains it to the end on a thread of its own. Nothing is
    copied per model but what its trainer holds: X is read in place, and X and y are checked once
    for all trainers that take them alike.

    Parameters
    ----------
    trainers : iterable of Trainer
        Each changes as by ``trainer.fit(X, y, epochs=epochs)``, to the same bits. They may differ
        in everything that suits X and y, but each needs a model of its own.
    X : array-like of shape (n_samples, n_features)
    y : array-like of shape (n_samples, n_outputs), or (n_samples,)
    epochs : int
        How many more, for each.
    n_threads : int, optional
        Models trained at a time; by default FASTNN_NUM_THREADS, else OMP_NUM_THREADS, else the
        CPUs of this process. Where there are fewer models, each gets an equal share of the
        threads, within its trainer's own ``n_threads``.

    Returns
    -------
    list of History
        The epochs of this call, in the order of the trainers.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type, shape or value, or one that some trainer cannot take; a
        trainer or a model that comes twice. Nothing has changed.
    DivergenceError, or whatever else a trainer raised
        After all others were trained to the end. Of several it is the first in the order of the
        trainers; its notes name all that failed. Each of them is where its own `fit` would have
        left it, and ``trainer.history`` has its epochs.
    KeyboardInterrupt
        Ctrl-C. Every trainer has stopped after a whole step, or was not begun; each can go on.

    Notes
    -----
    ``trainer.stop()``, from another thread, ends that one. Schedules that are functions of yours
    may be called from several threads at a time.

    Examples
    --------
    >>> models = [fastnn.MLP([30, 32, 2], output="softmax", seed=seed) for seed in range(64)]
    >>> trainers = [fastnn.Trainer(model, seed=0) for model in models]
    >>> histories = fastnn.train_many(trainers, X, y, epochs=10)
    """
    trainers = _check_trainers(trainers)
    epochs = check_int(epochs, "epochs", low=0)
    n_threads = resolve_n_threads(n_threads)
    data = _check_data(trainers, X, y)
    n_workers = max(1, min(n_threads, len(trainers)))
    share = n_threads // n_workers
    histories: dict[int, History] = {}
    errors: dict[int, BaseException] = {}

    def train(i: int) -> None:
        trainer = trainers[i]
        inside = 1 if share == 1 else min(share, resolve_n_threads(trainer._n_threads))
        try:
            histories[i] = trainer._fit(data[i], epochs, inside)
        except BaseException as error:
            errors[i] = error

    def stop() -> None:
        for trainer in trainers:
            trainer.stop()

    # The largest first: one that begins last would keep a worker busy when the others are done.
    largest_first = sorted(range(len(trainers)), key=lambda i: -trainers[i].model.plan.n_parameters)
    _for_each(largest_first, train, stop, n_workers)
    if errors:
        raise _first_error(errors, len(trainers))
    return [histories[i] for i in range(len(trainers))]


def _check_trainers(trainers: Any) -> list[Trainer]:
    try:
        trainers = list(trainers)
    except TypeError:
        raise TypeError(
            f"trainers must be a list of Trainer objects, got {describe(trainers)}"
        ) from None
    seen: dict[int, int] = {}
    for i, trainer in enumerate(trainers):
        if not isinstance(trainer, Trainer):
            raise TypeError(f"trainers[{i}] must be a Trainer, got {describe(trainer)}")
        j = seen.setdefault(id(trainer.model), i)
        if j != i:
            what = "are the same trainer" if trainer is trainers[j] else "train the same model"
            raise ValueError(
                f"trainers[{j}] and trainers[{i}] {what}: give each a model of its own "
                "(model.copy())"
            )
    return trainers


def _check_data(trainers: list[Trainer], X: Any, y: Any) -> list[Data]:
    """X and y as each trainer's backend takes them; one check where they take them alike."""
    checked: dict[tuple, Data] = {}
    data = []
    for i, trainer in enumerate(trainers):
        plan = trainer.model.plan
        backend = trainer.model.backend
        key = (plan.n_features, plan.n_outputs, plan.dtype, trainer.loss, backend)
        if key not in checked:
            try:
                checked[key] = check_data(
                    plan, trainer.loss, X, y, None, backend=get_backend(backend)
                )
            except (TypeError, ValueError) as error:
                error.add_note(f"trainers[{i}] cannot take this X and y; nothing was trained")
                raise
        data.append(checked[key])
    return data


def _first_error(errors: dict[int, BaseException], n_trainers: int) -> BaseException:
    failed = sorted(errors)
    first = errors[failed[0]]
    done = n_trainers - len(failed)
    first.add_note(f"{len(failed)} of {n_trainers} trainers failed; {done} are done:")
    for i in failed[:SHOWN_ERRORS]:
        first.add_note(f"trainers[{i}]: {type(errors[i]).__name__}: {errors[i]}")
    if len(failed) > SHOWN_ERRORS:
        first.add_note(f"and trainers {failed[SHOWN_ERRORS:]}")
    return first


def _for_each(
    items: list[int], do: Callable[[int], None], stop: Callable[[], None], n_workers: int
) -> None:
    """Call `do` with each item on some threads; where the wait is interrupted, `stop` them.

    The calling thread only waits. So no signal ends one item as if it were that item's own error,
    and whatever a handler raises comes up at once.
    """
    left = iter(items)
    lock = threading.Lock()
    cancelled = False

    def work() -> None:
        while not cancelled:
            with lock:
                item = next(left, None)
            if item is None:
                return
            do(item)

    workers: list[threading.Thread] = []
    try:
        for k in range(n_workers):
            worker = threading.Thread(target=work, name=f"fastnn-{k}")
            workers.append(worker)
            try:
                worker.start()
            except RuntimeError:  # no more threads to be had: those that run will do
                workers.pop()
                if not workers:
                    raise
                break
        for worker in workers:
            while worker.is_alive():
                worker.join(LOOK_SECONDS)
    except BaseException:
        cancelled = True
        while any(worker.is_alive() for worker in workers):
            # Again and again: a training that began at this moment has cleared its flag. A second
            # Ctrl-C changes nothing: none of them lasts longer than a step.
            with contextlib.suppress(KeyboardInterrupt):
                stop()
                time.sleep(STOP_SECONDS)
        raise
