/* Calls every kernel on random shapes and numbers, and prints a hash of each result: one line per call.
 *
 *   kernel_bits ISA [N_SHAPES]
 *
 * What two instruction sets with fused multiply-add print must be equal: law 1 (tests/c/run.sh neon, avx512). Every
 * array is allocated to the byte, so that a sanitizer sees any access outside (tests/c/run.sh asan). That the results
 * are right is what tests/kernels shows. */
#include "fastnn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef FNN_EMULATED_AVX512 /* compiled by avx512_emulated.c: callable on any machine with AVX2 */
extern const fnn_kernels fnn_kernels_f32_avx512, fnn_kernels_f64_avx512;
#endif

static uint64_t state = 88172645463325252u;

static uint64_t draw(void) { /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}
static ptrdiff_t below(ptrdiff_t n) {
    return (ptrdiff_t)(draw() % (uint64_t)n);
}
static double uniform(double low, double high) {
    return low + (high - low) * (double)(draw() >> 11) * 0x1p-53;
}

static void *get(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) abort();
    memset(p, 0xff, bytes); /* NaN: what a kernel should have written and did not shows */
    return p;
}
static void *get_scratch(ptrdiff_t n_outputs, int with_gradient) {
    size_t bytes = fnn_scratch_bytes(n_outputs, with_gradient, 1);
    void *p = aligned_alloc(FNN_ALIGN_BYTES, bytes);
    if (!p) abort();
    memset(p, 0xff, bytes);
    return p;
}

/* --- arrays of the dtype ------------------------------------------------------------------------------------------ */
static int dtype, special; /* special: one number in 16 is a zero, an infinity, NaN, subnormal or huge */
static size_t item;
#define SIZE(n) ((size_t)(n) * item)

static void put(void *array, ptrdiff_t i, double value) {
    if (dtype == FNN_F32)
        ((float *)array)[i] = (float)value;
    else
        ((double *)array)[i] = value;
}

static double unusual(void) {
    const double tiny = dtype == FNN_F32 ? 0x1p-149 : 0x1p-1074,
                 huge = dtype == FNN_F32 ? 0x1.fffffep127 : 0x1.fffffffffffffp1023;
    const double values[] = {0.0,
                             -0.0,
                             (double)INFINITY,
                             -(double)INFINITY,
                             (double)NAN,
                             tiny,
                             -tiny,
                             huge,
                             -huge,
                             1.0,
                             -1.0,
                             88.7,
                             -88.7,
                             104.0,
                             -104.0,
                             745,
                             -745,
                             3,
                             -3};
    return values[below(sizeof values / sizeof *values)];
}

static void *filled(ptrdiff_t n, double low, double high) {
    void *p = get(SIZE(n));
    for (ptrdiff_t i = 0; i < n; i++) put(p, i, special && draw() % 16 == 0 ? unusual() : uniform(low, high));
    return p;
}

/* Rows of `array`, each in memory of its own. */
static const void **rows_of(const void *array, ptrdiff_t n_rows, ptrdiff_t n_cols) {
    const void **rows = get((size_t)n_rows * sizeof *rows);
    for (ptrdiff_t r = 0; r < n_rows; r++)
        rows[r] = memcpy(get(SIZE(n_cols)), (const char *)array + SIZE(r * n_cols), SIZE(n_cols));
    return rows;
}
static void free_rows(const void **rows, ptrdiff_t n_rows) {
    for (ptrdiff_t r = 0; r < n_rows; r++) free((void *)(uintptr_t)rows[r]);
    free(rows);
}

/* --- hashes ------------------------------------------------------------------------------------------------------- */
#define START 14695981039346656037u

static uint64_t hashed(uint64_t h, const void *data, size_t bytes) { /* FNV-1a, from h on */
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}
/* All NaNs count as one: their bits differ between processors. */
static uint64_t hashed_doubles(uint64_t h, const double *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) h = isnan(x[i]) ? hashed(h, "NaN", 3) : hashed(h, x + i, sizeof *x);
    return h;
}
static uint64_t hashed_reals(uint64_t h, const void *x, ptrdiff_t n) {
    if (dtype == FNN_F64) return hashed_doubles(h, x, n);
    for (ptrdiff_t i = 0; i < n; i++) {
        double value = (double)((const float *)x)[i];
        h = hashed_doubles(h, &value, 1);
    }
    return h;
}
static void say(const char *slot, const char *row, ptrdiff_t a, ptrdiff_t b, ptrdiff_t c, uint64_t h) {
    printf("%s %s %s%s%s %td x %td x %td %016llx\n", dtype == FNN_F32 ? "float32" : "float64",
           special ? "special" : "normal", slot, *row ? " " : "", row, a, b, c, (unsigned long long)h);
}

/* --- the slots -------------------------------------------------------------------------------------------------- */
/* Hyperparameters that keep every optimizer in its normal range: column k of `scalars`. */
static const double scalars[8] = {0.01, 0.9, 0.7, 0.2, 0.8, 0.3, 1e-3, 0.99};

/* A gradient that is kept, without an update or skipping. */
static fnn_gradient gradient_job(const void *const *rows, const void *delta, ptrdiff_t n, ptrdiff_t fan_in,
                                 ptrdiff_t fan_out, void *g, void *gb) {
    return (fnn_gradient){.input_rows = rows,
                          .delta = delta,
                          .ldd = fan_out,
                          .n_rows = n,
                          .fan_in = fan_in,
                          .fan_out = fan_out,
                          .density = -1,
                          .gradient = g,
                          .bias_gradient = gb,
                          .optimizer = -1};
}

static void gradient(const fnn_kernels *k, const void **x_rows, const void *delta, const void *w, const void *b,
                     ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t fan_out, int optimizer, int keep, int accumulate) {
    const ptrdiff_t sizes[4] = {fan_in * fan_out, fan_in * fan_out, fan_out, fan_out};
    void *slots[4] = {0}, *h = 0;
    const int n_slots = optimizer < 0 ? 0 : fnn_optimizer_slots(optimizer);
    for (int s = 0; s < 4; s++)
        if (s % 2 < n_slots) slots[s] = filled(sizes[s], 0.1, 1);
    if (optimizer >= 0) {
        size_t bytes = (size_t)fnn_optimizer_scalars(optimizer) * sizeof *scalars;
        h = memcpy(get(bytes), scalars, bytes);
    }
    void *w2 = memcpy(get(SIZE(fan_in * fan_out)), w, SIZE(fan_in * fan_out)),
         *b2 = memcpy(get(SIZE(fan_out)), b, SIZE(fan_out));
    void *g = keep ? memcpy(get(SIZE(fan_in * fan_out)), w, SIZE(fan_in * fan_out)) : 0;
    void *gb = keep ? memcpy(get(SIZE(fan_out)), b, SIZE(fan_out)) : 0;
    void *scratch = get_scratch(fan_out, 1), *packed = get(SIZE(k->packed_elems(fan_in, fan_out)));
    fnn_gradient job = gradient_job(x_rows, delta, n, fan_in, fan_out, g, gb);
    job.accumulate = accumulate, job.optimizer = optimizer, job.scalars = h, job.l2 = 0.01;
    job.weights = w2, job.weight_a = slots[0], job.weight_b = slots[1];
    job.bias = b2, job.bias_a = slots[2], job.bias_b = slots[3];
    job.packed = optimizer >= 0 && k->packed_elems(fan_in, fan_out) ? packed : 0;
    ptrdiff_t units = k->gradient_units(fan_in, fan_out), middle = units / 2;
    k->dense_gradient(&job, 0, middle, scratch);
    k->dense_gradient(&job, middle, units, scratch);
    uint64_t hash = hashed_reals(hashed_reals(START, w2, fan_in * fan_out), b2, fan_out);
    if (keep) hash = hashed_reals(hashed_reals(hash, g, fan_in * fan_out), gb, fan_out);
    for (int s = 0; s < 4; s++)
        if (slots[s]) hash = hashed_reals(hash, slots[s], sizes[s]);
    say(accumulate ? "dense_gradient+" : "dense_gradient", optimizer < 0 ? "" : fnn_optimizer_name(optimizer), n,
        fan_in, fan_out, hash);
    for (int s = 0; s < 4; s++) free(slots[s]);
    free(h), free(w2), free(b2), free(g), free(gb), free(scratch), free(packed);
}

static void dense(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t fan_out) {
    void *x = filled(n * fan_in, -2, 2), *w = filled(fan_in * fan_out, -1, 1), *b = filled(fan_out, -1, 1);
    void *z = get(SIZE(n * fan_out)), *d = get(SIZE(n * fan_in)), *delta = filled(n * fan_out, -1, 1);
    void *scratch = get_scratch(fan_out, 0);
    const void **x_rows = rows_of(x, n, fan_in), **delta_rows = rows_of(delta, n, fan_out);
    k->dense_forward(x_rows, n, fan_in, w, b, fan_out, z, fan_out, -1, scratch);
    say("dense_forward", "", n, fan_in, fan_out, hashed_reals(START, z, n * fan_out));
    ptrdiff_t n_packed = k->packed_elems(fan_in, fan_out);
    void *packed = get(SIZE(n_packed));
    if (n_packed) {
        k->pack_weights(fan_in, fan_out, 0, fan_in / 3, w, packed);
        k->pack_weights(fan_in, fan_out, fan_in / 3, fan_in, w, packed);
        k->dense_forward_packed(x_rows, n, fan_in, packed, b, fan_out, z, fan_out, -1, scratch);
        k->unpack_weights(fan_in, fan_out, packed, w);
    }
    say("dense_forward_packed", "", n, fan_in, fan_out, hashed_reals(START, z, n * fan_out));
    free(packed);
    k->dense_backward(delta_rows, n, fan_in, w, fan_out, d, fan_in, -1, scratch);
    say("dense_backward", "", n, fan_in, fan_out, hashed_reals(START, d, n * fan_in));
    gradient(k, x_rows, delta, w, b, n, fan_in, fan_out, -1, 1, 0);
    gradient(k, x_rows, delta, w, b, n, fan_in, fan_out, -1, 1, 1);
    gradient(k, x_rows, delta, w, b, n, fan_in, fan_out, (int)below(FNN_N_OPTIMIZERS), 0, 0);
    gradient(k, x_rows, delta, w, b, n, fan_in, fan_out, (int)below(FNN_N_OPTIMIZERS), 1, 1);
    ptrdiff_t n_rows = n < FNN_PERCEPTRON_ROWS ? n : FNN_PERCEPTRON_ROWS;
    uint8_t *target = get((size_t)(n_rows * fan_out));
    const uint8_t *targets[FNN_PERCEPTRON_ROWS];
    for (ptrdiff_t j = 0; j < n_rows * fan_out; j++) target[j] = draw() % 2;
    for (ptrdiff_t r = 0; r < n_rows; r++) targets[r] = target + r * fan_out;
    ptrdiff_t mistakes = k->perceptron_rows(x_rows, n_rows, 0, fan_in, fan_out, targets, 0.3, w, b, scratch);
    uint64_t h = hashed(START, &mistakes, sizeof mistakes);
    say("perceptron_rows", "", n_rows, fan_in, fan_out, hashed_reals(hashed_reals(h, w, fan_in * fan_out), b, fan_out));
    free_rows(x_rows, n), free_rows(delta_rows, n);
    free(x), free(w), free(b), free(z), free(d), free(delta), free(scratch), free(target);
}

static void layers(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t width) {
    const ptrdiff_t size = n * width;
    for (int a = 0; a < FNN_ACTIVATION_softmax; a++) {
        void *z = filled(size, -6, 6), *y = get(SIZE(size)), *d = filled(size, -1, 1);
        k->activate(a, n, width, z, width, y, width);
        say("activate", fnn_activation_name(a), n, width, 0, hashed_reals(START, y, size));
        k->activate_backward(a, n, width, fnn_activation_needs_z(a) ? z : 0, y, width, d, width);
        say("activate_backward", fnn_activation_name(a), n, width, 0, hashed_reals(START, d, size));
        k->link_jacobian(a, n, width, width - 1, z, y, width, d, width);
        say("link_jacobian", fnn_activation_name(a), n, width, 0, hashed_reals(START, d, size));
        free(z), free(y), free(d);
    }
    for (int o = 0; o < FNN_N_OPTIMIZERS; o++) {
        void *w = filled(size, -1, 1), *g = filled(size, -1, 1), *a = filled(size, 0.1, 1), *b = filled(size, 0.1, 1);
        k->update(o, scalars, 0.01, 0.7, n, width, g, width, w, a, b, width);
        uint64_t h = hashed_reals(hashed_reals(hashed_reals(START, w, size), a, size), b, size);
        say("update", fnn_optimizer_name(o), n, width, 0, h);
        free(w), free(g), free(a), free(b);
    }
    for (int f = 0; f < FNN_N_FUNCTIONS; f++) {
        void *x = filled(size, -9, 9), *y = get(SIZE(size));
        char name[32];
        snprintf(name, sizeof name, "function_%d", f);
        k->elementwise(f, size, x, y);
        say("elementwise", name, n, width, 0, hashed_reals(START, y, size));
        free(x), free(y);
    }
    int64_t *samples = get((size_t)n * sizeof *samples);
    for (ptrdiff_t r = 0; r < n; r++) samples[r] = (int64_t)(draw() >> 20);
    void *factor = get(SIZE(size)), *x = filled(size, -1, 1);
    k->dropout_factors(draw(), 2, 7, 1, 0.3, n, samples, width, factor, width);
    say("dropout_factors", "", n, width, 0, hashed_reals(START, factor, size));
    int finite = k->all_finite(size, x);
    say("all_finite", "", n, width, 0, hashed(START, &finite, sizeof finite));
    k->multiply(n, width, factor, width, x, width, x, width);
    say("multiply", "", n, width, 0, hashed_reals(START, x, size));
    double sum = k->sum_of_squares(size, x);
    say("sum_of_squares", "", n, width, 0, hashed_doubles(START, &sum, 1));
    k->add_scaled(size, 0.37, factor, x);
    say("add_scaled", "", n, width, 0, hashed_reals(START, x, size));
    const ptrdiff_t blocks = 8 * (1 + below(4));
    uint64_t *draws = get((size_t)blocks * 2 * sizeof *draws);
    k->shuffle_draws(draw(), 3, (uint64_t)width, blocks, draws);
    say("shuffle_draws", "", blocks, 0, 0, hashed(START, draws, (size_t)blocks * 2 * sizeof *draws));
    void *chains = filled(24 * 16, -1, 1); /* room for every instruction set's, and as many draws for all */
    k->fma_chains(n, chains);
    say("fma_chains", "", n, 0, 0, hashed_reals(START, chains, 24)); /* there are at least so many */
    free(samples), free(factor), free(x), free(draws), free(chains);
}

static void losses(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t width) {
    int64_t *samples = get((size_t)n * sizeof *samples), *labels = get((size_t)n * sizeof *labels);
    double *weight = get((size_t)n * sizeof *weight), *row_loss = get((size_t)n * sizeof *row_loss), total = 0;
    void *scratch = get_scratch(width, 0);
    for (ptrdiff_t r = 0; r < n; r++) {
        samples[r] = n - 1 - r;
        labels[r] = below(width);
        total += weight[r] = uniform(0.5, 2);
    }
    for (int loss = 0; loss < FNN_N_LOSSES; loss++)
        for (int link = 0; link < FNN_N_ACTIVATIONS; link++)
            for (int labeled = 0; labeled < 2; labeled++) {
                if (labeled && loss != FNN_LOSS_cross_entropy) continue;
                void *z = filled(n * width, -4, 4), *t = filled(n * width, 0.05, 0.95), *d = get(SIZE(n * width));
                fnn_loss job = {.loss = loss,
                                .link = link,
                                .parameter = 0.4,
                                .n_outputs = width,
                                .labels = labeled ? labels : 0,
                                .targets = labeled ? 0 : t,
                                .sample_weight = weight,
                                .total_weight = total};
                k->loss(&job, n, z, width, samples, d, width, row_loss, scratch);
                char name[64];
                snprintf(name, sizeof name, "%s+%s", fnn_loss_name(loss), fnn_activation_name(link));
                say("loss", name, n, width, labeled, hashed_doubles(hashed_reals(START, d, n * width), row_loss, n));
                free(z), free(t), free(d);
            }
    void *z = filled(n * width, -4, 4), *y = get(SIZE(n * width));
    k->softmax(n, width, z, width, y, width, scratch);
    say("softmax", "", n, width, 0, hashed_reals(START, y, n * width));
    free(z), free(y), free(samples), free(labels), free(weight), free(row_loss), free(scratch);
}

/* Rows stored without their zeros, three values in four. */
static void sparse(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t fan_out) {
    void *x = filled(n * fan_in, -2, 2), *w = filled(fan_in * fan_out, -1, 1), *b = filled(fan_out, -1, 1);
    void *z = get(SIZE(n * fan_out)), *delta = filled(n * fan_out, -1, 1), *values = get(SIZE(n * fan_in));
    void *g = get(SIZE(fan_in * fan_out)), *gb = get(SIZE(fan_out)), *scratch = get_scratch(fan_out, 1);
    const void **index = get((size_t)n * sizeof *index), **value = get((size_t)n * sizeof *value);
    int32_t *columns = get((size_t)(n * fan_in) * sizeof *columns);
    ptrdiff_t *count = get((size_t)n * sizeof *count);
    for (ptrdiff_t r = 0; r < n; r++) {
        index[r] = columns + r * fan_in;
        value[r] = (char *)values + SIZE(r * fan_in);
        count[r] = 0;
        for (ptrdiff_t i = 0; i < fan_in; i++) {
            const ptrdiff_t to = r * fan_in + count[r];
            if (draw() % 4) continue;
            columns[to] = (int32_t)i;
            memcpy((char *)values + SIZE(to), (char *)x + SIZE(r * fan_in + i), item);
            count[r]++;
        }
    }
    const fnn_entries entries = {.index = index, .value = value, .count = count};
    k->sparse_forward(&entries, n, fan_in, w, b, fan_out, z, fan_out);
    say("sparse_forward", "", n, fan_in, fan_out, hashed_reals(START, z, n * fan_out));
    fnn_gradient job = gradient_job(0, delta, n, fan_in, fan_out, g, gb);
    k->sparse_gradient(&job, &entries, 0, (fan_in + FNN_SPARSE_UNIT - 1) / FNN_SPARSE_UNIT, scratch);
    say("sparse_gradient", "", n, fan_in, fan_out, hashed_reals(hashed_reals(START, g, fan_in * fan_out), gb, fan_out));
    free(index), free(value), free(x), free(w), free(b), free(z), free(delta), free(values);
    free(g), free(gb), free(scratch), free(columns), free(count);
}

/* Dense arrays whose zeros, half of the values, are skipped. All others are ordinary: how many columns are computed
 * without skipping depends on the instruction set, and there 0 times infinity is NaN. */
static void zeros(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t fan_out) {
    const int kept = special;
    special = 0;
    void *x = filled(n * fan_in, -2, 2), *w = filled(fan_in * fan_out, -1, 1), *b = filled(fan_out, -1, 1);
    void *delta = filled(n * fan_out, -1, 1), *z = get(SIZE(n * fan_out)), *d = get(SIZE(n * fan_in));
    void *scratch = get_scratch(fan_out, 1), *packed = get(SIZE(k->packed_elems(fan_in, fan_out)));
    for (ptrdiff_t i = 0; i < n * fan_in; i++)
        if (draw() % 2) put(x, i, 0);
    for (ptrdiff_t i = 0; i < n * fan_out; i++)
        if (draw() % 2) put(delta, i, 0);
    const void **x_rows = rows_of(x, n, fan_in), **delta_rows = rows_of(delta, n, fan_out);
    fnn_gradient job = gradient_job(x_rows, delta, n, fan_in, fan_out, w, b);
    job.density = job.accumulate = 1;
    k->dense_forward(x_rows, 1, fan_in, w, b, fan_out, z, fan_out, 1, scratch);
    uint64_t h = hashed_reals(START, z, fan_out);
    if (k->packed_elems(fan_in, fan_out)) {
        k->pack_weights(fan_in, fan_out, 0, fan_in, w, packed);
        k->dense_forward_packed(x_rows, n, fan_in, packed, b, fan_out, z, fan_out, 1, scratch);
        h = hashed_reals(h, z, n * fan_out);
    }
    k->dense_backward(delta_rows, n, fan_in, w, fan_out, d, fan_in, 1, scratch);
    k->dense_gradient(&job, 0, k->gradient_units(fan_in, fan_out), scratch);
    h = hashed_reals(hashed_reals(h, d, n * fan_in), w, fan_in * fan_out);
    say("zeros", "", n, fan_in, fan_out, h);
    free_rows(x_rows, n), free_rows(delta_rows, n), free(x), free(w), free(b), free(delta), free(z), free(d);
    free(scratch), free(packed);
    special = kept;
}

/* Two steps of a small network in padded memory. */
static void small(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t width, ptrdiff_t fan_out) {
    const ptrdiff_t sizes[] = {fan_in, width, fan_out}, n_parameters = (fan_in + 1) * width + (width + 1) * fan_out;
    const int activations[] = {(int)below(FNN_ACTIVATION_softmax), FNN_ACTIVATION_identity};
    const int optimizer = (int)below(FNN_N_OPTIMIZERS), n_slots = fnn_optimizer_slots(optimizer);
    fnn_small net;
    const ptrdiff_t bytes = k->small_layout(2, sizes, activations, n, n_slots, 0, &net);
    char *memory = memset(get((size_t)bytes), 0, (size_t)bytes);
    k->small_layout(2, sizes, activations, n, n_slots, memory, &net);
    void *state[3] = {filled(n_parameters, -1, 1), 0, 0};
    for (int s = 0; s < n_slots; s++) state[1 + s] = filled(n_parameters, 0.1, 1);
    void *x = filled(n * fan_in, -2, 2), *t = filled(n * fan_out, -1, 1), *scratch = get_scratch(fan_out, 0);
    int64_t *samples = get((size_t)n * sizeof *samples);
    double *row_loss = get((size_t)n * sizeof *row_loss);
    for (ptrdiff_t r = 0; r < n; r++) samples[r] = n - 1 - r;
    fnn_loss loss = {.loss = FNN_LOSS_squared_error,
                     .link = FNN_ACTIVATION_identity,
                     .n_outputs = fan_out,
                     .targets = t,
                     .total_weight = (double)n};
    k->small_load(&net, state[0], state[1], state[2]);
    uint64_t h = START;
    for (int step = 0; step < 2; step++) {
        const double l2 = 0.01 * step;
        k->small_step(&net, n, x, (ptrdiff_t)SIZE(fan_in), &loss, samples, optimizer, scalars, l2, row_loss, scratch);
        h = hashed_doubles(h, row_loss, n);
    }
    k->small_store(&net, state[0], state[1], state[2]);
    for (int s = 0; s <= n_slots; s++) h = hashed_reals(h, state[s], n_parameters);
    say("small_step", fnn_optimizer_name(optimizer), n, fan_in, width, h);
    for (int s = 0; s <= n_slots; s++) free(state[s]);
    free(memory), free(x), free(t), free(scratch), free(samples), free(row_loss);
}

static const fnn_kernels *find(const char *name) {
#ifdef FNN_EMULATED_AVX512
    if (strcmp(name, "avx512") == 0) return dtype == FNN_F32 ? &fnn_kernels_f32_avx512 : &fnn_kernels_f64_avx512;
#endif
    for (int i = 0; i < fnn_isa_count(); i++)
        if (strcmp(name, fnn_isa_name(i)) == 0) return fnn_kernels_for(i, dtype);
    return 0;
}

int main(int argc, char **argv) {
    static const ptrdiff_t widths[] = {1,  2,  3,  4,  5,   7,   8,   10,  15,  16,  17,
                                       31, 33, 64, 65, 100, 255, 256, 257, 300, 513, 700};
    const ptrdiff_t n_widths = sizeof widths / sizeof *widths;
    const long n_shapes = argc > 2 ? strtol(argv[2], NULL, 10) : 60;
    for (dtype = 0; dtype < FNN_N_DTYPES; dtype++) {
        item = dtype == FNN_F32 ? sizeof(float) : sizeof(double);
        const fnn_kernels *k = argc > 1 ? find(argv[1]) : 0;
        if (!k) {
            fprintf(stderr, "usage: kernel_bits ISA [N_SHAPES]; no instruction set %s here\n",
                    argc > 1 ? argv[1] : "given");
            return 2;
        }
        for (long s = 0; s < n_shapes; s++) {
            ptrdiff_t n = 1 + below(s % 8 ? 40 : 800);
            ptrdiff_t fan_in = s % 3 ? 1 + below(70) : widths[below(n_widths)],
                      fan_out = s % 3 ? 1 + below(70) : widths[below(n_widths)];
            special = s % 4 == 3;
            dense(k, n, fan_in, fan_out);
            if (s % 4 >= 2) layers(k, n % 20 + 1, fan_out % 70 + 1);
            if (s % 4 >= 2) losses(k, n % 20 + 1, fan_out % 12 + 1);
            sparse(k, n, fan_in, fan_out);
            zeros(k, n, fan_in, fan_out);
            zeros(k, n, fan_in + 64, fan_out + 128);
            small(k, n % 64 + 1, fan_in % 64 + 1, fan_out % 64 + 1, n % 11 + 1);
        }
    }
    return 0;
}
