from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curt.artifact import ArtifactError
from curt.dialogue import THINK_END, THINK_START, parse_completion
from curt.engines import Request
from curt.engines.pytorch.engine import ThinkingLimit, TransformersEngine, find_sequence
from tests.micro import FACTS

EOS = 9


@pytest.fixture(scope="module")
def engine(micro_model):
    return TransformersEngine(micro_model, batch=4)


def request(fact=FACTS[0], *, thinking=8, answer=12, stated=8):
    return Request(fact, stated_budget=stated, thinking_limit=thinking, answer_limit=answer)


def follow(limit: ThinkingLimit, wanted: list[int], steps: int) -> list[int]:
    """What one row writes that prefers `wanted`, then token 1, under a limit."""
    ids = [0] * limit.prompt_tokens
    written: list[int] = []
    for step in range(steps):
        scores = torch.zeros(1, 10)
        scores[0, wanted[step] if step < len(wanted) else 1] = 1.0
        token = int(limit(torch.tensor([ids + written]), scores).argmax())
        written.append(token)
        if token == EOS:
            break
    return written


def limited(thinking: int, answer: int, end_ids=(5,), prompt_tokens=3) -> ThinkingLimit:
    return ThinkingLimit(prompt_tokens, [thinking], [answer], end_ids, [EOS])


@pytest.mark.parametrize("thinking", [0, 1, 8])
@pytest.mark.parametrize("end_ids", [(5,), (5, 6, 7)])
def test_thinking_ends_at_the_limit(thinking, end_ids):
    written = follow(limited(thinking, 4, end_ids), [2] * 40, 40)
    assert written == [2] * thinking + list(end_ids) + [2] * 4 + [EOS]


def test_thinking_that_ends_by_itself_is_left_alone():
    written = follow(limited(8, 4), [2, 5, 3, 4, EOS], 40)
    assert written == [2, 5, 3, 4, EOS]


def test_an_end_half_written_at_the_limit_is_written_whole():
    # end of thinking is 5 6; the model wrote a 5 just before the limit and then hesitates
    written = follow(limited(2, 2, (5, 6)), [2, 5, 3, 3], 40)
    assert find_sequence(written, (5, 6)) is not None
    assert written[-1] == EOS


@given(
    wanted=st.lists(st.integers(1, 8), max_size=30),
    thinking=st.integers(0, 12),
    answer=st.integers(1, 6),
    end_ids=st.sampled_from([(5,), (5, 6), (5, 5, 6)]),
)
def test_limits_hold_whatever_the_model_prefers(wanted, thinking, answer, end_ids):
    written = follow(limited(thinking, answer, end_ids), wanted, 60)
    end = find_sequence(written, end_ids)
    assert end is not None
    assert end <= thinking
    assert len(written) - end - len(end_ids) - 1 <= answer
    assert written[-1] == EOS


def test_a_turn_cannot_end_before_its_thinking_does():
    written = follow(limited(3, 4), [2, EOS, EOS, EOS, 3, EOS], 40)
    assert written.index(5) <= 3
    assert EOS not in written[: written.index(5)]
    assert written[-1] == EOS


def test_only_thinking_that_the_limit_closed_counts_as_cut():
    cut, by_itself = limited(3, 4), limited(3, 4)
    follow(cut, [2] * 20, 20)
    follow(by_itself, [2, 2, 2, 5, 3, 3, 3, 3], 20)
    answered = limited(6, 2)
    follow(answered, [2, 5, 3, 3, 3, 3, 3], 20)  # the answer's limit falls on the thinking's
    assert (cut.cut, by_itself.cut, answered.cut) == ([True], [False], [False])


def test_rows_of_a_batch_keep_their_own_limits():
    limit = ThinkingLimit(0, [1, 3], [9, 9], [5], [EOS])
    scores = torch.zeros(2, 10)
    forced = limit(torch.tensor([[2], [2]]), scores).tolist()
    assert forced[0].index(0.0) == 5
    assert forced[0].count(-torch.inf) == 9
    assert forced[1] == [0.0] * EOS + [-torch.inf] + [0.0] * (9 - EOS)
    assert scores.sum() == 0  # the given scores are left as they were


@pytest.mark.parametrize(
    ("ids", "wanted", "index"),
    [
        ([], [1], None),
        ([1, 2, 3], [2], 1),
        ([1, 2, 3], [2, 3], 1),
        ([1, 2, 3], [3, 4], None),
        ([1, 1, 2, 1, 2], [1, 2], 1),
        ([1], [1, 2], None),
    ],
)
def test_finding_a_sequence(ids, wanted, index):
    assert find_sequence(ids, wanted) == index


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
    ids = engine.tokenizer(engine.render(request("短。")), add_special_tokens=False)["input_ids"]
    assert short.prompt_tokens == len(ids)


def test_the_prompt_states_the_budget_and_opens_the_thinking(engine):
    prompt = engine.render(request(stated=64))
    assert "思考预算：64" in prompt
    assert prompt.endswith(THINK_START)


def test_a_fact_is_made_safe_and_clipped(engine):
    prompt = engine.render(request("</think>\x00" + FACTS[0] * 50))
    assert "</think>" not in prompt
    ids = engine.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert len(ids) < engine.manifest.max_fact_tokens + 100


def test_no_requests_give_no_generations(engine):
    assert engine.generate([]) == []


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="manifest"):
        TransformersEngine(tmp_path)
