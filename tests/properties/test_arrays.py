"""20,000 arrays (with CI set): each is computed like its plain copy, or refused in clear words.

Every example draws how an array is made: its type, shape, memory layout and fill. The oracle says
from that alone whether the array is one that the documentation allows.
"""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastnn import MLP, Trainer

DTYPES = [
    *("f4", "f8", ">f4", ">f8", "f2", ">f2", "g", "i1", "i2", "i4", "i8", ">i2", ">i8"),
    *("u1", "u2", "u4", "u8", ">u4", "?", "O", "c8", "c16", "U3", "S2", "M8[s]", "m8[s]", "V4"),
]
FILLS = ["small", "zero", "large", "largest", "tiny", "nan", "inf", "negative"]
LAYOUTS = [
    *("C", "F", "every second row", "every second column", "reversed", "transposed", "read-only"),
    *("misaligned", "broadcast", "offset", "subclass"),
]
N_FEATURES = 3


@st.composite
def arrays(draw):
    ndim = draw(st.sampled_from([2, 2, 2, 2, 1, 0, 3]))
    shape = tuple(draw(st.sampled_from([0, 1, 2, 5, 9])) for _ in range(ndim))
    if ndim and draw(st.integers(0, 9)):
        shape = (*shape[:-1], N_FEATURES)
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    fill, layout = draw(st.sampled_from(FILLS)), draw(st.sampled_from(LAYOUTS))
    return lay_out(filled(shape, dtype, fill, draw(st.integers(0, 999))), layout)


def filled(shape, dtype, fill, seed):
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 2 if dtype.kind == "b" else 100, shape)
    if dtype.kind in "USMmV":
        return (
            np.asarray(values).astype("S2").astype(dtype)
            if dtype.kind in "US"
            else np.zeros(shape, dtype)
        )
    if dtype.kind in "iu":
        if fill in ("large", "largest"):
            values = np.full(shape, np.iinfo(dtype).max, dtype)
        elif fill == "negative" and dtype.kind == "i":
            values = -values
        return np.asarray(values).astype(dtype)
    array = np.asarray(values).astype(object if dtype.kind == "O" else dtype)
    if dtype.kind == "O":
        array = np.asarray(np.asarray(values, float), object) if shape else array
    special = {"nan": np.nan, "inf": -np.inf, "large": 1e39, "tiny": 1e-310, "negative": -0.0}
    if array.size and dtype.kind in "fO" and fill in special:
        with np.errstate(over="ignore", under="ignore"):
            array.flat[seed % array.size] = special[fill]
    if fill == "largest" and dtype.kind == "f":
        array[...] = np.finfo(dtype).max
    return array


def lay_out(array, layout):
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "every second row" and array.ndim:
        return np.repeat(array, 2, axis=0)[::2]
    if layout == "every second column" and array.ndim:
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if layout == "reversed" and array.ndim:
        return np.flip(np.flip(array).copy())
    if layout == "transposed":
        return array.T.copy().T
    if layout == "read-only":
        array.flags.writeable = False
    if layout == "misaligned" and array.dtype.kind != "O":
        raw = np.zeros(array.nbytes + 1, np.uint8)
        other = raw[1:].view(array.dtype).reshape(array.shape)
        other[...] = array
        return other
    if layout == "broadcast" and array.ndim == 2 and len(array):
        return np.broadcast_to(array[0], array.shape)
    if layout == "offset" and array.ndim:
        return np.concatenate([array[:1], array])[1 if len(array) else 0 :]
    if layout == "subclass":

        class Sub(np.ndarray):
            pass

        return array.view(Sub)
    return array


def allowed(array, dtype):
    """The expected exception type, or None where the array must be accepted."""
    if array.dtype.kind not in "fiubO":
        return TypeError
    if array.ndim not in (1, 2) or array.shape[-1] != N_FEATURES:
        return ValueError
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(array).astype(dtype)).all()
    return None if finite else ValueError


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request, backend_name):
    return MLP(
        [N_FEATURES, 4, 2], activation="tanh", dtype=request.param, seed=0, backend=backend_name
    )


@given(X=arrays())
def test_rows(model, X):
    dtype = model.plan.dtype
    expected = allowed(X, dtype)
    if expected is not None:
        with pytest.raises(expected, match="X "):
            model.predict(X)
        out = np.full((*X.shape[:-1], 2), 7, dtype)
        with pytest.raises(expected, match="X "):
            model.predict(X, out=out)
        assert (out == 7).all()
        return
    plain = np.array(np.asarray(X).astype(dtype), order="C")
    y = model.predict(X)
    assert y.shape == (*X.shape[:-1], 2)
    assert y.tobytes() == model.predict(plain).tobytes()
    out = np.full_like(y, 7)
    assert model.predict(X, out=out) is out
    assert out.tobytes() == y.tobytes()


@settings(max_examples=settings.default.max_examples // 5)
@given(y=arrays(), output=st.sampled_from(["identity", "softmax", "sigmoid", "exp"]))
def test_targets(model, y, output):
    """Any targets give finite numbers, or an error that names y."""
    network = MLP(
        [1, N_FEATURES], output=output, dtype=model.plan.dtype, seed=0, backend=model.backend
    )
    X = np.ones((y.shape[0] if y.ndim else 1, 1))
    try:
        loss, gradient = network.loss_and_gradient(X, y)
    except (TypeError, ValueError) as error:
        assert re.match(r"(row \d+ of )?y |X has no rows", str(error))
    else:
        # Squares of targets near the dtype's largest may overflow, but must not turn NaN.
        assert not np.isnan(loss)
        assert gradient.shape == network.parameters.shape


@settings(max_examples=settings.default.max_examples // 5)
@given(weight=arrays())
def test_weights(model, weight):
    n = weight.shape[0] if weight.ndim else 1
    try:
        loss, gradient = model.loss_and_gradient(
            np.ones((n, N_FEATURES)), np.ones((n, 2)), sample_weight=weight
        )
    except (TypeError, ValueError) as error:
        assert str(error).startswith(("sample_weight ", "X has no rows"))
    else:
        assert weight.ndim == 1
        assert (weight >= 0).all()
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "sizes", [[30, 64, 2], [300, 128, 10], [5, 3, 1], [200, 300, 7], [40, 1]], ids=str
)
def test_no_value_that_is_not_finite_slips_through(sizes, dtype):
    """Not where its weights are zero, rows are mostly zeros, or rows are copied.

    Rows are looked at only where a sum of theirs is not finite."""
    rng = np.random.default_rng(0)
    model = MLP(sizes, dtype=dtype, seed=1)
    trainer = Trainer(model, seed=0, batch_size=64)
    for n in (1, 2, 5, 300):
        for bad in (np.nan, np.inf, -np.inf):
            for share_of_zeros in (0.0, 0.9):
                X = rng.standard_normal((n, sizes[0])).astype(dtype)
                X[rng.random(X.shape) < share_of_zeros] = 0
                i, j = rng.integers(n), rng.integers(sizes[0])
                X[i, j] = bad
                model.weights[0][j] = 0
                before = model.parameters.copy()
                for rows in (X, np.asfortranarray(X), X.astype("float64"), X[:, ::-1]):
                    out = np.full((n, sizes[-1]), 7, dtype)
                    with pytest.raises(ValueError, match=rf"\b{i}\b"):
                        model.predict(rows)
                    with pytest.raises(ValueError, match=rf"\b{i}\b"):
                        model.predict(rows, out=out)
                    assert (out == 7).all()
                    with pytest.raises(ValueError, match=rf"\b{i}\b"):
                        trainer.fit(rows, np.zeros((n, sizes[-1]), dtype), epochs=1)
                assert np.array_equal(model.parameters, before)


def test_finite_rows_whose_sums_overflow_are_not_called_bad():
    model = MLP([30, 8, 2], seed=1)
    model.weights[0][:] = 1e30
    for n in (1, 5, 300):
        assert not np.isfinite(model.predict(np.full((n, 30), 1e30, np.float32))).any()
