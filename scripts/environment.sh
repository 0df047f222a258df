#!/usr/bin/env bash
# Makes AstrID's Python environment in .venv, or leaves it alone when nothing it depends on has changed.
#
#   scripts/environment.sh [run|test]     run: what AstrID needs; test (default): the test tools as well
#
# ASTRID_PYTHON       the Python to use (3.11 or 3.12); else the first that fits on the PATH
# ASTRID_TORCH_INDEX  another package index for torch alone, for a CPU or a CUDA build of it
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=${1:-test}
venv=.venv
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 2; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

find_python() {
    local name
    if [ -n "${ASTRID_PYTHON:-}" ]; then
        fits "$ASTRID_PYTHON" || die "ASTRID_PYTHON=$ASTRID_PYTHON is not a Python 3.11 or 3.12"
        echo "$ASTRID_PYTHON"
        return
    fi
    for name in python3.11 python3.12 python3 python; do
        if fits "$name"; then command -v "$name"; return; fi
    done
    die "no Python 3.11 or 3.12 on the PATH (Debian: apt-get install python3 python3-venv; or set ASTRID_PYTHON)"
}

# The stamp says which environment stands here. The test environment holds all of the run environment.
inputs=$(cat pyproject.toml constraints.txt locks/*.txt; echo "$PWD ${ASTRID_TORCH_INDEX:-}")
hash=$(printf '%s' "$inputs" | cksum | cut -d' ' -f1)
if [ -x $venv/bin/python ] && fits $venv/bin/python; then
    for stamp in "$venv/.astrid-test-$hash" "$venv/.astrid-$wanted-$hash"; do
        if [ -e "$stamp" ]; then exit 0; fi
    done
else
    python=$(find_python)
    say "Making .venv with $("$python" --version)"
    rm -rf $venv
    "$python" -m venv $venv ||
        die "python -m venv failed (Debian: apt-get install python3-venv)"
fi

pip() { $venv/bin/python -m pip --disable-pip-version-check "$@"; }

say "Installing what AstrID needs (a few minutes, once)"
locks=(-r locks/run.txt)
if [ "$wanted" = test ]; then locks+=(-r locks/k8s.txt -r locks/test.txt); fi
# Every file is one whose hash the lock has, or pip stops.
pip install -qq --no-deps --require-hashes "${locks[@]}"
# torch after them, and by itself: a person's own index for it must not serve the other packages too, and what torch
# needs is there already, but for the CUDA libraries of its ordinary Linux build.
say "Installing torch $torch_version (once; it is the largest part)"
pip install -qq "torch==$torch_version" ${ASTRID_TORCH_INDEX:+--index-url "$ASTRID_TORCH_INDEX"}
# Built by the setuptools of the lock, not by one fetched for it.
pip install -qq --no-deps --no-build-isolation -e .
broken=$(pip check) || die "the locks lack what pyproject.toml names (make lock): $broken"
rm -f $venv/.astrid-*
touch "$venv/.astrid-$wanted-$hash"
