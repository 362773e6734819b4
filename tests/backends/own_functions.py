"""Functions of a user's for the tests of the CUDA backend: whatever may come, in a few lines."""

import math

import numpy as np

import fastnn


def squashed(x, width):
    return width * np.tanh(x / width)


def bent(n):
    """A closure over a number; it calls a helper, and has a loop whose length depends on z."""

    def f(z):
        low, steps = -math.inf, 0
        x = abs(z) if z > low else math.nan
        while x > 1 and steps < n:
            x, steps = x / 2, steps + 1
        # Integers are no float64 beside a float32.
        return squashed(z, 2) + 0.1 * x * steps**2 + 0.01 * float(int(z))

    return f


def loss(y, t):
    e = np.abs(y - t)
    return e + math.log1p(math.exp(-2 * e)) - math.log(2) if e < 20 else e - math.log(2)


# Without their source (a line in a terminal) there is no formula: Numba has them as they are.
_typed = {"math": math, "tanh": math.tanh, "factors": (0.5, 2.0)}
exec(
    "def f(z):\n    return factors[1] * tanh(factors[0] * z)\n"
    "def df(z, y):\n    return 1 - y * y / 4\n"
    "def value(y, t):\n    return (y - t) * (y - t) * (1 if y > t else 3)\n"
    "def gradient(y, t):\n    return 2 * (y - t) * (1 if y > t else 3)\n",
    _typed,
)

FORMULA = fastnn.Activation("test_cuda_formula", bent(3))
TYPED = fastnn.Activation("test_cuda_typed", _typed["f"], _typed["df"])
LOSS = fastnn.Loss("test_cuda_loss", loss)
TYPED_LOSS = fastnn.Loss("test_cuda_typed_loss", _typed["value"], _typed["gradient"])
