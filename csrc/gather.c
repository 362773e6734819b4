/* Rows of arrays as they come: any numeric kind, any strides, converted to the model's dtype. */
#include "fastnn.h"

#include <math.h>
#include <string.h>

/* clang-format off */
#define KINDS(M)                                                                                                       \
    M(FNN_KIND_F32, float) M(FNN_KIND_F64, double) M(FNN_KIND_I8, int8_t) M(FNN_KIND_I16, int16_t)                     \
    M(FNN_KIND_I32, int32_t) M(FNN_KIND_I64, int64_t) M(FNN_KIND_U8, uint8_t) M(FNN_KIND_U16, uint16_t)                \
    M(FNN_KIND_U32, uint32_t) M(FNN_KIND_U64, uint64_t)
/* clang-format on */

/* Values side by side and aligned convert in one loop, which compilers vectorize; others may lie at any address, where
 * memcpy is how C reads them. */
#define CONVERT(kind_id, type)                                                                                         \
    case kind_id:                                                                                                      \
        if (x->col_stride_bytes == (ptrdiff_t)sizeof(type) && (uintptr_t)row % sizeof(type) == 0) {                    \
            const type *from = (const type *)(const void *)row;                                                        \
            if (dtype == FNN_F32)                                                                                      \
                for (ptrdiff_t j = 0; j < x->n_cols; j++) ((float *)to)[j] = (float)from[j];                           \
            else                                                                                                       \
                for (ptrdiff_t j = 0; j < x->n_cols; j++) ((double *)to)[j] = (double)from[j];                         \
            break;                                                                                                     \
        }                                                                                                              \
        for (ptrdiff_t j = 0; j < x->n_cols; j++) {                                                                    \
            type value;                                                                                                \
            memcpy(&value, row + j * x->col_stride_bytes, sizeof value);                                               \
            if (dtype == FNN_F32)                                                                                      \
                ((float *)to)[j] = (float)value;                                                                       \
            else                                                                                                       \
                ((double *)to)[j] = (double)value;                                                                     \
        }                                                                                                              \
        break;

static ptrdiff_t item_bytes(int kind) {
#define SIZE(kind_id, type)                                                                                            \
    case kind_id: return (ptrdiff_t)sizeof(type);
    switch (kind) { KINDS(SIZE) }
    return 0;
}

void fnn_gather(const fnn_array *x, const int64_t *samples, ptrdiff_t first, ptrdiff_t n_rows, int dtype, void *dst,
                ptrdiff_t ldd) {
    const ptrdiff_t size = dtype == FNN_F32 ? (ptrdiff_t)sizeof(float) : (ptrdiff_t)sizeof(double);
    const int same = x->kind == (dtype == FNN_F32 ? FNN_KIND_F32 : FNN_KIND_F64) && x->col_stride_bytes == size;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const char *row = x->data + (samples ? samples[i] : first + i) * x->row_stride_bytes;
        char *to = (char *)dst + i * ldd * size;
        if (same) {
            memcpy(to, row, (size_t)(x->n_cols * size));
            continue;
        }
        switch (x->kind) { KINDS(CONVERT) }
    }
}

int fnn_in_place(const fnn_array *x, int dtype) {
    const ptrdiff_t size = item_bytes(x->kind);
    return x->kind == (dtype == FNN_F32 ? FNN_KIND_F32 : FNN_KIND_F64) &&
           (x->col_stride_bytes == size || x->n_cols == 1) && (uintptr_t)x->data % (uintptr_t)size == 0 &&
           x->row_stride_bytes % size == 0;
}

/* x - x is 0 for finite x and NaN for the others; the sum over a run tells without a branch per value. */
#define FINITE_RUN(type, limit)                                                                                        \
    {                                                                                                                  \
        type worst = 0;                                                                                                \
        if (x->col_stride_bytes == (ptrdiff_t)sizeof(type) && (uintptr_t)row % sizeof(type) == 0) {                    \
            const type *v = (const type *)(const void *)row;                                                           \
            type sums[16] = {0};                                                                                       \
            ptrdiff_t j = 0;                                                                                           \
            for (; j + 16 <= x->n_cols; j += 16)                                                                       \
                for (int l = 0; l < 16; l++) sums[l] += v[j + l] - v[j + l];                                           \
            for (; j < x->n_cols; j++) worst += v[j] - v[j];                                                           \
            for (int l = 0; l < 16; l++) worst += sums[l];                                                             \
        } else {                                                                                                       \
            for (ptrdiff_t j = 0; j < x->n_cols; j++) {                                                                \
                type value;                                                                                            \
                memcpy(&value, row + j * x->col_stride_bytes, sizeof value);                                           \
                worst += value - value;                                                                                \
            }                                                                                                          \
        }                                                                                                              \
        if (worst != 0) return i;                                                                                      \
    }

ptrdiff_t fnn_first_bad_row(const fnn_array *x, const int64_t *samples, ptrdiff_t begin, ptrdiff_t end, int dtype) {
    if (x->kind != FNN_KIND_F32 && x->kind != FNN_KIND_F64) return end;
    for (ptrdiff_t i = begin; i < end; i++) {
        const char *row = x->data + (samples ? samples[i] : i) * x->row_stride_bytes;
        if (x->kind == FNN_KIND_F32) {
            FINITE_RUN(float, 0)
        } else if (dtype == FNN_F64) {
            FINITE_RUN(double, 0)
        } else {
            for (ptrdiff_t j = 0; j < x->n_cols; j++) {
                double value;
                memcpy(&value, row + j * x->col_stride_bytes, sizeof value);
                if (!isfinite((float)value)) return i;
            }
        }
    }
    return end;
}

void fnn_prefetch_rows(const fnn_array *x, const int64_t *samples, ptrdiff_t n_rows) {
    enum { LINE_BYTES = 64, MOST_LINES = 64 };
    ptrdiff_t row_bytes = x->n_cols * x->col_stride_bytes;
    if (row_bytes < 0 || row_bytes > LINE_BYTES * MOST_LINES) row_bytes = LINE_BYTES * MOST_LINES;
    for (ptrdiff_t i = 0; i < n_rows; i++) {
        const char *row = x->data + samples[i] * x->row_stride_bytes;
        for (ptrdiff_t at = 0; at < row_bytes; at += LINE_BYTES) __builtin_prefetch(row + at, 0, 1);
    }
}
