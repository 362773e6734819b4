"""The CUDA backend: what `fastnn.backends.base` asks for, as lists of kernel launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from time import perf_counter
from typing import Any

import numpy as np

from fastnn import rng
from fastnn.backends.base import Backend, StopFlag, TrainJob, TrainResult
from fastnn.backends.numba_cuda import fused, kernels
from fastnn.backends.numba_cuda.kernels import (
    ROWS,
    THREADS,
    device_function,
    scalar_function,
    tile_for,
)
from fastnn.backends.numba_cuda.shim import (
    Kernel,
    allocate,
    configured,
    device_name,
    require_gpu,
    synchronize,
    upload,
    view_of,
)
from fastnn.tables.activations import get_activation
from fastnn.tables.losses import TARGET_KINDS, LossRow, encode_targets
from fastnn.validation import NATIVE_DTYPES, check_out, check_X

try:
    from fastnn.backends._native import fill_permutation
except ImportError:

    def fill_permutation(order: np.ndarray, seed: int, epoch: int) -> None:
        """Write an epoch's order of the rows: the same numbers as the compiled one's."""
        order[:] = rng.permutation(len(order), seed, epoch)


__all__ = ["CudaBackend"]

Array = np.ndarray

WORKSPACE_ELEMS = 1 << 25
MAX_CHUNK_ROWS = 1 << 16
"""Rows that are in work at once: as many as fit WORKSPACE_ELEMS numbers, at most MAX_CHUNK_ROWS."""

PENDING_OPERATIONS = 2e11
"""Floating-point operations that may be launched and not waited for: tens of milliseconds on the
slowest GPUs that this runs on. A stop, or Ctrl-C, takes no longer."""

FUSED_OPERATIONS, FUSED_STEPS = 1e9, 2048
"""The most within one launch of the kernel that makes many steps on one multiprocessor: tens of
milliseconds, by its work or, in small networks, by its waits."""

PERCEPTRON_SCORES = 1 << 14
"""Scores of error-correction learning that are computed, one after another, in one launch."""


class Launch:
    """A kernel with everything it is launched with, to be launched again and again."""

    def __init__(
        self,
        kernel: Kernel,
        grid: Any,
        block: Any,
        arguments: tuple[Any, ...],
        shared_bytes: int = 0,
    ) -> None:
        self._launch = kernel.configured(grid, block, shared_bytes)
        self._arguments = arguments

    def __call__(self) -> None:
        self._launch(*self._arguments)


# Kernels, made once -------------------------------------------------------------------------------
# Keys are the formulas themselves, so that a function of the user that replaces another of the same
# name is compiled anew.

_formula = lru_cache(maxsize=None)(scalar_function)
_update = lru_cache(maxsize=None)(device_function)


@lru_cache(maxsize=256)
def _forward(dtype: np.dtype, tile: kernels.Tile, f: Callable, df: Callable | None) -> Kernel:
    slope = None if df is None else _formula(df, dtype)
    return kernels.forward(dtype, tile, _formula(f, dtype), slope)


_backward = lru_cache(maxsize=None)(kernels.backward)


@lru_cache(maxsize=64)
def _weight_gradient(
    dtype: np.dtype, tile: kernels.Tile, update: Callable | None, n_slots: int
) -> Kernel:
    made = None if update is None else _update(update, dtype)
    return kernels.weight_gradient(dtype, tile, made, n_slots)


@lru_cache(maxsize=64)
def _update_all(dtype: np.dtype, update: Callable, n_slots: int) -> Kernel:
    return kernels.update_all(dtype, _update(update, dtype), n_slots)


def _row_loss(dtype: np.dtype, output: str, loss: LossRow) -> Callable:
    """The device function for the loss of a row, from the logits."""
    row = get_activation(output)
    natural = output == loss.natural_output
    if row.scalar is None:  # softmax
        if natural:
            return _cross_entropy_row(dtype)
        return _softmax_row(dtype, loss.scalar_value, loss.scalar_gradient)
    if natural:
        return _natural_row(dtype, loss.scalar_logit_value, loss.scalar_logit_gradient)
    return _linked_row(dtype, row.scalar, row.scalar_df, loss.scalar_value, loss.scalar_gradient)


_cross_entropy_row = lru_cache(maxsize=None)(kernels.cross_entropy_row)


@lru_cache(maxsize=64)
def _softmax_row(dtype: np.dtype, value: Callable, gradient: Callable) -> Callable:
    return kernels.softmax_row(dtype, _formula(value, dtype), _formula(gradient, dtype))


@lru_cache(maxsize=64)
def _natural_row(dtype: np.dtype, value: Callable, gradient: Callable) -> Callable:
    return kernels.elementwise_row(dtype, _formula(value, dtype), _formula(gradient, dtype))


@lru_cache(maxsize=64)
def _linked_row(
    dtype: np.dtype, f: Callable, df: Callable, value: Callable, gradient: Callable
) -> Callable:
    return kernels.elementwise_row(
        dtype,
        *kernels.through_link(*(_formula(each, dtype) for each in (f, df, value, gradient))),
    )


_output_delta = lru_cache(maxsize=64)(kernels.output_delta)
_softmax = lru_cache(maxsize=None)(kernels.softmax)
_softmax_unit_delta = lru_cache(maxsize=None)(kernels.softmax_unit_delta)
_finish_gradient = lru_cache(maxsize=None)(kernels.finish_gradient)
_square_weights = lru_cache(maxsize=None)(kernels.square_weights)
_find_not_finite = lru_cache(maxsize=None)(kernels.find_not_finite)
_perceptron = lru_cache(maxsize=None)(kernels.perceptron)
_sum_batches = lru_cache(maxsize=None)(kernels.sum_batches)
_keep_squares = lru_cache(maxsize=None)(kernels.keep_squares)
_advance = lru_cache(maxsize=None)(kernels.advance)
_find_wrong_targets = lru_cache(maxsize=None)(kernels.find_wrong_targets)
_find_wrong_labels = lru_cache(maxsize=None)(kernels.find_wrong_labels)
_next_epoch = lru_cache(maxsize=None)(kernels.next_epoch)


@cache
def _convert(dtype: np.dtype) -> Any:
    return kernels.convert(dtype.type)


@lru_cache(maxsize=64)
def _unit_delta(dtype: np.dtype, f: Callable, df: Callable) -> Kernel:
    return kernels.unit_delta(dtype, _formula(f, dtype), _formula(df, dtype))


@lru_cache(maxsize=64)
def _choices(dtype: np.dtype, fs: tuple[Callable, ...], dfs: tuple[Callable, ...]) -> Any:
    return (
        fused.choice([_formula(f, dtype) for f in fs]),
        fused.choice([_formula(df, dtype) for df in dfs]),
    )


@lru_cache(maxsize=64)
def _fused_training(
    dtype: np.dtype,
    fs: tuple[Callable, ...],
    dfs: tuple[Callable, ...],
    row_loss: Callable,
    update: Callable | None,
    n_slots: int,
) -> Kernel:
    made = None if update is None else _update(update, dtype)
    f, df = _choices(dtype, fs, dfs)
    return fused.training(dtype, f, df, row_loss, made, n_slots)


@lru_cache(maxsize=64)
def _fused_prediction(
    dtype: np.dtype, fs: tuple[Callable, ...], dfs: tuple[Callable, ...], link: Callable
) -> Kernel:
    return fused.prediction(dtype, _choices(dtype, fs, dfs)[0], _formula(link, dtype))


_identity = get_activation("identity")


# Device memory ------------------------------------------------------------------------------------


@cache
def _nothing(shape: tuple[int, ...], dtype: str) -> Any:
    """Stands in for an array that a kernel will not look at."""
    return upload(np.zeros(shape, dtype))


def _rows_to_device(X: Any, dtype: np.dtype) -> Any:
    """Rows as the model's dtype holds them, (n, width) C-contiguous, on the device."""
    if isinstance(X, OnDevice):
        return X.array
    n, width = X.shape
    array = allocate((n, width), dtype)
    if X.dtype == dtype and X.flags.c_contiguous:
        array.copy_to_device(X)
        return array
    # Converted piece by piece: never a second copy of the whole on the host.
    rows = max(1, WORKSPACE_ELEMS // (4 * width))
    with np.errstate(over="ignore"):
        for at in range(0, n, rows):
            piece = np.ascontiguousarray(X[at : at + rows], dtype)
            array[at : at + rows].copy_to_device(piece)
    return array


@dataclass(frozen=True)
class OnDevice:
    """Rows, targets or labels that lie on the GPU, C-contiguous, as the kernels read them."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        return len(self.array.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.array.dtype)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def reshape(self, rows: int, width: int) -> OnDevice:
        """One row or many as (rows, width); -1 stands for what fits."""
        array = self.array
        if rows < 0:
            rows = 1 if self.ndim == 1 else len(self)
        if width < 0:
            width = self.shape[-1]
        return OnDevice(array.reshape(rows, width))


@dataclass(frozen=True)
class _Targets:
    """Labels or targets on the device, as the loss kernels take them."""

    labels: Any
    targets: Any
    has_labels: int

    @classmethod
    def of(cls, y: Any, dtype: np.dtype) -> _Targets:
        array = y.array if isinstance(y, OnDevice) else upload(y)
        if y.ndim == 1:
            # 0 and 1, which a label stands for, in the model's dtype.
            return cls(array, upload(np.array([[0, 1]], dtype)), 1)
        return cls(_nothing((1,), "int64"), array, 0)


def _weights_to_device(weight: Array | None, n: int) -> Any:
    return upload(np.ones(n) if weight is None else weight)


def _chunk_rows(plan: Any, batch_size: int) -> int:
    """Rows in work at once; it depends on the shapes alone, and so do the bits."""
    fits = max(1, WORKSPACE_ELEMS // (4 * sum(plan.layer_sizes)))
    return min(batch_size, max(ROWS, min(MAX_CHUNK_ROWS, fits)))


class _Pass:
    """Device memory of a pass over up to `chunk` rows, and the launches that make it up."""

    def __init__(self, plan: Any, parameters: Any, chunk: int, *, training: bool) -> None:
        self.plan, self.parameters, self.chunk = plan, parameters, chunk
        widths = plan.layer_sizes[1:]
        dtype = plan.dtype
        self.logits = allocate((chunk * widths[-1],), dtype)
        last = self.logits.reshape(chunk, widths[-1])
        self.outputs = [*(allocate((chunk, width), dtype) for width in widths[:-1]), last]
        self.training = training
        self.no_matrix = _nothing((1, 1), dtype.name)
        self.no_vector = _nothing((1,), dtype.name)
        self.slopes, self.deltas = [self.no_matrix] * len(widths), [last] * len(widths)
        if training and len(widths) > 1:
            self.slopes = [*(allocate((chunk, w), dtype) for w in widths[:-1]), self.no_matrix]
            buffers = [allocate((chunk * max(widths[:-1]),), dtype) for _ in range(2)]
            for layer, width in enumerate(widths[:-1]):
                flat = buffers[layer % 2][: chunk * width]
                self.deltas[layer] = flat.reshape(chunk, width)

    def forward(
        self,
        batch: tuple[Any, ...],
        gathered: int,
        X: Any,
        *,
        link: str | None = None,
        dropout: tuple[int, int, int] | None = None,
    ) -> Iterator[Launch]:
        """From rows to outputs; the last layer's are its logits where no link is named.

        dropout is (seed, stream, first epoch).
        """
        plan = self.plan
        source = X
        for layer in range(plan.n_layers):
            fan_in, fan_out = plan.layer_sizes[layer : layer + 2]
            hidden = layer < plan.n_layers - 1
            row = get_activation(plan.activations[layer]) if hidden else _identity
            if not hidden and link is not None and get_activation(link).scalar is not None:
                row = get_activation(link)
            tile = tile_for(self.chunk, fan_out)
            df = row.scalar_df if hidden and self.training else None
            rate = plan.dropout[layer] if hidden and dropout is not None else 0.0
            seed, stream, first_epoch = dropout or (0, 0, 0)
            yield Launch(
                _forward(plan.dtype, tile, row.scalar, df),
                tile.grid(self.chunk, fan_out),
                tile.block,
                (
                    *batch, gathered if layer == 0 else 0, source, self.parameters,
                    plan.offsets[layer][0], fan_in, fan_out, self.outputs[layer],
                    self.slopes[layer], *_dropout_of(rate, plan.dtype), np.uint64(seed),
                    first_epoch, _stream_word(stream, layer),
                ),
            )  # fmt: skip
            source = self.outputs[layer]
        if link is not None and get_activation(link).scalar is None:
            yield Launch(
                _softmax(plan.dtype), (-(-self.chunk // ROWS),), (kernels.LANES, ROWS),
                (self.logits, self.chunk, plan.n_outputs),
            )  # fmt: skip

    def backward(self, batch: tuple[Any, ...], layer: int, out: Any = None) -> Launch:
        """The delta before a layer, from that after it; `out` takes that of the inputs."""
        plan = self.plan
        fan_in, fan_out = plan.layer_sizes[layer : layer + 2]
        tile = tile_for(self.chunk, fan_in)
        scaled = out is None
        return Launch(
            _backward(plan.dtype, tile),
            tile.grid(self.chunk, fan_in),
            tile.block,
            (
                *batch, self.deltas[layer], self.parameters, plan.offsets[layer][0], fan_in,
                fan_out, int(scaled), self.slopes[layer - 1] if scaled else self.no_matrix,
                self.deltas[layer - 1] if scaled else out,
            ),
        )  # fmt: skip


def _dropout_of(rate: float, dtype: np.dtype) -> tuple[int, Any]:
    """Threshold of the random words, and the factor of units that stay."""
    return int(rate * 2**32), dtype.type(1.0 / (1.0 - rate))


def _stream_word(stream: int, layer: int) -> int:
    return stream << 28 | (layer & 0xFFF) << 16


def _decays(plan: Any) -> Any:
    """1 for each weight and 0 for each bias, (n_parameters,)."""
    decays = np.zeros(plan.n_parameters, np.uint8)
    for weight_at, bias_at in plan.offsets:
        decays[weight_at:bias_at] = 1
    return upload(decays)


@dataclass(frozen=True)
class _Narrow:
    """How a narrow network lies in shared memory; see `fused.place`."""

    rows: int
    second: int
    n_bytes: int
    layout: Any
    scales: Any
    fs: tuple[Callable, ...]
    dfs: tuple[Callable, ...]

    @classmethod
    def of(cls, plan: Any, stream: int = 0) -> _Narrow | None:
        """None where the network is too wide or too deep."""
        rows, places, second, n_bytes = fused.place(plan.layer_sizes, plan.dtype.itemsize)
        if not rows:
            return None
        names = list(dict.fromkeys(plan.activations)) or ["identity"]
        layout = np.zeros((plan.n_layers, 9), np.int64)
        scales = np.ones(plan.n_layers, plan.dtype)
        for layer, (inputs, outputs, slopes) in enumerate(places):
            hidden = layer < plan.n_layers - 1
            rate = plan.dropout[layer] if hidden else 0.0
            threshold, scales[layer] = _dropout_of(rate, plan.dtype)
            layout[layer] = (
                *plan.layer_sizes[layer : layer + 2],
                plan.offsets[layer][0],
                inputs,
                outputs,
                slopes,
                names.index(plan.activations[layer]) if hidden else 0,
                threshold,
                _stream_word(stream, layer),
            )
        chosen = [get_activation(name) for name in names]
        return cls(
            rows,
            second,
            n_bytes,
            upload(layout),
            upload(scales),
            tuple(row.scalar for row in chosen),  # type: ignore[misc]  # none is softmax
            tuple(row.scalar_df for row in chosen),  # type: ignore[misc]
        )


# The backend --------------------------------------------------------------------------------------


class CudaBackend(Backend):
    """See `fastnn.backends.base.Backend`; two runs on one kind of GPU give the same bits.

    Raises
    ------
    BackendUnavailable
        There is no GPU, driver or compiler; the message says which, and how to get it.
    """

    name = "cuda"

    def __init__(self) -> None:
        require_gpu()

    takes_device_arrays = True

    def place(self, plan: Any, X: Any, y: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Copy rows and targets to the GPU, once for a whole fit; weights are few."""
        rows = OnDevice(_rows_to_device(X, plan.dtype))
        return rows, y if isinstance(y, OnDevice) else OnDevice(upload(y)), weight

    def adopt_rows(
        self, X: Any, n_features: int, dtype: np.dtype, name: str, allow_1d: bool = False
    ) -> OnDevice:
        """Rows in the GPU's memory: read in place where they are C-contiguous and of the dtype."""
        view = view_of(X, name)
        check_X(_stand_in(view, name), n_features, dtype, name, allow_1d, finite=False)
        rows = view if len(view.shape) == 2 else view.reshape(1, view.shape[0])
        array = _as_contiguous(rows, dtype)
        if _wrong(_find_not_finite(dtype), array.shape[0], _flat(array)):
            # Somewhere in there: for the place, and the words, the host has to look.
            check_X(view.copy_to_host(), n_features, dtype, name, allow_1d)
        return OnDevice(array if len(view.shape) == 2 else _flat(array))

    def adopt_targets(
        self, loss: LossRow, y: Any, n_samples: int, n_outputs: int, dtype: np.dtype, name: str
    ) -> OnDevice:
        """Targets in the GPU's memory, copied there: labels as int64, others of the dtype."""
        view = view_of(y, name)
        stand_in = _stand_in(view, name)
        whole = view.shape[0] == n_samples
        first = stand_in[:1] if whole else stand_in
        try:
            settings = (1 if whole else n_samples, n_outputs, dtype, name)
            encoded = encode_targets(loss, _accepted_by(loss, first), *settings)
        except ValueError:
            # Again with all rows, for the shape in the message.
            encode_targets(loss, _accepted_by(loss, stand_in), n_samples, *settings[1:])
            raise
        table = view if len(view.shape) == 2 else view.reshape(view.shape[0], 1)
        if encoded.ndim == 1:
            array = _flat(_as_contiguous(table, np.dtype(np.int64), copy=True))
            wrong = _wrong(_find_wrong_labels(), array.shape[0], array, n_outputs)
        else:
            array = _as_contiguous(table, dtype, copy=True)
            kind = TARGET_KINDS.index(loss.target_kind)
            wrong = _wrong(_find_wrong_targets(dtype), array.shape[0], array, kind)
        if wrong:
            host = view.copy_to_host()
            array = upload(encode_targets(loss, host, len(host), n_outputs, dtype, name))
        return OnDevice(array)

    def fetch(self, value: Any, name: str) -> Array:
        return view_of(value, name).copy_to_host()

    def check_device_out(
        self, out: Any, shape: tuple[int, ...], dtype: np.dtype, name: str = "out"
    ) -> OnDevice:
        view = view_of(out, name)
        if not view.is_c_contiguous():
            raise ValueError(f"{name} must be C-contiguous: give a fresh array of shape {shape}")
        check_out(np.empty(tuple(view.shape), view.dtype), shape, dtype, name=name)
        return OnDevice(view)

    def describe(self) -> str:
        """The GPU in use, for `show_config`."""
        return device_name()

    def predict(self, plan: Any, parameters: Array, X: Any, out: Any, n_threads: int) -> Any:
        if len(X):
            on_device, chunk = upload(parameters), _chunk_rows(plan, len(X))
            way = _narrow_prediction(plan, on_device, chunk) or _prediction(plan, on_device, chunk)
            for at in range(0, len(X), chunk):
                rows = _rows_to_device(_piece(X, at, chunk), plan.dtype)
                n = rows.shape[0]
                _deliver(way(rows)[:n], out, at)
            if isinstance(out, OnDevice):
                synchronize()  # its owner may look from another stream
        return out

    def layer_outputs(self, plan: Any, parameters: Array, X: Any, n_threads: int) -> list[Array]:
        outputs = [np.empty((len(X), width), plan.dtype) for width in plan.layer_sizes[1:]]
        chunk = _chunk_rows(plan, max(1, len(X)))
        work = _Pass(plan, upload(parameters), chunk, training=False)
        for at in range(0, len(X), chunk):
            rows = _rows_to_device(_piece(X, at, chunk), plan.dtype)
            n = rows.shape[0]
            for launch in work.forward(_rows_as_batch(n), 0, rows, link=plan.output):
                launch()
            for got, out in zip(work.outputs, outputs, strict=True):
                _to_host(got[:n], out[at : at + n])
        return outputs

    def input_gradient(self, plan: Any, parameters: Array, X: Any, n_threads: int) -> Array:
        gradient = np.empty((len(X), plan.n_outputs, plan.n_features), plan.dtype)
        chunk = _chunk_rows(plan, max(1, len(X)))
        work = _Pass(plan, upload(parameters), chunk, training=True)
        row = get_activation(plan.output)
        delta, last = allocate((chunk, plan.n_outputs), plan.dtype), work.outputs[-1]
        work.deltas[-1] = delta
        by_input = allocate((chunk, plan.n_features), plan.dtype)
        piece = np.empty((chunk, plan.n_features), plan.dtype)
        grid = (-(-chunk * plan.n_outputs // THREADS),)
        for at in range(0, len(X), chunk):
            rows = _rows_to_device(_piece(X, at, chunk), plan.dtype)
            n = rows.shape[0]
            batch = _rows_as_batch(n)
            softmax = row.scalar is None
            for launch in work.forward(batch, 0, rows, link=plan.output if softmax else None):
                launch()
            for output in range(plan.n_outputs):
                if softmax:
                    _softmax_unit_delta(plan.dtype)(grid, (THREADS,), last, delta, output)
                else:
                    _unit_delta(plan.dtype, row.scalar, row.scalar_df)(
                        grid, (THREADS,), last, delta, output
                    )
                for layer in range(plan.n_layers - 1, 0, -1):
                    work.backward(batch, layer)()
                work.backward(batch, 0, by_input)()
                _to_host(by_input[:n], piece[:n])
                gradient[at : at + n, output] = piece[:n]
        return gradient

    def loss(
        self,
        plan: Any,
        parameters: Array,
        X: Any,
        y: Any,
        weight: Array | None,
        loss: LossRow,
        n_threads: int,
    ) -> float:
        return _Evaluation(plan, parameters, X, y, weight, loss).loss()

    def loss_and_gradient(
        self,
        plan: Any,
        parameters: Array,
        X: Any,
        y: Any,
        weight: Array | None,
        loss: LossRow,
        l2: float,
        n_threads: int,
    ) -> tuple[float, Array]:
        return _Evaluation(plan, parameters, X, y, weight, loss).loss_and_gradient(l2)

    def train(self, plan: Any, parameters: Array, slots: Array, job: TrainJob) -> TrainResult:
        return _Training(plan, parameters, slots, job).run()

    def perceptron_fit(
        self,
        X: Array,
        t: Array,
        weights: Array,
        bias: Array,
        learning_rate: float,
        max_epochs: int,
        shuffle: bool,
        seed: int,
        n_threads: int,
        stop: StopFlag,
    ) -> tuple[Array, str, BaseException | None]:
        dtype = weights.dtype
        kernel = _perceptron(dtype)
        rows, targets = _rows_to_device(X, dtype), upload(np.ascontiguousarray(t))
        w, b = upload(weights), upload(bias)
        n, rows_per_launch = len(X), max(1, PERCEPTRON_SCORES // weights.shape[1])
        order = np.arange(n)
        on_device = upload(order)
        counter = upload(np.zeros(1, np.int64))
        errors: list[int] = []
        status, in_step = "done", True
        exception: BaseException | None = None
        try:
            for epoch in range(max_epochs):
                if shuffle:
                    fill_permutation(order, seed, epoch)
                    on_device.copy_to_device(order)
                counter.copy_to_device(np.zeros(1, np.int64))
                for at in range(0, n, rows_per_launch):
                    if stop.is_set():
                        status = "stopped"
                        break
                    end = min(at + rows_per_launch, n)
                    kernel(
                        (1,), (THREADS,), rows, targets, on_device, at, end, w, b,
                        dtype.type(learning_rate), counter,
                    )  # fmt: skip
                    synchronize()
                if status != "done":
                    break
                errors.append(int(counter.copy_to_host()[0]))
                if errors[-1] == 0:
                    break
        except (KeyboardInterrupt, Exception) as error:
            if _is_device_error(error):
                raise
            status, exception = "interrupted", error
        while in_step:
            try:
                weights[...] = w.copy_to_host()
                bias[...] = b.copy_to_host()
                in_step = False
            except (KeyboardInterrupt, Exception) as error:
                if _is_device_error(error) or exception is not None:
                    raise
                status, exception = "interrupted", error
        return np.array(errors, np.int64), status, exception


def _prediction(plan: Any, parameters: Any, chunk: int) -> Callable[[Any], Any]:
    """A function from up to `chunk` rows to their outputs, layer by layer."""
    work = _Pass(plan, parameters, chunk, training=False)

    def predict(rows: Any) -> Any:
        for launch in work.forward(_rows_as_batch(rows.shape[0]), 0, rows, link=plan.output):
            launch()
        return work.outputs[-1]

    return predict


def _narrow_prediction(plan: Any, parameters: Any, chunk: int) -> Callable[[Any], Any] | None:
    """The same in one kernel, its activations in shared memory; None for wide networks."""
    narrow = _Narrow.of(plan)
    if narrow is None:
        return None
    link = get_activation(plan.output).scalar
    kernel = _fused_prediction(plan.dtype, narrow.fs, narrow.dfs, link or _identity.scalar)
    Y = allocate((chunk, plan.n_outputs), plan.dtype)
    flat, nothing = Y.reshape(chunk * plan.n_outputs), _nothing((1,), "int64")

    def predict(rows: Any) -> Any:
        n = rows.shape[0]
        kernel(
            (-(-n // narrow.rows),), (THREADS,), rows, parameters, narrow.layout, narrow.scales,
            plan.n_layers, narrow.rows, nothing, Y, shared_bytes=narrow.n_bytes,
        )  # fmt: skip
        if link is None:
            _softmax(plan.dtype)((-(-n // ROWS),), (kernels.LANES, ROWS), flat, n, plan.n_outputs)
        return Y

    return predict


def _piece(X: Any, at: int, rows: int) -> Any:
    if isinstance(X, OnDevice):
        return OnDevice(X.array[at : at + rows])
    return X[at : at + rows]


def _to_host(array: Any, out: Array) -> None:
    """Copy a C-contiguous device array into one of the host, and wait for it."""
    if out.flags.c_contiguous:
        array.copy_to_host(out)
    else:
        out[...] = array.copy_to_host()


def _deliver(array: Any, out: Any, at: int) -> None:
    """Copy rows to their place in an array of the host or of the device."""
    n = array.shape[0]
    if isinstance(out, OnDevice):
        out.array[at : at + n].copy_to_device(array)
    else:
        _to_host(array, out[at : at + n])


def _stand_in(view: Any, name: str) -> Array:
    """Zeros of an array's shape and type that take no memory, to check both by."""
    if view.dtype not in NATIVE_DTYPES:
        raise TypeError(
            f"{name} has dtype {view.dtype} on the GPU, but is read as float32, float64, bool or "
            "integers: convert it there first"
        )
    return np.broadcast_to(np.zeros((), view.dtype), tuple(view.shape))


def _accepted_by(loss: LossRow, stand_in: Array) -> Array:
    """Targets that the loss takes, so that only their shape or type can be refused."""
    targets = stand_in.copy()
    if loss.target_kind == "sign":
        targets[...] = 1
    elif loss.target_kind == "classes" and targets.ndim == 2:
        targets[:, :1] = 1
    return targets


def _flat(array: Any) -> Any:
    return array.reshape(array.shape[0] * array.shape[1])


def _as_contiguous(view: Any, dtype: np.dtype, *, copy: bool = False) -> Any:
    """A (rows, width) device array, C-contiguous and of the dtype: the same one where it can be."""
    if view.dtype == dtype and view.is_c_contiguous() and not copy:
        return view
    array = allocate(tuple(view.shape), dtype)
    size = view.shape[0] * view.shape[1]
    if size:
        configured(_convert(dtype), (_blocks_for(size),), (THREADS,))(view, array)
    return array


def _blocks_for(n: int) -> int:
    return min(4096, -(-n // THREADS))


def _wrong(kernel: Kernel, n: int, *arguments: Any) -> bool:
    """Whether a kernel that looks for something found it."""
    if not n:
        return False
    found = upload(np.zeros(1))
    kernel((_blocks_for(n),), (THREADS,), *arguments, found)
    return bool(found.copy_to_host()[0])


def _rows_as_batch(n: int) -> tuple[Any, ...]:
    """What kernels take for a batch, for all of n rows in their natural order."""
    return _nothing((3,), "int64"), _nothing((1,), "int64"), 0, n, n, 0


def _is_device_error(error: BaseException) -> bool:
    """Whether CUDA failed, rather than a signal handler having raised."""
    return type(error).__module__.startswith(("numba", "cuda")) or isinstance(error, MemoryError)


class _Evaluation:
    """Loss and gradient over rows, piece by piece."""

    def __init__(
        self, plan: Any, parameters: Array, X: Any, y: Any, weight: Array | None, loss: LossRow
    ) -> None:
        self.plan, self.X, self.n = plan, X, len(X)
        self.parameters = upload(parameters)
        self.host_parameters = parameters
        self.targets = _Targets.of(y, plan.dtype)
        self.weights = _weights_to_device(weight, self.n)
        self.total = float(self.n) if weight is None else float(weight.sum())
        self.totals = upload(np.array([self.total]))
        self.order = upload(np.arange(self.n))
        self.losses = allocate((self.n,), np.dtype(np.float64))
        self.row_loss = _output_delta(plan.dtype, _row_loss(plan.dtype, plan.output, loss))
        self.parameter = plan.dtype.type(loss.parameter)
        self.chunk = _chunk_rows(plan, self.n)
        self.cursor = _nothing((3,), "int64")

    def _pieces(self, work: _Pass) -> Iterator[tuple[Any, tuple[Any, ...]]]:
        """Rows on the device, and what kernels take for them; deltas and losses are there."""
        plan = self.plan
        for at in range(0, self.n, self.chunk):
            rows = _rows_to_device(_piece(self.X, at, self.chunk), plan.dtype)
            batch = (self.cursor, self.order, 0, self.n, self.n, at)
            for launch in work.forward(batch, 0, rows):
                launch()
            self.row_loss(
                (-(-self.chunk // ROWS),), (kernels.LANES, ROWS), *batch, self.chunk, work.logits,
                plan.n_outputs, self.targets.labels, self.targets.targets, self.targets.has_labels,
                self.weights, self.totals, self.parameter, self.losses,
            )  # fmt: skip
            yield rows, batch

    def _mean(self) -> float:
        sums = allocate((1,), np.dtype(np.float64))
        _sum_batches()(
            (1,), (THREADS,), self.cursor, self.order, 0, self.n, self.n, 0, self.losses, sums
        )
        total = float(sums.copy_to_host()[0])
        return total / self.total if self.total else 0.0

    def loss(self) -> float:
        work = _Pass(self.plan, self.parameters, self.chunk, training=False)
        for _ in self._pieces(work):
            pass
        return self._mean()

    def loss_and_gradient(self, l2: float) -> tuple[float, Array]:
        plan, dtype = self.plan, self.plan.dtype
        if self.total == 0:
            return 0.0, np.zeros(plan.n_parameters, dtype)
        work = _Pass(plan, self.parameters, self.chunk, training=True)
        gradient = allocate((plan.n_parameters,), dtype)
        add = 0
        for rows, batch in self._pieces(work):
            for layer in range(plan.n_layers - 1, -1, -1):
                if layer > 0:
                    work.backward(batch, layer)()
                _gradient_launch(work, batch, layer, rows, 0, self.totals, gradient, add)()
            add = 1
        squares = allocate((kernels.N_PARTIALS,), np.dtype(np.float64))
        decays = _decays(plan)
        _finish_gradient(dtype)(
            (kernels.N_PARTIALS,), (THREADS,), self.cursor, gradient, 1, self.parameters, decays,
            upload(np.array([l2], dtype)), gradient, squares,
        )  # fmt: skip
        value = self._mean()
        if l2:
            _square_weights(dtype)(
                (kernels.N_PARTIALS,), (THREADS,), self.parameters, decays, squares
            )
            value += 0.5 * l2 * float(squares.copy_to_host().sum())
        return value, gradient.copy_to_host()


def _gradient_launch(
    work: _Pass,
    batch: tuple[Any, ...],
    layer: int,
    X: Any,
    gathered: int,
    totals: Any,
    gradient: Any,
    add: int,
    update: tuple[Any, ...] | None = None,
) -> Launch:
    """The gradient of a layer; with (formula, n_slots, slots, scalars, l2s) its update at once."""
    plan = work.plan
    fan_in, fan_out = plan.layer_sizes[layer : layer + 2]
    tile = tile_for(fan_in + 1, fan_out)
    formula, n_slots, slots, scalars, l2s = update or (
        None, 0, work.no_vector, work.no_matrix, work.no_vector,
    )  # fmt: skip
    return Launch(
        _weight_gradient(plan.dtype, tile, formula, n_slots),
        tile.grid(fan_in + 1, fan_out),
        tile.block,
        (
            *batch, gathered if layer == 0 else 0, X if layer == 0 else work.outputs[layer - 1],
            work.deltas[layer], plan.offsets[layer][0], fan_in, fan_out, totals, gradient, add,
            work.parameters, slots, scalars, l2s,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Done:
    """Whole epochs, and which buffer holds the state after them; replaced, never changed."""

    buffer: int
    losses: tuple[float, ...] = ()
    seconds: tuple[float, ...] = ()


class _Training:
    """One job. The state in work is separate from that after the last whole epoch."""

    def __init__(self, plan: Any, parameters: Array, slots: Array, job: TrainJob) -> None:
        self.plan, self.job = plan, job
        self.host_parameters, self.host_slots = parameters, slots
        self.n, self.n_slots = len(job.X), len(slots)
        self.batch_size = min(job.batch_size, self.n)
        self.n_batches = -(-self.n // self.batch_size)
        dtype, size = plan.dtype, plan.n_parameters
        state = np.concatenate([parameters, slots.reshape(-1)])
        self.kept = [upload(state), allocate(state.shape, dtype)]
        self.state = allocate(state.shape, dtype)
        self.parameters = self.state[:size]
        no_vector, no_matrix = _nothing((1,), dtype.name), _nothing((1, 1), dtype.name)
        self.slots = self.state[size:] if self.n_slots else no_vector
        self.X = _rows_to_device(job.X, dtype)
        self.targets = _Targets.of(job.y, dtype)
        self.weights = _weights_to_device(job.weight, self.n)
        self.total_weight = float(self.n) if job.weight is None else float(job.weight.sum())
        orders = np.arange(self.n) if job.orders is None else np.ascontiguousarray(job.orders)
        self.order_stride = 0 if job.orders is None else self.n
        self.orders = upload(orders.reshape(-1))
        self.scalars = upload(np.ascontiguousarray(job.scalars, dtype))
        l2s = np.full(len(job.scalars), job.l2) if job.step_l2 is None else job.step_l2
        self.l2s = upload(np.ascontiguousarray(l2s, dtype))
        self.cursor = upload(np.zeros(3, np.int64))
        # What the host wants to know of an epoch: losses and weights of its batches, and whether a
        # parameter is not finite. In one array, so that one copy fetches it.
        self.report = allocate((2 * self.n_batches + 1,), np.dtype(np.float64))
        self.batch_losses = self.report[: self.n_batches]
        self.totals = self.report[self.n_batches : 2 * self.n_batches]
        self.bad = self.report[2 * self.n_batches :]
        self.row_losses = allocate((self.n,), np.dtype(np.float64))
        self.squares = allocate((kernels.N_PARTIALS,), np.dtype(np.float64))
        self.decays = _decays(plan)
        self.parameter = dtype.type(job.loss.parameter)
        self.formula = job.optimizer.scalar_update
        self.batch = (
            self.cursor, self.orders, self.order_stride, self.n, self.batch_size,
        )  # fmt: skip
        self.no_vector, self.no_matrix = no_vector, no_matrix
        self.kept_squares = None
        if job.step_record is not None:
            self.kept_squares = allocate((len(job.scalars),), np.dtype(np.float64))
        self.per_launch = 1
        self.step = self._step_launches()

    # One step -------------------------------------------------------------------------------------

    def _step_launches(self) -> list[Launch]:
        """The launches of a step, the same for every step."""
        narrow = _Narrow.of(self.plan, self.job.dropout_stream)
        launches: list[Launch] = []
        if self.kept_squares is not None:
            one = (1,), (THREADS,)
            many = (kernels.N_PARTIALS,), (THREADS,)
            launches = [
                Launch(
                    _square_weights(self.plan.dtype),
                    *many,
                    (self.parameters, self.decays, self.squares),
                ),
                Launch(_keep_squares(), *one, (self.cursor, self.squares, self.kept_squares)),
            ]
        if narrow is None:
            launches += self._tiled_step()
        elif not launches and self.job.clip_norm is None and self.batch_size <= narrow.rows:
            per_row = 6 * self.plan.n_parameters
            fits = int(FUSED_OPERATIONS / (per_row * self.batch_size))
            self.per_launch = max(1, min(fits, FUSED_STEPS))
            return [self._fused_launch(narrow, True, 1, self.no_vector)]
        else:
            n_blocks = min(fused.MAX_BLOCKS, -(-self.batch_size // narrow.rows))
            partials = allocate((n_blocks * self.plan.n_parameters,), self.plan.dtype)
            launches.append(self._fused_launch(narrow, False, n_blocks, partials))
            launches += self._update(partials, n_blocks)
        launches.append(Launch(_advance(), (1,), (1,), (self.cursor,)))
        return launches

    def _tiled_step(self) -> list[Launch]:
        plan, job = self.plan, self.job
        chunk = _chunk_rows(plan, self.batch_size)
        work = _Pass(plan, self.parameters, chunk, training=True)
        row_loss = _output_delta(plan.dtype, _row_loss(plan.dtype, plan.output, job.loss))
        at_once = job.clip_norm is None and chunk == self.batch_size
        gradient = self.no_vector if at_once else allocate((plan.n_parameters,), plan.dtype)
        update = (self.formula, self.n_slots, self.slots, self.scalars, self.l2s)
        launches: list[Launch] = []
        dropout = (job.dropout_seed, job.dropout_stream, job.first_epoch)
        for offset in range(0, self.batch_size, chunk):
            batch = (*self.batch, offset)
            launches += work.forward(batch, 1, self.X, dropout=dropout)
            launches.append(
                Launch(
                    row_loss, (-(-chunk // ROWS),), (kernels.LANES, ROWS),
                    (
                        *batch, chunk, work.logits, plan.n_outputs, self.targets.labels,
                        self.targets.targets, self.targets.has_labels, self.weights, self.totals,
                        self.parameter, self.row_losses,
                    ),
                )
            )  # fmt: skip
            for layer in range(plan.n_layers - 1, -1, -1):
                if layer > 0:
                    launches.append(work.backward(batch, layer))
                launches.append(
                    _gradient_launch(
                        work, batch, layer, self.X, 1, self.totals, gradient, int(offset > 0),
                        update if at_once else None,
                    )
                )  # fmt: skip
        return launches if at_once else launches + self._update(gradient, 1)

    def _update(self, partials: Any, n_parts: int) -> list[Launch]:
        """The update by a gradient in parts, after clipping it where asked."""
        dtype, launches, clip_norm = self.plan.dtype, [], self.job.clip_norm or 0.0
        if clip_norm:
            gradient = partials[: self.plan.n_parameters]
            launches.append(
                Launch(
                    _finish_gradient(dtype), (kernels.N_PARTIALS,), (THREADS,),
                    (
                        self.cursor, partials, n_parts, self.parameters, self.decays, self.l2s,
                        gradient, self.squares,
                    ),
                )
            )  # fmt: skip
            partials, n_parts = gradient, 1
        n_blocks = min(4096, -(-self.plan.n_parameters // THREADS))
        launches.append(
            Launch(
                _update_all(dtype, self.formula, self.n_slots), (n_blocks,), (THREADS,),
                (
                    self.cursor, self.totals, partials, n_parts, self.parameters, self.slots,
                    self.scalars, self.decays, self.l2s, self.squares, clip_norm,
                ),
            )
        )  # fmt: skip
        return launches

    def _fused_launch(
        self, narrow: _Narrow, updating: bool, n_blocks: int, partials: Any
    ) -> Launch:
        plan, job = self.plan, self.job
        row_loss = _row_loss(plan.dtype, plan.output, job.loss)
        formula, n_slots = (self.formula, self.n_slots) if updating else (None, 0)
        return Launch(
            _fused_training(plan.dtype, narrow.fs, narrow.dfs, row_loss, formula, n_slots),
            (n_blocks,),
            (THREADS,),
            (
                *self.batch, self.per_launch, self.X, self.targets.labels, self.targets.targets,
                self.targets.has_labels, self.weights, self.totals, self.parameter,
                self.row_losses, self.parameters, self.slots, self.scalars, self.l2s, partials,
                narrow.layout, narrow.scales, plan.n_layers, narrow.rows, narrow.second,
                np.uint64(job.dropout_seed), job.first_epoch,
            ),
            narrow.n_bytes,
        )  # fmt: skip

    # All of them ----------------------------------------------------------------------------------

    def run(self) -> TrainResult:
        job = self.job
        done = _Done(0)
        status, steps, bad_batch = "done", 0, 0
        exception: BaseException | None = None
        try:
            for epoch in range(job.n_epochs):
                began = perf_counter()
                self._begin_epoch(done.buffer)
                steps = self._launch_steps()
                values, totals, finite = self._end_epoch()
                diverged = ~np.isfinite(values)
                diverged[steps:] = False
                if diverged.any() or (steps == self.n_batches and not finite):
                    status = "diverged"
                    bad_batch = int(diverged.argmax()) if diverged.any() else self.n_batches - 1
                    steps = bad_batch + 1
                    break
                self._record(epoch, values, totals, steps)
                if steps < self.n_batches:
                    status = "stopped"
                    break
                spare = 1 - done.buffer
                self.kept[spare].copy_to_device(self.state)
                loss = float(values.sum()) / self.total_weight if self.total_weight else 0.0
                # The one instruction by which an epoch becomes a fact.
                done = _Done(spare, (*done.losses, loss), (*done.seconds, perf_counter() - began))
                steps = 0
        except (KeyboardInterrupt, Exception) as error:
            if _is_device_error(error):
                raise
            status, steps, exception = "interrupted", 0, error
        epochs_before = len(done.losses)
        state = self.state if status == "stopped" else self.kept[done.buffer]
        exception = self._fetch(state, exception)
        if exception is not None and status == "done":
            status = "interrupted"
        return TrainResult(
            np.array(done.losses),
            np.array(done.seconds),
            epochs_before,
            epochs_before * self.n_batches + steps,
            status,
            epochs_before if status == "diverged" else 0,
            bad_batch,
            exception,
        )

    def _begin_epoch(self, buffer: int) -> None:
        self.state.copy_to_device(self.kept[buffer])
        self.bad.copy_to_device(np.zeros(1))
        cursor, order, stride, n, batch_size = self.batch
        _sum_batches()(
            (self.n_batches,), (THREADS,), cursor, order, stride, n, batch_size, 1, self.weights,
            self.totals,
        )  # fmt: skip

    def _launch_steps(self) -> int:
        """Launch the steps of an epoch; how many, where somebody asked to stop."""
        operations = 6.0 * self.batch_size * self.plan.n_parameters
        wait_every = max(1, int(PENDING_OPERATIONS / operations))
        if self.per_launch > 1:
            wait_every = self.per_launch
        waited = 0
        for step in range(0, self.n_batches, self.per_launch):
            if self.job.stop.is_set():
                return step
            if step - waited >= wait_every:
                synchronize()
                waited = step
                if self.job.stop.is_set():
                    return step
            for launch in self.step:
                launch()
        return self.n_batches

    def _end_epoch(self) -> tuple[Array, Array, bool]:
        """Losses and weights of the batches, and whether all parameters are finite."""
        cursor, order, stride, n, batch_size = self.batch
        _sum_batches()(
            (self.n_batches,), (THREADS,), cursor, order, stride, n, batch_size, 0,
            self.row_losses, self.batch_losses,
        )  # fmt: skip
        n_blocks = min(1024, -(-self.plan.n_parameters // THREADS))
        _find_not_finite(self.plan.dtype)((n_blocks,), (THREADS,), self.parameters, self.bad)
        _next_epoch()((1,), (1,), cursor)
        report = self.report.copy_to_host()  # the epoch's one wait
        n_batches = self.n_batches
        return report[:n_batches], report[n_batches : 2 * n_batches], report[-1] == 0

    def _record(self, epoch: int, values: Array, totals: Array, steps: int) -> None:
        record = self.job.step_record
        if record is None or self.kept_squares is None:
            return
        first = epoch * self.n_batches
        with np.errstate(all="ignore"):
            means = np.where(totals[:steps] > 0, values[:steps] / totals[:steps], 0.0)
        record[first : first + steps, 0] = means
        squares = self.kept_squares[first : first + steps] if steps else None
        if squares is not None:
            record[first : first + steps, 1] = squares.copy_to_host()

    def _fetch(self, state: Any, exception: BaseException | None) -> BaseException | None:
        """Bring the state back to the host, whatever signal handlers raise meanwhile."""
        while True:
            try:
                host = state.copy_to_host()
                self.host_parameters[:] = host[: self.plan.n_parameters]
                self.host_slots[:] = host[self.plan.n_parameters :].reshape(self.host_slots.shape)
                return exception
            except (KeyboardInterrupt, Exception) as error:
                if _is_device_error(error) or exception is not None:
                    raise
                exception = error
