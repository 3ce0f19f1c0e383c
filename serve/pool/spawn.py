"""What the workers over a model folder are: processes of ours, or requests at a remote engine."""

from __future__ import annotations

import functools
from pathlib import Path

from curt.artifact import ArtifactError, expect_manifest
from curt.engines.registry import serving_engine
from curt.engines.remote import RemoteModel
from curt.engines.tokenizer import read_context_tokens
from serve.pool.process import Spawn, WorkerProcess
from serve.pool.worker import open_worker_engine
from serve.settings import Settings


def make_spawn(settings: Settings, folder: Path, manifest_sha256: str) -> Spawn:
    """What makes the workers over a verified folder, which load no other that takes its place.

    Raises ArtifactError for a second folder behind a remote server, which serves the one it was
    started with.
    """
    if not serving_engine(settings.engine).is_remote:
        open_engine = functools.partial(
            open_worker_engine, manifest_sha256=manifest_sha256, threads=settings.threads
        )
        return lambda: WorkerProcess(folder, open_engine)
    if folder.resolve() != settings.model.resolve():
        raise ArtifactError(
            f"{folder.name}: the {settings.engine} server serves {settings.model.name}; start "
            "another one, with a server of ours in front of it"
        )
    from serve.pool.remote import RemoteServer, RemoteWorker

    read_context_tokens(folder)  # or each worker would fail at it, again and again
    open_model = functools.partial(open_remote_model, settings, folder, manifest_sha256)
    server = RemoteServer(open_model)
    return lambda: RemoteWorker(server)


def open_remote_model(settings: Settings, folder: Path, manifest_sha256: str) -> RemoteModel:
    """The folder as the remote server of the settings serves it. Raises ArtifactError."""
    engine = serving_engine(settings.engine)
    assert issubclass(engine, RemoteModel)
    assert settings.engine_url is not None, "the settings were validated"
    key = settings.engine_api_key
    model = engine(
        folder,
        settings.engine_url,
        served_name=settings.engine_model,
        api_key=key.get_secret_value() if key else None,
    )
    expect_manifest(folder, manifest_sha256)
    return model
