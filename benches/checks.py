"""Whether a result is one of the work that was asked for: losses, outputs, accuracy."""

import functools

import numpy as np
import peers
import workloads
from workloads import WORKLOADS, Inference, Training


@functools.cache
def reference_loss(name: str, seed: int) -> float:
    """The final loss of the plain NumPy version of a training, in float32."""
    workload = WORKLOADS[name]
    one = peers.NumPy(workload, 1)
    return workloads.training_loss(workload, one.run(seed), one.X, one.y)


def score(workload, result, dtype: str = "float32") -> float:
    """The figure of a result: final loss (mean over many models), error of outputs, accuracy."""
    if isinstance(workload, Training):
        X, y = workloads.load(workload.data, dtype)
        several = result if workload.n_models > 1 else [result]
        assert len(several) == workload.n_models
        return float(np.mean([workloads.training_loss(workload, p, X, y) for p in several]))
    if isinstance(workload, Inference):
        X = peers.inference_rows(workload)[:2000]
        parameters = peers.inference_parameters(workload)
        exact = workloads.outputs(parameters, X, workload.activation, workload.output)
        return float(np.abs(np.asarray(result).reshape(-1, exact.shape[1])[: len(X)] - exact).max())
    W, b = result
    X, y = workloads.load(workload.data)
    scores = X @ np.asarray(W, np.float32) + np.asarray(b, np.float32)
    return workloads.accuracy(scores if scores.shape[1] > 1 else scores[:, 0], y)


def check(workload, value: float, seed: int) -> None:
    """Raise AssertionError where the score is not one of the same work."""
    if isinstance(workload, Training):
        expected = reference_loss(workload.name, seed)
        low, high = expected * (1 - workload.band), expected * (1 + workload.band)
        assert low <= value <= high, f"final loss {value:.4f}, not within {low:.4f}..{high:.4f}"
    elif isinstance(workload, Inference):
        assert value < 1e-4, f"outputs are off by {value:.2g}"
    else:
        low = {"W6a": 0.70, "W6b": 0.90}[workload.name] - 0.2 * workloads.TINY
        assert value >= low, f"accuracy {value:.3f}, less than {low}"
