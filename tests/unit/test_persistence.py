"""Model files: written whole or not at all, and believed only after every check."""

import json
import os
import stat
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from fastnn import persistence
from fastnn.errors import ModelFormatError
from fastnn.persistence import Section, read_file, write_atomically, write_file

SECTIONS = {"part": {"size": 2, "rate": 0.1, "name": "été"}}
TENSORS = {
    "b": np.array([0.5, -1.5], np.float32),
    "a": np.arange(6.0).reshape(2, 3),
    "empty": np.empty((0, 4)),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write_file(path, "model", SECTIONS, TENSORS)
    return path


def read_all(path):
    header, tensors = read_file(path, "model")
    with header:
        assert header.take("kind") == "model"
        with header.section("part") as part:
            content = {key: part.take(key) for key in ("size", "rate", "name")}
    arrays = {
        "a": tensors.take("a", (2, 3), np.float64),
        "b": tensors.take("b", (2,), np.float32),
        "empty": tensors.take("empty", (-1, 4), np.float64),
    }
    tensors.finish()
    return content, arrays


def test_round_trip(path):
    content, arrays = read_all(path)
    assert content == SECTIONS["part"]
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(arrays[name], tensor)
        assert not arrays[name].flags.writeable


def test_other_programs_can_read_the_tensors(path):
    loaded = load_file(path)
    assert sorted(loaded) == sorted(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(loaded[name], tensor)


def test_same_content_gives_the_same_bytes(path, tmp_path):
    again = tmp_path / "again"
    write_file(again, "model", SECTIONS, dict(reversed(TENSORS.items())))
    assert again.read_bytes() == path.read_bytes()


def test_arrays_of_any_strides_are_written_right(tmp_path):
    path = tmp_path / "file"
    tensors = {**TENSORS, "a": np.asfortranarray(TENSORS["a"]), "b": TENSORS["b"][::-1][::-1]}
    write_file(path, "model", SECTIONS, tensors)
    np.testing.assert_array_equal(read_all(path)[1]["a"], TENSORS["a"])


def test_every_truncation_is_noticed(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ModelFormatError):
            read_all(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ModelFormatError):
        read_all(path)


def test_every_bit_flip_is_noticed(path):
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8):
            altered = bytearray(content)
            altered[position] ^= 1 << bit
            path.write_bytes(altered)
            with pytest.raises(ModelFormatError):
                read_all(path)


def with_header(header: bytes, payload: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + payload


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 100,
        with_header(b"[]"),
        with_header(b"{}"),
        with_header(b"\xff\xfe" * 8),
        with_header(b'{"a":' * 1000 + b"1" + b"}" * 1000),
        with_header(b"[" * 500_000),
        with_header(b'{"__metadata__":{"fastnn":1}}'),
        with_header(b'{"__metadata__":{"fastnn":"{}","fastnn":"{}"}}'),
        with_header(b'{"__metadata__":{"fastnn":"{\\"a\\":NaN}"}}'),
        with_header(b'{"__metadata__":{"fastnn":"{\\"a\\":1e999}"}}'),
        with_header(b'{"__metadata__":{"fastnn":"null"}}'),
        # More than the file can hold, in bytes, in one dimension, in many, below zero.
        (1 << 62).to_bytes(8, "little") + b"{}",
        with_header(
            b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}', b"1234"
        ),
        with_header(
            b'{"a":{"dtype":"F32","shape":[' + b"9," * 4000 + b'9],"data_offsets":[0,4]}}', b"1234"
        ),
        with_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}', b"1234"),
        with_header(b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}', b"1234"),
        with_header(b'{"a":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        with_header(b'{"a":{"dtype":[],"shape":[1],"data_offsets":[0,4]}}', b"1234"),
        with_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', b"1234"),
        with_header(b'{"a":7}', b"1234"),
        save({"a": np.zeros(2, np.float32)}),
        save({"a": np.zeros(2, np.float32)}, {"format": "pt"}),
    ],
)
def test_hostile_files(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ModelFormatError):
        read_file(path, "model")


def test_reading_allocates_no_more_than_twice_the_file(tmp_path):
    path = tmp_path / "big"
    write_file(path, "model", {}, {"a": np.arange(1_000_000.0)})
    read_file(path, "model")  # imports
    tracemalloc.start()
    try:
        read_file(path, "model")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 8_000_000 <= peak <= 2 * path.stat().st_size


def test_a_later_version_asks_for_an_update(path, monkeypatch):
    monkeypatch.setattr(persistence, "FORMAT_VERSION", 2)
    write_file(path, "model", SECTIONS, TENSORS)
    monkeypatch.undo()
    with pytest.raises(ModelFormatError, match="format version 2, this fastnn reads 1: update"):
        read_all(path)


def test_the_kind_is_checked(path):
    with pytest.raises(ModelFormatError, match="holds a 'model', expected 'trainer'"):
        read_file(path, "trainer")


def test_sections_are_read_strictly():
    with pytest.raises(ModelFormatError, match="f: s lacks 'a'"):
        Section("f", "s", {}).take("a")
    with pytest.raises(ModelFormatError, match="'a' in s is bool, expected int"):
        Section("f", "s", {"a": True}).take("a", int)
    with (
        pytest.raises(ModelFormatError, match=r"unknown \['b'\] in s"),
        Section("f", "s", {"b": 1}),
    ):
        pass
    with pytest.raises(ModelFormatError, match="s: too small"), Section("f", "s", {}):
        raise ValueError("too small")
    with pytest.raises(ModelFormatError, match="s is not an object"):
        Section("f", "s", [])


def test_tensors_are_read_strictly(path):
    for name, shape, dtype in (
        ("zz", (2,), np.float32),
        ("b", (3,), np.float32),
        ("b", (2, 1), np.float32),
        ("b", (2,), np.float64),
    ):
        _, tensors = read_file(path, "model")
        with pytest.raises(ModelFormatError):
            tensors.take(name, shape, dtype)
    _, tensors = read_file(path, "model")
    with pytest.raises(ModelFormatError, match=r"unknown tensors \['a', 'b', 'empty'\]"):
        tensors.finish()


def test_too_long_a_header_is_refused_before_writing(tmp_path):
    path = tmp_path / "file"
    names = [f"feature {i:06}" for i in range(100_000)]
    with pytest.raises(ValueError, match="shorten the names"):
        write_file(path, "model", {"names": names}, {})
    assert list(tmp_path.iterdir()) == []


def test_header_at_the_limit_can_be_read(tmp_path):
    path = tmp_path / "file"
    write_file(path, "model", {"names": "é" * 140_000}, {})
    header, _ = read_file(path, "model")
    assert header.take("names") == "é" * 140_000


# Atomic writing -----------------------------------------------------------------------------------


def test_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_failing_system_call_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_file(path, "model", SECTIONS, TENSORS)
    old = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(f"{step} failed")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=f"{step} failed"):
        write_file(path, "model", {}, {"a": np.ones(3)})
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="modes and directory syncs are POSIX")
def test_file_reaches_the_disk_before_its_name_and_the_name_before_the_return(
    tmp_path, monkeypatch
):
    calls = []
    fsync, replace = os.fsync, os.replace

    def recording_fsync(descriptor):
        calls.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recording_replace(*args):
        calls.append("rename")
        replace(*args)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_replace)
    write_file(tmp_path / "file", "model", SECTIONS, TENSORS)
    assert calls == ["file", "rename", "directory"]


@pytest.mark.skipif(os.name != "posix", reason="modes and directory syncs are POSIX")
def test_modes(tmp_path):
    path = tmp_path / "file"
    umask = os.umask(0o027)
    try:
        write_file(path, "model", {}, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_file(path, "model", {}, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(umask)


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_file(link, "model", SECTIONS, TENSORS)
    assert link.is_symlink()
    assert read_all(target)[0] == SECTIONS["part"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_file(tmp_path / "no" / "file", "model", {}, {})
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "no", "model")


def test_a_rewritten_header_without_its_hash_is_noticed(path):
    tensors = load_file(path)
    for header in ({}, {"format": "fastnn", "version": 1, "kind": "model", "part": {}}):
        save_file(tensors, path, {"fastnn": json.dumps(header, sort_keys=True)})
        with pytest.raises(ModelFormatError):
            read_file(path, "model")
