"""What all tests share: the backends that this installation has.

The Numba backend compiles what it runs: by default it takes part in tests/backends only, and with
FASTNN_FULL=1 everywhere. The CUDA backend takes part where somebody asks for it: in the simulator
(nox -s cudasim), or on a GPU (nox -s gpu).
"""

import importlib.util
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastnn.backends import BACKENDS, get_backend

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
WITH_CUDA = SIMULATED or os.environ.get("FASTNN_TEST_GPU") == "1"

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts jobs in the background so; tests interrupt themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if SIMULATED:
    _spec = importlib.util.spec_from_file_location(
        "cuda_simulator", Path(__file__).parent / "cuda_simulator.py"
    )
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    _module.install()


def backends_here() -> list[str]:
    """Every backend but a compiled one that was never built: one that is there has to work."""
    built = importlib.util.find_spec("fastnn.backends._native") is not None
    here = {"native": built, "numba": FULL, "cuda": WITH_CUDA}
    return [name for name in BACKENDS if here.get(name, True)]


@pytest.fixture(scope="session", params=backends_here())
def backend_name(request) -> str:
    """Name of a backend; a test that asks for it runs once on each."""
    get_backend(request.param)
    return request.param


@pytest.fixture
def stop_once_it_trains():
    """(trainer, seconds) -> a started thread that stops the trainer so long after its next step.

    A fit forgets what was asked before it, and on a busy machine nobody knows when it begins.
    """

    def start(trainer, seconds):
        before = trainer.model.parameters.copy()

        def stop():
            while np.array_equal(trainer.model.parameters, before):
                time.sleep(0.001)
            time.sleep(seconds)
            trainer.stop()

        thread = threading.Thread(target=stop, daemon=True)
        thread.start()
        return thread

    return start


def pytest_collection_modifyitems(items):
    """In the simulator numbers that overflow or are NaN come with NumPy's warnings."""
    if SIMULATED:
        for item in items:
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
