"""Learning from own shortest right completions: by supervised rounds and by preference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curt.artifact import load_manifest
from curt.checkpoint import read_checkpoint
from curt.files import read_rows, write_rows
from tests.train.rollouts import make_rollout
from tests.train.training_runs import break_off, made_by, make_corpus, sft_config
from train import raft
from train.data.trajectories import TrajectoryWriter, read_rollouts
from train.data.views import ViewConfig, write_view
from train.dpo import DPOSettings, draw_pairs, train_dpo
from train.raft import RaftSettings, train_raft
from train.sft import train_warm_start

pytestmark = pytest.mark.slow

ANSWER = "</think>罪名：盗窃\n法条：264\n刑期：有期徒刑8个月\n罚金：8000元"
SHAPE = {"steps": 4, "prompts": 4, "generations": 4, "max_thinking_tokens": 32, "budgets": [32]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory, corpus) -> Path:
    return made_by(train_warm_start, sft_config(corpus, tmp_path_factory.mktemp("warm") / "model"))


@pytest.fixture
def log(tmp_path) -> Path:
    """A log with two prompts: one was solved in 2 tokens at best, one not within its budget."""
    texts = [("短", 2, 1.0), ("很长的推理", 9, 1.0), ("错", 1, 0.0)]
    rows = [
        make_rollout(
            group=0, prompt="甲<think>", completion=think + ANSWER, thinking_tokens=n, exact=e,
            reward=e,
        )
        for think, n, e in texts
    ]  # fmt: skip
    rows += [make_rollout(group=1, prompt="乙<think>", budget=8, thinking_tokens=9)]
    TrajectoryWriter(tmp_path / "log").write(1, rows)
    return tmp_path / "log"


def test_rounds_learn_each_prompts_shortest_right_completion(tmp_path, corpus, warm_start):
    config = RaftSettings(
        model=str(warm_start), corpus=corpus, out=tmp_path / "raft", rounds=2, **SHAPE
    )
    manifest = load_manifest(made_by(train_raft, config), expect="hf")
    assert (manifest.stage, manifest.base) == ("raft", "scratch")
    assert manifest.parent.path == str(warm_start)
    assert manifest.config["rounds"] == 2
    run = tmp_path / "raft.run"
    rows = read_rollouts(run / "trajectories").to_pylist()
    assert [len([r for r in rows if r["step"] == step]) for step in range(1, 5)] == [16] * 4
    firsts = load_manifest(run / "round-1")  # which the second round sampled from
    assert {r["checkpoint_sha256"] for r in rows if r["step"] <= 2} == {
        manifest.parent.manifest_sha256
    }
    assert firsts.stage == "raft"
    for number, steps in ((1, (1, 2)), (2, (3, 4))):
        kept = list(read_rows(run / f"round-{number}.jsonl"))
        assert kept
        for row in kept:
            own = [r for r in rows if (r["step"], r["group"]) == (row["step"], row["group"])]
            right = [r["thinking_tokens"] for r in own if r["exact"]]
            assert row["thinking_tokens"] == min(right) <= 32
            assert row["step"] in steps
    assert not (run / "config.json").exists()


def test_a_run_stopped_between_rounds_goes_on_with_the_next(
    tmp_path, corpus, warm_start, monkeypatch
):
    config = RaftSettings(
        model=str(warm_start), corpus=corpus, out=tmp_path / "raft", rounds=2, **SHAPE
    )
    trained = []

    def train(sft, manifest, run):
        trained.append(sft.out.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        train_warm_start(sft, manifest, run)

    monkeypatch.setattr(raft, "train_warm_start", train)
    with pytest.raises(KeyboardInterrupt):
        train_raft(config)
    assert not config.out.exists()
    with pytest.raises(ValueError, match="unfinished run with other epochs"):
        train_raft(config.model_copy(update={"epochs": 3.0}))
    train_raft(config)
    assert trained == ["round-1", "raft", "raft"]
    assert load_manifest(config.out).stage == "raft"


def test_a_log_or_a_view_takes_the_place_of_own_samples(tmp_path, micro_model, log):
    view = ViewConfig(trajectories=[log], view="shortest", out=tmp_path / "view.parquet")
    write_view(view)
    for name, given in {
        "of-log": {"trajectories": [log]},
        "of-view": {"dataset": str(view.out)},
    }.items():
        config = RaftSettings(
            model=str(micro_model), out=tmp_path / name, learning_rate=1e-5, **given
        )
        train_raft(config)
        (row,) = read_rows(tmp_path / f"{name}.run" / "round-1.jsonl")
        assert row["completion"] == "短" + ANSWER  # 乙 was solved beyond its budget
        assert not (tmp_path / f"{name}.run" / "trajectories").exists()


def test_nothing_right_is_nothing_to_learn(tmp_path, corpus, micro_model):
    few = {**SHAPE, "steps": 1, "learning_rate": 1e-5}
    config = RaftSettings(model=str(micro_model), corpus=corpus, out=tmp_path / "raft", **few)
    with pytest.raises(ValueError, match="no right completion of 4 prompts: give more steps"):
        train_raft(config)
    config = DPOSettings(model=str(micro_model), corpus=corpus, out=tmp_path / "dpo", **few)
    with pytest.raises(ValueError, match="no prompt has a right completion and a worse one"):
        train_dpo(config)


def test_preference_prefers_the_shortest_right_completion(tmp_path, corpus, warm_start):
    import torch

    config = DPOSettings(
        model=str(warm_start), corpus=corpus, out=tmp_path / "dpo", epochs=6, batch=8,
        learning_rate=1e-3, **SHAPE,
    )  # fmt: skip
    manifest = load_manifest(made_by(train_dpo, config), expect="hf")
    before = load_manifest(warm_start)
    assert (manifest.stage, manifest.prompt_version) == ("dpo", before.prompt_version)
    assert manifest.parent.path == str(warm_start)
    assert manifest.max_fact_tokens == before.max_fact_tokens
    history = json.loads((config.out / "history.json").read_bytes())
    assert history[0]["loss"] == pytest.approx(0.693, abs=0.01)  # the reference is the start
    assert history[-1]["loss"] < 0.5

    pairs = list(draw_pairs(config, tmp_path / "dpo.run" / "trajectories"))
    assert pairs == list(draw_pairs(config, tmp_path / "dpo.run" / "trajectories"))

    def margin(folder: Path) -> float:
        """Log-probability of what is chosen over that of what is rejected, over all pairs."""
        checkpoint = read_checkpoint(folder)
        model, total = checkpoint.load_model().eval(), 0.0
        for pair in pairs:
            for side, sign in (("chosen", 1), ("rejected", -1)):
                asked, text = pair["prompt"], pair["prompt"] + pair[side]
                first = len(checkpoint.tokenizer(asked)["input_ids"])
                ids = torch.tensor([checkpoint.tokenizer(text)["input_ids"]])
                with torch.no_grad():
                    scores = model(ids).logits[0, first - 1 : -1].log_softmax(-1)
                total += sign * float(scores.gather(1, ids[0, first:, None]).sum())
        return total

    assert margin(config.out) > margin(warm_start)


def test_preference_pairs_come_from_logs_views_and_feedback(tmp_path, micro_model, log):
    view = ViewConfig(
        trajectories=[log], view="pairs", pairing="rest", out=tmp_path / "pairs.jsonl"
    )
    assert write_view(view) == 2
    write_rows(
        tmp_path / "feedback.jsonl", [{"prompt": "丙<think>", "chosen": "对", "rejected": "错"}]
    )
    for given, expected in (
        ({"trajectories": [log]}, {("短", "很长的推理"), ("短", "错")}),
        ({"dataset": str(view.out)}, {("短", "很长的推理"), ("短", "错")}),
        ({"dataset": str(tmp_path / "feedback.jsonl")}, {("对", "错")}),
    ):
        config = DPOSettings(
            model=str(micro_model), out=tmp_path / "dpo", learning_rate=1e-5, **given
        )
        pairs = draw_pairs(config, tmp_path / "none")
        sides = ("chosen", "rejected")
        assert {tuple(p[s].removesuffix(ANSWER) for s in sides) for p in pairs} == expected
    train_dpo(config)
    assert load_manifest(config.out).stage == "dpo"


def test_preference_training_broken_off_after_its_last_step_only_writes_the_model(
    tmp_path, micro_model, log, monkeypatch, caplog
):
    config = DPOSettings(
        model=str(micro_model), trajectories=[log], out=tmp_path / "dpo", epochs=3, batch=1,
        checkpoint_steps=1, learning_rate=1e-5,
    )  # fmt: skip

    break_off(monkeypatch, train_dpo, config)
    with caplog.at_level("INFO"):
        train_dpo(config)
    assert "checkpoint-6" in caplog.text
    history = json.loads((config.out / "history.json").read_bytes())
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "dpo.run").glob("checkpoint-*"))
