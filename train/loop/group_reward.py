"""The adapter between TRL's flat batches and rewards defined over one prompt's group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from curt.dialogue import parse_completion
from curt.engines.onnx.cost import ReasoningCost
from curt.law.verdict import Verdict
from train.data.trajectories import Rollout
from train.loop.guard import AccuracyGuard, weigh_penalty
from train.loop.scoring import Score, Scorer, mean_known
from train.penalties import Group, Penalty
from train.penalties.base import NO_HISTORY, History
from train.penalties.history.laser_d import bucket_of


@dataclass(kw_only=True, eq=False)
class GroupReward:
    """TRL's reward function: scores a batch group by group and keeps the rollouts.

    TRL hands over the batch of one process, prompt after prompt, `num_generations` rows each, and
    does not say how many that is; a group split between processes would be scored wrong, so this
    is checked. Rows are left in `pending` until the trainer knows their advantages.
    """

    penalty: Penalty
    scorer: Scorer
    partial_share: float
    num_generations: int
    end_id: int
    eos_ids: Collection[int]
    config_sha256: str
    checkpoint_sha256: str = ""
    """Of the policy that samples."""
    guard: AccuracyGuard | None = None
    cost: ReasoningCost | None = None
    """Prices reasoning for the penalty, in place of its tokens."""
    history: History = NO_HISTORY
    """The groups of all finished steps and all processes; the trainer adds each step's."""
    first_group: int = 0
    """Number, in its step, of the first group of the batch to come."""
    penalty_weight: float = 1.0
    pending: list[Rollout] = field(default_factory=list)
    __name__ = "verdict"  # TRL names its metrics after this

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        reference: Sequence[str],
        budget: Sequence[int],
        case_id: Sequence[str],
        trainer_state: Any,
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """Rewards in batch order, the mean of the others where a judge failed.

        Raises ValueError when a group is not whole, JudgeUnavailableError when judges fail often.
        """
        size = self.num_generations
        check_groups(prompts, size)
        parsed = [parse_completion(text) for text in completions]
        references = [Verdict.from_json(json.loads(text)) for text in reference]
        scores = self.scorer.score(parsed, references, size)
        self.pending = []
        self.penalty_weight = self.guard.weight(self.history) if self.guard else 1.0
        for start in range(0, len(prompts), size):
            rows = slice(start, start + size)
            of_all = {
                "step": trainer_state.global_step + 1,
                "group": self.first_group + start // size,
                "case_id": case_id[start],
                "prompt": prompts[start],
                "prompt_sha256": hashlib.sha256(prompts[start].encode()).hexdigest(),
                "budget": budget[start],
            }
            made = completions[rows], completion_ids[rows]
            self.pending += self._score_group(of_all, *made, scores[rows])
        self._log(scores, log_metric)
        # TRL prints the whole prompt, case facts included, when a reward is None. It uses rewards
        # for its metrics only: the trainer takes advantages from `pending`, where None is kept.
        known = mean_known([rollout.reward for rollout in self.pending])
        stand_in = 0.0 if known is None else known
        return [stand_in if r.reward is None else r.reward for r in self.pending]

    def _score_group(
        self,
        of_all: Mapping[str, Any],
        completions: Sequence[str],
        completion_ids: Sequence[list[int]],
        scores: Sequence[Score],
    ) -> list[Rollout]:
        """A group's rollouts; `of_all` are the fields that all of them have alike."""
        tokens = [count_thinking(ids, self.end_id) for ids in completion_ids]
        costs = [self.cost and self.cost.measure(ids, of_all["budget"]) for ids in completion_ids]
        lengths = [cost.length if cost else n for cost, n in zip(costs, tokens, strict=True)]
        truncated = tuple(set(self.eos_ids).isdisjoint(ids) for ids in completion_ids)
        correct = tuple(s.correct for s in scores)
        group = Group(correct, tuple(lengths), of_all["budget"], truncated)
        shaped = weigh_penalty(self.penalty(group, self.history), correct, self.penalty_weight)
        return [
            Rollout(
                **of_all,
                completion=text,
                token_ids=list(ids),
                thinking_tokens=thinking,
                thinking_ms=cost.ms if cost else None,
                thinking_length=cost.length if cost else None,
                answer_tokens=max(0, len(ids) - thinking - 1 - (not cut)),
                truncated=cut,
                reward_raw=dict(score.raw),
                reward_weighted=dict(score.weighted),
                partial=score.partial,
                exact=score.exact,
                correct=score.correct,
                shaped=value,
                reward=self._total(score.partial, value),
                advantage=0.0,
                penalty=self.penalty.type,
                config_sha256=self.config_sha256,
                checkpoint_sha256=self.checkpoint_sha256,
                penalty_weight=self.penalty_weight,
            )
            for text, ids, thinking, cost, cut, score, value in zip(
                completions, completion_ids, tokens, costs, truncated, scores, shaped, strict=True
            )
        ]

    def _total(self, partial: float | None, shaped: float) -> float | None:
        """Mix `partial` and `shaped`; None where `partial` counts and is missing."""
        share = self.partial_share
        if not share:
            return shaped
        return None if partial is None else share * partial + (1 - share) * shaped

    def _log(self, scores: Sequence[Score], log_metric: Callable[[str, float], None]) -> None:
        rows = self.pending
        columns: dict[str, list[float | None]] = {
            "exact": [r.exact for r in rows],
            "correct": [r.correct for r in rows],
            "partial": [r.partial for r in rows],
            "shaped": [r.shaped for r in rows],
            "thinking_tokens": [r.thinking_tokens for r in rows],
            "thinking_ms": [r.thinking_ms for r in rows],
            "within_budget": [r.thinking_tokens <= r.budget for r in rows],
            "unrewarded": [r.reward is None for r in rows],
            "reward_disagreement": [score.disagreement for score in scores],
            **{f"reward_{name}": [r.reward_raw[name] for r in rows] for name in rows[0].reward_raw},
            **{
                f"weighted_{name}": [r.reward_weighted[name] for r in rows]
                for name in rows[0].reward_weighted
            },
        }
        size = self.num_generations
        groups = [rows[start : start + size] for start in range(0, len(rows), size)]
        buckets = [bucket_of(fmean(r.exact for r in group)) for group in groups for _ in group]
        for r, bucket in zip(rows, buckets, strict=True):
            for kind in ("right" if r.exact else "wrong", bucket):
                columns.setdefault(f"thinking_tokens_{kind}", []).append(r.thinking_tokens)
                columns.setdefault(f"reward_{kind}", []).append(r.reward)
        columns["misranked"] = [pair for group in groups for pair in misranked_pairs(group)]
        log_metric("penalty_weight", self.penalty_weight)
        for judge, asked in self.scorer.judges.items():
            for what, count in asked.counts.items():
                log_metric(f"judge_{judge}_{what}", count)
        for name, values in columns.items():
            if (mean := mean_known(values)) is not None:
                log_metric(name, mean)


def misranked_pairs(group: Sequence[Rollout]) -> list[float]:
    """For each pair of a right and a wrong completion: 1 where the wrong one earns more, else 0."""
    right = [r.reward for r in group if r.exact and r.reward is not None]
    wrong = [r.reward for r in group if not r.exact and r.reward is not None]
    return [float(low > high) for high in right for low in wrong]


def check_groups(prompts: Sequence[str], size: int) -> None:
    """Raise ValueError unless the batch is whole groups of `size` equal prompts."""
    if len(prompts) % size:
        raise ValueError(
            f"a process got {len(prompts)} completions, no multiple of {size} generations: "
            "leave the batch sizes to prompts, oversample and micro_batch"
        )
    for start in range(0, len(prompts), size):
        if len(set(prompts[start : start + size])) != 1:
            raise ValueError("a group mixes prompts: this version of TRL orders batches otherwise")


def count_thinking(ids: Sequence[int], end_id: int) -> int:
    """Tokens before the end of thinking; all of them when it never came."""
    return list(ids).index(end_id) if end_id in ids else len(ids)
