"""Memory, speed, hours and cost of a training run before it is started.

    python -m train.plan @configs/qwen2.5-7b/grpo.toml --gpus 8xH100 --sharding zero3
    python -m train.plan @configs/qwen2.5-7b/sft.toml --gpus 8xH100 --sharding zero3 --cases 100000
    python -m train.plan @configs/qwen3-0.6b/grpo.toml --gpus 1xL4 --price 0.8

Takes every setting of `train.grpo` or `train.sft`, whichever the file is for. The formulas stand in
the docstrings of `train.plan.memory` and `train.plan.speed`; `docs/experiments.md` sets them beside
runs that were timed. Ends with status 1 where the run doesn't fit, naming what would.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from curt.config import Config
from curt.corpus.store import find_cases
from train.grpo import GRPOSettings
from train.plan.devices import GIB, Device, parse_gpus
from train.plan.load import Load, grpo_load, sft_load, smaller_passes
from train.plan.memory import Memory, Sharding, estimate_memory, vllm_rows
from train.plan.shapes import NAMED, ModelShape, find_shape
from train.plan.speed import Efficiency, StepTime, estimate_step
from train.sft import SFTConfig


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
    """Longest prompt; from max_fact_tokens when left out."""
    completion_tokens: float | None = Field(None, gt=0)
    """Mean completion; half the thinking limit and a whole answer when left out."""
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
class RunPlan:
    """What a run needs and takes."""

    shape: ModelShape
    load: Load
    sharding: Sharding
    device_name: str
    device: Device
    memory: Memory
    step: StepTime

    @property
    def room(self) -> int:
        """Bytes of a device."""
        return int(self.device.memory_gib * GIB)

    @property
    def fits(self) -> bool:
        """Whether the device holds the peak, and vLLM's share at least one sequence."""
        if self.load.vllm and not vllm_rows(self.shape, self.load, self.device):
            return False
        return self.memory.needed() <= self.room

    @property
    def hours(self) -> float:
        """Of all steps; saving and evaluation come on top."""
        return self.load.steps * self.step.seconds / 3600


def main(config: GRPOPlan | SFTPlan) -> None:
    """Print the plan; ends with status 1, and what would fit, where it doesn't."""
    plan = make_plan(config)
    sys.stdout.write("\n".join(report(plan, config.price)) + "\n")
    if not plan.fits:
        sys.exit("\n".join(refusal(plan, Efficiency(config.mfu, config.decode_efficiency))))


def plan_class(arguments: Sequence[str]) -> type[GRPOPlan] | type[SFTPlan]:
    """The training that all files' settings belong to; GRPO without a file.

    Settings of neither are refused when they are loaded.
    """
    keys: set[str] = set()
    for file in (Path(a[1:]) for a in arguments if a.startswith("@")):
        if file.is_file():
            keys |= tomllib.loads(file.read_text(encoding="utf-8")).keys()
    fits_sft = keys <= SFTPlan.model_fields.keys()
    fits_grpo = keys <= GRPOPlan.model_fields.keys()
    return SFTPlan if fits_sft and not fits_grpo else GRPOPlan


def make_plan(config: GRPOPlan | SFTPlan) -> RunPlan:
    """The plan of a configuration. Raises ValueError naming what is missing or can't be shared."""
    ranks, name, device = parse_gpus(config.gpus, config.device)
    if isinstance(config, GRPOPlan):
        shape = _shape(config.architecture, config.model)
        load = grpo_load(
            config,
            ranks,
            prompt_tokens=config.prompt_tokens,
            completion_tokens=config.completion_tokens,
        )
    else:
        shape = _sft_shape(config)
        load = sft_load(config, ranks, count_cases(config))
    return plan_for(
        shape,
        load,
        config.sharding,
        name,
        device,
        Efficiency(config.mfu, config.decode_efficiency, config.engine_ms),
    )


def plan_for(
    shape: ModelShape,
    load: Load,
    sharding: Sharding,
    name: str,
    device: Device,
    efficiency: Efficiency,
) -> RunPlan:
    """A plan from its parts."""
    return RunPlan(
        shape,
        load,
        sharding,
        name,
        device,
        estimate_memory(shape, load, sharding, device),
        estimate_step(shape, load, sharding, device, efficiency),
    )


def count_cases(config: SFTConfig) -> int:
    """Training cases of the corpus. Raises ValueError without one and without `cases`."""
    path = find_cases(config.corpus, "train")
    if config.cases is not None:
        return config.cases
    if path.suffix != ".jsonl" or not path.is_file():
        raise ValueError(f"no cases in {config.corpus} to count: give their number with --cases")
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def report(plan: RunPlan, price: float | None) -> Iterator[str]:
    """The plan as lines of text."""
    load, memory, step = plan.load, plan.memory, plan.step
    yield (
        f"{plan.shape.name}, {plan.shape.parameters / 1e9:.3f} B parameters, "
        f"{load.ranks} x {plan.device_name}, {plan.sharding}"
        + (f", LoRA of rank {load.lora_rank}" if load.lora_rank else "")
    )
    yield f"memory a rank, GiB (of {plan.device.memory_gib:.1f})"
    rows = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimiser": memory.optimizer,
        "copies and buckets": memory.copies,
        f"activations of {load.pass_rows} rows": memory.activations,
        "logits": memory.logits,
        "vLLM's share" if load.vllm else "rollouts' keys and values": memory.rollouts,
        "peak with reserve": memory.needed(),
        "on the host": memory.host,
    }
    yield from (f"  {name:28} {value / GIB:9.3f}" for name, value in rows.items())
    if load.vllm:
        yield f"  sequences that vLLM holds    {vllm_rows(plan.shape, load, plan.device):9d}"
    yield f"seconds a step, of {load.steps} steps"
    parts = {
        "generation": step.generation_s,
        "update": step.update_s,
        "optimiser": step.optimizer_s,
        "exchange": step.exchange_s,
        "all": step.seconds,
    }
    yield from (f"  {name:28} {value:9.3f}" for name, value in parts.items())
    if step.generation_s:
        yield f"tokens generated a second      {step.generated_tokens / step.generation_s:9.0f}"
    yield f"tokens trained on a second     {step.trained_tokens / step.update_s:9.0f}"
    yield f"hours                          {plan.hours:9.2f}"
    if price is not None:
        yield f"cost                           {plan.hours * load.ranks * price:9.2f}"


def refusal(plan: RunPlan, efficiency: Efficiency) -> Iterator[str]:
    """Why a plan doesn't fit and which changes of it do, smallest first."""
    needed = plan.memory.needed() / GIB
    if plan.load.vllm and not vllm_rows(plan.shape, plan.load, plan.device):
        yield "error: vLLM's share holds no sequence: raise trl.vllm_gpu_memory_utilization"
    else:
        yield (
            f"error: {needed:.1f} GiB needed a rank, {plan.device.memory_gib:.1f} there. What fits:"
        )
    found = False
    for said, changed in remedies(plan, efficiency):
        if changed.fits:
            found = True
            yield f"  {said} ({changed.memory.needed() / GIB:.1f} GiB)"
    if not found:
        yield "  none of the usual changes: use larger devices, or a smaller model"


def remedies(plan: RunPlan, efficiency: Efficiency) -> Iterator[tuple[str, RunPlan]]:
    """Changes that save memory, and the plan with each."""

    def changed(load: Load = plan.load, sharding: Sharding = plan.sharding) -> RunPlan:
        return plan_for(plan.shape, load, sharding, plan.device_name, plan.device, efficiency)

    load: Load | None = plan.load
    while load is not None and (load := smaller_passes(load)):
        if (candidate := changed(load)).fits:
            yield f"micro_batch {load.pass_rows}", candidate
            break
    if not plan.load.checkpointing:
        yield "gradient checkpointing", changed(replace(plan.load, checkpointing=True))
    if plan.load.vllm and not plan.load.vllm_sleeps:
        asleep = replace(plan.load, vllm_sleeps=True)
        yield "trl.vllm_enable_sleep_mode = true", changed(asleep)
    if plan.load.generates and not plan.load.vllm:
        colocated = replace(plan.load, vllm=True, vllm_sleeps=True, packed=False)
        yield "rollouts by vLLM, asleep during the update", changed(colocated)
    if plan.load.vllm:
        for share in (0.2, 0.4, 0.5, 0.6):
            other = changed(replace(plan.load, vllm_share=share))
            if other.fits:
                yield f"trl.vllm_gpu_memory_utilization = {share}", other
                break
    order: tuple[Sharding, ...] = ("zero2", "fsdp", "zero3", "zero2-offload")
    yield from (
        (f"--sharding {name}", changed(sharding=name)) for name in order if name != plan.sharding
    )
    frugal = replace(plan.load, checkpointing=True, pass_rows=1, vllm_sleeps=plan.load.vllm)
    if plan.sharding != "zero3":
        yield "zero3 with checkpointing and micro_batch 1", changed(frugal, "zero3")
    if not plan.load.lora_rank:
        yield (
            "LoRA of rank 16 with checkpointing and micro_batch 1",
            changed(replace(frugal, lora_rank=16)),
        )


def _shape(architecture: str | None, model: str) -> ModelShape:
    return NAMED.get(architecture or "") or find_shape(architecture or model)


def _sft_shape(config: SFTPlan) -> ModelShape:
    if config.architecture or config.model:
        return _shape(config.architecture, config.model or "")
    own: dict[str, Any] = config.shape.model_dump(exclude={"context", "rope_theta"})
    return ModelShape("from scratch", **own, tied=True, qk_norm=True)
