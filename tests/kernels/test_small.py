"""Small networks: a step in padded memory has the bits of the same step, kernel by kernel."""

import itertools

import numpy as np
import pytest
from kernel_calls import ACTIVATIONS, OPTIMIZERS
from kernel_references import needs_z, same_bits

from fastnn.backends import _native

SHAPES = [
    *((2, 2, 1), (1, 1), (4, 16, 16, 1), (3, 9, 8, 17, 5), (30, 64, 33, 2), (64, 7), (8, 8, 8)),
    *((30, 1), (64, 2, 40, 1), (15, 3, 31, 1, 6), (60, 12, 64, 9)),  # some lie on their side
]


def split(flat, sizes):
    """Weights and bias of each layer."""
    layers, at = [], 0
    for fan_in, fan_out in itertools.pairwise(sizes):
        end = at + fan_in * fan_out
        layers.append((flat[at:end].reshape(fan_in, fan_out), flat[end : end + fan_out]))
        at = end + fan_out
    return layers


def step_by_step(k, network, X, targets, optimizer, scalars, l2):
    """One step by the kernels for layers of any size: (row losses, parameters, slots...)."""
    sizes, activations, loss, parameters, slots = network
    layers = split(parameters, sizes)
    inputs, logits = [X], []
    for (w, b), name in zip(layers, activations, strict=True):
        logits.append(k.dense_forward(inputs[-1], w, b))
        if len(logits) < len(layers):
            inputs.append(k.activate(name, logits[-1]))
    row_loss, delta = k.loss(loss, activations[-1], logits[-1], targets=targets)
    gradients = [None] * len(layers)
    for i in range(len(layers) - 1, -1, -1):
        gradients[i] = k.dense_gradient(inputs[i], delta)
        if i:
            name = activations[i - 1]
            delta = k.activate_backward(
                *(name, logits[i - 1] if needs_z(name) else None, inputs[i]),
                k.dense_backward(delta, layers[i][0]),
            )
    if optimizer is None:
        return row_loss, parameters, *slots
    states = [split(slot, sizes) for slot in slots]
    after = [[] for _ in range(1 + len(slots))]
    for i, pair in enumerate(zip(layers, gradients, strict=True)):
        for part in (0, 1):  # weights, bias
            w, g, *state = (np.atleast_2d(a[part]) for a in (*pair, *(s[i] for s in states)))
            new = k.update(optimizer, scalars, w, g, state, l2=0.0 if part else l2)
            for out, value in zip(after, new, strict=True):
                out.append(np.ravel(value))
    return row_loss, *(np.concatenate(out) for out in after)


@pytest.fixture
def network_of(kernels, rng):
    def make(sizes, activation, output, loss, optimizer):
        n_slots, n_scalars = _native.optimizer_shape(OPTIMIZERS.index(optimizer))
        n_parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        parameters = rng.standard_normal(n_parameters).astype(kernels.dtype)
        slots = [rng.uniform(0.1, 1, n_parameters).astype(kernels.dtype) for _ in range(n_slots)]
        activations = [activation] * (len(sizes) - 2) + [output]
        return (sizes, activations, loss, parameters, slots), rng.uniform(0.1, 0.9, n_scalars)

    return make


@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_step_has_the_bits_of_the_kernels(kernels, misaligned, rng, network_of, sizes):
    choices = zip(
        ACTIVATIONS, itertools.cycle(OPTIMIZERS), itertools.cycle([0.0, 0.03]), strict=False
    )
    for i, (activation, optimizer, l2) in enumerate(choices):
        loss, output = [
            ("squared_error", "identity"),
            ("binary_cross_entropy", "sigmoid"),
            ("cross_entropy", "softmax"),
            ("huber", "tanh"),
        ][i % 4]
        network, scalars = network_of(sizes, activation, output, loss, optimizer)
        n = int(rng.choice([1, 2, 5, 8, 31, 64]))
        X = rng.standard_normal((n, sizes[0])).astype(kernels.dtype)
        targets = rng.dirichlet(np.ones(sizes[-1]), n).astype(kernels.dtype)
        first = step_by_step(kernels, network, X, targets, optimizer, scalars, l2)
        second = step_by_step(
            *(kernels, (*network[:3], first[1], list(first[2:])), X, targets),
            *(optimizer, scalars, l2),
        )
        for k, given in ((kernels, False), (misaligned, False), (kernels, True)):
            losses, *state = k.small_step(
                network, X, targets, optimizer, scalars, l2, n_steps=2, given=given
            )
            assert same_bits(losses[0], first[0]), (activation, optimizer)
            assert same_bits(losses[1], second[0]), (activation, optimizer)
            for got, expected in zip(state, second[1:], strict=True):
                assert same_bits(got, expected), (activation, optimizer)


def test_without_an_optimizer_nothing_moves(kernels, rng, network_of):
    network, scalars = network_of((4, 9, 2), "tanh", "identity", "squared_error", "adam")
    X, targets = (rng.standard_normal(s).astype(kernels.dtype) for s in ((7, 4), (7, 2)))
    losses, *state = kernels.small_step(network, X, targets, None, scalars, 0.1)
    expected = step_by_step(kernels, network, X, targets, None, scalars, 0.1)
    assert same_bits(losses[0], expected[0])
    for got, old in zip(state, (network[3], *network[4]), strict=True):
        assert same_bits(got, old)
