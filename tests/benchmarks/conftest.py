"""Exports shared by the tests of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compress.onnx.exports import export


@pytest.fixture(scope="session")
def soak_model(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model exported for ONNX Runtime: it runs, and says nothing readable."""
    return export(micro_model, tmp_path_factory.mktemp("soak") / "ort")
