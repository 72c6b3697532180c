#!/bin/sh
# Does Millstream run on this machine's GPU, and where does it first fail? Nothing is built, installed or
# downloaded: `benchmarks/gpu_check.sh --output-json FILE` needs a checkout, CUDA's torch and transformers.
# `--dry-run` takes the same way on the CPU; `--help` names the other flags. PYTHON names the interpreter.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
# The root of the checkout is the package, whatever its folder is called.
links=$(mktemp -d)
trap 'rm -rf "$links"' EXIT
ln -s "$root" "$links/millstream"
PYTHONPATH="$links${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \
	"${PYTHON:-python3}" -P -m millstream.benchmarks.gpu_check "$@"
