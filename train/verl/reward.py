"""The reward function in the signature that verl loads from a file.

    reward:
      custom_reward_function:
        path: train/verl/reward.py
        name: compute_score
        reward_kwargs:
          settings: configs/qwen2.5-7b/grpo.toml
          tokenizer: Qwen/Qwen2.5-7B
          changes: {guard: null}     # it needs the run's history

`compute_score` sees one completion and takes penalties that need no other. For group-relative ones
name `train/verl/manager.py` as the reward manager.

It gets text, not the ids that were sampled: thinking tokens are those of the text encoded again,
and a completion counts as cut off when its thinking was never closed. The manager has the ids.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

# verl runs this file by its path, from anywhere.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from curt.dialogue import encode, parse_completion
from train.penalties import PENALTIES
from train.verl.group_scores import GradedSample, GroupScores, as_plain, read_settings


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any],
    *,
    settings: str,
    tokenizer: str,
    changes: Mapping[str, Any] | None = None,
    **_: Any,
) -> dict[str, float]:
    """The reward of one completion, as `score`, with metrics.

    Args:
        data_source: as exported; not used.
        solution_str: the completion's text.
        ground_truth: the verdict as `train.verl.export` writes it.
        extra_info: the row's `budget` and `case_id`.
        settings: TOML file of `train.grpo`.
        tokenizer: folder or name of the model's tokenizer.
        changes: settings in place of the file's.

    Raises ValueError for a penalty that compares the completions of a group.
    """
    scores = load_scores(settings, tokenizer, json.dumps(as_plain(changes or {})))
    penalty = scores.settings.penalty
    if penalty.needs_group:
        alone = [name for name, other in PENALTIES.items() if not other.needs_group]
        raise ValueError(
            f"penalty {penalty.type} compares the completions of a group, and verl gives one at a "
            "time: set reward.reward_manager to GroupRewardManager of train/verl/manager.py, or "
            f"choose one of {', '.join(alone)}"
        )
    ids = encode(scores.tokenizer, solution_str)
    if parse_completion(solution_str).thinking_closed:
        ids.append(scores.tokenizer.eos_token_id)
    (score,) = scores(
        [GradedSample(solution_str, ids)],
        reference=ground_truth,
        budget=int(extra_info["budget"]),
        case_id=str(extra_info["case_id"]),
    )
    return score


@cache
def load_scores(settings: str, tokenizer: str, changes: str = "{}") -> GroupScores:
    """The scorer of a configuration, made once a process. `changes` as JSON."""
    from transformers import AutoTokenizer

    return GroupScores(
        read_settings(Path(settings), json.loads(changes)), AutoTokenizer.from_pretrained(tokenizer)
    )
