from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from curt.config import Config, load_config, run


class Penalty(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = "linear"
    weight: float = 0.3


class Run(Config):
    """A run."""

    steps: int = 10
    """Optimiser steps."""
    out: Path = Path("out")
    """Where results go."""
    penalty: Penalty = Field(default_factory=Penalty)
    """Length penalty."""


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('steps = 20\n[penalty]\nname = "cosine"\nweight = 0.5\n')
    return path


def test_defaults_without_arguments():
    assert load_config(Run, []) == Run()


def test_files_override_defaults_and_arguments_override_files(toml):
    config = load_config(Run, [f"@{toml}", "--steps", "30", "--penalty.weight", "0.1"])
    assert config.steps == 30
    assert config.penalty == Penalty(name="cosine", weight=0.1)
    assert config.out == Path("out")


def test_later_files_override_earlier_ones(toml, tmp_path):
    later = tmp_path / "later.toml"
    later.write_text("[penalty]\nweight = 0.9\n")
    config = load_config(Run, [f"@{toml}", f"@{later}"])
    assert (config.steps, config.penalty.name, config.penalty.weight) == (20, "cosine", 0.9)


def test_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("STEPS", "99")
    assert load_config(Run, []).steps == 10


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "stepz"),
        ("[penalty]\nwieght = 1", "penalty.wieght"),
        ('steps = "many"', "'many'"),
        ("steps = ", "run.toml"),
    ],
)
def test_a_refused_file_names_the_key_or_value(tmp_path, text, said):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as exit_:
        load_config(Run, [f"@{path}"])
    assert said in str(exit_.value.code)


def test_a_missing_file_is_named():
    with pytest.raises(SystemExit) as exit_:
        load_config(Run, ["@nowhere.toml"])
    assert "nowhere.toml" in str(exit_.value.code)


def test_an_unknown_argument_is_refused_by_name(capsys):
    with pytest.raises(SystemExit) as exit_:
        load_config(Run, ["--stepz", "3"])
    assert exit_.value.code != 0
    assert "stepz" in str(exit_.value.code) + capsys.readouterr().err


def test_a_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Run().steps = 5


def test_help_shows_every_setting_without_importing_torch():
    program = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('torch' in sys.modules, 'transformers' in sys.modules))\n"
        "import curt.artifact, curt.dialogue, curt.scores.metrics, curt.corpus.read.cail\n"
        "from tests.curt.test_config import Run\n"
        "from curt.config import load_config, run\n"
        "load_config(Run, ['--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    for said in ("--steps", "Optimiser steps.", "--penalty.weight", "--out"):
        assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "False False"


class Sum(Config):
    """Two numbers."""

    left: int
    right: int = 1


def test_run_hands_the_work_its_configuration_and_ends_quietly():
    sums = []
    run(Sum, lambda config: sums.append(config.left + config.right), ["--left", "2"])
    assert sums == [3]


def test_run_ends_with_the_status_that_the_work_returns():
    with pytest.raises(SystemExit) as ended:
        run(Sum, lambda config: config.left, ["--left", "3"])
    assert ended.value.code == 3


def test_run_tells_an_expected_error_in_a_line_and_lets_a_bug_through():
    def refuse(config):
        raise ValueError("left of 2: use 1")

    def stumble(config):
        raise KeyError("left")

    with pytest.raises(SystemExit, match="error: left of 2: use 1"):
        run(Sum, refuse, ["--left", "2"])
    with pytest.raises(KeyError):
        run(Sum, stumble, ["--left", "2"])
    with pytest.raises(SystemExit, match="error: 'left'"):
        run(Sum, stumble, ["--left", "2"], expected=(KeyError,))
