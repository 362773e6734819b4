"""Many models at once, W7: `fastnn.train_many` beside a loop of `fit`.

pytest benches/bench_many.py
"""

import machine
import numpy as np
import pytest
from checks import check, score
from peers import Fastnn, parameters_of
from workloads import WORKLOADS

W7 = WORKLOADS["W7"]


@pytest.mark.parametrize("n_threads", sorted({1, machine.n_cores()}), ids="{}-thread".format)
def test_train_many(benchmark, n_threads):
    many = Fastnn(W7, n_threads)
    nets = benchmark.pedantic(many.run, (0,), rounds=5, warmup_rounds=1)
    check(W7, score(W7, nets), 0)
    trainer = many.trainer(W7.n_models - 1, 1)
    trainer.fit(many.X, many.y, epochs=W7.epochs)
    for (W, b), (V, a) in zip(nets[-1], parameters_of(trainer.model), strict=True):
        assert np.array_equal(W, V)  # the same bits as alone
        assert np.array_equal(b, a)


def test_loop(benchmark):
    many = Fastnn(W7, 1)

    def loop():
        for seed in range(W7.n_models):
            many.trainer(seed, 1).fit(many.X, many.y, epochs=W7.epochs)

    benchmark.pedantic(loop, rounds=3, warmup_rounds=1)
