"""Sessions for developers; `nox -l` lists them. CI runs .ci/run, which stands on its own."""

import subprocess
from pathlib import Path

import nox

nox.options.sessions = ["lint", "unit"]
nox.options.reuse_existing_virtualenvs = True

ROOT = Path(__file__).parent
LINT_TOOLS = [
    "clang-format>=18",
    "codespell>=2.3",
    "cython-lint>=0.16",
    "mypy>=1.11",
    "numpy",
    "pytest",
    "ruff>=0.6",
]
ISAS = ["baseline", "avx2", "avx512", "neon"]


def available_isas(session: nox.Session) -> list[str]:
    """Instruction sets of this machine, as the installed extension reports them."""
    code = "from fastnn.backends import _native; print(*_native.available_isas())"
    out = session.run("python", "-P", "-c", code, silent=True)
    return str(out).split()


def run_from_elsewhere(session: nox.Session, *args: str, **env: str) -> None:
    """Run pytest -P: the working directory must not hide the installed package."""
    session.run("python", "-P", "-m", "pytest", *args, env=env)


@nox.session
def build(session: nox.Session) -> None:
    """Source distribution, then the wheel from it, checked for the stable ABI."""
    session.install("build", "abi3audit")
    session.run("python", "-m", "build")
    for wheel in sorted((ROOT / "dist").glob("*abi3*.whl")):
        session.run("abi3audit", "--strict", str(wheel))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff, codespell, cython-lint, mypy and clang-format."""
    session.install(*LINT_TOOLS)
    session.run("bash", "tools/lint.sh", external=True)


@nox.session(python=["3.11", "3.12", "3.13"])
def unit(session: nox.Session) -> None:
    """The whole suite but the peers, on each Python."""
    session.install(".[test]")
    run_from_elsewhere(session, "--ignore=tests/peers", *session.posargs)


@nox.session
def regression(session: nox.Session) -> None:
    """Kernels and small trainings against recorded speeds, and instruction counts (valgrind)."""
    session.install(".")
    session.run("python", "benches/regression.py", *session.posargs)


@nox.session
def isas(session: nox.Session) -> None:
    """Kernels, backends, gradients and properties once per instruction set of this machine."""
    session.install(".[test]")
    folders = [f"tests/{name}" for name in ("kernels", "backends", "gradients", "properties")]
    present = [folder for folder in folders if (ROOT / folder).is_dir()]
    for isa in available_isas(session):
        run_from_elsewhere(session, *present, *session.posargs, FASTNN_ISA=isa)


@nox.session
def peers(session: nox.Session) -> None:
    """Against PyTorch, scikit-learn and ONNX Runtime."""
    session.install(".[test,peers]")
    run_from_elsewhere(session, "tests/peers", *session.posargs)


@nox.session
def compilers(session: nox.Session) -> None:
    """Compile csrc without a warning: gcc, clang, and three other systems by ziglang."""
    session.install("ziglang")
    session.run("python", "tools/compile_csrc.py", *session.posargs)


@nox.session
def sanitize(session: nox.Session) -> None:
    """Kernel, backend and property tests under AddressSanitizer and UBSan (gcc, Linux)."""
    session.install("setuptools>=77", "Cython>=3.1", "numpy>=2.0", "wheel")
    env = {"FASTNN_SANITIZE": "address,undefined"}
    session.install("--no-build-isolation", "--force-reinstall", "--no-deps", ".", env=env)
    session.install(".[test]", "--no-build-isolation", env=env)
    runtime = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # CPython keeps objects until it exits, so leaks are looked for by memory-growth tests.
    folders = session.posargs or ["tests/kernels", "tests/backends", "tests/properties"]
    run_from_elsewhere(
        session,
        *folders,
        LD_PRELOAD=":".join(runtime),
        ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
        UBSAN_OPTIONS="print_stacktrace=1",
    )


COMPILERS = ["nvidia-cuda-nvrtc==13.*", "nvidia-nvvm==13.*"]


@nox.session
def cudasim(session: nox.Session) -> None:
    """The CUDA backend without a GPU: in Numba's simulator, then every kernel compiled to PTX.

    FASTNN_FULL=1 tries every activation with every loss and every optimizer.
    """
    session.install(".", "pytest", "numba-cuda>=0.30", *COMPILERS)
    simulated = [
        f"tests/backends/test_{name}.py" for name in ("cuda", "backends", "custom_functions")
    ]
    run_from_elsewhere(
        session, *simulated, "-k", "cuda", *session.posargs, NUMBA_ENABLE_CUDASIM="1"
    )
    ptx = [f"tests/backends/test_cuda_{name}.py" for name in ("ptx", "absent")]
    run_from_elsewhere(session, *ptx, *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """On a machine with an NVIDIA GPU: the suite, compute-sanitizer, and the bench.

    Wants a driver for CUDA 13; compute-sanitizer is that of a CUDA toolkit on the PATH. Writes the
    figures, with the card's name, to gpu.json.
    """
    session.install(".[test,cuda]", "pytest-benchmark")
    session.run("python", "-P", "-m", "fastnn", "info")
    env = {"FASTNN_TEST_GPU": "1"}
    suite = ["tests/backends", "tests/unit", "tests/gradients", "-k", "cuda"]
    run_from_elsewhere(session, *suite, *session.posargs, **env)
    # Every kernel runs in these tests; each tool slows them down by ten to a hundred.
    few = ["tests/backends/test_cuda.py", "-k", "both_ways or any_width or pieces or device_arrays"]
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        session.run(
            "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", "--target-processes",
            "all", "python", "-P", "-m", "pytest", *few, env=env, external=True,
        )  # fmt: skip
    session.install("torch>=2.4")
    run_from_elsewhere(session, "benches/bench_cuda.py", "--benchmark-json", "gpu.json")


@nox.session
def docs(session: nox.Session) -> None:
    """Guide, reference and decisions as HTML in docs/_build."""
    session.install(".[plot,sklearn]", "sphinx>=7", "numpydoc>=1.7", "myst-parser>=3")
    session.run("python", "-P", "-m", "sphinx", "-W", "-b", "html", "docs", "docs/_build")


@nox.session
def guide(session: nox.Session) -> None:
    """Run the pages of docs/guide, and write their pictures and printed outputs."""
    session.install(".[all]")
    session.run("python", "-P", "docs/make_guide.py", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Tests in full: all float32 numbers, 100,000 shapes, all of scikit-learn's settings, tests/c.

    Hours. Needs qemu-user and gcc-aarch64-linux-gnu (Debian, Ubuntu) for other processors.
    """
    session.install(".[test]")
    for folder in ("tests/kernels", "tests/peers"):
        run_from_elsewhere(session, folder, *session.posargs, FASTNN_FULL="1")


@nox.session
def sanitize_c(session: nox.Session) -> None:
    """Kernels under ASan and UBSan, workers and barrier under TSan, as C programs (gcc, clang)."""
    for mode in ("asan", "tsan"):
        session.run("bash", "tests/c/run.sh", mode, *session.posargs, external=True)


@nox.session
def emulate(session: nox.Session) -> None:
    """Instruction sets that this machine lacks: AVX-512 and NEON against AVX2, and no AVX.

    Needs qemu-user and gcc-aarch64-linux-gnu (Debian, Ubuntu).
    """
    session.install(".[test]")
    for mode in ("avx512", "neon"):
        session.run("bash", "tests/c/run.sh", mode, *session.posargs, external=True)
    session.run("bash", "tests/c/run.sh", "no-avx", "python", external=True)
