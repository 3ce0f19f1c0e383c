#!/usr/bin/env bash
# The environment of llama.cpp and OpenVINO GenAI, for `python -m benchmarks.peers` and `.single`.
#
#   benchmarks/peers/install.sh [ENV_DIR]     # .venv-peers
#
# llama.cpp is compiled here: it takes a C++ compiler, cmake and many minutes. vLLM has an
# environment of its own: deploy/vllm-cpu/install.sh .venv-vllm
set -euo pipefail

ENV_DIR=${1:-.venv-peers}
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

python3 -m venv "$ENV_DIR"
pip() { "$ENV_DIR/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install --constraint "$HERE/constraints.txt" \
    fastapi "uvicorn[standard]" tokenizers numpy gguf safetensors \
    openvino-genai llama-cpp-python sse-starlette starlette-context pydantic-settings
"$ENV_DIR/bin/python" -c "import fastapi, llama_cpp, openvino_genai"
echo "$ENV_DIR is ready"
