/* Online learning as scikit-learn's Perceptron does it: one unit, one row at a time, in its order and its arithmetic.
 *
 *   p = w . x + b,   y = +-1;   where p y <= 0:   w += eta c y x,   b += eta c y decay   (c: class and row weight)
 *
 * with an L2 penalty as a shrinking factor and an L1 penalty as truncation after each row. Units (one class against the
 * rest) know nothing of each other; whoever runs them may give each to a thread. Unlike a kernel, a unit owns memory
 * between `begin` and `end`. */
#include "fastnn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define GROUP 8 /* rows whose sums are taken side by side */

enum { DENSE, CSR32, CSR64 };

INLINE ptrdiff_t row_begin(const fnn_online *job, ptrdiff_t i) {
    return job->index_bytes == 4 ? ((const int32_t *)job->row_begins)[i]
                                 : (ptrdiff_t)((const int64_t *)job->row_begins)[i];
}

INLINE ptrdiff_t sample_at(const fnn_online_unit *unit, ptrdiff_t at) {
    return unit->order ? unit->order[at] : at;
}

#define REAL float
#define N(name) name##_f32
#define SMALLEST_SCALE 1e-6
#include "online.tmpl.h"
#undef REAL
#undef N
#undef SMALLEST_SCALE
#define REAL double
#define N(name) name##_f64
#define SMALLEST_SCALE 1e-9
#include "online.tmpl.h"

ptrdiff_t fnn_online_bad_row(const fnn_online *job) {
    if (job->index_bytes == 0) return -1;
    for (ptrdiff_t i = 0; i < job->n_rows; i++) {
        const ptrdiff_t begin = row_begin(job, i), end = row_begin(job, i + 1);
        if (begin < 0 || end < begin || end > job->n_values) return i;
        int good = 1;
        if (job->index_bytes == 4) {
            const int32_t *column = job->columns;
            for (ptrdiff_t j = begin; j < end; j++) good &= column[j] >= 0 && column[j] < job->n_features;
        } else {
            const int64_t *column = job->columns;
            for (ptrdiff_t j = begin; j < end; j++) good &= column[j] >= 0 && column[j] < job->n_features;
        }
        if (!good) return i;
    }
    return -1;
}

static size_t item_bytes(const fnn_online *job) {
    return job->dtype == FNN_F32 ? sizeof(float) : sizeof(double);
}

int fnn_online_begin(const fnn_online *job, fnn_online_unit *unit) {
    const size_t n_weights = (size_t)job->n_features * item_bytes(job), n_rows = (size_t)job->n_rows;
    const int truncates = job->penalty == FNN_PENALTY_l1 || job->penalty == FNN_PENALTY_elasticnet;
    unit->kept = malloc(n_weights);
    unit->q = truncates ? calloc((size_t)job->n_features, item_bytes(job)) : 0;
    if (job->shuffle) {
        unit->jumps = malloc(n_rows * sizeof(int32_t));
        unit->order = malloc(n_rows * sizeof(int32_t));
        unit->before = malloc(n_rows * sizeof(int32_t));
    }
    if (!unit->kept || (truncates && !unit->q) || (job->shuffle && !(unit->jumps && unit->order && unit->before)))
        return 0;
    memcpy(unit->kept, unit->weights, n_weights);
    unit->kept_intercept = unit->intercept;
    unit->scale = unit->kept_scale = 1;
    unit->u = 0;
    if (job->dtype == FNN_F32)
        first_norms_f32(job, unit);
    else
        first_norms_f64(job, unit);
    unit->rng = unit->seed;
    unit->drawn = unit->placed = unit->row = 0;
    unit->best_objective = INFINITY;
    unit->status = FNN_ONLINE_RUNNING;
    return 1;
}

void fnn_online_end(const fnn_online *job, fnn_online_unit *unit) {
    if (unit->kept && unit->status != FNN_ONLINE_WAITING) {
        if (job->dtype == FNN_F32)
            scale_weights_f32(job, unit);
        else
            scale_weights_f64(job, unit);
    }
    free(unit->kept);
    free(unit->q);
    free(unit->jumps);
    free(unit->order);
    free(unit->before);
    unit->kept = unit->q = 0;
    unit->jumps = unit->order = unit->before = 0;
}

/* A xorshift generator (Marsaglia 2003, doi:10.18637/jss.v008.i14) of 31 bits; seed 0 stands for 1. */
static uint32_t draw(uint32_t *state) {
    if (!*state) *state = 1;
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state % ((uint32_t)INT32_MAX + 1);
}

/* The order of an epoch, some rows at a time; says whether it is whole. Each epoch is shuffled from the order of the one
 * before by draws that begin with the same seed: so by the same jumps, which are drawn once. */
static int shuffle(const fnn_online *job, fnn_online_unit *unit) {
    const ptrdiff_t n = job->n_rows;
    enum { ROWS = 1 << 15 };
    if (unit->drawn < n) {
        int32_t *jumps = unit->jumps;
        if (unit->drawn == 0)
            for (ptrdiff_t i = 0; i < n; i++) jumps[i] = (int32_t)i;
        for (int r = 0; r < ROWS && unit->drawn < n; r++, unit->drawn++) {
            const uint32_t i = (uint32_t)unit->drawn;
            if (unit->drawn + 1 == n) continue;
            const uint32_t j = i + draw(&unit->rng) % ((uint32_t)n - i);
            const int32_t swapped = jumps[i];
            jumps[i] = jumps[j];
            jumps[j] = swapped;
        }
        if (unit->drawn < n) return 0;
    }
    if (unit->placed == 0) {
        int32_t *swapped = unit->order;
        unit->order = unit->before;
        unit->before = swapped;
    }
    for (int r = 0; r < ROWS && unit->placed < n; r++, unit->placed++) {
        const int32_t jump = unit->jumps[unit->placed];
        unit->order[unit->placed] = unit->epoch == 0 ? jump : unit->before[jump];
    }
    return unit->placed == n;
}

static void end_epoch(const fnn_online *job, fnn_online_unit *unit) {
    const size_t n_weights = (size_t)job->n_features * item_bytes(job);
    const int finite =
        job->dtype == FNN_F32 ? finite_f32(unit->weights, job->n_features) : finite_f64(unit->weights, job->n_features);
    unit->row = unit->placed = 0;
    unit->epoch++;
    unit->mean_loss = unit->sum_loss / (double)job->n_train;
    unit->mean_objective = unit->sum_objective / (double)job->n_train;
    if (!finite || !isfinite(unit->intercept)) {
        memcpy(unit->weights, unit->kept, n_weights);
        unit->intercept = unit->kept_intercept;
        unit->scale = unit->kept_scale;
        unit->status = FNN_ONLINE_DIVERGED;
        return;
    }
    memcpy(unit->kept, unit->weights, n_weights);
    unit->kept_intercept = unit->intercept;
    unit->kept_scale = unit->scale;
    if (!job->judges_objective) return;
    if (job->tol > -INFINITY && unit->mean_objective > unit->best_objective - job->tol)
        unit->no_improvement++;
    else
        unit->no_improvement = 0;
    if (unit->mean_objective < unit->best_objective) unit->best_objective = unit->mean_objective;
    if (unit->no_improvement >= job->n_iter_no_change) unit->status = FNN_ONLINE_CONVERGED;
}

void fnn_online_advance(const fnn_online *job, fnn_online_unit *unit, ptrdiff_t n_epochs, double deadline) {
    /* from one look at the clock to the next: some ten microseconds */
    const ptrdiff_t n_values = job->index_bytes ? row_begin(job, job->n_rows) : job->n_rows * job->n_features;
    const ptrdiff_t rows = 1 + 40000 / (n_values / job->n_rows + 20);
    while (unit->status == FNN_ONLINE_RUNNING && unit->epoch < n_epochs) {
        if (fnn_seconds() >= deadline) return;
        if (unit->row == 0) {
            if (job->shuffle && unit->placed < job->n_rows && !shuffle(job, unit)) continue;
            unit->sum_loss = unit->sum_objective = 0;
        }
        const ptrdiff_t end = unit->row + rows < job->n_rows ? unit->row + rows : job->n_rows;
        if (job->dtype == FNN_F32)
            learn_rows_f32(job, unit, unit->row, end);
        else
            learn_rows_f64(job, unit, unit->row, end);
        unit->row = end;
        if (end == job->n_rows) end_epoch(job, unit);
    }
}

void fnn_online_judge(const fnn_online *job, const fnn_online_unit *unit, const int64_t *samples, ptrdiff_t n,
                      uint8_t *correct) {
    if (job->dtype == FNN_F32)
        judge_f32(job, unit, samples, n, correct);
    else
        judge_f64(job, unit, samples, n, correct);
}
