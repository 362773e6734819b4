/* Learning of one unit row after row, for one dtype: see online.c. REAL is the dtype, N(name) the name with it.
 *
 * What is rounded to REAL and what to double follows scikit-learn's _sgd_fast, _weight_vector and _seq_dataset line by
 * line: a decision that lies on the edge, as they do where features are decimals, has to fall to the same side. */

/* The values of one row, and their columns where it is sparse. */
typedef struct {
    const REAL *values;
    const void *columns;
    ptrdiff_t n;
} N(row);

INLINE ptrdiff_t N(column)(N(row) row, ptrdiff_t j, const int kind) {
    return kind == DENSE ? j : kind == CSR32 ? ((const int32_t *)row.columns)[j] : (ptrdiff_t)((const int64_t *)row.columns)[j];
}

INLINE N(row) N(row_of)(const fnn_online *job, ptrdiff_t i, const int kind) {
    if (kind == DENSE) return (N(row)){(const REAL *)job->values + i * job->ld, 0, job->n_features};
    ptrdiff_t begin = row_begin(job, i), width = kind == CSR32 ? 4 : 8;
    return (N(row)){(const REAL *)job->values + begin, (const char *)job->columns + begin * width,
                    row_begin(job, i + 1) - begin};
}

INLINE double N(product)(const REAL *w, N(row) row, ptrdiff_t j, const int kind) {
    const REAL term = w[N(column)(row, j, kind)] * row.values[j];
    return (double)term;
}

/* sums[r] = w . rows[r]: one chain of additions each, side by side because each is slow. */
INLINE void N(sums)(const REAL *w, const N(row) * rows, const int n, double *sums, const int kind) {
    double chain[GROUP];
    ptrdiff_t together = rows[0].n;
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        chain[r] = 0;
        if (kind != DENSE && rows[r].n < together) together = rows[r].n;
    }
    for (ptrdiff_t j = 0; j < together; j++)
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) chain[r] += N(product)(w, rows[r], j, kind);
#pragma GCC unroll 8
    for (int r = 0; r < n; r++) {
        if (kind != DENSE)
            for (ptrdiff_t j = together; j < rows[r].n; j++) chain[r] += N(product)(w, rows[r], j, kind);
        sums[r] = chain[r];
    }
}

INLINE void N(fetch)(const fnn_online *job, ptrdiff_t i, const int kind) {
    const N(row) row = N(row_of)(job, i, kind);
    const char *at = (const char *)row.values, *end = (const char *)(row.values + row.n);
    /* the head of a long row: its rest comes by itself */
    if (end - at > 512) end = at + 512;
    for (; at < end; at += 64) __builtin_prefetch(at);
    if (kind != DENSE && row.n) __builtin_prefetch(row.columns);
}

/* The vector is scale * w; what is kept of its norms is what the rows moved last have left there. */
typedef struct {
    REAL *w, *q;
    double scale, sq_norm, l1_norm, intercept, u, sum_loss, sum_objective;
} N(vector);

static void N(fold_scale)(N(vector) * v, ptrdiff_t n) {
    for (ptrdiff_t k = 0; k < n; k++) v->w[k] *= (REAL)v->scale;
    v->scale = 1;
}

/* w += c x / scale */
INLINE void N(add)(const fnn_online *job, N(vector) * v, N(row) row, REAL c, const int kind) {
    const REAL scale = (REAL)v->scale, scale_squared = scale * scale;
    const double step = (double)(REAL)(c / scale);
    REAL *w = v->w;
    if (!job->with_norms) {
        for (ptrdiff_t j = 0; j < row.n; j++) {
            const ptrdiff_t k = N(column)(row, j, kind);
            w[k] = (REAL)((double)w[k] + (double)row.values[j] * step);
        }
        return;
    }
    double squares = 0, sizes = 0;
    for (ptrdiff_t j = 0; j < row.n; j++) {
        const ptrdiff_t k = N(column)(row, j, kind);
        const REAL moved = (REAL)((double)w[k] + (double)row.values[j] * step), square = moved * moved;
        w[k] = moved;
        squares += (double)square;
        sizes += fabs((double)moved);
    }
    v->sq_norm = squares * (double)scale_squared;
    v->l1_norm = sizes * (double)scale;
}

/* The cumulative L1 penalty (Tsuruoka, Tsujii & Ananiadou 2009, doi:10.3115/1687878.1687946): each weight that the row
 * touches is moved towards 0 by what it owes of u, and no further. */
INLINE void N(truncate)(N(vector) * v, N(row) row, const int kind) {
    const double scale = v->scale, u = v->u;
    REAL *w = v->w, *q = v->q;
    for (ptrdiff_t j = 0; j < row.n; j++) {
        const ptrdiff_t k = N(column)(row, j, kind);
        const double z = (double)w[k], owed = (double)q[k];
        const double down = z - (u + owed) / scale, up = z + (u - owed) / scale;
        const double moved = scale * z > 0 ? (down > 0 ? down : 0) : scale * z < 0 ? (up < 0 ? up : 0) : z;
        w[k] = (REAL)moved;
        q[k] = (REAL)(owed + scale * ((double)w[k] - z));
    }
}

/* Learns from sample i, whose sum is w . x; says whether w has moved. */
INLINE int N(learn)(const fnn_online *job, const fnn_online_unit *unit, N(vector) * v, ptrdiff_t i, N(row) row, double sum,
                    const int kind) {
    const REAL score = (REAL)(sum * v->scale);
    const int positive = job->labels[i] == unit->positive;
    const double p = (double)score + v->intercept, y = positive ? 1.0 : -1.0, z = p * y;
    int moved = 0;
    if (job->with_objective) {
        const double loss = z <= 0 ? -z : 0.0;
        v->sum_loss += loss;
        v->sum_objective += loss;
        if (job->penalty != FNN_PENALTY_none) {
            const double norm = (double)(REAL)sqrt(v->sq_norm);
            const double square = (double)(REAL)(norm * norm);
            v->sum_objective +=
                job->alpha * ((1 - job->l1_ratio) * 0.5 * square + job->l1_ratio * (double)(REAL)v->l1_norm);
        }
    }
    double update = 0;
    if (z <= 0) {
        const REAL class_weight = (REAL)(positive ? unit->positive_weight : unit->negative_weight);
        const REAL weight = job->sample_weight ? ((const REAL *)job->sample_weight)[i] : 1;
        const REAL factor = class_weight * weight;
        update = job->eta * y * (double)factor;
    }
    if (job->penalty >= FNN_PENALTY_l2) {
        const double shrunk = 1.0 - (1.0 - job->l1_ratio) * job->eta * job->alpha;
        const REAL c = (REAL)(shrunk > 0 ? shrunk : 0), square = c * c;
        v->scale *= (double)c;
        v->sq_norm *= (double)square;
        v->l1_norm *= (double)c;
        if (v->scale < SMALLEST_SCALE) {
            N(fold_scale)(v, job->n_features);
            moved = 1;
        }
    }
    if (update != 0) {
        N(add)(job, v, row, (REAL)update, kind);
        if (job->fit_intercept) v->intercept += update * job->intercept_decay;
        moved = 1;
    }
    if (job->penalty == FNN_PENALTY_l1 || job->penalty == FNN_PENALTY_elasticnet) {
        v->u += job->l1_ratio * job->eta * job->alpha;
        N(truncate)(v, row, kind);
    }
    return moved;
}

/* Rows begin .. end - 1 of the order. */
INLINE void N(learn_kind)(const fnn_online *job, const fnn_online_unit *unit, N(vector) * v, ptrdiff_t begin,
                          ptrdiff_t end, const int kind) {
    const int truncates = job->penalty == FNN_PENALTY_l1 || job->penalty == FNN_PENALTY_elasticnet;
    ptrdiff_t samples[GROUP], places[GROUP], fetched = begin;
    N(row) rows[GROUP];
    double sums[GROUP];
    for (ptrdiff_t at = begin; at < end;) {
        int n = 0, wanted = truncates ? 1 : GROUP;
        for (; at < end && n < wanted; at++) {
            const ptrdiff_t i = sample_at(unit, at);
            if (job->held && job->held[i]) continue;
            samples[n] = i;
            places[n] = at;
            rows[n++] = N(row_of)(job, i, kind);
        }
        if (fetched < at) fetched = at;
        if (unit->order)
            for (; fetched < end && fetched < at + GROUP; fetched++) N(fetch)(job, sample_at(unit, fetched), kind);
        if (n == GROUP)
            N(sums)(v->w, rows, GROUP, sums, kind);
        else
            for (int r = 0; r < n; r++) N(sums)(v->w, rows + r, 1, sums + r, kind);
        for (int r = 0; r < n; r++)
            if (N(learn)(job, unit, v, samples[r], rows[r], sums[r], kind)) {
                /* the rows after this one have to see the weights as they are now */
                at = places[r] + 1;
                break;
            }
    }
}

static void N(learn_rows)(const fnn_online *job, fnn_online_unit *unit, ptrdiff_t begin, ptrdiff_t end) {
    N(vector) v = {unit->weights,   unit->q, unit->scale,    unit->sq_norm,      unit->l1_norm,
                   unit->intercept, unit->u, unit->sum_loss, unit->sum_objective};
    if (job->index_bytes == 0)
        N(learn_kind)(job, unit, &v, begin, end, DENSE);
    else if (job->index_bytes == 4)
        N(learn_kind)(job, unit, &v, begin, end, CSR32);
    else
        N(learn_kind)(job, unit, &v, begin, end, CSR64);
    unit->scale = v.scale;
    unit->sq_norm = v.sq_norm;
    unit->l1_norm = v.l1_norm;
    unit->intercept = v.intercept;
    unit->u = v.u;
    unit->sum_loss = v.sum_loss;
    unit->sum_objective = v.sum_objective;
}

static void N(first_norms)(const fnn_online *job, fnn_online_unit *unit) {
    const REAL *w = unit->weights;
    double squares = 0, sizes = 0;
    for (ptrdiff_t k = 0; k < job->n_features; k++) {
        squares += (double)w[k] * (double)w[k];
        sizes += fabs((double)w[k]);
    }
    unit->sq_norm = squares;
    unit->l1_norm = sizes;
}

static int N(finite)(const REAL *w, ptrdiff_t n) {
    int good = 1;
    for (ptrdiff_t k = 0; k < n; k++) good &= isfinite(w[k]) != 0;
    return good;
}

static void N(scale_weights)(const fnn_online *job, fnn_online_unit *unit) {
    N(vector) v = {.w = unit->weights, .scale = unit->scale};
    N(fold_scale)(&v, job->n_features);
    unit->scale = 1;
}

INLINE void N(judge_kind)(const fnn_online *job, const fnn_online_unit *unit, const int64_t *samples, ptrdiff_t n,
                          uint8_t *correct, const int kind) {
    for (ptrdiff_t at = 0; at < n; at += GROUP) {
        const int m = n - at < GROUP ? (int)(n - at) : GROUP;
        N(row) rows[GROUP];
        double sums[GROUP];
        for (int r = 0; r < m; r++) rows[r] = N(row_of)(job, (ptrdiff_t)samples[at + r], kind);
        if (m == GROUP)
            N(sums)(unit->weights, rows, GROUP, sums, kind);
        else
            for (int r = 0; r < m; r++) N(sums)(unit->weights, rows + r, 1, sums + r, kind);
        for (int r = 0; r < m; r++) {
            const REAL score = (REAL)sums[r];
            const int positive = job->labels[samples[at + r]] == unit->positive;
            correct[at + r] = ((double)score + unit->intercept > 0) == positive;
        }
    }
}

static void N(judge)(const fnn_online *job, const fnn_online_unit *unit, const int64_t *samples, ptrdiff_t n,
                     uint8_t *correct) {
    if (job->index_bytes == 0)
        N(judge_kind)(job, unit, samples, n, correct, DENSE);
    else if (job->index_bytes == 4)
        N(judge_kind)(job, unit, samples, n, correct, CSR32);
    else
        N(judge_kind)(job, unit, samples, n, correct, CSR64);
}
