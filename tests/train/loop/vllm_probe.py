"""Runs in an environment with vLLM and TRL: two GRPO steps with colocated rollouts, watched.

    python tests/train/loop/vllm_probe.py MODEL CORPUS OUT

Prints, as JSON, for each generation how vLLM's choices agree with the model being trained.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from vllm import SamplingParams

import train.loop.trainer
from tests.train.loop.vllm_on_cpu import keep_weights_plain
from train.grpo import GRPOSettings, train_grpo
from train.penalties.group.kimi import KimiPenalty

SEEN: list[dict[str, Any]] = []


class WatchedTrainer(train.loop.trainer.RecordingTrainer):
    """Compares every rollout of vLLM with the model's own opinion of it."""

    def _generate_single_turn(self, prompt_ids: Any, *rest: Any, **options: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        if not SEEN:
            # read anew: a copy's forward would still be the wrapped one of the trained model
            self.start = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
        completions, log_probs = super()._generate_single_turn(prompt_ids, *rest, **options)
        rows = list(zip(prompt_ids, completions, log_probs, strict=True))
        unique = [list(p) for p in prompt_ids[:: self.num_generations]]
        greedy = self.vllm_generation.llm.generate(
            [{"prompt_token_ids": p} for p in unique],
            SamplingParams(temperature=0, max_tokens=self.args.max_completion_length),
            use_tqdm=False,
        )
        SEEN.append(
            {
                "step": self.state.global_step,
                "now": fmean(difference(model, *row, self.args.temperature) for row in rows),
                "before": fmean(
                    difference(self.start, *row, self.args.temperature) for row in rows
                ),
                "tokens": sum(map(len, completions)),
                "greedy": [list(g.outputs[0].token_ids) for g in greedy],
                "greedy_of_model": [
                    greedy_completion(model, p, self.args.max_completion_length, self.eos_token_ids)
                    for p in unique
                ],
            }
        )
        return completions, log_probs


@torch.no_grad()
def difference(
    model: Any, prompt: list[int], completion: list[int], log_probs: list[float], temperature: float
) -> float:
    """Mean gap between vLLM's log-probabilities of its tokens and the model's."""
    ids = torch.tensor([list(prompt) + list(completion)])
    logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    own = torch.log_softmax(logits, -1).gather(1, ids[0, len(prompt) :, None])[:, 0]
    return float((own - torch.tensor(log_probs)).abs().mean())


@torch.no_grad()
def greedy_completion(model: Any, prompt: list[int], most: int, ends: list[int]) -> list[int]:
    """Token by token without a cache: the plainest sampler there is."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def main() -> None:
    logging.disable(logging.INFO)
    model, corpus, out = sys.argv[1:]
    keep_weights_plain()
    train.loop.trainer.RecordingTrainer = WatchedTrainer  # type: ignore[misc]
    config = GRPOSettings(
        model=model,
        corpus=Path(corpus),
        out=Path(out),
        penalty=KimiPenalty(),
        steps=2,
        prompts=4,
        generations=4,
        budgets=[16, 32],
        max_thinking_tokens=48,
        learning_rate=2e-3,
        temperature=1.0,
        trackers=[],
        trl={
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": 0.1,
            "vllm_max_model_length": 512,
            "vllm_importance_sampling_mode": "token_truncate",
            "warmup_steps": 0,  # the first update must change the weights
        },
    )
    train_grpo(config)
    Path(out).with_suffix(".json").write_text(json.dumps(SEEN))


if __name__ == "__main__":
    main()
