"""The two estimators of nets, and what a fitted one has learned."""

import numpy as np

from fastnn.sklearn import MLPClassifier, MLPRegressor

BOTH = [MLPClassifier, MLPRegressor]


def flat(estimator):
    """All parameters, one after the other."""
    return np.concatenate([a.ravel() for a in (*estimator.coefs_, *estimator.intercepts_)])
