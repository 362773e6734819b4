/* The simple perceptron's error-correction learning, row after row, for all its units:
 *
 *   u = x . w + b,  y = 1 where u > 0 else 0,  w += eta (t - y) x,  b += eta (t - y)
 *
 * (Rosenblatt 1958, doi:10.1037/h0042519.) All units see a row before any of their weights move.
 *
 * A row's sums are long chains, and a unit is mostly right: so the sums of several rows are taken side by side, as if no
 * mistake would come. Where one comes, the weights of that unit move, and its sums of the rows after it are taken again
 * from the new weights: every sum is the chain that law 1 says, of the weights that its row has to see. */

/* a * b + c for one number, rounded as in a lane. */
INLINE REAL N(fma_one)(REAL a, REAL b, REAL c) {
#if defined(FNN_LEVEL_BASELINE)
    return a * b + c;
#elif IS_FLOAT
    return __builtin_fmaf(a, b, c);
#else
    return __builtin_fma(a, b, c);
#endif
}

typedef struct {
    const REAL *const *rows;
    ptrdiff_t fan_in, n_outputs;
    REAL rate, *w, *bias;
} N(perceptron_job);

/* --- up to LANES / 2 units, at most FNN_BLOCK features: lanes run across rows ------------------------------------- */
static ptrdiff_t N(perceptron_narrow)(const N(perceptron_job) *job, ptrdiff_t n_rows, const uint8_t *const *targets,
                                      N(scratch) s) {
    const ptrdiff_t n = job->fan_in, n_outputs = job->n_outputs, ld = N(vectors)(n_rows) * LANES;
    REAL *w = job->w;
    ptrdiff_t mistakes = 0;
    N(pack_transposed)(job->rows, n_rows, 0, n, s.panel, ld);
    for (ptrdiff_t first = 0; first < n_rows;) {
        N(tile_job) t = N(columns_job)(n, w, n_outputs, s.panel, ld, s.work, NR, 0);
        N(run_tiles)(&t, n_outputs, n_rows, N(COLS));
        ptrdiff_t i = first, wrong = 0;
        for (; i < n_rows; i++) {
            for (ptrdiff_t j = 0; j < n_outputs; j++)
                wrong += (s.work[j * NR + i] + job->bias[j] > 0) != targets[i][j];
            if (wrong) break;
        }
        if (!wrong) break;
        mistakes += wrong;
        for (ptrdiff_t j = 0; j < n_outputs; j++) {
            const int error = (int)targets[i][j] - (s.work[j * NR + i] + job->bias[j] > 0);
            if (!error) continue;
            const REAL step = job->rate * (REAL)error, *x = job->rows[i];
            for (ptrdiff_t k = 0; k < n; k++) w[k * n_outputs + j] += step * x[k];
            job->bias[j] += step;
        }
        first = i + 1;
    }
    return mistakes;
}

/* --- any number of units and features ------------------------------------------------------------------------------- */
#define GROUP 4 /* rows whose sums are taken side by side */

/* w[k, j] += step x[k] for all k, and the sums of unit j over the new weights for the n_later rows that follow, the
 * chains of up to four blocks side by side. */
INLINE void N(correct_blocks)(const N(perceptron_job) *job, ptrdiff_t i, const int n_later, ptrdiff_t j, REAL step,
                              ptrdiff_t k0, ptrdiff_t n, const int n_blocks, REAL *sums, int first) {
    REAL chain[4][GROUP];
    const ptrdiff_t n_outputs = job->n_outputs;
    const REAL *x = job->rows[i] + k0;
    REAL *w = job->w + k0 * n_outputs + j;
#pragma GCC unroll 4
    for (int b = 0; b < n_blocks; b++)
#pragma GCC unroll 4
        for (int r = 0; r < n_later; r++) chain[b][r] = 0;
    for (ptrdiff_t p = 0; p < n; p++)
#pragma GCC unroll 4
        for (int b = 0; b < n_blocks; b++) {
            const ptrdiff_t at = b * FNN_BLOCK + p;
            const REAL moved = w[at * n_outputs] + step * x[at];
            w[at * n_outputs] = moved;
#pragma GCC unroll 4
            for (int r = 0; r < n_later; r++)
                chain[b][r] = N(fma_one)(job->rows[i + 1 + r][k0 + at], moved, chain[b][r]);
        }
#pragma GCC unroll 4
    for (int r = 0; r < n_later; r++) {
        REAL sum = first ? chain[0][r] : sums[r] + chain[0][r];
#pragma GCC unroll 4
        for (int b = 1; b < n_blocks; b++) sum = sum + chain[b][r];
        sums[r] = sum;
    }
}

#define CORRECT(n_later)                                                                                               \
    static void N(correct_##n_later)(const N(perceptron_job) *job, ptrdiff_t i, ptrdiff_t j, REAL step, REAL *sums) {  \
        ptrdiff_t k0 = 0;                                                                                              \
        for (; job->fan_in - k0 >= 4 * FNN_BLOCK; k0 += 4 * FNN_BLOCK)                                                 \
            N(correct_blocks)(job, i, n_later, j, step, k0, FNN_BLOCK, 4, sums, k0 == 0);                              \
        if (job->fan_in - k0 >= 3 * FNN_BLOCK) {                                                                       \
            N(correct_blocks)(job, i, n_later, j, step, k0, FNN_BLOCK, 3, sums, k0 == 0);                              \
            k0 += 3 * FNN_BLOCK;                                                                                       \
        } else if (job->fan_in - k0 >= 2 * FNN_BLOCK) {                                                                \
            N(correct_blocks)(job, i, n_later, j, step, k0, FNN_BLOCK, 2, sums, k0 == 0);                              \
            k0 += 2 * FNN_BLOCK;                                                                                       \
        } else if (job->fan_in - k0 >= FNN_BLOCK) {                                                                    \
            N(correct_blocks)(job, i, n_later, j, step, k0, FNN_BLOCK, 1, sums, k0 == 0);                              \
            k0 += FNN_BLOCK;                                                                                           \
        }                                                                                                              \
        if (k0 < job->fan_in)                                                                                          \
            N(correct_blocks)(job, i, n_later, j, step, k0, job->fan_in - k0, 1, sums, k0 == 0);                       \
    }
CORRECT(0)
CORRECT(1)
CORRECT(2)
CORRECT(3)

/* w[k, :] += step[:] x[k]; units whose step is 0 keep their weights. */
static void N(correct_all)(const N(perceptron_job) *job, const REAL *x, const REAL *step) {
    const ptrdiff_t n_outputs = job->n_outputs;
    for (ptrdiff_t k = 0; k < job->fan_in; k++) {
        const V xk = N(splat)(x[k]);
        REAL *row = job->w + k * n_outputs;
        for (ptrdiff_t j = 0; j < n_outputs; j += LANES) {
            const V w = N(load_n)(row + j, n_outputs - j), s = N(load_n)(step + j, n_outputs - j);
            N(store_n)(row + j, SEL(s == K(0), w, w + s * xk), n_outputs - j);
        }
    }
    for (ptrdiff_t j = 0; j < n_outputs; j++) job->bias[j] += step[j];
}

/* u = x . w + b of up to GROUP rows; for up to three vectors of units one tile holds them all. */
static void N(perceptron_sums)(const N(perceptron_job) *job, ptrdiff_t i, ptrdiff_t n_rows, REAL *u, void *scratch) {
    static const N(tile_function) tiles[GROUP][2] = {{N(tile_1_3_0), N(tile_1_3_1)}, {N(tile_2_3_0), N(tile_2_3_1)},
                                                     {N(tile_3_3_0), N(tile_3_3_1)}, {N(tile_4_3_0), N(tile_4_3_1)}};
    const ptrdiff_t n_outputs = job->n_outputs, last = n_outputs % LANES;
    if (n_rows == 1 || N(vectors)(n_outputs) != 3) {
        N(dense_forward)((const void *const *)(job->rows + i), n_rows, job->fan_in, job->w, job->bias, n_outputs, u,
                         n_outputs, scratch);
        return;
    }
    for (ptrdiff_t k0 = 0; k0 < job->fan_in; k0 += FNN_BLOCK) {
        ptrdiff_t n = N(least)(FNN_BLOCK, job->fan_in - k0);
        N(tile_job) t = N(rows_job)(n, job->rows + i, k0, job->w + k0 * n_outputs, n_outputs, u, n_outputs, k0 > 0,
                                    k0 + n == job->fan_in ? job->bias : 0);
        t.last = last;
        tiles[n_rows - 1][last != 0](&t);
    }
}

static ptrdiff_t N(perceptron_group)(const N(perceptron_job) *job, ptrdiff_t first, ptrdiff_t end,
                                     const uint8_t *const *targets, void *scratch) {
    static void (*const correct[GROUP])(const N(perceptron_job) *, ptrdiff_t, ptrdiff_t, REAL, REAL *) = {
        N(correct_0), N(correct_1), N(correct_2), N(correct_3)};
    const ptrdiff_t n_outputs = job->n_outputs;
    /* beyond the tile of dense_forward's narrow layers */
    REAL *u = N(split_scratch)(scratch).work + (LANES / 2) * NR, *step = u + GROUP * n_outputs;
    ptrdiff_t mistakes = 0;
    N(perceptron_sums)(job, first, end - first, u, scratch);
    for (ptrdiff_t i = first; i < end; i++) {
        ptrdiff_t wrong = 0;
        const REAL *sums = u + (i - first) * n_outputs;
        for (ptrdiff_t j = 0; j < n_outputs; j++) {
            const int error = (int)targets[i][j] - (sums[j] > 0);
            step[j] = job->rate * (REAL)error;
            wrong += error != 0;
        }
        if (!wrong) continue;
        mistakes += wrong;
        if (wrong > 2) { /* many units moved: the rows that follow start over */
            N(correct_all)(job, job->rows[i], step);
            return mistakes + (i + 1 < end ? N(perceptron_group)(job, i + 1, end, targets, scratch) : 0);
        }
        for (ptrdiff_t j = 0; j < n_outputs; j++) {
            if (step[j] == 0) continue;
            REAL again[GROUP];
            correct[end - i - 1](job, i, j, step[j], again);
            job->bias[j] += step[j];
            for (ptrdiff_t r = i + 1; r < end; r++) u[(r - first) * n_outputs + j] = again[r - i - 1] + job->bias[j];
        }
    }
    return mistakes;
}

/* Learns from n_rows rows, at most FNN_PERCEPTRON_ROWS, in their order; returns the mistakes. rows: pointers to fan_in
 * values; targets: pointers to n_outputs bytes, 0 or 1; weights (fan_in, n_outputs) and bias (n_outputs,) are changed.
 * Scratch as for a net with n_outputs outputs. */
static ptrdiff_t N(perceptron_rows)(const void *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, ptrdiff_t n_outputs,
                                    const uint8_t *const *targets, double learning_rate, void *weights, void *bias,
                                    void *scratch) {
    const N(perceptron_job) job = {(const REAL *const *)rows, fan_in, n_outputs, (REAL)learning_rate, weights, bias};
    ptrdiff_t mistakes = 0;
    if (2 * n_outputs <= LANES && fan_in <= FNN_BLOCK && n_rows > 1) {
        for (ptrdiff_t i = 0; i < n_rows; i += NR) {
            N(perceptron_job) part = job;
            part.rows += i;
            mistakes += N(perceptron_narrow)(&part, N(least)(NR, n_rows - i), targets + i, N(split_scratch)(scratch));
        }
        return mistakes;
    }
    for (ptrdiff_t i = 0; i < n_rows; i += GROUP)
        mistakes += N(perceptron_group)(&job, i, N(least)(i + GROUP, n_rows), targets, scratch);
    return mistakes;
}
