"""What the tests of the estimators share; `estimators.py` has the rest."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # importlib mode: helper modules beside the tests


@pytest.fixture
def no_convergence_warnings():
    """Fits of a few epochs do not converge, and need not."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield
