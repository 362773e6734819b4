"""The machine in words and figures, without its name; and the yardstick of every share."""

import ctypes
import functools
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np

from fastnn.backends import _native


def info() -> dict:
    """What a figure depends on."""
    return {
        "cpu": cpu_model(),
        "cores": n_cores(),
        "isa": _native.isa(),
        "fastnn_threads": os.environ.get("FASTNN_NUM_THREADS", "all"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def cpu_model() -> str:
    """The name that the processor gives itself, with family and model where it hides them."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    text = path.read_text()
    field = functools.partial(_field, text)
    name = field("model name") or platform.machine()
    return f"{name} (family {field('cpu family')}, model {field('model')})"


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def fma_gflops(dtype: str = "float32", isa: str | None = None, seconds: float = 0.05) -> float:
    """The fastest of some runs of multiply-adds on one core, in 10^9 operations a second."""
    address = _native.kernel_address(isa or _native.isa(), dtype, "fma_chains")
    chains = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_void_p)(address)
    values = np.ones(chains(0, None), dtype)
    rounds, best, end = 20_000, 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        chains(rounds, values.ctypes.data)
        best = max(best, 2 * rounds * values.size / (time.perf_counter() - start) / 1e9)
    return best


if __name__ == "__main__":
    for key, value in info().items():
        print(f"{key}: {value}")
    for dtype in ("float32", "float64"):
        print(f"multiply-add peak of a core, {dtype}: {fma_gflops(dtype):.0f} GFLOP/s")
    sys.exit()
