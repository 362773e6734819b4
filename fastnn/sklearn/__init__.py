"""scikit-learn's MLPClassifier, MLPRegressor and Perceptron at this package's speed.

Change ``from sklearn.neural_network import MLPClassifier`` to
``from fastnn.sklearn import MLPClassifier``: same parameters, same numbers, and more behind them.
"""

import re as _re

try:
    import sklearn as _sklearn
except ImportError as error:
    raise ImportError(
        "fastnn.sklearn needs scikit-learn 1.9 or later: pip install 'fastnn-mlp[sklearn]'"
    ) from error

# Two numbers and whatever follows them: 1.9.1, 1.10rc1, 1.9.dev0.
if [int(number) for number in _re.findall(r"\d+", _sklearn.__version__)[:2]] < [1, 9]:
    raise ImportError(
        f"fastnn.sklearn needs scikit-learn 1.9 or later, found {_sklearn.__version__}: "
        "pip install 'fastnn-mlp[sklearn]'"
    )

from fastnn.sklearn._mlp import MLPClassifier, MLPRegressor
from fastnn.sklearn._perceptron import Perceptron

__all__ = ["MLPClassifier", "MLPRegressor", "Perceptron"]
