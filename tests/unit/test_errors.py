"""The exceptions carry what they promise, through a pickle too."""

import pickle

from fastnn.errors import BackendUnavailable, DivergenceError, ModelFormatError
from fastnn.history import History


def test_kinds():
    assert issubclass(ModelFormatError, ValueError)
    assert issubclass(DivergenceError, ArithmeticError)
    assert issubclass(BackendUnavailable, ImportError)


def test_divergence_error_survives_a_pickle():
    history = History()
    history.extend(loss=[2.0], seconds=[0.1])
    error = pickle.loads(pickle.dumps(DivergenceError("why", 3, 14, history)))
    assert (str(error), error.epoch, error.batch) == ("why", 3, 14)
    assert error.history.loss.tolist() == [2.0]
