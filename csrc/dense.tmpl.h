/* Dense layers: the three matrix products of a step.
 *
 *   forward    Z[r, j] = sum over k of X[r, k] W[k, j] + b[j]      (n_rows, fan_out)
 *   backward   D[r, k] = sum over j of delta[r, j] W[k, j]         (n_rows, fan_in)
 *   gradient   G[k, j] = sum over r of X[r, k] delta[r, j]         (fan_in, fan_out)
 *
 * Law 1: each element is a chain of fused multiply-adds from +0 over FNN_BLOCK consecutive reduction indices; the block
 * sums are added in order. All three products run on one micro-kernel, `tile`, whose lanes are independent elements.
 * So neither the tile sizes, nor packing, nor which side the lanes run along, nor how work is split can change a bit.
 * NaN and infinity propagate as the chain says. */

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

enum N(tile_flags) { N(TAIL) = 1, N(COLS) = 2 };

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
    const int tail = flags & N(TAIL), cols = flags & N(COLS);
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
                if (job->accumulate) sum = (part ? N(load_part)(to, last) : N(load)(to)) + sum;
                if (job->bias) {
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
#define TILES_OF(mr, nv) TILE(mr, nv, 0) TILE(mr, nv, 1) TILE(mr, nv, 2) TILE(mr, nv, 3)
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
static const N(tile_function) N(tiles)[4][MR][NV] = {{EACH_MR(TILE_ENTRY, 0)},
                                                     {EACH_MR(TILE_ENTRY, 1)},
                                                     {EACH_MR(TILE_ENTRY, 2)},
                                                     {EACH_MR(TILE_ENTRY, 3)}};


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
    flags |= job->last ? N(TAIL) : 0;
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

/* Up to LANES / 2 outputs: lanes run across rows of X instead of across outputs. */
static void N(forward_narrow)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const REAL *w,
                              const REAL *bias, ptrdiff_t fan_out, REAL *z, ptrdiff_t ldz, N(scratch) s) {
    for (ptrdiff_t r0 = 0; r0 < n_rows; r0 += NR) {
        ptrdiff_t m = N(least)(NR, n_rows - r0), ld = N(vectors)(m) * LANES;
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            N(pack_transposed)(rows + r0, m, k0, n, s.panel, ld);
            N(tile_job) job = N(columns_job)(n, w + k0 * fan_out, fan_out, s.panel, ld, s.work, NR, k0 > 0);
            N(run_tiles)(&job, fan_out, m, N(COLS));
        }
        for (ptrdiff_t r = 0; r < m; r++)
            for (ptrdiff_t j = 0; j < fan_out; j++) z[(r0 + r) * ldz + j] = s.work[j * NR + r] + bias[j];
    }
}

/* One to three rows: the weights are read where they lie. */
static void N(forward_few)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const REAL *w, const REAL *bias,
                           ptrdiff_t fan_out, REAL *z, ptrdiff_t ldz) {
    static const N(tile_function) wide[3][2] = {{N(tile_1_8_0), N(tile_1_4_0)},
                                                {N(tile_2_4_0), N(tile_2_4_0)},
                                                {N(tile_3_4_0), N(tile_3_4_0)}};
    for (ptrdiff_t j0 = 0; j0 < fan_out;) {
        ptrdiff_t left = fan_out - j0, width, k0 = 0;
        const ptrdiff_t widest = n_rows == 1 ? 8 * LANES : 4 * LANES;
        N(tile_function) f = 0;
        if (left >= widest)
            f = wide[n_rows - 1][0], width = widest;
        else if (left >= 4 * LANES)
            f = wide[n_rows - 1][1], width = 4 * LANES;
        else if (n_rows == 1 && left <= 3 * LANES) {
            width = left;
            for (; fan_in - k0 >= 2 * FNN_BLOCK;) {
                ptrdiff_t n_blocks = N(least)(4, (fan_in - k0) / FNN_BLOCK), end = k0 + n_blocks * FNN_BLOCK;
                N(tile_job) job = N(rows_job)(FNN_BLOCK, rows, k0, w + k0 * fan_out + j0, fan_out, z + j0, ldz, k0 > 0,
                                              end == fan_in ? bias + j0 : 0);
                job.last = left % LANES;
                N(side_by_side)[n_blocks - 2][N(vectors)(left) - 1](&job);
                k0 = end;
            }
            if (width > NR) f = left % LANES ? N(tile_1_3_1) : N(tile_1_3_0);
        } else
            width = N(least)(NR, left);
        for (; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            N(tile_job) job = N(rows_job)(n, rows, k0, w + k0 * fan_out + j0, fan_out, z + j0, ldz, k0 > 0,
                                          k0 + n == fan_in ? bias + j0 : 0);
            job.last = width % LANES;
            if (f)
                f(&job);
            else
                N(run_tiles)(&job, n_rows, width, 0);
        }
        j0 += width;
    }
}

/* Weights of a small layer stay in L1 as they are; those of a large one lie a power of two apart, and are packed. */
INLINE int N(reads_directly)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    return N(least)(fan_in, FNN_BLOCK) * fan_out * (ptrdiff_t)sizeof(REAL) <= 16384;
}

/* Elements of the packed copy of a layer's weights; 0 where dense_forward would not pack them. */
static ptrdiff_t N(packed_elems)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    if (2 * fan_out <= LANES || N(reads_directly)(fan_in, fan_out)) return 0;
    return fan_in * N(vectors)(fan_out) * LANES;
}

/* Rows [begin, end) of W into the packed copy: panels one after the other, each fan_in rows of NR columns (the last: of as
 * many whole vectors as it needs). */
static void N(pack_weights)(ptrdiff_t fan_in, ptrdiff_t fan_out, ptrdiff_t begin, ptrdiff_t end, const void *weights,
                            void *packed) {
    for (ptrdiff_t j = 0; j < fan_out; j += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j), ld = N(vectors)(width) * LANES;
        N(pack)((const REAL *)weights + begin * fan_out + j, fan_out, end - begin, width,
                (REAL *)packed + j * fan_in + begin * ld, ld);
    }
}

/* The packed copy back into rows and columns. */
static void N(unpack_weights)(ptrdiff_t fan_in, ptrdiff_t fan_out, const void *packed, void *weights) {
    const REAL *panel = packed;
    REAL *w = weights;
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t k = 0; k < fan_in; k++)
            for (ptrdiff_t j = 0; j < width; j += LANES)
                N(store_n)(w + k * fan_out + j0 + j, N(load_n)(panel + k * ld + j, width - j), width - j);
        panel += fan_in * ld;
    }
}

/* Z = X W + b from the packed copy: for layers with packed_elems, and any number of rows. */
static void N(dense_forward_packed)(const void *const *rows_, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *packed,
                                    const void *bias_, ptrdiff_t fan_out, void *z_, ptrdiff_t ldz) {
    const REAL *const *rows = (const REAL *const *)rows_;
    const REAL *panel = packed, *bias = bias_;
    REAL *z = z_;
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            N(tile_job) job = N(rows_job)(n, rows, k0, panel + k0 * ld, ld, z + j0, ldz, k0 > 0,
                                          k0 + n == fan_in ? bias + j0 : 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
        panel += fan_in * ld;
    }
}

/* Z = X W + b. rows: n_rows pointers to fan_in values; weights (fan_in, fan_out), bias (fan_out,), z (n_rows, fan_out)
 * with ldz elements from row to row. */
static void N(dense_forward)(const void *const *rows_, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *weights,
                             const void *bias_, ptrdiff_t fan_out, void *z_, ptrdiff_t ldz, void *scratch) {
    const REAL *const *rows = (const REAL *const *)rows_;
    const REAL *w = weights, *bias = bias_;
    REAL *z = z_;
    N(scratch) s = N(split_scratch)(scratch);
    if (n_rows == 0) return;
    if (2 * fan_out <= LANES && n_rows >= LANES) {
        N(forward_narrow)(rows, n_rows, fan_in, w, bias, fan_out, z, ldz, s);
        return;
    }
    if (n_rows <= 3) {
        N(forward_few)(rows, n_rows, fan_in, w, bias, fan_out, z, ldz);
        return;
    }
    const int direct = N(reads_directly)(fan_in, fan_out);
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            const REAL *block = w + k0 * fan_out + j0;
            if (!direct) N(pack)(block, fan_out, n, width, s.panel, ld);
            N(tile_job) job = N(rows_job)(n, rows, k0, direct ? block : s.panel, direct ? fan_out : ld, z + j0, ldz,
                                          k0 > 0, k0 + n == fan_in ? bias + j0 : 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
    }
}

/* D = delta W^T: the gradient to the layer's inputs. delta_rows: n_rows pointers to fan_out values; d_input
 * (n_rows, fan_in) with ldd elements from row to row. */
static void N(dense_backward)(const void *const *delta_rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *weights,
                              ptrdiff_t fan_out, void *d_input, ptrdiff_t ldd, void *scratch) {
    const REAL *const *rows = (const REAL *const *)delta_rows;
    const REAL *w = weights;
    REAL *d = d_input;
    N(scratch) s = N(split_scratch)(scratch);
    if (n_rows == 0) return;
    for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_in - k0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t i = 0; i < width; i++) s.pointers[i] = w + (k0 + i) * fan_out;
        for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_out - j0);
            N(pack_transposed)(s.pointers, width, j0, n, s.panel, ld);
            N(tile_job) job = N(rows_job)(n, rows, j0, s.panel, ld, d + k0, ldd, j0 > 0, 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
    }
}

/* --- gradient ------------------------------------------------------------------------------------------------------ */
/* Units of work of dense_gradient: MR rows of W by a group of panels; for few outputs, panels of rows of W. Neighbours
 * are computed together, a block at a time; units are small so that threads can share the work evenly. */
static int N(gradient_is_narrow)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    return 2 * fan_out <= LANES && fan_in >= LANES;
}
static ptrdiff_t N(gradient_units)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    if (N(gradient_is_narrow)(fan_in, fan_out)) return (fan_in + NR - 1) / NR;
    return ((fan_out + BLOCK_COLS - 1) / BLOCK_COLS) * N(n_tiles)(fan_in);
}

/* Columns of n_cols <= 4 * LANES summed over the rows [r0, r1): as many chains side by side as there are vectors. */
INLINE void N(sum_columns)(const REAL *delta, ptrdiff_t ldd, ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t n_cols, V *sums) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sums[v] = (V){0};
    if (n_cols == 4 * LANES) {
        for (ptrdiff_t r = r0; r < r1; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sums[v] = sums[v] + N(load)(delta + r * ldd + v * LANES);
    } else {
        for (ptrdiff_t v = 0; v * LANES < n_cols; v++)
            for (ptrdiff_t r = r0; r < r1; r++)
                sums[v] = sums[v] + N(load_n)(delta + r * ldd + v * LANES, n_cols - v * LANES);
    }
}

/* g[j] = sum over rows of delta[r, j]: the same chain as a row of inputs that are all 1. */
static void N(bias_gradient)(const fnn_gradient *job, ptrdiff_t j0, ptrdiff_t j1, REAL *work) {
    REAL *g = job->bias_gradient ? (REAL *)job->bias_gradient + j0 : work;
    const int more = job->bias_gradient && job->accumulate;
    for (ptrdiff_t j = j0; j < j1; j += 4 * LANES) {
        const REAL *delta = (const REAL *)job->delta + j;
        const ptrdiff_t n_cols = N(least)(4 * LANES, j1 - j);
        REAL *to = g + (j - j0);
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            V sums[4];
            N(sum_columns)(delta, job->ldd, r0, N(least)(r0 + FNN_BLOCK, job->n_rows), n_cols, sums);
            for (ptrdiff_t v = 0, m; (m = n_cols - v * LANES) > 0; v++)
                N(store_n)(to + v * LANES, r0 > 0 || more ? N(load_n)(to + v * LANES, m) + sums[v] : sums[v], m);
        }
    }
    if (job->optimizer >= 0)
        N(update)(job->optimizer, job->scalars, 0, 1, 1, j1 - j0, g, 0, (REAL *)job->bias + j0,
                  job->bias_a ? (REAL *)job->bias_a + j0 : 0, job->bias_b ? (REAL *)job->bias_b + j0 : 0, 0);
}

/* The finished gradient of n_rows rows and `width` columns of a panel meets the optimizer. One function for whole panels,
 * of a width known to the compiler, and one for others. */
#define UPDATE_PANEL(name, width)                                                                                      \
    static void N(name)(const fnn_gradient *job, ptrdiff_t n_rows, ptrdiff_t n_cols, const REAL *g, ptrdiff_t ldg,     \
                        REAL *w, ptrdiff_t ldw, REAL *copy, ptrdiff_t ldcopy, REAL *a, REAL *b, ptrdiff_t lds) {       \
        (void)n_cols;                                                                                                  \
        N(update_rows)(job->optimizer, job->scalars, K(job->l2), K(1), n_rows, width, g, ldg, w, ldw, copy, ldcopy, a, \
                       b, lds);                                                                                        \
    }
UPDATE_PANEL(update_whole_panel, NR)
UPDATE_PANEL(update_panel, n_cols)

/* The finished gradient of n_rows rows from k0 and n_cols columns from j0 of W: the parameters, and their packed copy. */
static void N(update_block)(const fnn_gradient *job, ptrdiff_t k0, ptrdiff_t j0, ptrdiff_t n_rows, ptrdiff_t n_cols,
                            const REAL *g, ptrdiff_t ldg) {
    for (ptrdiff_t j = j0; j < j0 + n_cols; j += NR) {
        const ptrdiff_t width = N(least)(NR, j0 + n_cols - j), ld = N(vectors)(width) * LANES, at = k0 * job->fan_out + j;
        REAL *copy = job->packed ? (REAL *)job->packed + j * job->fan_in + k0 * ld : 0;
        REAL *w = job->packed_only ? copy : (REAL *)job->weights + at;
        (width == NR ? N(update_whole_panel) : N(update_panel))(
            job, n_rows, width, g + (j - j0), ldg, w, job->packed_only ? ld : job->fan_out, job->packed_only ? 0 : copy, ld,
            job->weight_a ? (REAL *)job->weight_a + at : 0, job->weight_b ? (REAL *)job->weight_b + at : 0, job->fan_out);
    }
}

/* Columns [k0, k0 + m) of n input rows, side by side with ld elements, whole vectors, from row to row. */
static void N(pack_columns)(const REAL *const *x, ptrdiff_t n, ptrdiff_t k0, ptrdiff_t m, REAL *to, ptrdiff_t ld) {
    for (ptrdiff_t p = 0; p < n; p++) {
        const REAL *from = x[p] + k0;
        ptrdiff_t i = 0;
        for (; i + LANES <= m; i += LANES) N(store)(to + p * ld + i, N(load)(from + i));
        if (i < m) N(store)(to + p * ld + i, N(load_part)(from + i, m - i));
    }
}

static void N(gradient_narrow)(const fnn_gradient *job, ptrdiff_t unit_begin, ptrdiff_t unit_end, N(scratch) s) {
    const REAL *const *x = (const REAL *const *)job->input_rows;
    const REAL *delta = job->delta;
    const ptrdiff_t fan_out = job->fan_out;
    REAL *tile = s.work, *flat = s.work + (LANES / 2) * NR;
    const int more = job->gradient && job->accumulate;
    for (ptrdiff_t u = unit_begin; u < unit_end; u++) {
        ptrdiff_t k0 = u * NR, m = N(least)(NR, job->fan_in - k0), ld = N(vectors)(m) * LANES;
        REAL *g = job->gradient ? (REAL *)job->gradient + k0 * fan_out : flat;
        /* the tile lies transposed: rows of W are outputs there; block sums join it one by one, whatever the chunks */
        for (ptrdiff_t j = 0; more && j < fan_out; j++)
            for (ptrdiff_t i = 0; i < m; i++) tile[j * NR + i] = g[i * fan_out + j];
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, job->n_rows - r0);
            N(pack_columns)(x + r0, n, k0, m, s.panel, ld);
            N(tile_job) t = N(columns_job)(n, delta + r0 * job->ldd, job->ldd, s.panel, ld, tile, NR, r0 > 0 || more);
            N(run_tiles)(&t, fan_out, m, N(COLS));
        }
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t j = 0; j < fan_out; j++) g[i * fan_out + j] = tile[j * NR + i];
        if (job->optimizer >= 0) {
            const ptrdiff_t at = k0 * fan_out;
            N(update)(job->optimizer, job->scalars, job->l2, 1, 1, m * fan_out, g, 0, (REAL *)job->weights + at,
                      job->weight_a ? (REAL *)job->weight_a + at : 0, job->weight_b ? (REAL *)job->weight_b + at : 0, 0);
        }
        if (u == 0) N(bias_gradient)(job, 0, fan_out, flat);
    }
}

static void N(dense_gradient)(const fnn_gradient *job, ptrdiff_t unit_begin, ptrdiff_t unit_end, void *scratch) {
    const REAL *const *x = (const REAL *const *)job->input_rows;
    const REAL *delta = job->delta;
    if (N(gradient_is_narrow)(job->fan_in, job->fan_out)) {
        N(gradient_narrow)(job, unit_begin, unit_end, N(split_scratch)(scratch));
        return;
    }
    /* a block of input columns, a block of the gradient, a bias gradient */
    REAL *columns = scratch, *block = columns + FNN_BLOCK * BLOCK_ROWS, *work = block + BLOCK_ROWS * BLOCK_COLS;
    const ptrdiff_t n_tiles = N(n_tiles)(job->fan_in);
    for (ptrdiff_t u = unit_begin, n_units; u < unit_end; u += n_units) {
        ptrdiff_t group = u / n_tiles, q = u % n_tiles;
        n_units = N(least)(N(least)(BLOCK_ROWS / MR, n_tiles - q), unit_end - u);
        ptrdiff_t k0 = q * job->fan_in / n_tiles, k1 = (q + n_units) * job->fan_in / n_tiles, height = k1 - k0;
        ptrdiff_t j0 = group * BLOCK_COLS, j1 = N(least)(j0 + BLOCK_COLS, job->fan_out);
        REAL *g = job->gradient ? (REAL *)job->gradient + k0 * job->fan_out + j0 : block;
        ptrdiff_t ldg = job->gradient ? job->fan_out : BLOCK_COLS;
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, job->n_rows - r0);
            /* Rows of the driver's own lie an odd number of cache lines apart: they are read as they are. */
            const int direct = job->ld_input > 0;
            const REAL *a = direct ? x[r0] + k0 : columns;
            if (!direct) N(pack_columns)(x + r0, n, k0, height, columns, BLOCK_ROWS);
            for (ptrdiff_t j = j0; j < j1; j += NR) {
                N(tile_job) t = N(columns_job)(n, a, direct ? job->ld_input : BLOCK_ROWS, delta + r0 * job->ldd + j, job->ldd,
                                               g + (j - j0), ldg, r0 > 0 || (job->gradient && job->accumulate));
                N(run_tiles)(&t, height, N(least)(NR, j1 - j), N(COLS));
            }
        }
        if (job->optimizer >= 0) N(update_block)(job, k0, j0, height, j1 - j0, g, ldg);
        if (q == 0) N(bias_gradient)(job, j0, j1, work);
    }
}
