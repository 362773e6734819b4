"""History: arrays that grow cheaply, and a picture."""

import copy
import pickle

import numpy as np
import pytest

from fastnn.history import History


def filled(n_epochs: int) -> History:
    history = History()
    for epoch in range(n_epochs):
        history.extend(loss=[1.0 / (epoch + 1)], learning_rate=[0.5], seconds=[epoch])
    return history


@pytest.mark.parametrize("n_epochs", [0, 1, 15, 16, 17, 100])
def test_columns_have_one_entry_per_epoch(n_epochs):
    history = filled(n_epochs)
    assert len(history) == n_epochs
    np.testing.assert_array_equal(history.loss, 1.0 / np.arange(1, n_epochs + 1))
    np.testing.assert_array_equal(history.seconds, np.arange(n_epochs))
    assert np.isnan(history.validation_loss).all()
    assert history.validation_loss.shape == (n_epochs,)


def test_several_epochs_at_once_equal_one_by_one():
    one = filled(40)
    many = History()
    many.extend(loss=one.loss[:3], learning_rate=one.learning_rate[:3], seconds=one.seconds[:3])
    many.extend(loss=one.loss[3:], learning_rate=one.learning_rate[3:], seconds=one.seconds[3:])
    for column in History.COLUMNS:
        np.testing.assert_array_equal(getattr(many, column), getattr(one, column))


def test_arrays_are_read_only_and_keep_their_values():
    history = filled(16)
    before = history.loss
    with pytest.raises(ValueError, match="read-only"):
        before[0] = 7
    expected = before.copy()
    history.extend(loss=[9.0])
    np.testing.assert_array_equal(before, expected)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda h: pickle.loads(pickle.dumps(h))]
)
@pytest.mark.parametrize("n_epochs", [0, 3])
def test_copies_are_independent(copied, n_epochs):
    history = filled(n_epochs)
    other = copied(history)
    other.extend(loss=[5.0])
    assert len(history) == n_epochs
    np.testing.assert_array_equal(other.loss[:n_epochs], history.loss)
    assert other.loss[-1] == 5.0


def test_repr_says_how_it_went():
    assert repr(History()) == "History(0 epochs)"
    assert repr(filled(4)) == "History(4 epochs, loss 0.25)"
    history = filled(1)
    history.extend(loss=[0.5], validation_loss=[0.125])
    assert "validation_loss 0.125" in repr(history)


def test_plot_draws_both_curves():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    history = filled(3)
    assert [line.get_label() for line in history.plot().lines] == ["training"]
    history.extend(loss=[0.2], validation_loss=[0.3])
    labels = [line.get_label() for line in history.plot().lines]
    assert labels == ["training", "validation"]
    matplotlib.pyplot.close("all")


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'fastnn-mlp\[plot\]'"):
        filled(1).plot()
