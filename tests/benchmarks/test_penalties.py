from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.penalties import (
    PenaltyBenchConfig,
    area_under_curve,
    obedience_rows,
    summarise_method,
)
from benchmarks.pictures import draw_penalties
from curt.config import load_config
from train.grpo import GRPOSettings

ROOT = Path(__file__).parents[2]


def evaluation(flags, lengths, curve):
    return {
        "exact_cases": flags,
        "thinking_lengths": lengths,
        "scores": {"term_score_official": 0.5},
        "by_budget": [
            {"budget": b, "exact": a, "mean_thinking": b / 2, "p95_thinking": b, "within": 1.0}
            for b, a in curve.items()
        ],
    }


CURVE = {8: 0.0, 16: 0.5, 32: 1.0}


def test_the_area_is_the_mean_over_doublings_of_the_budget():
    assert area_under_curve(CURVE) == pytest.approx(0.5)
    assert area_under_curve({0: 1.0, 8: 0.2, 128: 0.2}) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least two"):
        area_under_curve({0: 1.0, 8: 0.5})


def test_a_method_is_summed_up_over_seeds_and_paired_with_the_warm_start():
    warm = evaluation([True, False], [80, 80], CURVE)
    runs = [
        evaluation([True, True], [20, 30], CURVE),
        evaluation([True, False], [20, 10], {8: 0.5, 16: 0.5, 32: 0.5}),
    ]
    row = summarise_method(runs, warm)
    assert (row["seeds"], row["n"]) == (2, 2)
    assert row["exact_accuracy"] == pytest.approx(0.75)
    assert row["exact_accuracy_range"] == (0.5, 1.0)
    assert row["exact_change"] == pytest.approx(0.25)
    assert row["thinking_tokens"] == pytest.approx(20)
    assert row["thinking_change"] == pytest.approx(-0.75)
    assert row["accuracy_at_budget"] == {8: 0.25, 16: 0.5, 32: 0.75}


def test_obedience_takes_the_worst_seed_for_the_tail():
    one, two = (evaluation([True], [1], {16: 0.5}) for _ in range(2))
    two["by_budget"][0]["p95_thinking"] = 40
    two["by_budget"][0]["within"] = 0.5
    (row,) = obedience_rows([one, two])
    assert (row["stated"], row["p95"], row["within"]) == (16, 40, 0.75)


def test_the_plot_is_a_picture_of_every_method():
    warm = evaluation([True, False], [80, 80], CURVE)
    summary = {
        "warm_start": summarise_method([warm], None),
        "kimi": summarise_method([warm], warm),
        "default": {**summarise_method([warm], warm), "method": "kimi"},
    }
    picture = draw_penalties(summary)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_every_method_of_the_benchmark_is_a_change_that_grpo_accepts():
    file = ROOT / "configs" / "demo" / "bench-penalties.toml"
    bench = load_config(PenaltyBenchConfig, [f"@{file}"])
    shipped = load_config(GRPOSettings, [f"@{ROOT / bench.grpo}"])
    assert bench.methods[bench.default]["penalty"] == shipped.penalty.model_dump(
        exclude_defaults=True
    ) | {"type": shipped.penalty.type}
    for changes in bench.methods.values():
        assert GRPOSettings.model_validate({**shipped.model_dump(), **changes})
