from __future__ import annotations

import json

import numpy as np
import onnxruntime_genai as og
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.batching import (
    REFERENCE,
    VARIANTS,
    BatchingConfig,
    highest_rate,
    main,
    make_facts,
    meets,
    summarise,
)
from benchmarks.batching_decoders import Prompts, open_decoder, with_all_logits
from benchmarks.batching_turn import Limits, Rows, Turn, pad_left
from benchmarks.batching_worker import Reply, Variant, open_workers, spread
from curt.engines.onnxruntime_genai import OrtEngine
from curt.engines.protocol import Request
from tests.compress.exports import export, make_untied_model, write_cases
from tests.micro import FACTS

CLOSE, EOS, WORD = 3, 2, 5
LENGTHS = ("。", FACTS[1] + FACTS[0], FACTS[0], FACTS[1], FACTS[0][:20])


def logits(*tokens):
    """Logits that prefer the tokens in this order."""
    out = np.zeros(8, np.float32)
    for rank, token in enumerate(tokens):
        out[token] = len(tokens) - rank
    return out


def turn(job=0, thinking=2, answer=2):
    return Turn(job, [1], Limits(thinking, answer, CLOSE, (EOS,)))


def complete(decoder, turns):
    """Texts in order, with as many at once as there is room for."""
    waiting, over = list(turns), []
    while waiting or decoder.busy:
        if waiting and decoder.room:
            take = decoder.room
            decoder.admit(waiting[:take])
            del waiting[:take]
        over += decoder.step()
    return sorted(over, key=lambda each: each.job)


# --- one request ------------------------------------------------------------------------------


def test_thinking_is_closed_at_its_limit_and_can_not_end_the_text():
    one = turn()
    assert one.take(logits(EOS, WORD)) == WORD
    assert one.take(logits(WORD)) == WORD
    assert one.take(logits(WORD)) == CLOSE
    assert one.take(logits(EOS)) is None
    assert (one.thinking, one.answer, one.over, one.tokens) == ([WORD, WORD], [], True, 3)


def test_an_answer_ends_at_its_limit():
    one = turn()
    given_tokens = [one.take(logits(t)) for t in (CLOSE, WORD, WORD)]
    assert given_tokens == [CLOSE, WORD, None]
    assert one.over


def test_without_thinking_the_prompt_closes_it():
    one = turn(thinking=0)
    assert (one.prompt, one.closed) == ([1, CLOSE], True)
    assert one.take(logits(EOS)) is None
    assert one.tokens == 0


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5))
def test_padding_stands_on_the_left_and_nothing_is_lost(prompts):
    ids = pad_left(prompts, 0)
    assert ids.shape == (len(prompts), max(map(len, prompts)))
    for row, prompt in zip(ids.tolist(), prompts, strict=True):
        assert row == [0] * (len(row) - len(prompt)) + prompt


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="without a token"):
        pad_left([[1], []], 0)


@given(st.lists(st.booleans(), max_size=8))
def test_gaps_in_a_batch_are_filled_from_behind(finished):
    rows = Rows(8)
    turns = [turn(job) for job in range(len(finished))]
    assert [rows.add(each) for each in turns] == list(range(len(finished)))
    contents = dict(enumerate(range(len(finished))))  # row to job, as a cache would hold it
    for each, over in zip(turns, finished, strict=True):
        each.over = over
    gone, moves = rows.remove_finished()
    for source, target in moves:
        contents[target] = contents[source]
    assert [each.job for each in gone] == [job for job, over in enumerate(finished) if over]
    assert [contents[row] for row in range(len(rows.turns))] == [t.job for t in rows.turns]
    assert not any(each.over for each in rows.turns)
    assert len(rows.turns) + len(gone) == len(finished)


# --- who gets what, and how it is judged ---------------------------------------------------------


@given(st.integers(0, 20), st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_nobody_gets_more_than_fits_and_nobody_waits_without_need(waiting, room):
    shares = spread(waiting, room)
    assert all(share <= space for share, space in zip(shares, room, strict=True))
    assert sum(shares) == min(waiting, sum(room))


def test_requests_are_spread_before_they_are_batched():
    assert spread(2, [4, 4]) == [1, 1]
    assert spread(3, [4, 1]) == [3, 0]


@pytest.mark.parametrize("name", [*VARIANTS, "rows-1x2x3-spin"])
def test_a_variant_is_named_as_it_is_read(name):
    assert Variant.parse(name).name == name


@pytest.mark.parametrize(
    "name", ["single-1x1x2", "rows-1x1", "rows-0x1x1", "other-1x1x1", "", "rows-1x1x1-x"]
)
def test_what_is_no_variant_is_refused(name):
    with pytest.raises(ValueError, match="KIND-WORKERSxTHREADSxBATCH"):
        Variant.parse(name)


def test_who_was_given_up_is_slower_than_any_answer():
    answers = [Reply(job, 10.0, 5, "") for job in range(98)] + [Reply(98, 500.0, 5, "")]
    row = summarise([*answers, Reply(99, None, 0, "")], 400)
    assert (row["arrived"], row["given_up"], row["misses"]) == (100, 1, 2)
    assert row["latency_ms"] == {"p50": 10.0, "p95": 10.0, "p99": None, "p999": None, "max": None}
    assert row["mean_tokens"] == 5
    assert not meets(row, 400)
    assert not meets(summarise(answers, 400), 400)
    assert meets(summarise(answers[:98], 400), 400)
    assert not meets(summarise([Reply(0, None, 0, "")], 400), 400)


def test_a_rate_counts_only_if_all_below_it_keep_the_deadline():
    def row(rate, p99):
        return {"variant": "a", "rate_per_s": rate, "latency_ms": {"p99": p99}}

    rows = [row(20, 390.0), row(10, 100.0), row(80, 50.0), row(40, None)]
    assert highest_rate(rows, "a", 400) == 20
    assert highest_rate(rows, "b", 400) == 0


def test_facts_are_unique_and_of_one_length():
    facts = make_facts(FACTS, 50, 300, run=1)
    assert len(set(facts)) == 50
    assert {len(fact) for fact in facts} == {300}


# --- the library ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(micro_model, tmp_path_factory):
    base = tmp_path_factory.mktemp("batching")
    return export(make_untied_model(base / "untied", micro_model), base / "ort", picks=False)


@pytest.fixture(scope="module")
def all_logits(folder):
    out = folder.parent / "all-logits"
    with_all_logits(folder, out)
    return out


def texts_of(folder, all_logits, kind, batch, thinking=6, answer=9):
    prompts = Prompts(folder, thinking, answer)
    decoder = open_decoder(
        kind, folder, prompts, all_logits=all_logits, batch=batch, threads=1, spin=False
    )
    turns = [prompts.turn(job, fact) for job, fact in enumerate(LENGTHS)]
    assert len({len(each.prompt) for each in turns}) > 2, "rows of one length prove nothing"
    return [prompts.text(each) for each in complete(decoder, turns)]


@pytest.mark.slow
@pytest.mark.parametrize("thinking", [0, 6])
def test_rows_of_different_lengths_write_what_the_engine_writes(folder, all_logits, thinking):
    engine = OrtEngine(folder)
    requests = [Request(fact, thinking, thinking, answer_limit=9) for fact in LENGTHS]
    expected = [generation.text for generation in engine.generate(requests)]
    assert len(set(expected)) > 1
    for kind, batch in (("single", 1), ("rows", 1), ("rows", 2), ("rows", 3), ("padded", 1)):
        assert texts_of(folder, all_logits, kind, batch, thinking) == expected, (kind, batch)


@pytest.mark.slow
def test_the_librarys_engine_writes_the_same_in_a_batch_as_alone(folder, all_logits):
    alone = texts_of(folder, all_logits, "engine", 1)
    assert texts_of(folder, all_logits, "engine", 3) == alone
    assert len(set(alone)) > 1


@pytest.mark.slow
def test_padding_is_not_masked_by_the_batched_generator(folder):
    """Should this fail, the library has learnt it: the padded variants are then worth a look."""
    model = og.Model(str(folder))

    def first_logits(*rows):
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=64, batch_size=len(rows))
        generator = og.Generator(model, params)
        generator.append_tokens(pad_left(rows, 0))
        return np.array(generator.get_logits())[-1, -1], generator.get_input("attention_mask")

    short, long, other = [7, 8, 9], [4, 5, 6, 7, 8, 9, 10, 11], [9, 8, 7]
    alone, _ = first_logits(other, short)
    padded, mask = first_logits(long, short)
    assert mask.all()
    assert np.abs(alone - padded).max() > 1e-3


@pytest.mark.slow
def test_all_variants_are_measured_and_drawn(folder, tmp_path):
    cases = write_cases(tmp_path / "cases.jsonl")
    out = tmp_path / "batching.json"
    variants = ["padded-1x1x2", "engine-1x1x2", "rows-2x1x2"]
    sizes = {"seconds": 0.5, "rates": [10], "thinking": 4, "answer": 8, "saturated": 4}
    arguments = [f"--{name}={value}" for name, value in (sizes | {"checked": 4}).items()]
    main(
        [
            f"--model={folder}",
            f"--cases={cases}",
            f"--variants={json.dumps(variants)}",
            f"--out={out}",
            *arguments,
        ]
    )
    (result,) = json.loads(out.read_text()).values()
    assert list(result["summary"]) == [REFERENCE, *variants]
    assert result["summary"]["rows-2x1x2"]["same_texts"] == 4
    assert {row["variant"] for row in result["rows"]} == {REFERENCE, *variants}
    assert all(row["arrived"] and not row["given_up"] for row in result["rows"])
    assert "案" not in out.read_text()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_that_can_not_load_says_why(tmp_path):
    variant = Variant.parse("rows-1x1x1")
    with (
        pytest.raises(RuntimeError, match="ArtifactError"),
        open_workers(variant, tmp_path, tmp_path, 4, 8),
    ):
        pass


def test_the_settings_know_their_own_variants():
    assert [Variant.parse(name).name for name in BatchingConfig().variants] == VARIANTS
