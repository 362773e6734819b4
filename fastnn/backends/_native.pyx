# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=True
"""The driver: whole epochs, predictions and gradients over the C kernels, without the GIL.

It owns the GIL, the threads, the workspace (planned once per call) and the order of work. One step of training is two
phases. In the first each thread takes rows of the batch through the forward pass, the loss and the backward pass; in
the second each thread takes tiles of the weights, sums their gradients over all rows and updates them. A barrier stands
between phases, and nothing is reduced across threads: which thread computed an element cannot change its bits.

Batches longer than a chunk pass through in chunks of whole blocks (FNN_BLOCK rows), their gradients added in order, so
that memory beside X grows with the model and not with the batch.

All arguments have been checked by fastnn.validation and friends; what is checked here again is what memory safety
rests on.
"""
import os
import threading

import numpy as np

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDED, PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY, isfinite, sqrt
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef enum:
    # Between two barriers: rows (forward, loss, backward), then tiles of the gradients and their updates.
    ROWS_PHASE
    TILES_PHASE
    N_PHASES

cdef enum:
    MAX_BUFFERS = 16
    LINE_DOUBLES = FNN_ALIGN_BYTES // 8
    # Steps after which threads share out the work anew.
    STEPS_PER_SHARE = 64
    # Units of the gradient from one request for rows to the next.
    UNITS_BETWEEN_FETCHES = 16
    # Rows that pass through all layers together: their activations stay in the second-level cache.
    PREDICT_ROWS = 128
    # Networks no wider than this, on batches no longer, are trained in padded memory (csrc/small.tmpl.h): it stays in L1.
    SMALL_WIDTH = 64
    SMALL_ROWS = 64
    # More than this has no room in a first-level cache.
    L1_BYTES = 32768
    # A reading of the clock, or a copy of the state, takes as long as a tenth of their smallest epochs: one for so many
    # epochs of at most SMALL_ROWS rows.
    SMALL_EPOCHS_TOGETHER = 16

# Ctrl-C is looked for this often.
cdef double SIGNAL_SECONDS = 0.05

# --- instruction set ------------------------------------------------------------------------------------------------

def available_isas():
    """Names of the instruction sets that this machine and build have, worst to best."""
    return [fnn_isa_name(i).decode() for i in range(fnn_isa_count()) if fnn_isa_available(i)]


def _choose_isa():
    wanted = os.environ.get("FASTNN_ISA", "").strip().lower()
    if not wanted:
        return fnn_isa_best()
    for i in range(fnn_isa_count()):
        if fnn_isa_available(i) and fnn_isa_name(i).decode() == wanted:
            return i
    raise ValueError(
        f"FASTNN_ISA={wanted!r} names an instruction set that this machine or build does not have; "
        f"expected one of {', '.join(available_isas())}, or leave it unset for the best"
    )


cdef int ISA = _choose_isa()
cdef const fnn_kernels *KERNELS[2]
KERNELS[0] = fnn_kernels_for(ISA, FNN_F32)
KERNELS[1] = fnn_kernels_for(ISA, FNN_F64)

# A call with several threads is one of turns this long. After FIRST_LOOK seconds it tries half the threads (or twice as
# many) for a shorter one; later ever more seldom, and at once where a row takes SLOWER times as long as at the last look.
cdef double TURN_SECONDS = 4e-3, LOOK_SECONDS = 1e-3, FIRST_LOOK = 4e-3
cdef double LONGEST_WAIT = 2, LONGEST_WAIT_IN_PART = 0.25
cdef double LOOKS_APART = 50   # times a look's own length, at least
cdef double FASTER = 0.97, SLOWER = 1.15
# Threads share out the work anew where one took so many times as long as another.
cdef double UNEVEN = 1.04

# Zeros are skipped where at most this share of a block's inputs (or deltas) is other than zero: skipping has costs of its
# own. 1: wherever it can be; < 0: never.
cdef double MOST_DENSITY = 0.7

# Work (multiply-adds of a step or of a prediction) under which another thread costs more than it brings.
cdef double WORK_PER_THREAD = 5e5


def isa():
    """Name of the instruction set in use."""
    return fnn_isa_name(ISA).decode()


def set_work_per_thread(double multiply_adds):
    """Set how much work another thread must have to be started; returns the old value. For tests: bits never depend on it.

    With 0, training changes its number of threads after every step or two, and who does how much.
    """
    global WORK_PER_THREAD
    old = WORK_PER_THREAD
    WORK_PER_THREAD = multiply_adds
    return old


def set_most_density(double density):
    """Set how dense blocks may be whose zeros are skipped; returns the old share. For tests: bits never depend on it."""
    global MOST_DENSITY
    old = MOST_DENSITY
    MOST_DENSITY = density
    return old


def activation_names():
    """Rows of csrc/activations.def, in order, and softmax."""
    names = []
    while fnn_activation_name(len(names)) != NULL:
        names.append(fnn_activation_name(len(names)).decode())
    return names


def loss_names():
    """Rows of csrc/losses.def, in order."""
    names = []
    while fnn_loss_name(len(names)) != NULL:
        names.append(fnn_loss_name(len(names)).decode())
    return names


def optimizer_names():
    """Rows of csrc/optimizers.def, in order."""
    names = []
    while fnn_optimizer_name(len(names)) != NULL:
        names.append(fnn_optimizer_name(len(names)).decode())
    return names


def optimizer_shape(int optimizer):
    """(state slots, scalars per step) of a row of csrc/optimizers.def."""
    return fnn_optimizer_slots(optimizer), fnn_optimizer_scalars(optimizer)


def activation_needs_z(int activation):
    """Whether the derivative of a row of csrc/activations.def reads the pre-activation."""
    return bool(fnn_activation_needs_z(activation))


def kernel_address(str isa_name, str dtype, str slot):
    """Address of one slot of a kernel table, for tests that call kernels directly (ctypes); 0 where it does not exist."""
    cdef int i, s = 0
    for i in range(fnn_isa_count()):
        if fnn_isa_name(i).decode() == isa_name:
            while fnn_slot_name(s) != NULL:
                if fnn_slot_name(s).decode() == slot:
                    return <size_t>fnn_slot_address(i, FNN_F32 if dtype == "float32" else FNN_F64, s)
                s += 1
    return 0


def slot_names():
    """Names of all slots of a kernel table."""
    names = []
    while fnn_slot_name(len(names)) != NULL:
        names.append(fnn_slot_name(len(names)).decode())
    return names


def scratch_bytes(Py_ssize_t n_outputs):
    """Bytes of scratch that kernels need for layers up to this wide."""
    return fnn_scratch_bytes(n_outputs, True, True)


def row_stride(Py_ssize_t width, Py_ssize_t item_bytes):
    """Elements from row to row of the driver's buffers."""
    return fnn_row_stride(width, item_bytes)


def size_product(Py_ssize_t a, Py_ssize_t b):
    """a * b, or -1 where it does not fit a 64-bit index."""
    return fnn_size_product(a, b)


# --- arrays of the caller -----------------------------------------------------------------------------------------------

cdef int KIND_OF[128]
for _i in range(128):
    KIND_OF[_i] = -1
KIND_OF[<int>b"f"] = FNN_KIND_F32
KIND_OF[<int>b"d"] = FNN_KIND_F64
KIND_OF[<int>b"b"] = FNN_KIND_I8
KIND_OF[<int>b"h"] = FNN_KIND_I16
KIND_OF[<int>b"i"] = FNN_KIND_I32
KIND_OF[<int>b"l"] = FNN_KIND_I64 if sizeof(long) == 8 else FNN_KIND_I32
KIND_OF[<int>b"q"] = FNN_KIND_I64
KIND_OF[<int>b"B"] = FNN_KIND_U8
KIND_OF[<int>b"?"] = FNN_KIND_U8
KIND_OF[<int>b"H"] = FNN_KIND_U16
KIND_OF[<int>b"I"] = FNN_KIND_U32
KIND_OF[<int>b"L"] = FNN_KIND_U64 if sizeof(long) == 8 else FNN_KIND_U32
KIND_OF[<int>b"Q"] = FNN_KIND_U64


cdef int kind_of(Py_buffer *view) noexcept:
    # One native format letter; anything else ('>f', 'e', 'g', 'O' ...) is -1.
    if view.format == NULL:
        return FNN_KIND_U8
    if view.format[0] <= 0 or view.format[1] != 0:
        return -1
    return KIND_OF[<int>view.format[0]]


cdef int describe(Py_buffer *view, fnn_array *array) except -1:
    """View a one- or two-dimensional buffer as rows; one dimension is one row."""
    array.kind = kind_of(view)
    if array.kind < 0 or view.ndim < 1 or view.ndim > 2:
        raise TypeError(
            f"expected a one- or two-dimensional array of a native number type, got {view.ndim} dimensions of format "
            f"{view.format.decode() if view.format != NULL else 'B'!r}; validate it first"
        )
    array.data = <const char *>view.buf
    array.n_rows = view.shape[0] if view.ndim == 2 else 1
    array.n_cols = view.shape[view.ndim - 1]
    array.row_stride_bytes = view.strides[0] if view.ndim == 2 else 0
    array.col_stride_bytes = view.strides[view.ndim - 1]
    return 0


cdef class Buffers:
    """The buffers that one call holds; all are released with it."""

    cdef Py_buffer views[MAX_BUFFERS]
    cdef int n

    def __dealloc__(self):
        while self.n > 0:
            self.n -= 1
            PyBuffer_Release(&self.views[self.n])

    cdef Py_buffer *get(self, object array, bint writable) except NULL:
        if self.n == MAX_BUFFERS:
            raise RuntimeError("too many buffers in one call")
        PyObject_GetBuffer(array, &self.views[self.n], (PyBUF_STRIDED if writable else PyBUF_STRIDED_RO) | PyBUF_FORMAT)
        self.n += 1
        return &self.views[self.n - 1]

    cdef char *flat(self, object array, int kind, Py_ssize_t n, bint writable, str name) except? NULL:
        """Pointer to n contiguous values of exactly this kind; NULL for None."""
        cdef Py_buffer *view
        cdef Py_ssize_t size = 1, i
        if array is None:
            return NULL
        view = self.get(array, writable)
        for i in range(view.ndim - 1, -1, -1):
            if view.shape[i] > 1 and view.strides[i] != size * view.itemsize:
                raise ValueError(f"{name} must be C-contiguous")
            size *= view.shape[i]
        if kind_of(view) != kind or size != n:
            raise ValueError(f"{name} must hold {n} values of kind {kind}, got {size} of kind {kind_of(view)}")
        return <char *>view.buf


cdef struct Check:
    fnn_array array
    int dtype
    Py_ssize_t next_row, rows      # rows: that a thread takes at once
    int32_t bad


cdef void check_task(void *context, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    cdef Check *check = <Check *>context
    cdef Py_ssize_t at, stop
    while not fnn_flag_get(&check.bad):
        at = fnn_take(&check.next_row, check.rows)
        if at >= check.array.n_rows:
            return
        stop = least(at + check.rows, check.array.n_rows)
        if fnn_first_bad_row(&check.array, NULL, at, stop, check.dtype) < stop:
            fnn_flag_set(&check.bad)


def all_finite(array, bint is_float32, int n_threads):
    """Whether every value of a 1-D or 2-D array is finite once converted to float32 (else float64); no copy is made."""
    cdef Buffers buffers = Buffers()
    cdef Check check
    memset(&check, 0, sizeof(check))
    describe(buffers.get(array, False), &check.array)
    check.dtype = FNN_F32 if is_float32 else FNN_F64
    check.rows = 1 + (1 << 18) // (check.array.n_cols + 1)
    n_threads = <int>least(n_threads, (check.array.n_rows + check.rows - 1) // check.rows)
    with nogil:
        fnn_run(check_task, &check, max(n_threads, 1), False)
    return check.bad == 0


# --- random order -------------------------------------------------------------------------------------------------------

def permutation(Py_ssize_t n, uint64_t seed, uint64_t epoch):
    """Order of the rows of one epoch, int64 (n,): the same numbers as fastnn.rng.permutation."""
    order = np.empty(n, np.int64)
    fill_permutation(order, seed, epoch)
    return order


def fill_permutation(order, uint64_t seed, uint64_t epoch):
    """Write the order of one epoch into a contiguous int64 array."""
    cdef Buffers buffers = Buffers()
    cdef Py_ssize_t n = order.shape[0]
    cdef int64_t *p = <int64_t *>buffers.flat(order, KIND_OF[<int>b"q"], n, True, "order")
    with nogil:
        fnn_permutation(KERNELS[0], seed, epoch, n, p)


# --- a network and its workspace -------------------------------------------------------------------------------------------

cdef struct Layer:
    Py_ssize_t fan_in, fan_out
    Py_ssize_t ld                  # elements from row to row of this layer's buffers
    int activation                 # FNN_USER: the two functions that follow
    fnn_user_value user_value
    fnn_user_derivative user_derivative
    bint user_whole                # they may be given what lies between rows
    bint needs_z
    double dropout
    Py_ssize_t weight_at, bias_at  # offsets into the flat parameters
    char *weights
    char *bias
    char *z                        # pre-activations; y itself where the derivative does not need them
    char *y
    char *dropped                  # y after dropout: what the next layer reads
    char *factor                   # dropout's factors
    char *delta
    const void **rows              # the layer's inputs, one pointer per row of the chunk
    const void **delta_rows
    char *packed                   # the weights as the forward pass reads them, or NULL where it reads them as they are
    double density                 # of inputs and deltas whose zeros are skipped: at most this; < 0: they are not looked for
    Py_ssize_t units, packed_elems


cdef struct Network:
    const fnn_kernels *k
    int dtype
    Py_ssize_t item_bytes, n_layers, n_parameters, n_inputs, n_outputs
    Py_ssize_t multiply_adds       # of one row's forward pass
    bint has_dropout


cdef class NativePlan:
    """A fastnn.plan.Plan in the driver's terms: shapes, offsets and table rows. Holds no arrays."""

    cdef Network net
    cdef Layer *layers
    cdef object compiled           # keeps the users' functions alive
    cdef Py_ssize_t widest_ld, scratch_bytes   # of its layers; what its forward pass needs without skipping in batches

    def __cinit__(self, layer_sizes, int is_float32, activations, dropout):
        # activations: one per layer, the last being the output link: a table index, or an object whose `addresses` are
        # those of an fnn_user_value and an fnn_user_derivative, and `any_number` says whether every number ends them;
        # dropout: a rate per hidden layer
        cdef Py_ssize_t l, n = len(layer_sizes) - 1, at = 0
        cdef Layer *layer
        self.compiled = activations
        self.layers = <Layer *>calloc(n, sizeof(Layer))
        if self.layers == NULL:
            raise MemoryError()
        self.net.dtype = FNN_F32 if is_float32 else FNN_F64
        self.net.k = fnn_kernels_for_net(ISA, self.net.dtype, max(layer_sizes[1:]))
        self.net.item_bytes = 4 if is_float32 else 8
        self.net.n_layers = n
        self.net.n_inputs = layer_sizes[0]
        self.net.n_outputs = layer_sizes[n]
        for l in range(n):
            layer = &self.layers[l]
            layer.fan_in = layer_sizes[l]
            layer.fan_out = layer_sizes[l + 1]
            layer.ld = fnn_row_stride(layer.fan_out, self.net.item_bytes)
            if isinstance(activations[l], int):
                layer.activation = activations[l]
                layer.needs_z = fnn_activation_needs_z(layer.activation)
            else:
                layer.activation = FNN_USER
                layer.user_value = <fnn_user_value><size_t>activations[l].addresses[0]
                layer.user_derivative = <fnn_user_derivative><size_t>activations[l].addresses[1]
                layer.user_whole = activations[l].any_number
                layer.needs_z = True
            layer.dropout = dropout[l] if l < n - 1 else 0.0
            layer.weight_at = at
            at += layer.fan_in * layer.fan_out
            layer.bias_at = at
            at += layer.fan_out
            layer.units = self.net.k.gradient_units(layer.fan_in, layer.fan_out)
            layer.packed_elems = self.net.k.packed_elems(layer.fan_in, layer.fan_out)
            self.net.multiply_adds += layer.fan_in * layer.fan_out
            self.widest_ld = max(self.widest_ld, layer.ld)
            if layer.dropout > 0:
                self.net.has_dropout = True
        self.net.n_parameters = at
        self.scratch_bytes = <Py_ssize_t>fnn_scratch_bytes(self.net.n_outputs, False, False)

    def __dealloc__(self):
        free(self.layers)


cdef struct Source:
    fnn_array x                    # with csr only its shape
    bint gather                    # whether rows must be converted
    bint csr                       # rows are stored without their zeros
    const char *indptr             # csr: where each row begins, and the last one ends
    const char *indices
    const char *data
    bint wide_indptr, wide_indices  # int64, else int32


cdef struct Workspace:
    Layer *layers                  # a copy of the plan's, with buffers
    bint csr                       # whether the first layer reads `entries`
    fnn_entries entries
    const void **entry_index       # of each row of the chunk; entries points to these
    const void **entry_value
    Py_ssize_t *entry_count
    char *scratch                  # scratch_bytes for each thread
    Py_ssize_t scratch_bytes
    Py_ssize_t rows                # rows that the buffers hold
    char *batch                    # gathered rows of X, where they are not read in place
    Py_ssize_t batch_ld
    int64_t *samples               # row numbers in X of the chunk
    double *row_loss
    double *bounds[N_PHASES]       # of each phase's work; see Shares
    double *seconds                # of each thread and phase, a cache line for each thread
    void *memory


cdef inline char *aligned(void *at) noexcept nogil:
    """The next address that is a multiple of FNN_ALIGN_BYTES."""
    return <char *>((<size_t>at + FNN_ALIGN_BYTES - 1) // FNN_ALIGN_BYTES * FNN_ALIGN_BYTES)


cdef inline char *take(char **at, Py_ssize_t n_bytes) noexcept nogil:
    """n_bytes from an address that is aligned, and so is what is left."""
    cdef char *p = at[0]
    at[0] = aligned(p + n_bytes)
    return p


cdef Py_ssize_t lay_out(Workspace *w, const Network *net, const Layer *plan, Py_ssize_t rows, int n_threads, bint backward,
                        bint dropout, const Source *source, bint pack, char *base) noexcept nogil:
    """Divide one block of memory; with base NULL only its size is found. Returns the size in bytes."""
    cdef char *at = base
    cdef Py_ssize_t l, r, item = net.item_bytes, buffer_bytes
    cdef Layer *layer
    cdef bint dry = base == NULL
    cdef Layer scratch_layer
    cdef bint packs = False
    cdef int phase
    for l in range(net.n_layers):
        packs = packs or (pack and plan[l].packed_elems > 0)
    w.layers = <Layer *>take(&at, net.n_layers * sizeof(Layer))
    w.scratch_bytes = <Py_ssize_t>fnn_scratch_bytes(net.n_outputs, backward, packs)
    w.scratch = take(&at, w.scratch_bytes * n_threads)
    w.samples = <int64_t *>take(&at, rows * sizeof(int64_t))
    w.row_loss = <double *>take(&at, rows * sizeof(double))
    for phase in range(N_PHASES):
        w.bounds[phase] = <double *>take(&at, (3 * n_threads + 1) * sizeof(double))
    w.seconds = <double *>take(&at, n_threads * FNN_ALIGN_BYTES)
    w.batch_ld = fnn_row_stride(net.n_inputs, item)
    w.batch = take(&at, rows * w.batch_ld * item) if source.gather else NULL
    w.rows = rows
    w.csr = source.csr
    if w.csr:
        w.entry_index = <const void **>take(&at, rows * sizeof(void *))
        w.entry_value = <const void **>take(&at, rows * sizeof(void *))
        w.entry_count = <Py_ssize_t *>take(&at, rows * sizeof(Py_ssize_t))
        w.entries.index = w.entry_index
        w.entries.value = w.entry_value
        w.entries.count = w.entry_count
        w.entries.wide = source.wide_indices
    for l in range(net.n_layers):
        layer = &scratch_layer if dry else &w.layers[l]
        layer[0] = plan[l]
        buffer_bytes = rows * layer.ld * item
        layer.rows = <const void **>take(&at, rows * sizeof(void *))
        layer.y = take(&at, buffer_bytes)
        layer.z = take(&at, buffer_bytes) if backward and (layer.needs_z or l == net.n_layers - 1) else layer.y
        layer.dropped = layer.y
        layer.factor = NULL
        layer.delta = NULL
        if l == 0 and w.csr:
            layer.packed_elems = 0
            layer.units = (layer.fan_in + FNN_SPARSE_UNIT - 1) // FNN_SPARSE_UNIT
        layer.packed = take(&at, layer.packed_elems * item) if pack and layer.packed_elems > 0 else NULL
        layer.density = MOST_DENSITY if layer.packed != NULL else -1
        if backward:
            layer.delta = take(&at, buffer_bytes)
            layer.delta_rows = <const void **>take(&at, rows * sizeof(void *))
            if dropout and layer.dropout > 0:
                layer.dropped = take(&at, buffer_bytes)
                layer.factor = take(&at, buffer_bytes)
    if not dry:
        for l in range(net.n_layers):
            layer = &w.layers[l]
            for r in range(rows):
                if l > 0:
                    layer.rows[r] = w.layers[l - 1].dropped + r * w.layers[l - 1].ld * item
                elif source.gather:
                    layer.rows[r] = w.batch + r * w.batch_ld * item
                if backward:
                    layer.delta_rows[r] = layer.delta + r * layer.ld * item
    return at - base


cdef void clear(Layer *layer, Py_ssize_t n_bytes) noexcept nogil:
    """Numbers between the rows: subnormal ones, as memory is full of them, would be slow."""
    memset(layer.y, 0, n_bytes)
    if layer.z != layer.y:
        memset(layer.z, 0, n_bytes)
    if layer.delta != NULL:
        memset(layer.delta, 0, n_bytes)


cdef int workspace_init(Workspace *w, const Network *net, const Layer *plan, Py_ssize_t rows, int n_threads,
                        bint backward, bint dropout, const Source *source, bint pack) except -1:
    """Allocate and lay out; the caller frees w.memory."""
    cdef Py_ssize_t l
    cdef Py_ssize_t n_bytes = lay_out(w, net, plan, rows, n_threads, backward, dropout, source, pack, NULL)
    w.memory = malloc(n_bytes + FNN_ALIGN_BYTES)
    if w.memory == NULL:
        raise MemoryError(f"cannot allocate {n_bytes} bytes of workspace for {rows} rows")
    lay_out(w, net, plan, rows, n_threads, backward, dropout, source, pack, aligned(w.memory))
    for l in range(net.n_layers):
        if w.layers[l].activation == FNN_USER and w.layers[l].user_whole:
            clear(&w.layers[l], rows * w.layers[l].ld * net.item_bytes)
    return 0


cdef void set_parameters(Workspace *w, const Network *net, char *parameters) noexcept nogil:
    cdef Py_ssize_t l
    for l in range(net.n_layers):
        w.layers[l].weights = parameters + w.layers[l].weight_at * net.item_bytes
        w.layers[l].bias = parameters + w.layers[l].bias_at * net.item_bytes


cdef void pack(Workspace *w, const Network *net, int t, int n_threads) noexcept nogil:
    """This thread's share of the weights into the copies that the forward pass reads."""
    cdef Py_ssize_t l
    cdef Layer *layer
    for l in range(net.n_layers):
        layer = &w.layers[l]
        if layer.packed != NULL:
            net.k.pack_weights(layer.fan_in, layer.fan_out, layer.fan_in * t // n_threads,
                               layer.fan_in * (t + 1) // n_threads, layer.weights, layer.packed)


cdef void unpack_first(Workspace *w, const Network *net) noexcept nogil:
    """The first layer's weights out of their packed copy. Nothing in a step reads them but its own forward pass, so
    that they may live there; deeper layers' weights are read by the backward pass too."""
    net.k.unpack_weights(w.layers[0].fan_in, w.layers[0].fan_out, w.layers[0].packed, w.layers[0].weights)


cdef int threads_for(double multiply_adds, int n_threads) noexcept nogil:
    cdef double useful = multiply_adds / WORK_PER_THREAD if WORK_PER_THREAD > 0 else n_threads
    if useful < n_threads:
        n_threads = <int>useful
    return n_threads if n_threads > 1 else 1


def _cpu_count():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


# --- forward and backward over rows of a chunk ------------------------------------------------------------------------------

cdef struct DropoutKey:
    uint64_t seed, epoch
    uint32_t stream


cdef inline int64_t index_at(const char *indices, bint wide, Py_ssize_t at) noexcept nogil:
    return (<const int64_t *>indices)[at] if wide else (<const int32_t *>indices)[at]


cdef void point_rows(Workspace *w, const Network *net, const Source *source, Py_ssize_t r0,
                     Py_ssize_t r1) noexcept nogil:
    """Make rows [r0, r1) of the chunk readable: pointers into X where it can be read in place, else converted copies."""
    cdef const fnn_array *x = &source.x
    cdef Py_ssize_t r, begin
    if source.csr:
        for r in range(r0, r1):
            begin = index_at(source.indptr, source.wide_indptr, w.samples[r])
            w.entry_index[r] = source.indices + begin * (8 if source.wide_indices else 4)
            w.entry_value[r] = source.data + begin * net.item_bytes
            w.entry_count[r] = index_at(source.indptr, source.wide_indptr, w.samples[r] + 1) - begin
        return
    if source.gather:
        fnn_gather(x, w.samples + r0, 0, r1 - r0, net.dtype, w.batch + r0 * w.batch_ld * net.item_bytes, w.batch_ld)
    else:
        for r in range(r0, r1):
            w.layers[0].rows[r] = x.data + w.samples[r] * x.row_stride_bytes


cdef bint column_finite(const char *z, Py_ssize_t n, Py_ssize_t ld, int dtype) noexcept nogil:
    """Whether the first value of each of n rows, ld elements apart, is finite."""
    cdef Py_ssize_t r
    cdef double worst = 0
    for r in range(n):
        if dtype == FNN_F32:
            worst += (<const float *>z)[r * ld] - (<const float *>z)[r * ld]
        else:
            worst += (<const double *>z)[r * ld] - (<const double *>z)[r * ld]
    return worst == 0


cdef inline void apply_activation(const Network *net, const Layer *layer, Py_ssize_t n, char *z, char *y, Py_ssize_t ld,
                                  void *scratch) noexcept nogil:
    """y = f(z) of n rows, ld elements apart; y may be z."""
    if layer.activation == FNN_ACTIVATION_softmax:
        net.k.softmax(n, layer.fan_out, z, ld, y, ld, scratch)
    elif layer.activation == FNN_USER:
        if z != y:
            memcpy(y, z, n * ld * net.item_bytes)
        fnn_user_activate(layer.user_value, net.dtype, n, layer.fan_out, y, ld, layer.user_whole)
    elif layer.activation != FNN_ACTIVATION_identity or z != y:
        net.k.activate(layer.activation, n, layer.fan_out, z, ld, y, ld)


cdef bint forward(Workspace *w, const Network *net, Py_ssize_t r0, Py_ssize_t r1, const DropoutKey *key, bint link,
                  const fnn_array *unchecked, void *scratch) noexcept nogil:
    """Layers' outputs of rows [r0, r1). Without `link` the last layer stops at its logits (the loss takes those).

    False, and nothing but the first sums done, where a value of these rows of `unchecked`, X (or NULL), is not finite:
    such a value leaves no finite sum behind, whatever the weights, so that only where a row's first sum is not finite
    are its values looked at.
    """
    cdef Py_ssize_t l, at, n = r1 - r0
    cdef Layer *layer
    cdef fnn_entries entries = w.entries
    for l in range(net.n_layers):
        layer = &w.layers[l]
        at = r0 * layer.ld * net.item_bytes
        if l == 0 and w.csr:
            entries.index = w.entry_index + r0
            entries.value = w.entry_value + r0
            entries.count = w.entry_count + r0
            net.k.sparse_forward(&entries, n, layer.fan_in, layer.weights, layer.bias, layer.fan_out, layer.z + at,
                                 layer.ld)
        elif layer.packed != NULL:
            net.k.dense_forward_packed(layer.rows + r0, n, layer.fan_in, layer.packed, layer.bias, layer.fan_out,
                                       layer.z + at, layer.ld, layer.density, scratch)
        else:
            net.k.dense_forward(layer.rows + r0, n, layer.fan_in, layer.weights, layer.bias, layer.fan_out,
                                layer.z + at, layer.ld, MOST_DENSITY, scratch)
        if (l == 0 and unchecked != NULL and not column_finite(layer.z + at, n, layer.ld, net.dtype)
                and fnn_first_bad_row(unchecked, w.samples, r0, r1, net.dtype) < r1):
            return False
        if l == net.n_layers - 1 and not link:
            return True
        apply_activation(net, layer, n, layer.z + at, layer.y + at, layer.ld, scratch)
        if key != NULL and layer.dropout > 0:
            net.k.dropout_factors(key.seed, key.stream, key.epoch, <uint32_t>l, layer.dropout, n, w.samples + r0,
                                  layer.fan_out, layer.factor + at, layer.ld)
            net.k.multiply(n, layer.fan_out, layer.factor + at, layer.ld, layer.y + at, layer.ld, layer.dropped + at,
                           layer.ld)
    return True


cdef void backward(Workspace *w, const Network *net, Py_ssize_t r0, Py_ssize_t r1, bint dropout, void *scratch) noexcept nogil:
    """Deltas of all layers of rows [r0, r1) from the last layer's."""
    cdef Py_ssize_t l, at
    cdef Layer *layer
    cdef Layer *below
    for l in range(net.n_layers - 1, 0, -1):
        layer = &w.layers[l]
        below = &w.layers[l - 1]
        at = r0 * below.ld * net.item_bytes
        net.k.dense_backward(layer.delta_rows + r0, r1 - r0, layer.fan_in, layer.weights, layer.fan_out,
                             below.delta + at, below.ld, layer.density, scratch)
        if dropout and below.dropout > 0:
            net.k.multiply(r1 - r0, below.fan_out, below.factor + at, below.ld, below.delta + at, below.ld,
                           below.delta + at, below.ld)
        if below.activation == FNN_USER:
            fnn_user_activate_backward(below.user_derivative, net.dtype, r1 - r0, below.fan_out, below.z + at,
                                       below.y + at, below.ld, below.delta + at, below.ld, below.user_whole)
        elif below.activation != FNN_ACTIVATION_identity:
            net.k.activate_backward(below.activation, r1 - r0, below.fan_out, below.z + at, below.y + at, below.ld,
                                    below.delta + at, below.ld)


# --- rows as they come ------------------------------------------------------------------------------------------------

cdef int open_rows(Source *source, const Network *net, Buffers buffers, object X) except -1:
    """X as rows that point_rows reads: an array, or CSR arrays (fastnn.sparse_rows.SparseRows)."""
    cdef int kind = FNN_KIND_F32 if net.dtype == FNN_F32 else FNN_KIND_F64
    cdef Py_ssize_t n_stored
    source.csr = False
    indptr = getattr(X, "indptr", None)
    if indptr is None:
        describe(buffers.get(X, False), &source.x)
        source.gather = not fnn_in_place(&source.x, net.dtype)
    else:
        source.csr = True
        source.gather = False
        source.x.n_rows, source.x.n_cols = X.shape
        n_stored = len(X.indices)
        source.wide_indptr = indptr.dtype == np.int64
        source.wide_indices = X.indices.dtype == np.int64
        source.indptr = buffers.flat(indptr, FNN_KIND_I64 if source.wide_indptr else FNN_KIND_I32,
                                     source.x.n_rows + 1, False, "indptr")
        source.indices = buffers.flat(X.indices, FNN_KIND_I64 if source.wide_indices else FNN_KIND_I32, n_stored, False,
                                      "indices")
        source.data = buffers.flat(X.data, kind, n_stored, False, "data")
    if source.x.n_cols != net.n_inputs:
        raise ValueError(f"X has {source.x.n_cols} features, but this model was built for {net.n_inputs} (layer_sizes[0])")
    return 0


# --- training --------------------------------------------------------------------------------------------------------------

cdef enum Status:
    DONE
    STOPPED
    INTERRUPTED
    DIVERGED
    BAD_ROWS

STATUS_NAMES = ("done", "stopped", "interrupted", "diverged", "bad rows")


# Where a training call stands: each of its threads keeps the same one.
cdef struct Progress:
    Py_ssize_t epoch, start, batch, step   # start: the batch's first row in the epoch
    double epoch_loss, epoch_weight, began
    bint ended
    # of the thread itself: its shortest time in each phase since the work was shared out for the last time
    double seconds[N_PHASES]
    int shared


# Who does what: of n threads, t does [bounds[2 n + t], bounds[2 n + t + 1]) of a phase's work, counted from 0 to 1. The first
# thread sets the bounds between the two barriers of a step, where no other reads them, by the seconds that all have left in
# the workspace: some rows hold more zeros than others, and some cores are slower.
cdef struct Shares:
    int n_threads, n_steps         # of the times that are being taken
    int shared                     # how often the work has been shared out


# What comes next: steps by the first threads, all others sleeping. No threads: the end.
cdef struct Turn:
    int n_threads
    Py_ssize_t n_steps


# Which of all threads, half of them, and so on down to one is fastest: a neighbour may hold a core just now.
cdef struct Pace:
    int n_threads                  # all
    int halvings, looked_at        # of all: what is in use; what is tried for a turn, or -1
    int direction                  # of the next look: 1 to fewer threads, -1 to more
    double row_seconds             # of a row by those in use, a running mean; < 0: not known
    double at_last_look            # row_seconds then
    double next_look, wait
    double scale                   # of all these times


cdef struct Run:
    const Network *net
    Workspace *w
    Source source
    fnn_loss loss
    const int64_t *orders          # n_epochs permutations of the rows, or NULL for the natural order
    Py_ssize_t n_samples, batch_size, n_epochs
    int optimizer                  # -1: no update, gradients only
    bint loss_only
    Py_ssize_t n_scalars
    const double *scalars          # a row for each step
    double l2, clip_norm           # clip_norm < 0: none
    const double *step_l2          # of each step, in place of l2; or NULL
    double *step_record            # (n_steps, 2): mean loss of the batch, sum of squared weights before it; or NULL
    bint check                     # look for NaN and infinity in the rows of the first epoch
    int32_t bad                    # set by the thread that finds one
    DropoutKey key
    char *parameters
    char *slots[2]
    bint packed_only               # the first layer's weights live in their packed copy until the call ends
    char *gradient                 # of all parameters, or NULL where each tile is updated and forgotten
    char *snapshot                 # parameters and slots at the start of the epoch, or NULL
    void *small_memory             # of train_small, or NULL
    Py_ssize_t n_slots
    const int32_t *stop
    double *losses
    double *seconds
    # --- what the first thread decides, read by all after a barrier ---
    int status
    bint quit
    Py_ssize_t epochs_done, steps_done, bad_epoch, bad_batch
    double clip_factor
    double next_look
    Py_ssize_t chunks_to_look, chunks_between_looks
    Shares shares
    Pace pace
    Turn turns[2]                  # this one and the next, in turn
    Progress progress              # at the end of the last turn


cdef bint interrupted(double *next_look) noexcept nogil:
    """Whether a signal's handler raised, looked for every SIGNAL_SECONDS; its exception is in `pending_error`."""
    cdef double now = fnn_seconds()
    cdef int raised
    if now < next_look[0]:
        return False
    next_look[0] = now + SIGNAL_SECONDS
    with gil:
        raised = check_signals()
    return raised


cdef void look_around(Run *run) noexcept nogil:
    """Stop flag and signals."""
    if run.stop != NULL and fnn_flag_get(run.stop):
        run.status = STOPPED
        run.quit = True
        return
    run.chunks_to_look -= 1
    if run.chunks_to_look > 0:
        return
    run.chunks_to_look = run.chunks_between_looks
    if interrupted(&run.next_look):
        run.status = INTERRUPTED
        run.quit = True


cdef object PENDING = threading.local()


cdef int check_signals() noexcept:
    # The exception is kept until the state is in order again; Cython must not see it set meanwhile.
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        PENDING.error = error
        return 1
    return 0


cdef object pending_error():
    error = getattr(PENDING, "error", None)
    PENDING.error = None
    return error


cdef inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef void copy_state(Run *run, bint restore) noexcept nogil:
    """Snapshot of parameters and slots, or back."""
    cdef Py_ssize_t n_bytes = run.net.n_parameters * run.net.item_bytes, s
    if restore:
        memcpy(run.parameters, run.snapshot, n_bytes)
    else:
        memcpy(run.snapshot, run.parameters, n_bytes)
    for s in range(run.n_slots):
        if restore:
            memcpy(run.slots[s], run.snapshot + (s + 1) * n_bytes, n_bytes)
        else:
            memcpy(run.snapshot + (s + 1) * n_bytes, run.slots[s], n_bytes)


cdef void gradients(Run *run, Py_ssize_t n_rows, bint first, bint update, const double *scalars, double l2,
                    double begin_share, double end_share, const int64_t *later, Py_ssize_t n_later,
                    void *scratch) noexcept nogil:
    """This thread's tiles of all layers: their gradients over the chunk, and the update where it is due.

    They are those of [begin_share, end_share) of the work. In between, the n_later rows that this thread reads next are
    asked for, a few at a time: in shuffled order no hardware prefetcher sees them coming.
    """
    cdef const Network *net = run.net
    cdef Py_ssize_t l, item = net.item_bytes, begin, end, stop, asked = 0, upto, before = 0, done = 0, cost, lo, hi
    cdef Layer *layer
    cdef fnn_gradient job
    lo = <Py_ssize_t>(begin_share * <double>net.multiply_adds)
    hi = net.multiply_adds if end_share == 1 else <Py_ssize_t>(end_share * <double>net.multiply_adds)
    for l in range(net.n_layers):
        layer = &run.w.layers[l]
        cost = layer.fan_in * layer.fan_out
        begin = unit_at(lo - before, layer.units, cost)
        end = layer.units if end_share == 1 else unit_at(hi - before, layer.units, cost)
        before += cost
        if begin >= end:
            continue
        job.input_rows = layer.rows
        job.ld_input = run.w.layers[l - 1].ld if l > 0 else run.w.batch_ld if run.source.gather else 0
        job.packed = layer.packed
        job.packed_only = l == 0 and run.packed_only
        job.delta = layer.delta
        job.ldd = layer.ld
        job.n_rows = n_rows
        job.fan_in = layer.fan_in
        job.fan_out = layer.fan_out
        job.density = layer.density
        job.gradient = run.gradient + layer.weight_at * item if run.gradient != NULL else NULL
        job.bias_gradient = run.gradient + layer.bias_at * item if run.gradient != NULL else NULL
        job.accumulate = not first
        job.optimizer = run.optimizer if update else -1
        job.scalars = scalars
        job.l2 = l2
        job.weights = layer.weights
        job.bias = layer.bias
        job.weight_a = run.slots[0] + layer.weight_at * item if run.n_slots > 0 else NULL
        job.weight_b = run.slots[1] + layer.weight_at * item if run.n_slots > 1 else NULL
        job.bias_a = run.slots[0] + layer.bias_at * item if run.n_slots > 0 else NULL
        job.bias_b = run.slots[1] + layer.bias_at * item if run.n_slots > 1 else NULL
        while begin < end:
            stop = least(begin + UNITS_BETWEEN_FETCHES, end) if asked < n_later else end
            if l == 0 and run.w.csr:
                net.k.sparse_gradient(&job, &run.w.entries, begin, stop, scratch)
            else:
                net.k.dense_gradient(&job, begin, stop, scratch)
            if asked < n_later:
                # in step with the work done, so that requests never queue up
                done += (stop - begin) * cost // layer.units
                upto = least(n_later, n_later * done // (hi - lo + 1) + 1)
                fnn_prefetch_rows(&run.source.x, later + asked, upto - asked)
                asked = upto
            begin = stop


cdef inline Py_ssize_t row_at(double share, Py_ssize_t n_rows) noexcept nogil:
    return <Py_ssize_t>(share * <double>n_rows + 0.5)


cdef inline Py_ssize_t unit_at(Py_ssize_t work, Py_ssize_t units, Py_ssize_t cost) noexcept nogil:
    """First unit that starts at or after this much of the layer's work; the same for both threads that ask."""
    if work <= 0:
        return 0
    if work >= cost:
        return units
    return <Py_ssize_t>((<double>work / <double>cost) * <double>units)


cdef void clip_and_update(Run *run, const double *scalars, double l2, int t, int n_threads,
                          fnn_barrier *barrier) noexcept nogil:
    """Scale the whole gradient to the norm allowed, then update. The l2 term is part of what is measured."""
    cdef const Network *net = run.net
    cdef Py_ssize_t l, item = net.item_bytes, begin, end
    cdef double norm = 0
    cdef Layer *layer
    if t == 0:
        for l in range(net.n_layers):
            layer = &run.w.layers[l]
            if l2 != 0:
                net.k.add_scaled(layer.fan_in * layer.fan_out, l2, layer.weights,
                                 run.gradient + layer.weight_at * item)
        norm = net.k.sum_of_squares(net.n_parameters, run.gradient) ** 0.5
        run.clip_factor = run.clip_norm / norm if norm > run.clip_norm else 1.0
    fnn_barrier_wait(barrier)
    begin = net.n_parameters * t // n_threads
    end = net.n_parameters * (t + 1) // n_threads
    net.k.update(run.optimizer, scalars, 0, run.clip_factor, 1, end - begin, run.gradient + begin * item, 0,
                 run.parameters + begin * item,
                 run.slots[0] + begin * item if run.n_slots > 0 else NULL,
                 run.slots[1] + begin * item if run.n_slots > 1 else NULL, 0)
    fnn_barrier_wait(barrier)
    pack(run.w, net, t, n_threads)
    fnn_barrier_wait(barrier)


cdef double squared_weights(const Workspace *w, const Network *net) noexcept nogil:
    """The sum of the squares of all weights, biases left out."""
    cdef Py_ssize_t l
    cdef double total = 0
    for l in range(net.n_layers):
        total += net.k.sum_of_squares(w.layers[l].fan_in * w.layers[l].fan_out, w.layers[l].weights)
    return total


cdef inline double batch_weight(const Run *run, const int64_t *order, Py_ssize_t start, Py_ssize_t stop) noexcept nogil:
    """The sum of the weights of rows order[start:stop] (start:stop without an order), one after the other."""
    cdef Py_ssize_t r
    cdef double total = 0
    if run.loss.sample_weight == NULL:
        return <double>(stop - start)
    for r in range(start, stop):
        total += run.loss.sample_weight[order[r] if order != NULL else r]
    return total


cdef inline void add_losses(const fnn_loss *loss, const int64_t *samples, const double *row_loss, Py_ssize_t n_rows,
                            double *epoch_loss, double *batch_loss) noexcept nogil:
    """Add the rows' losses to both sums, one after the other; a row of no weight may have any loss."""
    cdef Py_ssize_t r
    cdef double epoch = epoch_loss[0], batch = batch_loss[0], weight
    cdef const double *weights = loss.sample_weight
    for r in range(n_rows):
        if weights == NULL:
            epoch += row_loss[r]
            batch += row_loss[r]
            continue
        weight = weights[samples[r]]
        if weight != 0:
            epoch += weight * row_loss[r]
            batch += weight * row_loss[r]
    epoch_loss[0] = epoch
    batch_loss[0] = batch


cdef void train_steps(Run *run, Progress *p, Py_ssize_t n_steps, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    """The next n_steps steps, or fewer to the end. Threads meet at barriers; every branch is taken by all or none."""
    cdef Py_ssize_t _
    for _ in range(n_steps):
        if p.ended:
            return
        if p.start == 0:
            p.epoch_loss = p.epoch_weight = 0
            p.batch = 0
            p.began = fnn_seconds() if t == 0 else 0
            if t == 0 and run.snapshot != NULL:
                copy_state(run, False)
        train_step(run, p, t, n_threads, barrier)
        if p.ended:
            return
        if p.start == run.n_samples:
            if t == 0:
                end_epoch(run, p)
            fnn_barrier_wait(barrier)
            p.start = 0
            p.epoch += 1
            p.ended = run.status == DIVERGED or p.epoch == run.n_epochs


cdef void end_epoch(Run *run, const Progress *p) noexcept nogil:
    """The books of an epoch, kept by the first thread. Parameters that are not finite go back to the epoch's first."""
    if run.packed_only:
        unpack_first(run.w, run.net)
    run.losses[p.epoch] = p.epoch_loss / p.epoch_weight if p.epoch_weight > 0 else 0
    run.seconds[p.epoch] = fnn_seconds() - p.began
    if run.snapshot != NULL and not run.net.k.all_finite(run.net.n_parameters, run.parameters):
        # not `quit`: a slower thread may still be about to look at that for the last step
        run.status = DIVERGED
        run.bad_epoch = p.epoch
        run.bad_batch = p.batch - 1
        copy_state(run, True)
    else:
        run.epochs_done = p.epoch + 1


cdef void share_evenly(Run *run, int n_threads) noexcept nogil:
    """For all numbers of threads that may be in use."""
    cdef int phase, t
    run.shares.n_threads = n_threads
    run.shares.shared = 1
    while n_threads > 0:
        for phase in range(N_PHASES):
            for t in range(n_threads + 1):
                run.w.bounds[phase][2 * n_threads + t] = <double>t / n_threads
        n_threads //= 2


cdef void share_out(Run *run, int n_threads) noexcept nogil:
    """Every STEPS_PER_SHARE steps, by the first thread: half the way to where all would have taken the same time."""
    cdef Shares *shares = &run.shares
    cdef double *bounds
    cdef const double *seconds = run.w.seconds
    cdef double speeds, share, before, at, shortest, longest
    cdef int phase, t
    if WORK_PER_THREAD == 0:  # tests
        for phase in range(N_PHASES):
            for t in range(1, n_threads):
                run.w.bounds[phase][2 * n_threads + t] = (<double>t / n_threads) ** (0.5 + (shares.shared + phase) % 5)
    elif shares.n_threads == n_threads:
        shares.n_steps += 1
        if shares.n_steps < STEPS_PER_SHARE:
            return
        for phase in range(N_PHASES):
            bounds = run.w.bounds[phase] + 2 * n_threads
            speeds = longest = 0
            shortest = INFINITY
            for t in range(n_threads):
                shortest = min(shortest, seconds[LINE_DOUBLES * t + phase])
                longest = max(longest, seconds[LINE_DOUBLES * t + phase])
                speeds += (bounds[t + 1] - bounds[t]) / seconds[LINE_DOUBLES * t + phase]
            # as it should be; or a coarse clock; or no time yet
            if longest < UNEVEN * shortest or shortest <= 0 or longest == INFINITY:
                continue
            before = at = 0
            for t in range(n_threads - 1):
                share = bounds[t + 1] - before
                before = bounds[t + 1]
                at += 0.5 * (share + share / seconds[LINE_DOUBLES * t + phase] / speeds)
                bounds[t + 1] = at
    shares.n_threads = n_threads
    shares.n_steps = 0
    shares.shared += 1


cdef void train_step(Run *run, Progress *p, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    """One step: its rows' forward and backward passes chunk by chunk, and the update. Sets p.ended where it is the last."""
    cdef const Network *net = run.net
    cdef Workspace *w = run.w
    cdef Layer *last = &w.layers[net.n_layers - 1]
    cdef void *scratch = w.scratch + t * w.scratch_bytes
    cdef DropoutKey epoch_key = run.key
    cdef bint update = run.optimizer >= 0, clip = run.clip_norm >= 0, done, moves, fetch
    cdef const DropoutKey *key = &epoch_key if net.has_dropout and update else NULL
    cdef const int64_t *order = run.orders + p.epoch * run.n_samples if run.orders != NULL else NULL
    cdef const double *scalars = run.scalars + p.step * run.n_scalars if update else NULL
    cdef Py_ssize_t chunk = p.start, stop = least(p.start + run.batch_size, run.n_samples), n, r, r0, r1, at, later
    cdef double total_weight = batch_weight(run, order, p.start, stop), batch_loss = 0
    cdef double l2 = run.step_l2[p.step] if run.step_l2 != NULL else run.l2
    cdef bint check = run.check and p.epoch == 0
    cdef fnn_loss loss = run.loss
    cdef double begin_share[N_PHASES]
    cdef double end_share[N_PHASES]
    cdef double began = 0
    cdef int phase
    for phase in range(N_PHASES):
        begin_share[phase] = w.bounds[phase][2 * n_threads + t]
        end_share[phase] = w.bounds[phase][2 * n_threads + t + 1]
        if p.shared != run.shares.shared:
            p.seconds[phase] = INFINITY
    p.shared = run.shares.shared
    epoch_key.epoch = run.key.epoch + <uint64_t>p.epoch
    fetch = order != NULL and not run.source.csr
    moves = total_weight > 0
    loss.total_weight = total_weight if moves else 1
    # Nobody writes to the weights before the next barrier.
    if t == 0 and run.step_record != NULL:
        run.step_record[2 * p.step + 1] = squared_weights(w, net)
    while chunk < stop:
        n = least(w.rows, stop - chunk)
        done = chunk + n == stop
        # rows: forward, loss, backward
        r0 = row_at(begin_share[ROWS_PHASE], n)
        r1 = row_at(end_share[ROWS_PHASE], n)
        began = fnn_seconds() if n_threads > 1 else 0
        for r in range(r0, r1):
            w.samples[r] = order[chunk + r] if order != NULL else chunk + r
        if r1 > r0:
            point_rows(w, net, &run.source, r0, r1)
            if forward(w, net, r0, r1, key, False, &run.source.x if check else NULL, scratch):
                at = r0 * last.ld * net.item_bytes
                net.k.loss(&loss, r1 - r0, last.z + at, last.ld, w.samples + r0, last.delta + at, last.ld,
                           w.row_loss + r0, scratch)
                if not run.loss_only:
                    backward(w, net, r0, r1, key != NULL, scratch)
            else:
                fnn_flag_set(&run.bad)
        if n_threads > 1:
            if n == w.rows:
                p.seconds[ROWS_PHASE] = min(p.seconds[ROWS_PHASE], fnn_seconds() - began)
            for phase in range(N_PHASES):
                w.seconds[LINE_DOUBLES * t + phase] = p.seconds[phase]
        fnn_barrier_wait(barrier)
        if t == 0 and n_threads > 1:
            share_out(run, n_threads)
        if check and fnn_flag_get(&run.bad):
            if t == 0:
                run.status = BAD_ROWS
                copy_state(run, True)
            p.ended = True
            return
        # every thread sums the losses, row after row through the epoch: all see the same number
        add_losses(&loss, w.samples, w.row_loss, n, &p.epoch_loss, &batch_loss)
        if not isfinite(p.epoch_loss):
            if t == 0:
                run.status = DIVERGED
                run.bad_epoch = p.epoch
                run.bad_batch = p.batch
                if run.snapshot != NULL:
                    copy_state(run, True)
            if run.snapshot != NULL or run.loss_only:
                p.ended = True
                return
        # tiles: gradient, update
        if not run.loss_only and moves:
            later = least(w.rows, (least(stop + run.batch_size, run.n_samples) if done else stop) - (chunk + n))
            r0 = row_at(begin_share[ROWS_PHASE], later)
            r1 = row_at(end_share[ROWS_PHASE], later)
            began = fnn_seconds() if n_threads > 1 else 0
            gradients(run, n, chunk == p.start, done and update and not clip, scalars, l2, begin_share[TILES_PHASE],
                      end_share[TILES_PHASE], order + chunk + n + r0, r1 - r0 if fetch else 0, scratch)
            if n_threads > 1 and n == w.rows:
                p.seconds[TILES_PHASE] = min(p.seconds[TILES_PHASE], fnn_seconds() - began)
        if t == 0:
            look_around(run)
            if done and not clip:
                run.steps_done = p.step + 1
        fnn_barrier_wait(barrier)
        if run.quit and not (done and clip):
            p.ended = True
            return
        chunk += n
    if clip and moves and update:
        clip_and_update(run, scalars, l2, t, n_threads, barrier)
    if clip and t == 0:
        run.steps_done = p.step + 1
    if run.quit:
        p.ended = True
        return
    if t == 0 and run.step_record != NULL:
        run.step_record[2 * p.step] = batch_loss / loss.total_weight
    p.epoch_weight += total_weight
    p.batch += 1
    p.step += 1
    p.start = stop


cdef void pace_begin(Pace *pace, int n_threads) noexcept nogil:
    pace.n_threads = n_threads
    pace.halvings = 0
    pace.looked_at = -1
    pace.direction = 1
    pace.row_seconds = -1
    pace.at_last_look = 1e300
    pace.scale = 1 if WORK_PER_THREAD > 0 else 0
    pace.wait = FIRST_LOOK * pace.scale
    pace.next_look = fnn_seconds() + pace.wait


cdef Turn pace_next(Pace *pace, Py_ssize_t n_rows, Py_ssize_t n_steps, double seconds) noexcept nogil:
    """The next turn, after one in which n_rows rows in n_steps steps took so long."""
    cdef double now = fnn_seconds(), row, length = TURN_SECONDS
    cdef double longest = LONGEST_WAIT if pace.halvings == 0 else LONGEST_WAIT_IN_PART
    cdef Turn turn
    seconds = max(seconds, 1e-9)  # a coarse clock
    row = seconds / n_rows
    if pace.looked_at >= 0:
        if row < FASTER * pace.row_seconds:
            pace.halvings = pace.looked_at
            pace.row_seconds = row
            pace.wait = FIRST_LOOK
        else:
            pace.wait = min(4 * pace.wait, longest)
            pace.direction = -pace.direction
        pace.looked_at = -1
        pace.wait = max(pace.wait, LOOKS_APART * seconds) * pace.scale
        pace.at_last_look = pace.row_seconds
        pace.next_look = now + pace.wait
    else:
        pace.row_seconds = row if pace.row_seconds < 0 else 0.75 * pace.row_seconds + 0.25 * row
        if now >= pace.next_look or (pace.row_seconds > SLOWER * pace.at_last_look
                                     and now >= pace.next_look - pace.wait + FIRST_LOOK):
            if pace.halvings + pace.direction < 0 or pace.n_threads >> (pace.halvings + pace.direction) == 0:
                pace.direction = -pace.direction
            pace.looked_at = pace.halvings + pace.direction
            length = LOOK_SECONDS
    turn.n_threads = pace.n_threads >> (pace.halvings if pace.looked_at < 0 else pace.looked_at)
    turn.n_steps = 1 + <Py_ssize_t>(length * pace.scale * n_steps / seconds)
    return turn


cdef inline Py_ssize_t rows_done(const Run *run, const Progress *p) noexcept nogil:
    return p.epoch * run.n_samples + p.start


cdef void train_task(void *context, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    """What each thread of a training call does: turns of some steps, by the number of threads that is fastest just now.

    No bit depends on that number. Threads left out of a turn wait at `barrier`, asleep.
    """
    cdef Run *run = <Run *>context
    cdef fnn_barrier *first = fnn_barrier_of_first(barrier)
    cdef Progress progress
    cdef Turn turn
    cdef int n_before = n_threads, which = 0
    cdef Py_ssize_t rows = 0
    cdef double began = 0
    memset(&progress, 0, sizeof(progress))
    progress.ended = run.n_epochs == 0
    pack(run.w, run.net, t, n_threads)
    if t == 0:
        turn.n_threads = 0 if progress.ended else n_threads
        turn.n_steps = 2 if n_threads > 1 else run.n_epochs * run.n_samples
        run.turns[0] = turn
        pace_begin(&run.pace, n_threads)
        share_evenly(run, n_threads)
    while True:
        fnn_barrier_wait(barrier)
        turn = run.turns[which]
        which = 1 - which
        if turn.n_threads == 0:
            return
        if t < turn.n_threads:
            if t >= n_before:
                progress = run.progress
                progress.shared = 0  # the times in there are another thread's
            if turn.n_steps > 1:
                # not timed: what it needs lies in the caches of those who did the last turn
                train_steps(run, &progress, 1, t, turn.n_threads, first)
                turn.n_steps -= 1
            began = fnn_seconds()
            rows = rows_done(run, &progress)
            train_steps(run, &progress, turn.n_steps, t, turn.n_threads, first)
        n_before = turn.n_threads
        if t == 0:
            run.progress = progress
            if progress.ended:
                turn.n_threads = 0
            else:
                turn = pace_next(&run.pace, rows_done(run, &progress) - rows, turn.n_steps, fnn_seconds() - began)
                fnn_barrier_resize(first, turn.n_threads)
            run.turns[which] = turn


cdef bint is_small(const Run *run, int n_threads) noexcept nogil:
    """Whether train_small can do this run: it has no dropout and no clipping."""
    cdef const Network *net = run.net
    cdef Py_ssize_t l
    if (n_threads > 1 or run.batch_size > SMALL_ROWS or net.n_layers > FNN_SMALL_LAYERS or net.has_dropout
            or run.clip_norm >= 0 or net.n_inputs > SMALL_WIDTH or run.source.csr):
        return False
    for l in range(net.n_layers):
        if run.w.layers[l].fan_out > SMALL_WIDTH:
            return False
    return True


cdef Py_ssize_t small_init(Run *run, fnn_small *small) except -1:
    """Padded memory for a small network, laid out and loaded; the caller frees run.small_memory. Returns its bytes."""
    cdef const Network *net = run.net
    cdef Py_ssize_t sizes[FNN_SMALL_LAYERS + 1]
    cdef int activations[FNN_SMALL_LAYERS]
    cdef Py_ssize_t l, n_bytes
    sizes[0] = net.n_inputs
    for l in range(net.n_layers):
        sizes[l + 1] = run.w.layers[l].fan_out
        activations[l] = run.w.layers[l].activation
    n_bytes = net.k.small_layout(net.n_layers, sizes, activations, run.batch_size, run.n_slots, NULL, small)
    run.small_memory = calloc(1, n_bytes + FNN_ALIGN_BYTES)
    if run.small_memory == NULL:
        raise MemoryError(f"cannot allocate {n_bytes} bytes of workspace")
    net.k.small_layout(net.n_layers, sizes, activations, run.batch_size, run.n_slots,
                       aligned(run.small_memory), small)
    for l in range(net.n_layers):
        small.layers[l].user_value = run.w.layers[l].user_value
        small.layers[l].user_derivative = run.w.layers[l].user_derivative
        small.layers[l].user_whole = run.w.layers[l].user_whole
    net.k.small_load(small, run.parameters, run.slots[0], run.slots[1])
    return n_bytes


cdef void share_seconds(Run *run, Py_ssize_t n, double *began) noexcept nogil:
    """The time since `began`, which becomes now, over the last n epochs."""
    cdef Py_ssize_t i
    cdef double now = fnn_seconds()
    for i in range(n):
        run.seconds[run.epochs_done - 1 - i] = (now - began[0]) / n
    began[0] = now


cdef bint small_finite(Run *run, const fnn_small *small) noexcept nogil:
    """Whether all parameters are finite."""
    if run.net.k.all_finite(small.n_padded, small.parameters):
        return True
    # or a pad is not, which means nothing
    run.net.k.small_store(small, run.parameters, NULL, NULL)
    return run.net.k.all_finite(run.net.n_parameters, run.parameters)


cdef void train_small(Run *run, fnn_small *small) noexcept nogil:
    """What train_task does, with one thread, for a network that is_small: whole steps in L1, one kernel call each.

    Short epochs are looked at some at a time. Where one of them has gone wrong, all are done again, each by itself.
    """
    cdef const Network *net = run.net
    cdef Workspace *w = run.w
    cdef const fnn_array *x = &run.source.x
    cdef const void *in_place = NULL
    cdef bint fetch = run.orders != NULL and run.n_samples * x.row_stride_bytes > L1_BYTES
    cdef Py_ssize_t state_bytes = (1 + run.n_slots) * small.n_padded * net.item_bytes
    cdef Py_ssize_t epoch = 0, kept_epoch = 0, kept_step = 0, start, stop, n, r, batch, step = 0
    cdef Py_ssize_t together = SMALL_EPOCHS_TOGETHER if run.n_samples <= SMALL_ROWS else 1
    cdef const int64_t *order
    cdef const int64_t *samples
    cdef double epoch_loss, epoch_weight, batch_loss, l2, began = fnn_seconds()
    cdef fnn_loss loss = run.loss
    cdef bint moves
    if not run.source.gather:
        in_place = x.data
    while epoch < run.n_epochs:
        if epoch == 0 or epoch - kept_epoch == together:
            share_seconds(run, epoch - kept_epoch, &began)
            memcpy(run.snapshot, small.parameters, state_bytes)
            kept_epoch = epoch
            kept_step = step
        order = run.orders + epoch * run.n_samples if run.orders != NULL else NULL
        epoch_loss = epoch_weight = 0
        batch = start = 0
        while start < run.n_samples and not run.quit:
            stop = least(start + run.batch_size, run.n_samples)
            n = stop - start
            if order != NULL:
                samples = order + start
            else:
                for r in range(n):
                    w.samples[r] = start + r
                samples = w.samples
            loss.total_weight = batch_weight(run, order, start, stop)
            moves = loss.total_weight > 0
            epoch_weight += loss.total_weight
            if not moves:
                loss.total_weight = 1
            if run.check and epoch == 0 and fnn_first_bad_row(x, samples, 0, n, net.dtype) < n:
                run.status = BAD_ROWS
                break
            if run.source.gather:
                fnn_gather(x, samples, 0, n, net.dtype, small.layers[0].input, small.layers[0].ld_input)
            if fetch:
                fnn_prefetch_rows(x, samples + n, least(run.batch_size, run.n_samples - stop))
            if run.step_record != NULL:
                net.k.small_store(small, run.parameters, NULL, NULL)
                run.step_record[2 * step + 1] = squared_weights(w, net)
            l2 = run.step_l2[step] if run.step_l2 != NULL else run.l2
            net.k.small_step(small, n, in_place, x.row_stride_bytes, &loss, samples,
                             run.optimizer if moves else -1, run.scalars + step * run.n_scalars, l2, w.row_loss, w.scratch)
            batch_loss = 0
            add_losses(&loss, samples, w.row_loss, n, &epoch_loss, &batch_loss)
            if not isfinite(epoch_loss):
                run.status = DIVERGED
                break
            if run.step_record != NULL:
                run.step_record[2 * step] = batch_loss / loss.total_weight
            step += 1
            batch += 1
            run.steps_done = step
            start = stop
            look_around(run)
        if run.status == DONE and (epoch + 1 - kept_epoch == together or epoch + 1 == run.n_epochs):
            if not small_finite(run, small):
                run.status = DIVERGED
                batch -= 1
        if (run.status == DIVERGED or run.status == BAD_ROWS
                or (run.quit and epoch > kept_epoch and not small_finite(run, small))):
            memcpy(small.parameters, run.snapshot, state_bytes)
            if epoch > kept_epoch:
                epoch = run.epochs_done = kept_epoch
                step = run.steps_done = kept_step
                if not run.quit:
                    run.status = DONE
                    together = 1
                    # loading also turns the weights that backward passes read
                    net.k.small_store(small, run.parameters, run.slots[0], run.slots[1])
                    net.k.small_load(small, run.parameters, run.slots[0], run.slots[1])
                    continue
            else:
                run.bad_epoch = epoch
                run.bad_batch = batch
        if run.status != DONE:
            break
        run.losses[epoch] = epoch_loss / epoch_weight if epoch_weight > 0 else 0
        epoch += 1
        run.epochs_done = epoch
    share_seconds(run, epoch - kept_epoch, &began)
    net.k.small_store(small, run.parameters, run.slots[0], run.slots[1])


cdef int run_setup(Run *run, Workspace *w, NativePlan plan, Buffers buffers, object X, object labels, object targets,
                   object sample_weight, int loss, double loss_parameter, size_t user_loss, object parameters) except -1:
    """The parts that training, loss and gradient share."""
    cdef int kind = FNN_KIND_F32 if plan.net.dtype == FNN_F32 else FNN_KIND_F64
    cdef Py_ssize_t r, n_outputs = plan.net.n_outputs
    memset(run, 0, sizeof(Run))
    memset(w, 0, sizeof(Workspace))
    run.net = &plan.net
    run.w = w
    open_rows(&run.source, &plan.net, buffers, X)
    run.n_samples = run.source.x.n_rows
    run.loss.loss = loss
    run.loss.user_loss = <fnn_user_loss>user_loss
    if loss == FNN_USER and user_loss == 0:
        raise ValueError("a loss of the user's needs its function")
    run.loss.link = plan.layers[plan.net.n_layers - 1].activation
    run.loss.link_value = plan.layers[plan.net.n_layers - 1].user_value
    run.loss.link_derivative = plan.layers[plan.net.n_layers - 1].user_derivative
    run.loss.parameter = loss_parameter
    run.loss.n_outputs = n_outputs
    run.loss.labels = <const int64_t *>buffers.flat(labels, FNN_KIND_I64, run.n_samples, False, "labels")
    run.loss.targets = buffers.flat(targets, kind, run.n_samples * n_outputs, False, "targets")
    run.loss.sample_weight = <const double *>buffers.flat(sample_weight, FNN_KIND_F64, run.n_samples, False, "sample_weight")
    if run.loss.labels == NULL and run.loss.targets == NULL:
        raise ValueError("neither labels nor targets")
    for r in range(run.n_samples if run.loss.labels != NULL else 0):
        if run.loss.labels[r] < 0 or run.loss.labels[r] >= n_outputs:
            raise ValueError(f"labels must lie in 0..{n_outputs - 1}, got {run.loss.labels[r]}")
    run.parameters = buffers.flat(parameters, kind, plan.net.n_parameters, True, "parameters")
    run.clip_norm = -1
    run.optimizer = -1
    return 0


cdef int plan_chunk(Run *run, NativePlan plan, Py_ssize_t batch_size, int n_threads, bint backward_too) except -1:
    """Rows of a chunk, the number of threads worth starting, the workspace. Returns the threads."""
    cdef Py_ssize_t rows = FNN_BLOCK * ((n_threads + 3) // 4)
    cdef double chunk_work
    if rows > 8 * FNN_BLOCK:
        rows = 8 * FNN_BLOCK
    rows = least(rows, batch_size)
    chunk_work = <double>rows * <double>plan.net.multiply_adds
    if backward_too:
        chunk_work *= 3
    n_threads = threads_for(chunk_work, n_threads)
    run.batch_size = batch_size
    run.chunks_between_looks = <Py_ssize_t>(1e5 / chunk_work) + 1
    run.next_look = fnn_seconds() + SIGNAL_SECONDS
    # a few rows a step would read the copy once or twice, and pay for keeping it
    workspace_init(run.w, run.net, plan.layers, rows, n_threads, True, run.optimizer >= 0, &run.source, rows >= 8)
    set_parameters(run.w, run.net, run.parameters)
    return n_threads


def train(NativePlan plan, X, labels, targets, sample_weight, int loss, double loss_parameter, parameters, slots,
          int optimizer, scalars, orders, Py_ssize_t batch_size, Py_ssize_t n_epochs, double l2, clip_norm,
          uint64_t dropout_seed, uint32_t dropout_stream, uint64_t first_epoch, int n_threads, stop, step_l2=None,
          step_record=None, bint check_rows=False, size_t user_loss=0):
    """Train whole epochs in place.

    step_l2 (n_steps,) replaces l2; step_record (n_steps, 2) takes each batch's mean loss, and the sum of the squared
    weights before it. Both float64 or None. With check_rows, a row that is not finite ends the first epoch with the
    status "bad rows", everything as it was. user_loss is the address of an fnn_user_loss, where loss is FNN_USER; who
    calls keeps it alive.

    Returns (losses, seconds, epochs_done, steps_done, status, epoch, batch, exception); see backends.base.TrainResult.
    """
    cdef Buffers buffers = Buffers()
    cdef Run run
    cdef Workspace w
    cdef int kind = FNN_KIND_F32 if plan.net.dtype == FNN_F32 else FNN_KIND_F64, used
    cdef int may_spin
    cdef Py_ssize_t steps, s, n_bytes, i
    cdef fnn_small small
    cdef bint use_small
    run_setup(&run, &w, plan, buffers, X, labels, targets, sample_weight, loss, loss_parameter, user_loss, parameters)
    if run.n_samples < 1 or batch_size < 1 or n_epochs < 0 or n_threads < 1:
        raise ValueError("rows, batch_size, n_epochs and n_threads must be positive")
    if optimizer < 0 or fnn_optimizer_name(optimizer) == NULL:
        raise ValueError("no such optimizer")
    run.n_epochs = n_epochs
    batch_size = least(batch_size, run.n_samples)
    steps = n_epochs * ((run.n_samples + batch_size - 1) // batch_size)
    run.optimizer = optimizer
    run.n_slots = fnn_optimizer_slots(optimizer)
    run.n_scalars = fnn_optimizer_scalars(optimizer)
    run.scalars = <const double *>buffers.flat(scalars, FNN_KIND_F64, steps * run.n_scalars, False, "scalars")
    run.orders = <const int64_t *>buffers.flat(orders, FNN_KIND_I64, n_epochs * run.n_samples, False, "orders")
    if run.orders != NULL:
        for i in range(n_epochs * run.n_samples):
            if run.orders[i] < 0 or run.orders[i] >= run.n_samples:
                raise ValueError("orders must hold row numbers of X")
    if run.n_slots and len(slots) != run.n_slots:
        raise ValueError(f"slots must be {run.n_slots} arrays, got {len(slots)}")
    for s in range(run.n_slots):
        run.slots[s] = buffers.flat(slots[s], kind, plan.net.n_parameters, True, "slots")
    run.l2 = l2
    run.check = check_rows and not run.source.csr  # whose values have been looked at
    run.step_l2 = <const double *>buffers.flat(step_l2, FNN_KIND_F64, steps, False, "step_l2")
    run.step_record = <double *>buffers.flat(step_record, FNN_KIND_F64, 2 * steps, True, "step_record")
    run.clip_norm = -1 if clip_norm is None else clip_norm
    run.key.seed = dropout_seed
    run.key.stream = dropout_stream
    run.key.epoch = first_epoch
    run.stop = <const int32_t *>buffers.flat(stop, FNN_KIND_I32, 1, False, "stop")
    losses = np.zeros(n_epochs)
    seconds = np.zeros(n_epochs)
    run.losses = <double *>buffers.flat(losses, FNN_KIND_F64, n_epochs, True, "losses")
    run.seconds = <double *>buffers.flat(seconds, FNN_KIND_F64, n_epochs, True, "seconds")
    n_bytes = plan.net.n_parameters * plan.net.item_bytes
    try:
        used = plan_chunk(&run, plan, batch_size, n_threads, True)
        may_spin = used <= _cpu_count()
        use_small = is_small(&run, used)
        if use_small:
            n_bytes = small_init(&run, &small)
        if clip_norm is not None or batch_size > w.rows:
            run.gradient = <char *>malloc(n_bytes)
        run.snapshot = <char *>malloc(n_bytes * (1 + run.n_slots))
        if run.snapshot == NULL or (run.gradient == NULL and (clip_norm is not None or batch_size > w.rows)):
            raise MemoryError(f"cannot allocate {n_bytes * (2 + run.n_slots)} bytes beside the model's parameters")
        # small networks have a memory of their own, and leave the packed copy unwritten
        run.packed_only = (not use_small and w.layers[0].packed != NULL and clip_norm is None
                           and step_record is None)
        with nogil:
            if use_small:
                train_small(&run, &small)
            else:
                fnn_run(train_task, &run, used, may_spin)
            # an epoch that did not end left the last whole step there; one that was undone left nothing to keep
            if run.packed_only and run.status in (STOPPED, INTERRUPTED):
                unpack_first(&w, &plan.net)
    finally:
        free(w.memory)
        free(run.gradient)
        free(run.snapshot)
        free(run.small_memory)
    # A signal of the last moments: its exception, too, is raised when the caller's books are in order.
    check_signals()
    return (losses[: run.epochs_done], seconds[: run.epochs_done], run.epochs_done, run.steps_done,
            STATUS_NAMES[run.status], run.bad_epoch, run.bad_batch, pending_error())


def loss_and_gradient(NativePlan plan, X, labels, targets, sample_weight, int loss, double loss_parameter, parameters,
                      double l2, gradient, int n_threads, size_t user_loss=0):
    """Weighted mean loss over all rows; with `gradient` (flat, written) also l2/2 sum(W^2) and the gradient of both."""
    cdef Buffers buffers = Buffers()
    cdef Run run
    cdef Workspace w
    cdef int kind = FNN_KIND_F32 if plan.net.dtype == FNN_F32 else FNN_KIND_F64, used, may_spin
    cdef double value = 0, seconds, penalty = 0
    cdef Py_ssize_t l, item = plan.net.item_bytes
    cdef Layer *layer
    cdef char *g
    run_setup(&run, &w, plan, buffers, X, labels, targets, sample_weight, loss, loss_parameter, user_loss, parameters)
    if run.n_samples < 1 or n_threads < 1:
        raise ValueError("rows and n_threads must be positive")
    g = buffers.flat(gradient, kind, plan.net.n_parameters, True, "gradient")
    run.gradient = g
    run.loss_only = g == NULL
    run.n_epochs = 1
    run.losses = &value
    run.seconds = &seconds
    if g != NULL:
        memset(g, 0, plan.net.n_parameters * item)
    try:
        used = plan_chunk(&run, plan, run.n_samples, n_threads, g != NULL)
        may_spin = used <= _cpu_count()
        with nogil:
            fnn_run(train_task, &run, used, may_spin)
            if g != NULL and l2 != 0:
                for l in range(plan.net.n_layers):
                    layer = &w.layers[l]
                    plan.net.k.add_scaled(layer.fan_in * layer.fan_out, l2, layer.weights, g + layer.weight_at * item)
                    penalty += plan.net.k.sum_of_squares(layer.fan_in * layer.fan_out, layer.weights)
    finally:
        free(w.memory)
    error = pending_error()
    if error is not None:
        raise error
    if run.status == DIVERGED and run.loss_only:
        return float("nan")
    return value + 0.5 * l2 * penalty


# --- prediction --------------------------------------------------------------------------------------------------------------


cdef struct Prediction:
    const Network *net
    Workspace *w
    Source source
    char **outputs                 # of each layer, contiguous (n_rows, fan_out); NULL where not wanted
    char *jacobian                 # (n_rows, n_outputs, n_inputs), or NULL
    Py_ssize_t rows_per_thread
    Py_ssize_t next_row            # threads take rows from here until none are left
    bint check                     # look for NaN and infinity on the way
    int32_t bad                    # set by a thread that finds a row that is not finite
    bint interrupted
    double next_look


cdef inline void one(char *at, int dtype) noexcept nogil:
    if dtype == FNN_F32:
        (<float *>at)[0] = 1
    else:
        (<double *>at)[0] = 1


cdef void predict_rows(Prediction *p, Py_ssize_t begin, Py_ssize_t end, int t, void *scratch) noexcept nogil:
    """Rows [begin, end) of X, at most rows_per_thread of them, through this thread's part of the buffers."""
    cdef const Network *net = p.net
    cdef Workspace *w = p.w
    cdef Py_ssize_t r0 = t * p.rows_per_thread, n = end - begin, r, l, at, item = net.item_bytes, o, row_bytes
    cdef Layer *layer
    cdef char *to
    for r in range(n):
        w.samples[r0 + r] = begin + r
    point_rows(w, net, &p.source, r0, r0 + n)
    if not forward(w, net, r0, r0 + n, NULL, True, &p.source.x if p.check else NULL, scratch):
        fnn_flag_set(&p.bad)
        return
    for l in range(net.n_layers):
        layer = &w.layers[l]
        if p.outputs != NULL and p.outputs[l] != NULL:
            row_bytes = layer.fan_out * item
            for r in range(n):
                memcpy(p.outputs[l] + (begin + r) * row_bytes, layer.y + (r0 + r) * layer.ld * item, row_bytes)
    if p.jacobian == NULL:
        return
    layer = &w.layers[net.n_layers - 1]
    at = r0 * layer.ld * item
    for o in range(net.n_outputs):
        if layer.activation == FNN_USER:
            memset(layer.delta + at, 0, n * layer.ld * item)
            for r in range(n):
                one(layer.delta + at + (r * layer.ld + o) * item, net.dtype)
            fnn_user_activate_backward(layer.user_derivative, net.dtype, n, 1, layer.z + at + o * item,
                                       layer.y + at + o * item, layer.ld, layer.delta + at + o * item, layer.ld, False)
        else:
            net.k.link_jacobian(layer.activation, n, layer.fan_out, o, layer.z + at, layer.y + at, layer.ld,
                                layer.delta + at, layer.ld)
        backward(w, net, r0, r0 + n, False, scratch)
        to = p.jacobian + (begin * net.n_outputs + o) * net.n_inputs * item
        net.k.dense_backward(w.layers[0].delta_rows + r0, n, net.n_inputs, w.layers[0].weights, w.layers[0].fan_out,
                             to, net.n_outputs * net.n_inputs, w.layers[0].density, scratch)


cdef void predict_task(void *context, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    cdef Prediction *p = <Prediction *>context
    # Whoever is free takes the next rows: the first thread, which looks for signals, is then never done long before
    # the others.
    cdef Py_ssize_t n = p.source.x.n_rows, at, stop
    cdef void *scratch = p.w.scratch + t * p.w.scratch_bytes
    while not p.interrupted and not fnn_flag_get(&p.bad):
        at = fnn_take(&p.next_row, p.rows_per_thread)
        if at >= n:
            return
        stop = least(at + p.rows_per_thread, n)
        predict_rows(p, at, stop, t, scratch)
        if t == 0 and interrupted(&p.next_look):
            p.interrupted = True


def predict(NativePlan plan, parameters, X, outputs, jacobian, bint check, int n_threads):
    """Forward pass over all rows.

    outputs: a list with a contiguous array of the dtype per layer, or None where the layer is not wanted; jacobian:
    (n, n_outputs, n_inputs) or None. Returns False where, with `check`, a row is not finite: the outputs are then undefined.
    """
    cdef Buffers buffers = Buffers()
    cdef Prediction p
    cdef Workspace w
    cdef Network *net = &plan.net
    cdef int kind = FNN_KIND_F32 if net.dtype == FNN_F32 else FNN_KIND_F64, used, may_spin
    cdef char *pointers[256]
    cdef char **outs = pointers
    cdef char *flat
    cdef Py_ssize_t l
    cdef Py_ssize_t rounds
    cdef double work
    memset(&p, 0, sizeof(p))
    memset(&w, 0, sizeof(w))
    open_rows(&p.source, net, buffers, X)
    if p.source.x.n_rows == 0:
        return True
    flat = buffers.flat(parameters, kind, net.n_parameters, False, "parameters")
    p.jacobian = buffers.flat(jacobian, kind, p.source.x.n_rows * net.n_outputs * net.n_inputs, True, "jacobian")
    p.net = net
    p.w = &w
    p.check = check and not p.source.csr
    p.next_look = fnn_seconds() + SIGNAL_SECONDS
    work = <double>p.source.x.n_rows * <double>net.multiply_adds
    if p.jacobian != NULL:
        work *= 1 + net.n_outputs
    used = threads_for(work, n_threads)
    may_spin = False
    # equal shares, in the fewest rounds that the buffers allow
    rounds = (p.source.x.n_rows + used * PREDICT_ROWS - 1) // (used * PREDICT_ROWS)
    p.rows_per_thread = (p.source.x.n_rows + used * rounds - 1) // (used * rounds)
    held = []
    try:
        if net.n_layers > 256:
            outs = <char **>malloc(net.n_layers * sizeof(char *))
            if outs == NULL:
                raise MemoryError()
        for l in range(net.n_layers):
            outs[l] = NULL
            if outputs[l] is not None:
                # more arrays than Buffers holds, for a deep net: each has its own
                holder = Buffers()
                held.append(holder)
                outs[l] = (<Buffers>holder).flat(outputs[l], kind, p.source.x.n_rows * plan.layers[l].fan_out, True, "outputs")
        p.outputs = outs
        workspace_init(&w, net, plan.layers, p.rows_per_thread * used, used, p.jacobian != NULL, False, &p.source,
                       p.source.x.n_rows >= 64)
        set_parameters(&w, net, flat)
        pack(&w, net, 0, 1)
        with nogil:
            fnn_run(predict_task, &p, used, may_spin)
    finally:
        free(w.memory)
        if outs != pointers:
            free(outs)
    error = pending_error()
    if error is not None:
        raise error
    return p.bad == 0


# --- the simple perceptron ------------------------------------------------------------------------------------------------------

cdef struct ErrorCorrection:
    int dtype
    const fnn_array *x
    Py_ssize_t n_outputs, row_bytes, between   # between: rows from one look around to the next
    bint gather
    const uint8_t *targets
    double learning_rate
    char *weights
    char *bias
    char *memory                   # memory_bytes for each thread: scratch, then copies of rows that are not read in place
    Py_ssize_t memory_bytes, scratch_bytes
    Py_ssize_t *mistakes           # of each thread, in this epoch and the last, in turn
    int64_t *order                 # or NULL for the natural order
    uint64_t seed
    Py_ssize_t max_epochs, epochs_done
    int64_t *counts
    const int32_t *stop
    # --- what the first thread decides, read by all after a barrier ---
    int status
    int32_t quit


cdef void error_correction_looks(ErrorCorrection *job, double *next_look) noexcept nogil:
    """Stop flag and signals."""
    if job.stop != NULL and fnn_flag_get(job.stop):
        job.status = STOPPED
    elif interrupted(next_look):
        job.status = INTERRUPTED
    if job.status != DONE:
        fnn_flag_set(&job.quit)


cdef Py_ssize_t error_correction_epoch(ErrorCorrection *job, Py_ssize_t first, Py_ssize_t n_units, int t,
                                       Py_ssize_t *left, double *next_look) noexcept nogil:
    """All rows, for these units. left: rows to the next look around. Returns the mistakes."""
    cdef const fnn_array *x = job.x
    cdef Py_ssize_t n = x.n_rows, i = 0, r, group, later, mistakes = 0
    cdef int64_t samples[FNN_PERCEPTRON_ROWS]
    cdef const void *rows[2 * FNN_PERCEPTRON_ROWS]
    cdef const uint8_t *targets[2 * FNN_PERCEPTRON_ROWS]
    cdef const int64_t *order = job.order
    cdef char *scratch = job.memory + t * job.memory_bytes
    cdef char *copies = scratch + job.scratch_bytes
    # by themselves: nothing that is written to these arrays can change them
    cdef const uint8_t *first_target = job.targets + first
    cdef const char *data = x.data
    cdef Py_ssize_t n_outputs = job.n_outputs, row_bytes = job.row_bytes, stride = x.row_stride_bytes, n_cols = x.n_cols
    cdef void *weights = job.weights + first * row_bytes
    cdef void *bias = job.bias + first * (row_bytes // n_cols)
    cdef const fnn_kernels *k = KERNELS[job.dtype]
    cdef double learning_rate = job.learning_rate
    cdef bint gather = job.gather
    while i < n:
        group = least(FNN_PERCEPTRON_ROWS, n - i)
        for r in range(group):
            samples[r] = order[i + r] if order != NULL else i + r
            targets[r] = first_target + samples[r] * n_outputs
            if gather:
                rows[r] = copies + r * row_bytes
            else:
                rows[r] = data + samples[r] * stride
        if gather:
            fnn_gather(x, samples, 0, group, job.dtype, copies, n_cols)
        later = 0
        if order != NULL and gather:
            fnn_prefetch_rows(x, order + i + group, least(FNN_PERCEPTRON_ROWS, n - i - group))
        elif order != NULL:
            later = least(FNN_PERCEPTRON_ROWS, n - i - group)
            for r in range(later):
                rows[group + r] = data + order[i + group + r] * stride
                targets[group + r] = first_target + order[i + group + r] * n_outputs
        mistakes += k.perceptron_rows(rows, group, later, n_cols, n_units, targets, learning_rate, weights, bias, scratch)
        i += group
        left[0] -= group
        if left[0] <= 0:
            left[0] = job.between
            if t == 0:
                error_correction_looks(job, next_look)
            if fnn_flag_get(&job.quit):
                break
    return mistakes


cdef void error_correction_task(void *context, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    """What each thread does: epoch after epoch for units of its own, which need nothing from the others."""
    cdef ErrorCorrection *job = <ErrorCorrection *>context
    cdef Py_ssize_t first = job.n_outputs * t // n_threads, end = job.n_outputs * (t + 1) // n_threads
    cdef Py_ssize_t epoch, total, left = job.between
    cdef Py_ssize_t *mistakes
    cdef double next_look = fnn_seconds() + SIGNAL_SECONDS
    cdef int other
    for epoch in range(job.max_epochs):
        if job.order != NULL:
            if t == 0:
                fnn_permutation(KERNELS[job.dtype], job.seed, <uint64_t>epoch, job.x.n_rows, job.order)
            fnn_barrier_wait(barrier)
        mistakes = job.mistakes + (epoch & 1) * n_threads
        mistakes[t] = error_correction_epoch(job, first, end - first, t, &left, &next_look)
        fnn_barrier_wait(barrier)
        if job.status != DONE:
            return
        total = 0
        for other in range(n_threads):
            total += mistakes[other]
        if t == 0:
            job.counts[epoch] = total
            job.epochs_done = epoch + 1
        if total == 0:
            return


def perceptron_fit(X, targets, weights, bias, double learning_rate, Py_ssize_t max_epochs, bint shuffle, uint64_t seed,
                   int n_threads, stop):
    """Error-correction learning, one row at a time, until an epoch without a mistake.

    targets: uint8 (n, n_outputs); weights (n_outputs, n_features), bias (n_outputs,): changed in place. Returns
    (mistakes per epoch int64, status, exception). No bit depends on n_threads, which share the units.
    """
    cdef Buffers buffers = Buffers()
    cdef fnn_array x
    cdef ErrorCorrection job
    cdef Py_ssize_t n_outputs = bias.shape[0], n_bytes
    cdef int kind, may_spin
    cdef void *memory
    memset(&job, 0, sizeof(job))
    describe(buffers.get(X, False), &x)
    job.dtype = FNN_F32 if weights.dtype == np.float32 else FNN_F64
    kind = FNN_KIND_F32 if job.dtype == FNN_F32 else FNN_KIND_F64
    job.x = &x
    job.n_outputs = n_outputs
    job.targets = <const uint8_t *>buffers.flat(targets, FNN_KIND_U8, x.n_rows * n_outputs, False, "targets")
    job.weights = buffers.flat(weights, kind, x.n_cols * n_outputs, True, "weights")
    job.bias = buffers.flat(bias, kind, n_outputs, True, "bias")
    job.stop = <const int32_t *>buffers.flat(stop, FNN_KIND_I32, 1, False, "stop")
    errors = np.zeros(max_epochs, np.int64)
    job.counts = <int64_t *>buffers.flat(errors, FNN_KIND_I64, max_epochs, True, "errors")
    job.learning_rate = learning_rate
    job.max_epochs = max_epochs
    job.seed = seed
    job.gather = not fnn_in_place(&x, job.dtype)
    job.row_bytes = x.n_cols * (4 if job.dtype == FNN_F32 else 8)
    job.between = FNN_PERCEPTRON_ROWS * (100000 // (x.n_cols * n_outputs + 20) + 1)
    n_threads = threads_for(<double>x.n_rows * <double>x.n_cols * <double>n_outputs, <int>least(n_threads, n_outputs))
    job.scratch_bytes = <Py_ssize_t>fnn_scratch_bytes(n_outputs, False, False)
    # whole cache lines, and one between threads
    job.memory_bytes = ((job.scratch_bytes + FNN_PERCEPTRON_ROWS * job.row_bytes) // FNN_ALIGN_BYTES + 2) * FNN_ALIGN_BYTES
    n_bytes = job.memory_bytes * n_threads + (x.n_rows * sizeof(int64_t) if shuffle else 0)
    memory = malloc(n_bytes + 2 * n_threads * sizeof(Py_ssize_t) + FNN_ALIGN_BYTES)
    if memory == NULL:
        raise MemoryError(f"cannot allocate workspace for {x.n_rows} rows")
    job.memory = aligned(memory)
    job.order = <int64_t *>(job.memory + job.memory_bytes * n_threads) if shuffle else NULL
    job.mistakes = <Py_ssize_t *>(job.memory + n_bytes)
    may_spin = n_threads <= _cpu_count()
    with nogil:
        fnn_run(error_correction_task, &job, n_threads, may_spin)
    free(memory)
    return errors[: job.epochs_done], STATUS_NAMES[job.status], pending_error()


include "_online.pxi"


# --- one call from Python to the kernels ------------------------------------------------------------------------------------------

_import_array()

cdef enum:
    # Multiply-adds under which a prediction takes about a microsecond, and keeps the GIL.
    SHORT_WORK = 20000


cdef inline bint apart(const char *a, Py_ssize_t a_bytes, const char *b, Py_ssize_t b_bytes) noexcept nogil:
    return a + a_bytes <= b or b + b_bytes <= a


@cython.final
cdef class Predictor:
    """`MLP.predict` for the common case, with nothing between the call and the kernels.

    Rows that can be read in place, few enough for one thread, are predicted here; everything else (lists, other dtypes,
    large batches, bad input and its error message) goes to `fallback(X, out)`.
    """

    cdef NativePlan plan
    cdef Buffers buffers
    cdef char *parameters
    cdef object fallback
    cdef int type_number, kind

    def __init__(self, NativePlan plan, parameters, fallback):
        cdef bint is_float32 = plan.net.dtype == FNN_F32
        self.plan = plan
        self.kind = FNN_KIND_F32 if is_float32 else FNN_KIND_F64
        self.type_number = NPY_FLOAT32 if is_float32 else NPY_FLOAT64
        self.fallback = fallback
        self.buffers = Buffers()
        self.parameters = self.buffers.flat(parameters, self.kind, plan.net.n_parameters, False, "parameters")

    cdef bint takes(self, object X, fnn_array *x) noexcept:
        """Whether X is an array of rows that are read in place, and few; then what it holds."""
        cdef PyArrayObject *array = <PyArrayObject *>X
        cdef int ndim
        if not PyArray_CheckExact(X) or PyArray_TYPE(array) != self.type_number or not PyArray_ISNOTSWAPPED(array):
            return False
        ndim = PyArray_NDIM(array)
        if ndim != 1 and ndim != 2:
            return False
        x.kind = self.kind
        x.data = PyArray_BYTES(array)
        x.n_rows = PyArray_DIMS(array)[0] if ndim == 2 else 1
        x.n_cols = PyArray_DIMS(array)[ndim - 1]
        x.row_stride_bytes = PyArray_STRIDES(array)[0] if ndim == 2 else 0
        x.col_stride_bytes = PyArray_STRIDES(array)[ndim - 1]
        return (x.n_cols == self.plan.net.n_inputs and x.n_rows > 0
                and <double>x.n_rows * <double>self.plan.net.multiply_adds < 2 * WORK_PER_THREAD
                and fnn_in_place(x, self.plan.net.dtype))

    cdef bint fits(self, object out, const fnn_array *x, int ndim) noexcept:
        """Whether `out` is an array as `fastnn.validation.check_out` asks for; where in doubt, that may say."""
        cdef PyArrayObject *array = <PyArrayObject *>out
        cdef const Network *net = &self.plan.net
        cdef Py_ssize_t n_bytes = x.n_rows * net.n_outputs * net.item_bytes
        return (PyArray_CheckExact(out) and PyArray_TYPE(array) == self.type_number and PyArray_ISCARRAY(array)
                and PyArray_NDIM(array) == ndim and PyArray_DIMS(array)[ndim - 1] == net.n_outputs
                and (ndim == 1 or PyArray_DIMS(array)[0] == x.n_rows)
                and x.row_stride_bytes >= 0
                and apart(PyArray_BYTES(array), n_bytes, x.data,
                          (x.n_rows - 1) * x.row_stride_bytes + x.n_cols * net.item_bytes)
                and apart(PyArray_BYTES(array), n_bytes, self.parameters, net.n_parameters * net.item_bytes))

    # A plain method: one that knows its names passes its arguments through a tuple of its own.
    @cython.binding(False)
    def predict(self, X, out=None):
        cdef fnn_array x
        cdef Py_ssize_t shape[2]
        cdef object result = out
        cdef int ndim
        cdef bint done
        cdef char *to
        if not self.takes(X, &x):
            return self.fallback(X, out)
        ndim = PyArray_NDIM(<PyArrayObject *>X)
        if out is None:
            shape[0] = x.n_rows
            shape[ndim - 1] = self.plan.net.n_outputs
            result = PyArray_SimpleNew(ndim, shape, self.type_number)
        # a result of our own may be thrown away half written, `out` belongs to the caller
        elif not self.fits(out, &x, ndim) or fnn_first_bad_row(&x, NULL, 0, x.n_rows, self.plan.net.dtype) < x.n_rows:
            return self.fallback(X, out)
        to = PyArray_BYTES(<PyArrayObject *>result)
        if <double>x.n_rows * <double>self.plan.net.multiply_adds < SHORT_WORK:
            done = self.run(&x, to)
        else:
            with nogil:
                done = self.run(&x, to)
        return result if done else self.fallback(X, out)

    cdef bint run(self, const fnn_array *x, char *out) noexcept nogil:
        """False where a value is not finite or memory is short, which the fallback reports."""
        cdef const Network *net = &self.plan.net
        cdef Layer *layer
        cdef char *at
        cdef char *between[2]      # outputs of the last layer but one, and but two
        cdef char *scratch
        cdef char *y
        cdef const void **rows
        cdef Py_ssize_t most = least(PREDICT_ROWS, x.n_rows), item = net.item_bytes, begin = 0, n, r, l, ld
        cdef Py_ssize_t between_bytes = most * self.plan.widest_ld * item
        cdef Py_ssize_t n_bytes = (self.plan.scratch_bytes + most * sizeof(void *) + 2 * between_bytes
                                   + 4 * FNN_ALIGN_BYTES)
        cdef void *memory = fnn_spare_take() if n_bytes <= FNN_SPARE_BYTES else malloc(n_bytes)
        cdef bint finite = True
        if memory == NULL:
            return False
        at = aligned(memory)
        scratch = take(&at, self.plan.scratch_bytes)
        rows = <const void **>take(&at, most * sizeof(void *))
        between[0] = take(&at, between_bytes)
        between[1] = take(&at, between_bytes)
        while begin < x.n_rows and finite:
            n = least(most, x.n_rows - begin)
            for r in range(n):
                rows[r] = x.data + (begin + r) * x.row_stride_bytes
            for l in range(net.n_layers):
                layer = &self.plan.layers[l]
                y = between[l & 1]
                ld = layer.ld
                if l == net.n_layers - 1:
                    y = out + begin * layer.fan_out * item
                    ld = layer.fan_out
                elif layer.activation == FNN_USER and layer.user_whole:
                    memset(y, 0, n * ld * item)
                net.k.dense_forward(rows, n, layer.fan_in, self.parameters + layer.weight_at * item,
                                    self.parameters + layer.bias_at * item, layer.fan_out, y, ld, MOST_DENSITY, scratch)
                if (l == 0 and not column_finite(y, n, ld, net.dtype)
                        and fnn_first_bad_row(x, NULL, begin, begin + n, net.dtype) < begin + n):
                    finite = False
                    break
                apply_activation(net, layer, n, y, y, ld, scratch)
                for r in range(n):
                    rows[r] = y + r * ld * item
            begin += n
        if n_bytes <= FNN_SPARE_BYTES:
            fnn_spare_give(memory)
        else:
            free(memory)
        return finite
