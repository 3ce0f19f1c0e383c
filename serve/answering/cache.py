"""Answers given before: found by what was asked, kept for a while, made once.

The name of an entry is a keyed hash of the normalised fact, the model's manifest, the prompt
version, the tasks and the reply's options; the fact itself is stored nowhere. Beside the name
stands the thinking budget the answer was made with. A request whose deadline buys `b` tokens
takes an answer made with `b` or more, never one made with less: a generous answer may serve a
tight deadline, not the other way round. Only answers whose thinking ended by itself are kept,
and those don't depend on where the limit stood within a level, so the levels a prompt can
state are all the classes there are. A client that caps the reasoning gets none that used more
than its cap, however it was made. What one request shares with another while it is made is held
to the same rules once it is known what it got.

In process: least recently used goes first, with a lifetime and a limit in bytes. Beyond it,
where configured, Redis: values are sealed (AES-256-GCM) with a key derived from the fact, for a
reasoning quotes facts; who reads Redis learns nothing, and an answer that was altered, or that
belongs to another question, is a miss.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from curt.dialogue import BUDGET_LEVELS, normalise_fact, state_budget
from serve.answering.cache_policy import Policy
from serve.answering.lru import Lru
from serve.redis_link import RedisLink, RedisMissError

MAX_VALUE_BYTES = 65_536
NONCE_BYTES = 12
PREFIX = "curt:1:"  # raise the number when what is sealed changes

Source = Literal["hit", "shared", "miss"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What an answer is found by: a public name, and the secret that seals it in Redis."""

    name: str
    seal: bytes = field(repr=False)


def cache_key(
    fact: str,
    *,
    manifest_sha256: str,
    prompt_version: str,
    tasks: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    secret: bytes = b"",
) -> CacheKey:
    """The key of a question.

    Args:
        fact: as the client sent it; facts that are the same once normalised share a key.
        manifest_sha256: hash of the model folder's manifest, so that no model answers for another.
        prompt_version: of the prompt texts.
        tasks: in any order; repeats don't count.
        options: anything else that changes the stored value; JSON values.
        secret: makes names unguessable, so that who sees them can't test for a known fact. All
            servers on one Redis need the same.
    """
    question = [normalise_fact(fact), manifest_sha256, prompt_version, sorted(set(tasks))]
    keyed = _keyed_by(secret).copy()
    keyed.update(_write_question([*question, options or {}]).encode())
    digest = keyed.digest()
    return CacheKey(digest[:32].hex(), digest[32:])


@lru_cache(maxsize=4)
def _keyed_by(secret: bytes) -> hmac.HMAC:
    """A hash that has taken the secret in already, to copy: that is most of a short one's time."""
    return hmac.new(secret, digestmod="sha512")


_write_question = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class CacheMetrics:
    """Counters of the result cache."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "curt_cache_requests", "Answers by where they came from", ["source"], registry=registry
        )
        self.errors = Counter(
            "curt_cache_errors", "What cost a miss instead", ["kind"], registry=registry
        )
        self.entries = Gauge("curt_cache_entries", "Answers kept in process", registry=registry)
        self.used_bytes = Gauge(
            "curt_cache_used_bytes", "Memory of the answers kept in process", registry=registry
        )


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """A value and whether it was kept, made together with another request, or made now."""

    value: T
    source: Source


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Thinking tokens that would be granted now, and the most the client wants (None: any)."""

    budget_tokens: int
    most_tokens: int | None


@dataclass(slots=True, eq=False)
class _Flight(Generic[T]):
    """A value being made, and how many wait for it."""

    task: asyncio.Task[T]
    deadline_s: float
    waiting: int = 0


class ResultCache(Generic[T]):
    """Values kept in process and, with a link, in Redis; identical requests made once."""

    def __init__(
        self,
        policy: Policy[T],
        metrics: CacheMetrics,
        *,
        max_thinking_tokens: int,
        max_bytes: int,
        ttl_s: float,
        redis: RedisLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError without the package that seals what goes to Redis."""
        self._policy = policy
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._kept = Lru(max_bytes, clock)
        self._redis = redis
        self._new_cipher = _find_cipher() if redis else None
        top = state_budget(max_thinking_tokens)
        # Most thinking first: of several answers that will do, the best.
        self._levels = tuple(level for level in reversed(BUDGET_LEVELS) if level <= top)
        self._max_thinking_tokens = max_thinking_tokens
        self._flights: dict[str, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def get_or_make(
        self,
        key: CacheKey,
        *,
        budget_tokens: int,
        deadline_s: float,
        make: Callable[[], Awaitable[T]],
        most_tokens: int | None = None,
    ) -> Answer[T]:
        """A kept value, one being made right now, or a new one.

        Args:
            key: of the question.
            budget_tokens: thinking the deadline would buy now; 0 where it can't be met at all,
                which a kept answer still can.
            deadline_s: `time.monotonic()` instant by which `make` ends. A value being made for
                an earlier or equal one is waited for; nobody waits for a later one.
            make: makes the value; what it raises reaches the request that started it and no
                other. Of those that waited, one starts anew and the rest wait for that one.
            most_tokens: thinking the client wants at most, whatever was thought for others.
        """
        budget_tokens = min(max(0, budget_tokens), self._max_thinking_tokens)
        wanted = _Wanted(budget_tokens, most_tokens)
        level = state_budget(budget_tokens)
        place = f"{key.name}:{level}"
        found = self._find_kept(key, level, wanted)
        if found is None and self._redis and not self._joinable(place, deadline_s):
            found = await self._find_in_redis(self._redis, key, level, wanted)
        answer = (
            await self._fly(key, place, deadline_s, make, wanted)
            if found is None
            else Answer(found, "hit")
        )
        self._metrics.requests.labels(answer.source).inc()
        return answer

    async def close(self) -> None:
        """Wait for what is still being written."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _fly(
        self,
        key: CacheKey,
        place: str,
        deadline_s: float,
        make: Callable[[], Awaitable[T]],
        wanted: _Wanted,
    ) -> Answer[T]:
        while True:
            flight = self._joinable(place, deadline_s)
            leads = flight is None
            if flight is None:
                task = self._spawn(self._make(key, make))
                task.add_done_callback(_read_failure)  # its waiters may all have gone
                flight = self._flights[place] = _Flight(task, deadline_s)
            flight.waiting += 1
            try:
                await asyncio.wait({flight.task})  # our own cancellation leaves the task running
            finally:
                flight.waiting -= 1
                if not flight.waiting:
                    flight.task.cancel()  # nobody wants it any more; does nothing to a done one
                if not flight.waiting or flight.task.done():
                    self._land(place, flight)
            if leads:
                return Answer(flight.task.result(), "miss")
            if (
                not flight.task.cancelled()
                and flight.task.exception() is None
                and self._policy.shareable(flight.task.result())
                and self._suits(flight.task.result(), wanted)
            ):
                return Answer(flight.task.result(), "shared")

    def _joinable(self, place: str, deadline_s: float) -> _Flight[T] | None:
        flight = self._flights.get(place)
        if flight is None or flight.task.done() or flight.deadline_s > deadline_s:
            return None
        return flight

    def _land(self, place: str, flight: _Flight[T]) -> None:
        if self._flights.get(place) is flight:
            del self._flights[place]

    async def _make(self, key: CacheKey, make: Callable[[], Awaitable[T]]) -> T:
        value = await make()
        level = self._policy.level(value)
        if level is not None:
            data = self._policy.encode(value)
            if len(data) <= MAX_VALUE_BYTES:
                place = f"{key.name}:{level}"
                self._keep(place, data, self._ttl_s)
                if self._redis:
                    self._spawn(self._send_to_redis(self._redis, key, place, data))
        return value

    def _suits(self, value: T, wanted: _Wanted) -> bool:
        return self._policy.suits(value, wanted.budget_tokens, wanted.most_tokens)

    def _find_kept(self, key: CacheKey, level: int, wanted: _Wanted) -> T | None:
        for place in self._places(key, level):
            data = self._kept.get(place)
            if data is not None and self._suits(value := self._policy.decode(data), wanted):
                return value
        return None

    async def _find_in_redis(
        self, redis: RedisLink, key: CacheKey, level: int, wanted: _Wanted
    ) -> T | None:
        places = self._places(key, level)
        try:
            answers = await redis.call(lambda client: client.mget([PREFIX + p for p in places]))
        except RedisMissError as miss:
            self._metrics.errors.labels(miss.kind).inc()
            return None
        if not isinstance(answers, list) or len(answers) != len(places):
            self._metrics.errors.labels("garbage").inc()
            return None
        for place, sealed in zip(places, answers, strict=True):
            if sealed is None:
                continue
            try:
                data, ttl_s = self._unseal(key, place, sealed)
                value = self._policy.decode(data)
            except ValueError:  # altered, of another question, or of another release
                self._metrics.errors.labels("garbage").inc()
            else:
                if ttl_s > 0:
                    self._keep(place, data, min(ttl_s, self._ttl_s))
                    if self._suits(value, wanted):
                        return value
        return None

    async def _send_to_redis(
        self, redis: RedisLink, key: CacheKey, place: str, data: bytes
    ) -> None:
        sealed = self._seal(key, place, data)
        ttl_ms = max(1, round(self._ttl_s * 1e3))
        try:
            await redis.call(lambda client: client.set(PREFIX + place, sealed, px=ttl_ms))
        except RedisMissError as miss:
            self._metrics.errors.labels(miss.kind).inc()

    def _seal(self, key: CacheKey, place: str, data: bytes) -> bytes:
        assert self._new_cipher is not None
        nonce = os.urandom(NONCE_BYTES)
        body = struct.pack(">d", time.time() + self._ttl_s) + data
        return nonce + bytes(self._new_cipher(key.seal).encrypt(nonce, body, place.encode()))

    def _unseal(self, key: CacheKey, place: str, sealed: object) -> tuple[bytes, float]:
        """The data and the seconds it may still be used. Raises ValueError on anything else."""
        from cryptography.exceptions import InvalidTag

        assert self._new_cipher is not None
        if not isinstance(sealed, bytes):
            raise ValueError("not bytes")
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            body = self._new_cipher(key.seal).decrypt(nonce, rest, place.encode())
        except InvalidTag as error:
            raise ValueError("not sealed for this question") from error
        (expires_s,) = struct.unpack(">d", body[:8])
        return bytes(body[8:]), float(expires_s) - time.time()

    def _places(self, key: CacheKey, level: int) -> list[str]:
        return [f"{key.name}:{each}" for each in self._levels if each >= level]

    def _keep(self, place: str, data: bytes, ttl_s: float) -> None:
        self._kept.put(place, data, ttl_s)
        self._metrics.entries.set(len(self._kept))
        self._metrics.used_bytes.set(self._kept.used_bytes)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)
        return task


def _read_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _find_cipher() -> Callable[[bytes], Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ValueError("keeping answers in Redis needs the package cryptography") from error
    return AESGCM
