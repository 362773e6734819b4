"""scikit-learn's MLPClassifier, MLPRegressor and Perceptron at this package's speed.

Change ``from sklearn.neural_network import MLPClassifier`` to
``from fastnn.sklearn import MLPClassifier``: same parameters, same numbers, and more behind them.
"""

try:
    import sklearn as _sklearn
except ImportError as error:
    raise ImportError(
        "fastnn.sklearn needs scikit-learn 1.9 or later: pip install 'fastnn-mlp[sklearn]'"
    ) from error

if tuple(int(part) for part in _sklearn.__version__.split(".")[:2]) < (1, 9):
    raise ImportError(
        f"fastnn.sklearn needs scikit-learn 1.9 or later, found {_sklearn.__version__}: "
        "pip install 'fastnn-mlp[sklearn]'"
    )

from fastnn.sklearn._mlp import MLPClassifier, MLPRegressor
from fastnn.sklearn._perceptron import Perceptron

__all__ = ["MLPClassifier", "MLPRegressor", "Perceptron"]
