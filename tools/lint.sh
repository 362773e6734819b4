#!/usr/bin/env bash
# Every linter, all of them even where the first one complains; exit status 1 where any did.
# Used by `nox -s lint`, pre-commit users and .ci/run, so that all three say the same.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

failed=()
check() {
    local name=$1
    shift
    echo "lint: $name"
    "$@" || failed+=("$name")
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "codespell" codespell fastnn csrc tests tools docs benches ./*.md ./*.toml ./*.py
check "cython-lint" cython-lint fastnn
check "mypy" mypy
# Templates are left out: clang-format takes N(name) for a call and formats declarations as products.
check "clang-format" clang-format --dry-run --Werror csrc/*.c csrc/fastnn.h csrc/layout.h csrc/target.h tests/c/*.c

if ((${#failed[@]})); then
    printf 'lint failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
echo "lint: all clean"
