/* The simple perceptron's error-correction learning, row after row, for all its units:
 *
 *   u = x . w + b,  y = 1 where u > 0 else 0,  w += eta (t - y) x,  b += eta (t - y)
 *
 * (Rosenblatt 1958, doi:10.1037/h0042519.) All units see a row before any of their weights move.
 *
 * Only the sign of u is needed, and law 1 says of which u: of the sum in blocks. A sum in any other order has that sign,
 * too, unless it is nearer to 0 than rounding can move either of them; then, and only then, the blocks are summed. So the
 * sums of several rows are estimated together, and where a mistake moves a unit, w + s x_i, the estimates of the rows
 * after it move by s (x_i . x_r). The weights are those of one row after another, to the last bit. */

#if IS_FLOAT
#define EPSILON __FLT_EPSILON__
#define LARGEST __FLT_MAX__
#else
#define EPSILON __DBL_EPSILON__
#define LARGEST __DBL_MAX__
#endif

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
    const uint8_t *const *targets;
    ptrdiff_t fan_in, n_outputs;
    REAL rate, *w, *bias;
} N(perceptron_job);

/* What a mistake does to a unit. Not add_scaled, which rounds once: the bits would be others. */
static void N(correct)(const N(perceptron_job) * job, const REAL *x, ptrdiff_t j, REAL step) {
    REAL *w = job->w + j * job->fan_in;
    const V s = K(step);
    for (ptrdiff_t k = 0; k < job->fan_in; k += LANES) {
        const ptrdiff_t m = job->fan_in - k;
        N(store_n)(w + k, N(load_n)(w + k, m) + s * N(load_n)(x + k, m), m);
    }
    job->bias[j] += step;
}

/* --- up to LANES / 2 units, at most FNN_BLOCK features: lanes run across up to NR rows --------------------------------- */
static ptrdiff_t N(perceptron_narrow)(const N(perceptron_job) * job, ptrdiff_t first, ptrdiff_t n_rows, N(scratch) s) {
    const ptrdiff_t n = job->fan_in, n_outputs = job->n_outputs, ld = N(vectors)(n_rows) * LANES;
    const REAL *const *rows = job->rows + first;
    const uint8_t *const *targets = job->targets + first;
    const REAL *units[LANES / 2 + 1];
    ptrdiff_t mistakes = 0;
    for (ptrdiff_t j = 0; j < n_outputs; j++) units[j] = job->w + j * n;
    N(pack_transposed)(rows, n_rows, 0, n, s.panel, ld);
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        N(tile_job) t = N(rows_job)(n, units, 0, s.panel, ld, s.work, NR, 0, 0);
        N(run_tiles)(&t, n_outputs, n_rows, 0);
        ptrdiff_t wrong = 0;
        for (; i < n_rows; i++) {
            for (ptrdiff_t j = 0; j < n_outputs; j++) wrong += (s.work[j * NR + i] + job->bias[j] > 0) != targets[i][j];
            if (wrong) break;
        }
        if (!wrong) break;
        mistakes += wrong;
        for (ptrdiff_t j = 0; j < n_outputs; j++) {
            const int error = (int)targets[i][j] - (s.work[j * NR + i] + job->bias[j] > 0);
            if (error) N(correct)(job, rows[i], j, job->rate * (REAL)error);
        }
    }
    return mistakes;
}

/* --- any number of units and features -------------------------------------------------------------------------------- */
#define GROUP 8 /* rows whose sums are estimated together */
#if defined(FNN_LEVEL_AVX512) || defined(FNN_LEVEL_NEON)
#define UNITS 4 /* of a tile: 32 registers hold its sums */
#else
#define UNITS 2
#endif

/* out[i] = the sum of the lanes of v[i], in some order, for four vectors. */
INLINE void N(totals)(const V *v, REAL *out) {
#if defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)
#if IS_FLOAT
    typedef __m256 half;
#else
    typedef __m256d half;
#endif
    half h[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        const union {
            V whole;
            half part[VECTOR_BYTES / 32];
        } u = {v[i]};
        h[i] = u.part[0];
        for (int q = 1; q < VECTOR_BYTES / 32; q++) h[i] += u.part[q];
    }
#if IS_FLOAT
    const __m256 t = _mm256_hadd_ps(_mm256_hadd_ps(h[0], h[1]), _mm256_hadd_ps(h[2], h[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(t), _mm256_extractf128_ps(t, 1)));
#else
    const __m256d a = _mm256_hadd_pd(h[0], h[1]), b = _mm256_hadd_pd(h[2], h[3]);
    _mm256_storeu_pd(out, _mm256_permute2f128_pd(a, b, 0x20) + _mm256_permute2f128_pd(a, b, 0x31));
#endif
#else
    for (int i = 0; i < 4; i++) {
        V sums = v[i];
        for (ptrdiff_t width = LANES / 2; width > 0; width /= 2)
            for (ptrdiff_t l = 0; l < width; l++) sums[l] += sums[l + width];
        out[i] = sums[0];
    }
#endif
}

/* out[j * GROUP + i] = x[i] . (w + j * n), about, for four rows and n_units units; some that come later are asked for on
 * the way, line by line: all at once they would hold up the loads. */
INLINE void N(estimate_tile)(const REAL *const *x, const REAL *w, const int n_units, ptrdiff_t n, REAL *out,
                             const REAL *const *later, const int asks) {
    V acc[UNITS][4];
#pragma GCC unroll 4
    for (int j = 0; j < n_units; j++)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) acc[j][i] = (V){0};
    ptrdiff_t k = 0;
    for (; k + LANES <= n; k += LANES) {
#pragma GCC unroll 4
        for (int i = 0; i < asks; i++)
            __builtin_prefetch(later[i] + k, 0, 1); /* into L2, where more may be on the way */
#pragma GCC unroll 4
        for (int j = 0; j < n_units; j++) {
            const V wk = N(load)(w + j * n + k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) acc[j][i] = FMA(wk, N(load)(x[i] + k), acc[j][i]);
        }
    }
    if (k < n)
#pragma GCC unroll 4
        for (int j = 0; j < n_units; j++) {
            const V wk = N(load_part)(w + j * n + k, n - k);
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) acc[j][i] = FMA(wk, N(load_part)(x[i] + k, n - k), acc[j][i]);
        }
#pragma GCC unroll 4
    for (int j = 0; j < n_units; j++) N(totals)(acc[j], out + j * GROUP);
}

/* The same for up to GROUP rows; what is written beyond them means nothing. later: NULL, or as many rows. */
static void N(estimate)(const REAL *const *rows, ptrdiff_t n_rows, const REAL *w, ptrdiff_t n_units, ptrdiff_t n,
                        REAL *out, const REAL *const *later) {
    for (ptrdiff_t i = 0; i < n_rows; i += 4) {
        const REAL *x[4];
        for (int q = 0; q < 4; q++) x[q] = rows[N(least)(i + q, n_rows - 1)];
        ptrdiff_t j = 0;
        if (later) {
            const REAL *next[4];
            for (int q = 0; q < 4; q++) next[q] = later[N(least)(i + q, n_rows - 1)];
            for (; j < 2 * UNITS && j + UNITS <= n_units; j += UNITS)
                N(estimate_tile)(x, w + j * n, UNITS, n, out + j * GROUP + i, next + 2 * (j / UNITS), 2);
            if (n_units == 1) N(estimate_tile)(x, w, 1, n, out + i, next, 4), j = 1;
        }
        for (; j + UNITS <= n_units; j += UNITS) N(estimate_tile)(x, w + j * n, UNITS, n, out + j * GROUP + i, 0, 0);
        for (; j < n_units; j++) N(estimate_tile)(x, w + j * n, 1, n, out + j * GROUP + i, 0, 0);
    }
}

/* At least |x|, of n values: squares that vanish are too small to count n of the least normal numbers. */
static REAL N(norm)(const REAL *x, ptrdiff_t n) {
    V acc[4] = {{0}};
    ptrdiff_t k = 0;
    for (; k + 4 * LANES <= n; k += 4 * LANES)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            const V v = N(load)(x + k + q * LANES);
            acc[q] = FMA(v, v, acc[q]);
        }
    for (; k < n; k += LANES) {
        const V v = N(load_n)(x + k, n - k);
        acc[0] = FMA(v, v, acc[0]);
    }
    REAL sums[4];
    N(totals)(acc, sums);
    return SQRT(K((sums[0] + sums[1]) + (sums[2] + sums[3]) + (REAL)n * LEAST_NORMAL))[0];
}

/* x . w in law 1's order, the chains of four blocks side by side. */
INLINE REAL N(chains)(const REAL *x, const REAL *w, ptrdiff_t n, const int n_blocks, REAL sum) {
    REAL chain[4];
#pragma GCC unroll 4
    for (int b = 0; b < n_blocks; b++) chain[b] = 0;
    for (ptrdiff_t p = 0; p < n; p++)
#pragma GCC unroll 4
        for (int b = 0; b < n_blocks; b++) chain[b] = N(fma_one)(x[b * FNN_BLOCK + p], w[b * FNN_BLOCK + p], chain[b]);
#pragma GCC unroll 4
    for (int b = 0; b < n_blocks; b++) sum = sum + chain[b];
    return sum;
}
static REAL N(exact_product)(const REAL *x, const REAL *w, ptrdiff_t n) {
    REAL sum = 0;
    ptrdiff_t k = 0;
    for (; n - k >= 4 * FNN_BLOCK; k += 4 * FNN_BLOCK) sum = N(chains)(x + k, w + k, FNN_BLOCK, 4, sum);
    if (n - k >= 2 * FNN_BLOCK) {
        sum = N(chains)(x + k, w + k, FNN_BLOCK, 2, sum);
        k += 2 * FNN_BLOCK;
    }
    for (; k < n; k += FNN_BLOCK) sum = N(chains)(x + k, w + k, N(least)(FNN_BLOCK, n - k), 1, sum);
    return sum;
}

/* By how much, as a share of |x| |w|, the estimate of x . w and the sum in blocks may be apart.
 *
 * A sum whose longest chain has m roundings is off by at most m u / (1 - m u) times |x| . |w| <= |x| |w|, u half an EPSILON
 * (Higham 2002, doi:10.1137/1.9780898718027, chapter 3). The block sums have min(n, block) + n / block of them, an
 * estimate n / LANES + LANES, and so has each x_i . x_r that is added to it; a row of GROUP mistakes rounds w and the
 * estimate anew each time, which is fewer than 64. The other half of EPSILON is for the norms, rounded themselves. */
INLINE REAL N(doubt)(ptrdiff_t n) {
    const ptrdiff_t blocks = N(least)(n, FNN_BLOCK) + n / FNN_BLOCK + 2, estimate = n / LANES + LANES;
    return (REAL)(blocks + estimate + 64) * EPSILON;
}

/* Up to GROUP rows from `first` on; later: NULL, or as many that will come. norms: at least |w| of each unit, kept so.
 * work: (n_outputs + 1) * GROUP values. */
static ptrdiff_t N(perceptron_group)(const N(perceptron_job) * job, ptrdiff_t first, ptrdiff_t n_rows,
                                     const REAL *const *later, REAL *norms, REAL *work) {
    const REAL *const *rows = job->rows + first;
    const ptrdiff_t n = job->fan_in, n_outputs = job->n_outputs;
    const REAL doubt = N(doubt)(n), tiny = (REAL)n * LEAST_NORMAL;
    REAL *u = work, *along = u + n_outputs * GROUP;
    ptrdiff_t mistakes = 0;
    N(estimate)(rows, n_rows, job->w, n_outputs, n, u, later);
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const REAL length = N(norm)(rows[i], n);
        int moved = 0;
        for (ptrdiff_t j = 0; j < n_outputs; j++) {
            const REAL bound = length * norms[j], estimate = u[j * GROUP + i] + job->bias[j];
            const REAL size = estimate < 0 ? -estimate : estimate;
            int y = estimate > 0;
            /* NaN fails the first test; where the second holds, no sum on the way can overflow */
            if (!(size > doubt * bound + tiny && bound < LARGEST / 4))
                y = N(exact_product)(rows[i], job->w + j * n, n) + job->bias[j] > 0;
            const int error = (int)job->targets[first + i][j] - y;
            if (!error) continue;
            const REAL step = job->rate * (REAL)error;
            const ptrdiff_t after = n_rows - i - 1;
            if (!moved && after) N(estimate)(rows + i + 1, after, rows[i], 1, n, along, 0);
            moved = 1;
            mistakes++;
            N(correct)(job, rows[i], j, step);
            norms[j] += (step < 0 ? -step : step) * length;
            for (ptrdiff_t r = 0; r < after; r++) u[j * GROUP + i + 1 + r] += step * along[r];
        }
    }
    return mistakes;
}

/* Learns from n_rows rows, at most FNN_PERCEPTRON_ROWS, in their order; returns the mistakes. rows: pointers to fan_in
 * values; targets: pointers to n_outputs bytes, 0 or 1; both with n_later more, for rows that come next and are only asked
 * for. weights (n_outputs, fan_in) and bias (n_outputs,) are changed. Scratch as for a net with n_outputs outputs. */
static ptrdiff_t N(perceptron_rows)(const void *const *rows, ptrdiff_t n_rows, ptrdiff_t n_later, ptrdiff_t fan_in,
                                    ptrdiff_t n_outputs, const uint8_t *const *targets, double learning_rate,
                                    void *weights, void *bias, void *scratch) {
    const N(perceptron_job)
        job = {(const REAL *const *)rows, targets, fan_in, n_outputs, (REAL)learning_rate, weights, bias};
    const N(scratch) s = N(split_scratch)(scratch);
    ptrdiff_t mistakes = 0;
    const REAL *const *later = job.rows + n_rows;
    for (ptrdiff_t i = 0; i < n_later; i++) __builtin_prefetch(targets[n_rows + i]);
    if (2 * n_outputs <= LANES && fan_in <= FNN_BLOCK && n_rows > 1) {
        for (ptrdiff_t i = 0; i < n_later; i++)
            for (ptrdiff_t k = 0; k < fan_in; k += 64 / (ptrdiff_t)sizeof(REAL)) __builtin_prefetch(later[i] + k, 0, 1);
        for (ptrdiff_t i = 0; i < n_rows; i += NR)
            mistakes += N(perceptron_narrow)(&job, i, N(least)(NR, n_rows - i), s);
        return mistakes;
    }
    REAL *norms = s.work;
    for (ptrdiff_t j = 0; j < n_outputs; j++) norms[j] = N(norm)(job.w + j * fan_in, fan_in);
    for (ptrdiff_t i = 0; i < n_rows; i += GROUP)
        mistakes += N(perceptron_group)(&job, i, N(least)(GROUP, n_rows - i), n_later == n_rows ? later + i : 0, norms,
                                        norms + n_outputs);
    return mistakes;
}
