/* Optimizers: the update of a block of parameters from its gradient, and the passes over whole gradients.
 *
 * The gradient that an optimizer sees is scale * (gradient + l2 * w). Parameters, state slots: n_rows rows of n_cols
 * values, ldw elements apart (the slots lds, where they lie otherwise); the gradient likewise with ldg. Lanes are
 * independent: any split gives the same bits.
 *
 * What an update leaves is zero or a normal number: of a weight that has no gradient any more, the momentum would shrink to
 * a subnormal number and, rounded, stay there. */

#define H(k) h[k]
#define OPTIMIZER(name, n_slots, n_scalars, ...)                                                                       \
    case FNN_OPTIMIZER_##name: {                                                                                       \
        V h[n_scalars];                                                                                                \
        for (int k = 0; k < n_scalars; k++) h[k] = K(scalars[k]);                                                      \
        for (ptrdiff_t r = 0; r < n_rows; r++)                                                                         \
            for (ptrdiff_t i = 0; i < n_cols; i += LANES) {                                                            \
                ptrdiff_t m = n_cols - i, at = r * lds + i;                                                            \
                V w = N(load_n)(weights + r * ldw + i, m);                                                             \
                V g = FMA(penalty, w, N(load_n)(gradient + r * ldg + i, m)) * factor;                                  \
                V a = n_slots > 0 ? N(load_n)(slot_a + at, m) : (V){0};                                                \
                V b = n_slots > 1 ? N(load_n)(slot_b + at, m) : (V){0};                                                \
                __VA_ARGS__                                                                                            \
                N(store_n)(weights + r * ldw + i, FLUSH(w), m);                                                        \
                if (n_slots > 0) N(store_n)(slot_a + at, FLUSH(a), m);                                                 \
                if (n_slots > 1) N(store_n)(slot_b + at, FLUSH(b), m);                                                 \
            }                                                                                                          \
        break;                                                                                                         \
    }

static void N(update_apart)(int optimizer, const double *scalars, double l2, double scale, ptrdiff_t n_rows,
                            ptrdiff_t n_cols, const REAL *gradient, ptrdiff_t ldg, REAL *weights, ptrdiff_t ldw,
                            REAL *slot_a, REAL *slot_b, ptrdiff_t lds) {
    const V penalty = K(l2), factor = K(scale);
    switch (optimizer) {
#include "optimizers.def"
    }
}
#undef OPTIMIZER
#undef H

static void N(update)(int optimizer, const double *scalars, double l2, double scale, ptrdiff_t n_rows,
                      ptrdiff_t n_cols, const void *gradient, ptrdiff_t ldg, void *weights, void *slot_a, void *slot_b,
                      ptrdiff_t ldw) {
    N(update_apart)(optimizer, scalars, l2, scale, n_rows, n_cols, gradient, ldg, weights, ldw, slot_a, slot_b, ldw);
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
