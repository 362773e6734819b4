/* The simple perceptron's error-correction step for one row and all its units:
 *
 *   u = x . w + b,  y = 1 where u > 0 else 0,  w += eta (t - y) x,  b += eta (t - y)
 *
 * (Rosenblatt 1958, doi:10.1037/h0042519.) x (fan_in,), target (n_outputs,) of 0 and 1, weights (fan_in, n_outputs),
 * bias (n_outputs,). All units see the row before any of their weights move. Returns the number of mistakes. Scratch
 * holds 2 n_outputs values. */
static ptrdiff_t N(perceptron_row)(const void *x_, ptrdiff_t fan_in, ptrdiff_t n_outputs, const uint8_t *target,
                                   double learning_rate, void *weights, void *bias_, void *scratch) {
    const REAL *x = x_;
    REAL *w = weights, *bias = bias_;
    REAL *u = N(split_scratch)(scratch).work, *step = u + n_outputs;
    const REAL *rows[1] = {x};
    const REAL rate = (REAL)learning_rate;
    ptrdiff_t mistakes = 0;
    N(dense_forward)((const void *const *)rows, 1, fan_in, w, bias, n_outputs, u, n_outputs, scratch);
    for (ptrdiff_t j = 0; j < n_outputs; j++) {
        int error = (int)target[j] - (u[j] > 0);
        step[j] = rate * (REAL)error;
        mistakes += error != 0;
    }
    if (mistakes == 0) return 0;
    if (n_outputs == 1) {
        const V s = N(splat)(step[0]);
        for (ptrdiff_t k = 0; k < fan_in; k += LANES)
            N(store_n)(w + k, N(load_n)(w + k, fan_in - k) + s * N(load_n)(x + k, fan_in - k), fan_in - k);
    } else {
        for (ptrdiff_t k = 0; k < fan_in; k++) {
            const V xk = N(splat)(x[k]);
            REAL *row = w + k * n_outputs;
            for (ptrdiff_t j = 0; j < n_outputs; j += LANES)
                N(store_n)(row + j, N(load_n)(row + j, n_outputs - j) + N(load_n)(step + j, n_outputs - j) * xk,
                           n_outputs - j);
        }
    }
    for (ptrdiff_t j = 0; j < n_outputs; j++) bias[j] += step[j];
    return mistakes;
}
