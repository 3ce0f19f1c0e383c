"""Builds the application from its settings: workers, answering, middleware and routes.

No model code runs in this process; the workers have it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi_offline import FastAPIOffline

from curt import __version__
from curt.artifact import Manifest
from curt.classifier.model import Classifier, load_classifier
from curt.corpus.kinds import fit_classifier
from curt.engines.registry import serving_engine
from serve.answering.answering import Answering, Choose, OnlyWay, Pool, Startable
from serve.answering.cache import CacheMetrics, ResultCache
from serve.api import admin, batch, health, predict, stream
from serve.api.chat import chat
from serve.api.errors import install_handlers
from serve.api.page import page
from serve.api.reply import Observer, Replies
from serve.api.schemas import API_VERSION, PredictReply, PredictRequest
from serve.batches import batches
from serve.batches.store import BatchStore
from serve.drift import Drift
from serve.edge.context import BATCHES_PATH, RequestContext
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
    stand_in = settings.classifier_folder()
    classifier = load_classifier(stand_in) if stand_in else None
    admission = AdmissionControl()
    variants: Variants | None = None
    if pool is None:
        variants = _make_variants(settings, metrics, classifier, admission.note_refusal)
        workers: Startable = variants
        choose: Choose = variants.choose
    else:
        only_way = OnlyWay(pool, identity)
        workers, choose = pool, lambda: only_way
    redis = RedisLink(settings.redis_url.get_secret_value()) if settings.redis_url else None
    cache = _make_cache(settings, manifest, metrics, redis)
    answering = Answering(choose, settings, metrics, cache=cache, classifier=classifier)
    if classifier:  # fail now, not at the first request, if it has no confidence for this model
        answering.reader_for(classifier, identity.model.manifest)
    tracing = open_tracing(settings.otlp_endpoint, os.environ, __version__)
    fit_classifier()  # of kinds: half a second now, and not of the first request
    replies = Replies(answering, settings, metrics)
    recorder = AnswerRecorder.open(settings)
    replies.observers.append(_note_answers(admission))
    if recorder:
        replies.observers.append(recorder.observe)
    if settings.drift_reference:
        drift = Drift(settings.drift_reference, metrics.registry)
        replies.observers.append(lambda _, __, served, ___: drift.observe(served))
    several = batch.Batches(answering, replies, settings, metrics)
    predict_routes = predict.make_router(answering, replies, settings, several)
    chat_routes = chat.make_router(answering, replies, settings, identity)
    batch_work = _make_batch_work(settings, workers, metrics, predict_routes, chat_routes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as closing:  # in the reverse order
            if tracing:
                closing.push_async_callback(asyncio.to_thread, tracing.close)
            if redis:
                await redis.open()
                closing.push_async_callback(redis.close)
            if cache:
                closing.push_async_callback(cache.close)
            if recorder:
                closing.callback(recorder.close)
            task = asyncio.create_task(admission.keep_updating())
            closing.push_async_callback(_cancel, task)
            await workers.start()
            closing.push_async_callback(workers.stop)
            if batch_work:
                task = asyncio.create_task(batch_work.keep_working())
                closing.push_async_callback(_cancel, task)
            yield

    app = FastAPIOffline(
        title="Curt",
        summary="刑事裁判预测：在时限内推理 · Criminal verdicts within a deadline",
        description=f"API version {API_VERSION}",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.pool = workers
    _add_middleware(app, settings, metrics, admission, redis, tracing)
    install_handlers(app)

    # The framework tries routes in turn, and most requests are for the first.
    app.include_router(predict_routes)
    app.include_router(batch.make_router(several))
    app.include_router(stream.make_router(answering, replies, settings))
    app.include_router(chat_routes)
    if batch_work:
        app.include_router(batches.make_router(batch_work))
    if variants:
        app.include_router(admin.make_router(variants))
    if recorder:
        app.include_router(feedback.make_router(recorder.answers, recorder.log, metrics.registry))
    app.include_router(health.make_router(workers, metrics, identity, settings.evaluation))
    app.include_router(page.make_router())
    return app


def _make_variants(
    settings: Settings,
    metrics: Metrics,
    classifier: Classifier | None,
    on_refusal: Callable[[], None],
) -> Variants:
    def make_pool(folder: Path, identity: Identity, counts: Metrics) -> WorkerPool:
        return WorkerPool(
            folder,
            identity.manifest,
            counts,
            workers=settings.workers,
            queue_size=settings.queue_size,
            margin_ms=settings.margin_ms,
            # A remote engine needs none: a second try asks the same server anyway.
            spares=0 if settings.engine_url else settings.spares,
            fallback=classifier,
            spawn=make_spawn(settings, folder, identity.manifest_sha256),
            on_refusal=on_refusal,
        )

    return Variants(
        settings.model,
        make_pool,
        metrics,
        models=settings.models,
        formats=serving_engine(settings.engine).formats,
        state=settings.variants_file,
    )


def _make_batch_work(
    settings: Settings, workers: Startable, metrics: Metrics, *routers: APIRouter
) -> batches.BatchWork | None:
    """Batches asked of routes of their own, which no middleware counts or limits."""
    if settings.batches is None:
        return None
    store = BatchStore(settings.batches, settings.batch_cases, settings.batch_retention_s)
    routes = FastAPI(openapi_url=None)
    install_handlers(routes)
    for router in routers:
        routes.include_router(router, prefix=BATCHES_PATH)
    width = settings.workers + 2  # so that no worker waits while a result is written
    asked = RequestContext(routes, metrics)
    return batches.BatchWork(store, asked, workers, width, metrics.registry)


def _note_answers(admission: AdmissionControl) -> Observer:
    def observe(_: Request, __: PredictRequest, ___: Served, reply: PredictReply) -> None:
        if not reply.degraded:
            admission.note_answer()

    return observe


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _make_cache(
    settings: Settings, manifest: Manifest, metrics: Metrics, redis: RedisLink | None
) -> ResultCache | None:
    if not settings.cache_ttl_s:
        return None
    return ResultCache(
        CacheMetrics(metrics.registry),
        max_thinking_tokens=manifest.max_thinking_tokens,
        max_bytes=settings.cache_bytes,
        ttl_s=settings.cache_ttl_s,
        redis=redis,
    )


def _add_middleware(
    app: FastAPI,
    settings: Settings,
    metrics: Metrics,
    admission: AdmissionControl,
    redis: RedisLink | None,
    tracing: Tracing | None,
) -> None:
    """Add what every request passes: each added one stands outside of those before it."""
    batch_bytes = settings.batch_bytes if settings.batches else 0
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        max_s=settings.max_body_s,
        batch_bytes=batch_bytes,
    )
    per_s = settings.rate_per_s
    if per_s is not None or settings.keys_file is not None:  # keys may have limits of their own
        app.add_middleware(
            RateLimit,
            buckets=RedisBuckets(redis, settings.secret_bytes()) if redis else LocalBuckets(),
            rate=Rate(per_s, settings.rate_burst) if per_s is not None else None,
            max_concurrent=settings.max_concurrent if per_s is not None else math.inf,
            trusted_proxies=parse_proxies(settings.trusted_proxies),
            registry=metrics.registry,
        )
    keys = open_keys(settings.keys_file)
    app.add_middleware(KeyGuard, keys=keys, registry=metrics.registry)
    allow_origins(app, settings.cors_origins)
    if tracing:
        app.add_middleware(TraceRequests, tracing=tracing)
    app.add_middleware(RequestContext, metrics=metrics)
    app.add_middleware(LoadShedder, admission=admission, metrics=metrics, keys=keys)
    app.add_middleware(SafeHeaders, hsts_s=settings.hsts_s)
