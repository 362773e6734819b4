"""The shape of a network: its sizes, its dtype, and where each weight lies in the flat array."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fastnn.tables.activations import (
    ACTIVATIONS,
    LINKS,
    REGISTERED_ACTIVATIONS,
    ActivationRow,
)
from fastnn.validation import check_choice, check_dtype, check_int, check_real

__all__ = ["Plan", "check_memory"]

CACHE_LINE = 64  # bytes, of every processor that we know


@dataclass(frozen=True)
class Plan:
    """Everything about a network but the values of its parameters.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units per layer, ``(n_in, hidden..., n_out)``: at least two entries, each >= 1.
    dtype : dtype-like
        float32 or float64: of the parameters and of everything computed from them.
    activations : sequence of str or ActivationRow
        One of ``ACTIVATIONS``, or of the user's own, per hidden layer; kept by name.
    output : str or ActivationRow
        The output link: one of ``LINKS``, of ``ACTIVATIONS`` or of the user's own.
    dropout : sequence of float
        The share of units dropped while training, one per hidden layer, ``0 <= p < 1``.

    Raises
    ------
    TypeError, ValueError
        An argument of the wrong type or value.
    MemoryError
        The parameters would not fit the address space; the message has the size.

    Notes
    -----
    The parameters are one flat array: ``W[0]`` row-major ``(n_in, n_out)``, ``b[0]``, ``W[1]``,
    ``b[1]``, ... All sizes are Python integers, which do not overflow.
    """

    layer_sizes: tuple[int, ...]
    dtype: np.dtype
    activations: tuple[str, ...]
    output: str
    dropout: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes = _sequence(self.layer_sizes, "layer_sizes")
        if len(sizes) < 2:
            raise ValueError(
                f"layer_sizes has {len(sizes)} entries, but a network needs at least 2: "
                "[n_in, hidden..., n_out]"
            )
        n_hidden = len(sizes) - 2
        activations = _one_per_hidden_layer(self.activations, "activation", n_hidden)
        dropout = _one_per_hidden_layer(self.dropout, "dropout", n_hidden)
        normalized = {
            "layer_sizes": tuple(
                check_int(size, f"layer_sizes[{i}]", low=1) for i, size in enumerate(sizes)
            ),
            "dtype": check_dtype(self.dtype),
            "activations": tuple(
                _activation_name(row, f"activation[{i}]", ACTIVATIONS)
                for i, row in enumerate(activations)
            ),
            "output": _activation_name(self.output, "output", LINKS, ACTIVATIONS),
            "dropout": tuple(
                check_real(rate, f"dropout[{i}]", low=0.0, high=1.0, high_open=True)
                for i, rate in enumerate(dropout)
            ),
        }
        for name, value in normalized.items():
            object.__setattr__(self, name, value)
        if self.n_bytes > sys.maxsize:
            raise MemoryError(
                f"layer_sizes={list(self.layer_sizes)} has {self.n_parameters} parameters, "
                f"{self.n_bytes} bytes: more than this machine can address ({sys.maxsize})"
            )

    @property
    def n_layers(self) -> int:
        """Number of weight layers: ``len(layer_sizes) - 1``."""
        return len(self.layer_sizes) - 1

    @property
    def n_features(self) -> int:
        """Number of inputs."""
        return self.layer_sizes[0]

    @property
    def n_outputs(self) -> int:
        """Number of outputs."""
        return self.layer_sizes[-1]

    @cached_property
    def offsets(self) -> tuple[tuple[int, int], ...]:
        """Per layer ``(weight_offset, bias_offset)`` into the flat parameters, in elements."""
        offsets, at = [], 0
        for fan_in, fan_out in zip(self.layer_sizes, self.layer_sizes[1:], strict=False):
            offsets.append((at, at + fan_in * fan_out))
            at += (fan_in + 1) * fan_out
        return tuple(offsets)

    @cached_property
    def n_parameters(self) -> int:
        """Number of weights and biases."""
        return self.offsets[-1][1] + self.n_outputs

    @property
    def n_bytes(self) -> int:
        """Bytes that the flat parameters take."""
        return self.n_parameters * self.dtype.itemsize

    def allocate(self, n: int) -> np.ndarray:
        """Memory for `n` arrays of the parameters' size: parameters, or slots of an optimizer.

        Returns
        -------
        ndarray of shape (n, n_parameters)
            Zeros. Each row lies by itself and begins with a cache line: vectors that lie across
            two lines take longer to read, and longer still to write.
        """
        row_bytes = -(-self.n_bytes // CACHE_LINE) * CACHE_LINE
        memory = np.zeros(n * row_bytes + CACHE_LINE, np.uint8)
        begin = -memory.__array_interface__["data"][0] % CACHE_LINE
        rows = memory[begin : begin + n * row_bytes].view(self.dtype)
        return rows.reshape(n, row_bytes // self.dtype.itemsize)[:, : self.n_parameters]

    def views(self, flat: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Weights and biases as views into a flat array.

        Parameters
        ----------
        flat : ndarray of shape (n_parameters,), C-contiguous
            Parameters, a gradient, or a slot of an optimizer.

        Returns
        -------
        weights : list of ndarray, each (fan_in, fan_out)
        biases : list of ndarray, each (fan_out,)
        """
        weights, biases = [], []
        for layer, (weight_at, bias_at) in enumerate(self.offsets):
            fan_in, fan_out = self.layer_sizes[layer : layer + 2]
            weights.append(flat[weight_at:bias_at].reshape(fan_in, fan_out))
            biases.append(flat[bias_at : bias_at + fan_out])
        return weights, biases


def check_memory(n_bytes: int, what: str) -> None:
    """Raise MemoryError where `n_bytes` cannot be had, before anything is allocated.

    An operating system that overcommits grants more than it has and kills the process later; so
    the request is held against the physical memory.
    """
    limit = sys.maxsize
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows does not overcommit
        limit = min(limit, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    if n_bytes > limit:
        raise MemoryError(f"{what} needs {n_bytes} bytes, but this machine has {limit}")


def _activation_name(value: object, name: str, *tables: Mapping[str, ActivationRow]) -> str:
    """The name of an activation, which is all that a plan keeps of it."""
    if isinstance(value, ActivationRow):
        value = value.name
    tables = (*tables, REGISTERED_ACTIVATIONS)
    if isinstance(value, str) and any(value in table for table in tables):
        return str(value)
    try:
        return check_choice(value, name, [choice for table in tables for choice in table])
    except ValueError as error:
        raise ValueError(
            f"{error}; one of your own has to be registered first in every process, with "
            f"fastnn.Activation({value!r}, f)"
        ) from None


def _sequence(value: object, name: str) -> list:
    """`value` as a list; strings and unordered collections are no sequences here."""
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return list(value)
    raise TypeError(f"{name} must be a list, a tuple or a 1-D array, got {value!r}")


def _one_per_hidden_layer(value: object, name: str, n_hidden: int) -> list:
    items = _sequence(value, name)
    if len(items) != n_hidden:
        raise ValueError(
            f"{name} has {len(items)} entries, but there are {n_hidden} hidden layers: "
            "give one for all, or one per hidden layer"
        )
    return items
