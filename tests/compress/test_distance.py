from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from compress.distance import (
    Distance,
    compare_along_parent,
    compare_on,
    continue_greedily,
    kl_divergence,
)


def test_kl_of_two_coins_by_hand() -> None:
    fair, bent = torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(3)])  # 1/4 and 3/4
    wanted = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(kl_divergence(fair, bent)) == pytest.approx(wanted)
    assert float(kl_divergence(bent, bent + 5)) == pytest.approx(0, abs=1e-6)


def test_means_are_over_positions_not_sequences() -> None:
    fair, bent = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    distance = Distance()
    distance.add(fair.repeat(3, 1), fair.repeat(3, 1), [0, 1, 0])
    distance.add(fair, bent, [0])
    row = distance.to_full_row()
    assert row["kl"] == pytest.approx(float(kl_divergence(fair, bent)) / 4)
    assert row["argmax_agreement"] == 3 / 4
    assert row["nll_difference"] == pytest.approx((math.log(0.5) - math.log(0.25)) / 4)
    assert row["max_logit_difference"] == pytest.approx(math.log(3))
    assert (row["compared_prompts"], row["compared_positions"]) == (2, 4)
    assert distance.to_row() == {name: row[name] for name in ("kl", "argmax_agreement")}


class Counter:
    """After each token the next number, of ten, is likeliest by `margin`."""

    def __init__(self, margin: float = 4.0) -> None:
        self.config = SimpleNamespace(max_position_embeddings=8)
        self._margin = margin

    def __call__(self, ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(
            logits=self._margin * torch.nn.functional.one_hot((ids + 1) % 10, 10).float()
        )

    def generate(self, ids: torch.Tensor, max_new_tokens: int, **_: object) -> torch.Tensor:
        for _step in range(max_new_tokens):
            ids = torch.cat([ids, self(ids).logits[:, -1:].argmax(-1)], dim=1)
        return ids


def test_the_parent_leads_and_the_context_ends_it() -> None:
    assert continue_greedily(Counter(), [1, 2], 3) == [3, 4, 5]
    assert continue_greedily(Counter(), [1, 2], 30) == [3, 4, 5, 6, 7, 8]
    assert continue_greedily(Counter(), [1, 2], 30, context_tokens=3) == [3]
    with pytest.raises(ValueError, match="a prompt of 8 tokens fills the context of 8"):
        continue_greedily(Counter(), list(range(8)), 1)


def test_a_child_is_asked_for_the_logits_before_each_token() -> None:
    asked = []

    def read(prompt: list[int], continuation: list[int]) -> torch.Tensor:
        asked.append((prompt, continuation))
        return Counter(2.0)(torch.tensor([prompt[-1:] + continuation[:-1]])).logits[0]

    along = compare_along_parent(Counter(), read, [[1, 2], [7]], 3).to_full_row()
    assert asked == [([1, 2], [3, 4, 5]), ([7], [8, 9, 0])]
    assert along["argmax_agreement"] == 1
    assert along["max_logit_difference"] == 2
    assert along["nll_difference"] > 0
    everywhere = compare_on(Counter(), Counter(2.0), [[1, 2, 3]]).to_row()
    assert everywhere["kl"] == pytest.approx(along["kl"])
    with pytest.raises(ValueError, match="no prompts"):
        compare_along_parent(Counter(), read, [], 3)
