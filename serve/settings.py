"""What the server reads from its environment: `CURT_MODEL`, `CURT_WORKERS`, `CURT_PORT`, ..."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from curt.artifact import ArtifactError, Manifest, load_manifest

logger = logging.getLogger(__name__)

PREFIX = "CURT_"
MIN_DEADLINE_MS, MAX_DEADLINE_MS = 20, 60_000


def _cpu_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Settings(BaseSettings):
    """The server's settings, each from the environment variable `CURT_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    model: Path
    """Model folder to serve, of format ort-genai, with its manifest."""

    workers: int = Field(default_factory=_cpu_count, ge=1, le=256)
    """Worker processes, one thread each; by default one per usable core."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 inside a container."""

    port: int = Field(8000, ge=0, le=65_535)
    """Port to listen on; 0 picks a free one."""

    queue_size: int = Field(64, ge=1, le=10_000)
    """Requests that may wait; more are refused with 503."""

    default_deadline_ms: int = Field(400, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS)
    """Deadline of a request that names none."""

    margin_ms: float = Field(15.0, ge=0, le=1_000)
    """Kept back from every deadline for the front: parsing, pipes, the reply."""

    max_body_bytes: int = Field(131_072, ge=1_024)
    """Larger bodies are refused with 413. Holds max_fact_chars even when written as \\uXXXX."""

    max_fact_chars: int = Field(20_000, ge=1)
    """Longer facts are refused with 422."""

    drain_s: float = Field(1.0, ge=0, le=600)
    """After SIGTERM keep answering 503 this long, so that balancers notice, before closing."""

    log_json: bool = True
    """One JSON object a log line; false for lines meant for people."""

    def manifest(self) -> Manifest:
        """The verified manifest of the model folder. Raises ArtifactError when it is not valid."""
        try:
            return load_manifest(self.model, expect="ort-genai")
        except OSError as error:
            raise ArtifactError(f"{self.model}: {error.strerror}") from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A message for each CURT_ variable this server does not know: a typo must not pass."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    messages = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            messages.append(f"{name} is no setting" + (f"; {near[0]}?" if near else ""))
    return messages
