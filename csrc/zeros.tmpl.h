/* Products that skip zeros.
 *
 * A link of a chain whose factor is zero leaves its sum as it is, so leaving it out changes no bit (law 1's chains start
 * from +0 and hold no -0 but where a product underflows; the other factor is finite, or training has diverged). Images,
 * one-hot columns and what relu lets through are half zeros, or more. The other values are collected with their places,
 * KEPT_PART links of a chain at a time, and KEPT_COLS columns of the other factor, which stay in L1 for all chains:
 *
 *   c[i, j] = sum over p of value[i, p] * b[at[i, p], j]
 *
 * A multiply-add needs a load of its own here, where a tile of tile.tmpl.h uses one for MR of them: with fewer than a
 * quarter of zeros that is slower. Loads are what is short, so places are read two at a time, values four at a time. */

/* Panels of NR columns side by side: enough that no multiply-add waits for another. Two, where a layer has no more or as many
 * are left, do wait, and then a third as many values may be other than zero. */
#define KEPT_PANELS 4
#define KEPT_COLS (KEPT_PANELS * NR)
#define KEPT_HALF (2 * NR)
/* Links at once: their rows of b fill half of a first-level cache. A divisor of FNN_BLOCK. */
#define KEPT_PART (16384 / (KEPT_PANELS * NV * VECTOR_BYTES))
/* Chains whose values are collected together. */
#define KEPT_ROWS 64
/* Elements from one of a block's rows of b to the next, at most: places are bytes, and fit in an int32_t. */
#define KEPT_APART ((ptrdiff_t)1 << 20)

#if defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)
/* Which of eight lanes the bits of m keep, in order: four bits each, the first in the lowest. */
#ifndef FNN_KEPT_LANES
#define FNN_KEPT_LANES
#define BIT(m, b) ((m) >> (b)&1u)
#define KEPT_7(m) (7u * BIT(m, 7))
#define KEPT_6(m) (KEPT_7(m) << 4 * BIT(m, 6) | 6u * BIT(m, 6))
#define KEPT_5(m) (KEPT_6(m) << 4 * BIT(m, 5) | 5u * BIT(m, 5))
#define KEPT_4(m) (KEPT_5(m) << 4 * BIT(m, 4) | 4u * BIT(m, 4))
#define KEPT_3(m) (KEPT_4(m) << 4 * BIT(m, 3) | 3u * BIT(m, 3))
#define KEPT_2(m) (KEPT_3(m) << 4 * BIT(m, 2) | 2u * BIT(m, 2))
#define KEPT_1(m) (KEPT_2(m) << 4 * BIT(m, 1) | 1u * BIT(m, 1))
#define KEPT(m) (KEPT_1(m) << 4 * BIT(m, 0))
#define KEPT_4_OF(m) KEPT(m), KEPT(m + 1u), KEPT(m + 2u), KEPT(m + 3u)
#define KEPT_16_OF(m) KEPT_4_OF(m), KEPT_4_OF(m + 4u), KEPT_4_OF(m + 8u), KEPT_4_OF(m + 12u)
#define KEPT_64_OF(m) KEPT_16_OF(m), KEPT_16_OF(m + 16u), KEPT_16_OF(m + 32u), KEPT_16_OF(m + 48u)
static const uint32_t fnn_kept_lanes[256] = {KEPT_64_OF(0u), KEPT_64_OF(64u), KEPT_64_OF(128u), KEPT_64_OF(192u)};
#undef BIT
#endif
#endif

/* The values among n at x that are not zero, in order, and `step` times their places; how many. value may be x. */
static int32_t N(keep)(const REAL *x, ptrdiff_t n, ptrdiff_t step, REAL *value, int32_t *at) {
    ptrdiff_t kept = 0, k = 0;
    /* whole vectors are written where the kept lanes go: kept <= k, so they end among what was read */
#if (defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)) && IS_FLOAT
    const __m256i shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), steps = _mm256_set1_epi32((int)step);
    for (; k + 8 <= n; k += 8) {
        const __m256 v = _mm256_loadu_ps(x + k);
        const int mask = _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
        __m256i lanes = _mm256_srlv_epi32(_mm256_set1_epi32((int)fnn_kept_lanes[mask]), shifts);
        _mm256_storeu_ps(value + kept, _mm256_permutevar8x32_ps(v, lanes));
        lanes = _mm256_add_epi32(_mm256_and_si256(lanes, _mm256_set1_epi32(7)), _mm256_set1_epi32((int)k));
        _mm256_storeu_si256((__m256i *)(at + kept), _mm256_mullo_epi32(lanes, steps));
        kept += __builtin_popcount((unsigned)mask);
    }
#elif defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)
    const __m128i shifts = _mm_setr_epi32(0, 4, 8, 12), steps = _mm_set1_epi32((int)step);
    for (; k + 4 <= n; k += 4) {
        const __m256d v = _mm256_loadu_pd(x + k);
        const int mask = _mm256_movemask_pd(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_NEQ_UQ));
        __m128i lanes = _mm_srlv_epi32(_mm_set1_epi32((int)fnn_kept_lanes[mask]), shifts);
        lanes = _mm_and_si128(lanes, _mm_set1_epi32(3));
        /* a lane is two halves to the permutation: 2 l and 2 l + 1 */
        __m256i halves = _mm256_slli_epi64(_mm256_cvtepu32_epi64(lanes), 1);
        halves = _mm256_or_si256(halves, _mm256_slli_epi64(halves, 32));
        halves = _mm256_or_si256(halves, _mm256_set1_epi64x((long long)1 << 32));
        _mm256_storeu_si256((__m256i *)(value + kept), _mm256_permutevar8x32_epi32(_mm256_castpd_si256(v), halves));
        lanes = _mm_mullo_epi32(_mm_add_epi32(lanes, _mm_set1_epi32((int)k)), steps);
        _mm_storeu_si128((__m128i *)(at + kept), lanes);
        kept += __builtin_popcount((unsigned)mask);
    }
#endif
    for (; k < n; k++) {
        const REAL v = x[k];
        value[kept] = v;
        at[kept] = (int32_t)(k * step);
        kept += v != 0;
    }
    return (int32_t)kept;
}

/* How many of n_cols columns skip the zeros of the rows' columns [k0, k0 + n): groups of panels, where a sample of them holds
 * no more than a share `density` of other values. */
static ptrdiff_t N(kept_cols)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t k0, ptrdiff_t n, ptrdiff_t n_cols,
                              double density) {
    const ptrdiff_t n_sample = N(least)((n_rows + 7) / 8, 8);
    N(sbits) zeros = {0};
    ptrdiff_t seen = 0, others, kept = 0;
    if (density < 0 || n_cols < KEPT_HALF) return 0;
    for (ptrdiff_t i = 0; i < n_sample; i++) {
        const REAL *x = rows[i * n_rows / n_sample] + k0;
        for (ptrdiff_t k = 0; k + LANES <= n; k += LANES, seen += LANES) zeros += (N(sbits))(N(load)(x + k) == (V){0});
    }
    others = seen;
    for (ptrdiff_t l = 0; l < LANES; l++) others += (ptrdiff_t)zeros[l]; /* -1 for each */
    const double most = density * (double)seen;
    if ((double)others <= most) kept = n_cols / KEPT_COLS * KEPT_COLS;
    if (3 * (double)others <= most && n_cols - kept >= KEPT_HALF) kept += KEPT_HALF;
    return kept;
}

/* Where scratch holds the values of up to KEPT_ROWS chains, their places and how many there are, part after part. */
typedef struct {
    REAL value[KEPT_ROWS * FNN_BLOCK];
    REAL chain[KEPT_ROWS * BLOCK_COLS]; /* sums of blocks that are not at their end */
    REAL turned[KEPT_PART * KEPT_COLS];
    int32_t at[KEPT_ROWS * FNN_BLOCK];
    int32_t count[KEPT_ROWS * FNN_BLOCK / KEPT_PART];
} N(kept);
INLINE N(kept) * N(kept_scratch)(void *scratch) {
    return (N(kept) *)((char *)scratch + FNN_KEPT_AT);
}
_Static_assert(sizeof(N(kept)) <= FNN_KEPT_BYTES, "scratch for kept values");
_Static_assert(KEPT_COLS <= BLOCK_COLS && BLOCK_ROWS <= KEPT_ROWS && FNN_BLOCK % KEPT_PART == 0, "sizes of parts");

typedef struct {
    const REAL *value; /* of chain i at value[i * KEPT_PART] and at[i * KEPT_PART], in bytes from b; count[i] of them */
    const int32_t *at, *count;
    ptrdiff_t n_chains;
    const REAL *b;
    ptrdiff_t panel;  /* elements from one panel of b to the next */
    REAL *chain;      /* sums so far of the block, KEPT_COLS for each chain */
    int begins, ends; /* the block: without, it goes on from `chain`, stays there */
    REAL *c;
    ptrdiff_t ldc;
    int accumulate;   /* add the block to what c holds */
    const REAL *bias; /* added last, or NULL */
} N(kept_job);

/* n links of all sums: 1, 2 or 4 values x, in all lanes, and the places of their rows of b. */
INLINE void N(kept_links)(V *acc, const int n, const V *x, const int32_t *at, const char *const *b, const int nv,
                          const int beside) {
    ptrdiff_t row[4] = {*at};
    for (int q = 0; q + 2 <= n; q += 2) {
        uint64_t two;
        memcpy(&two, at + q, sizeof two);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        two = two << 32 | two >> 32;
#endif
        row[q] = (ptrdiff_t)(uint32_t)two, row[q + 1] = (ptrdiff_t)(two >> 32);
    }
#pragma GCC unroll 4
    for (int q = 0; q < n; q++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) {
            const REAL *w = (const REAL *)(b[beside ? 0 : v / NV] + row[q]) + (beside ? v : v % NV) * LANES;
            acc[v] = FMA(x[q], N(load)(w), acc[v]);
        }
}

/* The columns of n_panels panels, of all chains. beside: a row's panels follow each other. */
INLINE void N(kept_tile)(const N(kept_job) *job, const int n_panels, const int beside) {
    const int nv = n_panels * NV;
    const int begins = job->begins, accumulate = job->ends && job->accumulate;
    const REAL *bias = job->ends ? job->bias : 0;
    const ptrdiff_t n_chains = job->n_chains, ldc = job->ends ? job->ldc : KEPT_COLS;
    const ptrdiff_t panel = job->panel * (ptrdiff_t)sizeof(REAL);
    const char *b[KEPT_PANELS];
    const REAL *values = job->value, *from = job->chain;
    const int32_t *ats = job->at, *count = job->count;
    REAL *to = job->ends ? job->c : job->chain;
#pragma GCC unroll 4
    for (int q = 0; q < n_panels; q++) b[q] = (const char *)job->b + (beside ? 0 : q * panel);
    for (ptrdiff_t i = 0; i < n_chains; i++, values += KEPT_PART, ats += KEPT_PART, from += KEPT_COLS, to += ldc) {
        const REAL *value = values;
        const int32_t *at = ats;
        int32_t n = count[i];
        V acc[KEPT_PANELS * NV], x[4];
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) acc[v] = begins ? (V){0} : N(load)(from + v * LANES);
        if (n < 4) { /* often so, where little is kept: one branch to foresee */
            for (; n > 0; n--, value++, at++) {
                x[0] = N(splat)(*value);
                N(kept_links)(acc, 1, x, at, b, nv, beside);
            }
        } else {
            if (n & 1) {
                x[0] = N(splat)(*value);
                N(kept_links)(acc, 1, x, at, b, nv, beside);
                value++, at++;
            }
            if (n & 2) {
                x[0] = N(splat)(value[0]), x[1] = N(splat)(value[1]);
                N(kept_links)(acc, 2, x, at, b, nv, beside);
                value += 2, at += 2;
            }
            for (n >>= 2; n > 0; n--, value += 4, at += 4) {
                N(splat_four)(value, x);
                N(kept_links)(acc, 4, x, at, b, nv, beside);
            }
        }
        if (accumulate)
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++) acc[v] = N(load)(to + v * LANES) + acc[v];
        if (bias)
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++) acc[v] = acc[v] + N(load)(bias + v * LANES);
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++) N(store)(to + v * LANES, acc[v]);
    }
}
#define KEPT_TILE(n_panels)                                                                                            \
    static __attribute__((noinline)) void N(kept_tile_apart_##n_panels)(const N(kept_job) *job) {                      \
        N(kept_tile)(job, n_panels, 0);                                                                                \
    }                                                                                                                  \
    static __attribute__((noinline)) void N(kept_tile_beside_##n_panels)(const N(kept_job) *job) {                     \
        N(kept_tile)(job, n_panels, 1);                                                                                \
    }
KEPT_TILE(4)
KEPT_TILE(2)

INLINE void N(kept_tile_apart)(const N(kept_job) *job, ptrdiff_t width) {
    (width == KEPT_COLS ? N(kept_tile_apart_4) : N(kept_tile_apart_2))(job);
}
INLINE void N(kept_tile_beside)(const N(kept_job) *job, ptrdiff_t width) {
    (width == KEPT_COLS ? N(kept_tile_beside_4) : N(kept_tile_beside_2))(job);
}
/* The next columns that are computed together, of n_cols that are left. */
INLINE ptrdiff_t N(kept_width)(ptrdiff_t n_cols) {
    return n_cols >= KEPT_COLS ? KEPT_COLS : KEPT_HALF;
}

INLINE ptrdiff_t N(kept_parts)(ptrdiff_t n) {
    return (n + KEPT_PART - 1) / KEPT_PART;
}
/* The values of columns [k0, k0 + n) of n_rows rows: list i of part q is list q * KEPT_ROWS + i. */
static void N(keep_rows)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t k0, ptrdiff_t n, ptrdiff_t step,
                         N(kept) * s) {
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        if (i + 1 < n_rows)
            for (ptrdiff_t k = 0; k < n; k += 64 / (ptrdiff_t)sizeof(REAL)) __builtin_prefetch(rows[i + 1] + k0 + k);
        for (ptrdiff_t q = 0, k = 0; k < n; q++, k += KEPT_PART) {
            const ptrdiff_t list = q * KEPT_ROWS + i;
            s->count[list] = N(keep)(rows[i] + k0 + k, N(least)(KEPT_PART, n - k), step, s->value + list * KEPT_PART,
                                     s->at + list * KEPT_PART);
        }
    }
}
/* Part q of n_parts, its lists beginning at `list`. */
INLINE N(kept_job) N(kept_part)(N(kept) * s, ptrdiff_t list, ptrdiff_t n_chains, ptrdiff_t q, ptrdiff_t n_parts,
                                REAL *c, ptrdiff_t ldc, int accumulate, const REAL *bias) {
    N(kept_job) job;
    job.value = s->value + list * KEPT_PART, job.at = s->at + list * KEPT_PART, job.count = s->count + list;
    job.n_chains = n_chains, job.chain = s->chain, job.begins = q == 0, job.ends = q == n_parts - 1;
    job.c = c, job.ldc = ldc, job.accumulate = accumulate, job.bias = bias;
    return job;
}

/* n_cols columns, whole panels, of Z = X W + b, over rows [k0, k0 + n) of W: `packed` is at row k0. */
static void N(forward_kept)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, ptrdiff_t k0, ptrdiff_t n,
                            const REAL *packed, ptrdiff_t n_cols, const REAL *bias, REAL *z, ptrdiff_t ldz,
                            N(kept) * s) {
    const ptrdiff_t n_parts = N(kept_parts)(n);
    for (ptrdiff_t r0 = 0; r0 < n_rows; r0 += KEPT_ROWS) {
        const ptrdiff_t m = N(least)(KEPT_ROWS, n_rows - r0);
        N(keep_rows)(rows + r0, m, k0, n, NR * (ptrdiff_t)sizeof(REAL), s);
        for (ptrdiff_t j = 0, width; j < n_cols; j += width) {
            width = N(kept_width)(n_cols - j);
            for (ptrdiff_t q = 0; q < n_parts; q++) {
                N(kept_job) job = N(kept_part)(s, q * KEPT_ROWS, m, q, n_parts, z + r0 * ldz + j, ldz, k0 > 0,
                                               bias ? bias + j : 0);
                job.b = packed + j * fan_in + q * KEPT_PART * NR, job.panel = fan_in * NR;
                N(kept_tile_apart)(&job, width);
            }
        }
    }
}

/* The same of one row x, from the weights as they are. lists: room for the values of a block and their places. */
static void N(forward_kept_one)(const REAL *const *row, ptrdiff_t fan_in, const REAL *w, ptrdiff_t fan_out,
                                ptrdiff_t n_cols, const REAL *bias, REAL *z, void *lists) {
    REAL *value = lists;
    int32_t *at = (int32_t *)(value + FNN_BLOCK), count;
    for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
        const ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
        count = N(keep)(*row + k0, n, fan_out * (ptrdiff_t)sizeof(REAL), value, at);
        for (ptrdiff_t j = 0, width; j < n_cols; j += width) {
            N(kept_job) job;
            width = N(kept_width)(n_cols - j);
            job.value = value, job.at = at, job.count = &count, job.n_chains = 1;
            job.b = w + k0 * fan_out + j, job.panel = NR, job.chain = 0, job.begins = job.ends = 1;
            job.c = z + j, job.ldc = 0, job.accumulate = k0 > 0, job.bias = k0 + n == fan_in ? bias + j : 0;
            N(kept_tile_beside)(&job, width);
        }
    }
}

/* n_cols columns of D = delta W^T, over the outputs [j0, j0 + n). pointers: room for KEPT_COLS of them. */
static void N(backward_kept)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_out, ptrdiff_t j0, ptrdiff_t n,
                             const REAL *w, ptrdiff_t n_cols, REAL *d, ptrdiff_t ldd, const REAL **pointers,
                             N(kept) * s) {
    const ptrdiff_t n_parts = N(kept_parts)(n);
    for (ptrdiff_t r0 = 0; r0 < n_rows; r0 += KEPT_ROWS) {
        const ptrdiff_t m = N(least)(KEPT_ROWS, n_rows - r0);
        N(keep_rows)(rows + r0, m, j0, n, KEPT_COLS * (ptrdiff_t)sizeof(REAL), s);
        for (ptrdiff_t k = 0, width; k < n_cols; k += width) {
            width = N(kept_width)(n_cols - k);
            for (ptrdiff_t i = 0; i < width; i++) pointers[i] = w + (k + i) * fan_out;
            for (ptrdiff_t q = 0; q < n_parts; q++) {
                N(kept_job) job = N(kept_part)(s, q * KEPT_ROWS, m, q, n_parts, d + r0 * ldd + k, ldd, j0 > 0, 0);
                N(pack_transposed)(pointers, width, j0 + q * KEPT_PART, N(least)(KEPT_PART, n - q * KEPT_PART),
                                   s->turned, KEPT_COLS);
                job.b = s->turned, job.panel = NR;
                N(kept_tile_beside)(&job, width);
            }
        }
    }
}

/* The gradient of `height` <= BLOCK_ROWS rows of W from k0 and n_cols columns, over n <= FNN_BLOCK rows of inputs. */
static void N(gradient_kept)(const REAL *const *x, ptrdiff_t n, ptrdiff_t k0, ptrdiff_t height, const REAL *delta,
                             ptrdiff_t ldd, ptrdiff_t n_cols, int accumulate, REAL *g, ptrdiff_t ldg, N(kept) * s) {
    const ptrdiff_t n_parts = N(kept_parts)(n);
    for (ptrdiff_t q = 0; q < n_parts; q++) {
        const ptrdiff_t p = q * KEPT_PART, m = N(least)(KEPT_PART, n - p);
        N(pack_transposed)(x + p, m, k0, height, s->value, KEPT_PART);
        for (ptrdiff_t i = 0; i < height; i++)
            s->count[i] = N(keep)(s->value + i * KEPT_PART, m, ldd * (ptrdiff_t)sizeof(REAL), s->value + i * KEPT_PART,
                                  s->at + i * KEPT_PART);
        for (ptrdiff_t j = 0, width; j < n_cols; j += width) {
            width = N(kept_width)(n_cols - j);
            N(kept_job) job = N(kept_part)(s, 0, height, q, n_parts, g + j, ldg, accumulate, 0);
            job.b = delta + p * ldd + j, job.panel = NR, job.chain = s->chain + j * height;
            N(kept_tile_beside)(&job, width);
        }
    }
}
