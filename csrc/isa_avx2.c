/* AVX2 and FMA: 256-bit vectors. System headers come before the target pragma. */
#include "target.h"
#if FNN_TARGET_X86
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "fastnn.h"
#include "layout.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define FNN_LEVEL_AVX2 1
#define VECTOR_BYTES 32
#define JOIN(name) name##_avx2
#include "dtypes.tmpl.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int fnn_no_avx2;
#endif
