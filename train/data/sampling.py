"""A model's own completions of training cases, sampled into a log like that of a GRPO run.

`train.star`, `train.raft` and `train.dpo` learn from such logs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from curt.artifact import MANIFEST
from curt.checkpoint import Checkpoint, read_checkpoint
from curt.classifier.candidates import load_prompts
from curt.dialogue import MAX_ANSWER_TOKENS, THINK_END, encode
from curt.files import sha256
from train.data.candidates import Candidate, SourceConfig
from train.grpo import GRPOSettings, RolloutSettings, build_prompts, describe_start
from train.penalties.alone.none import NoPenalty


class SamplingSettings(RolloutSettings, SourceConfig):
    """Settings of what learns from a log of completions.

    With `trajectories` or a `dataset` these are read; else the model first samples, before it
    learns, what it would in a GRPO run of these settings: the same prompts, as many completions.
    """

    out: Path
    """Model folder to write."""
    keep_budget: bool = True
    """Learn nothing from prompts whose shortest right completion is longer than what they state."""

    @property
    def is_given(self) -> bool:
        """Whether there are completions to read, so that none are sampled."""
        return bool(self.trajectories or self.dataset)


def learned_groups(config: SamplingSettings, log: Path, steps: range) -> Iterator[list[Candidate]]:
    """Completions by prompt: given ones, or those of `steps`, which are first sampled to `log`.

    Raises ValueError when they can't be read.
    """
    from train.data.sources import from_rollouts, read_source
    from train.data.trajectories import iterate_groups

    if config.is_given:
        groups = read_source(config)
    else:
        checkpoint = read_checkpoint(config.model)
        start = describe_start(config, checkpoint.manifest)
        rows = list(build_prompts(config, load_prompts(
            config.model, checkpoint.tokenizer, start["max_fact_tokens"], start["prompt_version"]
        )))  # fmt: skip
        size = config.prompts + config.oversample
        parts = {step: rows[(step - 1) * size : step * size] for step in steps}
        try:
            sample_log(log, checkpoint, parts, config.generations, config.temperature,
                       config.max_thinking_tokens, config.seed)  # fmt: skip
        except KeyboardInterrupt:
            sys.exit("stopped; the same command goes on from here")
        groups = from_rollouts(group for group in iterate_groups(log) if group[0].step in steps)
    for group in groups:
        right = [c.thinking_tokens for c in group if c.exact and c.thinking_tokens is not None]
        budget = group[0].columns.get("budget")
        if not (config.keep_budget and right and budget is not None and min(right) > budget):
            yield group


def sample_log(
    folder: Path,
    checkpoint: Checkpoint,
    parts: Mapping[int, Sequence[Mapping[str, Any]]],
    samples: int,
    temperature: float,
    max_thinking_tokens: int,
    seed: int,
) -> None:
    """Write `samples` completions of each step's questions to that step's file in `folder`.

    Questions have `prompt`, `reference`, `budget` and `case_id`, as `build_prompts` makes them.
    Files that are there stay: the same call goes on where one was stopped, and draws what it would
    have drawn unbroken. The reward of a completion is GRPO's without a penalty.
    """
    import torch
    from tqdm import tqdm

    from train.data.trajectories import TrajectoryWriter
    from train.loop.group_reward import GroupReward
    from train.loop.sampler import sample_completions
    from train.loop.scoring import Scorer

    writer, tokenizer = TrajectoryWriter(folder), checkpoint.tokenizer
    waiting = [step for step in parts if not writer.path_of(step).is_file()]
    if not waiting:
        return
    gpu, usual = torch.cuda.is_available(), GRPOSettings()
    model = checkpoint.load_model(dtype=torch.bfloat16 if gpu else torch.float32).eval()
    model.to("cuda" if gpu else "cpu")
    reward = GroupReward(
        penalty=NoPenalty(),
        scorer=Scorer(usual.reward_weights),
        partial_share=usual.partial_share,
        num_generations=samples,
        end_id=encode(tokenizer, THINK_END)[0],
        eos_ids=checkpoint.eos_ids,
        config_sha256="",
        checkpoint_sha256=sha256(Path(checkpoint.source.path) / MANIFEST)
        if checkpoint.manifest
        else "",
    )
    done = len(parts) - len(waiting)
    for step in tqdm(
        waiting, "sampling", total=len(parts), initial=done, unit="step", dynamic_ncols=True
    ):
        torch.manual_seed(1000 * seed + step)
        rows = [question for question in parts[step] for _ in range(samples)]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        written = sample_completions(
            model,
            [encode(tokenizer, prompt) for prompt in columns["prompt"]],
            group=samples,
            max_new_tokens=max_thinking_tokens + MAX_ANSWER_TOKENS,
            temperature=temperature,
            eos_ids=checkpoint.eos_ids,
            pad_id=tokenizer.pad_token_id,
        )
        reward(
            prompts=columns.pop("prompt"),
            completions=tokenizer.batch_decode(written, skip_special_tokens=True),
            completion_ids=written,
            trainer_state=SimpleNamespace(global_step=step - 1),
            log_metric=lambda name, value: None,
            **columns,
        )
        writer.write(step, reward.pending)
