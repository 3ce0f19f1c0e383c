"""Caps on the reasoning are kept, and nobody gets an answer that was cut shorter than their own."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curt.dialogue import BUDGET_LEVELS
from serve.answering.cache_policy import ServedPolicy
from serve.served import Served
from tests.serve.answering.test_cache import GOOD, Counted, ask, key, make_cache, served
from tests.serve.fake_pool import generation


def test_a_cap_is_kept_even_where_a_longer_answer_is_at_hand() -> None:
    async def scenario() -> None:
        cache = make_cache()
        await ask(cache, Counted(served(64, thinking_tokens=20)), budget=64)
        for most, source in ((None, "hit"), (20, "hit"), (19, "miss"), (0, "miss")):
            answer = await cache.get_or_make(
                key(), budget_tokens=min(64, most if most is not None else 64), deadline_s=1e9,
                most_tokens=most, make=Counted(served(0, thinking_cut=True, thinking_tokens=0)),
            )  # fmt: skip
            assert (most, answer.source) == (most, source)
            assert most is None or answer.value.generation.thinking_tokens <= most

    asyncio.run(scenario())


def test_an_answer_in_the_making_that_got_less_is_not_shared_with_who_gets_more() -> None:
    async def scenario() -> None:
        cache = make_cache()
        short = Counted(served(16, thinking_cut=True), pause_s=0.02)  # the queue took its time
        long = Counted(served(48), pause_s=0.02)
        leader = asyncio.create_task(ask(cache, short, budget=48, deadline_s=1e8))
        await asyncio.sleep(0)
        follower = await ask(cache, long, budget=48, deadline_s=1e9)
        assert (await leader).value.thinking_allowed == 16
        assert (follower.source, follower.value.thinking_allowed) == ("miss", 48)
        assert (short.calls, long.calls) == (1, 1)

    asyncio.run(scenario())


def test_an_answer_in_the_making_that_thinks_too_long_is_not_shared_with_a_cap() -> None:
    async def scenario() -> None:
        cache = make_cache()
        whole, capped = Counted(served(16, thinking_tokens=12), 0.02), Counted(served(8), 0.02)
        leader = asyncio.create_task(ask(cache, whole, budget=8))
        await asyncio.sleep(0)
        answer = await cache.get_or_make(
            key(), budget_tokens=8, deadline_s=1e9, most_tokens=8, make=capped
        )
        assert (await leader).value.generation.thinking_tokens == 12
        assert answer.value.generation.thinking_tokens <= 8

    asyncio.run(scenario())


@hypothesis_settings(deadline=None)
@given(
    allowed=st.integers(0, 300), used=st.integers(0, 300), cut=st.booleans(),
    budget=st.integers(0, 300), most=st.none() | st.integers(0, 300),
)  # fmt: skip
def test_what_suits_keeps_the_cap_and_was_not_cut_short(
    allowed: int, used: int, cut: bool, budget: int, most: int | None
) -> None:
    stated = max(each for each in BUDGET_LEVELS if each <= allowed)
    value = Served(generation(GOOD, thinking_tokens=used, thinking_cut=cut), allowed, stated,
                   False, 0.0)  # fmt: skip
    if ServedPolicy().suits(value, budget, most):
        assert most is None or used <= most
        assert allowed >= budget or not cut
