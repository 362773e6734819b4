"""Multilayer perceptrons: parameters, predictions and gradients."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastnn.backends import BACKENDS, get_backend
from fastnn.backends.base import Backend
from fastnn.plan import Plan, check_memory
from fastnn.preprocessing import Preprocessing
from fastnn.sparse_rows import SparseRows
from fastnn.tables.activations import ActivationRow
from fastnn.tables.losses import LossRow, encode_targets, resolve_loss
from fastnn.threads import resolve_n_threads
from fastnn.validation import (
    check_choice,
    check_dtype,
    check_out,
    check_real,
    check_sample_weight,
    check_X,
    on_gpu,
    raise_not_finite,
    resolve_seed,
)

if TYPE_CHECKING:
    from fastnn.persistence import Section, Tensors

__all__ = ["INITIALIZATIONS", "MLP", "check_data"]

# Variance of a weight, by the units that feed it and those that it feeds.
_VARIANCES: dict[str, Callable[[int, int], float]] = {
    "he": lambda fan_in, fan_out: 2.0 / fan_in,
    "glorot": lambda fan_in, fan_out: 2.0 / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1.0 / fan_in,
}
INITIALIZATIONS = (
    "auto",
    *(f"{scheme}_{shape}" for scheme in _VARIANCES for shape in ("uniform", "normal")),
    "zeros",
)
_RELU_KIN = {"relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "mish"}
_DRAW_ELEMS = 1 << 18  # weights drawn at once, in float64


class MLP:
    """A multilayer perceptron.

    Layer l computes ``y[l] = f(y[l-1] @ W[l] + b[l])``, with ``y[-1] = X``; f is the layer's
    activation, and the output link in the last layer.

    Parameters
    ----------
    layer_sizes : sequence of int
        ``[n_in, hidden..., n_out]``, at least two entries.
    activation : str, Activation, or a sequence of them, default "relu"
        Of the hidden layers: one for all or one for each. An `Activation` is one of your own.
    output : str or Activation, default "identity"
        "identity", "sigmoid", "softmax", "exp", or any activation.
    init : str, default "auto"
        How the weights are drawn, one of `INITIALIZATIONS`; biases start at 0. "auto" chooses by
        the activation that follows a layer: "he_uniform" for relu and its kin, "lecun_normal" for
        selu, "glorot_uniform" for the rest.
    dropout : float or sequence of float, default 0.0
        Share of the units of each hidden layer that training leaves out, ``0 <= p < 1``: one for
        all or one for each.
    dtype : "float32" or "float64", default "float32"
        Of the parameters and of all results.
    seed : int, optional
        Of the weights, ``0 <= seed < 2**64``. By default a fresh one is drawn, and kept.
    backend : str, default "native"
        Who computes: "native" (compiled), "numba" (compiled when first used, where the extension
        is not to be had), "reference" (plain NumPy), or "cuda" (an NVIDIA GPU; needs
        ``pip install 'fastnn-mlp[cuda]'``).

    Attributes
    ----------
    parameters : ndarray of shape (n_parameters,)
        All weights and biases: ``W[0]`` row by row, ``b[0]``, ``W[1]``, ... Write to it at will.
    weights : list of ndarray, each (fan_in, fan_out)
    biases : list of ndarray, each (fan_out,)
        Views into `parameters`; ``model.weights[0] = W`` copies W into the view.
    plan : Plan
        The sizes, the dtype, the activations.
    seed : int
        What the weights were drawn from.
    backend : str
        The name of the backend.
    preprocessing : Preprocessing or None
        What to do with data before `predict`, which does not do it itself; saved with the model.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value.
    MemoryError
        The parameters would not fit; the message has the size.
    BackendUnavailable
        The backend does not exist on this machine.

    Notes
    -----
    `predict` and the other methods that read may run in several threads at once.

    References
    ----------
    He et al. (2015), Delving deep into rectifiers, arXiv:1502.01852.
    Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward networks.
    LeCun et al. (1998), Efficient BackProp, doi 10.1007/3-540-49430-8_2.

    Examples
    --------
    >>> model = fastnn.MLP([64, 32, 10], output="softmax", seed=0)
    >>> fastnn.Trainer(model, seed=0).fit(X, y, epochs=20)
    >>> model.predict(X).argmax(axis=1)
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        *,
        activation: str | ActivationRow | Sequence[str | ActivationRow] = "relu",
        output: str | ActivationRow = "identity",
        init: str = "auto",
        dropout: float | Sequence[float] = 0.0,
        dtype: npt.DTypeLike = "float32",
        seed: int | None = None,
        backend: str = "native",
    ) -> None:
        n_hidden = max(0, len(layer_sizes) - 2) if hasattr(layer_sizes, "__len__") else 0
        plan = Plan(
            layer_sizes,  # type: ignore[arg-type]  # Plan turns sequences into tuples
            check_dtype(dtype),
            (activation,) * n_hidden  # type: ignore[arg-type]
            if isinstance(activation, str | ActivationRow)
            else activation,
            output,  # type: ignore[arg-type]
            (dropout,) * n_hidden if np.ndim(dropout) == 0 else dropout,  # type: ignore[arg-type]
        )
        check_choice(init, "init", INITIALIZATIONS)
        seed = resolve_seed(seed)
        engine = get_backend(check_choice(backend, "backend", BACKENDS))
        check_memory(plan.n_bytes, f"layer_sizes={list(plan.layer_sizes)}")
        parameters = plan.allocate(1)[0]
        self._bind(plan, parameters, seed, engine, None)
        _draw_parameters(plan, self.weights, self.biases, init, seed)

    def _bind(
        self,
        plan: Plan,
        parameters: np.ndarray,
        seed: int,
        backend: Backend,
        preprocessing: Preprocessing | None,
    ) -> None:
        self._plan = plan
        self._parameters = parameters
        self._seed = seed
        self._backend = backend
        self.preprocessing = preprocessing
        weights, biases = plan.views(parameters)
        self._weights, self._biases = _Views(weights), _Views(biases)
        self._training = _TrainingLock()
        # No reference to self in here: a cycle would keep the memory until the collector runs.
        self._predictor: Callable[[Any, Any], np.ndarray] = partial(
            _predict, backend, plan, parameters
        )
        if hasattr(backend, "predictor"):
            self._predictor = backend.predictor(plan, parameters, self._predictor)

    @property
    def plan(self) -> Plan:
        return self._plan

    @property
    def parameters(self) -> np.ndarray:
        return self._parameters

    @property
    def weights(self) -> list[np.ndarray]:
        return self._weights

    @property
    def biases(self) -> list[np.ndarray]:
        return self._biases

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def backend(self) -> str:
        return self._backend.name

    def __repr__(self) -> str:
        plan = self._plan
        text = f"MLP({list(plan.layer_sizes)}"
        for name, values in (("activation", plan.activations), ("dropout", plan.dropout)):
            if values and any(value != 0 for value in values):
                text += f", {name}={values[0] if len(set(values)) == 1 else list(values)!r}"
        return f"{text}, output={plan.output!r}, dtype='{plan.dtype}')"

    # Computing --------------------------------------------------------------------------------

    def predict(self, X: Any, out: np.ndarray | None = None) -> np.ndarray:
        """The outputs, after the output link.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_features,)
            A sparse matrix of SciPy's is read as CSR, on the CPU's own backends; only what it
            stores is touched.
        out : ndarray, optional
            Where to write: of the result's shape, the model's dtype, C-contiguous, apart from X
            and from the parameters.

        Returns
        -------
        ndarray of shape (n_samples, n_outputs) or (n_outputs,)
            In the model's dtype. No rows give no rows.

        Raises
        ------
        TypeError, ValueError
            X or out of the wrong type, shape or value.
        """
        return self._predictor(X, out)

    def layer_outputs(self, X: Any) -> list[np.ndarray]:
        """The outputs of every layer, after its activation.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        list of ndarray
            One per layer, ``(n_samples, layer_sizes[l + 1])``, in the model's dtype.

        Raises
        ------
        TypeError, ValueError
            X of the wrong type, shape or value.
        """
        X = _check_rows(self._backend, X, self._plan)
        return self._backend.layer_outputs(self._plan, self._parameters, X, resolve_n_threads())

    def input_gradient(self, X: Any) -> np.ndarray:
        """The derivative of every output by every input.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_outputs, n_features)
            In the model's dtype.

        Raises
        ------
        TypeError, ValueError
            X of the wrong type, shape or value.
        """
        X = _check_rows(self._backend, X, self._plan)
        return self._backend.input_gradient(self._plan, self._parameters, X, resolve_n_threads())

    def loss_and_gradient(
        self,
        X: Any,
        y: Any,
        *,
        loss: str | LossRow | None = None,
        sample_weight: Any = None,
        l2: float = 0.0,
    ) -> tuple[float, np.ndarray]:
        """The objective and its gradient, without dropout.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples, n_outputs), or (n_samples,)
            Targets; labels for cross_entropy.
        loss : str or loss object, optional
            By default the natural one of the output.
        sample_weight : array-like of shape (n_samples,), optional
            Not negative, not all zero.
        l2 : float, default 0.0
            Adds ``l2 / 2 * sum(W**2)``, biases left out.

        Returns
        -------
        objective : float
            The weighted mean of the loss over the rows, plus the l2 term.
        gradient : ndarray of shape (n_parameters,)
            In the layout of `parameters` and the model's dtype; ``plan.views`` splits it.

        Raises
        ------
        TypeError, ValueError
            An argument of the wrong type, shape or value.
        """
        plan = self._plan
        row = resolve_loss(loss, plan.output)
        l2 = check_real(l2, "l2", low=0.0)
        X, y, weight = check_data(plan, row, X, y, sample_weight, backend=self._backend)
        return self._backend.loss_and_gradient(
            plan, self._parameters, X, y, weight, row, l2, resolve_n_threads()
        )

    def compile(self) -> Any:
        """Compile this net, its sizes and weights fixed, for code that Numba compiles.

        For loops that evaluate a small net once per round, such as control and simulation: called
        from a function under `numba.njit`, it costs a hundred nanoseconds or so, and the loop never
        leaves compiled code. From Python, and for batches, `predict` is faster: ``net.report()``
        measures both and says so.

        Returns
        -------
        callable (x, out=None) -> out
            x of shape (n_features,) or (n_samples, n_features), out an array of the result's shape
            to write to. With the weights of this moment: training that follows does not change
            it, until ``net.refresh()``. Any backend's models can be compiled.

        Raises
        ------
        ValueError
            A layer is too wide for code on the stack (4096 units).
        BackendUnavailable
            Numba is missing.

        Examples
        --------
        >>> net = model.compile()
        >>> @numba.njit
        ... def simulate(state, n):
        ...     action = np.empty(1, np.float32)
        ...     for _ in range(n):
        ...         net(state, action)
        ...         state[0] += action[0]
        """
        engine: Any = get_backend("numba")
        return engine.compile(self._plan, self._parameters, self._predictor)

    # Keeping ----------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Write the model to a safetensors file, whole or not at all.

        Parameters
        ----------
        path : path-like

        Raises
        ------
        OSError
            The file system refused; a file that was there before is as it was.
        """
        from fastnn.persistence import write_file

        sections, tensors = self._to_file()
        write_file(path, "model", sections, tensors)

    @classmethod
    def load(cls, path: Any, *, backend: str = "native") -> MLP:
        """Read a model that `MLP.save` wrote, or the one in a file of `Trainer.save`.

        Parameters
        ----------
        path : path-like
        backend : str, default "native"

        Returns
        -------
        MLP

        Raises
        ------
        ModelFormatError
            The file is not one of these, is truncated, or was altered.
        OSError
            It cannot be read.
        BackendUnavailable
            The backend does not exist on this machine.
        """
        from fastnn.persistence import read_file

        engine = get_backend(check_choice(backend, "backend", BACKENDS))
        header, tensors = read_file(path, "model", "trainer")
        with header:
            if header.take("kind") == "trainer":
                header.take("trainer")
                tensors.discard("trainer.")
            model = cls._from_file(header, tensors, engine)
        tensors.finish()
        return model

    def _to_file(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Header sections and tensors of this model."""
        plan = self._plan
        sections: dict[str, Any] = {
            "model": {
                "layer_sizes": list(plan.layer_sizes),
                "dtype": plan.dtype.name,
                "activation": list(plan.activations),
                "output": plan.output,
                "dropout": list(plan.dropout),
                "seed": self._seed,
            }
        }
        tensors = {}
        for layer, pair in enumerate(zip(self._weights, self._biases, strict=True)):
            tensors[f"layer.{layer}.weight"], tensors[f"layer.{layer}.bias"] = pair
        if self.preprocessing is not None:
            sections["preprocessing"], more = self.preprocessing.to_file()
            tensors.update(more)
        return sections, tensors

    @classmethod
    def _from_file(cls, header: Section, tensors: Tensors, backend: Backend) -> MLP:
        with header.section("model") as section:
            plan = Plan(
                section.take("layer_sizes", list),
                check_dtype(section.take("dtype", str)),
                section.take("activation", list),
                section.take("output", str),
                section.take("dropout", list),
            )
            seed = resolve_seed(section.take("seed", int))
            sources = [
                (
                    tensors.take(f"layer.{i}.weight", plan.layer_sizes[i : i + 2], plan.dtype),
                    tensors.take(f"layer.{i}.bias", plan.layer_sizes[i + 1 : i + 2], plan.dtype),
                )
                for i in range(plan.n_layers)
            ]
        preprocessing = None
        if "preprocessing" in header:
            preprocessing = Preprocessing.from_file(
                header.section("preprocessing"), tensors, plan.n_features
            )
        # Only now: the file held a tensor for every parameter, so this cannot exceed its size.
        parameters = plan.allocate(1)[0]
        model = cls.__new__(cls)
        model._bind(plan, parameters, seed, backend, preprocessing)
        for layer, (weight, bias) in enumerate(sources):
            model.weights[layer] = weight
            model.biases[layer] = bias
        return model

    def copy(self) -> MLP:
        """An independent model with the same parameters."""
        parameters = self._plan.allocate(1)[0]
        parameters[:] = self._parameters
        model = type(self).__new__(type(self))
        model.__setstate__({**self.__getstate__(), "parameters": parameters})
        return model

    __copy__ = copy

    def __getstate__(self) -> dict[str, Any]:
        return {
            "plan": self._plan,
            "parameters": self._parameters,
            "seed": self._seed,
            "backend": self._backend.name,
            "preprocessing": self.preprocessing,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        plan, parameters = state["plan"], state["parameters"]
        # Python objects hold the plan, but C follows its offsets: let no pair through that differs.
        plan = Plan(plan.layer_sizes, plan.dtype, plan.activations, plan.output, plan.dropout)
        if type(parameters) is not np.ndarray or not parameters.flags.writeable:
            parameters = np.array(parameters)  # a read-only memory map, as joblib makes them
        check_out(parameters, (plan.n_parameters,), plan.dtype, name="parameters")
        self._bind(
            plan, parameters, state["seed"], get_backend(state["backend"]), state["preprocessing"]
        )


def _draw_parameters(
    plan: Plan, weights: list[np.ndarray], biases: list[np.ndarray], init: str, seed: int
) -> None:
    """Fill the layers in order from one stream, in float64: dtypes see the same numbers."""
    generator = np.random.Generator(np.random.PCG64(seed))
    for W, b, follower in zip(weights, biases, (*plan.activations, plan.output), strict=True):
        b[:] = 0
        scheme, _, shape = (_auto_init(follower) if init == "auto" else init).partition("_")
        if scheme == "zeros":
            W[:] = 0
            continue
        deviation = _VARIANCES[scheme](*W.shape) ** 0.5
        limit = 3.0**0.5 * deviation  # of the uniform distribution with that deviation
        flat = W.reshape(-1)
        for at in range(0, flat.size, _DRAW_ELEMS):
            size = min(_DRAW_ELEMS, flat.size - at)
            if shape == "uniform":
                flat[at : at + size] = generator.uniform(-limit, limit, size)
            else:
                flat[at : at + size] = generator.normal(0.0, deviation, size)


def _auto_init(activation: str) -> str:
    if activation in _RELU_KIN:
        return "he_uniform"
    return "lecun_normal" if activation == "selu" else "glorot_uniform"


def _predict(
    backend: Backend, plan: Plan, parameters: np.ndarray, X: Any, out: np.ndarray | None
) -> np.ndarray:
    """`MLP.predict` for every kind of argument; a backend may put a faster way before it."""
    # A result of our own may be thrown away half written; `out` belongs to the caller.
    late = out is None and backend.checks_rows
    X = _check_rows(backend, X, plan, allow_1d=True, finite=not late)
    shape = (*X.shape[:-1], plan.n_outputs)
    given = out
    if backend.takes_device_arrays and on_gpu(out):
        out = backend.check_device_out(out, shape, plan.dtype)
    elif out is None:
        out = np.empty(shape, plan.dtype)
    else:
        apart = () if backend.takes_device_arrays else (X.data if isinstance(X, SparseRows) else X,)
        check_out(out, shape, plan.dtype, parameters, *apart)
    arguments = (
        plan,
        parameters,
        X.reshape(-1, plan.n_features) if X.ndim == 1 else X,
        out.reshape(-1, plan.n_outputs),
        resolve_n_threads(),
    )
    if not late:
        backend.predict(*arguments)
    elif not backend.predict_checked(*arguments):
        raise_not_finite(X, "X", plan.dtype)
    return out if given is None else given


def _check_rows(
    backend: Backend | None,
    X: Any,
    plan: Plan,
    *,
    name: str = "X",
    allow_1d: bool = False,
    finite: bool = True,
) -> Any:
    """`check_X`, or the backend's own look at rows that lie on a GPU."""
    if backend is not None and backend.takes_device_arrays and on_gpu(X):
        return backend.adopt_rows(X, plan.n_features, plan.dtype, name, allow_1d)
    sparse = backend is None or backend.takes_sparse_rows
    return check_X(X, plan.n_features, plan.dtype, name, allow_1d, finite, sparse)


class _TrainingLock:
    """Held by whoever changes a model's parameters, so that two trainings cannot mix."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: tuple[int, int] | None = None  # process and thread

    def acquire(self) -> bool:
        """Take the lock where it is free, and say whether it was."""
        if not self._lock.acquire(blocking=False):
            if self._holder is None or self._holder[0] == os.getpid():
                return False
            # This process was forked while its parent trained: the holder does not exist here.
            self._lock = threading.Lock()
            self._lock.acquire()
        self._holder = os.getpid(), threading.get_ident()
        return True

    def release(self) -> None:
        self._holder = None
        self._lock.release()

    def held_by_another_thread(self) -> bool:
        """Whether a thread of this process other than this one changes the parameters."""
        holder = self._holder
        return (
            holder is not None and holder[0] == os.getpid() and holder[1] != threading.get_ident()
        )


class _Views(list):
    """Views into the flat parameters, where assigning an entry writes through the view."""

    def __setitem__(self, index: Any, value: Any) -> None:
        # Replacing the view in the list would change nothing in the model, without a word.
        if not isinstance(index, int | np.integer):
            raise TypeError(f"assign one layer at a time, got index {index!r}")
        view = self[index]
        if np.shape(value) != view.shape:
            raise ValueError(f"layer {index} needs shape {view.shape}, got {np.shape(value)}")
        view[...] = value


def check_data(
    plan: Plan,
    loss: LossRow,
    X: Any,
    y: Any,
    sample_weight: Any,
    *,
    allow_all_zero: bool = False,
    finite: bool = True,
    names: tuple[str, str, str] = ("X", "y", "sample_weight"),
    backend: Backend | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Rows, targets and weights as the backends take them; at least one row.

    With ``finite=False`` the backend looks for NaN and infinity in X. Given a backend that takes
    them, rows and targets in a GPU's memory stay there.
    """
    X = _check_rows(backend, X, plan, name=names[0], finite=finite)
    if not len(X):
        raise ValueError(f"{names[0]} has no rows, but at least one is needed")
    if backend is not None and backend.takes_device_arrays:
        if on_gpu(sample_weight):
            sample_weight = backend.fetch(sample_weight, names[2])
        if on_gpu(y):
            y = backend.adopt_targets(loss, y, len(X), plan.n_outputs, plan.dtype, names[1])
            weight = check_sample_weight(
                sample_weight, len(X), names[2], allow_all_zero=allow_all_zero
            )
            return X, y, weight
    y = encode_targets(loss, y, len(X), plan.n_outputs, plan.dtype, name=names[1])
    weight = check_sample_weight(sample_weight, len(X), names[2], allow_all_zero=allow_all_zero)
    return X, y, weight
