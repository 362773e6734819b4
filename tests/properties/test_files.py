"""Files of any content: read, or refused with a ValueError; never anything else."""

import gzip
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnn import MLP, ModelFormatError
from fastnn.datasets import read_csv, read_idx
from fastnn.persistence import write_file


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "file"


@given(content=st.binary(max_size=300), header=st.booleans(), zipped=st.booleans())
def test_idx(path, content, header, zipped):
    if header:
        content = b"\0\0\x08" + content
    path.write_bytes(gzip.compress(content) if zipped else content)
    try:
        array = read_idx(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert array.nbytes < len(content)


@given(
    content=st.one_of(
        st.text('ab1.5-,;"\n\r\t \x00é', max_size=60).map(str.encode), st.binary(max_size=60)
    ),
    header=st.booleans(),
)
def test_csv(path, content, header):
    path.write_bytes(b"a,b\n" + content if header else content)
    try:
        table = read_csv(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(table.X).all()
        assert table.X.shape[1] == len(table.feature_names)


@pytest.fixture(scope="module")
def saved(path, backend_name):
    file = path.with_name(f"saved-{backend_name}")
    MLP([2, 1], seed=0, backend=backend_name).save(file)
    return file.read_bytes()


@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_altered_models(path, saved, backend_name, edits):
    altered = bytearray(saved)
    for position, byte in edits:
        altered[position % len(saved)] = byte
    path.write_bytes(altered)
    if bytes(altered) == saved:
        MLP.load(path, backend=backend_name)
    else:
        with pytest.raises(ModelFormatError):
            MLP.load(path, backend=backend_name)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=settings.default.max_examples // 5)
@given(
    key=st.sampled_from(["layer_sizes", "dtype", "activation", "output", "dropout", "seed"]),
    value=JSON,
)
def test_headers_with_a_true_hash_and_any_content(path, backend_name, key, value):
    model = MLP([2, 3, 1], seed=0, backend=backend_name)
    sections, tensors = model._to_file()
    true = sections["model"][key]
    sections["model"][key] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # a thousand syncs take a minute
        write_file(path, "model", sections, tensors)
    try:
        loaded = MLP.load(path, backend=backend_name)
    except ModelFormatError:
        assert json.dumps(value) != json.dumps(true)
    else:
        assert loaded.parameters.size == model.parameters.size
        assert loaded.predict([[1, 2]]).shape == (1, 1)
