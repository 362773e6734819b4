"""Error correction W6.

pytest benches/bench_perceptron.py
"""

import pytest
from checks import check, score
from peers import FastnnPerceptron
from workloads import WORKLOADS


@pytest.mark.parametrize("name", ["W6a", "W6b"])
def test_error_correction(benchmark, record, name):
    workload = WORKLOADS[name]
    result = benchmark.pedantic(FastnnPerceptron(workload, 1).run, (0,), rounds=5, warmup_rounds=1)
    accuracy = score(workload, result)
    check(workload, accuracy, 0)
    record(accuracy=round(accuracy, 4))
