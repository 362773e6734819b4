"""Elementary functions for code that Numba compiles: the kernels' own, as in csrc/vmath.tmpl.h.

The same polynomials in the same order, with explicit fused multiply-adds: so they vectorise (no
call into a C library is left), and give the bits of the compiled kernels where the processor has
FMA. Without it, both round twice. Errors are those of csrc/README.md.

`library` is a module to put in place of `math` in the tables' scalar formulas.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from types import ModuleType
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from fastnn.tables.scalars import Scalar, with_constants

__all__ = [
    "CACHED",
    "HAS_FMA",
    "emit_fma",
    "fma",
    "inlined",
    "inner",
    "jit",
    "library",
    "scalar_function",
]

# mypy would take an intrinsic for the function that types it.
intrinsic: Any = extending.intrinsic
_njit: Any = numba.njit  # whose annotations lack options

# No fastmath: the order of operations is part of what the tests compare.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
# Numba's cache on disk knows a function by its file and line, not by what its constants and globals
# are: safe for the driver, whose kernels reach it as addresses, and not for kernels made here.
CACHED = os.environ.get("FASTNN_NUMBA_CACHE", "0").strip() not in ("", "0")
jit: Any = _njit(**_OPTIONS, cache=CACHED)
# Called from compiled code only: what Python needs to call them is left out, it takes long.
inner: Any = _njit(**_OPTIONS, no_cpython_wrapper=True, cache=CACHED)
inlined: Any = _njit(**_OPTIONS, no_cpython_wrapper=True, forceinline=True)


def _machine_features() -> frozenset[str]:
    """What the processor that Numba compiles for has, in LLVM's words."""
    settings: Any = numba.config  # NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
    if settings.CPU_NAME is not None:
        given = (settings.CPU_FEATURES or "").split(",")
        return frozenset(name[1:] for name in given if name.startswith("+"))
    try:
        return frozenset(name for name, there in llvm.get_host_cpu_features().items() if there)
    except RuntimeError:  # LLVM does not know this processor
        return frozenset()


def _has_fma() -> bool:
    machine = llvm.get_process_triple().split("-")[0]
    return machine in ("aarch64", "arm64") or "fma" in MACHINE_FEATURES


MACHINE_FEATURES = _machine_features()
HAS_FMA = _has_fma()
"""Whether a * b + c is rounded once; else twice, like in the baseline kernels."""


def _declare(builder: ir.IRBuilder, name: str, kind: Any, n_arguments: int) -> Any:
    """An intrinsic whose arguments and result are all of one type."""
    vector = isinstance(kind, ir.VectorType)
    element = kind.element if vector else kind
    suffix = ("v" + str(kind.count) if vector else "") + element.intrinsic_name
    signature = ir.FunctionType(kind, [kind] * n_arguments)
    return cgutils.get_or_insert_function(builder.module, signature, f"{name}.{suffix}")


def emit_fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    """IR of ``a * b + c``, of numbers or vectors."""
    if HAS_FMA:
        function = _declare(builder, "llvm.fma", a.type, 3)
        return builder.call(function, [a, b, c])
    return builder.fadd(builder.fmul(a, b), c)


@intrinsic
def fma(typingctx, a, b, c):
    """``a * b + c``, rounded once."""

    def codegen(context, builder, signature, args):
        return emit_fma(builder, *args)

    return a(a, a, a), codegen


@intrinsic
def copysign(typingctx, size, sign):
    """`size` with the sign of `sign`."""

    def codegen(context, builder, signature, args):
        return builder.call(_declare(builder, "llvm.copysign", args[0].type, 2), args)

    return size(size, size), codegen


# Integers of the number's own width. Numba would widen them to 64 bits, and halve the vectors.


def _layout(real: Any) -> tuple[Any, Any, int, int]:
    """(integer type of Numba, of LLVM, bits of the mantissa, bias of the exponent)."""
    if real == types.float32:
        return types.int32, ir.IntType(32), 23, 127
    return types.int64, ir.IntType(64), 52, 1023


_WIDTHS: dict[Any, Any] = {types.int32: types.float32, types.int64: types.float64}


@intrinsic
def _integer_bits(typingctx, rounded, magic):
    """n, of ``rounded = n + magic``, whose low bits hold it."""
    number, integer, _, _ = _layout(rounded)

    def codegen(context, builder, signature, args):
        a, b = (builder.bitcast(x, integer) for x in args)
        return builder.sub(a, b)

    return number(rounded, rounded), codegen


@intrinsic
def _halve(typingctx, n):
    """N / 2 rounded down, n being negative or not."""

    def codegen(context, builder, signature, args):
        (x,) = args
        shifted = builder.lshr(builder.add(x, ir.Constant(x.type, 4096)), ir.Constant(x.type, 1))
        return builder.sub(shifted, ir.Constant(x.type, 2048))

    return n(n), codegen


@intrinsic
def _minus(typingctx, n, m):
    def codegen(context, builder, signature, args):
        return builder.sub(*args)

    return n(n, n), codegen


@intrinsic
def _two_to_the(typingctx, n):
    """2**n for normal results."""
    real = _WIDTHS[n]
    _, _, mantissa, bias = _layout(real)

    def codegen(context, builder, signature, args):
        (x,) = args
        biased = builder.add(x, ir.Constant(x.type, bias))
        shifted = builder.shl(biased, ir.Constant(x.type, mantissa))
        return builder.bitcast(shifted, context.get_value_type(real))

    return real(n), codegen


@intrinsic
def _above_bias(typingctx, n):
    """Whether 2**n is beyond the largest number."""
    _, _, _, bias = _layout(_WIDTHS[n])

    def codegen(context, builder, signature, args):
        (x,) = args
        return builder.icmp_signed(">", x, ir.Constant(x.type, bias))

    return types.boolean(n), codegen


@intrinsic
def _exponent(typingctx, x):
    """K such that ``x / 2**k`` lies in [sqrt(1/2), sqrt(2)), for normal x > 0."""
    number, integer, mantissa, bias = _layout(x)
    offset = 0x3F3504F3 if mantissa == 23 else 0x3FE6A09E667F3BCD

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], integer)
        shift = ir.Constant(integer, (bias << mantissa) - offset)
        biased = builder.lshr(builder.add(bits, shift), ir.Constant(integer, mantissa))
        return builder.sub(biased, ir.Constant(integer, bias))

    return number(x), codegen


@intrinsic
def _without_exponent(typingctx, x, k):
    """``x / 2**k``, by the bits."""
    _, integer, mantissa, _ = _layout(x)

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], integer)
        bits = builder.sub(bits, builder.shl(args[1], ir.Constant(integer, mantissa)))
        return builder.bitcast(bits, args[0].type)

    return x(x, k), codegen


@intrinsic
def _real(typingctx, k):
    """An integer as a number of its width."""
    real = _WIDTHS[k]

    def codegen(context, builder, signature, args):
        return builder.sitofp(args[0], context.get_value_type(real))

    return real(k), codegen


def _polynomial(float32: str, float64: str) -> Any:
    """Horner's rule, highest coefficient first, fused; the coefficients depend on the dtype."""
    coefficients = {
        types.float32: [float(np.float32(float.fromhex(c))) for c in float32.split()],
        types.float64: [float.fromhex(c) for c in float64.split()],
    }

    @intrinsic
    def polynomial(typingctx, x):
        def codegen(context, builder, signature, args):
            first, *others = (ir.Constant(args[0].type, c) for c in coefficients[x])
            value = first
            for c in others:
                value = emit_fma(builder, value, args[0], c)
            return value

        return x(x), codegen

    return polynomial


# (e^r - 1 - r) / r^2
_exp_tail = _polynomial(
    "0x1.6a236cp-10 0x1.123a6ap-7 0x1.5558f4p-5 0x1.55549p-3 0x1.fffffcp-2",
    "0x1.ad7ec8b8eba48p-26 0x1.28adce4c4785fp-22 0x1.71df26520a47ap-19 0x1.a01999ae123b1p-16 "
    "0x1.a01a0129a328ep-13 0x1.6c16c1844ad8fp-10 0x1.1111111127eb6p-7 0x1.55555555507f2p-5 "
    "0x1.55555555554f9p-3 0x1.000000000000ap-1",
)
# (log(1 + f) - 2 s) / s^3 in z = s^2, s = f / (2 + f)
_log_tail = _polynomial(
    "0x1.e2fddep-3 0x1.2438a8p-2 0x1.999a7cp-2 0x1.555554p-1",
    "0x1.2f0d9409b3015p-3 0x1.39a0f473b88abp-3 0x1.7466463275673p-3 0x1.c71c51e7d6fcbp-3 "
    "0x1.2492494217d16p-2 0x1.999999997fb2dp-2 0x1.5555555555593p-1",
)
# (tanh(x) / x - 1) / x^2 in x^2
_tanh_near = _polynomial(
    "-0x1.950042p-8 0x1.582fb6p-6 -0x1.b90948p-5 0x1.110c72p-3 -0x1.555548p-2",
    "0x1.a01b37028ffafp-15 -0x1.b4b06b0a24c83p-13 0x1.2ef6459aa43e8p-11 -0x1.7cd65ec3cb3c6p-10 "
    "0x1.d6c31bcedcc42p-9 -0x1.226dc51692215p-7 0x1.664f44d8bd9bfp-6 -0x1.ba1ba1a875fd5p-5 "
    "0x1.11111110fbf94p-3 -0x1.555555555543dp-2",
)
# erf(x) / x - 1 in x^2
_erf_near = _polynomial(
    "0x1.496a5ep-14 -0x1.a3f71p-11 0x1.5405b4p-8 -0x1.b7f90ep-6 0x1.ce2cf8p-4 -0x1.81273ep-2 "
    "0x1.06eba8p-3",
    "0x1.057a03d1dc616p-34 -0x1.386ae2bcada71p-30 0x1.f7a41d8645ec2p-27 -0x1.5f1d37d91ae3bp-23 "
    "0x1.b9def1bfeda34p-20 -0x1.f4d1df3c07744p-17 0x1.f9a321a1435fdp-14 -0x1.c02db3d8ee772p-11 "
    "0x1.565bcd0db035dp-8 -0x1.b82ce312849a0p-6 0x1.ce2f21a042b20p-4 -0x1.812746b0379e6p-2 "
    "0x1.06eba8214db69p-3",
)
# (1 - erf(x)) e^(x^2) in 1 / (x + 2)
_erf_far = _polynomial(
    "-0x1.d88b44p+2 0x1.45e114p+3 -0x1.071644p-1 0x1.96301cp+0 0x1.09f92ap-1 0x1.dc928p-10",
    "0x1.2747f9f2cfdf2p+9 -0x1.0a2c6261e1704p+11 0x1.a03534f37332bp+11 -0x1.64787fa53cde6p+11 "
    "0x1.4fb7edb3b8556p+10 -0x1.f9e4b59f18d48p+7 -0x1.7c4e9a3b689b0p+5 0x1.f9d78d95a4bd4p+4 "
    "-0x1.b6d29ab91b837p+3 0x1.62993690341afp+2 0x1.33d88206f4c6bp+1 0x1.0219b4c666a98p+1 "
    "0x1.2026a7228e117p+0 0x1.20ec2b831f5b2p-1 -0x1.153bd74c0eb9cp-19",
)

# What the functions below read; `library` puts the dtype's own in place.
_CONSTANTS: dict[Any, dict[str, float]] = {
    np.float32: {
        "MAGIC": 12582912.0,  # 1.5 * 2^23: adding it rounds to an integer, held in the low bits
        "LN2_HIGH": 0.693145751953125,
        "LN2_LOW": 1.42860682030941723212e-6,
        "EXP_MAX": 89.0,
        "EXP_MIN": -104.0,
        "EXPM1_MIN": -20.0,
        "EXPM1_TINY": 1e-10,
        "SMALLEST_NORMAL": 2.0**-126,
        "SUBNORMAL_EXPONENT": 24.0,
        "SUBNORMAL_SCALE": 2.0**24,
        "LOG1P_TINY": 2.0**-30,
        "TANH_MAX": 20.0,
        "ERF_MAX": 4.2,
    },
    np.float64: {
        "MAGIC": 6755399441055744.0,  # 1.5 * 2^52
        "LN2_HIGH": 6.93147180369123816490e-01,
        "LN2_LOW": 1.90821492927058770002e-10,
        "EXP_MAX": 710.0,
        "EXP_MIN": -746.0,
        "EXPM1_MIN": -45.0,
        "EXPM1_TINY": 1e-20,
        "SMALLEST_NORMAL": 2.0**-1022,
        "SUBNORMAL_EXPONENT": 54.0,
        "SUBNORMAL_SCALE": 2.0**54,
        "LOG1P_TINY": 2.0**-60,
        "TANH_MAX": 44.0,
        "ERF_MAX": 6.2,
    },
}
MAGIC = LN2_HIGH = LN2_LOW = EXP_MAX = EXP_MIN = EXPM1_MIN = EXPM1_TINY = math.nan
SMALLEST_NORMAL = SUBNORMAL_EXPONENT = SUBNORMAL_SCALE = LOG1P_TINY = TANH_MAX = ERF_MAX = math.nan
LOG2_E = 1.4426950408889634074
INFINITY = math.inf
NAN = math.nan


def exp_parts(x):
    """P and n of ``e^x = 2^n (1 + p)``; p is expm1 of the remainder in [-ln2/2, ln2/2]."""
    t = fma(x, LOG2_E, MAGIC)
    n = t - MAGIC
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x))
    return fma(r * r, _exp_tail(r), r), _integer_bits(t, MAGIC)


def exp(x):
    """e^x; 2^n is applied in two halves, so that results below the normal range round once."""
    clipped = EXP_MIN if x < EXP_MIN else min(x, EXP_MAX)
    p, n = exp_parts(clipped)
    half = _halve(n)
    return (1.0 + p) * _two_to_the(half) * _two_to_the(_minus(n, half))


def expm1(x):
    """e^x - 1 without cancellation near 0."""
    clipped = EXPM1_MIN if x < EXPM1_MIN else min(x, EXP_MAX)
    p, n = exp_parts(clipped)
    half = _halve(n)
    # 2^n p + (2^n - 1); 2^n in one piece while it has one, else the 1 is far below half an ulp
    scale = _two_to_the(n)
    large = (1.0 + p) * _two_to_the(half) * _two_to_the(_minus(n, half))
    e = large if _above_bias(n) else fma(scale, p, scale - 1.0)
    return x if abs(x) < EXPM1_TINY else e  # keeps -0 and subnormals


def log_corrected(x, c):
    """log(m) for ``m = x / 2^k`` in [sqrt(1/2), sqrt(2)), plus k ln 2, corrected by c."""
    subnormal = x < SMALLEST_NORMAL
    scaled = x * SUBNORMAL_SCALE if subnormal else x
    k = _exponent(scaled)
    f = _without_exponent(scaled, k) - 1.0
    kf = _real(k) - (SUBNORMAL_EXPONENT if subnormal else 0.0)
    s = f / (2.0 + f)
    z = s * s
    r = z * _log_tail(z)
    # f - (f^2/2 - s (f^2/2 + R)), the sum in the order of falling size
    half = 0.5 * f * f
    y = fma(s, half + r, fma(kf, LN2_LOW, c)) - half
    y = fma(kf, LN2_HIGH, y + f)
    y = -INFINITY if x == 0.0 else y
    y = x if x == INFINITY else y
    return NAN if x < 0.0 else y if x == x else x  # noqa: PLR0124


def log(x):
    """log(0) = -inf, log of a negative number = NaN."""
    return log_corrected(x, 0.0)


def log1p(x):
    """log(1 + x): the rounding of 1 + x is put back to first order."""
    u = 1.0 + x
    c = (x - (u - 1.0) if x < 1.0 else 1.0 - (u - x)) / u
    y = log_corrected(u, 0.0 if u == INFINITY else c)
    return x if abs(x) < LOG1P_TINY else y


def tanh(x):
    """X + x^3 P(x^2) near 0, 1 - 2 / (e^2|x| + 1) from there on."""
    a = abs(x)
    t = x * x
    near = fma(a * t, _tanh_near(t), a)
    twice = a + a
    p, n = exp_parts(min(twice, TANH_MAX))
    scale = _two_to_the(n)
    far = 1.0 - 2.0 / fma(scale, p, scale + 1.0)
    return copysign(near if a < 0.5625 else far, x)


def erf(x):
    """X + x P(x^2) below 1; 1 - exp(-x^2) Q(1 / (x + 2)) above."""
    a = abs(x)
    near = fma(x, _erf_near(x * x), x)
    a = min(a, ERF_MAX)
    far = copysign(1.0 - exp(-(a * a)) * _erf_far(1.0 / (a + 2.0)), x)
    return near if abs(x) < 1.0 else far


@lru_cache(maxsize=2)
def library(dtype: Any) -> ModuleType:
    """`math` with these functions, compiled for a dtype, in place of its own.

    Parameters
    ----------
    dtype : type
        numpy.float32 or numpy.float64.

    Returns
    -------
    module
    """
    scalar = np.dtype(dtype).type
    names: dict[str, Any] = {key: scalar(c) for key, c in _CONSTANTS[scalar].items()}
    module = ModuleType(f"fastnn_math_{np.dtype(dtype)}")
    module.__dict__.update({key: value for key, value in vars(math).items() if key[0] != "_"})
    for function in (exp_parts, exp, expm1, log_corrected, log, log1p, tanh, erf):
        compiled = inlined(with_constants(function, scalar, names))
        names[function.__name__] = compiled
        setattr(module, function.__name__, compiled)
    return module


@lru_cache(maxsize=1024)
def scalar_function(formula: Scalar, dtype: Any) -> Any:
    """A scalar formula of the tables, compiled for a dtype with these elementary functions."""
    if isinstance(formula, numba.core.registry.CPUDispatcher):
        return formula
    return inlined(with_constants(formula, dtype, {"math": library(np.dtype(dtype).type)}))
