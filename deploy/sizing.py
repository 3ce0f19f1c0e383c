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
from curt.html import render_text

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
class ServedGpu:
    """A GPU and the format of the weights that it serves."""

    gpu: Gpu
    format: str

    @property
    def peak_t(self) -> float:
        """Operations a second, 10^12; int4 weights are widened to bf16 first."""
        return self.gpu.tflops["fp8" if self.format == "fp8" else "bf16"]


MODELS = {"0.6 B": 0.6, "1.5 B": 1.78, "7 B": 7.62}  # parameters, 10^9
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


def weights_gb(parameters_b: float, gpu: ServedGpu) -> float:
    """Size of the weights, GB."""
    return parameters_b * BYTES[gpu.format]


def floor_ms(parameters_b: float, gpu: ServedGpu) -> float:
    """Least time a token can take, ms: every weight is read from memory once."""
    return weights_gb(parameters_b, gpu) / (gpu.gpu.bandwidth_gb_s / 1e3)


def token_ms(parameters_b: float, gpu: ServedGpu) -> float:
    """Time a token takes at the 99th percentile, ms: what a deadline must allow for."""
    return P99_OVER_MEAN * (floor_ms(parameters_b, gpu) + OVERHEAD_MS)


def prefill_ms(parameters_b: float, gpu: ServedGpu) -> float:
    """Time until the prompt is read, ms."""
    operations_t = 2 * parameters_b * 1e-3 * PROMPT_TOKENS
    return operations_t / (PREFILL_EFFICIENCY * gpu.peak_t) * 1e3 + OVERHEAD_MS


def thinking_tokens(parameters_b: float, gpu: ServedGpu, deadline_ms: float) -> int:
    """Thinking tokens that fit a deadline; negative where not even the answer fits."""
    left_ms = deadline_ms - MARGIN_MS - prefill_ms(parameters_b, gpu)
    return int(left_ms // token_ms(parameters_b, gpu)) - ANSWER_TOKENS


def rate_per_s(
    parameters_b: float, gpu: ServedGpu, budget: int, deadline_ms: float
) -> float | None:
    """Requests a second at a budget, None where it does not fit the deadline."""
    if budget > thinking_tokens(parameters_b, gpu, deadline_ms):
        return None
    prefill = prefill_ms(parameters_b, gpu)
    request = prefill + (ANSWER_TOKENS + budget) * token_ms(parameters_b, gpu)
    return 1e3 * min(UTILISATION * CONCURRENT / request, PREFILL_SHARE / prefill)


def table(config: SizingConfig) -> str:
    """Markdown: a line for each model on each GPU."""
    return render_text(
        "sizing.md.j2",
        models=MODELS,
        served=SERVED,
        **config.model_dump(),
        weights_gb=weights_gb,
        token_ms=token_ms,
        prefill_ms=prefill_ms,
        thinking_tokens=thinking_tokens,
        rate_per_s=rate_per_s,
    )


def work(config: SizingConfig) -> None:
    """Write the table."""
    sys.stdout.write(table(config))


if __name__ == "__main__":
    run(SizingConfig, work)
