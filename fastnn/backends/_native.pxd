# The C kernels as Cython sees them: csrc/fastnn.h is their only source of truth.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "fastnn.h" nogil:
    enum: FNN_BLOCK
    enum: FNN_ALIGN_BYTES
    enum: FNN_PERCEPTRON_ROWS
    enum: FNN_F32
    enum: FNN_F64
    enum: FNN_ACTIVATION_identity
    enum: FNN_ACTIVATION_softmax
    enum: FNN_USER
    enum: FNN_KIND_F32, FNN_KIND_F64, FNN_KIND_I8, FNN_KIND_I16, FNN_KIND_I32, FNN_KIND_I64
    enum: FNN_KIND_U8, FNN_KIND_U16, FNN_KIND_U32, FNN_KIND_U64

    ctypedef struct fnn_gradient:
        const void *const *input_rows
        Py_ssize_t ld_input
        const void *delta
        Py_ssize_t ldd, n_rows, fan_in, fan_out
        double density
        void *gradient
        void *bias_gradient
        int accumulate, optimizer
        const double *scalars
        double l2
        void *weights
        void *weight_a
        void *weight_b
        void *bias
        void *bias_a
        void *bias_b
        void *packed
        int packed_only

    ctypedef void (*fnn_user_value)(Py_ssize_t, void *) noexcept nogil
    ctypedef void (*fnn_user_derivative)(Py_ssize_t, const void *, const void *, void *) noexcept nogil
    ctypedef void (*fnn_user_loss)(Py_ssize_t, const void *, const void *, void *, void *) noexcept nogil

    ctypedef struct fnn_loss:
        int loss, link
        double parameter
        Py_ssize_t n_outputs
        const int64_t *labels
        const void *targets
        const double *sample_weight
        double total_weight
        fnn_user_loss user_loss
        fnn_user_value link_value
        fnn_user_derivative link_derivative

    enum: FNN_SMALL_LAYERS
    enum: FNN_SPARSE_UNIT

    ctypedef struct fnn_entries:
        const void *const *index
        const void *const *value
        const Py_ssize_t *count
        int wide

    ctypedef struct fnn_small_layer:
        Py_ssize_t ld_input
        void *input
        fnn_user_value user_value
        fnn_user_derivative user_derivative
        int user_whole

    ctypedef struct fnn_small:
        Py_ssize_t n_layers, n_rows, n_padded
        void *parameters
        fnn_small_layer layers[8]

    ctypedef struct fnn_array:
        const char *data
        Py_ssize_t n_rows, n_cols, row_stride_bytes, col_stride_bytes
        int kind

    ctypedef struct fnn_barrier:
        pass

    ctypedef struct fnn_kernels:
        void (*dense_forward)(const void *const *, Py_ssize_t, Py_ssize_t, const void *, const void *, Py_ssize_t,
                              void *, Py_ssize_t, double, void *) noexcept nogil
        Py_ssize_t (*packed_elems)(Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_weights)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        void (*unpack_weights)(Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        void (*dense_forward_packed)(const void *const *, Py_ssize_t, Py_ssize_t, const void *, const void *,
                                     Py_ssize_t, void *, Py_ssize_t, double, void *) noexcept nogil
        void (*dense_backward)(const void *const *, Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, void *,
                               Py_ssize_t, double, void *) noexcept nogil
        Py_ssize_t (*gradient_units)(Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*dense_gradient)(const fnn_gradient *, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        void (*activate)(int, Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t) noexcept nogil
        void (*activate_backward)(int, Py_ssize_t, Py_ssize_t, const void *, const void *, Py_ssize_t, void *,
                                  Py_ssize_t) noexcept nogil
        void (*multiply)(Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, const void *, Py_ssize_t, void *,
                         Py_ssize_t) noexcept nogil
        void (*softmax)(Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, void *, Py_ssize_t, void *) noexcept nogil
        void (*loss)(const fnn_loss *, Py_ssize_t, const void *, Py_ssize_t, const int64_t *, void *, Py_ssize_t,
                     double *, void *) noexcept nogil
        void (*link_jacobian)(int, Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, const void *, Py_ssize_t,
                              void *, Py_ssize_t) noexcept nogil
        void (*update)(int, const double *, double, double, Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, void *,
                       void *, void *, Py_ssize_t) noexcept nogil
        void (*sparse_forward)(const fnn_entries *, Py_ssize_t, Py_ssize_t, const void *, const void *, Py_ssize_t,
                               void *, Py_ssize_t) noexcept nogil
        void (*sparse_gradient)(const fnn_gradient *, const fnn_entries *, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        Py_ssize_t (*small_layout)(Py_ssize_t, const Py_ssize_t *, const int *, Py_ssize_t, Py_ssize_t, void *,
                                   fnn_small *) noexcept nogil
        void (*small_load)(const fnn_small *, const void *, const void *, const void *) noexcept nogil
        void (*small_store)(const fnn_small *, void *, void *, void *) noexcept nogil
        void (*small_step)(const fnn_small *, Py_ssize_t, const void *, Py_ssize_t, const fnn_loss *, const int64_t *,
                           int, const double *, double, double *, void *) noexcept nogil
        double (*sum_of_squares)(Py_ssize_t, const void *) noexcept nogil
        void (*add_scaled)(Py_ssize_t, double, const void *, void *) noexcept nogil
        int (*all_finite)(Py_ssize_t, const void *) noexcept nogil
        void (*dropout_factors)(uint64_t, uint32_t, uint64_t, uint32_t, double, Py_ssize_t, const int64_t *,
                                Py_ssize_t, void *, Py_ssize_t) noexcept nogil
        void (*shuffle_draws)(uint64_t, uint64_t, uint64_t, Py_ssize_t, uint64_t *) noexcept nogil
        Py_ssize_t (*perceptron_rows)(const void *const *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t,
                                      const uint8_t *const *, double, void *, void *, void *) noexcept nogil

    ctypedef void (*fnn_task)(void *, int, int, fnn_barrier *) noexcept nogil

    int fnn_isa_count()
    const char *fnn_isa_name(int)
    int fnn_isa_available(int)
    int fnn_isa_best()
    const fnn_kernels *fnn_kernels_for(int, int)
    const fnn_kernels *fnn_kernels_for_net(int, int, Py_ssize_t)
    const char *fnn_slot_name(int)
    void *fnn_slot_address(int, int, int)
    const char *fnn_activation_name(int)
    int fnn_activation_needs_z(int)
    const char *fnn_loss_name(int)
    const char *fnn_optimizer_name(int)
    int fnn_optimizer_slots(int)
    int fnn_optimizer_scalars(int)
    size_t fnn_scratch_bytes(Py_ssize_t, int, int)
    Py_ssize_t fnn_row_stride(Py_ssize_t, Py_ssize_t)
    Py_ssize_t fnn_size_product(Py_ssize_t, Py_ssize_t)
    void fnn_gather(const fnn_array *, const int64_t *, Py_ssize_t, Py_ssize_t, int, void *, Py_ssize_t)
    Py_ssize_t fnn_first_bad_row(const fnn_array *, const int64_t *, Py_ssize_t, Py_ssize_t, int)
    void fnn_prefetch_rows(const fnn_array *, const int64_t *, Py_ssize_t)
    int fnn_in_place(const fnn_array *, int)
    void fnn_user_activate(fnn_user_value, int, Py_ssize_t, Py_ssize_t, void *, Py_ssize_t, int)
    void fnn_user_activate_backward(fnn_user_derivative, int, Py_ssize_t, Py_ssize_t, const void *, const void *, Py_ssize_t,
                                    void *, Py_ssize_t, int)
    void fnn_permutation(const fnn_kernels *, uint64_t, uint64_t, Py_ssize_t, int64_t *)
    enum: FNN_PENALTY_none, FNN_PENALTY_l1, FNN_PENALTY_l2
    enum: FNN_ONLINE_WAITING, FNN_ONLINE_RUNNING, FNN_ONLINE_CONVERGED, FNN_ONLINE_DIVERGED

    ctypedef struct fnn_online:
        int dtype, index_bytes
        const void *values
        Py_ssize_t ld
        const void *columns
        const void *row_begins
        Py_ssize_t n_values, n_rows, n_features, n_train
        const int32_t *labels
        const void *sample_weight
        const uint8_t *held
        int penalty, fit_intercept, shuffle, with_objective, with_norms, judges_objective
        double alpha, l1_ratio, eta, intercept_decay, tol
        Py_ssize_t n_iter_no_change

    ctypedef struct fnn_online_unit:
        void *weights
        double intercept
        int32_t positive
        double positive_weight, negative_weight
        uint32_t seed
        int status
        Py_ssize_t epoch
        double mean_loss, mean_objective, sq_norm

    Py_ssize_t fnn_online_bad_row(const fnn_online *)
    int fnn_online_begin(const fnn_online *, fnn_online_unit *)
    void fnn_online_advance(const fnn_online *, fnn_online_unit *, Py_ssize_t, double)
    void fnn_online_judge(const fnn_online *, const fnn_online_unit *, const int64_t *, Py_ssize_t, uint8_t *)
    void fnn_online_end(const fnn_online *, fnn_online_unit *)
    void fnn_run(fnn_task, void *, int, int)
    void fnn_barrier_wait(fnn_barrier *)
    fnn_barrier *fnn_barrier_of_first(fnn_barrier *)
    void fnn_barrier_resize(fnn_barrier *, int)
    int fnn_flag_get(const int32_t *)
    void fnn_flag_set(int32_t *)
    Py_ssize_t fnn_take(Py_ssize_t *, Py_ssize_t)
    enum: FNN_SPARE_BYTES
    void *fnn_spare_take()
    void fnn_spare_give(void *)
    double fnn_seconds()


# What NumPy lends to compiled code, as far as it is used here: `cimport numpy` would check the sizes of a dozen
# types at each import.
cdef extern from "numpy/arrayobject.h":
    ctypedef struct PyArrayObject:
        pass
    enum: NPY_FLOAT32, NPY_FLOAT64
    int _import_array() except -1
    bint PyArray_CheckExact(object) noexcept
    int PyArray_TYPE(const PyArrayObject *) noexcept
    int PyArray_NDIM(const PyArrayObject *) noexcept
    Py_ssize_t *PyArray_DIMS(PyArrayObject *) noexcept
    Py_ssize_t *PyArray_STRIDES(PyArrayObject *) noexcept
    char *PyArray_BYTES(PyArrayObject *) noexcept
    bint PyArray_ISNOTSWAPPED(const PyArrayObject *) noexcept
    bint PyArray_ISCARRAY(const PyArrayObject *) noexcept
    object PyArray_SimpleNew(int, Py_ssize_t *, int)
