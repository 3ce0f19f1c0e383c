"""Reward functions in the signatures that verl loads from a file.

    reward:
      custom_reward_function:
        path: train/verl/reward.py
        name: compute_score
        reward_kwargs:
          settings: configs/qwen2.5-7b/grpo.toml
          tokenizer: Qwen/Qwen2.5-7B
          changes: {guard: null}     # it needs the run's history

`compute_score` sees one completion and takes penalties that need no other. `compute_score_batch` is
for the `batch` reward manager of verl 0.7 and older, which hands over whole batches. For
group-relative penalties on 0.8 and later name `train/verl/manager.py` as the reward manager.

Both get text, not the ids that were sampled: thinking tokens are those of the text encoded again,
and a completion counts as cut off when its thinking was never closed. The manager has the ids.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

# verl runs this file by its path, from anywhere.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from curt.dialogue import encode, parse_completion
from train.penalties import PENALTIES
from train.verl.group_scores import GradedSample, GroupScores, as_plain, read_settings

Score = dict[str, float]


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
) -> Score:
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
    return _score_texts(scores, [solution_str], ground_truth, extra_info)[0]


def compute_score_batch(
    data_sources: Sequence[str],
    solution_strs: Sequence[str],
    ground_truths: Sequence[str],
    extra_infos: Sequence[Mapping[str, Any]],
    *,
    settings: str,
    tokenizer: str,
    changes: Mapping[str, Any] | None = None,
    **_: Any,
) -> list[Score]:
    """The rewards of a batch; rows with the same `index` in `extra_infos` are one group.

    Arguments as for `compute_score`, one a row.
    """
    scores = load_scores(settings, tokenizer, json.dumps(as_plain(changes or {})))
    groups: dict[int, list[int]] = {}
    for row, info in enumerate(extra_infos):
        groups.setdefault(int(info["index"]), []).append(row)
    results: list[Score] = [{}] * len(solution_strs)
    for rows in groups.values():
        first = rows[0]
        scored = _score_texts(
            scores, [solution_strs[r] for r in rows], ground_truths[first], extra_infos[first]
        )
        for row, score in zip(rows, scored, strict=True):
            results[row] = score
    return results


@cache
def load_scores(settings: str, tokenizer: str, changes: str = "{}") -> GroupScores:
    """The scorer of a configuration, made once a process. `changes` as JSON."""
    from transformers import AutoTokenizer

    return GroupScores(
        read_settings(Path(settings), json.loads(changes)), AutoTokenizer.from_pretrained(tokenizer)
    )


def _score_texts(
    scores: GroupScores, texts: Sequence[str], reference: str, info: Mapping[str, Any]
) -> list[Score]:
    samples = []
    for text in texts:
        ids = encode(scores.tokenizer, text)
        if parse_completion(text).thinking_closed:
            ids.append(scores.tokenizer.eos_token_id)
        samples.append(GradedSample(text, ids))
    return scores(
        samples, reference=reference, budget=int(info["budget"]), case_id=str(info["case_id"])
    )
