"""configs/qwen2.5-7b/pure-rl-judge.toml on a model that fits a test: everything but its size."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from curt.artifact import load_manifest
from curt.config import load_config
from tests.train.judge.judge_server import Reply, judge_server
from tests.train.training_runs import ROOT, made_by, make_corpus, sft_config
from train.data.trajectories import iterate_groups
from train.grpo import GRPOSettings, train_grpo, trl_options
from train.judge import JudgeUnavailableError
from train.sft import train_warm_start

pytestmark = pytest.mark.slow

RECIPE = ROOT / "configs" / "qwen2.5-7b" / "pure-rl-judge.toml"
SMALL = {
    "max_fact_tokens": 120,
    "max_thinking_tokens": 16,
    "budgets": [16],
    "steps": 2,
    "prompts": 2,
    "generations": 4,
    "bf16": False,
    # two passes a step, as the recipe's batch is cut up
    "micro_batch": 4,
    "trl": {},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus, and a plain checkpoint folder as one from a hub: no manifest."""
    folder = tmp_path_factory.mktemp("recipe")
    corpus = make_corpus(folder)
    kept = signal.getsignal(signal.SIGINT)
    trained = made_by(train_warm_start, sft_config(corpus, folder / "warm", epochs=6.0))
    signal.signal(signal.SIGINT, kept)
    plain = folder / "plain"
    shutil.copytree(trained, plain)
    (plain / "manifest.json").unlink()
    return corpus, plain


def recipe(corpus: Path, model: Path, out: Path, url: str, **judge) -> GRPOSettings:
    settings = load_config(GRPOSettings, [f"@{RECIPE}"]).model_dump(mode="json")
    settings["judges"]["qwen"] |= {
        "base_url": url,
        "cache": str(out.with_suffix(".sqlite")),
        **judge,
    }
    settings |= SMALL | {"corpus": corpus, "model": str(model), "out": out}
    return GRPOSettings.model_validate(settings)


def mostly_good(body, number):
    if "error_months" in body["messages"][0]["content"]:
        return Reply('{"error_months": 3}')
    return Reply("也许吧" if number % 7 == 0 else '{"grade": "partial"}')


def test_the_recipe_trains_on_what_the_judge_says(tmp_path, checkpoint):
    corpus, model = checkpoint
    with judge_server(mostly_good) as server:
        config = recipe(corpus, model, tmp_path / "out", server.url)
        folder = made_by(train_grpo, config)
        asked = len(server.requests)
    assert asked > 4
    manifest = load_manifest(folder, expect="hf")
    assert (manifest.stage, manifest.base, manifest.parent) == ("grpo-none", str(model), None)
    rollouts = [r for group in iterate_groups(tmp_path / "out.run" / "trajectories") for r in group]
    assert len(rollouts) == 2 * 2 * 4
    for rollout in rollouts:
        counted = ["format_error", "qwen:charge", "qwen:article", "qwen:ruling", "qwen:term"]
        values = [rollout.reward_raw[name] for name in counted]
        if None in values:  # the judge failed: no reward, no gradient
            assert rollout.reward is None
            assert rollout.advantage == 0
        else:
            assert rollout.reward == pytest.approx(sum(values))
        assert rollout.reward_raw["charge"] is not None  # by rule, logged only
    assert any(r.reward is None for r in rollouts)
    history = json.loads((folder / "history.json").read_bytes())
    assert [row["step"] for row in history] == [1, 2]


def test_a_judge_that_is_down_stops_the_run_and_loses_nothing(tmp_path, checkpoint):
    corpus, model = checkpoint
    with judge_server(lambda *_: Reply(status=500, body=b"{}")) as server:
        config = recipe(corpus, model, tmp_path / "out", server.url, retries=0, failure_window=8)
        with pytest.raises(JudgeUnavailableError, match="failed on 100%"):
            train_grpo(config)
    assert not (tmp_path / "out").exists()
    # The endpoint's address may have changed since; everything else must be as it was.
    with judge_server(mostly_good) as server:
        again = recipe(corpus, model, tmp_path / "again", server.url, failure_window=200)
        assert load_manifest(made_by(train_grpo, again)).stage == "grpo-none"


def test_what_the_configuration_owns_cannot_be_set_through_trl(tmp_path):
    config = GRPOSettings(trl={"learning_rate": 1.0})
    with pytest.raises(ValueError, match=r"trl names \['learning_rate'\]"):
        trl_options(config, tmp_path)
    for size in ("gradient_accumulation_steps", "steps_per_generation"):
        with pytest.raises(ValueError, match=rf"trl names \['{size}'\]"):
            trl_options(GRPOSettings(trl={size: 2}), tmp_path)
    with pytest.raises(ValueError, match="oversample and rounds need whole batches"):
        GRPOSettings(oversample=2, micro_batch=4)


def test_another_checkpoint_needs_the_length_of_facts(tmp_path, checkpoint):
    corpus, model = checkpoint
    config = GRPOSettings(corpus=corpus, model=str(model), out=tmp_path / "out")
    with pytest.raises(ValueError, match="set max_fact_tokens"):
        train_grpo(config)
