/* Portable kernels: 128-bit vectors that every compiler lowers to what the target has. No fused multiply-add, so the
 * last bits differ from the other instruction sets'. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#include "fastnn.h"
#include "layout.h"
#define FNN_LEVEL_BASELINE 1
#define VECTOR_BYTES 16
#define JOIN(name) name##_baseline
#include "dtypes.tmpl.h"
