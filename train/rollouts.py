"""TRL's GRPOTrainer with every rollout written down, and advantages of our choice.

The loss, the clipping and the loop are TRL's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from curt.dialogue import THINK_END
from train.advantages import Estimator, estimate, gdpo
from train.group_reward import GroupReward
from train.guard import AccuracyGuard
from train.history import History, group_outcomes
from train.packed_update import packed_log_probs
from train.penalties import Penalty
from train.sampler import sample_completions
from train.scoring import Scorer
from train.trajectories import Rollout, TrajectoryWriter, drop_after, read_rollouts


class RecordingTrainer(GRPOTrainer):
    """Writes each step's rollouts, advantages included, before the policy is updated on them."""

    def __init__(
        self,
        *,
        reward: GroupReward,
        writer: TrajectoryWriter,
        compact: bool,
        estimator: Estimator | Literal["gdpo"],
        spread_floor: float,
        trained_groups: int,
        **options: Any,
    ) -> None:
        super().__init__(reward_funcs=reward, **options)
        if compact and self.accelerator.num_processes > 1:
            # Its passes bypass the wrapper that averages gradients between processes.
            raise ValueError(
                f"compact with {self.accelerator.num_processes} processes: set compact to false"
            )
        self.group_reward = reward
        self.writer = writer
        self.compact = compact
        self.estimator = estimator
        self.spread_floor = spread_floor
        self.trained_groups = trained_groups

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *rest: Any, **options: Any
    ) -> tuple[list[list[int]], None]:
        if not self.compact:
            return super()._generate_single_turn(prompt_ids, images, *rest, **options)
        completions = sample_completions(
            self.accelerator.unwrap_model(self.model),
            prompt_ids,
            group=self.num_generations,
            max_new_tokens=self.args.max_completion_length,
            temperature=self.args.temperature,
            eos_ids=self.eos_token_ids,
            pad_id=self.processing_class.pad_token_id,
        )
        return completions, None  # log-probabilities come from the update's own forward pass

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *rest: Any,
        **options: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not self.compact:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *rest, **options
            )
        with self.accelerator.autocast():
            log_probs, entropies = packed_log_probs(
                self.accelerator.unwrap_model(model),
                input_ids,
                attention_mask,
                logits_to_keep,
                temperature=self.temperature,
            )
        return log_probs, entropies, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        pending = self.group_reward.pending
        own = len(pending)
        # Statistics over the batch span all processes.
        everyone = self._estimate(gather_object(pending))
        first = self.accelerator.process_index * own
        advantages = everyone[first : first + own]
        kept = choose_groups(advantages, self.num_generations, self.trained_groups)
        rollouts = [
            replace(rollout, advantage=advantage, kept=index // self.num_generations in kept)
            for index, (rollout, advantage) in enumerate(zip(pending, advantages, strict=True))
        ]
        self.writer.write(self.state.global_step + 1, rollouts)
        output["advantages"] = output["advantages"].new_tensor(advantages)
        if len(kept) < own // self.num_generations:
            rows = [i for i in range(own) if i // self.num_generations in kept]
            output = keep_rows(output, rows)
            tokens = output["completion_mask"].sum()
            output["num_items_in_batch"] = self.accelerator.gather(tokens).sum()
        return output

    def _estimate(self, rollouts: Sequence[Rollout]) -> list[float]:
        size = self.num_generations
        groups = [rollouts[start : start + size] for start in range(0, len(rollouts), size)]
        if self.estimator == "gdpo":
            reward = self.group_reward
            weights = {
                **{n: reward.partial_share * w for n, w in reward.scorer.weights.items() if w},
                "shaped": 1 - reward.partial_share,
            }
            columns = [
                {
                    name: [r.shaped if name == "shaped" else r.reward_raw[name] for r in group]
                    for name in weights
                }
                for group in groups
            ]
            advantages = gdpo(columns, weights, spread_floor=self.spread_floor)
        else:
            rewards = [[r.reward for r in group] for group in groups]
            advantages = estimate(self.estimator, rewards, spread_floor=self.spread_floor)
        return [a for group in advantages for a in group]


def choose_groups(advantages: Sequence[float], size: int, wanted: int) -> set[int]:
    """Which `wanted` groups to train on: those with something to learn, in order, then others.

    A group whose advantages are all 0 teaches nothing (dynamic sampling, DAPO, arXiv 2503.14476,
    section 3.2).
    """
    groups = range(len(advantages) // size)
    taught = [g for g in groups if any(advantages[g * size : (g + 1) * size])]
    others = [g for g in groups if g not in set(taught)]
    return set((taught + others)[:wanted])


def keep_rows(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The batch with the given rows of every per-completion tensor."""
    count = len(batch["completion_ids"])
    chosen = torch.tensor(rows)
    return {
        key: value[chosen.to(value.device)]
        if isinstance(value, torch.Tensor) and value.dim() and len(value) == count
        else value
        for key, value in batch.items()
    }


def read_history(trajectories: Path) -> History:
    """What a run has shown so far, from its trajectory store; empty before its first step."""
    if not any(trajectories.glob("step-*.parquet")):
        return History()
    columns = ["step", "group", "exact", "thinking_tokens"]
    table = read_rollouts(trajectories)
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return History(tuple(group_outcomes(rows)))


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: GRPOConfig,
    dataset: Dataset,
    penalty: Penalty,
    scorer: Scorer,
    partial_share: float,
    config_sha256: str,
    checkpoint_sha256: str,
    trajectories: Path,
    resumed_step: int,
    compact: bool,
    estimator: Estimator | Literal["gdpo"],
    spread_floor: float,
    trained_groups: int,
    guard: AccuracyGuard | None,
    callbacks: list[TrainerCallback],
) -> RecordingTrainer:
    """Wire TRL's trainer to the group reward and the trajectory store."""
    drop_after(trajectories, resumed_step)
    reward = GroupReward(
        penalty=penalty,
        scorer=scorer,
        partial_share=partial_share,
        num_generations=arguments.num_generations,
        end_ids=tokenizer(THINK_END, add_special_tokens=False)["input_ids"],
        eos_id=tokenizer.eos_token_id,
        config_sha256=config_sha256,
        checkpoint_sha256=checkpoint_sha256,
        guard=guard,
        history=read_history(trajectories),
        gather=gather_object,
    )
    return RecordingTrainer(
        reward=reward,
        writer=TrajectoryWriter(trajectories, arguments.process_index),
        compact=compact,
        estimator=estimator,
        spread_floor=spread_floor,
        trained_groups=trained_groups,
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
