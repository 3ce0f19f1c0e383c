"""A servable model with random weights, and a folder that passes for one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curt.artifact import write_artifact
from curt.corpus.case import Case
from curt.files import write_json
from curt.law.verdict import Term, Verdict
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.fake_engine import MANIFEST


@pytest.fixture(scope="session")
def ort_model(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model exported for ONNX Runtime: it runs, and says nothing readable."""
    from compress.onnx.export import ExportOrtConfig, export_ort

    folder = tmp_path_factory.mktemp("ort")
    cases = folder / "cases.jsonl"
    verdict = Verdict(("盗窃",), ("264",), Term("fixed", 8), 8000)
    rows = [Case(str(i), fact, verdict, "test", {"full": "窃取"}) for i, fact in enumerate(FACTS)]
    cases.write_text("\n".join(json.dumps(r.to_json(), ensure_ascii=False) for r in rows))
    export_ort(
        ExportOrtConfig(
            model=micro_model,
            out=folder / "model",
            precision="fp32",
            cases=cases,
            prompts=2,
            continuation_tokens=8,
        )
    )
    return folder / "model"


@pytest.fixture(scope="session")
def empty_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid manifest and nothing to load: enough for a front with a fake pool."""
    folder = tmp_path_factory.mktemp("empty") / "model"
    describe = MANIFEST.model_dump(exclude={"tools", "created", "files"})
    with write_artifact(folder, describe) as temporary:
        write_json(temporary / "note.json", {})
    return folder


@pytest.fixture
def settings(empty_model: Path) -> Settings:
    return Settings(model=empty_model, workers=1)
