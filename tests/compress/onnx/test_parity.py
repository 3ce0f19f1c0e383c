from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from compress.onnx.parity import measure_parity
from curt.engines.tokenizer import PromptTokenizer
from tests.compress.onnx.exports import export, make_untied_model


@pytest.fixture(scope="module")
def parent(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("parity") / "model", micro_model)


@pytest.fixture(scope="module")
def rows(parent: Path) -> dict[str, dict[str, float]]:
    """The parity row each precision's export left behind."""
    found = {}
    for precision in ("fp32", "int8", "int4"):
        folder = export(parent, parent.parent / precision, precision)
        found[precision] = json.loads((folder / "parity.json").read_text())
    return found


@pytest.mark.slow
def test_fp32_is_its_parent(rows: dict[str, dict[str, float]]) -> None:
    row = rows["fp32"]
    assert row["max_logit_difference"] < 1e-3
    assert row["argmax_agreement"] == 1.0
    assert abs(row["kl"]) < 1e-8
    assert abs(row["nll_difference"]) < 1e-5


@pytest.mark.slow
def test_fewer_bits_are_smaller_and_further_away(rows: dict[str, dict[str, float]]) -> None:
    assert rows["fp32"]["kl"] < rows["int8"]["kl"] < rows["int4"]["kl"]
    assert rows["int4"]["size_mb"] < rows["int8"]["size_mb"] < rows["fp32"]["size_mb"]
    for row in rows.values():
        assert all(math.isfinite(value) for value in row.values())
        assert row["prefill_tokens_per_s_1_threads"] > row["decode_tokens_per_s_1_threads"] > 0
        assert row["compared_prompts"] == 4
        assert row["load_ms"] > 0


@pytest.mark.slow
def test_an_artifact_of_another_parent_is_seen_to_be_far_away(
    rows: dict[str, dict[str, float]], parent: Path, micro_model: Path, tmp_path: Path
) -> None:
    assert rows
    other = make_untied_model(tmp_path / "other", micro_model, seed=9)
    prompts = [PromptTokenizer(parent).encode("被告人张某")]
    row = measure_parity(other, parent.parent / "fp32", prompts, 16)
    assert row["kl"] > 0.1
    with pytest.raises(ValueError, match="no prompts"):
        measure_parity(other, parent.parent / "fp32", [], 16)
