#!/bin/bash
# What one GPU of 24 GB or more tells in at most eight minutes: seconds a GRPO step, packed and plain,
# and decode latency, of a hundred million parameters in bf16. From the root of the checkout:
#
#   configs/gpu-check/run.sh [OUT.json]        # PYTHON=… for another interpreter than .venv's
#
# Needs the group train of pyproject.toml and psutil. To a machine with PyTorch, transformers and peft but
# no index, carry wheels of trl, datasets, dill, multiprocess, pydantic, pydantic-core,
# pydantic-settings, typing-inspection, annotated-types and python-dotenv. Nothing is fetched.
set -euo pipefail
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
timeout 480 "${PYTHON:-.venv/bin/python}" -m benchmarks.gpu_check \
    --out "${1:-benchmarks/results/gpu/check.json}"
