"""The HTTP front: thin routes over the worker pool, with no model code in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST

from curt import __version__
from serve.checks import refuse_unusable
from serve.faults import ClientGoneError, install_handlers
from serve.metrics import Metrics
from serve.middleware import PREDICT_PATH, BodyLimit, RequestContext
from serve.pool import Job, WorkerPool
from serve.reply import Identity, Served, build_reply
from serve.schemas import ErrorReply, PredictReply, PredictRequest
from serve.settings import Settings

PAGE = Path(__file__).with_name("page.html")
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The body is not JSON in UTF-8"},
    413: {"model": ErrorReply, "description": "The body is too large"},
    422: {"model": ErrorReply, "description": "A field is wrong, or the fact is unusable"},
    503: {"model": ErrorReply, "description": "Can't be met now; see Retry-After"},
}


class Pool(Protocol):
    """What the routes need of a worker pool."""

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    async def start(self) -> None:
        """Begin to make ready."""
        ...

    def drain(self) -> None:
        """Take nothing new."""
        ...

    async def stop(self) -> None:
        """Finish what was taken and end."""
        ...

    async def submit(self, job: Job) -> Served:
        """Serve one job or raise a RequestError."""
        ...


def create_app(settings: Settings, pool: Pool | None = None) -> FastAPI:
    """The application over a verified model folder.

    `pool` stands in for the worker pool in tests. Raises ArtifactError when the model folder is
    not valid.
    """
    manifest = settings.manifest()
    identity = Identity.of(settings.model, manifest)
    metrics = Metrics()
    workers: Pool = pool or WorkerPool(
        settings.model,
        manifest,
        metrics,
        workers=settings.workers,
        queue_size=settings.queue_size,
        margin_ms=settings.margin_ms,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await workers.start()
        yield
        await workers.stop()

    app = FastAPIOffline(
        title="Curt",
        summary="刑事裁判预测：在时限内推理 · Criminal verdicts within a deadline",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.pool = workers
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(RequestContext, metrics=metrics)
    install_handlers(app)
    page = PAGE.read_text(encoding="utf-8")

    @app.post(PREDICT_PATH, responses=ERRORS)
    async def predict(body: PredictRequest, request: Request) -> PredictReply:
        """Charges, articles, term, fine and ruling for the facts of one case."""
        state = request.state
        refuse_unusable(body.fact, settings.max_fact_chars)
        deadline_ms = body.deadline_ms
        if deadline_ms is None:
            deadline_ms = settings.default_deadline_ms
        job = Job(body.fact, state.started_s, state.started_s + deadline_ms / 1e3)
        served = await _unless_client_leaves(request, workers, job)
        reply = build_reply(
            served,
            fact=body.fact,
            tasks=body.tasks,
            include_reasoning=body.include_reasoning,
            identity=identity,
            request_id=state.request_id,
            deadline_ms=deadline_ms,
            total_ms=(time.monotonic() - state.started_s) * 1e3,
        )
        _record(metrics, reply, state.log)
        return reply

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the front answers at all."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "Loading or draining"}})
    async def readyz() -> JSONResponse:
        """Whether requests can be served: true after warm-up, false from SIGTERM on."""
        if workers.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, 503, {"Retry-After": "1"})

    @app.get("/metrics", response_class=Response)
    def show_metrics() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/version")
    async def version() -> dict[str, Any]:
        """What is running: code, model, prompt, statutes and the tools that made the model."""
        return {
            "curt": __version__,
            "model": identity.model.model_dump(),
            "stage": manifest.stage,
            "prompt_version": manifest.prompt_version,
            "statute_version": manifest.statute_version,
            "max_fact_tokens": manifest.max_fact_tokens,
            "max_thinking_tokens": manifest.max_thinking_tokens,
            "created": manifest.created,
            "tools": manifest.tools,
        }

    @app.get("/", include_in_schema=False)
    async def show_page() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    return app


async def _unless_client_leaves(request: Request, pool: Pool, job: Job) -> Served:
    """Serve the job; take it out of the queue when the client hangs up. Raises ClientGoneError."""
    serving = asyncio.create_task(pool.submit(job))
    leaving = asyncio.create_task(_wait_for_disconnect(request))
    try:
        await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            return serving.result()
        raise ClientGoneError("client_closed", "the client closed the connection")
    finally:
        serving.cancel()
        leaving.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _record(metrics: Metrics, reply: PredictReply, log: dict[str, Any]) -> None:
    timings, thinking = reply.timings_ms, reply.thinking
    metrics.queue.observe(timings.queue / 1e3)
    metrics.prefill.observe(timings.prefill / 1e3)
    metrics.decode.observe(timings.decode / 1e3)
    metrics.thinking_used.observe(thinking.tokens)
    metrics.thinking_allowed.observe(thinking.allowed)
    if reply.degraded_reason:
        metrics.degraded.labels(reply.degraded_reason).inc()
    if timings.total > reply.deadline_ms:
        metrics.deadline_missed.inc()
    log.update(
        deadline_ms=reply.deadline_ms,
        queue_ms=timings.queue,
        prefill_ms=timings.prefill,
        decode_ms=timings.decode,
        thinking_tokens=thinking.tokens,
        thinking_allowed=thinking.allowed,
        thinking_cut=thinking.cut,
        degraded=reply.degraded_reason,
        warnings=[warning.code for warning in reply.warnings],
    )
