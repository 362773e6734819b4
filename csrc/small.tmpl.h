/* Small networks: a whole step of training in one call, every array in L1.
 *
 * Parameters, states and activations lie in memory of their own, padded to whole vectors, so that nothing has a tail:
 * the pads of weights, deltas and gradients are zero, and nothing real reads the others. A layer's bias is the last row
 * of its weights, its inputs end in a column of ones: a product of one more term, in the same chain (1 * b + sum is
 * sum + b). The elements are therefore those of dense.tmpl.h, bit for bit, as long as fan_in < FNN_BLOCK.
 *
 * With few outputs most of a vector would be pads: such a layer's parameters lie on their side, one row per output, and
 * lanes run along its inputs in the gradient, the update and the backward pass. (Not in the forward pass, where that is
 * the reduction.) */

INLINE ptrdiff_t N(padded)(ptrdiff_t n) {
    return (n + LANES - 1) / LANES * LANES;
}

/* Divide `memory` (zeroed; NULL: only find the size) for a network of these sizes and chunks of up to n_rows rows.
 * Returns the bytes needed. */
static ptrdiff_t N(small_layout)(ptrdiff_t n_layers, const ptrdiff_t *sizes, const int *activations, ptrdiff_t n_rows,
                                 ptrdiff_t n_slots, void *memory, fnn_small *net) {
    char *base = memory, *at = base;
#define TAKE(type, pointer, n)                                                                                         \
    do {                                                                                                               \
        if (base) pointer = (type *)at;                                                                                \
        at += ((n) * (ptrdiff_t)sizeof(type) + FNN_ALIGN_BYTES - 1) / FNN_ALIGN_BYTES * FNN_ALIGN_BYTES;               \
    } while (0)
    net->n_layers = n_layers;
    net->n_rows = n_rows;
    net->n_padded = 0;
    for (ptrdiff_t l = 0; l < n_layers; l++) {
        fnn_small_layer *layer = &net->layers[l];
        layer->fan_in = sizes[l];
        layer->fan_out = sizes[l + 1];
        layer->activation = activations[l];
        layer->ld_input = N(padded)(layer->fan_in + 1);
        layer->ld = N(padded)(layer->fan_out);
        layer->at = net->n_padded;
        const ptrdiff_t upright = (layer->fan_in + 1) * layer->ld, sideways = layer->fan_out * layer->ld_input;
        layer->sideways = sideways + 4 * LANES <= upright; /* to turn and to clear takes as long as three vectors */
        net->n_padded += layer->sideways ? sideways : upright;
    }
    /* together, parameters first: one copy saves or restores them */
    REAL *state = 0;
    TAKE(REAL, state, (1 + n_slots) * net->n_padded);
    net->parameters = state;
    for (int s = 0; s < 2; s++) net->slots[s] = base && s < n_slots ? state + (1 + s) * net->n_padded : 0;
    REAL *gradient = 0;
    TAKE(REAL, gradient, net->n_padded);
    net->gradient = gradient;
    REAL *decayed = 0;
    TAKE(REAL, decayed, net->n_padded);
    net->decayed = decayed;
    for (ptrdiff_t l = 0; l < n_layers; l++) {
        fnn_small_layer *layer = &net->layers[l];
        REAL *input = 0, *z = 0, *delta = 0, *turned = 0;
        const void **rows = 0;
        TAKE(REAL, input, n_rows * layer->ld_input);
        layer->input = input;
        TAKE(const void *, rows, n_rows);
        layer->input_rows = rows;
        for (ptrdiff_t r = 0; base && r < n_rows; r++) {
            rows[r] = input + r * layer->ld_input;
            input[r * layer->ld_input + layer->fan_in] = 1;
        }
        TAKE(REAL, delta, n_rows * layer->ld);
        layer->delta = delta;
        TAKE(const void *, rows, n_rows);
        layer->delta_rows = rows;
        for (ptrdiff_t r = 0; base && r < n_rows; r++) rows[r] = delta + r * layer->ld;
        const int sideways = layer->sideways;
        TAKE(REAL, turned, sideways ? (layer->fan_in + 1) * layer->ld : layer->fan_out * N(padded)(layer->fan_in));
        layer->turned = turned;
        layer->forward_weights = base && !sideways ? state + layer->at : turned;
        layer->backward_weights = base && sideways ? state + layer->at : turned;
        layer->ld_backward = sideways ? layer->ld_input : N(padded)(layer->fan_in);
        const ptrdiff_t n_weight_rows = sideways ? layer->fan_out : layer->fan_in;
        const ptrdiff_t ldw = sideways ? layer->ld_input : layer->ld;
        const ptrdiff_t n_cols = sideways ? layer->fan_in : layer->fan_out;
        TAKE(const void *, rows, n_weight_rows);
        layer->weight_rows = rows;
        for (ptrdiff_t i = 0; base && i < n_weight_rows; i++) {
            rows[i] = state + layer->at + i * ldw;
            for (ptrdiff_t j = 0; j < n_cols; j++) decayed[layer->at + i * ldw + j] = 1;
        }
        const int last = l == n_layers - 1;
        if (last || fnn_activation_needs_z(layer->activation))
            TAKE(REAL, z, n_rows * (last ? layer->ld : N(padded)(layer->fan_out + 1)));
        layer->z = z;
        if (l > 0 && !net->layers[l - 1].z) net->layers[l - 1].z = layer->input;
    }
#undef TAKE
    return at - base;
}

/* What the products read that do not read the parameters themselves. */
INLINE void N(small_turn)(const fnn_small *net) {
    for (ptrdiff_t l = 0; l < net->n_layers; l++) {
        const fnn_small_layer *layer = &net->layers[l];
        const REAL *const *rows = (const REAL *const *)layer->weight_rows;
        if (layer->sideways)
            N(pack_transposed)(rows, layer->fan_out, 0, layer->fan_in + 1, layer->turned, layer->ld);
        else if (l > 0)
            N(pack_transposed)(rows, layer->fan_in, 0, layer->fan_out, layer->turned, N(padded)(layer->fan_in));
    }
}

/* The fan_out parameters of input k (the bias: k = fan_in) of a layer, as a model keeps them, into padded memory, or back. */
INLINE void N(small_load_row)(const fnn_small_layer *layer, ptrdiff_t k, const REAL *from, REAL *to) {
    if (layer->sideways)
        for (ptrdiff_t j = 0; j < layer->fan_out; j++) to[j * layer->ld_input + k] = from[j];
    else
        for (ptrdiff_t j = 0; j < layer->fan_out; j += LANES)
            N(store)(to + k * layer->ld + j, N(load_n)(from + j, layer->fan_out - j));
}
INLINE void N(small_store_row)(const fnn_small_layer *layer, ptrdiff_t k, const REAL *from, REAL *to) {
    if (layer->sideways)
        for (ptrdiff_t j = 0; j < layer->fan_out; j++) to[j] = from[j * layer->ld_input + k];
    else
        for (ptrdiff_t j = 0; j < layer->fan_out; j += LANES)
            N(store_n)(to + j, N(load)(from + k * layer->ld + j), layer->fan_out - j);
}

/* Parameters and state slots (flat, as a model keeps them) into padded memory, or back. */
static void N(small_load)(const fnn_small *net, const void *parameters, const void *slot_a, const void *slot_b) {
    const REAL *from[3] = {parameters, slot_a, slot_b};
    REAL *to[3] = {net->parameters, net->slots[0], net->slots[1]};
    for (int s = 0; s < 3; s++)
        for (ptrdiff_t l = 0; to[s] && l < net->n_layers; l++) {
            const fnn_small_layer *layer = &net->layers[l];
            for (ptrdiff_t k = 0; k <= layer->fan_in; k++, from[s] += layer->fan_out)
                N(small_load_row)(layer, k, from[s], to[s] + layer->at);
        }
    N(small_turn)(net);
}
static void N(small_store)(const fnn_small *net, void *parameters, void *slot_a, void *slot_b) {
    const REAL *from[3] = {net->parameters, net->slots[0], net->slots[1]};
    REAL *to[3] = {parameters, slot_a, slot_b};
    for (int s = 0; s < 3; s++)
        for (ptrdiff_t l = 0; to[s] && l < net->n_layers; l++) {
            const fnn_small_layer *layer = &net->layers[l];
            for (ptrdiff_t k = 0; k <= layer->fan_in; k++, to[s] += layer->fan_out)
                N(small_store_row)(layer, k, from[s] + layer->at, to[s]);
        }
}

/* The n_cols columns are whole vectors, whatever is in the last of them. */
INLINE void N(small_product)(N(tile_job) job, ptrdiff_t n_rows, ptrdiff_t n_cols, int flags) {
    if (n_rows <= MR && n_cols <= NR) { /* no copy, no tiles to count */
        job.repeat = 1;
        N(tiles)[flags | N(PLAIN)][n_rows - 1][n_cols / LANES - 1](&job);
        return;
    }
    for (ptrdiff_t j = 0; j < n_cols; j += NR) {
        N(tile_job) panel = job;
        panel.b += j;
        panel.c += j;
        N(run_tiles)(&panel, n_rows, N(least)(NR, n_cols - j), flags);
    }
}

/* The fan_in values of n samples, where they lie x_bytes apart at x, into the first layer's input. */
INLINE void N(small_rows)(const fnn_small_layer *layer, ptrdiff_t n, const char *x, ptrdiff_t x_bytes,
                          const int64_t *samples) {
    static const REAL unit[2 * VECTOR_BYTES / sizeof(REAL)] = {[VECTOR_BYTES / sizeof(REAL)] = 1};
    const ptrdiff_t part = layer->fan_in % LANES, whole = layer->fan_in - part, ld = layer->ld_input;
    const N(bits) one = (N(bits))N(load)(unit + LANES - part); /* the column of ones, where it follows in the same vector */
    REAL *to = layer->input;
    for (ptrdiff_t r = 0; r < n; r++, to += ld) {
        const REAL *from = (const REAL *)(const void *)(x + samples[r] * x_bytes);
        for (ptrdiff_t j = 0; j < whole; j += LANES) N(store)(to + j, N(load)(from + j));
        if (part) N(store)(to + whole, (V)((N(bits))N(load_part)(from + whole, part) | one));
    }
}

/* Zeros behind the first `part` values of the vector at p and of those below it; part 0 is all of them. */
INLINE void N(small_clear)(REAL *p, ptrdiff_t n_rows, ptrdiff_t ld, ptrdiff_t part) {
    if (part)
        for (ptrdiff_t r = 0; r < n_rows; r++, p += ld) N(store)(p, N(load_part)(p, part));
}

static void N(update_decayed)(const fnn_small *net, int optimizer, const double *scalars, double l2) {
    N(update_rows)(optimizer, scalars, K(l2), net->decayed, K(1), 1, net->n_padded, net->gradient, 0, net->parameters, 0, 0,
                   0, net->slots[0], net->slots[1], 0);
}

/* One step on n rows (at most net->n_rows): their losses, then, with an optimizer, gradients and update.
 * x: the values of sample i are at x + i * x_bytes; NULL, where layers[0].input holds them already. */
static void N(small_step)(const fnn_small *net, ptrdiff_t n, const void *x, ptrdiff_t x_bytes, const fnn_loss *loss,
                          const int64_t *samples, int optimizer, const double *scalars, double l2, double *row_loss,
                          void *scratch) {
    const fnn_small_layer *layers = net->layers, *last = layers + net->n_layers - 1, *layer;
    REAL *parameters = net->parameters, *gradient = net->gradient;
    if (x) N(small_rows)(layers, n, x, x_bytes, samples);
    for (layer = layers; layer <= last; layer++) {
        const int hidden = layer < last;
        N(small_product)(N(rows_job)(layer->fan_in + 1, (const REAL *const *)layer->input_rows, 0,
                                     layer->forward_weights, layer->ld, layer->z,
                                     hidden ? layer[1].ld_input : layer->ld, 0, 0),
                         n, layer->ld, 0);
        if (!hidden) break;
        const ptrdiff_t ld = layer[1].ld_input;
        REAL *y = layer[1].input;
        if (layer->activation == FNN_USER) {
            memcpy(y, layer->z, (size_t)(n * ld) * sizeof(REAL));
            fnn_user_activate(layer->user_value, IS_FLOAT ? FNN_F32 : FNN_F64, n, layer->fan_out, y, ld,
                              layer->user_whole);
        } else if (layer->activation != FNN_ACTIVATION_identity || y != layer->z)
            N(activate)(layer->activation, n, layer->ld, layer->z, ld, y, ld);
        /* the column of ones, where the last vector of outputs holds it */
        if (layer->fan_out < layer->ld || layer->activation == FNN_USER)
            for (ptrdiff_t r = 0; r < n; r++) y[r * ld + layer->fan_out] = 1;
    }
    N(loss)(loss, n, last->z, last->ld, samples, last->delta, last->ld, row_loss, scratch);
    if (optimizer < 0) return;
    for (layer = last; layer > layers; layer--) {
        const fnn_small_layer *below = layer - 1;
        N(small_product)(N(rows_job)(layer->fan_out, (const REAL *const *)layer->delta_rows, 0, layer->backward_weights,
                                     layer->ld_backward, below->delta, below->ld, 0, 0),
                         n, below->ld, 0);
        if (layer->sideways) /* the bias was among the weights */
            N(small_clear)((REAL *)below->delta + below->ld - LANES, n, below->ld, layer->fan_in % LANES);
        if (below->activation == FNN_USER)
            fnn_user_activate_backward(below->user_derivative, IS_FLOAT ? FNN_F32 : FNN_F64, n, below->fan_out, below->z,
                                       layer->input, layer->ld_input, below->delta, below->ld, below->user_whole);
        else if (below->activation != FNN_ACTIVATION_identity)
            N(activate_backward)(below->activation, n, below->ld, below->z, layer->input, layer->ld_input, below->delta,
                                 below->ld);
    }
    for (layer = layers; layer <= last; layer++) {
        REAL *g = gradient + layer->at;
        if (layer->sideways) {
            N(small_product)(N(columns_job)(n, layer->delta, layer->ld, layer->input, layer->ld_input, g, layer->ld_input, 0),
                             layer->fan_out, layer->ld_input, N(COLS));
            N(small_clear)(g + layer->ld_input - LANES, layer->fan_out, layer->ld_input, (layer->fan_in + 1) % LANES);
        } else
            N(small_product)(N(columns_job)(n, layer->input, layer->ld_input, layer->delta, layer->ld, g, layer->ld, 0),
                             layer->fan_in + 1, layer->ld, N(COLS));
    }
    if (l2 == 0)
        N(update)(optimizer, scalars, 0, 1, 1, net->n_padded, gradient, 0, parameters, net->slots[0], net->slots[1], 0);
    else
        N(update_decayed)(net, optimizer, scalars, l2);
    N(small_turn)(net);
}
