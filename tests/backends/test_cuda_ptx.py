"""Every CUDA kernel compiles to PTX for a real GPU, without one.

Needs numba-cuda and NVIDIA's compiler libraries (nvidia-cuda-nvrtc and nvidia-nvvm, or a toolkit).
"""

import importlib.util
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest

from fastnn.tables.activations import ACTIVATIONS, LINKS, get_activation
from fastnn.tables.losses import LOSSES
from fastnn.tables.optimizers import OPTIMIZERS, SCALAR_UPDATES

if importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed", allow_module_level=True)
if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
    pytest.skip("the simulator compiles nothing", allow_module_level=True)

from fastnn.backends.numba_cuda import backend, fused, kernels, shim

if shim._missing_libraries():
    pytest.skip(
        f"the compiler ({', '.join(shim._missing_libraries())}) is not installed",
        allow_module_level=True,
    )

CAPABILITY = (8, 0)
DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]


@pytest.fixture(autouse=True)
def a_gpu_that_is_not_there(monkeypatch):
    """numba-cuda asks the GPU in use for what device functions are compiled for."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=CAPABILITY)
    for module in (dispatcher, shim.cuda):
        monkeypatch.setattr(module, "get_current_device", lambda: device)


formula = kernels.scalar_function
ADAM = OPTIMIZERS["adam"]()


def catalogue(dtype):
    """Every kernel, by a name; the activations of the tables are all in the fused ones."""
    tanh = get_activation("tanh")
    f, df = formula(tanh.scalar, dtype), formula(tanh.scalar_df, dtype)
    rows = [*ACTIVATIONS.values(), LINKS["exp"]]
    fs = [formula(row.scalar, dtype) for row in rows]
    dfs = [formula(row.scalar_df, dtype) for row in rows]
    adam = kernels.device_function(ADAM.scalar_update, dtype)
    cross_entropy = kernels.cross_entropy_row(dtype)
    squares = LOSSES["squared_error"]
    found = {
        "sum_batches": kernels.sum_batches(),
        "keep_squares": kernels.keep_squares(),
        "advance": kernels.advance(),
        "next_epoch": kernels.next_epoch(),
        "softmax": kernels.softmax(dtype),
        "unit_delta": kernels.unit_delta(dtype, f, df),
        "softmax_unit_delta": kernels.softmax_unit_delta(dtype),
        "finish_gradient": kernels.finish_gradient(dtype),
        "square_weights": kernels.square_weights(dtype),
        "find_not_finite": kernels.find_not_finite(dtype),
        "find_wrong_targets": kernels.find_wrong_targets(dtype),
        "find_wrong_labels": kernels.find_wrong_labels(),
        "perceptron": kernels.perceptron(dtype),
        "weight_gradient": kernels.weight_gradient(dtype, kernels.TILES[0]),
        "fused.training": fused.training(
            dtype, fused.choice([f]), fused.choice([df]), cross_entropy
        ),
        # Chained choices of all activations.
        "fused.prediction": fused.prediction(dtype, fused.choice(fs), f),
        "fused.training with an update": fused.training(
            dtype, fused.choice(fs), fused.choice(dfs), cross_entropy, adam, 2
        ),
        "output_delta cross_entropy": kernels.output_delta(dtype, cross_entropy),
        "output_delta softmax": kernels.output_delta(
            dtype, backend._row_loss(dtype, "softmax", squares)
        ),
        "output_delta linked": kernels.output_delta(
            dtype, backend._row_loss(dtype, "sigmoid", squares)
        ),
    }
    for number, tile in enumerate(kernels.TILES):
        found[f"backward {number}"] = kernels.backward(dtype, tile)
        found[f"forward {number}"] = kernels.forward(dtype, tile, f, df)
        found[f"weight_gradient {number} with an update"] = kernels.weight_gradient(
            dtype, tile, adam, 2
        )
    found["update_all"] = kernels.update_all(dtype, adam, 2)
    found["output_delta natural"] = kernels.output_delta(
        dtype, backend._row_loss(dtype, "identity", squares)
    )
    found["forward, prediction"] = kernels.forward(dtype, kernels.TILES[0], f, None)
    return found


def test_every_kernel_is_in_the_catalogue():
    """By the functions that make kernels, as their annotations tell."""
    makers = {
        name
        for module, prefix in ((kernels, ""), (fused, "fused."))
        for name, value in vars(module).items()
        if callable(value)
        and getattr(value, "__module__", "") == module.__name__
        and getattr(value, "__annotations__", {}).get("return") == "Kernel"
        for name in [prefix + name]
    }
    made = {re.split(r"[ ,]", name)[0] for name in catalogue(DTYPES[0])}
    assert made == makers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_kernel_compiles(dtype):
    """No float64 in a float32 product, no array that fell out of the registers, no atomic add."""
    from numba import cuda

    for name, kernel in catalogue(dtype).items():
        ptx, _ = cuda.compile_ptx(
            kernel.function, kernel.signature.args, cc=CAPABILITY, lineinfo=False
        )
        assert ptx.count(".visible .entry") == 1, name
        assert ".target sm_80" in ptx, name
        assert ".local" not in ptx, f"{name}: an array went to memory"
        assert not re.search(r"\b(atom|red)\.[\w.]*\.f(32|64)\b", ptx), f"{name}: adds atomically"
        if dtype == np.float32 and name.startswith(("forward", "backward")):
            assert ".f64" not in ptx, f"{name}: float64 in a float32 kernel"
            assert "fma.rn.f32" in ptx, name
        assert "fma.rn.ftz" not in ptx, f"{name}: flushes subnormal numbers"


@pytest.mark.parametrize("target", [np.float32, np.float64, np.int64])
def test_arrays_of_other_types_are_converted(target):
    """Compiled when such an array comes, so without a signature of its own."""
    from numba import cuda
    from numba.types import Array, boolean, int8, uint64

    out = Array(kernels.number(np.dtype(target)) if target != np.int64 else kernels.index, 2, "C")
    for source in (boolean, int8, uint64, kernels.double):
        function = kernels.convert(target).py_func
        arguments = (Array(source, 2, "A"), out)
        assert ".entry" in cuda.compile_ptx(function, arguments, cc=CAPABILITY)[0]


@pytest.mark.filterwarnings("error")
def test_launches_are_configured_without_warnings():
    """Numba warns of grids of fewer than 128 blocks; a training would warn at every step."""
    from numba import cuda
    from numba.core.errors import NumbaPerformanceWarning

    compiled = cuda.jit(kernels.advance().function)
    with pytest.raises(Warning, match="Grid size 1") as error:
        compiled[(1,), (33,)]
    assert error.type.__name__ == NumbaPerformanceWarning.__name__
    assert callable(shim.configured(compiled, (1,), (32,)))


def formulas():
    """Every scalar formula of the tables, with its number of arguments."""
    for row in (*ACTIVATIONS.values(), LINKS["exp"]):
        yield f"{row.name}", row.scalar, 1
        yield f"{row.name} derivative", row.scalar_df, 2
    for loss in LOSSES.values():
        for part in ("value", "gradient", "logit_value", "logit_gradient"):
            function = getattr(loss, f"scalar_{part}")
            if function is not None:
                yield f"{loss.name} {part}", function, 3
    for name, update in SCALAR_UPDATES.items():
        yield f"{name} update", update, 5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_formula_compiles_in_its_dtype(dtype):
    """A float64 constant would make a float32 formula a slow one."""
    from numba import cuda

    from fastnn.tables.scalars import with_constants

    number = kernels.number(dtype)
    names = []
    for name, function, n_arguments in formulas():
        arguments = [number] * n_arguments
        if n_arguments == 5:
            arguments[-1] = number[::1]
        ptx, result = cuda.compile_ptx(
            with_constants(function, dtype), tuple(arguments), device=True, cc=CAPABILITY
        )
        if n_arguments < 5:
            # A constant alone may come as a float64 and be converted.
            assert result == number or not re.search(r"(add|mul|fma|div)\.\S*f64", ptx), name
        if dtype == np.float32:
            assert ".f64" not in ptx or result != number, name
        names.append(name)
    assert len(names) > 70
