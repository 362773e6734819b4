"""A lower room imports nothing from a higher one; implementations stay behind their door."""

import ast
import re
from pathlib import Path

import pytest

import fastnn

PACKAGE = Path(fastnn.__file__).resolve().parent
ROOT = Path(__file__).resolve().parents[2]

# Lowest first. A module may import from its own room and from every room before it.
ROOMS = [
    ["errors", "_distribution"],
    ["rng", "threads", "sparse_rows"],
    ["tables"],
    ["validation", "plan"],
    ["persistence", "preprocessing", "datasets"],
    ["backends"],
    ["mlp", "perceptron"],
    ["schedules", "callbacks", "history"],
    ["trainer"],
    ["rate_finder", "config", "many"],
    ["sklearn", "_pictures", "_numpy_training", "_bench"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

# The compiled extension imports nothing of the package. These borrow one function of it, without
# going through a backend: a check of whole arrays.
KERNEL_BORROWERS = {"validation"}

# Third-party packages, and the only modules that may import them (inside a function or not).
ONLY_IN = {
    "sklearn": {"sklearn", "_bench"},
    "matplotlib": {"history", "rate_finder", "cli", "_pictures"},
    "safetensors": {"persistence"},
    "scipy": {"sklearn", "tables"},
    "tqdm": {"trainer", "callbacks", "cli"},
    "numba": {"backends", "tables", "config"},
}


def modules() -> dict[str, Path]:
    """Dotted names below fastnn, and their files."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Absolute names that a module imports anywhere, but for `if TYPE_CHECKING:` blocks."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    base = ["fastnn", *name.split(".")] if name else ["fastnn"]
    if path.name != "__init__.py":
        base = base[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = base[: len(base) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            if module == "fastnn" or module.startswith("fastnn."):
                # `from fastnn import plan` and `from fastnn.backends import base` name modules.
                found.update(f"{module}.{alias.name}" for alias in node.names)
            else:
                found.add(module)
    return found


def room(dotted: str) -> str:
    return dotted.partition(".")[0]


ALL = modules()


def test_every_module_has_a_room():
    assert len(ALL) > 3
    assert sorted({room(name) for name in ALL if name} - set(LEVEL)) == []


@pytest.mark.parametrize("name", sorted(name for name in ALL if name))
def test_imports_nothing_from_a_higher_room(name):
    too_high = set()
    for imported in imports(name, ALL[name]):
        if not imported.startswith("fastnn."):
            continue
        target = room(imported.removeprefix("fastnn."))
        if target == "__version__":  # the one name that fastnn/__init__.py itself defines
            continue
        assert target in LEVEL, f"{name} imports {imported}: import it from where it is defined"
        if imported.startswith("fastnn.backends._native.") and name in KERNEL_BORROWERS:
            continue
        if LEVEL[target] > LEVEL[room(name)]:
            too_high.add(imported)
    assert too_high == set()


def test_the_compiled_extension_imports_nothing_of_the_package():
    sources = [
        *PACKAGE.rglob("*.pyx"),
        *PACKAGE.rglob("*.pxd"),
        *(ROOT / "fastnn").rglob("*.p[yx][xd]"),
    ]
    if not sources:
        pytest.skip("neither the package nor this checkout holds the Cython sources")
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import|cimport)\s+(fastnn|\.)", text, re.MULTILINE), path


def test_schedules_know_only_errors_and_validation():
    if "schedules" not in ALL:
        pytest.fail("fastnn/schedules.py is missing")
    internal = {
        room(imported.removeprefix("fastnn."))
        for imported in imports("schedules", ALL["schedules"])
        if imported.startswith("fastnn.")
    }
    assert internal <= {"errors", "validation"}


def test_only_the_door_of_backends_imports_implementations():
    implementations = {
        f"fastnn.backends.{name}" for name in ("native", "reference", "numba_cpu", "numba_cuda")
    }
    for name, path in ALL.items():
        if room(name) in ("backends", "config", *KERNEL_BORROWERS):
            # show_config names the instruction set.
            continue
        reached = {
            imported
            for imported in imports(name, path)
            if any(imported == i or imported.startswith(i + ".") for i in implementations)
        }
        assert reached == set(), f"{name} goes around fastnn.backends.get_backend"


def test_backends_do_not_know_each_other():
    for name, path in ALL.items():
        if not name.startswith("backends."):
            continue
        own = name.split(".")[1]
        others = {
            imported.split(".")[2]
            for imported in imports(name, path)
            if imported.startswith("fastnn.backends.") and len(imported.split(".")) > 3
        }
        assert others <= {"base", "_native", own}


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_third_party_packages_stay_in_their_files(package):
    users = {
        room(name)
        for name, path in ALL.items()
        if any(i == package or i.startswith(package + ".") for i in imports(name, path))
    }
    assert users <= ONLY_IN[package]
