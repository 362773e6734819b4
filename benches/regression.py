"""A gate against lost speed which holds on noisy machines.

    python benches/regression.py              compare with regression.json: exit 1 where slower
    python benches/regression.py --update     record this machine's figures there
    python benches/regression.py forward W3   only the probes with these words in their names
    python benches/regression.py --slow gradient=1.5   see it fail: half as much again to do

Two measures, each blind to what the other sees.

*Cost*: the time of a probe over that of some multiply-adds of the same core in the same run (one
round of the kernel `fma_chains`), taken in turn, the fastest of many slices of both. Neighbours
only ever add time, so a probe that seems slow is measured again, up to five times, and the fastest
counts. Costs hold for one kind of processor: on another they are shown and not judged, until they
are recorded.

*Instructions*: of the same probes under valgrind's callgrind, which counts and has no noise, with
the AVX2 kernels, which valgrind knows. Counts hold for one version of the compiler; other ones are
shown and not judged. Left out where valgrind or the compiler is missing.
"""

import argparse
import ctypes
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import machine
import numpy as np
from kernels import Kernels
from workloads import initial_parameters

import fastnn
from fastnn.backends import _native

HERE = Path(__file__).resolve().parent
RECORD = HERE / "regression.json"
ROUNDS, MAX_ATTEMPTS = 60, 5
PROBE_SECONDS = 1.5e-3  # a slice of a probe is about that long: shorter than most interruptions
YARDSTICK_ROUNDS = 10_000  # about 25 µs

# What counts as slower. Training and prediction read memory that neighbours use, too.
KERNEL_TOLERANCE, WHOLE_TOLERANCE, INSTRUCTION_TOLERANCE = 0.15, 0.25, 0.04


@dataclass
class Probe:
    """Something to time: `call` does it once; `whole` is more than one kernel."""

    name: str
    call: Callable[[], object]
    whole: bool = False
    repeats: int = 1  # under callgrind


# Probes -------------------------------------------------------------------------------------------


def probes(isa=None) -> list[Probe]:
    return [*kernel_probes(isa), *whole_probes()]


def kernel_probes(isa) -> list[Probe]:
    single, double = Kernels("float32", isa), Kernels("float64", isa)
    made = {
        "forward 64x784x128": single.forward(64, 784, 128),
        "forward 256x512x512": single.forward(256, 512, 512),
        "forward 256x16x16": single.forward(256, 16, 16),
        "forward 1x784x128": single.forward(1, 784, 128),
        "forward 64x784x128 float64": double.forward(64, 784, 128),
        "backward 256x512x512": single.backward(256, 512, 512),
        "backward 128x64x32": single.backward(128, 64, 32),
        "gradient 256x512x512": single.gradient(256, 512, 512),
        "gradient, adam 64x784x128": single.gradient(64, 784, 128, "adam"),
        "gradient, momentum 256x16x16": single.gradient(256, 16, 16, "sgd_momentum"),
        "gradient, adam 64x784x128 float64": double.gradient(64, 784, 128, "adam"),
        "activation tanh": single.activate("tanh", 64, 128),
        "activation exp": single.activate("exp", 64, 128),
        "activation gelu": single.activate("gelu", 64, 128),
        "loss cross_entropy": single.loss("cross_entropy", "softmax", 256, 10),
        "loss squared_error": single.loss("squared_error", "identity", 256, 10),
        "update adam": single.update("adam", 8192),
        "update sgd_momentum": single.update("sgd_momentum", 8192),
    }
    return [Probe(n, one.call, repeats=20 if one.flop < 1e6 else 1) for n, one in made.items()]


def whole_probes() -> list[Probe]:
    rng = np.random.default_rng(0)

    def training(sizes, activation, output, batch_size, n, epochs=1, dtype="float32"):
        X = rng.uniform(-1, 1, (n, sizes[0])).astype(dtype)
        y = rng.integers(0, sizes[-1], n) if output == "softmax" else abs(X[:, :1])
        model = fastnn.MLP(sizes, activation=activation, output=output, dtype=dtype, seed=0)
        trainer = fastnn.Trainer(model, batch_size=batch_size, seed=0, n_threads=1)
        start = initial_parameters(sizes, activation, 0, dtype)

        def call():
            for k, (W, b) in enumerate(start):  # the same numbers each time: no subnormals later
                model.weights[k], model.biases[k] = W, b
            trainer.fit(X, y, epochs=epochs)

        return call

    def prediction(sizes, activation, output, n):
        model = fastnn.MLP(sizes, activation=activation, output=output, dtype="float32", seed=0)
        X = rng.uniform(-1, 1, (n, sizes[0])).astype(np.float32)
        model.predict(X)
        return lambda: model.predict(X)

    def perceptron(n, n_features):
        X = rng.standard_normal((n, n_features)).astype(np.float32)
        y = (X @ rng.standard_normal(n_features) > 0).astype(np.int64)
        unit = fastnn.Perceptron(max_epochs=1, shuffle=True, seed=0, dtype="float32")
        return lambda: unit.fit(X, y)

    wide, table, small = (784, 128, 10), (30, 64, 32, 2), (4, 16, 16, 1)
    os.environ["FASTNN_NUM_THREADS"] = "1"  # read at each call
    return [
        Probe("training W1, 512 rows", training(wide, "relu", "softmax", 64, 512), True),
        Probe("training W2, 2048 rows", training(table, "relu", "softmax", 128, 2048), True),
        Probe("training W3, 4 epochs", training(small, "tanh", "identity", 32, 1000, 4), True),
        Probe(
            "training W3, 4 epochs, float64",
            training(small, "tanh", "identity", 32, 1000, 4, "float64"),
            True,
        ),
        Probe(
            "training W4, 200 epochs", training((2, 8, 1), "sigmoid", "sigmoid", 4, 4, 200), True
        ),
        Probe("predict W5lat", prediction(wide, "relu", "softmax", 1), True, 20),
        Probe("predict W5tiny", prediction(small, "tanh", "identity", 1), True, 20),
        Probe("predict W5thr, 512 rows", prediction(wide, "relu", "softmax", 512), True),
        Probe("perceptron, 5000 x 20", perceptron(5000, 20), True),
    ]


# Cost ---------------------------------------------------------------------------------------------


class Yardstick:
    """Multiply-adds alone, on the instruction set in use."""

    def __init__(self):
        address = _native.kernel_address(_native.isa(), "float32", "fma_chains")
        kind = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_ssize_t, ctypes.c_void_p)
        self.chains = kind(address)
        self.values = np.ones(self.chains(0, None), np.float32)

    def seconds(self) -> float:
        """Of one round of all chains: the fastest of some, since a probe may just have used up
        what the scheduler grants in one go.
        """
        times = []
        for _ in range(8):
            start = time.perf_counter()
            self.chains(YARDSTICK_ROUNDS, self.values.ctypes.data)
            times.append(time.perf_counter() - start)
        return min(times) / YARDSTICK_ROUNDS


def slice_seconds(call, n) -> float:
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n


def cost(probe: Probe, yardstick: Yardstick, slowdown: float = 1.0) -> float:
    """Rounds of the yardstick in the time of the probe; both the fastest of many slices."""
    n = 1
    while n * min(slice_seconds(probe.call, n) for _ in range(3)) < PROBE_SECONDS / 2:
        n *= 2
    best, unit = float("inf"), float("inf")
    for _ in range(ROUNDS):
        unit = min(unit, yardstick.seconds())
        best = min(best, slowed_seconds(probe.call, n, slowdown))
    return best / unit


def slowed_seconds(call, n, slowdown) -> float:
    """Do `slowdown` times the work, and count it as n."""
    if slowdown == 1.0:
        return slice_seconds(call, n)
    more = max(n + 1, round(n * slowdown))
    return slice_seconds(call, more) * more / n


# Instructions -------------------------------------------------------------------------------------

CLIENT = """
#include <valgrind/callgrind.h>
void begin(void) { CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }
void end(const char *name) { CALLGRIND_DUMP_STATS_AT(name); CALLGRIND_STOP_INSTRUMENTATION; }
"""


def compiler() -> str:
    """The one that Python extensions are built with here, for instance 'gcc 12'; '' without one."""
    if not shutil.which("gcc"):
        return ""
    run = subprocess.run(["gcc", "-dumpversion"], capture_output=True, text=True, check=False)
    return f"gcc {run.stdout.strip().partition('.')[0]}"


def instructions(
    words: list[str], chosen: list[Probe], slow: dict[str, float]
) -> tuple[dict[str, int], str]:
    """(instructions of a call of each probe, why there are none)."""
    if not shutil.which("valgrind") or not compiler():
        return {}, "valgrind or a C compiler is missing"
    if "avx2" not in _native.available_isas():
        return {}, "the recorded counts are those of AVX2"
    with tempfile.TemporaryDirectory() as folder:
        client = Path(folder, "client.so")
        Path(folder, "client.c").write_text(CLIENT)
        command = ["gcc", "-shared", "-fPIC", "-o", client, f"{folder}/client.c"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return {}, "valgrind/callgrind.h is missing"
        out = f"{folder}/out"
        env = {**os.environ, "FASTNN_ISA": "avx2", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", "--combine-dumps=no"]
        command += [f"--callgrind-out-file={out}", sys.executable, __file__, *words]
        command += ["--count", client]
        for name, factor in slow.items():
            command += ["--slow", f"{name}={factor}"]
        run = subprocess.run(command, capture_output=True, env=env, check=False, text=True)
        if run.returncode:
            return {}, f"valgrind failed: {run.stderr[-300:]}"
        counts = {}
        for path in Path(folder).glob("out*"):
            text = path.read_text()
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            total = re.search(r"^(?:totals|summary): (\d+)", text, re.MULTILINE)
            if name and total:
                counts[name[1]] = int(total[1])
    fixed = counts.pop("nothing", 0)
    return {p.name: round((counts[p.name] - fixed) / p.repeats) for p in chosen}, ""


def count(client: str, chosen: list[Probe], slow: dict[str, float]) -> None:
    """Run each probe between two client requests; this process is under callgrind."""
    requests = ctypes.CDLL(client)
    for probe in [Probe("nothing", lambda: None, repeats=0), *chosen]:
        name, call = probe.name.encode(), probe.call
        repeats = math.ceil(probe.repeats * factor(probe, slow))
        call()
        requests.begin()
        for _ in range(repeats):
            call()
        requests.end(name)


# Judging ------------------------------------------------------------------------------------------


def factor(probe: Probe, slow: dict[str, float]) -> float:
    return max([1.0, *(value for word, value in slow.items() if word in probe.name)])


def verdict(measured: float, recorded: float | None, tolerance: float) -> str:
    """'slower', 'faster' (worth recording), 'new' or ''."""
    if recorded is None:
        return "new"
    if measured > recorded * (1 + tolerance):
        return "slower"
    return "faster" if measured * (1 + tolerance) < recorded else ""


def measured_costs(chosen, recorded, slow, patient=False) -> dict[str, float]:
    """The lowest of some attempts; of all of them where one has to be patient: for the record."""
    yardstick, costs = Yardstick(), {}
    for probe in chosen:
        tolerance = WHOLE_TOLERANCE if probe.whole else KERNEL_TOLERANCE
        best = float("inf")
        for _ in range(MAX_ATTEMPTS):
            best = min(best, cost(probe, yardstick, factor(probe, slow)))
            old = recorded.get(probe.name, best)
            if not patient and verdict(best, old, tolerance) != "slower":
                break
        costs[probe.name] = best
    return costs


def report(title, measured, recorded, tolerances, judged) -> list[str]:
    """Print the lines of one measure; the names of those that are slower."""
    print(f"\n{title}")
    slower = []
    for name, value in measured.items():
        old = recorded.get(name)
        word = verdict(value, old, tolerances[name])
        change = "" if old is None else f"{value / old - 1:+7.1%}"
        print(f"  {name:38}{value:14,.0f}  {change:8} {word if judged else ''}".rstrip())
        if word == "slower" and judged:
            slower.append(name)
    return slower


def slowdown(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE")
    parser.add_argument("--no-instructions", action="store_true")
    parser.add_argument("--slow", type=slowdown, action="append", default=[], metavar="NAME=TIMES")
    parser.add_argument("--count", metavar="CLIENT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    slow = dict(options.slow)
    chosen = [p for p in probes() if not options.words or any(w in p.name for w in options.words)]
    if options.count:
        count(options.count, chosen, slow)
        return 0
    if not chosen:
        parser.error("no probe has these words in its name")
    record = json.loads(options.record.read_text()) if options.record.exists() else {}
    processor, built_by = f"{machine.cpu_model()}, {_native.isa()}", f"{compiler()}, avx2"
    old = record.setdefault("costs", {}).get(processor, {})
    old_counts = record.setdefault("instructions", {}).get(built_by, {})
    costs = measured_costs(chosen, old, slow, patient=options.update)
    tolerances = {p.name: WHOLE_TOLERANCE if p.whole else KERNEL_TOLERANCE for p in chosen}
    title = f"cost on {processor}, in rounds of the yardstick"
    slower = report(title, costs, old, tolerances, bool(old))
    if not old:
        print("  this processor is not recorded: its costs are not judged (--update records them)")
    counts, why = {}, "not asked for"
    if not options.no_instructions:
        counts, why = instructions(options.words, chosen, slow)
    tolerances = dict.fromkeys(counts, INSTRUCTION_TOLERANCE)
    if counts:
        slower += report(
            f"instructions, {built_by}", counts, old_counts, tolerances, bool(old_counts)
        )
    else:
        print(f"\ninstructions: none, {why}")
    if options.update:
        record["costs"][processor] = {**old, **{k: round(v, 1) for k, v in costs.items()}}
        if counts:
            record["instructions"][built_by] = {**old_counts, **counts}
        options.record.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        print(f"\nrecorded in {options.record.name}")
        return 0
    if slower:
        print(f"\nslower: {', '.join(slower)}")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
