/* The micro-kernel of dense products, and what brings arrays into its order.
 *
 * A tile is mr x nv vectors of c(i, j) = sum over p of a(i, p) b(p, j), each element a chain of fused multiply-adds from +0
 * in the order of p. */

/* Micro-tile: MR rows by NV vectors, as many accumulators as the registers hold. */
#if defined(FNN_LEVEL_AVX512)
#define MR 12
#elif defined(FNN_LEVEL_BASELINE)
#define MR 4
#else
#define MR 6
#endif
#if defined(FNN_LEVEL_NEON)
#define NV 4
#else
#define NV 2
#endif
#define NR (NV * LANES)

/* A block of the gradient: the rows of W and the columns (panels) that are summed, then updated, together. */
#define BLOCK_ROWS FNN_GRADIENT_ROWS
#if defined(FNN_LEVEL_AVX512)
#define BLOCK_PANELS 4
#else
#define BLOCK_PANELS 8
#endif
#define BLOCK_COLS (BLOCK_PANELS * NR)

/* PLAIN: whole vectors, nothing accumulated, no bias. Tiles of small networks are as short as what asks for these. */
enum N(tile_flags) { N(TAIL) = 1, N(COLS) = 2, N(PLAIN) = 4 };

typedef struct {
    ptrdiff_t n;           /* reduction length, at most FNN_BLOCK */
    const REAL *const *a;  /* mr pointers, a(i, p) = a[i][a0 + p] */
    ptrdiff_t a0;
    const REAL *columns;   /* COLS instead: a(i, p) = columns[p * lda + i] */
    ptrdiff_t lda;
    const REAL *b;         /* b(p, j) = b[p * ldb + j] */
    ptrdiff_t ldb;
    ptrdiff_t last;        /* TAIL: columns in the last vector, 1..LANES - 1 */
    REAL *c;               /* c(i, j) = c[i * ldc + j] */
    ptrdiff_t ldc;
    int accumulate;        /* add to what c holds */
    const REAL *bias;      /* added last, or NULL */
    ptrdiff_t repeat;      /* tiles below each other, mr rows each; 0 is one */
} N(tile_job);

INLINE void N(tile)(const N(tile_job) *job, const int mr, const int nv, const int flags) {
    const int tail = flags & N(TAIL), cols = flags & N(COLS), plain = flags & N(PLAIN);
    const ptrdiff_t n = job->n, lda = job->lda, ldb = job->ldb, ldc = job->ldc, last = job->last, a0 = job->a0;
    const REAL *const *a = job->a, *columns = job->columns;
    REAL *c = job->c;
    ptrdiff_t left = job->repeat;
    do {
        V acc[16][8];
        const REAL *row[16], *b = job->b, *column = columns;
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            row[i] = cols ? 0 : a[i] + a0;
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) acc[i][v] = (V){0};
        }
        /* two at a time: where two threads share a core, each has half the instructions that it fetches in a cycle, and
         * multiply-adds are then not what is short */
#pragma GCC unroll 2
        for (ptrdiff_t p = 0; p < n; p++) {
            V bv[8];
            if (mr == 1 && nv == 8) { /* one row: nothing hides the way from the second-level cache */
                const char *ahead = (const char *)(b + 6 * ldb);
#pragma GCC unroll 8
                for (int line = 0; line < nv * VECTOR_BYTES; line += 64) __builtin_prefetch(ahead + line, 0, 3);
            }
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++)
                bv[v] = tail && v == nv - 1 ? N(load_part)(b + v * LANES, last) : N(load)(b + v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < mr; i++) {
                V av = N(splat)(cols ? column[i] : row[i][p]);
#pragma GCC unroll 8
                for (int v = 0; v < nv; v++) acc[i][v] = FMA(av, bv[v], acc[i][v]);
            }
            b += ldb;
            if (cols) column += lda;
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
#pragma GCC unroll 8
            for (int v = 0; v < nv; v++) {
                const int part = tail && v == nv - 1;
                REAL *to = c + i * ldc + v * LANES;
                V sum = acc[i][v];
                if (!plain && job->accumulate) sum = (part ? N(load_part)(to, last) : N(load)(to)) + sum;
                if (!plain && job->bias) {
                    const REAL *bias = job->bias + v * LANES;
                    sum = sum + (part ? N(load_part)(bias, last) : N(load)(bias));
                }
                if (part)
                    N(store_part)(to, sum, last);
                else
                    N(store)(to, sum);
            }
        }
        if (cols)
            columns += mr;
        else
            a += mr;
        c += mr * ldc;
    } while (--left > 0);
}

/* Every field is set by itself: an initializer clears the whole first, which costs as much as a small tile. */
INLINE N(tile_job) N(rows_job)(ptrdiff_t n, const REAL *const *a, ptrdiff_t a0, const REAL *b, ptrdiff_t ldb, REAL *c,
                               ptrdiff_t ldc, int accumulate, const REAL *bias) {
    N(tile_job) job;
    job.n = n, job.a = a, job.a0 = a0, job.b = b, job.ldb = ldb, job.c = c, job.ldc = ldc;
    job.accumulate = accumulate, job.bias = bias, job.columns = 0, job.lda = 0, job.last = 0, job.repeat = 0;
    return job;
}
INLINE N(tile_job) N(columns_job)(ptrdiff_t n, const REAL *columns, ptrdiff_t lda, const REAL *b, ptrdiff_t ldb, REAL *c,
                                  ptrdiff_t ldc, int accumulate) {
    N(tile_job) job = N(rows_job)(n, 0, 0, b, ldb, c, ldc, accumulate, 0);
    job.columns = columns, job.lda = lda;
    return job;
}

typedef void (*N(tile_function))(const N(tile_job) *);

#define TILE(mr, nv, flags)                                                                                            \
    static __attribute__((noinline)) void N(tile_##mr##_##nv##_##flags)(const N(tile_job) *job) {                      \
        N(tile)(job, mr, nv, flags);                                                                                   \
    }
#define TILES_OF(mr, nv) TILE(mr, nv, 0) TILE(mr, nv, 1) TILE(mr, nv, 2) TILE(mr, nv, 3) TILE(mr, nv, 4) TILE(mr, nv, 6)
#if NV == 4
#define TILES(mr) TILES_OF(mr, 1) TILES_OF(mr, 2) TILES_OF(mr, 3) TILES_OF(mr, 4)
#define TILE_ROW(mr, flags)                                                                                            \
    {N(tile_##mr##_1_##flags), N(tile_##mr##_2_##flags), N(tile_##mr##_3_##flags), N(tile_##mr##_4_##flags)}
#else
#define TILES(mr) TILES_OF(mr, 1) TILES_OF(mr, 2)
#define TILE_ROW(mr, flags) {N(tile_##mr##_1_##flags), N(tile_##mr##_2_##flags)}
#endif
#if MR == 4
#define EACH_MR(M, ...) M(1, ##__VA_ARGS__) M(2, ##__VA_ARGS__) M(3, ##__VA_ARGS__) M(4, ##__VA_ARGS__)
#elif MR == 6
#define EACH_MR(M, ...)                                                                                                \
    M(1, ##__VA_ARGS__) M(2, ##__VA_ARGS__) M(3, ##__VA_ARGS__) M(4, ##__VA_ARGS__) M(5, ##__VA_ARGS__)                \
    M(6, ##__VA_ARGS__)
#else
#define EACH_MR(M, ...)                                                                                                \
    M(1, ##__VA_ARGS__) M(2, ##__VA_ARGS__) M(3, ##__VA_ARGS__) M(4, ##__VA_ARGS__) M(5, ##__VA_ARGS__)                \
    M(6, ##__VA_ARGS__) M(7, ##__VA_ARGS__) M(8, ##__VA_ARGS__) M(9, ##__VA_ARGS__) M(10, ##__VA_ARGS__)               \
    M(11, ##__VA_ARGS__) M(12, ##__VA_ARGS__)
#endif
EACH_MR(TILES)
#define TILE_ENTRY(mr, flags) TILE_ROW(mr, flags),
static const N(tile_function) N(tiles)[7][MR][NV] = {
    {EACH_MR(TILE_ENTRY, 0)}, {EACH_MR(TILE_ENTRY, 1)}, {EACH_MR(TILE_ENTRY, 2)},      {EACH_MR(TILE_ENTRY, 3)},
    {EACH_MR(TILE_ENTRY, 4)}, {{0}},                    {EACH_MR(TILE_ENTRY, 6)}};

/* One to three rows against unpacked weights: wider tiles, so that enough chains are in flight. */
TILE(1, 8, 0)
#if NV != 4
TILE(1, 3, 0)
TILE(1, 3, 1)
TILE(1, 4, 0)
TILE(2, 4, 0)
TILE(3, 4, 0)
#endif

/* One row and few outputs: a single chain per output would wait for itself, so the chains of BLOCKS blocks run side by
 * side; their sums are added in the order of the blocks, as always. job->n is FNN_BLOCK. */
INLINE void N(row_blocks)(const N(tile_job) *job, const int n_blocks, const int nv, const int tail) {
    V acc[4][3];
    const REAL *x = job->a[0] + job->a0, *w = job->b;
    const ptrdiff_t ldb = job->ldb, last = job->last;
#pragma GCC unroll 4
    for (int i = 0; i < n_blocks; i++)
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++) acc[i][v] = (V){0};
    for (ptrdiff_t p = 0; p < FNN_BLOCK; p++)
#pragma GCC unroll 4
        for (int i = 0; i < n_blocks; i++) {
            const V xv = N(splat)(x[i * FNN_BLOCK + p]);
            const REAL *b = w + (i * FNN_BLOCK + p) * ldb;
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++) {
                V bv = tail && v == nv - 1 ? N(load_part)(b + v * LANES, last) : N(load)(b + v * LANES);
                acc[i][v] = FMA(xv, bv, acc[i][v]);
            }
        }
#pragma GCC unroll 4
    for (int v = 0; v < nv; v++) {
        const ptrdiff_t m = tail && v == nv - 1 ? last : LANES;
        V sum = job->accumulate ? N(load_n)(job->c + v * LANES, m) + acc[0][v] : acc[0][v];
#pragma GCC unroll 4
        for (int i = 1; i < n_blocks; i++) sum = sum + acc[i][v];
        if (job->bias) sum = sum + N(load_n)(job->bias + v * LANES, m);
        N(store_n)(job->c + v * LANES, sum, m);
    }
}
#define ROW_BLOCKS(n_blocks, nv)                                                                                       \
    static __attribute__((noinline)) void N(row_blocks_##n_blocks##_##nv)(const N(tile_job) *job) {                    \
        if (job->last)                                                                                                 \
            N(row_blocks)(job, n_blocks, nv, 1);                                                                       \
        else                                                                                                           \
            N(row_blocks)(job, n_blocks, nv, 0);                                                                       \
    }
ROW_BLOCKS(2, 1) ROW_BLOCKS(2, 2) ROW_BLOCKS(2, 3) ROW_BLOCKS(3, 1) ROW_BLOCKS(3, 2) ROW_BLOCKS(3, 3)
ROW_BLOCKS(4, 1) ROW_BLOCKS(4, 2) ROW_BLOCKS(4, 3)
static const N(tile_function) N(side_by_side)[3][3] = {
    {N(row_blocks_2_1), N(row_blocks_2_2), N(row_blocks_2_3)},
    {N(row_blocks_3_1), N(row_blocks_3_2), N(row_blocks_3_3)},
    {N(row_blocks_4_1), N(row_blocks_4_2), N(row_blocks_4_3)},
};

/* Vectors needed for n columns, and the columns of the last one where it is not whole (else 0). */
INLINE ptrdiff_t N(vectors)(ptrdiff_t n) {
    return (n + LANES - 1) / LANES;
}
INLINE ptrdiff_t N(least)(ptrdiff_t a, ptrdiff_t b) {
    return a < b ? a : b;
}

/* Tiles are of nearly equal height, n_rows % n_tiles of them one row higher than the others, which follow: no last tile of
 * one row leaves units idle. */
INLINE ptrdiff_t N(n_tiles)(ptrdiff_t n_rows) {
    return (n_rows + MR - 1) / MR;
}

/* All n_rows rows of a product by n_cols <= NR columns. */
static void N(run_tiles)(N(tile_job) *job, ptrdiff_t n_rows, ptrdiff_t n_cols, int flags) {
    job->last = n_cols % LANES;
    flags |= job->last ? N(TAIL) : job->accumulate || job->bias ? 0 : N(PLAIN);
    if (n_rows <= MR) { /* without the divisions */
        job->repeat = 1;
        N(tiles)[flags][n_rows - 1][N(vectors)(n_cols) - 1](job);
        return;
    }
    const ptrdiff_t n_tiles = N(n_tiles)(n_rows), low = n_rows / n_tiles, n_high = n_rows % n_tiles;
    const N(tile_function) *tiles[2];
    for (int i = 0; i < 2; i++) tiles[i] = &N(tiles)[flags][N(least)(low + 1 - i, MR) - 1][N(vectors)(n_cols) - 1];
    if (n_high) {
        job->repeat = n_high;
        (*tiles[0])(job);
        const ptrdiff_t done = n_high * (low + 1);
        if (flags & N(COLS))
            job->columns += done;
        else
            job->a += done;
        job->c += done * job->ldc;
    }
    job->repeat = n_tiles - n_high;
    (*tiles[1])(job);
}

/* to[p, i] = rows[i][k0 + p] for p < n, i < n_rows, `to` with ld columns. */
static void N(pack_transposed)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t k0, ptrdiff_t n, REAL *to,
                               ptrdiff_t ld) {
    ptrdiff_t i = 0;
#if (defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)) && IS_FLOAT
    for (; i + 8 <= n_rows; i += 8) {
        const REAL *s[8];
        for (int q = 0; q < 8; q++) s[q] = rows[i + q] + k0;
        ptrdiff_t p = 0;
        for (; p + 8 <= n; p += 8) {
            __m256 a[8], b[8];
            for (int q = 0; q < 8; q++) a[q] = _mm256_loadu_ps(s[q] + p);
            for (int q = 0; q < 8; q += 2) {
                b[q] = _mm256_unpacklo_ps(a[q], a[q + 1]);
                b[q + 1] = _mm256_unpackhi_ps(a[q], a[q + 1]);
            }
            for (int q = 0; q < 8; q += 4) {
                a[q] = _mm256_shuffle_ps(b[q], b[q + 2], 0x44);
                a[q + 1] = _mm256_shuffle_ps(b[q], b[q + 2], 0xee);
                a[q + 2] = _mm256_shuffle_ps(b[q + 1], b[q + 3], 0x44);
                a[q + 3] = _mm256_shuffle_ps(b[q + 1], b[q + 3], 0xee);
            }
            for (int q = 0; q < 4; q++) {
                _mm256_storeu_ps(to + (p + q) * ld + i, _mm256_permute2f128_ps(a[q], a[q + 4], 0x20));
                _mm256_storeu_ps(to + (p + q + 4) * ld + i, _mm256_permute2f128_ps(a[q], a[q + 4], 0x31));
            }
        }
        for (; p < n; p++)
            for (int q = 0; q < 8; q++) to[p * ld + i + q] = s[q][p];
    }
#elif defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)
    for (; i + 4 <= n_rows; i += 4) {
        const REAL *s[4];
        for (int q = 0; q < 4; q++) s[q] = rows[i + q] + k0;
        ptrdiff_t p = 0;
        for (; p + 4 <= n; p += 4) {
            __m256d a[4], b[4];
            for (int q = 0; q < 4; q++) a[q] = _mm256_loadu_pd(s[q] + p);
            for (int q = 0; q < 4; q += 2) {
                b[q] = _mm256_unpacklo_pd(a[q], a[q + 1]);
                b[q + 1] = _mm256_unpackhi_pd(a[q], a[q + 1]);
            }
            for (int q = 0; q < 2; q++) {
                _mm256_storeu_pd(to + (p + q) * ld + i, _mm256_permute2f128_pd(b[q], b[q + 2], 0x20));
                _mm256_storeu_pd(to + (p + q + 2) * ld + i, _mm256_permute2f128_pd(b[q], b[q + 2], 0x31));
            }
        }
        for (; p < n; p++)
            for (int q = 0; q < 4; q++) to[p * ld + i + q] = s[q][p];
    }
#endif
    for (; i < n_rows; i++)
        for (ptrdiff_t p = 0; p < n; p++) to[p * ld + i] = rows[i][k0 + p];
}

/* to[p, j] = w[p * ldw + j] for p < n, j < n_cols: the rows of a panel side by side, ld a whole number of vectors. */
static void N(pack)(const REAL *w, ptrdiff_t ldw, ptrdiff_t n, ptrdiff_t n_cols, REAL *to, ptrdiff_t ld) {
    if (n_cols == NR) {
        for (ptrdiff_t p = 0; p < n; p++)
            for (ptrdiff_t v = 0; v < NV; v++) N(store)(to + p * ld + v * LANES, N(load)(w + p * ldw + v * LANES));
    } else {
        for (ptrdiff_t p = 0; p < n; p++)
            for (ptrdiff_t j = 0; j < n_cols; j += LANES)
                N(store_n)(to + p * ld + j, N(load_n)(w + p * ldw + j, n_cols - j), n_cols - j);
    }
}

/* Where scratch holds what: a packed panel, pointers to the rows of a panel, and small work. */
typedef struct {
    REAL *panel;
    const REAL **pointers;
    REAL *work;
} N(scratch);
INLINE N(scratch) N(split_scratch)(void *scratch) {
    char *p = scratch;
    N(scratch) s = {(REAL *)p, (const REAL **)(p + FNN_PANEL_BYTES),
                    (REAL *)(p + FNN_PANEL_BYTES + FNN_POINTERS_BYTES)};
    return s;
}
