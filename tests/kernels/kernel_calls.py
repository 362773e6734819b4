"""Kernels called directly, slot by slot, on NumPy arrays in memory of the caller's choice.

The compiled extension says where each kernel of each instruction set lies; ctypes calls it there,
below the driver. Each method of `Kernels` takes plain arrays, puts copies of them into its memory
(ordinary, misaligned, or between guard pages), calls the slot and returns what it wrote. So every
test runs on any memory, and a kernel that touches a byte outside its arguments dies where the
memory has guards.
"""

import ctypes
import itertools
import mmap
import os

import numpy as np

from fastnn.backends import _native

ISAS = [os.environ["FASTNN_ISA"]] if os.environ.get("FASTNN_ISA") else _native.available_isas()
DTYPES = ["float32", "float64"]
ACTIVATIONS = [name for name in _native.activation_names() if name != "softmax"]
LINKS = _native.activation_names()
LOSSES = _native.loss_names()
OPTIMIZERS = _native.optimizer_names()
FUNCTIONS = ["exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid"]  # enum fnn_function

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
BLOCK = 256  # FNN_BLOCK

pointer, size, integer, double = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_double
u64, u32 = ctypes.c_uint64, ctypes.c_uint32

# csrc/kernels.def: result and arguments of each slot.
SIGNATURES = {
    "dense_forward": (
        *(None, pointer, size, size, pointer, pointer, size, pointer, size, double, pointer),
    ),
    "packed_elems": (size, size, size),
    "pack_weights": (None, size, size, size, size, pointer, pointer),
    "unpack_weights": (None, size, size, pointer, pointer),
    "dense_forward_packed": (
        *(None, pointer, size, size, pointer, pointer, size, pointer, size, double, pointer),
    ),
    "dense_backward": (None, pointer, size, size, pointer, size, pointer, size, double, pointer),
    "gradient_units": (size, size, size),
    "dense_gradient": (None, pointer, size, size, pointer),
    "activate": (None, integer, size, size, pointer, size, pointer, size),
    "activate_backward": (None, integer, size, size, pointer, pointer, size, pointer, size),
    "multiply": (None, size, size, pointer, size, pointer, size, pointer, size),
    "softmax": (None, size, size, pointer, size, pointer, size, pointer),
    "loss": (None, pointer, size, pointer, size, pointer, pointer, size, pointer, pointer),
    "link_jacobian": (None, integer, size, size, size, pointer, pointer, size, pointer, size),
    "update": (
        None,
        *(integer, pointer, double, double, size, size),
        *(pointer, size, pointer, pointer, pointer, size),
    ),
    "sparse_forward": (None, pointer, size, size, pointer, pointer, size, pointer, size),
    "sparse_gradient": (None, pointer, pointer, size, size, pointer),
    "small_layout": (size, size, pointer, pointer, size, size, pointer, pointer),
    "small_load": (None, pointer, pointer, pointer, pointer),
    "small_store": (None, pointer, pointer, pointer, pointer),
    "small_step": (
        *(None, pointer, size, pointer, size, pointer, pointer),
        *(integer, pointer, double, pointer, pointer),
    ),
    "sum_of_squares": (double, size, pointer),
    "add_scaled": (None, size, double, pointer, pointer),
    "all_finite": (integer, size, pointer),
    "elementwise": (None, integer, size, pointer, pointer),
    "dropout_factors": (None, u64, u32, u64, u32, double, size, pointer, size, pointer, size),
    "shuffle_draws": (None, u64, u64, u64, size, pointer),
    "perceptron_rows": (
        *(size, pointer, size, size, size, size, pointer, double, pointer, pointer, pointer),
    ),
    "fma_chains": (size, size, pointer),
}


class Gradient(ctypes.Structure):
    """fnn_gradient of csrc/fastnn.h."""

    _fields_ = (
        [("input_rows", pointer), ("ld_input", size), ("delta", pointer)]
        + [(name, size) for name in ("ldd", "n_rows", "fan_in", "fan_out")]
        + [("density", double), ("gradient", pointer), ("bias_gradient", pointer)]
        + [("accumulate", integer), ("optimizer", integer), ("scalars", pointer), ("l2", double)]
        + [(name, pointer) for name in ("weights", "weight_a", "weight_b")]
        + [(name, pointer) for name in ("bias", "bias_a", "bias_b", "packed")]
        + [("packed_only", integer)]
    )


class Entries(ctypes.Structure):
    """fnn_entries of csrc/fastnn.h."""

    _fields_ = [(name, pointer) for name in ("index", "value", "count")] + [("wide", integer)]


class Loss(ctypes.Structure):
    """fnn_loss of csrc/fastnn.h."""

    _fields_ = (
        [("loss", integer), ("link", integer), ("parameter", double), ("n_outputs", size)]
        + [(name, pointer) for name in ("labels", "targets", "sample_weight")]
        + [("total_weight", double)]
        + [(name, pointer) for name in ("user_loss", "link_value", "link_derivative")]
    )


class SmallLayer(ctypes.Structure):
    """fnn_small_layer of csrc/fastnn.h."""

    _fields_ = (
        [(name, size) for name in ("fan_in", "fan_out", "ld_input", "ld", "at")]
        + [("sideways", integer), ("activation", integer)]
        + [(name, pointer) for name in ("input", "z", "delta", "turned")]
        + [("forward_weights", pointer), ("backward_weights", pointer), ("ld_backward", size)]
        + [(name, pointer) for name in ("input_rows", "delta_rows", "weight_rows")]
        + [("user_value", pointer), ("user_derivative", pointer), ("user_whole", integer)]
    )


class Small(ctypes.Structure):
    """fnn_small of csrc/fastnn.h."""

    _fields_ = (
        [(name, size) for name in ("n_layers", "n_rows", "n_padded")]
        + [("parameters", pointer), ("slots", pointer * 2)]
        + [("gradient", pointer), ("decayed", pointer)]
        + [("layers", SmallLayer * 8)]
    )


# --- memory ---------------------------------------------------------------------------------------


class Plain:
    """NumPy's own memory."""

    def empty(self, shape, dtype) -> np.ndarray:
        return np.empty(shape, dtype)

    def put(self, array: np.ndarray) -> np.ndarray:
        """A C-contiguous copy of the array in this memory."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def put_scratch(self, n_bytes: int) -> np.ndarray:
        """Scratch is planned by the driver, at a cache line's start. Filled with NaN."""
        room = self.empty(n_bytes + 64, np.uint8)
        start = -room.ctypes.data % 64
        scratch = room[start : start + n_bytes]
        scratch[...] = 0xFF
        return scratch

    def release(self) -> None:
        """What was put here is not needed any more."""


class Misaligned(Plain):
    """Arrays one element past the start of a cache line: aligned for their dtype and for nothing
    more.
    """

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        room = np.empty(n_bytes + 128, np.uint8)
        start = -room.ctypes.data % 64 + dtype.itemsize
        return room[start : start + n_bytes].view(dtype).reshape(shape)


class Guarded(Plain):
    """Each array in pages of its own between two that may not be touched.

    ``side="end"``: the array's last byte is the last before the upper guard; ``"start"``: its
    first byte is the first after the lower one. A read or write of one byte past that edge is a
    fault that ends the process, so run this in a process of its own.
    """

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [pointer, ctypes.c_size_t, integer]

    def __init__(self, side: str):
        self.side = side
        self.free: dict[int, list] = {}
        self.used: list = []

    def region(self, n_pages: int):
        """Address of n_pages that may be touched, from earlier use where possible."""
        if self.free.get(n_pages):
            block = self.free[n_pages].pop()
        else:
            memory = mmap.mmap(-1, (n_pages + 2) * mmap.PAGESIZE)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            for guard in (base, base + (n_pages + 1) * mmap.PAGESIZE):
                if self.libc.mprotect(guard, mmap.PAGESIZE, 0):  # PROT_NONE
                    raise OSError(ctypes.get_errno(), "mprotect")
            block = (base + mmap.PAGESIZE, n_pages, memory)
        self.used.append(block)
        return block

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        address, n_pages, memory = self.region(max(1, -(-n_bytes // mmap.PAGESIZE)))
        offset = mmap.PAGESIZE + (n_pages * mmap.PAGESIZE - n_bytes) * (self.side == "end")
        array = np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)
        assert array.ctypes.data == address - mmap.PAGESIZE + offset
        return array

    def put_scratch(self, n_bytes):
        scratch = self.empty(n_bytes, np.uint8)
        assert scratch.ctypes.data % 64 == 0
        scratch[...] = 0xFF
        return scratch

    def release(self):
        for block in self.used:
            self.free.setdefault(block[1], []).append(block)
        self.used.clear()


def address(array: np.ndarray | None) -> int | None:
    return None if array is None else array.ctypes.data


# --- kernels --------------------------------------------------------------------------------------


class Kernels:
    """The slots of one instruction set and dtype.

    Parameters
    ----------
    isa : str
    dtype : "float32" or "float64"
    memory : Plain, Misaligned or Guarded
        Where arguments are put before each call.
    padding : int
        Elements from the end of one row to the start of the next, in matrices that have a stride.
    """

    def __init__(self, isa: str, dtype: str, memory: Plain | None = None, padding: int = 0):
        self.isa, self.dtype = isa, np.dtype(dtype)
        self.memory = memory or Plain()
        self.padding = padding
        self.slots = {
            name: ctypes.CFUNCTYPE(*signature)(_native.kernel_address(isa, dtype, name))
            for name, signature in SIGNATURES.items()
        }

    def __repr__(self) -> str:
        return f"{self.isa}-{self.dtype}"

    @property
    def fused(self) -> bool:
        """Whether a * b + c is rounded once: in every instruction set but the baseline."""
        return self.isa != "baseline"

    @property
    def lanes(self) -> int:
        """Values of the dtype in one vector."""
        return {"baseline": 16, "neon": 16, "avx2": 32, "avx512": 64}[
            self.isa
        ] // self.dtype.itemsize

    @property
    def lengths(self) -> range:
        """From 1 to two vectors and one: every tail, after no whole vector, one and two."""
        return range(1, 2 * self.lanes + 2)

    def array(self, values, shape=None) -> np.ndarray:
        """Values of the kernels' dtype, C-contiguous, in the memory."""
        values = np.ascontiguousarray(values, self.dtype)
        return self.memory.put(values if shape is None else np.broadcast_to(values, shape))

    def matrix(self, values) -> tuple[np.ndarray, int]:
        """(rows in the memory, elements from row to row). Padding holds NaN, and must hold it
        afterwards.
        """
        values = np.ascontiguousarray(values, self.dtype)
        n_rows, n_cols = values.shape
        ld = n_cols + self.padding
        room = self.memory.empty((max(n_rows * ld - self.padding, 0),), self.dtype)
        room[...] = np.nan
        view = np.lib.stride_tricks.as_strided(
            room, (n_rows, n_cols), (ld * self.dtype.itemsize, self.dtype.itemsize)
        )
        view[...] = values
        return view, ld

    def rows(self, values) -> tuple[np.ndarray, list]:
        """(pointers to the rows, the rows): each row is an array of its own."""
        rows = [self.array(row) for row in np.asarray(values)]
        return self.memory.put(np.array([r.ctypes.data for r in rows], np.uintp)), rows

    def scratch(self, n_outputs: int) -> int:
        self._scratch = self.memory.put_scratch(_native.scratch_bytes(n_outputs))
        return self._scratch.ctypes.data

    def result(self, array: np.ndarray) -> np.ndarray:
        """A copy that outlives the memory; padding between rows must have been left alone."""
        copy = np.array(array)
        if array.ndim == 2 and not array.flags.c_contiguous:
            gaps = np.lib.stride_tricks.as_strided(
                array[:, -1:],
                (array.shape[0] - 1, self.padding + 1),
                (array.strides[0], array.itemsize),
            )[:, 1:]
            assert np.isnan(gaps).all(), "the kernel wrote between the rows"
        return copy

    def done(self, *arrays):
        results = tuple(self.result(a) for a in arrays)
        self.memory.release()
        return results[0] if len(results) == 1 else results

    # Each method below is the slot of its name; shapes as in csrc/*.tmpl.h.

    def dense_forward(self, X, W, b, density=-1.0):
        X = np.asarray(X)
        pointers, _rows = self.rows(X)
        fan_in, fan_out = np.shape(W)
        w, bias = self.array(W), self.array(b)
        z, ldz = self.matrix(np.full((len(X), fan_out), np.nan))
        self.slots["dense_forward"](
            address(pointers), len(X), fan_in, address(w), address(bias), fan_out, address(z), ldz,
            density, self.scratch(fan_out),
        )  # fmt: skip
        return self.done(z)

    def dense_backward(self, delta, W, density=-1.0):
        delta = np.asarray(delta)
        pointers, _rows = self.rows(delta)
        fan_in, fan_out = np.shape(W)
        w = self.array(W)
        d, ldd = self.matrix(np.full((len(delta), fan_in), np.nan))
        self.slots["dense_backward"](
            address(pointers), len(delta), fan_in, address(w), fan_out, address(d), ldd,
            density, self.scratch(fan_out),
        )  # fmt: skip
        return self.done(d)

    def entries(self, X, wide=False):
        """(fnn_entries of the nonzero values of X, what must stay alive)."""
        kind = np.int64 if wide else np.int32
        index = [self.memory.put(np.flatnonzero(row).astype(kind)) for row in X]
        value = [self.array(row[np.flatnonzero(row)]) for row in X]
        pointers = [
            self.memory.put(np.array([a.ctypes.data for a in arrays], np.uintp))
            for arrays in (index, value)
        ]
        count = self.memory.put(np.array([len(i) for i in index], np.intp))
        return Entries(*map(address, (*pointers, count)), wide), (index, value, pointers, count)

    def sparse_forward(self, X, W, b, wide=False):
        X = np.asarray(X, self.dtype)
        entries, _stored = self.entries(X, wide)
        fan_in, fan_out = np.shape(W)
        w, bias = self.array(W), self.array(b)
        z, ldz = self.matrix(np.full((len(X), fan_out), np.nan))
        self.slots["sparse_forward"](
            *(ctypes.addressof(entries), len(X), fan_in, address(w), address(bias)),
            *(fan_out, address(z), ldz),
        )
        return self.done(z)

    def sparse_gradient(self, X, delta, wide=False, **options):
        """`dense_gradient` by the sparse kernel."""
        X = np.asarray(X, self.dtype)
        return self.dense_gradient(X, delta, sparse="wide" if wide else "narrow", **options)

    def packed_elems(self, fan_in, fan_out):
        return self.slots["packed_elems"](fan_in, fan_out)

    def pack_weights(self, W, cut=0.0):
        """The packed copy, made in two calls; None where the layer has none."""
        fan_in, fan_out = np.shape(W)
        n = self.packed_elems(fan_in, fan_out)
        if n == 0:
            return None
        w, packed = self.array(W), self.array(np.full(n, 7.0))
        for begin, end in itertools.pairwise((0, int(cut * fan_in), fan_in)):
            self.slots["pack_weights"](fan_in, fan_out, begin, end, address(w), address(packed))
        return self.done(packed)

    def unpack_weights(self, packed, shape):
        p, w = self.array(packed), self.array(np.nan, shape)
        self.slots["unpack_weights"](*shape, address(p), address(w))
        return self.done(w)

    def dense_forward_packed(self, X, packed, b, density=-1.0):
        X = np.asarray(X)
        pointers, _rows = self.rows(X)
        p, bias = self.array(packed), self.array(b)
        z, ldz = self.matrix(np.full((len(X), len(b)), np.nan))
        self.slots["dense_forward_packed"](
            *(address(pointers), len(X), X.shape[1], address(p)),
            *(address(bias), len(b), address(z), ldz, density, self.scratch(len(b))),
        )
        return self.done(z)

    def gradient_units(self, fan_in, fan_out):
        return self.slots["gradient_units"](fan_in, fan_out)

    def dense_gradient(
        self, X, delta, *, into=None, update=None, cuts=(), spaced=False, only=False, sparse="",
        density=-1.0,
    ):  # fmt: skip
        """Gradients to the weights and the bias.

        Parameters
        ----------
        X, delta : array of shape (n_rows, fan_in), (n_rows, fan_out)
        into : (gradient, bias gradient) to add to, optional
        update : dict, optional
            optimizer, scalars, l2, weights, bias, and slots: a list of (weight slot, bias slot)
            pairs. With ``into="drop"`` the gradient is not kept.
        cuts : numbers in 0..1 at which the units of work are split into calls.
        only : whether only the packed weights are updated.
        spaced : whether the rows of X lie evenly spaced, and the kernel is told.
        density : zeros are skipped where no larger share of a sample of X is other than zero.
        sparse : "narrow" or "wide" (indices of 32 or 64 bits): by sparse_gradient instead.

        Returns
        -------
        (gradient, bias gradient), or with update (gradient, bias gradient, weights, bias, slots,
        and the packed weights where the layer has such a copy).
        """
        X, delta = np.asarray(X), np.asarray(delta)
        ld_input = 0
        if spaced:
            _rows, ld_input = self.matrix(X)
            pointers = self.memory.put(np.array([row.ctypes.data for row in _rows], np.uintp))
        else:
            pointers, _rows = self.rows(X)
        fan_in, fan_out = X.shape[1], delta.shape[1]
        d, ldd = self.matrix(delta)
        keep = not isinstance(into, str)
        g = gb = None
        if keep:
            accumulate = into is not None
            g = self.array(into[0] if accumulate else np.nan, (fan_in, fan_out))
            gb = self.array(into[1] if accumulate else np.nan, (fan_out,))
        job = Gradient(
            input_rows=address(pointers), ld_input=ld_input, delta=address(d), ldd=ldd,
            n_rows=len(X), fan_in=fan_in, fan_out=fan_out, density=density, gradient=address(g),
            bias_gradient=address(gb),
            accumulate=keep and into is not None, optimizer=-1,
        )  # fmt: skip
        changed = []
        if update:
            scalars = self.memory.put(np.asarray(update["scalars"], np.float64))
            w, b = self.array(update["weights"]), self.array(update["bias"])
            slots = [(self.array(a), self.array(c)) for a, c in update["slots"]]
            padded = slots + [(None, None)] * (2 - len(slots))
            job.optimizer, job.l2 = OPTIMIZERS.index(update["optimizer"]), update["l2"]
            job.scalars = address(scalars)
            job.weights, job.bias = address(w), address(b)
            (job.weight_a, job.bias_a), (job.weight_b, job.bias_b) = (
                (address(x), address(y)) for x, y in padded
            )
            changed = [w, b, *(x for pair in slots for x in pair)]
            n_packed = self.packed_elems(fan_in, fan_out)
            if n_packed and not sparse:
                packed = self.array(np.full(n_packed, 7.0))
                if only:
                    self.slots["pack_weights"](
                        fan_in, fan_out, 0, fan_in, address(w), address(packed)
                    )
                job.packed, job.packed_only = address(packed), only
                changed.append(packed)
        units = -(-fan_in // 16) if sparse else self.gradient_units(fan_in, fan_out)
        ends = sorted({0, units, *(int(c * units) for c in cuts)})
        entries, _stored = self.entries(X, sparse == "wide") if sparse else (None, None)
        for begin, end in itertools.pairwise(ends):
            scratch = self.scratch(fan_out)
            if sparse:
                self.slots["sparse_gradient"](
                    *(ctypes.addressof(job), ctypes.addressof(entries), begin, end, scratch)
                )
            else:
                self.slots["dense_gradient"](ctypes.addressof(job), begin, end, scratch)
        return self.done(*([g, gb] if keep else []), *changed)

    def activate(self, name, z, in_place=False):
        z_, ldz = self.matrix(z)
        y, ldy = (z_, ldz) if in_place else self.matrix(np.full(np.shape(z), np.nan))
        self.slots["activate"](LINKS.index(name), *np.shape(z), address(z_), ldz, address(y), ldy)
        return self.done(y)

    def activate_backward(self, name, z, y, delta):
        """`z` is None where the derivative follows from y: the kernel gets a null pointer."""
        y_, ldy = self.matrix(y)
        z_ = None if z is None else self.matrix(z)[0]
        d, ldd = self.matrix(delta)
        self.slots["activate_backward"](
            LINKS.index(name), *np.shape(y), address(z_), address(y_), ldy, address(d), ldd
        )
        return self.done(d)

    def multiply(self, factor, x, in_place=False):
        f, ldf = self.matrix(factor)
        x_, ldx = self.matrix(x)
        y, ldy = (x_, ldx) if in_place else self.matrix(np.full(np.shape(x), np.nan))
        self.slots["multiply"](*np.shape(x), address(f), ldf, address(x_), ldx, address(y), ldy)
        return self.done(y)

    def softmax(self, z, in_place=False):
        z_, ldz = self.matrix(z)
        y, ldy = (z_, ldz) if in_place else self.matrix(np.full(np.shape(z), np.nan))
        n_rows, n = np.shape(z)
        self.slots["softmax"](n_rows, n, address(z_), ldz, address(y), ldy, self.scratch(n))
        return self.done(y)

    def loss(
        self, name, link, z, *, targets=None, labels=None, parameter=0.0, weight=None, samples=None
    ):
        """(loss of each row, delta). `samples` are the rows of targets, labels and weight; by
        default all in order.
        """
        n_rows, n = np.shape(z)
        z_, ldz = self.matrix(z)
        samples = np.arange(n_rows) if samples is None else np.asarray(samples)
        s = self.memory.put(samples.astype(np.int64))
        t = None if targets is None else self.array(targets)
        k = None if labels is None else self.memory.put(np.asarray(labels, np.int64))
        w = None if weight is None else self.memory.put(np.asarray(weight, np.float64))
        d, ldd = self.matrix(np.full((n_rows, n), np.nan))
        row_loss = self.memory.put(np.full(n_rows, np.nan))
        total = float(n_rows) if weight is None else float(np.sum(np.asarray(weight)[samples]))
        job = Loss(
            LOSSES.index(name),
            LINKS.index(link),
            parameter,
            n,
            address(k),
            address(t),
            address(w),
            total,
        )
        self.slots["loss"](
            ctypes.addressof(job), n_rows, address(z_), ldz, address(s), address(d), ldd,
            address(row_loss), self.scratch(n),
        )  # fmt: skip
        return self.done(row_loss, d)

    def link_jacobian(self, link, output, z, y):
        n_rows, n = np.shape(y)
        y_, ldy = self.matrix(y)
        z_, _ = self.matrix(z)
        d, ldd = self.matrix(np.full((n_rows, n), np.nan))
        self.slots["link_jacobian"](
            LINKS.index(link), n_rows, n, output, address(z_), address(y_), ldy, address(d), ldd
        )
        return self.done(d)

    def update(self, name, scalars, w, g, slots, l2=0.0, scale=1.0):
        """(weights, *state slots) after one step; w and slots of one shape, (n_rows, n_cols)."""
        w_, ldw = self.matrix(w)
        g_, ldg = self.matrix(g)
        s_ = [self.matrix(s)[0] for s in slots]
        h = self.memory.put(np.asarray(scalars, np.float64))
        a, b = (*s_, None, None)[:2]
        self.slots["update"](
            OPTIMIZERS.index(name), address(h), l2, scale, *np.shape(w), address(g_), ldg,
            address(w_), address(a), address(b), ldw,
        )  # fmt: skip
        return self.done(w_, *s_) if s_ else (self.done(w_),)

    def sum_of_squares(self, x):
        x_ = self.array(x)
        result = self.slots["sum_of_squares"](x_.size, address(x_))
        self.memory.release()
        return result

    def add_scaled(self, scale, x, y):
        x_, y_ = self.array(x), self.array(y)
        self.slots["add_scaled"](x_.size, scale, address(x_), address(y_))
        return self.done(y_)

    def all_finite(self, x):
        x_ = self.array(x)
        result = self.slots["all_finite"](x_.size, address(x_))
        self.memory.release()
        return bool(result)

    def elementwise(self, name, x):
        x_ = self.array(x)
        y = self.array(np.full(np.shape(x), np.nan))
        self.slots["elementwise"](FUNCTIONS.index(name), x_.size, address(x_), address(y))
        return self.done(y)

    def dropout_factors(self, seed, stream, epoch, layer, rate, samples, n_units):
        s = self.memory.put(np.asarray(samples, np.int64))
        f, ldf = self.matrix(np.full((len(s), n_units), np.nan))
        self.slots["dropout_factors"](
            seed, stream, epoch, layer, rate, len(s), address(s), n_units, address(f), ldf
        )
        return self.done(f)

    def shuffle_draws(self, seed, epoch, first_block, n_blocks):
        draws = self.memory.put(np.zeros(2 * n_blocks, np.uint64))
        self.slots["shuffle_draws"](seed, epoch, first_block, n_blocks, address(draws))
        return self.done(draws)

    def perceptron_rows(self, X, targets, rate, W, b):
        """(mistakes, weights, bias) after these rows, in their order; W is (fan_in, n)."""
        rows, _rows = self.rows([*X, *X])  # the same again as rows that come later
        w, bias = self.array(np.transpose(W)), self.array(b)
        t = [self.memory.put(row) for row in np.asarray(targets, np.uint8)]
        pointers = self.memory.put(np.array([row.ctypes.data for row in [*t, *t]], np.uintp))
        fan_in, n = np.shape(W)
        mistakes = self.slots["perceptron_rows"](
            *(address(rows), len(t), len(t), fan_in, n, address(pointers), rate),
            *(address(w), address(bias), self.scratch(n)),
        )
        w, bias = self.done(w, bias)
        return mistakes, w.T, bias

    def small_step(self, network, X, targets, optimizer, scalars, l2, n_steps=1, given=False):
        """(row losses of each step, parameters, slots...) after n_steps on these rows.

        network: (sizes, activations, loss, parameters, slots). `given`: the rows lie in the
        network's own memory already, instead of in the caller's.
        """
        sizes, activations, loss, parameters, slots = network
        sizes = np.array(sizes, np.intp)
        index = np.array([LINKS.index(name) for name in activations], np.int32)
        n, n_slots = len(X), len(slots)
        net = Small()
        layout = (len(index), address(sizes), address(index), n, n_slots)
        n_bytes = self.slots["small_layout"](*layout, None, ctypes.addressof(net))
        room = self.memory.put_scratch(n_bytes)
        room[...] = 0
        assert n_bytes == self.slots["small_layout"](*layout, address(room), ctypes.addressof(net))
        p = self.array(parameters)
        state = [self.array(slot) for slot in slots]
        flat = [address(p), *(address(slot) for slot in state), None, None][:3]
        self.slots["small_load"](ctypes.addressof(net), *flat)
        x = self.array(X)
        t = self.array(targets)
        samples = self.memory.put(np.arange(n))
        job = Loss(
            loss=LOSSES.index(loss),
            link=LINKS.index(activations[-1]),
            n_outputs=sizes[-1],
            targets=address(t),
            total_weight=n,
        )
        h = self.memory.put(np.asarray(scalars, np.float64))
        row_loss = self.memory.put(np.full((n_steps, n), np.nan))
        if given:
            first = net.layers[0]
            for r, row in enumerate(x):
                at = first.input + r * first.ld_input * self.dtype.itemsize
                ctypes.memmove(at, row.ctypes.data, row.nbytes)
        scratch = self.scratch(sizes[-1])
        for step in range(n_steps):
            self.slots["small_step"](
                *(ctypes.addressof(net), n, None if given else address(x), x.strides[0]),
                *(ctypes.addressof(job), address(samples)),
                *(OPTIMIZERS.index(optimizer) if optimizer else -1, address(h), l2),
                *(row_loss.ctypes.data + step * 8 * n, scratch),
            )
        self.slots["small_store"](ctypes.addressof(net), *flat)
        return self.done(row_loss, p, *state)

    small_layout = small_load = small_store = small_step

    def fma_chains(self, n_rounds, x=None):
        """The values after so many rounds; without x, how many values there are."""
        if x is None:
            return self.slots["fma_chains"](0, None)
        x_ = self.array(x)
        assert self.slots["fma_chains"](n_rounds, address(x_)) == x_.size
        return self.done(x_)
