"""TRL's GRPOTrainer with every rollout written down, and advantages of our choice.

The loss, the clipping and the loop are TRL's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

from curt.dialogue import MAX_ANSWER_TOKENS, encode
from train.data.trajectories import Rollout, TrajectoryWriter, drop_after, read_rollouts
from train.loop.advantages import Estimator, boost_right, estimate, gdpo
from train.loop.group_reward import GroupReward
from train.loop.packed_update import packed_log_probs
from train.loop.sampler import row_uniforms, sample_completions
from train.penalties.base import History, group_outcomes
from train.runs.processes import SHARDED, call_within

Sampled = tuple[list[list[int]], list[list[float]] | None]
"""Token ids of completions, and their log-probabilities where the sampler knows them."""


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
        right_boost: float,
        trained_groups: int,
        seed_rollouts: bool,
        thinking_end: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(reward_funcs=reward, **options)
        if compact and self.accelerator.distributed_type in SHARDED:
            # It reads the weights layer by layer, where only parts of them lie.
            raise ValueError(
                f"compact under {self.accelerator.distributed_type.value}: it needs whole weights "
                "in every process; set compact to false, or launch with DDP"
            )
        self.group_reward = reward
        self.writer = writer
        self.compact = compact
        self.estimator = estimator
        self.spread_floor = spread_floor
        self.right_boost = right_boost
        self.trained_groups = trained_groups
        self.seed_rollouts = seed_rollouts
        self.thinking_end = thinking_end  # put where a stated budget is used up; None: nowhere
        self.budgets: list[int] = []  # of the rows to be sampled
        self.own_tokens: list[list[int]] | None = None  # 1, and 0 where a token was put in

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Token ids of whole prompts; TRL would begin each with another BOS."""
        return [encode(self.processing_class, prompt) for prompt in prompts], None, {}

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        prompt_ids, completion_ids, _, *others = super()._generate(prompts)
        return prompt_ids, completion_ids, self.own_tokens, *others

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, group: int
    ) -> Sampled:
        sampled = self._sample(prompt_ids, range(len(prompt_ids)), group)
        return sampled if self.thinking_end is None else self._end_thinking(prompt_ids, *sampled)

    def _sample(
        self, texts: list[list[int]], rows: Sequence[int], group: int, *, answers: bool = False
    ) -> Sampled:
        """Sample on from `texts`, which belong to these rows of the process: answers alone."""
        length = MAX_ANSWER_TOKENS if answers else self.args.max_completion_length
        if not self.compact and self.use_vllm:
            self.vllm_generation.max_completion_length = length
        elif not self.compact:
            self.generation_config.max_new_tokens = length
        if not self.compact:
            return super()._generate_single_turn(texts, None, {}, group)
        first = self.accelerator.process_index * len(self.budgets)
        step = self.state.global_step
        completions = sample_completions(
            self.accelerator.unwrap_model(self.model),
            texts,
            group=group,
            max_new_tokens=length,
            temperature=self.args.temperature,
            eos_ids=self.eos_token_ids,
            pad_id=self.processing_class.pad_token_id,
            uniforms=row_uniforms(
                self.args.seed, -1 - step if answers else step, [first + r for r in rows], length
            )
            if self.seed_rollouts
            else None,
        )
        return completions, None  # log-probabilities come from the update's own forward pass

    def _end_thinking(
        self, prompt_ids: list[list[int]], completions: list[list[int]], log_probs: Any
    ) -> Sampled:
        """Completions whose thinking ends at the stated budget, as serving ends it.

        What thinks on is cut there, closed, and has its answer sampled anew. The token put in is
        left out of the loss, for no policy chose it.
        """
        end, budgets = self.thinking_end, self.budgets
        own = [[1] * len(ids) for ids in completions]
        over = [i for i, n in enumerate(budgets) if end not in completions[i][: n + 1]]
        over = [i for i in over if len(completions[i]) > budgets[i]]
        # Several processes must take part in the same calls, each with all of its rows.
        rows = over if self.accelerator.num_processes == 1 else range(len(completions))
        heads = [[*completions[i][: budgets[i]], end] for i in rows]
        texts = [prompt_ids[i] + head for i, head in zip(rows, heads, strict=True)]
        answers, answer_log_probs = self._sample(texts, rows, 1, answers=True) if rows else ([], [])
        for place, i in enumerate(rows):
            if i in over:
                completions[i] = heads[place] + answers[place]
                own[i] = [1] * budgets[i] + [0] + [1] * len(answers[place])
                if log_probs is not None:
                    log_probs[i] = [*log_probs[i][: budgets[i]], 0.0, *answer_log_probs[place]]
        self.own_tokens = own
        return completions, log_probs

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
        module = self.accelerator.unwrap_model(model)
        with self.accelerator.autocast():
            log_probs, entropies = call_within(
                model,
                module,
                lambda: packed_log_probs(
                    module, input_ids, attention_mask, logits_to_keep, temperature=self.temperature
                ),
            )
        return log_probs, entropies, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.budgets = [row["budget"] for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        own = len(self.group_reward.pending)
        size = self.num_generations
        # Every process computes the same over the whole step's groups.
        everyone = gather_object(self.group_reward.pending)
        groups = [everyone[start : start + size] for start in range(0, len(everyone), size)]
        by_group, kept = estimate_chosen(groups, self._estimate, self.trained_groups)
        exact = [[r.exact for r in group] for group in groups]
        advantages = [a for v in boost_right(by_group, exact, self.right_boost) for a in v]
        if self.accelerator.is_main_process:
            rollouts = [
                replace(rollout, advantage=advantage, kept=index // size in kept)
                for index, (rollout, advantage) in enumerate(zip(everyone, advantages, strict=True))
            ]
            self.writer.write(self.state.global_step + 1, rollouts)
        first = self.accelerator.process_index * own
        output["advantages"] = output["advantages"].new_tensor(advantages[first : first + own])
        if len(kept) < len(groups):
            output = keep_groups(output, {g - first // size for g in kept}, size)
            tokens = (output["completion_mask"] * output.get("tool_mask", 1)).sum()
            output["num_items_in_batch"] = self.accelerator.gather(tokens).sum()
        return output

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # a checkpoint is whole once its last file is there

    def _estimate(self, groups: Sequence[Sequence[Rollout]]) -> list[list[float]]:
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
            return gdpo(columns, weights, spread_floor=self.spread_floor)
        rewards = [[r.reward for r in group] for group in groups]
        return estimate(self.estimator, rewards, spread_floor=self.spread_floor)


def estimate_chosen(
    groups: Sequence[Any], estimator: Callable[[Sequence[Any]], list[list[float]]], wanted: int
) -> tuple[list[list[float]], set[int]]:
    """Advantages of every group, 0 where it is left out, and which `wanted` ones are trained on.

    Chosen first, then scaled, as in DLER: a batch's means and deviations are of what is trained on.
    """
    advantages = estimator(groups)
    kept = choose_groups(advantages, wanted)
    scaled = iter(estimator([group for g, group in enumerate(groups) if g in kept]))
    chosen = [next(scaled) if g in kept else [0.0] * len(v) for g, v in enumerate(advantages)]
    return chosen, kept


def choose_groups(advantages: Sequence[Sequence[float]], wanted: int) -> set[int]:
    """Which `wanted` groups to train on: those with advantages, in order, then others.

    A group whose advantages are all 0 teaches nothing (dynamic sampling, DAPO, arXiv 2503.14476,
    section 3.2).
    """
    taught = [g for g, values in enumerate(advantages) if any(values)]
    others = [g for g, values in enumerate(advantages) if not any(values)]
    return set((taught + others)[:wanted])


def keep_groups(batch: dict[str, Any], groups: set[int], size: int) -> dict[str, Any]:
    """A process's batch with those of its groups that are in `groups`.

    Where none is, one stays with all of its tokens masked: every process must take part in the
    update, with a gradient of 0 if need be.
    """
    held = range(len(batch["completion_ids"]) // size)
    chosen = [g for g in held if g in groups]
    rows = [g * size + i for g in chosen or [0] for i in range(size)]
    batch = keep_rows(batch, rows)
    if not chosen:
        batch["completion_mask"] = torch.zeros_like(batch["completion_mask"])
    return batch


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


def resume_history(trajectories: Path, step: int) -> History:
    """What a run has shown up to `step`; trajectories of later steps are deleted."""
    drop_after(trajectories, step)
    if not any(trajectories.glob("step-*.parquet")):
        return History()
    columns = ["step", "group", "exact", "thinking_tokens"]
    table = read_rollouts(trajectories)
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return History(tuple(group_outcomes(rows)))
