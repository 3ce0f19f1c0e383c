"""From a fact to a served answer, for every route: job, variant, cache, pool and confidence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fastapi import Request

from curt.classifier.model import Classifier, Reading
from curt.law.verdict import Verdict
from serve.answering.cache import CacheKey, ResultCache, cache_key
from serve.answering.checks import OnUnusable, refuse_unusable
from serve.answering.confidence import (
    LOW_CONFIDENCE,
    UNFAMILIAR,
    Confidence,
    ConfidenceReader,
)
from serve.errors import ClientGoneError
from serve.metrics import CLIENT_CLOSED, Metrics
from serve.pool.job import Job, JobStream, KeptAnswer, ServedStream
from serve.served import Identity, Served
from serve.settings import Settings

DEFAULT_VARIANT = "default"
READ_AFTER_S = 0.002  # by then a worker has the request, if one was free
Choose = Callable[[], "Way"]
"""Draws the way of a request."""


class Startable(Protocol):
    """What is started with the server, gets ready, drains and stops."""

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    async def start(self) -> None:
        """Begin to get ready."""
        ...

    def drain(self) -> None:
        """Take no new requests."""
        ...

    async def stop(self) -> None:
        """Finish what was taken and end."""
        ...


class JobServer(Protocol):
    """What serves jobs: a pool, or a variant of the model with its pool."""

    async def submit(self, job: Job) -> Served:
        """Serve one job or raise a RequestError."""
        ...

    def stream(self, job: Job) -> ServedStream:
        """Serve one job and stream its reasoning, or raise a RequestError."""
        ...

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens a job would be granted now; None where it would be refused."""
        ...


class Pool(Startable, JobServer, Protocol):
    """A worker pool, as the routes need it."""


class Way(JobServer, Protocol):
    """The way of one request: to which variant of the model."""

    @property
    def name(self) -> str:
        """Name of the variant."""
        ...

    @property
    def identity(self) -> Identity:
        """The model behind it."""
        ...


@dataclass(frozen=True, slots=True)
class OnlyWay:
    """The way of every request where there is a single pool."""

    pool: Pool
    identity: Identity
    name: str = DEFAULT_VARIANT

    async def submit(self, job: Job) -> Served:
        """Serve the job or raise a RequestError."""
        return await self.pool.submit(job)

    def stream(self, job: Job) -> ServedStream:
        """Serve the job and stream its reasoning."""
        return self.pool.stream(job)

    def expected_thinking(self, job: Job) -> int | None:
        """Thinking tokens it would be granted now."""
        return self.pool.expected_thinking(job)


class Answering:
    """Serves the jobs of all routes and says how sure their verdicts are."""

    def __init__(
        self,
        choose: Choose,
        settings: Settings,
        metrics: Metrics,
        *,
        cache: ResultCache | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        """`choose` picks the variant for a request; without `cache` every job goes to a pool."""
        self._choose, self._settings, self._metrics = choose, settings, metrics
        self._cache, self._classifier = cache, classifier
        self._readers: dict[str, ConfidenceReader] = {}
        self._secret = settings.secret_bytes()

    def choose(self, request: Request) -> Way:
        """Choose the way of a request and note it in the request's state and log."""
        way = self._choose()
        request.state.way = way
        request.state.log["variant"] = way.name
        return way

    async def stream(self, request: Request, job: Job) -> JobStream:
        """Serve a job and stream its reasoning, which a kept answer has none of.

        Raises RequestError where it is refused.
        """
        way, job = self.choose(request), _owned(request, job)
        cache = self._cache
        if cache is None:
            return way.stream(job)
        key = self._key_of(way, request, job)
        budget = way.expected_thinking(job) or 0
        kept = await cache.find(key, budget_tokens=budget, most_tokens=job.max_thinking_tokens)
        request.state.log["cache"] = "miss" if kept is None else "hit"
        if kept is not None:
            return KeptAnswer(kept)
        stream = way.stream(job)
        stream.on_end(lambda how: cache.keep(key, how) if isinstance(how, Served) else None)
        return stream

    async def serve(self, request: Request, job: Job) -> Served:
        """Serve a job, from the cache if possible; stop when its client leaves.

        Raises RequestError, and ClientGoneError (a RequestError) when the client leaves.
        """
        way, job = self.choose(request), _owned(request, job)
        reading = self._read_later(request, way, job.fact)
        try:
            async with Attended(request):
                return await self._look_up(way, request, job)
        finally:
            if reading:
                reading.cancel()

    async def _look_up(self, way: Way, request: Request, job: Job) -> Served:
        if self._cache is None or job.background:  # nobody else waits for one of these
            return await way.submit(job)
        answer = await self._cache.get_or_make(
            self._key_of(way, request, job),
            budget_tokens=way.expected_thinking(job) or 0,
            deadline_s=job.deadline_s,
            make=lambda: way.submit(job),
            most_tokens=job.max_thinking_tokens,
        )
        request.state.log["cache"] = answer.source
        return answer.value

    def _key_of(self, way: Way, request: Request, job: Job) -> CacheKey:
        record = getattr(request.state, "api_key", None)
        tenant = "" if record is None or self._settings.cache_shared else record.id
        return cache_key(
            job.fact,
            manifest_sha256=way.identity.manifest_sha256,
            prompt_version=way.identity.manifest.prompt_version,
            tenant=tenant,
            secret=self._secret,
        )

    def _read_later(self, request: Request, way: Way, fact: str) -> asyncio.TimerHandle | None:
        """Let the classifier read the fact while a worker is busy, rather than after its answer.

        Where the model has a reader, the worker reads the fact anyway.
        """
        if self._classifier is None or way.identity.manifest.reader:
            return None
        reading = request.state.reading = Reading(self._classifier, fact)
        return asyncio.get_running_loop().call_later(READ_AFTER_S, reading.look)

    def figures_beyond(self, request: Request, fact: str, served: Served) -> Sequence[str]:
        """Figures of a fact unlike all that the classifier was trained on; none without one."""
        reading = self._reading(request, fact, served)
        return reading.figures_beyond if reading else ()

    def _reading(self, request: Request, fact: str, served: Served) -> Reading | None:
        if self._classifier is None:
            return None
        if (found := served.findings) and found.by == self._classifier.digest:
            return Reading(self._classifier, fact, found)
        return getattr(request.state, "reading", None) or self._classifier.reading(fact)

    def settle(self, request: Request, fact: str, served: Served) -> Served:
        """The answer, with another verdict where the model's is overruled (`Served.overruled`).

        Not for a fact unlike those on which it was found who is right more often.
        """
        verdict, reading = served.model_verdict, self._reading(request, fact, served)
        if verdict is None or reading is None or self._classifier is None or reading.unfamiliar:
            return served
        reader = self.reader_for(self._classifier, request.state.way.identity.model.manifest)
        return replace(served, overruled=reader.overrule(verdict, reading))

    def assess(
        self, request: Request, fact: str, served: Served, *, top_k: int
    ) -> tuple[Confidence | None, str | None]:
        """How sure the verdict is, and the code of a warning where it is doubtful or unknown."""
        verdict = served.verdict or served.completion.verdict
        reading = self._reading(request, fact, served)
        if self._classifier is None or reading is None or not isinstance(verdict, Verdict):
            return None, None
        reader = self.reader_for(self._classifier, request.state.way.identity.model.manifest)
        if reading.unfamiliar:
            return None, UNFAMILIAR
        confidence = reader.assess(
            fact,
            verdict,
            served.generation.thinking_cut,
            thinking_tokens=served.generation.thinking_tokens,
            source=served.source,
            top_k=top_k,
            reading=reading,
        )
        doubtful = confidence is not None and confidence.abstain
        return confidence, LOW_CONFIDENCE if doubtful else None

    def reader_for(self, classifier: Classifier, manifest: str) -> ConfidenceReader:
        """The reader for one model's answers. Raises ValueError on a classifier that can't tell."""
        if manifest not in self._readers:
            self._readers[manifest] = ConfidenceReader(
                classifier,
                model_manifest=manifest,
                coverage=self._settings.interval_coverage,
                abstain_below=self._settings.abstain_below,
            )
        return self._readers[manifest]


def make_job(
    fact: str,
    started_s: float,
    deadline_ms: int | None,
    settings: Settings,
    *,
    kept_back_ms: float = 0.0,
    max_thinking_tokens: int | None = None,
    on_unusable: OnUnusable = "warn",
) -> Job:
    """The job of a request that began at `started_s` and is to be answered within `deadline_ms`.

    The server's default holds where no deadline is given; `kept_back_ms` of it are left for what
    comes after the job. Raises UnusableFactError for a fact that no verdict can be given on.
    """
    refuse_unusable(fact, settings.max_fact_chars, on_unusable)
    allowed_s = (settings.deadline_ms(deadline_ms) - kept_back_ms) / 1e3
    return Job(fact, started_s, started_s + allowed_s, max_thinking_tokens)


def _owned(request: Request, job: Job) -> Job:
    """The job with whose it is and the span it belongs to."""
    record = getattr(request.state, "api_key", None)
    header = getattr(request.state, "traceparent", None)
    background = getattr(request.state, "background", False)
    if record is None and header is None and not background:
        return job
    client, weight = (record.id, record.weight) if record else ("", 1.0)
    return replace(job, traceparent=header, client=client, weight=weight, background=background)


class Attended:
    """A context that cancels the running task when the request's client leaves.

    It then raises ClientGoneError. The work stays in the running task, because a task of its own
    would cost every request two more turns of the event loop; only listening for the client is
    one.
    """

    def __init__(self, request: Request) -> None:
        self._request = request
        self._gone = self._over = False

    async def __aenter__(self) -> None:
        working = asyncio.current_task()
        assert working is not None
        self._working = working
        self._leaving = asyncio.create_task(wait_for_disconnect(self._request))
        self._leaving.add_done_callback(self._stop)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        self._over = True
        self._leaving.cancel()
        if self._gone and self._working.uncancel() == 0 and kind is asyncio.CancelledError:
            raise ClientGoneError(CLIENT_CLOSED, "the client closed the connection") from None

    def _stop(self, _: asyncio.Task[None]) -> None:
        if not self._over:
            self._gone = True
            self._working.cancel()


async def wait_for_disconnect(request: Request) -> None:
    """Return when the client of a request hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
