"""What `deploy.replicas` writes for nginx, servers behind it, and the file for Ray Serve."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy.replicas import (
    FAIL_TIMEOUT_S,
    NGINX_CONF,
    ReplicasConfig,
    write_folder,
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
    """The value of a directive that stands once outside of locations."""
    values = re.findall(rf"^ {{0,4}}{name} ([^;]+);", nginx_text(), re.M)
    assert len(set(values)) == 1, (name, values)
    return str(values[0])


def seconds(told: str) -> float:
    number = float(told.removesuffix("ms").removesuffix("s"))
    return number / 1e3 if told.endswith("ms") else number


def test_nginx_reads_the_configuration(tmp_path: Path) -> None:
    nginx = shutil.which("nginx", path=SEARCHED)
    if nginx is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    write_folder(ReplicasConfig(folder=tmp_path, ports=[8001, 8002, 8003]))
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
    batches = locations()["~ ^/batches(/|$)"]
    assert "client_max_body_size 16m" in batches
    assert "proxy_request_buffering off" in batches  # else bodies were written to disk
    assert DEFAULTS["batch_bytes"].default == 16 * 1024**2
    assert seconds(setting("client_body_timeout")) == DEFAULTS["max_body_s"].default
    assert seconds(setting("proxy_read_timeout")) > MAX_DEADLINE_MS / 1e3
    assert seconds(setting("worker_shutdown_timeout")) > MAX_DEADLINE_MS / 1e3
    assert seconds(setting("proxy_connect_timeout")) < 0.4


def test_the_log_of_requests_holds_no_query_and_no_body() -> None:
    (log,) = re.findall(r"log_format (.*?);", nginx_text(), re.S)
    names = set(re.findall(r"\$(\w+)", log))
    assert "uri" in names
    assert names & {"request", "request_uri", "args", "query_string", "request_body"} == set()


@pytest.mark.slow
def test_no_request_is_lost_while_servers_behind_nginx_restart_in_turn(
    ort_model: Path, tmp_path: Path
) -> None:
    nginx = shutil.which("nginx", path=SEARCHED)
    if nginx is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    config = ReplicasConfig(folder=tmp_path / "nginx", port=8460, ports=[8461, 8462])
    write_folder(config)
    command = [nginx, "-p", f"{config.folder}/", "-c", f"{config.folder}/nginx.conf"]

    def start(port: int) -> subprocess.Popen[bytes]:
        own = {"CURT_MODEL": str(ort_model), "CURT_PORT": str(port), "CURT_SPARES": "0"}
        environment = {**os.environ, "CURT_HOST": "127.0.0.1", **own}
        return subprocess.Popen([sys.executable, "-m", "serve"], cwd=DEPLOY.parent, env=environment)

    def wait_until_ready(port: int) -> None:
        end_s = time.monotonic() + 120
        while time.monotonic() < end_s:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                    return
            except httpx.ConnectError:  # not listening yet
                pass
            time.sleep(0.1)
        raise AssertionError(f"no server at port {port}")

    def restart_in_turn() -> None:
        for index, port in enumerate(config.ports):
            servers[index].terminate()
            servers[index].wait(80)
            servers[index] = start(port)
            wait_until_ready(port)
            time.sleep(2 * FAIL_TIMEOUT_S)  # until nginx asks this server again

    servers = [start(port) for port in config.ports]
    try:
        for port in config.ports:
            wait_until_ready(port)
        subprocess.run(command, check=True)
        statuses = []
        with (
            httpx.Client(base_url=f"http://127.0.0.1:{config.port}", timeout=30) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            restarts = pool.submit(restart_in_turn)
            while not restarts.done():
                body = {"fact": f"{FACTS[0]}编号{len(statuses)}", "deadline_ms": 20_000}
                statuses.append(client.post("/predict", json=body).status_code)
                time.sleep(0.05)
            restarts.result()
        assert set(statuses) == {200}
    finally:
        if (config.folder / "nginx.pid").exists():
            subprocess.run([*command, "-s", "quit"], check=True)
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(80)


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
