"""An activation takes two rows: here is the one in C, compiled into a copy of the kernels.

That the one in Python is enough for every other backend: tests/backends/test_backends.py.
"""

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest

ROW = """ACTIVATION(squareplus, 1, K(0.5) * (z + SQRT(z * z + K(4))), y / SQRT(z * z + K(4)))
"""
# dispatch.c, which knows every row's second column, wants the kernels of all instruction sets.
CALLS = """
#include "fastnn.h"
int fnn_activation_needs_z(int activation) {
    return activation == FNN_ACTIVATION_squareplus;
}
extern const fnn_kernels fnn_kernels_f32_baseline, fnn_kernels_f64_baseline;
static const fnn_kernels *of(int wide) {
    return wide ? &fnn_kernels_f64_baseline : &fnn_kernels_f32_baseline;
}
void value(int wide, ptrdiff_t n, const void *z, void *y) {
    of(wide)->activate(FNN_ACTIVATION_squareplus, 1, n, z, n, y, n);
}
void derivative(int wide, ptrdiff_t n, const void *z, const void *y, void *delta) {
    of(wide)->activate_backward(FNN_ACTIVATION_squareplus, 1, n, z, y, n, delta, n);
}
"""


@pytest.mark.skipif(os.name == "nt", reason="a POSIX compiler's command")
def test_a_row_in_c_reaches_the_kernels(root, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    shutil.copytree(root / "csrc", tmp_path / "csrc")
    table = tmp_path / "csrc" / "activations.def"
    table.write_text(table.read_text().replace("ACTIVATION(mish,", ROW + "ACTIVATION(mish,"))
    assert ROW in table.read_text()
    (tmp_path / "calls.c").write_text(CALLS)
    library = tmp_path / "row.so"
    sources = [
        *(tmp_path / "csrc" / f"{name}.c" for name in ("isa_baseline", "user")),
        tmp_path / "calls.c",
    ]
    subprocess.run(
        [compiler, "-std=gnu11", "-O0", "-shared", "-fPIC", f"-I{tmp_path / 'csrc'}",
         *map(str, sources), "-o", str(library), "-lm", "-pthread"],
        check=True,
    )  # fmt: skip
    calls = ctypes.CDLL(str(library))
    pointer, size = ctypes.c_void_p, ctypes.c_ssize_t
    calls.value.argtypes = [ctypes.c_int, size, pointer, pointer]
    calls.derivative.argtypes = [ctypes.c_int, size, pointer, pointer, pointer]
    for dtype in (np.float32, np.float64):
        z = np.linspace(-5, 5, 37).astype(dtype)
        y, delta = np.empty_like(z), np.full_like(z, 2)
        wide = int(dtype == np.float64)
        calls.value(wide, z.size, z.ctypes.data, y.ctypes.data)
        calls.derivative(wide, z.size, z.ctypes.data, y.ctypes.data, delta.ctypes.data)
        root_of = np.sqrt(z.astype(np.float64) ** 2 + 4)
        tolerance = 16 * np.finfo(dtype).eps
        np.testing.assert_allclose(y, (z + root_of) / 2, rtol=tolerance)
        np.testing.assert_allclose(delta, 1 + z / root_of, rtol=tolerance)
