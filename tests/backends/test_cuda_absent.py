"""What the user reads where something that the CUDA backend needs is missing: each case faked."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastnn.errors import BackendUnavailable

INSTALL = "pip install 'fastnn-mlp[cuda]'"


def message_without(module):
    """What get_backend("cuda") says in a process where a module cannot be imported."""
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from fastnn.backends import get_backend\n"
        "from fastnn.errors import BackendUnavailable\n"
        "try:\n    get_backend('cuda')\n"
        "except BackendUnavailable as error:\n    print(error)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("module", "named"), [("numba", "Numba is missing"), ("numba_cuda", "numba-cuda is missing")]
)
def test_a_missing_package_is_named_with_its_command(module, named):
    message = message_without(module)
    assert message.startswith(f"backend 'cuda' is not available: {named}")
    assert INSTALL in message


def test_models_are_refused_before_anything_is_made():
    if importlib.util.find_spec("numba_cuda"):
        pytest.skip("numba-cuda is installed; the test above fakes its absence")
    import fastnn

    with pytest.raises(BackendUnavailable, match="numba-cuda is missing"):
        fastnn.MLP([2, 1], backend="cuda")


needs_numba_cuda = pytest.mark.skipif(
    importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)


@pytest.fixture
def shim(monkeypatch):
    """The shim as it is without the simulator, on a machine where everything is there."""
    from fastnn.backends.numba_cuda import shim

    device = SimpleNamespace(compute_capability=(9, 0))
    fake = SimpleNamespace(
        is_available=lambda: True,
        cuda_error=lambda: None,
        gpus=[device],
        get_current_device=lambda: device,
    )
    monkeypatch.setattr(shim, "cuda", fake)
    monkeypatch.setattr(shim, "SIMULATED", False)
    monkeypatch.setattr(shim, "_missing_libraries", list)
    shim.require_gpu.cache_clear()
    yield shim
    shim.require_gpu.cache_clear()


def no_driver(error):
    return {"is_available": lambda: False, "cuda_error": lambda: error}


@needs_numba_cuda
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            no_driver("\nCUDA driver library cannot be found.\nEnsure that a compatible ..."),
            ["no NVIDIA driver", "nvidia.com/drivers", "--gpus all", "NUMBA_ENABLE_CUDASIM=1"],
        ),
        (
            no_driver("CUDA_ERROR_NO_DEVICE (100)"),
            ["sees no GPU", "CUDA_VISIBLE_DEVICES is '7'", "nvidia-smi"],
        ),
        (no_driver("CUDA_ERROR_UNKNOWN (999)"), ["does not start", "nvidia-smi", "restart"]),
        ({"gpus": []}, ["sees no GPU"]),
        (
            {"get_current_device": lambda: SimpleNamespace(compute_capability=(6, 1))},
            ["compute capability 6.1", "7.5"],
        ),
    ],
)
def test_a_missing_driver_or_gpu_is_named_with_what_to_do(shim, monkeypatch, changes, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    shim.require_gpu()  # nothing is missing yet
    shim.require_gpu.cache_clear()
    for name, value in changes.items():
        monkeypatch.setattr(shim.cuda, name, value)
    with pytest.raises(BackendUnavailable) as error:
        shim.require_gpu()
    for part in expected:
        assert part in str(error.value)


@needs_numba_cuda
def test_missing_compiler_libraries_are_named(shim, monkeypatch):
    monkeypatch.setattr(shim, "_missing_libraries", lambda: ["nvrtc", "nvvm"])
    with pytest.raises(BackendUnavailable, match=r"nvrtc, nvvm.*pip install.*CUDA_HOME"):
        shim.require_gpu()


@needs_numba_cuda
def test_libraries_that_cannot_be_loaded_are_found_missing(monkeypatch):
    from cuda import pathfinder

    from fastnn.backends.numba_cuda import shim

    def load(name):
        if name == "nvvm":
            raise RuntimeError("not found")

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", load)
    assert shim._missing_libraries() == ["nvvm"]


@needs_numba_cuda
def test_memory_that_is_not_there_is_a_memory_error_with_the_sizes(shim, monkeypatch):
    def refuse(shape, dtype):
        raise RuntimeError("[CUresult.CUDA_ERROR_OUT_OF_MEMORY] out of memory")

    context = SimpleNamespace(get_memory_info=lambda: (1000, 2000))
    monkeypatch.setattr(shim.cuda, "device_array", refuse, raising=False)
    monkeypatch.setattr(shim.cuda, "current_context", lambda: context, raising=False)
    with pytest.raises(MemoryError, match=r"24000 bytes do not fit.*2000 bytes 1000 are free"):
        shim.allocate((1000, 6), "float32")
