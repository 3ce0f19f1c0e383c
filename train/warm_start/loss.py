"""Supervised loss that computes a case's facts once and logits only where there is a loss.

Memory traffic is the limit on a CPU, so the branches of a case share its facts in one sequence
(`train.branches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from train.branches import branch_logits, pack_branches
from train.runs.processes import call_within
from train.warm_start.cpu import call_in_bf16
from train.warm_start.examples import Example


class ExampleDataset(Dataset[dict[str, Any]]):
    """Examples as the Trainer's length-grouping sampler wants them."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # the sampler reads the length of "input_ids"
        return {"input_ids": range(len(self.examples[index])), "example": self.examples[index]}


@dataclass(frozen=True, slots=True)
class BranchCollator:
    """Packs examples into `(B, T)` with the attention mask and positions branches need.

    `fact_share` of the shared tokens, drawn at random, are targets of their own.
    """

    pad_token_id: int
    fact_share: float = 0.0
    packs: bool = True
    """Whether the model may be given branches in one row; else every branch is a row of its own."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: `sources` are flat positions whose logits predict the targets in order.

        `targets` are the completions' tokens, `fact_targets` those drawn from the shared texts.
        """
        examples: list[Example] = [row["example"] for row in rows]
        if not self.packs:
            examples = [Example(e.shared_ids, (b,)) for e in examples for b in e.branches]
        packed = pack_branches(
            [e.shared_ids for e in examples],
            [[b.prompt_ids + b.completion_ids for b in e.branches] for e in examples],
            pad_id=self.pad_token_id,
        )
        sources, targets = [], []
        for example, starts in zip(examples, packed.starts, strict=True):
            for branch, start in zip(example.branches, starts, strict=True):
                first = start + len(branch.prompt_ids) - 1
                sources.append(torch.arange(first, first + len(branch.completion_ids)))
                targets += branch.completion_ids
        flat = packed.input_ids.flatten()
        width = packed.input_ids.shape[1]
        fact_sources = torch.cat(
            [row * width + torch.arange(len(e.shared_ids) - 1) for row, e in enumerate(examples)]
        )
        if self.fact_share < 1:
            # Seeded by the batch, so that a resumed run draws alike.
            generator = torch.Generator().manual_seed(sum(targets))
            drawn = torch.rand(len(fact_sources), generator=generator) < self.fact_share
            fact_sources = fact_sources[drawn]
        masked = {
            "position_ids": packed.position_ids,
            "attention_mask": packed.attention_mask,
        }
        return {
            "input_ids": packed.input_ids,
            **(masked if self.packs else {}),
            "sources": torch.cat([*sources, fact_sources]),
            "targets": torch.tensor(targets),
            "fact_targets": flat[fact_sources + 1],
        }


class BranchTrainer(Trainer):
    """The Trainer, computing logits at loss positions only.

    With `bf16_weights` a step runs as `train.warm_start.cpu.call_in_bf16`. `fact_weight` weighs the
    loss of the facts' tokens that the collator drew.
    """

    bf16_weights = False
    fact_weight = 0.0

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Mean cross-entropy over all completion tokens, and with its weight over the facts'."""
        module: Any = self.accelerator.unwrap_model(model)

        def compute_logits() -> torch.Tensor:
            names = ("input_ids", "sources", "position_ids", "attention_mask")
            return branch_logits(module, *(inputs[name] for name in names if name in inputs))

        if self.bf16_weights:
            logits = call_within(model, module, partial(call_in_bf16, module, compute_logits))
        else:
            with self.accelerator.autocast():
                logits = call_within(model, module, compute_logits)
        completions, facts = logits.split([len(inputs["targets"]), len(inputs["fact_targets"])])
        loss = self._mean_loss(completions, inputs["targets"])
        if self.fact_weight:
            loss = loss + self.fact_weight * self._mean_loss(facts, inputs["fact_targets"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _mean_loss(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the tokens of every process; 0 where this one has none."""
        count = torch.tensor(float(len(targets)), device=logits.device)
        loss = cross_entropy(logits.float(), targets, reduction="sum")  # (N, V), (N,)
        if self.accelerator.num_processes > 1:
            # Gradients are averaged over processes: each counts by its share of the tokens.
            count = self.accelerator.gather(count).mean()
        return loss / count.clamp(min=1)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """One order of the data for any number of processes: batches of all make a step."""
        if self.args.world_size == 1:
            return super()._get_train_sampler(train_dataset)
        a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(a_step * self.args.world_size, dataset=self.train_dataset)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # a checkpoint is whole once its last file is there


def history_rows(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The training-loss rows of a Trainer's log, for the report."""
    return [
        {"step": row["step"], "loss": row["loss"], "lr": row["learning_rate"]}
        for row in log_history
        if "loss" in row
    ]
