"""The machine in words and figures, without its name; and the yardstick of every share."""

import functools
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np

from fastnn.backends import _native
from fastnn.backends.peak import multiply_add_gflops


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


if __name__ == "__main__":
    for key, value in info().items():
        print(f"{key}: {value}")
    for dtype in ("float32", "float64"):
        print(f"multiply-add peak of a core, {dtype}: {multiply_add_gflops(dtype):.0f} GFLOP/s")
    sys.exit()
