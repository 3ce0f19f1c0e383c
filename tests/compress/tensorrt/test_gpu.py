from __future__ import annotations

import pytest

from compress.tensorrt.formats import Precision
from compress.tensorrt.gpu import GPUS, GpuName, choose_precision

EVEN = {"hidden_size": 1024}
UNEVEN = {"hidden_size": 192}


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [
        ("h200", "fp8"),
        ("h100", "fp8"),
        ("l4", "fp8"),
        ("l40s", "fp8"),
        ("a10", "int4_awq"),
        ("a100", "int4_awq"),
        ("b200", "nvfp4"),
    ],
)
def test_a_gpu_picks_the_format_its_tensor_cores_run(gpu: GpuName, precision: Precision) -> None:
    chosen, reason = choose_precision(gpu, None, widths=EVEN, engine_checkpoint=False)
    assert chosen == precision
    assert GPUS[gpu].architecture in reason


@pytest.mark.parametrize(
    ("gpu", "precision", "reason"),
    [
        ("a10", "fp8", "FP8 tensor cores.*Use int4_awq"),
        ("a100", "nvfp4", "FP4 tensor cores"),
        ("h200", "nvfp4", "FP4 tensor cores.*Use fp8"),
        ("l4", "nvfp4", "FP4 tensor cores"),
        ("b200", "int4_awq", "only floating-point.*Use nvfp4"),
        ("b200", "int8_sq", "only floating-point"),
    ],
)
def test_a_format_the_gpu_cannot_run_is_refused_with_the_reason(
    gpu: GpuName, precision: Precision, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        choose_precision(gpu, precision, widths=EVEN, engine_checkpoint=True)


def test_what_was_asked_for_wins_over_the_pick() -> None:
    for gpu in GPUS:
        assert choose_precision(gpu, "bf16", widths=EVEN, engine_checkpoint=False)[0] == "bf16"
    assert choose_precision("h100", "int4_awq", widths=EVEN, engine_checkpoint=False)[0] == (
        "int4_awq"
    )


def test_without_a_gpu_the_default_stands() -> None:
    assert choose_precision(None, None, widths=EVEN, engine_checkpoint=False)[0] == "fp8"


def test_smoothquant_needs_the_engine_builder() -> None:
    with pytest.raises(ValueError, match="engine_checkpoint true"):
        choose_precision("a10", "int8_sq", widths=EVEN, engine_checkpoint=False)
    assert choose_precision("a10", "int8_sq", widths=EVEN, engine_checkpoint=True)[0] == "int8_sq"


def test_widths_that_int4_does_not_fit_fall_back_or_are_refused() -> None:
    for engine, instead in ((True, "int8_sq"), (False, "bf16")):
        chosen, reason = choose_precision("a10", None, widths=UNEVEN, engine_checkpoint=engine)
        assert chosen == instead
        assert "hidden_size 192" in reason
    with pytest.raises(ValueError, match="hidden_size 192 is no multiple of 128"):
        choose_precision("a10", "int4_awq", widths=UNEVEN, engine_checkpoint=True)
