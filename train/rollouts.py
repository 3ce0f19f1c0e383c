"""TRL's GRPOTrainer with every rollout written down; nothing of the algorithm is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from curt.dialogue import THINK_END
from train.group_reward import GroupReward
from train.penalties import Penalty
from train.sampler import sample_completions
from train.trajectories import TrajectoryWriter, drop_after


class RecordingTrainer(GRPOTrainer):
    """Writes each step's rollouts, advantages included, before the policy is updated on them."""

    def __init__(
        self,
        *,
        reward: GroupReward,
        writer: TrajectoryWriter,
        compact: bool,
        **options: Any,
    ) -> None:
        super().__init__(reward_funcs=reward, **options)
        self.group_reward = reward
        self.writer = writer
        self.compact = compact

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, *rest: Any, **options: Any
    ) -> tuple[list[list[int]], None]:
        if not self.compact:
            return super()._generate_single_turn(prompt_ids, images, *rest, **options)
        with self.accelerator.autocast():
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        advantages = output["advantages"].tolist()
        rollouts = [
            replace(rollout, advantage=advantage)
            for rollout, advantage in zip(self.group_reward.pending, advantages, strict=True)
        ]
        self.writer.write(self.state.global_step + 1, rollouts)
        return output


def make_trainer(
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    arguments: GRPOConfig,
    dataset: Dataset,
    penalty: Penalty,
    weights: Mapping[str, float],
    partial_share: float,
    config_sha256: str,
    trajectories: Path,
    resumed_step: int,
    compact: bool,
    callbacks: list[TrainerCallback],
) -> RecordingTrainer:
    """Wire TRL's trainer to the group reward and the trajectory store."""
    drop_after(trajectories, resumed_step)
    reward = GroupReward(
        penalty=penalty,
        weights=weights,
        partial_share=partial_share,
        num_generations=arguments.num_generations,
        end_ids=tokenizer(THINK_END, add_special_tokens=False)["input_ids"],
        eos_id=tokenizer.eos_token_id,
        config_sha256=config_sha256,
    )
    return RecordingTrainer(
        reward=reward,
        writer=TrajectoryWriter(trajectories, arguments.process_index),
        compact=compact,
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
