"""How much one client may ask: a rate with bursts, requests at once, and the size of a body.

A client is an API key, or without keys a network address. Its bucket holds `burst` tokens and
gains `per_s` a second; each case takes one. The state of a bucket is one number, the instant at
which it will be full again. It is kept in this process or, so that several servers share one limit,
in Redis. Where Redis does not answer in time, this process's own buckets decide.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

from cachetools import TLRUCache
from fastapi import Request
from prometheus_client import CollectorRegistry, Counter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.edge.context import BATCHES_PATH, refuse
from serve.edge.keys import KeyRecord, is_open
from serve.errors import OverloadedError, TooManyCasesError
from serve.redis_link import RedisLink, RedisMissError

MAX_CLIENTS = 10_000  # about 2 MB; beyond it the client that was away longest gets a full bucket
PREFIX = "curt:rate:"
DAY_S = 86_400.0
BATCH_TIMES = 6  # as long as another body may a batch take to arrive

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# The time is Redis' own, so that servers whose clocks differ still share a bucket.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local per_s, burst, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full_at = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
full_at = math.min(math.max(full_at, now), now + burst / per_s) + cost / per_s
local wait = full_at - now - burst / per_s
if wait > 1e-6 then return string.format('%.6f', wait) end
redis.call('SET', KEYS[1], string.format('%.6f', full_at),
           'PX', math.max(1, math.ceil((full_at - now) * 1000)))
return '0'
"""


class RateLimitedError(OverloadedError):
    """A client asked more than its limit; `retry_after_s` says when it may ask again."""

    status = 429


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens gained a second, and how many a bucket holds."""

    per_s: float
    burst: int

    def __post_init__(self) -> None:
        if not (self.per_s > 0 and math.isfinite(self.per_s)):
            raise ValueError(f"a rate of {self.per_s} a second: use more than 0")
        if self.burst < 1:
            raise ValueError(f"a burst of {self.burst}: use 1 or more")


def take(full_at_s: float, now_s: float, rate: Rate, cost: int = 1) -> tuple[float, float]:
    """Take `cost` tokens out of a bucket.

    Args:
        full_at_s: when the bucket will be full again; anything up to now is full already.
        now_s: the same clock's present.
        rate: of the bucket.
        cost: tokens; more than the bucket holds counts as all it holds.

    Returns:
        The new `full_at_s`, and 0.0; or the old one and the seconds until there is enough.
    """
    refill_s = rate.burst / rate.per_s
    # Never further ahead than a whole refill: a clock set back must lock nobody out.
    start_s = min(max(full_at_s, now_s), now_s + refill_s)
    taken_s = start_s + min(cost, rate.burst) / rate.per_s
    wait_s = taken_s - now_s - refill_s
    # A microsecond of rounding must not turn a client away who waited as long as told.
    return (taken_s, 0.0) if wait_s <= 1e-6 else (full_at_s, wait_s)


class Buckets(Protocol):
    """Where the buckets of clients are kept."""

    async def take(self, client: str, rate: Rate, cost: int = 1) -> float:
        """Take tokens: 0.0 when there were enough, otherwise the seconds until there are."""
        ...


class LocalBuckets:
    """Buckets in this process."""

    def __init__(
        self, max_clients: int = MAX_CLIENTS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        # A bucket is kept until it is full again: then it is like that of an unknown client.
        self._full_at_s: TLRUCache[str, float] = TLRUCache(
            max_clients, ttu=lambda _client, full_at_s, _now_s: full_at_s, timer=clock
        )

    async def take(self, client: str, rate: Rate, cost: int = 1) -> float:
        """Take tokens: 0.0 when there were enough, otherwise the seconds until there are."""
        now_s = self._clock()
        full_at_s, wait_s = take(self._full_at_s.get(client, now_s), now_s, rate, cost)
        self._full_at_s[client] = full_at_s
        return wait_s

    def __len__(self) -> int:
        return len(self._full_at_s)


class RedisBuckets:
    """Buckets shared by all servers on one Redis."""

    def __init__(self, link: RedisLink, secret: bytes = b"") -> None:
        """`secret`: the same on all servers; hides keys' ids and addresses from who reads Redis."""
        self._link = link
        self._secret = secret[:64]
        self._local = LocalBuckets()

    async def take(self, client: str, rate: Rate, cost: int = 1) -> float:
        """Take tokens as `Buckets.take`; from this process's own where Redis fails."""
        digest = hashlib.blake2b(client.encode(), key=self._secret, digest_size=16).hexdigest()
        cost = min(cost, rate.burst)
        try:
            answer = await self._link.call(
                lambda redis: redis.eval(_TAKE, 1, PREFIX + digest, rate.per_s, rate.burst, cost)
            )
            return max(0.0, float(answer))
        except (RedisMissError, TypeError, ValueError):
            return await self._local.take(client, rate, cost)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What one client may ask; None where nothing limits it."""

    rate: Rate | None
    per_day: Rate | None
    max_concurrent: float


class RateLimit:
    """ASGI middleware that answers 429 and Retry-After to a client over its limit.

    Stands inside `KeyGuard`, whose `state.api_key` tells clients apart and may hold limits of its
    own. Open paths cost nothing, and what only looks (GET) or ends (DELETE) nothing of the day's.
    A route that serves several cases takes the tokens of the others with `charge`; until it is
    answered they count as under way, too.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        buckets: Buckets,
        rate: Rate | None,
        max_concurrent: float,
        trusted_proxies: Sequence[Network] = (),
        registry: CollectorRegistry | None = None,
    ) -> None:
        """`max_concurrent`: cases of one client under way at once in this process.

        Both hold for clients without limits of their own; without a `rate` those have none.
        """
        if max_concurrent < 1:
            raise ValueError(f"{max_concurrent} concurrent requests: use 1 or more")
        self.app = app
        self._buckets = buckets
        self._default = ClientLimits(rate, None, max_concurrent)
        self._trusted = tuple(trusted_proxies)
        self._under_way: dict[str, int] = {}
        self._limited = Counter(
            "curt_rate_limited", "Requests refused with 429", ["reason"], registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        client, limits = client_of(scope, self._trusted), self._limits_of(scope)
        if scope["method"] != "POST":
            limits = replace(limits, per_day=None)
        if self._under_way.get(client, 0) >= limits.max_concurrent:
            fault = self._limit("too_many_concurrent", "too many requests are under way", 1.0)
            await _answer(scope, receive, send, fault)
            return
        held = 0  # cases of this request that count as under way

        async def charge_more(cost: int, at_once: bool) -> None:
            nonlocal held
            if not at_once:
                if limits.per_day and 1 + cost > limits.per_day.burst:
                    message = f"send {limits.per_day.burst} cases or fewer a day"
                    raise TooManyCasesError("too_many_cases", message)
                await self._charge(client, replace(limits, rate=None), cost)
                return
            if 1 + cost > limits.max_concurrent:  # which no waiting helps
                raise TooManyCasesError(
                    "too_many_cases", f"send {limits.max_concurrent:.0f} cases or fewer at once"
                )
            if self._under_way[client] + cost > limits.max_concurrent:
                raise self._limit("too_many_concurrent", "too many cases are under way", 1.0)
            self._hold(client, cost)
            held += cost
            await self._charge(client, limits, cost)

        self._hold(client, 1)
        held = 1
        try:
            try:
                await self._charge(client, limits, 1)
            except RateLimitedError as fault:
                await _answer(scope, receive, send, fault)
                return
            scope.setdefault("state", {})["charge"] = charge_more
            await self.app(scope, receive, send)
        finally:
            self._hold(client, -held)

    def _hold(self, client: str, cases: int) -> None:
        held = self._under_way.get(client, 0) + cases
        if held:
            self._under_way[client] = held
        else:
            del self._under_way[client]

    def _limits_of(self, scope: Scope) -> ClientLimits:
        record: KeyRecord | None = scope.get("state", {}).get("api_key")
        default = self._default
        if record is None:
            return default
        per_s = record.rate_per_s or (default.rate and default.rate.per_s)
        burst = record.burst or (default.rate.burst if default.rate else math.ceil(per_s or 1))
        return ClientLimits(
            Rate(per_s, burst) if per_s else None,
            Rate(record.per_day / DAY_S, record.per_day) if record.per_day else None,
            record.max_concurrent or default.max_concurrent,
        )

    async def _charge(self, client: str, limits: ClientLimits, cost: int) -> None:
        for name, rate, reason, what in (
            (client, limits.rate, "rate_limited", "too many requests"),
            (f"{client}:day", limits.per_day, "quota_used_up", "the day's quota is used up"),
        ):
            wait_s = await self._buckets.take(name, rate, cost) if rate else 0.0
            if wait_s > 0:
                raise self._limit(reason, what, wait_s)

    def _limit(self, reason: str, what: str, wait_s: float) -> RateLimitedError:
        self._limited.labels(reason).inc()
        fault = RateLimitedError(reason, what, wait_s)
        fault.message = f"{what}: try again in {fault.retry_after_s} s"
        return fault


async def charge(request: Request, cost: int, *, at_once: bool = True) -> None:
    """Take `cost` more tokens for a request of several cases; none where limits are off.

    Those that are not answered `at_once` cost the day's quota alone. Raises RateLimitedError when
    the client's bucket does not hold them, TooManyCasesError when it never will.
    """
    take_more = getattr(request.state, "charge", None)
    if take_more is not None and cost > 0:
        await take_more(cost, at_once)


async def _answer(scope: Scope, receive: Receive, send: Send, fault: RateLimitedError) -> None:
    await refuse(scope, receive, send, fault.status, fault.reason, fault.message, fault.headers)


def client_of(scope: Scope, trusted_proxies: Sequence[Network] = ()) -> str:
    """The client of a request: the id of its API key, or the address it came from."""
    record = scope.get("state", {}).get("api_key")
    if record is not None:
        return f"key:{record.id}"
    peer = scope.get("client")
    if peer is None:
        return "local"  # a Unix socket has no address
    forwarded = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).split(",")
    return f"address:{client_address(peer[0], forwarded, trusted_proxies)}"


def client_address(peer: str, forwarded: Sequence[str], trusted_proxies: Sequence[Network]) -> str:
    """The nearest address that is not one of our proxies.

    `forwarded` are the parts of X-Forwarded-For in order. Each proxy appends the address it was
    asked from, so the parts are read from the right, and only while the proxy that appended them
    is trusted: a client may have made up anything further left. IPv6 addresses count by their
    /64, which is what one subscriber has.
    """
    address = _parse_address(peer)
    if address is None:
        return peer
    for part in reversed(forwarded):
        if not any(address in network for network in trusted_proxies):
            break
        further = _parse_address(part)
        if further is None:
            break
        address = further
    if address.version == 6:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def parse_proxies(networks: Sequence[str]) -> tuple[Network, ...]:
    """Networks of trusted proxies: `10.0.0.0/8`, `127.0.0.1`. Raises ValueError otherwise."""
    parsed = []
    for network in networks:
        try:
            parsed.append(ipaddress.ip_network(network.strip()))
        except ValueError as error:
            raise ValueError(f"trusted proxy {network!r}: name a network, 10.0.0.0/8") from error
    return tuple(parsed)


@lru_cache(maxsize=4096)
def _parse_address(text: str) -> Address | None:
    """An address with or without a port: 192.0.2.1, 192.0.2.1:4711, ::1, [::1]:4711."""
    text = text.strip()[:64]
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


class BodyLimit:
    """ASGI middleware that refuses bodies that are too large or arrive too slowly.

    Both the announced length and the bytes that arrive are held against the limit. A batch may have
    more bytes, and more time.
    """

    def __init__(
        self, app: ASGIApp, max_bytes: int, max_s: float = 10.0, batch_bytes: int = 0
    ) -> None:
        self.app = app
        self._limits, self._batch_limits = (max_bytes, max_s), (batch_bytes, BATCH_TIMES * max_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_batch = self._batch_limits[0] and scope["path"] == BATCHES_PATH
        max_bytes, max_s = self._batch_limits if is_batch else self._limits
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > max_bytes:
            message = f"the body is larger than {max_bytes} bytes"
            # The rest of the body is never read, so the connection can't be used again.
            headers = {"Connection": "close"}
            await refuse(scope, receive, send, 413, "too_large", message, headers)
            return
        received = 0
        is_complete = False
        until_s = asyncio.get_running_loop().time() + max_s

        async def receive_counted() -> Message:
            nonlocal received, is_complete
            if is_complete:  # what follows the body is the disconnect, which may take any time
                return await receive()
            try:
                async with asyncio.timeout_at(until_s):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, headers={"Connection": "close"}) from None
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise HTTPException(413)
            return message

        await self.app(scope, receive_counted, send)
