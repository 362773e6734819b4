/* The templates once per dtype. JOIN(name) appends the instruction set; isa_*.c defines it. */
#define REAL float
#define IS_FLOAT 1
#define N(name) JOIN(name##_f32)
#include "kernels.tmpl.h"
#define REAL double
#define IS_FLOAT 0
#define N(name) JOIN(name##_f64)
#include "kernels.tmpl.h"
