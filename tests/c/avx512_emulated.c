/* csrc/isa_avx512.c for machines without AVX-512: the kernels as they are, with 64-byte vectors, 12-row tiles and
 * masked tails, on stand-ins for the AVX-512 intrinsics that they use. Each stand-in does lane by lane what Intel's
 * Intrinsics Guide says. To be linked instead of isa_avx512.c; the processor must have AVX2 and FMA. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "fastnn.h"
#include "layout.h"

#pragma GCC target("avx2,fma")

#define STAND_INS(suffix, real, fma_, sqrt_, mask)                                                                     \
    typedef real wide_##suffix __attribute__((vector_size(64)));                                                       \
    enum { LANES_##suffix = 64 / sizeof(real) };                                                                       \
    static inline wide_##suffix fmadd_##suffix(wide_##suffix a, wide_##suffix b, wide_##suffix c) {                    \
        for (int i = 0; i < LANES_##suffix; i++) a[i] = fma_(a[i], b[i], c[i]);                                        \
        return a;                                                                                                      \
    }                                                                                                                  \
    static inline wide_##suffix root_##suffix(wide_##suffix a) {                                                       \
        for (int i = 0; i < LANES_##suffix; i++) a[i] = sqrt_(a[i]);                                                   \
        return a;                                                                                                      \
    }                                                                                                                  \
    static inline wide_##suffix max_##suffix(wide_##suffix a, wide_##suffix b) {                                       \
        for (int i = 0; i < LANES_##suffix; i++) a[i] = a[i] > b[i] ? a[i] : b[i];                                     \
        return a;                                                                                                      \
    }                                                                                                                  \
    static inline wide_##suffix min_##suffix(wide_##suffix a, wide_##suffix b) {                                       \
        for (int i = 0; i < LANES_##suffix; i++) a[i] = a[i] < b[i] ? a[i] : b[i];                                     \
        return a;                                                                                                      \
    }                                                                                                                  \
    static inline wide_##suffix load_##suffix(mask m, const void *p) {                                                 \
        wide_##suffix x = {0};                                                                                         \
        for (int i = 0; i < LANES_##suffix; i++)                                                                       \
            if (m >> i & 1) x[i] = ((const real *)p)[i];                                                               \
        return x;                                                                                                      \
    }                                                                                                                  \
    static inline void store_##suffix(void *p, mask m, wide_##suffix x) {                                              \
        for (int i = 0; i < LANES_##suffix; i++)                                                                       \
            if (m >> i & 1) ((real *)p)[i] = x[i];                                                                     \
    }
STAND_INS(ps, float, __builtin_fmaf, __builtin_sqrtf, __mmask16)
STAND_INS(pd, double, __builtin_fma, __builtin_sqrt, __mmask8)

typedef uint64_t wide_u64 __attribute__((vector_size(64)));
static inline wide_u64 multiply_low_halves(wide_u64 a, wide_u64 b) {
    return (a & 0xffffffffu) * (b & 0xffffffffu);
}
#define __m512i wide_u64
#define _mm512_mul_epu32 multiply_low_halves
#define _mm512_fmadd_ps fmadd_ps
#define _mm512_fmadd_pd fmadd_pd
#define _mm512_sqrt_ps root_ps
#define _mm512_sqrt_pd root_pd
#define _mm512_max_ps max_ps
#define _mm512_max_pd max_pd
#define _mm512_min_ps min_ps
#define _mm512_min_pd min_pd
#define _mm512_maskz_loadu_ps load_ps
#define _mm512_maskz_loadu_pd load_pd
#define _mm512_mask_storeu_ps store_ps
#define _mm512_mask_storeu_pd store_pd

#define FNN_LEVEL_AVX512 1
#define VECTOR_BYTES 64
#define JOIN(name) name##_avx512
#include "dtypes.tmpl.h"
