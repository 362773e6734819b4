"""Predictions W5: one row, from Python and from code compiled by Numba, and throughput.

pytest benches/bench_predict.py
"""

import machine
import numpy as np
import pytest
import workloads
from checks import check, score
from peers import FastnnInference
from workloads import WORKLOADS

THREADS = sorted({1, machine.n_cores()})


@pytest.mark.parametrize("name", ["W5lat", "W5tiny"])
def test_one_row(benchmark, name):
    one = FastnnInference(WORKLOADS[name], 1)
    row = np.ascontiguousarray(one.X[:1])
    benchmark(one.predict, row)
    check_outputs(one)


@pytest.mark.parametrize("name", ["W5lat", "W5tiny"])
def test_one_row_from_compiled_code(benchmark, record, name):
    """`model.compile()` called by a loop under numba.njit, 1000 times."""
    numba = pytest.importorskip("numba")
    one = FastnnInference(WORKLOADS[name], 1)
    net, rows = one.model.compile(), np.ascontiguousarray(one.X[:1000])
    out = np.empty((len(rows), one.model.plan.n_outputs), np.float32)

    @numba.njit
    def loop(rows, out):
        for i in range(len(rows)):
            net(rows[i], out[i])

    benchmark(loop, rows, out)
    np.testing.assert_allclose(out, one.predict(rows), rtol=1e-5, atol=1e-6)
    if benchmark.stats:
        record(ns_per_row=round(benchmark.stats.stats.median / len(rows) * 1e9, 1))


@pytest.mark.parametrize("n_threads", THREADS, ids="{}-thread".format)
@pytest.mark.parametrize("name", ["W5thr", "W5thrb"])
def test_throughput(benchmark, record, monkeypatch, name, n_threads):
    monkeypatch.setenv("FASTNN_NUM_THREADS", str(n_threads))
    one = FastnnInference(WORKLOADS[name], n_threads)
    peak = machine.multiply_add_gflops()
    benchmark.pedantic(one.run, (0,), rounds=5, warmup_rounds=1)
    check_outputs(one)
    if benchmark.stats:
        gflops = workloads.flop(one.workload) / benchmark.stats.stats.median / 1e9
        record(gflops=round(gflops, 1), share_of_peak=round(gflops / peak / n_threads, 3))


def check_outputs(one):
    check(one.workload, score(one.workload, one.run(0)), 0)
