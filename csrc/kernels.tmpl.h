/* All kernels of one dtype and instruction set, and their table. isa_*.c includes this twice, with REAL, IS_FLOAT and
 * N(name) set; includes no system header, so that it may stand under a target pragma. */
#include "simd.h"
#include "vmath.tmpl.h"
#include "optimizer.tmpl.h"
#include "activation.tmpl.h"
#include "tile.tmpl.h"
#include "zeros.tmpl.h"
#include "dense.tmpl.h"
#include "loss.tmpl.h"
#include "sparse.tmpl.h"
#include "small.tmpl.h"
#include "random.tmpl.h"
#include "perceptron.tmpl.h"
#include "peak.tmpl.h"

#define SLOT(ret, name, args) .name = N(name),
const fnn_kernels N(fnn_kernels) = {
#include "kernels.def"
};
#undef SLOT

#include "undef.h"
