/* Prints a hash of what every kernel computes, one line per slot, dtype and shape.
 *
 *   kernel_bits [ISA] [N_SHAPES]
 *
 * Built for another processor and run under an emulator, its lines must equal those of this machine: law 1 promises the
 * same bits for AVX2, AVX-512 and NEON (tools/emulate.sh). It shows that results agree; that they are right is what
 * tests/kernels shows. */
#include "fastnn.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

static uint64_t draw(void) { /* xorshift64 (Marsaglia 2003) */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static double uniform(double low, double high) {
    return low + (high - low) * (double)(draw() >> 11) * 0x1p-53;
}

static void *get(size_t bytes) {
    bytes = (bytes + 127) / 64 * 64;
    void *p = aligned_alloc(64, bytes);
    if (!p) abort();
    memset(p, 0, bytes);
    return p;
}

static int dtype;
static size_t item;

static void put(void *array, ptrdiff_t i, double value) {
    if (dtype == FNN_F32)
        ((float *)array)[i] = (float)value;
    else
        ((double *)array)[i] = value;
}

static void *filled(ptrdiff_t n, double low, double high) {
    void *p = get((size_t)n * item);
    for (ptrdiff_t i = 0; i < n; i++) put(p, i, uniform(low, high));
    return p;
}

static const void **pointers(const void *array, ptrdiff_t n_rows, ptrdiff_t n_cols) {
    const void **rows = get((size_t)n_rows * sizeof *rows);
    for (ptrdiff_t r = 0; r < n_rows; r++) rows[r] = (const char *)array + (size_t)(r * n_cols) * item;
    return rows;
}

static uint64_t hashed(uint64_t h, const void *data, size_t bytes) { /* FNV-1a, starting from h */
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++) h = (h ^ p[i]) * 1099511628211u;
    return h;
}

/* The same for numbers; all NaNs count as one, since their bits differ between processors. */
static uint64_t hashed_doubles(uint64_t h, const double *x, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) h = isnan(x[i]) ? hashed(h, "NaN", 3) : hashed(h, x + i, sizeof *x);
    return h;
}

static uint64_t hashed_reals(uint64_t h, const void *x, ptrdiff_t n) {
    if (dtype == FNN_F64) return hashed_doubles(h, x, n);
    for (ptrdiff_t i = 0; i < n; i++) {
        double value = ((const float *)x)[i];
        h = hashed_doubles(h, &value, 1);
    }
    return h;
}

static void say(const char *slot, const char *row, ptrdiff_t a, ptrdiff_t b, ptrdiff_t c, uint64_t h) {
    printf("%s %s%s%s %td x %td x %td %016llx\n", dtype == FNN_F32 ? "float32" : "float64", slot, *row ? " " : "", row,
           a, b, c, (unsigned long long)h);
}

#define SEED 14695981039346656037u
#define SIZE(n) ((size_t)(n) * item)

/* Hyperparameters that keep every optimizer in its normal range: column k of `scalars`. */
static const double scalars[8] = {0.01, 0.9, 0.7, 0.2, 0.8, 0.3, 1e-3, 0.99};

static void dense(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t fan_in, ptrdiff_t fan_out, void *scratch) {
    void *x = filled(n * fan_in, -2, 2), *w = filled(fan_in * fan_out, -1, 1), *b = filled(fan_out, -1, 1);
    void *z = get(SIZE(n * fan_out)), *d = get(SIZE(n * fan_in)), *g = get(SIZE(fan_in * fan_out)),
         *gb = get(SIZE(fan_out));
    const void **x_rows = pointers(x, n, fan_in);
    k->dense_forward(x_rows, n, fan_in, w, b, fan_out, z, fan_out, scratch);
    say("dense_forward", "", n, fan_in, fan_out, hashed_reals(SEED, z, n * fan_out));
    const void **z_rows = pointers(z, n, fan_out);
    k->dense_backward(z_rows, n, fan_in, w, fan_out, d, fan_in, scratch);
    say("dense_backward", "", n, fan_in, fan_out, hashed_reals(SEED, d, n * fan_in));
    for (int optimizer = -1; optimizer < FNN_N_OPTIMIZERS; optimizer++) {
        void *w2 = get(SIZE(fan_in * fan_out)), *b2 = get(SIZE(fan_out));
        void *slots[4];
        for (int s = 0; s < 4; s++) slots[s] = filled(s < 2 ? fan_in * fan_out : fan_out, 0.1, 1);
        memcpy(w2, w, SIZE(fan_in * fan_out));
        memcpy(b2, b, SIZE(fan_out));
        fnn_gradient job = {.input_rows = x_rows,
                            .delta = z,
                            .ldd = fan_out,
                            .n_rows = n,
                            .fan_in = fan_in,
                            .fan_out = fan_out,
                            .gradient = optimizer < 0 ? g : NULL,
                            .bias_gradient = optimizer < 0 ? gb : NULL,
                            .optimizer = optimizer,
                            .scalars = scalars,
                            .l2 = 0.01,
                            .weights = w2,
                            .bias = b2,
                            .weight_a = slots[0],
                            .weight_b = slots[1],
                            .bias_a = slots[2],
                            .bias_b = slots[3]};
        k->dense_gradient(&job, 0, k->gradient_units(fan_in, fan_out), scratch);
        uint64_t h = optimizer < 0 ? hashed_reals(hashed_reals(SEED, g, fan_in * fan_out), gb, fan_out)
                                   : hashed_reals(hashed_reals(SEED, w2, fan_in * fan_out), b2, fan_out);
        say("dense_gradient", optimizer < 0 ? "" : fnn_optimizer_name(optimizer), n, fan_in, fan_out, h);
        free(w2), free(b2);
        for (int s = 0; s < 4; s++) free(slots[s]);
    }
    free(x), free(w), free(b), free(z), free(d), free(g), free(gb), free(x_rows), free(z_rows);
}

static void layers(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t width) {
    for (int a = 0; a < FNN_ACTIVATION_softmax; a++) {
        void *z = filled(n * width, -6, 6), *y = get(SIZE(n * width)), *d = filled(n * width, -1, 1);
        k->activate(a, n, width, z, width, y, width);
        say("activate", fnn_activation_name(a), n, width, 0, hashed_reals(SEED, y, n * width));
        k->activate_backward(a, n, width, z, y, width, d, width);
        say("activate_backward", fnn_activation_name(a), n, width, 0, hashed_reals(SEED, d, n * width));
        free(z), free(y), free(d);
    }
    for (int f = 0; f < FNN_N_FUNCTIONS; f++) {
        void *x = filled(n * width, 0.01, 9), *y = get(SIZE(n * width));
        char name[16];
        snprintf(name, sizeof name, "function_%d", f);
        k->elementwise(f, n * width, x, y);
        say("elementwise", name, n, width, 0, hashed_reals(SEED, y, n * width));
        free(x), free(y);
    }
    int64_t *samples = get((size_t)n * sizeof *samples);
    for (ptrdiff_t r = 0; r < n; r++) samples[r] = (int64_t)(draw() >> 20);
    void *factor = get(SIZE(n * width)), *x = filled(n * width, -1, 1);
    k->dropout_factors(draw(), 2, 7, 1, 0.3, n, samples, width, factor, width);
    say("dropout_factors", "", n, width, 0, hashed_reals(SEED, factor, n * width));
    k->multiply(n, width, factor, width, x, width, x, width);
    say("multiply", "", n, width, 0, hashed_reals(SEED, x, n * width));
    double sum = k->sum_of_squares(n * width, x);
    say("sum_of_squares", "", n, width, 0, hashed_doubles(SEED, &sum, 1));
    k->add_scaled(n * width, 0.37, factor, x);
    say("add_scaled", "", n, width, 0, hashed_reals(SEED, x, n * width));
    uint64_t *draws = get((size_t)n * 2 * sizeof *draws);
    k->shuffle_draws(draw(), 3, (uint64_t)width, n, draws);
    say("shuffle_draws", "", n, width, 0, hashed(SEED, draws, (size_t)n * 2 * sizeof *draws));
    free(samples), free(factor), free(x), free(draws);
}

static void losses(const fnn_kernels *k, ptrdiff_t n, ptrdiff_t width, void *scratch) {
    static const int links[] = {FNN_ACTIVATION_identity, FNN_ACTIVATION_sigmoid, FNN_ACTIVATION_exp,
                                FNN_ACTIVATION_softmax, FNN_ACTIVATION_tanh};
    int64_t *samples = get((size_t)n * sizeof *samples);
    double *weight = get((size_t)n * sizeof *weight), *row_loss = get((size_t)n * sizeof *row_loss), total = 0;
    for (ptrdiff_t r = 0; r < n; r++) {
        samples[r] = n - 1 - r;
        total += weight[r] = uniform(0.5, 2);
    }
    for (int loss = 0; loss < FNN_N_LOSSES; loss++)
        for (size_t l = 0; l < sizeof links / sizeof *links; l++) {
            void *z = filled(n * width, -4, 4), *t = filled(n * width, 0.05, 0.95), *d = get(SIZE(n * width));
            fnn_loss job = {.loss = loss,
                            .link = links[l],
                            .parameter = 0.4,
                            .n_outputs = width,
                            .targets = t,
                            .sample_weight = weight,
                            .total_weight = total};
            /* Losses of positive outputs are not defined on links that go below 0. */
            int positive = links[l] != FNN_ACTIVATION_identity && links[l] != FNN_ACTIVATION_tanh;
            if (positive || !strstr("poisson binary_cross_entropy cross_entropy", fnn_loss_name(loss))) {
                if (links[l] == FNN_ACTIVATION_exp && strstr(fnn_loss_name(loss), "entropy"))
                    for (ptrdiff_t i = 0; i < n * width; i++) put(z, i, uniform(-4, -0.1)); /* exp(z) < 1 */
                k->loss(&job, n, z, width, samples, d, width, row_loss, scratch);
                char name[64];
                snprintf(name, sizeof name, "%s+%s", fnn_loss_name(loss), fnn_activation_name(links[l]));
                say("loss", name, n, width, 0, hashed_doubles(hashed_reals(SEED, d, n * width), row_loss, n));
            }
            free(z), free(t), free(d);
        }
    void *z = filled(n * width, -4, 4), *y = get(SIZE(n * width));
    k->softmax(n, width, z, width, y, width, scratch);
    say("softmax", "", n, width, 0, hashed_reals(SEED, y, n * width));
    free(z), free(y), free(samples), free(weight), free(row_loss);
}

int main(int argc, char **argv) {
    static const ptrdiff_t widths[] = {1,  2,  3,  4,  5,   7,   8,   10,  15,  16, 17,
                                       31, 33, 64, 65, 100, 255, 256, 257, 300, 700};
    const int n_widths = sizeof widths / sizeof *widths;
    int isa = fnn_isa_best();
    for (int i = 0; argc > 1 && i < fnn_isa_count(); i++)
        if (strcmp(argv[1], fnn_isa_name(i)) == 0) isa = fnn_isa_available(i) ? i : -1;
    if (isa < 0 || (argc > 1 && strcmp(argv[1], fnn_isa_name(isa)) != 0)) {
        fprintf(stderr, "no instruction set %s here\n", argv[1]);
        return 2;
    }
    const long n_shapes = argc > 2 ? strtol(argv[2], NULL, 10) : 60;
    fprintf(stderr, "kernel_bits: %s, %ld shapes\n", fnn_isa_name(isa), n_shapes);
    void *scratch = get(fnn_scratch_bytes(1000));
    for (dtype = 0; dtype < FNN_N_DTYPES; dtype++) {
        item = dtype == FNN_F32 ? 4 : 8;
        const fnn_kernels *k = fnn_kernels_for(isa, dtype);
        for (long s = 0; s < n_shapes; s++) {
            ptrdiff_t n = 1 + (ptrdiff_t)(draw() % (s % 8 ? 40 : 600));
            ptrdiff_t fan_in = widths[draw() % n_widths], fan_out = widths[draw() % n_widths];
            dense(k, n, fan_in, fan_out, scratch);
            if (s % 4 == 0) {
                layers(k, n % 40 + 1, fan_out);
                losses(k, n % 40 + 1, fan_out, scratch);
            }
        }
    }
    free(scratch);
    return 0;
}
