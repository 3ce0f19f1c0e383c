"""What one training step asks of a machine, read off a training configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace

from curt.dialogue import MAX_ANSWER_TOKENS
from train.grpo import GRPOSettings
from train.runs.shares import cut_batch
from train.sft import SFTConfig

PROMPT_WORDS = 40
"""Tokens of a prompt beside its facts: role marks, the instruction, the stated budget."""


@dataclass(frozen=True, slots=True)
class Load:
    """One step on one of `ranks` equal devices. Lengths in tokens."""

    ranks: int
    rows: int
    """Sequences a rank trains on each step."""
    pass_rows: int
    """Sequences in one forward and backward pass."""
    prompt: int
    """Longest prompt."""
    completion: int
    """Longest completion, where logits are needed."""
    mean_completion: float
    """Expected length of completions."""
    steps: int
    bf16: bool
    checkpointing: bool
    lora_rank: int | None
    generates: bool
    extra_forwards: int = 0
    """Passes without a gradient: old and reference log-probabilities."""
    vllm: bool = False
    vllm_share: float = 0.3
    vllm_sleeps: bool = False
    vllm_tensor_parallel: int = 1
    group: int = 1
    """Rows with the same prompt."""
    packed: bool = False
    """Prompts are computed once a group in the update, and finished rows leave generation."""

    @property
    def bytes_each(self) -> int:
        """Of an activation, or a cached key or value."""
        return 2 if self.bf16 else 4


def grpo_load(
    config: GRPOSettings,
    ranks: int,
    *,
    prompt_tokens: int | None = None,
    completion_tokens: float | None = None,
) -> Load:
    """The load of a GRPO configuration.

    Args:
        config: of `train.grpo`.
        ranks: processes.
        prompt_tokens: longest prompt; the facts' limit and the words around them when not given.
        completion_tokens: mean completion; half the thinking limit and a whole answer when not
            given.

    Raises ValueError when the step can't be shared among `ranks`, or no prompt length is known.
    """
    pass_rows, passes = cut_batch(
        config.prompts + config.oversample,
        config.generations,
        processes=ranks,
        micro_batch=config.micro_batch,
        what="prompts + oversample",
    )
    if prompt_tokens is None:
        prompt_tokens = (config.max_fact_tokens or _facts_limit(config.model)) + PROMPT_WORDS
    vllm = bool(config.trl.get("use_vllm")) and config.trl.get("vllm_mode") != "server"
    remote = bool(config.trl.get("use_vllm")) and not vllm
    return Load(
        ranks=ranks,
        rows=pass_rows * passes,
        pass_rows=pass_rows,
        prompt=prompt_tokens,
        completion=config.max_thinking_tokens + MAX_ANSWER_TOKENS,
        mean_completion=completion_tokens
        if completion_tokens is not None
        else config.max_thinking_tokens / 2 + MAX_ANSWER_TOKENS,
        steps=config.steps,
        bf16=config.bf16,
        checkpointing=bool(config.trl.get("gradient_checkpointing", False)),
        lora_rank=config.lora.rank if config.lora else None,
        generates=not remote,
        extra_forwards=int(vllm or remote or passes > 1) + int(config.kl > 0),
        vllm=vllm,
        vllm_share=float(config.trl.get("vllm_gpu_memory_utilization", 0.3)),
        vllm_sleeps=bool(config.trl.get("vllm_enable_sleep_mode", False)),
        vllm_tensor_parallel=int(config.trl.get("vllm_tensor_parallel_size", 1)),
        group=config.generations,
        packed=config.compact,
    )


def sft_load(
    config: SFTConfig, ranks: int, cases: int, *, branch_tokens: int | None = None
) -> Load:
    """The load of a warm start: one row is a case with all its branches in one sequence.

    Args:
        config: of `train.sft`.
        ranks: processes.
        cases: training cases.
        branch_tokens: tokens of all branches of a case; the largest possible when not given.
    """
    pass_rows, passes = cut_batch(
        config.batch, 1, processes=ranks, micro_batch=config.micro_batch, what="batch"
    )
    branches = branch_tokens
    if branches is None:
        branches = config.per_case * (config.max_thinking_tokens + MAX_ANSWER_TOKENS)
    return Load(
        ranks=ranks,
        rows=pass_rows * passes,
        pass_rows=pass_rows,
        prompt=config.max_fact_tokens + PROMPT_WORDS,
        completion=branches,
        mean_completion=branches,
        steps=round(-(-(config.cases or cases) // config.batch) * config.epochs),
        bf16=config.bf16,
        checkpointing=config.gradient_checkpointing,
        lora_rank=config.lora.rank if config.lora else None,
        generates=False,
    )


def pass_count(load: Load) -> int:
    """Passes of one step."""
    return load.rows // load.pass_rows


def smaller_passes(load: Load) -> Load | None:
    """The same step in passes of half as many rows; None when a pass is one row already."""
    return replace(load, pass_rows=load.pass_rows // 2) if load.pass_rows > 1 else None


def _facts_limit(model: str) -> int:
    from pathlib import Path

    from curt.artifact import MANIFEST, load_manifest

    if not (Path(model) / MANIFEST).is_file():
        raise ValueError(
            f"no model folder {model} that says how long facts may be: give --prompt_tokens"
        )
    return load_manifest(Path(model), expect="hf").max_fact_tokens
