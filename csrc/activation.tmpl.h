/* Activations over blocks of rows, and their derivatives in backpropagation. */

/* y = f(z), (n_rows, n_cols); y may be z itself. */
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name:                                                                                        \
        for (ptrdiff_t r = 0; r < n_rows; r++)                                                                         \
            for (ptrdiff_t j = 0; j < n_cols; j += LANES) {                                                            \
                V z = N(load_n)(zs + r * ldz + j, n_cols - j);                                                         \
                N(store_n)(ys + r * ldy + j, value, n_cols - j);                                                       \
            }                                                                                                          \
        break;
static void N(activate)(int activation, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z_, ptrdiff_t ldz, void *y_,
                        ptrdiff_t ldy) {
    const REAL *zs = z_;
    REAL *ys = y_;
    if (ldz == n_cols && ldy == n_cols) n_cols *= n_rows, n_rows = 1;
    switch (activation) {
#include "activations.def"
    }
}
#undef ACTIVATION

/* delta *= f'(z): z (n_rows, n_cols) with the same stride as y, and not read where the derivative follows from y. */
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name:                                                                                        \
        for (ptrdiff_t r = 0; r < n_rows; r++)                                                                         \
            for (ptrdiff_t j = 0; j < n_cols; j += LANES) {                                                            \
                V y = N(load_n)(ys + r * ldy + j, n_cols - j);                                                         \
                V z = needs_z ? N(load_n)(zs + r * ldy + j, n_cols - j) : y;                                           \
                V d = N(load_n)(delta + r * ldd + j, n_cols - j);                                                      \
                (void)y, (void)z;                                                                                      \
                N(store_n)(delta + r * ldd + j, d * (derivative), n_cols - j);                                         \
            }                                                                                                          \
        break;
static void N(activate_backward)(int activation, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z_, const void *y_,
                                 ptrdiff_t ldy, void *delta_, ptrdiff_t ldd) {
    const REAL *zs = z_, *ys = y_;
    REAL *delta = delta_;
    if (ldy == n_cols && ldd == n_cols) n_cols *= n_rows, n_rows = 1;
    switch (activation) {
#include "activations.def"
    }
}
#undef ACTIVATION

/* y = factor * x; y may be x. */
static void N(multiply)(ptrdiff_t n_rows, ptrdiff_t n_cols, const void *factor, ptrdiff_t ldf, const void *x,
                        ptrdiff_t ldx, void *y, ptrdiff_t ldy) {
    for (ptrdiff_t r = 0; r < n_rows; r++)
        for (ptrdiff_t j = 0; j < n_cols; j += LANES)
            N(store_n)((REAL *)y + r * ldy + j,
                       N(load_n)((const REAL *)factor + r * ldf + j, n_cols - j) *
                           N(load_n)((const REAL *)x + r * ldx + j, n_cols - j),
                       n_cols - j);
}

/* One vector, for code that is not in a loop over a layer. */
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name: return value;
static V N(link_value)(int link, V z) {
    switch (link) {
#include "activations.def"
    }
    return z;
}
#undef ACTIVATION
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name: return derivative;
static V N(link_derivative)(int link, V z, V y) {
    (void)z;
    switch (link) {
#include "activations.def"
    }
    return y;
}
#undef ACTIVATION
