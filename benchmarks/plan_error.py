"""How far the planner of `train.plan` is off the runs that were timed.

    python -m benchmarks.plan_error

Plans the demo's GRPO run and the steps of `benchmarks/step_time.json` for this processor, whose
speed is measured first, and sets the planned seconds beside the timed ones. The efficiencies are
1: nothing is fitted to the runs, so the error is the formulas' own. Says nothing about GPUs.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.served import describe_machine
from curt.artifact import load_manifest
from curt.config import Config, load_config
from curt.files import write_json
from curt.logs import configure_logging
from train.grpo import GRPOSettings
from train.plan_devices import GIB, Device, measure_cpu
from train.plan_load import grpo_load
from train.plan_shapes import find_shape
from train.plan_speed import Efficiency, Step, estimate_step

logger = logging.getLogger(__name__)

MEASURED = Efficiency(mfu=1.0, decode=1.0, engine_ms=0.0)  # the device's figures are measured ones


class PlanErrorConfig(Config):
    """Which runs to compare with."""

    run: Path = Path("artifacts/demo/grpo-default")
    """Model folder of a GRPO run on this machine."""
    step_time: Path = Path("benchmarks/step_time.json")
    """Timed steps of several ways to do them."""
    out: Path = Path("benchmarks/plan_error.json")
    """Report to write."""


def main() -> None:
    """Compare and write the report; exits with a message when a run is missing."""
    config = load_config(PlanErrorConfig)
    configure_logging()
    if not (config.run / "history.json").is_file():
        sys.exit(f"error: no run in {config.run}: `make demo` makes one")
    settings = GRPOSettings(**load_manifest(config.run, expect="hf").config)
    device = measure_cpu(memory_bytes() / GIB, bf16=settings.bf16)
    rows = [*compare_run(config.run, device), *compare_steps(config, device)]
    report = {
        "machine": describe_machine(),
        "cores": os.cpu_count(),
        "device": device.model_dump(),
        "rows": rows,
        "median_error": median(abs(row["error"]) for row in rows),
    }
    write_json(config.out, report)
    for row in rows:
        logger.info(
            "%-28s planned %7.3f s, timed %7.3f s, error %+.0f%%",
            row["what"], row["planned_s"], row["timed_s"], 100 * row["error"],
        )  # fmt: skip


def compare_run(folder: Path, device: Device) -> Iterator[dict[str, Any]]:
    """The run's mean step against the plan for its configuration and its own lengths."""
    history = json.loads((folder / "history.json").read_bytes())
    settings = GRPOSettings(**load_manifest(folder, expect="hf").config)
    mean_tokens = sum(row["completion_tokens"] for row in history) / len(history)
    timed = median(row["seconds"] for row in history)
    load = grpo_load(settings, 1, completion_tokens=mean_tokens)
    step = estimate_step(find_shape(str(folder)), load, "ddp", device, MEASURED)
    yield _row(f"{folder.name}, step", step, timed)


def compare_steps(config: PlanErrorConfig, device: Device) -> Iterator[dict[str, Any]]:
    """TRL's way and the compact one; completions of about 72 thinking tokens and 25 of answer."""
    report = json.loads(config.step_time.read_bytes())
    shape = find_shape(str(config.run))
    settings = GRPOSettings(**load_manifest(config.run, expect="hf").config)
    for what, compact in (("curt", False), ("curt, compact", True)):
        changed = settings.model_copy(update={"compact": compact, "oversample": 0})
        load = grpo_load(changed, 1, completion_tokens=97.0)
        step = estimate_step(shape, load, "ddp", device, MEASURED)
        yield _row(f"step_time: {what}", step, report["median_seconds"][what])


def memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _row(what: str, step: Step, timed: float) -> dict[str, Any]:
    planned = step.seconds
    return {
        "what": what,
        "planned_s": planned,
        "planned_generation_s": step.generation_s,
        "planned_update_s": step.update_s,
        "timed_s": timed,
        "error": planned / timed - 1,
    }


if __name__ == "__main__":
    main()
