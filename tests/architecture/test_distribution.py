"""Names, version and contents of what is built and installed."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

import fastnn
from fastnn._distribution import find_foreign_distribution


def test_version_has_one_source(root):
    assert importlib.metadata.version("fastnn-mlp") == fastnn.__version__
    citation = (root / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE)[1] == fastnn.__version__
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {fastnn.__version__}" in changelog


def test_metadata_of_the_installed_distribution():
    metadata = importlib.metadata.metadata("fastnn-mlp")
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["Requires-Python"] == ">=3.11"
    needs = {
        re.match(r"[\w-]+", text)[0]
        for text in importlib.metadata.requires("fastnn-mlp")
        if "extra ==" not in text
    }
    assert needs == {"numpy", "numba", "safetensors", "tqdm"}
    scripts = importlib.metadata.entry_points(group="console_scripts", name="fastnn")
    assert [script.load().__module__ for script in scripts] == ["fastnn.cli"]


def test_package_is_typed(package):
    assert (package / "py.typed").is_file()
    assert (package / "backends" / "_native.pyi").is_file()


def test_no_address_or_index_in_the_build_files(root):
    for name in ("pyproject.toml", "setup.py", "noxfile.py", "README.md", ".ci/run"):
        path = root / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"--(extra-)?index-url|find-links|pypi\.org|pythonhosted", text)


@pytest.fixture
def sdist_names(root, tmp_path):
    """Files of an sdist that is built from a copy, since building writes into the tree."""
    if not (root / "fastnn").is_dir():
        pytest.skip("this checkout holds the tests only; .ci/run checks its sdist itself")
    requirement = tomllib.loads((root / "pyproject.toml").read_text())["build-system"]["requires"]
    minimum = int(re.search(r"setuptools>=(\d+)", " ".join(requirement))[1])
    try:
        version = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        version = "0"
    if int(version.split(".")[0]) < minimum:
        pytest.skip(f"needs setuptools >= {minimum}, found {version}")
    copy = tmp_path / "tree"
    keep_out = shutil.ignore_patterns(
        ".git", ".nox", ".venv", "venv", "build", "dist", "*.so", "*.egg-info", "__pycache__"
    )
    shutil.copytree(root, copy, ignore=keep_out)
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=copy, check=True, capture_output=True
    )
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_sdist_holds_all_that_the_wheel_is_built_from(root, sdist_names):
    csrc = {f"csrc/{path.name}" for path in (root / "csrc").iterdir() if path.is_file()}
    assert csrc <= sdist_names
    sources = {
        path.relative_to(root).as_posix()
        for pattern in ("*.py", "*.pyx", "*.pxd", "*.pxi", "*.pyi", "py.typed")
        for path in (root / "fastnn").rglob(pattern)
    }
    assert "fastnn/backends/_native.pyx" in sources
    assert sources <= sdist_names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md"} <= sdist_names


def test_sdist_holds_nothing_that_was_generated(sdist_names):
    generated = re.compile(r"_native\.c$|\.so$|\.o$|\.py[co]$|__pycache__|^build/|^dist/|\.nox")
    assert [name for name in sdist_names if generated.search(name)] == []


FOREIGN = ["fastnn-0.4.0.dist-info", "fastnn-0.4.0.egg-info", "fastnn-0.4.0-py3.11.egg-info"]
NOT_FOREIGN = ["fastnn", "fastnn_mlp-0.1.0.dist-info", "fastnntpy-0.4.0.dist-info", "fastnn-docs"]


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_distribution_is_found(tmp_path, name):
    (tmp_path / name).mkdir()
    assert find_foreign_distribution(["/no/such/folder", str(tmp_path)]) == str(tmp_path / name)


def test_other_names_are_not_taken_for_it(tmp_path):
    for name in NOT_FOREIGN:
        (tmp_path / name).mkdir()
    assert find_foreign_distribution([str(tmp_path)]) is None


@pytest.mark.parametrize("installed", [True, False])
def test_import_warns_about_the_foreign_distribution(tmp_path, installed):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    if installed:
        (packages / FOREIGN[0]).mkdir()
    code = (
        f"import sys, warnings; sys.path.append({str(packages)!r})\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import fastnn\n"
        "print(*[w.message for w in caught])"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert ("pip uninstall -y fastnn" in out) == installed
