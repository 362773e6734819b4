"""The kernels and the driver of the Numba backend, compiled when first needed.

Two kinds of code. The driver (forward, loss, backward, gradient, update, whole epochs) is compiled
once for each dtype. What a model chooses (activations, loss, optimizer, the type of X) is a small
kernel over whole arrays, compiled from the tables' scalar formulas, that the driver calls by its
address: so a new model compiles a few lines and not a driver, and nothing of it needs the GIL.

Arrays reach compiled code as addresses. All shapes have been checked by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from time import perf_counter
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastnn.backends.numba_cpu.functions import (
    MACHINE_FEATURES,
    emit_fma,
    fma,
    inline,
    inner,
    intrinsic,
    jit,
    library,
    scalar_function,
)

__all__ = [
    "BLOCK",
    "CHUNK_ROWS",
    "address",
    "compiled",
    "fill_permutation",
    "input_gradient",
    "perceptron",
    "predict",
    "train",
]

BLOCK = 256
"""Reduction indices whose products are chained; block sums are added in order (law 1)."""

CHUNK_ROWS = BLOCK
"""Rows that pass through all layers together."""


_KERNEL_SECONDS: list[float] = []

# Pointers ----------------------------------------------------------------------------------------


def address(array: np.ndarray | None) -> int:
    """Where an array starts; 0 for None."""
    return 0 if array is None else array.__array_interface__["data"][0]


@intrinsic
def pointer(typingctx, example, address):
    """An address as a pointer to numbers of the array `example`'s dtype, or of its own type."""
    target = types.CPointer(example.dtype)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(target))

    return target(example, types.intp), codegen


@intrinsic
def start_of(typingctx, array):
    """Pointer to the first number of an array."""
    target = types.CPointer(array.dtype)

    def codegen(context, builder, signature, args):
        return cgutils.create_struct_proxy(array)(context, builder, args[0]).data

    return target(array), codegen


@intrinsic
def shift(typingctx, p, n):
    """P + n, in numbers."""

    def codegen(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return p(p, types.intp), codegen


@intrinsic
def copy(typingctx, to, source, n):
    """N numbers from one place to another, apart from it."""

    def codegen(context, builder, signature, args):
        cgutils.raw_memcpy(builder, args[0], args[1], args[2], to.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(to, source, types.intp), codegen


@intrinsic
def number(typingctx, p, value):
    """A value as a number of the type that p points to."""

    def codegen(context, builder, signature, args):
        return context.cast(builder, args[1], value, p.dtype)

    return p.dtype(p, value), codegen


@intrinsic
def call(typingctx, target, args):
    """Call the kernel at an address with the arguments of a tuple."""
    signature = types.void(types.intp, args)

    def codegen(context, builder, sig, values):
        items = cgutils.unpack_tuple(builder, values[1])
        # as C passes them: integers and flags by their own width
        items = [
            context.get_value_as_argument(builder, kind, item)
            for kind, item in zip(args.types, items, strict=True)
        ]
        kind = ir.FunctionType(ir.VoidType(), [item.type for item in items])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), items)
        return context.get_dummy_value()

    return signature, codegen


# The product -------------------------------------------------------------------------------------


VECTOR_BYTES = 64 if "avx512f" in MACHINE_FEATURES else 32 if "avx2" in MACHINE_FEATURES else 16


@intrinsic
def lanes(typingctx, p):
    """Numbers in a vector."""
    n = VECTOR_BYTES // (p.dtype.bitwidth // 8)

    def codegen(context, builder, signature, args):
        return ir.Constant(context.get_value_type(types.intp), n)

    return types.intp(p), codegen


ROWS = 4  # of a tile: with two vectors, as many chains as hide the latency of a multiply-add

# Widths of tiles, widest first: (vectors, what a vector of the machine is divided by). The first is
# for one row, the last ones for what is left of the columns.
_WIDTHS = ((8, 1), (2, 1), (1, 1), (1, 2), (1, 4), (1, 8), (1, 16))


def _emit_tile(function: ir.Function, n_rows: int, n_vectors: int, vector: Any, size: int) -> None:
    """The body of a micro-kernel: n_rows by n_vectors vectors of sums, in registers.

    ``c[i, j] (+)= sum over p of a[i, p] b[p, j] (+ bias[j])`` for p < k, k >= 1: each sum is a
    chain of fused multiply-adds from 0 in the order of p. Vectors run along j, so their width
    changes no bit.
    """
    a, a_row, a_col, b, b_row, bias, c, c_row, k, accumulate, last = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    index = k.type
    n_lanes = vector.count if isinstance(vector, ir.VectorType) else 1
    zero = ir.Constant(vector, [0.0] * n_lanes if n_lanes > 1 else 0.0)

    def load(p: Any, v: int) -> Any:
        at = builder.gep(p, [ir.Constant(index, v * n_lanes)])
        value = builder.load(builder.bitcast(at, vector.as_pointer()))
        value.align = size
        return value

    def splat(x: Any) -> Any:
        if n_lanes == 1:
            return x
        word = ir.IntType(32)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), x, ir.Constant(word, 0))
        mask = ir.Constant(ir.VectorType(word, n_lanes), None)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)

    rows = [builder.gep(a, [builder.mul(ir.Constant(index, i), a_row)]) for i in range(n_rows)]
    entry, loop = builder.block, builder.append_basic_block("chain")
    after = builder.append_basic_block("chained")
    builder.branch(loop)
    builder.position_at_end(loop)
    p = builder.phi(index)
    p.add_incoming(ir.Constant(index, 0), entry)
    chains = [[builder.phi(vector) for _ in range(n_vectors)] for _ in range(n_rows)]
    b_at, a_at = builder.gep(b, [builder.mul(p, b_row)]), builder.mul(p, a_col)
    b_values = [load(b_at, v) for v in range(n_vectors)]
    sums = []
    for row, chain in zip(rows, chains, strict=True):
        x = splat(builder.load(builder.gep(row, [a_at])))
        sums.append([emit_fma(builder, x, *both) for both in zip(b_values, chain, strict=True)])
        for phi, following in zip(chain, sums[-1], strict=True):
            phi.add_incoming(zero, entry)
            phi.add_incoming(following, loop)
    following_p = builder.add(p, ir.Constant(index, 1))
    p.add_incoming(following_p, loop)
    builder.cbranch(builder.icmp_signed("<", following_p, k), loop, after)
    builder.position_at_end(after)
    for i in range(n_rows):
        c_at = builder.gep(c, [builder.mul(ir.Constant(index, i), c_row)])
        for v, total in enumerate(sums[i]):
            total = builder.select(accumulate, builder.fadd(load(c_at, v), total), total)  # noqa: PLW2901
            total = builder.select(last, builder.fadd(total, load(bias, v)), total)  # noqa: PLW2901
            to = builder.gep(c_at, [ir.Constant(index, v * n_lanes)])
            builder.store(total, builder.bitcast(to, vector.as_pointer()), align=size)
    builder.ret_void()


@intrinsic
def tile(typingctx, width, few, a, a_row, a_col, b, b_row, bias, c, c_row, k, accumulate, last):
    """One tile of a product: `width` is an entry of _WIDTHS, `few` means one row and not ROWS."""
    integer, flag = types.intp, types.boolean
    arguments = (a, integer, integer, b, integer, bias, c, integer, integer, flag, flag)
    signature = types.void(integer, flag, *arguments)

    def codegen(context, builder, sig, args):
        width, few, *values = args
        size = a.dtype.bitwidth // 8
        real = context.get_value_type(a.dtype)
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        end = builder.append_basic_block("tiled")
        choice = builder.add(builder.shl(width, ir.Constant(width.type, 1)),
                             builder.zext(few, width.type))  # fmt: skip
        switch = builder.switch(choice, end)
        for w, (n_vectors, divisor) in enumerate(_WIDTHS):
            n_lanes = VECTOR_BYTES // size // divisor
            if n_lanes == 0:
                continue
            for one_row in (0, 1):
                if w == 0 and not one_row:
                    continue
                name = f"fastnn_tile_{w}_{one_row}_{a.dtype}"
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                vector = ir.VectorType(real, n_lanes) if n_lanes > 1 else real
                _emit_tile(function, 1 if one_row else ROWS, n_vectors, vector, size)
                block = builder.append_basic_block(name)
                switch.add_case(ir.Constant(width.type, 2 * w + one_row), block)
                builder.position_at_end(block)
                builder.call(function, values)
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return signature, codegen


def product(a, a_row, a_col, b, b_row, bias, c, c_row, m, n, k, accumulate, add_bias):
    """``c[i, j] (+)= sum over p of a[i, p] b[p, j] (+ bias[j])``, i < m, j < n, p < k.

    Law 1: chains of fused multiply-adds over BLOCK indices, block sums added in order; which tile
    takes an element changes no bit. a[i, p] lies at i a_row + p a_col, b[p, j] at p b_row + j,
    c[i, j] at i c_row + j. bias is read where add_bias says so, and may else be any pointer.
    """
    v = lanes(c)
    j = 0
    while j < n:
        left = n - j
        if left >= 8 * v and m < ROWS:
            width, n_columns = 0, 8 * v
        elif left >= 2 * v:
            width, n_columns = 1, 2 * v
        else:
            width, n_columns = 2, v
            while n_columns > left:
                width, n_columns = width + 1, n_columns // 2
        b_j, c_j, bias_j = shift(b, j), shift(c, j), shift(bias, j)
        k0 = 0
        while k0 < k:
            length = min(BLOCK, k - k0)
            more, last = accumulate or k0 > 0, add_bias and k0 + length == k
            a_k, b_k = shift(a, k0 * a_col), shift(b_j, k0 * b_row)
            i = 0
            while i < m:
                few = width == 0 or m - i < ROWS
                tile(
                    width, few, shift(a_k, i * a_row), a_row, a_col, b_k, b_row, bias_j,
                    shift(c_j, i * c_row), c_row, length, more, last,
                )  # fmt: skip
                i += 1 if few else ROWS
            k0 += length
        j += n_columns


@lru_cache(maxsize=2)
def product_kernel(dtype: Any) -> int:
    """`product` for a dtype, compiled once: a copy of it in each caller would take seconds."""
    p, i, flag = types.CPointer(_real(dtype)), types.intp, types.boolean
    return _address_of(product, p, i, i, p, i, p, p, i, i, i, i, flag, flag)


# Kernels that a model chooses ---------------------------------------------------------------------

_INT64 = types.CPointer(types.int64)
_FLOAT64 = types.CPointer(types.float64)
_KEPT: list[Any] = []  # compiled code lives as long as its owner


def _real(dtype: Any) -> Any:
    return types.float32 if np.dtype(dtype) == np.float32 else types.float64


def _address_of(function: Callable[..., None], *arguments: Any) -> int:
    """Compile a kernel for C; where it is."""
    began = perf_counter()
    # Any: what mypy knows of it depends on whether Numba is there to be looked at.
    compiled: Any = numba.cfunc(types.void(*arguments), error_model="numpy")(function)
    _KEPT.append(compiled)
    _KERNEL_SECONDS.append(perf_counter() - began)
    return int(compiled.address)


@lru_cache(maxsize=1024)
def activate_kernel(formula: Any, dtype: Any) -> int:
    """(n_rows, n_cols, z, y): y = f(z)."""
    p = types.CPointer(_real(dtype))
    if formula is None:
        return _address_of(_softmax(dtype)[0], types.intp, types.intp, p, p)
    f = scalar_function(formula, dtype)

    def activate(n_rows, n_cols, z, y):
        for i in range(n_rows * n_cols):
            y[i] = f(z[i])

    return _address_of(activate, types.intp, types.intp, p, p)


@lru_cache(maxsize=1024)
def slope_kernel(formula: Any, dtype: Any) -> int:
    """(n_rows, n_cols, z, y, delta): from the derivative by y to that by z, in place."""
    p = types.CPointer(_real(dtype))
    if formula is None:
        return _address_of(_softmax(dtype)[1], types.intp, types.intp, p, p, p)
    df = scalar_function(formula, dtype)

    def slope(n_rows, n_cols, z, y, delta):
        for i in range(n_rows * n_cols):
            delta[i] = delta[i] * df(z[i], y[i])

    return _address_of(slope, types.intp, types.intp, p, p, p)


def _exponentials(dtype: Any) -> Any:
    exp, one, nothing = library(np.dtype(dtype).type).exp, dtype(1), dtype(0)

    @inline
    def exponentials(z, n, e):
        """E = exp(z - max); returns max, where it first is, and the sum of the other exponentials.

        Kept apart from the largest, whose exponential is 1, so that log1p sees what is left when
        one output dominates.
        """
        first, largest = 0, z[0]
        for j in range(1, n):
            if z[j] > largest:
                first, largest = j, z[j]
        total = 0.0
        for j in range(n):
            e[j] = exp(z[j] - largest)
        for j in range(n):
            # of the largest: 0, or NaN where it is not finite
            total += np.float64(e[j] - one if j == first else e[j])
        return largest, first, number(e, total) + nothing

    return exponentials


def softmax_row(dtype: Any) -> Any:
    """A function (z, n, y) for compiled code: the softmax of one row; y may be z."""
    exponentials, one = _exponentials(dtype), np.dtype(dtype).type(1)

    @inline
    def softmax(z, n, y):
        _, _, rest = exponentials(z, n, y)
        total = one + rest
        for j in range(n):
            y[j] = y[j] / total

    return softmax


def _softmax(dtype: Any) -> tuple[Any, Any]:
    dtype = np.dtype(dtype).type
    softmax, nothing = softmax_row(dtype), dtype(0)

    def activate(n_rows, n_cols, z, y):
        for r in range(n_rows):
            softmax(shift(z, r * n_cols), n_cols, shift(y, r * n_cols))

    def slope(n_rows, n_cols, z, y, delta):
        for r in range(n_rows):
            y_r, d = shift(y, r * n_cols), shift(delta, r * n_cols)
            mean = nothing
            for j in range(n_cols):
                mean = fma(d[j], y_r[j], mean)
            for j in range(n_cols):
                d[j] = y_r[j] * (d[j] - mean)

    return activate, slope


@lru_cache(maxsize=256)
def loss_kernel(value: Any, gradient: Any, dtype: Any) -> int:
    """(n_rows, n_cols, x, t, labels, p, scale, delta, row_loss).

    Loss of each row, summed in float64, and delta = scale[row] times the derivative by x: outputs
    or logits. value None: cross-entropy of the softmax of logits; labels may then be read instead
    of t.
    """
    dtype = np.dtype(dtype).type
    p = types.CPointer(_real(dtype))
    kinds = (types.intp, types.intp, p, p, _INT64, types.float64, p, p, _FLOAT64)
    if value is None:
        return _address_of(_cross_entropy(dtype), *kinds)
    f, df = scalar_function(value, dtype), scalar_function(gradient, dtype)

    def loss(n_rows, n_cols, x, t, labels, parameter, scale, delta, row_loss):
        q = number(x, parameter)
        for r in range(n_rows):
            total = 0.0
            for i in range(r * n_cols, (r + 1) * n_cols):
                total += np.float64(f(x[i], t[i], q))
            row_loss[r] = total
        for r in range(n_rows):
            for i in range(r * n_cols, (r + 1) * n_cols):
                delta[i] = df(x[i], t[i], q) * scale[r]

    return _address_of(loss, *kinds)


def _cross_entropy(dtype: Any) -> Any:
    exponentials, log1p = _exponentials(dtype), library(dtype).log1p
    one, nothing = dtype(1), dtype(0)

    def cross_entropy(n_rows, n_cols, x, t, labels, parameter, scale, delta, row_loss):
        for r in range(n_rows):
            z, target = shift(x, r * n_cols), shift(t, r * n_cols)
            d = shift(delta, r * n_cols)
            largest, first, rest = exponentials(z, n_cols, d)
            total, log_rest, factor = one + rest, log1p(rest), scale[r]
            if parameter != 0:  # labels
                for j in range(n_cols):
                    d[j] = d[j] / total * factor
                label = labels[r]
                # p - 1 of the largest is -rest / total: no cancellation when a class is certain
                if label == first:
                    d[label] = -(rest / total) * factor
                else:
                    d[label] = d[label] - factor
                row_loss[r] = np.float64(largest - z[label] + log_rest)
                continue
            weight, loss = nothing, 0.0
            for j in range(n_cols):
                weight = weight + target[j]
                # max - z may overflow, which must not matter where the target is 0
                if target[j] != nothing:
                    loss += np.float64(target[j] * (largest - z[j]))
            row_loss[r] = loss + np.float64(weight * log_rest)
            for j in range(n_cols):
                d[j] = fma(d[j] / total, weight, -target[j]) * factor

    return cross_entropy


@lru_cache(maxsize=256)
def update_kernel(formula: Any, n_slots: int, momentum_slot: int | None, dtype: Any) -> int:
    """(n, h, l2, scale, g, w, a, b): a step of n parameters, of gradient scale (g + l2 w)."""
    dtype = np.dtype(dtype).type
    p = types.CPointer(_real(dtype))
    step, nothing = scalar_function(formula, dtype), dtype(0)
    # as csrc/optimizers.def leaves numbers
    least = np.finfo(dtype).smallest_normal
    least_a, least_b = (least * dtype(2**24 if slot == momentum_slot else 1) for slot in (0, 1))

    @inner
    def flush(x, least):
        return nothing if abs(x) < least else x

    def update(n, h_at, l2, scale, g, w, a, b):
        h = (h_at[0], h_at[1], h_at[2], h_at[3], h_at[4], h_at[5], h_at[6], h_at[7])
        penalty, factor = number(w, l2), number(w, scale)
        for i in range(n):
            slope = fma(penalty, w[i], g[i]) * factor
            old_a = a[i] if n_slots > 0 else nothing
            old_b = b[i] if n_slots > 1 else nothing
            new_w, new_a, new_b = step(w[i], slope, old_a, old_b, h)
            w[i] = flush(new_w, least)
            if n_slots > 0:
                a[i] = flush(new_a, least_a)
            if n_slots > 1:
                b[i] = flush(new_b, least_b)

    real = types.float64
    return _address_of(update, types.intp, p, real, real, p, p, p, p)


def _source_pointer(kind: Any) -> Any:
    @intrinsic
    def source(typingctx, address):
        target = types.CPointer(kind)

        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(target))

        return target(types.intp), codegen

    return source


byte_pointer = _source_pointer(types.uint8)


@lru_cache(maxsize=64)
def gather_kernel(source: Any, dtype: Any) -> int:
    """(X, row_bytes, col_bytes, samples, n_rows, n_cols, rows): rows of X, converted."""
    p = types.CPointer(_real(dtype))
    kind = types.uint8 if source == np.bool_ else numba.from_dtype(source)
    item_bytes, at = np.dtype(source).itemsize, _source_pointer(kind)

    def gather(data, row_bytes, col_bytes, samples, n_rows, n_cols, rows):
        for r in range(n_rows):
            start, row = data + samples[r] * row_bytes, shift(rows, r * n_cols)
            if col_bytes == item_bytes:
                values = at(start)
                for j in range(n_cols):
                    row[j] = number(rows, values[j])
            else:
                for j in range(n_cols):
                    row[j] = number(rows, at(start + j * col_bytes)[0])

    intp = types.intp
    return _address_of(gather, intp, intp, intp, _INT64, intp, intp, p)


_LOW, _HALF_WORD = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


@inline
def philox(seed, c0, c1, c2, c3):
    """Ten rounds of Philox4x32; see fastnn/rng.py."""
    k0, k1 = seed & _LOW, seed >> _HALF_WORD
    for _ in range(10):
        p0, p1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (
            (p1 >> _HALF_WORD) ^ c1 ^ k0,
            p1 & _LOW,
            (p0 >> _HALF_WORD) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


def dropout_factors(seed, stream, epoch, layer, rate, samples, n_rows, n_units, factor):
    """factor[r, u]: 0 where a unit is dropped, else 1 / (1 - rate); see rng.dropout_mask."""
    kept, dropped = number(factor, 1.0 / (1.0 - rate)), number(factor, 0.0)
    threshold = np.uint64(rate * 4294967296.0)
    for r in range(n_rows):
        row = np.uint64(samples[r])
        high = np.uint64(stream << 28 | (layer & 0xFFF) << 16)
        high |= (row >> _HALF_WORD) & np.uint64(0xFFFF)
        at = shift(factor, r * n_units)
        for u in range(0, n_units, 4):
            words = philox(
                np.uint64(seed), row & _LOW, np.uint64(u // 4) & _LOW, np.uint64(epoch) & _LOW, high
            )
            for i in range(min(4, n_units - u)):
                at[u + i] = kept if words[i] >= threshold else dropped


@lru_cache(maxsize=2)
def dropout_kernel(dtype: Any) -> int:
    """`dropout_factors` for a dtype."""
    i, p = types.int64, types.CPointer(_real(dtype))
    return _address_of(dropout_factors, i, i, i, i, types.float64, _INT64, i, i, p)


# The driver ---------------------------------------------------------------------------------------

# Columns of `layers`, a row for each layer: shapes, where its parameters and its buffers begin, and
# the addresses of its kernels.
(
    FAN_IN, FAN_OUT, WEIGHT, BIAS, INPUT, Z, Y, DROPPED, FACTOR, DELTA, TRANSPOSED, ACTIVATE, SLOPE,
    N_LAYER_COLUMNS,
) = range(14)  # fmt: skip
# Entries of `job`: addresses and sizes.
(
    GATHER, X, X_ROW_BYTES, X_COL_BYTES, N_SAMPLES, ORDERS, LABELS, TARGETS, SAMPLE_WEIGHT, LOSS,
    THROUGH_LOGITS, SOFTMAX_LABELS, UPDATE, N_SLOTS, SLOTS, SLOT_STRIDE, SCALARS, N_SCALARS,
    BATCH_SIZE, N_EPOCHS, STEP_L2, STEP_RECORD, CLIP, DROPOUT, SEED, STREAM, FIRST_EPOCH, MODE,
    BATCH_AT, TARGETS_AT, N_FEATURES, PRODUCT, N_JOB,
) = range(33)  # fmt: skip
# Entries of `numbers`.
LOSS_PARAMETER, L2, CLIP_NORM, N_NUMBERS = range(4)
# Entries of `state`, which lives from one call of the driver to the next.
EPOCH, BATCH, START, POSITION, STEP, STATUS, N_STATE = range(7)
EPOCH_LOSS, EPOCH_WEIGHT, BATCH_LOSS, BATCH_WEIGHT, N_TOTALS = range(5)
TRAIN, GRADIENT, LOSS_ONLY = range(3)
RUNNING, DONE, STOPPED, DIVERGED = range(4)


@intrinsic
def layer_of(typingctx, layers, index):
    """Row `index` of `layers`, as a pointer: a view would be counted, and that is not free."""
    target = types.CPointer(layers.dtype)

    def codegen(context, builder, signature, args):
        data = cgutils.create_struct_proxy(layers)(context, builder, args[0]).data
        at = builder.mul(args[1], ir.Constant(args[1].type, N_LAYER_COLUMNS))
        return builder.gep(data, [at])

    return target(layers, types.intp), codegen


@inner
def forward(parameters, layers, rates, work, job, samples, n, epoch, link):
    """Outputs of all layers for n gathered rows; without `link` the last stops at its logits."""
    w, buffers = start_of(parameters), start_of(work)
    for index in range(len(layers)):
        layer = layer_of(layers, index)
        fan_in, fan_out = layer[FAN_IN], layer[FAN_OUT]
        z, y = shift(buffers, layer[Z]), shift(buffers, layer[Y])
        call(
            job[PRODUCT],
            (
                shift(buffers, layer[INPUT]), fan_in, 1, shift(w, layer[WEIGHT]), fan_out,
                shift(w, layer[BIAS]), z, fan_out, n, fan_out, fan_in, False, True,
            ),
        )  # fmt: skip
        if index == len(layers) - 1 and not link:
            return
        call(layer[ACTIVATE], (n, fan_out, z, y))
        if job[DROPOUT] != 0 and rates[index] > 0:
            factor, dropped = shift(buffers, layer[FACTOR]), shift(buffers, layer[DROPPED])
            call(
                job[DROPOUT],
                (
                    job[SEED], job[STREAM], epoch, index, rates[index], start_of(samples), n,
                    fan_out, factor,
                ),
            )  # fmt: skip
            for i in range(n * fan_out):
                dropped[i] = factor[i] * y[i]


@inner
def backward(layers, rates, work, job, n):
    """Deltas of all layers from the last layer's."""
    buffers = start_of(work)
    for index in range(len(layers) - 1, 0, -1):
        layer, below = layer_of(layers, index), layer_of(layers, index - 1)
        fan_in, fan_out = layer[FAN_IN], layer[FAN_OUT]
        delta, d = shift(buffers, layer[DELTA]), shift(buffers, below[DELTA])
        weights = shift(buffers, layer[TRANSPOSED])
        call(
            job[PRODUCT],
            (delta, fan_out, 1, weights, fan_in, d, d, fan_in, n, fan_in, fan_out, False, False),
        )
        if job[DROPOUT] != 0 and rates[index - 1] > 0:
            factor = shift(buffers, below[FACTOR])
            for i in range(n * fan_in):
                d[i] = factor[i] * d[i]
        z, y = shift(buffers, below[Z]), shift(buffers, below[Y])
        call(below[SLOPE], (n, fan_in, z, y, d))


@inner
def transpose(parameters, layers, work, first):
    """The weights of layers `first` and up as the backward pass reads them."""
    for index in range(first, len(layers)):
        layer = layer_of(layers, index)
        w = shift(start_of(parameters), layer[WEIGHT])
        to = shift(start_of(work), layer[TRANSPOSED])
        fan_in, fan_out = layer[FAN_IN], layer[FAN_OUT]
        for j in range(fan_out):
            for k in range(fan_in):
                to[j * fan_in + k] = w[k * fan_out + j]


@inner
def losses_and_delta(layers, work, job, numbers, samples, row_loss, scale, batch_labels, n, total):
    """Loss of each of n rows, and the last layer's delta, from its logits."""
    layer, buffers = layer_of(layers, len(layers) - 1), start_of(work)
    n_outputs = layer[FAN_OUT]
    z, y, delta = (shift(buffers, layer[Z]), shift(buffers, layer[Y]), shift(buffers, layer[DELTA]))
    t = shift(buffers, job[TARGETS_AT])
    zero, one = number(t, 0.0), number(t, 1.0)
    weights = pointer(row_loss, job[SAMPLE_WEIGHT])
    targets, labels = pointer(work, job[TARGETS]), pointer(samples, job[LABELS])
    for r in range(n):
        s = samples[r]
        share = weights[s] if job[SAMPLE_WEIGHT] != 0 else 1.0
        scale[r] = share / total
        if job[LABELS] != 0:
            batch_labels[r] = labels[s]
            for j in range(n_outputs):
                t[r * n_outputs + j] = one if labels[s] == j else zero
        else:
            for j in range(n_outputs):
                t[r * n_outputs + j] = targets[s * n_outputs + j]
    factor, chosen, losses = start_of(scale), start_of(batch_labels), start_of(row_loss)
    if job[THROUGH_LOGITS] != 0:
        parameter = 1.0 if job[SOFTMAX_LABELS] != 0 else numbers[LOSS_PARAMETER]
        call(job[LOSS], (n, n_outputs, z, t, chosen, parameter, factor, delta, losses))
        return
    call(layer[ACTIVATE], (n, n_outputs, z, y))
    ones = shift(factor, len(scale) // 2)
    call(job[LOSS], (n, n_outputs, y, t, chosen, numbers[LOSS_PARAMETER], ones, delta, losses))
    call(layer[SLOPE], (n, n_outputs, z, y, delta))
    for r in range(n):
        for i in range(r * n_outputs, (r + 1) * n_outputs):
            delta[i] = delta[i] * factor[r]


@inner
def gradients(layers, work, job, gradient, ones, n, more):
    """The gradient of all parameters over n rows, added to what is there if `more`."""
    buffers, g, one = start_of(work), start_of(gradient), start_of(ones)
    for index in range(len(layers)):
        layer = layer_of(layers, index)
        fan_in, fan_out = layer[FAN_IN], layer[FAN_OUT]
        inputs, delta = shift(buffers, layer[INPUT]), shift(buffers, layer[DELTA])
        to, bias = shift(g, layer[WEIGHT]), shift(g, layer[BIAS])
        call(
            job[PRODUCT],
            (inputs, 1, fan_in, delta, fan_out, to, to, fan_out, fan_in, fan_out, n, more, False),
        )
        # the same chain as a row of inputs that are all 1
        call(
            job[PRODUCT],
            (one, 0, 0, delta, fan_out, bias, bias, fan_out, 1, fan_out, n, more, False),
        )


@inner
def sum_of_squares(p, n):
    """In float64: eight chains over the indices modulo 8, added pairwise."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = n // 8 * 8
    for i in range(0, whole, 8):
        x0, x1, x2, x3 = (np.float64(p[i]), np.float64(p[i + 1]), np.float64(p[i + 2]),
                          np.float64(p[i + 3]))  # fmt: skip
        x4, x5, x6, x7 = (np.float64(p[i + 4]), np.float64(p[i + 5]), np.float64(p[i + 6]),
                          np.float64(p[i + 7]))  # fmt: skip
        s0 += x0 * x0
        s1 += x1 * x1
        s2 += x2 * x2
        s3 += x3 * x3
        s4 += x4 * x4
        s5 += x5 * x5
        s6 += x6 * x6
        s7 += x7 * x7
    for i in range(whole, n):
        x = np.float64(p[i])
        square, q = x * x, i - whole
        s0 += square if q == 0 else 0.0
        s1 += square if q == 1 else 0.0
        s2 += square if q == 2 else 0.0
        s3 += square if q == 3 else 0.0
        s4 += square if q == 4 else 0.0
        s5 += square if q == 5 else 0.0
        s6 += square if q == 6 else 0.0
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@jit
def squared_weights(parameters, layers):
    """The sum of the squares of all weights, biases left out."""
    total = 0.0
    for index in range(len(layers)):
        layer = layer_of(layers, index)
        n = layer[FAN_IN] * layer[FAN_OUT]
        total += sum_of_squares(shift(start_of(parameters), layer[WEIGHT]), n)
    return total


@jit
def add_penalty(parameters, layers, gradient, l2):
    """Add l2 W to the gradient."""
    w, g = start_of(parameters), start_of(gradient)
    factor = number(w, l2)
    for index in range(len(layers)):
        layer = layer_of(layers, index)
        for i in range(layer[WEIGHT], layer[WEIGHT] + layer[FAN_IN] * layer[FAN_OUT]):
            g[i] = fma(factor, w[i], g[i])


@inner
def update(parameters, layers, job, numbers, gradient, h, step, l2):
    """The optimizer's step on all parameters."""
    w, g = start_of(parameters), start_of(gradient)
    n_parameters, n_scalars = len(parameters), job[N_SCALARS]
    row = shift(pointer(numbers, job[SCALARS]), step * n_scalars)
    for k in range(n_scalars):
        h[k] = row[k]
    a = pointer(parameters, job[SLOTS]) if job[N_SLOTS] > 0 else w
    b = shift(a, job[SLOT_STRIDE]) if job[N_SLOTS] > 1 else w
    scalars = start_of(h)
    if job[CLIP] != 0:
        if l2 != 0:
            add_penalty(parameters, layers, gradient, l2)
        norm = sum_of_squares(g, n_parameters) ** 0.5
        factor = numbers[CLIP_NORM] / norm if norm > numbers[CLIP_NORM] else 1.0
        call(job[UPDATE], (n_parameters, scalars, 0.0, factor, g, w, a, b))
        return
    for index in range(len(layers)):
        layer = layer_of(layers, index)
        at, n = layer[WEIGHT], layer[FAN_IN] * layer[FAN_OUT]
        call(
            job[UPDATE],
            (n, scalars, l2, 1.0, shift(g, at), shift(w, at), shift(a, at), shift(b, at)),
        )
        at, n = layer[BIAS], layer[FAN_OUT]
        call(
            job[UPDATE],
            (n, scalars, 0.0, 1.0, shift(g, at), shift(w, at), shift(a, at), shift(b, at)),
        )


@inner
def copy_state(parameters, job, snapshot, restore):
    """Parameters and slots into the snapshot, or back."""
    n = len(parameters)
    kept, w = start_of(snapshot), start_of(parameters)
    slots = pointer(parameters, job[SLOTS])
    for s in range(1 + job[N_SLOTS]):
        here = w if s == 0 else shift(slots, (s - 1) * job[SLOT_STRIDE])
        there = shift(kept, s * n)
        if restore != 0:
            copy(here, there, n)
        else:
            copy(there, here, n)


@inner
def all_finite(parameters):
    """Whether every parameter is finite: x * 0 is NaN for the others."""
    total = parameters[0] - parameters[0]
    for i in range(len(parameters)):
        total += parameters[i] - parameters[i]
    return total == 0


@inner
def gather(job, samples, first, n, order, work):
    """The next n rows of the epoch: their numbers, and what they hold."""
    if order == 0:
        for r in range(n):
            samples[r] = first + r
    else:
        numbers = pointer(samples, order)
        for r in range(n):
            samples[r] = numbers[first + r]
    rows = shift(start_of(work), job[BATCH_AT])
    call(
        job[GATHER],
        (
            job[X], job[X_ROW_BYTES], job[X_COL_BYTES], start_of(samples), n, job[N_FEATURES], rows,
        ),
    )  # fmt: skip


@jit
def train(
    parameters, layers, rates, job, numbers, state, totals, losses, work, gradient, snapshot,
    samples, row_loss, scale, batch_labels, ones, h, stop, budget,
):  # fmt: skip
    """Epochs of training, a gradient or a loss: what `job` asks for, in pieces.

    Returns after about `budget` rows, at a whole chunk, or when `state` says that all is done; the
    next call goes on there.
    """
    mode, n_samples = job[MODE], job[N_SAMPLES]
    n_rows_at_once = len(samples)
    while state[EPOCH] < job[N_EPOCHS]:
        epoch, start = state[EPOCH], state[START]
        order = job[ORDERS]
        if order != 0:
            order += epoch * n_samples * 8
        end = min(start + job[BATCH_SIZE], n_samples)
        if state[POSITION] == start:  # a batch begins
            if stop[0] != 0:
                state[STATUS] = STOPPED
                return
            if start == 0:
                totals[EPOCH_LOSS] = totals[EPOCH_WEIGHT] = 0.0
                state[BATCH] = 0
                if mode == TRAIN:
                    copy_state(parameters, job, snapshot, 0)
            weight = float(end - start)
            if job[SAMPLE_WEIGHT] != 0:
                weights, rows = pointer(row_loss, job[SAMPLE_WEIGHT]), pointer(samples, order)
                weight = 0.0
                for r in range(start, end):
                    weight += weights[rows[r] if order != 0 else r]
            totals[BATCH_WEIGHT] = weight
            totals[BATCH_LOSS] = 0.0
            if mode != LOSS_ONLY:
                transpose(parameters, layers, work, 1)
            if job[STEP_RECORD] != 0:
                record = pointer(row_loss, job[STEP_RECORD])
                record[2 * state[STEP] + 1] = squared_weights(parameters, layers)
        moves = totals[BATCH_WEIGHT] > 0
        total = totals[BATCH_WEIGHT] if moves else 1.0
        position = state[POSITION]
        n = min(n_rows_at_once, end - position)
        gather(job, samples, position, n, order, work)
        forward(parameters, layers, rates, work, job, samples, n, job[FIRST_EPOCH] + epoch, False)
        losses_and_delta(
            layers, work, job, numbers, samples, row_loss, scale, batch_labels, n, total
        )
        weights = pointer(row_loss, job[SAMPLE_WEIGHT])
        for r in range(n):
            share = weights[samples[r]] if job[SAMPLE_WEIGHT] != 0 else 1.0
            if share != 0:
                totals[EPOCH_LOSS] += share * row_loss[r]
                totals[BATCH_LOSS] += share * row_loss[r]
        if mode == TRAIN and not np.isfinite(totals[EPOCH_LOSS]):
            state[STATUS] = DIVERGED
            copy_state(parameters, job, snapshot, state[STATUS])
            return
        if mode != LOSS_ONLY and moves:
            backward(layers, rates, work, job, n)
            gradients(layers, work, job, gradient, ones, n, position > start)
        state[POSITION] = position + n
        budget -= n
        if state[POSITION] == end:  # and ends
            if mode == TRAIN:
                step = state[STEP]
                if moves:
                    l2 = numbers[L2]
                    if job[STEP_L2] != 0:
                        l2 = pointer(row_loss, job[STEP_L2])[step]
                    update(parameters, layers, job, numbers, gradient, h, step, l2)
                if job[STEP_RECORD] != 0:
                    record = pointer(row_loss, job[STEP_RECORD])
                    record[2 * step] = totals[BATCH_LOSS] / total
            totals[EPOCH_WEIGHT] += totals[BATCH_WEIGHT]
            state[STEP] += 1
            if end < n_samples:
                state[BATCH] += 1
                state[START] = end
            else:
                weight = totals[EPOCH_WEIGHT]
                losses[epoch] = totals[EPOCH_LOSS] / weight if weight > 0 else 0.0
                if mode == TRAIN and not all_finite(parameters):
                    state[STATUS] = DIVERGED
                    copy_state(parameters, job, snapshot, state[STATUS])
                    return
                state[START] = state[POSITION] = 0
                state[EPOCH] += 1
        if budget <= 0 and state[EPOCH] < job[N_EPOCHS]:
            return
    state[STATUS] = DONE


@jit
def predict(parameters, layers, rates, job, work, samples, outputs, first, n_rows):
    """Rows first .. first + n_rows of X through all layers.

    outputs: addresses of (n, fan_out) arrays, 0 where a layer's are not wanted.
    """
    done = 0
    while done < n_rows:
        at = first + done
        n = min(len(samples), n_rows - done)
        gather(job, samples, at, n, 0, work)
        forward(parameters, layers, rates, work, job, samples, n, 0, True)
        for index in range(len(layers)):
            if outputs[index] != 0:
                layer = layer_of(layers, index)
                fan_out = layer[FAN_OUT]
                y = shift(start_of(work), layer[Y])
                to = shift(pointer(parameters, outputs[index]), at * fan_out)
                copy(to, y, n * fan_out)
        done += n


@jit
def input_gradient(parameters, layers, rates, job, work, samples, jacobian, first, n_rows):
    """Derivatives of the outputs by the inputs of rows first .. first + n_rows.

    jacobian: address of (n, n_outputs, n_inputs).
    """
    buffers = start_of(work)
    layer, last = layer_of(layers, 0), layer_of(layers, len(layers) - 1)
    n_inputs, n_outputs = layer[FAN_IN], last[FAN_OUT]
    transpose(parameters, layers, work, 0)
    weights, stride, fan_out = (
        shift(buffers, layer[TRANSPOSED]),
        n_outputs * n_inputs,
        layer[FAN_OUT],
    )
    done = 0
    while done < n_rows:
        at = first + done
        n = min(len(samples), n_rows - done)
        gather(job, samples, at, n, 0, work)
        forward(parameters, layers, rates, work, job, samples, n, 0, True)
        for o in range(n_outputs):
            z, y = shift(buffers, last[Z]), shift(buffers, last[Y])
            delta = shift(buffers, last[DELTA])
            for i in range(n * n_outputs):
                delta[i] = number(delta, 1.0 if i % n_outputs == o else 0.0)
            call(last[SLOPE], (n, n_outputs, z, y, delta))
            backward(layers, rates, work, job, n)
            delta = shift(buffers, layer[DELTA])
            to = shift(pointer(parameters, jacobian), (at * n_outputs + o) * n_inputs)
            call(
                job[PRODUCT],
                (
                    delta, fan_out, 1, weights, n_inputs, to, to, stride, n, n_inputs, fan_out,
                    False, False,
                ),
            )  # fmt: skip
        done += n


@jit
def perceptron(
    work, sums, samples, job, weights, bias, targets, order, learning_rate, first, n_rows
):  # fmt: skip
    """Error-correction learning from rows first .. first + n_rows of an epoch; the mistakes.

    weights, bias, targets (uint8) and order (int64, or 0 for the natural one) are addresses.
    """
    u, row = start_of(sums), shift(start_of(work), job[BATCH_AT])
    w, b, t = pointer(work, weights), pointer(work, bias), byte_pointer(targets)
    n_inputs, n_outputs = job[N_FEATURES], len(sums)
    rate, mistakes = number(u, learning_rate), 0
    for i in range(first, first + n_rows):
        gather(job, samples, i, 1, order, work)
        call(
            job[PRODUCT],
            (row, n_inputs, 1, w, n_outputs, b, u, n_outputs, 1, n_outputs, n_inputs, False, True),
        )
        for j in range(n_outputs):
            error = np.int64(t[samples[0] * n_outputs + j]) - (1 if u[j] > 0 else 0)
            if error != 0:
                mistakes += 1
                step = rate * number(u, error)
                b[j] = b[j] + step
                for f in range(n_inputs):
                    w[f * n_outputs + j] = w[f * n_outputs + j] + step * row[f]
    return mistakes


@inner
def _high_product(a, b):
    """The upper 64 bits of a product of 64-bit numbers."""
    a0, a1, b0, b1 = a & _LOW, a >> _HALF_WORD, b & _LOW, b >> _HALF_WORD
    middle = a1 * b0 + (a0 * b0 >> _HALF_WORD)
    other = a0 * b1 + (middle & _LOW)
    return a1 * b1 + (middle >> _HALF_WORD) + (other >> _HALF_WORD)


@jit
def fill_permutation(order, seed, epoch):
    """The order of the rows in an epoch; see rng.permutation."""
    n = len(order)
    for i in range(n):
        order[i] = i
    stream = np.uint64(1 << 28)
    for q in range(0, n - 1, 2):
        block = np.uint64(q // 2)
        words = philox(
            np.uint64(seed), block & _LOW, block >> _HALF_WORD, np.uint64(epoch) & _LOW, stream
        )
        for half in range(2):
            if q + half < n - 1:
                i = n - 1 - q - half
                draw = words[2 * half] | words[2 * half + 1] << _HALF_WORD
                j = np.int64(_high_product(draw, np.uint64(i + 1)))
                kept = order[i]
                order[i] = order[j]
                order[j] = kept


_DRIVERS = (
    add_penalty,
    fill_permutation,
    input_gradient,
    perceptron,
    predict,
    squared_weights,
    train,
)


def compiled() -> tuple[int, float]:
    """How many kernels and drivers have been compiled in this process, and the seconds it took."""
    seconds = list(_KERNEL_SECONDS)
    for driver in _DRIVERS:
        for signature in driver.signatures:
            metadata = driver.get_metadata(signature) or {}
            seconds.append(metadata.get("timers", {}).get("compiler_lock", 0.0))
    return len(seconds), sum(seconds)
