"""One stream of random numbers for all, and sums that stay accurate however long they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnn
from fastnn import MLP, Trainer, rng

_native = pytest.importorskip("fastnn.backends._native")

WORD = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
)


@settings(max_examples=300)
@given(st.one_of(st.integers(0, 70), st.integers(71, 5000)), WORD, WORD)
def test_compiled_orders_are_the_defined_ones(n, seed, epoch):  # R3
    order = _native.permutation(n, seed, epoch)
    assert order.dtype == np.int64
    assert np.array_equal(order, rng.permutation(n, seed, epoch))
    assert np.array_equal(np.sort(order), np.arange(n))


def test_a_long_order():
    order = _native.permutation(200_001, 5, 9)
    assert np.array_equal(order, rng.permutation(200_001, 5, 9))


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 70),
    st.sampled_from([0.1, 0.25, 0.5, 0.9]),
    WORD,
    st.sampled_from([0, 1, 9]),
    st.sampled_from([1, 3]),
)
def test_compiled_masks_are_the_defined_ones(n, width, rate, seed, epoch, n_threads):  # R6
    """A unit that one backend keeps and the other drops would be seen at once."""
    results = []
    for backend in ("native", "reference"):
        model = MLP(
            [3, width, width, 2],
            activation="sigmoid",
            dropout=[rate, 0.3],
            dtype="float64",
            seed=1,
            backend=backend,
        )
        X = np.random.default_rng(n).normal(size=(n, 3))
        trainer = Trainer(
            model, optimizer="sgd", batch_size=7, seed=seed, n_threads=n_threads, shuffle=True
        )
        trainer._epoch = epoch
        history = trainer.fit(X, X[:, :2], epochs=2)
        losses = [*history.loss, trainer.step(X, X[:, :2]), trainer.step(X, X[:, :2])]
        results.append(np.concatenate([losses, model.parameters]))
    assert np.allclose(*results, rtol=1e-11, atol=1e-13)


def test_masks_are_new_in_every_epoch():
    """Two epochs with one mask would be a common slip, and the losses of both would agree."""
    model = MLP([2, 16, 1], dropout=0.5, dtype="float64", seed=1)
    trainer = Trainer(model, optimizer=fastnn.SGD(1e-300), batch_size="full", seed=0)
    X = np.random.default_rng(0).normal(size=(9, 2))
    losses = trainer.fit(X, X[:, :1], epochs=6).loss
    assert len(set(losses)) == 6


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 2e-5)])
def test_golden_values_of_a_seeded_training(backend_name, dtype, tolerance):  # R3
    """Same seeds, other machine or system: the numbers are the reference backend's, from Linux."""
    X = (np.arange(60.0).reshape(12, 5) * 7 % 11 - 5) / 5
    model = MLP(
        [5, 6, 3],
        activation="tanh",
        output="softmax",
        dropout=0.25,
        dtype=dtype,
        seed=2024,
        backend=backend_name,
    )
    trainer = Trainer(model, optimizer=fastnn.Adam(0.05), batch_size=5, seed=11)
    losses = trainer.fit(X, np.arange(12) % 3, epochs=4).loss
    golden = [1.1161076792577074, 0.9315902598558933, 0.86852601297775, 0.773620368914718]
    np.testing.assert_allclose(losses, golden, rtol=tolerance)
    some = [0.34313494851201204, 0.8323821094828612, -0.07319081002171472, 0.03517290495949262]
    np.testing.assert_allclose(model.parameters[[0, 17, 35, 50]], some, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", ["random", "repeated"])
def test_float32_gradient_over_a_million_rows(rows):
    """Blocks of sums keep float32 within 1e-4 of float64 over 10**6 rows."""
    n = 1_000_000
    X = np.random.default_rng(0).uniform(0, 1, (n, 8)).astype(np.float32)
    if rows == "repeated":
        X[: n // 2], X[n // 2 :] = X[0], X[1]  # the rounding of a running sum goes one way
    y = X[:, :3] ** 2
    single = MLP([8, 12, 3], activation="tanh", dtype="float32", seed=2)
    double = MLP([8, 12, 3], activation="tanh", dtype="float64", seed=2)
    double.parameters[:] = single.parameters  # the same numbers in both
    gradient, exact = single.loss_and_gradient(X, y)[1], double.loss_and_gradient(X, y)[1]
    assert gradient.dtype == np.float32
    error = np.abs(gradient - exact)
    assert np.linalg.norm(error) <= 1e-4 * np.linalg.norm(exact)
    assert (error <= 1e-4 * np.abs(exact).max()).all()
    if rows == "repeated":
        # The data can show it: one running sum in float32 misses by more.
        delta = (single.predict(X) - y)[:, np.argmax(np.abs(exact[-3:]))] / np.float32(n)
        running, true = np.cumsum(delta, dtype=np.float32)[-1], delta.sum(dtype=np.float64)
        assert abs(running - true) > 1e-4 * abs(true)
