from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# Instruction sets and tables

def isa() -> str: ...
def available_isas() -> list[str]: ...
def activation_names() -> list[str]: ...
def activation_needs_z(activation: int) -> bool: ...
def loss_names() -> list[str]: ...
def optimizer_names() -> list[str]: ...
def optimizer_shape(optimizer: int) -> tuple[int, int]: ...
def slot_names() -> list[str]: ...
def kernel_address(isa_name: str, dtype: str, slot: str) -> int: ...
def scratch_bytes(n_outputs: int) -> int: ...
def row_stride(width: int, item_bytes: int) -> int: ...
def size_product(a: int, b: int) -> int: ...
def set_work_per_thread(multiply_adds: float) -> float: ...
def set_most_density(density: float) -> float: ...

# Arrays and random order

def all_finite(array: np.ndarray, is_float32: bool, n_threads: int) -> bool: ...
def permutation(n: int, seed: int, epoch: int) -> np.ndarray: ...
def fill_permutation(order: np.ndarray, seed: int, epoch: int) -> None: ...

# The driver

class Buffers: ...

class NativePlan:
    def __init__(
        self,
        layer_sizes: Sequence[int],
        is_float32: bool | np.bool_,
        activations: Sequence[Any],
        dropout: Sequence[float],
    ) -> None: ...

class Predictor:
    def __init__(
        self,
        plan: NativePlan,
        parameters: np.ndarray,
        fallback: Callable[[Any, Any], np.ndarray],
    ) -> None: ...
    def predict(self, X: Any, out: np.ndarray | None = None) -> np.ndarray: ...

def train(
    plan: NativePlan,
    X: np.ndarray,
    labels: np.ndarray | None,
    targets: np.ndarray | None,
    sample_weight: np.ndarray | None,
    loss: int,
    loss_parameter: float,
    parameters: np.ndarray,
    slots: np.ndarray,
    optimizer: int,
    scalars: np.ndarray,
    orders: np.ndarray | None,
    batch_size: int,
    n_epochs: int,
    l2: float,
    clip_norm: float | None,
    dropout_seed: int,
    dropout_stream: int,
    first_epoch: int,
    n_threads: int,
    stop: np.ndarray,
    step_l2: np.ndarray | None = None,
    step_record: np.ndarray | None = None,
    check_rows: bool = False,
    user_loss: int = 0,
) -> tuple[np.ndarray, np.ndarray, int, int, str, int, int, BaseException | None]: ...
def loss_and_gradient(
    plan: NativePlan,
    X: np.ndarray,
    labels: np.ndarray | None,
    targets: np.ndarray | None,
    sample_weight: np.ndarray | None,
    loss: int,
    loss_parameter: float,
    parameters: np.ndarray,
    l2: float,
    gradient: np.ndarray | None,
    n_threads: int,
    user_loss: int = 0,
) -> float: ...
def predict(
    plan: NativePlan,
    parameters: np.ndarray,
    X: np.ndarray,
    outputs: Sequence[np.ndarray | None],
    jacobian: np.ndarray | None,
    check: bool,
    n_threads: int,
) -> bool: ...
def perceptron_fit(
    X: np.ndarray,
    targets: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    learning_rate: float,
    max_epochs: int,
    shuffle: bool,
    seed: int,
    n_threads: int,
    stop: np.ndarray,
) -> tuple[np.ndarray, str, BaseException | None]: ...

class Online:
    def __init__(
        self,
        X: np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray],
        n_features: int,
        labels: np.ndarray,
        sample_weight: np.ndarray | None,
        held: np.ndarray | None,
        weights: np.ndarray,
        intercepts: np.ndarray,
        positives: np.ndarray,
        class_weights: np.ndarray,
        seeds: np.ndarray,
        penalty: int,
        alpha: float,
        l1_ratio: float,
        eta: float,
        fit_intercept: bool,
        shuffle: bool,
        tol: float,
        n_iter_no_change: int,
        judges_objective: bool,
        shows: bool,
    ) -> None: ...
    def run(
        self, begin: int, end: int, n_epochs: int, n_threads: int, stop: np.ndarray
    ) -> BaseException | None: ...
    def judge(self, unit: int, samples: np.ndarray) -> np.ndarray: ...
    def state(self, unit: int) -> tuple[str, int, float, float, float, float]: ...
    def end(self, unit: int) -> None: ...
