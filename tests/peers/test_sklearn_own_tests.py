"""scikit-learn's own tests of its MLPs and its Perceptron, on this package's classes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn", "1.9")

TESTS = Path(__file__).resolve().parents[1]

# The six that read private attributes, and no more.
LEFT_OUT = [
    "test_adaptive_learning_rate",
    "test_fit",
    "test_gradient",
    "test_learning_rate_warmstart",
    "test_n_iter_no_change",
    "test_n_iter_no_change_inf",
]


def test_scikit_learns_own_tests(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-p", "sklearn_swap", "-p", "no:cacheprovider"]
        + ["-v", "-c", str(tmp_path / "pytest.ini"), "--rootdir", str(tmp_path), "--pyargs"]
        + ["sklearn.neural_network.tests.test_mlp"]
        + ["sklearn.linear_model.tests.test_perceptron"]
        + ["sklearn.linear_model.tests.test_common", "sklearn.tests.test_multiclass"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    left_out = re.search(r"^left out: (.*)$", result.stdout, re.MULTILINE)
    assert left_out is not None
    assert left_out[1].split() == LEFT_OUT
    assert "SKIPPED" not in result.stdout
    assert "XFAIL" not in result.stdout
    # 53 + 5 + 2 + 2 in scikit-learn 1.9.1; a later one may have more
    assert result.stdout.count(" PASSED") >= 62
