"""fastnn: perceptrons and multilayer perceptrons at the speed of the machine."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

from fastnn._distribution import warn_about_foreign_distribution
from fastnn.callbacks import Checkpoint, EarlyStopping, ReduceOnPlateau, TimeLimit
from fastnn.errors import BackendUnavailable, DivergenceError, ModelFormatError
from fastnn.history import History
from fastnn.mlp import MLP
from fastnn.perceptron import Perceptron
from fastnn.preprocessing import Preprocessing
from fastnn.schedules import (
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    OneCycle,
    StepDecay,
    Warmup,
)
from fastnn.tables.losses import Huber, Quantile
from fastnn.tables.optimizers import (
    LBFGS,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Nadam,
    RMSprop,
    Rprop,
)
from fastnn.trainer import Trainer

if TYPE_CHECKING:
    from fastnn import datasets
    from fastnn.config import show_config
    from fastnn.many import train_many
    from fastnn.rate_finder import find_learning_rate
    from fastnn.tables.custom import Activation, Loss

__version__ = "0.1.0"

__all__ = [
    "LBFGS",
    "MLP",
    "SGD",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "BackendUnavailable",
    "Checkpoint",
    "CosineDecay",
    "DivergenceError",
    "EarlyStopping",
    "ExponentialDecay",
    "History",
    "Huber",
    "InverseScaling",
    "Loss",
    "ModelFormatError",
    "Nadam",
    "OneCycle",
    "Perceptron",
    "Preprocessing",
    "Quantile",
    "RMSprop",
    "ReduceOnPlateau",
    "Rprop",
    "StepDecay",
    "TimeLimit",
    "Trainer",
    "Warmup",
    "datasets",
    "find_learning_rate",
    "show_config",
    "train_many",
]

# Public names whose modules wait for their first use: `import fastnn` stays quick.
_LAZY = {
    "Activation": ("fastnn.tables.custom", "Activation"),
    "Loss": ("fastnn.tables.custom", "Loss"),
    "datasets": ("fastnn.datasets", None),
    "find_learning_rate": ("fastnn.rate_finder", "find_learning_rate"),
    "show_config": ("fastnn.config", "show_config"),
    "train_many": ("fastnn.many", "train_many"),
}


def __getattr__(name: str) -> Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'fastnn' has no attribute {name!r}") from None
    value = importlib.import_module(module)
    if attribute is not None:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# A wrong FASTNN_ISA is an error here and now; a missing extension is one when it is asked for.
with contextlib.suppress(ImportError):
    importlib.import_module("fastnn.backends._native")

warn_about_foreign_distribution()
