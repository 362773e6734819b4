"""The same work in other packages, one after the other, each checked to be the same work.

    pytest benches/bench_peers.py -k W1
    pytest benches/bench_peers.py -k "W3 and JAX"

What is not installed is skipped. For ratios take `python benches/compare.py`: it runs all in turn
and each in a process of its own, so that neither a noisy minute nor another's threads decide.
"""

import machine
import numpy as np
import peers
import pytest
from checks import check, score
from workloads import WORKLOADS, Inference, Training

THREADS = machine.n_cores()
CASES = [
    (workload.name, cls.name)
    for workload in WORKLOADS.values()
    for cls in dict.fromkeys(peers.REGISTRY)
    if type(workload) is cls.kind and (not cls.only or workload.name in cls.only)
]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(("name", "peer"), CASES, ids=[" ".join(case) for case in CASES])
def test_peer(benchmark, record, name, peer):
    workload = WORKLOADS[name]
    (cls,) = (c for c in peers.REGISTRY if c.name == peer and is_for(c, workload))
    pytest.importorskip(cls.needs)
    one = cls(workload, 1 if cls.one_thread_only else THREADS)
    if isinstance(workload, Inference) and workload.one_row:
        benchmark(one.predict, np.ascontiguousarray(one.X[:1]))
        result = np.concatenate([np.atleast_2d(one.predict(one.X[i : i + 1])) for i in range(256)])
    else:
        result = benchmark.pedantic(one.run, (0,), rounds=3, warmup_rounds=1)
    value = score(workload, result)
    record(**{"loss" if isinstance(workload, Training) else "score": float(f"{value:.5g}")})
    check(workload, value, 0)


def is_for(cls, workload):
    return type(workload) is cls.kind and (not cls.only or workload.name in cls.only)
