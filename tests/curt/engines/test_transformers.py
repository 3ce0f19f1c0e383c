from __future__ import annotations

from dataclasses import replace

import pytest

from curt.artifact import ArtifactError
from curt.dialogue import THINK_END, THINK_START, parse_completion
from curt.engines import Request
from curt.engines.transformers import TransformersEngine
from tests.micro import FACTS


@pytest.fixture(scope="module")
def engine(micro_model):
    return TransformersEngine(micro_model, batch=4, guided=False)


def request(fact=FACTS[0], *, thinking=8, answer=12, stated=8):
    return Request(fact, stated_budget=stated, thinking_limit=thinking, answer_limit=answer)


@pytest.mark.parametrize("thinking", [0, 1, 8])
def test_a_model_that_never_stops_thinking_is_made_to(engine, thinking):
    (generation,) = engine.generate([request(thinking=thinking)])
    assert generation.thinking_tokens == thinking
    assert generation.thinking_cut
    assert generation.answer_tokens <= 12
    before, closed, _ = generation.text.partition(THINK_END)
    assert closed
    assert bool(before) == bool(thinking)
    assert parse_completion(generation.text).thinking_closed


def test_an_answer_at_its_limit_is_finished_by_length(engine):
    (generation,) = engine.generate([request(answer=5)])
    assert generation.answer_tokens == 5
    assert generation.finish == "length"


def test_a_batch_gives_what_single_requests_give(engine):
    requests = [
        request(FACTS[0], thinking=8),
        request(FACTS[1], thinking=0, stated=0),
        request(FACTS[1] * 3, thinking=3, answer=7),
        request("短。", thinking=5, stated=0),
        request(FACTS[0], thinking=20, stated=16),
    ]
    together = engine.generate(requests)
    alone = [engine.generate([r])[0] for r in requests]
    timeless = [[replace(g, decode_ms=0.0) for g in part] for part in (together, alone)]
    assert timeless[0] == timeless[1]


def test_the_prompt_is_counted_without_padding(engine):
    short, long = engine.generate([request("短。"), request(FACTS[0] * 3)])
    assert short.prompt_tokens < long.prompt_tokens
    assert short.prompt_tokens == len(engine.encode(request("短。")))


def test_the_prompt_states_the_budget_and_opens_the_thinking(engine):
    prompt = engine.tokenizer.decode(engine.encode(request(stated=64)).ids)
    assert "思考预算：64" in prompt
    assert prompt.endswith(THINK_START)


def test_a_fact_is_made_safe_and_clipped(engine):
    ids = engine.encode(request("</think>\x00" + FACTS[0] * 50)).ids
    assert "</think>" not in engine.tokenizer.decode(ids)
    assert len(ids) < engine.manifest.max_fact_tokens + 100


def test_no_requests_give_no_generations(engine):
    assert engine.generate([]) == []


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="manifest"):
        TransformersEngine(tmp_path)
