from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from curt.artifact import ArtifactError
from curt.engines.protocol import StreamingEngine
from curt.engines.registry import ENGINES, open_engine, serving_engine
from curt.engines.transformers import TransformersEngine


def test_every_engine_says_what_others_must_know_of_it() -> None:
    for name, engine in ENGINES.items():
        assert engine.formats, name
        assert isinstance(engine.is_remote, bool), name
        assert isinstance(engine.serves, bool), name


def test_a_folder_opens_in_the_engine_of_its_format(micro_model: Path) -> None:
    engine = open_engine(micro_model, batch=3, threads=2)
    assert isinstance(engine, TransformersEngine)
    assert isinstance(engine, StreamingEngine)
    assert engine.batch == 3


def test_what_no_engine_here_runs_is_refused(micro_model: Path, tmp_path: Path) -> None:
    from curt.artifact import write_artifact

    describe = {
        "format": "trtllm-hf", "precision": "fp8", "stage": "test", "base": "none",
        "max_fact_tokens": 10, "max_thinking_tokens": 10,
    }  # fmt: skip
    with write_artifact(tmp_path / "model", describe) as temporary:
        (temporary / "note.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds trtllm-hf, which no engine"):
        open_engine(tmp_path / "model")


def test_a_server_runs_only_what_serves() -> None:
    assert serving_engine("onnxruntime") is ENGINES["onnxruntime"]
    for name in ("transformers", "triton"):
        with pytest.raises(ValueError, match=f"no engine '{name}' .*onnxruntime, vllm"):
            serving_engine(name)


def test_looking_an_engine_up_loads_no_runtime() -> None:
    heavy = ("torch", "transformers", "tokenizers", "onnxruntime", "llguidance")
    code = f"import curt.engines.registry, sys; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
