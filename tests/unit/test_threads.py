"""How many threads: the argument, then the environment, then the machine."""

import os

import numpy as np
import pytest

from fastnn.threads import resolve_n_threads


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("FASTNN_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch.setenv


@pytest.mark.parametrize(
    ("n_threads", "fastnn", "omp", "expected"),
    [
        (3, None, None, 3),
        (3, None, "2", 3),  # OMP_NUM_THREADS is only a default
        (3, "2", None, 2),  # FASTNN_NUM_THREADS also bounds
        (3, "5", None, 3),
        (None, "5", "2", 5),
        (None, None, "7", 7),
        (None, None, "4,2", 4),
        (None, None, " 6 , 2 ", 6),
        (None, " 2 ", None, 2),
        (np.int64(4), None, None, 4),
        (1000, None, None, 1000),
    ],
)
def test_who_decides(environment, n_threads, fastnn, omp, expected):
    for name, value in (("FASTNN_NUM_THREADS", fastnn), ("OMP_NUM_THREADS", omp)):
        if value is not None:
            environment(name, value)
    got = resolve_n_threads(n_threads)
    assert type(got) is int
    assert got == expected


def test_affinity_decides_where_nobody_else_does(environment, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert resolve_n_threads() == 3
    environment("OMP_NUM_THREADS", "")  # set but empty is not set
    assert resolve_n_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert resolve_n_threads() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert resolve_n_threads() == 1


@pytest.mark.parametrize("n_threads", [1.0, "2", True, np.float64(2), [1]])
def test_wrong_types(n_threads):
    with pytest.raises(TypeError, match="n_threads must be a positive integer"):
        resolve_n_threads(n_threads)


@pytest.mark.parametrize("n_threads", [0, -1])
def test_too_few(n_threads):
    with pytest.raises(ValueError, match="n_threads must be at least 1"):
        resolve_n_threads(n_threads)


@pytest.mark.parametrize("name", ["FASTNN_NUM_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("value", ["0", "-2", "two", "1.5", "²"])
def test_variables_that_are_no_numbers_of_threads(environment, name, value):
    environment(name, value)
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got '{value}'"):
        resolve_n_threads()


def test_a_list_is_for_openmp_only(environment):
    environment("FASTNN_NUM_THREADS", "4,2")
    with pytest.raises(ValueError, match="FASTNN_NUM_THREADS"):
        resolve_n_threads()
