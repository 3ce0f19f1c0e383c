from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.onnx.plain import (
    PlainConfig,
    PlainModel,
    compare_with_genai,
    genai_greedy,
    mean_loss,
    split_completions,
)
from curt.artifact import ArtifactError
from curt.dialogue import THINK_END
from curt.engines.onnx.engine import OrtEngine
from curt.engines.protocol import Request
from tests.compress.onnx.exports import export, make_untied_model, write_cases
from tests.micro import FACTS

PROMPTS = [[5, 6, 7, 8, 9, 10, 30, 31, 12], [40], [41, 42, 43, 6, 5, 7] * 20]


@pytest.fixture(scope="module")
def parent(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("plain") / "model", micro_model)


@pytest.fixture(scope="module")
def artifact(parent: Path) -> Path:
    return export(parent, parent.parent / "fp32", "fp32")


@pytest.mark.slow
def test_greedy_tokens_are_the_genai_runtimes(artifact: Path) -> None:
    model = PlainModel(artifact)
    plain = [model.greedy(prompt, 40) for prompt in PROMPTS]
    assert plain == genai_greedy(artifact, PROMPTS, 40)
    assert max(len(set(tokens)) for tokens in plain) > 3  # more than one token over and over


@pytest.mark.slow
def test_int4_too(parent: Path) -> None:
    artifact = export(parent, parent.parent / "int4", "int4")
    model = PlainModel(artifact, threads=2)
    assert [model.greedy(p, 24) for p in PROMPTS] == genai_greedy(artifact, PROMPTS, 24)


@pytest.mark.slow
def test_the_engine_writes_the_same_text(micro_model: Path, tmp_path: Path) -> None:
    """A model that thinks five tokens, closes, answers four and ends its turn by itself."""
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    close, end = tokenizer.convert_tokens_to_ids([THINK_END, "<|im_end|>"])
    request = Request(FACTS[0], 16, 32)
    probe = OrtEngine(export(micro_model, tmp_path / "probe", "fp32"))
    last = probe.encode(request)[-1]
    said = [last, *range(60, 65), close, *range(70, 74), end]
    chain = dict(itertools.pairwise(said))
    model = make_untied_model(tmp_path / "model", micro_model, chain=chain)
    artifact = export(model, tmp_path / "fp32", "fp32")
    engine = OrtEngine(artifact)
    [generation] = engine.generate([request])
    tokens = PlainModel(artifact).greedy(engine.encode(request), 64)
    assert tokens == said[1:-1]
    assert generation.text == engine.tokenizer.decode(tokens)
    assert (generation.finish, generation.thinking_tokens) == ("stop", 5)


@pytest.mark.slow
def test_logits_and_losses_are_the_parents(parent: Path, artifact: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()
    model = PlainModel(artifact)
    for prompt in PROMPTS:
        continuation = [*model.greedy(prompt, 8)[:-1], 11, 17]
        ids = torch.tensor([prompt + continuation])
        with torch.inference_mode():
            rows = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = [-float(row[token]) for row, token in zip(rows, continuation, strict=True)]
        assert model.losses(prompt, continuation) == pytest.approx(wanted, abs=1e-3)
    mean, tokens = mean_loss(model, [([5, 6], [7, 8, 9]), ([7], [9])])
    assert tokens == 4
    assert mean == pytest.approx(
        (sum(model.losses([5, 6], [7, 8, 9])) + sum(model.losses([7], [9]))) / 4
    )


@pytest.mark.slow
def test_tokens_fed_in_pieces_give_the_same_logits(artifact: Path) -> None:
    model, prompt = PlainModel(artifact), PROMPTS[2]
    whole = model.feed(prompt)
    model.forget()
    for start in range(0, len(prompt), 7):
        pieces = model.feed(prompt[start : start + 7])
    assert np.allclose(whole, pieces, atol=1e-4)


@pytest.mark.slow
def test_the_context_is_not_outgrown(artifact: Path) -> None:
    model = PlainModel(artifact)
    room = model.context_tokens
    assert len(model.greedy([5] * (room - 3), 10)) <= 3
    model.forget()
    model.feed([5] * room)
    with pytest.raises(ValueError, match=rf"1 tokens after {room}"):
        model.feed([5])
    with pytest.raises(ValueError, match="0 tokens"):
        model.feed([])


@pytest.mark.slow
def test_the_command_scores_completions_and_compares(artifact: Path, tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    config = PlainConfig(artifact=artifact, cases=cases, prompts=3, max_new_tokens=12)
    row = compare_with_genai(config)
    assert row["same_as_genai"] == 1.0
    assert row["prompts"] == 3
    assert row["perplexity"] == pytest.approx(np.exp(row["nll"]))
    assert row["tokens"] > 30


@pytest.mark.slow
def test_what_is_no_export_or_cannot_run_here_is_refused(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no genai_config.json"):
        PlainModel(tmp_path)
    with pytest.raises(ValueError, match=r"no MadeUpProvider: .*CPUExecutionProvider"):
        PlainModel(artifact, providers=("MadeUpProvider",))
    shutil.copytree(artifact, tmp_path / "bare")
    (tmp_path / "bare" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="unfinished"):
        compare_with_genai(PlainConfig(artifact=tmp_path / "bare"))


def test_a_seam_the_tokenizer_joins_is_refused() -> None:
    assert split_completions([[1, 2]], [[1, 2, 3]]) == [([1, 2], [3])]
    for whole in ([1, 9], [1, 2]):
        with pytest.raises(ValueError, match="joins prompt and completion"):
            split_completions([[1, 2]], [whole])
