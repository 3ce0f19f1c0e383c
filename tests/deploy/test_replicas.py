"""What `deploy.replicas` writes for nginx and its replicas, and the file for Ray Serve."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.replicas import (
    NGINX_CONF,
    ReplicasConfig,
    environment_of,
    stop,
    update,
    work,
    write_replicas_conf,
)
from serve.api.chat.chat import CHAT_PATH
from serve.api.stream import STREAM_PATH
from serve.edge.context import BATCH_PATH, PREDICT_PATH
from serve.feedback.feedback import FEEDBACK_PATH
from serve.settings import MAX_DEADLINE_MS, Settings
from tests.micro import FACTS

DEPLOY = Path(__file__).parents[2] / "deploy"
SEARCHED = os.environ["PATH"] + ":/usr/sbin"
# What a replica is told about itself and its place, not what a client may do.
DEFAULTS = Settings.model_fields


def nginx_text() -> str:
    return NGINX_CONF.read_text(encoding="utf-8")


def locations() -> dict[str, str]:
    """The body of each location by what it matches."""
    found = re.findall(r"^ {8}location ([^{]+) \{\n(.*?)^ {8}\}", nginx_text(), re.M | re.S)
    return {name.strip(): body for name, body in found}


def setting(name: str) -> str:
    """The value of a directive that stands once."""
    values = re.findall(rf"^ *{name} ([^;]+);", nginx_text(), re.M)
    assert len(set(values)) == 1, (name, values)
    return str(values[0])


def seconds(told: str) -> float:
    number = float(told.removesuffix("ms").removesuffix("s"))
    return number / 1e3 if told.endswith("ms") else number


def test_nginx_reads_the_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=SEARCHED)
    if nginx is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    (tmp_path / "temp").mkdir()
    shutil.copy(NGINX_CONF, tmp_path / "nginx.conf")
    (tmp_path / "replicas.conf").write_text(write_replicas_conf([8001, 8002, 8003]))
    (tmp_path / "listen.conf").write_text("listen 127.0.0.1:8000;\n")
    command = [nginx, "-t", "-p", f"{tmp_path}/", "-c", f"{tmp_path}/nginx.conf"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "[warn]" not in ran.stderr.replace('"user" directive makes sense only', "")


def test_every_replica_has_the_others_to_turn_to() -> None:
    text = write_replicas_conf([8001, 8002, 8003])
    blocks = dict(re.findall(r"upstream (\w+) \{(.*?)\}", text, re.S))
    ports = {
        name: re.findall(r"server 127[.]0[.]0[.]1:(\d+)", body) for name, body in blocks.items()
    }
    assert ports == {
        "replicas": ["8001", "8002", "8003"],
        "all_but_0": ["8002", "8003"],
        "all_but_1": ["8001", "8003"],
        "all_but_2": ["8001", "8002"],
    }
    ways = re.findall(r'"~(.+?)" (\w+);', text)
    assert [way for _, way in ways] == ["all_but_0", "all_but_1", "all_but_2"]
    said = "127.0.0.1:8001, 127.0.0.1:8002"  # the second refused, after the first did not answer
    assert [way for pattern, way in ways if re.search(pattern, said)] == ["all_but_1"]
    assert not any(re.search(pattern, "127.0.0.1:18001") for pattern, _ in ways)


def test_a_replica_alone_has_only_itself() -> None:
    assert "upstream all_but_0 {" in write_replicas_conf([8001])


def test_only_verdicts_and_feedback_are_asked_again_once_sent() -> None:
    bodies = locations()
    again = {name for name, body in bodies.items() if "non_idempotent" in body}
    streams = f"~ ^({STREAM_PATH}|{CHAT_PATH})$"
    whole = f"~ ^{PREDICT_PATH}({BATCH_PATH.removeprefix(PREDICT_PATH)})?$"
    assert again == {whole, f"= {FEEDBACK_PATH}", streams, "@elsewhere"}
    assert "http_404" in bodies[f"= {FEEDBACK_PATH}"]
    assert "http_503" not in nginx_text().replace("error_page 503", "")
    assert "timeout" not in " ".join(re.findall(r"proxy_next_upstream ([^;]+);", nginx_text()))


def test_streams_are_not_held_back() -> None:
    assert "proxy_buffering off" in locations()[f"~ ^({STREAM_PATH}|{CHAT_PATH})$"]


def test_limits_agree_with_the_servers() -> None:
    assert setting("client_max_body_size") == "128k"
    assert setting("client_body_buffer_size") == "128k"  # else bodies were written to disk
    assert DEFAULTS["max_body_bytes"].default == 128 * 1024
    assert seconds(setting("client_body_timeout")) == DEFAULTS["max_body_s"].default
    assert seconds(setting("proxy_read_timeout")) > MAX_DEADLINE_MS / 1e3
    assert seconds(setting("worker_shutdown_timeout")) > MAX_DEADLINE_MS / 1e3
    assert seconds(setting("proxy_connect_timeout")) < 0.4


def test_the_log_of_requests_holds_no_query_and_no_body() -> None:
    (log,) = re.findall(r"log_format (.*?);", nginx_text(), re.S)
    names = set(re.findall(r"\$(\w+)", log))
    assert "uri" in names
    assert names & {"request", "request_uri", "args", "query_string", "request_body"} == set()


def test_replicas_share_what_must_agree_and_nothing_that_one_of_them_writes(
    tmp_path: Path,
) -> None:
    config = ReplicasConfig(action="up", run=tmp_path, model=Path("m"), port=8000)
    inherited = {"PATH": "/bin", "CURT_PORT": "1", "CURT_RATE_PER_S": "5"}
    first, second = (environment_of(config, n, "secret", inherited) for n in (0, 1))
    differ = {name for name in first if first[name] != second[name]}
    assert differ == {"CURT_PORT", "CURT_FEEDBACK"}
    assert (first["CURT_PORT"], second["CURT_PORT"]) == ("8001", "8002")
    assert first["CURT_CACHE_SECRET"] == "secret"
    assert first["CURT_RATE_PER_S"] == "5"
    assert first["PATH"] == "/bin"
    assert json.loads(first["CURT_TRUSTED_PROXIES"]) == ["127.0.0.1"]
    known = {f"CURT_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in first if name.startswith("CURT_")} <= known


def test_stopping_ends_what_runs_and_passes_over_what_has_ended(tmp_path: Path) -> None:
    file = tmp_path / "replica-0.pid"
    stop(file)
    running = subprocess.Popen(["sleep", "60"])
    ended = subprocess.Popen(["true"])
    ended.wait()
    for process in (running, ended):
        file.write_text(f"{process.pid}\n")
        stop(file)
        assert not file.exists()
    assert running.wait(1) == -signal.SIGTERM


def test_an_update_of_nothing_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="`up` first"):
        work(ReplicasConfig(action="update", run=tmp_path))


def test_an_update_to_a_model_that_is_none_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, str]] = []

    def restart(config: ReplicasConfig, index: int) -> None:
        tried.append((index, config.model.name))
        if config.model.name == "new":
            raise RuntimeError("replica-0 did not become ready: no manifest")

    monkeypatch.setattr("deploy.replicas.restart", restart)
    old = ReplicasConfig(action="up", run=tmp_path, model=Path("old"))
    with pytest.raises(RuntimeError, match="no manifest"):
        update(old, Path("new"))
    assert tried == [(0, "new"), (0, "old")]  # the second server was not touched


@pytest.mark.slow
def test_two_servers_come_up_are_updated_under_requests_and_go(
    ort_model: Path, tmp_path: Path
) -> None:
    if not all(shutil.which(name, path=SEARCHED) for name in ("nginx", "redis-server")):
        pytest.skip("apt-get install nginx-light redis-server")
    folder, statuses = tmp_path / "run", []

    def command(*words: object) -> list[str]:
        program = [sys.executable, "-m", "deploy.replicas"]
        return [*program, *map(str, words), f"--run={folder}", "--port=8460"]

    with httpx.Client(base_url="http://127.0.0.1:8460", timeout=30) as client:
        subprocess.run(command("up", f"--model={ort_model}"), check=True)
        try:
            pids = [int(file.read_text()) for file in sorted(folder.glob("replica-*.pid"))]
            with subprocess.Popen(command("update")) as updating:
                while updating.poll() is None:
                    body = {"fact": f"{FACTS[0]}编号{len(statuses)}", "deadline_ms": 20_000}
                    statuses.append(client.post("/predict", json=body).status_code)
                    time.sleep(0.05)
            assert updating.returncode == 0
            new = [int(file.read_text()) for file in sorted(folder.glob("replica-*.pid"))]
        finally:
            subprocess.run(command("down"), check=True)
        assert set(statuses) == {200}
        assert len(pids) == len(new) == 2
        assert not set(pids) & set(new)
        with pytest.raises(httpx.ConnectError):
            client.get("/livez")
    assert list(folder.glob("*.pid")) == []


def ray_serve() -> dict[str, Any]:
    told: dict[str, Any] = yaml.safe_load((DEPLOY / "ray_serve.yaml").read_text(encoding="utf-8"))
    return told


def test_ray_leaves_it_to_the_server_who_waits() -> None:
    (application,) = ray_serve()["applications"]
    (deployment,) = application["deployments"]
    workers = int(application["runtime_env"]["env_vars"]["CURT_WORKERS"])
    assert deployment["max_ongoing_requests"] >= DEFAULTS["queue_size"].default + workers
    assert deployment["graceful_shutdown_timeout_s"] > MAX_DEADLINE_MS / 1e3
    assert ray_serve()["http_options"]["request_timeout_s"] > MAX_DEADLINE_MS / 1e3
    assert deployment["autoscaling_config"]["min_replicas"] >= 2
    known = {f"CURT_{name.upper()}" for name in Settings.model_fields}
    told = {name for name in application["runtime_env"]["env_vars"] if name.startswith("CURT_")}
    assert told <= known
