"""Fixtures of the kernel tests: one run for each instruction set of this machine and dtype."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastnn.backends._native")
sys.path.append(str(Path(__file__).parent))  # importlib mode: helper modules beside the tests

from kernel_calls import DTYPES, ISAS, Kernels, Misaligned


@pytest.fixture(params=[(isa, dtype) for isa in ISAS for dtype in DTYPES], ids="-".join)
def kernels(request) -> Kernels:
    return Kernels(*request.param)


@pytest.fixture
def misaligned(kernels) -> Kernels:
    """The same kernels on arrays that are aligned for their dtype only, with gaps between rows."""
    return Kernels(kernels.isa, kernels.dtype.name, Misaligned(), padding=3)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240229)
