/* AVX-512 (F, BW, DQ, VL): 512-bit vectors. System headers come before the target pragma. */
#include "target.h"
#if FNN_TARGET_X86
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "fastnn.h"
#include "layout.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))),                   \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif
#define FNN_LEVEL_AVX512 1
#define VECTOR_BYTES 64
#define JOIN(name) name##_avx512
#include "dtypes.tmpl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fnn_no_avx512;
#endif
