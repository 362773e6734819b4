"""Scripts in processes of their own: what may hang or die must not take the tests with it."""

import os
import subprocess
import sys

import pytest

# What would let NumPy start threads, or change how many this package starts.
_CLEAN = dict.fromkeys(("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_UNSET = ("FASTNN_NUM_THREADS", "OMP_NUM_THREADS")


@pytest.fixture(scope="session")
def clean_environment():
    """Environment of a script: this one's, without what decides about threads."""
    environment = {k: v for k, v in os.environ.items() if k not in _UNSET}
    return {**environment, **_CLEAN}


@pytest.fixture
def run_script(tmp_path, clean_environment):
    """Run Python source in a new process; returns what it printed. It has to end well in time."""

    def run(source, *arguments, timeout=60, **environment):
        path = tmp_path / "script.py"
        path.write_text(source)
        try:
            done = subprocess.run(
                [sys.executable, str(path), *map(str, arguments)],
                env={**clean_environment, **environment},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            pytest.fail(f"no end after {timeout} s; stdout {error.stdout}, stderr {error.stderr}")
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
