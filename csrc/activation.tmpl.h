/* Activations over blocks of rows, and their derivatives in backpropagation.
 *
 * One loop over the whole vectors of all rows, since constants are loaded anew wherever a loop begins; then one over what
 * is left of each row. */

/* y = f(z), (n_rows, n_cols); y may be z itself. */
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name:                                                                                        \
        for (; n > 0; n -= LANES, zs += LANES, ys += LANES) {                                                          \
            if (zs == z_end) zs += ldz - whole, ys += ldy - whole, z_end += ldz;                                       \
            V z = N(load)(zs);                                                                                         \
            N(store)(ys, value);                                                                                       \
        }                                                                                                              \
        for (ptrdiff_t r = 0; part && r < n_rows; r++, z_part += ldz, y_part += ldy) {                                 \
            V z = N(load_part)(z_part, part);                                                                          \
            N(store_part)(y_part, value, part);                                                                        \
        }                                                                                                              \
        break;
static void N(activate)(int activation, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z_, ptrdiff_t ldz, void *y_,
                        ptrdiff_t ldy) {
    const REAL *zs = z_;
    REAL *ys = y_;
    if (ldz == n_cols && ldy == n_cols) n_cols *= n_rows, n_rows = 1;
    const ptrdiff_t part = n_cols % LANES, whole = n_cols - part;
    const REAL *z_end = zs + whole, *z_part = z_end;
    REAL *y_part = ys + whole;
    ptrdiff_t n = n_rows * whole;
    switch (activation) {
#include "activations.def"
    }
}
#undef ACTIVATION

/* delta *= f'(z): z (n_rows, n_cols) with the same stride as y, and not read where the derivative follows from y. */
#define ACTIVATION(name, needs_z, value, derivative)                                                                   \
    case FNN_ACTIVATION_##name:                                                                                        \
        for (; n > 0; n -= LANES, at += LANES, delta += LANES) {                                                       \
            if (at == end) at += ldy - whole, delta += ldd - whole, end += ldy;                                        \
            V y = N(load)(ys + at), z = needs_z ? N(load)(zs + at) : y;                                                \
            (void)y, (void)z;                                                                                          \
            N(store)(delta, N(load)(delta) * (derivative));                                                            \
        }                                                                                                              \
        at = whole;                                                                                                    \
        for (ptrdiff_t r = 0; part && r < n_rows; r++, at += ldy, delta_part += ldd) {                                 \
            V y = N(load_part)(ys + at, part), z = needs_z ? N(load_part)(zs + at, part) : y;                          \
            (void)y, (void)z;                                                                                          \
            N(store_part)(delta_part, N(load_part)(delta_part, part) * (derivative), part);                            \
        }                                                                                                              \
        break;
static void N(activate_backward)(int activation, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z_, const void *y_,
                                 ptrdiff_t ldy, void *delta_, ptrdiff_t ldd) {
    const REAL *zs = z_, *ys = y_;
    REAL *delta = delta_;
    if (ldy == n_cols && ldd == n_cols) n_cols *= n_rows, n_rows = 1;
    const ptrdiff_t part = n_cols % LANES, whole = n_cols - part;
    ptrdiff_t n = n_rows * whole, at = 0, end = whole;
    REAL *delta_part = delta + whole;
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
