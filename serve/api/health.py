"""Routes for those who run the server: is it alive, is it ready, what it counts, what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from curt import __version__
from serve.answering.answering import Startable
from serve.api.schemas import API_VERSION
from serve.metrics import Metrics
from serve.served import Identity


def make_router(
    workers: Startable, metrics: Metrics, identity: Identity, evaluation: Path | None
) -> APIRouter:
    """The routes. Raises ValueError when the file `evaluation` is none."""
    by_budget = read_budgets(evaluation) if evaluation else []
    router = APIRouter()
    manifest = identity.manifest

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """Whether the front answers at all."""
        return {"status": "alive"}

    # What balancers and frameworks ask by default: each means /readyz.
    @router.api_route("/ping", methods=["GET", "HEAD"], include_in_schema=False)
    @router.api_route("/health", methods=["GET", "HEAD"], include_in_schema=False)
    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: {"description": "Loading or draining"}})
    async def readyz() -> JSONResponse:
        """Whether requests can be served: true after warm-up, false from SIGTERM on."""
        if workers.ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, 503, {"Retry-After": "1"})

    @router.get("/metrics", response_class=Response)
    def show_metrics() -> Response:
        """Prometheus metrics."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/version")
    async def version() -> dict[str, Any]:
        """What is running: code, model, prompt, statutes and the tools that made the model."""
        return {
            "curt": __version__,
            "api": API_VERSION,
            "model": identity.model.model_dump(),
            "stage": manifest.stage,
            "prompt_version": manifest.prompt_version,
            "statute_version": manifest.statute_version,
            "max_fact_tokens": manifest.max_fact_tokens,
            "max_thinking_tokens": manifest.max_thinking_tokens,
            "by_budget": by_budget,
            "created": manifest.created,
            "tools": manifest.tools,
        }

    return router


def read_budgets(path: Path) -> list[dict[str, float]]:
    """Accuracy under each thinking budget, from a report of `python -m curt.evaluate`.

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
