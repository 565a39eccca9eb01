#!/usr/bin/env bash
# `make test-fast`, without the long tests of kernels, under the oldest and the newest Python we promise, each in an environment of its own (.venv-3.10 …).
# An interpreter is looked for on PATH and among pyenv's versions; one that is nowhere is skipped and said so.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() { # version
    local found
    for found in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/"python$1"; do
        # pyenv's shims exist for versions that are not switched on; they only print an error.
        if [ -x "$found" ] && "$found" -c 'import venv' 2>/dev/null; then
            echo "$found"
            return
        fi
    done
    return 1
}

# The kernels are the same C++ under every Python; their bindings are tested by what stays.
kernels=(--ignore=tests/kernels/test_{linear,attention,elementwise,odd_shapes,group_codes,rounding_loops,ordered_sums}.py)

versions=("$@")
[ $# -gt 0 ] || versions=(3.10 3.13)
for version in "${versions[@]}"; do
    if python=$(find_python "$version"); then
        echo "Python $version: $python"
        make --no-print-directory test-fast PYTHON="$python" VENV=".venv-$version" ARGS="${kernels[*]}"
    else
        echo "Python $version: skipped, there is none on PATH or in pyenv"
    fi
done
