from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.verify_trt import rope_theta, unpack_int4


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None)
def test_unpacking_undoes_packing(half_rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-8, 8, (2 * half_rows, columns), generator=generator)
    packed = torch.zeros(half_rows, columns, dtype=torch.uint8)
    for row in range(half_rows):
        for column in range(columns):
            even, odd = int(values[2 * row, column]), int(values[2 * row + 1, column])
            packed[row, column] = (even % 16) + 16 * (odd % 16)
    assert torch.equal(unpack_int4(packed), values.float())


def test_the_rotary_base_is_found_in_both_generations_of_configurations() -> None:
    assert rope_theta({"rope_parameters": {"rope_theta": 5e4}}) == 5e4
    assert rope_theta({"rope_theta": 1e6}) == 1e6
    assert rope_theta({"rope_theta": 1e6}, nested_only=True) is None
    assert rope_theta({}) is None
