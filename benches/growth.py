"""How time and memory grow, and what zeros are worth.

    python benches/growth.py rows                  epoch time against rows, to 10^7 in a mapped file
    python benches/growth.py widths                time of a step against the width of its layers
    python benches/growth.py memory                peak memory above X and y, for each workload
    python benches/growth.py zeros                 images with four fifths zeros, and without any
    python benches/growth.py --plot growth.png     all of them; the first two as a picture, too

`--json FILE` keeps the figures. Rows go to `--rows` (10,000,000: a file of 1.2 GB below --folder,
removed at the end).
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
from peers import Fastnn
from workloads import WORKLOADS

import fastnn

N_FEATURES, LAYERS = 30, (30, 64, 32, 2)
WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
MIB = 1 << 20


# Rows ---------------------------------------------------------------------------------------------


def rows(options):
    """Seconds of an epoch of the net of W2 over the first n rows of one mapped file."""
    largest = options.rows
    counts = [n for n in 10 ** np.arange(3, 10) if n < largest] + [largest]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder, "X.npy")
        write_rows(path, largest)
        X = np.load(path, mmap_mode="r")
        y = (np.arange(largest) * 7919 % 101 < 50).astype(np.int64)
        found = []
        for n in map(int, counts):
            trainer = small_trainer()
            trainer.fit(X[:n], y[:n], epochs=1)  # also brings the file into memory
            times = []
            for _ in range(max(1, min(5, 2_000_000 // n))):
                start = time.perf_counter()
                trainer.fit(X[:n], y[:n], epochs=1)
                times.append(time.perf_counter() - start)
            found.append({"rows": n, "seconds": min(times), "ns_per_row": 1e9 * min(times) / n})
            print(f"{n:>12,} rows {min(times):10.4f} s {found[-1]['ns_per_row']:8.0f} ns a row")
        del X
    return found


def write_rows(path, n):
    block = np.random.default_rng(0).standard_normal((100_000, N_FEATURES), np.float32)
    X = np.lib.format.open_memmap(path, "w+", np.float32, (n, N_FEATURES))
    for start in range(0, n, len(block)):
        X[start : start + len(block)] = block[: n - start]


def small_trainer():
    model = fastnn.MLP(LAYERS, activation="relu", output="softmax", dtype="float32", seed=0)
    return fastnn.Trainer(model, batch_size=128, seed=0)


# Widths -------------------------------------------------------------------------------------------


def widths(options):
    """Seconds of a step through three layers w-w-w-w, batch 64, Adam, and its GFLOP/s."""
    found = []
    rng = np.random.default_rng(0)
    for width, n_threads in itertools.product(WIDTHS, sorted({1, machine.n_cores()})):
        X = rng.standard_normal((64 * 16, width), np.float32)
        y = rng.standard_normal((64 * 16, width), np.float32)
        model = fastnn.MLP([width] * 4, activation="relu", dtype="float32", seed=0)
        trainer = fastnn.Trainer(model, optimizer="adam", batch_size=64, n_threads=n_threads)
        flop = 2.0 * 64 * width**2 * (3 * 3 - 1)
        epochs = max(1, int(2e9 / flop / 16))
        peak = machine.multiply_add_gflops(seconds=0.02)
        trainer.fit(X, y, epochs=epochs)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            trainer.fit(X, y, epochs=epochs)
            times.append((time.perf_counter() - start) / epochs / 16)
        best = min(times)
        gflops = flop / best / 1e9
        found.append(
            {
                "width": width,
                "threads": n_threads,
                "step_seconds": best,
                "gflops": gflops,
                "share_of_peak": gflops / peak / n_threads,
            }
        )
        share = found[-1]["share_of_peak"]
        print(f"width {width:5} threads {n_threads} {1e6 * best:10.1f} µs a step {share:7.0%}")
    return found


# Memory -------------------------------------------------------------------------------------------


def memory(options):
    """MiB at the peak of a fit above what was there before it, beside the parameters' state."""
    found = []
    for name in ("W1", "W1b", "W1c", "W2", "W3"):
        command = [sys.executable, __file__, "one-memory", "--workload", name]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(run.stdout))
        print(
            "{workload:4} {threads} threads: {peak_mib:6.1f} MiB above X and y, "
            "state {state_mib:.1f} MiB, the rest {rest_mib:.1f}".format(**found[-1])
        )
    return found


def one_memory(options):
    workload = WORKLOADS[options.workload]
    one = Fastnn(workload, machine.n_cores())
    small = one.trainer(0, one.n_threads)
    small.fit(one.X[:256], one.y[:256], epochs=1)  # code and tables are in memory now
    del small
    trainer = one.trainer(0, one.n_threads)
    sizes = workload.layer_sizes
    n = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    moments = 2 if workload.optimizer == "adam" else 1
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again here
    before = status("VmRSS")
    trainer.fit(one.X, one.y, epochs=1)
    peak = status("VmHWM") - before
    # Weights exist already; moments, and a copy of everything to go back to, are new.
    state = n * np.dtype(one.dtype).itemsize * (1 + moments)
    figures = {"workload": workload.name, "threads": one.n_threads}
    figures |= {"peak_mib": peak / MIB, "state_mib": state / MIB, "rest_mib": (peak - state) / MIB}
    print(json.dumps(figures))


def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(field)


# Zeros --------------------------------------------------------------------------------------------


def zeros(options):
    """W1z and W1d in turn: the same images, four fifths zeros and with 2^-20 in their place."""
    contenders = {
        (name, n): Fastnn(WORKLOADS[name], n)
        for name in ("W1z", "W1d", "W1")
        for n in sorted({1, machine.n_cores()})
    }
    times = {key: [] for key in contenders}
    for seed in range(8):
        for key, one in contenders.items():
            start = time.perf_counter()
            one.run(seed)
            times[key].append(time.perf_counter() - start)
    found = []
    for n in sorted({1, machine.n_cores()}):
        dense, sparse, fashion = (times[name, n][1:] for name in ("W1d", "W1z", "W1"))
        ratios = [a / b for a, b in zip(dense, sparse, strict=True)]
        found.append(
            {
                "threads": n,
                "dense_seconds": statistics.median(dense),
                "zeros_seconds": statistics.median(sparse),
                "half_zeros_seconds": statistics.median(fashion),
                "ratio": statistics.median(ratios),
                "ratio_of_minima": min(dense) / min(sparse),
            }
        )
        print(
            "threads {threads}: dense {dense_seconds:.3f} s, four fifths zeros "
            "{zeros_seconds:.3f} s, {ratio:.2f} times as fast".format(**found[-1])
        )
    return found


# Picture ------------------------------------------------------------------------------------------


def plot(results, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    n = np.array([row["rows"] for row in results["rows"]])
    seconds = np.array([row["seconds"] for row in results["rows"]])
    left.loglog(n, seconds, "o-", label="measured")
    left.loglog(n, seconds[-1] * n / n[-1], "--", color="gray", label="proportional")
    left.set(xlabel="rows", ylabel="seconds an epoch", title="30-64-32-2, memory-mapped file")
    left.legend()
    for threads in sorted({row["threads"] for row in results["widths"]}):
        some = [row for row in results["widths"] if row["threads"] == threads]
        w = np.array([row["width"] for row in some])
        step = np.array([row["step_seconds"] for row in some])
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        (line,) = right.loglog(w, 1e6 * step, "o-", label=label)
        flop = w.astype(float) ** 2
        right.loglog(w, 1e6 * step[-1] * flop / flop[-1], "--", color=line.get_color(), alpha=0.5)
    right.set(xlabel="width", ylabel="µs a step", title="w-w-w-w, batch 64 (dashed: operations)")
    right.legend()
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


KINDS = {"rows": rows, "widths": widths, "memory": memory, "zeros": zeros}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="for the file (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--workload", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kinds == ["one-memory"]:
        one_memory(options)
        return
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"there is no {', '.join(sorted(unknown))}: take some of {', '.join(KINDS)}")
    results = {"machine": machine.info()}
    if options.json and options.json.exists():
        results |= json.loads(options.json.read_text())
    for kind in options.kinds or KINDS:
        print(f"\n{kind}: {KINDS[kind].__doc__}")
        results[kind] = KINDS[kind](options)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
