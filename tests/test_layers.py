from __future__ import annotations

import ast
import graphlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "compress", "curt", "loadtest", "serve", "train")
HEAVY = ("torch", "transformers", "trl", "datasets", "tokenizers", "onnxruntime_genai", "pyarrow")


def test_every_layer_imports_only_what_stands_below_it():
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "import-linter is part of the dev group: make setup"
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Our own modules that a file imports anywhere: in functions and for type checkers, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= names or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return (found & modules) - {module_name(path)}


def test_no_module_imports_itself_through_others():
    """Imports inside functions and for type checkers count: they are dependencies as well."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    modules = {module_name(path) for path in paths}
    graph = {module_name(path): imports_of(path, modules) for path in paths}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))


@pytest.mark.parametrize(
    "module",
    ["train.grpo", "train.sft", "train.raft", "train.dpo", "curt.evaluate", "curt.corpus build"],
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
