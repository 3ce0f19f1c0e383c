"""Several servers behind nginx on one machine, with a Redis they share, as plain processes.

    python -m deploy.replicas up --model artifacts/demo/ort-w8a8 --port 8000
    python -m deploy.replicas update --model artifacts/demo/ort-w8a8
    python -m deploy.replicas down

`update` restarts one server after the other, with a new model folder or the same one: each answers
what it has taken while nginx turns new requests to the others. One that does not become ready gets
its old model back, and the rest are left alone. Other settings come from the environment (CURT_*).
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field
from pydantic_settings import CliPositionalArg

from curt.config import Config, run

ROOT = Path(__file__).parents[1]
NGINX_CONF = Path(__file__).with_name("nginx") / "curt.conf"
HOST = "127.0.0.1"
FAIL_TIMEOUT_S = 1  # nginx leaves a server alone for so long after two failures in a row
READY_S, STOP_S = 120.0, 80.0


class ReplicasConfig(Config):
    """The servers and where they live."""

    action: CliPositionalArg[Literal["up", "update", "down"]]
    """What to do."""
    run: Path = Path("artifacts/demo/replicas")
    """Folder for logs, process ids and what each server keeps."""
    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = None
    """Classifier folder, as CURT_FALLBACK."""
    replicas: int = Field(2, ge=1, le=64)
    """How many servers."""
    port: int = 8000
    """Where nginx listens, on this machine only; the servers have the ports after it."""


def write_replicas_conf(ports: Sequence[int]) -> str:
    """`replicas.conf` of nginx: all servers, all but each, and a map from one to the others."""
    servers = [f"{HOST}:{port}" for port in ports]
    upstreams, ways = {"replicas": servers}, ["    default replicas;"]
    for index, server in enumerate(servers):
        upstreams[f"all_but_{index}"] = [s for s in servers if s != server] or [server]
        # nginx lists every server it asked, separated by commas: the last one is meant.
        ways.append(f'    "~(^|[ ,]){server.replace(".", "[.]")}$" all_but_{index};')
    lines = []
    for name, members in upstreams.items():
        lines += [f"upstream {name} {{", f"    zone {name} 64k;", "    least_conn;"]
        lines += [f"    server {s} max_fails=2 fail_timeout={FAIL_TIMEOUT_S}s;" for s in members]
        # uvicorn closes a connection idle for 5 s; nginx must be the one who closes first.
        lines += ["    keepalive 64;", "    keepalive_timeout 4s;", "}"]
    return "\n".join([*lines, "map $upstream_addr $elsewhere {", *ways, "}", ""])


def environment_of(
    config: ReplicasConfig, index: int, secret: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment of a server: model and cache as all, answers and feedback of its own."""
    folder = config.run.absolute()
    chosen = {
        "CURT_MODEL": config.model.absolute(),
        "CURT_HOST": HOST,
        "CURT_PORT": config.port + 1 + index,
        "CURT_REDIS_URL": f"unix://{folder}/redis.sock",
        "CURT_CACHE_SECRET": secret,
        "CURT_FEEDBACK": folder / f"replica-{index}" / "feedback",
        "CURT_TRUSTED_PROXIES": f'["{HOST}"]',
    }
    if config.fallback:
        chosen["CURT_FALLBACK"] = config.fallback.absolute()
    defaults = {"CURT_SPARES": "0"}  # no warm spare: the other servers stand in
    return defaults | dict(inherited) | {name: str(value) for name, value in chosen.items()}


def up(config: ReplicasConfig) -> None:
    """Start Redis, the servers and nginx; stop what was started where one does not come up."""
    folder = config.run.absolute()
    if (folder / "replicas.json").exists():
        raise RuntimeError(f"{config.run} is in use: `down` first, or name another --run")
    (folder / "temp").mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # who may enter the folder reaches Redis and the facts that servers keep
    ports = range(config.port + 1, config.port + 1 + config.replicas)
    (folder / "replicas.json").write_text(config.model_dump_json())
    (folder / "secret").write_text(secrets.token_hex(32))
    shutil.copy(NGINX_CONF, folder / "nginx.conf")
    (folder / "replicas.conf").write_text(write_replicas_conf(ports))
    (folder / "listen.conf").write_text(f"listen {HOST}:{config.port};\n")
    redis = ["--port", "0", "--unixsocket", folder / "redis.sock", "--dir", folder, "--save", ""]
    redis += ["--daemonize", "yes", "--pidfile", folder / "redis.pid"]
    redis += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
    try:
        start_daemon("redis-server", *redis)
        for index in range(config.replicas):
            restart(config, index)
        start_daemon("nginx", "-p", f"{folder}/", "-c", folder / "nginx.conf")
    except BaseException:
        down(folder)
        raise


def restart(config: ReplicasConfig, index: int) -> None:
    """Stop a server, which first answers what it has taken, and start it again.

    Raises RuntimeError when it does not become ready.
    """
    name = config.run.absolute() / f"replica-{index}"
    stop(name.with_suffix(".pid"))
    environment = environment_of(config, index, (config.run / "secret").read_text(), os.environ)
    with name.with_suffix(".log").open("ab") as log:
        command = [sys.executable, "-m", "serve"]
        process = subprocess.Popen(  # in a session of its own, so that it outlives the terminal
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    name.with_suffix(".pid").write_text(str(process.pid))
    end_s = time.monotonic() + READY_S
    while not is_ready(config.port + 1 + index):
        if process.poll() is not None or time.monotonic() > end_s:
            raise RuntimeError(f"{name.name} did not become ready: see {name}.log")
        time.sleep(0.1)


def update(config: ReplicasConfig, model: Path) -> None:
    """Restart the servers one by one with a model folder, another one or the same.

    Raises RuntimeError when one does not become ready; it then has its old model back.
    """
    new = config.model_copy(update={"model": model})
    for index in range(config.replicas):
        try:
            restart(new, index)
        except RuntimeError:
            restart(config, index)
            raise
        time.sleep(2 * FAIL_TIMEOUT_S)  # until nginx asks this server again
    (config.run / "replicas.json").write_text(new.model_dump_json())


def down(folder: Path) -> None:
    """Stop all of a run: nginx first, then the servers, then Redis."""
    stop(folder / "nginx.pid", signal.SIGQUIT)
    for file in [*sorted(folder.glob("replica-*.pid")), folder / "redis.pid"]:
        stop(file)
    (folder / "replicas.json").unlink(missing_ok=True)


def stop(file: Path, how: signal.Signals = signal.SIGTERM) -> None:
    """End the process whose id a file holds and wait for it; it is killed if that takes long."""
    try:
        process = psutil.Process(int(file.read_text()))
        process.send_signal(how)
        end_s = time.monotonic() + STOP_S
        while process.status() != psutil.STATUS_ZOMBIE:  # ended, but its parent has not looked
            if time.monotonic() > end_s:
                process.kill()
            time.sleep(0.05)
    except (FileNotFoundError, psutil.NoSuchProcess):
        pass  # never started, or ended
    file.unlink(missing_ok=True)


def start_daemon(program: str, *arguments: object) -> None:
    """Run a program that turns itself into a daemon and writes its process id."""
    # On Debian servers live where only root's search path looks.
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin"}
    subprocess.run([program, *map(str, arguments)], env=environment, check=True)


def is_ready(port: int) -> bool:
    """Whether the server at a port of this machine says so."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/readyz", timeout=2):
            return True
    except OSError:  # no connection, or an error status
        return False


def work(config: ReplicasConfig) -> None:
    """Do what was asked; `update` goes by the options that `up` was given."""
    saved = config.run / "replicas.json"
    if config.action == "up":
        up(config)
    elif config.action == "down":
        down(config.run)
    elif not saved.exists():
        raise RuntimeError(f"nothing runs in {config.run}: `up` first, or name another --run")
    else:
        started = ReplicasConfig.model_validate_json(saved.read_bytes())
        update(started, config.model if "model" in config.model_fields_set else started.model)


if __name__ == "__main__":
    run(ReplicasConfig, work, expected=(RuntimeError, OSError, subprocess.CalledProcessError))
