"""What kernels may touch: nothing outside their arguments, and not the processor's floating-point
state.
"""

import ctypes
import mmap
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guard_sweep import SWEEPS
from kernel_calls import DTYPES, FUNCTIONS, ISAS, SIGNATURES

SCRIPT = Path(__file__).parent / "guard_sweep.py"

needs_mprotect = pytest.mark.skipif(
    sys.platform == "win32", reason="guard pages are set with mprotect"
)


def run_sweep(*args):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@needs_mprotect
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("side", ["start", "end"])
def test_no_byte_outside_the_arguments(isa, dtype, side):
    """Every slot between guard pages, every length to two vectors and one; bits as in ordinary
    memory.
    """
    result = run_sweep(isa, dtype, side)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert set(result.stdout.split()[1:]) == set(SIGNATURES)


@needs_mprotect
@pytest.mark.parametrize("fault", ["read before", "read after", "write before", "write after"])
def test_guards_hold(fault):
    """One byte outside ends the process: the sweeps above can fail."""
    result = run_sweep("--fault", fault)
    # SIGSEGV, or SIGBUS on macOS; AddressSanitizer, where preloaded, reports it and exits
    assert result.returncode in (-11, -7) or "AddressSanitizer: SEGV" in result.stderr, result
    assert "alive" in result.stdout
    assert "survived" not in result.stdout


def control_word():
    """MXCSR without its sticky flags: rounding mode, flush-to-zero, denormals-are-zero, exception
    masks.
    """
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32":
        pytest.skip("MXCSR is x86's")
    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x0f\xae\x1f\xc3")  # stmxcsr [rdi]; ret
    start = ctypes.addressof(ctypes.c_char.from_buffer(code))
    store = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(start)
    word = ctypes.c_uint32(0)

    def read():
        store(ctypes.addressof(word))
        return word.value & ~0x3F

    read.memory = code
    return read


def test_floating_point_state_is_left_alone(kernels, rng):
    read = control_word()
    before = read()
    assert (
        before == 0x1F80
    )  # the default of the ABI: all exceptions masked, round to nearest, subnormals kept
    for name, sweep in SWEEPS.items():
        sweep(kernels, rng, [1, kernels.lanes + 1])
        assert read() == before, name


def test_subnormals_are_kept(kernels):
    """Neither flushed on the way in nor out: in every function that keeps them."""
    tiny = np.finfo(kernels.dtype).smallest_subnormal
    x = np.array([tiny, -tiny, 3 * tiny] * 7, kernels.dtype)
    for name in ("expm1", "log1p", "tanh"):
        assert np.array_equal(kernels.elementwise(name, x), x)
    assert np.isfinite(kernels.elementwise("log", np.abs(x))).all()
    assert np.array_equal(kernels.activate("relu", x[None])[0], np.maximum(x, 0))
    assert np.array_equal(kernels.multiply(x[None], np.ones((1, x.size)))[0], x)
    assert np.array_equal(kernels.add_scaled(1.0, x, x), 2 * x)
    assert "tanh" in FUNCTIONS
