/* The order of an epoch's rows: Fisher-Yates on counter-based draws (Durstenfeld 1964, doi:10.1145/364520.364540).
 * fastnn/rng.py is the same in NumPy. */
#include "fastnn.h"

/* High 64 bits of a product of 64-bit numbers. */
static uint64_t high_product(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    __extension__ typedef unsigned __int128 wide;
    return (uint64_t)((wide)a * b >> 64);
#else
    const uint64_t low = 0xffffffffu;
    uint64_t middle = (a >> 32) * (b & low) + ((a & low) * (b & low) >> 32);
    uint64_t cross = (a & low) * (b >> 32) + (middle & low);
    return (a >> 32) * (b >> 32) + (middle >> 32) + (cross >> 32);
#endif
}

void fnn_permutation(const fnn_kernels *kernels, uint64_t seed, uint64_t epoch, ptrdiff_t n, int64_t *order) {
    enum { DRAWS = 512, BLOCKS = DRAWS / 2 };
    uint64_t draws[DRAWS];
    for (ptrdiff_t i = 0; i < n; i++) order[i] = i;
    for (ptrdiff_t q = 0; q + 1 < n; q++) {
        if (q % DRAWS == 0) {
            ptrdiff_t wanted = (n - 1 - q + 1) / 2;
            wanted = wanted < BLOCKS ? (wanted + 7) / 8 * 8 : BLOCKS;
            kernels->shuffle_draws(seed, epoch, (uint64_t)q / 2, wanted, draws);
        }
        ptrdiff_t i = n - 1 - q, j = (ptrdiff_t)high_product(draws[q % DRAWS], (uint64_t)i + 1);
        int64_t swapped = order[i];
        order[i] = order[j];
        order[j] = swapped;
    }
}
