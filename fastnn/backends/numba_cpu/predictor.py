"""One small net compiled with its sizes fixed, to be called from other compiled code.

A layer is straight code for its sizes: the same chains of fused multiply-adds as everywhere (law
1), vectors along the outputs, so that a row gives the bits of `NumbaBackend.predict`. Weights are
read from a copy that lives as long as the process, like the code.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import overload, typeof_impl

from fastnn.backends.numba_cpu.functions import (
    emit_fma,
    inline,
    intrinsic,
    jit,
)
from fastnn.backends.numba_cpu.kernels import (
    BLOCK,
    VECTOR_BYTES,
    activate_kernel,
    address,
    number,
)
from fastnn.tables.activations import get_activation
from fastnn.validation import check_out, check_X

__all__ = ["LARGEST_WIDTH", "CompiledNet"]

LARGEST_WIDTH = 4096
"""Of a layer: what compiled code keeps of a row lies on the stack."""

UNROLLED = 32  # multiply-adds of a chain that are written out one by one
LANES = 16  # numbers that the loops of kernels take at once, at most
VECTORS = 8  # that are summed side by side

_KEPT: list[np.ndarray] = []  # what compiled code reads, and it is never unloaded


def _stack(dtype: Any, n: int) -> Any:
    """A function for n numbers on the stack."""
    real = numba.from_dtype(np.dtype(dtype))

    @intrinsic
    def stack(typingctx):
        def codegen(context, builder, signature, args):
            kind = context.get_value_type(real)
            place = cgutils.alloca_once(builder, ir.ArrayType(kind, n))
            place.align = 64
            return builder.bitcast(place, kind.as_pointer())

        return types.CPointer(real)(), codegen

    return stack


def _dense(weights: np.ndarray, bias: np.ndarray) -> Any:
    """A function (x, z): z = x W + b, for these arrays, wherever they lie."""
    fan_in, fan_out = weights.shape

    @intrinsic
    def dense(typingctx, x, z):
        size = x.dtype.bitwidth // 8

        def codegen(context, builder, signature, args):
            x_at, z_at = args
            real, index = context.get_value_type(x.dtype), ir.IntType(64)
            # An address of this process: Numba will not let code with it into a cache.
            w_at, b_at = (
                builder.bitcast(
                    context.add_dynamic_addr(builder, address(array), "fastnn"),
                    real.as_pointer(),
                )
                for array in (weights, bias)
            )

            def load(p: Any, at: Any, vector: Any) -> Any:
                place = builder.bitcast(builder.gep(p, [at]), vector.as_pointer())
                value = builder.load(place)
                value.align = size
                return value

            def splat(value: Any, vector: Any) -> Any:
                if vector is real:
                    return value
                word = ir.IntType(32)
                undefined = ir.Constant(vector, ir.Undefined)
                one = builder.insert_element(undefined, value, ir.Constant(word, 0))
                mask = ir.Constant(ir.VectorType(word, vector.count), None)
                return builder.shuffle_vector(one, undefined, mask)

            def step(k: Any, column: int, vector: Any, lanes: int, sums: list) -> list:
                value = splat(load(x_at, k, real), vector)
                row = builder.add(
                    builder.mul(k, ir.Constant(index, fan_out)), ir.Constant(index, column)
                )
                rows = [
                    load(w_at, builder.add(row, ir.Constant(index, v * lanes)), vector)
                    for v in range(len(sums))
                ]
                return [emit_fma(builder, value, w, s) for w, s in zip(rows, sums, strict=True)]

            def block(first: int, end: int, *where: Any) -> list:
                """Chains over the indices first .. end."""
                column, vector, lanes, n = where
                zero = ir.Constant(vector, [0.0] * lanes if lanes > 1 else 0.0)
                sums = [zero] * n
                if end - first <= UNROLLED:
                    for k in range(first, end):
                        sums = step(ir.Constant(index, k), column, vector, lanes, sums)
                    return sums
                before = builder.block
                loop = builder.append_basic_block("chain")
                after = builder.append_basic_block("chained")
                builder.branch(loop)
                builder.position_at_end(loop)
                k = builder.phi(index)
                phis = [builder.phi(vector) for _ in range(n)]
                sums = step(k, column, vector, lanes, phis)
                following = builder.add(k, ir.Constant(index, 1))
                k.add_incoming(ir.Constant(index, first), before)
                k.add_incoming(following, loop)
                for phi, s in zip(phis, sums, strict=True):
                    phi.add_incoming(zero, before)
                    phi.add_incoming(s, loop)
                more = builder.icmp_signed("<", following, ir.Constant(index, end))
                builder.cbranch(more, loop, after)
                builder.position_at_end(after)
                return sums

            column, lanes = 0, VECTOR_BYTES // size
            while column < fan_out:
                while lanes > fan_out - column:
                    lanes //= 2
                n = min(VECTORS, (fan_out - column) // lanes)
                vector = ir.VectorType(real, lanes) if lanes > 1 else real
                totals: list[Any] = []
                for first in range(0, fan_in, BLOCK):
                    end = min(first + BLOCK, fan_in)
                    sums = block(first, end, column, vector, lanes, n)
                    totals = [
                        builder.fadd(t, s) for t, s in zip(totals, sums, strict=True)
                    ] if totals else sums  # fmt: skip
                for v, total in enumerate(totals):
                    at = ir.Constant(index, column + v * lanes)
                    value = builder.fadd(total, load(b_at, at, vector))
                    place = builder.bitcast(builder.gep(z_at, [at]), vector.as_pointer())
                    builder.store(value, place, align=size)
                column += n * lanes
            return context.get_dummy_value()

        return types.void(x, z), codegen

    return dense


def _activate(activation: str, dtype: Any, n: int) -> Any:
    """A function (z, y) of n numbers each: the kernel of the backend.

    Called where it lies: inline, LLVM would write out its loop number by number. Its vectors take
    a whole number of LANES, so the buffers are that long.
    """
    at = activate_kernel(get_activation(activation).scalar, dtype)
    if activation != "softmax" and n > 1:
        n = -(-n // LANES) * LANES

    @intrinsic
    def activate(typingctx, z, y):
        def codegen(context, builder, signature, args):
            index = ir.IntType(64)
            kind = ir.FunctionType(ir.VoidType(), [index, index, args[0].type, args[1].type])
            place = context.add_dynamic_addr(builder, at, "fastnn")
            function = builder.bitcast(place, kind.as_pointer())
            builder.call(function, [ir.Constant(index, 1), ir.Constant(index, n), *args])
            return context.get_dummy_value()

        return types.void(z, y), codegen

    return activate


def _layer(weights: np.ndarray, bias: np.ndarray, activation: str) -> Any:
    """A function (x, z): one layer, from x through z to x.

    Through z, since the kernel's vectors are for arrays apart.
    """
    dense = _dense(weights, bias)
    activate = _activate(activation, weights.dtype.type, weights.shape[1])

    @inline
    def layer(x, z):
        dense(x, z)
        activate(z, x)

    return layer


def _in_turn(first: Any, others: Any) -> Any:
    @inline
    def both(x, z):
        first(x, z)
        others(x, z)

    return both


def _network(plan: Any, parameters: np.ndarray) -> Any:
    """A function (x, out) for compiled code, of one row: two arrays with one dimension."""
    weights, biases = plan.views(parameters)
    names = (*plan.activations, plan.output)
    chain: Any = None
    for item in reversed(list(zip(weights, biases, names, strict=True))):
        layer = _layer(*item)
        chain = layer if chain is None else _in_turn(layer, chain)
    n_inputs, n_outputs = plan.n_features, plan.n_outputs
    here, there = (_stack(plan.dtype, max(plan.layer_sizes) + LANES) for _ in range(2))

    @inline
    def network(x, out):
        a = here()
        strange = 0.0
        for k in range(n_inputs):
            value = number(a, x[k])
            a[k] = value
            strange += value - value  # 0, or NaN
        if strange != 0.0:
            raise ValueError("x contains NaN or infinity, or a number beyond the model's dtype")
        chain(a, there())
        for j in range(n_outputs):
            out[j] = a[j]

    return network


def _entry(plan: Any, network: Any) -> Any:
    """The function that users call, from Python or from compiled code."""
    n_inputs, n_outputs, dtype = plan.n_features, plan.n_outputs, plan.dtype.type

    def call(x, out):
        raise NotImplementedError

    @overload(call)
    def overload_call(x, out):
        if not isinstance(x, types.Array) or x.ndim not in (1, 2):
            raise errors.TypingError(f"x must be an array with one or two dimensions, got {x}")
        wanted = isinstance(out, types.NoneType | types.Omitted)
        if not wanted and not (isinstance(out, types.Array) and out.ndim == x.ndim):
            raise errors.TypingError(f"out must be None or an array like the result, got {out}")
        if x.ndim == 1:
            if wanted:

                def one(x, out):
                    if len(x) != n_inputs:
                        raise ValueError("x has another number of features than the model")
                    result = np.empty(n_outputs, dtype)
                    network(x, result)
                    return result

                return one

            def one_into(x, out):
                if len(x) != n_inputs:
                    raise ValueError("x has another number of features than the model")
                if len(out) != n_outputs:
                    raise ValueError("out has another length than the model has outputs")
                network(x, out)
                return out

            return one_into
        if wanted:

            def rows(x, out):
                if x.shape[1] != n_inputs:
                    raise ValueError("x has another number of features than the model")
                result = np.empty((len(x), n_outputs), dtype)
                for i in range(len(x)):
                    network(x[i], result[i])
                return result

            return rows

        def rows_into(x, out):
            if x.shape[1] != n_inputs:
                raise ValueError("x has another number of features than the model")
            if out.shape[0] != x.shape[0] or out.shape[1] != n_outputs:
                raise ValueError("out has another shape than the result")
            for i in range(len(x)):
                network(x[i], out[i])
            return out

        return rows_into

    @jit
    def predict(x, out=None):
        return call(x, out)

    return predict


class CompiledNet:
    """A net compiled for its sizes; `MLP.compile` makes it.

    ``net(x, out=None)``, in Python and in functions compiled by `numba.njit` alike: x of shape
    (n_features,) or (n_samples, n_features), out an array of the result's shape to write to.
    Results are the bits of ``predict`` with ``backend="numba"``. In compiled code it takes arrays
    of any real type and layout, and keeps nothing: any number of threads may call it at once.

    The weights are those of the moment of compiling, or of the last `refresh`.

    Attributes
    ----------
    layer_sizes : tuple of int
    dtype : dtype
    compile_seconds : float

    Raises
    ------
    TypeError, ValueError
        When called: x is not numbers of the right shape, or not finite; out does not fit.
        In compiled code an x or out of another kind is numba.TypingError, when it is compiled.
    """

    def __init__(
        self, plan: Any, parameters: np.ndarray, predict: Callable[[Any, Any], np.ndarray]
    ) -> None:
        widest = max(plan.layer_sizes)
        if widest > LARGEST_WIDTH:
            raise ValueError(
                f"compile() is for small nets, of layers of at most {LARGEST_WIDTH} units; this "
                f"one has {widest}: use predict"
            )
        began = perf_counter()
        self._plan = plan
        self._source = parameters
        self._predict = predict
        self._parameters = parameters.copy()
        _KEPT.append(self._parameters)
        self._function = _entry(plan, _network(plan, self._parameters))
        self._function(np.zeros(plan.n_features, plan.dtype), np.empty(plan.n_outputs, plan.dtype))
        self.compile_seconds = perf_counter() - began

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        return self._plan.layer_sizes

    @property
    def dtype(self) -> np.dtype:
        return self._plan.dtype

    def __call__(self, x: Any, out: np.ndarray | None = None) -> np.ndarray:
        plan = self._plan
        if (
            type(x) is not np.ndarray
            or x.dtype != plan.dtype
            or x.ndim not in (1, 2)
            or x.shape[-1] != plan.n_features
        ):
            x = check_X(x, plan.n_features, plan.dtype, "x", allow_1d=True)
        # One type of array, so that one function is compiled for each number of dimensions.
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned and flags.writeable and x.dtype == plan.dtype):
            x = np.require(x, plan.dtype, ["C", "A", "W"])
        if out is not None:
            check_out(out, (*x.shape[:-1], plan.n_outputs), plan.dtype, x)
        return self._function(x, out)

    def refresh(self) -> None:
        """Take over the weights that the model has now, for all code that calls this net.

        Not while another thread calls it, or trains the model: it would see some of both.
        """
        self._parameters[:] = self._source

    def __repr__(self) -> str:
        sizes = "-".join(map(str, self.layer_sizes))
        return (
            f"<net {sizes} of {self.dtype}, compiled in {self.compile_seconds:.1f} s for calls "
            "from numba.njit code; report() says where predict is faster>"
        )

    def __reduce__(self) -> Any:
        raise TypeError(
            "a compiled net has addresses of this process and cannot be pickled or copied (nor be "
            "closed over by numba.njit(cache=True)): save the model, and compile it again"
        )

    def report(self, n_calls: int = 2000) -> str:
        """Measure a row from compiled code, a row from Python, and a batch, beside `MLP.predict`.

        Parameters
        ----------
        n_calls : int, default 2000
            Calls of each kind; the best of seven such runs counts.

        Returns
        -------
        str
            The times, and plainly where this net is not faster.
        """
        plan, predict, net = self._plan, self._predict, self
        X = np.random.default_rng(0).normal(size=(1000, plan.n_features)).astype(plan.dtype)
        row, batch = X[0].copy(), np.empty((len(X), plan.n_outputs), plan.dtype)
        function = self._function

        @jit
        def inside(X, out, n):
            for i in range(n):
                function(X[i % len(X)], out)

        def outside(call: Callable[..., Any], n: int) -> None:
            for _ in range(n):
                call(row, None)

        one, of_batch = (
            _best(outside, predict, n_calls) / n_calls,
            _best(predict, X, batch) / len(X),
        )
        comparisons = [
            ("one row, from compiled code", _best(inside, X, batch[0], n_calls) / n_calls, one),
            ("one row, from Python", _best(outside, net, n_calls) / n_calls, one),
            ("a row of 1000, from Python", _best(net, X, batch) / len(X), of_batch),
        ]
        lines = [repr(self)]
        for what, seconds, other in comparisons:
            line = f"{what}: {_pretty(seconds)}; predict takes {_pretty(other)}"
            lines.append(line + (": not faster, use predict" if seconds >= other else ""))
        return "\n".join(lines)


def _best(function: Callable[..., Any], *arguments: Any) -> float:
    function(*arguments)
    times = []
    for _ in range(7):
        began = perf_counter()
        function(*arguments)
        times.append(perf_counter() - began)
    return min(times)


def _pretty(seconds: float) -> str:
    return f"{1e9 * seconds:.0f} ns" if seconds < 1e-6 else f"{1e6 * seconds:.2f} us"


@typeof_impl.register(CompiledNet)
def _typeof(net: CompiledNet, context: Any) -> Any:
    return typeof_impl(net._function, context)
