"""fastnn beside its peers: interleaved runs, ratios of medians, each result checked.

    python benches/compare.py                       all of them, about half an hour
    python benches/compare.py W1 W3 W1:float64      some
    python benches/compare.py W1 --peers "JAX scan" scikit-learn --threads 1
    python benches/compare.py --json results.json   keep the figures (what is there already stays)
    python benches/compare.py --table results.json  the tables of benches/README.md from them

Each (peer, threads) is a process of its own, so that thread pools cannot disturb each other; all
of a workload are started and warmed up first and then run in turn, so that a noisy minute hits
everyone. A run is a whole training, from parameters to parameters; compile and import times are
left out. Where a peer's result is not one of the same work, its row says so and has no figure.
FASTNN_BENCH_PRIORITY=-15 (as root) holds other programs off during the runs, and only then.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import machine
import numpy as np
import peers
import workloads
from checks import check, score
from workloads import WORKLOADS, ErrorCorrection, Inference, source

WORKLOAD_SECONDS = 45.0  # of runs, for all workers of a workload together
MIN_ROUNDS, MAX_ROUNDS = 3, 15
HOPELESS = 20  # so many times as long as the fastest: one more run, and that is it
SHORT_SECONDS = 0.1  # shorter runs are done three times whenever it is their turn
POOLS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "FASTNN")
LATENCY_CALLS = 500 if workloads.TINY else 5000
PRIORITY = int(os.environ.get("FASTNN_BENCH_PRIORITY", "0"))  # nice level of the runs
EVERYTHING = [*WORKLOADS, "W1:float64", "W2:float64", "W3:float64"]


# One worker ---------------------------------------------------------------------------------------


def work(workload, name, n_threads, dtype):
    """Answer 'run SEED' lines on standard input with JSON lines on standard output."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print
    if n_threads == 1 and name.startswith("JAX") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # nothing else holds XLA to one
    try:
        peer = peers.find(workload, n_threads, dtype)[name](workload, n_threads, dtype)
        print("{}", file=out)
        for line in sys.stdin:
            seed = int(line)
            print(json.dumps(one_run(peer, seed, dtype)), file=out)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:200]}), file=out)
        raise


def give_way(level):
    """Set the nice level of every thread: below 0 pushes other programs aside, and needs root."""
    if not PRIORITY:
        return
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread), level)


def one_run(peer, seed, dtype):
    workload = peer.workload
    give_way(PRIORITY)
    if isinstance(workload, Inference) and workload.one_row:
        return latency(peer)
    start = time.perf_counter()
    result = peer.run(seed)
    seconds = time.perf_counter() - start
    give_way(0)
    answer = {"seconds": seconds, "score": score(workload, result, dtype)}
    if peer.name == "fastnn":
        answer["peak"] = machine.multiply_add_gflops(dtype, seconds=0.02)
    return answer


def latency(peer):
    """Median and 99th percentile of single calls on different rows."""
    rows = [np.ascontiguousarray(peer.X[i : i + 1]) for i in range(len(peer.X))]
    predict, clock = peer.predict, time.perf_counter_ns
    result = np.concatenate([np.atleast_2d(predict(row)) for row in rows])
    times = []
    for k in range(LATENCY_CALLS):
        row = rows[k % len(rows)]
        start = clock()
        predict(row)
        times.append(clock() - start)
    give_way(0)
    times.sort()
    return {
        "seconds": times[len(times) // 2] / 1e9,
        "p99": times[len(times) * 99 // 100] / 1e9,
        "score": score(peer.workload, result),
    }


class Worker:
    """The other end of `work`."""

    def __init__(self, workload, name, n_threads, dtype):
        self.name, self.n_threads = name, n_threads
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
        env.update({f"{pool}_NUM_THREADS": str(n_threads) for pool in POOLS})
        if name.startswith("JAX"):
            del env["OMP_NUM_THREADS"]
        command = [sys.executable, __file__, workload.name, "--worker", name]
        command += ["--threads", str(n_threads), "--dtype", dtype]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
        )
        self.runs: list[dict] = []
        self.error = self.answer().get("error")

    def answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": f"died with {self.process.wait()}"}

    def run(self, seed):
        print(seed, file=self.process.stdin, flush=True)
        answer = self.answer()
        self.error = answer.get("error")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# All of them, in turn -----------------------------------------------------------------------------


def measure(workload, wanted, thread_counts, dtype, seconds):
    """Rows of results, in the order of the peers."""
    workers = []
    for n_threads in thread_counts:
        for name in peers.find(workload, n_threads, dtype):
            if wanted and name not in wanted and name != "fastnn":
                continue
            worker = Worker(workload, name, n_threads, dtype)
            if not worker.error:
                worker.run(0)  # warms up
            if not worker.error:
                start = time.perf_counter()
                worker.first = worker.run(0)  # is checked
                worker.length = time.perf_counter() - start
            if not worker.error:
                try:
                    check(workload, worker.first["score"], 0)
                except AssertionError as error:
                    worker.error = str(error)
            workers.append(worker)
    plan_rounds([worker for worker in workers if not worker.error], seconds)
    for seed in range(1, MAX_ROUNDS + 1):
        for worker in workers:
            if worker.error or seed > worker.n_rounds:
                continue
            for _ in range(3 if worker.length < SHORT_SECONDS else 1):
                if not worker.error:
                    worker.runs.append(worker.run(seed))
    rows = [result(worker) for worker in workers]
    for worker in workers:
        worker.close()
    return rows


def plan_rounds(workers, seconds):
    """Each gets its share of the time; those that cannot win get less."""
    lengths = [worker.length for worker in workers]
    for worker, length in zip(workers, lengths, strict=True):
        n = int(seconds / len(workers) / max(length, 1e-3))
        worker.n_rounds = min(MAX_ROUNDS, max(MIN_ROUNDS, n))
        if length > HOPELESS * min(lengths):
            worker.n_rounds = max(1, min(n, MIN_ROUNDS))


def result(worker):
    row = {"peer": worker.name, "threads": worker.n_threads}
    if worker.error:
        return {**row, "error": worker.error}
    row["all"] = [run["seconds"] for run in worker.runs]
    row["seconds"], row["min"] = statistics.median(row["all"]), min(row["all"])
    row["score"] = worker.first["score"]
    if "p99" in worker.first:
        row["p99"] = statistics.median(run["p99"] for run in worker.runs)
    if "peak" in worker.first:
        row["peak"] = max(run["peak"] for run in worker.runs)
    return row


def best(rows, name):
    """The fastest of a peer's rows."""
    timed = [row for row in rows if row["peer"] == name and "seconds" in row]
    return min(timed, key=lambda row: row["seconds"], default=None)


def show(workload, dtype, rows):
    """The rows of one workload as lines of text."""
    ours = best(rows, "fastnn")
    score_name = {Inference: "error", ErrorCorrection: "accuracy"}.get(type(workload), "loss")
    data = "" if isinstance(workload, Inference) else f", {source(workload.data)}"
    print(f"\n{workload.name} {dtype}{data}")
    for row in sorted(rows, key=lambda row: row.get("seconds", 1e9)):
        who = f"  {row['peer']:14}{row['threads']} thread{'s' if row['threads'] > 1 else ' '}"
        if "error" in row:
            print(f"{who}  {row['error']}")
            continue
        ratio = f"{row['seconds'] / ours['seconds']:7.2f} x" if ours else ""
        tail = f"  p99 {text(row['p99'])}" if "p99" in row else ""
        print(f"{who} {text(row['seconds']):>10}{ratio}  {score_name} {row['score']:.4g}{tail}")


def text(seconds):
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    return ""


def tables(results):
    """The results of `--json` as the tables of benches/README.md."""
    heads = ["", "1 thread", "of peak", "2 threads", "best peer", "fastnn is faster"]
    print(f"| {' | '.join([*heads, 'scikit-learn', 'p99/p50'])} |\n|{'---|' * 8}")
    for entry in results["workloads"]:
        print(f"| {' | '.join(summary(entry))} |")
    rows = [row for entry in results["workloads"] for row in entry["rows"]]
    names = [name for name in dict.fromkeys(row["peer"] for row in rows) if name != "fastnn"]
    print(f"\n| times fastnn's time | {' | '.join(names)} |")
    print(f"|---|{'---|' * len(names)}")
    for entry in results["workloads"]:
        ours = best(entry["rows"], "fastnn")
        cells = []
        for name in names:
            row = best(entry["rows"], name)
            cells.append(ratio(row["seconds"] / ours["seconds"]) if row else "")
        print(f"| {' | '.join([label(entry), *cells])} |")


def label(entry):
    return entry["workload"] + (" float64" if entry["dtype"] == "float64" else "")


def summary(entry):
    """The cells of a workload: ratios of medians, and of the fastest runs in brackets."""
    rows = entry["rows"]
    ours = best(rows, "fastnn")
    alone, together = (
        next((r for r in rows if r["peer"] == "fastnn" and r["threads"] == n), None) for n in (1, 2)
    )
    share = ""
    if alone and "peak" in alone:
        share = f"{entry['flop'] / alone['min'] / 1e9 / alone['peak']:.0%}"
    cells = [label(entry), text(alone["seconds"]) if alone else "", share]
    cells.append(text(together["seconds"]) if together else "")
    others = {row["peer"]: best(rows, row["peer"]) for row in rows if row["peer"] != "fastnn"}
    timed = [row for row in others.values() if row]
    if timed:
        peer = min(timed, key=lambda row: row["seconds"])
        least = min(row["min"] for row in rows if "min" in row and row["peer"] != "fastnn")
        own_least = min(row["min"] for row in rows if "min" in row and row["peer"] == "fastnn")
        cells.append(f"{peer['peer']}, {text(peer['seconds'])}")
        cells.append(f"{ratio(peer['seconds'] / ours['seconds'])} ({ratio(least / own_least)})")
    else:
        cells += ["", ""]
    sklearn = others.get("scikit-learn")
    cells.append(ratio(sklearn["seconds"] / ours["seconds"]) if sklearn else "")
    cells.append(f"{ours['p99'] / ours['seconds']:.1f}" if "p99" in ours else "")
    return cells


def ratio(value):
    return f"{value:.3g} ×" if value < 100 else f"{value:.0f} ×"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(EVERYTHING))
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--seconds", type=float, default=WORKLOAD_SECONDS, help="for a workload")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print its table and end")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        tables(json.loads(options.table.read_text()))
        return
    chosen = [named(name, options.dtype) for name in options.workloads or EVERYTHING]
    thread_counts = options.threads or sorted({1, machine.n_cores()})
    if options.worker:
        work(chosen[0][0], options.worker, thread_counts[0], options.dtype)
        return
    print(", ".join(f"{key} {value}" for key, value in machine.info().items()))
    for workload, dtype in chosen:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        rows = measure(workload, options.peers, thread_counts, dtype, options.seconds)
        show(workload, dtype, rows)
        sys.stdout.flush()
        if options.json:
            keep(options.json, workload, dtype, rows, load)


def named(name, dtype):
    """("W1:float64") as workload and dtype."""
    name, _, own_dtype = name.partition(":")
    if name not in WORKLOADS:
        sys.exit(f"there is no workload {name!r}: take some of {', '.join(EVERYTHING)}")
    return WORKLOADS[name], own_dtype or dtype


def keep(path, workload, dtype, rows, load):
    results = json.loads(path.read_text()) if path.exists() else {"workloads": []}
    results["machine"] = machine.info()
    same = (workload.name, dtype)
    results["workloads"] = [e for e in results["workloads"] if (e["workload"], e["dtype"]) != same]
    results["workloads"].append(
        {
            "workload": workload.name,
            "dtype": dtype,
            "data": "" if isinstance(workload, Inference) else source(workload.data),
            "flop": workloads.flop(workload),
            "load": load,
            "rows": rows,
        }
    )
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
