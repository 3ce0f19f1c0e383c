"""Which engine serves a model folder, and what its workers are."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from curt.artifact import ArtifactError
from serve.pool.process import Spawn, WorkerProcess
from serve.pool.worker import open_ort_engine, open_transformers_engine
from serve.settings import Settings

if TYPE_CHECKING:
    from curt.engines.remote.engine import RemoteModel


def make_spawn(settings: Settings, folder: Path) -> Spawn:
    """What makes the workers over a verified folder: processes of ours, or requests in flight.

    Raises ArtifactError for a second folder behind a remote server, which serves the one it was
    started with.
    """
    if settings.engine == "onnxruntime":
        open_ort = functools.partial(open_ort_engine, guided=settings.guided)
        return lambda: WorkerProcess(folder, open_ort)
    if settings.engine == "transformers":
        return lambda: WorkerProcess(folder, open_transformers_engine)
    if folder.resolve() != settings.model.resolve():
        raise ArtifactError(
            f"{folder.name}: the {settings.engine} server serves {settings.model.name}; start "
            "another one, with a server of ours in front of it"
        )
    from serve.pool.remote import RemoteServer, RemoteWorker

    server = RemoteServer(functools.partial(open_remote_model, settings, folder))
    return lambda: RemoteWorker(server)


def open_remote_model(settings: Settings, folder: Path) -> RemoteModel:
    """The folder as the remote server of the settings serves it. Raises ArtifactError."""
    from curt.engines.remote.engine import RemoteModel

    assert settings.engine in ("vllm", "tensorrt-llm")
    assert settings.engine_url is not None, "the settings were validated"
    key = settings.engine_api_key
    return RemoteModel(
        folder,
        settings.engine_url,
        settings.engine,
        served_name=settings.engine_model,
        api_key=key.get_secret_value() if key else None,
        guided=settings.guided,
    )
