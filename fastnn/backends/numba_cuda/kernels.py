"""CUDA kernels for layers of any width; `fused` has those for narrow networks.

Each function here makes one kernel for a dtype and, where it needs them, formulas of the tables.
All sums have one order that depends on the shapes alone, no kernel adds floats atomically, so two
runs give the same bits. As in the C kernels, long sums are taken in blocks of 512 (SUM_BLOCK).

What a training step needs is the same in every step but for the batch, so kernels find their rows
by a cursor in device memory. The host launches the same list of kernels with the same arguments
again and again, and waits for none.

A batch's rows are ``order[epoch, first : first + count]``, with ``first = batch * batch_size`` and
``count = min(batch_size, n - first)``. Batches beyond CHUNK_ROWS rows go through in pieces.

Flat parameters: layer l lies at ``at``, ``W[l]`` as (fan_in, fan_out) row-major and ``b[l]`` after
it, so that the bias is one more row of the weights, and its gradient that of an input of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastnn.backends.numba_cuda.shim import SIMULATED, Kernel, cuda, result_type, types
from fastnn.tables.custom import KNOWN_TO_FORMULAS, owner_of
from fastnn.tables.losses import TARGET_KINDS
from fastnn.tables.scalars import ieee_math, with_constants

Function = Callable[..., Any]

SUM_BLOCK = 512
"""Terms of a product's sum that are added one by one; the sums of blocks are added in order."""

STEP, BATCH, EPOCH = 0, 1, 2
"""Places of the cursor: updates of this job so far, batches of this epoch, epochs of this job."""


@dataclass(frozen=True)
class Tile:
    """How a product is cut up.

    A block of threads_x * threads_y threads computes a tile of the result, each thread per_thread_y
    by per_thread_x numbers of it, from slices of `depth` along the sum.
    """

    threads_x: int
    threads_y: int
    per_thread_x: int
    per_thread_y: int
    depth: int

    @property
    def rows(self) -> int:
        return self.threads_y * self.per_thread_y

    @property
    def columns(self) -> int:
        return self.threads_x * self.per_thread_x

    @property
    def block(self) -> tuple[int, int]:
        return self.threads_x, self.threads_y

    def grid(self, n_rows: int, n_columns: int) -> tuple[int, int]:
        """Blocks that cover a result of this shape."""
        return -(-n_columns // self.columns), -(-n_rows // self.rows)


# In the simulator a thread of the GPU is one of the operating system, so blocks are small there;
# the code is the same.
if SIMULATED:
    TILES = (Tile(2, 2, 2, 4, 4), Tile(2, 1, 2, 2, 4))
    FEW_TILES = 4
    THREADS, LANES = 4, 2
    N_PARTIALS = 2
else:
    TILES = (Tile(16, 16, 4, 4, 16), Tile(16, 16, 2, 2, 16))
    FEW_TILES = 64
    THREADS, LANES = 256, 32
    N_PARTIALS = 128
ROWS = THREADS // LANES
"""Rows whose losses a block computes at once, LANES threads each."""

index = types.int64
double = types.float64


def tile_for(n_rows: int, n_columns: int) -> Tile:
    """Large tiles, or small ones where there would be few: more multiprocessors take part then.

    The bits are the same with either.
    """
    large = TILES[0]
    across, down = large.grid(n_rows, n_columns)
    return large if across * down >= FEW_TILES else TILES[1]


def number(dtype: np.dtype) -> Any:
    """Numba's type of a dtype."""
    return types.float32 if dtype == np.float32 else types.float64


def device_function(formula: Function, dtype: np.dtype) -> Function:
    """A function of the tables, compiled for the GPU, in arithmetic of `dtype`."""
    if SIMULATED:
        plain = with_constants(formula, dtype, ieee_math(dtype))
        return cuda.jit(device=True)(np.errstate(all="ignore")(plain))
    return cuda.jit(device=True)(with_constants(formula, dtype))


def scalar_function(formula: Function, dtype: np.dtype) -> Function:
    """A formula of numbers, of the tables or of the user's, that gives numbers of `dtype`.

    Raises
    ------
    ValueError
        It cannot be compiled for a GPU: the message has the line and the reason. The simulator,
        which compiles nothing, does not find out.
    """
    function = device_function(formula, dtype)
    if SIMULATED:
        return function
    real, real_type = dtype.type, number(dtype)
    n_arguments = formula.__code__.co_argcount - len(formula.__defaults__ or ())
    try:
        result = result_type(function, (real_type,) * n_arguments)
    except ValueError as error:
        raise ValueError(
            f"{owner_of(formula)} cannot be compiled for a GPU: {error}. Write it with what "
            f"formulas know ({KNOWN_TO_FORMULAS}), or take another backend"
        ) from None
    if result == real_type:
        return function

    def converted(*numbers):
        return real(function(*numbers))

    return cuda.jit(device=True)(converted)


# Random numbers -----------------------------------------------------------------------------------

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_SIXTEEN = np.uint64(0xFFFF)
_TWO = np.uint64(2)


@cuda.jit(device=True)
def _kept(row, unit, seed, epoch, high, threshold):
    """Whether dropout leaves a unit in: `fastnn.rng.dropout_mask` for one number."""
    group = np.uint64(unit) >> _TWO
    wide_row = np.uint64(row)
    c0 = wide_row & _LOW
    c1 = group
    c2 = np.uint64(epoch) & _LOW
    c3 = np.uint64(high) | ((wide_row >> _HALF) & _SIXTEEN)
    k0 = seed & _LOW
    k1 = seed >> _HALF
    for _ in range(10):
        p0 = _M0 * c0
        p1 = _M1 * c2
        c0 = (p1 >> _HALF) ^ c1 ^ k0
        c1 = p1 & _LOW
        c2 = (p0 >> _HALF) ^ c3 ^ k1
        c3 = p0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    which = unit & 3
    word = c0 if which == 0 else (c1 if which == 1 else (c2 if which == 2 else c3))
    return word >= np.uint64(threshold)


# Layers -------------------------------------------------------------------------------------------

# What every kernel that reads a batch takes first:
# cursor (3,), order (n_epochs * n or n), order_stride (n, or 0 for one order), n, batch_size, and
# offset: rows of the batch before this piece.
_BATCH_TYPES = (index[::1], index[::1], index, index, index, index)


@cuda.jit(device=True)
def _piece(cursor, n, batch_size, offset, most):
    """The first row of this piece of the batch within the epoch, and how many there are."""
    first = cursor[BATCH] * batch_size + offset
    end = min(cursor[BATCH] * batch_size + batch_size, n)
    return first, min(end - first, most)


def product_steps(dtype: np.dtype, tile: Tile) -> tuple[Function, Function]:
    """Device functions of a thread's part of a product: begin it, and add one slice of the sum.

    acc and total are (per_thread_y, per_thread_x) of the thread's own, the slices (depth, rows) and
    (depth, columns) in shared memory; both steps return how many terms acc has.
    """
    zero = dtype.type(0)
    tx_count, ty_count = tile.block
    nx, ny, depth = tile.per_thread_x, tile.per_thread_y, tile.depth

    @cuda.jit(device=True)
    def clear(acc, total):
        for i in range(ny):
            for j in range(nx):
                acc[i, j] = zero
                total[i, j] = zero
        return 0

    @cuda.jit(device=True)
    def accumulate(left, right, acc, total, tx, ty, done):
        cuda.syncthreads()
        for k in range(depth):
            for i in range(ny):
                a = left[k, ty + ty_count * i]
                for j in range(nx):
                    acc[i, j] += a * right[k, tx + tx_count * j]
        cuda.syncthreads()
        done += depth
        if done == SUM_BLOCK:
            done = 0
            for i in range(ny):
                for j in range(nx):
                    total[i, j] += acc[i, j]
                    acc[i, j] = zero
        return done

    return clear, accumulate


@cuda.jit(device=True)
def _no_slope(z, y):
    return y


def forward(dtype: np.dtype, tile: Tile, f: Function, df: Function | None) -> Kernel:
    """``Y = f(A W + b)``, and in training its slope ``S = f'``, both after dropout.

    A is the outputs of the layer before, (chunk, fan_in), or X, whose rows are found through the
    order. Y and S are (chunk, fan_out). Without df there is no slope and no dropout.
    """
    real, real_type = dtype.type, number(dtype)
    training = df is not None
    slope_of = _no_slope if df is None else df
    tx_count, ty_count = tile.block
    nx, ny, depth = tile.per_thread_x, tile.per_thread_y, tile.depth
    rows, columns, padded_rows = tile.rows, tile.columns, tile.rows + 1
    threads = tx_count * ty_count
    zero = real(0)
    clear, accumulate = product_steps(dtype, tile)

    def kernel(
        cursor, order, order_stride, n, batch_size, offset, gathered, A, parameters, at, fan_in,
        fan_out, Y, S, threshold, scale, seed, first_epoch, high,
    ):  # fmt: skip
        left = cuda.shared.array((depth, padded_rows), real_type)
        right = cuda.shared.array((depth, columns), real_type)
        acc = cuda.local.array((ny, nx), real_type)
        total = cuda.local.array((ny, nx), real_type)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        thread = ty * tx_count + tx
        row0, column0 = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        first, count = _piece(cursor, n, batch_size, offset, Y.shape[0])
        listed = cursor[EPOCH] * order_stride + first
        if row0 >= count:  # the whole block
            return
        done = clear(acc, total)
        for k0 in range(0, fan_in, depth):
            for e in range(thread, rows * depth, threads):
                r = e // depth
                k = e % depth
                value = zero
                if row0 + r < count and k0 + k < fan_in:
                    source = order[listed + row0 + r] if gathered else row0 + r
                    value = A[source, k0 + k]
                left[k, r] = value
            for e in range(thread, depth * columns, threads):
                k = e // columns
                c = e % columns
                value = zero
                if k0 + k < fan_in and column0 + c < fan_out:
                    value = parameters[at + (k0 + k) * fan_out + column0 + c]
                right[k, c] = value
            done = accumulate(left, right, acc, total, tx, ty, done)
        bias_at = at + fan_in * fan_out
        for i in range(ny):
            r = row0 + ty + ty_count * i
            for j in range(nx):
                c = column0 + tx + tx_count * j
                if r < count and c < fan_out:
                    z = (total[i, j] + acc[i, j]) + parameters[bias_at + c]
                    y = f(z)
                    Y[r, c] = y
                    if training:
                        S[r, c] = slope_of(z, y)
        if training and threshold > 0:
            # A second pass over the thread's own results: within the first, the rounds of the
            # random numbers would keep the compiler from holding `acc` in registers.
            epoch = first_epoch + cursor[EPOCH]
            for i in range(ny):
                r = row0 + ty + ty_count * i
                for j in range(nx):
                    c = column0 + tx + tx_count * j
                    if r < count and c < fan_out:
                        factor = zero
                        if _kept(order[listed + r], c, seed, epoch, high, threshold):
                            factor = scale
                        Y[r, c] *= factor
                        S[r, c] *= factor

    matrix = real_type[:, ::1]
    return Kernel(
        kernel,
        (
            *_BATCH_TYPES, index, matrix, real_type[::1], index, index, index, matrix, matrix,
            index, real_type, types.uint64, index, index,
        ),
    )  # fmt: skip


def backward(dtype: np.dtype, tile: Tile) -> Kernel:
    """``D_before = (D W^T) * S``: the delta of the layer before, (chunk, fan_in).

    D is (chunk, fan_out). Where not `scaled`, S is left out: the layer before is the input.
    """
    real, real_type = dtype.type, number(dtype)
    tx_count, ty_count = tile.block
    nx, ny, depth = tile.per_thread_x, tile.per_thread_y, tile.depth
    rows, columns = tile.rows, tile.columns
    padded_rows, padded_columns = tile.rows + 1, tile.columns + 1
    threads = tx_count * ty_count
    zero = real(0)
    clear, accumulate = product_steps(dtype, tile)

    def kernel(
        cursor, order, order_stride, n, batch_size, offset, D, parameters, at, fan_in, fan_out,
        scaled, S, D_before,
    ):  # fmt: skip
        left = cuda.shared.array((depth, padded_rows), real_type)
        right = cuda.shared.array((depth, padded_columns), real_type)
        acc = cuda.local.array((ny, nx), real_type)
        total = cuda.local.array((ny, nx), real_type)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        thread = ty * tx_count + tx
        row0, column0 = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        _, count = _piece(cursor, n, batch_size, offset, D.shape[0])
        if row0 >= count:
            return
        done = clear(acc, total)
        for k0 in range(0, fan_out, depth):
            for e in range(thread, rows * depth, threads):
                r = e // depth
                k = e % depth
                value = zero
                if row0 + r < count and k0 + k < fan_out:
                    value = D[row0 + r, k0 + k]
                left[k, r] = value
            for e in range(thread, depth * columns, threads):
                c = e // depth
                k = e % depth
                value = zero
                if k0 + k < fan_out and column0 + c < fan_in:
                    value = parameters[at + (column0 + c) * fan_out + k0 + k]
                right[k, c] = value
            done = accumulate(left, right, acc, total, tx, ty, done)
        for i in range(ny):
            r = row0 + ty + ty_count * i
            for j in range(nx):
                c = column0 + tx + tx_count * j
                if r < count and c < fan_in:
                    d = total[i, j] + acc[i, j]
                    if scaled:
                        d = d * S[r, c]
                    D_before[r, c] = d

    matrix = real_type[:, ::1]
    return Kernel(
        kernel,
        (
            *_BATCH_TYPES, matrix, real_type[::1], index, index, index, index, matrix, matrix,
        ),
    )  # fmt: skip


def weight_gradient(
    dtype: np.dtype, tile: Tile, update: Function | None = None, n_slots: int = 0
) -> Kernel:
    """``G = [A, 1]^T D``, (fan_in + 1, fan_out): weights and, as the last row, the bias.

    With an update the gradient is used where it is made, in registers: each parameter is read and
    written once, with the l2 term. Without one it is written to `gradient`, or added where `add`.
    """
    real, real_type = dtype.type, number(dtype)
    updating = update is not None
    tx_count, ty_count = tile.block
    nx, ny, depth = tile.per_thread_x, tile.per_thread_y, tile.depth
    rows, columns = tile.rows, tile.columns
    threads = tx_count * ty_count
    zero, one = real(0), real(1)
    clear, accumulate = product_steps(dtype, tile)
    apply = _no_update if update is None else parameter_update(dtype, update, n_slots)

    def kernel(
        cursor, order, order_stride, n, batch_size, offset, gathered, A, D, at, fan_in, fan_out,
        totals, gradient, add, parameters, slots, scalars, l2s,
    ):  # fmt: skip
        left = cuda.shared.array((depth, rows), real_type)
        right = cuda.shared.array((depth, columns), real_type)
        acc = cuda.local.array((ny, nx), real_type)
        total = cuda.local.array((ny, nx), real_type)
        tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
        thread = ty * tx_count + tx
        row0, column0 = cuda.blockIdx.y * rows, cuda.blockIdx.x * columns
        first, count = _piece(cursor, n, batch_size, offset, D.shape[0])
        listed = cursor[EPOCH] * order_stride + first
        if updating and totals[cursor[BATCH]] == 0:  # a batch without weight moves nothing
            return
        done = clear(acc, total)
        for k0 in range(0, count, depth):
            for e in range(thread, depth * rows, threads):
                k = e // rows
                i = row0 + e % rows
                value = zero
                if k0 + k < count:
                    if i < fan_in:
                        source = order[listed + k0 + k] if gathered else k0 + k
                        value = A[source, i]
                    elif i == fan_in:
                        value = one
                left[k, e % rows] = value
            for e in range(thread, depth * columns, threads):
                k = e // columns
                c = e % columns
                value = zero
                if k0 + k < count and column0 + c < fan_out:
                    value = D[k0 + k, column0 + c]
                right[k, c] = value
            done = accumulate(left, right, acc, total, tx, ty, done)
        for i in range(ny):
            r = row0 + ty + ty_count * i
            for j in range(nx):
                c = column0 + tx + tx_count * j
                if r <= fan_in and c < fan_out:
                    p = at + r * fan_out + c
                    g = total[i, j] + acc[i, j]
                    if updating:
                        if r < fan_in:
                            g = g + l2s[cursor[STEP]] * parameters[p]
                        apply(parameters, slots, p, g, scalars[cursor[STEP]])
                    elif add:
                        gradient[p] += g
                    else:
                        gradient[p] = g

    matrix, vector = real_type[:, ::1], real_type[::1]
    return Kernel(
        kernel,
        (
            *_BATCH_TYPES, index, matrix, matrix, index, index, index, double[::1], vector, index,
            vector, vector, matrix, vector,
        ),
    )  # fmt: skip


@cuda.jit(device=True)
def _no_update(parameters, slots, p, g, h):
    pass


def parameter_update(dtype: np.dtype, update: Function, n_slots: int) -> Function:
    """A device function that moves parameter p along its gradient, with its slots.

    slots is (n_slots * n_parameters,), one slot after another; h one row of the step's scalars.
    """
    zero = dtype.type(0)

    if n_slots == 0:

        def apply(parameters, slots, p, g, h):
            w, _, _ = update(parameters[p], g, zero, zero, h)
            parameters[p] = w

    elif n_slots == 1:

        def apply(parameters, slots, p, g, h):
            w, a, _ = update(parameters[p], g, slots[p], zero, h)
            parameters[p] = w
            slots[p] = a

    else:

        def apply(parameters, slots, p, g, h):
            q = parameters.shape[0] + p
            w, a, b = update(parameters[p], g, slots[p], slots[q], h)
            parameters[p] = w
            slots[p] = a
            slots[q] = b

    return cuda.jit(device=True)(apply)


# Losses -------------------------------------------------------------------------------------------


@cuda.jit(device=True)
def _add_up(values, lanes, row, lane):
    """Sum of values[row, :lanes] into values[row, 0], in one order; lanes is a power of 2.

    All threads of the block have to come here, with values written and not yet synchronised.
    """
    width = lanes >> 1
    while width > 0:
        cuda.syncthreads()
        if lane < width:
            values[row, lane] += values[row, lane + width]
        width >>= 1
    cuda.syncthreads()


@cuda.jit(device=True)
def _sum_of_block(partial, value):
    """The sum of a number of each thread, for all of them; partial is (1, THREADS)."""
    thread = cuda.threadIdx.x
    partial[0, thread] = value
    _add_up(partial, THREADS, 0, thread)
    return partial[0, 0]


@cuda.jit(device=True)
def _target(labels, targets, has_labels, source, j):
    """Target j of a row: from its label, or as it stands."""
    if has_labels:
        return targets[0, 1] if labels[source] == j else targets[0, 0]
    return targets[source, j]


def elementwise_row(dtype: np.dtype, value: Function, slope: Function) -> Function:
    """A device function for the loss of a row whose outputs do not know of each other.

    The logits values[base : base + width] become the row's delta, ``share`` times the slope.
    LANES threads share the row; lane 0 returns with its loss in `partial`.
    """
    zero = dtype.type(0)

    def row_loss(values, base, width, active, lane, row, partial, ranked, labels, targets,
                 has_labels, source, share, parameter):  # fmt: skip
        total = 0.0
        if active:
            for j in range(lane, width, LANES):
                z = values[base + j]
                t = _target(labels, targets, has_labels, source, j)
                total += value(z, t, parameter)
                d = zero
                if share != zero:
                    d = share * slope(z, t, parameter)
                values[base + j] = d
        partial[row, lane] = total
        _add_up(partial, LANES, row, lane)

    return cuda.jit(device=True)(row_loss)


def through_link(
    f: Function, df: Function, value: Function, slope: Function
) -> tuple[Function, Function]:
    """A loss of outputs and its slope, as functions of the logits: (z, t, p) -> number."""

    @cuda.jit(device=True)
    def linked_value(z, t, p):
        return value(f(z), t, p)

    @cuda.jit(device=True)
    def linked_slope(z, t, p):
        y = f(z)
        return slope(y, t, p) * df(z, y)

    return linked_value, linked_slope


def softmax_terms(dtype: np.dtype) -> Function:
    """A device function for the largest logit of a row, and the sum of exp(z - largest) of others.

    The largest itself, whose term is 1, is left out of the sum so that log1p sees what remains.
    Returns (largest, its first place, the sum).
    """
    real = dtype.type
    zero, lowest = real(0), real(-np.inf)
    exp = device_function(_exp, dtype)

    def terms(values, base, width, active, lane, row, partial, ranked):
        largest = lowest
        if active:
            for j in range(lane, width, LANES):
                largest = max(largest, values[base + j])
        ranked[row, lane] = largest
        cuda.syncthreads()
        for k in range(LANES):
            largest = max(largest, ranked[row, k])
        first = width
        for j in range(width if active else 0):
            if values[base + j] == largest:
                first = j
                break
        total = zero
        if active:
            for j in range(lane, width, LANES):
                if j != first:
                    total += exp(values[base + j] - largest)
        cuda.syncthreads()
        ranked[row, lane] = total
        _add_up(ranked, LANES, row, lane)
        total = ranked[row, 0]
        cuda.syncthreads()
        return largest, first, total

    return cuda.jit(device=True)(terms)


def _exp(x: float) -> float:
    return math.exp(x)


def _log1p(x: float) -> float:
    return math.log1p(x)


def cross_entropy_row(dtype: np.dtype) -> Function:
    """Like `elementwise_row`, for softmax with cross-entropy: delta ``softmax(z) sum(t) - t``."""
    real = dtype.type
    zero, one = real(0), real(1)
    terms = softmax_terms(dtype)
    exp, log1p = device_function(_exp, dtype), device_function(_log1p, dtype)

    def row_loss(values, base, width, active, lane, row, partial, ranked, labels, targets,
                 has_labels, source, share, parameter):  # fmt: skip
        largest, _, others = terms(values, base, width, active, lane, row, partial, ranked)
        total = 0.0
        whole = zero
        if active:
            log_norm = log1p(others)
            for j in range(lane, width, LANES):
                t = _target(labels, targets, has_labels, source, j)
                whole += t
                if t != zero:
                    total -= t * ((values[base + j] - largest) - log_norm)
        ranked[row, lane] = whole
        partial[row, lane] = total
        _add_up(ranked, LANES, row, lane)
        _add_up(partial, LANES, row, lane)
        if active:
            norm = ranked[row, 0] / (one + others)
            for j in range(lane, width, LANES):
                t = _target(labels, targets, has_labels, source, j)
                d = zero
                if share != zero:
                    d = share * (exp(values[base + j] - largest) * norm - t)
                values[base + j] = d

    return cuda.jit(device=True)(row_loss)


def softmax_row(dtype: np.dtype, value: Function, slope: Function) -> Function:
    """Like `elementwise_row`, for any other loss of softmax: ``y (dy - sum(dy y))``."""
    real = dtype.type
    zero, one = real(0), real(1)
    terms = softmax_terms(dtype)
    exp = device_function(_exp, dtype)

    def row_loss(values, base, width, active, lane, row, partial, ranked, labels, targets,
                 has_labels, source, share, parameter):  # fmt: skip
        largest, _, others = terms(values, base, width, active, lane, row, partial, ranked)
        norm = one / (one + others)
        total = 0.0
        inner = zero
        if active:
            for j in range(lane, width, LANES):
                y = exp(values[base + j] - largest) * norm
                t = _target(labels, targets, has_labels, source, j)
                total += value(y, t, parameter)
                inner += y * slope(y, t, parameter)
        ranked[row, lane] = inner
        partial[row, lane] = total
        _add_up(ranked, LANES, row, lane)
        _add_up(partial, LANES, row, lane)
        if active:
            for j in range(lane, width, LANES):
                y = exp(values[base + j] - largest) * norm
                t = _target(labels, targets, has_labels, source, j)
                d = zero
                if share != zero:
                    d = share * y * (slope(y, t, parameter) - ranked[row, 0])
                values[base + j] = d

    return cuda.jit(device=True)(row_loss)


def weighted_row(dtype: np.dtype, row_loss: Function) -> Function:
    """A device function: a row's loss and delta, by its weight and its share of the batch's.

    The row is that of number `place` in the epoch, order[listed]; its weighted loss goes to
    row_losses[place]. LANES threads share it, and inactive ones have no row.
    """
    real = dtype.type
    zero = real(0)

    def loss(values, base, width, active, lane, row, partial, ranked, labels, targets, has_labels,
             order, listed, place, weights, batch_weight, parameter, row_losses):  # fmt: skip
        source = 0
        weight = 0.0
        share = zero
        if active:
            source = order[listed]
            weight = weights[source]
            if weight != 0:
                share = real(weight / batch_weight)
        row_loss(
            values, base, width, active, lane, row, partial, ranked, labels, targets, has_labels,
            source, share, parameter,
        )  # fmt: skip
        if active and lane == 0:
            # A row of weight 0 counts for nothing, even where its loss is infinite.
            row_losses[place] = weight * partial[row, 0] if weight != 0 else 0.0

    return cuda.jit(device=True)(loss)


def output_delta(dtype: np.dtype, row_loss: Function) -> Kernel:
    """From the logits Z (chunk * n_outputs,) to the deltas, in place, and each row's loss.

    row_losses (n,) has the weighted losses in the order of the epoch.
    """
    real_type = number(dtype)
    loss = weighted_row(dtype, row_loss)

    def kernel(
        cursor, order, order_stride, n, batch_size, offset, chunk, Z, n_outputs, labels, targets,
        has_labels, weights, totals, parameter, row_losses,
    ):  # fmt: skip
        partial = cuda.shared.array((ROWS, LANES), double)
        ranked = cuda.shared.array((ROWS, LANES), real_type)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        first, count = _piece(cursor, n, batch_size, offset, chunk)
        r = cuda.blockIdx.x * ROWS + row
        loss(
            Z, r * n_outputs, n_outputs, r < count, lane, row, partial, ranked, labels, targets,
            has_labels, order, cursor[EPOCH] * order_stride + first + r, first + r, weights,
            totals[cursor[BATCH]], parameter, row_losses,
        )  # fmt: skip

    return Kernel(
        kernel,
        (
            *_BATCH_TYPES, index, real_type[::1], index, index[::1], real_type[:, ::1], index,
            double[::1], double[::1], real_type, double[::1],
        ),
    )  # fmt: skip


def softmax(dtype: np.dtype) -> Kernel:
    """Softmax of each row of Z (n_rows * width,), in place."""
    one, real_type = dtype.type(1), number(dtype)
    terms = softmax_terms(dtype)
    exp = device_function(_exp, dtype)

    def kernel(Z, n_rows, width):
        partial = cuda.shared.array((ROWS, LANES), double)
        ranked = cuda.shared.array((ROWS, LANES), real_type)
        lane, row = cuda.threadIdx.x, cuda.threadIdx.y
        r = cuda.blockIdx.x * ROWS + row
        active = r < n_rows
        base = r * width
        largest, _, others = terms(Z, base, width, active, lane, row, partial, ranked)
        if active:
            norm = one / (one + others)
            for j in range(lane, width, LANES):
                Z[base + j] = exp(Z[base + j] - largest) * norm

    return Kernel(kernel, (real_type[::1], index, index))


def unit_delta(dtype: np.dtype, f: Function, df: Function) -> Kernel:
    """The deltas for the derivative of one output by the logits: ``f'(z)`` there, 0 elsewhere."""
    zero, real_type = dtype.type(0), number(dtype)

    def kernel(Z, D, output):
        for e in range(cuda.grid(1), Z.shape[0] * Z.shape[1], cuda.gridsize(1)):
            r, j = e // Z.shape[1], e % Z.shape[1]
            z = Z[r, j]
            D[r, j] = df(z, f(z)) if j == output else zero

    matrix = real_type[:, ::1]
    return Kernel(kernel, (matrix, matrix, index))


def softmax_unit_delta(dtype: np.dtype) -> Kernel:
    """The same for softmax, from its outputs Y: ``y_j ([j = output] - y_output)``."""
    zero, one, real_type = dtype.type(0), dtype.type(1), number(dtype)

    def kernel(Y, D, output):
        for e in range(cuda.grid(1), Y.shape[0] * Y.shape[1], cuda.gridsize(1)):
            r, j = e // Y.shape[1], e % Y.shape[1]
            D[r, j] = Y[r, j] * ((one if j == output else zero) - Y[r, output])

    matrix = real_type[:, ::1]
    return Kernel(kernel, (matrix, matrix, index))


# Between the layers -------------------------------------------------------------------------------


def sum_batches() -> Kernel:
    """Sum over each batch of an epoch of values (n,), float64: losses in the order, or weights."""

    def kernel(cursor, order, order_stride, n, batch_size, gathered, values, sums):
        partial = cuda.shared.array((1, THREADS), double)
        thread, batch = cuda.threadIdx.x, cuda.blockIdx.x
        listed = cursor[EPOCH] * order_stride
        total = 0.0
        end = min(batch * batch_size + batch_size, n)
        for r in range(batch * batch_size + thread, end, THREADS):
            total += values[order[listed + r]] if gathered else values[r]
        total = _sum_of_block(partial, total)
        if thread == 0:
            sums[batch] = total

    return Kernel(
        kernel,
        (
            index[::1], index[::1], index, index, index, index, double[::1], double[::1],
        ),
    )  # fmt: skip


def finish_gradient(dtype: np.dtype) -> Kernel:
    """The gradient from its parts and the l2 term, and its squares, as sums of N_PARTIALS blocks.

    partials is (n_parts * n_parameters,), added in order. decays (n_parameters,) is 1 for weights
    and 0 for biases.
    """
    zero, real_type = dtype.type(0), number(dtype)

    def kernel(cursor, partials, n_parts, parameters, decays, l2s, gradient, squares):
        partial = cuda.shared.array((1, THREADS), double)
        thread = cuda.threadIdx.x
        size = parameters.shape[0]
        total = 0.0
        for p in range(cuda.blockIdx.x * THREADS + thread, size, N_PARTIALS * THREADS):
            g = zero
            for part in range(n_parts):
                g += partials[part * size + p]
            if decays[p] != 0:
                g += l2s[cursor[STEP]] * parameters[p]
            gradient[p] = g
            wide = double(g)
            total += wide * wide
        total = _sum_of_block(partial, total)
        if thread == 0:
            squares[cuda.blockIdx.x] = total

    vector = real_type[::1]
    return Kernel(
        kernel,
        (
            index[::1], vector, index, vector, types.uint8[::1], vector, vector, double[::1],
        ),
    )  # fmt: skip


def update_all(dtype: np.dtype, update: Function, n_slots: int) -> Kernel:
    """One update of all parameters by a gradient that comes in parts.

    With a clip_norm above 0 the gradient is whole (one part, `finish_gradient` has been there) and
    is scaled down to it; without, the parts are added here, with the l2 term.
    """
    real, real_type = dtype.type, number(dtype)
    zero = real(0)
    apply = parameter_update(dtype, update, n_slots)

    def kernel(
        cursor, totals, partials, n_parts, parameters, slots, scalars, decays, l2s, squares,
        clip_norm,
    ):  # fmt: skip
        partial = cuda.shared.array((1, THREADS), double)
        thread = cuda.threadIdx.x
        if totals[cursor[BATCH]] == 0:  # a batch without weight moves nothing
            return
        size = parameters.shape[0]
        scale = real(1)
        if clip_norm > 0:
            total = 0.0
            for k in range(thread, N_PARTIALS, THREADS):
                total += squares[k]
            norm = math.sqrt(_sum_of_block(partial, total))
            if norm > clip_norm:
                scale = real(clip_norm / norm)
        for p in range(cuda.blockIdx.x * THREADS + thread, size, cuda.gridDim.x * THREADS):
            g = zero
            for part in range(n_parts):
                g += partials[part * size + p]
            if clip_norm > 0:
                g = g * scale
            elif decays[p] != 0:
                g += l2s[cursor[STEP]] * parameters[p]
            apply(parameters, slots, p, g, scalars[cursor[STEP]])

    vector = real_type[::1]
    return Kernel(
        kernel,
        (
            index[::1], double[::1], vector, index, vector, vector, real_type[:, ::1],
            types.uint8[::1], vector, double[::1], double,
        ),
    )  # fmt: skip


def square_weights(dtype: np.dtype) -> Kernel:
    """The squares of the weights, biases left out, as sums of N_PARTIALS blocks."""
    real_type = number(dtype)

    def kernel(parameters, decays, squares):
        partial = cuda.shared.array((1, THREADS), double)
        thread = cuda.threadIdx.x
        total = 0.0
        for p in range(
            cuda.blockIdx.x * THREADS + thread, parameters.shape[0], N_PARTIALS * THREADS
        ):
            if decays[p] != 0:
                wide = double(parameters[p])
                total += wide * wide
        total = _sum_of_block(partial, total)
        if thread == 0:
            squares[cuda.blockIdx.x] = total

    return Kernel(kernel, (real_type[::1], types.uint8[::1], double[::1]))


def keep_squares() -> Kernel:
    """The sum of N_PARTIALS sums of squares, into the place of this step."""

    def kernel(cursor, squares, kept):
        partial = cuda.shared.array((1, THREADS), double)
        thread = cuda.threadIdx.x
        total = 0.0
        for k in range(thread, N_PARTIALS, THREADS):
            total += squares[k]
        total = _sum_of_block(partial, total)
        if thread == 0:
            kept[cursor[STEP]] = total

    return Kernel(kernel, (index[::1], double[::1], double[::1]))


def advance() -> Kernel:
    """Move the cursor past a step; the last kernel of each."""

    def kernel(cursor):
        cursor[STEP] += 1
        cursor[BATCH] += 1

    return Kernel(kernel, (index[::1],))


def next_epoch() -> Kernel:
    """Move the cursor to the first batch of the next epoch."""

    def kernel(cursor):
        cursor[BATCH] = 0
        cursor[EPOCH] += 1

    return Kernel(kernel, (index[::1],))


def find_not_finite(dtype: np.dtype) -> Kernel:
    """Set found[0] to 1 where one of the numbers is NaN or infinite.

    Threads that find one all write the same, so it does not matter which comes last.
    """
    zero, real_type = dtype.type(0), number(dtype)

    def kernel(values, found):
        for e in range(cuda.grid(1), values.shape[0], cuda.gridsize(1)):
            value = values[e]
            if value - value != zero:
                found[0] = 1.0

    return Kernel(kernel, (real_type[::1], double[::1]))


# Arrays of other libraries ------------------------------------------------------------------------


def convert(target: Any) -> Any:
    """Copy a (rows, width) array of any type and strides into a C-contiguous one of `target`.

    Compiled for each type of source that comes.
    """

    @cuda.jit
    def kernel(source, out):
        width = out.shape[1]
        for e in range(cuda.grid(1), out.shape[0] * width, cuda.gridsize(1)):
            out[e // width, e % width] = target(source[e // width, e % width])

    return kernel


REAL, NONNEGATIVE, UNIT, SIGN, CLASSES = range(len(TARGET_KINDS))


def find_wrong_targets(dtype: np.dtype) -> Kernel:
    """Set found[0] to 1 where a row of targets has a value that its kind does not allow."""
    real_type = number(dtype)

    def kernel(targets, kind, found):
        for r in range(cuda.grid(1), targets.shape[0], cuda.gridsize(1)):
            total = 0.0
            for j in range(targets.shape[1]):
                t = double(targets[r, j])
                total += t
                wrong = t - t != 0.0
                if kind == SIGN:
                    wrong = wrong or abs(t) != 1.0
                elif kind != REAL:
                    wrong = wrong or t < 0.0 or (kind == UNIT and t > 1.0)
                if wrong:
                    found[0] = 1.0
            if kind == CLASSES and not abs(total - 1.0) <= 1e-3:
                found[0] = 1.0

    return Kernel(kernel, (real_type[:, ::1], index, double[::1]))


def find_wrong_labels() -> Kernel:
    """Set found[0] to 1 where a label is not 0 to n_outputs - 1."""

    def kernel(labels, n_outputs, found):
        for r in range(cuda.grid(1), labels.shape[0], cuda.gridsize(1)):
            if labels[r] < 0 or labels[r] >= n_outputs:
                found[0] = 1.0

    return Kernel(kernel, (index[::1], index, double[::1]))


# Perceptrons --------------------------------------------------------------------------------------


def perceptron(dtype: np.dtype) -> Kernel:
    """Error-correction learning over rows order[first:last], one after another, by one block.

    The row's scores are sums over the features, THREADS partial sums of which are added in one
    order. mistakes[0] counts.
    """
    real, real_type = dtype.type, number(dtype)
    zero = real(0)

    def kernel(X, t, order, first, last, weights, bias, learning_rate, mistakes):
        partial = cuda.shared.array((1, THREADS), real_type)
        thread = cuda.threadIdx.x
        n_features, n_outputs = weights.shape[0], weights.shape[1]
        for at in range(first, last):
            row = order[at]
            for j in range(n_outputs):
                total = zero
                for i in range(thread, n_features, THREADS):
                    total += X[row, i] * weights[i, j]
                fires = 1 if _sum_of_block(partial, total) + bias[j] > zero else 0
                error = int(t[row, j]) - fires
                # Everybody has read the score before the bias moves and the next one is summed.
                cuda.syncthreads()
                if error != 0:
                    change = learning_rate * real(error)
                    for i in range(thread, n_features, THREADS):
                        weights[i, j] += change * X[row, i]
                    if thread == 0:
                        bias[j] += change
                        mistakes[0] += 1

    matrix = real_type[:, ::1]
    return Kernel(
        kernel,
        (
            matrix, types.uint8[:, ::1], index[::1], index, index, matrix, real_type[::1],
            real_type, index[::1],
        ),
    )  # fmt: skip
