"""Every CUDA kernel compiles to PTX for a real GPU, without one.

Needs numba-cuda and NVIDIA's compiler libraries (nvidia-cuda-nvrtc and nvidia-nvvm, or a toolkit).
"""

import builtins
import importlib.util
import math
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from own_functions import FORMULA, LOSS, TYPED, TYPED_LOSS

import fastnn
from fastnn.tables import formulas as users_formulas
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
    """Every kernel, by a name; all activations of the tables, and two of a user's, in one."""
    tanh = get_activation("tanh")
    f, df = formula(tanh.scalar, dtype), formula(tanh.scalar_df, dtype)
    own_f, own_df = formula(FORMULA.scalar, dtype), formula(FORMULA.scalar_df, dtype)
    rows = [*ACTIVATIONS.values(), LINKS["exp"], FORMULA, TYPED]
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
            dtype,
            fused.choice(fs),
            fused.choice(dfs),
            backend._row_loss(dtype, "sigmoid", LOSS),
            adam,
            2,
        ),
        "output_delta cross_entropy": kernels.output_delta(dtype, cross_entropy),
        "output_delta softmax": kernels.output_delta(
            dtype, backend._row_loss(dtype, "softmax", TYPED_LOSS)
        ),
        "output_delta linked": kernels.output_delta(
            dtype, backend._row_loss(dtype, FORMULA.name, squares)
        ),
    }
    for number, tile in enumerate(kernels.TILES):
        found[f"backward {number}"] = kernels.backward(dtype, tile)
        found[f"forward {number}"] = kernels.forward(
            dtype, tile, *((f, df) if number == 0 else (own_f, own_df))
        )
        found[f"weight_gradient {number} with an update"] = kernels.weight_gradient(
            dtype, tile, adam, 2
        )
    found["update_all"] = kernels.update_all(dtype, adam, 2)
    found["output_delta natural"] = kernels.output_delta(
        dtype, backend._row_loss(dtype, "identity", LOSS)
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
    """Every scalar formula of the tables, and two of a user's, with its number of arguments."""
    for row in (*ACTIVATIONS.values(), LINKS["exp"], FORMULA):
        yield f"{row.name}", row.scalar, 1
        yield f"{row.name} derivative", row.scalar_df, 2
    for loss in (*LOSSES.values(), LOSS):
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


# Functions of the user's --------------------------------------------------------------------------

# What each function that formulas know is called with, by the method that translates it.
CALLED_WITH = {
    **dict.fromkeys(("elementary", "absolute", "to_real", "to_int", "to_bool", "sign"), "z"),
    **dict.fromkeys(("rounded", "is_nan", "is_inf", "is_finite", "degrees", "radians"), "z"),
    **dict.fromkeys(("exp2", "cbrt", "square", "reciprocal"), "z"),
    **dict.fromkeys(("extreme", "extreme_or_nan", "power", "copysign", "hypot"), "z, 0.5"),
    **dict.fromkeys(("atan2", "fmod"), "z, 0.5"),
    "length": "(1, 2)",
    "clip": "z, -1, 1",
    "where": "z > 0, z, 2",
}
ANGLES = {"sin", "cos", "tan"}  # NVIDIA's own take a detour through float64 for z beyond 1e5


def spelling(function):
    name = function.__name__
    for module in (math, np, builtins):
        if getattr(module, name, None) is function:
            return name if module is builtins else f"{module.__name__}.{name}"
    raise AssertionError(function)


@pytest.mark.parametrize("by", [None, "z"], ids=["value", "derivative"])
def test_all_that_formulas_know_is_computed_in_float32(by, tmp_path):
    from numba import cuda

    dtype = DTYPES[0]
    known = {spelling(function): method for function, method in users_formulas._KNOWN.items()}
    assert len(known) > 80
    calls = {name: f"{name}({CALLED_WITH[method]})" for name, method in known.items()}
    if by is not None:  # whose derivatives are not known
        del calls["math.gamma"], calls["math.lgamma"]
    angles = {name for name in calls if name.partition(".")[2] in ANGLES}
    operators = ["z ** 2.5", "2 ** z", "int(z) ** 3", "z // 3", "z % 3", "math.pi", "math.inf"]
    terms = {
        "others": [*operators, *(call for name, call in calls.items() if name not in angles)],
        "angles": [calls[name] for name in sorted(angles)],
    }
    file = tmp_path / "written.py"
    file.write_text(
        "import math\nimport numpy\n\n"
        + "".join(f"def {name}(z):\n    return {' + '.join(terms[name])}\n\n" for name in terms)
    )
    spec = importlib.util.spec_from_file_location("written", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    number = kernels.number(dtype)
    for name in terms:
        translated = users_formulas.translate(getattr(module, name), ("z",), by=by)
        function = formula(translated.function, dtype)
        ptx, result = cuda.compile_ptx(function.py_func, (number,), device=True, cc=CAPABILITY)
        assert result == number
        wide = set(re.findall(r"\b(\w+)\.\S*f64", ptx))
        assert wide <= ({"mul", "cvt"} if name == "angles" else set())


def raises(z):
    return 1 / z if z > 100 else helper_that_raises(z)


def bounded(z):
    if z > 1000:
        raise ValueError("too large")
    return z


def guarded(z):
    try:
        return math.exp(z)
    except Exception:
        return 0.0


def indexed(z):
    return (1.0, 1.0, 1.0)[int(abs(z))] if abs(z) < 3 else 1.0


def through_memory(z):
    values = np.zeros(2)
    values[0] = z
    return values.sum()


def numpys(z):
    return np.spacing(z) * 0 + z


def _numba_helper():
    import numba

    @numba.njit
    def helper_that_raises(z):
        if z > 50:
            raise ValueError("too large")
        return z

    return helper_that_raises


helper_that_raises = _numba_helper()


@pytest.mark.parametrize(
    ("function", "line", "reason"),
    [
        (raises, 0, "a function that it calls can raise an exception, which code on a GPU cannot"),
        (bounded, 2, "it can raise ValueError"),
        (guarded, 0, "try or with is not supported"),
        (indexed, 0, "it can raise IndexError"),
        (through_memory, 0, "function zeros"),
        (numpys, 0, "spacing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore:activation")
def test_what_cannot_be_compiled_is_named_with_the_line_and_the_reason(function, line, reason):
    """Numba has them as they are, for the processor; a GPU has no memory to give, and no errors."""
    row = fastnn.Activation(f"ptx_{function.__name__}", function, lambda z: 1.0, check=False)
    with pytest.raises(ValueError) as error:
        backend._forward(DTYPES[0], kernels.TILES[0], row.scalar, row.scalar_df)
    text = str(error.value)
    place = f"test_cuda_ptx.py, line {function.__code__.co_firstlineno + line}: "
    assert text.startswith(f"activation 'ptx_{function.__name__}': f cannot be compiled for a GPU")
    for part in (place, reason, "Write it with what formulas know", "take another backend"):
        assert part in text


def test_a_loss_that_cannot_be_compiled_is_named():
    loss = fastnn.Loss(
        "ptx_loss", lambda y, t: y - t, lambda y, t: helper_that_raises(y), check=False
    )
    with pytest.raises(ValueError, match="loss 'ptx_loss': gradient cannot be compiled for a GPU"):
        backend._row_loss(DTYPES[0], "identity", loss)


def test_what_the_optimizer_removes_is_no_error():
    """Numba's round and its ranges raise, but not for these arguments."""

    def rounded(z):
        total = 0.0
        for step in range(1, 9, 3):
            total += round(z, 2) / step
        return total

    row = fastnn.Activation("ptx_rounded", rounded, lambda z: 1.4, check=False)
    assert callable(formula(row.scalar, DTYPES[0]))
