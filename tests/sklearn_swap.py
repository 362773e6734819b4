"""A pytest plugin that puts fastnn's estimators in the place of scikit-learn's.

With this folder on PYTHONPATH, scikit-learn's own tests run on fastnn's classes:

    pytest -p sklearn_swap --pyargs sklearn.neural_network.tests.test_mlp

Test modules import the classes from ``sklearn.neural_network`` and ``sklearn.linear_model``, after
plugins are loaded. peers/test_sklearn_own_tests.py does all of it.
"""

import sklearn.linear_model
import sklearn.neural_network

import fastnn.sklearn

SWAPPED = {
    sklearn.neural_network: ("MLPClassifier", "MLPRegressor"),
    sklearn.linear_model: ("Perceptron",),
}

# Of these files, the tests with one of these words in their name concern the classes.
CONCERNED = {
    "sklearn.linear_model.tests.test_common": ("Perceptron",),
    "sklearn.tests.test_multiclass": ("test_ovo_ties",),
}

# They read or call what is private to scikit-learn's classes: _backprop, _optimizer,
# _no_improvement_count.
PRIVATE = {
    "test_fit",
    "test_gradient",
    "test_learning_rate_warmstart",
    "test_adaptive_learning_rate",
    "test_n_iter_no_change",
    "test_n_iter_no_change_inf",
}

for package, names in SWAPPED.items():
    for name in names:
        setattr(package, name, getattr(fastnn.sklearn, name))


def pytest_collection_modifyitems(config, items):
    chosen, left = [], []
    for item in items:
        module = item.module.__name__
        words = CONCERNED.get(module, ("",))
        private = module.endswith("test_mlp") and item.originalname in PRIVATE
        wanted = not private and any(word in item.name for word in words)
        (chosen if wanted else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = chosen
    config.left_out = sorted(item.name for item in left if item.module.__name__ not in CONCERNED)


def pytest_collection_finish(session):
    """A test module that holds none of the classes says nothing about them."""
    for module in {item.module for item in session.items}:
        held = [value for value in vars(module).values() if isinstance(value, type)]
        assert any(value.__module__.startswith("fastnn.sklearn") for value in held), module


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.line(f"left out: {' '.join(config.left_out)}")
