/* Vectors of REAL for the instruction set and dtype being compiled. Included once per (isa_*.c, dtype) by
 * kernels.tmpl.h, which defines REAL, IS_FLOAT and N(name); isa_*.c defines FNN_LEVEL_x and VECTOR_BYTES.
 *
 * Everything is written on GNU vector types; intrinsics stand only where C has no operator, or compilers do not find the
 * one instruction: fused multiply-add, square root, blend, bounds, partial loads and stores, float64 sums. The instruction
 * sets with FMA therefore compute the same bits, lane by lane. */

#define LANES ((ptrdiff_t)(VECTOR_BYTES / sizeof(REAL)))
#if IS_FLOAT
#define BITS uint32_t
#define SBITS int32_t
#define LEAST_NORMAL __FLT_MIN__
#else
#define BITS uint64_t
#define SBITS int64_t
#define LEAST_NORMAL __DBL_MIN__
#endif

typedef REAL N(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL N(uvec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef BITS N(bits) __attribute__((vector_size(VECTOR_BYTES)));
typedef SBITS N(sbits) __attribute__((vector_size(VECTOR_BYTES)));
#define V N(vec)

#define INLINE static inline __attribute__((always_inline))

#define FMA(a, b, c) N(fma)(a, b, c)
#define SQRT(a) N(sqrt)(a)
#define SEL(mask, a, b) N(select)((N(sbits))(mask), a, b)
#define ABS(a) N(abs)(a)
#define SIGN(a) N(sign)(a)
#define AT_LEAST(a, lo) N(at_least)(a, lo)
#define AT_MOST(a, hi) N(at_most)(a, hi)
#define CLIP(a, lo, hi) N(at_most)(N(at_least)(a, lo), hi)
#define SEL_NUMBER(a, b) N(select_number)(a, b)
#define FLUSH(a) N(flush)(a, LEAST_NORMAL)
#define FADE(a) N(flush)(a, LEAST_NORMAL * (1 << 24))
#define K(c) N(splat)((REAL)(c))

/* x - 0 keeps the sign of zero, where 0 + x would not. */
INLINE V N(splat)(REAL x) {
    return x - (V){0};
}
INLINE V N(load)(const REAL *p) {
    return *(const N(uvec) *)p;
}
INLINE void N(store)(REAL *p, V x) {
    *(N(uvec) *)p = x;
}
/* x[q] is p[q] in all lanes, for q < 4. */
INLINE void N(splat_four)(const REAL *p, V *x) {
#if defined(FNN_LEVEL_AVX2) && IS_FLOAT /* loads are what the loops that ask for this are short of */
    const __m256 four = _mm256_broadcast_ps((const __m128 *)p);
    x[0] = _mm256_permute_ps(four, 0x00), x[1] = _mm256_permute_ps(four, 0x55);
    x[2] = _mm256_permute_ps(four, 0xaa), x[3] = _mm256_permute_ps(four, 0xff);
#elif defined(FNN_LEVEL_AVX2)
    for (int q = 0; q < 4; q += 2) {
        const __m256d two = _mm256_broadcast_pd((const __m128d *)(p + q));
        x[q] = _mm256_permute_pd(two, 0x0), x[q + 1] = _mm256_permute_pd(two, 0xf);
    }
#else
    for (int q = 0; q < 4; q++) x[q] = N(splat)(p[q]);
#endif
}

#if defined(FNN_LEVEL_AVX2) && IS_FLOAT
#define FNN_X86(op) _mm256_##op##_ps
#elif defined(FNN_LEVEL_AVX2)
#define FNN_X86(op) _mm256_##op##_pd
#elif defined(FNN_LEVEL_AVX512) && IS_FLOAT
#define FNN_X86(op) _mm512_##op##_ps
#elif defined(FNN_LEVEL_AVX512)
#define FNN_X86(op) _mm512_##op##_pd
#elif defined(FNN_LEVEL_NEON) && IS_FLOAT
#define FNN_ARM(op) op##_f32
#elif defined(FNN_LEVEL_NEON)
#define FNN_ARM(op) op##_f64
#endif

/* a where the mask is set, b where it is not. */
INLINE V N(select)(N(sbits) mask, V a, V b) {
#if defined(FNN_LEVEL_AVX2)
    return (V)FNN_X86(blendv)(b, a, (V)mask);
#else
    return (V)((mask & (N(sbits))a) | (~mask & (N(sbits))b));
#endif
}
INLINE V N(select_number)(V a, V b) {
    return SEL(a != a, a, b);
}
INLINE V N(abs)(V a) {
    return (V)((N(bits))a & ((N(bits)){0} + (~(BITS)0 >> 1)));
}
/* -1, 0 or 1; NaN stays NaN. */
INLINE V N(sign)(V a) {
    return SEL(a > K(0), K(1), SEL(a < K(0), K(-1), a * K(0)));
}
/* Zero in place of less than `least`. With subnormal numbers some processors compute a hundred times more slowly. */
INLINE V N(flush)(V a, REAL least) {
    return (V)(~(N(bits))(ABS(a) < K(least)) & (N(bits))a);
}

/* lo where a < lo: NaN stays NaN, since the comparison is false. x86 has just that: max(lo, a) is lo > a ? lo : a. Arm's
 * maximum treats zeros and NaN otherwise. */
INLINE V N(at_least)(V a, V lo) {
#if defined(FNN_X86)
    return (V)FNN_X86(max)(lo, a);
#else
    return SEL(a < lo, lo, a);
#endif
}
INLINE V N(at_most)(V a, V hi) {
#if defined(FNN_X86)
    return (V)FNN_X86(min)(hi, a);
#else
    return SEL(a > hi, hi, a);
#endif
}
/* a * b + c, rounded once; the baseline has no such instruction and rounds twice. */
INLINE V N(fma)(V a, V b, V c) {
#if defined(FNN_X86)
    return (V)FNN_X86(fmadd)(a, b, c);
#elif defined(FNN_ARM)
    return FNN_ARM(vfmaq)(c, a, b);
#else
    return a * b + c;
#endif
}

INLINE V N(sqrt)(V a) {
#if defined(FNN_X86)
    return (V)FNN_X86(sqrt)(a);
#elif defined(FNN_ARM)
    return FNN_ARM(vsqrtq)(a);
#elif defined(__SSE2__) && IS_FLOAT
    return (V)_mm_sqrt_ps(a);
#elif defined(__SSE2__)
    return (V)_mm_sqrt_pd(a);
#else
    for (ptrdiff_t i = 0; i < LANES; i++) a[i] = IS_FLOAT ? (REAL)__builtin_sqrtf((float)a[i]) : (REAL)__builtin_sqrt(a[i]);
    return a;
#endif
}

/* The first n (1..LANES - 1) values at p, zeros after them; nothing beyond them is touched. */
INLINE V N(load_part)(const REAL *p, ptrdiff_t n) {
#if defined(FNN_LEVEL_AVX512) && IS_FLOAT
    return (V)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif defined(FNN_LEVEL_AVX512)
    return (V)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif defined(FNN_LEVEL_AVX2)
    static const SBITS mask[2 * VECTOR_BYTES / sizeof(REAL)] = {-1, -1, -1, -1,
#if IS_FLOAT
                                                                -1, -1, -1, -1
#endif
    };
    return (V)FNN_X86(maskload)(p, _mm256_loadu_si256((const __m256i *)(mask + LANES - n)));
#else
    V x = {0};
    for (ptrdiff_t i = 0; i < LANES - 1; i++)
        if (i < n) x[i] = p[i];
    return x;
#endif
}

INLINE void N(store_part)(REAL *p, V x, ptrdiff_t n) {
#if defined(FNN_LEVEL_AVX512) && IS_FLOAT
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x);
#elif defined(FNN_LEVEL_AVX512)
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), x);
#elif defined(FNN_LEVEL_AVX2) && IS_FLOAT
    /* in pieces: masked stores take some processors as long as twenty others */
    __m128 piece = _mm256_castps256_ps128((__m256)x);
    if (n & 4) {
        _mm_storeu_ps(p, piece);
        piece = _mm256_extractf128_ps((__m256)x, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, piece);
        piece = _mm_movehl_ps(piece, piece);
        p += 2;
    }
    if (n & 1) _mm_store_ss(p, piece);
#elif defined(FNN_LEVEL_AVX2)
    __m128d piece = _mm256_castpd256_pd128((__m256d)x);
    if (n & 2) {
        _mm_storeu_pd(p, piece);
        piece = _mm256_extractf128_pd((__m256d)x, 1);
        p += 2;
    }
    if (n & 1) _mm_store_sd(p, piece);
#else
    for (ptrdiff_t i = 0; i < LANES - 1; i++)
        if (i < n) p[i] = x[i];
#endif
}

/* n values (1..LANES). */
INLINE V N(load_n)(const REAL *p, ptrdiff_t n) {
    return n >= LANES ? N(load)(p) : N(load_part)(p, n);
}
INLINE void N(store_n)(REAL *p, V x, ptrdiff_t n) {
    if (n >= LANES)
        N(store)(p, x);
    else
        N(store_part)(p, x, n);
}

/* sum[l] += x[l] in float64 */
INLINE void N(add_lanes)(double *sum, V x) {
#if !IS_FLOAT
    N(store)(sum, N(load)(sum) + x);
#elif defined(FNN_LEVEL_AVX2) || defined(FNN_LEVEL_AVX512)
    __m128 part[VECTOR_BYTES / 16];
    memcpy(part, &x, sizeof x);
#pragma GCC unroll 4
    for (int i = 0; i < VECTOR_BYTES / 16; i++)
        _mm256_storeu_pd(sum + 4 * i, _mm256_add_pd(_mm256_loadu_pd(sum + 4 * i), _mm256_cvtps_pd(part[i])));
#else
    for (ptrdiff_t l = 0; l < LANES; l++) sum[l] += (double)x[l];
#endif
}
/* sum[l] in REAL */
INLINE V N(lanes_of)(const double *sum) {
#if !IS_FLOAT
    return N(load)(sum);
#else
    V x;
    for (ptrdiff_t l = 0; l < LANES; l++) x[l] = (REAL)sum[l];
    return x;
#endif
}
