"""The CUDA backend's own ways, on a GPU or in the simulator: tiles, pieces, stops, bits."""

import os
import pickle

import numpy as np
import pytest
from own_functions import FORMULA, LOSS, TYPED, TYPED_LOSS

import fastnn
from fastnn.backends import get_backend
from fastnn.backends.base import StopFlag, TrainJob
from fastnn.errors import ModelFormatError
from fastnn.plan import Plan
from fastnn.tables.activations import ACTIVATIONS, LINKS, REGISTERED_ACTIVATIONS
from fastnn.tables.losses import LOSSES, REGISTERED_LOSSES, resolve_loss
from fastnn.tables.optimizers import SGD, Adam, RMSprop, resolve_optimizer

if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1" and os.environ.get("FASTNN_TEST_GPU") != "1":
    pytest.skip("neither NUMBA_ENABLE_CUDASIM=1 nor FASTNN_TEST_GPU=1", allow_module_level=True)

from fastnn.backends.numba_cuda import backend as implementation
from fastnn.backends.numba_cuda import fused, kernels, shim

CUDA = get_backend("cuda")
REFERENCE = get_backend("reference")
SIZES, N_ROWS = (3, 5, 4, 2), 11

_rng = np.random.default_rng(21)
X = _rng.normal(size=(N_ROWS, SIZES[0]))
Y = _rng.normal(size=(N_ROWS, SIZES[-1]))
WEIGHT = _rng.uniform(0.1, 2, N_ROWS)
LABELS = _rng.integers(0, SIZES[-1], N_ROWS)
assert set(LABELS) == {0, 1}


@pytest.fixture(params=["fused", "tiled"])
def way(request, monkeypatch):
    """Narrow networks through the kernels that keep them on the chip, and through the others."""
    if request.param == "tiled":
        monkeypatch.setattr(fused, "MAX_WIDTH", 0)
    return request.param


def make_plan(dtype=np.float64, activation="tanh", output="identity", sizes=SIZES, dropout=0.0):
    n_hidden = len(sizes) - 2
    return Plan(sizes, dtype, (activation,) * n_hidden, output, (dropout,) * n_hidden)


def start(plan, optimizer):
    parameters = np.random.default_rng(3).normal(size=plan.n_parameters) * 0.4
    slots = np.empty((optimizer.n_slots, plan.n_parameters), plan.dtype)
    optimizer.init_slots(slots)
    return parameters.astype(plan.dtype), slots


def make_job(plan, optimizer, *, n_epochs=2, batch_size=4, **settings):
    n_steps = n_epochs * -(-N_ROWS // batch_size)
    rates = np.linspace(1.0, 0.3, n_steps) * optimizer.learning_rate
    scalars, _ = optimizer.step_scalars(optimizer.init_counters(), rates)
    orders = np.array([np.roll(np.arange(N_ROWS), 3 * epoch + 1) for epoch in range(n_epochs)])
    values = {
        "X": X.astype(plan.dtype),
        "y": Y.astype(plan.dtype),
        "weight": WEIGHT,
        "loss": LOSSES["squared_error"],
        "optimizer": optimizer,
        "scalars": scalars,
        "orders": orders,
        "batch_size": batch_size,
        "n_epochs": n_epochs,
        **settings,
    }
    return TrainJob(**values)


def train(backend, plan, job):
    parameters, slots = start(plan, job.optimizer)
    result = backend.train(plan, parameters, slots, job)
    return parameters, slots, result


def check_same(plan, job, tolerance):
    got, expected = train(CUDA, plan, job), train(REFERENCE, plan, job)
    assert got[2].status == expected[2].status == "done"
    for a, b in zip(got[:2], expected[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got[2].losses, expected[2].losses, rtol=tolerance)
    assert np.abs(expected[0] - start(plan, job.optimizer)[0]).max() > 1e-4
    return got


TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("clip_norm", [None, 0.3])
def test_both_ways_train_like_the_reference(way, dtype, clip_norm):
    """Dropout, weights, penalty, labels, a short last batch, and batches of more than one tile."""
    plan = make_plan(dtype, "silu", "softmax", dropout=0.3)
    for batch_size in (4, 9):
        job = make_job(
            plan, Adam(), batch_size=batch_size, y=LABELS, loss=LOSSES["cross_entropy"], l2=0.02,
            clip_norm=clip_norm, dropout_seed=2**63 + 9, first_epoch=2,
        )  # fmt: skip
        check_same(plan, job, TOLERANCE[dtype])


def test_batches_go_through_in_pieces(way, monkeypatch):
    """Rows beyond what fits the memory for work: sums go on where the last piece ended."""
    monkeypatch.setattr(implementation, "MAX_CHUNK_ROWS", kernels.ROWS)
    monkeypatch.setattr(implementation, "WORKSPACE_ELEMS", 1)
    plan = make_plan()
    assert implementation._chunk_rows(plan, N_ROWS) == kernels.ROWS < N_ROWS
    check_same(plan, make_job(plan, SGD(), batch_size=N_ROWS, l2=0.1, n_epochs=1), 1e-13)
    parameters = start(plan, SGD())[0]
    arguments = (plan, parameters, X, Y, WEIGHT, LOSSES["squared_error"])
    got, expected = (b.loss_and_gradient(*arguments, 0.1, 1) for b in (CUDA, REFERENCE))
    assert got[0] == pytest.approx(expected[0], rel=1e-13)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=1e-14)
    assert CUDA.loss(*arguments, 1) == pytest.approx(REFERENCE.loss(*arguments, 1), rel=1e-13)
    out = np.empty((N_ROWS, SIZES[-1]))
    expected = REFERENCE.predict(plan, parameters, X, out.copy(), 1)
    got = CUDA.predict(plan, parameters, X, out, 1)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 1, 1), (3, 2), (2, 9, 1), (1, 3, 7)])
@pytest.mark.parametrize("batch_size", [1, N_ROWS])
def test_any_width_and_batch(way, sizes, batch_size):
    plan = make_plan(sizes=sizes)
    rng = np.random.default_rng(5)
    job = make_job(
        plan, SGD(), batch_size=batch_size, n_epochs=1, X=rng.normal(size=(N_ROWS, sizes[0])),
        y=rng.normal(size=(N_ROWS, sizes[-1])),
    )  # fmt: skip
    check_same(plan, job, 1e-12)
    assert (
        CUDA.predict(plan, start(plan, SGD())[0], job.X[:0], np.empty((0, sizes[-1])), 1).size == 0
    )


def test_two_runs_give_the_same_bits(way):
    """No sum depends on which thread comes first."""
    plan = make_plan(np.float32, output="softmax", dropout=0.2)
    job = make_job(plan, Adam(), batch_size=9, y=LABELS, loss=LOSSES["cross_entropy"])
    runs = [train(CUDA, plan, job) for _ in range(3)]
    assert len({a.tobytes() + b.tobytes() + r.losses.tobytes() for a, b, r in runs}) == 1


def test_the_bits_do_not_depend_on_the_tile(monkeypatch):
    plan = make_plan(np.float32, sizes=(7, 9, 3))
    rows = _rng.normal(size=(20, 7)).astype(np.float32)
    seen = set()
    for few in (0, 10**9):
        monkeypatch.setattr(kernels, "FEW_TILES", few)
        assert kernels.tile_for(20, 9) is kernels.TILES[few > 0]
        seen.add(CUDA.layer_outputs(plan, start(plan, SGD())[0], rows, 1)[-1].tobytes())
    assert len(seen) == 1


def test_long_sums_are_taken_in_blocks():
    """A sum of 3000 ones and one of 2**24: one by one in float32 the ones would be lost."""
    n = 3000
    plan = make_plan(np.float32, sizes=(n, 1))
    parameters = np.ones(n + 1, np.float32)
    parameters[-1] = 0
    rows = np.ones((1, n), np.float32)
    rows[0, 0] = 2.0**24
    got = CUDA.layer_outputs(plan, parameters, rows, 1)[0][0, 0]
    exact = 2.0**24 + n - 1
    # All but the ones in the first block of 512 count.
    assert exact - 512 <= got <= exact


FULL = os.environ.get("FASTNN_FULL") == "1"
KERNELS = [
    *(resolve_optimizer(name) for name in ("sgd", "adam", "adamw", "nadam", "rmsprop", "adagrad")),
    resolve_optimizer("rprop"),
    SGD(momentum=0.8),
    SGD(momentum=0.8, nesterov=True),
    RMSprop(momentum=0.5),
]
PAIRS = []
for _output in [*ACTIVATIONS, *LINKS]:
    for _loss in LOSSES:
        try:
            resolve_loss(_loss, _output)
        except ValueError:
            continue
        PAIRS.append((_output, _loss))


def combinations():
    """Activation, output, loss, optimizer: all of them with FASTNN_FULL=1, else each at least once.

    The parts are compiled apart and put together alike, so a fault of one shows with any other.
    """
    names = list(ACTIVATIONS)
    if FULL:
        for activation in names:
            for output, loss in PAIRS:
                for optimizer in KERNELS:
                    yield activation, output, loss, optimizer
        return
    natural = [(LOSSES[loss].natural_output, loss) for loss in LOSSES]
    others = [("softmax", "squared_error"), ("sigmoid", "cross_entropy"), ("tanh", "hinge")]
    assert set(natural + others) <= set(PAIRS)
    for i, activation in enumerate(names):
        output, loss = (natural + others)[i % (len(natural) + len(others))]
        yield activation, output, loss, KERNELS[i % len(KERNELS)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_formula_trains_like_the_reference(way, dtype):
    seen = set()
    for activation, output, loss, optimizer in combinations():
        plan = make_plan(dtype, activation, output, sizes=(2, 3, 2))
        t = {
            "real": Y,
            "nonnegative": np.floor(np.abs(2 * Y)),
            "unit": 1 / (1 + np.exp(-Y)),
            "sign": np.where(Y > 0, 1, -1),
            "classes": np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True),
        }[LOSSES[loss].target_kind].astype(dtype)
        job = make_job(
            plan, optimizer, n_epochs=1, batch_size=4, X=X[:7, :2].astype(dtype), y=t[:7],
            weight=None, loss=LOSSES[loss], orders=None,
        )  # fmt: skip
        got, expected = train(CUDA, plan, job), train(REFERENCE, plan, job)
        assert got[2].status == expected[2].status
        # The sign of a gradient near 0 is Rprop's whole step.
        tolerance = 1e-3 if dtype == np.float32 and optimizer.name == "rprop" else TOLERANCE[dtype]
        for a, b in zip(got[:2], expected[:2], strict=True):
            np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance, err_msg=f"{activation} {output} {loss} {optimizer}"
            )
        seen |= {activation, loss, optimizer.kernel}
    assert seen >= {*ACTIVATIONS, *LOSSES, *(optimizer.kernel for optimizer in KERNELS)}


# Functions of the user's --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "output"),
    [(LOSS, "sigmoid"), (TYPED_LOSS, "softmax"), (LOSSES["squared_error"], FORMULA.name)],
    ids=["link", "softmax", "output"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_of_the_users_train_like_the_reference(way, dtype, loss, output):
    """Several in a net, beside built-in ones; with the source of all, and without."""
    plan = Plan((3, 3, 3, 2, 2), dtype, (FORMULA, "tanh", TYPED), output, (0.0, 0.2, 0.0))
    job = make_job(plan, SGD(), n_epochs=1, batch_size=7, loss=loss, l2=0.02, dropout_seed=5)
    got = check_same(plan, job, TOLERANCE[dtype])
    predictions = [
        backend.predict(plan, got[0], job.X, np.empty((N_ROWS, 2), dtype), 1)
        for backend in (CUDA, REFERENCE)
    ]
    np.testing.assert_allclose(*predictions, rtol=0, atol=TOLERANCE[dtype])
    assert predictions[0].std() > 1e-3


def test_names_of_functions_are_saved_and_have_to_be_registered(tmp_path, monkeypatch):
    model = fastnn.MLP([3, 3, 2], activation=TYPED, output=FORMULA, seed=1, backend="cuda")
    trainer = fastnn.Trainer(model, loss=LOSS, batch_size=8, seed=2)
    trainer.fit(X, Y, epochs=1)
    model.save(tmp_path / "model")
    trainer.save(tmp_path / "trainer")
    pickled, expected = pickle.dumps(trainer), model.predict(X).tobytes()
    loaded = fastnn.MLP.load(tmp_path / "model", backend="cuda")
    others = [fastnn.Trainer.load(tmp_path / "trainer", backend="cuda"), pickle.loads(pickled)]
    for other in (loaded, *(other.model for other in others)):
        assert other.backend == "cuda"
        assert other.predict(X).tobytes() == expected
    trainer.fit(X, Y, epochs=1)
    for other in others:
        assert other.loss == LOSS
        other.fit(X, Y, epochs=1)
        assert other.model.parameters.tobytes() == model.parameters.tobytes()
    assert model.predict(X).tobytes() != expected
    monkeypatch.delitem(REGISTERED_LOSSES, LOSS.name)
    with pytest.raises(ModelFormatError, match=rf"fastnn\.Loss\('{LOSS.name}', value\)"):
        fastnn.Trainer.load(tmp_path / "trainer", backend="cuda")
    monkeypatch.delitem(REGISTERED_ACTIVATIONS, FORMULA.name)
    with pytest.raises(ModelFormatError, match=rf"fastnn\.Activation\('{FORMULA.name}', f\)"):
        fastnn.MLP.load(tmp_path / "model", backend="cuda")
    with pytest.raises(ValueError, match=r"fastnn\.Activation"):
        fastnn.MLP([3, 3, 2], activation=FORMULA.name, backend="cuda")


class CountedFlag(StopFlag):
    """Is set, or raises, when it has been asked some times."""

    def __init__(self, asked, error=None):
        super().__init__()
        self.left, self.error = asked, error

    def is_set(self):
        self.left -= 1
        if self.left < 0 and self.error is not None:
            raise self.error
        return self.left < 0


def test_a_stop_comes_at_a_whole_step(way, monkeypatch):
    monkeypatch.setattr(implementation, "FUSED_OPERATIONS", 1)  # a step per launch
    plan = make_plan()
    whole = make_job(plan, SGD(), n_epochs=3)
    stopped = make_job(plan, SGD(), n_epochs=3, stop=CountedFlag(4))
    parameters, _, result = train(CUDA, plan, stopped)
    assert result.status == "stopped"
    assert (result.epochs_done, result.steps_done) == (1, 4)
    # The first epoch, and the first batch of the second.
    first = make_job(plan, SGD(), n_epochs=1)
    first.scalars = whole.scalars[:3]
    expected, slots = start(plan, SGD())
    REFERENCE.train(plan, expected, slots, first)
    rows = whole.orders[1][:4]
    one = make_job(plan, SGD(), n_epochs=1, X=X[rows], y=Y[rows], weight=WEIGHT[rows], orders=None)
    one.scalars = whole.scalars[3:4]
    REFERENCE.train(plan, expected, slots, one)
    np.testing.assert_allclose(parameters, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("asked", [1, 4, 5])
def test_a_signal_handler_that_raises_leaves_whole_epochs(way, asked, monkeypatch):
    monkeypatch.setattr(implementation, "FUSED_OPERATIONS", 1)
    error = KeyboardInterrupt()
    plan = make_plan()
    job = make_job(plan, Adam(), n_epochs=3, stop=CountedFlag(asked, error))
    parameters, slots, result = train(CUDA, plan, job)
    epochs = asked // 3
    assert (result.status, result.exception) == ("interrupted", error)
    assert (result.epochs_done, result.steps_done, len(result.losses)) == (
        epochs,
        3 * epochs,
        epochs,
    )
    job = make_job(plan, Adam(), n_epochs=3)
    job.n_epochs = epochs
    expected = train(CUDA, plan, job)
    assert (parameters.tobytes(), slots.tobytes()) == tuple(a.tobytes() for a in expected[:2])


def test_errors_of_the_device_are_raised_and_change_nothing(monkeypatch):
    plan = make_plan()
    job = make_job(plan, Adam())
    before = [a.tobytes() for a in start(plan, Adam())]
    failing = type("CudaAPIError", (Exception,), {"__module__": "numba.cuda.cudadrv.driver"})

    def fail():
        raise failing("unspecified launch failure")

    monkeypatch.setattr(implementation, "synchronize", fail)
    monkeypatch.setattr(implementation, "PENDING_OPERATIONS", 1)
    monkeypatch.setattr(implementation, "FUSED_OPERATIONS", 1)
    parameters, slots = start(plan, Adam())
    with pytest.raises(failing):
        CUDA.train(plan, parameters, slots, job)
    assert [parameters.tobytes(), slots.tobytes()] == before


def test_every_array_type_is_read(way):
    """Rows of any number type and stride come out as the model's dtype holds them."""
    plan = make_plan(np.float32)
    parameters = start(plan, SGD())[0]
    table = _rng.integers(-3, 4, (N_ROWS, 2 * SIZES[0]))
    for rows in (table[:, ::2], np.asfortranarray(table[:, :3]), table[::-1, 1:4].astype("i1"),
                 table[:, :3].astype("f8"), table[:, :3] > 0):  # fmt: skip
        got = CUDA.predict(plan, parameters, rows, np.empty((N_ROWS, 2), np.float32), 1)
        expected = REFERENCE.predict(plan, parameters, rows, np.empty((N_ROWS, 2), np.float32), 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def test_the_perceptron_stops_and_survives_interrupts():
    t = (X @ _rng.normal(size=(3, 2)) > 0.2).astype(np.uint8)
    for flag, status in (
        (CountedFlag(2), "stopped"),
        (CountedFlag(2, ValueError()), "interrupted"),
    ):
        weights, bias = np.zeros((3, 2)), np.zeros(2)
        errors, got, exception = CUDA.perceptron_fit(
            X, np.roll(t, 1, axis=0), weights, bias, 0.5, 50, True, 7, 1, flag
        )
        assert (got, exception) == (status, flag.error)
        assert len(errors) == 2
        assert weights.any()


def test_a_tile_lies_in_shared_memory_without_overlap():
    for sizes in [(1, 1), (3, 5, 4, 2), (128, 128, 128, 10), (9, 128, 1), (2, *[16] * 20, 2)]:
        for itemsize in (4, 8):
            rows, places, second, n_bytes = fused.place(sizes, itemsize)
            assert rows % fused.GROUP == 0
            assert n_bytes <= fused.SHARED_BYTES
            if rows == 0:
                continue
            regions = {places[0][0]: rows * sizes[0]}
            for layer in range(len(sizes) - 2):
                regions[places[layer][1]] = rows * sizes[layer + 1]
                regions[places[layer][2]] = rows * sizes[layer + 1]
                assert places[layer + 1][0] == places[layer][1]
            regions[places[-1][1]] = regions[second] = rows * max(sizes[1:])
            assert len(regions) == 1 + 2 * (len(sizes) - 2) + 2
            end = 0
            for at, size in sorted(regions.items()):
                assert at >= end
                end = at + size
            assert end * itemsize == n_bytes
    assert fused.place((129, 4, 1), 4)[0] == 0
    assert fused.place((2, *[128] * 40, 1), 8)[0] == 0


# Arrays of other libraries ------------------------------------------------------------------------


class Foreign:
    """An array of another library: on a GPU one of Numba, in the simulator one of the host's."""

    def __init__(self, array):
        self.array = array
        self.stays = False

    @property
    def __cuda_array_interface__(self):
        return self.array.__array_interface__


class ForeignByDlpack:
    """The same by DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **settings):
        assert settings.pop("stream") == 1
        return self.array.__dlpack__()


class OfInterface:
    """What NumPy reads in the place of a GPU's library."""

    def __init__(self, interface):
        self.__array_interface__ = interface


def as_cuda_array(value):
    """What Numba has on a GPU, and the simulator lacks."""
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

    class Stays(FakeCUDAArray):
        def copy_to_host(self, *arguments, **settings):
            raise AssertionError("this takes the array to the host")

    kind = Stays if getattr(value, "stays", False) else FakeCUDAArray
    return kind(np.asarray(OfInterface(value.__cuda_array_interface__)))


@pytest.fixture
def foreign(monkeypatch):
    """A function from a host array to one of another library on the GPU."""
    if not shim.SIMULATED:
        from numba import cuda

        return cuda.to_device
    monkeypatch.setattr(shim.cuda, "as_cuda_array", as_cuda_array, raising=False)
    return Foreign


def model_and_twin(dtype="float32", output="softmax", **settings):
    make = {"dtype": dtype, "output": output, "activation": "tanh", "seed": 1, **settings}
    return fastnn.MLP(SIZES, backend="cuda", **make), fastnn.MLP(SIZES, backend="reference", **make)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_device_arrays_are_trained_on_without_the_host(foreign, monkeypatch, dtype):
    model, twin = model_and_twin(dtype)
    rows = X.astype(dtype)
    device_rows, device_labels = foreign(rows), foreign(LABELS)
    settings = {"optimizer": "sgd", "batch_size": 4, "seed": 3}
    expected = fastnn.Trainer(twin, **settings).fit(rows, LABELS, epochs=2, sample_weight=WEIGHT)
    weights = foreign(WEIGHT)
    trainer = fastnn.Trainer(model, **settings)
    if shim.SIMULATED:
        device_rows.stays = device_labels.stays = True
    monkeypatch.setattr(implementation, "_rows_to_device", in_place(implementation._rows_to_device))
    history = trainer.fit(device_rows, device_labels, epochs=2, sample_weight=weights)
    monkeypatch.undo()
    if shim.SIMULATED:
        monkeypatch.setattr(shim.cuda, "as_cuda_array", as_cuda_array, raising=False)
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-5)
    np.testing.assert_allclose(model.parameters, twin.parameters, rtol=0, atol=1e-5)
    assert trainer.evaluate(device_rows, device_labels) == pytest.approx(
        trainer.evaluate(rows, LABELS), rel=1e-6
    )
    assert trainer.step(device_rows, device_labels) > 0


def in_place(function):
    """Rows come as what they are: the memory of the other library."""

    def check(X, dtype):
        assert isinstance(X, implementation.OnDevice)
        return function(X, dtype)

    return check


def test_device_arrays_of_any_stride_and_type(foreign):
    model, twin = model_and_twin()
    table = _rng.integers(-3, 4, (N_ROWS, 2 * SIZES[0]))
    rows = [
        table[:, ::2],
        table[::-1, 1:4].astype("i1"),
        table[:, :3].astype("f8"),
        table[:, 3:] > 0,
    ]
    for host in rows:
        if not shim.SIMULATED:
            host = np.ascontiguousarray(host)
        expected = twin.predict(host)
        np.testing.assert_allclose(model.predict(foreign(host)), expected, atol=1e-6)
        np.testing.assert_allclose(model.predict(foreign(host[2])), expected[2], atol=1e-6)
        for got, want in zip(
            model.layer_outputs(foreign(host)), twin.layer_outputs(host), strict=True
        ):
            np.testing.assert_allclose(got, want, atol=1e-6)


def test_rows_of_the_right_type_are_read_where_they_are(foreign):
    host = np.ascontiguousarray(X, np.float32)
    rows = CUDA.adopt_rows(foreign(host), SIZES[0], np.dtype(np.float32), "X")
    assert rows.shape == host.shape
    if shim.SIMULATED:
        assert np.shares_memory(rows.array._ary, host)


def test_dlpack_is_enough(foreign):
    if not shim.SIMULATED:
        pytest.skip("Numba's own arrays have the other interface too")
    model, twin = model_and_twin()
    host = np.ascontiguousarray(X, np.float32)
    np.testing.assert_allclose(model.predict(ForeignByDlpack(host)), twin.predict(host), atol=1e-6)
    strided = np.ascontiguousarray(np.repeat(X, 2, axis=1), np.float32)[:, ::2]
    np.testing.assert_allclose(
        model.predict(ForeignByDlpack(strided)), twin.predict(strided), atol=1e-6
    )


def test_results_go_into_device_arrays(foreign):
    model, _ = model_and_twin()
    host = np.full((N_ROWS, SIZES[-1]), np.nan, np.float32)
    out = foreign(host)
    assert model.predict(X, out=out) is out
    result = host if shim.SIMULATED else out.copy_to_host()
    assert result.tobytes() == model.predict(X).tobytes()
    for wrong, message in (
        (np.empty((N_ROWS, 9), np.float32), r"out must have shape \(11, 2\), got \(11, 9\)"),
        (np.empty((N_ROWS, 2)), "out must have dtype float32, got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict(X, out=foreign(wrong))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((4, 9)), "X has 9 features, but this model was built for 3"),
        (np.zeros((2, 2, 3)), r"X must have shape \(n_samples, n_features\).*got \(2, 2, 3\)"),
        (np.array([[1, 2, 3], [4, np.nan, 6]]), "X contains nan at row 1, column 1"),
        (np.array([[1.0, 2, 1e300]]), "X contains 1e[+]300, beyond the range of float32 at row 0"),
    ],
)
def test_wrong_device_rows_are_refused_like_those_of_the_host(foreign, rows, message):
    model, _ = model_and_twin()
    with pytest.raises(ValueError, match=message):
        model.predict(foreign(rows))


@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("cross_entropy", np.array([0, 1, 2]), "labels 0 to 1.*got 2"),
        ("cross_entropy", np.array([0, 1]), "y has 2 labels, but X has 3 rows"),
        ("cross_entropy", np.array([[0.5, 0.5], [0.2, 0.8], [0.2, 0.1]]), "row 2 of y sums to 0.3"),
        ("squared_error", np.zeros((3, 5)), r"y must have shape \(3, 2\), got \(3, 5\)"),
        ("squared_error", np.array([[0, 1], [2, np.inf], [0, 0]]), "y contains inf at row 1"),
        ("hinge", np.array([[1, -1], [1, 0], [1, 1]]), "targets of hinge are -1 or 1"),
        ("poisson", np.array([[1, 2.5], [1, 0], [-1, 1]]), "targets of poisson are 0 or greater"),
        ("binary_cross_entropy", np.array([[1, 0], [1, 0], [0.5, 2]]), "between 0 and 1"),
    ],
)
def test_wrong_device_targets_are_refused_like_those_of_the_host(foreign, loss, y, message):
    output = LOSSES[loss].natural_output
    model, _ = model_and_twin(output=output)
    rows = X[:3]
    with pytest.raises(ValueError, match=message):
        model.loss_and_gradient(rows, foreign(y), loss=loss)
    # The same with one that is right.
    right = {"real": 0.5, "nonnegative": 2, "unit": 0.25, "sign": -1, "classes": 0.5}
    t = np.full((3, 2), right[LOSSES[loss].target_kind], np.float32)
    got = model.loss_and_gradient(rows, foreign(t), loss=loss)
    expected = model.loss_and_gradient(rows, t, loss=loss)
    assert got[0] == expected[0]
    assert got[1].tobytes() == expected[1].tobytes()
    if loss == "cross_entropy":
        one_hot = np.eye(2, dtype=np.int8)[[0, 1, 1]]
        assert model.loss_and_gradient(rows, foreign(one_hot))[0] == pytest.approx(
            model.loss_and_gradient(rows, foreign(np.array([0, 1, 1], np.int8)))[0], rel=1e-6
        )


def test_losses_of_the_users_say_which_targets_and_outputs_they_take(foreign):
    loss = fastnn.Loss(
        "test_cuda_domain", lambda y, t: (y - t) ** 2 / y, domain=(0, np.inf), target_kind="unit"
    )
    model, twin = model_and_twin(output="sigmoid")
    wrong = np.where(X[:, :2] > 0, 2.0, 0.5)
    for y in (wrong, foreign(wrong)):
        with pytest.raises(ValueError, match="targets of test_cuda_domain are between 0 and 1"):
            model.loss_and_gradient(X, y, loss=loss)
    y = wrong / 2
    got = model.loss_and_gradient(X, foreign(y), loss=loss)
    expected = twin.loss_and_gradient(X, y, loss=loss)
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], expected[1], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"test_cuda_domain.*is defined for outputs in"):
        model_and_twin(output="identity")[0].loss_and_gradient(X, y, loss=loss)


def test_what_numba_cannot_read_is_named(foreign):
    model, _ = model_and_twin()
    if shim.SIMULATED:
        with pytest.raises(TypeError, match=r"X has dtype float16 on the GPU.*convert it"):
            model.predict(foreign(np.zeros((2, 3), np.float16)))

    class NeedsGradient:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad")

    with pytest.raises(TypeError, match=r"X \(NeedsGradient\).*requires grad.*X.detach\(\)"):
        model.predict(NeedsGradient())


def test_a_fit_copies_its_rows_once(monkeypatch):
    """Watched by a callback, every epoch is a call of the backend of its own."""

    class Watch:
        def on_epoch_end(self, trainer, logs):
            pass

    model, twin = model_and_twin("float64", "identity")
    copies = []
    plain = implementation._rows_to_device

    def counting(X, dtype):
        copies.append(not isinstance(X, implementation.OnDevice))
        return plain(X, dtype)

    monkeypatch.setattr(implementation, "_rows_to_device", counting)
    settings = {"batch_size": 6, "seed": 5}
    data = {"epochs": 3, "callbacks": [Watch()], "validation_data": (X[:5], Y[:5])}
    history = fastnn.Trainer(model, **settings).fit(X, Y, **data)
    assert copies.count(True) == 2
    assert len(copies) > 6
    expected = fastnn.Trainer(twin, **settings).fit(X, Y, **data)
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, rtol=1e-12)
    np.testing.assert_allclose(model.parameters, twin.parameters, rtol=0, atol=1e-12)


def test_lbfgs_runs_on_the_gpu():
    pytest.importorskip("scipy")
    model, twin = model_and_twin("float64", "identity")
    for each in (model, twin):
        fastnn.Trainer(each, optimizer="lbfgs", l2=0.01).fit(X, Y, epochs=3)
    np.testing.assert_allclose(model.parameters, twin.parameters, rtol=0, atol=1e-9)


def test_show_config_names_the_gpu(capsys):
    fastnn.show_config()
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("cuda:")]
    assert shim.device_name() in line
