/* Which instruction set runs: detect, select, and the names of all table rows. */
#include "fastnn.h"
#include "layout.h"
#include "target.h"

#include <string.h>

#if FNN_TARGET_X86
/* The builtin checks that the operating system saves the wide registers too. */
#define FNN_CPU_HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
#define FNN_CPU_HAS_AVX512                                                                                             \
    (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&  \
     __builtin_cpu_supports("avx512vl") && FNN_CPU_HAS_AVX2)
#else
#define FNN_CPU_HAS_AVX2 0
#define FNN_CPU_HAS_AVX512 0
#endif
#define FNN_HAVE_NEON FNN_TARGET_ARM64

extern const fnn_kernels fnn_kernels_f32_baseline, fnn_kernels_f64_baseline;
#if FNN_TARGET_X86
extern const fnn_kernels fnn_kernels_f32_avx2, fnn_kernels_f64_avx2, fnn_kernels_f32_avx512, fnn_kernels_f64_avx512;
#elif FNN_TARGET_ARM64
extern const fnn_kernels fnn_kernels_f32_neon, fnn_kernels_f64_neon;
#endif

static const fnn_kernels *const tables[FNN_N_ISAS][FNN_N_DTYPES] = {
    [FNN_ISA_baseline] = {&fnn_kernels_f32_baseline, &fnn_kernels_f64_baseline},
#if FNN_TARGET_X86
    [FNN_ISA_avx2] = {&fnn_kernels_f32_avx2, &fnn_kernels_f64_avx2},
    [FNN_ISA_avx512] = {&fnn_kernels_f32_avx512, &fnn_kernels_f64_avx512},
#elif FNN_TARGET_ARM64
    [FNN_ISA_neon] = {&fnn_kernels_f32_neon, &fnn_kernels_f64_neon},
#endif
};

int fnn_isa_count(void) {
    return FNN_N_ISAS;
}

const char *fnn_isa_name(int isa) {
#define ISA(name, present) #name,
    static const char *const names[] = {
#include "isas.def"
    };
#undef ISA
    return isa >= 0 && isa < FNN_N_ISAS ? names[isa] : 0;
}

int fnn_isa_available(int isa) {
    switch (isa) {
#define ISA(name, present)                                                                                             \
    case FNN_ISA_##name: return (present) && tables[FNN_ISA_##name][FNN_F32] != 0;
#include "isas.def"
#undef ISA
    }
    return 0;
}

int fnn_isa_best(void) {
    int best = 0;
    for (int isa = 0; isa < FNN_N_ISAS; isa++)
        if (fnn_isa_available(isa)) best = isa;
    return best;
}

const fnn_kernels *fnn_kernels_for(int isa, int dtype) {
    return fnn_isa_available(isa) ? tables[isa][dtype] : 0;
}

const fnn_kernels *fnn_kernels_for_net(int isa, int dtype, ptrdiff_t widest) {
    const ptrdiff_t lanes_of_avx2 = dtype == FNN_F32 ? 8 : 4;
    if (isa == FNN_ISA_avx512 && widest <= lanes_of_avx2) isa = FNN_ISA_avx2;
    return fnn_kernels_for(isa, dtype);
}

#define SLOT(ret, name, args) {#name, offsetof(fnn_kernels, name)},
static const struct {
    const char *name;
    size_t offset;
} slots[] = {
#include "kernels.def"
};
#undef SLOT

const char *fnn_slot_name(int slot) {
    return slot >= 0 && slot < (int)(sizeof slots / sizeof *slots) ? slots[slot].name : 0;
}

void *fnn_slot_address(int isa, int dtype, int slot) {
    const fnn_kernels *kernels = fnn_kernels_for(isa, dtype);
    void *address = 0;
    if (kernels && fnn_slot_name(slot)) memcpy(&address, (const char *)kernels + slots[slot].offset, sizeof address);
    return address;
}

const char *fnn_activation_name(int activation) {
#define ACTIVATION(name, needs_z, value, derivative) #name,
    static const char *const names[] = {
#include "activations.def"
        "softmax"};
#undef ACTIVATION
    return activation >= 0 && activation < FNN_N_ACTIVATIONS ? names[activation] : 0;
}

int fnn_activation_needs_z(int activation) {
#define ACTIVATION(name, needs_z, value, derivative) needs_z,
    static const char needs[] = {
#include "activations.def"
        0};
#undef ACTIVATION
    return activation == FNN_USER || (activation >= 0 && activation < FNN_N_ACTIVATIONS && needs[activation]);
}

const char *fnn_loss_name(int loss) {
#define LOSS(name, link, value, gradient, logit_value, logit_gradient) #name,
    static const char *const names[] = {
#include "losses.def"
    };
#undef LOSS
    return loss >= 0 && loss < FNN_N_LOSSES ? names[loss] : 0;
}

#define OPTIMIZER(name, n_slots, n_scalars, ...) {#name, n_slots, n_scalars},
static const struct {
    const char *name;
    int n_slots, n_scalars;
} optimizers[] = {
#include "optimizers.def"
};
#undef OPTIMIZER

const char *fnn_optimizer_name(int optimizer) {
    return optimizer >= 0 && optimizer < FNN_N_OPTIMIZERS ? optimizers[optimizer].name : 0;
}
int fnn_optimizer_slots(int optimizer) {
    return optimizers[optimizer].n_slots;
}
int fnn_optimizer_scalars(int optimizer) {
    return optimizers[optimizer].n_scalars;
}

size_t fnn_scratch_bytes(ptrdiff_t n_outputs, int with_gradient, int with_skipping) {
    size_t n = FNN_PANEL_BYTES + FNN_POINTERS_BYTES + FNN_WORK_BYTES + (size_t)n_outputs * FNN_LOSS_BYTES_PER_OUTPUT;
    if (with_gradient && n < FNN_GRADIENT_BYTES) n = FNN_GRADIENT_BYTES;
    if (with_skipping && n < FNN_KEPT_AT + FNN_KEPT_BYTES) n = FNN_KEPT_AT + FNN_KEPT_BYTES;
    return (n + FNN_ALIGN_BYTES - 1) / FNN_ALIGN_BYTES * FNN_ALIGN_BYTES;
}

ptrdiff_t fnn_row_stride(ptrdiff_t width, ptrdiff_t item_bytes) {
    ptrdiff_t lines = (width * item_bytes + FNN_ALIGN_BYTES - 1) / FNN_ALIGN_BYTES;
    return (lines | 1) * FNN_ALIGN_BYTES / item_bytes;
}

ptrdiff_t fnn_size_product(ptrdiff_t a, ptrdiff_t b) {
    ptrdiff_t product;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &product) ? -1 : product;
}
