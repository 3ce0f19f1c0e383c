"""The settings of a planned run, and what one of its training steps asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from curt.artifact import MANIFEST, READER, load_manifest
from curt.classifier.candidates import LONGEST_TOKENS
from curt.config import Config
from curt.corpus.store import find_cases
from curt.dialogue import MAX_ANSWER_TOKENS
from train.grpo import GRPOSettings
from train.plan.devices import Device
from train.sft import SFTConfig

Sharding = Literal["ddp", "zero2", "zero2-offload", "zero3", "fsdp"]

PROMPT_WORDS = 40
"""Tokens of a prompt beside its facts and candidates: role marks, instruction, stated budget."""


class PlanFlags(Config):
    """What a plan needs beside the training configuration."""

    gpus: str = "1xH100"
    """Count and name of the devices: 8xH100, 1xL4."""
    device: Device | None = None
    """Figures of a device that isn't in the table, under the name given in `gpus`."""
    sharding: Sharding = "ddp"
    """How training is spread: that of the file given to accelerate."""
    architecture: str | None = None
    """A named model or a folder, where `model` doesn't say its size."""
    prompt_tokens: int | None = Field(None, ge=1)
    """Longest prompt of GRPO; from max_fact_tokens when left out."""
    completion_tokens: float | None = Field(None, gt=0)
    """Mean completion of GRPO; half the thinking limit and a whole answer when left out."""
    mfu: float = Field(0.35, gt=0, le=1)
    """Share of the peak that training reaches."""
    decode_efficiency: float = Field(0.6, gt=0, le=1)
    """Share of the bandwidth that generation reaches."""
    engine_ms: float = Field(3.0, ge=0)
    """What vLLM adds to every token step, in milliseconds."""
    price: float | None = Field(None, ge=0)
    """Of one device for an hour, in any currency."""


class GRPOPlan(PlanFlags, GRPOSettings):
    """A GRPO run and the devices for it."""


class SFTPlan(PlanFlags, SFTConfig):
    """A warm start and the devices for it."""


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
    sharding: Sharding = "ddp"
    extra_forwards: int = 0
    """Passes without a gradient: old and reference log-probabilities."""
    vllm: bool = False
    vllm_share: float = 0.3
    vllm_sleeps: bool = False
    vllm_tensor_parallel: int = 1
    group: int = 1
    """Rows with the same prompt."""
    quantised: bool = False
    """The base is held in four bits."""
    packed: bool = False
    """Prompts are computed once a group in the update, and finished rows leave generation."""

    @property
    def bytes_each(self) -> int:
        """Of an activation, or a cached key or value."""
        return 2 if self.bf16 else 4

    @property
    def passes(self) -> int:
        """Forward and backward passes of one step."""
        return self.rows // self.pass_rows

    @property
    def pass_prompts(self) -> int:
        """Prompts computed in one pass: one a row, or one a group where groups are packed."""
        return -(-self.pass_rows // self.group) if self.packed else self.pass_rows


def grpo_load(config: GRPOPlan, ranks: int) -> Load:
    """The load of a GRPO run on `ranks` processes.

    Raises ValueError when the step can't be shared among them, or no prompt length is known.
    """
    pass_rows, passes = config.cut_step(ranks)
    prompt_tokens = config.prompt_tokens
    if prompt_tokens is None:
        prompt_tokens = (config.max_fact_tokens or _facts_limit(config.model)) + PROMPT_WORDS
        prompt_tokens += LONGEST_TOKENS * (Path(config.model) / READER).is_dir()
    trl = config.trl
    server = bool(trl.get("use_vllm")) and trl.get("vllm_mode") == "server"
    vllm = bool(trl.get("use_vllm")) and not server
    return Load(
        ranks=ranks,
        rows=pass_rows * passes,
        pass_rows=pass_rows,
        prompt=prompt_tokens,
        completion=config.max_thinking_tokens + MAX_ANSWER_TOKENS,
        mean_completion=config.completion_tokens
        or config.max_thinking_tokens / 2 + MAX_ANSWER_TOKENS,
        steps=config.steps,
        bf16=config.bf16,
        checkpointing=bool(trl.get("gradient_checkpointing", False)),
        lora_rank=config.lora.rank if config.lora else None,
        quantised=config.lora is not None and config.lora.quantised,
        generates=not server,
        sharding=config.sharding,
        extra_forwards=int(vllm or server or passes > 1) + int(config.kl > 0),
        vllm=vllm,
        vllm_share=float(trl.get("vllm_gpu_memory_utilization", 0.3)),
        vllm_sleeps=bool(trl.get("vllm_enable_sleep_mode", False)),
        vllm_tensor_parallel=int(trl.get("vllm_tensor_parallel_size", 1)),
        group=config.generations,
        packed=config.compact,
    )


def sft_load(config: SFTPlan, ranks: int) -> Load:
    """The load of a warm start: one row is a case with all its branches, each at full length.

    Raises ValueError when the batch can't be shared, or the number of cases is not known.
    """
    pass_rows, passes = config.cut_step(ranks)
    branches = config.per_case * (config.max_thinking_tokens + MAX_ANSWER_TOKENS)
    return Load(
        ranks=ranks,
        rows=pass_rows * passes,
        pass_rows=pass_rows,
        prompt=config.max_fact_tokens + PROMPT_WORDS + LONGEST_TOKENS * bool(config.reader),
        completion=branches,
        mean_completion=branches,
        steps=round(-(-_count_cases(config) // config.batch) * config.epochs),
        bf16=config.bf16,
        checkpointing=config.gradient_checkpointing,
        lora_rank=config.lora.rank if config.lora else None,
        quantised=config.lora is not None and config.lora.quantised,
        generates=False,
        sharding=config.sharding,
    )


def _facts_limit(model: str) -> int:
    if not (Path(model) / MANIFEST).is_file():
        raise ValueError(
            f"no model folder {model} that says how long facts may be: give --prompt_tokens"
        )
    return load_manifest(Path(model), expect="hf").max_fact_tokens


def _count_cases(config: SFTPlan) -> int:
    if config.cases is not None:
        return config.cases
    path = find_cases(config.corpus, "train")
    if path.suffix != ".jsonl" or not path.is_file():
        raise ValueError(f"no cases in {config.corpus} to count: give their number with --cases")
    with open(path, "rb") as file:
        return sum(1 for _ in file)
