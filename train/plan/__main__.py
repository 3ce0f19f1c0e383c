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
from functools import cached_property
from pathlib import Path
from typing import Any

from curt.config import run
from curt.html import render_text
from train.plan.devices import GIB, Device, parse_gpus
from train.plan.load import GRPOPlan, Load, SFTPlan, grpo_load, sft_load
from train.plan.memory import Memory, estimate_memory, vllm_rows
from train.plan.shapes import ModelShape, find_shape
from train.plan.speed import Efficiency, StepTime, estimate_step


@dataclass(frozen=True)
class RunPlan:
    """A run on its devices, and what it needs and takes there."""

    shape: ModelShape
    load: Load
    device_name: str
    device: Device
    efficiency: Efficiency

    @cached_property
    def memory(self) -> Memory:
        """Bytes of one rank."""
        return estimate_memory(self.shape, self.load, self.device)

    @cached_property
    def step(self) -> StepTime:
        """Seconds of one step."""
        return estimate_step(self.shape, self.load, self.device, self.efficiency)

    @cached_property
    def vllm_rows(self) -> int:
        """Sequences at full length that vLLM's share holds."""
        return vllm_rows(self.shape, self.load, self.device)

    @property
    def fits(self) -> bool:
        """Whether the device holds the peak, and vLLM's share at least one sequence."""
        if self.load.vllm and not self.vllm_rows:
            return False
        return self.memory.needed() <= int(self.device.memory_gib * GIB)

    @property
    def hours(self) -> float:
        """Of all steps; saving and evaluation come on top."""
        return self.load.steps * self.step.seconds / 3600


def main(config: GRPOPlan | SFTPlan) -> None:
    """Print the plan; ends with status 1, and what would fit, where it doesn't."""
    plan = make_plan(config)
    sys.stdout.write(report(plan, config.price))
    if not plan.fits:
        sys.exit("\n".join(refusal(plan)))


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
    if model := config.architecture or config.model:
        shape = find_shape(model)
    else:
        assert isinstance(config, SFTPlan)  # GRPO always starts from a model
        own = config.shape.model_dump(exclude={"context", "rope_theta"})
        shape = ModelShape("from scratch", **own, tied=True, qk_norm=True)
    load = grpo_load(config, ranks) if isinstance(config, GRPOPlan) else sft_load(config, ranks)
    efficiency = Efficiency(config.mfu, config.decode_efficiency, config.engine_ms)
    return RunPlan(shape, load, name, device, efficiency)


def report(plan: RunPlan, price: float | None) -> str:
    """The plan as lines of text."""
    return render_text("plan.txt.j2", plan=plan, price=price)


def refusal(plan: RunPlan) -> Iterator[str]:
    """Why a plan doesn't fit and which changes of it do, smallest first."""
    needed = plan.memory.needed() / GIB
    if plan.load.vllm and not plan.vllm_rows:
        yield "error: vLLM's share holds no sequence: raise trl.vllm_gpu_memory_utilization"
    else:
        yield (
            f"error: {needed:.1f} GiB needed a rank, {plan.device.memory_gib:.1f} there. What fits:"
        )
    fitting = [(said, changed) for said, changed in remedies(plan) if changed.fits]
    for said, changed in fitting:
        yield f"  {said} ({changed.memory.needed() / GIB:.1f} GiB)"
    if not fitting:
        yield "  none of the usual changes: use larger devices, or a smaller model"


def remedies(plan: RunPlan) -> Iterator[tuple[str, RunPlan]]:
    """Changes that save memory, and the plan with each."""
    load = plan.load

    def changed(**changes: Any) -> RunPlan:
        return replace(plan, load=replace(load, **changes))

    rows = load.pass_rows
    while rows := rows // 2:  # the largest smaller pass that fits
        if (candidate := changed(pass_rows=rows)).fits:
            yield f"micro_batch {rows}", candidate
            break
    if not load.checkpointing:
        yield "gradient checkpointing", changed(checkpointing=True)
    if load.vllm and not load.vllm_sleeps:
        yield "trl.vllm_enable_sleep_mode = true", changed(vllm_sleeps=True)
    if load.generates and not load.vllm:
        colocated = changed(vllm=True, vllm_sleeps=True, packed=False)
        yield "rollouts by vLLM, asleep during the update", colocated
    if load.vllm:
        for share in (0.2, 0.4, 0.5, 0.6):
            if (candidate := changed(vllm_share=share)).fits:
                yield f"trl.vllm_gpu_memory_utilization = {share}", candidate
                break
    for name in ("zero2", "fsdp", "zero3", "zero2-offload"):
        if name != load.sharding:
            yield f"--sharding {name}", changed(sharding=name)
    frugal = {"checkpointing": True, "pass_rows": 1, "vllm_sleeps": load.vllm}
    if load.sharding != "zero3":
        zero3 = changed(sharding="zero3", **frugal)
        yield "zero3 with checkpointing and micro_batch 1", zero3
    if not load.lora_rank:
        adapted = changed(lora_rank=16, **frugal)
        yield "LoRA of rank 16 with checkpointing and micro_batch 1", adapted


if __name__ == "__main__":
    run(plan_class(sys.argv[1:]), main)
