"""The Dockerfile's habits, the script that starts engine and server together, and the checks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from deploy import check
from deploy.check import ROOT, CheckConfig, FailedError, SkippedError

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
START = ROOT / "deploy" / "gpu" / "start.sh"

ENGINE = """#!{python}
import http.server, os, signal, sys
log = open({log!r}, "a", buffering=1)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_): pass
def end(*_):
    log.write("engine ends\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
log.write("engine " + " ".join(sys.argv[1:]) + "\\n")
if {ends}: sys.exit(7)
http.server.HTTPServer(("127.0.0.1", int(os.environ["ENGINE_PORT"])), Health).serve_forever()
"""
# In place of `python -m serve`; everything else goes to Python.
SERVER = """#!/usr/bin/env bash
if [ "$1" != -m ]; then exec {python} "$@"; fi
signals=0
trap 'signals=$((signals + 1)); echo "server drains $signals" >> {log}' TERM
echo "server $* for $CURT_ENGINE at $CURT_ENGINE_URL" >> {log}
until [ "$signals" -gt 0 ]; do sleep 0.05; done
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done
echo "server ends" >> {log}
exit {status}
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def start(folder: Path, *, ends: bool = False, status: int = 0) -> subprocess.Popen[str]:
    log = folder / "log"
    log.touch()
    executable(folder / "vllm", ENGINE.format(python=sys.executable, log=str(log), ends=ends))
    executable(folder / "python", SERVER.format(python=sys.executable, log=log, status=status))
    environment = {
        "PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": str(folder / "python"),
        "CURT_MODEL": "/model", "ENGINE_PORT": str(free_port()),
    }  # fmt: skip
    return subprocess.Popen(
        [START, "--max-num-seqs=8"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def wait_for(is_so: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("status", [0, 3])
def test_sigterm_drains_the_server_once_and_then_ends_the_engine(
    tmp_path: Path, status: int
) -> None:
    process = start(tmp_path, status=status)
    log = tmp_path / "log"
    wait_for(lambda: "server -m serve" in log.read_text())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    lines = log.read_text().splitlines()
    assert lines[0].startswith("engine serve /model --host 127.0.0.1 --port ")
    assert lines[0].endswith("--max-num-seqs=8")
    assert lines[1].startswith("server -m serve for vllm at http://127.0.0.1:")
    # A second signal would make the real server close at once.
    assert lines[2:] == ["server drains 1", "server ends", "engine ends"]
    assert process.returncode == status
    wait_for(lambda: is_gone(process.pid))


def test_an_engine_that_dies_takes_the_container_with_it(tmp_path: Path) -> None:
    process = start(tmp_path)
    log = tmp_path / "log"
    wait_for(lambda: "server -m serve" in log.read_text())
    engine = subprocess.run(
        ["pgrep", "-g", str(process.pid), "-f", str(tmp_path / "vllm")],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    os.kill(int(engine[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode not in (0, None)
    assert "ended unasked" in errors
    assert "server drains 1" in log.read_text()
    wait_for(lambda: is_gone(process.pid))


def test_an_engine_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    process = start(tmp_path, ends=True)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the engine ended before it was ready" in errors
    assert "server" not in (tmp_path / "log").read_text()


def test_an_unknown_engine_is_refused() -> None:
    ran = subprocess.run(
        [START], env={"PATH": os.environ["PATH"], "CURT_MODEL": "/m", "CURT_ENGINE": "onnxruntime"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "CURT_ENGINE=onnxruntime" in ran.stderr


def stages() -> dict[str, str]:
    """The text of each stage by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_last_stage_is_the_server_and_no_final_stage_runs_as_root() -> None:
    assert list(stages())[-1] == "serve"
    for name in ("train", "serve", "gpu"):
        assert re.findall(r"^USER (\S+)$", stages()[name], re.M)[-1] == "10001"
    for name in ("serve", "gpu"):
        assert "HEALTHCHECK" in stages()[name]
        assert "ORT_DISABLE_TELEMETRY=1" in stages()[name]


def test_base_images_are_arguments_with_a_version_and_without_a_registry() -> None:
    images = re.findall(r"^ARG \w+_IMAGE=(\S+)$", DOCKERFILE, re.M)
    assert len(images) == 2
    for image in images:
        name, _, tag = image.partition(":")
        assert re.search(r"\d+\.\d+", tag), image
        assert "." not in name.split("/")[0], image


def test_the_build_context_holds_what_is_copied_and_nothing_more() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(?:--\S+ )?(.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert {source for source in copied if (ROOT / source).exists()} == copied
    assert copied == allowed
    assert os.access(START, os.X_OK), "COPY keeps the mode"


def test_every_check_that_can_be_made_here_passes() -> None:
    passed = set()
    for name, make in check.checks(CheckConfig()).items():
        with contextlib.suppress(SkippedError):
            make()
            passed.add(name)
    assert {"settings", "shell scripts"} <= passed


def test_a_mistake_in_an_object_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes_validate")
    broken = yaml.safe_load("""
        apiVersion: policy/v1
        kind: PodDisruptionBudget
        metadata: {name: curt}
        spec: {maxUnavailabel: 1}
    """)
    monkeypatch.setattr(check, "rendered", lambda overlay: [broken])
    with pytest.raises(FailedError, match="maxUnavailabel"):
        check.check_kubernetes()


def test_a_setting_that_does_not_exist_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "settings_named", lambda: {"a.yaml": {"CURT_WORKRES"}})
    with pytest.raises(FailedError, match=r"a.yaml: CURT_WORKRES is no setting; CURT_WORKERS\?"):
        check.check_settings()


def test_a_mistake_in_a_custom_resource_and_in_a_compose_file_is_found(tmp_path: Path) -> None:
    tools = ROOT / CheckConfig().node_tools
    if not (tools / "node_modules").is_dir():
        pytest.skip("make deploy-tools has not been run")
    scaled = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": {"triggers": []}}
    with pytest.raises(FailedError, match="scaleTargetRef"):
        check.check_schemas(tools, [("it", scaled)])
    compose = tmp_path / "compose.yaml"
    compose.write_text(json.dumps({"services": {"a": {"image": "b:1", "read_onyl": True}}}))
    with pytest.raises(FailedError):
        check.check_compose(tools, compose)


def test_a_missing_program_is_skipped_by_name() -> None:
    with pytest.raises(SkippedError, match="no-such-program is not installed: get it"):
        check.run_program("no-such-program", hint="get it")


def test_the_command_says_what_came_of_each_check() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "deploy.check", "--node_tools", "/nowhere"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    outcomes = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if line[0] != " ")
    assert outcomes["settings"].startswith("ok")
    assert "make deploy-tools" in outcomes["compose"]
    strict = subprocess.run(
        [sys.executable, "-m", "deploy.check", "--node_tools", "/nowhere", "--require_all", "true"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert strict.returncode == 1
