"""IDX files: MNIST's layout, and files that are not what they say."""

import gzip
import tracemalloc

import numpy as np
import pytest

from fastnn.datasets import load_idx, read_idx

CODES = {"u1": 8, "i1": 9, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx(array: np.ndarray) -> bytes:
    """The format as LeCun's page defines it: 0, 0, type, dimensions; sizes and data big-endian."""
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 4, 3), dtype=np.uint8)


def fill(folder, *, n_train=5, n_test=3, suffix="", separator="-"):
    for part, n in (("train", n_train), ("t10k", n_test)):
        for name, array in (
            (f"{part}-images{separator}idx3-ubyte", images(n)),
            (f"{part}-labels{separator}idx1-ubyte", np.arange(n, dtype=np.uint8)),
        ):
            content = idx(array)
            (folder / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", "-.")
def test_folder(tmp_path, suffix, separator):
    fill(tmp_path, suffix=suffix, separator=separator)
    data = load_idx(tmp_path)
    for X, y, n in ((data.X_train, data.y_train, 5), (data.X_test, data.y_test, 3)):
        assert (X.dtype, y.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(X, images(n).reshape(n, 12) / np.float32(255))
        np.testing.assert_array_equal(y, np.arange(n))


def test_without_a_test_set(tmp_path):
    fill(tmp_path)
    for file in tmp_path.glob("t10k*"):
        file.unlink()
    data = load_idx(str(tmp_path))
    assert len(data.X_train) == 5
    assert data.X_test is data.y_test is None


@pytest.mark.parametrize("missing", ["train-images", "train-labels", "t10k-images", "t10k-labels"])
def test_missing_file(tmp_path, missing):
    fill(tmp_path)
    next(tmp_path.glob(f"{missing}*")).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {missing}"):
        load_idx(tmp_path)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(3,), (2, 0), (2, 3, 4, 1)])
def test_all_types(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    (tmp_path / "f").write_bytes(idx(array))
    result = read_idx(tmp_path / "f")
    assert result.dtype == np.dtype(dtype)
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_every_truncation_is_noticed(tmp_path, pack):
    content = pack(idx(images(2)))
    for length in range(len(content)):
        (tmp_path / "f").write_bytes(content[:length])
        with pytest.raises(ValueError, match="f "):
            read_idx(tmp_path / "f")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello world", "is not an IDX file: it starts with b'hell'"),
        (b"\0\0\x08\x00", "is not an IDX file"),
        (b"\0\0\x07\x01\0\0\0\1\0", "is not an IDX file"),
        (idx(images(1)) + b"x", "goes on after the 12 bytes"),
        (b"\0\0\x0e\x04" + b"\xff" * 16, "header promises an array of shape"),
        (b"\0\0\x08\xff" + b"\0" * 1020, "header promises"),
        (gzip.compress(b"\0\0\x08\x02" + b"\x7f" * 8 + b"\0" * 9), "header promises"),
        (gzip.compress(idx(images(1)) + b"x"), "goes on after"),
        (gzip.compress(idx(images(9)))[:-6] + b"\0" * 6, "is truncated or damaged"),
    ],
)
def test_malformed(tmp_path, content, message):
    (tmp_path / "f").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_idx(tmp_path / "f")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_images_and_labels_must_belong_together(tmp_path):
    fill(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match="has 5 train images, but 4 labels"):
        load_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(5)))
    with pytest.raises(ValueError, match="expected one label per image"):
        load_idx(tmp_path)
    fill(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images(3)[:, :, :2]))
    with pytest.raises(ValueError, match="test images have 8 pixels, training images 12"):
        load_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(np.zeros(5, np.uint8)))
    with pytest.raises(ValueError, match="expected images"):
        load_idx(tmp_path)
