"""Supervised loss at the price of one prompt a case and logits only where there is a loss.

Memory traffic is the limit on a CPU. Branches of one case share its facts in one sequence: a branch
sees the facts and itself, never another branch, and its positions count on from the facts, so each
branch's logits are those it would have alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from train.runs.processes import call_within
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
        longest = max(len(e) for e in examples)
        input_ids = torch.full((len(examples), longest), self.pad_token_id)
        positions = torch.zeros_like(input_ids)
        branch_of = torch.full_like(input_ids, -1)  # 0: facts, 1..: branches, -1: padding
        sources, targets = [], []  # flat positions whose logits are needed, and what they predict
        for row, example in enumerate(examples):
            start = len(example.shared_ids)
            input_ids[row, :start] = torch.tensor(example.shared_ids)
            positions[row, :start] = torch.arange(start)
            branch_of[row, :start] = 0
            facts = start
            for number, branch in enumerate(example.branches, start=1):
                ids = branch.prompt_ids + branch.completion_ids
                end = start + len(ids)
                input_ids[row, start:end] = torch.tensor(ids)
                positions[row, start:end] = torch.arange(facts, facts + len(ids))
                branch_of[row, start:end] = number
                first = row * longest + start + len(branch.prompt_ids) - 1
                sources.append(torch.arange(first, first + len(branch.completion_ids)))
                targets += branch.completion_ids
                start = end
        return {
            "input_ids": input_ids,
            "position_ids": positions,
            "attention_mask": branch_mask(branch_of),
            "sources": torch.cat(sources),
            "targets": torch.tensor(targets),
        }


def branch_mask(branch_of: torch.Tensor) -> torch.Tensor:
    """Who sees whom: `(B, T)` branch numbers to a boolean mask `(B, 1, T, T)`, query by key.

    A token sees itself, and what stands before it in the facts (0) or in its own branch.
    """
    length = branch_of.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_of.device).tril()
    query, key = branch_of[:, :, None], branch_of[:, None, :]
    return (causal & ((query == key) | (key == 0)))[:, None]


class BranchTrainer(Trainer):
    """The Trainer, computing logits at loss positions only."""

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
