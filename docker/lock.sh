#!/usr/bin/env bash
# Writes the image's locks from pyproject.toml, at the versions that .venv has: what is tested is what is shipped.
# Usage: make lock     (uv resolves; it is installed into .venv where it is missing)
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=${BIN:-.venv/bin}
UV=${UV:-$BIN/uv}
test -x "$UV" || "$BIN/python" -m pip install --quiet --disable-pip-version-check uv
WORK=$(mktemp -d)
trap 'rm -r "$WORK"' EXIT

"$BIN/python" -m pip freeze --exclude-editable | grep == >"$WORK/tested.txt"
"$UV" pip compile pyproject.toml --extra demo --extra image --constraint "$WORK/tested.txt" \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-annotate --no-header --quiet --output-file "$WORK/all.txt"

# A requirement is a line that begins with its name, and the indented lines of its hashes.
part() { # pattern of the names, 1: those, 0: all others
    echo "# Written by 'make lock'."
    awk -v wanted="$2" -v names="$1" '/^[a-zA-Z0-9]/ { is = ($0 ~ names) } is == wanted' "$WORK/all.txt"
}
BUILD='^setuptools==' # kfp-server-api comes as source alone, and is built with it
TORCH='^(torch|torchvision|triton)==|^(nvidia|cuda)-'
part "$BUILD" 1 >docker/requirements-build.txt
part "$TORCH" 1 >docker/requirements-cuda.txt
part "$BUILD|$TORCH" 0 >docker/requirements.txt
{
    echo "# Written by 'make lock'. By version and not by hash: the index of torch's CPU wheels is a build argument."
    grep -oE '^(torch|torchvision)==[^ ]+' "$WORK/all.txt"
} >docker/requirements-cpu.txt
wc -l docker/requirements*.txt
