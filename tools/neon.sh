#!/usr/bin/env bash
# Compiles the kernels for aarch64, warnings being errors, and compares NEON with the portable ones where the result
# can run: here if this is such a machine, else in the emulator. Flags are those of CMakeLists.txt. Nothing of Python.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "$(uname -m)" = aarch64 ]; then
    compiler=c++ run=
elif command -v aarch64-linux-gnu-g++ >/dev/null; then
    compiler=aarch64-linux-gnu-g++
    run=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || echo missing)
else
    echo "skipped: no compiler for aarch64 (Debian, Ubuntu: apt install g++-aarch64-linux-gnu qemu-user-static)"
    exit 0
fi

flags=(-std=c++20 -O3 -Wall -Wextra -Werror -Wno-psabi -Wno-maybe-uninitialized -Wno-uninitialized -ffp-contract=off -pthread -Icsrc)
build=build/neon
mkdir -p "$build"
rm -f "$build"/*
jobs=()
compile() { # object, source, further flags
    "$compiler" "${flags[@]}" "${@:3}" -c "$2" -o "$build/$1.o" &
    jobs+=($!)
    if [ ${#jobs[@]} -ge 2 ]; then
        wait "${jobs[0]}"
        jobs=("${jobs[@]:1}")
    fi
}
for source in csrc/*.cpp; do
    name=$(basename "$source" .cpp)
    case $name in
    bindings) ;; # the only file that knows Python
    isa | parallel) compile "$name" "$source" ;;
    *)
        compile "$name.generic" "$source" -DGLM4_ISA=generic -DGLM4_GENERIC=1
        compile "$name.neon" "$source" -DGLM4_ISA=neon -DGLM4_NEON=1 -march=armv8.2-a+dotprod
        ;;
    esac
done
compile test tests/kernels/isa_test.cpp
for job in "${jobs[@]}"; do wait "$job"; done
"$compiler" -static -pthread "$build"/*.o -o "$build/isa_test"
if [ "$run" = missing ]; then
    echo "compiled for aarch64; not run: no emulator (Debian, Ubuntu: apt install qemu-user-static)"
    exit 0
fi
$run "$build/isa_test"
