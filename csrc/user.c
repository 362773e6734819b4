/* Functions of the user's, compiled at run time, over the rows of a layer.
 *
 * They take values that lie side by side, and are fast on many. So rows that leave little room between them are handed
 * over together with what is in that room, where that may be; else narrow rows are gathered into a buffer, since a call,
 * and what is left over of a vector, would cost more than the copies; wide ones are taken one by one. */
#include "fastnn.h"

#include <string.h>

#define BUFFER_BYTES 4096
/* Rows of fewer bytes are gathered. */
#define NARROW_BYTES 512

typedef struct {
    _Alignas(FNN_ALIGN_BYTES) char bytes[BUFFER_BYTES];
} buffer;

/* Rows from one stride to another; the dtypes have 4 and 8 bytes, and a call for a few of them would cost more. */
static void copy_rows(const char *from, ptrdiff_t from_stride, char *to, ptrdiff_t to_stride, ptrdiff_t n_rows,
                      ptrdiff_t row) {
    for (ptrdiff_t r = 0; r < n_rows; r++) {
        ptrdiff_t i = 0;
        for (; i + 16 <= row; i += 16) memcpy(to + i, from + i, 16);
        for (; i < row; i += 4) memcpy(to + i, from + i, 4);
        from += from_stride;
        to += to_stride;
    }
}

/* Whether the rows may be taken as one: nothing between them, or `whole` and less room than values. */
static int together(ptrdiff_t n_cols, ptrdiff_t ld, int whole) {
    return n_cols == ld || (whole && 2 * n_cols > ld);
}

void fnn_user_activate(fnn_user_value f, int dtype, ptrdiff_t n_rows, ptrdiff_t n_cols, void *y, ptrdiff_t ldy,
                       int whole) {
    const ptrdiff_t item = dtype == FNN_F32 ? 4 : 8, row = n_cols * item, stride = ldy * item;
    char *at = y;
    if (together(n_cols, ldy, whole)) {
        f(n_rows * ldy, y);
        return;
    }
    if (row >= NARROW_BYTES || n_rows == 1) {
        for (ptrdiff_t r = 0; r < n_rows; r++) f(n_cols, at + r * stride);
        return;
    }
    buffer b;
    const ptrdiff_t most = BUFFER_BYTES / row;
    while (n_rows > 0) {
        ptrdiff_t n = n_rows < most ? n_rows : most;
        copy_rows(at, stride, b.bytes, row, n, row);
        f(n * n_cols, b.bytes);
        copy_rows(b.bytes, row, at, stride, n, row);
        at += n * stride;
        n_rows -= n;
    }
}

void fnn_user_activate_backward(fnn_user_derivative df, int dtype, ptrdiff_t n_rows, ptrdiff_t n_cols, const void *z,
                                const void *y, ptrdiff_t ldy, void *delta, ptrdiff_t ldd, int whole) {
    const ptrdiff_t item = dtype == FNN_F32 ? 4 : 8, row = n_cols * item, stride = ldy * item, stride_d = ldd * item;
    const char *z_at = z, *y_at = y;
    char *d_at = delta;
    if (ldy == ldd && together(n_cols, ldy, whole)) {
        df(n_rows * ldy, z, y, delta);
        return;
    }
    if (row >= NARROW_BYTES || n_rows == 1) {
        for (ptrdiff_t r = 0; r < n_rows; r++) df(n_cols, z_at + r * stride, y_at + r * stride, d_at + r * stride_d);
        return;
    }
    buffer z_buffer, y_buffer, d_buffer;
    const ptrdiff_t most = BUFFER_BYTES / row;
    while (n_rows > 0) {
        ptrdiff_t n = n_rows < most ? n_rows : most;
        copy_rows(z_at, stride, z_buffer.bytes, row, n, row);
        copy_rows(y_at, stride, y_buffer.bytes, row, n, row);
        copy_rows(d_at, stride_d, d_buffer.bytes, row, n, row);
        df(n * n_cols, z_buffer.bytes, y_buffer.bytes, d_buffer.bytes);
        copy_rows(d_buffer.bytes, row, d_at, stride_d, n, row);
        z_at += n * stride;
        y_at += n * stride;
        d_at += n * stride_d;
        n_rows -= n;
    }
}
