"""What all benchmarks share: the folder on the path, the machine in words, the yardstick."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernels
import machine


def pytest_configure(config):
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("benches/ needs pytest-benchmark: pip install pytest-benchmark")


def pytest_collect_file(parent, file_path):
    """`pytest benches` takes the bench_*.py files, which no other call collects."""
    if file_path.match("bench_*.py") and not parent.session.isinitpath(file_path):
        return pytest.Module.from_parent(parent, path=file_path)
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config, machine_info):
    """Keep what figures depend on, and not whose machine it is."""
    machine_info.clear()
    machine_info.update(machine.info())


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_scale_unit(config, unit, benchmarks, best, worst, sort):
    """Milliseconds everywhere: columns can be compared. (Microseconds for short ones.)"""
    short = best["min"] < 1e-3 if best else False
    return ("us", 1e6) if short else ("ms", 1e3)


@pytest.fixture
def rate(benchmark, record):
    """Time a `kernels.Call`; note its GFLOP/s and share of the peak, which is taken just before.

    The figures leave out what a call through ctypes costs, about half a microsecond.
    """

    def run(call, dtype="float32", isa=None):
        peak = machine.multiply_add_gflops(dtype, isa, seconds=0.02)
        benchmark(call.call)
        if not benchmark.stats:  # --benchmark-disable
            return
        best = max(benchmark.stats.stats.min - kernels.call_seconds(), 1e-9)
        if call.flop:
            gflops = call.flop / best / 1e9
            record(gflops=round(gflops, 2), peak=round(peak, 1), share=round(gflops / peak, 3))
        record(ns_per_element=round(1e9 * best / call.elements, 4))

    return run


@pytest.fixture
def record(benchmark):
    """Put figures beside the times, in the JSON file and at the end of the run."""

    def note(**figures):
        benchmark.extra_info.update(figures)
        NOTES.setdefault(benchmark.name, {}).update(figures)

    return note


NOTES: dict[str, dict] = {}


def pytest_terminal_summary(terminalreporter):
    if not NOTES:
        return
    terminalreporter.section("figures")
    width = max(map(len, NOTES))
    for name, figures in NOTES.items():
        line = "  ".join(f"{key} {value}" for key, value in figures.items())
        terminalreporter.write_line(f"{name:{width}}  {line}")
    line = ", ".join(f"{key} {value}" for key, value in machine.info().items())
    terminalreporter.write_line(f"machine: {line}")
