"""What all tests share: the backends that this installation has."""

from importlib.util import find_spec

import pytest

from fastnn.backends import BACKENDS, get_backend


def backends_here() -> list[str]:
    """Every backend but a compiled one that was never built: one that is there has to work."""
    built = find_spec("fastnn.backends._native") is not None
    return [name for name in BACKENDS if name != "native" or built]


@pytest.fixture(scope="session", params=backends_here())
def backend_name(request) -> str:
    """Name of a backend; a test that asks for it runs once on each."""
    get_backend(request.param)
    return request.param
