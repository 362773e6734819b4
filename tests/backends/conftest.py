"""Here the Numba backend takes part, in as many cases as its compiling has time for."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastnn.backends import BACKENDS, get_backend
from fastnn.tables.losses import LOSSES

sys.path.append(str(Path(__file__).parent))  # importlib mode: helper modules beside the tests

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")


WITH_CUDA = "1" in (os.environ.get("NUMBA_ENABLE_CUDASIM"), os.environ.get("FASTNN_TEST_GPU"))
HERE = [name for name in BACKENDS if name != "cuda" or WITH_CUDA]


@pytest.fixture(scope="session", params=HERE)
def backend_name(request) -> str:
    """Name of a backend; a test that asks for it runs once on each."""
    if request.param == "native" and find_spec("fastnn.backends._native") is None:
        pytest.skip("the compiled extension was never built")
    get_backend(request.param)
    return request.param


@pytest.fixture(params=[name for name in HERE if name != "reference"])
def other(request):
    """A backend that is compared with the reference."""
    if request.param == "native" and find_spec("fastnn.backends._native") is None:
        pytest.skip("the compiled extension was never built")
    return get_backend(request.param)


def _takes_long(item) -> bool:
    """Whether a case is left to FASTNN_FULL=1: the other dtype, a loss through a link of another.

    Numba does not know of FASTNN_ISA, with which CI runs these tests again.
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "numba" not in (params.get("backend_name"), params.get("other")):
        return False
    natural = "loss" in params and LOSSES[params["loss"]].natural_output
    return (
        "FASTNN_ISA" in os.environ
        or (item.originalname.endswith("_agree") and "float32" in item.name)
        or "leaves_the_dtype" in item.name  # float32, too
        or ("loss" in params and params.get("output") not in (natural, "tanh", None))
    )


def pytest_collection_modifyitems(config, items):
    if FULL:
        return
    left_out = [item for item in items if _takes_long(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
