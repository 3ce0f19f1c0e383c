"""Shorter reasoning by preference: a prompt's shortest right completion against its others.

    python -m train.dpo --corpus artifacts/demo/lessons --out artifacts/demo/dpo
    python -m train.dpo --trajectories '["artifacts/demo/grpo-default.run/trajectories"]' \
        --out artifacts/demo/dpo
    python -m train.dpo --dataset artifacts/feedback/pairs.jsonl --out artifacts/demo/dpo

Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290) by TRL, on pairs of own
samples, of a GRPO log, of the view `pairs`, or of feedback. Where a source does not say what is
right, a prompt's best is paired with its worst. Stop with Ctrl-C at any time; the same command
goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from curt.checkpoint import read_checkpoint
from curt.config import run
from curt.dialogue import encode
from curt.hardware import choose_bf16
from train.data.sampling import SamplingSettings, learned_groups
from train.grpo import TRL_DEFAULTS, open_learner
from train.runs.checkpoints import last_checkpoint
from train.runs.lora import adapter_config, forget_source, load_base
from train.runs.shares import cut_batch

logger = logging.getLogger(__name__)


class DPOSettings(SamplingSettings):
    """Settings of preference training."""

    pairs_per_prompt: int = Field(3, ge=1)
    """Others that the shortest right completion is paired with, drawn at random."""
    beta: float = Field(0.1, gt=0)
    """Weight of the divergence from the starting model."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the pairs."""
    batch: int = Field(16, ge=1)
    """Pairs a step of the update, over all processes."""
    trl: dict[str, Any] = {}
    """Other settings of TRL's DPOConfig, by its names: {"loss_type": ["ipo"], ...}."""


def train_dpo(config: DPOSettings) -> None:
    """Train as configured and write the model folder. Resumes an interrupted run.

    Raises ValueError when there is no pair, ArtifactError when the model can't be used.
    """
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from train.runs.processes import ask_main, join_processes, leave
    from train.runs.progress import ProgressBar, StopCleanly
    from train.runs.weights import write_model
    from train.warm_start.loss import history_rows

    class TokenTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset  # of tokens: TRL would begin each prompt with another BOS

    processes = join_processes()
    count = processes.num_processes
    share, _ = cut_batch(config.batch, 1, processes=count, micro_batch=None, what="batch")
    checkpoint = read_checkpoint(config.model)
    start, run_dir = open_learner(config, checkpoint, samples=not config.is_given)
    pairs = ask_main(lambda: list(draw_pairs(config, run_dir / "trajectories")))
    if not pairs:
        raise ValueError(
            "no prompt has a right completion and a worse one: give more steps, or another model"
        )
    tokenizer = checkpoint.tokenizer

    def tokenise(pair: Mapping[str, Any], part: str) -> list[int]:
        ends = part != "prompt" and not pair.get(f"{part}_truncated")
        return encode(tokenizer, pair[part] + tokenizer.eos_token * ends)

    parts = ("prompt", "chosen", "rejected")
    rows = [{f"{part}_ids": tokenise(pair, part) for part in parts} for pair in pairs]
    options = {
        **TRL_DEFAULTS,
        "output_dir": str(run_dir),
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": share,
        "learning_rate": config.learning_rate,
        "beta": config.beta,
        "max_length": None,
        "precompute_ref_log_probs": True,  # once, and no second model in memory
        "bf16": choose_bf16(config.bf16),
        "save_steps": config.checkpoint_steps,
        "report_to": "none",
        "seed": config.seed,
        **config.trl,
    }
    stop = StopCleanly()
    trainer = TokenTrainer(
        model=load_base(checkpoint, config.lora),
        args=DPOConfig(**options, use_cpu=not torch.cuda.is_available()),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[stop, ProgressBar(f"DPO, {len(pairs)} pairs")],
        peft_config=adapter_config(config.lora) if config.lora else None,
    )
    trainer.remove_callback(PrinterCallback)
    if config.lora:
        forget_source(trainer.model)
    resume = ask_main(lambda: last_checkpoint(run_dir))
    if resume:
        logger.info("resuming from %s", resume)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    processes.wait_for_everyone()  # a process that ends early has the launcher end the others
    if stop.stopped:
        leave("stopped; the same command goes on from here")
    write_model(
        trainer, tokenizer, config.out, start | {"stage": "dpo"}, run=run_dir, source=config.model,
        lora=config.lora, history=history_rows(trainer.state.log_history),
    )  # fmt: skip
    logger.info("DPO model in %s", config.out)


def draw_pairs(config: DPOSettings, log: Path) -> Iterator[dict[str, Any]]:
    """Pairs as the view `pairs` makes them, at most `pairs_per_prompt` of each prompt."""
    from train.data.views import pairs

    rng = random.Random(config.seed)
    for group in learned_groups(config, log, range(1, config.steps + 1)):
        is_judged = any(candidate.exact is not None for candidate in group)
        found = pairs(group, "rest" if is_judged else "reward", 0.0)
        yield from rng.sample(found, min(config.pairs_per_prompt, len(found)))


if __name__ == "__main__":
    run(DPOSettings, train_dpo)
