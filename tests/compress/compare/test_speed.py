from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compress.compare.speed import (
    SENTENCE,
    make_request,
    measure_speeds,
    peak_rss_mb,
    run_round,
    spread,
)
from curt.artifact import ArtifactError
from curt.engines import Generation, GenerationStep, Request
from tests.compress.onnx.exports import export, make_untied_model


class Terse:
    """An engine that ends every turn after three tokens; one character is one token."""

    def __init__(self, most_tokens: int = 10_000) -> None:
        self.most_tokens = most_tokens

    def encode(self, request: Request) -> str:
        return ("x" * 20 + request.fact)[: self.most_tokens]

    def stream(self, request: Request) -> Iterator[GenerationStep]:
        end = Generation("", len(self.encode(request)), 1, 1, False, "stop", 10.0, 30.0)
        yield GenerationStep("end", generation=end)


def test_a_spread_is_the_median_between_its_ends() -> None:
    assert spread([3.0, 1.0, 9.0]).model_dump() == {"median": 3.0, "low": 1.0, "high": 9.0}


def test_a_round_repeats_a_short_turn_until_enough_is_decoded() -> None:
    request = make_request(Terse(), 100, 16)
    assert len(run_round(Terse(), request, 16)) == 6  # of three tokens
    assert len(run_round(Terse(), request, 2)) == 5  # of 40 ms, 200 in all


@pytest.mark.parametrize(("prompt_tokens", "most"), [(60, 60), (100, 100), (1234, 400)])
def test_a_prompt_is_as_long_as_asked_for_and_the_model_takes(
    prompt_tokens: int, most: int
) -> None:
    engine = Terse(400)
    request = make_request(engine, prompt_tokens, 64)
    assert most - len(SENTENCE) < len(engine.encode(request)) <= most
    assert request.thinking_limit + 1 + request.answer_limit == 64


def test_a_prompt_shorter_than_its_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="allow longer ones"):
        make_request(Terse(), 10, 64)


def test_peak_memory_only_grows() -> None:
    before = peak_rss_mb()
    block = np.ones(8_000_000)
    assert peak_rss_mb() >= before > 10
    assert block.sum() > 0


@pytest.mark.parametrize(
    "settings", [{"rounds": 0}, {"threads": (0,)}, {"prompt_tokens": 0}, {"decode_tokens": 1}]
)
def test_counts_below_one_are_refused(micro_model: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="use 1 or more"):
        measure_speeds([micro_model], **settings)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="manifest"):
        measure_speeds([tmp_path])


@pytest.mark.slow
def test_both_engines_are_measured_in_turns(micro_model: Path, tmp_path: Path) -> None:
    parent = make_untied_model(tmp_path / "model", micro_model)
    folders = [parent, export(parent, tmp_path / "int8", "int8")]
    (first,), (second,) = measure_speeds(
        folders, threads=(1,), rounds=3, prompt_tokens=500, decode_tokens=16
    )
    assert first.decode_to_first.model_dump() == {"median": 1.0, "low": 1.0, "high": 1.0}
    for speed in (first, second):
        assert speed.threads == 1
        assert speed.rounds == 3
        assert 30 < speed.prompt_tokens <= 500
        assert speed.prefill_tokens_per_s.low > speed.decode_tokens_per_s.low > 0
        assert speed.decode_tokens_per_s.low <= speed.decode_tokens_per_s.median
        assert 0 < speed.load_s < 60
    # PyTorch alone takes more memory than a whole ONNX Runtime worker
    assert second.peak_rss_mb < first.peak_rss_mb


@pytest.mark.slow
def test_a_worker_that_fails_says_why(micro_model: Path) -> None:
    with pytest.raises(ArtifactError, match="allow longer ones"):
        measure_speeds([micro_model], threads=(1,), rounds=1, prompt_tokens=3, decode_tokens=8)
