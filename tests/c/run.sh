#!/usr/bin/env bash
# The kernels below Python: sanitizers, and instruction sets that this machine lacks. Linux on x86-64.
#
#   tests/c/run.sh asan [N_SHAPES]     AddressSanitizer and UBSan over every kernel, every array allocated to the byte
#   tests/c/run.sh tsan [CROSSINGS]    ThreadSanitizer over workers and barrier, and a race that it must find
#   tests/c/run.sh avx512 [N_SHAPES]   the AVX-512 kernels, intrinsics emulated, have AVX2's bits
#   tests/c/run.sh neon [N_SHAPES]     NEON's bits are AVX2's, under QEMU (apt-get install qemu-user
#                                      gcc-aarch64-linux-gnu libc6-dev-arm64-cross; or qemu-user and pip's ziglang)
#   tests/c/run.sh no-avx [PYTHON]     the installed package imports, trains and predicts on a processor without AVX,
#                                      with the bits of FASTNN_ISA=baseline (qemu-user)
#
# CC=clang takes another compiler. Exit status 77 (skip) where a tool is missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
csrc=$here/../../csrc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc=${CC:-gcc}
flags=(-std=gnu11 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -Wno-psabi "-I$csrc")

need() {
    local tool
    for tool; do
        command -v "$tool" >/dev/null || { echo "needs $tool" >&2; exit 77; }
    done
}

# build OUTPUT COMPILER... -- SOURCE...: each source in a process of its own
build() {
    local output=$1 source objects=() jobs=() command=()
    shift
    while [[ $1 != -- ]]; do command+=("$1"); shift; done
    shift
    for source; do
        objects+=("$output.$(basename "$source").o")
        "${command[@]}" "${flags[@]}" -c "$source" -o "${objects[-1]}" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job"; done
    "${command[@]}" "${objects[@]}" -o "$output" -lm -pthread
}

# same NAME: the lines in $work/avx2 and $work/NAME
same() {
    local lines kinds
    if ! diff "$work/avx2" "$work/$1" >"$work/difference"; then
        echo "$1 differs from avx2 in:" >&2
        grep '^>' "$work/difference" | cut -d' ' -f2-5 | sort | uniq -c >&2
        return 1
    fi
    lines=$(wc -l <"$work/$1")
    kinds=$(cut -d' ' -f3 "$work/$1" | sort -u | wc -l)
    # hashes that vary: equal constants would prove nothing
    (($(awk '{print $NF}' "$work/$1" | sort -u | wc -l) * 10 > lines * 8 && kinds >= 18))
    echo "$1 and avx2: the same bits in $lines results of $kinds kernels"
}

asan() {
    build "$work/bits" "$cc" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -- "$csrc"/*.c "$here/kernel_bits.c"
    local isa
    for isa in baseline avx2 avx512; do
        if "$work/bits" "$isa" 0 2>/dev/null; then
            ASAN_OPTIONS=detect_leaks=1 "$work/bits" "$isa" "$1" >"$work/$isa"
            echo "$isa: $(wc -l <"$work/$isa") calls, no report"
        fi
    done
    [[ -s $work/baseline ]]
}

tsan() {
    build "$work/barrier" "$cc" -O1 -g -fsanitize=thread -- "$csrc/threads.c" "$here/barrier.c"
    # The instrument works: it finds the race that is there.
    if "$work/barrier" --race >"$work/race" 2>&1 || ! grep -q "data race" "$work/race"; then
        echo "ThreadSanitizer missed the seeded race" >&2
        cat "$work/race" >&2
        return 1
    fi
    TSAN_OPTIONS=halt_on_error=1 "$work/barrier" "$1"
}

avx512() {
    grep -q '\bfma\b.*\bavx2\b' /proc/cpuinfo || { echo "needs AVX2 and FMA" >&2; exit 77; }
    local sources=("$csrc"/*.c)
    build "$work/bits" gcc -O2 -DFNN_EMULATED_AVX512 -- "${sources[@]/*isa_avx512.c/$here\/avx512_emulated.c}" "$here/kernel_bits.c"
    "$work/bits" avx2 "$1" >"$work/avx2"
    "$work/bits" avx512 "$1" >"$work/avx512"
    same avx512
}

neon() {
    need qemu-aarch64 "$cc"
    local arm=(aarch64-linux-gnu-gcc)
    if ! command -v "${arm[0]}" >/dev/null; then
        python3 -c 'import ziglang' 2>/dev/null || { echo "needs aarch64-linux-gnu-gcc or ziglang" >&2; exit 77; }
        arm=(python3 -m ziglang cc -target aarch64-linux-musl)
    fi
    build "$work/here" "$cc" -O2 -- "$csrc"/*.c "$here/kernel_bits.c"
    build "$work/arm" "${arm[@]}" -O2 -static -- "$csrc"/*.c "$here/kernel_bits.c"
    "$work/here" avx2 "$1" >"$work/avx2"
    qemu-aarch64 "$work/arm" neon "$1" >"$work/neon"
    same neon
}

no_avx() {
    need qemu-x86_64
    local python smoke=$here/../../tools/smoke.py baseline emulated
    # The emulator loads the interpreter itself, so it must be the file and not a script that starts it.
    python=$("$1" -c 'import sys; print(sys.executable)')
    qemu-x86_64 -cpu Nehalem "$python" -P -c \
        'from fastnn.backends import _native as n; assert n.available_isas() == ["baseline"], n.available_isas()'
    baseline=$(FASTNN_ISA=baseline "$python" -P "$smoke")
    emulated=$(qemu-x86_64 -cpu Nehalem "$python" -P "$smoke")
    [[ $baseline == "$emulated" ]] || { echo "without AVX: other bits than FASTNN_ISA=baseline here" >&2; return 1; }
    echo "a processor without AVX: trains and predicts with the bits of the baseline"
}

case ${1:-} in
    asan) asan "${2:-60}" ;;
    tsan) tsan "${2:-1000000}" ;;
    avx512) avx512 "${2:-400}" ;;
    neon) neon "${2:-200}" ;;
    no-avx) no_avx "${2:-python3}" ;;
    *)
        sed -n '2,12p' "$0" >&2
        exit 2
        ;;
esac
