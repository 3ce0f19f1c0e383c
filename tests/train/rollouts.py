"""Rollouts for tests."""

from __future__ import annotations

from typing import Any

from train.data.trajectories import Rollout


def make_rollout(**changes: Any) -> Rollout:
    """A rollout with what matters to a test changed."""
    options: dict[str, Any] = {
        "step": 1, "group": 0, "case_id": "c-1", "prompt": "问", "prompt_sha256": "0" * 64,
        "budget": 32, "completion": "想</think>答", "token_ids": [3, 1, 4], "thinking_tokens": 20,
        "answer_tokens": 5, "truncated": False, "reward_raw": {"format": 1.0}, "partial": 1.0,
        "exact": 1.0, "shaped": 1.0, "reward": 1.0, "advantage": 0.0, "penalty": "none",
        "config_sha256": "f" * 64,
    }  # fmt: skip
    return Rollout(**options | changes)
