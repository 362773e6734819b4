"""History: arrays that grow cheaply, and a picture."""

import copy
import pickle
import threading

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


@pytest.mark.parametrize("n_first", [0, 1, 5000])
def test_long_columns_equal_short_ones(n_first):
    """Whoever looks, and whenever."""
    n = 3000
    loss, rate = np.random.default_rng(0).random((2, n_first + 2 * n + 1))
    history, other = filled(0), filled(0)
    history.extend(loss=loss[:n_first], learning_rate=rate[:n_first])
    for begin in (n_first, n_first + n):
        history.extend(loss=loss[begin : begin + n], learning_rate=rate[begin : begin + n])
    assert len(history) == n_first + 2 * n
    history.amend(validation_loss=2.0)
    history.extend(loss=loss[-1:], learning_rate=rate[-1:])
    for a, b in zip(loss, rate, strict=True):
        other.extend(loss=[a], learning_rate=[b])
    other._joined()[1, len(other) - 2] = 2.0
    for column in History.COLUMNS:
        np.testing.assert_array_equal(getattr(history, column), getattr(other, column))
    assert history.last() == {"loss": loss[-1], "learning_rate": rate[-1]}
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(history)).loss, loss)


def test_other_threads_may_look_while_it_grows():
    history, seen = History(), []
    loss = np.arange(3000.0)
    ended = threading.Event()

    def look():
        while not ended.is_set():
            seen.append(history.loss)

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(50):
        history.extend(loss=loss)
    ended.set()
    thread.join()
    for column in [*seen, history.loss]:
        np.testing.assert_array_equal(column, np.arange(len(column)) % 3000)
    assert len(history) == 50 * 3000


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
