"""What may be served again, who waits for whom, and a Redis that must never be in the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, cast

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from curt.dialogue import BUDGET_LEVELS, THINK_END, LeftOut, render_answer
from serve.answering.cache import (
    ENTRY_OVERHEAD_BYTES,
    PREFIX,
    CachedAnswer,
    CacheKey,
    CacheMetrics,
    ResultCache,
    cache_key,
    read_served,
    suits,
    write_served,
)
from serve.api.reply import build_reply
from serve.api.schemas import PredictReply, PredictRequest
from serve.edge.context import RequestContext
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.redis_link import BUDGET_S, STRAGGLER_S, RedisLink, RedisMissError
from serve.served import Identity, Served
from serve.settings import Settings
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool, generation
from tests.serve.redis_server import PATIENT, free_port, linked, running_redis

FACT = "2020年3月5日，被告人张某在某市某超市窃取他人现金8000元。"
GOOD = f"窃取8000元{THINK_END}{render_answer(VERDICT)}"


def assert_quick(times_s: list[float]) -> None:
    """Usually within the budget; a busy machine may hold up one or another, but none waits."""
    assert sorted(times_s)[len(times_s) // 2] < BUDGET_S + 0.005
    assert max(times_s) < STRAGGLER_S


def key(fact: str = FACT, **changes: Any) -> CacheKey:
    asked: dict[str, Any] = {"manifest_sha256": "m", "prompt_version": "v"}
    return cache_key(fact, **(asked | changes))


def served(budget: int = 48, text: str = GOOD, **changes: Any) -> Served:
    return Served(generation(text, **changes), budget, budget, 3.0)


class Counted:
    """Makes a value after a pause, and counts how often."""

    def __init__(self, value: Served | Exception, pause_s: float = 0.0) -> None:
        self.value, self.pause_s, self.calls, self.cancelled = value, pause_s, 0, 0

    async def __call__(self) -> Served:
        self.calls += 1
        try:
            await asyncio.sleep(self.pause_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def make_cache(redis: RedisLink | None = None, **changes: Any) -> ResultCache:
    values: dict[str, Any] = {"max_thinking_tokens": 64, "max_bytes": 1 << 20, "ttl_s": 60.0}
    metrics = CacheMetrics(CollectorRegistry())
    return ResultCache(metrics, redis=redis, **(values | changes))


def counted(cache: ResultCache, name: str, **labels: str) -> float:
    registry = cache._metrics.requests, cache._metrics.errors
    metric = dict(zip(("requests", "errors"), registry, strict=True))[name]
    return metric.labels(**labels)._value.get()


async def ask(
    cache: ResultCache,
    make: Callable[[], Awaitable[Served]],
    *,
    asked: CacheKey | None = None,
    budget: int = 48,
    deadline_s: float = 1e9,
) -> CachedAnswer:
    return await cache.get_or_make(
        asked or key(), budget_tokens=budget, deadline_s=deadline_s, make=make
    )


# Keys


def test_facts_that_read_the_same_share_a_key_and_everything_else_parts_them() -> None:
    assert key(f"  {FACT}\n") == key()
    changes: list[dict[str, Any]] = [
        {"fact": FACT + "。"}, {"manifest_sha256": "n"}, {"prompt_version": "w"}, {"secret": b"x"},
    ]  # fmt: skip
    names = [key(**change).name for change in changes]
    assert len({*names, key().name}) == len(changes) + 1


def test_a_key_shows_neither_fact_nor_seal() -> None:
    one = key(secret=b"s" * 32)
    assert "张某" not in repr(one)
    assert "seal" not in repr(one)
    assert one.seal.hex() not in one.name


@hypothesis_settings(deadline=None)
@given(one=st.tuples(st.text(), st.text()), other=st.tuples(st.text(), st.text()))
def test_parts_of_a_key_never_run_into_each_other(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    keys = [key(manifest_sha256=m, prompt_version=version) for m, version in (one, other)]
    assert (keys[0] == keys[1]) is (one == other)


# What is kept


def test_an_answer_is_given_again_at_no_cost_of_time() -> None:
    async def scenario() -> None:
        cache, make = make_cache(), Counted(served())
        first, again = await ask(cache, make), await ask(cache, make)
        assert (first.source, again.source, make.calls) == ("miss", "hit", 1)
        assert again.value.generation.text == GOOD
        assert again.value.generation.decode_ms == again.value.queue_ms == 0.0
        assert first.value.generation.decode_ms == 20.0
        assert counted(cache, "requests", source="hit") == 1

    asyncio.run(scenario())


def test_more_thinking_serves_a_tighter_deadline_and_never_the_reverse() -> None:
    async def scenario() -> None:
        cache = make_cache()
        await ask(cache, Counted(served(32)), budget=32)
        for budget, source in ((0, "hit"), (31, "hit"), (47, "hit"), (48, "miss")):
            answer = await ask(cache, Counted(served(32, "别的")), budget=budget)
            assert (budget, answer.source) == (budget, source)
        await ask(cache, Counted(served(64)), budget=64)
        best = await ask(cache, Counted(served(0)), budget=0)
        assert best.value.stated_budget == 64

    asyncio.run(scenario())


def test_an_answer_made_with_less_than_was_hoped_is_filed_by_what_it_got() -> None:
    async def scenario() -> None:
        cache = make_cache()
        await ask(cache, Counted(served(16)), budget=64)
        assert (await ask(cache, Counted(served(64)), budget=24)).source == "miss"
        assert (await ask(cache, Counted(served(64)), budget=16)).source == "hit"

    asyncio.run(scenario())


@hypothesis_settings(deadline=None)
@given(made=st.integers(0, 200), asked=st.integers(-5, 200), top=st.integers(0, 200))
def test_a_hit_never_had_less_thinking_than_the_request_may_have(
    made: int, asked: int, top: int
) -> None:
    level = max(each for each in BUDGET_LEVELS if each <= min(made, top))

    async def scenario() -> None:
        cache = make_cache(max_thinking_tokens=top)
        await ask(cache, Counted(served(level)), budget=made)
        answer = await ask(cache, Counted(served(level)), budget=asked)
        wanted = max(each for each in BUDGET_LEVELS if each <= min(max(asked, 0), top))
        assert (answer.source == "hit") is (level >= wanted)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "value",
    [
        served(finish="deadline"),
        served(finish="length"),
        served(thinking_cut=True),
        served(text="没有结束的思考"),
        served(text=f"窃取{THINK_END}罪名：盗窃"),
        replace(served(), unserved="deadline"),
    ],
    ids=["deadline", "length", "cut", "open thinking", "unreadable", "unserved"],
)
def test_degraded_and_cut_answers_are_never_kept(value: Served) -> None:
    async def scenario() -> None:
        cache, make = make_cache(), Counted(value)
        await ask(cache, make)
        assert (await ask(cache, make)).source == "miss"
        assert make.calls == 2
        assert len(cache._kept) == 0

    asyncio.run(scenario())


def test_every_field_of_a_served_request_is_kept_or_known_not_to_matter() -> None:
    kept = {
        "generation",
        "thinking_allowed",
        "stated_budget",
        "usual_thinking",
        "allowed_alone",
    }
    left_out = {"queue_ms", "fallback", "unserved", "findings", "overruled"}
    assert {each.name for each in fields(Served)} == kept | left_out
    made = generation(
        GOOD,
        prefill_ms=0.0,
        decode_ms=0.0,
        left_out=LeftOut(9, 1),
        candidates="参考：甲9；264；8个月",
    )
    value = Served(made, 50, 48, 0.0)
    assert read_served(write_served(value)) == value


def test_answers_have_a_lifetime() -> None:
    async def scenario() -> None:
        clock = Clock()
        cache, make = make_cache(clock=clock, ttl_s=10), Counted(served())
        await ask(cache, make)
        clock.now_s += 9.9
        assert (await ask(cache, make)).source == "hit"
        clock.now_s += 0.2
        assert (await ask(cache, make)).source == "miss"

    asyncio.run(scenario())


def test_tenants_have_answers_of_their_own() -> None:
    names = {key(tenant=tenant).name for tenant in ("", "a", "b")}
    assert len(names) == 3


# The least recently used go first


def test_the_cache_keeps_its_limit_in_bytes_and_drops_the_least_recently_used() -> None:
    async def scenario() -> None:
        entry_bytes = len(write_served(served())) + ENTRY_OVERHEAD_BYTES
        cache, make = make_cache(max_bytes=2 * entry_bytes + 10), Counted(served())
        for fact, source in (
            ("甲", "miss"), ("乙", "miss"), ("甲", "hit"), ("丙", "miss"),
            ("甲", "hit"), ("丙", "hit"), ("乙", "miss"), ("丙", "hit"),
        ):  # fmt: skip
            assert (await ask(cache, make, asked=key(fact))).source == source
            assert cache._kept.currsize <= 2 * entry_bytes

    asyncio.run(scenario())


@pytest.mark.parametrize("max_bytes", [0, ENTRY_OVERHEAD_BYTES])
def test_an_answer_larger_than_the_whole_cache_is_not_kept(max_bytes: int) -> None:
    async def scenario() -> None:
        cache, make = make_cache(max_bytes=max_bytes), Counted(served())
        for _ in range(2):
            assert (await ask(cache, make)).source == "miss"
        assert cache._kept.currsize == 0

    asyncio.run(scenario())


# Caps on the reasoning are kept, and nobody gets an answer cut shorter than their own


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
                   0.0)  # fmt: skip
    if suits(value, budget, most):
        assert most is None or used <= most
        assert allowed >= budget or not cut


# Identical requests are made once


def test_concurrent_requests_for_the_same_are_made_once() -> None:
    async def scenario() -> None:
        cache, make = make_cache(), Counted(served(), pause_s=0.02)
        answers = await asyncio.gather(*(ask(cache, make) for _ in range(50)))
        assert make.calls == 1
        assert sorted(a.source for a in answers) == ["miss"] + ["shared"] * 49
        assert not cache._computations

    asyncio.run(scenario())


def test_a_leader_that_leaves_takes_nothing_with_it() -> None:
    async def scenario() -> None:
        cache, make = make_cache(), Counted(served(), pause_s=0.03)
        leader = asyncio.create_task(ask(cache, make))
        await asyncio.sleep(0)
        followers = [asyncio.create_task(ask(cache, make)) for _ in range(3)]
        await asyncio.sleep(0.01)
        leader.cancel()
        answers = await asyncio.gather(*followers)
        assert leader.cancelled()
        assert (make.calls, make.cancelled) == (1, 0)
        assert {a.source for a in answers} == {"shared"}

    asyncio.run(scenario())


def test_work_nobody_waits_for_is_stopped_at_once() -> None:
    async def scenario() -> None:
        cache, make = make_cache(), Counted(served(), pause_s=5)
        asking = [asyncio.create_task(ask(cache, make)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.sleep(0)
        assert (make.calls, make.cancelled) == (1, 1)
        assert not cache._computations
        assert (await ask(cache, Counted(served()))).source == "miss"

    asyncio.run(scenario())


@pytest.mark.parametrize("failure", [RuntimeError("the leader's own"), served(finish="deadline")])
def test_a_failed_leader_fails_alone_and_one_follower_takes_over(
    failure: Served | Exception,
) -> None:
    async def scenario() -> None:
        cache = make_cache()
        bad, good = Counted(failure, 0.01), Counted(served(), 0.01)
        leader = asyncio.create_task(ask(cache, bad))
        await asyncio.sleep(0)
        followers = [asyncio.create_task(ask(cache, good)) for _ in range(5)]
        outcome, *answers = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert (bad.calls, good.calls) == (1, 1)
        assert isinstance(outcome, type(failure)) or outcome.value is failure  # type: ignore[union-attr]
        assert sorted(a.source for a in answers) == ["miss"] + ["shared"] * 4  # type: ignore[union-attr]

    asyncio.run(scenario())


def test_nobody_waits_for_a_later_deadline_than_their_own() -> None:
    async def scenario() -> None:
        cache = make_cache()
        slow, quick = Counted(served(), 0.2), Counted(served(), 0.0)
        patient = asyncio.create_task(ask(cache, slow, deadline_s=900))
        await asyncio.sleep(0)
        hurried = await asyncio.wait_for(ask(cache, quick, deadline_s=100), 0.1)
        assert (hurried.source, quick.calls) == ("miss", 1)
        assert (await patient).source == "miss"

    asyncio.run(scenario())


def test_requests_of_other_budget_levels_fly_apart() -> None:
    async def scenario() -> None:
        cache = make_cache()
        little, much = Counted(served(16), 0.01), Counted(served(64), 0.01)
        answers = await asyncio.gather(ask(cache, little, budget=16), ask(cache, much, budget=64))
        assert [a.value.stated_budget for a in answers] == [16, 64]

    asyncio.run(scenario())


# Redis


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    yield from running_redis()


def test_answers_pass_from_one_server_to_another_through_redis(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as link:
            assert await link.open()
            here, there = make_cache(link), make_cache(link)
            asked = key(secret=b"one secret for both")
            await ask(here, Counted(served(32)), asked=asked, budget=32)
            await here.close()
            make = Counted(served())
            assert (await ask(there, make, asked=asked, budget=24)).source == "hit"
            assert (await ask(there, make, asked=asked, budget=48)).source == "miss"
            assert make.calls == 1
            assert counted(there, "errors", kind="garbage") == 0

    asyncio.run(scenario())


def test_redis_holds_no_word_of_a_case_and_forgets_in_time(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as link:
            await link.call(lambda client: client.flushall())
            cache = make_cache(link, ttl_s=0.3)
            await ask(cache, Counted(served()), asked=key())
            await cache.close()
            names = await link.call(lambda client: client.keys("*"))
            assert len(names) == 1
            value = await link.call(lambda client: client.get(names[0]))
            for secret in ("8000", "窃取", "盗窃", "stated_budget"):
                assert secret.encode() not in value + names[0]
            await asyncio.sleep(0.35)
            assert await link.call(lambda client: client.keys("*")) == []

    asyncio.run(scenario())


def test_answers_that_were_altered_or_belong_elsewhere_are_misses(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as link:
            await link.call(lambda client: client.flushall())
            mine, other = key(), key("另一名被告人李某殴打他人致轻伤二级。")
            first = make_cache(link)
            await ask(first, Counted(served()), asked=other)
            await first.close()
            (name,) = await link.call(lambda client: client.keys("*"))
            swapped = await link.call(lambda client: client.get(name))
            for garbage in (swapped, b"", b"x", b"\x00" * 11, b"\xff" * 5000, b'{"a": 1}'):
                place = f"curt:2:{mine.name}:48"
                await link.call(lambda client, g=garbage, p=place: client.set(p, g))
                cache, make = make_cache(link), Counted(served())
                assert (await ask(cache, make, asked=mine)).source == "miss"
                assert counted(cache, "errors", kind="garbage") == 1
                await cache.close()
            await link.call(lambda client: client.delete(place))
            await link.call(lambda client: client.rpush(place, "a list"))
            assert (await ask(make_cache(link), Counted(served()), asked=mine)).source == "miss"

    asyncio.run(scenario())


class Shared:
    """A Redis that anyone may write to."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def call(self, command: Callable[[Any], Awaitable[Any]]) -> Any:
        return await command(self)

    async def mget(self, names: list[str]) -> list[bytes | None]:
        return [self.kept.get(name) for name in names]

    async def set(self, name: str, value: bytes, px: int) -> None:
        self.kept[name] = value


def test_who_can_write_to_redis_can_make_up_no_answer() -> None:
    mine, theirs = key(secret=b"s" * 16), key(secret=b"t" * 16)

    async def asked(shared: Shared, budget: int = 48) -> tuple[str, float]:
        """Where a new server's answer came from, and how much it read that was none."""
        cache = make_cache(cast(RedisLink, shared))
        answer = await ask(cache, Counted(served()), asked=mine, budget=budget)
        await cache.close()
        return answer.source, counted(cache, "errors", kind="garbage")

    async def scenario() -> None:
        shared = Shared()
        assert await asked(shared) == ("miss", 0)
        ((name, sealed),) = shared.kept.items()
        assert await asked(shared) == ("hit", 0)
        plain, place = write_served(served()), name.removeprefix(PREFIX)
        forged = make_cache(cast(RedisLink, shared))._seal(theirs, place, plain)
        for made_up in (forged, plain, sealed[:-1] + bytes([sealed[-1] ^ 1])):
            shared.kept = {name: made_up}
            assert await asked(shared) == ("miss", 1)
        shared.kept = {f"{PREFIX}{mine.name}:64": sealed}  # less thinking passed off as more
        assert await asked(shared, budget=64) == ("miss", 1)

    asyncio.run(scenario())


def test_a_redis_that_is_down_costs_a_miss_and_hardly_any_time() -> None:
    async def scenario() -> None:
        async with linked(free_port()) as link:
            assert await link.open() is False
            cache, times_s = make_cache(link), []
            for number in range(30):
                start_s = time.monotonic()
                answer = await ask(cache, Counted(served()), asked=key(f"{FACT}{number}"))
                assert answer.source == "miss"
                times_s.append(time.monotonic() - start_s)
            assert_quick(times_s)
            assert counted(cache, "errors", kind="paused") > 20
            assert (await ask(cache, Counted(served()), asked=key(f"{FACT}0"))).source == "hit"

    asyncio.run(scenario())


MAD = {
    "silent": None,
    "http": b"hello, I am no Redis\r\n" * 50,
    "short": b"*3\r\n$-1\r\n:5\r\n+x\r\n",
    "long": b"$9999999\r\nx",
    "negative": b"*-5\r\n",
    "bytes": b"\x00\xff\r\n",
}


@pytest.mark.parametrize("reply", MAD.values(), ids=MAD)
def test_a_silent_or_mad_redis_costs_a_miss_within_the_budget(reply: bytes | None) -> None:
    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            if reply is not None:
                writer.write(reply)
        writer.close()

    async def scenario() -> None:
        server = await asyncio.start_server(on_client, "127.0.0.1", 0)
        async with linked(server.sockets[0].getsockname()[1]) as link:
            cache, times_s = make_cache(link), []
            for number in range(10):
                start_s = time.monotonic()
                make = Counted(served())
                answer = await ask(cache, make, asked=key(f"{FACT}{number}"))
                assert (answer.source, make.calls) == ("miss", 1)
                times_s.append(time.monotonic() - start_s)
            assert_quick(times_s)
            await cache.close()
        server.close()
        await server.wait_closed()

    asyncio.run(scenario())


def test_redis_is_asked_again_after_a_pause(redis_port: int) -> None:
    async def scenario() -> None:
        clock = Clock()
        async with linked(redis_port, clock=clock, **PATIENT) as link:
            for _ in range(3):
                link._count_failure("timeout")
            cache = make_cache(link)
            await ask(cache, Counted(served()))
            assert counted(cache, "errors", kind="paused") == 2  # the look and the keeping
            clock.now_s += 1.1
            assert await link.open()
            assert link._failures == 0

    asyncio.run(scenario())


def test_a_slow_answer_never_reaches_the_next_question(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, budget_s=0.0, pause_s=0.0) as hasty:
            async with linked(redis_port, **PATIENT) as link:
                for number in range(20):
                    await link.call(lambda client, n=number: client.set(f"n{n}", str(n)))
            answers = []
            for number in range(200):
                budget_s = 0.0 if number % 2 else 2.0
                with suppress(RedisMissError):
                    value = await hasty.call(
                        lambda client, n=number % 20: client.get(f"n{n}"), budget_s=budget_s
                    )
                    answers.append((number % 20, value))
            assert len(answers) >= 100
            assert [n for n, value in answers if value != str(n).encode()] == []

    asyncio.run(scenario())


def test_a_wrong_address_is_refused_with_a_remedy() -> None:
    pytest.importorskip("redis")
    with pytest.raises(ValueError, match="redis://"):
        RedisLink("http://example.org")


# In a route


def test_a_route_answers_from_the_cache_with_an_id_and_clock_of_its_own(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    pool = FakePool(generation(GOOD))
    cache = make_cache()
    identity = Identity.of(settings.model, settings.manifest())
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: PredictRequest, request: Request) -> PredictReply:
        now_s = request.state.started_s
        job = Job(body.fact, now_s, now_s + 0.4)
        answer = await cache.get_or_make(
            key(body.fact), budget_tokens=48, deadline_s=job.deadline_s,
            make=lambda: pool.submit(job),
        )  # fmt: skip
        request.state.log["cache"] = answer.source
        return build_reply(
            answer.value, fact=body.fact, tasks=body.tasks, include_reasoning=True,
            identity=identity, request_id=request.state.request_id, deadline_ms=400, total_ms=1.0,
        )  # fmt: skip

    app.add_middleware(RequestContext, metrics=Metrics())
    client = AsgiClient(app)
    with caplog.at_level(logging.DEBUG):
        bodies = [client.post("/predict", json={"fact": FACT}).json() for _ in range(2)]
        term_only = client.post("/predict", json={"fact": FACT, "tasks": ["term"]}).json()
    first, again = bodies
    assert len(pool.jobs) == 1
    assert first["defendants"] == again["defendants"] != []
    assert first["reasoning"] == again["reasoning"]
    assert first["request_id"] != again["request_id"]
    assert again["timings_ms"]["decode"] == again["timings_ms"]["queue"] == 0
    assert term_only["defendants"][0]["charges"] is None
    sources = [vars(r)["cache"] for r in caplog.records if r.name == "serve.access"]
    assert sources == ["miss", "hit", "hit"]
    assert not [r for r in caplog.records if FACT in str(vars(r))]
