"""The smallest real runs of `train.sft` and `train.grpo`, in process or as a user starts them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from tests.warm import WarmProcess, start_warm
from train.grpo import GRPOSettings
from train.penalties.group.gated import GatedPenalty
from train.sft import SFTConfig
from train.warm_start.scratch import ModelSize

ROOT = Path(__file__).parents[2]
SHAPE = ModelSize(hidden=64, layers=2, heads=2, kv_heads=1, head_dim=32, ffn=128, vocab=600)
PROMPTS, GENERATIONS = 2, 4


@cache
def draw_cases(count: int) -> tuple[Case, ...]:
    cases = generate_cases(4000, seed=1)
    return tuple(islice((c for c in cases if c.verdict.charges == ("危险驾驶",)), count))


def make_corpus(folder: Path) -> Path:
    """Cases of one charge with one kind of penalty: a model this small learns some by heart."""
    cases = draw_cases(70)
    assert write_cases(folder / "train.jsonl", cases[:60]) == 60
    assert write_cases(folder / "dev.jsonl", cases[60:70]) == 10
    return folder


def sft_config(corpus: Path, out: Path, **changes) -> SFTConfig:
    options = {
        "shape": SHAPE,
        "verbosity_weights": {"terse": 0.4, "mini": 0.3, "gap": 0.1, "none": 0.2},
        "per_case": 2,
        "batch": 5,
        "epochs": 20.0,
        "learning_rate": 4e-3,
        "max_fact_tokens": 120,
        "max_thinking_tokens": 32,
        "bf16": False,
    }
    return SFTConfig(corpus=corpus, out=out, **options | changes)


def grpo_config(corpus: Path, model: Path, out: Path, **changes) -> GRPOSettings:
    options = {
        "penalty": GatedPenalty(),
        "steps": 4,
        "prompts": PROMPTS,
        "generations": GENERATIONS,
        "budgets": [8, 16],
        "max_thinking_tokens": 16,
        "checkpoint_steps": 2,
    }
    return GRPOSettings(corpus=corpus, model=str(model), out=out, **options | changes)


def made_by(work: Callable, config) -> Path:
    """The folder that an entry point's work writes."""
    work(config)
    return config.out


def break_off(monkeypatch: pytest.MonkeyPatch, work: Callable, config) -> None:
    """A run that is stopped after its last step, before its folder is written."""

    def stops(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("train.runs.weights.write_artifact", stops)
        with pytest.raises(KeyboardInterrupt):
            work(config)


def start(module: str, config, log: Path) -> WarmProcess:
    """Run an entry point as a user does, from a TOML file of its settings."""
    return start_warm(module, [f"@{write_settings(config, log)}"], log)


def write_settings(config, log: Path) -> Path:
    """The TOML file of a configuration, beside its log."""
    settings = {k: v for k, v in config.model_dump(mode="json").items() if v is not None}
    toml = log.with_suffix(".toml")
    toml.write_text(write_toml(settings), encoding="utf-8")
    return toml


def write_toml(settings: dict) -> str:
    plain = [f"{k} = {json.dumps(v)}" for k, v in settings.items() if not isinstance(v, dict)]
    for name, table in settings.items():
        if isinstance(table, dict):
            plain += [f"[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
    return "\n".join(plain)


def wait_until(
    reached: Callable[[], bool], process: WarmProcess | subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"ended too early: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.02)


def finish(process: WarmProcess | subprocess.Popen[bytes], log: Path) -> None:
    assert process.wait(timeout=180) == 0, log.read_text()[-2000:]
