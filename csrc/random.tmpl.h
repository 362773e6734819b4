/* Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror & Shaw 2011, doi:10.1145/2063384.2063405).
 *
 * A number depends on its counter alone, so neither threads nor batches nor restarts can change it. fastnn/rng.py is
 * the same in NumPy and says what each counter word holds. */
#ifndef FNN_PHILOX
#define FNN_PHILOX
#define PHILOX_LANES 8
typedef uint64_t philox_vec __attribute__((vector_size(VECTOR_BYTES)));
enum { PHILOX_PER_VEC = VECTOR_BYTES / 8, PHILOX_VECS = PHILOX_LANES / PHILOX_PER_VEC };
/* Products of the low halves. */
static inline __attribute__((always_inline)) philox_vec philox_multiply(philox_vec a, philox_vec b) {
#if defined(FNN_LEVEL_AVX512)
    return (philox_vec)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(FNN_LEVEL_AVX2)
    return (philox_vec)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(FNN_LEVEL_NEON)
    return (philox_vec)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#elif defined(__SSE2__)
    return (philox_vec)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}
/* Eight counters at once; c[w][l] is word w of counter l, replaced by word w of its random block. The words lie in the
 * low halves; what the high halves hold on the way is never looked at, and cleared at the end. */
static inline __attribute__((always_inline)) void philox(uint64_t seed, uint64_t c[4][PHILOX_LANES]) {
    philox_vec v[4][PHILOX_VECS];
    memcpy(v, c, sizeof v);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    const philox_vec m0 = (philox_vec){0} + 0xD2511F53u, m1 = (philox_vec){0} + 0xCD9E8D57u;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < PHILOX_VECS; i++) {
            philox_vec p0 = philox_multiply(m0, v[0][i]), p1 = philox_multiply(m1, v[2][i]);
            v[0][i] = (p1 >> 32) ^ v[1][i] ^ k0;
            v[1][i] = p1;
            v[2][i] = (p0 >> 32) ^ v[3][i] ^ k1;
            v[3][i] = p0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; w++)
        for (int i = 0; i < PHILOX_VECS; i++) v[w][i] &= 0xffffffffu;
    memcpy(c, v, sizeof v);
}
#endif

/* factor[r, u] = 0 where unit u of row samples[r] is dropped, else 1 / (1 - rate). */
static void N(dropout_factors)(uint64_t seed, uint32_t stream, uint64_t epoch, uint32_t layer, double rate,
                               ptrdiff_t n_rows, const int64_t *samples, ptrdiff_t n_units, void *factor_,
                               ptrdiff_t ldf) {
    REAL *factor = factor_;
    const REAL kept = (REAL)(1 / (1 - rate));
    const uint32_t threshold = (uint32_t)(rate * 4294967296.0);
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        uint64_t row = (uint64_t)samples[r];
        uint32_t high = stream << 28 | (layer & 0xfff) << 16 | (uint32_t)(row >> 32 & 0xffff);
        for (ptrdiff_t u = 0; u < n_units; u += 4 * PHILOX_LANES) {
            uint64_t c[4][PHILOX_LANES];
            for (int l = 0; l < PHILOX_LANES; l++) {
                c[0][l] = (uint32_t)row;
                c[1][l] = (uint64_t)(u / 4 + l) & 0xffffffffu;
                c[2][l] = (uint32_t)epoch;
                c[3][l] = high;
            }
            philox(seed, c);
            ptrdiff_t m = N(least)(4 * PHILOX_LANES, n_units - u);
            for (ptrdiff_t i = 0; i < m; i++) factor[r * ldf + u + i] = c[i % 4][i / 4] >= threshold ? kept : 0;
        }
    }
}

/* draws[2 i], draws[2 i + 1]: 64-bit numbers of block first_block + i of the epoch's shuffle. n_blocks is a multiple of
 * PHILOX_LANES. */
static void N(shuffle_draws)(uint64_t seed, uint64_t epoch, uint64_t first_block, ptrdiff_t n_blocks, uint64_t *draws) {
    for (ptrdiff_t b = 0; b < n_blocks; b += PHILOX_LANES) {
        uint64_t c[4][PHILOX_LANES];
        for (int l = 0; l < PHILOX_LANES; l++) {
            uint64_t block = first_block + (uint64_t)(b + l);
            c[0][l] = (uint32_t)block;
            c[1][l] = (uint32_t)(block >> 32);
            c[2][l] = (uint32_t)epoch;
            c[3][l] = (uint32_t)1 << 28;
        }
        philox(seed, c);
        for (int l = 0; l < PHILOX_LANES; l++) {
            draws[2 * (b + l)] = c[0][l] | c[1][l] << 32;
            draws[2 * (b + l) + 1] = c[2][l] | c[3][l] << 32;
        }
    }
}
