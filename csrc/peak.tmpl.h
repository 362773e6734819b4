/* A yardstick for benchmarks: fused multiply-adds and nothing else, as many chains as hide the latency on every
 * machine and fit the registers. Each of the values goes through x = x / 2 + 1 / 2, n_rounds times. Returns how many
 * values there are, so that a caller can find out with no round at all (values is then not touched). */
#if defined(FNN_LEVEL_AVX512) || defined(FNN_LEVEL_NEON)
#define CHAINS 24
#else
#define CHAINS 12
#endif

static ptrdiff_t N(fma_chains)(ptrdiff_t n_rounds, void *values) {
    REAL *x = values;
    V chain[CHAINS];
    if (n_rounds < 1) return CHAINS * LANES;
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) chain[i] = N(load)(x + i * LANES);
    for (ptrdiff_t round = 0; round < n_rounds; round++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) chain[i] = FMA(chain[i], K(0.5), K(0.5));
    }
#pragma GCC unroll 24
    for (int i = 0; i < CHAINS; i++) N(store)(x + i * LANES, chain[i]);
    return CHAINS * LANES;
}
