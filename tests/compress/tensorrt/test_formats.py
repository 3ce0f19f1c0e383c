from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.tensorrt.formats import (
    E2M1,
    FORMATS,
    Precision,
    choose_precision,
    round_to_e2m1,
    unpack_e2m1,
    unpack_int4,
)
from curt.hardware import GPUS, find_gpu

EVEN = {"hidden_size": 1024}
UNEVEN = {"hidden_size": 192}


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None)
def test_unpacking_int4_undoes_packing(half_rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 8, (2 * half_rows, columns), generator=generator)
    packed = torch.zeros(half_rows, columns, dtype=torch.uint8)
    for row in range(half_rows):
        for column in range(columns):
            even, odd = int(values[2 * row, column]), int(values[2 * row + 1, column])
            packed[row, column] = (even % 16) + 16 * (odd % 16)
    assert torch.equal(unpack_int4(packed), values.float())


def test_unpacking_e2m1_reads_the_even_column_from_the_low_nibble() -> None:
    packed = torch.tensor([[0x10, 0xF7], [0xA9, 0x80]], dtype=torch.uint8)
    expected = [[0.0, 0.5, 6.0, -6.0], [-0.5, -1.0, 0.0, -0.0]]
    assert unpack_e2m1(packed).tolist() == expected


@given(st.floats(-8, 8, width=32))
def test_rounding_to_e2m1_finds_the_nearest(value: float) -> None:
    grid = torch.cat([-E2M1, E2M1])
    rounded = float(round_to_e2m1(torch.tensor([value]))[0])
    assert abs(rounded - max(-6.0, min(6.0, value))) == pytest.approx(
        float((grid - max(-6.0, min(6.0, value))).abs().min()), abs=1e-6
    )


def test_ties_go_to_the_even_mantissa() -> None:
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_to_e2m1(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


def test_fp8_round_trips_within_half_a_step() -> None:
    source = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    scale = source.abs().amax() / 448
    parts = {"weight": (source / scale).to(torch.float8_e4m3fn), "weight_scale": scale}
    assert torch.allclose(FORMATS["fp8"].dequantise(parts), source, rtol=0.07, atol=0.01)


def test_fp8_inputs_are_rounded_and_held_to_what_the_scale_reaches() -> None:
    rounded = FORMATS["fp8"].round_inputs(torch.tensor([1.0, 1.03, 500.0]), 0.5)
    assert rounded.tolist() == [1.0, 1.0, 224.0]


def test_unquantised_weights_have_nothing_to_unpack() -> None:
    with pytest.raises(ValueError, match="not quantised"):
        FORMATS["bf16"].dequantise({"weight": torch.zeros(2, 2)})


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
def test_a_gpu_picks_the_format_its_tensor_cores_run(gpu: str, precision: Precision) -> None:
    chosen, reason = choose_precision(gpu, None, widths=EVEN)
    assert chosen == precision
    assert find_gpu(gpu).architecture in reason


@pytest.mark.parametrize(
    ("gpu", "precision", "reason"),
    [
        ("a10", "fp8", "FP8 tensor cores.*Use int4_awq"),
        ("a100", "nvfp4", "FP4 tensor cores"),
        ("h200", "nvfp4", "FP4 tensor cores.*Use fp8"),
        ("l4", "nvfp4", "FP4 tensor cores"),
        ("b200", "int4_awq", "only floating-point.*Use nvfp4"),
    ],
)
def test_a_format_the_gpu_cannot_run_is_refused_with_the_reason(
    gpu: str, precision: Precision, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        choose_precision(gpu, precision, widths=EVEN)


def test_what_was_asked_for_wins_over_the_pick() -> None:
    for gpu in GPUS:
        assert choose_precision(gpu, "bf16", widths=EVEN)[0] == "bf16"
    assert choose_precision("h100", "int4_awq", widths=EVEN)[0] == ("int4_awq")


def test_without_a_gpu_the_default_stands() -> None:
    assert choose_precision(None, None, widths=EVEN)[0] == "fp8"


def test_widths_that_int4_does_not_fit_fall_back_or_are_refused() -> None:
    chosen, reason = choose_precision("a10", None, widths=UNEVEN)
    assert chosen == "bf16"
    assert "hidden_size 192" in reason
    with pytest.raises(ValueError, match="hidden_size 192 is no multiple of 128"):
        choose_precision("a10", "int4_awq", widths=UNEVEN)


def test_a_gpu_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"GPU 'v9' is not in the table: use one of H100"):
        choose_precision("v9", None, widths=EVEN)
