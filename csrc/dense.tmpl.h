/* Dense layers: the three matrix products of a step.
 *
 *   forward    Z[r, j] = sum over k of X[r, k] W[k, j] + b[j]      (n_rows, fan_out)
 *   backward   D[r, k] = sum over j of delta[r, j] W[k, j]         (n_rows, fan_in)
 *   gradient   G[k, j] = sum over r of X[r, k] delta[r, j]         (fan_in, fan_out)
 *
 * Law 1: each element is a chain of fused multiply-adds from +0 over FNN_BLOCK consecutive reduction indices; the block
 * sums are added in order. All three products run on one micro-kernel, `tile`, whose lanes are independent elements; where
 * many of X or delta are zero, on `kept_tile`, which skips them.
 * So neither the tile sizes, nor packing, nor which side the lanes run along, nor how work is split can change a bit.
 * NaN and infinity propagate as the chain says. */

/* Up to LANES / 2 outputs: lanes run across rows of X instead of across outputs. */
static void N(forward_narrow)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const REAL *w,
                              const REAL *bias, ptrdiff_t fan_out, REAL *z, ptrdiff_t ldz, N(scratch) s) {
    for (ptrdiff_t r0 = 0; r0 < n_rows; r0 += NR) {
        ptrdiff_t m = N(least)(NR, n_rows - r0), ld = N(vectors)(m) * LANES;
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            N(pack_transposed)(rows + r0, m, k0, n, s.panel, ld);
            N(tile_job) job = N(columns_job)(n, w + k0 * fan_out, fan_out, s.panel, ld, s.work, NR, k0 > 0);
            N(run_tiles)(&job, fan_out, m, N(COLS));
        }
        for (ptrdiff_t r = 0; r < m; r++)
            for (ptrdiff_t j = 0; j < fan_out; j++) z[(r0 + r) * ldz + j] = s.work[j * NR + r] + bias[j];
    }
}

/* One to three rows, the columns from j0: the weights are read where they lie. */
static void N(forward_few)(const REAL *const *rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const REAL *w, const REAL *bias,
                           ptrdiff_t j0, ptrdiff_t fan_out, REAL *z, ptrdiff_t ldz) {
    static const N(tile_function) wide[3][2] = {{N(tile_1_8_0), N(tile_1_4_0)},
                                                {N(tile_2_4_0), N(tile_2_4_0)},
                                                {N(tile_3_4_0), N(tile_3_4_0)}};
    while (j0 < fan_out) {
        ptrdiff_t left = fan_out - j0, width, k0 = 0;
        const ptrdiff_t widest = n_rows == 1 ? 8 * LANES : 4 * LANES;
        N(tile_function) f = 0;
        if (left >= widest)
            f = wide[n_rows - 1][0], width = widest;
        else if (left >= 4 * LANES)
            f = wide[n_rows - 1][1], width = 4 * LANES;
        else if (n_rows == 1 && left <= 3 * LANES) {
            width = left;
            for (; fan_in - k0 >= 2 * FNN_BLOCK;) {
                ptrdiff_t n_blocks = N(least)(4, (fan_in - k0) / FNN_BLOCK), end = k0 + n_blocks * FNN_BLOCK;
                N(tile_job) job = N(rows_job)(FNN_BLOCK, rows, k0, w + k0 * fan_out + j0, fan_out, z + j0, ldz, k0 > 0,
                                              end == fan_in ? bias + j0 : 0);
                job.last = left % LANES;
                N(side_by_side)[n_blocks - 2][N(vectors)(left) - 1](&job);
                k0 = end;
            }
            if (width > NR) f = left % LANES ? N(tile_1_3_1) : N(tile_1_3_0);
        } else
            width = N(least)(NR, left);
        for (; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            N(tile_job) job = N(rows_job)(n, rows, k0, w + k0 * fan_out + j0, fan_out, z + j0, ldz, k0 > 0,
                                          k0 + n == fan_in ? bias + j0 : 0);
            job.last = width % LANES;
            if (f)
                f(&job);
            else
                N(run_tiles)(&job, n_rows, width, 0);
        }
        j0 += width;
    }
}

/* Weights of a small layer stay in L1 as they are; those of a large one lie a power of two apart, and are packed. */
INLINE int N(reads_directly)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    return N(least)(fan_in, FNN_BLOCK) * fan_out * (ptrdiff_t)sizeof(REAL) <= 16384;
}

/* Elements of the packed copy of a layer's weights; 0 where dense_forward would not pack them. */
static ptrdiff_t N(packed_elems)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    if (2 * fan_out <= LANES || N(reads_directly)(fan_in, fan_out)) return 0;
    return fan_in * N(vectors)(fan_out) * LANES;
}

/* Rows [begin, end) of W into the packed copy: panels one after the other, each fan_in rows of NR columns (the last: of as
 * many whole vectors as it needs). */
static void N(pack_weights)(ptrdiff_t fan_in, ptrdiff_t fan_out, ptrdiff_t begin, ptrdiff_t end, const void *weights,
                            void *packed) {
    for (ptrdiff_t j = 0; j < fan_out; j += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j), ld = N(vectors)(width) * LANES;
        N(pack)((const REAL *)weights + begin * fan_out + j, fan_out, end - begin, width,
                (REAL *)packed + j * fan_in + begin * ld, ld);
    }
}

/* The packed copy back into rows and columns. */
static void N(unpack_weights)(ptrdiff_t fan_in, ptrdiff_t fan_out, const void *packed, void *weights) {
    const REAL *panel = packed;
    REAL *w = weights;
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t k = 0; k < fan_in; k++)
            for (ptrdiff_t j = 0; j < width; j += LANES)
                N(store_n)(w + k * fan_out + j0 + j, N(load_n)(panel + k * ld + j, width - j), width - j);
        panel += fan_in * ld;
    }
}

/* Z = X W + b from the packed copy: for layers with packed_elems, and any number of rows. Zeros are skipped where a sample
 * of X holds no more than a share `density` of other values; density < 0: never. */
static void N(dense_forward_packed)(const void *const *rows_, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *packed_,
                                    const void *bias_, ptrdiff_t fan_out, void *z_, ptrdiff_t ldz, double density,
                                    void *scratch) {
    const REAL *const *rows = (const REAL *const *)rows_;
    const REAL *packed = packed_;
    REAL *z = z_;
    for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
        const ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
        const REAL *bias = k0 + n == fan_in ? bias_ : 0;
        ptrdiff_t j0 = N(kept_cols)(rows, n_rows, k0, n, fan_out, density);
        if (j0 > 0)
            N(forward_kept)(rows, n_rows, fan_in, k0, n, packed + k0 * NR, j0, bias, z, ldz, N(kept_scratch)(scratch));
        for (; j0 < fan_out; j0 += NR) {
            const ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
            N(tile_job) job = N(rows_job)(n, rows, k0, packed + j0 * fan_in + k0 * ld, ld, z + j0, ldz, k0 > 0,
                                          bias ? bias + j0 : 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
    }
}

/* Z = X W + b. rows: n_rows pointers to fan_in values; weights (fan_in, fan_out), bias (fan_out,), z (n_rows, fan_out)
 * with ldz elements from row to row. density: as above, for a row by itself. */
static void N(dense_forward)(const void *const *rows_, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *weights,
                             const void *bias_, ptrdiff_t fan_out, void *z_, ptrdiff_t ldz, double density,
                             void *scratch) {
    const REAL *const *rows = (const REAL *const *)rows_;
    const REAL *w = weights, *bias = bias_;
    REAL *z = z_;
    if (n_rows == 1 && fan_out <= NR && fan_in <= FNN_BLOCK) { /* most layers of small networks: nothing to choose */
        N(tile_job) job = N(rows_job)(fan_in, rows, 0, w, fan_out, z, ldz, 0, bias);
        job.last = fan_out % LANES;
        N(tiles)[job.last ? N(TAIL) : 0][0][N(vectors)(fan_out) - 1](&job);
        return;
    }
    N(scratch) s = N(split_scratch)(scratch);
    if (n_rows == 0) return;
    if (2 * fan_out <= LANES && n_rows >= LANES) {
        N(forward_narrow)(rows, n_rows, fan_in, w, bias, fan_out, z, ldz, s);
        return;
    }
    if (n_rows <= 3) {
        ptrdiff_t n_kept = 0;
        if (n_rows == 1 && fan_out >= KEPT_COLS && fan_out <= KEPT_APART)
            n_kept = N(kept_cols)(rows, 1, 0, fan_in, fan_out, density);
        if (n_kept > 0) N(forward_kept_one)(rows, fan_in, w, fan_out, n_kept, bias, z, s.panel);
        N(forward_few)(rows, n_rows, fan_in, w, bias, n_kept, fan_out, z, ldz);
        return;
    }
    const int direct = N(reads_directly)(fan_in, fan_out);
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += NR) {
        ptrdiff_t width = N(least)(NR, fan_out - j0), ld = N(vectors)(width) * LANES;
        for (ptrdiff_t k0 = 0; k0 < fan_in; k0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, fan_in - k0);
            const REAL *block = w + k0 * fan_out + j0;
            if (!direct) N(pack)(block, fan_out, n, width, s.panel, ld);
            N(tile_job) job = N(rows_job)(n, rows, k0, direct ? block : s.panel, direct ? fan_out : ld, z + j0, ldz,
                                          k0 > 0, k0 + n == fan_in ? bias + j0 : 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
    }
}

/* D = delta W^T: the gradient to the layer's inputs. delta_rows: n_rows pointers to fan_out values; d_input
 * (n_rows, fan_in) with ldd elements from row to row. density: as above, of delta. */
static void N(dense_backward)(const void *const *delta_rows, ptrdiff_t n_rows, ptrdiff_t fan_in, const void *weights,
                              ptrdiff_t fan_out, void *d_input, ptrdiff_t ldd, double density, void *scratch) {
    const REAL *const *rows = (const REAL *const *)delta_rows;
    const REAL *w = weights;
    REAL *d = d_input;
    N(scratch) s = N(split_scratch)(scratch);
    if (n_rows == 0) return;
    for (ptrdiff_t j0 = 0; j0 < fan_out; j0 += FNN_BLOCK) {
        const ptrdiff_t n = N(least)(FNN_BLOCK, fan_out - j0);
        ptrdiff_t k0 = N(kept_cols)(rows, n_rows, j0, n, fan_in, density);
        if (k0 > 0) N(backward_kept)(rows, n_rows, fan_out, j0, n, w, k0, d, ldd, s.pointers, N(kept_scratch)(scratch));
        for (; k0 < fan_in; k0 += NR) {
            const ptrdiff_t width = N(least)(NR, fan_in - k0), ld = N(vectors)(width) * LANES;
            for (ptrdiff_t i = 0; i < width; i++) s.pointers[i] = w + (k0 + i) * fan_out;
            N(pack_transposed)(s.pointers, width, j0, n, s.panel, ld);
            N(tile_job) job = N(rows_job)(n, rows, j0, s.panel, ld, d + k0, ldd, j0 > 0, 0);
            N(run_tiles)(&job, n_rows, width, 0);
        }
    }
}

/* --- gradient ------------------------------------------------------------------------------------------------------ */
/* Units of work of dense_gradient: MR rows of W by a group of panels; for few outputs, panels of rows of W. Neighbours
 * are computed together, a block at a time; units are small so that threads can share the work evenly. */
static int N(gradient_is_narrow)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    return 2 * fan_out <= LANES && fan_in >= LANES;
}
static ptrdiff_t N(gradient_units)(ptrdiff_t fan_in, ptrdiff_t fan_out) {
    if (N(gradient_is_narrow)(fan_in, fan_out)) return (fan_in + NR - 1) / NR;
    return ((fan_out + BLOCK_COLS - 1) / BLOCK_COLS) * N(n_tiles)(fan_in);
}

/* Columns of n_cols <= 4 * LANES summed over the rows [r0, r1): as many chains side by side as there are vectors. */
INLINE void N(sum_columns)(const REAL *delta, ptrdiff_t ldd, ptrdiff_t r0, ptrdiff_t r1, ptrdiff_t n_cols, V *sums) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sums[v] = (V){0};
    if (n_cols == 4 * LANES) {
        for (ptrdiff_t r = r0; r < r1; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) sums[v] = sums[v] + N(load)(delta + r * ldd + v * LANES);
    } else {
        for (ptrdiff_t v = 0; v * LANES < n_cols; v++)
            for (ptrdiff_t r = r0; r < r1; r++)
                sums[v] = sums[v] + N(load_n)(delta + r * ldd + v * LANES, n_cols - v * LANES);
    }
}

/* g[j] = sum over rows of delta[r, j]: the same chain as a row of inputs that are all 1. */
static void N(bias_gradient)(const fnn_gradient *job, ptrdiff_t j0, ptrdiff_t j1, REAL *work) {
    REAL *g = job->bias_gradient ? (REAL *)job->bias_gradient + j0 : work;
    const int more = job->bias_gradient && job->accumulate;
    for (ptrdiff_t j = j0; j < j1; j += 4 * LANES) {
        const REAL *delta = (const REAL *)job->delta + j;
        const ptrdiff_t n_cols = N(least)(4 * LANES, j1 - j);
        REAL *to = g + (j - j0);
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            V sums[4];
            N(sum_columns)(delta, job->ldd, r0, N(least)(r0 + FNN_BLOCK, job->n_rows), n_cols, sums);
            for (ptrdiff_t v = 0, m; (m = n_cols - v * LANES) > 0; v++)
                N(store_n)(to + v * LANES, r0 > 0 || more ? N(load_n)(to + v * LANES, m) + sums[v] : sums[v], m);
        }
    }
    if (job->optimizer >= 0)
        N(update)(job->optimizer, job->scalars, 0, 1, 1, j1 - j0, g, 0, (REAL *)job->bias + j0,
                  job->bias_a ? (REAL *)job->bias_a + j0 : 0, job->bias_b ? (REAL *)job->bias_b + j0 : 0, 0);
}

/* The finished gradient of n_rows rows and `width` columns of a panel meets the optimizer. One function for whole panels,
 * of a width known to the compiler, and one for others. */
#define UPDATE_PANEL(name, width)                                                                                      \
    static void N(name)(const fnn_gradient *job, ptrdiff_t n_rows, ptrdiff_t n_cols, const REAL *g, ptrdiff_t ldg,     \
                        REAL *w, ptrdiff_t ldw, REAL *copy, ptrdiff_t ldcopy, REAL *a, REAL *b, ptrdiff_t lds) {       \
        (void)n_cols;                                                                                                  \
        N(update_rows)(job->optimizer, job->scalars, K(job->l2), 0, K(1), n_rows, width, g, ldg, w, ldw, copy, ldcopy, \
                       a, b, lds);                                                                                     \
    }
UPDATE_PANEL(update_whole_panel, NR)
UPDATE_PANEL(update_panel, n_cols)

/* The finished gradient of n_rows rows from k0 and n_cols columns from j0 of W: the parameters, and their packed copy. */
static void N(update_block)(const fnn_gradient *job, ptrdiff_t k0, ptrdiff_t j0, ptrdiff_t n_rows, ptrdiff_t n_cols,
                            const REAL *g, ptrdiff_t ldg) {
    for (ptrdiff_t j = j0; j < j0 + n_cols; j += NR) {
        const ptrdiff_t width = N(least)(NR, j0 + n_cols - j), ld = N(vectors)(width) * LANES, at = k0 * job->fan_out + j;
        REAL *copy = job->packed ? (REAL *)job->packed + j * job->fan_in + k0 * ld : 0;
        REAL *w = job->packed_only ? copy : (REAL *)job->weights + at;
        (width == NR ? N(update_whole_panel) : N(update_panel))(
            job, n_rows, width, g + (j - j0), ldg, w, job->packed_only ? ld : job->fan_out, job->packed_only ? 0 : copy, ld,
            job->weight_a ? (REAL *)job->weight_a + at : 0, job->weight_b ? (REAL *)job->weight_b + at : 0, job->fan_out);
    }
}

/* Columns [k0, k0 + m) of n input rows, side by side with ld elements, whole vectors, from row to row. */
static void N(pack_columns)(const REAL *const *x, ptrdiff_t n, ptrdiff_t k0, ptrdiff_t m, REAL *to, ptrdiff_t ld) {
    for (ptrdiff_t p = 0; p < n; p++) {
        const REAL *from = x[p] + k0;
        ptrdiff_t i = 0;
        for (; i + LANES <= m; i += LANES) N(store)(to + p * ld + i, N(load)(from + i));
        if (i < m) N(store)(to + p * ld + i, N(load_part)(from + i, m - i));
    }
}

static void N(gradient_narrow)(const fnn_gradient *job, ptrdiff_t unit_begin, ptrdiff_t unit_end, N(scratch) s) {
    const REAL *const *x = (const REAL *const *)job->input_rows;
    const REAL *delta = job->delta;
    const ptrdiff_t fan_out = job->fan_out;
    REAL *tile = s.work, *flat = s.work + (LANES / 2) * NR;
    const int more = job->gradient && job->accumulate;
    for (ptrdiff_t u = unit_begin; u < unit_end; u++) {
        ptrdiff_t k0 = u * NR, m = N(least)(NR, job->fan_in - k0), ld = N(vectors)(m) * LANES;
        REAL *g = job->gradient ? (REAL *)job->gradient + k0 * fan_out : flat;
        /* the tile lies transposed: rows of W are outputs there; block sums join it one by one, whatever the chunks */
        for (ptrdiff_t j = 0; more && j < fan_out; j++)
            for (ptrdiff_t i = 0; i < m; i++) tile[j * NR + i] = g[i * fan_out + j];
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, job->n_rows - r0);
            N(pack_columns)(x + r0, n, k0, m, s.panel, ld);
            N(tile_job) t = N(columns_job)(n, delta + r0 * job->ldd, job->ldd, s.panel, ld, tile, NR, r0 > 0 || more);
            N(run_tiles)(&t, fan_out, m, N(COLS));
        }
        for (ptrdiff_t i = 0; i < m; i++)
            for (ptrdiff_t j = 0; j < fan_out; j++) g[i * fan_out + j] = tile[j * NR + i];
        if (job->optimizer >= 0) {
            const ptrdiff_t at = k0 * fan_out;
            N(update)(job->optimizer, job->scalars, job->l2, 1, 1, m * fan_out, g, 0, (REAL *)job->weights + at,
                      job->weight_a ? (REAL *)job->weight_a + at : 0, job->weight_b ? (REAL *)job->weight_b + at : 0, 0);
        }
        if (u == 0) N(bias_gradient)(job, 0, fan_out, flat);
    }
}

static void N(dense_gradient)(const fnn_gradient *job, ptrdiff_t unit_begin, ptrdiff_t unit_end, void *scratch) {
    const REAL *const *x = (const REAL *const *)job->input_rows;
    const REAL *delta = job->delta;
    if (N(gradient_is_narrow)(job->fan_in, job->fan_out)) {
        N(gradient_narrow)(job, unit_begin, unit_end, N(split_scratch)(scratch));
        return;
    }
    /* a block of input columns, a block of the gradient, a bias gradient */
    REAL *columns = scratch, *block = columns + FNN_BLOCK * BLOCK_ROWS, *work = block + BLOCK_ROWS * BLOCK_COLS;
    const ptrdiff_t n_tiles = N(n_tiles)(job->fan_in);
    for (ptrdiff_t u = unit_begin, n_units; u < unit_end; u += n_units) {
        ptrdiff_t group = u / n_tiles, q = u % n_tiles;
        n_units = N(least)(N(least)(BLOCK_ROWS / MR, n_tiles - q), unit_end - u);
        ptrdiff_t k0 = q * job->fan_in / n_tiles, k1 = (q + n_units) * job->fan_in / n_tiles, height = k1 - k0;
        ptrdiff_t j0 = group * BLOCK_COLS, j1 = N(least)(j0 + BLOCK_COLS, job->fan_out);
        REAL *g = job->gradient ? (REAL *)job->gradient + k0 * job->fan_out + j0 : block;
        ptrdiff_t ldg = job->gradient ? job->fan_out : BLOCK_COLS;
        for (ptrdiff_t r0 = 0; r0 < job->n_rows; r0 += FNN_BLOCK) {
            ptrdiff_t n = N(least)(FNN_BLOCK, job->n_rows - r0);
            const int more = r0 > 0 || (job->gradient && job->accumulate);
            const ptrdiff_t n_kept =
                job->ldd > KEPT_APART ? 0 : N(kept_cols)(x + r0, n, k0, height, j1 - j0, job->density);
            ptrdiff_t j = j0 + n_kept;
            if (n_kept > 0)
                N(gradient_kept)(x + r0, n, k0, height, delta + r0 * job->ldd + j0, job->ldd, n_kept, more, g, ldg,
                                 N(kept_scratch)(scratch));
            if (j == j1) continue;
            /* Rows of the driver's own lie an odd number of cache lines apart: they are read as they are. */
            const int direct = job->ld_input > 0;
            const REAL *a = direct ? x[r0] + k0 : columns;
            if (!direct) N(pack_columns)(x + r0, n, k0, height, columns, BLOCK_ROWS);
            for (; j < j1; j += NR) {
                N(tile_job) t = N(columns_job)(n, a, direct ? job->ld_input : BLOCK_ROWS, delta + r0 * job->ldd + j, job->ldd,
                                               g + (j - j0), ldg, more);
                N(run_tiles)(&t, height, N(least)(NR, j1 - j), N(COLS));
            }
        }
        if (job->optimizer >= 0) N(update_block)(job, k0, j0, height, j1 - j0, g, ldg);
        if (q == 0) N(bias_gradient)(job, j0, j1, work);
    }
}
