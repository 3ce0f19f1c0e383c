"""The result cache: answers given before, and one computation for identical requests.

An entry is found by a keyed hash of the normalised fact, the model's manifest and the prompt
version; the fact itself is stored nowhere. Beside the hash stands the thinking budget that the
answer was made with. A request whose deadline allows `b` tokens takes an
answer made with `b` or more, never one made with less: a generous answer may serve a tight
deadline, not the other way round. Only answers whose thinking ended by itself are kept. Those
don't depend on where the limit stood within a budget level, so entries are kept per level. A
client that caps the reasoning gets no answer that used more than its cap. An answer that several
requests waited for together is held to the same rules before each of them gets it.

In process, the least recently used entry goes first, within a lifetime and a limit in bytes.
Behind it, where configured, stands Redis. Values there are sealed (AES-256-GCM) with a key derived
from the fact and the servers' secret, because a reasoning quotes facts: who reads Redis learns
nothing, and an answer that was made up or altered, or that belongs to another question, is a miss.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from cachetools import TLRUCache
from prometheus_client import CollectorRegistry, Counter, Gauge
from pydantic import TypeAdapter

from curt.dialogue import BUDGET_LEVELS, normalise_fact, state_budget
from curt.engines.protocol import Generation
from serve.redis_link import RedisLink, RedisMissError
from serve.served import Served

MAX_VALUE_BYTES = 65_536
ENTRY_OVERHEAD_BYTES = 600  # of an entry's name, its links and the headers of its objects
NONCE_BYTES = 12
PREFIX = "curt:2:"  # raise the number when what is sealed changes

Source = Literal["hit", "shared", "miss"]


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
    tenant: str = "",
    secret: bytes = b"",
) -> CacheKey:
    """The key of a question.

    Args:
        fact: as the client sent it; facts that are the same once normalised share a key.
        manifest_sha256: hash of the model folder's manifest, so that no model answers for another.
        prompt_version: of the prompt texts.
        tenant: whose question it is; how fast an answer comes must tell nobody that another has
            asked about the same case.
        secret: makes names unguessable, so that nobody who sees them can test for a known fact.
            All servers on one Redis need the same.
    """
    keyed = _keyed_by(secret).copy()
    question = [normalise_fact(fact), manifest_sha256, prompt_version, tenant]
    keyed.update(_write_question(question).encode())
    digest = keyed.digest()
    return CacheKey(digest[:32].hex(), digest[32:])


@lru_cache(maxsize=4)
def _keyed_by(secret: bytes) -> hmac.HMAC:
    """A hash with the secret already in it, to copy: making one takes most of a key's time."""
    return hmac.new(secret, digestmod="sha512")


_write_question = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a served request: all but how long it took and what came of failing."""

    generation: Generation
    thinking_allowed: int
    stated_budget: int
    usual_thinking: int
    allowed_alone: int


_KEPT = TypeAdapter(_Kept)


def write_served(served: Served) -> bytes:
    """A whole verdict as JSON, with no time spent on it: a later request costs none."""
    generation = replace(served.generation, prefill_ms=0.0, decode_ms=0.0)
    kept = _Kept(
        generation,
        served.thinking_allowed,
        served.stated_budget,
        served.usual_thinking,
        served.allowed_alone,
    )
    return _KEPT.dump_json(kept)


def read_served(data: bytes) -> Served:
    """Inverse of `write_served`. Raises ValueError on anything else."""
    kept = _KEPT.validate_json(data, strict=True)
    return Served(
        kept.generation,
        kept.thinking_allowed,
        kept.stated_budget,
        queue_ms=0.0,
        usual_thinking=kept.usual_thinking,
        allowed_alone=kept.allowed_alone,
    )


def level_to_keep(served: Served) -> int | None:
    """The budget level to keep an answer under.

    None for one that must not be kept: degraded, or its thinking cut.
    """
    if served.degraded_reason or served.fallback or served.generation.thinking_cut:
        return None
    return served.stated_budget


def is_shareable(served: Served) -> bool:
    """Whether a concurrent request for the same may have this answer too.

    All but what a deadline stopped, for the other request may have longer.
    """
    return not served.unserved and served.generation.finish != "deadline"


def suits(served: Served, budget_tokens: int, most_tokens: int | None) -> bool:
    """Whether an answer keeps within a client's cap, and a larger budget made it no better."""
    if most_tokens is not None and served.generation.thinking_tokens > most_tokens:
        return False
    if served.thinking_allowed >= budget_tokens:
        return True
    # Within a level the prompt is the same, and thinking that ended by itself would end again.
    same_prompt = served.stated_budget >= state_budget(budget_tokens)
    return same_prompt and not served.generation.thinking_cut


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
class CachedAnswer:
    """An answer and whether it was kept, made together with another request, or made now."""

    value: Served
    source: Source


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Thinking tokens that would be granted now, and the most the client wants (None: any)."""

    budget_tokens: int
    most_tokens: int | None

    def fits(self, served: Served) -> bool:
        return suits(served, self.budget_tokens, self.most_tokens)


@dataclass(slots=True, eq=False)
class _Computation:
    """An answer being made, and how many requests wait for it."""

    task: asyncio.Task[Served]
    deadline_s: float
    waiting: int = 0

    def answer_for(self, wanted: _Wanted) -> Served | None:
        """The answer once it is there, if another request than its first may have it."""
        if self.task.cancelled() or self.task.exception() is not None:
            return None
        served = self.task.result()
        return served if is_shareable(served) and wanted.fits(served) else None


class ResultCache:
    """Answers kept in process and, with a link, in Redis; identical requests are made once."""

    def __init__(
        self,
        metrics: CacheMetrics,
        *,
        max_thinking_tokens: int,
        max_bytes: int,
        ttl_s: float,
        redis: RedisLink | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ValueError without the package that seals what goes to Redis."""
        self._metrics = metrics
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: TLRUCache[str, tuple[float, bytes]] = TLRUCache(
            max_bytes,
            ttu=lambda _, entry, __: entry[0],
            timer=clock,
            getsizeof=lambda entry: len(entry[1]) + ENTRY_OVERHEAD_BYTES,
        )  # (when it expires, the answer as JSON) by name and level
        self._redis = redis
        self._new_cipher = _find_cipher() if redis else None
        top = state_budget(max_thinking_tokens)
        # Most thinking first: of several answers that will do, the best.
        self._levels = tuple(level for level in reversed(BUDGET_LEVELS) if level <= top)
        self._max_thinking_tokens = max_thinking_tokens
        self._computations: dict[str, _Computation] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def get_or_make(
        self,
        key: CacheKey,
        *,
        budget_tokens: int,
        deadline_s: float,
        make: Callable[[], Awaitable[Served]],
        most_tokens: int | None = None,
    ) -> CachedAnswer:
        """A kept answer, one being made right now, or a new one.

        Args:
            key: of the question.
            budget_tokens: thinking the deadline would buy now; 0 where it can't be met at all,
                which a kept answer still can.
            deadline_s: `time.monotonic()` instant by which `make` ends. An answer being made for
                an earlier or equal one is waited for; nobody waits for a later one.
            make: makes the answer; what it raises reaches the request that started it and no
                other. Of those that waited, one starts anew and the rest wait for that one.
            most_tokens: thinking the client wants at most, whatever was thought for others.
        """
        wanted, level = self._wish(budget_tokens, most_tokens)
        place = f"{key.name}:{level}"
        found = self._find_kept(key, level, wanted)
        if found is None and self._redis and not self._joinable(place, deadline_s):
            found = await self._find_in_redis(self._redis, key, level, wanted)
        answer = (
            await self._make_once(key, place, deadline_s, make, wanted)
            if found is None
            else CachedAnswer(found, "hit")
        )
        self._metrics.requests.labels(answer.source).inc()
        return answer

    async def find(
        self, key: CacheKey, *, budget_tokens: int, most_tokens: int | None = None
    ) -> Served | None:
        """A kept answer, for a request whose own answer is then given to `keep`."""
        wanted, level = self._wish(budget_tokens, most_tokens)
        found = self._find_kept(key, level, wanted)
        if found is None and self._redis:
            found = await self._find_in_redis(self._redis, key, level, wanted)
        self._metrics.requests.labels("miss" if found is None else "hit").inc()
        return found

    def keep(self, key: CacheKey, value: Served) -> None:
        """Keep an answer, if it is one that may be kept."""
        level = level_to_keep(value)
        if level is not None:
            data = write_served(value)
            if len(data) <= MAX_VALUE_BYTES:
                place = f"{key.name}:{level}"
                self._keep(place, data, self._ttl_s)
                if self._redis:
                    self._spawn(self._send_to_redis(self._redis, key, place, data))

    async def close(self) -> None:
        """Wait for what is still being written."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _make_once(
        self,
        key: CacheKey,
        place: str,
        deadline_s: float,
        make: Callable[[], Awaitable[Served]],
        wanted: _Wanted,
    ) -> CachedAnswer:
        """Make an answer, or wait for one that is being made and may be shared."""
        while True:
            computation = self._joinable(place, deadline_s)
            is_first = computation is None
            if computation is None:
                task = self._spawn(self._make(key, make))
                task.add_done_callback(_read_failure)  # its waiters may all have gone
                computation = self._computations[place] = _Computation(task, deadline_s)
            computation.waiting += 1
            try:
                await asyncio.wait({computation.task})  # our own cancellation leaves it running
            finally:
                computation.waiting -= 1
                if not computation.waiting:
                    computation.task.cancel()  # nobody wants it any more; nothing to a done one
                if not computation.waiting or computation.task.done():
                    self._forget(place, computation)
            if is_first:
                return CachedAnswer(computation.task.result(), "miss")
            shared = computation.answer_for(wanted)
            if shared is not None:
                return CachedAnswer(shared, "shared")

    def _joinable(self, place: str, deadline_s: float) -> _Computation | None:
        computation = self._computations.get(place)
        if computation is None or computation.task.done() or computation.deadline_s > deadline_s:
            return None
        return computation

    def _forget(self, place: str, computation: _Computation) -> None:
        if self._computations.get(place) is computation:
            del self._computations[place]

    async def _make(self, key: CacheKey, make: Callable[[], Awaitable[Served]]) -> Served:
        value = await make()
        self.keep(key, value)
        return value

    def _wish(self, budget_tokens: int, most_tokens: int | None) -> tuple[_Wanted, int]:
        budget_tokens = min(max(0, budget_tokens), self._max_thinking_tokens)
        return _Wanted(budget_tokens, most_tokens), state_budget(budget_tokens)

    def _find_kept(self, key: CacheKey, level: int, wanted: _Wanted) -> Served | None:
        for place in self._places(key, level):
            entry = self._kept.get(place)
            if entry is not None and wanted.fits(value := read_served(entry[1])):
                return value
        return None

    async def _find_in_redis(
        self, redis: RedisLink, key: CacheKey, level: int, wanted: _Wanted
    ) -> Served | None:
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
                value = read_served(data)
            except ValueError:  # altered, of another question, or of another release
                self._metrics.errors.labels("garbage").inc()
            else:
                if ttl_s > 0:
                    self._keep(place, data, min(ttl_s, self._ttl_s))
                    if wanted.fits(value):
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
        self._kept.pop(place, None)
        with contextlib.suppress(ValueError):  # larger than the whole cache
            self._kept[place] = self._clock() + ttl_s, data
        self._metrics.entries.set(len(self._kept))
        self._metrics.used_bytes.set(self._kept.currsize)

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
