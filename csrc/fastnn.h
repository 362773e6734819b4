/* fastnn: the interface between the C kernels and the Cython driver. The only header that Cython sees.
 *
 * A kernel table holds one pointer per slot of kernels.def, for one instruction set and one dtype. Each isa_*.c
 * compiles two complete tables, as a slot without a kernel does not compile; dispatch.c takes the best that the machine
 * has. */
#ifndef FASTNN_H
#define FASTNN_H

#include <stddef.h>
#include <stdint.h>

/* Law 1: products are summed in blocks of this many consecutive reduction indices. Changing it changes bits. */
#define FNN_BLOCK 256

/* Rows that one call of perceptron_rows may take. */
#define FNN_PERCEPTRON_ROWS 16

/* Buffers that the driver plans are aligned to this many bytes: a cache line, and the widest vector. */
#define FNN_ALIGN_BYTES 64

enum fnn_dtype { FNN_F32, FNN_F64, FNN_N_DTYPES };

#define ISA(name, present) FNN_ISA_##name,
enum fnn_isa {
#include "isas.def"
    FNN_N_ISAS
};
#undef ISA

#define ACTIVATION(name, needs_z, value, derivative) FNN_ACTIVATION_##name,
enum fnn_activation {
#include "activations.def"
    FNN_ACTIVATION_softmax,
    FNN_N_ACTIVATIONS
};
#undef ACTIVATION

#define LOSS(name, link, value, gradient, logit_value, logit_gradient) FNN_LOSS_##name,
enum fnn_loss_id {
#include "losses.def"
    FNN_N_LOSSES
};
#undef LOSS

#define OPTIMIZER(name, n_slots, n_scalars, ...) FNN_OPTIMIZER_##name,
enum fnn_optimizer {
#include "optimizers.def"
    FNN_N_OPTIMIZERS
};
#undef OPTIMIZER

/* In the place of an fnn_activation or an fnn_loss_id: a function of the user's, compiled at run time, by its pointers.
 * Like a kernel it cannot fail, allocate, block or start threads; its arrays are contiguous and of the net's dtype. */
#define FNN_USER (-1)
/* y = f(y) */
typedef void (*fnn_user_value)(ptrdiff_t n, void *y);
/* delta *= f'(z), with y = f(z) */
typedef void (*fnn_user_derivative)(ptrdiff_t n, const void *z, const void *y, void *delta);
/* value and d(value)/dy for n outputs y and targets t */
typedef void (*fnn_user_loss)(ptrdiff_t n, const void *y, const void *t, void *value, void *gradient);

/* Functions of the `elementwise` slot, for tests and benchmarks of the vector mathematics. */
enum fnn_function {
    FNN_FUNCTION_exp,
    FNN_FUNCTION_expm1,
    FNN_FUNCTION_log,
    FNN_FUNCTION_log1p,
    FNN_FUNCTION_tanh,
    FNN_FUNCTION_erf,
    FNN_FUNCTION_sigmoid,
    FNN_N_FUNCTIONS
};

/* Gradient of one dense layer to its weights and bias, with or without the optimizer's update fused.
 *
 *   G[k, j] = sum over r of input[r, k] * delta[r, j]          (fan_in, fan_out)
 *   g[j]    = sum over r of delta[r, j]
 *
 * gradient == NULL: each tile is handed to the optimizer while it is in cache, and not kept.
 * gradient != NULL: the sums are stored there (added to what is there, if accumulate) and, where optimizer >= 0, the
 * weights are then updated from the total. */
typedef struct {
    const void *const *input_rows; /* n_rows pointers to fan_in values */
    ptrdiff_t ld_input;            /* elements from row to row where they are evenly spaced, else 0 */
    const void *delta;             /* (n_rows, fan_out), ldd elements from row to row */
    ptrdiff_t ldd;
    ptrdiff_t n_rows, fan_in, fan_out;
    double density; /* zeros of inputs are skipped where at most this share of a sample is not zero; < 0: never */
    void *gradient, *bias_gradient;
    int accumulate;
    int optimizer; /* an fnn_optimizer, or -1 */
    const double *scalars;
    double l2;
    void *weights, *weight_a, *weight_b; /* (fan_in, fan_out) parameters and state slots (NULL where not needed) */
    void *bias, *bias_a, *bias_b;        /* (fan_out,) */
    void *packed;                        /* pack_weights' copy, kept in step with the updated weights; or NULL */
    int packed_only;                     /* only the copy is updated: `weights` are stale until it is unpacked */
} fnn_gradient;

/* Rows of which only some values are stored: for each row pointers to its column numbers, in rising order, and its
 * values, and how many there are. */
typedef struct {
    const void *const *index; /* int64_t where `wide`, else int32_t */
    const void *const *value;
    const ptrdiff_t *count;
    int wide;
} fnn_entries;

/* Rows of W that are a unit of work of sparse_gradient. */
#define FNN_SPARSE_UNIT 16

/* A loss on the output layer, and how targets are laid out. */
typedef struct {
    int loss, link; /* fnn_loss_id, fnn_activation; or FNN_USER */
    double parameter;
    ptrdiff_t n_outputs;
    const int64_t *labels;       /* class of each sample, or NULL */
    const void *targets;         /* (n_samples, n_outputs) of the dtype, where labels is NULL */
    const double *sample_weight; /* (n_samples,) or NULL for ones */
    double total_weight;         /* sum of the weights over the batch */
    fnn_user_loss user_loss;     /* where loss is FNN_USER */
    fnn_user_value link_value;   /* where link is FNN_USER */
    fnn_user_derivative link_derivative;
} fnn_loss;

/* A small network and a batch in padded memory (small.tmpl.h): small_layout divides it. */
#define FNN_SMALL_LAYERS 8
typedef struct {
    ptrdiff_t fan_in, fan_out;
    ptrdiff_t ld_input; /* elements from row to row of the inputs, which end in a column of ones */
    ptrdiff_t ld;       /* ... and of the deltas, of the last layer's z */
    ptrdiff_t at;       /* where weights and bias begin in parameters, slots and gradient */
    int sideways;       /* they lie on their side, (fan_out, ld_input), and else (fan_in + 1, ld) */
    int activation;
    void *input, *z, *delta; /* z: the next layer's input where that is computed in place */
    void *turned;            /* the other of the two, for the product that needs it: backward, without the bias */
    const void *forward_weights, *backward_weights; /* (fan_in + 1, ld), (fan_out, ld_backward) */
    ptrdiff_t ld_backward;
    const void **input_rows, **delta_rows, **weight_rows;
    fnn_user_value user_value; /* where activation is FNN_USER: set after small_layout */
    fnn_user_derivative user_derivative;
    int user_whole;
} fnn_small_layer;
typedef struct {
    ptrdiff_t n_layers, n_rows, n_padded;
    void *parameters, *slots[2]; /* one after the other: n_padded values each */
    void *gradient;
    void *decayed; /* 1 for each weight, 0 for each bias */
    fnn_small_layer layers[FNN_SMALL_LAYERS];
} fnn_small;

#define SLOT(ret, name, args) ret(*name) args;
typedef struct fnn_kernels {
#include "kernels.def"
} fnn_kernels;
#undef SLOT

/* --- dispatch.c ------------------------------------------------------------------------------------------------ */
int fnn_isa_count(void);
const char *fnn_isa_name(int isa);
int fnn_isa_available(int isa);
/* The best instruction set that the machine has. */
int fnn_isa_best(void);
const fnn_kernels *fnn_kernels_for(int isa, int dtype);
/* The same, for a net with no layer of more than `widest` outputs: where half a vector holds them, the kernels with half
 * the lanes are faster, and their bits are the same. */
const fnn_kernels *fnn_kernels_for_net(int isa, int dtype, ptrdiff_t widest);
/* Slots by number, for tests that call them directly: name (NULL past the end) and address. */
const char *fnn_slot_name(int slot);
void *fnn_slot_address(int isa, int dtype, int slot);
const char *fnn_activation_name(int activation); /* NULL past the end; softmax is the last */
int fnn_activation_needs_z(int activation);
const char *fnn_loss_name(int loss);
const char *fnn_optimizer_name(int optimizer);
int fnn_optimizer_slots(int optimizer);
int fnn_optimizer_scalars(int optimizer);
/* Bytes of scratch that kernels may use for a net with this many outputs; dense_gradient only where with_gradient, and
 * skipping zeros (a density >= 0) only where with_skipping. */
size_t fnn_scratch_bytes(ptrdiff_t n_outputs, int with_gradient, int with_skipping);
/* Elements from one row to the next of a buffer `width` wide: whole cache lines, an odd number of them, so that the
 * rows of a column do not share a cache set. */
ptrdiff_t fnn_row_stride(ptrdiff_t width, ptrdiff_t item_bytes);
/* a * b for sizes; -1 where it does not fit in a ptrdiff_t. */
ptrdiff_t fnn_size_product(ptrdiff_t a, ptrdiff_t b);

/* --- gather.c: arrays as they come ------------------------------------------------------------------------------ */
enum fnn_kind {
    FNN_KIND_F32,
    FNN_KIND_F64,
    FNN_KIND_I8,
    FNN_KIND_I16,
    FNN_KIND_I32,
    FNN_KIND_I64,
    FNN_KIND_U8,
    FNN_KIND_U16,
    FNN_KIND_U32,
    FNN_KIND_U64,
    FNN_N_KINDS
};

/* A two-dimensional array in the caller's memory: any kind, any strides (in bytes, may be negative). */
typedef struct {
    const char *data;
    ptrdiff_t n_rows, n_cols, row_stride_bytes, col_stride_bytes;
    int kind;
} fnn_array;

/* dst[i, :] = x[samples[i], :] converted to the dtype (samples NULL: rows first, first + 1, ...). ldd in elements. */
void fnn_gather(const fnn_array *x, const int64_t *samples, ptrdiff_t first, ptrdiff_t n_rows, int dtype, void *dst,
                ptrdiff_t ldd);
/* First index from `begin` (below `end`) of a row, samples[i] or i, with a value that is not finite in the dtype; `end` where all are. */
ptrdiff_t fnn_first_bad_row(const fnn_array *x, const int64_t *samples, ptrdiff_t begin, ptrdiff_t end, int dtype);
/* Whether kernels may read the rows of x in place. */
int fnn_in_place(const fnn_array *x, int dtype);

/* Ask for rows of x (of long ones, the first 4 KB) that will be read soon: rows in shuffled order lie where no hardware
 * prefetcher looks. */
void fnn_prefetch_rows(const fnn_array *x, const int64_t *samples, ptrdiff_t n_rows);

/* --- user.c -------------------------------------------------------------------------------------------------------- */
/* What the slots activate and activate_backward do, with a function of the user's; y holds z before. `whole` says that
 * what lies between the rows, up to n_rows * ld, are numbers, too, and may be computed and overwritten. */
void fnn_user_activate(fnn_user_value f, int dtype, ptrdiff_t n_rows, ptrdiff_t n_cols, void *y, ptrdiff_t ldy,
                       int whole);
void fnn_user_activate_backward(fnn_user_derivative df, int dtype, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z,
                                const void *y, ptrdiff_t ldy, void *delta, ptrdiff_t ldd, int whole);

/* --- shuffle.c --------------------------------------------------------------------------------------------------- */
/* order: n row numbers, a permutation that depends on seed, epoch and n alone. */
void fnn_permutation(const fnn_kernels *kernels, uint64_t seed, uint64_t epoch, ptrdiff_t n, int64_t *order);

/* --- online.c: one unit learns row after row -------------------------------------------------------------------- */
enum fnn_penalty { FNN_PENALTY_none, FNN_PENALTY_l1, FNN_PENALTY_l2, FNN_PENALTY_elasticnet };
enum fnn_online_status { FNN_ONLINE_WAITING, FNN_ONLINE_RUNNING, FNN_ONLINE_CONVERGED, FNN_ONLINE_DIVERGED };

/* The rows and the rules, which all units share. */
typedef struct {
    int dtype;       /* of values, sample_weight and the weights */
    int index_bytes; /* of columns and row_begins: 4 or 8; 0 where the rows are dense */
    const void *values;
    ptrdiff_t ld;                     /* dense: elements from row to row */
    const void *columns, *row_begins; /* CSR; all have been looked at by fnn_online_bad_row */
    ptrdiff_t n_values, n_rows, n_features;
    ptrdiff_t n_train;         /* rows that are not held out */
    const int32_t *labels;     /* (n_rows,) */
    const void *sample_weight; /* (n_rows,) or NULL for ones */
    const uint8_t *held;       /* (n_rows,): not 0 where a row is held out; or NULL */
    int penalty;
    int fit_intercept, shuffle;
    int with_objective, with_norms; /* whether they are needed, by the rule or for showing */
    int judges_objective;           /* stop where the objective does not fall */
    double alpha, l1_ratio, eta, intercept_decay, tol;
    ptrdiff_t n_iter_no_change;
} fnn_online;

/* One unit. The caller sets the first part, and zeros the rest. */
typedef struct {
    void *weights;    /* (n_features,) */
    double intercept; /* learns from here, too */
    int32_t positive; /* the label that stands for +1; all others for -1 */
    double positive_weight, negative_weight;
    uint32_t seed;
    int status;
    ptrdiff_t epoch; /* epochs done */
    double mean_loss, mean_objective;
    ptrdiff_t row, drawn, placed, no_improvement;
    double scale, sq_norm, l1_norm, u, sum_loss, sum_objective, best_objective, kept_intercept, kept_scale;
    uint32_t rng;
    int32_t *jumps, *order, *before;
    void *q, *kept;
} fnn_online_unit;

/* First row whose columns or bounds are out of range, -1 where none is. */
ptrdiff_t fnn_online_bad_row(const fnn_online *job);
/* 0 where memory is short; fnn_online_end is due in any case. */
int fnn_online_begin(const fnn_online *job, fnn_online_unit *unit);
/* Learns until n_epochs are done, the rule ends it or the deadline (of fnn_seconds) is past: then up to some whole row. */
void fnn_online_advance(const fnn_online *job, fnn_online_unit *unit, ptrdiff_t n_epochs, double deadline);
/* correct[r] = whether the unit would decide rightly on samples[r] with its weights before they are scaled. */
void fnn_online_judge(const fnn_online *job, const fnn_online_unit *unit, const int64_t *samples, ptrdiff_t n,
                      uint8_t *correct);
/* Brings the weights to their true scale and gives the memory back. */
void fnn_online_end(const fnn_online *job, fnn_online_unit *unit);

/* --- threads.c --------------------------------------------------------------------------------------------------- */
/* Meeting point of the threads of one fnn_run. */
typedef struct fnn_barrier fnn_barrier;
typedef void (*fnn_task)(void *context, int thread, int n_threads, fnn_barrier *barrier);

/* Runs task(context, t, n, barrier) for t = 0..n-1, t = 0 on the caller, and returns when all have. n <= n_threads:
 * fewer where threads cannot be had. No thread outlives the call. may_spin says that each thread has a core, so that
 * waiting a few microseconds awake is worth it. */
void fnn_run(fnn_task task, void *context, int n_threads, int may_spin);
/* Returns when all n threads have called it. What each wrote before is seen by all after. */
void fnn_barrier_wait(fnn_barrier *barrier);
/* A second barrier, for the team's first threads: all of them, until thread 0 resizes it, between their last meeting there
 * and the next of all at `barrier`. */
fnn_barrier *fnn_barrier_of_first(fnn_barrier *barrier);
void fnn_barrier_resize(fnn_barrier *first, int n_threads);
/* A flag that another thread may set at any time. */
int fnn_flag_get(const int32_t *flag);
void fnn_flag_set(int32_t *flag);
/* The next n items of work that threads share: their first index. */
ptrdiff_t fnn_take(ptrdiff_t *next, ptrdiff_t n);
/* Seconds on a clock that never goes back. */
double fnn_seconds(void);
/* FNN_SPARE_BYTES of memory for a short call, or NULL, and their return. One block is kept for the next call: to ask the
 * allocator takes as long as the layers of a small network, and stacks of threads may be smaller. */
#define FNN_SPARE_BYTES 65536
void *fnn_spare_take(void);
void fnn_spare_give(void *block);

#endif
