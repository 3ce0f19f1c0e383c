from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from curt.corpus.store import find_cases, read_cases
from curt.dialogue import Prompts
from tests.train.training_runs import make_corpus
from train.grpo import GRPOSettings, build_evaluation, build_prompts, history_rows


def test_prompts_hold_cross_fitted_candidates_where_they_are_drawn(
    tmp_path: Path, micro_model: Path
) -> None:
    corpus = make_corpus(tmp_path)
    ids = [case.id for case in read_cases(find_cases(corpus, "train"))]
    file = tmp_path / "candidates.jsonl"
    rows = [{"id": each, "text": f"参考：知{place}"} for place, each in enumerate(ids)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    config = GRPOSettings(corpus=corpus, candidates=file, steps=5, prompts=8)

    def prompts_of(reader: bool, share: float) -> list[dict[str, str]]:
        prompts = Prompts(tokenizer, 120, (lambda fact: "参考：读") if reader else None)
        changed = config.model_copy(update={"candidates_share": share})
        return list(build_prompts(changed, prompts))

    for row in prompts_of(reader=True, share=1.0):
        assert f"\n参考：知{ids.index(row['case_id'])}\n" in row["prompt"]
    some = ["参考：知" in row["prompt"] for row in prompts_of(reader=True, share=0.85)]
    assert 20 < sum(some) < 40
    assert not any("参考：" in row["prompt"] for row in prompts_of(reader=False, share=1.0))


def fresh(micro_model: Path, **changes) -> list[dict]:
    """The prompts of a run on fresh cases, whose corpus is nowhere."""
    prompts = Prompts(AutoTokenizer.from_pretrained(micro_model), 120, lambda fact: "参考：读")
    options = {"corpus": "nowhere", "fresh": True, "steps": 3, "prompts": 2, "oversample": 1}
    config = GRPOSettings.model_validate(options | {"candidates_share": 1.0} | changes)
    return list(build_prompts(config, prompts, config.rounds))


def test_fresh_cases_depend_on_the_seed_and_the_step_alone(micro_model: Path):
    rows = fresh(micro_model)
    assert len({row["case_id"] for row in rows}) == len({row["prompt"] for row in rows}) == 9
    assert all("\n参考：读\n" in row["prompt"] for row in rows)
    assert fresh(micro_model, steps=5)[:9] == rows  # however long the run is
    again = fresh(micro_model, rounds=2)  # the second rounds lie behind all first ones
    assert again[:9] == rows
    assert len({row["case_id"] for row in again}) == 18
    other = fresh(micro_model, seed=8)
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in other}


def test_a_rounds_budgets_are_those_of_its_step(micro_model: Path):
    curriculum = {"start_levels": [128], "levels": [16], "until": 0.01}
    rows = fresh(micro_model, rounds=2, curriculum=curriculum)
    assert [row["budget"] for row in rows] == [128, 128, 128, *[16] * 6] * 2


def test_development_cases_state_the_widest_budget(tmp_path: Path, micro_model: Path):
    corpus = make_corpus(tmp_path)
    prompts = Prompts(AutoTokenizer.from_pretrained(micro_model), 120)
    config = GRPOSettings(corpus=corpus, eval_steps=5, eval_cases=3, max_thinking_tokens=64)
    rows = list(build_evaluation(config, prompts))
    assert [row["budget"] for row in rows] == [64] * 3
    assert all("思考预算：64<" in row["prompt"] for row in rows)
    (corpus / "dev.jsonl").write_text("")
    with pytest.raises(ValueError, match="holds no case in dev: build it again"):
        build_evaluation(config, prompts)


def test_an_evaluation_stands_in_the_row_of_its_step():
    step = {"reward": 0.5, "learning_rate": 1e-4, "step_time": 2.0, "completions/mean_length": 40.0}
    log = [
        {"step": 0, "eval_correct": 0.6, "eval_exact": 0.5},
        {"step": 1, **step, "exact": 0.4},
        {"step": 1, "eval_correct": 0.7, "eval_exact": 0.6},
        {"step": 1, "train_runtime": 3.0},
    ]
    assert history_rows(log) == [
        {"step": 0, "eval_correct": 0.6, "eval_exact": 0.5},
        {"step": 1, "lr": 1e-4, "seconds": 2.0, "completion_tokens": 40.0, "reward": 0.5,
         "exact": 0.4, "eval_correct": 0.7, "eval_exact": 0.6},
    ]  # fmt: skip
