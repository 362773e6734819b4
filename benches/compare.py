"""fastnn beside its peers: interleaved runs, medians and ratios, each result checked.

    python benches/compare.py                          every workload, every peer installed
    python benches/compare.py W1 W3 --peers "JAX scan" scikit-learn --threads 1
    python benches/compare.py W1 W2 W3 --dtype float64
    python benches/compare.py --json results.json      keep the figures
    python benches/compare.py --table results.json     the table of benches/README.md from them

Each (peer, threads) is a process of its own, so that thread pools cannot disturb each other; all
of a workload are started and warmed up first and then run in turn, so that a noisy minute hits
everyone. A run is a whole training, from parameters to parameters; compile and import times are
left out. Where a peer's result is not one of the same work, its row says so and has no figure.
"""

import argparse
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
from checks import check, score
from workloads import WORKLOADS, ErrorCorrection, Inference, source

HERE = Path(__file__).resolve().parent
LONG_SECONDS = 4.0  # runs that take longer get two rounds,
SHORT_SECONDS = 0.1  # shorter ones three runs each time it is their turn
POOLS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "FASTNN")
LATENCY_CALLS = 5000


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


def one_run(peer, seed, dtype):
    workload = peer.workload
    if isinstance(workload, Inference) and workload.one_row:
        return latency(peer)
    start = time.perf_counter()
    result = peer.run(seed)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "score": score(workload, result, dtype)}


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


def measure(workload, wanted, thread_counts, dtype, n_rounds):
    """Rows of results, fastnn first."""
    workers = []
    for n_threads in thread_counts:
        for name in peers.find(workload, n_threads, dtype):
            if wanted and name not in wanted and name != "fastnn":
                continue
            worker = Worker(workload, name, n_threads, dtype)
            if not worker.error:
                worker.first = worker.run(0)  # warms up, and is checked
            if not worker.error:
                try:
                    check(workload, worker.first["score"], 0)
                except AssertionError as error:
                    worker.error = str(error)
            workers.append(worker)
    for seed in range(1, n_rounds + 1):
        for worker in workers:
            if worker.error or (seed > 2 and worker.first["seconds"] > LONG_SECONDS):
                continue
            for _ in range(3 if worker.first["seconds"] < SHORT_SECONDS else 1):
                worker.runs.append(worker.run(seed))
    rows = []
    for worker in workers:
        row = {"peer": worker.name, "threads": worker.n_threads}
        if worker.error:
            row["error"] = worker.error
        else:
            row["seconds"] = statistics.median(run["seconds"] for run in worker.runs)
            row["all"] = [run["seconds"] for run in worker.runs]
            row["score"] = worker.first["score"]
            if "p99" in worker.first:
                row["p99"] = statistics.median(run["p99"] for run in worker.runs)
        rows.append(row)
        worker.close()
    return rows


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


def table(results):
    """The results of `--json` as the table of benches/README.md."""
    rows = [row for entry in results["workloads"] for row in entry["rows"]]
    names = [name for name in dict.fromkeys(row["peer"] for row in rows) if name != "fastnn"]
    print(f"| | fastnn, 1 thread | fastnn, best | {' | '.join(names)} |")
    print(f"|---|---|---|{'---|' * len(names)}")
    for entry in results["workloads"]:
        rows = entry["rows"]
        ours = best(rows, "fastnn")
        alone = next((r for r in rows if r["peer"] == "fastnn" and r["threads"] == 1), ours)
        peer_rows = [best(rows, name) for name in names]
        fastest = min((r["seconds"] for r in peer_rows if r), default=0)
        cells = []
        for row in peer_rows:
            ratio = f"{row['seconds'] / ours['seconds']:.2g} ×" if row else ""
            cells.append(f"**{ratio}**" if row and row["seconds"] == fastest else ratio)
        label = entry["workload"] + (" float64" if entry["dtype"] == "float64" else "")
        figures = [label, text(alone["seconds"]), text(ours["seconds"]), *cells]
        print(f"| {' | '.join(figures)} |")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, metavar="N")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print its table and end")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.table:
        table(json.loads(options.table.read_text()))
        return
    chosen = [WORKLOADS[name] for name in options.workloads or WORKLOADS]
    thread_counts = options.threads or sorted({1, machine.n_cores()})
    if options.worker:
        work(chosen[0], options.worker, thread_counts[0], options.dtype)
        return
    print(", ".join(f"{key} {value}" for key, value in machine.info().items()))
    for workload in chosen:
        rows = measure(workload, options.peers, thread_counts, options.dtype, options.rounds)
        show(workload, options.dtype, rows)
        if options.json:
            keep(options.json, workload, options.dtype, rows)


def keep(path, workload, dtype, rows):
    results = json.loads(path.read_text()) if path.exists() else {"workloads": []}
    results["machine"] = machine.info()
    same = (workload.name, dtype)
    results["workloads"] = [e for e in results["workloads"] if (e["workload"], e["dtype"]) != same]
    results["workloads"].append({"workload": workload.name, "dtype": dtype, "rows": rows})
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
