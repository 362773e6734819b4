#!/usr/bin/env bash
# Other processors than this x86-64 one, under QEMU user emulation (Debian, Ubuntu: apt-get install qemu-user):
#
#   tools/emulate.sh neon [N_SHAPES]    the kernels' NEON bits equal AVX2's
#   tools/emulate.sh no-avx [PYTHON]    the installed package imports, trains and predicts without AVX, with the bits
#                                       of FASTNN_ISA=baseline
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flags=(-O3 -std=gnu11 -ffp-contract=off -fno-math-errno -fno-trapping-math -g0 "-I$root/csrc")
sources=("$root"/csrc/*.c "$root/tools/kernel_bits.c")

neon() {
    gcc "${flags[@]}" "${sources[@]}" -o "$work/here" -lm -pthread
    python3 -m ziglang cc -target aarch64-linux-musl -static "${flags[@]}" "${sources[@]}" -o "$work/arm" -lm
    "$work/here" avx2 "$1" >"$work/avx2"
    qemu-aarch64 "$work/arm" neon "$1" >"$work/neon"
    if ! diff "$work/avx2" "$work/neon" >"$work/difference"; then
        echo "NEON differs from AVX2 in:" >&2
        grep '^>' "$work/difference" | cut -d' ' -f2-4 | sort | uniq -c >&2
        return 1
    fi
    echo "NEON and AVX2: the same bits in $(wc -l <"$work/neon") results"
}

no_avx() {
    local python here emulated
    python=$("$1" -c 'import sys; print(sys.executable)')
    # The emulator loads the interpreter itself, so it must be the file and not a script that starts it.
    here=$(FASTNN_ISA=baseline "$python" -P "$root/tools/smoke.py")
    emulated=$(qemu-x86_64 -cpu Nehalem "$python" -P "$root/tools/smoke.py")
    qemu-x86_64 -cpu Nehalem "$python" -P -c \
        'from fastnn.backends import _native as n; assert n.available_isas() == ["baseline"], n.available_isas()'
    if [[ $here != "$emulated" ]]; then
        echo "without AVX: other bits than FASTNN_ISA=baseline here" >&2
        return 1
    fi
    echo "a processor without AVX: trains and predicts with the bits of the baseline"
}

case ${1:-} in
    neon) neon "${2:-60}" ;;
    no-avx) no_avx "${2:-python3}" ;;
    *)
        sed -n '2,6p' "$0" >&2
        exit 2
        ;;
esac
