"""verl's reward manager for whole groups; loaded by path, inside verl alone.

    reward:
      num_workers: 1
      reward_manager:
        source: importlib
        name: GroupRewardManager
        module:
          path: train/verl/manager.py

verl picks a reward worker at random for every completion, so a group is whole only with one worker,
and a worker runs at most 1,000 calls at once: prompts x completions in flight must stay below.
Loading the file also registers `curt-whitened` and the other estimators of `train.verl.advantages`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# verl runs this file by its path, from anywhere.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.core_algos import register_adv_est

from train.verl.advantages import VERL_ESTIMATORS
from train.verl.barrier import GroupBarrier
from train.verl.group_scores import GradedSample, GroupScores, read_settings

MOST_IN_FLIGHT = 1000  # Ray's limit of concurrent calls of an asynchronous actor
PATIENCE_S = 3600.0  # longer than any step: only a group that lost a member waits so long

for name, estimator in VERL_ESTIMATORS.items():
    register_adv_est(name)(estimator)


class GroupRewardManager(RewardManagerBase):
    """Scores a prompt's completions together once all are there."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **_: Any) -> None:
        """As verl calls it; the settings file is named in `custom_reward_function.reward_kwargs`.

        Raises ValueError where the configuration would split groups or stall on them.
        """
        super().__init__(config, tokenizer, compute_score)
        rollout = config.actor_rollout_ref.rollout
        self.sizes = {"train": rollout.n, "val": rollout.val_kwargs.n}
        if config.reward.num_workers != 1:
            raise ValueError(
                f"reward.num_workers {config.reward.num_workers} splits groups: set it to 1"
            )
        in_flight = config.data.train_batch_size * rollout.n
        if in_flight > MOST_IN_FLIGHT:
            raise ValueError(
                f"{in_flight} completions a step, and a worker holds {MOST_IN_FLIGHT} while their "
                "groups fill: lower data.train_batch_size or rollout.n"
            )
        options = config.reward.custom_reward_function.reward_kwargs
        settings = read_settings(Path(options.settings), options.get("changes"))
        self.scores = GroupScores(settings, tokenizer)
        self.barrier: GroupBarrier[GradedSample] = GroupBarrier(PATIENCE_S)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """The reward of one completion, known when its whole group is here."""
        item = data[-1]
        fields = item.non_tensor_batch
        info = fields["extra_info"]
        response = item.batch["responses"]
        length = int(item.batch["attention_mask"][-response.shape[-1] :].sum())
        ids = response[:length].tolist()
        sample = GradedSample(self.tokenizer.decode(ids, skip_special_tokens=True), ids)
        result = await self.barrier.submit(
            str(fields["uid"]),
            int(fields["session_id"]),
            sample,
            size=self.sizes[info["split"]],
            score=partial(
                self._score,
                reference=fields["reward_model"]["ground_truth"],
                budget=int(info["budget"]),
                case_id=str(info["case_id"]),
            ),
        )
        return {"reward_score": result["score"], "reward_extra_info": result}

    def _score(self, samples: Sequence[GradedSample], **options: Any) -> list[dict[str, float]]:
        return self.scores(samples, **options)
