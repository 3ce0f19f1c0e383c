"""One prompt's completions, scored as `train.grpo` scores them, for trainers other than TRL's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from curt.dialogue import THINK_END, encode
from train.grpo import GRPOSettings
from train.judge import make_judge
from train.loop.group_reward import GroupReward
from train.loop.scoring import Scorer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class GradedSample:
    """One completion: its text without the end token, and the token ids that were sampled."""

    text: str
    token_ids: Sequence[int]


def read_settings(path: Path, changes: Mapping[str, Any] | None = None) -> GRPOSettings:
    """Rewards, penalty and budgets from a configuration file of `train.grpo`.

    Args:
        path: the TOML file.
        changes: settings to put in place of the file's: {"guard": None}.

    Raises ValueError when there is none, or when it asks for what adapts to the run's history.
    """
    if not path.is_file():
        raise ValueError(f"no configuration {path}: name a TOML file of train.grpo")
    merged = {**tomllib.loads(path.read_text(encoding="utf-8")), **as_plain(changes or {})}
    settings = GRPOSettings(**merged)
    if settings.penalty.needs_history:
        raise ValueError(
            f"penalty {settings.penalty.type} adapts to the run's history, which verl's reward "
            "workers don't have: choose one that needs the group alone, such as kimi or gated"
        )
    if settings.guard is not None:
        raise ValueError(
            "guard needs the run's history, which verl's reward workers don't have: leave it out "
            "by changes = {guard: null}"
        )
    return settings


def as_plain(value: Any) -> Any:
    """Mappings and lists of a configuration library as dicts and lists."""

    def convert(part: Any) -> Any:
        return dict(part) if hasattr(part, "keys") else list(part)

    return json.loads(json.dumps(value, default=convert))


class GroupScores:
    """Rewards of whole groups, by the code that `train.grpo` runs."""

    def __init__(self, settings: GRPOSettings, tokenizer: PreTrainedTokenizerBase) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self._scorer = Scorer(
            settings.reward_weights,
            {name: make_judge(judge) for name, judge in settings.judges.items()},
            settings.reward_combination,
        )
        self._end_id = encode(tokenizer, THINK_END)[0]

    def __call__(
        self, samples: Sequence[GradedSample], *, reference: str, budget: int, case_id: str
    ) -> list[dict[str, float]]:
        """One row a completion: `score`, what the policy is trained on, and metrics beside it.

        A completion whose judge failed gets the mean of the others, which is its group's baseline.

        Args:
            samples: all completions of the prompt.
            reference: the right verdict, as JSON of `Verdict.to_json`.
            budget: thinking tokens stated in the prompt.
            case_id: for the judge's cache and messages.
        """
        size = len(samples)
        reward = GroupReward(
            penalty=self.settings.penalty,
            scorer=self._scorer,
            partial_share=self.settings.partial_share,
            num_generations=size,
            end_id=self._end_id,
            eos_ids=[self.tokenizer.eos_token_id],
            config_sha256="",
        )
        scores = reward(
            prompts=[case_id] * size,  # only compared with one another
            completions=[sample.text for sample in samples],
            completion_ids=[list(sample.token_ids) for sample in samples],
            reference=[reference] * size,
            budget=[budget] * size,
            case_id=[case_id] * size,
            trainer_state=SimpleNamespace(global_step=0),
            log_metric=_ignore,
        )
        return [
            {
                "score": score,
                "exact": row.exact,
                "shaped": row.shaped,
                # verl's metrics are numbers: -1 stands for a reward that a judge left open
                "partial": -1.0 if row.partial is None else row.partial,
                "thinking_tokens": float(row.thinking_tokens),
                "truncated": float(row.truncated),
            }
            for score, row in zip(scores, reward.pending, strict=True)
        ]


def _ignore(_name: str, _value: float) -> None:
    """verl takes its metrics from the rows."""
