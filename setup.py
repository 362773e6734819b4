"""Builds ``fastnn.backends._native``: one extension from csrc/*.c and one Cython module.

Metadata lives in pyproject.toml. This file holds what has to be decided on the machine that
builds: which stable ABI, the flags, and the instrumented builds of the tests.

Environment
-----------
FASTNN_BUILD_DEBUG=1
    Debug information, little optimization, Cython's bounds checks.
FASTNN_SANITIZE=address,undefined
    Compile and link with ``-fsanitize=...`` (implies debug information). The interpreter that
    imports the result needs the sanitizer's runtime preloaded; ``nox -s sanitize`` does that.
FASTNN_BUILD_SYMBOLS=1
    The optimized build, with debug information and names: for profilers (benches/profile.py).
"""

import os
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext as setuptools_build_ext

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# CPython 3.11's stable ABI is the first with the buffer protocol in it. Free-threaded
# interpreters cannot load it, so they get an extension of their own.
STABLE_ABI = sys.implementation.name == "cpython" and not FREE_THREADED

WINDOWS = sys.platform == "win32"
DEBUG = os.environ.get("FASTNN_BUILD_DEBUG", "0") not in ("", "0")
SANITIZE = os.environ.get("FASTNN_SANITIZE", "")
SYMBOLS = os.environ.get("FASTNN_BUILD_SYMBOLS", "0") not in ("", "0")
INSTRUMENTED = DEBUG or bool(SANITIZE)


def compile_args() -> list[str]:
    """One set of flags for every file: pragmas inside csrc/isa_*.c choose the instruction sets.

    ``-ffp-contract=off`` keeps the rounding that law 1 promises: fused multiply-adds are written
    out where they are meant. ``-fno-math-errno`` and ``-fno-trapping-math`` let loops vectorize
    and change no result. Never ``-march=native`` (the wheel would crash elsewhere),
    ``-ffast-math`` (reorders sums, loses NaN) or OpenMP (hangs after fork).
    """
    args = [
        "-std=gnu11",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fvisibility=hidden",
    ]
    args += ["-O1", "-g", "-fno-omit-frame-pointer"] if INSTRUMENTED else ["-O3"]
    if not INSTRUMENTED:
        args.append("-g" if SYMBOLS else "-g0")
    if SANITIZE:
        args += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover=all"]
    if not WINDOWS:
        args.append("-pthread")
    return args


def link_args() -> list[str]:
    args = []
    if not WINDOWS:
        args.append("-pthread")
    if sys.platform.startswith("linux") and not (INSTRUMENTED or SYMBOLS):
        args.append("-Wl,--strip-all")
    if SANITIZE:
        args.append(f"-fsanitize={SANITIZE}")
    return args


def files(folder: str, *patterns: str) -> list[str]:
    """Paths relative to this file, sorted so that every machine links in the same order."""
    return sorted(path.as_posix() for p in patterns for path in Path(folder).glob(p))


class build_ext(setuptools_build_ext):
    """Cythonizes into the build folder and compiles the C files in parallel."""

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            raise SystemExit(
                "fastnn needs GCC or Clang (vector extensions); MSVC is neither. "
                "Build with `python setup.py build_ext --compiler=mingw32`, or install the wheel."
            )
        from Cython.Build import cythonize

        for extension in self.extensions:
            # The generated C goes under build/, so the source tree stays clean.
            extension.sources = cythonize(
                [extension],
                build_dir=self.build_temp,
                compiler_directives={"boundscheck": True} if DEBUG else {},
                quiet=True,
            )[0].sources
        self.compiler.compile = self.compile_in_parallel(self.compiler.compile)
        super().build_extensions()

    @staticmethod
    def compile_in_parallel(compile_serially):
        """Compile each source in a thread: the compilers run as processes of their own."""

        def compile_all(sources, *args, **kwargs):
            def compile_one(source):
                return compile_serially([source], *args, **kwargs)

            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                return [obj for objects in pool.map(compile_one, sources) for obj in objects]

        return compile_all


native = Extension(
    "fastnn.backends._native",
    sources=["fastnn/backends/_native.pyx", *files("csrc", "*.c")],
    # Templates and tables are included by the .c files: a change there must rebuild, too.
    depends=files("csrc", "*.h", "*.def") + files("fastnn/backends", "*.pxd", "*.pxi"),
    include_dirs=["csrc", numpy.get_include()],
    define_macros=[
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        *([("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else []),
    ],
    py_limited_api=STABLE_ABI,
    extra_compile_args=compile_args(),
    extra_link_args=link_args(),
    libraries=[] if WINDOWS else ["m"],
)

options = {}
if STABLE_ABI:
    options["bdist_wheel"] = {"py_limited_api": "cp311"}
if WINDOWS:
    options["build_ext"] = {"compiler": "mingw32"}

setup(ext_modules=[native], cmdclass={"build_ext": build_ext}, options=options)
