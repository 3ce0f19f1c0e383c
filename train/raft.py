"""Shorter reasoning by supervised rounds on a model's own shortest right completions.

    python -m train.raft --corpus artifacts/demo/lessons --rounds 3 --out artifacts/demo/raft
    python -m train.raft --trajectories '["artifacts/demo/grpo-default.run/trajectories"]' \
        --out artifacts/demo/raft

A round samples completions, keeps each prompt's shortest right one and learns those (RAFT, Dong et
al. 2023, arXiv 2304.06767, ranked by length; rejection sampling). The next round samples from the
model that came of it. A log of GRPO, or a view `best` or `shortest`, can take the place of the
first round's samples. All samples and the models between stay under `{out}.run`. Stop with Ctrl-C
at any time; the same command goes on.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from curt.artifact import MANIFEST
from curt.checkpoint import read_checkpoint
from curt.config import run
from curt.dialogue import GRAMMAR_VERSION
from curt.files import close_run, write_rows
from train.data.sampling import SamplingSettings, learned_groups
from train.grpo import open_learner
from train.sft import SFTConfig, train_warm_start

logger = logging.getLogger(__name__)

LEARNED = (
    "learning_rate", "epochs", "lora", "bf16", "checkpoint_steps", "seed", "max_thinking_tokens",
)  # fmt: skip


class RaftSettings(SamplingSettings):
    """Settings of supervised rounds."""

    rounds: int = Field(1, ge=1)
    """How often to sample and to train; the steps of sampling are shared among them."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the completions kept, in each round."""
    sft: dict[str, Any] = {}
    """Further settings of `train.sft`, by its names: {"batch": 32, "micro_batch": 4, ...}."""


def train_raft(config: RaftSettings) -> None:
    """Sample and train as configured and write the model folder. Resumes an interrupted run.

    Raises ValueError when a round has no right completion to learn, ArtifactError when the model
    can't be used.
    """
    from train.runs.processes import ask_main, join_processes

    join_processes()
    checkpoint = read_checkpoint(config.model)
    start, run_dir = open_learner(config, checkpoint, samples=not config.is_given)
    given = config
    for number in range(1, config.rounds + 1):
        this = run_dir / f"round-{number}"
        steps = range(*(config.steps * n // config.rounds + 1 for n in (number - 1, number)))
        sft = SFTConfig(
            **{name: getattr(config, name) for name in LEARNED} | config.sft,
            model=given.model,
            dataset=this.with_suffix(".jsonl"),
            max_fact_tokens=start["max_fact_tokens"],
            tell_grammar=start["prompt_version"] == GRAMMAR_VERSION,
            out=this if number < config.rounds else config.out,
        )
        if not (this / MANIFEST).is_file():
            ask_main(partial(keep_shortest, given, run_dir / "trajectories", steps, sft.dataset))
            train_warm_start(sft, start | {"stage": "raft"}, this)
        changes = {"model": str(this), "trajectories": [], "dataset": None}
        given = given.model_copy(update=changes)
    ask_main(lambda: close_run(run_dir))
    logger.info("model of %d rounds in %s", config.rounds, config.out)


def keep_shortest(config: RaftSettings, log: Path, steps: range, out: Path) -> None:
    """Write each prompt's shortest right completion to `out`, where it is not there yet."""
    from train.data.views import shortest

    if out.is_file():
        return
    groups = list(learned_groups(config, log, steps))
    rows = [row for group in groups for row in shortest(group)]
    if not rows:
        raise ValueError(
            f"no right completion of {len(groups)} prompts: give more steps, or another model"
        )
    write_rows(out, rows)
    logger.info("%d of %d prompts have a completion to learn", len(rows), len(groups))


if __name__ == "__main__":
    run(RaftSettings, train_raft)
