"""Warm start and GRPO for real, at the smallest size; and what a stop or a kill leaves behind."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from compress.onnx.speculation import GuessesConfig, add_guesses
from curt.artifact import ArtifactError, load_manifest
from curt.corpus.store import find_cases, read_cases
from curt.dialogue import parse_completion
from curt.engines.onnx.cost import read_cost
from curt.engines.protocol import Request
from curt.engines.transformers import TransformersEngine
from curt.scores.metrics import is_exact
from tests.compress.onnx.exports import export
from tests.train.training_runs import (
    GENERATIONS,
    PROMPTS,
    break_off,
    finish,
    grpo_config,
    made_by,
    make_corpus,
    sft_config,
    start,
    wait_until,
)
from train.data.trajectories import read_rollouts
from train.grpo import train_grpo
from train.loop.scoring import Scorer
from train.penalties import Group
from train.penalties.alone.none import NoPenalty
from train.penalties.history.laser_d import LaserDPenalty
from train.sft import train_warm_start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    kept = signal.getsignal(signal.SIGINT)
    try:
        return made_by(
            train_warm_start, sft_config(corpus, tmp_path_factory.mktemp("warm") / "model")
        )
    finally:
        signal.signal(signal.SIGINT, kept)


def steps_of(run: Path) -> Counter[int]:
    return Counter(read_rollouts(run / "trajectories")["step"].to_pylist())


def trajectory(run: Path, step: int) -> Path:
    return run / "trajectories" / f"step-{step:06d}.parquet"


def test_a_warm_start_leaves_a_whole_model_folder_with_its_history(warm_start):
    manifest = load_manifest(warm_start, expect="hf")
    assert (manifest.stage, manifest.base) == ("warm-start", "scratch")
    assert manifest.config["shape"]["hidden"] == 64
    history = json.loads((warm_start / "history.json").read_bytes())
    assert [row["step"] for row in history] == list(range(20, 241, 20))
    assert history[-1]["loss"] < history[0]["loss"] / 3
    assert not list(warm_start.parent.glob("*.tmp"))
    assert not list(warm_start.with_name("model.run").glob("checkpoint-*"))


def test_a_warm_start_on_no_case_is_refused_and_leaves_no_run(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match="holds no training case: build the corpus again"):
        train_warm_start(sft_config(tmp_path, tmp_path / "model"))
    assert not (tmp_path / "model.run").exists()


def test_grpo_trains_and_keeps_every_rollout(tmp_path, corpus, warm_start):
    config = grpo_config(corpus, warm_start, tmp_path / "grpo")
    folder = made_by(train_grpo, config)

    manifest = load_manifest(folder, expect="hf")
    assert manifest.stage == "grpo-gated"
    assert manifest.parent is not None
    assert manifest.parent.path == str(warm_start)
    history = json.loads((folder / "history.json").read_bytes())
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert all({"reward", "exact", "thinking_tokens", "lr"} <= row.keys() for row in history)

    rows = read_rollouts(tmp_path / "grpo.run" / "trajectories").to_pylist()
    assert len(rows) == 4 * PROMPTS * GENERATIONS
    assert len({round(r["reward"], 6) for r in rows}) > 3  # else what follows says nothing
    references = {case.id: case.verdict for case in read_cases(corpus / "train.jsonl")}
    for start_ in range(0, len(rows), GENERATIONS):
        group = rows[start_ : start_ + GENERATIONS]
        assert len({(r["step"], r["group"], r["case_id"], r["prompt_sha256"]) for r in group}) == 1
        scores = Scorer(config.reward_weights).score(
            [parse_completion(r["completion"]) for r in group],
            [references[r["case_id"]] for r in group],
            GENERATIONS,
        )
        shaped = config.penalty(
            Group(
                tuple(s.exact for s in scores),
                tuple(r["thinking_tokens"] for r in group),
                group[0]["budget"],
            )
        )
        for row, score, value in zip(group, scores, shaped, strict=True):
            assert dict(row["reward_raw"]) == pytest.approx(dict(score.raw))
            assert (row["partial"], row["exact"]) == pytest.approx((score.partial, score.exact))
            assert row["shaped"] == pytest.approx(value)
            assert row["reward"] == pytest.approx(0.4 * score.partial + 0.6 * value)
    for step in range(4):
        batch = rows[step * PROMPTS * GENERATIONS : (step + 1) * PROMPTS * GENERATIONS]
        mean = sum(r["reward"] for r in batch) / len(batch)
        assert history[step]["reward"] == pytest.approx(mean, abs=1e-4)
        for start_ in range(0, len(batch), GENERATIONS):
            group = batch[start_ : start_ + GENERATIONS]
            assert sum(r["advantage"] for r in group) == pytest.approx(0, abs=1e-3)
            by_reward = sorted(group, key=lambda r: r["reward"])
            assert by_reward[0]["advantage"] <= by_reward[-1]["advantage"]


def test_more_groups_can_be_sampled_than_are_trained_on(tmp_path, corpus, warm_start):
    config = grpo_config(
        corpus,
        warm_start,
        tmp_path / "grpo",
        oversample=1,
        advantages="whitened",
        guard={"window": 1},
        penalty={"type": "laser-d", "refresh_steps": 1},
        compact=True,
    )
    folder = made_by(train_grpo, config)
    rows = read_rollouts(tmp_path / "grpo.run" / "trajectories").to_pylist()
    assert len(rows) == 4 * (PROMPTS + 1) * GENERATIONS
    for step in range(1, 5):
        kept = Counter(r["group"] for r in rows if r["step"] == step and r["kept"])
        assert list(kept.values()) == [GENERATIONS] * PROMPTS
        left_out = [r["advantage"] for r in rows if r["step"] == step and not r["kept"]]
        spreads = [any(r["advantage"] for r in rows if (r["step"], r["group"]) == (step, group))
                   for group in kept]  # fmt: skip
        assert all(spreads) or not any(left_out)
    history = json.loads((folder / "history.json").read_bytes())
    assert all(0 <= row["penalty_weight"] <= 1 for row in history)
    assert list((tmp_path / "grpo.run" / "runs").rglob("events.out.tfevents.*"))


def test_a_step_is_sampled_again_until_it_is_full_of_groups_with_a_spread(
    tmp_path, corpus, warm_start
):
    """Seldom both of two prompts have one; sixteen rollouts each, in one packed row."""
    config = grpo_config(
        corpus, warm_start, tmp_path / "grpo", rounds=4, generations=16, compact=True,
        partial_share=0.0, penalty=NoPenalty(), temperature=0.7,
    )  # fmt: skip
    train_grpo(config)
    rows = read_rollouts(tmp_path / "grpo.run" / "trajectories").to_pylist()
    counts = []
    for step in range(1, 5):
        groups: dict[int, list[dict]] = {}
        for row in rows:
            if row["step"] == step:
                groups.setdefault(row["group"], []).append(row)
        assert list(groups) == list(range(len(groups)))
        assert len({group[0]["prompt"] for group in groups.values()}) == len(groups)
        spread = [len({row["reward"] for row in group}) > 1 for group in groups.values()]
        counts.append(len(groups) // PROMPTS)
        assert sum(spread[:-PROMPTS]) < PROMPTS  # or there was no need of the last round
        assert sum(spread) >= PROMPTS or counts[-1] == 4
        kept = [number for number, group in groups.items() if group[0]["kept"]]
        assert len(kept) == PROMPTS
        taught = [number for number, has in enumerate(spread) if has][:PROMPTS]
        assert set(taught) <= set(kept)
        assert all(any(r["advantage"] for r in groups[n]) == (n in taught) for n in groups)
    assert max(counts) > 1


def test_the_best_of_the_evaluated_weights_are_published_and_no_gain_ends_the_run(
    tmp_path, corpus, warm_start, monkeypatch, caplog
):
    """A rate that ruins the model: later evaluations are no better than the first."""
    config = grpo_config(
        corpus, warm_start, tmp_path / "grpo", steps=40, eval_steps=2, patience=2,
        learning_rate=2e-2, checkpoint_steps=3, compact=True,
    )  # fmt: skip

    break_off(monkeypatch, train_grpo, config)
    steps = max(steps_of(tmp_path / "grpo.run"))
    caplog.clear()
    with caplog.at_level("INFO", "train"):
        folder = made_by(train_grpo, config)  # goes on from before its end, and ends there again
    said = [text for text in caplog.messages if "development cases" in text]
    assert len(said) == len(set(said)) > 0  # no step is evaluated twice
    assert max(steps_of(tmp_path / "grpo.run")) == steps < 40
    history = json.loads((folder / "history.json").read_bytes())
    evaluated = {row["step"]: row["eval_correct"] for row in history if "eval_correct" in row}
    assert list(evaluated) == list(range(0, steps + 1, 2))
    start, *trained = evaluated.values()
    best = trained.index(max(trained))
    assert max(trained[-2:]) <= max([start, *trained[:-2]])
    assert ("keep that one" in caplog.text) is (max(trained) <= start)
    assert all(row["eval_correct"] == row["eval_exact"] for row in history if "eval_exact" in row)

    assert trained[-1] < max(trained)
    cases = list(read_cases(find_cases(corpus, "dev")))
    engine = TransformersEngine(folder, device="cpu", guided=False)  # as training samples
    answers = engine.generate([Request(case.fact, 16, 16) for case in cases])
    verdicts = [parse_completion(answer.text).verdict for answer in answers]
    right = [is_exact(v, case.verdict) for v, case in zip(verdicts, cases, strict=True)]
    assert sum(right) / len(right) == pytest.approx(max(trained))
    thinking = next(r for r in history if r["step"] == 2 * (best + 1))["eval_thinking_tokens"]
    assert sum(a.thinking_tokens for a in answers) / len(answers) == pytest.approx(thinking)


@pytest.mark.parametrize("estimator", ["gdpo", "rloo"])
def test_grpo_takes_any_estimator(tmp_path, corpus, warm_start, estimator):
    config = grpo_config(
        corpus, warm_start, tmp_path / "grpo", steps=2, advantages=estimator, trackers=[]
    )
    train_grpo(config)
    rows = read_rollouts(tmp_path / "grpo.run" / "trajectories").to_pylist()
    assert any(r["advantage"] for r in rows)


def test_a_run_paid_by_milliseconds_resumes_with_the_same_lengths(tmp_path, corpus, warm_start):
    artifact = export(warm_start, tmp_path / "ort", likeliest=True)
    cases = find_cases(corpus, "train")
    add_guesses(GuessesConfig(artifact=artifact, out=artifact, cases=cases, count=20))
    penalty = LaserDPenalty(start=8, refresh_steps=2)  # its targets are lengths of the history
    changes = {"cost": artifact, "penalty": penalty, "steps": 6}
    whole, killed = (grpo_config(corpus, warm_start, tmp_path / n, **changes) for n in ("a", "b"))
    made_by(train_grpo, whole)
    log = tmp_path / "log"
    process = start("train.grpo", killed, log)
    try:
        wait_until(trajectory(tmp_path / "b.run", 5).exists, process, log)
    finally:
        process.kill()
        process.wait()
    finish(start("train.grpo", killed, log), log)
    unbroken, resumed = (read_rollouts(tmp_path / f"{n}.run" / "trajectories") for n in "ab")
    told = ["token_ids", "thinking_ms", "thinking_length", "shaped", "advantage"]
    assert resumed.select(told).equals(unbroken.select(told))
    rows = [row for row in unbroken.to_pylist() if row["thinking_tokens"]]
    assert len({row["thinking_length"] / row["thinking_tokens"] for row in rows}) > 3
    cost = read_cost(artifact)
    for row in rows:
        ids, budget = row["token_ids"], row["budget"]
        assert row["thinking_length"] == cost.measure(ids, budget).length

    other = export(warm_start, tmp_path / "other", likeliest=True)
    with pytest.raises(ArtifactError, match="does not say what a pass costs"):
        train_grpo(whole.model_copy(update={"cost": other, "out": tmp_path / "c"}))


def test_ctrl_c_stops_grpo_with_a_checkpoint_and_the_same_command_goes_on(
    tmp_path, corpus, warm_start
):
    out, run, log = tmp_path / "grpo", tmp_path / "grpo.run", tmp_path / "log"
    config = grpo_config(corpus, warm_start, out, steps=8, checkpoint_steps=100)
    process = start("train.grpo", config, log)
    try:
        wait_until(trajectory(run, 2).exists, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    assert "stopped; the same command goes on from here" in log.read_text()
    assert "Traceback" not in log.read_text()
    (checkpoint,) = run.glob("checkpoint-*")
    assert steps_of(run).keys() == set(range(1, int(checkpoint.name.split("-")[1]) + 1))
    with pytest.raises(ArtifactError):
        load_manifest(out)

    other = config.model_copy(update={"seed": 99})
    refused = start("train.grpo", other, tmp_path / "refused")
    assert refused.wait(timeout=60) == 1
    assert "unfinished run with other seed" in (tmp_path / "refused").read_text()

    finish(start("train.grpo", config, log), log)
    assert steps_of(run) == dict.fromkeys(range(1, 9), PROMPTS * GENERATIONS)
    assert load_manifest(out).format == "hf"


def test_a_run_broken_off_after_its_last_step_only_writes_the_model(
    tmp_path, corpus, warm_start, monkeypatch
):
    config = grpo_config(corpus, warm_start, tmp_path / "grpo")

    break_off(monkeypatch, train_grpo, config)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "grpo.run").rglob("*.parquet")}
    assert len(files) == 4
    folder = made_by(train_grpo, config)
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert len(json.loads((folder / "history.json").read_bytes())) == 4


def test_a_killed_warm_start_ends_with_the_history_of_an_unbroken_one(tmp_path, corpus):
    # 120 steps, a history row every 20; half of the rate, which makes runs comparable
    changes = {"epochs": 10.0, "checkpoint_steps": 10, "learning_rate": 2e-3}
    whole = made_by(train_warm_start, sft_config(corpus, tmp_path / "whole", **changes))

    out, run, log = tmp_path / "killed", tmp_path / "killed.run", tmp_path / "log"
    config = sft_config(corpus, out, **changes)
    process = start("train.sft", config, log)
    try:
        wait_until((run / "checkpoint-30" / "trainer_state.json").exists, process, log)
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ArtifactError):
        load_manifest(out)
    finish(start("train.sft", config, log), log)
    assert "resuming from" in log.read_text()

    unbroken, resumed = (
        json.loads((folder / "history.json").read_bytes()) for folder in (whole, out)
    )
    assert [row["step"] for row in resumed] == [row["step"] for row in unbroken]
    assert len(resumed) == 6
    assert resumed[-1]["loss"] == pytest.approx(unbroken[-1]["loss"], rel=0.05)
