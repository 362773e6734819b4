"""The compiled extension needs only the C library and exports only its entry point."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastnn.backends import _native

# A package whose extension carries a sanitizer needs its runtime, by design.
EXTENSION = Path(find_spec("fastnn.backends._native").origin)
ALLOWED_LIBRARIES = re.compile(
    r"libc\.so\.6|libm\.so\.6|libpthread\.so\.0|ld-linux[\w.-]*|libSystem\.B\.dylib|"
    r"(?i:kernel32|msvcrt|python3|ucrtbase|api-ms-win-[\w-]*)\.dll"
)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads an ELF file")


def tool(*args: str) -> str:
    if shutil.which(args[0]) is None:
        pytest.skip(f"{args[0]} (binutils) is not on this machine")
    return subprocess.run([*args], capture_output=True, text=True, check=True).stdout


def skip_if_sanitized(needed: list[str]) -> None:
    if any("san.so" in name for name in needed):
        pytest.skip("built with FASTNN_SANITIZE")


@linux
def test_needs_only_the_c_library():
    needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", tool("readelf", "-d", str(EXTENSION)))
    skip_if_sanitized(needed)
    assert "libc.so.6" in needed
    assert [name for name in needed if not ALLOWED_LIBRARIES.fullmatch(name)] == []


@linux
def test_exports_only_its_entry_point():
    skip_if_sanitized(re.findall(r"\[(.+?)\]", tool("readelf", "-d", str(EXTENSION))))
    symbols = tool("nm", "-D", "--defined-only", str(EXTENSION)).split("\n")
    exported = {line.split()[-1] for line in symbols if line.strip()}
    assert "PyInit__native" in exported
    assert {name for name in exported if not name.startswith(("PyInit_", "fastnn_"))} == set()


@linux
def test_stack_is_not_executable():
    headers = tool("readelf", "-lW", str(EXTENSION))
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack


def test_uses_the_stable_abi():
    import sysconfig

    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("free-threaded interpreters cannot load abi3 extensions")
    assert EXTENSION.name in ("_native.abi3.so", "_native.pyd")


def stub_signatures() -> dict[str, list[str]]:
    """Public names of _native.pyi; for functions and __init__ the names of the parameters."""
    tree = ast.parse(EXTENSION.with_name("_native.pyi").read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = [argument.arg for argument in node.args.args]
        elif isinstance(node, ast.ClassDef):
            found[node.name] = []
    return found


def test_stubs_describe_what_is_compiled():
    stubs = stub_signatures()
    compiled = {
        name: value
        for name, value in vars(_native).items()
        if not name.startswith("_") and callable(value) and value.__module__ == _native.__name__
    }
    assert len(compiled) > 10
    assert sorted(stubs) == sorted(compiled)
    for name, value in compiled.items():
        if not inspect.isclass(value):
            assert stubs[name] == list(inspect.signature(value).parameters), name
