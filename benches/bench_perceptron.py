"""Error correction W6.

pytest benches/bench_perceptron.py
"""

import machine
import pytest
from checks import check, score
from peers import FastnnPerceptron
from workloads import WORKLOADS

THREADS = sorted({1, machine.n_cores()})


@pytest.mark.parametrize("n_threads", THREADS, ids="{}-thread".format)
@pytest.mark.parametrize("name", ["W6a", "W6b"])
def test_error_correction(benchmark, record, monkeypatch, name, n_threads):
    monkeypatch.setenv("FASTNN_NUM_THREADS", str(n_threads))
    workload = WORKLOADS[name]
    one = FastnnPerceptron(workload, n_threads)
    result = benchmark.pedantic(one.run, (0,), rounds=5, warmup_rounds=1)
    accuracy = score(workload, result)
    check(workload, accuracy, 0)
    record(accuracy=round(accuracy, 4))
