"""Training: epochs over shuffled batches, whose state can be saved and continued at any point."""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from fastnn import rng
from fastnn.backends import BACKENDS, get_backend
from fastnn.backends.base import StopFlag, TrainJob
from fastnn.callbacks import Callback
from fastnn.errors import BackendUnavailable, DivergenceError, ModelFormatError
from fastnn.history import History
from fastnn.mlp import MLP, check_data
from fastnn.plan import check_memory
from fastnn.schedules import Schedule, get_schedule, resolve_schedule
from fastnn.tables.losses import LossRow, get_loss, resolve_loss
from fastnn.tables.optimizers import (
    LBFGS,
    LBFGSState,
    Optimizer,
    get_optimizer,
    resolve_optimizer,
)
from fastnn.threads import resolve_n_threads
from fastnn.validation import (
    check_choice,
    check_flag,
    check_int,
    check_real,
    raise_not_finite,
    resolve_seed,
)

if TYPE_CHECKING:
    from fastnn.persistence import Section, Tensors

try:
    from fastnn.backends._native import fill_permutation
except ImportError:

    def fill_permutation(order: np.ndarray, seed: int, epoch: int) -> None:
        """Write an epoch's order of the rows: the same numbers as the compiled one's."""
        if len(order) >= _WORTH_COMPILING:
            with contextlib.suppress(BackendUnavailable):
                get_backend("numba").fill_permutation(order, seed, epoch)  # type: ignore[attr-defined]
                return
        order[:] = rng.permutation(len(order), seed, epoch)


__all__ = ["Trainer"]

_WORTH_COMPILING = 10_000  # rows, of which a loop in Python takes longer than Numba to compile one

# Epochs that go to the backend in one call: enough that Python costs nothing, few enough that the
# drawn orders (32 MB) and the scalars of the steps (tens of MB) stay small beside the data, and
# that a stop does not wait for orders that nobody will use.
FIRST_CHUNK_EPOCHS = 16
FIRST_CHUNK_WORK = 1 << 24  # multiply-adds of forward passes: some milliseconds
MAX_CHUNK_INDICES = 1 << 22
MAX_CHUNK_STEPS = 1 << 20
MAX_CHUNK_SECONDS = 0.1

# Streams of the dropout masks: `fit` counts epochs and rows, `step` counts its own calls.
FIT_STREAM = 2
STEP_STREAM = 3

CUSTOM_SCHEDULE = "custom"
"""Stands in a file for a schedule that is a function of the user."""

Data = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class _Stopped(Exception):
    """Ends an iteration of LBFGS between two evaluations."""


class Trainer:
    """Fits a model to data, and knows where it stands.

    Parameters
    ----------
    model : MLP
        Changed in place.
    loss : str or loss object, optional
        By default the natural one of the output: cross_entropy for softmax, binary_cross_entropy
        for sigmoid, poisson for exp, else squared_error.
    optimizer : str or optimizer object, default "adam"
    batch_size : int or "full", default 32
        Rows per update; the last batch of an epoch may be shorter. LBFGS always takes all rows.
    shuffle : bool, default True
        Draw a new order of the rows for every epoch. A batch of all rows needs none.
    l2 : float, default 0.0
        Adds ``l2 / 2 * sum(W**2)`` to the objective, biases left out, whatever the batch size.
        Reported losses do not contain it.
    clip_norm : float, optional
        Scales the gradient down where its norm is larger.
    schedule : str, schedule object or callable, optional
        The learning rate of each step, counted from 0; by default the optimizer's.
    seed : int, optional
        Of the orders and the dropout masks, ``0 <= seed < 2**64``. By default a fresh one is
        drawn, and kept.
    n_threads : int, optional
        By default FASTNN_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs of this process. The
        results do not depend on it.

    Attributes
    ----------
    model : MLP
    epoch : int
        Epochs finished.
    n_steps : int
        Updates made.
    rate_factor : float
        Multiplies every learning rate; 1 until `ReduceOnPlateau` or you lower it.
    history : History
        All epochs of this trainer's life.
    seed : int

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value, or two that do not go together.

    Warns
    -----
    UserWarning
        A hidden layer has the activation "step", whose derivative is 0: what feeds it cannot
        learn.

    Notes
    -----
    k calls of `fit` with one epoch and one call with k epochs give the same bits; so do a trainer
    that was saved and loaded in between, and any number of threads. One training changes a model
    at a time: a second one, from another thread or from a callback, raises RuntimeError.

    Examples
    --------
    >>> trainer = fastnn.Trainer(model, optimizer=fastnn.Adam(learning_rate=3e-3), seed=0)
    >>> history = trainer.fit(X, y, epochs=20, validation_data=(X_val, y_val))
    """

    def __init__(
        self,
        model: MLP,
        *,
        loss: str | LossRow | None = None,
        optimizer: str | Optimizer = "adam",
        batch_size: int | str = 32,
        shuffle: bool = True,
        l2: float = 0.0,
        clip_norm: float | None = None,
        schedule: str | Callable[[int], float] | None = None,
        seed: int | None = None,
        n_threads: int | None = None,
    ) -> None:
        if not isinstance(model, MLP):
            raise TypeError(f"model must be an MLP, got {type(model).__name__}")
        plan = model.plan
        self._model = model
        self._loss = resolve_loss(loss, plan.output)
        self._optimizer = resolve_optimizer(optimizer)
        self._batch_size = (
            check_choice(batch_size, "batch_size", ["full"])
            if isinstance(batch_size, str)
            else check_int(batch_size, "batch_size", low=1)
        )
        self._shuffle = check_flag(shuffle, "shuffle")
        self._l2 = check_real(l2, "l2", low=0.0)
        self._clip_norm = (
            None if clip_norm is None else check_real(clip_norm, "clip_norm", low=0, low_open=True)
        )
        self._set_schedule(schedule)
        self._seed = resolve_seed(seed)
        self._n_threads = None if n_threads is None else resolve_n_threads(n_threads)
        self._check_combination()
        if "step" in plan.activations:
            warnings.warn(
                "a hidden layer has the activation 'step', whose derivative is 0 everywhere: the "
                "layers before it will not learn",
                UserWarning,
                stacklevel=2,
            )
        n_bytes = self._optimizer.n_slots * plan.n_bytes
        check_memory(n_bytes, f"the state of {self._optimizer!r}")
        self._slots = plan.allocate(self._optimizer.n_slots)
        self._optimizer.init_slots(self._slots)
        self._counters = self._optimizer.init_counters()
        self._lbfgs = LBFGSState()
        self._epoch = 0
        self._n_steps = 0
        self._n_step_calls = 0
        self.rate_factor = 1.0
        self.history = History()
        self._stop = StopFlag()

    def _set_schedule(self, schedule: str | Callable[[int], float] | None) -> None:
        self._schedule = get_schedule(schedule) if isinstance(schedule, str) else schedule
        resolve_schedule(self._schedule, self._optimizer.learning_rate)  # raises where it is none

    def _check_combination(self) -> None:
        """Raise for settings that LBFGS cannot follow."""
        if not isinstance(self._optimizer, LBFGS):
            return
        for name, set_ in (
            ("clip_norm", self._clip_norm is not None),
            ("schedule", self._schedule is not None),
            ("dropout", any(self._model.plan.dropout)),
        ):
            if set_:
                raise ValueError(
                    f"LBFGS searches along a line on the exact objective and knows no {name}: "
                    f"leave {name} out, or take another optimizer"
                )

    @property
    def model(self) -> MLP:
        return self._model

    @property
    def loss(self) -> LossRow:
        return self._loss

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def n_steps(self) -> int:
        return self._n_steps

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def rate_factor(self) -> float:
        return self._rate_factor

    @rate_factor.setter
    def rate_factor(self, factor: float) -> None:
        self._rate_factor = check_real(factor, "rate_factor", low=0.0)

    def __repr__(self) -> str:
        return (
            f"Trainer({self._model!r}, loss={self._loss.name!r}, optimizer={self._optimizer!r}, "
            f"epoch={self._epoch})"
        )

    # Training ---------------------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: Any,
        *,
        epochs: int,
        sample_weight: Any = None,
        validation_data: tuple[Any, ...] | None = None,
        callbacks: Iterable[Callback] = (),
        progress: bool = False,
    ) -> History:
        """Train for some epochs more, from where the trainer stands.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Read in place where it can be (see `fastnn.validation.check_X`). A sparse matrix of
            SciPy's is read as CSR, and only what it stores is touched. With backend="cuda", X and
            y may lie in the GPU's memory; other arrays are copied there once.
        y : array-like of shape (n_samples, n_outputs), or (n_samples,)
            Targets; labels for cross_entropy.
        epochs : int
            How many more.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero. A batch whose weights are all zero moves nothing.
        validation_data : tuple (X, y) or (X, y, sample_weight), optional
            Its loss is taken after every epoch.
        callbacks : iterable
            Called after every epoch; see `fastnn.callbacks`.
        progress : bool, default False
            Show a progress bar.

        Returns
        -------
        History
            The epochs of this call. ``trainer.history`` has all.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, shape or value; nothing has changed.
        DivergenceError
            The loss or a parameter is no longer finite. Parameters and optimizer are back at the
            start of that epoch.
        KeyboardInterrupt
            Ctrl-C. The parameters are those after a whole step; the epoch it came in will begin
            anew.
        RuntimeError
            The model is being trained already, by another thread or by the caller of a callback.
        """
        epochs = check_int(epochs, "epochs", low=0)
        progress = check_flag(progress, "progress")
        callbacks = _check_callbacks(callbacks)
        late = self._checks_rows_late()
        data = self._check_data(X, y, sample_weight, finite=not late)
        validation = self._check_validation_data(validation_data)
        n_threads = resolve_n_threads(self._n_threads)
        return self._fit(data, epochs, n_threads, validation, callbacks, progress)

    def _fit(
        self,
        data: Data,
        epochs: int,
        n_threads: int,
        validation: Data | None = None,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
    ) -> History:
        """`fit` with arguments that have been checked."""
        run = self._run_lbfgs if isinstance(self._optimizer, LBFGS) else self._run_epochs
        watched = bool(callbacks) or progress or validation is not None
        history = History()
        backend, plan = get_backend(self._model.backend), self._model.plan
        if epochs > 0:
            data = backend.place(plan, *data)
            validation = None if validation is None else backend.place(plan, *validation)

        with self._training(), _progress_bar(epochs, progress) as show:
            keys = {"epoch", "loss", "learning_rate", "seconds"}
            if validation is not None:
                keys.add("validation_loss")
            for callback in callbacks:
                if hasattr(callback, "on_fit_begin"):
                    callback.on_fit_begin(self, keys)
            work = len(data[0]) * self._model.plan.n_parameters
            chunk = FIRST_CHUNK_EPOCHS
            if watched:
                chunk = 1
            elif self._schedule is None:  # whose rates are not drawn far ahead of a stop
                chunk = max(chunk, FIRST_CHUNK_WORK // work)
            while len(history) < epochs and not self._stop.is_set():
                n_before, start = len(history), perf_counter()
                run(data, min(chunk, epochs - n_before), n_threads, history)
                if not watched:
                    if perf_counter() - start < MAX_CHUNK_SECONDS:
                        chunk *= 2
                    continue
                if len(history) == n_before:
                    continue  # stopped in the middle of the epoch
                logs = {"epoch": self._epoch, **history.last()}
                if validation is not None:
                    loss = self._loss_on(validation, n_threads)
                    logs["validation_loss"] = loss
                    for record in (history, self.history):
                        record.amend(validation_loss=loss)
                show(logs)
                for callback in callbacks:
                    callback.on_epoch_end(self, logs)
            for callback in callbacks:
                if hasattr(callback, "on_fit_end"):
                    callback.on_fit_end(self)
        return history

    def step(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """One update on exactly these rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples, n_outputs), or (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
            Not negative. Weights that are all zero move nothing.

        Returns
        -------
        float
            The loss of these rows before the update, with this step's dropout, without the l2
            term; 0 where all weights are zero.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, shape or value; nothing has changed.
        DivergenceError
            The loss or a parameter is no longer finite; nothing has changed.
        RuntimeError
            The model is being trained already.
        """
        if isinstance(self._optimizer, LBFGS):
            raise ValueError("LBFGS makes no single steps: use fit, one iteration is one epoch")
        data = self._check_data(X, y, sample_weight, allow_all_zero=True)
        weight = data[2]
        if weight is not None and not weight.any():
            return 0.0
        with self._training():
            losses = self._train(
                data,
                n_epochs=1,
                batch_size=len(data[0]),
                orders=None,
                stream=STEP_STREAM,
                n_threads=resolve_n_threads(self._n_threads),
            )
        return float(losses[0])

    def evaluate(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The loss, without dropout and without the l2 term.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples, n_outputs), or (n_samples,)
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero.

        Returns
        -------
        float
            The weighted mean over the rows.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, shape or value.
        """
        data = self._check_data(X, y, sample_weight)
        return self._loss_on(data, resolve_n_threads(self._n_threads))

    def stop(self) -> None:
        """End the running `fit` at the next whole step; from any thread, or from a callback.

        The epoch it came in begins anew with the next `fit`. Nothing happens where nothing runs.
        """
        self._stop.set()

    @contextlib.contextmanager
    def _training(self) -> Iterator[None]:
        """Hold the model, so that nobody else changes it."""
        if not self._model._training.acquire():
            raise RuntimeError(
                "this model is being trained already, by another thread or by the fit that called "
                "this callback: wait for it, or train a copy (model.copy())"
            )
        try:
            self._stop.clear()
            yield
        finally:
            self._model._training.release()

    def _checks_rows_late(self) -> bool:
        """Whether the backend looks for NaN and infinity in X as it trains the first epoch."""
        return (
            not isinstance(self._optimizer, LBFGS) and get_backend(self._model.backend).checks_rows
        )

    def _run_epochs(self, data: Data, n_epochs: int, n_threads: int, history: History) -> None:
        """Train for up to `n_epochs`, in one call of the backend."""
        n = len(data[0])
        batch_size = n if self._batch_size == "full" else min(int(self._batch_size), n)
        n_batches = -(-n // batch_size)
        n_epochs = max(1, min(n_epochs, MAX_CHUNK_INDICES // n, MAX_CHUNK_STEPS // n_batches))
        orders = None
        if self._shuffle and n_batches > 1:
            orders = np.empty((n_epochs, n), np.int64)
            for i in range(n_epochs):
                fill_permutation(orders[i], self._seed, self._epoch + i)
        self._train(
            data,
            n_epochs=n_epochs,
            batch_size=batch_size,
            orders=orders,
            stream=FIT_STREAM,
            n_threads=n_threads,
            records=(history, self.history),
            check_rows=len(history) == 0 and self._checks_rows_late(),
        )

    def _train(
        self,
        data: Data,
        *,
        n_epochs: int,
        batch_size: int,
        orders: np.ndarray | None,
        stream: int,
        n_threads: int,
        records: Sequence[History] = (),
        check_rows: bool = False,
    ) -> np.ndarray:
        """One call of the backend, and the books after it: both happen, or neither.

        Returns the losses of the finished epochs, which are also appended to `records`.
        """
        X, y, weight = data
        n_batches = -(-len(X) // batch_size)
        rates = self._rates(n_epochs * n_batches)
        scalars, counters = self._optimizer.step_scalars(self._counters, rates)
        job = TrainJob(
            X=X,
            y=y,
            weight=weight,
            loss=self._loss,
            optimizer=self._optimizer,
            scalars=scalars,
            orders=orders,
            batch_size=batch_size,
            n_epochs=n_epochs,
            l2=self._l2,
            clip_norm=self._clip_norm,
            dropout_seed=self._seed,
            dropout_stream=stream,
            first_epoch=self._epoch if stream == FIT_STREAM else self._n_step_calls,
            n_threads=n_threads,
            stop=self._stop,
            check_rows=check_rows,
        )
        backend = get_backend(self._model.backend)
        with _interrupts_stop(self._stop):
            result = backend.train(self._model.plan, self._model.parameters, self._slots, job)
            n_done = result.epochs_done
            # A bad epoch was undone as a whole; of a stopped one the steps made count.
            undone = result.status in ("diverged", "bad rows")
            n_steps = n_done * n_batches if undone else result.steps_done
            if n_steps < len(rates):
                counters = self._optimizer.step_scalars(self._counters, rates[:n_steps])[1]
            self._counters = counters
            self._n_steps += n_steps
            if stream == FIT_STREAM:
                self._epoch += n_done
            else:
                self._n_step_calls += n_done
            for record in records:
                record.extend(
                    loss=result.losses,
                    learning_rate=rates[n_batches - 1 :: n_batches][:n_done],
                    seconds=result.seconds,
                )
        if result.exception is not None:
            raise result.exception
        if result.status == "bad rows":
            raise_not_finite(X, "X", self._model.plan.dtype)
        if result.status == "diverged":
            raise self._divergence(result.batch, records[0] if records else None)
        return result.losses

    def _rates(self, n_steps: int) -> np.ndarray:
        """The learning rates of the next steps, float64 (n_steps,)."""
        if self._schedule is None:
            return np.full(n_steps, self._optimizer.learning_rate * self._rate_factor)
        rates = resolve_schedule(self._schedule, self._optimizer.learning_rate)(
            np.arange(self._n_steps, self._n_steps + n_steps)
        )
        return rates * self._rate_factor

    def _divergence(self, batch: int, history: History | None) -> DivergenceError:
        return DivergenceError(
            f"the loss or a parameter is no longer finite in epoch {self._epoch}, batch {batch} "
            "(counted from 0); the model is back at the start of that epoch. Try a lower "
            "learning rate, clip_norm, or features of the size of 1",
            self._epoch,
            batch,
            history,
        )

    def _run_lbfgs(self, data: Data, n_epochs: int, n_threads: int, history: History) -> None:
        """One iteration; the parameters of the model are where it starts and where it ends."""
        model, optimizer = self._model, self._optimizer
        assert isinstance(optimizer, LBFGS)
        backend = get_backend(model.backend)

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            if self._stop.is_set():
                raise _Stopped
            parameters = point.astype(model.plan.dtype)
            value, gradient = backend.loss_and_gradient(
                model.plan, parameters, *data, self._loss, self._l2, n_threads
            )
            return value, gradient.astype(np.float64)

        start = perf_counter()
        state = copy.deepcopy(self._lbfgs)
        try:
            x, loss = optimizer.iterate(objective, model.parameters.astype(np.float64), state)
        except _Stopped:
            return  # the model is where the iteration began
        if not (np.isfinite(loss) and np.isfinite(x).all()):
            raise self._divergence(0, history)
        if self._l2:
            loss = self._loss_on(data, n_threads)
        with _interrupts_stop(self._stop):
            model.parameters[:] = x
            self._lbfgs = state
            self._epoch += 1
            self._n_steps += 1
            for record in (history, self.history):
                record.extend(loss=[loss], seconds=[perf_counter() - start])

    def _loss_on(self, data: Data, n_threads: int) -> float:
        model = self._model
        return get_backend(model.backend).loss(
            model.plan, model.parameters, *data, self._loss, n_threads
        )

    def _check_data(self, X: Any, y: Any, sample_weight: Any, **settings: Any) -> Data:
        plan, backend = self._model.plan, get_backend(self._model.backend)
        return check_data(plan, self._loss, X, y, sample_weight, backend=backend, **settings)

    def _check_validation_data(self, validation_data: Any) -> Data | None:
        if validation_data is None:
            return None
        if not isinstance(validation_data, tuple | list) or len(validation_data) not in (2, 3):
            raise TypeError("validation_data must be a tuple (X, y) or (X, y, sample_weight)")
        X, y, weight = (*validation_data, None)[:3]
        names = ("validation X", "validation y", "validation sample_weight")
        return self._check_data(X, y, weight, names=names)

    # Keeping ----------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the model and where its training stands, whole or not at all.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        OSError
            The file system refused; a file that was there before is as it was.
        RuntimeError
            Another thread is training the model at this moment.
        """
        from fastnn.persistence import write_file

        if self._model._training.held_by_another_thread():
            raise RuntimeError(
                "this model is being trained already, by another thread: wait for it, or save "
                "from a callback"
            )
        sections, tensors = self._model._to_file()
        sections["trainer"] = {
            "loss": self._loss.get_config(),
            "optimizer": self._optimizer.get_config(),
            "schedule": _schedule_to_file(self._schedule),
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "l2": self._l2,
            "clip_norm": self._clip_norm,
            "seed": self._seed,
            "rate_factor": self._rate_factor,
            "epoch": self._epoch,
            "n_steps": self._n_steps,
            "n_step_calls": self._n_step_calls,
            "counters": self._counters,
            "lbfgs_pairs": len(self._lbfgs.s),
        }
        tensors["trainer.history"] = self.history.table
        for i, slot in enumerate(self._slots):
            tensors[f"trainer.slot.{i}"] = slot
        for i, (s, y) in enumerate(zip(self._lbfgs.s, self._lbfgs.y, strict=True)):
            tensors[f"trainer.lbfgs.{i}"] = np.stack([s, y])
        write_file(path, "trainer", sections, tensors)

    @classmethod
    def load(
        cls,
        path: Any,
        *,
        schedule: str | Callable[[int], float] | None = None,
        n_threads: int | None = None,
        backend: str = "native",
    ) -> Trainer:
        """Read what `save` wrote, and continue with the same bits.

        Parameters
        ----------
        path : path-like
        schedule : str, schedule object or callable, optional
            In place of the saved one; needed where that was a function of the user.
        n_threads : int, optional
        backend : str, default "native"

        Returns
        -------
        Trainer
            Its model is ``trainer.model``.

        Raises
        ------
        ModelFormatError
            The file is no saved training, is truncated, or was altered.
        ValueError
            The schedule was a function and `schedule` is not given.
        OSError
            The file cannot be read.
        BackendUnavailable
            The backend does not exist on this machine.
        """
        from fastnn.persistence import read_file

        engine = get_backend(check_choice(backend, "backend", BACKENDS))
        header, tensors = read_file(path, "trainer")
        with header:
            header.take("kind")
            model = MLP._from_file(header, tensors, engine)
            with header.section("trainer") as section:
                saved_schedule = section.take("schedule", dict, str, type(None))
                custom = saved_schedule == CUSTOM_SCHEDULE
                if isinstance(saved_schedule, str) and not custom:
                    raise ModelFormatError(f"{path}: schedule {saved_schedule!r}")
                if isinstance(saved_schedule, dict):
                    saved_schedule = get_schedule(saved_schedule)
                trainer = cls(
                    model,
                    loss=get_loss(section.take("loss", dict)),
                    optimizer=get_optimizer(section.take("optimizer", dict)),
                    batch_size=section.take("batch_size", int, str),
                    shuffle=section.take("shuffle", bool),
                    l2=section.take("l2", float),
                    clip_norm=section.take("clip_norm", float, type(None)),
                    schedule=None if custom else saved_schedule,
                    seed=section.take("seed", int),
                    n_threads=n_threads,
                )
                trainer._restore(section, tensors)
        tensors.finish()
        if schedule is not None:
            trainer._set_schedule(schedule)
        elif custom:
            raise ValueError(
                f"the schedule of {path} was a function, which cannot be saved: give it again, as "
                "Trainer.load(path, schedule=...)"
            )
        return trainer

    def _restore(self, section: Section, tensors: Tensors) -> None:
        """Take the state out of a file."""
        plan = self._model.plan
        self.rate_factor = section.take("rate_factor", float)
        for name in ("epoch", "n_steps", "n_step_calls"):
            setattr(self, f"_{name}", check_int(section.take(name, int), name, low=0))
        with section.section("counters") as counters:
            self._counters = {
                name: check_real(counters.take(name, int, float), name)
                for name in self._optimizer.init_counters()
            }
        for i in range(len(self._slots)):
            self._slots[i] = tensors.take(f"trainer.slot.{i}", (plan.n_parameters,), plan.dtype)
        n_pairs = section.take("lbfgs_pairs", int)
        limit = self._optimizer.history if isinstance(self._optimizer, LBFGS) else 0
        for i in range(check_int(n_pairs, "lbfgs_pairs", low=0, high=limit)):
            pair = tensors.take(f"trainer.lbfgs.{i}", (2, plan.n_parameters), np.float64)
            s, y = pair.astype(np.float64)
            self._lbfgs.s.append(s)
            self._lbfgs.y.append(y)
        shape = (len(History.COLUMNS), -1)
        table = tensors.take("trainer.history", shape, np.float64)
        self.history.extend(**dict(zip(History.COLUMNS, table, strict=True)))

    def __getstate__(self) -> dict[str, Any]:
        # What belongs to a running fit stays behind.
        return {name: value for name, value in self.__dict__.items() if name != "_stop"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _stop=StopFlag())


def _schedule_to_file(schedule: Any) -> dict[str, Any] | str | None:
    if schedule is None:
        return None
    try:
        return schedule.get_config() if isinstance(schedule, Schedule) else CUSTOM_SCHEDULE
    except TypeError:  # a function of the user inside one of ours
        return CUSTOM_SCHEDULE


@contextlib.contextmanager
def _interrupts_stop(stop: StopFlag) -> Iterator[None]:
    """Let Ctrl-C end the work in here at a whole step, and raise when it is in the books.

    A KeyboardInterrupt can come up between any two instructions, also between the last update and
    the counters that belong to it. Only Python's own handler is replaced: one of the user's runs
    when it comes, and a backend that sees it raise ends at a whole step too.
    """
    own = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not own:
        yield
        return
    interrupted = False

    def handler(signum: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        stop.set()

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _progress_bar(epochs: int, progress: bool) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """A function that shows an epoch; with a bar on the screen where one is wanted."""
    if not progress:
        yield lambda logs: None
        return
    from tqdm import tqdm

    with tqdm(total=epochs, unit="epoch") as bar:

        def show(logs: Mapping[str, float]) -> None:
            shown = {k: v for k, v in logs.items() if k in ("loss", "validation_loss")}
            bar.set_postfix(shown, refresh=False)
            bar.update()

        yield show


def _check_callbacks(callbacks: Any) -> list[Callback]:
    try:
        callbacks = list(callbacks)
    except TypeError:
        raise TypeError(
            f"callbacks must be a list, got {type(callbacks).__name__}: use callbacks=[...]"
        ) from None
    for callback in callbacks:
        if not callable(getattr(callback, "on_epoch_end", None)):
            raise TypeError(f"callback {callback!r} has no method on_epoch_end(trainer, logs)")
    return callbacks
