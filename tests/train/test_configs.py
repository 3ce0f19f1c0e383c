from __future__ import annotations

import re
from pathlib import Path

import pytest

from compress.distill.distill import DistillConfig
from compress.onnx.export import ExportOrtConfig
from compress.prune.prune import PruneConfig
from compress.tensorrt.export import ExportTrtConfig
from curt.checkpoint import CheckpointConfig
from curt.config import load_config
from curt.corpus.build.pipeline import CorpusConfig
from curt.corpus.case import OWN
from curt.corpus.generate.generator import VERBOSITIES
from curt.corpus.thinking import CUT, NONE
from curt.dialogue import BUDGET_LEVELS, MAX_ANSWER_TOKENS, SYSTEM
from curt.dialogue.answer import describe_grammar
from curt.evaluate import EvaluateConfig
from train.grpo import GRPOSettings
from train.penalties import PENALTIES, Group
from train.rewards import REWARDS
from train.sft import SFTConfig
from train.star import StarConfig

ROOT = Path(__file__).parents[2]
FILES = sorted(  # of a benchmark: tests/benchmarks
    file for file in (ROOT / "configs").glob("*/*.toml") if not file.stem.startswith("bench-")
)
DEMO = {
    "corpus": CorpusConfig,
    "lessons": CorpusConfig,
    "sft": SFTConfig,
    "grpo": GRPOSettings,
    "accuracy": GRPOSettings,
    "evaluate": EvaluateConfig,
    "compress-trt": ExportTrtConfig,
    "compress-prune": PruneConfig,
    "compress-recover": DistillConfig,
    "compress-student": DistillConfig,
}
CLASSES = {
    **DEMO,
    "checkpoint": CheckpointConfig,
    "compress-ort": ExportOrtConfig,
    "pure-rl": GRPOSettings,
    "pure-rl-judge": GRPOSettings,
    "sft-lora": SFTConfig,
    "sft-own": SFTConfig,
    "star": StarConfig,
    "grpo-lora": GRPOSettings,
    "grpo-own": GRPOSettings,
    "grpo-server": GRPOSettings,
}
GIVEN = {
    "evaluate": ["--model", "m", "--out", "o.json"],
    **{name: ["--model", "m", "--out", "o"] for name in CLASSES if name.startswith("compress-")},
    "compress-recover": ["--teacher", "t", "--student", "s", "--data", "d", "--out", "o"],
    "compress-student": ["--teacher", "t", "--data", "d", "--out", "o"],
}
REAL = {"sft", "grpo", "checkpoint"}  # of configs/real, which names no model
KNOWN = {*VERBOSITIES, OWN, NONE, CUT}


def load(file: Path, *arguments: str):
    given = GIVEN.get(file.stem, [])
    if file.parent.name == "real" and file.stem in REAL:
        given = ["--model", "m"]
    return load_config(CLASSES[file.stem], [f"@{file}", *given, *arguments])


def test_there_are_configurations_for_the_embedded_default():
    assert {f.stem for f in FILES if f.parent.name == "demo"} == DEMO.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_every_shipped_configuration_parses(file):
    assert load(file).model_dump()


@pytest.mark.parametrize("file", [f for f in FILES if f.stem == "sft"], ids=lambda f: f.parent.name)
def test_shipped_verbosities_exist(file):
    config = load(file)
    assert config.verbosity_weights.keys() <= KNOWN
    assert sum(config.verbosity_weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.stem == "grpo"], ids=lambda f: f.parent.name
)
def test_shipped_grpo_settings_fit_what_the_warm_start_learned(file):
    config = load(file)
    warm = load(file.with_name("sft.toml"))
    assert config.max_thinking_tokens <= warm.max_thinking_tokens
    assert set(config.budgets) <= set(BUDGET_LEVELS)
    assert max(config.budgets) <= warm.max_thinking_tokens
    assert config.reward_weights.keys() <= REWARDS.keys()
    assert sum(config.reward_weights.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.stem == "grpo"], ids=lambda f: f.parent.name
)
@pytest.mark.parametrize("name", PENALTIES)
def test_any_penalty_can_be_chosen_over_the_shipped_one(file, name):
    """Constants of the file's penalty must not stick to another one."""
    config = load(file, "--penalty", f'{{"type": "{name}"}}')
    assert config.penalty.type == name
    other = PENALTIES[name]()
    shipped = load(file).penalty
    assert config.penalty == (shipped if shipped.type == name else other)


@pytest.mark.parametrize("folder", ["qwen3-0.6b", "qwen2.5-7b"])
def test_larger_models_have_every_recipe(folder):
    names = {f.stem for f in FILES if f.parent.name == folder}
    assert {"sft", "sft-lora", "grpo", "grpo-lora", "grpo-server", "pure-rl"} <= names
    for kind in ("", "-lora", "-own"):
        warm = load(ROOT / "configs" / folder / f"sft{kind}.toml")
        grpo = load(ROOT / "configs" / folder / f"grpo{kind}.toml")
        assert Path(grpo.model) == warm.out
        assert grpo.max_thinking_tokens <= warm.max_thinking_tokens
    star = load(ROOT / "configs" / folder / "star.toml")
    assert star.out == warm.corpus
    assert str(star.model) == warm.model == load(ROOT / "configs" / folder / "pure-rl.toml").model


@pytest.mark.parametrize("folder", ["qwen3-0.6b", "qwen2.5-7b"])
@pytest.mark.parametrize("name", ["grpo-own", "pure-rl"])
def test_a_checkpoints_own_reasoning_is_made_short_under_budgets_that_it_exceeds(folder, name):
    config = load(ROOT / "configs" / folder / f"{name}.toml")
    levels = config.curriculum.levels if config.curriculum else config.budgets
    assert (min(levels), max(levels)) == (128, 1024)
    assert config.enforce_budgets
    assert config.max_thinking_tokens == 1024
    shaped = config.penalty(Group((0.0, 0.0, 1.0, 1.0), (20, 900, 200, 700), 1024))
    assert shaped[:2] == [0, 0]
    assert shaped[2] > shaped[3] > 0


@pytest.mark.parametrize("file", [f for f in FILES if "vllm" in f.read_text()], ids=str)
def test_vllm_holds_the_longest_prompt_and_completion_and_no_more_than_twice_that(file):
    """Left out, it reserves a cache for the 32,768 tokens and more of the checkpoint."""
    config = load(file)
    told = len(describe_grammar()) if config.model.endswith(("/start", "/start-base")) else 0
    needed = 1024 + len(SYSTEM) + told + 40 + config.max_thinking_tokens + 1 + MAX_ANSWER_TOKENS
    said = config.trl.get("vllm_max_model_length")
    if said is None:
        said = int(re.search(r"--max_model_len (\d+)", file.read_text())[1])
    assert needed <= said <= 2 * needed
    # vLLM loads what lies there: a hub's checkpoint lacks the marks of thinking.
    assert config.model.startswith("artifacts/")


def test_one_constant_can_be_changed_alone():
    file = ROOT / "configs" / "demo" / "grpo.toml"
    changed, shipped = load(file, "--penalty.weight", "0.15").penalty, load(file).penalty
    assert changed == shipped.model_copy(update={"weight": 0.15})
    adapters = ROOT / "configs" / "qwen2.5-7b" / "sft-lora.toml"
    changed, shipped = load(adapters, "--lora.quantised", "true").lora, load(adapters).lora
    assert changed == shipped.model_copy(update={"quantised": True})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--penalty", '{"type": "quadratic"}'], "penalty"),
        (["--penalty.wieght", "0.1"], "wieght"),
        (["--partial_share", "1.1"], "partial_share"),
        (["--compact", "false", "--seed_rollouts", "true"], "seed_rollouts without compact"),
        (["--micro_batch", "4"], "leave micro_batch out"),
        (["--lora.rnak", "4"], "rnak"),
    ],
)
def test_refusals_name_the_setting(arguments, said, capsys):
    with pytest.raises(SystemExit) as exit_:
        load(ROOT / "configs" / "demo" / "grpo.toml", *arguments)
    assert said in str(exit_.value.code) + capsys.readouterr().err
