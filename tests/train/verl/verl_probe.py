"""Runs inside verl: loads the adapter as verl does and prints what it gives, as JSON.

    python tests/train/verl/verl_probe.py FOLDER

FOLDER holds rows.json (groups of completions), model/ (tokenizer), grpo.toml and data/*.parquet.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from transformers import AutoTokenizer
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.utils.dataset.rl_dataset import RLHFDataset

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    folder = Path(sys.argv[1])
    groups = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    with initialize_config_dir(str(ROOT / "configs" / "verl"), version_base=None):
        config = compose("grpo-qwen2.5-7b", overrides=changes_for(folder))
    manager = load_reward_manager(config, tokenizer, reward_router_address=None)
    rewards = asyncio.run(run_manager(manager, groups))
    scores = torch.zeros(len(rewards), 4)
    scores[:, -1] = torch.tensor([r["reward_score"] for r in rewards])
    uids = np.array([g["uid"] for g in groups for _ in g["completions"]], dtype=object)
    estimator = get_adv_estimator_fn(config.algorithm.adv_estimator)
    advantages, _ = estimator(
        token_level_rewards=scores,
        response_mask=torch.ones_like(scores),
        index=uids,
        config=config.algorithm,
    )
    json.dump(
        {
            "verl": verl.__version__,
            "source": type(manager).run_single.__code__.co_filename,
            "manager": [r["reward_score"] for r in rewards],
            "metrics": [r["reward_extra_info"] for r in rewards],
            "advantages": advantages[:, 0].tolist(),
            "single": call_single(config, groups),
            "dataset": read_dataset(config, tokenizer),
        },
        sys.stdout,
    )


def changes_for(folder: Path) -> list[str]:
    options = "reward.custom_reward_function.reward_kwargs"
    return [
        f"actor_rollout_ref.model.path={folder / 'model'}",
        f"{options}.settings={folder / 'grpo.toml'}",
        f"{options}.tokenizer={folder / 'model'}",
        f"data.train_files={folder / 'data' / 'train.parquet'}",
        "actor_rollout_ref.rollout.n=4",
        "data.filter_overlong_prompts=false",
        f"reward.reward_manager.module.path={ROOT / 'train' / 'verl' / 'manager.py'}",
        f"reward.custom_reward_function.path={ROOT / 'train' / 'verl' / 'reward.py'}",
    ]


async def run_manager(manager: Any, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One call a completion, all in flight, in random order, as verl's agent loops do."""
    calls = [
        (place, single(group, session, manager.tokenizer))
        for place, (group, session) in enumerate(
            (group, session) for group in groups for session in range(len(group["completions"]))
        )
    ]
    random.Random(0).shuffle(calls)
    results = await asyncio.gather(*(manager.run_single(data) for _, data in calls))
    placed = dict(zip((place for place, _ in calls), results, strict=True))
    return [placed[place] for place in sorted(placed)]


def single(group: dict[str, Any], session: int, tokenizer: Any) -> DataProto:
    """A completion as `AgentLoopWorker._compute_score` hands it over."""
    prompts = torch.tensor([tokenizer("问")["input_ids"]])
    responses = torch.tensor([group["completions"][session]["token_ids"]])
    ids = torch.cat([prompts, responses], dim=1)
    fields = {
        "data_source": "curt",
        "reward_model": {"style": "rule", "ground_truth": group["reference"]},
        "extra_info": group["extra_info"],
        "uid": group["uid"],
        "session_id": session,
    }
    return DataProto(
        batch=TensorDict(
            {
                "prompts": prompts,
                "responses": responses,
                "attention_mask": torch.ones_like(ids),
                "input_ids": ids,
            },
            batch_size=1,
        ),
        non_tensor_batch={key: np.array([value]) for key, value in fields.items()},
    )


def call_single(config: Any, groups: list[dict[str, Any]]) -> list[float]:
    """`compute_score` through verl's loader, with a penalty that needs no group."""
    config.reward.custom_reward_function.reward_kwargs.changes = {"penalty": {"type": "linear"}}
    score = get_custom_reward_fn(config)
    assert score is not None
    return [
        score(
            data_source="curt",
            solution_str=completion["text"],
            ground_truth=group["reference"],
            extra_info=group["extra_info"],
        )["score"]
        for group in groups
        for completion in group["completions"]
    ]


def read_dataset(config: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """The exported rows as verl's dataset gives them."""
    dataset = RLHFDataset(config.data.train_files, tokenizer, config.data)
    return [
        {
            "rendered": tokenizer.apply_chat_template(
                row["raw_prompt"],
                chat_template=config.actor_rollout_ref.model.custom_chat_template,
                add_generation_prompt=True,
                tokenize=False,
            ),
            "ground_truth": row["reward_model"]["ground_truth"],
            "extra_info": row["extra_info"],
            "data_source": row["data_source"],
        }
        for row in (dataset[index] for index in range(len(dataset)))
    ]


if __name__ == "__main__":
    main()
