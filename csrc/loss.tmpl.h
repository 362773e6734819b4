/* Losses on the output layer's pre-activations (logits), and softmax.
 *
 * Lanes run across rows of the batch: a group of LANES rows is turned on its side, (n_outputs, LANES), so that sums over
 * the outputs of a row are taken in their order whatever the vector width, and few outputs waste nothing. */

/* turned[j, l] = x[row l, j]; lanes past the m rows repeat the first. */
INLINE void N(turn)(const REAL *x, ptrdiff_t ldx, ptrdiff_t m, ptrdiff_t n, REAL *turned) {
    const REAL *rows[VECTOR_BYTES / sizeof(REAL)];
#pragma GCC unroll 16
    for (ptrdiff_t l = 0; l < LANES; l++) rows[l] = x + (l < m ? l : 0) * ldx;
    for (ptrdiff_t j = 0; j < n; j++) {
        V column; /* in a register: a vector read after single writes would wait for them */
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++) column[l] = rows[l][j];
        N(store)(turned + j * LANES, column);
    }
}
INLINE void N(turn_back)(const REAL *turned, ptrdiff_t m, ptrdiff_t n, REAL *x, ptrdiff_t ldx) {
    for (ptrdiff_t j = 0; j < n; j++) {
        const V column = N(load)(turned + j * LANES);
        REAL *to = x + j;
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++, to += ldx) {
            if (l == m) break;
            *to = column[l];
        }
    }
}

/* e[j] = exp(z[j] - max), and their sum without the (first) largest, whose e is 1: kept apart, so that log1p sees what
 * is left when one output dominates. The sum is taken in float64. Lane by lane; first[l] is the index of the largest. */
typedef struct {
    V max, rest;
    N(sbits) first;
} N(softmax_sums);
static N(softmax_sums) N(softmax_lanes)(const REAL *z, ptrdiff_t n, REAL *e) {
    N(softmax_sums) s;
    double sum[VECTOR_BYTES / sizeof(REAL)] = {0};
    V max = N(load)(z);
    N(sbits) first = {0};
    for (ptrdiff_t j = 1; j < n; j++) {
        V x = N(load)(z + j * LANES);
        N(sbits) more = (N(sbits))(x > max);
        max = SEL(more, x, max);
        first = SEL_BITS(more, (N(sbits)){0} + (SBITS)j, first);
    }
    for (ptrdiff_t j = 0; j < n; j++) {
        V x = N(exp)(N(load)(z + j * LANES) - max);
        N(store)(e + j * LANES, x);
        x = SEL(first == (SBITS)j, x - K(1), x); /* the largest: 0, or NaN where it is not finite */
        N(add_lanes)(sum, x);
    }
    s.max = max;
    s.rest = N(lanes_of)(sum);
    s.first = first;
    return s;
}

/* y[r, j] = exp(z[r, j]) / sum over i of exp(z[r, i]); y may be z. */
static void N(softmax)(ptrdiff_t n_rows, ptrdiff_t n_outputs, const void *z, ptrdiff_t ldz, void *y, ptrdiff_t ldy,
                       void *scratch) {
    REAL *turned = N(split_scratch)(scratch).work, *e = turned + n_outputs * LANES;
    for (ptrdiff_t r = 0; r < n_rows; r += LANES) {
        ptrdiff_t m = N(least)(LANES, n_rows - r);
        N(turn)((const REAL *)z + r * ldz, ldz, m, n_outputs, turned);
        V total = K(1) + N(softmax_lanes)(turned, n_outputs, e).rest;
        for (ptrdiff_t j = 0; j < n_outputs; j++) N(store)(e + j * LANES, N(load)(e + j * LANES) / total);
        N(turn_back)(e, m, n_outputs, (REAL *)y + r * ldy, ldy);
    }
}

/* softmax + cross-entropy on logits. d[j] = p[j] sum(t) - t[j]; loss = sum over j of t[j] (max - z[j]) + sum(t) log1p(rest). */
static void N(cross_entropy_lanes)(const fnn_loss *job, const int64_t *samples, const REAL *z, const REAL *t,
                                   const REAL *scale, REAL *d, double *sum) {
    const ptrdiff_t n = job->n_outputs;
    N(softmax_sums) s = N(softmax_lanes)(z, n, d);
    V total = K(1) + s.rest, log_rest = N(log1p)(s.rest), factor = N(load)(scale);
    if (job->labels) {
        N(sbits) labels;
        V own = {0}; /* the label's logit */
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++) labels[l] = (SBITS)job->labels[samples[l]];
        /* p - 1 of the largest is -rest / total: no cancellation when the class is nearly certain */
        const V miss = -(s.rest / total) * factor;
        for (ptrdiff_t j = 0; j < n; j++) {
            const N(sbits) is_label = (N(sbits))(labels == (SBITS)j);
            const V p = N(load)(d + j * LANES) / total * factor;
            own = SEL(is_label, N(load)(z + j * LANES), own);
            N(store)(d + j * LANES, SEL(is_label, SEL(s.first == (SBITS)j, miss, p - factor), p));
        }
        N(add_lanes)(sum, s.max - own + log_rest);
        return;
    }
    V weight = {0};
    for (ptrdiff_t j = 0; j < n; j++) {
        V target = N(load)(t + j * LANES);
        weight = weight + target;
        /* max - z may overflow, which must not matter where the target is 0 */
        N(add_lanes)(sum, SEL(target == K(0), K(0), target * (s.max - N(load)(z + j * LANES))));
    }
    N(add_lanes)(sum, weight * log_rest);
    for (ptrdiff_t j = 0; j < n; j++) {
        V p = N(load)(d + j * LANES) / total;
        N(store)(d + j * LANES, FMA(p, weight, K(0) - N(load)(t + j * LANES)) * factor);
    }
}

/* Through the natural link: value and gradient of a vector straight from its logits. 0 where the link is another. */
#define LOSS(name, natural, value, gradient, logit_value, logit_gradient)                                              \
    case FNN_LOSS_##name:                                                                                              \
        if (link != FNN_ACTIVATION_##natural) return 0;                                                                \
        *value_out = logit_value;                                                                                      \
        *gradient_out = logit_gradient;                                                                                \
        return 1;
static __attribute__((noinline)) int N(natural_loss)(int loss, int link, V p, V z, V t, V *value_out, V *gradient_out) {
    (void)p;
    switch (loss) {
#include "losses.def"
    }
    return 0;
}
#undef LOSS
static int N(natural_loss_lanes)(int loss, int link, V p, ptrdiff_t n, const REAL *zt, const REAL *tt, REAL *d,
                                 double *sum) {
    for (ptrdiff_t j = 0; j < n; j++) {
        V value, gradient;
        if (!N(natural_loss)(loss, link, p, N(load)(zt + j * LANES), N(load)(tt + j * LANES), &value, &gradient)) return 0;
        N(add_lanes)(sum, value);
        N(store)(d + j * LANES, gradient);
    }
    return 1;
}
/* Through any other link: dL/dy, to be multiplied by the link's derivative; zt holds outputs y here. */
#define LOSS(name, natural, value, gradient, logit_value, logit_gradient)                                              \
    case FNN_LOSS_##name:                                                                                              \
        for (ptrdiff_t j = 0; j < n; j++) {                                                                            \
            V y = N(load)(yt + j * LANES), t = N(load)(tt + j * LANES);                                                \
            (void)p;                                                                                                   \
            N(add_lanes)(sum, value);                                                                                  \
            N(store)(d + j * LANES, gradient);                                                                         \
        }                                                                                                              \
        break;
static void N(output_loss_lanes)(const fnn_loss *job, V p, ptrdiff_t n, const REAL *yt, const REAL *tt, REAL *d,
                                 double *sum) {
    if (job->loss == FNN_USER) {
        REAL *value = d + n * LANES;
        job->user_loss(n * LANES, yt, tt, value, d);
        for (ptrdiff_t j = 0; j < n; j++) N(add_lanes)(sum, N(load)(value + j * LANES));
        return;
    }
    switch (job->loss) {
#include "losses.def"
    }
}
#undef LOSS

/* One output through its natural link: rows are lanes already, and nothing is turned. Returns 0 where it is another. */
static int N(loss_of_one)(const fnn_loss *job, ptrdiff_t n_rows, const REAL *z, ptrdiff_t ldz, const int64_t *samples,
                          REAL *delta, ptrdiff_t ldd, double *row_loss) {
    const REAL *targets = job->targets;
    const int64_t *labels = job->labels;
    const V share = K(1 / job->total_weight), p = K(job->parameter);
    for (ptrdiff_t r = 0; r < n_rows; r += LANES, z += LANES * ldz, delta += LANES * ldd) {
        const ptrdiff_t m = N(least)(LANES, n_rows - r);
        V logits = {0}, t = {0}, value, gradient;
        const REAL *from = z;
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++, from += ldz) {
            if (l == m) break;
            logits[l] = *from;
            t[l] = labels ? (REAL)(labels[samples[r + l]] == 0) : targets[samples[r + l]];
        }
        if (!N(natural_loss)(job->loss, job->link, p, logits, t, &value, &gradient)) return 0;
        V factor = share;
        for (ptrdiff_t l = 0; job->sample_weight && l < m; l++)
            factor[l] = (REAL)(job->sample_weight[samples[r + l]] / job->total_weight);
        gradient = gradient * factor;
        REAL *to = delta;
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++, to += ldd) {
            if (l == m) break;
            *to = gradient[l];
            row_loss[r + l] = (double)value[l];
        }
    }
    return 1;
}

/* y = link(z) and, later, d = dL/dy turned into dL/dz: n outputs of LANES rows, for every link but softmax. */
static void N(link_lanes)(const fnn_loss *job, ptrdiff_t n, const REAL *zt, REAL *yt) {
    if (job->link == FNN_USER) {
        for (ptrdiff_t j = 0; j < n; j++) N(store)(yt + j * LANES, N(load)(zt + j * LANES));
        job->link_value(n * LANES, yt);
        return;
    }
    for (ptrdiff_t j = 0; j < n; j++) N(store)(yt + j * LANES, N(link_value)(job->link, N(load)(zt + j * LANES)));
}
static void N(link_backward_lanes)(const fnn_loss *job, ptrdiff_t n, const REAL *zt, const REAL *yt, REAL *d) {
    if (job->link == FNN_USER) {
        job->link_derivative(n * LANES, zt, yt, d);
        return;
    }
    for (ptrdiff_t j = 0; j < n; j++)
        N(store)(d + j * LANES, N(load)(d + j * LANES) * N(link_derivative)(job->link, N(load)(zt + j * LANES),
                                                                            N(load)(yt + j * LANES)));
}

/* Loss of each row (float64, not weighted) and delta = dL/dz times the row's share of the batch, weight / total_weight.
 * z (n_rows, n_outputs) logits; samples: n_rows indices into labels or targets; delta (n_rows, n_outputs);
 * row_loss (n_rows,). Scratch holds 5 n_outputs vectors. */
static void N(loss)(const fnn_loss *job, ptrdiff_t n_rows, const void *z_, ptrdiff_t ldz, const int64_t *samples,
                    void *delta_, ptrdiff_t ldd, double *row_loss, void *scratch) {
    const REAL *z = z_, *targets = job->targets;
    REAL *delta = delta_;
    const ptrdiff_t n = job->n_outputs;
    if (n == 1 && job->loss != FNN_LOSS_cross_entropy &&
        N(loss_of_one)(job, n_rows, z, ldz, samples, delta, ldd, row_loss))
        return;
    REAL *zt = N(split_scratch)(scratch).work, *tt = zt + n * LANES, *yt = tt + n * LANES, *d = yt + n * LANES;
    const V parameter = K(job->parameter), share = K(1 / job->total_weight);
    for (ptrdiff_t r = 0; r < n_rows; r += LANES) {
        ptrdiff_t m = N(least)(LANES, n_rows - r);
        int64_t index[VECTOR_BYTES / sizeof(REAL)];
        REAL scale[VECTOR_BYTES / sizeof(REAL)];
        double sum[VECTOR_BYTES / sizeof(REAL)] = {0};
#pragma GCC unroll 16
        for (ptrdiff_t l = 0; l < LANES; l++) index[l] = samples[r + (l < m ? l : 0)];
        N(store)(scale, share);
        for (ptrdiff_t l = 0; job->sample_weight && l < LANES; l++)
            scale[l] = (REAL)(job->sample_weight[index[l]] / job->total_weight);
        for (ptrdiff_t j = 0; !job->labels && j < n; j++) {
            V column;
#pragma GCC unroll 16
            for (ptrdiff_t l = 0; l < LANES; l++) column[l] = targets[index[l] * n + j];
            N(store)(tt + j * LANES, column);
        }
        N(turn)(z + r * ldz, ldz, m, n, zt);
        if (job->loss == FNN_LOSS_cross_entropy && job->link == FNN_ACTIVATION_softmax) {
            N(cross_entropy_lanes)(job, index, zt, tt, scale, d, sum);
        } else {
            V factor = N(load)(scale);
            if (job->labels)
                for (ptrdiff_t j = 0; j < n; j++)
                    for (ptrdiff_t l = 0; l < LANES; l++) tt[j * LANES + l] = job->labels[index[l]] == j;
            if (!N(natural_loss_lanes)(job->loss, job->link, parameter, n, zt, tt, d, sum)) {
                if (job->link == FNN_ACTIVATION_softmax) {
                    V total = K(1) + N(softmax_lanes)(zt, n, yt).rest;
                    for (ptrdiff_t j = 0; j < n; j++) N(store)(yt + j * LANES, N(load)(yt + j * LANES) / total);
                    N(output_loss_lanes)(job, parameter, n, yt, tt, d, sum);
                    V mean = {0};
                    for (ptrdiff_t j = 0; j < n; j++)
                        mean = FMA(N(load)(d + j * LANES), N(load)(yt + j * LANES), mean);
                    for (ptrdiff_t j = 0; j < n; j++)
                        N(store)(d + j * LANES, N(load)(yt + j * LANES) * (N(load)(d + j * LANES) - mean));
                } else {
                    N(link_lanes)(job, n, zt, yt);
                    N(output_loss_lanes)(job, parameter, n, yt, tt, d, sum);
                    N(link_backward_lanes)(job, n, zt, yt, d);
                }
            }
            for (ptrdiff_t j = 0; j < n; j++) N(store)(d + j * LANES, N(load)(d + j * LANES) * factor);
        }
        N(turn_back)(d, m, n, delta + r * ldd, ldd);
        for (ptrdiff_t l = 0; l < m; l++) row_loss[r + l] = sum[l];
    }
}

/* delta[r, j] = dy[r, output] / dz[r, j]: one row of the output link's Jacobian. y are the outputs. */
static void N(link_jacobian)(int link, ptrdiff_t n_rows, ptrdiff_t n_outputs, ptrdiff_t output, const void *z_,
                             const void *y_, ptrdiff_t ldy, void *delta_, ptrdiff_t ldd) {
    const REAL *zs = z_, *ys = y_;
    REAL *delta = delta_;
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        REAL own = ys[r * ldy + output];
        if (link == FNN_ACTIVATION_softmax) {
            for (ptrdiff_t j = 0; j < n_outputs; j++)
                delta[r * ldd + j] = own * ((REAL)(j == output) - ys[r * ldy + j]);
        } else {
            for (ptrdiff_t j = 0; j < n_outputs; j++) delta[r * ldd + j] = 0;
            delta[r * ldd + output] = N(link_derivative)(link, N(splat)(zs[r * ldy + output]), N(splat)(own))[0];
        }
    }
}
