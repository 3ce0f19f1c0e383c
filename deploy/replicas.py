"""The configuration of nginx before several servers on one machine.

    python -m deploy.replicas --folder artifacts/demo/nginx --port 8000 --ports '[8001, 8002]'
    nginx -p artifacts/demo/nginx/ -c nginx.conf

The servers are started and stopped like any other, each at its port; `docs/operations.md` says
which of their settings must agree.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from curt.config import Config, run
from curt.files import write_atomic
from curt.html import render_text

NGINX_CONF = Path(__file__).with_name("nginx") / "curt.conf"
HOST = "127.0.0.1"
FAIL_TIMEOUT_S = 1  # nginx leaves a server alone for so long after two failures in a row


class ReplicasConfig(Config):
    """Where nginx and the servers listen, on this machine only."""

    folder: Path = Path("artifacts/demo/nginx")
    """Where nginx finds its configuration and keeps its logs and its process id."""
    port: int = 8000
    """Of nginx."""
    ports: list[int] = Field([8001, 8002], min_length=1)
    """Of the servers."""


def write_replicas_conf(ports: Sequence[int]) -> str:
    """`replicas.conf` of nginx: all servers, all but each, and a map from one to the others."""
    servers = [f"{HOST}:{port}" for port in ports]
    upstreams = {"replicas": servers}
    for index, server in enumerate(servers):
        upstreams[f"all_but_{index}"] = [s for s in servers if s != server] or [server]
    return render_text("replicas.conf.j2", upstreams=upstreams, fail_timeout_s=FAIL_TIMEOUT_S)


def write_folder(config: ReplicasConfig) -> None:
    """Write all that nginx reads, for `nginx -p folder/ -c nginx.conf`."""
    (config.folder / "temp").mkdir(parents=True, exist_ok=True)
    shutil.copy(NGINX_CONF, config.folder / "nginx.conf")
    write_atomic(config.folder / "replicas.conf", write_replicas_conf(config.ports))
    write_atomic(config.folder / "listen.conf", f"listen {HOST}:{config.port};\n")


if __name__ == "__main__":
    run(ReplicasConfig, write_folder)
