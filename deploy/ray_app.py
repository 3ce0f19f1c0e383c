"""Curt under Ray Serve: each replica is the same server as `python -m serve`, without its socket.

    export CURT_MODEL=$PWD/artifacts/demo/ort-w8a8 PYTHONPATH=$PWD RAY_SERVE_ENABLE_HA_PROXY=1
    .venv-ray/bin/serve run deploy/ray_serve.yaml       # after `make ray-env`

Each replica reads its settings from the environment, as in serve/settings.py; `ray_serve.yaml`
says how many replicas there are. A replica takes requests once its model has warmed up, is healthy
as long as `/readyz` would say so, and answers all it has taken before it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve

from curt.logs import configure_logging
from serve.answering.answering import Startable
from serve.app import create_app
from serve.settings import Settings

POLL_S = 0.05
STATEFUL_SETTINGS = ("feedback", "models", "variants_file")

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


class NotReadyError(RuntimeError):
    """No worker of the replica is ready."""


def refuse_state(settings: Settings) -> None:
    """Raise ValueError for settings that make a server keep state: Ray moves and ends replicas.

    Only the replica that gave an answer knows it, and likewise a model loaded by `/admin`.
    """
    for name in STATEFUL_SETTINGS:
        if getattr(settings, name) is not None:
            raise ValueError(
                f"CURT_{name.upper()} is for servers with an address of their own, which replicas "
                "of Ray Serve are not: leave it out, and change models by deploying again"
            )


def wait_until_ready(lifespan: Lifespan, workers: Startable) -> Lifespan:
    """The same lifespan, which starts only once the workers have warmed up.

    Ray sends requests to a replica as soon as its lifespan has started.
    """

    @asynccontextmanager
    async def ready(app: FastAPI) -> AsyncIterator[Any]:
        async with lifespan(app) as state:
            while not workers.ready:
                await asyncio.sleep(POLL_S)
            yield state

    return ready


class Replica:
    """One replica: a server with workers of its own, behind Ray's proxy."""

    def __init__(self) -> None:
        settings = Settings()  # type: ignore[call-arg]  # from the environment
        refuse_state(settings)
        configure_logging(json=settings.log_json, background=True)
        self._curt = create_app(settings)
        self._workers: Startable = self._curt.state.pool
        self._curt.router.lifespan_context = wait_until_ready(
            self._curt.router.lifespan_context, self._workers
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Ray asks for it once."""
        return self._curt

    def check_health(self) -> None:
        """Raises NotReadyError where `/readyz` says 503; Ray turns requests away from it then."""
        if not self._workers.ready:
            raise NotReadyError("no worker is ready")


application = ray_serve.deployment(name="curt")(ray_serve.ingress()(Replica)).bind()
