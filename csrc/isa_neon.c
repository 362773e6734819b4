/* NEON of 64-bit Arm: 128-bit vectors with fused multiply-add, part of every such processor. */
#include "target.h"
#if FNN_TARGET_ARM64
#include <arm_neon.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "fastnn.h"
#include "layout.h"
#define FNN_LEVEL_NEON 1
#define VECTOR_BYTES 16
#define JOIN(name) name##_neon
#include "dtypes.tmpl.h"
#else
typedef int fnn_no_neon;
#endif
