"""Requests a second that a GPU answers in time, by model and budget: the table of operations.md.

    python -m deploy.sizing                       # the table, as Markdown
    python -m deploy.sizing --deadline_ms 800     # for another deadline

Bandwidth and peak are the vendors' data sheets; everything else is a formula with factors that no
run has confirmed. Only the floor is certain. `python -m loadtest.capacity` on the card replaces it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from pydantic import Field

from curt.config import Config, run
from curt.hardware import GPUS, Gpu

PROMPT_TOKENS = 500
ANSWER_TOKENS = 25  # answer and end of thinking
MARGIN_MS = 15.0
OVERHEAD_MS = 3.0  # launches, sampling, HTTP
P99_OVER_MEAN = 1.3
PREFILL_EFFICIENCY = 0.4  # share of the peak operations
CONCURRENT = 8  # requests at once that keep a token near the time it takes alone
UTILISATION = 0.6  # headroom for Poisson arrivals
PREFILL_SHARE = 0.3  # of the GPU's time, at most
BYTES = {"fp8": 1.0, "int4": 0.56}


@dataclass(frozen=True)
class SizedModel:
    """A model by its parameters, in billions."""

    name: str
    parameters_b: float


@dataclass(frozen=True)
class ServedGpu:
    """A GPU and the format of the weights that it serves."""

    gpu: Gpu
    format: str

    @property
    def peak_t(self) -> float:
        """Operations a second, 10^12; int4 weights are widened to bf16 first."""
        return self.gpu.tflops["fp8" if self.format == "fp8" else "bf16"]


MODELS = (SizedModel("0.6 B", 0.6), SizedModel("1.5 B", 1.78), SizedModel("7 B", 7.62))
SERVED = tuple(
    ServedGpu(GPUS[name], form)
    for name, form in (("H200", "fp8"), ("H100", "fp8"), ("A10", "int4"), ("L4", "fp8"))
)


class SizingConfig(Config):
    """What the table is for."""

    deadline_ms: float = Field(400, gt=0)
    """Deadline, ms."""
    budgets: list[int] = Field([0, 16, 32, 64], min_length=1)
    """Thinking budgets, tokens: a column each."""


def weights_gb(model: SizedModel, gpu: ServedGpu) -> float:
    """Size of the weights, GB."""
    return model.parameters_b * BYTES[gpu.format]


def floor_ms(model: SizedModel, gpu: ServedGpu) -> float:
    """Least time a token can take, ms: every weight is read from memory once."""
    return weights_gb(model, gpu) / (gpu.gpu.bandwidth_gb_s / 1e3)


def token_ms(model: SizedModel, gpu: ServedGpu) -> float:
    """Time a token takes at the 99th percentile, ms: what a deadline must allow for."""
    return P99_OVER_MEAN * (floor_ms(model, gpu) + OVERHEAD_MS)


def prefill_ms(model: SizedModel, gpu: ServedGpu) -> float:
    """Time until the prompt is read, ms."""
    operations_t = 2 * model.parameters_b * 1e-3 * PROMPT_TOKENS
    return operations_t / (PREFILL_EFFICIENCY * gpu.peak_t) * 1e3 + OVERHEAD_MS


def thinking_tokens(model: SizedModel, gpu: ServedGpu, deadline_ms: float) -> int:
    """Thinking tokens that fit a deadline; negative where not even the answer fits."""
    left_ms = deadline_ms - MARGIN_MS - prefill_ms(model, gpu)
    return int(left_ms // token_ms(model, gpu)) - ANSWER_TOKENS


def rate_per_s(model: SizedModel, gpu: ServedGpu, budget: int, deadline_ms: float) -> float | None:
    """Requests a second at a budget, None where it does not fit the deadline."""
    if budget > thinking_tokens(model, gpu, deadline_ms):
        return None
    prefill = prefill_ms(model, gpu)
    request = prefill + (ANSWER_TOKENS + budget) * token_ms(model, gpu)
    return 1e3 * min(UTILISATION * CONCURRENT / request, PREFILL_SHARE / prefill)


def table(config: SizingConfig) -> list[str]:
    """Lines of Markdown: a model on a GPU each."""
    head = ["model", "GPU", "weights", "token", "prefill", "thinking that fits"]
    head += [f"rate at {budget}" for budget in config.budgets]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for model in MODELS:
        for gpu in SERVED:
            fits = thinking_tokens(model, gpu, config.deadline_ms)
            rates = [rate_per_s(model, gpu, b, config.deadline_ms) for b in config.budgets]
            row = [
                model.name,
                f"{gpu.gpu.name} {gpu.format}",
                f"{weights_gb(model, gpu):.1f} GB",
                f"{token_ms(model, gpu):.1f} ms",
                f"{prefill_ms(model, gpu):.0f} ms",
                str(fits) if fits >= 0 else "no answer",
                *("–" if rate is None else f"{rate:.0f}" for rate in rates),
            ]
            lines.append(f"| {' | '.join(row)} |")
    return lines


def work(config: SizingConfig) -> None:
    """Write the table."""
    sys.stdout.write("\n".join(table(config)) + "\n")


if __name__ == "__main__":
    run(SizingConfig, work)
