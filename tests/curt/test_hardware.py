from __future__ import annotations

import time

import torch

from curt.hardware import choose_bf16


def fastest_product_s(dtype: torch.dtype) -> float:
    rows, weights = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    times = []
    for _ in range(7):
        started = time.perf_counter()
        torch.nn.functional.linear(rows, weights)
        times.append(time.perf_counter() - started)
    return min(times)


def test_bf16_is_chosen_where_its_products_are_faster() -> None:
    faster = fastest_product_s(torch.bfloat16) < fastest_product_s(torch.float32)
    assert choose_bf16(True) == (faster or torch.cuda.is_available())
    assert not choose_bf16(False)
