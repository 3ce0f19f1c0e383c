# Images of Curt. The last stage, the server on CPU, is what a plain build makes:
#
#   docker build -t curt:0.1.0 .
#   docker run --rm --read-only --tmpfs /tmp --cap-drop ALL -p 8000:8000 \
#       -v "$PWD/artifacts/demo/ort-w8a8:/model:ro" curt:0.1.0
#
# The server with vLLM in one container, for a machine with one GPU and a model folder of format hf:
#
#   docker build --target gpu -t curt-gpu:0.1.0 .
#   docker run --rm --gpus all --ipc host --read-only --tmpfs /tmp:exec -p 8000:8000 \
#       -v "$PWD/artifacts/mine/grpo:/model:ro" curt-gpu:0.1.0
#
# With TensorRT-LLM (formats hf and trtllm-hf): build with ENGINE_IMAGE set to the name under which
# you pull NVIDIA's tensorrt-llm/release:1.2.1, and run with -e CURT_ENGINE=tensorrt-llm.
#
# Training and compression, with the run's files kept outside the container:
#
#   docker build --target train -t curt-train:0.1.0 .
#   docker run --rm --user "$(id -u)" -v "$PWD/artifacts:/app/artifacts" curt-train:0.1.0 \
#       python -m curt.corpus build @configs/demo/corpus.toml --out artifacts/demo/corpus
#
# `train` brings in torch: pass `--build-arg PIP_EXTRA_INDEX_URL=...` with PyTorch's index of CPU
# wheels, or the image grows by the CUDA packages of the usual wheel.
#
# A tag can be moved to another image. Where builds must be the same for ever, give the digest:
# `--build-arg PYTHON_IMAGE=python@sha256:...`, and likewise ENGINE_IMAGE.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG ENGINE_IMAGE=vllm/vllm-openai:v0.31.0

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin curt
ENV PATH=/opt/venv/bin:$PATH

# Packages come before the code, so that a change of code leaves them in their layer. Stages that
# install stay behind; an image takes over the finished environment alone.
FROM base AS packages
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --constraint constraints.txt pip

FROM packages AS train-packages
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install --constraint constraints.txt --group train --group compress

FROM packages AS serve-packages
# What serving never opens goes: test suites of packages, and pip itself.
RUN python -m pip install --constraint constraints.txt --group serve \
    && find /opt/venv/lib -type d -name tests -prune -exec rm -rf {} + \
    && python -m pip uninstall --yes pip

FROM base AS train
COPY --from=train-packages /opt/venv /opt/venv
COPY LICENSE constraints.txt pyproject.toml ./
COPY configs configs
COPY curt curt
COPY train train
COPY compress compress
RUN mkdir artifacts && chown curt artifacts
USER 10001
# For any user id: libraries ask for a name and a place for caches that nobody needs later.
# hadolint ignore=DL3064
ENV HOME=/tmp \
    USER=curt \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    OMP_WAIT_POLICY=passive \
    TOKENIZERS_PARALLELISM=false
CMD ["python", "-m", "train.grpo", "--help"]

# The engine's own image with the server beside it, in an environment of its own, as both pin
# packages of the same names. The image's Python may lack ensurepip, so its pip helps out.
FROM ${ENGINE_IMAGE} AS gpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
USER 0
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin curt
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m pip --python /opt/venv/bin/python install --constraint constraints.txt pip \
    && /opt/venv/bin/python -m pip install --constraint constraints.txt --group serve
COPY LICENSE ./
COPY curt curt
COPY serve serve
COPY deploy/gpu/start.sh /app/start.sh
RUN /opt/venv/bin/python -m compileall -q curt serve
# Engines compile kernels when they start, under HOME: /tmp must be writable and executable.
ENV PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp \
    USER=curt \
    HF_HUB_OFFLINE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    TRANSFORMERS_NO_ADVISORY_WARNINGS=1 \
    VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    CURT_MODEL=/model \
    CURT_ENGINE=vllm \
    CURT_WORKERS=32 \
    CURT_HOST=0.0.0.0 \
    CURT_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=600s --retries=3 \
    CMD ["/opt/venv/bin/python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['CURT_PORT'] + '/livez', timeout=2)"]
ENTRYPOINT ["/app/start.sh"]
CMD []

FROM base AS serve
COPY --from=serve-packages /opt/venv /opt/venv
COPY LICENSE ./
COPY curt curt
COPY serve serve
RUN python -m compileall -q curt serve
# The root file system may be read-only: but for a socket between its processes, in /tmp, serving
# writes nothing. ONNX Runtime would send what it runs to its maker.
ENV PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_NO_ADVISORY_WARNINGS=1 \
    CURT_MODEL=/model \
    CURT_HOST=0.0.0.0 \
    CURT_PORT=8000
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['CURT_PORT'] + '/livez', timeout=2)"]
CMD ["python", "-m", "serve"]
