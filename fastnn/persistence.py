"""Model files: a safetensors file whose metadata holds one JSON header, ``fastnn``.

The header says what the tensors mean. It carries the format's version, the kind of the file, one
section per part (``model``, ``preprocessing``, ``trainer``), and the SHA-256 of the header itself
and of every tensor's name, type, shape and bytes. Numbers are little-endian. The hash finds
accidents; it is no signature, and says nothing about who wrote the file.

Reading trusts nothing: every size is held against the size of the file before anything is
allocated, so that a bad file costs a `ModelFormatError` and no memory. Nothing in a file is ever
executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from typing import Any, NoReturn

import numpy as np

from fastnn.errors import ModelFormatError
from fastnn.validation import check_path

__all__ = ["FORMAT_VERSION", "Section", "read_file", "write_atomically", "write_file"]

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1 << 20

_TENSOR_TYPES: dict[Any, np.dtype] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8")}


# Writing ------------------------------------------------------------------------------------------


def write_file(
    path: Any, kind: str, sections: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a model file, whole or not at all.

    Parameters
    ----------
    path : path-like
        An existing file is replaced in one step, and keeps its mode.
    kind : str
        What the file holds: ``"model"`` or ``"trainer"``.
    sections : mapping of str to JSON-able values
        The header beside format, version, kind and hash.
    tensors : mapping of str to ndarray
        float32 and float64 arrays.

    Raises
    ------
    ValueError
        The header is larger than 1 MiB.
    OSError
        The file system refused; a file that was there before is as it was.
    """
    from safetensors.numpy import save_file

    # safetensors writes the memory as it lies, whatever the strides say.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    header = {"format": "fastnn", "version": FORMAT_VERSION, "kind": kind, **sections}
    header["sha256"] = _digest(header, tensors)
    text = _dumps(header)
    # The directory of tensors shares the header's megabyte: about 100 bytes each.
    if len(json.dumps(text)) + 120 * len(tensors) + 64 > MAX_HEADER_BYTES:
        raise ValueError(
            f"the description of this model takes {len(text)} bytes, but a file holds at most "
            f"{MAX_HEADER_BYTES}: shorten the names of features and classes"
        )
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {"fastnn": text}))


def write_atomically(path: Any, write: Callable[[str], None]) -> None:
    """Call ``write(temporary_path)`` and put the result in place of `path` in one step.

    Whatever happens, `path` holds either the old bytes or all of the new ones: the temporary file
    lies in the same directory, reaches the disk before it is renamed, and the renaming reaches
    the disk before this returns. The mode of an existing file is kept.
    """
    target = os.path.realpath(check_path(path))
    directory, name = os.path.split(target)
    temporary = os.path.join(directory, f".{name[:100]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    # 0o666 is narrowed by the user's umask, as for any file that a program writes.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE(os.stat(temporary).st_mode)
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(os.stat(target).st_mode)
        write(temporary)
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if hasattr(os, "O_DIRECTORY"):  # Windows cannot open directories
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _dumps(value: Any) -> str:
    """The one way to write a header: the same content is always the same text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(header: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> str:
    sha256 = hashlib.sha256(_dumps(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
        sha256.update(f"\n{name} {little.dtype.str} {list(little.shape)}\n".encode())
        sha256.update(little.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()


# Reading ------------------------------------------------------------------------------------------


class Section:
    """One JSON object of a header, read strictly: every key once, none left over.

    Used as a context manager, it turns the errors of validating what was read (a wrong size, an
    unknown name) into `ModelFormatError`, and complains about keys that nobody asked for.
    """

    def __init__(self, path: str, name: str, content: Any) -> None:
        self.path = path
        self.name = name
        if not isinstance(content, dict):
            raise ModelFormatError(f"{path}: {name} is not an object")
        self._content = dict(content)

    def take(self, key: str, *types: type) -> Any:
        """The value of `key`, which must be exactly of one of `types` (True is no int)."""
        if key not in self._content:
            raise ModelFormatError(f"{self.path}: {self.name} lacks {key!r}")
        value = self._content.pop(key)
        if types and type(value) not in types:
            raise ModelFormatError(
                f"{self.path}: {key!r} in {self.name} is {type(value).__name__}, expected "
                + " or ".join(t.__name__ for t in types)
            )
        return value

    def section(self, key: str) -> Section:
        """The object under `key`."""
        return Section(self.path, f"{self.name}.{key}", self.take(key))

    def __contains__(self, key: str) -> bool:
        return key in self._content

    def __enter__(self) -> Section:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, ModelFormatError):
            return
        if isinstance(error, ValueError | TypeError | OverflowError | MemoryError | RecursionError):
            raise ModelFormatError(f"{self.path}: {self.name}: {error}") from error
        if error is None and self._content:
            raise ModelFormatError(f"{self.path}: unknown {sorted(self._content)} in {self.name}")


class Tensors:
    """The tensors of a file by name, read strictly: each with the expected type and shape."""

    def __init__(self, path: str, tensors: dict[str, np.ndarray]) -> None:
        self.path = path
        self._tensors = tensors

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """The read-only tensor `name`, little-endian; a -1 in `shape` allows any length."""
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise ModelFormatError(f"{self.path}: there is no tensor {name!r}")
        fits = tensor.ndim == len(shape) and all(
            want in (-1, got) for want, got in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype.newbyteorder("=") != np.dtype(dtype):
            raise ModelFormatError(
                f"{self.path}: tensor {name!r} has shape {tensor.shape} and dtype {tensor.dtype}, "
                f"expected {shape} and {np.dtype(dtype)}"
            )
        return tensor

    def discard(self, prefix: str) -> None:
        """Drop the tensors whose names start with `prefix`."""
        self._tensors = {k: v for k, v in self._tensors.items() if not k.startswith(prefix)}

    def finish(self) -> None:
        """Raise where a tensor was not asked for."""
        if self._tensors:
            raise ModelFormatError(f"{self.path}: unknown tensors {sorted(self._tensors)[:5]}")


def read_file(path: Any, *kinds: str) -> tuple[Section, Tensors]:
    """Read and verify a model file.

    Parameters
    ----------
    path : path-like
    *kinds : str
        The kinds that the caller can use.

    Returns
    -------
    header : Section
        What is left of the header: the sections, and ``kind``.
    tensors : Tensors
        Views into one buffer of the file's size.

    Raises
    ------
    ModelFormatError
        The file is not one of these kinds, is truncated, or was altered.
    OSError
        It cannot be read.
    """
    name = check_path(path)
    with open(name, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        directory, payload = _read_parts(file, size, name)
    metadata = directory.pop("__metadata__", None)
    if not isinstance(metadata, dict) or list(metadata) != ["fastnn"]:
        raise ModelFormatError(f"{name} is a safetensors file, but was not written by fastnn")
    tensors = dict(_tensors(directory, payload, name))
    header = _loads(metadata["fastnn"], name)
    digest = header.pop("sha256", None)
    if _dumps({**header, "sha256": digest}) != metadata["fastnn"]:
        raise ModelFormatError(f"{name}: the header was altered")
    if header.get("format") != "fastnn":
        raise ModelFormatError(f"{name} was not written by fastnn")
    # Before the hash: a later version may well hash otherwise.
    if header.get("version") != FORMAT_VERSION:
        raise ModelFormatError(
            f"{name} has format version {header.get('version')!r}, this fastnn reads "
            f"{FORMAT_VERSION}: update fastnn"
        )
    if digest != _digest(header, tensors):
        raise ModelFormatError(f"{name} was altered: its SHA-256 does not match its content")
    if header.get("kind") not in kinds:
        raise ModelFormatError(
            f"{name} holds a {header.get('kind')!r}, expected {' or '.join(map(repr, kinds))}"
        )
    section = Section(name, "header", header)
    section.take("format")
    section.take("version")
    return section, Tensors(name, tensors)


def _read_parts(file: BufferedReader, size: int, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """The directory of a safetensors file, and its payload as bytes."""
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ModelFormatError(f"{name} is truncated, or not a model file ({size} bytes)")
    raw = file.read(length)
    payload = np.empty(size - 8 - length, np.uint8)
    if len(raw) != length or file.readinto(payload.data) != payload.size:
        raise ModelFormatError(f"{name} is truncated")
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        raise ModelFormatError(f"{name} is not a model file: its header is not text") from None
    directory = _loads(text, name)
    # JSON can say one thing in many ways; a file that says it otherwise was altered.
    if json.dumps(directory, separators=(",", ":")) != text.rstrip(" "):
        raise ModelFormatError(f"{name}: the header was altered")
    return directory, payload


def _loads(text: Any, name: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) != len(pairs):
            raise ValueError("a key occurs twice")
        return content

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number of JSON")

    def finite(number: str) -> float:
        value = float(number)
        return value if math.isfinite(value) else refuse(number)

    try:
        content = json.loads(
            text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelFormatError(f"{name} is not a model file: its header is not JSON") from error
    if not isinstance(content, dict):
        raise ModelFormatError(f"{name} is not a model file: its header is no JSON object")
    return content


def _tensors(
    directory: dict[str, Any], payload: np.ndarray, name: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the directory as read-only views, once they tile the payload exactly."""
    at = 0
    for key, entry in directory.items():  # in the order of their offsets, or they do not tile
        try:
            dtype = _TENSOR_TYPES[entry["dtype"]]
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            good = whole and len(shape) <= 2 and len(entry) == 3 and begin == at
            good = good and end - begin == math.prod(shape) * dtype.itemsize
            good = good and end <= payload.size and begin % dtype.itemsize == 0
            if not good:
                raise ValueError("sizes and offsets do not fit")
            view = payload[begin:end].view(dtype).reshape(shape)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFormatError(
                f"{name}: the entry of tensor {key!r} is malformed: {error}"
            ) from error
        view.flags.writeable = False
        at = end
        yield key, view
    if at != payload.size:
        raise ModelFormatError(f"{name} has {payload.size - at} bytes too many")
