"""Whole trainings W1 to W4, each checked against the loss of the plain NumPy version.

pytest benches/bench_epoch.py
pytest benches/bench_epoch.py -k "W1 and 1-thread"
"""

import machine
import pytest
import workloads
from checks import check, score
from peers import Fastnn
from workloads import WORKLOADS

THREADS = sorted({1, machine.n_cores()})


@pytest.mark.parametrize("n_threads", THREADS, ids="{}-thread".format)
@pytest.mark.parametrize("name", ["W1", "W1b", "W1c", "W1z", "W1d", "W2", "W3", "W4a", "W4b"])
def test_float32(benchmark, record, name, n_threads):
    train(benchmark, record, name, n_threads, "float32")


@pytest.mark.parametrize("n_threads", THREADS, ids="{}-thread".format)
@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
def test_float64(benchmark, record, name, n_threads):
    train(benchmark, record, name, n_threads, "float64")


def train(benchmark, record, name, n_threads, dtype):
    workload = WORKLOADS[name]
    one = Fastnn(workload, n_threads, dtype)
    peak = machine.multiply_add_gflops(dtype)
    result = benchmark.pedantic(one.run, (0,), rounds=5, warmup_rounds=1)
    loss = score(workload, result, dtype)
    check(workload, loss, 0)
    record(loss=round(loss, 5))
    if benchmark.stats:
        gflops = workloads.flop(workload) / benchmark.stats.stats.median / 1e9
        record(gflops=round(gflops, 2), share_of_peak=round(gflops / peak / n_threads, 3))
