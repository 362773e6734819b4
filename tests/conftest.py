"""What all tests share: the backends that this installation has.

The Numba backend compiles what it runs: by default it takes part in tests/backends only, and with
FASTNN_FULL=1 everywhere.
"""

import os
from importlib.util import find_spec

import pytest

from fastnn.backends import BACKENDS, get_backend

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")


def backends_here() -> list[str]:
    """Every backend but a compiled one that was never built: one that is there has to work."""
    built = find_spec("fastnn.backends._native") is not None
    return [name for name in BACKENDS if (name != "native" or built) and (name != "numba" or FULL)]


@pytest.fixture(scope="session", params=backends_here())
def backend_name(request) -> str:
    """Name of a backend; a test that asks for it runs once on each."""
    get_backend(request.param)
    return request.param
