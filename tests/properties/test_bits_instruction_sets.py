"""Instruction sets with fused multiply-adds give the same bits; the baseline is close to them.

The instruction set is chosen at import, so each runs in a process of its own, over the same
networks. What it computes comes back as arrays and as one hash.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

_native = pytest.importorskip("fastnn.backends._native")

SCRIPT = """
import hashlib, sys, warnings
import numpy as np
import fastnn
from fastnn.backends import _native
from fastnn.tables.activations import ACTIVATIONS
from fastnn.tables.losses import LOSSES

assert _native.isa() == sys.argv[1], _native.isa()
optimizers = [
    fastnn.SGD(0.05), fastnn.SGD(0.02, momentum=0.9), fastnn.SGD(0.02, momentum=0.9, nesterov=True),
    fastnn.Adam(0.01), fastnn.AdamW(0.01, weight_decay=0.1), fastnn.Nadam(0.01),
    fastnn.RMSprop(0.003), fastnn.RMSprop(0.003, momentum=0.8), fastnn.Adagrad(0.05),
    fastnn.Rprop(0.01),
]
activations = [name for name in ACTIVATIONS if name != "step"]
losses = sorted(LOSSES)
results = {}
for case in range(90):
    generator = np.random.default_rng(case)
    dtype = ["float32", "float64"][case % 2]
    loss = LOSSES[losses[case // 2 % len(losses)]]
    sizes = [int(n) for n in generator.integers(1, 40, 3)] + [int(generator.integers(1, 17))]
    if case % 9 == 0:
        sizes[0], sizes[1] = 300, 130  # more than a block of sums
    n = int(generator.choice([1, 7, 33, 129, 300, 600]))
    X = generator.normal(size=(n, sizes[0]))
    y = {
        "classes": generator.integers(0, sizes[-1], n),
        "sign": generator.choice([-1.0, 1.0], (n, sizes[-1])),
        "unit": generator.uniform(size=(n, sizes[-1])),
    }.get(loss.target_kind, np.abs(generator.normal(size=(n, sizes[-1]))))
    model = fastnn.MLP(
        sizes, activation=[activations[case % 14], activations[(case // 3) % 14]],
        output=loss.natural_output, dtype=dtype, dropout=[0.0, 0.3], seed=case,
    )
    trainer = fastnn.Trainer(
        model, loss=loss.name, optimizer=optimizers[case % 10], seed=case, l2=0.01 * (case % 3),
        batch_size=[5, 32, "full"][case % 3], clip_norm=[None, 0.5][case % 5 == 0], n_threads=2,
    )
    # gradients of the first model, before rounding can have been amplified by training
    value, gradient = model.loss_and_gradient(X, y, loss=loss.name)
    results[f"{case} {dtype} gradient"] = gradient
    results[f"{case} {dtype} loss"] = np.array([value])
    results[f"{case} {dtype} input gradient"] = model.input_gradient(X[:9])
    for i, layer in enumerate(model.layer_outputs(X)):
        results[f"{case} {dtype} layer {i}"] = layer
    try:
        trainer.fit(X, y, epochs=2)
    except fastnn.DivergenceError as error:
        results[f"{case} exact divergence"] = np.array([error.epoch, error.batch])
    results[f"{case} trained parameters"] = model.parameters
    results[f"{case} trained slots"] = trainer._slots
    results[f"{case} trained curve"] = trainer.history.loss
for dtype in ("float32", "float64"):
    z = np.concatenate([np.linspace(-40, 40, 20001), 10.0 ** np.arange(-30, 4)]).reshape(-1, 1)
    for name in [*ACTIVATIONS, "exp"]:
        model = fastnn.MLP([1, 1], output=name, dtype=dtype)
        model.parameters[:] = 1, 0
        results[f"{name} {dtype} values"] = model.predict(z[z < 80].reshape(-1, 1))
    generator = np.random.default_rng(7)
    unit = fastnn.Perceptron(max_epochs=20, shuffle=True, seed=3, dtype=dtype, learning_rate=0.1)
    unit.fit(generator.integers(-3, 4, (90, 37)), generator.integers(0, 2, (90, 3)))
    results[f"perceptron trained {dtype}"] = unit.weights
results["exact permutation"] = _native.permutation(1000, 2**63 + 5, 2**33 + 7)
digest = hashlib.sha256()
for name in sorted(results):
    digest.update(name.encode() + results[name].tobytes())
np.savez(sys.argv[2], **results)
print(digest.hexdigest())
"""


def run(isa, folder):
    """(hash, arrays) of the script on one instruction set."""
    path = folder / f"{isa}.npz"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, isa, str(path)],
        env={**os.environ, "FASTNN_ISA": isa},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return done.stdout.strip(), dict(arrays)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isa")
    return {isa: run(isa, folder) for isa in _native.available_isas()}


def test_fused_instruction_sets_give_the_same_bits(results):  # R3
    fused = {isa: digest for isa, (digest, _) in results.items() if isa != "baseline"}
    for isa, digest in fused.items():
        print(f"{isa}: {digest}")
    if not fused:
        pytest.skip("this machine has no fused multiply-add")
    first = results[next(iter(fused))][1]
    for isa in fused:
        different = [k for k, v in results[isa][1].items() if v.tobytes() != first[k].tobytes()]
        assert not different, f"{isa} differs in {different[:9]}"
    assert len(set(fused.values())) == 1


def test_the_baseline_is_close(results):  # R3
    if len(results) < 2:
        pytest.skip("only one instruction set here")
    (digest, baseline), (other, best) = results["baseline"], results[list(results)[-1]]
    assert baseline.keys() == best.keys()
    assert digest != other, "not one bit differs: was the baseline really run?"
    for name, expected in best.items():
        got = baseline[name]
        assert np.isfinite(expected).all(), name
        if "exact" in name:
            assert np.array_equal(got, expected), name
        elif "trained" not in name:  # where training has amplified nothing yet
            tolerance = 2e-5 if "float32" in name else 1e-12
            scale = max(1.0, np.abs(expected).max())
            assert np.abs(got - expected).max() <= tolerance * scale, name


def test_an_instruction_set_that_is_not_there(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import fastnn.backends._native"],
        env={**os.environ, "FASTNN_ISA": "sse9"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "ValueError" in done.stderr
    assert "FASTNN_ISA='sse9'" in done.stderr
    assert "baseline" in done.stderr
