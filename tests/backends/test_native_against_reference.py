"""Native against reference: every activation, loss, output and optimizer together, and free nets.

`test_backends` compares one part at a time; here all meet, in whole trainings in float64. With
FASTNN_FULL=1 Numba against reference, too.
"""

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastnn
from fastnn import MLP, DivergenceError, Trainer
from fastnn.tables.activations import ACTIVATIONS, LINKS
from fastnn.tables.losses import LOSSES, resolve_loss

pytest.importorskip("fastnn.backends._native")

FULL = os.environ.get("FASTNN_FULL", "0") not in ("", "0")
COMPILED = ["native", "numba"] if FULL else ["native"]

OPTIMIZERS = {
    "sgd": fastnn.SGD(0.05),
    "momentum": fastnn.SGD(0.02, momentum=0.9),
    "nesterov": fastnn.SGD(0.02, momentum=0.9, nesterov=True),
    "adam": fastnn.Adam(0.01),
    "adamw": fastnn.AdamW(0.01, weight_decay=0.1),
    "nadam": fastnn.Nadam(0.01),
    "rmsprop": fastnn.RMSprop(0.003),
    "rmsprop with momentum": fastnn.RMSprop(0.003, momentum=0.8),
    "adagrad": fastnn.Adagrad(0.05),
    "rprop": fastnn.Rprop(0.01),
}


def targets(generator, loss, n, n_outputs):
    kind = LOSSES[loss].target_kind
    if kind == "classes":
        return generator.integers(0, n_outputs, n)
    if kind == "sign":
        return generator.choice([-1.0, 1.0], (n, n_outputs))
    if kind == "unit":
        return generator.uniform(size=(n, n_outputs))
    return np.abs(generator.normal(size=(n, n_outputs)))


def train(backend, sizes, activation, output, loss, optimizer, n, epochs, seed, **settings):
    """Parameters, slots and curve after a few steps."""
    generator = np.random.default_rng(seed)
    X = generator.normal(size=(n, sizes[0]))
    y = targets(generator, loss, n, sizes[-1])
    weight = generator.uniform(0.5, 2, n)
    model = MLP(
        sizes,
        activation=activation,
        output=output,
        dtype="float64",
        seed=seed,
        backend=backend,
        dropout=settings.pop("dropout", 0.0),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a hidden layer has the activation 'step'")
        trainer = Trainer(model, loss=loss, optimizer=optimizer, seed=seed, **settings)
    start = model.parameters.copy()
    try:
        trainer.fit(X, y, epochs=epochs, sample_weight=weight)
    except DivergenceError as error:
        return [np.array([error.epoch, error.batch])]
    # What can learn has learned: a step has no slope, and a softmax of one output none either.
    if output != "step" and (output, sizes[-1]) != ("softmax", 1):
        assert not np.array_equal(start, model.parameters)
    return [model.parameters, trainer._slots.ravel(), trainer.history.loss]


def compare(*arguments, **keywords):
    reference = train("reference", *arguments, **dict(keywords))
    for backend in COMPILED:
        result = train(backend, *arguments, **dict(keywords))
        assert [a.shape for a in result] == [a.shape for a in reference]
        for got, expected in zip(result, reference, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_few_steps_of_every_activation_loss_and_optimizer(activation, optimizer):
    for i, (loss, row) in enumerate(LOSSES.items()):
        compare(
            [4, 6, 5, 3],
            activation,
            row.natural_output,
            loss,
            OPTIMIZERS[optimizer],
            n=13,
            epochs=2,
            seed=i,
            batch_size=5,
            l2=0.01,
        )


def fits(loss, output):
    """Whether the loss is defined for what the output can give."""
    try:
        resolve_loss(loss, output)
    except ValueError:
        return False
    return True


PAIRS = [(loss, out) for loss in LOSSES for out in [*ACTIVATIONS, *LINKS] if fits(loss, out)]


def test_there_are_many_pairs_of_loss_and_output():
    assert len(PAIRS) > 60
    assert {loss for loss, _ in PAIRS} == set(LOSSES)
    assert {output for _, output in PAIRS} == {*ACTIVATIONS, *LINKS}


@pytest.mark.parametrize(("loss", "output"), PAIRS)
@pytest.mark.parametrize("n_outputs", [1, 3, 9])
def test_a_few_steps_of_every_loss_through_every_output(loss, output, n_outputs):
    compare(
        [4, 7, n_outputs],
        "tanh",
        output,
        loss,
        OPTIMIZERS["momentum"],
        n=11,
        epochs=2,
        seed=n_outputs,
        batch_size=4,
    )


@settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 16),
    st.sampled_from([name for name in ACTIVATIONS if name != "step"]),
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(sorted(set(OPTIMIZERS) - {"rprop"})),  # whose sign makes much of a rounding
    st.sampled_from([1, 3, 30, 300, 600]),
    st.sampled_from([2, 32, 257, "full"]),
    st.sampled_from([0.0, 0.4]),
    st.sampled_from([None, 0.1]),
    st.integers(0, 2**32),
)
def test_free_nets(hidden, n_outputs, activation, loss, name, n, batch, dropout, clip_norm, seed):
    if batch != "full" and n // batch > 40:
        batch = 32
    compare(
        [*hidden, n_outputs],
        activation,
        LOSSES[loss].natural_output,
        loss,
        OPTIMIZERS[name],
        n=n,
        epochs=2,
        seed=seed,
        batch_size=batch,
        dropout=dropout,
        clip_norm=clip_norm,
        l2=0.02,
        schedule=fastnn.CosineDecay(n_steps=50),
    )
