from __future__ import annotations

import itertools
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from curt.artifact import ArtifactError
from curt.dialogue import THINK_END, THINK_START
from curt.engines.onnx.engine import (
    CHUNK_TOKENS,
    LAST_CHUNK_TOKENS,
    OrtEngine,
    split_prompt,
)
from curt.engines.protocol import Generation, Request
from curt.engines.tokenizer import PromptTokenizer
from tests.compress.onnx.exports import export, make_untied_model, tell_likeliest
from tests.micro import FACTS


@pytest.fixture(scope="module")
def random_parent(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_untied_model(tmp_path_factory.mktemp("random") / "model", micro_model)


@pytest.fixture(scope="module")
def random_artifact(random_parent: Path) -> Path:
    return export(random_parent, random_parent.parent / "ort")


@pytest.fixture(scope="module")
def random_engine(random_artifact: Path) -> OrtEngine:
    return OrtEngine(random_artifact, guided=False)


@pytest.fixture(scope="module")
def scripted_engine(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> OrtEngine:
    """Thinks "AB", closes the thinking, answers "CD" and ends its turn."""
    folder = tmp_path_factory.mktemp("scripted")
    model = make_untied_model(
        folder / "model", micro_model, chain=chain(micro_model, f"{THINK_START}AB{THINK_END}CD")
    )
    return OrtEngine(export(model, folder / "ort"), guided=False)


def chain(micro_model: Path, text: str) -> dict[int, int]:
    ids = PromptTokenizer(micro_model).encode(f"{text}<|im_end|>")
    return dict(itertools.pairwise(ids))


def run(engine: OrtEngine, thinking_limit: int, **kwargs: float) -> Generation:
    return engine.generate([Request(FACTS[0], 32, thinking_limit, **kwargs)])[0]  # type: ignore[arg-type]


def timeless(generation: Generation) -> Generation:
    return replace(generation, prefill_ms=0.0, decode_ms=0.0)


def greedy_tokens(parent: Path, prompt: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32).eval()
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count
        )
    return whole[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_a_model_that_closes_its_thinking_is_left_alone(scripted_engine: OrtEngine) -> None:
    out = run(scripted_engine, 10)
    assert out.text == f"AB{THINK_END}CD"
    assert (out.thinking_tokens, out.answer_tokens) == (2, 2)
    assert (out.thinking_cut, out.finish) == (False, "stop")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "text", "cut"),
    [(2, f"AB{THINK_END}CD", False), (1, f"A{THINK_END}CD", True), (0, f"{THINK_END}CD", True)],
)
def test_thinking_ends_at_its_limit(
    scripted_engine: OrtEngine, limit: int, text: str, cut: bool
) -> None:
    out = run(scripted_engine, limit)
    assert (out.text, out.thinking_tokens, out.thinking_cut) == (text, limit, cut)
    assert out.finish == "stop"


@pytest.mark.slow
def test_an_answer_ends_at_its_limit(scripted_engine: OrtEngine) -> None:
    out = run(scripted_engine, 10, answer_limit=1)
    assert (out.text, out.answer_tokens, out.finish) == (f"AB{THINK_END}C", 1, "length")


@pytest.mark.slow
def test_a_stream_tells_what_the_generation_holds(scripted_engine: OrtEngine) -> None:
    steps = list(scripted_engine.stream(Request(FACTS[0], 32, 10)))
    assert [s.phase for s in steps if s.phase != "prefill"] == [
        "thinking", "thinking", "close", "answer", "answer", "end",
    ]  # fmt: skip
    assert steps[-1].generation
    assert "".join(s.text for s in steps) == steps[-1].generation.text


@pytest.mark.slow
def test_a_stream_without_text_ends_in_the_same_generation(scripted_engine: OrtEngine) -> None:
    request = Request(FACTS[0], 32, 10)
    told, untold = (
        list(scripted_engine.stream(replace(request, tell_text=tell))) for tell in (True, False)
    )
    assert [s.phase for s in untold] == [s.phase for s in told]
    assert {s.text for s in untold if s.phase in ("thinking", "answer")} == {""}
    assert told[-1].generation
    assert untold[-1].generation
    assert untold[-1].generation.text == told[-1].generation.text


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1, 10])
def test_answer_passes_are_those_after_the_end_of_thinking(clerk: Path, limit: int) -> None:
    out = run(OrtEngine(clerk, speculate=False, guided=False), limit)
    assert out.decode_passes is not None
    assert out.answer_passes is not None
    # each token is read by a pass of its own, but for the last, which nothing follows
    assert out.answer_passes in (out.answer_tokens - 1, out.answer_tokens)
    assert out.decode_passes - out.answer_passes == out.thinking_tokens + (limit > 0)


@given(count=st.integers(1, 400))
def test_a_prompt_is_cut_where_it_can_be_stopped(count: int) -> None:
    chunks = split_prompt(list(range(count)))
    assert [i for chunk in chunks for i in chunk] == list(range(count))
    assert all(len(chunk) == CHUNK_TOKENS for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= LAST_CHUNK_TOKENS


@pytest.mark.slow
def test_a_second_stream_is_refused_until_the_first_is_closed(scripted_engine: OrtEngine) -> None:
    first = scripted_engine.stream(Request(FACTS[0], 32, 10))
    next(first)
    with pytest.raises(RuntimeError, match="busy"):
        run(scripted_engine, 10)
    first.close()  # type: ignore[attr-defined]
    assert run(scripted_engine, 10).finish == "stop"


@pytest.mark.slow
def test_greedy_tokens_are_those_of_transformers(
    random_parent: Path, random_engine: OrtEngine
) -> None:
    prompt = random_engine.encode(Request(FACTS[0], 32, 40)).ids
    expected = greedy_tokens(random_parent, prompt, 40)
    assert len(set(expected)) > 10  # a parent that repeats itself would prove little
    out = run(random_engine, 40)
    assert out.text.startswith(random_engine.tokenizer.decode(expected))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1, 8])
def test_what_follows_a_forced_close_is_what_the_parent_would_write(
    random_parent: Path, random_engine: OrtEngine, limit: int
) -> None:
    prompt = random_engine.encode(Request(FACTS[0], 32, limit)).ids
    thinking = greedy_tokens(random_parent, prompt, limit) if limit else []
    close = random_engine.tokenizer.encode(THINK_END)
    answer = greedy_tokens(random_parent, prompt + thinking + close, 20)
    out = run(random_engine, limit, answer_limit=20)
    decode = random_engine.tokenizer.decode
    assert out.text == decode(thinking) + THINK_END + decode(answer)
    assert (out.thinking_tokens, out.answer_tokens, out.thinking_cut) == (limit, 20, True)


@pytest.mark.slow
def test_a_result_does_not_depend_on_the_requests_before_it(random_engine: OrtEngine) -> None:
    request, other = Request(FACTS[0], 32, 16), Request(FACTS[1] * 3, 0, 4)
    first, _, again = random_engine.generate([request, other, request])
    assert first.text == again.text


@pytest.mark.slow
def test_a_request_beyond_the_prepared_room_gets_its_own(
    random_parent: Path, random_engine: OrtEngine
) -> None:
    prompt = random_engine.encode(Request(FACTS[0], 32, 300)).ids
    expected = greedy_tokens(random_parent, prompt, 300)
    out = run(random_engine, 300)
    assert out.thinking_tokens == 300
    assert out.text.startswith(random_engine.tokenizer.decode(expected) + THINK_END)


@pytest.mark.slow
def test_thinking_shrinks_to_what_the_context_holds(random_engine: OrtEngine) -> None:
    out = run(random_engine, 5_000)
    assert out.prompt_tokens + out.thinking_tokens + 1 + 64 == 512
    assert out.answer_tokens == 64
    with pytest.raises(ValueError, match="context of 512"):
        run(random_engine, 0, answer_limit=500)
    with pytest.raises(ValueError, match="-1 thinking"):
        run(random_engine, -1)


@pytest.fixture(scope="module")
def clerk(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that tells the likeliest tokens and writes what its tokens are chained to."""
    folder = tmp_path_factory.mktemp("clerk")
    links = chain(micro_model, f"{THINK_START}A{THINK_END}罪名：盗窃")
    links |= chain(micro_model, "窃\n法条：")
    model = make_untied_model(folder / "model", micro_model, chain=links)
    return tell_likeliest(export(model, folder / "plain"), folder / "ort")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1, 10])
@pytest.mark.parametrize("answer_limit", [1, 2, 7, 64])
def test_guesses_change_the_passes_and_nothing_else(
    clerk: Path, limit: int, answer_limit: int
) -> None:
    plain = run(OrtEngine(clerk, speculate=False, guided=False), limit, answer_limit=answer_limit)
    quick = run(OrtEngine(clerk, guided=False), limit, answer_limit=answer_limit)
    assert (quick.text, quick.thinking_tokens, quick.answer_tokens, quick.finish) == (
        plain.text, plain.thinking_tokens, plain.answer_tokens, plain.finish,
    )  # fmt: skip
    assert quick.thinking_cut == plain.thinking_cut
    assert quick.decode_passes is not None
    assert plain.decode_passes is not None
    assert quick.decode_passes <= plain.decode_passes
    if answer_limit == 64:
        assert quick.decode_passes < plain.decode_passes


@pytest.mark.slow
def test_wrong_guesses_leave_no_trace(random_artifact: Path, tmp_path: Path) -> None:
    tell_likeliest(random_artifact, tmp_path / "telling")
    plain, quick = (
        OrtEngine(random_artifact, guided=False),
        OrtEngine(tmp_path / "telling", guided=False),
    )
    for limit in (0, 1, 8, 40):
        assert run(quick, limit).text == run(plain, limit).text


@pytest.mark.slow
def test_of_a_long_fact_an_excerpt_is_read_and_the_rest_counted(random_engine: OrtEngine) -> None:
    out = run(random_engine, 4)
    long = random_engine.generate([Request(FACTS[0] * 50, 32, 4)])[0]
    assert out.prompt_tokens < long.prompt_tokens < 200 + 60 + 20
    assert not out.left_out
    assert long.left_out.sentences > 40
    assert 40 * len(FACTS[0]) < long.left_out.characters < 50 * len(FACTS[0])


@pytest.mark.slow
def test_a_deadline_in_the_past_finishes_at_once(random_engine: OrtEngine) -> None:
    out = run(random_engine, 8, deadline_s=time.monotonic() - 1)
    assert (out.finish, out.text, out.thinking_tokens) == ("deadline", "", 0)


@pytest.mark.slow
def test_a_deadline_stops_the_decoding_where_it_is(random_engine: OrtEngine) -> None:
    out = run(random_engine, 330, deadline_s=time.monotonic() + 0.006)
    assert out.finish == "deadline"
    assert out.thinking_tokens < 330
    assert THINK_END not in out.text


@pytest.mark.slow
def test_an_altered_weight_file_is_refused(random_artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(random_artifact, folder)
    weights = folder / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match="not the file that was made"):
        OrtEngine(folder)


def test_other_formats_and_bad_settings_are_refused(micro_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds hf"):
        OrtEngine(micro_model)
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        OrtEngine(tmp_path)
    with pytest.raises(ValueError, match="0 threads"):
        OrtEngine(micro_model, threads=0)
