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

from train.branches import pack_branches
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
    """Packs examples into `(B, T)` with the attention mask and positions branches need."""

    pad_token_id: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: `sources` are flat positions whose logits predict `targets`, both (N,)."""
        examples: list[Example] = [row["example"] for row in rows]
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
        return {
            "input_ids": packed.input_ids,
            "position_ids": packed.position_ids,
            "attention_mask": packed.attention_mask,
            "sources": torch.cat(sources),
            "targets": torch.tensor(targets),
        }


class BranchTrainer(Trainer):
    """The Trainer, computing logits at loss positions only.

    With `bf16_weights` a step runs as `train.warm_start.cpu.call_in_bf16`.
    """

    bf16_weights = False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Mean cross-entropy over all completion tokens of the batch, of every process."""
        module: Any = self.accelerator.unwrap_model(model)

        def compute_logits() -> torch.Tensor:
            hidden = module.get_decoder()(  # (B, T, H)
                input_ids=inputs["input_ids"],
                position_ids=inputs["position_ids"],
                attention_mask=inputs["attention_mask"],
            ).last_hidden_state
            logits: torch.Tensor = module.get_output_embeddings()(
                hidden.flatten(0, 1)[inputs["sources"]]
            )
            return logits

        if self.bf16_weights:
            logits = call_within(model, module, partial(call_in_bf16, module, compute_logits))
        else:
            # accelerate autocasts `model.forward` only, which is not called here
            with self.accelerator.autocast():
                logits = call_within(model, module, compute_logits)
        loss = cross_entropy(logits.float(), inputs["targets"])  # (N, V), (N,)
        if self.accelerator.num_processes > 1:
            # Gradients are averaged over processes: each counts by its share of the tokens.
            count = torch.tensor(float(len(inputs["targets"])), device=loss.device)
            loss = loss * count / self.accelerator.gather(count).mean()
        return (loss, {"logits": logits}) if return_outputs else loss

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
