"""Which of several exports of one model to serve, by what its export measured on this machine.

    python -m compress.onnx.fastest --artifacts '["artifacts/real-x/ort-int4", …]'

Prints the folder that takes the least time for a whole request, of those whose next tokens are
near enough to the parent's. Which recipe that is depends on the processor as much as on the model:
where products of eight bits are slow, four bits save memory and lose time.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from compress.compare.choice import ANSWER_TOKENS
from compress.distance import MAX_KL
from curt.artifact import load_manifest
from curt.config import Config, run

log = logging.getLogger(__name__)


class FastestConfig(Config):
    """Settings of `python -m compress.onnx.fastest`."""

    artifacts: list[Path] = Field(min_length=1)
    """Folders of `compress.onnx.export`, all of one parent."""
    prompt_tokens: int = Field(250, ge=1)
    """Of a request, beside what every prompt starts with."""
    written_tokens: int = Field(ANSWER_TOKENS, ge=1)
    """Of thinking and answer."""
    threads: int = Field(1, ge=1, le=2)
    """What of the measurements counts; two stand for more."""
    max_kl: float = Field(MAX_KL, gt=0)
    """Furthest from the parent, in nats a token; where all are further, the nearest is taken."""


def work(config: FastestConfig) -> None:
    """Print the folder to serve."""
    measured = {
        str(folder): load_manifest(folder, expect="ort-genai").evaluation
        for folder in config.artifacts
    }
    sys.stdout.write(choose_fastest(measured, config) + "\n")


def choose_fastest(measured: Mapping[str, Mapping[str, float]], config: FastestConfig) -> str:
    """The name to take, of rows of `compress.onnx.parity.measure_parity` by name."""
    nearest = min(row["kl"] for row in measured.values())
    took_ms = {}
    for name, row in measured.items():
        read_s = config.prompt_tokens / row[f"prefill_tokens_per_s_{config.threads}_threads"]
        write_s = config.written_tokens / row[f"decode_tokens_per_s_{config.threads}_threads"]
        took_ms[name] = 1e3 * (read_s + write_s)
        log.info("%s: %.0f ms a request, %.4f nats from its parent", name, took_ms[name], row["kl"])
    near = [name for name, row in measured.items() if row["kl"] <= max(config.max_kl, nearest)]
    return min(near, key=lambda name: took_ms[name])


if __name__ == "__main__":
    run(FastestConfig, work)
