"""The HTTP front: thin routes over the worker pool, with no model code in this process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi_offline import FastAPIOffline

from curt import __version__
from curt.artifact import Manifest
from curt.classifier.model import Classifier, load_classifier
from curt.engines.registry import serving_engine
from serve.answering.answering import Answering, Choose, OnlyWay, Pool, Startable
from serve.answering.cache import CacheMetrics, ResultCache
from serve.api import admin, batch, health, predict, stream
from serve.api.chat import chat
from serve.api.errors import install_handlers
from serve.api.page import page
from serve.api.reply import Observer, Replies
from serve.api.schemas import (
    API_VERSION,
    PredictReply,
    PredictRequest,
)
from serve.drift import drift
from serve.edge.context import RequestContext
from serve.edge.headers import SafeHeaders, allow_origins
from serve.edge.keys import KeyGuard, open_keys
from serve.edge.limits import BodyLimit, LocalBuckets, Rate, RateLimit, RedisBuckets, parse_proxies
from serve.edge.shedding import AdmissionControl, LoadShedder
from serve.edge.tracing import TraceRequests, Tracing, open_tracing
from serve.feedback import feedback
from serve.feedback.recorder import AnswerRecorder
from serve.metrics import Metrics
from serve.pool.pool import WorkerPool
from serve.pool.spawn import make_spawn
from serve.redis_link import RedisLink
from serve.served import Identity, Served
from serve.settings import Settings
from serve.variants.lifecycle import Variants


def create_app(settings: Settings, pool: Pool | None = None) -> FastAPI:
    """The application over a verified model folder.

    `pool` stands in for the worker pool in tests. Raises ArtifactError when a folder is not valid
    and ValueError when other settings are not.
    """
    manifest = settings.manifest()
    identity = Identity.of(settings.model, manifest)
    metrics = Metrics()
    metrics.describe(
        version=__version__,
        model=identity.model.name,
        manifest=identity.model.manifest,
        precision=identity.model.precision,
    )
    classifier = load_classifier(settings.fallback) if settings.fallback else None
    admission = AdmissionControl()
    variants: Variants | None = None
    if pool is None:
        variants = _make_variants(settings, metrics, classifier, admission.note_refusal)
        workers: Startable = variants
        choose: Choose = variants.router.choose
    else:
        workers, choose = pool, _only_way(pool, identity)
    link = RedisLink(settings.redis_url.get_secret_value()) if settings.redis_url else None
    cache = _make_cache(settings, manifest, metrics, link)
    answering = Answering(choose, settings, metrics, cache=cache, classifier=classifier)
    if classifier:  # a folder that can't tell how sure it is fails now, not at the first request
        answering.reader_for(classifier, identity.model.manifest)
    tracing = open_tracing(settings.otlp_endpoint, os.environ, __version__)
    replies = Replies(answering, settings, metrics)
    recorder = AnswerRecorder.open(settings)
    replies.observers += [recorder.observe, _counting(admission)]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if link:
            await link.open()
        beside = [
            asyncio.create_task(recorder.drift.keep_saving()),
            asyncio.create_task(admission.keep_updating()),
        ]
        await workers.start()
        yield
        await workers.stop()
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        recorder.close()
        if cache:
            await cache.close()
        if link:
            await link.close()
        if tracing:
            await asyncio.to_thread(tracing.close)

    app = FastAPIOffline(
        title="Curt",
        summary="刑事裁判预测：在时限内推理 · Criminal verdicts within a deadline",
        description=f"API version {API_VERSION}",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.pool = workers
    _add_middleware(app, settings, metrics, link, tracing)
    app.add_middleware(LoadShedder, admission=admission, metrics=metrics)
    app.add_middleware(SafeHeaders, hsts_s=settings.hsts_s)
    install_handlers(app)

    # The framework tries routes in turn, and most requests are for the first.
    app.include_router(predict.make_router(answering, replies, settings))
    app.include_router(batch.make_router(answering, replies, settings, metrics.registry))
    app.include_router(stream.make_router(answering, replies, settings))
    app.include_router(chat.make_router(answering, replies, settings, identity))
    if variants:
        app.include_router(admin.make_router(variants))
    app.include_router(drift.make_router(recorder.drift, metrics.registry))
    if recorder.answers is not None and recorder.log is not None:  # a store that is empty is falsy
        on_feedback = recorder.drift.observe_feedback
        app.include_router(
            feedback.make_router(recorder.answers, recorder.log, metrics.registry, on_feedback)
        )

    by_budget = read_budgets(settings.evaluation) if settings.evaluation else []
    app.include_router(health.make_router(workers, metrics, identity, by_budget))
    app.include_router(page.make_router())
    return app


def read_budgets(path: Path) -> list[dict[str, float]]:
    """Accuracy under each thinking budget, as `python -m curt.evaluate` wrote it.

    Raises ValueError when the file holds none.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["by_budget"]
        return [{name: row[name] for name in ("budget", "exact", "n")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"CURT_EVALUATION: {path} is no evaluation ({type(error).__name__}): give one that "
            "`python -m curt.evaluate` wrote"
        ) from None


def _make_variants(
    settings: Settings,
    metrics: Metrics,
    classifier: Classifier | None,
    on_refusal: Callable[[], None],
) -> Variants:
    def make_pool(folder: Path, manifest: Manifest, counts: Metrics) -> WorkerPool:
        return WorkerPool(
            folder,
            manifest,
            counts,
            workers=settings.workers,
            queue_size=settings.queue_size,
            margin_ms=settings.margin_ms,
            # A remote engine has none: whoever is asked again asks the same server.
            spares=0 if settings.engine_url else settings.spares,
            fallback=classifier,
            spawn=make_spawn(settings, folder),
            on_refusal=on_refusal,
        )

    return Variants(
        settings.model,
        make_pool,
        metrics,
        models=settings.models,
        formats=serving_engine(settings.engine).formats,
        state=settings.variants_file,
        keep_previous=settings.keep_previous,
    )


def _counting(admission: AdmissionControl) -> Observer:
    def observe(_: Request, __: PredictRequest, ___: Served, reply: PredictReply) -> None:
        if not reply.degraded:
            admission.note_answer()

    return observe


def _only_way(pool: Pool, identity: Identity) -> Choose:
    return lambda fact, user, request_id: OnlyWay(pool, identity)


def _make_cache(
    settings: Settings, manifest: Manifest, metrics: Metrics, link: RedisLink | None
) -> ResultCache | None:
    if not settings.cache_ttl_s:
        return None
    return ResultCache(
        CacheMetrics(metrics.registry),
        max_thinking_tokens=manifest.max_thinking_tokens,
        max_bytes=settings.cache_bytes,
        ttl_s=settings.cache_ttl_s,
        redis=link,
    )


def _add_middleware(
    app: FastAPI,
    settings: Settings,
    metrics: Metrics,
    link: RedisLink | None,
    tracing: Tracing | None,
) -> None:
    """Each one added stands outside of those before it."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_s=settings.max_body_s)
    if settings.rate_per_s is not None:
        app.add_middleware(
            RateLimit,
            buckets=RedisBuckets(link, settings.secret_bytes()) if link else LocalBuckets(),
            rate=Rate(settings.rate_per_s, settings.rate_burst),
            max_concurrent=settings.max_concurrent,
            trusted_proxies=parse_proxies(settings.trusted_proxies),
            registry=metrics.registry,
        )
    app.add_middleware(KeyGuard, keys=open_keys(settings.keys_file), registry=metrics.registry)
    allow_origins(app, settings.cors_origins)
    if tracing:
        app.add_middleware(TraceRequests, tracing=tracing)
    app.add_middleware(RequestContext, metrics=metrics)
