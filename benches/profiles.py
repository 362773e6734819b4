"""Where the time of each workload goes, and how short it could be.

    python benches/profiles.py                 every workload, one thread
    python benches/profiles.py W1 W1b --threads 2
    python benches/profiles.py --markdown      the table of benches/README.md

Samples are taken by Linux's perf from the optimized build with its names left in (compiled into a
temporary folder; a clone is needed), and told apart by the function that each was in, with what
the compiler inlined undone. Shares are of the process's own time on the processor, so they hold on
a busy machine, too.

The floor is the larger of two times: of the products at the multiply-add peak measured in the same
minute, plus the optimizer's updates at the speed of its kernel on parameters in the first cache;
and of reading the rows once an epoch at the speed of a kernel that only reads.
"""

import argparse
import collections
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import machine
import numpy as np
import workloads
from kernels import Kernels
from peers import Fastnn, FastnnInference, FastnnPerceptron
from workloads import WORKLOADS, ErrorCorrection, Inference, Training

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CHOSEN = [name for name in WORKLOADS if name not in ("W1z", "W1d", "W7")]

# The first that some frame of a sample matches, by file and function, says what the time was for.
# Tiles of products are called through tables; those that walk down the rows make weight gradients.
# Where zeros are skipped, tiles of panels beside each other do, and deltas of hidden layers; in a
# prediction, one row.
RULES = [
    ("yardstick", r"^peak\.tmpl\.h"),
    ("update", r"^optimizers?\."),
    ("loss", r"^loss(es)?\."),
    ("activation", r"^activations?\.|^vmath\.tmpl\.h"),
    ("packing", r"^tile\.tmpl\.h .*pack|^zeros\.tmpl\.h (keep|kept_cols)"),
    (
        "gradient",
        r"^(dense|tile|zeros)\.tmpl\.h (tile_\d+_\d+_[236]|kept_tile_beside|\w*gradient)",
    ),
    ("forward and back", r"^(dense|tile|zeros)\.tmpl\.h"),
    ("finite check", r"^gather\.c fnn_first_bad_row"),
    ("gather", r"^gather\.c"),
    ("orders", r"^shuffle\.c|^random\.tmpl\.h"),
    ("barriers", r"^threads\.c"),
    ("perceptron", r"^perceptron\.tmpl\.h"),
    ("small step", r"^small\.tmpl\.h"),
    ("other kernels", r"\.tmpl\.h|^simd\.h|^dispatch\.c|^isa_"),
    ("driver", ""),
]
OUTSIDE = ("Python, libc", "system")


# The process that is watched ----------------------------------------------------------------------


def worker(name, n_threads, seconds):
    """Say where the extension lies, wait for a word, then do the work for some time."""
    os.environ["FASTNN_NUM_THREADS"] = str(n_threads)
    workload = WORKLOADS[name]
    kind = {Training: Fastnn, Inference: FastnnInference, ErrorCorrection: FastnnPerceptron}
    one = kind[type(workload)](workload, n_threads)
    if isinstance(workload, Inference) and workload.one_row:
        row = np.ascontiguousarray(one.X[:1])

        def run(seed):
            for _ in range(1000):
                one.predict(row)

        calls = 1000
    else:
        run, calls = one.run, 1
    run(0)
    maps = Path("/proc/self/maps").read_text()
    (line, *_) = [line for line in maps.splitlines() if "_native" in line]
    peak = machine.multiply_add_gflops(seconds=0.1)
    print(json.dumps({"base": int(line.split("-")[0], 16), "path": line.split()[-1]}), flush=True)
    sys.stdin.readline()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        start = time.perf_counter()
        run(len(times))
        times.append((time.perf_counter() - start) / calls)
    print(json.dumps({"seconds": min(times), "peak": peak}), flush=True)
    sys.stdin.readline()  # what comes after this is not watched


# Sampling -----------------------------------------------------------------------------------------


def build(folder):
    env = {**os.environ, "FASTNN_BUILD_SYMBOLS": "1"}
    command = [sys.executable, "setup.py", "-q", "build", "--build-lib", folder / "lib"]
    command += ["--build-temp", folder / "temp"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    return folder / "lib"


def profile(lib, name, n_threads, seconds):
    """({column: share}, what the worker measured)."""
    command = [sys.executable, __file__, name, "--worker", "--threads", str(n_threads)]
    command += ["--seconds", str(seconds)]
    env = {**os.environ, "PYTHONPATH": f"{lib}"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        place = json.loads(process.stdout.readline())
        data = Path(folder, "perf.data")
        watch = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-o", data]
        watch += ["-p", str(process.pid)]
        with subprocess.Popen(watch, stderr=subprocess.DEVNULL) as perf:
            time.sleep(0.5)  # perf has to be there first
            print("go", file=process.stdin, flush=True)
            measured = json.loads(process.stdout.readline())
            perf.send_signal(signal.SIGINT)
            perf.wait()
            process.stdin.close()
        script = ["perf", "script", "-i", data, "-F", "ip,dso"]
        run = subprocess.run(script, capture_output=True, text=True, check=True)
    shares = classify(run.stdout, place)
    if isinstance(WORKLOADS[name], Inference) and "gradient" in shares:
        shares["forward and back"] = shares.pop("gradient") + shares.get("forward and back", 0)
    return shares, measured


def classify(samples, place):
    counts, addresses = collections.Counter(), collections.Counter()
    for line in samples.splitlines():
        match = re.match(r"\s*([0-9a-f]+)\s+\((.*)\)", line)
        if not match:
            continue
        if match[2] == place["path"]:
            addresses[int(match[1], 16) - place["base"]] += 1
        else:
            system = match[2].startswith("[")
            counts[OUTSIDE[system]] += 1
    for address, frames in frames_of(place["path"], list(addresses)).items():
        counts[column_of(frames)] += addresses[address]
    del counts["yardstick"]
    return {column: count / counts.total() for column, count in counts.items()}


def column_of(frames):
    return next(c for c, pattern in RULES if any(re.search(pattern, frame) for frame in frames))


def frames_of(path, addresses):
    """The inlined functions around each address, as 'file function'."""
    run = subprocess.run(
        ["addr2line", "-a", "-i", "-f", "-e", path],
        input="\n".join(map(hex, addresses)),
        capture_output=True,
        text=True,
        check=True,
    )
    found, frames = {}, []
    lines = iter(run.stdout.splitlines())
    for line in lines:
        if re.fullmatch(r"0x[0-9a-f]+", line):
            frames = found[int(line, 16)] = []
        else:  # a function, and its file on the next line
            file = next(lines).partition(":")[0].rpartition("/")[2]
            frames.append(f"{file} {line}")
    return found


# The floor ----------------------------------------------------------------------------------------


def floor_seconds(workload, peak, n_threads):
    """(products, updates, reading the rows), each in seconds."""
    products = workloads.flop(workload) / (peak * 1e9 * n_threads)
    if isinstance(workload, Inference):
        n_bytes = 0 if workload.one_row else 4.0 * workloads.N_IMAGES * workload.layer_sizes[0]
        return products, 0.0, n_bytes / read_bytes_per_second() / n_threads
    X, _ = workloads.load(workload.data)
    reading = workload.epochs * X.nbytes / read_bytes_per_second() / n_threads
    if X.nbytes < 1 << 20:
        reading = 0.0  # the rows stay in the cache
    if isinstance(workload, ErrorCorrection):
        return products, 0.0, reading
    sizes = workload.layer_sizes
    n_parameters = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    n_steps = -(-len(X) // workload.batch_size) * workload.epochs
    optimizer = "adam" if workload.optimizer == "adam" else "sgd_momentum"
    return products, n_steps * n_parameters * update_seconds(optimizer) / n_threads, reading


def fastest(calls, n=50):
    """Of each call; they take turns, so that a slow minute is one for all."""
    best = [float("inf")] * len(calls)
    for _ in range(n):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def update_seconds(optimizer):
    """Of one parameter, where all lies in the first cache."""
    few, many = 512, 2048  # their difference is without the call
    few_seconds, many_seconds = fastest(
        [Kernels().update(optimizer, n).call for n in (few, many)], 2000
    )
    return (many_seconds - few_seconds) / (many - few)


def read_bytes_per_second():
    """Of memory, by a kernel that looks at every number and does next to nothing else."""
    kernels = Kernels()
    values = np.ones(1 << 26, np.float32)
    look = kernels.slots["all_finite"]
    return values.nbytes / fastest([lambda: look(values.size, values.ctypes.data)], 5)[0]


# Report -------------------------------------------------------------------------------------------


def text(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def show(name, n_threads, shares, measured, markdown):
    products, updates, reading = floor_seconds(WORKLOADS[name], measured["peak"], n_threads)
    floor = max(products + updates, reading)
    seconds = measured["seconds"]
    parts = sorted(shares.items(), key=lambda item: -item[1])
    goes = ", ".join(f"{column} {share:.0%}" for column, share in parts if share >= 0.01)
    of = f"{text(products)} + {text(updates)}" if updates else text(products)
    cells = [name, str(n_threads), text(seconds), text(floor), of, text(reading), goes]
    if markdown:
        print(f"| {' | '.join(cells)} |", flush=True)
    else:
        print(f"{name:7}{n_threads} threads {cells[2]:>8}, floor {cells[3]}: {goes}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(CHOSEN))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.workloads[0], options.threads, options.seconds)
        return
    for tool in ("perf", "addr2line"):
        if not shutil.which(tool):
            sys.exit(f"profiles.py needs {tool} (Debian: linux-perf, binutils)")
    if options.markdown:
        print("| | threads | time | floor | products + updates | reading | where the time goes |")
        print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        lib = build(Path(folder))
        for name in options.workloads or CHOSEN:
            shares, measured = profile(lib, name, options.threads, options.seconds)
            show(name, options.threads, shares, measured, options.markdown)


if __name__ == "__main__":
    main()
