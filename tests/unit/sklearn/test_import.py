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


CHECK = """
import sys
import sklearn
for name in sys.argv[1:]:
    sklearn.__version__ = name
    sys.modules.pop("fastnn.sklearn", None)
    try:
        import fastnn.sklearn
    except ImportError as error:
        print(error)
    else:
        print("ok", name)
"""


def test_versions_of_scikit_learn():
    old = ["1.4.2", "1.8.0rc1", "0.24", "1.8.99", "odd"]
    new = ["1.9", "1.9.dev0", "1.9rc1", "1.9.1", "1.10rc1", "1.10.0rc1", "2.0b2", "10.0.post1"]
    result = subprocess.run(
        [sys.executable, "-c", CHECK, *old, *new],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert lines == [
        *(
            "fastnn.sklearn needs scikit-learn 1.9 or later, "
            f"found {name}: pip install 'fastnn-mlp[sklearn]'"
            for name in old
        ),
        *(f"ok {name}" for name in new),
    ]
