"""Kernels alone, on one thread: GFLOP/s and share of the multiply-add peak, or ns per element.

pytest benches/bench_kernels.py
pytest benches/bench_kernels.py -k "gradient and 784"
FASTNN_ISA=baseline pytest benches/bench_kernels.py
"""

import machine
import pytest
from kernels import LINKS, OPTIMIZERS, Kernels

# Rows, inputs, outputs: layers of W1, W1b, W2, W3, a row alone, and widths that fill no vector.
SHAPES = [
    (64, 784, 128),
    (64, 128, 10),
    (256, 784, 512),
    (256, 512, 512),
    (256, 512, 10),
    (128, 30, 64),
    (128, 64, 32),
    (32, 4, 16),
    (32, 16, 16),
    (1, 784, 128),
    (1, 512, 512),
    (37, 300, 75),
]
MANY = 1 << 14  # elements: they stay in the first-level cache


@pytest.fixture(params=["float32", "float64"])
def kernels(request):
    return Kernels(request.param)


def shape_id(shape):
    return "x".join(map(str, shape))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_peak(benchmark, record, dtype):
    benchmark.pedantic(machine.multiply_add_gflops, (dtype,), rounds=3)
    record(gflops=round(machine.multiply_add_gflops(dtype, seconds=0.2), 1))


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_forward(kernels, rate, shape):
    rate(kernels.forward(*shape), kernels.dtype.name)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_backward(kernels, rate, shape):
    rate(kernels.backward(*shape), kernels.dtype.name)


@pytest.mark.parametrize("optimizer", [None, "sgd_momentum", "adam"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_gradient(kernels, rate, shape, optimizer):
    rate(kernels.gradient(*shape, optimizer), kernels.dtype.name)


@pytest.mark.parametrize("name", [name for name in LINKS if name not in ("softmax", "identity")])
def test_activation(kernels, rate, name):
    rate(kernels.activate(name, 64, MANY // 64))


@pytest.mark.parametrize("name", [name for name in LINKS if name not in ("softmax", "identity")])
def test_activation_backward(kernels, rate, name):
    rate(kernels.activate_backward(name, 64, MANY // 64))


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("squared_error", "identity"),
        ("absolute_error", "identity"),
        ("huber", "identity"),
        ("quantile", "identity"),
        ("poisson", "exp"),
        ("binary_cross_entropy", "sigmoid"),
        ("cross_entropy", "softmax"),
        ("hinge", "identity"),
    ],
)
def test_loss(kernels, rate, name, link):
    rate(kernels.loss(name, link, 256, 10))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update(kernels, rate, optimizer):
    rate(kernels.update(optimizer, MANY))
