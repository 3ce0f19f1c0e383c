"""What the server reads from its environment: `CURT_MODEL`, `CURT_WORKERS`, `CURT_PORT`, ..."""

from __future__ import annotations

import difflib
import logging
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from curt.artifact import READER, ArtifactError, Manifest, load_manifest, refusal_of
from curt.engines.registry import ENGINES, serving_engine

logger = logging.getLogger(__name__)

PREFIX = "CURT_"
MIN_DEADLINE_MS, MAX_DEADLINE_MS = 20, 60_000
MAX_BATCH_CASES = 1_000
MIN_SECRET_BYTES = 16


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker_count(settings: Mapping[str, Any]) -> int:
    threads: int = settings.get("threads", 1)
    return max(1, _cpu_count() // threads)


class Settings(BaseSettings):
    """The server's settings, each from the environment variable `CURT_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,  # in compose files, CURT_X= says that there is none
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )

    model: Path
    """Model folder to serve, with its manifest: of format ort-genai for `onnxruntime`, hf for
    `vllm`, either of hf and trtllm-hf for `tensorrt-llm`."""

    engine: str = "onnxruntime"
    """What runs the model: workers of ours (onnxruntime), or a remote server that has loaded the
    same folder (vllm, tensorrt-llm)."""

    engine_url: str | None = Field(None, pattern=r"^https?://[^/]+/?$")
    """Root address of that server, http://host:port."""

    engine_model: str | None = None
    """What that server calls the model; needed where it serves several."""

    engine_api_key: SecretStr | None = None
    """Key that server asks for."""

    threads: int = Field(1, ge=1, le=256)
    """Threads of a worker. Where one request takes seconds, as with hundreds of millions of
    parameters, as many as there are cores answer it soonest."""

    workers: int = Field(default_factory=_worker_count, ge=1, le=256)
    """Worker processes; by default so many that each of their threads has a core. With a remote
    engine the requests in flight there."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 inside a container."""

    port: int = Field(8000, ge=0, le=65_535)
    """Port to listen on; 0 picks a free one."""

    queue_size: int = Field(64, ge=1, le=10_000)
    """Requests that may wait; more are refused with 503."""

    default_deadline_ms: int = Field(400, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS)
    """Deadline of a request that names none."""

    margin_ms: float = Field(15.0, ge=0, le=1_000)
    """Part of every deadline reserved for the front: parsing, pipes, the reply."""

    max_body_bytes: int = Field(131_072, ge=1_024)
    """Larger bodies are refused with 413. Holds max_fact_chars even when written as \\uXXXX."""

    max_connections: int = Field(1_000, ge=1)
    """Open connections; of more, the one that has been without a request longest is closed. Fewer
    where the process may not have as many files open."""

    max_header_bytes: int = Field(32_768, ge=1_024)
    """Larger heads of requests are refused with 431."""

    max_headers: int = Field(100, ge=10)
    """Heads of more lines are refused with 431."""

    head_timeout_s: float = Field(10.0, gt=0)
    """A connection on which no whole head of a request arrives for so long is closed."""

    keep_alive_s: int = Field(5, ge=1)
    """A connection without a further request is closed after so long; proxies that keep theirs
    must let go of them sooner."""

    max_batch_cases: int = Field(32, ge=1, le=MAX_BATCH_CASES)
    """Cases in one request; more are refused with 422. Where the rate is limited, no more than
    rate_burst and max_concurrent."""

    max_fact_chars: int = Field(20_000, ge=1)
    """Longer facts are refused with 422."""

    batches: Path | None = None
    """Folder for batches that are answered when nobody waits; without it none are taken. Their
    facts and results lie in it."""

    batch_bytes: int = Field(16_777_216, ge=1_024)
    """Larger batches are refused with 413; they may take six times max_body_s to arrive."""

    batch_cases: int = Field(10_000, ge=1)
    """Batches of more cases are refused with 422."""

    batch_retention_s: float = Field(604_800, gt=0)
    """After which a batch and its results are deleted, done or not; 7 days."""

    drain_s: float = Field(1.0, ge=0, le=600)
    """After SIGTERM keep answering 503 this long, so that balancers notice, before closing."""

    log_json: bool = True
    """One JSON object a log line; false for lines meant for people."""

    spares: int = Field(1, ge=0, le=16)
    """Warm workers that replace one that dies."""

    fallback: Path | None = None
    """Classifier folder of `compress.classifier.train`: verdicts where the model has no time, and
    how sure every verdict is. By default the model's own reader, where it has one."""

    interval_coverage: float = Field(0.8, gt=0, le=0.95)
    """Share of cases whose term the interval in a reply is to hold."""

    abstain_below: float = Field(0.5, ge=0, le=1)
    """Probability of being right below which a reply carries the warning `low_confidence`."""

    cache_ttl_s: float = Field(600.0, ge=0)
    """How long an answer is kept for the same facts; 0 keeps none."""

    cache_bytes: int = Field(67_108_864, ge=0)
    """Memory of the cache."""

    cache_shared: bool = False
    """Whether one API key may get what was answered to another: the time an answer takes then tells
    whether somebody has asked about that case."""

    redis_url: SecretStr | None = None
    """redis:// address that shares cache and rate limits between servers."""

    cache_secret: SecretStr | None = None
    """At least 16 characters, the same for all servers on one Redis: without it nobody can find,
    read or make up what is kept there."""

    keys_file: Path | None = None
    """API keys made by `python -m serve.edge.keys new`; without it anyone may ask."""

    rate_per_s: float | None = Field(None, gt=0)
    """Requests a second of one key, or of one address without keys; no limit when not given."""

    rate_burst: int = Field(20, ge=1)
    """Requests that a client may send at once before that rate holds."""

    max_concurrent: int = Field(32, ge=1)
    """Requests of one client under way at once, where the rate is limited."""

    trusted_proxies: list[str] = []
    """Networks whose X-Forwarded-For counts, as a JSON list."""

    cors_origins: list[str] = []
    """Origins whose pages may call this server, as a JSON list; none by default."""

    hsts_s: int = Field(0, ge=0)
    """Seconds browsers shall insist on HTTPS; 0 leaves that to the proxy."""

    models: Path | None = None
    """Folder of model folders that `/admin` may load; off without it."""

    allow_refused: bool = False
    """Whether to start with a model that its promotion gate (`curt.gate`) refused."""

    variants_file: Path | None = None
    """File that keeps which model was promoted to live, so that a restart serves it."""

    feedback: Path | None = None
    """Folder for users' feedback on answers; without it none is taken."""

    keep_facts: bool = False
    """Whether to keep facts with the answers, for training on feedback. They are personal data."""

    fact_retention_s: float = Field(2_592_000, gt=0)
    """After which kept facts are deleted; 30 days."""

    answer_ttl_s: float = Field(604_800, gt=0)
    """How long feedback on an answer is taken; 7 days."""

    max_answers: int = Field(10_000, ge=1)
    """Answers remembered for feedback."""

    drift_reference: Path | None = None
    """The training corpus's corpus.json: how far answered charges are from it, at /metrics."""

    evaluation: Path | None = None
    """Report of `curt.evaluate` on the model: accuracy per budget, for /version and the page."""

    max_body_s: float = Field(10.0, gt=0)
    """Bodies that take longer to arrive get 408."""

    otlp_endpoint: str | None = None
    """OTLP/HTTP collector for traces, http://host:4318."""

    def deadline_ms(self, asked_ms: int | None) -> int:
        """The deadline of a request that asked for one, or for none."""
        return self.default_deadline_ms if asked_ms is None else asked_ms

    def secret_bytes(self) -> bytes:
        """The cache's secret, empty without one."""
        return self.cache_secret.get_secret_value().encode() if self.cache_secret else b""

    def classifier_folder(self) -> Path | None:
        """Folder of the classifier that stands in; None where there is none."""
        own = self.model / READER
        return self.fallback or (own if own.is_dir() else None)

    def manifest(self) -> Manifest:
        """The verified manifest of the model folder. Raises ArtifactError when it is not valid."""
        try:
            manifest = load_manifest(self.model)
        except OSError as error:
            raise ArtifactError(f"{self.model}: {error.strerror}") from error
        formats = serving_engine(self.engine).formats
        if manifest.format not in formats:
            raise ArtifactError(
                f"{self.model} holds {manifest.format}, but {' or '.join(formats)} "
                f"is needed here, for CURT_ENGINE={self.engine}"
            )
        if (refusal := refusal_of(self.model)) and not self.allow_refused:
            raise ArtifactError(f"{self.model} is {refusal}: CURT_ALLOW_REFUSED=1 serves it anyway")
        return manifest

    @model_validator(mode="after")
    def _redis_has_a_secret(self) -> Settings:
        if self.redis_url is not None and len(self.secret_bytes()) < MIN_SECRET_BYTES:
            raise ValueError(
                f"CURT_REDIS_URL needs CURT_CACHE_SECRET, {MIN_SECRET_BYTES} characters or more: "
                "make one with openssl rand -hex 32"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_an_address(self) -> Settings:
        remote = serving_engine(self.engine).is_remote
        if remote and self.engine_url is None:
            raise ValueError(f"CURT_ENGINE={self.engine} needs CURT_ENGINE_URL, http://host:port")
        if self.engine_url is not None and not remote:
            names = [name for name, engine in ENGINES.items() if engine.is_remote]
            raise ValueError(
                f"CURT_ENGINE_URL is for {' and '.join(names)}, but CURT_ENGINE={self.engine}"
            )
        return self


def describe_settings() -> str:
    """Every setting's variable with its default and what it does."""
    lines = []
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        value = "required" if field.is_required() else "" if default is None else f"{default}"
        lines.append(f"{PREFIX}{name.upper()} ({value})" if value else f"{PREFIX}{name.upper()}")
        lines.append(textwrap.indent(field.description or "", "    "))
    return "\n".join(lines)


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A message for each CURT_ variable that is no setting, so that a typo is noticed."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    messages = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            messages.append(f"{name} is no setting" + (f"; {near[0]}?" if near else ""))
    return messages
