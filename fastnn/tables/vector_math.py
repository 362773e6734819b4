"""`math` for code that Numba compiles into loops over rows.

The functions of the C library are called number by number. These are the kernels' own
(csrc/vmath.tmpl.h has the formulas and their errors), operation by operation, so that LLVM can
write them into the loop and vectorize it; with fused multiply-adds they have the kernels' bits.
What is not here (sin, pow, ...) is the C library's.

`module(dtype)` is a stand-in for `math`. It imports Numba.
"""

from __future__ import annotations

import math
from functools import cache
from types import ModuleType
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastnn.tables.scalars import math_of

__all__ = ["HAS_FMA", "MACHINE_FEATURES", "fma", "inline", "module"]


def _machine_features() -> frozenset[str]:
    """What the processor that Numba compiles for has, in LLVM's words."""
    settings: Any = numba.config  # NUMBA_CPU_NAME and NUMBA_CPU_FEATURES
    if settings.CPU_NAME is not None:
        given = (settings.CPU_FEATURES or "").split(",")
        return frozenset(name[1:] for name in given if name.startswith("+"))
    try:
        features = llvmlite.binding.get_host_cpu_features()
    except RuntimeError:  # LLVM does not know this processor
        return frozenset()
    return frozenset(name for name, there in features.items() if there)


MACHINE_FEATURES = _machine_features()

HAS_FMA = (
    not llvmlite.binding.get_default_triple().startswith(("x86", "i386", "i686"))
    or "fma" in MACHINE_FEATURES
)
"""Whether the machine multiplies and adds in one rounding; a baseline x86 rounds twice."""


def _width(real: Any) -> tuple[Any, Any, int, int]:
    """(LLVM's float type, its integer type, bits of the mantissa, the exponent's bias)."""
    if real == types.float32:
        return ir.FloatType(), ir.IntType(32), 23, 127
    return ir.DoubleType(), ir.IntType(64), 52, 1023


def _magic(real: Any) -> float:
    """1.5 * 2^mantissa: added to a small number, it leaves an integer in the low bits."""
    return 12582912.0 if real == types.float32 else 6755399441055744.0


@intrinsic
def fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once where HAS_FMA."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if HAS_FMA:
            return builder.fma(*arguments)
        x, y, z = arguments
        return builder.fadd(builder.fmul(x, y), z)

    return a(a, a, a), generate


def _two_to_the(builder: Any, n: Any, real: Any) -> Any:
    floating, integer, mantissa, bias = _width(real)
    shifted = builder.shl(builder.add(n, integer(bias)), integer(mantissa))
    return builder.bitcast(shifted, floating)


def _rounded_integer(builder: Any, t: Any, real: Any) -> Any:
    floating, integer, _, _ = _width(real)
    magic = builder.bitcast(floating(_magic(real)), integer)
    return builder.sub(builder.bitcast(t, integer), magic)


def _halves(builder: Any, n: Any, real: Any) -> tuple[Any, Any]:
    """2^(n / 2) twice: their product is 2^n, also where that is no normal number."""
    _, integer, _, _ = _width(real)
    half = builder.lshr(builder.add(n, integer(4096)), integer(1))
    half = builder.sub(half, integer(2048))
    return _two_to_the(builder, half, real), _two_to_the(builder, builder.sub(n, half), real)


@intrinsic
def _scale(context: Any, t: Any) -> Any:
    """2^n, with n in the low bits of t."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _two_to_the(builder, _rounded_integer(builder, arguments[0], t), t)

    return t(t), generate


@intrinsic
def _scale_halves(context: Any, t: Any) -> Any:
    """2^n as a product of two."""
    result = types.UniTuple(t, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        n = _rounded_integer(builder, arguments[0], t)
        return context.make_tuple(builder, result, _halves(builder, n, t))

    return result(t), generate


@intrinsic
def _scale_if_normal(context: Any, t: Any) -> Any:
    """2^n where that is a normal number, else 1."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, integer, _, bias = _width(t)
        n = _rounded_integer(builder, arguments[0], t)
        normal = builder.icmp_signed("<", n, integer(bias))
        return _two_to_the(builder, builder.select(normal, n, integer(0)), t)

    return t(t), generate


@intrinsic
def _is_normal(context: Any, t: Any) -> Any:
    """Whether 2^n is a normal number."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, integer, _, bias = _width(t)
        return builder.icmp_signed("<", _rounded_integer(builder, arguments[0], t), integer(bias))

    return types.boolean(t), generate


@intrinsic
def _split(context: Any, x: Any) -> Any:
    """(m, k) with x = m 2^k and m in [sqrt(1/2), sqrt(2)); both floats, x normal."""
    result = types.UniTuple(x, 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        floating, integer, mantissa, bias = _width(x)
        offset = 0x3F3504F3 if x == types.float32 else 0x3FE6A09E667F3BCD
        bits = builder.bitcast(arguments[0], integer)
        biased = builder.add(builder.sub(bits, integer(offset)), integer(bias << mantissa))
        k = builder.sub(builder.lshr(biased, integer(mantissa)), integer(bias))
        m = builder.bitcast(builder.sub(bits, builder.shl(k, integer(mantissa))), floating)
        magic = floating(_magic(x))
        low = builder.bitcast(builder.add(builder.bitcast(magic, integer), k), floating)
        return context.make_tuple(builder, result, (m, builder.fsub(low, magic)))

    return result(x), generate


def _unary_intrinsic(name: str) -> Any:
    @intrinsic
    def function(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            called = builder.module.declare_intrinsic(f"llvm.{name}", [arguments[0].type])
            return builder.call(called, arguments)

        return x(x), generate

    return function


_floor, _ceil, _trunc = (_unary_intrinsic(name) for name in ("floor", "ceil", "trunc"))


@intrinsic
def _copysign(context: Any, x: Any, sign: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = arguments[0].type
        called = builder.module.declare_intrinsic(
            "llvm.copysign", [kind], ir.FunctionType(kind, [kind, kind])
        )
        return builder.call(called, arguments)

    return x(x, x), generate


_njit: Any = njit  # whose annotations lack options
# Called from compiled code only: what Python needs to call them is left out, it takes long.
inline = _njit(
    forceinline=True,
    error_model="numpy",
    nogil=True,
    no_cpython_wrapper=True,
    no_cfunc_wrapper=True,
)

# Coefficients, the highest first: those of csrc/vmath.tmpl.h.
_COEFFICIENTS = {
    "exp": (
        ("0x1.6a236cp-10 0x1.123a6ap-7 0x1.5558f4p-5 0x1.55549p-3 0x1.fffffcp-2"),
        (
            "0x1.ad7ec8b8eba48p-26 0x1.28adce4c4785fp-22 0x1.71df26520a47ap-19"
            " 0x1.a01999ae123b1p-16 0x1.a01a0129a328ep-13 0x1.6c16c1844ad8fp-10"
            " 0x1.1111111127eb6p-7 0x1.55555555507f2p-5 0x1.55555555554f9p-3 0x1.000000000000ap-1"
        ),
    ),
    "log": (
        "0x1.e2fddep-3 0x1.2438a8p-2 0x1.999a7cp-2 0x1.555554p-1",
        (
            "0x1.2f0d9409b3015p-3 0x1.39a0f473b88abp-3 0x1.7466463275673p-3 0x1.c71c51e7d6fcbp-3"
            " 0x1.2492494217d16p-2 0x1.999999997fb2dp-2 0x1.5555555555593p-1"
        ),
    ),
    "tanh": (
        "-0x1.950042p-8 0x1.582fb6p-6 -0x1.b90948p-5 0x1.110c72p-3 -0x1.555548p-2",
        (
            "0x1.a01b37028ffafp-15 -0x1.b4b06b0a24c83p-13 0x1.2ef6459aa43e8p-11"
            " -0x1.7cd65ec3cb3c6p-10 0x1.d6c31bcedcc42p-9 -0x1.226dc51692215p-7"
            " 0x1.664f44d8bd9bfp-6 -0x1.ba1ba1a875fd5p-5 0x1.11111110fbf94p-3 -0x1.555555555543dp-2"
        ),
    ),
    "erf_near": (
        (
            "0x1.496a5ep-14 -0x1.a3f71p-11 0x1.5405b4p-8 -0x1.b7f90ep-6 0x1.ce2cf8p-4"
            " -0x1.81273ep-2 0x1.06eba8p-3"
        ),
        (
            "0x1.057a03d1dc616p-34 -0x1.386ae2bcada71p-30 0x1.f7a41d8645ec2p-27"
            " -0x1.5f1d37d91ae3bp-23 0x1.b9def1bfeda34p-20 -0x1.f4d1df3c07744p-17"
            " 0x1.f9a321a1435fdp-14 -0x1.c02db3d8ee772p-11 0x1.565bcd0db035dp-8"
            " -0x1.b82ce312849a0p-6 0x1.ce2f21a042b20p-4 -0x1.812746b0379e6p-2 0x1.06eba8214db69p-3"
        ),
    ),
    "erf_far": (
        ("-0x1.d88b44p+2 0x1.45e114p+3 -0x1.071644p-1 0x1.96301cp+0 0x1.09f92ap-1 0x1.dc928p-10"),
        (
            "0x1.2747f9f2cfdf2p+9 -0x1.0a2c6261e1704p+11 0x1.a03534f37332bp+11"
            " -0x1.64787fa53cde6p+11 0x1.4fb7edb3b8556p+10 -0x1.f9e4b59f18d48p+7"
            " -0x1.7c4e9a3b689b0p+5 0x1.f9d78d95a4bd4p+4 -0x1.b6d29ab91b837p+3"
            " 0x1.62993690341afp+2 0x1.33d88206f4c6bp+1 0x1.0219b4c666a98p+1 0x1.2026a7228e117p+0"
            " 0x1.20ec2b831f5b2p-1 -0x1.153bd74c0eb9cp-19"
        ),
    ),
}


def _polynomial(name: str, dtype: np.dtype) -> Any:
    """Horner's rule in fused multiply-adds, written out: Numba unrolls no loop over a tuple."""
    text = _COEFFICIENTS[name][dtype == np.float64]
    real = dtype.type
    numbers = [real(float.fromhex(word)) for word in text.split()]
    names = [f"c{i}" for i in range(len(numbers))]
    expression = "c0"
    for c in names[1:]:
        expression = f"fma({expression}, x, {c})"
    namespace = {"fma": fma, **dict(zip(names, numbers, strict=True))}
    # Text of this module alone.
    exec(f"def polynomial(x):\n    return {expression}\n", namespace)  # noqa: S102
    return inline(namespace["polynomial"])


@cache
def module(dtype: Any) -> ModuleType:
    """A stand-in for the module `math`, of functions that Numba compiles for one dtype.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.

    Returns
    -------
    module
        exp, expm1, log, log1p, log2, log10, tanh, erf, floor, ceil, trunc and copysign of its
        own, constants of the dtype, and the rest of `math` as it is. floor, ceil and trunc return
        floats.
    """
    dtype = np.dtype(dtype)
    single = dtype == np.float32
    real = dtype.type

    def of(value: float) -> Any:
        return real(value)

    zero, one, two = of(0.0), of(1.0), of(2.0)
    log2_e, magic = of(1.4426950408889634074), of(_magic(types.float32 if single else None))
    ln2_high = of(0.693145751953125 if single else 6.93147180369123816490e-01)
    ln2_low = of(1.42860682030941723212e-6 if single else 1.90821492927058770002e-10)
    exp_min, exp_max = of(-104.0 if single else -746.0), of(89.0 if single else 710.0)
    expm1_min, tiny = of(-20.0 if single else -45.0), of(1e-10 if single else 1e-20)
    smallest = of(2.0**-126 if single else 2.0**-1022)
    lift, lifted = of(2.0**24 if single else 2.0**54), of(24.0 if single else 54.0)
    half, infinity, nan = of(0.5), of(math.inf), of(math.nan)
    log1p_tiny = of(2.0**-30 if single else 2.0**-60)
    tanh_near, tanh_max = of(0.5625), of(20.0 if single else 44.0)
    erf_max = of(4.2 if single else 6.2)
    log2_of_e, log10_of_e = of(math.log2(math.e)), of(math.log10(math.e))
    exp_polynomial, log_polynomial, tanh_polynomial, erf_near, erf_far = (
        _polynomial(name, dtype) for name in ("exp", "log", "tanh", "erf_near", "erf_far")
    )
    # In here they are called as Numba calls them: without the context.
    multiply_add: Any = fma
    scale: Any = _scale
    scale_halves: Any = _scale_halves
    scale_if_normal: Any = _scale_if_normal
    is_normal: Any = _is_normal
    split: Any = _split
    sign_of: Any = _copysign

    @inline
    def exp_parts(x: Any) -> Any:
        t = multiply_add(x, log2_e, magic)
        n = t - magic
        r = multiply_add(n, -ln2_high, x)
        r = multiply_add(n, -ln2_low, r)
        return t, multiply_add(r * r, exp_polynomial(r), r)

    @inline
    def clip(x: Any, low: Any, high: Any) -> Any:
        x = low if x < low else x
        return high if x > high else x

    @inline
    def exp(x: Any) -> Any:
        t, p = exp_parts(clip(x, exp_min, exp_max))
        low, high = scale_halves(t)
        return (one + p) * low * high

    @inline
    def expm1(x: Any) -> Any:
        t, p = exp_parts(clip(x, expm1_min, exp_max))
        low, high = scale_halves(t)
        factor = scale_if_normal(t)
        small = multiply_add(factor, p, factor - one)
        e = small if is_normal(t) else (one + p) * low * high
        return x if abs(x) < tiny else e

    @inline
    def log_corrected(x: Any, c: Any) -> Any:
        subnormal = x < smallest
        m, k = split(x * lift if subnormal else x)
        k = k - (lifted if subnormal else zero)
        f = m - one
        s = f / (two + f)
        z = s * s
        r = z * log_polynomial(z)
        square = half * f * f
        y = multiply_add(s, square + r, multiply_add(k, ln2_low, c)) - square
        y = multiply_add(k, ln2_high, y + f)
        y = -infinity if x == zero else y
        y = x if x == infinity else y
        y = x if x != x else y  # noqa: PLR0124
        return nan if x < zero else y

    @inline
    def log(x: Any) -> Any:
        return log_corrected(x, zero)

    @inline
    def log1p(x: Any) -> Any:
        u = one + x
        c = (x - (u - one) if x < one else one - (u - x)) / u
        y = log_corrected(u, zero if u == infinity else c)
        return x if abs(x) < log1p_tiny else y

    @inline
    def log2(x: Any) -> Any:
        return log(x) * log2_of_e

    @inline
    def log10(x: Any) -> Any:
        return log(x) * log10_of_e

    @inline
    def tanh(x: Any) -> Any:
        a = abs(x)
        t = x * x
        near = multiply_add(a * t, tanh_polynomial(t), a)
        e, p = exp_parts(clip(a + a, zero, tanh_max))
        factor = scale(e)
        far = one - two / multiply_add(factor, p, factor + one)
        return sign_of(near if a < tanh_near else far, x)

    @inline
    def erf(x: Any) -> Any:
        t = x * x
        near = multiply_add(x, erf_near(t), x)
        a = clip(abs(x), zero, erf_max)
        u = one / (a + two)
        tail = one - exp(zero - a * a) * erf_far(u)
        y = near if abs(x) < one else sign_of(tail, x)
        return x if x != x else y  # noqa: PLR0124

    stand_in = ModuleType("math", f"math for {dtype} in compiled loops")
    vars(stand_in).update(vars(math_of(dtype)))
    own = {
        "exp": exp,
        "expm1": expm1,
        "log": log,
        "log1p": log1p,
        "log2": log2,
        "log10": log10,
        "tanh": tanh,
        "erf": erf,
        "floor": _floor,
        "ceil": _ceil,
        "trunc": _trunc,
        "copysign": sign_of,
    }
    for name, value in own.items():
        setattr(stand_in, name, value)
    return stand_in
