#!/usr/bin/env bash
# vLLM's OpenAI-compatible server on a machine without a GPU.
#
#   deploy/vllm-cpu/serve.sh ENV_DIR MODEL PORT [more arguments of vllm serve]
#
# MODEL is a folder in Hugging Face format. Answers at /health when it is ready;
# the first request still compiles: warm it up before timing it (Curt's workers do).
set -euo pipefail

ENV_DIR=$(cd "${1:?usage: serve.sh ENV_DIR MODEL PORT}" && pwd)
MODEL=${2:?usage: serve.sh ENV_DIR MODEL PORT}
PORT=${3:?usage: serve.sh ENV_DIR MODEL PORT}
shift 3

# One GiB of key-value cache is plenty for millions of parameters; raise it for billions.
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
# The cores its threads are bound to: all but the last, on which the server in front of it gets
# its turn. With every core taken, a request on two busy cores took four times as long.
CORES=$(nproc)
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-0-$((CORES > 1 ? CORES - 2 : 0))}
# Intel's OpenMP runtime, which its kernels are tuned for; it comes with torch's requirements.
if [ -e "$ENV_DIR/lib/libiomp5.so" ]; then
    export LD_PRELOAD="$ENV_DIR/lib/libiomp5.so${LD_PRELOAD:+:$LD_PRELOAD}"
fi
# Prompts are cases: nothing of them may reach a log or leave the machine.
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export PATH="$ENV_DIR/bin:$PATH"

exec "$ENV_DIR/bin/vllm" serve "$MODEL" \
    --host 127.0.0.1 --port "$PORT" \
    --served-model-name "${SERVED_NAME:-curt}" \
    --dtype "${VLLM_DTYPE:-float32}" \
    --max-num-seqs "${VLLM_MAX_NUM_SEQS:-16}" \
    --enable-prefix-caching \
    --disable-uvicorn-access-log \
    "$@"
