from __future__ import annotations

from collections import Counter

import pytest

from loadtest._cases import mix_cases, parse_bounds, parse_mix

FACTS = ["短" * n for n in range(10, 40)]


def test_lengths_come_as_they_are_weighed() -> None:
    mix = mix_cases(FACTS, 0, weights=parse_mix("short:50,medium:40,long:10"))
    seen = Counter(mix.request_of(index, 1, 400).length for index in range(4000))
    assert seen["short"] == pytest.approx(2000, rel=0.1)
    assert seen["medium"] == pytest.approx(1600, rel=0.1)
    assert seen["long"] == pytest.approx(400, rel=0.2)


def test_without_weights_lengths_come_as_found() -> None:
    mix = mix_cases(FACTS, 0, bounds_chars=(12, 36))
    seen = Counter(mix.request_of(index, 1, 400).length for index in range(3000))
    assert seen["medium"] == pytest.approx(2400, rel=0.1)
    assert mix.describe()["cases"] == {"short": 3, "medium": 24, "long": 3}


def test_a_bucket_holds_what_its_bounds_say() -> None:
    mix = mix_cases(FACTS, 0, bounds_chars=(15, 30))
    assert max(map(len, mix.facts["short"])) == 15
    assert (min(map(len, mix.facts["medium"])), max(map(len, mix.facts["medium"]))) == (16, 30)
    assert min(map(len, mix.facts["long"])) == 31


def test_every_request_is_new_and_repeats_with_its_seed() -> None:
    mix, again, other = (mix_cases(FACTS, seed) for seed in (1, 1, 2))
    requests = [mix.request_of(index, run, 400) for run in (1, 2) for index in range(200)]
    assert len({sent.payload["fact"] for sent in requests}) == 400
    assert len({sent.request_id for sent in requests}) == 400
    assert [again.request_of(index, 1, 400) for index in range(200)] == requests[:200]
    assert [other.request_of(index, 1, 400) for index in range(200)] != requests[:200]
    assert {sent.deadline_ms for sent in requests} == {400}


def test_a_length_without_a_case_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"long cases.*--length-bounds"):
        mix_cases(FACTS, 0, weights={"long": 1.0}, bounds_chars=(20, 90))
    with pytest.raises(ValueError, match="no cases to mix"):
        mix_cases([], 0)


@pytest.mark.parametrize("text", ["short", "short:x", "tiny:3", "short:1,short:2", "short:-1"])
def test_an_unreadable_mix_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="use for example short:50"):
        parse_mix(text)


def test_a_mix_of_nothing_is_refused_and_none_is_none() -> None:
    with pytest.raises(ValueError, match="brings no cases"):
        parse_mix("short:0")
    assert parse_mix("") == {}
    assert parse_mix("short:2,long:0") == {"short": 2.0}


def test_bounds_are_two_rising_lengths() -> None:
    assert parse_bounds("") is None
    assert parse_bounds("100,300") == (100, 300)
    for text in ("100", "300,100", "0,5", "a,b", "1,2,3"):
        with pytest.raises(ValueError, match="two rising lengths"):
            parse_bounds(text)
