/* First layers whose inputs are stored without their zeros (CSR): products that touch only what is stored.
 *
 * Links of zero are left out, as in zeros.tmpl.h. Both products run on one chain,
 *
 *   c[j] = sum over p of value[p] * b[index[p], j]
 *
 * with b the weights (forward: the entries of a row) or the deltas (gradient: the entries of a column, whose rows are
 * b's). */

INLINE ptrdiff_t N(index_at)(const void *index, ptrdiff_t p, const int wide) {
    return wide ? (ptrdiff_t)((const int64_t *)index)[p] : (ptrdiff_t)((const int32_t *)index)[p];
}
/* The first of entries [begin, end), in rising order, whose index is not below `limit`. */
INLINE ptrdiff_t N(entries_below)(const void *index, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t limit, int wide) {
    while (begin < end) {
        ptrdiff_t middle = begin + (end - begin) / 2;
        if (N(index_at)(index, middle, wide) < limit)
            begin = middle + 1;
        else
            end = middle;
    }
    return begin;
}

typedef struct {
    const void *index;
    const REAL *value;
    ptrdiff_t begin, end; /* entries of the chain */
    const REAL *b;
    ptrdiff_t ldb, last;  /* last: columns of a vector that is not whole */
    REAL *c;
    int accumulate;
    int far; /* b does not stay in L1: ask for its rows in advance */
} N(chain_job);
#define SPARSE_AHEAD 4

INLINE void N(chain)(const N(chain_job) *job, const int nv, const int tail, const int wide, const int far) {
    V acc[8];
    const REAL *value = job->value, *b = job->b;
    const ptrdiff_t end = job->end, ldb = job->ldb, last = job->last;
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) acc[v] = (V){0};
    for (ptrdiff_t p = job->begin; p < end; p++) {
        const REAL *row = b + N(index_at)(job->index, p, wide) * ldb;
        const V x = N(splat)(value[p]);
        if (far && p + SPARSE_AHEAD < end) {
            const REAL *ahead = b + N(index_at)(job->index, p + SPARSE_AHEAD, wide) * ldb;
#pragma GCC unroll 8
            for (int v = 0; v < nv * VECTOR_BYTES; v += 64) __builtin_prefetch((const char *)ahead + v, 0, 3);
        }
#pragma GCC unroll 8
        for (int v = 0; v < nv; v++)
            acc[v] = FMA(x, tail ? N(load_part)(row + v * LANES, last) : N(load)(row + v * LANES), acc[v]);
    }
    REAL *c = job->c;
#pragma GCC unroll 8
    for (int v = 0; v < nv; v++) {
        V sum = acc[v];
        if (tail) {
            if (job->accumulate) sum = N(load_part)(c + v * LANES, last) + sum;
            N(store_part)(c + v * LANES, sum, last);
        } else {
            if (job->accumulate) sum = N(load)(c + v * LANES) + sum;
            N(store)(c + v * LANES, sum);
        }
    }
}
#define CHAIN(nv, tail)                                                                                                \
    static __attribute__((noinline)) void N(chain_##nv##_##tail)(const N(chain_job) *job, int wide) {                  \
        if (wide)                                                                                                      \
            N(chain)(job, nv, tail, 1, 1);                                                                             \
        else if (job->far)                                                                                             \
            N(chain)(job, nv, tail, 0, 1);                                                                             \
        else                                                                                                           \
            N(chain)(job, nv, tail, 0, 0);                                                                             \
    }
CHAIN(8, 0)
CHAIN(4, 0)
CHAIN(2, 0)
CHAIN(1, 0)
CHAIN(1, 1)

/* c[0..n_cols) from the job's entries: as many columns at once as the registers hold. */
static void N(run_chain)(N(chain_job) *job, ptrdiff_t n_cols, int wide) {
    const N(chain_job) first = *job;
    for (ptrdiff_t j = 0; j < n_cols;) {
        const ptrdiff_t left = n_cols - j;
        job->b = first.b + j;
        job->c = first.c + j;
        if (left >= 8 * LANES)
            N(chain_8_0)(job, wide), j += 8 * LANES;
        else if (left >= 4 * LANES)
            N(chain_4_0)(job, wide), j += 4 * LANES;
        else if (left >= 2 * LANES)
            N(chain_2_0)(job, wide), j += 2 * LANES;
        else if (left >= LANES)
            N(chain_1_0)(job, wide), j += LANES;
        else {
            job->last = left;
            N(chain_1_1)(job, wide), j += left;
        }
    }
    *job = first;
}

/* Z = X W + b for n_rows rows of entries: blocks of W one after the other, each for all rows while it is in cache. */
static void N(sparse_forward)(const fnn_entries *x, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *weights,
                              const void *bias_, ptrdiff_t fan_out, void *z_, ptrdiff_t ldz) {
    const REAL *bias = bias_;
    for (ptrdiff_t r0 = 0; r0 < n_rows; r0 += FNN_BLOCK) {
        const ptrdiff_t m = N(least)(FNN_BLOCK, n_rows - r0);
        REAL *z = (REAL *)z_ + r0 * ldz;
        ptrdiff_t begin[FNN_BLOCK] = {0}, end[FNN_BLOCK];
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            for (ptrdiff_t r = 0; r < m; r++)
                end[r] = N(entries_below)(x->index[r0 + r], begin[r], N(least)(x->count[r0 + r], begin[r] + FNN_BLOCK),
                                          k0 + FNN_BLOCK, x->wide);
            for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += 8 * LANES)
                for (ptrdiff_t r = 0; r < m; r++) {
                    N(chain_job) job;
                    job.index = x->index[r0 + r], job.value = x->value[r0 + r], job.begin = begin[r], job.end = end[r];
                    job.b = (const REAL *)weights + j0, job.ldb = fan_out, job.last = 0;
                    job.c = z + r * ldz + j0, job.accumulate = k0 > 0, job.far = 1;
                    if (begin[r] < end[r] || k0 == 0) N(run_chain)(&job, N(least)(8 * LANES, fan_out - j0), x->wide);
                }
            for (ptrdiff_t r = 0; r < m; r++) begin[r] = end[r];
        }
        for (ptrdiff_t r = 0; r < m; r++)
            for (ptrdiff_t j = 0; j < fan_out; j += LANES) {
                const ptrdiff_t n = fan_out - j;
                N(store_n)(z + r * ldz + j, N(load_n)(z + r * ldz + j, n) + N(load_n)(bias + j, n), n);
            }
    }
}

/* Columns of the batch that are put side by side at once, and their entries in rising order of the rows. */
#define SPARSE_ENTRIES 8192
#define SPARSE_COLUMNS 512
typedef struct {
    REAL value[SPARSE_ENTRIES];
    int32_t row[SPARSE_ENTRIES];
    int32_t start[SPARSE_COLUMNS + 1];
    int32_t unused;
    ptrdiff_t cursor[FNN_BLOCK];
    REAL block[FNN_SPARSE_UNIT * BLOCK_COLS];
    REAL work[BLOCK_COLS];
} N(sparse_scratch);
_Static_assert(sizeof(N(sparse_scratch)) <= FNN_GRADIENT_BYTES, "scratch for sparse gradients");

/* Entries of columns [k0, k1) of rows [r0, r0 + n), column by column. follow: cursors stand at k0, as the columns before
 * left them. */
INLINE void N(turn_entries)(const fnn_entries *x, ptrdiff_t r0, ptrdiff_t n, ptrdiff_t k0, ptrdiff_t k1, int follow,
                            const int wide, N(sparse_scratch) *s) {
    memset(s->start, 0, (size_t)(k1 - k0 + 1) * sizeof *s->start);
    for (ptrdiff_t r = 0; r < n; r++) {
        const void *index = x->index[r0 + r];
        const ptrdiff_t count = x->count[r0 + r];
        if (!follow) s->cursor[r] = N(entries_below)(index, 0, count, k0, wide);
        ptrdiff_t k;
        for (ptrdiff_t p = s->cursor[r]; p < count && (k = N(index_at)(index, p, wide)) < k1; p++) s->start[k - k0 + 1]++;
    }
    /* start[c + 1]: where column c begins; once filled, where it ends, which is where the next begins */
    int32_t total = 0;
    for (ptrdiff_t c = 1; c <= k1 - k0; c++) {
        int32_t here = s->start[c];
        s->start[c] = total;
        total += here;
    }
    for (ptrdiff_t r = 0; r < n; r++) {
        const void *index = x->index[r0 + r];
        const REAL *value = x->value[r0 + r];
        const ptrdiff_t count = x->count[r0 + r];
        ptrdiff_t p = s->cursor[r], k;
        for (; p < count && (k = N(index_at)(index, p, wide)) < k1; p++) {
            int32_t at = s->start[k - k0 + 1]++;
            s->row[at] = (int32_t)r;
            s->value[at] = value[p];
        }
        s->cursor[r] = p;
    }
}

/* dense_gradient for rows of entries: job->input_rows is not read. Units are FNN_SPARSE_UNIT rows of W. */
static void N(sparse_gradient)(const fnn_gradient *job, const fnn_entries *x, ptrdiff_t unit_begin, ptrdiff_t unit_end,
                               void *scratch) {
    N(sparse_scratch) *s = scratch;
    const ptrdiff_t n_rows = job->n_rows, fan_out = job->fan_out;
    const ptrdiff_t k_end = N(least)(unit_end * FNN_SPARSE_UNIT, job->fan_in);
    /* a whole number of units; more than one block of rows: one unit, so that its sums can wait for each other */
    ptrdiff_t width = FNN_SPARSE_UNIT;
    if (n_rows <= FNN_BLOCK)
        width = N(least)(SPARSE_ENTRIES / (n_rows ? n_rows : 1), SPARSE_COLUMNS) / FNN_SPARSE_UNIT * FNN_SPARSE_UNIT;
    int follow = 0;
    for (ptrdiff_t k0 = unit_begin * FNN_SPARSE_UNIT, k1; k0 < k_end; k0 = k1) {
        k1 = N(least)(k0 + width, k_end);
        for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += BLOCK_COLS) {
            const ptrdiff_t n_cols = N(least)(BLOCK_COLS, fan_out - j0);
            for (ptrdiff_t q0 = k0; q0 < k1; q0 += FNN_SPARSE_UNIT) {
                const ptrdiff_t q1 = N(least)(q0 + FNN_SPARSE_UNIT, k1);
                REAL *g = job->gradient ? (REAL *)job->gradient + q0 * fan_out + j0 : s->block;
                const ptrdiff_t ldg = job->gradient ? fan_out : BLOCK_COLS;
                int more = job->gradient && job->accumulate;
                for (ptrdiff_t r0 = 0; r0 < n_rows || r0 == 0; r0 += FNN_BLOCK) {
                    const ptrdiff_t n = N(least)(FNN_BLOCK, n_rows - r0);
                    if (n_rows > FNN_BLOCK || (j0 == 0 && q0 == k0)) {
                        if (x->wide)
                            N(turn_entries)(x, r0, n, k0, k1, follow, 1, s);
                        else
                            N(turn_entries)(x, r0, n, k0, k1, follow, 0, s);
                        follow = n_rows <= FNN_BLOCK;
                    }
                    for (ptrdiff_t q = q0; q < q1; q++) {
                        N(chain_job) chain;
                        chain.index = s->row, chain.value = s->value;
                        chain.begin = s->start[q - k0], chain.end = s->start[q - k0 + 1];
                        chain.b = (const REAL *)job->delta + r0 * job->ldd + j0, chain.ldb = job->ldd;
                        chain.last = 0, chain.c = g + (q - q0) * ldg, chain.accumulate = more, chain.far = 0;
                        N(run_chain)(&chain, n_cols, 0);
                    }
                    more = 1;
                }
                if (job->optimizer >= 0) N(update_block)(job, q0, j0, q1 - q0, n_cols, g, ldg);
            }
            if (k0 == 0) N(bias_gradient)(job, j0, j0 + n_cols, s->work);
        }
    }
}
