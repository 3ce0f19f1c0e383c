"""One engine in a process of its own, asked by lines; `benchmarks.single` asks.

    python -m benchmarks.peers.alone --library llama.cpp --model FILE --threads 1

Each line on its input holds a prompt of token ids and how many to write; each on its output how
long that took, in milliseconds. A model that stops early is made to go on, so that everybody writes
as many.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Literal

from benchmarks.peers.engines import ENGINES, EngineConfig
from curt.config import run

CONTEXT = 1024


class AloneConfig(EngineConfig):
    """What to load, and with what."""

    slots: int = 1
    context: int = CONTEXT
    stops: bool = False

    library: Literal["curt", "llama.cpp", "openvino"]
    """What completes."""


def work(config: AloneConfig) -> None:
    """Answer every line until there are no more."""
    engine = ENGINES[config.library](config)
    engine.complete(list(range(100, 132)), 4)
    _tell("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        written = engine.complete(asked["prompt"], asked["tokens"])
        taken_ms = (time.perf_counter() - began) * 1e3
        if len(written) != asked["tokens"]:
            raise RuntimeError(f"{len(written)} tokens where {asked['tokens']} were asked for")
        _tell(json.dumps(taken_ms))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    run(AloneConfig, work, expected=(OSError, RuntimeError, ValueError))
