"""The C programs of tests/c: sanitizers, and instruction sets that this machine lacks. They
compile csrc themselves.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_calls import FULL

RUN = Path(__file__).parents[1] / "c" / "run.sh"
SKIP = 77

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tests/c/run.sh is for Linux"),
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="tests/c/run.sh is for x86-64"),
    pytest.mark.skipif(not (RUN.parents[2] / "csrc").is_dir(), reason="needs the C sources"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
]
minutes = pytest.mark.skipif(
    not FULL, reason="takes minutes: FASTNN_FULL=1, or nox -s emulate sanitize_c"
)


def run(*args) -> str:
    env = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "FASTNN_ISA")}
    result = subprocess.run(
        ["bash", str(RUN), *args], capture_output=True, text=True, env=env, check=False
    )
    if result.returncode == SKIP:
        pytest.skip(result.stderr.strip())
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout


def test_threads_meet_without_a_race():
    """A million crossings with FASTNN_FULL=1; the seeded race is found, the barrier has none."""
    crossings = 1_000_000 if FULL else 20_000
    assert f"{crossings} crossings, 0 wrong" in run("tsan", str(crossings))


@minutes
def test_address_and_undefined_behavior_sanitizers():
    assert run("asan").count("no report") >= 2


@minutes
def test_avx512_has_the_bits_of_avx2():
    assert "the same bits" in run("avx512")


@minutes
def test_neon_has_the_bits_of_avx2():
    assert "the same bits" in run("neon")


@minutes
def test_a_processor_without_avx():
    assert "bits of the baseline" in run("no-avx", sys.executable)
