# CPU images. The last stage, the server, is what a plain build makes:
#
#   docker build -t curt .
#   docker run --rm --read-only -p 8000:8000 -v "$PWD/artifacts/demo/ort-int4:/model:ro" curt
#
# Training and compression, with the run's files kept outside the container:
#
#   docker build --target train -t curt-train .
#   docker run --rm --user "$(id -u)" -v "$PWD/artifacts:/app/artifacts" curt-train \
#       python -m curt.corpus build @configs/demo/corpus.toml --out artifacts/demo/corpus
#
# `train` brings in torch: pass `--build-arg PIP_EXTRA_INDEX_URL=...` with PyTorch's index of CPU
# wheels, or the image grows by the CUDA packages of the usual wheel.

FROM python:3.11-slim-bookworm AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /app
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin curt
# Before the code, so that a change of code leaves the installed packages in their layer.
COPY constraints.txt pyproject.toml ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/python -m pip install --constraint constraints.txt pip
ENV PATH=/opt/venv/bin:$PATH

FROM base AS train
ARG PIP_EXTRA_INDEX_URL
RUN python -m pip install --constraint constraints.txt --group train --group compress
COPY LICENSE ./
COPY configs configs
COPY curt curt
COPY train train
COPY compress compress
RUN mkdir artifacts && chown curt artifacts
USER 10001
# For any user id: libraries ask for a name and a place for caches that nobody needs later.
ENV HOME=/tmp \
    USER=curt \
    HF_HUB_DISABLE_TELEMETRY=1 \
    OMP_WAIT_POLICY=passive \
    TOKENIZERS_PARALLELISM=false
CMD ["python", "-m", "train.grpo", "--help"]

FROM base AS serve
RUN python -m pip install --constraint constraints.txt --group serve
COPY LICENSE ./
COPY curt curt
COPY serve serve
RUN python -m compileall -q curt serve
# Nothing is written while serving, so the root file system may be read-only.
ENV PYTHONDONTWRITEBYTECODE=1 \
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
