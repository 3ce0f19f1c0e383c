from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.tensorrt.formats import (
    E2M1,
    Packed,
    dequantise,
    judge,
    round_to_e2m1,
    unpack_e2m1,
    unpack_int4,
)


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


def int8_weight(source: torch.Tensor) -> Packed:
    scale = source.abs().amax(-1) / 127
    return Packed(
        (source / scale[:, None]).round().to(torch.int8),
        scale,
        input_scale=torch.tensor([0.1]),
    )


def test_int8_round_trips_within_half_a_step() -> None:
    source = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    packed = int8_weight(source)
    verdict = judge(packed, source, "int8_sq")
    assert verdict.faults == ()
    assert 0 < verdict.error_of_bound <= 1
    assert torch.allclose(dequantise(packed, "int8_sq"), source, atol=0.02)


def test_a_shifted_row_a_wrong_scale_and_a_bad_layout_are_faults() -> None:
    source = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    good = int8_weight(source)
    shifted = Packed(good.weight.roll(1, 0), good.weight_scale, input_scale=good.input_scale)
    assert any("error bound" in fault for fault in judge(shifted, source, "int8_sq").faults)
    scaled = Packed(good.weight, good.weight_scale * 1.1, input_scale=good.input_scale)
    assert any("row / 127" in fault for fault in judge(scaled, source, "int8_sq").faults)
    wide = Packed(good.weight.float(), good.weight_scale, input_scale=good.input_scale)
    assert judge(wide, source, "int8_sq").faults == ("weight is torch.float32 (8, 16)",)


def test_unquantised_weights_have_nothing_to_unpack() -> None:
    with pytest.raises(ValueError, match="not quantised"):
        dequantise(Packed(torch.zeros(2, 2), torch.ones(1)), "bf16")
