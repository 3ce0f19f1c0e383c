"""TRL's GRPOTrainer, with every rollout written down. Nothing of the algorithm is changed."""

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
from train.trajectories import TrajectoryWriter, drop_after


class RecordingTrainer(GRPOTrainer):
    """Writes each step's rollouts, advantages included, before the policy is updated on them."""

    def __init__(self, *, reward: GroupReward, writer: TrajectoryWriter, **options: Any) -> None:
        super().__init__(reward_funcs=reward, **options)
        self.group_reward = reward
        self.writer = writer

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
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
