"""find_learning_rate: a rate between too small and too large, and a model that stays as it was."""

import numpy as np
import pytest

import fastnn
from fastnn import MLP, SGD, Trainer, find_learning_rate
from fastnn.tables.optimizers import get_optimizer

_data = np.random.default_rng(0)
X = _data.normal(size=(200, 5))
Y = X @ _data.normal(size=(5, 1))


@pytest.fixture
def model(backend_name):
    return MLP([5, 16, 1], activation="tanh", seed=0, backend=backend_name)


def test_suggestion_trains_well_and_the_model_is_untouched(model):
    before = model.parameters.tobytes()
    result = find_learning_rate(model, X, Y, optimizer=SGD(), seed=1)
    assert model.parameters.tobytes() == before
    assert result.rates.shape == result.losses.shape
    assert (np.diff(result.rates) > 0).all()
    assert result.rates[0] < result.suggestion < result.rates[-1]

    def loss(rate):
        trainer = Trainer(model.copy(), optimizer=SGD(learning_rate=rate), seed=0)
        trainer.fit(X, Y, epochs=5)
        return trainer.evaluate(X, Y)

    assert loss(result.suggestion) < 0.2 * Trainer(model).evaluate(X, Y)
    assert loss(result.suggestion) < loss(result.suggestion / 1000)


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), fastnn.Adam()], ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_suggestion_lies_before_the_loss_bounces(optimizer, seed):
    """The way down from a peak, where the rate is far too large, can be the steepest of all."""
    X, y = fastnn.datasets.load_digits()
    model = MLP([64, 64, 10], output="softmax", seed=seed)
    result = find_learning_rate(model, X, y, optimizer=optimizer, seed=seed)
    before = result.losses[result.rates <= result.suggestion]
    assert before[-1] <= before.min() + 0.1 * np.ptp(result.losses[: result.losses.argmin() + 1])
    trainer = Trainer(model, optimizer=replace_rate(optimizer, result.suggestion), seed=seed)
    trainer.fit(X, y, epochs=10)
    assert trainer.evaluate(X, y) < 0.3


def replace_rate(optimizer, rate):
    config = {**optimizer.get_config(), "learning_rate": rate}
    return get_optimizer(config)


def test_same_seed_same_result(model):
    first, again = (find_learning_rate(model, X, Y, seed=3) for _ in range(2))
    assert first.losses.tolist() == again.losses.tolist()
    other = find_learning_rate(model, X, Y, seed=4)
    assert first.losses.tolist() != other.losses.tolist()


def test_ends_where_training_blows_up(model):
    result = find_learning_rate(model, X, Y, optimizer=SGD(), lowest=1e-4, highest=1e6, seed=0)
    assert result.rates[-1] < 1e6
    assert np.isfinite(result.losses).all()


def test_classes_weights_and_few_rows(backend_name):
    model = MLP([5, 2], output="softmax", seed=0, backend=backend_name)
    y = (X[:, 0] > 0).astype(int)
    find_learning_rate(model, X, y, sample_weight=np.ones(200), seed=0)
    find_learning_rate(model, X[:7], y[:7], seed=0)


def test_plot(model):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = find_learning_rate(model, X, Y, seed=0).plot()
    assert ax.get_xscale() == "log"
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"lowest": 0}, ValueError),
        ({"lowest": 1.0, "highest": 1.0}, ValueError),
        ({"n_steps": 3}, ValueError),
        ({"batch_size": 0}, ValueError),
        ({"loss": "nope"}, ValueError),
        ({"schedule": fastnn.StepDecay(0.1)}, TypeError),
        ({"optimizer": "lbfgs"}, ValueError),
        ({"lowest": 1e20, "highest": 1e30, "optimizer": SGD()}, ValueError),
        ({"sample_weight": np.ones(3)}, ValueError),
    ],
)
def test_wrong_arguments(model, arguments, kind):
    with pytest.raises(kind):
        find_learning_rate(model, X, Y, **arguments)
