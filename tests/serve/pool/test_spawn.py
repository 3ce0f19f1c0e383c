"""Which engine serves which folder, and what is said of a wrong choice."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from curt.artifact import MANIFEST, ArtifactError, load_manifest
from curt.engines.registry import ENGINES
from curt.files import sha256, write_json
from serve.app import create_app
from serve.pool.process import WorkerProcess
from serve.pool.remote import RemoteWorker
from serve.pool.spawn import make_spawn
from serve.settings import Settings
from serve.variants.folders import verify
from tests.curt.engines.completions_server import CompletionsServer
from tests.micro import FACTS

URL = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": "vllm"}, "needs CURT_ENGINE_URL"),
        ({"engine": "tensorrt-llm"}, "needs CURT_ENGINE_URL"),
        ({"engine_url": URL}, "CURT_ENGINE=onnxruntime"),
        ({"engine": "vllm", "engine_url": "http://127.0.0.1:9/v1"}, "pattern"),
        ({"engine": "triton", "engine_url": URL}, "tensorrt-llm"),
        ({"engine": "transformers"}, "no engine 'transformers' for serving"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    micro_model: Path, values: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(model=micro_model, **values)  # type: ignore[arg-type]


def test_a_folder_the_engine_can_not_load_is_refused(micro_model: Path, empty_model: Path) -> None:
    needed = "but ort-genai is needed here, for CURT_ENGINE=onnxruntime"
    with pytest.raises(ArtifactError, match=needed):
        Settings(model=micro_model).manifest()
    remote = Settings(model=empty_model, engine="tensorrt-llm", engine_url=URL)
    with pytest.raises(ArtifactError, match="hf or trtllm-hf is needed"):
        remote.manifest()
    assert Settings(model=micro_model, engine="vllm", engine_url=URL).manifest().format == "hf"


def test_a_folder_is_verified_in_the_formats_of_its_engine(micro_model: Path) -> None:
    with pytest.raises(ArtifactError, match="ort-genai is needed"):
        verify(micro_model, None, ENGINES["onnxruntime"].formats)
    assert verify(micro_model, None, ENGINES["vllm"].formats) == load_manifest(micro_model)


def test_each_engine_has_its_workers(micro_model: Path, empty_model: Path) -> None:
    assert isinstance(make_spawn(Settings(model=empty_model), empty_model, "0")(), WorkerProcess)
    remote = Settings(model=micro_model, engine="vllm", engine_url=URL)
    assert isinstance(make_spawn(remote, micro_model, "0")(), RemoteWorker)


def test_workers_have_their_threads_and_each_thread_a_core(ort_model: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    assert Settings(model=ort_model).workers == cores
    assert Settings(model=ort_model, threads=cores).workers == 1
    assert Settings(model=ort_model, threads=cores + 5).workers == 1
    assert Settings(model=ort_model, threads=2, workers=3).workers == 3

    async def count(threads: int) -> int:
        """Threads of a worker that is ready."""
        settings = Settings(model=ort_model, threads=threads)
        worker = make_spawn(settings, ort_model, sha256(ort_model / MANIFEST))()
        try:
            await worker.start()
            return len(list(Path(f"/proc/{worker.pid}/task").iterdir()))
        finally:
            await worker.close()

    assert asyncio.run(count(3)) == asyncio.run(count(1)) + 2


def test_a_remote_folder_that_no_worker_could_use_ends_the_start(
    micro_model: Path, tmp_path: Path
) -> None:
    """Not each worker's start, again and again."""
    folder = shutil.copytree(micro_model, tmp_path / "nested")
    write_json(folder / "config.json", {"text_config": {}})
    remote = Settings(model=folder, engine="vllm", engine_url=URL)
    with pytest.raises(ArtifactError, match=rf"{folder}.*nested in text_config; train from"):
        make_spawn(remote, folder, "0")


@pytest.mark.parametrize("how", ["swapped", "turned"])
def test_a_worker_loads_no_model_that_took_the_place_of_its_own(
    ort_model: Path, tmp_path: Path, how: str
) -> None:
    """`swapped`: another folder under the same name; `turned`: a link that names another one."""
    served, other = tmp_path / "one", tmp_path / "two"
    shutil.copytree(ort_model, served)
    shutil.copytree(ort_model, other)
    manifest = json.loads((other / "manifest.json").read_text())
    write_json(other / "manifest.json", manifest | {"stage": "other"})
    link = tmp_path / "link"
    link.symlink_to(served)
    app = create_app(Settings(model=link, workers=1, spares=0))
    with TestClient(app) as client:
        until_status(client, 200)
        body = {"fact": FACTS[0], "deadline_ms": 20_000}
        name = client.post("/predict", json=body).json()["model"]["manifest"]
        if how == "turned":
            (other / "tokenizer.json").unlink()  # a worker that followed the link would not load
            link.unlink()
            link.symlink_to(other)
        else:
            served.rename(tmp_path / "gone")
            other.rename(served)
        (pid,) = app.state.pool.live.pool.worker_pids
        os.kill(pid, signal.SIGKILL)
        until_status(client, 503)
        if how == "swapped":
            time.sleep(4)  # for the new worker to load and refuse
            assert client.get("/readyz").status_code == 503
        else:
            until_status(client, 200)
            reply = client.post("/predict", json=body | {"deadline_ms": 21_000}).json()
            assert reply["model"]["manifest"] == name


def test_a_second_folder_behind_one_remote_server_is_refused(
    micro_model: Path, empty_model: Path
) -> None:
    remote = Settings(model=micro_model, engine="vllm", engine_url=URL)
    with pytest.raises(ArtifactError, match="start another one"):
        make_spawn(remote, empty_model, "0")


def test_the_whole_server_answers_from_a_remote_engine(micro_model: Path) -> None:
    server = CompletionsServer(micro_model, "tensorrt-llm").start()
    settings = Settings(
        model=micro_model, engine="tensorrt-llm", engine_url=server.url, workers=2,
        otlp_endpoint="http://127.0.0.1:9",
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        assert client.get("/version").json()["model"]["name"] == "model"
        until_status(client, 200)
        response = client.post("/predict", json={"fact": FACTS[0], "deadline_ms": 20_000})
        reply = response.json()
        assert server.traceparents[-1] == response.headers["traceparent"]
        assert reply["thinking"]["tokens"] <= reply["thinking"]["allowed"]
        assert reply["thinking"]["allowed"] > 0
        assert reply["model"]["precision"] == "fp32"
        server.stop()
        until_status(client, 503)
        server.start()
        until_status(client, 200)
    server.stop()
    assert any("response_format" in body for body in server.bodies)
    for penalty in ("presence_penalty", "frequency_penalty"):
        assert {body[penalty] for body in server.bodies} == {0.0}


def until_status(client: TestClient, status: int) -> None:
    end_s = time.monotonic() + 20
    while client.get("/readyz").status_code != status:
        assert time.monotonic() < end_s, "waited in vain"
        time.sleep(0.05)
