#!/usr/bin/env bash
# Writes constraints.txt: the exact version of every package in .venv, without local versions ("+cpu").
set -euo pipefail
cd "$(dirname "$0")/.."
new=$(mktemp)
trap 'rm -f "$new"' EXIT
{
    sed '/^[^#]/,$d' constraints.txt
    .venv/bin/python -m pip --disable-pip-version-check freeze --exclude-editable |
        grep -viE '^(astrid|nvidia-[^m]|cuda-|triton)' | sed -E 's/\+[A-Za-z0-9.]+$//' | LC_ALL=C sort -f
} >"$new"
cp "$new" constraints.txt
