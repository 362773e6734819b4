"""No flag, pragma or library that would change results or break other processes (docs/adr/0009)."""

import ast
import io
import re
import tokenize

import pytest

FORBIDDEN = re.compile(
    r"march=|mtune=native|ffast-math|Ofast|funsafe-math|fassociative-math|freciprocal-math|"
    r"ffinite-math|fopenmp|omp\.h|pragma\s+omp|\bprange\b|\bcython\.parallel\b|"
    r"fastmath\s*=\s*(True|\{)|parallel\s*=\s*True"
)
CONTRACTS = {"-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-O3"}


def strings(path) -> list[str]:
    """String constants of a Python file that are not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]


def python_code(text: str) -> str:
    """Python or Cython source without comments and strings."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(t.string for t in tokens if t.type not in (tokenize.COMMENT, tokenize.STRING))


def c_code(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def test_the_pattern_finds_what_it_looks_for():
    for bad in (
        "-march=native",
        "-ffast-math",
        "-fopenmp",
        "#pragma omp parallel",
        "fastmath=True",
    ):
        assert FORBIDDEN.search(bad)
    assert not FORBIDDEN.search(c_code("/* never -march=native */ int x; // prange"))


def test_flags_of_the_build(root):
    flags = strings(root / "setup.py")
    assert set(flags) >= CONTRACTS
    assert [flag for flag in flags if FORBIDDEN.search(flag)] == []


def test_the_compile_check_uses_the_flags_of_the_build(root):
    checked = {s for s in strings(root / "tools" / "compile_csrc.py") if s.startswith("-")}
    assert checked >= CONTRACTS | {"-Wall", "-Wextra", "-Werror"}
    assert {s for s in checked if s.startswith(("-f", "-std"))} - {"-fPIC"} <= set(
        strings(root / "setup.py")
    )


def test_c_sources(root):
    files = [*(root / "csrc").glob("*.[ch]"), *(root / "csrc").glob("*.def")]
    assert len(files) > 5
    for path in files:
        assert not FORBIDDEN.search(c_code(path.read_text(encoding="utf-8"))), path


def test_python_and_cython_sources(package):
    files = [*package.rglob("*.py"), *package.rglob("*.py[xi]"), *package.rglob("*.px[di]")]
    assert len(files) > 5
    for path in files:
        assert not FORBIDDEN.search(python_code(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("variable", ["CFLAGS", "CPPFLAGS", "LDFLAGS"])
def test_nothing_sets_compiler_flags_behind_the_back(root, variable):
    for name in ("setup.py", "noxfile.py", "pyproject.toml"):
        assert variable not in (root / name).read_text(encoding="utf-8")
