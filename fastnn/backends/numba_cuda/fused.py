"""CUDA kernels for narrow networks: all layers of a few rows in one block's shared memory.

A block takes a tile of rows through the whole network and back, so that activations never leave
the chip. Where a batch is one tile, the block also updates the parameters and goes on with the next
batch: many steps in one launch. Otherwise each block sums the gradients of its tiles, and
`kernels.update_all` adds the sums in the order of the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fastnn.backends.numba_cuda.kernels import (
    _BATCH_TYPES,
    BATCH,
    EPOCH,
    LANES,
    ROWS,
    STEP,
    THREADS,
    _kept,
    _no_slope,
    _no_update,
    double,
    index,
    number,
    parameter_update,
    weighted_row,
)
from fastnn.backends.numba_cuda.shim import SIMULATED, Kernel, cuda, types

Function = Callable[..., Any]

MAX_WIDTH = 128
"""Networks of wider layers go through the tiled kernels."""

MAX_BLOCKS = 128
"""Blocks that share a batch. A constant, so that the order of the sums is the same on every GPU."""

GROUP = 4
"""Rows that a thread computes at once from each weight that it reads."""

TILE_ROWS = (4,) if SIMULATED else (32, 16, 8, 4)
SHARED_BYTES = 44 * 1024
"""What every GPU gives a block, 48 KiB, less the arrays for the losses."""

FAN_IN, FAN_OUT, AT, INPUT, OUTPUT, SLOPE, FORMULA, THRESHOLD, HIGH = range(9)
"""Columns of the layout, a row for each layer: its sizes, its place in the parameters, those of its
inputs, outputs and slopes in shared memory, its activation, and its dropout."""


def place(sizes: Sequence[int], itemsize: int) -> tuple[int, list[tuple[int, int, int]], int, int]:
    """How a tile lies in shared memory.

    Returns
    -------
    rows : int
        Of a tile, a multiple of GROUP; 0 where the network is too wide or too deep.
    places : list of (input, output, slope)
        Per layer, in elements. The last layer's outputs are the first delta buffer.
    second : int
        The other delta buffer.
    n_bytes : int
    """
    n_layers = len(sizes) - 1
    widest = max(sizes[1:])
    per_row = sum(sizes[:-1]) + sum(sizes[1:-1]) + 2 * widest
    rows = next((r for r in TILE_ROWS if r * per_row * itemsize <= SHARED_BYTES), 0)
    if max(sizes) > MAX_WIDTH or rows == 0:
        return 0, [], 0, 0
    inputs, at = [], 0
    for width in sizes[:-1]:
        inputs.append(at)
        at += rows * width
    slopes = []
    for width in sizes[1:-1]:
        slopes.append(at)
        at += rows * width
    first, second = at, at + rows * widest
    places = [
        (inputs[layer], [*inputs[1:], first][layer], [*slopes, 0][layer])
        for layer in range(n_layers)
    ]
    return rows, places, second, (at + 2 * rows * widest) * itemsize


def choice(functions: Sequence[Function]) -> Function:
    """A device function that calls the formula of this number: (number, z) -> y, or with y."""
    function, *others = functions
    if not others:

        def last(which, *numbers):
            return function(*numbers)

        return cuda.jit(device=True)(last)
    rest = choice(others)

    def choose(which, *numbers):
        if which == 0:
            return function(*numbers)
        return rest(which - 1, *numbers)

    return cuda.jit(device=True)(choose)


def forward_tile(dtype: np.dtype, f: Function, df: Function | None) -> Function:
    """A device function: the rows in the first layer's place, through all layers.

    Hidden layers leave outputs and slopes (with df), after dropout; the last leaves its logits. All
    threads of the block take part, and are in step when it returns.
    """
    zero = dtype.type(0)
    training = df is not None
    slope_of = choice([_no_slope]) if df is None else df

    @cuda.jit(device=True)
    def finish(shared, layout, scales, layer, is_last, r, j, z, order, listed, seed, epoch):
        width = layout[layer, FAN_OUT]
        if is_last:
            shared[layout[layer, OUTPUT] + r * width + j] = z
            return
        formula = layout[layer, FORMULA]
        y = f(formula, z)
        factor = scales[layer]
        if training:
            s = slope_of(formula, z, y)
            threshold = layout[layer, THRESHOLD]
            if threshold > 0:
                if not _kept(order[listed + r], j, seed, epoch, layout[layer, HIGH], threshold):
                    factor = zero
                y = y * factor
                s = s * factor
            shared[layout[layer, SLOPE] + r * width + j] = s
        shared[layout[layer, OUTPUT] + r * width + j] = y

    def forward(shared, layout, scales, n_layers, count, parameters, order, listed, seed, epoch):
        thread = cuda.threadIdx.x
        groups = (count + GROUP - 1) // GROUP
        for layer in range(n_layers):
            fan_in, fan_out = layout[layer, FAN_IN], layout[layer, FAN_OUT]
            at = layout[layer, AT]
            is_last = layer == n_layers - 1
            for e in range(thread, groups * fan_out, THREADS):
                j = e % fan_out
                r = e // fan_out * GROUP
                a0 = layout[layer, INPUT] + r * fan_in
                a1 = a0 + fan_in
                a2 = a1 + fan_in
                a3 = a2 + fan_in
                s0 = s1 = s2 = s3 = zero
                for k in range(fan_in):
                    w = parameters[at + k * fan_out + j]
                    s0 += shared[a0 + k] * w
                    s1 += shared[a1 + k] * w
                    s2 += shared[a2 + k] * w
                    s3 += shared[a3 + k] * w
                b = parameters[at + fan_in * fan_out + j]
                for q in range(GROUP):
                    z = (s0 if q == 0 else (s1 if q == 1 else (s2 if q == 2 else s3))) + b
                    if r + q < count:
                        finish(
                            shared, layout, scales, layer, is_last, r + q, j, z, order, listed,
                            seed, epoch,
                        )  # fmt: skip
            cuda.syncthreads()

    return cuda.jit(device=True)(forward)


def training(
    dtype: np.dtype,
    f: Function,
    df: Function,
    row_loss: Function,
    update: Function | None = None,
    n_slots: int = 0,
) -> Kernel:
    """Whole steps of one block, with an update; or the gradient of a batch, in parts.

    With an update, one block makes up to n_steps steps of the epoch and moves the cursor; batches
    are at most one tile. Without one, block b of the grid writes the sum of the gradients of its
    tiles to partials[b], (blocks, n_parameters).
    """
    real_type = number(dtype)
    zero = dtype.type(0)
    updating = update is not None
    forward, loss = forward_tile(dtype, f, df), weighted_row(dtype, row_loss)
    apply = _no_update if update is None else parameter_update(dtype, update, n_slots)

    def kernel(
        cursor, order, order_stride, n, batch_size, n_steps, X, labels, targets, has_labels,
        weights, totals, parameter, row_losses, parameters, slots, scalars, l2s, partials, layout,
        scales, n_layers, rows, second, seed, first_epoch,
    ):  # fmt: skip
        shared = cuda.shared.array(0, real_type)
        partial = cuda.shared.array((ROWS, LANES), double)
        ranked = cuda.shared.array((ROWS, LANES), real_type)
        thread = cuda.threadIdx.x
        lane, row = thread % LANES, thread // LANES
        n_inputs = layout[0, FAN_IN]
        n_outputs, logits = layout[n_layers - 1, FAN_OUT], layout[n_layers - 1, OUTPUT]
        size = parameters.shape[0]
        mine = cuda.blockIdx.x * size  # this block's part of the gradient
        step, epoch = cursor[STEP], cursor[EPOCH]
        batch = cursor[BATCH]
        n_batches = (n + batch_size - 1) // batch_size
        end = min(batch + n_steps, n_batches)
        while batch < end:
            batch_end = min(batch * batch_size + batch_size, n)
            first = batch * batch_size + cuda.blockIdx.x * rows
            fresh = True
            if not updating and first >= batch_end:  # the last batch may have fewer tiles
                for p in range(thread, size, THREADS):
                    partials[mine + p] = zero
            while first < batch_end:
                count = min(batch_end - first, rows)
                listed = epoch * order_stride + first
                for e in range(thread, count * n_inputs, THREADS):
                    shared[e] = X[order[listed + e // n_inputs], e % n_inputs]
                cuda.syncthreads()
                forward(
                    shared, layout, scales, n_layers, count, parameters, order, listed, seed,
                    first_epoch + epoch,
                )  # fmt: skip
                for r0 in range(0, count, ROWS):
                    r = r0 + row
                    loss(
                        shared, logits + r * n_outputs, n_outputs, r < count, lane, row, partial,
                        ranked, labels, targets, has_labels, order, listed + r, first + r, weights,
                        totals[batch], parameter, row_losses,
                    )  # fmt: skip
                    cuda.syncthreads()
                here = logits
                before = second
                groups = (count + GROUP - 1) // GROUP
                for back in range(n_layers):
                    layer = n_layers - 1 - back
                    fan_in, fan_out = layout[layer, FAN_IN], layout[layer, FAN_OUT]
                    at, inputs = layout[layer, AT], layout[layer, INPUT]
                    if layer > 0:
                        slopes = layout[layer - 1, SLOPE]
                        for e in range(thread, groups * fan_in, THREADS):
                            i = e % fan_in
                            r = e // fan_in * GROUP
                            d0 = here + r * fan_out
                            d1 = d0 + fan_out
                            d2 = d1 + fan_out
                            d3 = d2 + fan_out
                            s0 = s1 = s2 = s3 = zero
                            for j in range(fan_out):
                                w = parameters[at + i * fan_out + j]
                                s0 += shared[d0 + j] * w
                                s1 += shared[d1 + j] * w
                                s2 += shared[d2 + j] * w
                                s3 += shared[d3 + j] * w
                            for q in range(GROUP):
                                s = s0 if q == 0 else (s1 if q == 1 else (s2 if q == 2 else s3))
                                if r + q < count:
                                    place = (r + q) * fan_in + i
                                    shared[before + place] = s * shared[slopes + place]
                    cuda.syncthreads()  # the weights have been read: they may move
                    for e in range(thread, (fan_in + 1) * fan_out, THREADS):
                        i = e // fan_out
                        j = e % fan_out
                        g = zero
                        if i < fan_in:
                            for r in range(count):
                                g += (
                                    shared[inputs + r * fan_in + i] * shared[here + r * fan_out + j]
                                )
                        else:
                            for r in range(count):
                                g += shared[here + r * fan_out + j]
                        p = at + e
                        if updating:
                            if totals[batch] != 0:  # a batch without weight moves nothing
                                if i < fan_in:
                                    g += l2s[step] * parameters[p]
                                apply(parameters, slots, p, g, scalars[step])
                        elif fresh:
                            partials[mine + p] = g
                        else:
                            partials[mine + p] += g
                    cuda.syncthreads()
                    here, before = before, here
                fresh = False
                first += cuda.gridDim.x * rows
            batch += 1
            step += 1
        if updating:
            cuda.syncthreads()
            if thread == 0:
                cursor[STEP] = step
                cursor[BATCH] = batch

    vector, matrix = real_type[::1], real_type[:, ::1]
    return Kernel(
        kernel,
        (
            *_BATCH_TYPES, matrix, index[::1], matrix, index, double[::1], double[::1], real_type,
            double[::1], vector, vector, matrix, vector, vector, index[:, ::1], vector, index,
            index, index, types.uint64, index,
        ),
    )  # fmt: skip


def prediction(dtype: np.dtype, f: Function, link: Function) -> Kernel:
    """The outputs (n_rows, n_outputs) of rows of X, block b those of tile b."""
    real_type = number(dtype)
    forward = forward_tile(dtype, f, None)

    def kernel(X, parameters, layout, scales, n_layers, rows, nothing, Y):
        shared = cuda.shared.array(0, real_type)
        thread = cuda.threadIdx.x
        n_inputs = layout[0, FAN_IN]
        n_outputs, logits = layout[n_layers - 1, FAN_OUT], layout[n_layers - 1, OUTPUT]
        first = cuda.blockIdx.x * rows
        count = min(X.shape[0] - first, rows)
        for e in range(thread, count * n_inputs, THREADS):
            shared[e] = X[first + e // n_inputs, e % n_inputs]
        cuda.syncthreads()
        forward(shared, layout, scales, n_layers, count, parameters, nothing, 0, np.uint64(0), 0)
        for e in range(thread, count * n_outputs, THREADS):
            Y[first + e // n_outputs, e % n_outputs] = link(shared[logits + e])

    vector, matrix = real_type[::1], real_type[:, ::1]
    return Kernel(
        kernel,
        (matrix, vector, index[:, ::1], vector, index, index, index[::1], matrix),
    )
