"""scikit-learn is loaded by fastnn.sklearn alone, and missed in words."""

import subprocess
import sys

import pytest

pytest.importorskip("sklearn", "1.9")


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_import_fastnn_does_not_load_scikit_learn():
    code = "import sys, fastnn; assert not {'sklearn', 'scipy', 'joblib'} & set(sys.modules)"
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_what_to_install_where_scikit_learn_is_missing():
    result = run("import sys; sys.modules['sklearn'] = None; import fastnn.sklearn")
    assert result.returncode == 1
    assert "ImportError" in result.stderr
    assert "pip install 'fastnn-mlp[sklearn]'" in result.stderr


def test_what_to_install_where_scikit_learn_is_old():
    result = run("import sklearn; sklearn.__version__ = '1.4.2'; import fastnn.sklearn")
    assert result.returncode == 1
    assert "found 1.4.2" in result.stderr
