"""Several replicas behind nginx on one machine, with a Redis they share, as plain processes.

    python -m deploy.replicas up --model artifacts/demo/ort-w8a8 --replicas 2 --port 8000
    python -m deploy.replicas update --model artifacts/demo/ort-int8
    python -m deploy.replicas revive
    python -m deploy.replicas down

`revive` starts again what has ended by itself. `update` restarts one replica after the other, with
a new model folder or the same one: SIGTERM, what it has taken is answered while nginx turns new
requests to the others, and the next one follows only when it is ready again. A replica that does
not become ready goes back to the model it had, and the rest are left alone. The options of `up` are
kept in the run's folder for the other three.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from curt.config import Config, load_config
from curt.files import write_atomic
from curt.logs import configure_logging

logger = logging.getLogger("deploy.replicas")

ROOT = Path(__file__).parents[1]
NGINX_CONF = Path(__file__).with_name("nginx") / "curt.conf"
HOST = "127.0.0.1"
# nginx leaves a replica alone for so long after so many failures in a row.
MAX_FAILS, FAIL_TIMEOUT_S = 2, 1
# uvicorn closes a connection idle for 5 s; nginx must be the one who closes first.
UPSTREAM_KEEPALIVE_S = 4
SETTLE_S = 2 * FAIL_TIMEOUT_S  # until nginx asks a replica again that came back
READY_S, STOP_S = 120.0, 80.0
SAVED = "replicas.json"


class ReplicasConfig(Config):
    """The replicas and where they live."""

    run: Path = Path("artifacts/demo/replicas")
    """Folder for logs, process ids and what each replica keeps."""
    model: Path = Path("artifacts/demo/ort-w8a8")
    """Model folder to serve."""
    fallback: Path | None = None
    """Classifier folder, as CURT_FALLBACK."""
    replicas: int = Field(2, ge=1, le=64)
    """How many."""
    workers: int = Field(1, ge=1)
    """Worker processes of each."""
    spares: int = Field(0, ge=0)
    """Warm spares of each; the other replicas stand in anyway."""
    port: int = 8000
    """Where nginx listens, on all addresses unless `listen` says otherwise."""
    listen: str = HOST
    """Address nginx listens on."""
    first_port: int = 8001
    """Port of the first replica, on this machine only; the others follow."""
    settings: dict[str, str] = Field(default_factory=dict)
    """More settings of serve/settings.py by name: {"rate_per_s": "20"}."""


def write_replicas_conf(ports: Sequence[int]) -> str:
    """`replicas.conf` of nginx: all replicas, all but each, and the way from one to the others."""
    servers = [f"{HOST}:{port}" for port in ports]
    blocks = [_write_upstream("replicas", servers)]
    ways = []
    for index, server in enumerate(servers):
        others = [other for other in servers if other != server] or [server]
        blocks.append(_write_upstream(f"all_but_{index}", others))
        # What was asked before it, nginx writes in front, after a comma.
        ways.append(f'    "~(^|[ ,]){server.replace(".", "[.]")}$" all_but_{index};')
    ways_text = "\n".join(["map $upstream_addr $elsewhere {", "    default replicas;", *ways, "}"])
    return "\n".join([*blocks, ways_text, ""])


def environment_of(
    config: ReplicasConfig, index: int, secret: str, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment of one replica.

    What replicas must agree on is the same for all (model, cache and its secret); what one of them
    writes is its own: answers and feedback. None of the inherited CURT_ variables counts.
    """
    home = config.run.absolute() / f"replica-{index}"
    chosen: dict[str, object] = {
        "model": config.model.absolute(),
        "fallback": config.fallback and config.fallback.absolute(),
        "host": HOST,
        "port": config.first_port + index,
        "workers": config.workers,
        "spares": config.spares,
        "redis_url": f"unix://{config.run.absolute() / 'redis.sock'}",
        "cache_secret": secret,
        "feedback": home / "feedback",
        "trusted_proxies": f'["{HOST}"]',
        **config.settings,
    }
    named = {f"CURT_{name.upper()}": str(v) for name, v in chosen.items() if v is not None}
    return {k: v for k, v in inherited.items() if not k.startswith("CURT_")} | named


def up(config: ReplicasConfig) -> None:
    """Start Redis, the replicas and nginx. Raises RuntimeError when one of them does not come up.

    What was started by then is stopped again.
    """
    if (config.run / SAVED).exists():
        raise RuntimeError(f"{config.run} is in use: `down` first, or name another --run")
    config.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(config.run / SAVED, config.model_dump_json(indent=2) + "\n")
    try:
        _start_redis(config)
        _write_secret(config.run / "secret")
        for index in range(config.replicas):
            _start_replica(config, index)
        for index in range(config.replicas):
            _wait_until_ready(config, index)
        _start_nginx(config)
    except BaseException:
        down(config.run)
        raise
    logger.info("%d replicas at http://%s:%d", config.replicas, config.listen, config.port)


def update(config: ReplicasConfig, model: Path) -> None:
    """Restart the replicas one by one with another model folder, or with the same one.

    Raises RuntimeError when one does not become ready; it then has its old model back.
    """
    new = config.model_copy(update={"model": model})
    for index in range(config.replicas):
        restart(new, index, otherwise=config)
        time.sleep(SETTLE_S)
    write_atomic(config.run / SAVED, new.model_dump_json(indent=2) + "\n")


def revive(config: ReplicasConfig) -> None:
    """Start again what has ended by itself, and wait until nginx asks it again.

    Raises RuntimeError when one does not become ready.
    """
    gone = [i for i in range(config.replicas) if read_pid(config.run / f"replica-{i}.pid") is None]
    for index in gone:
        restart(config, index)
    if gone:  # else the next to go would leave nginx with nobody
        time.sleep(SETTLE_S)


def restart(config: ReplicasConfig, index: int, otherwise: ReplicasConfig | None = None) -> None:
    """Stop a replica, which first answers what it has taken, and start it again.

    One that is gone already is only started. Raises RuntimeError when it does not become ready;
    with `otherwise` it is started so instead.
    """
    _stop(config.run / f"replica-{index}.pid", STOP_S)
    try:
        _start_replica(config, index)
        _wait_until_ready(config, index)
    except RuntimeError:
        _stop(config.run / f"replica-{index}.pid", STOP_S)
        if otherwise is not None:
            restart(otherwise, index)
        raise
    logger.info("replica %d serves %s", index, config.model.name)


def down(run: Path) -> None:
    """Stop all of a run: nginx first, then the replicas, then Redis."""
    _stop(run / "nginx.pid", STOP_S, signal.SIGQUIT)
    for file in sorted(run.glob("replica-*.pid")):
        _stop(file, STOP_S)
    _stop(run / "redis.pid", STOP_S)
    (run / SAVED).unlink(missing_ok=True)


def load_saved(run: Path) -> ReplicasConfig:
    """What `up` was started with. Raises RuntimeError when nothing was."""
    try:
        saved = (run / SAVED).read_text(encoding="utf-8")
    except OSError:
        raise RuntimeError(f"nothing runs in {run}: `up` first, or name another --run") from None
    return ReplicasConfig.model_validate_json(saved)


def read_pid(file: Path) -> int | None:
    """The process a file names, if it is alive."""
    try:
        pid = int(file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):  # never started, half written or ended
        return None
    return None if _is_zombie(pid) else pid


def is_ready(port: int) -> bool:
    """Whether the server at a port of this machine says so."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _write_upstream(name: str, servers: Sequence[str]) -> str:
    rows = [
        f"    server {s} max_fails={MAX_FAILS} fail_timeout={FAIL_TIMEOUT_S}s;" for s in servers
    ]
    return "\n".join(
        [
            f"upstream {name} {{",
            f"    zone {name} 64k;",
            "    least_conn;",
            *rows,
            "    keepalive 64;",
            f"    keepalive_timeout {UPSTREAM_KEEPALIVE_S}s;",
            "}",
        ]
    )


def _start_redis(config: ReplicasConfig) -> None:
    run = config.run.absolute()
    # No port: only who may enter the folder reaches it. Nothing is kept on disk; a lost cache
    # costs work done again.
    options = ["--port", "0", "--unixsocket", run / "redis.sock", "--unixsocketperm", "700"]
    options += ["--save", "", "--appendonly", "no", "--dir", run]
    options += ["--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
    _start([_find("redis-server", "redis-server"), *options], run / "redis", os.environ)
    _wait(lambda: (run / "redis.sock").exists(), run / "redis")


def _start_replica(config: ReplicasConfig, index: int) -> None:
    secret = (config.run / "secret").read_text().strip()
    environment = environment_of(config, index, secret, os.environ)
    _start([sys.executable, "-m", "serve"], config.run / f"replica-{index}", environment)


def _wait_until_ready(config: ReplicasConfig, index: int) -> None:
    port = config.first_port + index
    _wait(lambda: is_ready(port), config.run / f"replica-{index}")


def _start_nginx(config: ReplicasConfig) -> None:
    run = config.run.absolute()
    (run / "temp").mkdir(exist_ok=True)
    shutil.copy(NGINX_CONF, run / "nginx.conf")
    ports = [config.first_port + index for index in range(config.replicas)]
    (run / "replicas.conf").write_text(write_replicas_conf(ports), encoding="utf-8")
    (run / "listen.conf").write_text(f"listen {config.listen}:{config.port};\n", encoding="utf-8")
    command = [_find("nginx", "nginx-light"), "-p", f"{run}/", "-c", f"{run}/nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nginx refused: {done.stderr.strip()}")
    _wait(lambda: is_ready(config.port), run / "nginx")


def _find(program: str, package: str) -> str:
    # On Debian servers live where only root's search path looks.
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"
    found = shutil.which(program, path=path)
    if found is None:
        raise RuntimeError(f"{program} is not installed: apt-get install {package}")
    return found


def _start(command: Sequence[object], name: Path, environment: Mapping[str, str]) -> None:
    with name.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # outlives the terminal
        )
    write_atomic(name.with_suffix(".pid"), f"{process.pid}\n")


def _wait(is_done: Callable[[], bool], name: Path) -> None:
    end_s = time.monotonic() + READY_S
    while not is_done():
        if read_pid(name.with_suffix(".pid")) is None or time.monotonic() > end_s:
            log = name.with_suffix(".log")
            words = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            last = words[-1] if words else "no word"
            raise RuntimeError(f"{name.name} did not become ready: {last}")
        time.sleep(0.1)


def _stop(file: Path, patience_s: float, how: signal.Signals = signal.SIGTERM) -> None:
    pid = read_pid(file)
    if pid is not None:
        os.kill(pid, how)
        end_s = time.monotonic() + patience_s
        while read_pid(file) == pid:
            if time.monotonic() > end_s:
                logger.warning("%s did not end in %.0f s: killed", file.stem, patience_s)
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
    file.unlink(missing_ok=True)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and only its parent, perhaps this program, has not looked."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return True
    stat = Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return stat.read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def _write_secret(file: Path) -> None:
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")


def main() -> None:
    """Do what the first argument says; exits with a message when it can't be done."""
    verb, *options = sys.argv[1:] or [""]
    configure_logging()
    if verb not in ("up", "update", "revive", "down"):
        sys.exit("error: say what to do: up, update, revive, down; `up --help` shows every option")
    config = load_config(ReplicasConfig, options)
    try:
        if verb == "up":
            up(config)
        elif verb == "update":
            given = "model" in config.model_fields_set
            saved = load_saved(config.run)
            update(saved, config.model if given else saved.model)
        elif verb == "revive":
            revive(load_saved(config.run))
        else:
            down(config.run)
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
