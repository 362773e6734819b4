"""Compile csrc/ with warnings as errors: the compilers found here, and ziglang for other systems.

    python tools/compile_csrc.py                 # gcc and clang on this machine, all cross targets
    python tools/compile_csrc.py native          # gcc and clang only
    python tools/compile_csrc.py aarch64-macos   # one target
    python tools/compile_csrc.py --output DIR    # keep the libraries (one folder per target)
    python tools/compile_csrc.py --no-cross-link # cross targets: objects only, minutes faster

The ``ziglang`` package carries a Clang and the C libraries of every target, so the cross builds
need nothing else. They show that the sources compile and link there, not that they run.
The flags are the ones that setup.py gives to the wheel.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FLAGS = [
    "-O3",
    "-std=gnu11",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-g0",
]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# Name -> (zig target, suffix of a shared library, what links a position-independent library there).
CROSS_TARGETS = {
    "aarch64-linux": ("aarch64-linux-gnu.2.17", ".so", ["-fPIC", "-pthread", "-lm"]),
    "aarch64-macos": ("aarch64-macos", ".dylib", []),
    "x86_64-windows": ("x86_64-windows-gnu", ".dll", []),
}
NATIVE_COMPILERS = ("gcc", "clang")


def build(command: list[str], output: Path, link: list[str] | None) -> tuple[bool, str]:
    """Compile every source in parallel and, unless `link` is None, link one shared library.

    Returns whether all went well, and the compilers' messages.
    """
    sources = sorted(CSRC.glob("*.c"))
    if not sources:
        return False, f"no C sources in {CSRC}"

    def compile_one(source: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
        target = output.parent / f"{source.stem}.o"
        position = [flag for flag in link or [] if flag in ("-fPIC", "-pthread")]
        args = [*command, *FLAGS, *WARNINGS, *position, f"-I{CSRC}", "-c", str(source)]
        run = subprocess.run(
            [*args, "-o", str(target)], capture_output=True, text=True, check=False
        )
        return target, run

    output.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(compile_one, sources))
    messages = "".join(run.stderr for _, run in results)
    if any(run.returncode for _, run in results):
        return False, messages
    if link is None:
        return True, messages
    objects = [str(target) for target, _ in results]
    libraries = [flag for flag in link if flag != "-fPIC"]
    run = subprocess.run(
        [*command, "-shared", *objects, "-o", str(output), *libraries],
        capture_output=True,
        text=True,
        check=False,
    )
    for target in objects:
        Path(target).unlink()
    return run.returncode == 0, messages + run.stderr


def main() -> int:
    """Build what was asked for; exit status 1 where anything failed or could not be tried."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"native, {', '.join(CROSS_TARGETS)}")
    parser.add_argument("--output", type=Path, help="folder that keeps the libraries")
    parser.add_argument("--no-cross-link", action="store_true", help="cross targets: objects only")
    options = parser.parse_args()
    targets = options.targets or ["native", *CROSS_TARGETS]
    unknown = sorted(set(targets) - {"native", *CROSS_TARGETS})
    if unknown:
        parser.error(f"unknown targets {unknown}; choose from native, {', '.join(CROSS_TARGETS)}")

    jobs: list[tuple[str, list[str], str, list[str] | None]] = []
    failed = False
    for target in targets:
        if target == "native":
            for compiler in NATIVE_COMPILERS:
                if shutil.which(compiler):
                    jobs.append((compiler, [compiler], ".so", ["-fPIC", "-pthread", "-lm"]))
                else:
                    print(f"{compiler:16} not on this machine: NOT CHECKED")
        elif find_spec("ziglang") is None:
            print(f"{target:16} needs the ziglang package: pip install ziglang")
            failed = True
        else:
            triple, suffix, link = CROSS_TARGETS[target]
            command = [sys.executable, "-m", "ziglang", "cc", "-target", triple]
            jobs.append((target, command, suffix, None if options.no_cross_link else link))

    with tempfile.TemporaryDirectory() as scratch:
        for name, command, suffix, link in jobs:
            library = (options.output or Path(scratch)) / name / f"fastnn{suffix}"
            start = time.perf_counter()
            success, messages = build(command, library, link)
            seconds = time.perf_counter() - start
            size = "FAILED"
            if success:
                size = "objects" if link is None else f"{library.stat().st_size / 1024:.0f} KiB"
            print(f"{name:16} {size:>10}  {seconds:6.1f} s", flush=True)
            if messages.strip():
                print(messages, file=sys.stderr)
            failed |= not success
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
