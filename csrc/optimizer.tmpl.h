/* Optimizers: the update of a block of parameters from its gradient, and the passes over whole gradients.
 *
 * The gradient that an optimizer sees is scale * (gradient + l2 * w). Parameters, state slots: n_rows rows of n_cols
 * values, ldw elements apart (the slots lds, where they lie otherwise); the gradient likewise with ldg. Lanes are
 * independent: any split gives the same bits. The dependences through one vector are long (a root, a quotient): as many
 * vectors as fit the processor's window must be in flight, so that loops are over whole vectors, of a width known to the
 * compiler where it matters.
 *
 * What an update leaves is zero or a normal number: of a weight that has no gradient any more, the momentum would shrink to
 * a subnormal number and, rounded, stay there. */

/* One vector (m of its values, or all) of each optimizer: g is the gradient, h the scalars of this step. What the parameters
 * become goes to `copy`, too, unless that is NULL. */
#define H(k) h[k]
#define OPTIMIZER(name, n_slots, n_scalars, ...)                                                                       \
    INLINE void N(update_##name)(const V *h, V penalty, V factor, V g, REAL *weights, REAL *copy, REAL *slot_a,        \
                                 REAL *slot_b, ptrdiff_t m) {                                                          \
        V w = N(load_n)(weights, m);                                                                                   \
        g = FMA(penalty, w, g) * factor;                                                                               \
        V a = n_slots > 0 ? N(load_n)(slot_a, m) : (V){0};                                                             \
        V b = n_slots > 1 ? N(load_n)(slot_b, m) : (V){0};                                                             \
        __VA_ARGS__                                                                                                    \
        w = FLUSH(w);                                                                                                  \
        N(store_n)(weights, w, m);                                                                                     \
        if (copy) N(store_n)(copy, w, m);                                                                              \
        if (n_slots > 0) N(store_n)(slot_a, a, m);                                                                     \
        if (n_slots > 1) N(store_n)(slot_b, b, m);                                                                     \
    }
#include "optimizers.def"
#undef OPTIMIZER
#undef H

#define MOST_SCALARS 8
#define OPTIMIZER(name, n_slots, n_scalars, ...)                                                                       \
    case FNN_OPTIMIZER_##name:                                                                                         \
        for (int k = 0; k < n_scalars; k++) h[k] = K(scalars[k]);                                                      \
        _Static_assert(n_scalars <= MOST_SCALARS, "scalars of " #name);                                                \
        break;
INLINE void N(splat_scalars)(int optimizer, const double *scalars, V *h) {
    switch (optimizer) {
#include "optimizers.def"
    }
}
#undef OPTIMIZER

#define OPTIMIZER(name, n_slots, n_scalars, ...)                                                                       \
    case FNN_OPTIMIZER_##name:                                                                                         \
        for (ptrdiff_t r = 0; r < n_rows; r++) {                                                                       \
            ptrdiff_t i = 0;                                                                                           \
            for (; i + LANES <= n_cols; i += LANES)                                                                    \
                N(update_##name)(h, decayed ? penalty * N(load)(decayed + i) : penalty, factor,                        \
                                 N(load)(gradient + i), weights + i, copy ? copy + i : 0,                              \
                                 n_slots > 0 ? slot_a + i : 0, n_slots > 1 ? slot_b + i : 0, LANES);                   \
            if (i < n_cols)                                                                                            \
                N(update_##name)(h, penalty, factor, N(load_part)(gradient + i, n_cols - i), weights + i,              \
                                 copy ? copy + i : 0, n_slots > 0 ? slot_a + i : 0, n_slots > 1 ? slot_b + i : 0,      \
                                 n_cols - i);                                                                          \
            gradient += ldg, weights += ldw;                                                                           \
            if (copy) copy += ldcopy;                                                                                  \
            if (n_slots > 0) slot_a += lds;                                                                            \
            if (n_slots > 1) slot_b += lds;                                                                            \
        }                                                                                                              \
        break;
INLINE void N(update_rows)(int optimizer, const double *scalars, V penalty, const REAL *decayed, V factor,
                           ptrdiff_t n_rows, ptrdiff_t n_cols, const REAL *gradient, ptrdiff_t ldg, REAL *weights,
                           ptrdiff_t ldw, REAL *copy, ptrdiff_t ldcopy, REAL *slot_a, REAL *slot_b, ptrdiff_t lds) {
    V h[MOST_SCALARS];
    N(splat_scalars)(optimizer, scalars, h);
    switch (optimizer) {
#include "optimizers.def"
    }
}
#undef OPTIMIZER

static void N(update)(int optimizer, const double *scalars, double l2, double scale, ptrdiff_t n_rows,
                      ptrdiff_t n_cols, const void *gradient, ptrdiff_t ldg, void *weights, void *slot_a, void *slot_b,
                      ptrdiff_t ldw) {
    N(update_rows)(optimizer, scalars, K(l2), 0, K(scale), n_rows, n_cols, gradient, ldg, weights, ldw, 0, 0, slot_a,
                   slot_b, ldw);
}

/* sum of x^2 in float64: eight chains over the indices modulo 8, added pairwise, whatever the vector width. */
static double N(sum_of_squares)(ptrdiff_t n, const void *x_) {
    const REAL *x = x_;
    double s[8] = {0};
    ptrdiff_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int q = 0; q < 8; q++) s[q] += (double)x[i + q] * (double)x[i + q];
    for (int q = 0; i < n; i++, q++) s[q] += (double)x[i] * (double)x[i];
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

/* y += scale * x */
static void N(add_scaled)(ptrdiff_t n, double scale, const void *x_, void *y_) {
    const REAL *x = x_;
    REAL *y = y_;
    const V factor = K(scale);
    for (ptrdiff_t i = 0; i < n; i += LANES)
        N(store_n)(y + i, FMA(factor, N(load_n)(x + i, n - i), N(load_n)(y + i, n - i)), n - i);
}

/* Whether every value is finite: x * 0 is NaN for the others. */
static int N(all_finite)(ptrdiff_t n, const void *x_) {
    const REAL *x = x_;
    N(sbits) bad = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) bad |= (N(sbits))(N(load_n)(x + i, n - i) * K(0) != K(0));
    SBITS any = 0;
    for (ptrdiff_t l = 0; l < LANES; l++) any |= bad[l];
    return !any;
}
