/* Vector mathematics: exp, expm1, log, log1p, tanh, erf and what activations and losses build on them.
 *
 * Every lane is computed by the same sequence of IEEE operations and explicit FMAs, so the instruction sets with FMA
 * agree bit for bit. NaN propagates; infinities give their limits; no branch depends on a value. Errors (measured over
 * all float32 values, and over dense random samples for float64) are in csrc/README.md. Polynomials are minimax fits
 * (Remez) of the functions named beside them. */

#if IS_FLOAT
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, held in the low bits */
#define LN2_HIGH 0.693145751953125f
#define LN2_LOW 1.42860682030941723212e-6f
#define EXP_MAX 89.0f
#define EXP_MIN -104.0f
#else
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUND_MAGIC 6755399441055744.0 /* 1.5 * 2^52 */
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW 1.90821492927058770002e-10
#define EXP_MAX 710.0
#define EXP_MIN -746.0
#endif

/* Horner's rule, highest coefficient first. */
#define POLY(x, ...) N(poly)(x, (const REAL[]){__VA_ARGS__}, (int)(sizeof((const REAL[]){__VA_ARGS__}) / sizeof(REAL)))
INLINE V N(poly)(V x, const REAL *c, const int n) {
    V p = K(c[0]);
#pragma GCC unroll 16
    for (int i = 1; i < n; i++) p = FMA(p, x, K(c[i]));
    return p;
}

/* exp(x) = 2^n (1 + p): n returned in bits (unsigned, since it is any number at all where x is NaN), p = expm1 of the
 * remainder in [-ln2/2, ln2/2]. */
INLINE V N(exp_parts)(V x, N(bits) *n_bits) {
    V t = FMA(x, K(1.4426950408889634074), K(ROUND_MAGIC));
    V n = t - K(ROUND_MAGIC);
    *n_bits = (N(bits))t - (N(bits))K(ROUND_MAGIC);
    V r = FMA(n, K(-LN2_HIGH), x);
    r = FMA(n, K(-LN2_LOW), r);
    /* (e^r - 1 - r) / r^2 */
#if IS_FLOAT
    V q = POLY(r, 0x1.6a236cp-10f, 0x1.123a6ap-7f, 0x1.5558f4p-5f, 0x1.55549p-3f, 0x1.fffffcp-2f);
#else
    V q = POLY(r, 0x1.ad7ec8b8eba48p-26, 0x1.28adce4c4785fp-22, 0x1.71df26520a47ap-19, 0x1.a01999ae123b1p-16,
               0x1.a01a0129a328ep-13, 0x1.6c16c1844ad8fp-10, 0x1.1111111127eb6p-7, 0x1.55555555507f2p-5,
               0x1.55555555554f9p-3, 0x1.000000000000ap-1);
#endif
    return FMA(r * r, q, r);
}

INLINE V N(two_to_the)(N(bits) n) {
    return (V)((n + EXPONENT_BIAS) << MANTISSA_BITS);
}

/* n / 2 rounded down, n being negative or not. */
INLINE N(bits) N(halve)(N(bits) n) {
    return ((n + 4096) >> 1) - 2048;
}

/* e^x; 2^n is applied in two halves, so that results below the normal range round once. */
INLINE V N(exp)(V x) {
    N(bits) n;
    V p = N(exp_parts)(CLIP(x, K(EXP_MIN), K(EXP_MAX)), &n);
    N(bits) half = N(halve)(n);
    return (K(1) + p) * N(two_to_the)(half) * N(two_to_the)(n - half);
}

#define SEL_BITS(mask, a, b) (((mask) & (a)) | (~(mask) & (b)))
/* e^x - 1 without cancellation near 0. */
INLINE V N(expm1)(V x) {
    N(bits) n;
    V p = N(exp_parts)(CLIP(x, K(IS_FLOAT ? -20 : -45), K(EXP_MAX)), &n);
    N(bits) half = N(halve)(n);
    V low = N(two_to_the)(half), high = N(two_to_the)(n - half);
    /* 2^n p + (2^n - 1); 2^n in one piece while it has one, else the 1 is far below half an ulp */
    N(bits) normal = (N(bits))((N(sbits))n < EXPONENT_BIAS);
    V scale = N(two_to_the)(normal & n);
    V small = FMA(scale, p, scale - K(1));
    V e = SEL(normal, small, (K(1) + p) * low * high);
    return SEL(ABS(x) < K(IS_FLOAT ? 1e-10 : 1e-20), x, e); /* keeps -0 and subnormals */
}

/* log(m) for m = x / 2^k in [sqrt(1/2), sqrt(2)), plus k ln 2 and a correction c to log(m). log(0) = -inf, log of a
 * negative number = NaN. log(1 + f) = 2 s + s R(s^2), s = f / (2 + f). */
INLINE V N(log_corrected)(V x, V c) {
    N(sbits) subnormal = (N(sbits))(x < K(IS_FLOAT ? 0x1p-126 : 0x1p-1022));
    V scaled = SEL(subnormal, x * K(IS_FLOAT ? 0x1p24 : 0x1p54), x);
    /* exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)) */
    N(sbits) offset = (N(sbits)){0} + (SBITS)(IS_FLOAT ? 0x3f3504f3ll : 0x3fe6a09e667f3bcdll);
    N(bits) biased = (N(bits))scaled - (N(bits))offset + ((BITS)EXPONENT_BIAS << MANTISSA_BITS);
    N(sbits) k = (N(sbits))(biased >> MANTISSA_BITS) - EXPONENT_BIAS;
    V m = (V)((N(bits))scaled - ((N(bits))k << MANTISSA_BITS));
    k = k - (subnormal & ((N(sbits)){0} + (IS_FLOAT ? 24 : 54)));
    /* small integers to REAL: the low bits of ROUND_MAGIC + k hold k */
    V kf = (V)((N(sbits))K(ROUND_MAGIC) + k) - K(ROUND_MAGIC);
    V f = m - K(1);
    V s = f / (K(2) + f);
    V z = s * s;
#if IS_FLOAT
    V r = z * POLY(z, 0x1.e2fddep-3f, 0x1.2438a8p-2f, 0x1.999a7cp-2f, 0x1.555554p-1f);
#else
    V r = z * POLY(z, 0x1.2f0d9409b3015p-3, 0x1.39a0f473b88abp-3, 0x1.7466463275673p-3, 0x1.c71c51e7d6fcbp-3,
                   0x1.2492494217d16p-2, 0x1.999999997fb2dp-2, 0x1.5555555555593p-1);
#endif
    /* f - (f^2/2 - s (f^2/2 + R)), the sum in the order of falling size */
    V half = K(0.5) * f * f;
    V y = FMA(s, half + r, FMA(kf, K(LN2_LOW), c)) - half;
    y = FMA(kf, K(LN2_HIGH), y + f);
    y = SEL(x == K(0), K(-INFINITY), y);
    y = SEL(x == K(INFINITY), x, y);
    return SEL(x < K(0), K(NAN), SEL_NUMBER(x, y));
}

INLINE V N(log)(V x) {
    return N(log_corrected)(x, K(0));
}

/* log(1 + x): the rounding of 1 + x is put back to first order. */
INLINE V N(log1p)(V x) {
    V u = K(1) + x;
    V c = SEL(x < K(1), x - (u - K(1)), K(1) - (u - x)) / u;
    V y = N(log_corrected)(u, SEL(u == K(INFINITY), K(0), c));
    return SEL(ABS(x) < K(IS_FLOAT ? 0x1p-30 : 0x1p-60), x, y);
}

/* x + x^3 P(x^2) near 0, where a quotient would gather too many roundings; 1 - 2 / (e^2|x| + 1) from there on. */
INLINE V N(tanh)(V x) {
    N(bits) n;
    V a = ABS(x);
    V t = x * x;
    /* (tanh(x) / x - 1) / x^2 */
#if IS_FLOAT
    V near = POLY(t, -0x1.950042p-8f, 0x1.582fb6p-6f, -0x1.b90948p-5f, 0x1.110c72p-3f, -0x1.555548p-2f);
#else
    V near = POLY(t, 0x1.a01b37028ffafp-15, -0x1.b4b06b0a24c83p-13, 0x1.2ef6459aa43e8p-11, -0x1.7cd65ec3cb3c6p-10,
                  0x1.d6c31bcedcc42p-9, -0x1.226dc51692215p-7, 0x1.664f44d8bd9bfp-6, -0x1.ba1ba1a875fd5p-5,
                  0x1.11111110fbf94p-3, -0x1.555555555543dp-2);
#endif
    V p = N(exp_parts)(AT_MOST(a + a, K(IS_FLOAT ? 20 : 44)), &n);
    V scale = N(two_to_the)(n);
    V far = K(1) - K(2) / FMA(scale, p, scale + K(1));
    V y = SEL(a < K(0.5625), FMA(a * t, near, a), far);
    N(bits) sign = (N(bits))x & ((N(bits)){0} + ((BITS)1 << (8 * sizeof(REAL) - 1)));
    return (V)((N(bits))y | sign);
}

/* e / (1 + e) below 0, where 1 / (1 + 1 / e) would overflow on its way to a subnormal number. */
INLINE V N(sigmoid)(V x) {
    V e = N(exp)(K(0) - ABS(x));
    return SEL(x < K(0), e, K(1)) / (K(1) + e);
}

/* erf: x + x P(x^2) below 1; 1 - exp(-x^2) Q(1 / (x + 2)) above. */
INLINE V N(erf)(V x) {
    V a = ABS(x);
    V t = x * x;
#if IS_FLOAT
    V p = POLY(t, 0x1.496a5ep-14f, -0x1.a3f71p-11f, 0x1.5405b4p-8f, -0x1.b7f90ep-6f, 0x1.ce2cf8p-4f, -0x1.81273ep-2f,
               0x1.06eba8p-3f);
    a = CLIP(a, K(0), K(4.2));
    V u = K(1) / (a + K(2));
    V q = POLY(u, -0x1.d88b44p+2f, 0x1.45e114p+3f, -0x1.071644p-1f, 0x1.96301cp+0f, 0x1.09f92ap-1f, 0x1.dc928p-10f);
#else
    V p = POLY(t, 0x1.057a03d1dc616p-34, -0x1.386ae2bcada71p-30, 0x1.f7a41d8645ec2p-27, -0x1.5f1d37d91ae3bp-23,
               0x1.b9def1bfeda34p-20, -0x1.f4d1df3c07744p-17, 0x1.f9a321a1435fdp-14, -0x1.c02db3d8ee772p-11,
               0x1.565bcd0db035dp-8, -0x1.b82ce312849a0p-6, 0x1.ce2f21a042b20p-4, -0x1.812746b0379e6p-2,
               0x1.06eba8214db69p-3);
    a = CLIP(a, K(0), K(6.2));
    V u = K(1) / (a + K(2));
    V q = POLY(u, 0x1.2747f9f2cfdf2p+9, -0x1.0a2c6261e1704p+11, 0x1.a03534f37332bp+11, -0x1.64787fa53cde6p+11,
               0x1.4fb7edb3b8556p+10, -0x1.f9e4b59f18d48p+7, -0x1.7c4e9a3b689b0p+5, 0x1.f9d78d95a4bd4p+4,
               -0x1.b6d29ab91b837p+3, 0x1.62993690341afp+2, 0x1.33d88206f4c6bp+1, 0x1.0219b4c666a98p+1,
               0x1.2026a7228e117p+0, 0x1.20ec2b831f5b2p-1, -0x1.153bd74c0eb9cp-19);
#endif
    V tail = K(1) - N(exp)(K(0) - a * a) * q;
    N(bits) sign = (N(bits))x & ((N(bits)){0} + ((BITS)1 << (8 * sizeof(REAL) - 1)));
    V y = SEL(ABS(x) < K(1), FMA(x, p, x), (V)((N(bits))tail | sign));
    return SEL_NUMBER(x, y);
}

/* --- activations built on them --------------------------------------------------------------------------------- */
#define SELU_SCALE 1.0507009873554804934193349852946
#define SELU_ALPHA 1.6732632423543772848170429916717

INLINE V N(softplus)(V z) {
    return SEL(z > K(0), z, SEL_NUMBER(z, K(0))) + N(log1p)(N(exp)(K(0) - ABS(z)));
}
INLINE V N(softsign)(V z) {
    V a = ABS(z);
    V y = z / (K(1) + a);
    return SEL(a == K(INFINITY), SIGN(z), y);
}
INLINE V N(normal_cdf)(V z) {
    return K(0.5) * (K(1) + N(erf)(z * K(0.70710678118654752440)));
}
INLINE V N(normal_pdf)(V z) {
    return K(0.39894228040143267794) * N(exp)(K(-0.5) * z * z);
}
/* z sigmoid(z); the clip keeps -inf * 0 away from a NaN */
INLINE V N(silu)(V z) {
    V s = N(sigmoid)(z);
    return SEL(s == K(0), K(0), z * s);
}
INLINE V N(silu_derivative)(V z) {
    V s = N(sigmoid)(z);
    V c = CLIP(z, K(-EXP_MAX), K(EXP_MAX));
    return s * FMA(c, K(1) - s, K(1));
}
/* n / (n + 2) with n = e^z (e^z + 2): tanh(log(1 + e^z)) without the logarithm */
INLINE V N(tanh_softplus)(V z) {
    V e = N(exp)(CLIP(z, K(EXP_MIN), K(IS_FLOAT ? 20 : 40)));
    V n = e * (e + K(2));
    return n / (n + K(2));
}
INLINE V N(mish_derivative)(V z) {
    V c = CLIP(z, K(EXP_MIN), K(IS_FLOAT ? 20 : 40));
    V e = N(exp)(c);
    V n = e * (e + K(2));
    V t = n / (n + K(2));
    V one_minus_t_squared = (K(2) / (n + K(2))) * (K(1) + t);
    return FMA(c * one_minus_t_squared, e / (K(1) + e), t);
}

/* --- losses built on them ---------------------------------------------------------------------------------------- */
INLINE V N(huber)(V e, V delta) {
    V a = ABS(e);
    return SEL(a > delta, delta * (a - K(0.5) * delta), K(0.5) * e * e);
}
INLINE V N(pinball)(V e, V q) {
    return SEL(e < K(0), (q - K(1)) * e, q * e);
}
/* dL/dy with e = t - y */
INLINE V N(pinball_slope)(V e, V q) {
    return SEL(e > K(0), K(0) - q, SEL(e < K(0), K(1) - q, e * K(0)));
}
/* t log y, 0 where t is 0 */
INLINE V N(xlog)(V t, V y) {
    return SEL(t == K(0), SEL_NUMBER(y, K(0)), t * N(log)(y));
}
/* t / y, 0 where t is 0 */
INLINE V N(ratio)(V t, V y) {
    return SEL(t == K(0), SEL_NUMBER(y, K(0)), t / y);
}
/* Binary cross-entropy of a logit, max(z, 0) - t z + log(1 + e^-|z|): for t = 0 and 1 the first two leave no rounding to
 * drown the third in. */
INLINE V N(logistic_loss)(V z, V t) {
    V positive = SEL(z > K(0), z, SEL_NUMBER(z, K(0)));
    return FMA(-t, z, positive) + N(log1p)(N(exp)(K(0) - ABS(z)));
}
INLINE V N(hinge)(V margin) {
    return SEL(margin < K(1), K(1) - margin, SEL_NUMBER(margin, K(0)));
}

/* A vector function over n values, the tail by the same expression. */
static void N(elementwise)(int function, ptrdiff_t n, const void *xv, void *yv) {
    const REAL *x = xv;
    REAL *y = yv;
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        ptrdiff_t m = n - i;
        V v = N(load_n)(x + i, m), r = v;
        switch (function) {
        case FNN_FUNCTION_exp: r = N(exp)(v); break;
        case FNN_FUNCTION_expm1: r = N(expm1)(v); break;
        case FNN_FUNCTION_log: r = N(log)(v); break;
        case FNN_FUNCTION_log1p: r = N(log1p)(v); break;
        case FNN_FUNCTION_tanh: r = N(tanh)(v); break;
        case FNN_FUNCTION_erf: r = N(erf)(v); break;
        case FNN_FUNCTION_sigmoid: r = N(sigmoid)(v); break;
        }
        N(store_n)(y + i, r, m);
    }
}
