# Part of _native.pyx: units that learn row after row as scikit-learn's Perceptron does (csrc/online.c).

# Threads run for so long until the first of them looks for Ctrl-C.
cdef double ONLINE_SECONDS = 0.02


cdef struct OnlineRun:
    const fnn_online *job
    fnn_online_unit *units
    Py_ssize_t n_units, next, n_epochs
    double deadline
    int32_t short_of_memory


cdef inline bint online_done(const fnn_online_unit *unit, Py_ssize_t n_epochs) noexcept nogil:
    return unit.status > FNN_ONLINE_RUNNING or unit.epoch >= n_epochs


cdef void online_task(void *context, int t, int n_threads, fnn_barrier *barrier) noexcept nogil:
    # Units in their order: those that were begun go on first, so that few hold memory at a time.
    cdef OnlineRun *run = <OnlineRun *>context
    cdef fnn_online_unit *unit
    cdef Py_ssize_t i
    while not fnn_flag_get(&run.short_of_memory):
        i = fnn_take(&run.next, 1)
        if i >= run.n_units:
            return
        unit = &run.units[i]
        if online_done(unit, run.n_epochs):
            continue
        if unit.status == FNN_ONLINE_WAITING and not fnn_online_begin(run.job, unit):
            fnn_flag_set(&run.short_of_memory)
            return
        fnn_online_advance(run.job, unit, run.n_epochs, run.deadline)
        if not online_done(unit, run.n_epochs):
            return


@cython.final
cdef class Online:
    """Units that learn online from the same rows, each for itself.

    X: a dense array with contiguous rows, or (data, indices, indptr) of a CSR matrix. labels: int32, one per row; unit i
    takes those equal to positives[i] for +1, all others for -1. sample_weight: of X's dtype; held: uint8, not 0 where a
    row is held out; both or either None. weights (n_units, n_features) of X's dtype learns in place. class_weights
    (n_units, 2), float64: of the negative and the positive rows; intercepts float64, positives int32, seeds uint32.
    """

    cdef fnn_online job
    cdef fnn_online_unit *units
    cdef Py_ssize_t n_units
    cdef Buffers buffers

    def __cinit__(self, X, Py_ssize_t n_features, labels, sample_weight, held, weights, intercepts, positives,
                  class_weights, seeds, int penalty, double alpha, double l1_ratio, double eta, bint fit_intercept,
                  bint shuffle, double tol, Py_ssize_t n_iter_no_change, bint judges_objective, bint shows):
        cdef fnn_online *job = &self.job
        cdef fnn_array x
        cdef Py_buffer *columns
        cdef Py_buffer *begins
        cdef Py_buffer *values
        cdef int kind, index_kind, item_bytes
        cdef Py_ssize_t i, n = labels.shape[0], bad
        cdef char *w
        cdef const double *first
        cdef const int32_t *label
        cdef const double *of_classes
        cdef const uint32_t *seed
        cdef bint is_float32 = weights.dtype == np.float32
        self.buffers = Buffers()
        self.n_units = positives.shape[0]
        label = <const int32_t *>self.buffers.flat(positives, FNN_KIND_I32, self.n_units, False, "positives")
        first = <const double *>self.buffers.flat(intercepts, FNN_KIND_F64, self.n_units, False, "intercepts")
        of_classes = <const double *>self.buffers.flat(class_weights, FNN_KIND_F64, 2 * self.n_units, False,
                                                       "class_weights")
        seed = <const uint32_t *>self.buffers.flat(seeds, FNN_KIND_U32, self.n_units, False, "seeds")
        kind = FNN_KIND_F32 if is_float32 else FNN_KIND_F64
        item_bytes = 4 if is_float32 else 8
        job.dtype = FNN_F32 if is_float32 else FNN_F64
        job.n_rows = n
        job.n_features = n_features
        if n < 1 or n > 2147483647 or n_features < 1:
            raise ValueError(f"between 1 and 2**31 - 1 rows and at least one feature are needed, got {n}, {n_features}")
        if isinstance(X, tuple):
            values = self.buffers.get(X[0], False)
            columns = self.buffers.get(X[1], False)
            begins = self.buffers.get(X[2], False)
            index_kind = kind_of(columns)
            if index_kind != FNN_KIND_I32 and index_kind != FNN_KIND_I64:
                raise TypeError("indices of a sparse matrix must be int32 or int64")
            job.index_bytes = 4 if index_kind == FNN_KIND_I32 else 8
            job.n_values = least(values.shape[0], columns.shape[0])
            job.values = self.buffers.flat(X[0], kind, values.shape[0], False, "data")
            job.columns = self.buffers.flat(X[1], index_kind, columns.shape[0], False, "indices")
            job.row_begins = self.buffers.flat(X[2], index_kind, n + 1, False, "indptr")
            bad = fnn_online_bad_row(job)
            if bad >= 0:
                raise ValueError(f"row {bad} of the sparse matrix has indices out of bounds for {n_features} features")
            job.intercept_decay = 0.01
        else:
            describe(self.buffers.get(X, False), &x)
            if x.kind != kind or x.n_rows != n or x.n_cols != n_features or not fnn_in_place(&x, job.dtype):
                raise ValueError("X must have contiguous rows of the dtype of the weights")
            if x.row_stride_bytes % item_bytes:
                raise ValueError("the rows of X must be a whole number of values apart")
            job.values = x.data
            job.ld = x.row_stride_bytes // item_bytes
            job.intercept_decay = 1
        job.labels = <const int32_t *>self.buffers.flat(labels, FNN_KIND_I32, n, False, "labels")
        job.sample_weight = self.buffers.flat(sample_weight, kind, n, False, "sample_weight")
        job.held = <const uint8_t *>self.buffers.flat(held, FNN_KIND_U8, n, False, "held")
        w = self.buffers.flat(weights, kind, self.n_units * n_features, True, "weights")
        job.n_train = n if held is None else n - np.count_nonzero(held)
        job.penalty = penalty
        job.alpha = alpha
        job.l1_ratio = 0 if penalty == FNN_PENALTY_l2 else 1 if penalty == FNN_PENALTY_l1 else l1_ratio
        job.eta = eta
        job.fit_intercept = fit_intercept
        job.shuffle = shuffle
        job.tol = tol
        job.n_iter_no_change = n_iter_no_change
        job.judges_objective = judges_objective
        job.with_objective = judges_objective or shows
        job.with_norms = job.with_objective and (penalty != FNN_PENALTY_none or shows)
        self.units = <fnn_online_unit *>calloc(self.n_units, sizeof(fnn_online_unit))
        if self.units == NULL:
            raise MemoryError(f"cannot allocate {self.n_units} units")
        for i in range(self.n_units):
            self.units[i].weights = w + i * n_features * item_bytes
            self.units[i].intercept = first[i]
            self.units[i].positive = label[i]
            self.units[i].negative_weight = of_classes[2 * i]
            self.units[i].positive_weight = of_classes[2 * i + 1]
            self.units[i].seed = seed[i]

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.units != NULL:
            for i in range(self.n_units):
                fnn_online_end(&self.job, &self.units[i])
            free(self.units)

    def run(self, Py_ssize_t begin, Py_ssize_t end, Py_ssize_t n_epochs, int n_threads, stop):
        """Units begin .. end - 1 until their rule ends them, they have done n_epochs or the flag is set.

        Returns None, or what a signal raised. Every unit is then at some whole row.
        """
        cdef OnlineRun run
        cdef Buffers buffers = Buffers()
        cdef const int32_t *flag = <const int32_t *>buffers.flat(stop, FNN_KIND_I32, 1, False, "stop")
        cdef Py_ssize_t i
        cdef int raised = 0
        cdef bint busy = True
        if not 0 <= begin < end <= self.n_units:
            raise IndexError(f"units {begin} to {end} of {self.n_units}")
        run.job = &self.job
        run.units = self.units + begin
        run.n_units = end - begin
        run.n_epochs = n_epochs
        run.short_of_memory = 0
        with nogil:
            while busy and not raised and not run.short_of_memory and not fnn_flag_get(flag):
                run.next = 0
                run.deadline = fnn_seconds() + ONLINE_SECONDS
                fnn_run(online_task, &run, n_threads if n_threads < run.n_units else <int>run.n_units, False)
                busy = False
                for i in range(run.n_units):
                    if run.units[i].status == FNN_ONLINE_DIVERGED:
                        busy = False
                        break
                    if not online_done(&run.units[i], n_epochs):
                        busy = True
                if busy:
                    with gil:
                        raised = check_signals()
        if run.short_of_memory:
            raise MemoryError(f"cannot allocate the orders of {self.job.n_rows} rows")
        return pending_error()

    def judge(self, Py_ssize_t unit, samples):
        """Whether the unit decides rightly on these rows (int64), as uint8."""
        cdef Buffers buffers = Buffers()
        cdef Py_ssize_t i, n = samples.shape[0]
        cdef const int64_t *rows = <const int64_t *>buffers.flat(samples, FNN_KIND_I64, n, False, "samples")
        correct = np.empty(n, np.uint8)
        cdef uint8_t *out = <uint8_t *>buffers.flat(correct, FNN_KIND_U8, n, True, "correct")
        if not 0 <= unit < self.n_units:
            raise IndexError(f"unit {unit} of {self.n_units}")
        for i in range(n):
            if not 0 <= rows[i] < self.job.n_rows:
                raise IndexError(f"row {rows[i]} of {self.job.n_rows}")
        with nogil:
            fnn_online_judge(&self.job, &self.units[unit], rows, n, out)
        return correct

    def state(self, Py_ssize_t unit):
        """(status, epochs done, mean loss, mean objective, intercept, norm of the weights)

        The status is "running", "converged" (its rule ended it) or "diverged" (its weights are those before this epoch).
        """
        if not 0 <= unit < self.n_units:
            raise IndexError(f"unit {unit} of {self.n_units}")
        cdef fnn_online_unit *u = &self.units[unit]
        status = "diverged" if u.status == FNN_ONLINE_DIVERGED else (
            "converged" if u.status == FNN_ONLINE_CONVERGED else "running")
        return status, u.epoch, u.mean_loss, u.mean_objective, u.intercept, sqrt(u.sq_norm)

    def end(self, Py_ssize_t unit):
        """The weights at their true scale, the unit's memory given back; it may be called again."""
        if not 0 <= unit < self.n_units:
            raise IndexError(f"unit {unit} of {self.n_units}")
        fnn_online_end(&self.job, &self.units[unit])
