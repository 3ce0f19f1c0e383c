"""TRL's GRPOTrainer with every rollout written down, and advantages of our choice.

The loss, the clipping and the loop are TRL's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer

from curt.dialogue import MAX_ANSWER_TOKENS, encode, parse_completion
from curt.law.verdict import Verdict
from train.data.trajectories import Rollout, TrajectoryWriter, drop_after, read_rollouts
from train.loop.advantages import boost_right, estimate, gdpo
from train.loop.group_reward import GroupReward, count_thinking
from train.loop.packed_update import packed_log_probs
from train.loop.sampler import row_uniforms, sample_completions
from train.penalties.base import History, group_outcomes
from train.rewards import REWARDS
from train.runs.processes import SHARDED, call_within

logger = logging.getLogger(__name__)

Sampled = tuple[list[list[int]], list[list[float]] | None]
"""Token ids of completions, and their log-probabilities where the sampler knows them."""
EVALUATED = ("eval_correct", "eval_exact", "eval_thinking_tokens")
AT_ONCE = 100  # development cases


class RecordingTrainer(GRPOTrainer):
    """Writes each step's rollouts, advantages included, before the policy is updated on them."""

    def __init__(
        self,
        *,
        settings: Any,
        reward: GroupReward,
        writer: TrajectoryWriter,
        compact: bool,
        prompts: Dataset,
        **options: Any,
    ) -> None:
        steps = prompts.select(range(len(prompts) // settings.rounds))
        super().__init__(reward_funcs=reward, train_dataset=steps, **options)
        if self.accelerator.distributed_type in SHARDED and (compact or settings.eval_steps):
            # Both read the weights layer by layer, where only parts of them lie.
            raise ValueError(
                f"compact or eval_steps under {self.accelerator.distributed_type.value}: they need "
                "whole weights in every process; leave them out, or launch with DDP"
            )
        self.settings = settings  # of train.grpo
        self.group_reward = reward
        self.writer = writer
        self.compact = compact
        self.prompts = prompts  # of all first rounds, then all second ones
        self.budgets: list[int] = []  # of the rows to be sampled
        self.own_tokens: list[list[int]] | None = None  # 1, and 0 where a token was put in

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Token ids of whole prompts; TRL would begin each with another BOS."""
        return [encode(self.processing_class, prompt) for prompt in prompts], None, {}

    def _generate(self, prompts: list[str]) -> tuple[Any, ...]:
        self.own_tokens = None
        prompt_ids, completion_ids, _, *others = super()._generate(prompts)
        return prompt_ids, completion_ids, self.own_tokens, *others

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: Any, fields: Any, group: int
    ) -> Sampled:
        sampled = self._sample(prompt_ids, range(len(prompt_ids)), group)
        ends = self.settings.enforce_budgets or not self.model.training
        return self._end_thinking(prompt_ids, *sampled) if ends else sampled

    def _sample(
        self, texts: list[list[int]], rows: Sequence[int], group: int, *, answers: bool = False
    ) -> Sampled:
        """Sample, or greedily to evaluate, on from `texts` of these rows of the process."""
        length = MAX_ANSWER_TOKENS if answers else self.args.max_completion_length
        if self.model.training and not self.compact:
            if self.use_vllm:
                self.vllm_generation.max_completion_length = length
            else:
                self.generation_config.max_new_tokens = length
            return super()._generate_single_turn(texts, None, {}, group)
        first, step = self.group_reward.first_group * self.num_generations, self.state.global_step
        completions = sample_completions(
            self.accelerator.unwrap_model(self.model),
            texts,
            group=group,
            max_new_tokens=length,
            temperature=self.args.temperature if self.model.training else 0.0,
            eos_ids=self.eos_token_ids,
            pad_id=self.processing_class.pad_token_id,
            uniforms=row_uniforms(
                self.args.seed, -1 - step if answers else step, [first + r for r in rows], length
            )
            if self.settings.seed_rollouts and self.model.training
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
        end, budgets = self.group_reward.end_id, self.budgets
        own = [[1] * len(ids) for ids in completions]
        over = [i for i, n in enumerate(budgets) if end not in completions[i][: n + 1]]
        over = [i for i in over if len(completions[i]) > budgets[i]]
        if self.model.training:
            self._log_metric("thinking_cut", len(over) / len(completions))
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
        size, reward, wanted = self.num_generations, self.group_reward, self.settings.prompts
        share = len(inputs) // size  # groups of this process in a round
        a_round = share * self.accelerator.num_processes
        before = share * self.accelerator.process_index
        everyone: list[Rollout] = []
        held: list[int] = []  # groups of this process, by their number in the step
        outputs: list[dict[str, Any]] = []
        for number in range(self.settings.rounds):
            if number:
                steps = number * self.settings.steps + self.state.global_step
                first = steps * a_round + before
                rows = self.prompts.select(range(first, first + share))
                inputs = [row for row in rows for _ in range(size)]
            reward.first_group = number * a_round + before
            held += range(reward.first_group, reward.first_group + share)
            self.budgets = [row["budget"] for row in inputs]
            outputs.append(super()._generate_and_score_completions(inputs))
            everyone += gather_object(reward.pending)
            groups = [everyone[start : start + size] for start in range(0, len(everyone), size)]
            if sum(map(any, self._estimate(groups))) >= wanted:
                break
        # Every process computes the same over the whole step's groups.
        by_group, kept = estimate_chosen(groups, self._estimate, wanted)
        exact = [[r.exact for r in group] for group in groups]
        advantages = boost_right(by_group, exact, self.settings.right_boost)
        if self.accelerator.is_main_process:
            rollouts = [
                replace(rollout, advantage=advantage, kept=number in kept)
                for number, group in enumerate(groups)
                for rollout, advantage in zip(group, advantages[number], strict=True)
            ]
            self.writer.write(self.state.global_step + 1, rollouts)
        outcomes = [(r.step, r.group, r.correct, r.length) for r in everyone]
        reward.history = reward.history.extend(group_outcomes(outcomes))
        output = join_batches(outputs, self.processing_class.pad_token_id)
        own = [advantage for number in held for advantage in advantages[number]]
        output["advantages"] = output["advantages"].new_tensor(own)
        if len(kept) < len(groups):
            chosen = {place for place, number in enumerate(held) if number in kept}
            output = keep_groups(output, chosen, size)
            tokens = (output["completion_mask"] * output.get("tool_mask", 1)).sum()
            output["num_items_in_batch"] = self.accelerator.gather(tokens).sum()
        return output

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Greedy verdicts on the development cases; Trainer asks for them every `eval_steps`.

        Where more are correct than at any step before, a checkpoint is saved. Else the run ends
        where the last `patience` evaluations were no better than one before, or than the start.
        """
        counted = [REWARDS[name] for name in (self.settings.correctness, "exact")]
        every, first = self.accelerator.num_processes, self.accelerator.process_index
        rows = list(self.eval_dataset)[first::every]
        scored: list[list[float]] = []
        self.model.eval()
        for start in range(0, len(rows), AT_ONCE):
            part = rows[start : start + AT_ONCE]
            self.budgets = [row["budget"] for row in part]
            prompt_ids, *_ = self._tokenize_prompts([row["prompt"] for row in part])
            answers, _ = self._generate_single_turn(prompt_ids, None, None, 1)
            for row, ids in zip(part, answers, strict=True):
                text = self.processing_class.decode(ids, skip_special_tokens=True)
                pair = parse_completion(text), Verdict.from_json(json.loads(row["reference"]))
                length = count_thinking(ids, self.group_reward.end_id)
                scored.append([*(reward(*pair) for reward in counted), length])
        columns = zip(*gather_object(scored), strict=True)
        metrics = dict(zip(EVALUATED, map(fmean, columns), strict=True))
        logger.info("step %d, development cases: %s", self.state.global_step, metrics)
        self.log(metrics)
        self.model.train()
        self.control.should_evaluate = False  # or the last step were evaluated again
        start, *scores = evaluated_scores(self.state.log_history)
        patience = self.settings.patience
        if scores and scores[-1] > max(scores[:-1], default=-1):
            self.control.should_save = True
        elif (
            patience
            and len(scores) >= patience
            and (max(scores[-patience:]) <= max([start, *scores[:-patience]]))
        ):
            # No checkpoint of this step: a run resumed from it would go on past its end.
            self.control.should_training_stop, self.control.should_save = True, False
        return metrics

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # a checkpoint is whole once its last file is there

    def _estimate(self, groups: Sequence[Sequence[Rollout]]) -> list[list[float]]:
        if self.settings.advantages == "gdpo":
            reward = self.group_reward
            weights = {
                **{n: reward.partial_share * w for n, w in reward.scorer.weights.items() if w},
                "shaped": 1 - reward.partial_share,
            }
            parts = [[r.reward_raw | {"shaped": r.shaped} for r in group] for group in groups]
            columns = [{name: [r[name] for r in group] for name in weights} for group in parts]
            return gdpo(columns, weights, spread_floor=self.settings.spread_floor)
        rewards = [[r.reward for r in group] for group in groups]
        return estimate(self.settings.advantages, rewards, spread_floor=self.settings.spread_floor)


def evaluated_scores(history: Sequence[Mapping[str, Any]]) -> list[float]:
    """How many development cases were correct at the start and at each evaluation since."""
    return [row[EVALUATED[0]] for row in history if EVALUATED[0] in row]


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


def join_batches(batches: Sequence[dict[str, Any]], pad_id: int) -> dict[str, Any]:
    """One batch of several but for its advantages: prompts are filled up at the left."""
    joined = dict(batches[0])
    for key, value in joined.items():
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            rows = [row for batch in batches for row in batch[key]]
            fill = pad_id if key.endswith("_ids") else 0
            side = "left" if key.startswith("prompt") else "right"
            joined[key] = pad_sequence(rows, True, fill, side)
    return joined


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
    table = read_rollouts(trajectories)
    columns = ("step", "group", "correct", "thinking_tokens", "thinking_length")
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return History(
        tuple(group_outcomes((*row, n if cost is None else cost) for *row, n, cost in rows))
    )
