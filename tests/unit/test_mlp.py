"""MLP: its parameters, what it computes, and how it is kept."""

import copy
import pickle
import sys
import threading

import numpy as np
import pytest

import fastnn
from fastnn import MLP, BackendUnavailable, ModelFormatError, Preprocessing
from fastnn.mlp import INITIALIZATIONS

RNG = np.random.default_rng(7)
X = RNG.normal(size=(6, 3))


@pytest.fixture
def make(backend_name):
    def make(sizes=(3, 5, 2), **arguments):
        return MLP(sizes, **{"seed": 1, "backend": backend_name, **arguments})

    return make


def forward(model, X):
    """The textbook: softmax over tanh over affine maps, in float64."""
    W, b = ([a.astype(np.float64) for a in arrays] for arrays in (model.weights, model.biases))
    z = np.tanh(X @ W[0] + b[0]) @ W[1] + b[1]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# Parameters ---------------------------------------------------------------------------------------


def test_views_share_the_flat_array(make):
    model = make()
    assert model.parameters.shape == (3 * 5 + 5 + 5 * 2 + 2,)
    assert isinstance(model.weights, list)
    for view in model.weights + model.biases:
        assert np.shares_memory(view, model.parameters)
    flat = [a.ravel() for pair in zip(model.weights, model.biases, strict=True) for a in pair]
    np.testing.assert_array_equal(np.concatenate(flat), model.parameters)


def test_predict_sees_new_weights_at_once(make):
    model = make(output="softmax", activation="tanh", dtype="float64")
    model.predict(X)
    model.weights[0][:] = 0.5
    model.weights[1] = np.arange(10.0).reshape(5, 2)  # writes through the view
    model.biases[1] += 1
    model.parameters[-1] = -3
    assert model.biases[1].tolist() == [1, -3]
    np.testing.assert_allclose(model.predict(X), forward(model, X), rtol=1e-12)


def test_assigning_a_layer_checks_the_shape(make):
    model = make()
    with pytest.raises(ValueError, match=r"layer 0 needs shape \(3, 5\), got \(5, 3\)"):
        model.weights[0] = np.zeros((5, 3))
    with pytest.raises(TypeError, match="one layer at a time"):
        model.weights[:] = [1, 2]
    with pytest.raises(AttributeError):
        model.parameters = np.zeros(27)


def test_seed_decides_the_weights(make):  # case R4
    np.random.seed(0)  # noqa: NPY002 (the global generator is what this is about)
    first = make(seed=3)
    np.random.random(10)  # noqa: NPY002
    assert make(seed=3).parameters.tobytes() == first.parameters.tobytes()
    assert make(seed=4).parameters.tobytes() != first.parameters.tobytes()


def test_without_a_seed_one_is_drawn_and_kept(make):
    one, other = make(seed=None), make(seed=None)
    assert one.seed != other.seed
    assert make(seed=one.seed).parameters.tobytes() == one.parameters.tobytes()


def test_both_dtypes_start_from_the_same_numbers(make):
    narrow, wide = make(dtype="float32"), make(dtype="float64")
    np.testing.assert_array_equal(narrow.parameters, wide.parameters.astype(np.float32))


@pytest.mark.parametrize(
    ("init", "activation", "deviation"),
    [
        ("auto", "relu", (2 / 300) ** 0.5),
        ("auto", "gelu", (2 / 300) ** 0.5),
        ("auto", "selu", (1 / 300) ** 0.5),
        ("auto", "tanh", (2 / 500) ** 0.5),
        ("auto", "sigmoid", (2 / 500) ** 0.5),
        ("he_normal", "tanh", (2 / 300) ** 0.5),
        ("he_uniform", "tanh", (2 / 300) ** 0.5),
        ("glorot_normal", "relu", (2 / 500) ** 0.5),
        ("glorot_uniform", "relu", (2 / 500) ** 0.5),
        ("lecun_normal", "relu", (1 / 300) ** 0.5),
        ("lecun_uniform", "relu", (1 / 300) ** 0.5),
    ],
)
def test_spread_of_the_weights(make, init, activation, deviation):
    model = make((300, 200, 1), init=init, activation=activation)
    W = model.weights[0].astype(np.float64)
    # 60,000 draws: the standard error of the deviation is about 0.3 %.
    assert W.std() == pytest.approx(deviation, rel=0.02)
    assert abs(W.mean()) < 0.02 * deviation
    uniform = init.endswith("uniform") or (init == "auto" and activation != "selu")
    largest = np.abs(W).max() / deviation
    assert largest < 3**0.5 * 1.0001 if uniform else largest > 3
    assert not model.biases[0].any()


def test_every_initialization_is_covered_and_zeros_are_zeros(make):
    assert not make(init="zeros").parameters.any()
    for init in INITIALIZATIONS:
        assert np.isfinite(make(init=init).parameters).all()
    with pytest.raises(ValueError, match="init must be one of auto, he_uniform"):
        make(init="ones")


def test_wide_layers_are_drawn_in_parts_of_one_stream(make, monkeypatch):
    whole = make((50, 40, 1), init="he_normal")
    monkeypatch.setattr(fastnn.mlp, "_DRAW_ELEMS", 7)
    assert make((50, 40, 1), init="he_normal").parameters.tobytes() == whole.parameters.tobytes()


# Arguments ----------------------------------------------------------------------------------------


def test_one_or_one_per_hidden_layer(make):
    model = make((2, 3, 4, 1), activation=["tanh", "relu"], dropout=[0.1, 0.2])
    assert model.plan.activations == ("tanh", "relu")
    assert model.plan.dropout == (0.1, 0.2)
    assert make((2, 3, 4, 1), activation="elu", dropout=0.5).plan.dropout == (0.5, 0.5)
    assert make((2, 1), activation="elu", dropout=0.5).plan.activations == ()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"sizes": 5}, TypeError),
        ({"sizes": []}, ValueError),
        ({"sizes": [3, -1]}, ValueError),
        ({"activation": 3}, TypeError),
        ({"activation": ["relu", "relu"]}, ValueError),
        ({"output": "nope"}, ValueError),
        ({"dropout": "much"}, TypeError),
        ({"dropout": 1.0}, ValueError),
        ({"dtype": "float16"}, ValueError),
        ({"dtype": None}, ValueError),
        ({"seed": -1}, ValueError),
        ({"seed": 1.5}, TypeError),
        ({"seed": 2**64}, ValueError),
        ({"backend": "nope"}, ValueError),
        ({"backend": None}, TypeError),
        ({"init": 3}, TypeError),
    ],
)
def test_wrong_arguments(make, arguments, kind):
    with pytest.raises(kind):
        make(**arguments)


def test_numpy_scalars_are_welcome(make):  # case A10
    model = make(np.array([3, 5, 2]), dropout=np.float32(0.25), seed=np.uint64(2**64 - 1))
    assert model.plan.layer_sizes == (3, 5, 2)


def test_too_large_is_a_memory_error_with_the_size(make):  # case B11
    with pytest.raises(MemoryError, match="bytes"):
        make((1, 10**6, 10**8, 1))


def test_missing_backends_say_what_to_do(monkeypatch):
    get_backend = fastnn.backends.get_backend
    get_backend.cache_clear()
    monkeypatch.setitem(sys.modules, "fastnn.backends.native", None)
    try:
        with pytest.raises(
            BackendUnavailable, match=r"'native' is not available: .*pip install \."
        ):
            MLP([2, 1])
    finally:
        get_backend.cache_clear()


# Computing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_is_the_textbook(make, dtype):
    model = make(output="softmax", activation="tanh", dtype=dtype)
    tolerance = 1e-6 if dtype == "float32" else 1e-14
    y = model.predict(X)
    assert (y.shape, y.dtype) == ((6, 2), np.dtype(dtype))
    np.testing.assert_allclose(y, forward(model, X), atol=tolerance)


def test_one_row_and_no_rows(make):  # cases B4, R2
    model = make()
    row = model.predict(X[2])
    assert row.shape == (2,)
    assert row.tobytes() == model.predict(X)[2].tobytes()
    assert model.predict(X[:0]).shape == (0, 2)
    assert [a.shape for a in model.layer_outputs(X[:0])] == [(0, 5), (0, 2)]
    assert model.input_gradient(X[:0]).shape == (0, 2, 3)


def test_out(make):
    model = make()
    out = np.full((6, 2), np.nan, np.float32)
    assert model.predict(X, out=out) is out
    assert out.tobytes() == model.predict(X).tobytes()
    row = np.empty(2, np.float32)
    assert model.predict(X[0], out=row) is row
    assert row.tobytes() == out[0].tobytes()


def test_wrong_out_changes_nothing(make):
    model = make()
    square = make((2, 2))
    frozen = np.zeros((6, 2), np.float32)
    frozen.flags.writeable = False
    misaligned = np.zeros(49, np.uint8)[1:].view(np.float32).reshape(6, 2)
    data = np.ones((6, 2), np.float32)
    wrong = [
        (network, rows, out, ValueError)
        for network, rows, out in (
            (square, data, data),
            (square, data[1:4], data[3:]),
            (square, data[3:], data[1:4]),
            (square, data[::-1], data),
            (square, data[:2], square.weights[0]),
            (square, data[0], square.biases[0]),
        )
    ]
    for x in (X, X.astype(np.float32)):
        wrong += [
            (model, x, np.zeros((6, 3), np.float32), ValueError),
            (model, x, np.zeros((5, 2), np.float32), ValueError),
            (model, x, np.zeros(12, np.float32), ValueError),
            (model, x[0], np.zeros((1, 2), np.float32), ValueError),
            (model, x[:1], np.zeros(2, np.float32), ValueError),
            (model, x, np.zeros((6, 2)), ValueError),
            (model, x, np.zeros((6, 2), ">f4"), ValueError),
            (model, x, np.zeros((2, 6), np.float32).T, ValueError),
            (model, x, misaligned, ValueError),
            (model, x, frozen, ValueError),
            (model, x, [[0.0] * 2] * 6, TypeError),
        ]
    for network, rows, out, kind in wrong:
        before = np.array(out)
        with pytest.raises(kind, match="out"):
            network.predict(rows, out=out)
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    ("X", "kind", "message"),
    [
        (np.ones((2, 4)), ValueError, r"X has 4 features, but this model was built for 3"),
        (np.ones(4), ValueError, r"X has 4 features"),
        (np.ones((1, 2, 3)), ValueError, "X must have shape"),
        (1.0, ValueError, "X must have shape"),
        ([[1, 2, np.nan]], ValueError, "X contains nan at row 0, column 2"),
        ([[1, 2, np.inf]], ValueError, "X contains inf"),
        ([[1, 2, 1e300]], ValueError, "beyond the range of float32"),
        ([["1", "2", "3"]], TypeError, "X must hold real numbers"),
        (np.ones((2, 3), complex), TypeError, "X is complex"),
        (None, TypeError, "X must hold real numbers"),
    ],
)
def test_wrong_rows(make, X, kind, message):
    model = make()
    with pytest.raises(kind, match=message):
        model.predict(X)
    if np.ndim(X) != 1:
        for method in (model.layer_outputs, model.input_gradient):
            with pytest.raises(kind, match=message):
                method(X)


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.tolist(),
        lambda X: np.asfortranarray(X),
        lambda X: np.repeat(X, 2, axis=0)[::2],
        lambda X: X[::-1][::-1],
        lambda X: X.astype(">i4"),
        lambda X: X.astype(">f8"),
        lambda X: X.astype(np.uint8),
        lambda X: X.astype(np.float16),
        lambda X: X.astype(np.longdouble),
        lambda X: X.astype(object),
        lambda X: X.astype(np.int64),
        lambda X: X.astype(np.float32),
    ],
)
def test_every_kind_of_array_gives_the_same_bits(make, convert):  # cases A1, A4, A8, B13
    whole = np.random.default_rng(0).integers(0, 256, (7, 3)).astype(np.float64)
    model = make()
    assert model.predict(convert(whole)).tobytes() == model.predict(whole).tobytes()


def test_booleans_are_zeros_and_ones(make):  # case A8
    model = make()
    B = X > 0
    assert model.predict(B).tobytes() == model.predict(B.astype(float)).tobytes()


def test_layer_outputs_end_with_predict(make):
    model = make((3, 4, 5, 2), activation=["tanh", "relu"], output="softmax")
    outputs = model.layer_outputs(X)
    assert [a.shape for a in outputs] == [(6, 4), (6, 5), (6, 2)]
    assert outputs[-1].tobytes() == model.predict(X).tobytes()
    np.testing.assert_allclose(
        outputs[0], np.tanh(X @ model.weights[0] + model.biases[0]), atol=1e-6
    )


def test_input_gradient_against_central_differences(make):
    model = make(activation="tanh", output="softmax", dtype="float64")
    gradient = model.input_gradient(X)
    assert gradient.shape == (6, 2, 3)
    step = 1e-6
    for i in range(3):
        shift = step * np.eye(3)[i]
        numeric = (model.predict(X + shift) - model.predict(X - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[:, :, i], numeric, atol=1e-9)


def test_loss_and_gradient_against_central_differences(make):
    model = make(activation="tanh", output="softmax", dtype="float64")
    y, weight = np.array([0, 1, 1, 0, 1, 0]), np.arange(6.0)

    def loss():
        return model.loss_and_gradient(X, y, sample_weight=weight, l2=0.1)[0]

    value, gradient = model.loss_and_gradient(X, y, sample_weight=weight, l2=0.1)
    p = forward(model, X)[np.arange(6), y]
    penalty = 0.05 * sum((W**2).sum() for W in model.weights)
    assert value == pytest.approx((weight * -np.log(p)).sum() / weight.sum() + penalty, rel=1e-12)
    assert (gradient.shape, gradient.dtype) == (model.parameters.shape, np.float64)
    step = 1e-6
    for i in range(gradient.size):
        model.parameters[i] += step
        above = loss()
        model.parameters[i] -= 2 * step
        below = loss()
        model.parameters[i] += step
        assert gradient[i] == pytest.approx((above - below) / (2 * step), abs=1e-8)


def test_natural_losses(make):
    for output, loss, y in (
        ("softmax", "cross_entropy", np.array([0, 1, 0, 1, 0, 1])),
        ("sigmoid", "binary_cross_entropy", np.array([[0, 1]] * 6)),
        ("exp", "poisson", np.array([[3, 0]] * 6)),
        ("identity", "squared_error", X[:, :2]),
        ("tanh", "squared_error", X[:, :2]),
    ):
        model = make(output=output)
        natural, named = (model.loss_and_gradient(X, y, loss=name) for name in (None, loss))
        assert natural[0] == named[0]
        np.testing.assert_array_equal(natural[1], named[1])


def test_targets_of_one_column(make):  # case L6
    model = make((3, 4, 1))
    y = X[:, 0]
    flat, column = model.loss_and_gradient(X, y), model.loss_and_gradient(X, y[:, None])
    assert flat[0] == column[0]


@pytest.mark.parametrize(
    ("output", "y", "kind"),
    [
        ("softmax", np.array([0, 1, 2, 0, 0, 0]), ValueError),  # label out of range
        ("softmax", np.array([0, -1, 1, 0, 0, 0]), ValueError),
        ("softmax", np.zeros(6), ValueError),  # case G11: floats are no labels
        ("softmax", np.array(list("ababab")), TypeError),  # case L1: encode them first
        ("softmax", np.full((6, 2), 0.4), ValueError),  # rows must sum to 1
        ("softmax", np.zeros((6, 3)), ValueError),
        ("softmax", np.zeros(5, int), ValueError),
        ("identity", np.zeros(6), ValueError),  # two outputs need two columns
        ("identity", np.full((6, 2), np.nan), ValueError),  # case A9
        ("exp", np.full((6, 2), -0.1), ValueError),  # case L10
        ("sigmoid", np.full((6, 2), 1.1), ValueError),
        ("identity", np.zeros((6, 2), complex), TypeError),
        ("identity", None, TypeError),
    ],
)
def test_wrong_targets(make, output, y, kind):
    with pytest.raises(kind, match="y"):
        make(output=output).loss_and_gradient(X, y)


def test_label_coding_does_not_matter(make):  # case L1
    model = make(output="softmax")
    reference = model.loss_and_gradient(X, np.array([0, 1, 1, 0, 1, 0]))
    for y in (
        np.array([0, 1, 1, 0, 1, 0], np.uint8),
        np.array([False, True, True, False, True, False]),
        np.array([0, 1, 1, 0, 1, 0], ">i8"),
        [0, 1, 1, 0, 1, 0],
    ):
        result = model.loss_and_gradient(X, y)
        assert result[0] == reference[0]
        np.testing.assert_array_equal(result[1], reference[1])
    one_hot = model.loss_and_gradient(X, np.eye(2)[[0, 1, 1, 0, 1, 0]])
    assert one_hot[0] == pytest.approx(reference[0], rel=1e-6)


def test_misaligned_targets(make):  # case A1
    model = make(dtype="float64")
    raw = np.zeros(1 + 8 * 12, np.uint8)
    y = raw[1:].view(np.float64).reshape(6, 2)
    y[:] = X[:, :2]
    assert not y.flags.aligned
    got, expected = model.loss_and_gradient(X, y), model.loss_and_gradient(X, X[:, :2])
    assert got[0] == expected[0]
    np.testing.assert_array_equal(got[1], expected[1])


def test_wrong_arguments_of_loss_and_gradient(make):
    model = make()
    y = X[:, :2]
    for arguments, kind in (
        ({"loss": "nope"}, ValueError),
        ({"loss": 3}, TypeError),
        ({"loss": "poisson"}, ValueError),  # identity reaches below 0
        ({"l2": -1}, ValueError),
        ({"l2": "a"}, TypeError),
        ({"sample_weight": -np.ones(6)}, ValueError),  # case W8
        ({"sample_weight": np.ones(5)}, ValueError),
        ({"sample_weight": np.zeros(6)}, ValueError),
    ):
        with pytest.raises(kind):
            model.loss_and_gradient(X, y, **arguments)
    with pytest.raises(ValueError, match="X has no rows"):
        model.loss_and_gradient(X[:0], y[:0])


def test_weights_of_rows(make):  # cases W1, W3
    model = make(dtype="float64")
    y = X[:, :2]

    def gradient(rows, weight=None):
        return model.loss_and_gradient(X[rows], y[rows], sample_weight=weight)[1]

    rows = np.arange(6)
    ones = gradient(rows, np.ones(6))
    assert ones.tobytes() == gradient(rows).tobytes()
    twice = gradient(rows, [1, 2, 1, 1, 1, 1])
    np.testing.assert_allclose(twice, gradient([0, 1, 1, 2, 3, 4, 5]), rtol=1e-12)
    np.testing.assert_allclose(gradient(rows, [0, 1, 1, 1, 1, 1]), gradient(rows[1:]), rtol=1e-12)
    np.testing.assert_allclose(gradient(rows, np.full(6, 10.0)), ones, rtol=1e-12)


def test_predict_in_threads_beside_copies(make):  # case T9
    model = make((3, 50, 2))
    data = np.random.default_rng(3).normal(size=(40, 3))
    expected = model.predict(data).tobytes()
    wrong = []

    def predict():
        wrong.extend(1 for _ in range(100) if model.predict(data).tobytes() != expected)

    def copying():
        for _ in range(50):
            wrong.extend([2] * (copy.deepcopy(model).predict(data).tobytes() != expected))

    threads = [threading.Thread(target=predict) for _ in range(4)]
    threads.append(threading.Thread(target=copying))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# Keeping ------------------------------------------------------------------------------------------


def full_model(make):
    model = make((3, 4, 2), activation="elu", output="softmax", dropout=0.25, seed=2**64 - 1)
    model.preprocessing = Preprocessing(
        mean=[0, 1, 2], scale=[1, 2, 3], feature_names=["a", "b", "é"], class_names=["x", "y"]
    )
    return model


def assert_same(model, other):
    assert other.plan == model.plan
    assert other.seed == model.seed
    assert other.backend == model.backend
    assert other.parameters.tobytes() == model.parameters.tobytes()
    assert other.predict(X).tobytes() == model.predict(X).tobytes()
    assert other.preprocessing.mean.tolist() == model.preprocessing.mean.tolist()
    assert other.preprocessing.feature_names == model.preprocessing.feature_names
    assert other.preprocessing.class_names == model.preprocessing.class_names
    # independent, with views into its own flat array
    assert not np.shares_memory(other.parameters, model.parameters)
    other.weights[0] += 1
    other.biases[-1][0] -= 2
    assert other.parameters.tobytes() != model.parameters.tobytes()
    assert other.predict(X).tobytes() != model.predict(X).tobytes()


COPIES = {
    **{f"pickle {p}": lambda m, p=p: pickle.loads(pickle.dumps(m, p)) for p in range(6)},
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "method": MLP.copy,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies(make, way):  # case P1
    model = full_model(make)
    assert_same(model, COPIES[way](model))


def test_cloudpickle_and_joblib(make, tmp_path):  # cases P1, S5
    model = full_model(make)
    cloudpickle = pytest.importorskip("cloudpickle")
    assert_same(model, pickle.loads(cloudpickle.dumps(model)))
    joblib = pytest.importorskip("joblib")
    joblib.dump(model, tmp_path / "model")
    assert_same(model, joblib.load(tmp_path / "model"))
    assert_same(model, joblib.load(tmp_path / "model", mmap_mode="r"))


def test_a_pickle_with_the_wrong_parameters_is_refused(make):
    state = make().__getstate__()
    for parameters in (np.zeros(3, np.float32), np.zeros(32), None):
        with pytest.raises((ValueError, TypeError)):
            MLP.__new__(MLP).__setstate__({**state, "parameters": parameters})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 2), (3, *[2] * 12, 2)])
def test_save_and_load(make, tmp_path, dtype, sizes):  # case S18
    model = make(sizes, dtype=dtype, output="softmax", activation="tanh")
    model.preprocessing = full_model(make).preprocessing
    model.save(tmp_path / "m.safetensors")
    assert_same(model, MLP.load(str(tmp_path / "m.safetensors"), backend=model.backend))


def test_a_file_without_preprocessing(make, tmp_path):
    make().save(tmp_path / "m")
    assert MLP.load(tmp_path / "m", backend=make().backend).preprocessing is None


def test_altered_model_files(make, tmp_path):
    """Container and content together: nothing but the true file loads."""
    model = make((2, 2), output="softmax")
    path = tmp_path / "m"
    model.save(path)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(400):
        altered = bytearray(content)
        position = int(generator.integers(len(content)))
        if generator.random() < 0.5:
            altered[position] ^= 1 << int(generator.integers(8))
        else:
            del altered[position : position + int(generator.integers(1, 20))]
        path.write_bytes(altered)
        with pytest.raises(ModelFormatError):
            MLP.load(path, backend=model.backend)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_sizes": [3, 4]},
        {"layer_sizes": [3, 4, 3]},
        {"layer_sizes": [3, 4, 10**18]},
        {"layer_sizes": [3, -4, 2]},
        {"layer_sizes": "342"},
        {"layer_sizes": [3.0, 4, 2]},
        {"dtype": "float64"},
        {"dtype": "object"},
        {"activation": ["nope"]},
        {"activation": [["elu"]]},
        {"output": None},
        {"dropout": [1.5]},
        {"dropout": [True]},
        {"seed": -1},
        {"seed": 1.0},
        {"more": 1},
        {"seed": ...},
    ],
)
def test_headers_that_make_no_model(make, tmp_path, change):
    """Well-formed files with a true hash, whose content contradicts itself."""
    from fastnn.persistence import write_file

    sections, tensors = full_model(make)._to_file()
    ((key, value),) = change.items()
    if value is ...:
        del sections["model"][key]
    else:
        sections["model"][key] = value
    write_file(tmp_path / "m", "model", sections, tensors)
    with pytest.raises(ModelFormatError):
        MLP.load(tmp_path / "m", backend=make().backend)


@pytest.mark.parametrize(
    "change",
    [
        {"standardized": False},
        {"standardized": 1},
        {"feature_names": ["a"]},
        {"feature_names": [1, 2, 3]},
        {"class_names": "xy"},
        {"target_name": 7},
        {"more": None},
    ],
)
def test_preprocessing_that_makes_no_sense(make, tmp_path, change):
    from fastnn.persistence import write_file

    sections, tensors = full_model(make)._to_file()
    sections["preprocessing"].update(change)
    write_file(tmp_path / "m", "model", sections, tensors)
    with pytest.raises(ModelFormatError):
        MLP.load(tmp_path / "m", backend=make().backend)


def test_scale_of_zero_in_a_file(make, tmp_path):
    from fastnn.persistence import write_file

    sections, tensors = full_model(make)._to_file()
    tensors["preprocessing.scale"] = np.zeros(3)
    write_file(tmp_path / "m", "model", sections, tensors)
    with pytest.raises(ModelFormatError, match="scale must be > 0"):
        MLP.load(tmp_path / "m", backend=make().backend)


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        MLP.load(tmp_path / "nothing", backend="reference")
    with pytest.raises(TypeError, match="path must be a path"):
        MLP.load(7, backend="reference")


def test_repr(make):
    model = make((3, 4, 5, 2), activation=["relu", "tanh"], output="softmax", dropout=0.5)
    assert repr(model) == (
        "MLP([3, 4, 5, 2], activation=['relu', 'tanh'], dropout=0.5, output='softmax', "
        "dtype='float32')"
    )
    assert repr(make((3, 2))) == "MLP([3, 2], output='identity', dtype='float32')"
