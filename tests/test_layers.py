from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "trl", "datasets", "tokenizers", "onnxruntime_genai", "pyarrow")


def test_every_layer_imports_only_what_stands_below_it():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "import-linter is part of the dev group: make setup"
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "module", ["train.grpo", "train.sft", "curt.evaluate", "curt.corpus build"]
)
def test_help_is_shown_without_loading_a_framework(module):
    module, *command = module.split()
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, *{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as exit_:\n"
        "    assert not exit_.code, exit_.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"
    assert "--" in result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "train.penalties",
        "train.rewards",
        "train.loop.group_reward",
        "curt.scores.metrics",
        "curt.dialogue",
    ],
)
def test_the_pure_core_loads_no_framework(module):
    """penalties, rewards and scores are functions of numbers and text"""
    code = f"import sys, {module}; print([m for m in {HEAVY[:3]!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
