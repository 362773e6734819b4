"""Sparse matrices as X, and dense rows that are mostly zeros: the bits of dense rows."""

import itertools

import numpy as np
import pytest

import fastnn
from fastnn.sparse_rows import SparseRows

scipy_sparse = pytest.importorskip("scipy.sparse")  # in the extra `test`


@pytest.fixture
def rows(rng):
    X = rng.standard_normal((90, 70)) * (rng.random((90, 70)) < 0.15)
    X[3] = 0
    return X.astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def wide(S):
    indices, indptr = S.indices.astype(np.int64), S.indptr.astype(np.int64)
    result = scipy_sparse.csr_array(S.shape, dtype=S.dtype)
    result.data, result.indices, result.indptr = S.data, indices, indptr
    return result


FORMATS = {
    "csr_matrix": scipy_sparse.csr_matrix,
    "csr_array": scipy_sparse.csr_array,
    "int64 indices": lambda X: wide(scipy_sparse.csr_array(X)),
    "csc": scipy_sparse.csc_matrix,
    "dok": scipy_sparse.dok_array,
    "float64": lambda X: scipy_sparse.csr_array(X.astype(np.float64)),
}


def trained(X, y, backend="native", **options):
    model = fastnn.MLP(
        [X.shape[1], 20, 3], activation="tanh", output="softmax", seed=3, backend=backend
    )
    trainer = fastnn.Trainer(model, batch_size=32, seed=5, n_threads=1, **options)
    trainer.fit(X, y, epochs=3)
    return model, trainer


@pytest.mark.parametrize("make", FORMATS.values(), ids=FORMATS)
def test_everything_has_the_bits_of_dense_rows(rows, rng, make):
    y = rng.integers(0, 3, len(rows))
    S = make(rows)
    for options in ({}, {"clip_norm": 0.1}, {"l2": 0.01, "optimizer": "sgd"}):
        dense, sparse = trained(rows, y, **options), trained(S, y, **options)
        assert np.array_equal(dense[0].parameters, sparse[0].parameters)
        assert np.array_equal(dense[1].history.loss, sparse[1].history.loss)
    model, trainer = dense
    assert np.array_equal(model.predict(S), model.predict(rows))
    assert trainer.evaluate(S, y) == trainer.evaluate(rows, y)
    for a, b in zip(model.layer_outputs(S), model.layer_outputs(rows), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(model.input_gradient(S), model.input_gradient(rows))
    (value, gradient), (other, expected) = (model.loss_and_gradient(X, y) for X in (S, rows))
    assert value == other
    assert np.array_equal(gradient, expected)
    assert trainer.step(S, y) == trained(rows, y, l2=0.01, optimizer="sgd")[1].step(rows, y)
    out = np.empty((len(rows), 3), np.float32)
    assert model.predict(S, out=out) is out


def test_reference_backend_takes_sparse_rows(rows, rng):
    y = rng.integers(0, 3, len(rows))
    S = scipy_sparse.csr_array(rows)
    native, reference = (trained(S, y, backend)[0] for backend in ("native", "reference"))
    np.testing.assert_allclose(native.parameters, reference.parameters, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(reference.predict(S), reference.predict(rows), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_are_skipped_without_changing_a_bit(rng, dtype):
    """Those of X and those that relu and dropout make, in all three products of a step."""
    _native = pytest.importorskip("fastnn.backends._native")
    X = rng.random((700, 150), dtype=np.float32)
    X[rng.random(X.shape) < 0.85] = 0
    kinds = {"float32": X, "uint8": (X * 255).astype(np.uint8), "strided": X[:, ::2]}
    for X in kinds.values():
        y = rng.integers(0, 3, len(X))
        results = []
        density, work = _native.set_most_density(-1.0), _native.set_work_per_thread(0.0)
        try:
            for share, n_threads in itertools.product((-1.0, 1.0), (1, 3)):
                _native.set_most_density(share)
                model = fastnn.MLP(
                    [X.shape[1], 150, 300, 3], activation="relu", output="softmax", dtype=dtype,
                    dropout=0.2, seed=3,
                )  # fmt: skip
                trainer = fastnn.Trainer(model, batch_size=300, seed=5, n_threads=n_threads)
                trainer.fit(X, y, epochs=3)
                results.append((model.parameters, model.predict(X), trainer.history.loss))
                results[-1] += (model.input_gradient(X[:90]),)
        finally:
            _native.set_most_density(density)
            _native.set_work_per_thread(work)
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                assert np.array_equal(a, b)


def test_train_many_and_rate_finder_take_sparse_rows(rows, rng):
    y = rng.integers(0, 3, len(rows))
    S = scipy_sparse.csr_array(rows)

    def trainers():
        models = [fastnn.MLP([70, 8, 3], output="softmax", seed=i) for i in range(3)]
        return [fastnn.Trainer(model, seed=9) for model in models]

    many, single = trainers(), trainers()
    fastnn.train_many(many, S, y, epochs=2)
    for a, b in zip(many, single, strict=True):
        b.fit(rows, y, epochs=2)
        assert np.array_equal(a.model.parameters, b.model.parameters)
    found = [fastnn.find_learning_rate(single[0].model, X, y, seed=1).losses for X in (S, rows)]
    assert np.array_equal(*found)


# The class ----------------------------------------------------------------------------------------


def test_csr_of_the_right_type_is_not_copied(rows):
    S = scipy_sparse.csr_array(rows)
    X = SparseRows(S, np.float32)
    for name in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(X, name), getattr(S, name))
    assert SparseRows(S, np.float64).data.dtype == np.float64
    assert len(X) == 90
    assert X.shape == rows.shape
    assert np.array_equal(np.asarray(X), rows)
    assert np.array_equal(X[5:9], rows[5:9])
    assert np.array_equal(X[[7, 3]], rows[[7, 3]])
    assert np.array_equal(X[4], rows[4])


def test_unsorted_columns_and_duplicates_are_put_in_order():
    S = scipy_sparse.csr_array((2, 4))
    S.data = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    S.indices = np.array([3, 0, 3, 2, 1], np.int32)
    S.indptr = np.array([0, 3, 5], np.int32)
    S.has_canonical_format = True  # a lie that a user's own arrays may tell
    X = SparseRows(S, np.float64)
    assert np.array_equal(X[:], [[2.0, 0, 0, 5.0], [0, 16.0, 8.0, 0]])
    assert np.array_equal(S.data, [1.0, 2.0, 4.0, 8.0, 16.0])  # the caller's is as it was


def broken(**arrays):
    S = scipy_sparse.csr_array((2, 4))
    S.data, S.indices, S.indptr = np.ones(2), np.array([0, 1]), np.array([0, 1, 2])
    for name, values in arrays.items():
        setattr(S, name, np.array(values))
    return S


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"indptr": [0, 1]}, "3 numbers from 0 on"),
        ({"indptr": [1, 1, 2]}, "3 numbers from 0 on"),
        ({"indptr": [0, 2, 1]}, "must rise"),
        ({"indptr": [0, 1, 3]}, "must rise"),
        ({"indices": [0, 4]}, r"in 0\.\.3"),
        ({"indices": [-1, 1]}, r"in 0\.\.3"),
        ({"data": [1.0]}, "1 values for 2 column numbers"),
    ],
)
def test_arrays_that_describe_no_matrix_are_refused(arrays, message):
    # Kernels read where these arrays point to.
    with pytest.raises(ValueError, match=f"X is not a CSR matrix.*{message}"):
        SparseRows(broken(**arrays), np.float64)


def test_errors_say_what_and_where(rows):
    model = fastnn.MLP([70, 8, 3])
    S = scipy_sparse.csr_array(rows)
    with pytest.raises(ValueError, match="X has 69 features, but this model was built for 70"):
        model.predict(S[:, :69])
    bad = S.copy()
    row = 50
    bad.data[bad.indptr[row]] = np.inf
    column = bad.indices[bad.indptr[row]]
    with pytest.raises(ValueError, match=f"X contains inf at row {row}, column {column}"):
        model.predict(bad)
    with pytest.raises(ValueError, match=f"X contains inf at row {row}, column {column}"):
        fastnn.Trainer(model).fit(bad, np.zeros((90, 3)), epochs=1)
    with pytest.raises(ValueError, match="X contains inf"):
        model.predict(scipy_sparse.csr_array(S.astype(np.float64) * 1e300))
    with pytest.raises(TypeError, match="complex"):
        model.predict(S.astype(complex))
    with pytest.raises(TypeError, match="y is sparse"):
        fastnn.Trainer(model).fit(rows, scipy_sparse.csr_array(np.ones((90, 3))), epochs=1)
    with pytest.raises(TypeError, match="X is sparse"):
        fastnn.Perceptron().fit(S, np.zeros(90, int))


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_a_backend_reads_sparse_rows_or_says_that_it_cannot(backend, rows, rng):
    if backend == "numba":
        pytest.importorskip("numba")
    S = scipy_sparse.csr_array(rows)
    y = rng.normal(size=(len(rows), 3))
    models = [fastnn.MLP([70, 8, 3], seed=0, backend=backend) for _ in range(2)]
    if models[0]._backend.takes_sparse_rows:
        for model, X in zip(models, (S, rows), strict=True):
            fastnn.Trainer(model, seed=1).fit(X, y, epochs=1)
        assert np.array_equal(models[0].parameters, models[1].parameters)
        assert np.array_equal(models[0].predict(S), models[0].predict(rows))
        return
    for read in (models[0].predict, lambda X: fastnn.Trainer(models[0]).fit(X, y, epochs=1)):
        with pytest.raises(TypeError, match=r"X is sparse .*: use X.toarray\(\)"):
            read(S)


def test_a_wide_matrix_needs_memory_for_what_is_stored(rng):
    # Dense, this would be 8 GB.
    n, n_features = 2000, 1_000_000
    S = scipy_sparse.random_array((n, n_features), density=2e-6, format="csr", rng=rng)
    model = fastnn.MLP([n_features, 1], seed=0)
    trainer = fastnn.Trainer(model, optimizer="sgd", batch_size="full", seed=0)
    trainer.fit(S, np.ones(n), epochs=2)
    expected = S.astype(np.float32) @ model.weights[0] + model.biases[0]
    np.testing.assert_allclose(model.predict(S), expected, rtol=1e-5, atol=1e-6)
