from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import penalties
from benchmarks.penalties import BUDGETS, PenaltyBenchConfig, area_under_curve, summarise_method
from benchmarks.pictures import draw_penalties
from curt.config import load_config
from tests.micro import make_micro_model
from train.dpo import DPOSettings
from train.grpo import GRPOSettings
from train.raft import RaftSettings
from train.sft import SFTConfig

ROOT = Path(__file__).parents[2]
CONFIGS = {"train.raft": RaftSettings, "train.dpo": DPOSettings, "train.sft": SFTConfig}


def evaluation(flags, lengths, curve):
    """Of two cases: `curve` says by budget which are right."""
    return {
        "exact_cases": flags,
        "thinking_lengths": lengths,
        "scores": {"term_score_official": 0.5},
        "by_budget": [
            {
                "budget": b,
                "exact": sum(own) / len(own),
                "exact_cases": own,
                "within": 0.5,
                "within_cases": [n % 2 == 0 for n in range(len(own))],
            }
            for b, own in curve.items()
        ],
    }


CURVE = {8: [False, False], 16: [True, False], 32: [True, True]}


def test_the_area_is_the_mean_over_doublings_of_the_budget():
    assert area_under_curve({8: 0.0, 16: 0.5, 32: 1.0}) == pytest.approx(0.5)
    assert area_under_curve({0: 1.0, 8: 0.2, 128: 0.2}) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="at least two"):
        area_under_curve({0: 1.0, 8: 0.5})


def test_a_method_is_summed_up_over_seeds_and_paired_by_case():
    warm = evaluation([True, False], [80, 80], CURVE)
    runs = [
        evaluation([True, True], [20, 30], CURVE),
        evaluation([True, False], [20, 10], {b: [True, False] for b in CURVE}),
    ]
    row = summarise_method(runs, [warm], runs)
    assert (row["seeds"], row["n"]) == (2, 2)
    assert row["exact_accuracy"] == pytest.approx(0.75)
    assert row["exact_accuracy_range"] == (0.5, 1.0)
    assert row["exact_change"] == pytest.approx(0.25)
    assert row["thinking_tokens"] == pytest.approx(20)
    assert row["thinking_tokens_change"] == pytest.approx(-60)
    assert row["accuracy_at_budget"] == {8: 0.25, 16: 0.5, 32: 0.75}
    assert row["kept"] == dict.fromkeys(CURVE, 0.5)
    # Of the first case .75 and 1 by seed, of the second .25 and 0; the warm start .75 and .25.
    assert row["area_under_curve"] == pytest.approx(0.5)
    assert row["kept_area"] == pytest.approx(0.4375)  # the second case never ended by itself
    assert row["area_change"] == pytest.approx(0)
    assert row["area_change_interval"] == pytest.approx((-0.125, 0.125))
    assert row["to_default"]["exact_change_interval"] == (0, 0)


def test_the_plot_is_a_picture_of_every_method():
    warm = evaluation([True, False], [80, 80], CURVE)
    row = summarise_method([warm], [warm], [warm])
    summary = {
        "warm_start": row | {"kind": "baseline"},
        "kimi": row | {"kind": "rl"},
        "default": row | {"method": "kimi"},
        "winner": row | {"method": "warm_start"},
    }
    picture = draw_penalties(summary)
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench whose runs are not made: a model folder, and an evaluation as `RIGHT` has it.

    Returns the modules run, with the split of an evaluation, and the work.
    """
    right = {"warm": 40, "kimi": 50, "raft": 20, "raft.1": 60}  # verdicts of 100
    ran = []

    def run(module, settings, log):
        out = settings["out"]
        ran.append((module[0], out.name))
        if module[0] != "curt.evaluate":
            make_micro_model(out)
            return
        share = right[settings["model"].name.partition("-")[0]]
        n = 100  # of which all are wrong under the smallest budget
        curve = {b: [i < share and b > 8 for i in range(n)] for b in settings["budgets"]}
        row = evaluation([i < share for i in range(n)], [max(curve)] * n, curve)
        alone = {"exact_cases": [i < 45 for i in range(n)], "scores": row["scores"]}
        out.write_text(json.dumps(row | {"classifier": alone}))

    monkeypatch.setattr(penalties, "_run", run)
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "g.toml"):
        (tmp_path / name).touch()
    config = PenaltyBenchConfig(
        model=make_micro_model(tmp_path / "warm-start"), corpus=tmp_path, grpo=tmp_path / "g.toml",
        methods={"kimi": {}}, default="kimi", steps=1, learning_rate=1e-4, seeds=[7, 8], jobs=1,
        baselines={"raft": [{"module": "train.raft"}, {"module": "train.raft", "epochs": 2}]},
        folder=tmp_path / "runs", report=tmp_path / "penalties.json",
    )  # fmt: skip
    return ran, lambda: penalties.work(config), config


def test_dev_chooses_and_test_is_read_once_by_what_was_chosen(bench):
    ran, work, config = bench
    work()
    assert [name for module, name in ran if module == "train.grpo"] == ["kimi-7", "kimi-8"]
    assert [name for module, name in ran if module == "train.raft"] == [
        *("raft-7", "raft.1-7", "raft.1-8")
    ]
    read = [name for _, name in ran if name.endswith(".test.json")]
    assert sorted(read) == [
        *("kimi-7.test.json", "kimi-8.test.json", "raft.1-7.test.json", "raft.1-8.test.json"),
        *("smaller_budget.test.json", "truncation.test.json", "warm_start.test.json"),
    ]
    results = json.loads(config.report.read_text())
    summary = results["summary"]
    assert {name: row["kind"] for name, row in summary.items()} == {
        "warm_start": "baseline", "truncation": "baseline", "smaller_budget": "baseline",
        "kimi": "rl", "raft": "baseline", "classifier": "baseline", "default": "rl",
        "winner": "baseline",
    }  # fmt: skip
    assert (summary["winner"]["method"], summary["default"]["method"]) == ("raft", "kimi")
    assert summary["raft"]["chosen"]["epochs"] == 2
    assert summary["raft"]["to_default"]["exact_change"] == pytest.approx(0.1)
    assert summary["smaller_budget"]["chosen"] == {"budget": 16}
    assert summary["smaller_budget"]["thinking_tokens"] == 16
    told = list(summary["smaller_budget"]["accuracy_at_budget"])
    assert told == [str(b) for b in [0, *BUDGETS]]
    alone = summary["classifier"]
    assert (alone["thinking_tokens"], alone["area_under_curve"]) == (0, pytest.approx(0.45))
    assert results["best_rl"]["method"] == "kimi"
    against = results["best_rl"]["against"]
    assert list(against) == ["warm_start", "truncation", "smaller_budget", "raft", "classifier"]
    assert against["raft"]["exact_change"] == pytest.approx(-0.1)
    ran.clear()
    work()
    assert not ran


@pytest.mark.parametrize(
    ("file", "changed"), [("dev.jsonl", "dev"), ("g.toml", "grpo"), (None, "epochs")]
)
def test_runs_of_something_else_are_not_taken_for_its_own(bench, file, changed):
    ran, work, config = bench
    work()
    ran.clear()
    if file:
        (config.corpus / file).write_text("changed")
    else:
        config.baselines["raft"][1]["epochs"] = 3
    with pytest.raises(ValueError, match=f"made with other {changed}: delete it"):
        work()
    assert not ran


def test_every_method_of_the_benchmark_has_settings_that_its_command_accepts():
    file = ROOT / "configs" / "demo" / "bench-penalties.toml"
    bench = load_config(PenaltyBenchConfig, [f"@{file}"])
    shipped = load_config(GRPOSettings, [f"@{ROOT / bench.grpo}"])
    assert bench.methods[bench.default]["penalty"] == shipped.penalty.model_dump(
        exclude_defaults=True
    ) | {"type": shipped.penalty.type}
    for changes in bench.methods.values():
        assert GRPOSettings.model_validate({**shipped.model_dump(), **changes})
    alike = ("prompts", "oversample", "generations", "budgets", "temperature")
    for settings in (one for several in bench.baselines.values() for one in several):
        module = settings.pop("module")
        common = {"model": str(bench.model), "corpus": bench.corpus, "out": "x", "seed": 7}
        config = CONFIGS[module](**settings, **common)
        if module == "train.sft":
            assert config.cases * config.per_case <= 60 * 8 * 8
        else:  # the same prompts are sampled for, as often
            assert config.steps == bench.steps
            assert [getattr(config, n) for n in alike] == [getattr(shipped, n) for n in alike]
