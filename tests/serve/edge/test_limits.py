"""How often a client may ask, who counts as one client, and what one is told who may not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from serve.api.errors import install_handlers
from serve.api.schemas import ErrorReply
from serve.edge.context import RequestContext
from serve.edge.keys import KeyFile, KeyGuard, add_key, make_key, revoke_key
from serve.edge.limits import (
    Buckets,
    LocalBuckets,
    Rate,
    RateLimit,
    RedisBuckets,
    charge,
    client_address,
    parse_proxies,
    take,
)
from serve.metrics import Metrics
from serve.redis_link import RedisLink
from tests.serve.redis_server import PATIENT, free_port, linked, running_redis

SLOW = Rate(0.5, 2)
RATES = st.builds(Rate, st.floats(0.01, 1000), st.integers(1, 200))


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    yield from running_redis()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


# The bucket


@hypothesis_settings(deadline=None)
@given(
    rate=RATES,
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), min_size=1, max_size=60),
)
def test_no_window_of_time_lets_through_more_than_burst_and_rate(
    rate: Rate, steps: list[tuple[float, int]]
) -> None:
    now_s = full_at_s = 50.0
    granted: list[tuple[float, int]] = []
    for pause_s, cost in steps:
        now_s += pause_s
        cost = min(cost, rate.burst)
        full_at_s, wait_s = take(full_at_s, now_s, rate, cost)
        if wait_s == 0.0:
            granted.append((now_s, cost))
    for first, (start_s, _) in enumerate(granted):
        total = 0
        for end_s, cost in granted[first:]:
            total += cost
            # a microsecond of tolerance each, as `take` grants
            allowed = rate.burst + rate.per_s * (end_s - start_s + 1e-6 * len(granted))
            assert total <= allowed + 1e-6


@hypothesis_settings(deadline=None)
@given(rate=RATES, asked=st.lists(st.floats(0, 1), max_size=40), cost=st.integers(1, 300))
def test_who_waits_as_long_as_told_is_let_through(
    rate: Rate, asked: list[float], cost: int
) -> None:
    now_s = full_at_s = 50.0
    for pause_s in asked:
        now_s += pause_s
        full_at_s, _ = take(full_at_s, now_s, rate)
    full_at_s, wait_s = take(full_at_s, now_s, rate, cost)
    assert 0.0 <= wait_s <= rate.burst / rate.per_s + 1e-6
    if wait_s > 0:
        assert take(full_at_s, now_s + wait_s, rate, cost)[1] == 0.0
        if wait_s > 1e-4:
            assert take(full_at_s, now_s + wait_s * 0.9, rate, cost)[1] > 0.0


@hypothesis_settings(deadline=None)
@given(rate=RATES, back_s=st.floats(0, 1e6))
def test_a_clock_set_back_locks_nobody_out(rate: Rate, back_s: float) -> None:
    full_at_s, _ = take(0.0, 1e6, rate, rate.burst)
    now_s = 1e6 - back_s
    _, wait_s = take(full_at_s, now_s, rate)
    assert wait_s <= 1 / rate.per_s + 1e-6


def test_a_full_bucket_grants_its_burst_and_then_its_rate() -> None:
    async def scenario() -> None:
        clock, rate = Clock(), Rate(2.0, 3)
        buckets = LocalBuckets(clock=clock)
        assert [await buckets.take("a", rate) for _ in range(3)] == [0.0, 0.0, 0.0]
        assert await buckets.take("a", rate) == pytest.approx(0.5)
        assert await buckets.take("b", rate) == 0.0
        clock.now_s += 0.5
        assert await buckets.take("a", rate) == 0.0
        assert await buckets.take("a", rate) > 0.0

    asyncio.run(scenario())


def test_buckets_are_forgotten_once_full_and_bounded_in_number() -> None:
    async def scenario() -> None:
        clock, rate = Clock(), Rate(1.0, 5)
        buckets = LocalBuckets(max_clients=10, clock=clock)
        for number in range(100):
            await buckets.take(f"client {number}", rate)
            assert len(buckets) <= 10
        clock.now_s += 60
        await buckets.take("late", rate)
        assert len(buckets) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_a_senseless_rate_is_refused(per_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match="use "):
        Rate(per_s, burst)


# Redis


def test_servers_on_one_redis_share_a_bucket(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as here, linked(redis_port, **PATIENT) as there:
            rate = Rate(0.5, 6)
            servers = RedisBuckets(here), RedisBuckets(there)
            waits = [await servers[n % 2].take("key:shared", rate) for n in range(8)]
            assert waits[:6] == [0.0] * 6
            assert all(0.5 < wait_s <= 2.0 for wait_s in waits[6:])
            assert await servers[0].take("key:another", rate, cost=100) == 0.0
            assert 11.0 < await servers[1].take("key:another", rate, cost=6) <= 12.0
            names = await here.call(lambda client: client.keys("curt:rate:*"))
            assert len(names) == 2
            assert not [name for name in names if b"shared" in name]
            ttl_ms = await here.call(lambda client: client.pttl(names[0]))
            assert 0 < ttl_ms <= 12_001

    asyncio.run(scenario())


def test_redis_and_this_process_agree_on_what_a_bucket_grants(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as link:
            rate = Rate(20.0, 5)
            shared, local = RedisBuckets(link), LocalBuckets()
            for pause_s in (0, 0, 0, 0, 0, 0, 0.06, 0, 0.12, 0, 0, 0):
                await asyncio.sleep(pause_s)
                ours, theirs = await local.take("agree", rate), await shared.take("agree", rate)
                assert ours == pytest.approx(theirs, abs=0.03)

    asyncio.run(scenario())


def test_without_redis_this_process_limits_alone() -> None:
    async def scenario() -> None:
        link = RedisLink(f"redis://127.0.0.1:{free_port()}/0")
        buckets = RedisBuckets(link)
        waits = [await buckets.take("a", Rate(0.1, 4)) for _ in range(8)]
        assert [wait_s > 0 for wait_s in waits] == [False] * 4 + [True] * 4
        await link.close()

    asyncio.run(scenario())


def test_garbage_in_a_bucket_is_an_empty_one_or_our_own(redis_port: int) -> None:
    async def scenario() -> None:
        async with linked(redis_port, **PATIENT) as link:
            rate, buckets = Rate(0.1, 2), RedisBuckets(link)
            await link.call(lambda client: client.flushall())
            await buckets.take("g", rate)
            (name,) = await link.call(lambda client: client.keys("curt:rate:*"))
            await link.call(lambda client: client.set(name, "no number"))
            assert await buckets.take("g", rate) == 0.0
            await link.call(lambda client: client.delete(name))
            await link.call(lambda client: client.rpush(name, "a list"))
            assert await buckets.take("g", rate) == 0.0

    asyncio.run(scenario())


# Who asks


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("198.51.100.7", [], "198.51.100.7"),
        ("198.51.100.7", ["203.0.113.9"], "198.51.100.7"),  # no proxy of ours: made up
        ("10.0.0.2", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.2", ["1.1.1.1", "203.0.113.9"], "203.0.113.9"),  # 1.1.1.1 is the client's word
        ("10.0.0.2", ["1.1.1.1", "203.0.113.9", " 10.0.0.3"], "203.0.113.9"),
        ("10.0.0.2", ["203.0.113.9:4711"], "203.0.113.9"),
        ("10.0.0.2", ["unknown"], "10.0.0.2"),
        ("10.0.0.2", ["203.0.113.9", "garbage"], "10.0.0.2"),
        ("10.0.0.2", ["10.0.0.4"], "10.0.0.4"),
        ("::ffff:10.0.0.2", ["203.0.113.9"], "203.0.113.9"),
        ("10.0.0.2", ["[2001:db8:1:2:3::9]:80"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", [], "2001:db8:1:2::/64"),
        ("testclient", ["203.0.113.9"], "testclient"),
    ],
)
def test_only_what_our_own_proxies_heard_is_believed(
    peer: str, forwarded: list[str], client: str
) -> None:
    assert client_address(peer, forwarded, parse_proxies(["10.0.0.0/8"])) == client


@hypothesis_settings(deadline=None)
@given(st.lists(st.text(max_size=20), max_size=5))
def test_a_client_can_say_what_it_likes_and_stays_the_same_client(made_up: list[str]) -> None:
    proxies = parse_proxies(["10.0.0.0/8"])
    assert client_address("10.1.1.1", [*made_up, "203.0.113.9"], proxies) == "203.0.113.9"
    assert client_address("203.0.113.9", made_up, proxies) == "203.0.113.9"


def test_a_wrong_network_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="name a network"):
        parse_proxies(["10.0.0.0/8", "proxy.example"])


# The middleware


def make_app(
    buckets: Buckets | None = None,
    rate: Rate | None = SLOW,
    max_concurrent: float = 100,
    keys: KeyFile | None = None,
    **options: Any,
) -> FastAPI:
    app = FastAPI()
    install_handlers(app)

    @app.post("/predict")
    async def predict(request: Request, cases: int = 1, pause_s: float = 0) -> dict[str, bool]:
        await charge(request, cases - 1)
        await asyncio.sleep(pause_s)
        return {"ok": True}

    @app.get("/livez")
    async def livez() -> dict[str, bool]:
        return {"ok": True}

    app.add_middleware(
        RateLimit,
        buckets=LocalBuckets() if buckets is None else buckets,  # an empty one is falsy
        rate=rate,
        max_concurrent=max_concurrent,
        **options,
    )
    app.add_middleware(KeyGuard, keys=keys)
    app.add_middleware(RequestContext, metrics=Metrics())
    return app


async def post(
    app: FastAPI, address: str = "203.0.113.1", path: str = "/predict", **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, client=(address, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://curt") as client:
        return await client.post(path, headers=headers)


def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    async def scenario() -> None:
        registry = CollectorRegistry()
        app = make_app(registry=registry)
        statuses = [(await post(app)).status_code for _ in range(2)]
        refused = await post(app)
        assert (statuses, refused.status_code) == ([200, 200], 429)
        assert refused.headers["retry-after"] == "2"
        reply = ErrorReply.model_validate(refused.json())
        assert reply.error.code == "rate_limited"
        assert reply.request_id == refused.headers["x-request-id"]
        assert (await post(app, "203.0.113.2")).status_code == 200
        assert b'curt_rate_limited_total{reason="rate_limited"} 1.0' in generate_latest(registry)

    asyncio.run(scenario())


def test_health_checks_are_never_limited() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(0.1, 1))
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://curt") as client:
            replies = [await client.get("/livez") for _ in range(20)]
        assert {reply.status_code for reply in replies} == {200}

    asyncio.run(scenario())


def test_a_key_is_one_client_wherever_it_comes_from(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "keys.json"
        made = []
        for name in ("a", "b"):
            key, record = make_key(name, "predict")
            add_key(path, record)
            made.append(f"Bearer {key}")
        app = make_app(keys=KeyFile(path))
        for address, status in (("203.0.113.1", 200), ("203.0.113.2", 200), ("203.0.113.3", 429)):
            assert (await post(app, address, Authorization=made[0])).status_code == status
        assert (await post(app, "203.0.113.3", Authorization=made[1])).status_code == 200

    asyncio.run(scenario())


def test_a_forged_address_buys_nothing_and_a_proxied_one_counts() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(0.1, 1), trusted_proxies=parse_proxies(["10.0.0.0/8"]))
        for number, status in ((1, 200), (2, 429)):
            forged = {"X-Forwarded-For": f"192.0.2.{number}"}
            assert (await post(app, "203.0.113.1", **forged)).status_code == status
        for number in (1, 2):
            proxied = {"X-Forwarded-For": f"192.0.2.{number}"}
            assert (await post(app, "10.0.0.1", **proxied)).status_code == 200
        again = await post(app, "10.0.0.1", **{"X-Forwarded-For": "192.0.2.1"})
        assert again.status_code == 429

    asyncio.run(scenario())


def test_a_client_may_have_only_so_many_requests_under_way() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(100, 100), max_concurrent=2)
        path = "/predict?pause_s=0.1"
        replies = await asyncio.gather(*(post(app, path=path) for _ in range(4)))
        assert sorted(reply.status_code for reply in replies) == [200, 200, 429, 429]
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "too_many_concurrent"
        assert (await post(app)).status_code == 200  # and the places are free again

    asyncio.run(scenario())


def test_a_place_is_free_again_after_a_cancelled_request() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(100, 100), max_concurrent=1)
        leaving = asyncio.create_task(post(app, path="/predict?pause_s=5"))
        await asyncio.sleep(0.05)
        assert (await post(app)).status_code == 429
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (await post(app)).status_code == 200

    asyncio.run(scenario())


def test_a_batch_costs_as_much_as_its_cases() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(1.0, 10))
        assert (await post(app, path="/predict?cases=8")).status_code == 200
        refused = await post(app, path="/predict?cases=5")
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
        assert refused.json()["error"]["code"] == "rate_limited"
        assert (await post(app)).status_code == 200

    asyncio.run(scenario())


@pytest.mark.parametrize("has_default", [False, True])
def test_a_key_may_have_limits_of_its_own_which_change_with_the_file(
    tmp_path: Path, has_default: bool
) -> None:
    async def scenario() -> None:
        path, clock = tmp_path / "keys.json", Clock()
        key, record = make_key("app", "predict", rate_per_s=0.5, burst=4, per_day=6)
        other, plain = make_key("other", "predict")
        for each in (record, plain):
            add_key(path, each)
        app = make_app(
            LocalBuckets(clock=clock),
            rate=Rate(1.0, 1) if has_default else None,
            max_concurrent=100 if has_default else math.inf,
            keys=KeyFile(path, clock),
        )

        async def ask(presented: str = key, path: str = "/predict") -> str:
            response = await post(app, path=path, Authorization=f"Bearer {presented}")
            return "" if response.status_code == 200 else response.json()["error"]["code"]

        assert [await ask() for _ in range(5)] == [""] * 4 + ["rate_limited"]
        clock.now_s += 10
        assert [await ask() for _ in range(3)] == ["", "", "quota_used_up"]
        assert [await ask(other) for _ in range(2)] == ["", "rate_limited" if has_default else ""]
        revoke_key(path, record.id)
        add_key(path, record.model_copy(update={"per_day": None, "max_concurrent": 2}))
        clock.now_s += 10
        assert await ask() == ""
        assert await ask(path="/predict?cases=2") == ""
        assert await ask(path="/predict?cases=3") == "too_many_cases"  # and never will be
        clock.now_s += 10
        slow = asyncio.create_task(ask(path="/predict?cases=2&pause_s=0.2"))
        await asyncio.sleep(0.05)
        assert await ask() == "too_many_concurrent"
        assert await slow == ""

    asyncio.run(scenario())


def test_a_limit_of_no_requests_is_refused() -> None:
    app = FastAPI()
    with pytest.raises(ValueError, match="use 1 or more"):
        RateLimit(app, buckets=LocalBuckets(), rate=Rate(1, 1), max_concurrent=0)


def addresses() -> Iterator[str]:
    for number in range(1, 255):
        yield f"203.0.113.{number}"


def test_many_clients_at_once_are_told_apart() -> None:
    async def scenario() -> None:
        app = make_app(rate=Rate(0.01, 1))
        replies = await asyncio.gather(*(post(app, a) for a in [*addresses(), *addresses()]))
        assert sorted(reply.status_code for reply in replies) == [200] * 254 + [429] * 254

    asyncio.run(scenario())
