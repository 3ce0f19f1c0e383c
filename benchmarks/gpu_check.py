"""GRPO steps, packed beside TRL's own, and decode latency, on one GPU in eight minutes.

    configs/gpu-check/run.sh

Warm-starts the model of `configs/gpu-check` on generated cases, trains it twice for a few steps,
and lets transformers write fixed numbers of tokens. It runs on a CPU too, which the report says.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field

from benchmarks.run import describe_machine, write_results
from curt.config import Config, load_config, run
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases

logger = logging.getLogger(__name__)


class GpuCheckConfig(Config):
    """What is measured."""

    configs: Path = Path("configs/gpu-check")
    """Folder of sft.toml and grpo.toml."""
    out: Path = Path("benchmarks/results/gpu/check.json")
    """Report to write."""
    cases: int = Field(6000, ge=2)
    """Generated cases to train on."""
    tokens: tuple[int, ...] = (32, 64, 128)
    """Numbers of tokens to write after a prompt."""
    repeats: int = Field(20, ge=2)


def check(config: GpuCheckConfig) -> None:
    """Train, decode and write the report."""
    import torch

    from train.grpo import GRPOSettings, train_grpo
    from train.sft import SFTConfig, train_warm_start

    gpu = torch.cuda.is_available()
    report: dict[str, Any] = {
        "machine": describe_machine(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "torch": torch.__version__,
        "stage_s": {},
        "step_s": {},
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_cases(work / "train.jsonl", generate_cases(config.cases, seed=8))
        (work / "test.jsonl").touch()

        def train(cls: Any, train_it: Any, file: str, out: str, *more: str) -> Path:
            places = ["--corpus", temporary, "--out", str(work / out)]
            started = time.perf_counter()
            train_it(load_config(cls, [f"@{config.configs / file}", *places, *more]))
            report["stage_s"][out] = round(time.perf_counter() - started, 1)
            return work / out

        warm = train(SFTConfig, train_warm_start, "sft.toml", "warm-start")
        for out, compact in (("packed", "true"), ("plain", "false")):
            options = ("--model", str(warm), "--compact", compact)
            folder = train(GRPOSettings, train_grpo, "grpo.toml", out, *options)
            rows = json.loads((folder / "history.json").read_bytes())
            report["step_s"][out] = {
                "median": round(median(row["seconds"] for row in rows[2:] or rows), 3),
                "completion_tokens": rows[-1]["completion_tokens"],
            }
        report["decode"] = _decode(warm, config, "cuda" if gpu else "cpu")
    report["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None
    write_results(config.out, report)
    logger.info("report in %s", config.out)


def _decode(folder: Path, config: GpuCheckConfig, device: str) -> dict[str, Any]:
    """Milliseconds of greedy decoding in bf16, prompt included, by number of tokens."""
    import torch

    from curt.classifier.candidates import load_prompts
    from curt.engines.tokenizer import PromptTokenizer
    from curt.engines.transformers import load_model

    model = load_model(folder, dtype=torch.bfloat16).to(device).eval()
    prompts = load_prompts(folder, PromptTokenizer(folder), 200)
    asked = [prompts.encode(c.fact, 128).ids for c in generate_cases(config.repeats, seed=9)]
    found: dict[str, Any] = {"parameters": model.num_parameters()}
    for tokens in config.tokens:
        times = []
        for ids in asked:
            prompt = torch.tensor([ids], device=device)
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
            ).tolist()  # waits for the GPU
            times.append((time.perf_counter() - started) * 1e3)
        steady = sorted(times[1:])  # the first chooses kernels
        found[f"{tokens}_tokens_ms"] = {
            "median": round(median(steady), 1),
            "highest": round(steady[-1], 1),
        }
    return found


if __name__ == "__main__":
    run(GpuCheckConfig, check)
