"""The public names: all there, and nothing that costs."""

import copy
import pickle
import subprocess
import sys

import pytest

import fastnn

CLASSES_WITHOUT_ARGUMENTS = {
    *("SGD", "Adagrad", "Adam", "AdamW", "LBFGS", "Nadam", "RMSprop", "Rprop", "Huber", "Quantile"),
    *("CosineDecay", "ExponentialDecay", "InverseScaling", "OneCycle", "StepDecay", "Warmup"),
    *("EarlyStopping", "ReduceOnPlateau", "History"),
}


def test_every_public_name_exists():
    for name in fastnn.__all__:
        assert getattr(fastnn, name) is not None
        assert name in dir(fastnn)


def test_unknown_names():
    with pytest.raises(AttributeError, match="module 'fastnn' has no attribute 'nope'"):
        fastnn.nope


OBJECTS = {
    **{
        name: getattr(fastnn, name)()
        for name in fastnn.__all__
        if name in CLASSES_WITHOUT_ARGUMENTS
    },
    "Preprocessing": fastnn.Preprocessing(mean=[0.0], scale=[1.0]),
    "TimeLimit": fastnn.TimeLimit(3),
    "Checkpoint": fastnn.Checkpoint("file", every=2),
    "MLP": fastnn.MLP([2, 1], backend="reference"),
    "Perceptron": fastnn.Perceptron(backend="reference"),
    "Trainer": fastnn.Trainer(fastnn.MLP([2, 1], backend="reference"), schedule="one_cycle"),
    "ModelFormatError": fastnn.ModelFormatError("why"),
    "BackendUnavailable": fastnn.BackendUnavailable("why"),
    "Activation": fastnn.Activation("of_test_init", lambda z: abs(z)),
    "Loss": fastnn.Loss("of_test_init", lambda y, t: abs(y - t)),
    "DivergenceError": fastnn.DivergenceError("why", 1, 2),
}


def test_every_public_class_is_among_the_objects():
    others = {"datasets", "find_learning_rate", "show_config", "train_many"}
    assert set(OBJECTS) == set(fastnn.__all__) - others


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", OBJECTS)
def test_every_public_class_can_be_pickled_and_copied(name, protocol):  # cases P1, P2
    original = OBJECTS[name]
    for other in (pickle.loads(pickle.dumps(original, protocol)), copy.deepcopy(original)):
        assert type(other) is type(original)
        if "0x" not in repr(original):
            assert repr(other) == repr(original)


def test_import_loads_nothing_heavy():
    code = (
        "import sys, fastnn; heavy = 'numba sklearn scipy matplotlib safetensors tqdm'.split();"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
