"""The adapter for verl gives what our own trainer gives; where verl is at hand, through verl."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import find_cases, read_cases, write_cases
from curt.dialogue import THINK_END, Prompts, render_answer
from curt.law.verdict import Term, Verdict
from train.data.trajectories import iterate_groups
from train.loop.advantages import estimate
from train.loop.group_reward import GroupReward
from train.loop.scoring import Scorer
from train.penalties import PENALTIES, Group
from train.verl.advantages import VERL_ESTIMATORS
from train.verl.barrier import GroupBarrier
from train.verl.export import TEMPLATE, VerlExportConfig, export
from train.verl.group_scores import GradedSample, GroupScores, read_settings
from train.verl.reward import compute_score

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs" / "demo" / "grpo.toml"
SHIPPED = ROOT / "configs" / "verl" / "grpo-qwen2.5-7b.yaml"
RIGHT = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
OTHER = Verdict(("诈骗",), ("266",), Term("fixed", 8))
REFERENCE = json.dumps(RIGHT.to_json(), ensure_ascii=False)
TEXTS = [
    f"数额八千元{THINK_END}{render_answer(RIGHT)}",
    f"数额八千元，如实供述，从轻，认罪认罚，再从轻{THINK_END}{render_answer(RIGHT)}",
    f"骗{THINK_END}{render_answer(OTHER)}",
    "数额八千元，数额八千元，数额八千元",  # cut off
]


@pytest.fixture(scope="module")
def tokenizer(micro_model):
    return AutoTokenizer.from_pretrained(micro_model)


@pytest.fixture(scope="module")
def samples(tokenizer):
    eos = tokenizer.eos_token_id
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return [
        GradedSample(text, i + [eos] * (THINK_END in text))
        for text, i in zip(TEXTS, ids, strict=True)
    ]


def trainers_own(settings, tokenizer, samples):
    """Rewards as `train.loop.trainer` sets up its reward function."""
    reward = GroupReward(
        penalty=settings.penalty,
        scorer=Scorer(settings.reward_weights, {}, settings.reward_combination),
        partial_share=settings.partial_share,
        num_generations=len(samples),
        end_id=tokenizer.convert_tokens_to_ids(THINK_END),
        eos_ids=[tokenizer.eos_token_id],
        config_sha256="x",
    )
    return reward(
        prompts=["p"] * len(samples),
        completions=[s.text for s in samples],
        completion_ids=[s.token_ids for s in samples],
        reference=[REFERENCE] * len(samples),
        budget=[32] * len(samples),
        case_id=["c"] * len(samples),
        trainer_state=SimpleNamespace(global_step=0),
        log_metric=lambda name, value: None,
    )


@pytest.mark.parametrize("name", [n for n, p in PENALTIES.items() if not p.needs_history])
def test_every_penalty_gives_what_our_trainer_gives(name, tokenizer, samples):
    settings = read_settings(DEMO, {"penalty": {"type": name}})
    rows = GroupScores(settings, tokenizer)(samples, reference=REFERENCE, budget=32, case_id="c")
    assert [row["score"] for row in rows] == trainers_own(settings, tokenizer, samples)
    assert [row["exact"] for row in rows] == [1, 1, 0, 0]
    assert [row["truncated"] for row in rows] == [0, 0, 0, 1]


def test_recorded_rollouts_of_the_demo_are_scored_as_they_were():
    run = ROOT / "artifacts" / "demo"
    if not (run / "grpo-default.run" / "trajectories").is_dir():
        pytest.skip("no demo run beside this checkout")
    references = {
        case.id: json.dumps(case.verdict.to_json(), ensure_ascii=False)
        for case in read_cases(find_cases(run / "corpus", "train"))
    }
    recorded = json.loads((run / "grpo-default" / "manifest.json").read_bytes())["config"]
    kept = ("penalty", "partial_share", "reward_weights", "reward_combination")
    settings = read_settings(DEMO, {name: recorded[name] for name in kept})
    scores = GroupScores(settings, AutoTokenizer.from_pretrained(run / "grpo-default"))
    compared = 0
    for number, group in enumerate(iterate_groups(run / "grpo-default.run" / "trajectories")):
        if number % 6:  # a sixth of the run takes seconds
            continue
        rows = scores(
            [GradedSample(r.completion, r.token_ids) for r in group],
            reference=references[group[0].case_id],
            budget=group[0].budget,
            case_id=group[0].case_id,
        )
        assert [row["score"] for row in rows] == [r.reward for r in group]
        assert [row["thinking_tokens"] for row in rows] == [r.thinking_tokens for r in group]
        compared += len(rows)
    assert compared > 100


@pytest.mark.parametrize("name", [n for n, p in PENALTIES.items() if not p.needs_group])
def test_penalties_that_declare_to_need_no_group_give_the_same_alone(name):
    penalty = PENALTIES[name]()
    correct, lengths, cut = (1.0, 1.0, 0.0, 0.0), (5, 12, 1, 16), (False, False, False, True)
    together = penalty(Group(correct, lengths, 32, cut))
    alone = [
        penalty(Group((c,), (n,), 32, (t,)))[0]
        for c, n, t in zip(correct, lengths, cut, strict=True)
    ]
    assert together == alone


def test_one_completion_at_a_time_takes_no_group_relative_penalty(micro_model):
    info = {"budget": 32, "case_id": "c", "index": 0}
    options = {"settings": str(DEMO), "tokenizer": str(micro_model)}
    with pytest.raises(ValueError, match="GroupRewardManager"):
        compute_score("curt", TEXTS[0], REFERENCE, info, **options)
    row = compute_score(
        "curt", TEXTS[0], REFERENCE, info, changes={"penalty": {"type": "none"}}, **options
    )
    assert row["score"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *(({"penalty": {"type": n}}, "history") for n, p in PENALTIES.items() if p.needs_history),
        ({"guard": {}}, "guard"),
    ],
)
def test_what_needs_the_runs_history_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        read_settings(DEMO, changes)


def test_a_missing_settings_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.toml"):
        read_settings(tmp_path / "nowhere.toml")


def test_groups_come_back_whole_whatever_the_order():
    seen = []

    def score(items):
        seen.append(list(items))
        return [f"{item}/{len(items)}" for item in items]

    async def run():
        barrier = GroupBarrier(5)
        calls = [("b", 1), ("a", 2), ("a", 0), ("b", 0), ("a", 1)]
        sizes = {"a": 3, "b": 2}
        return await asyncio.gather(
            *(
                barrier.submit(g, place, f"{g}{place}", size=sizes[g], score=score)
                for g, place in calls
            )
        )

    assert asyncio.run(run()) == ["b1/2", "a2/3", "a0/3", "b0/2", "a1/3"]
    assert sorted(seen) == [["a0", "a1", "a2"], ["b0", "b1"]]


def test_a_group_that_lost_a_member_fails_in_all_others():
    async def run():
        barrier = GroupBarrier(0.05)
        return await asyncio.gather(
            *(barrier.submit("a", place, place, size=3, score=list) for place in (0, 1)),
            return_exceptions=True,
        )

    outcomes = asyncio.run(run())
    assert [type(o) for o in outcomes] == [TimeoutError, TimeoutError]
    assert "2 of 3" in str(outcomes[0])


def test_an_error_of_the_scorer_reaches_every_member():
    def score(items):
        raise ValueError("judge down")

    async def run():
        barrier = GroupBarrier(5)
        return await asyncio.gather(
            *(barrier.submit("a", place, place, size=2, score=score) for place in (0, 1)),
            return_exceptions=True,
        )

    assert [str(o) for o in asyncio.run(run())] == ["judge down", "judge down"]


def test_one_place_is_taken_once():
    async def run():
        barrier = GroupBarrier(5)
        first = asyncio.create_task(barrier.submit("a", 0, 0, size=2, score=list))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="twice"):
            await barrier.submit("a", 0, 0, size=2, score=list)
        await barrier.submit("a", 1, 1, size=2, score=list)
        return await first

    assert asyncio.run(run()) == 0


@pytest.mark.parametrize("name", VERL_ESTIMATORS)
def test_estimators_regroup_by_uid_and_reach_every_token(name):
    rewards = [1.0, 0.0, 0.5, 0.25]
    tokens = torch.zeros(4, 3)
    tokens[:, 2] = torch.tensor(rewards)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
    advantages, returns = VERL_ESTIMATORS[name](
        token_level_rewards=tokens, response_mask=mask, index=["a", "b", "a", "b"], config=None
    )
    a, b = estimate(name.removeprefix("curt-"), [[1.0, 0.5], [0.0, 0.25]])
    expected = torch.tensor([[a[0]], [b[0]], [a[1]], [b[1]]]) * mask
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, advantages)


def make_folder(tmp_path, micro_model):
    """Cases and settings as an export takes them."""
    cases = list(generate_cases(30, seed=3))
    assert write_cases(tmp_path / "corpus" / "train.jsonl", cases[:20]) == 20
    assert write_cases(tmp_path / "corpus" / "dev.jsonl", cases[20:]) == 10
    config = VerlExportConfig(
        grpo=DEMO,
        corpus=tmp_path / "corpus",
        model=str(micro_model),
        out=tmp_path / "data",
        val_cases=5,
    )
    export(config)
    return cases, config.out


def test_exported_rows_hold_prompt_reference_and_budget(tmp_path, micro_model, tokenizer):
    cases, folder = make_folder(tmp_path, micro_model)
    by_id = {case.id: case for case in cases}
    train = pq.read_table(folder / "train.parquet").to_pylist()
    val = pq.read_table(folder / "val.parquet").to_pylist()
    assert (len(train), len(val)) == (20, 5)
    settings = read_settings(DEMO)
    for row in train:
        info = row["extra_info"]
        case = by_id[info["case_id"]]
        assert Verdict.from_json(json.loads(row["reward_model"]["ground_truth"])) == case.verdict
        assert info["budget"] in settings.budgets
        assert row["prompt"][1]["content"].endswith(f"思考预算：{info['budget']}")
    assert [row["extra_info"]["index"] for row in train] == list(range(20))
    assert {row["extra_info"]["split"] for row in val} == {"val"}
    assert {row["extra_info"]["budget"] for row in val} == {max(settings.budgets)}


def test_the_template_for_verl_opens_the_thinking(tokenizer):
    messages_text = Prompts(tokenizer, None).text("某甲盗窃。", 32)
    from curt.dialogue import build_messages

    rendered = tokenizer.apply_chat_template(
        build_messages("某甲盗窃。", 32),
        chat_template=TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == messages_text


def test_the_shipped_configuration_names_what_exists_and_agrees():
    config = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert config["actor_rollout_ref"]["model"]["custom_chat_template"] == TEMPLATE
    assert config["algorithm"]["adv_estimator"] in VERL_ESTIMATORS
    assert config["reward"]["num_workers"] == 1
    function = config["reward"]["custom_reward_function"]
    assert (ROOT / function["path"]).is_file()
    assert (ROOT / config["reward"]["reward_manager"]["module"]["path"]).is_file()
    options = function["reward_kwargs"]
    settings = read_settings(ROOT / options["settings"], options["changes"])
    assert settings.prompts == config["data"]["train_batch_size"]
    assert settings.generations == config["actor_rollout_ref"]["rollout"]["n"]
    assert f"curt-{settings.advantages}" == config["algorithm"]["adv_estimator"]
    assert settings.max_thinking_tokens + 64 == config["data"]["max_response_length"]
    actor = config["actor_rollout_ref"]["actor"]
    assert settings.epsilon_high == actor["clip_ratio_high"]
    assert settings.learning_rate == float(actor["optim"]["lr"])
    assert settings.steps == config["trainer"]["total_training_steps"]


@pytest.mark.slow
def test_verl_loads_and_calls_the_adapter(tmp_path, micro_model, tokenizer, samples):
    """Through verl's own loaders: manager, plain function, estimator, dataset."""
    site = os.environ.get("CURT_TEST_VERL")
    if not site:
        pytest.skip("CURT_TEST_VERL names no folder with verl (pip install --no-deps --target)")
    cases, _ = make_folder(tmp_path, micro_model)
    groups = [
        {
            "uid": f"uid-{number}",
            "reference": REFERENCE,
            "extra_info": {"index": number, "split": "train", "budget": 32, "case_id": "c"},
            "completions": [{"text": s.text, "token_ids": s.token_ids} for s in samples],
        }
        for number in range(3)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(groups, ensure_ascii=False), encoding="utf-8")
    (tmp_path / "model").symlink_to(micro_model)
    (tmp_path / "grpo.toml").write_text(DEMO.read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            str(ROOT / "tests/train/verl/verl_probe.py"),
            str(tmp_path),
        ],
        env=os.environ
        | {"PYTHONPATH": site, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,  # not the checkout: the files must find it by themselves
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    expected = trainers_own(read_settings(DEMO), tokenizer, samples)
    assert seen["source"].endswith("train/verl/manager.py")
    assert seen["manager"] == expected * 3
    assert [m["truncated"] for m in seen["metrics"]] == [0, 0, 0, 1] * 3
    assert seen["advantages"] == pytest.approx(
        list(chain.from_iterable(estimate("whitened", [expected] * 3))), abs=1e-5
    )
    linear = read_settings(DEMO, {"penalty": {"type": "linear"}})
    assert seen["single"] == trainers_own(linear, tokenizer, samples) * 3
    by_id = {case.id: case for case in cases}
    assert len(seen["dataset"]) == 20
    for row in seen["dataset"]:
        assert row["rendered"].endswith("<think>")
        assert row["data_source"] == "curt"
        verdict = by_id[row["extra_info"]["case_id"]].verdict
        assert Verdict.from_json(json.loads(row["ground_truth"])) == verdict
