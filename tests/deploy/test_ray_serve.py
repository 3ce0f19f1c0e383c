"""Ray Serve in its own environment: the shipped configuration, and replicas that come and go.

Opt-in: CURT_TEST_RAY names an environment made by `make ray-env`.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import yaml

from curt.corpus.generate.generator import generate_cases
from deploy.check import FailedError, SkippedError, check_ray
from deploy.ray_check import unknown_keys
from tests.compress.onnx.exports import export

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "ray_serve.yaml"
START_S, STOP_S = 180.0, 60.0
LOAD_S = 20.0


@pytest.fixture(scope="session")
def ray_python() -> Path:
    folder = os.environ.get("CURT_TEST_RAY")
    if not folder:
        pytest.skip("CURT_TEST_RAY names no environment made by make ray-env")
    return Path(folder).absolute() / "bin" / "python"


def told() -> dict[str, Any]:
    shipped: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    return shipped


def test_without_ray_the_check_is_skipped_and_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SkippedError, match="make ray-env"):
        check_ray(tmp_path / "python")


def test_a_key_that_the_schema_left_out_is_named() -> None:
    given = {"a": {"b": 1, "c": 2}, "d": [{"e": 1}, {"f": 2}]}
    taken = {"a": {"b": 1}, "d": [{"e": 1}, {}]}
    assert list(unknown_keys(given, taken)) == ["a.c", "d[1].f"]
    assert list(unknown_keys(given, given)) == []


@pytest.mark.slow
def test_ray_reads_the_file_and_the_application(ray_python: Path) -> None:
    check_ray(ray_python)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["http_options"].update(prot=1), "http_options.prot"),
        (lambda f: f["applications"][0]["deployments"][0].update(name="kurt"), "kurt"),
        (
            lambda f: f["applications"][0]["deployments"][0]["autoscaling_config"].update(least=1),
            "autoscaling_config.least",
        ),
        (lambda f: f.update(proxy_location="Nowhere"), "Nowhere"),
    ],
)
def test_a_mistake_in_the_file_is_found(
    ray_python: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    broken = told()
    change(broken)
    file = tmp_path / "ray_serve.yaml"
    file.write_text(yaml.safe_dump(broken), encoding="utf-8")
    with pytest.raises(FailedError, match=said):
        check_ray(ray_python, file)


@dataclass
class Watch:
    """Replicas by state as Ray's controller tells them, with the time since the watch began."""

    began_s: float = field(default_factory=time.monotonic)
    rows: list[tuple[float, dict[str, int]]] = field(default_factory=list)

    def follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.rows.append((time.monotonic() - self.began_s, json.loads(line)))

    @property
    def now(self) -> dict[str, int]:
        return self.rows[-1][1] if self.rows else {}

    def changes(self) -> list[str]:
        """Every change of state, to be read by people."""
        kept: list[tuple[float, dict[str, int]]] = []
        for row in self.rows:
            if not kept or kept[-1][1] != row[1]:
                kept.append(row)
        return [f"{at_s:6.1f} s {states}" for at_s, states in kept]


@contextmanager
def running(command: list[object], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    with log.open("w") as out:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT, stderr=out, text=True, start_new_session=True, **options,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_for(is_so: Callable[[], bool], patience_s: float, what: Callable[[], object]) -> None:
    end_s = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < end_s, what()
        time.sleep(0.1)


def ask(port: int, fact: str) -> int:
    """The status of one verdict, 0 where there was no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = json.dumps({"fact": fact, "deadline_ms": 10_000})
        connection.request("POST", "/predict", body, {"content-type": "application/json"})
        reply = connection.getresponse()
        reply.read()
        return reply.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def ask_for(port: int, clients: int, seconds: float, facts: list[str]) -> Counter[int]:
    """Statuses of so many clients, each of whom asks again as soon as it has its answer."""
    statuses: list[int] = []
    numbers = count()
    end_s = time.monotonic() + seconds

    def client() -> None:
        while time.monotonic() < end_s:
            statuses.append(ask(port, facts[next(numbers) % len(facts)]))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(statuses)


def free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in taken:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in taken]


def scaled(port: int) -> dict[str, Any]:
    """The shipped file for one or two replicas, quicker to change its mind."""
    file = told()
    file["http_options"]["port"] = port
    file["applications"][0]["deployments"][0]["autoscaling_config"] = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 1,
        "upscale_delay_s": 1,
        "downscale_delay_s": 4,
        "metrics_interval_s": 1,
        "look_back_period_s": 3,
    }
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_a_second_replica_comes_with_load_and_leaves_after_it(
    ray_python: Path, tmp_path: Path, micro_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ROOT / "artifacts" / "demo" / "ort-w8a8"
    if not (model / "manifest.json").is_file():
        model = export(micro_model, tmp_path / "ort")
    facts = [case.fact for case in generate_cases(400, seed=5)]
    port, metrics, stats = free_ports(3)
    file, log = tmp_path / "ray_serve.yaml", tmp_path / "ray.log"
    file.write_text(yaml.safe_dump(scaled(port)), encoding="utf-8")
    with ExitStack() as stack:
        # Sockets lie in it, whose paths may have 107 characters.
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-"))
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("CURT_", "RAY_"))}
        environment |= {
            "CURT_MODEL": str(model), "CURT_SPARES": "0", "CURT_CACHE_TTL_S": "0",
            "PYTHONPATH": str(ROOT), "RAY_TMPDIR": home, "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        }  # fmt: skip
        command = [ray_python, "-m", "ray.serve.scripts", "run", file]
        with (tmp_path / "ray.out").open("w") as out:
            serving = stack.enter_context(running(command, log, env=environment, stdout=out))

        def last_words() -> str:
            return f"{serving.poll()}: " + log.read_text(errors="replace")[-3000:]

        wait_for(lambda: ask(port, facts[0]) == 200 or serving.poll() is not None,
                 START_S, last_words)  # fmt: skip
        assert serving.poll() is None, last_words()
        watching = stack.enter_context(
            running(
                [ray_python, ROOT / "tests" / "ray_watch.py"], tmp_path / "watch.log",
                env=environment, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        watch = Watch()
        threading.Thread(target=watch.follow, args=(watching,), daemon=True).start()
        wait_for(lambda: watch.now == {"RUNNING": 1}, 60, watch.changes)

        loaded_s = time.monotonic() - watch.began_s
        under_load = ask_for(port, clients=8, seconds=LOAD_S, facts=facts)
        unloaded_s = time.monotonic() - watch.began_s
        most = max(states.get("RUNNING", 0) for _, states in watch.rows)

        # Somebody asks now and then while the second leaves: nobody may notice.
        after: Counter[int] = Counter()
        end_s = time.monotonic() + 90
        while watch.now != {"RUNNING": 1} and time.monotonic() < end_s:
            after[ask(port, facts[sum(after.values())])] += 1
            time.sleep(0.25)
        with capsys.disabled():
            sys.stdout.write(f"\nload from {loaded_s:.1f} s to {unloaded_s:.1f} s: "
                             f"{dict(under_load)}; after it {dict(after)}\n")  # fmt: skip
            sys.stdout.write("\n".join(watch.changes()) + "\n")
    assert most == 2, watch.changes()
    assert set(under_load) <= {200, 503}, under_load
    assert under_load[200] > 20
    assert watch.now == {"RUNNING": 1}, watch.changes()
    assert set(after) == {200}, after
