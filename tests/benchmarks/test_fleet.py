"""What the measurements of several replicas count, and what they tell Ray Serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from benchmarks.fleet import (
    FleetConfig,
    count,
    count_asked,
    count_errors,
    judge,
    read_asked,
    read_hits,
    up_options,
)
from benchmarks.open_loop import Exchange, Failure, Got
from benchmarks.replicas import (
    WORKERS,
    ReplicasBenchConfig,
    at_port,
    compare,
    p50_of,
    ray_environment,
)
from benchmarks.served import ROOT
from deploy.replicas import ReplicasConfig
from tests.benchmarks.fake_server import answer


def exchange(
    status: int = 200,
    latency_ms: float = 50.0,
    failure: Failure = "",
    model: str = "a",
    degraded: bool = False,
) -> Exchange:
    told = {**answer(), "model": {"name": model}, "degraded": degraded}
    got = Got(status, json.dumps(told).encode() if status == 200 else b"", failure)
    return Exchange(0, 0.0, 0.0, latency_ms / 1e3, got)


def test_whatever_is_no_verdict_has_failed() -> None:
    counted = count(
        [
            exchange(),
            exchange(model="b", latency_ms=500),
            exchange(degraded=True),
            exchange(503),
            exchange(0, failure="cut_off"),
        ],
        deadline_ms=400,
    )
    assert (counted["arrived"], counted["answered"], counted["failed"]) == (5, 3, 2)
    assert counted["said"] == {"200": 3, "503": 1, "cut_off": 1}
    assert (counted["degraded"], counted["late"]) == (1, 1)
    assert counted["by_model"] == {"a": 2, "b": 1}


def test_the_log_of_nginx_tells_who_was_asked_in_turn(tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    rows = [
        {"path": "/predict", "status": 200, "replica": "a:1", "replica_status": "200"},
        {"path": "/predict", "status": 200, "replica": "a:1, b:2", "replica_status": "502, 200"},
        {"path": "/predict", "status": 503, "replica": "a:1 : b:2", "replica_status": "503 : 503"},
        {"path": "/admin", "status": 404, "replica": "", "replica_status": ""},
    ]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = list(read_asked(log))
    assert [row.replicas for row in asked] == [("a:1",), ("a:1", "b:2"), ("a:1", "b:2"), ()]
    counted = count_asked(asked)
    assert (counted["asked_again"], counted["asked_again_answered"]) == (2, 1)
    assert counted["said_in_turn"] == {"502 then 200": 1, "503 then 503": 1}
    assert counted["by_replica"] == {"a:1": 1, "b:2": 2}
    first = len(json.dumps(rows[0])) + 1
    assert len(list(read_asked(log, first))) == 3


def test_a_refused_connection_is_told_from_a_request_broken_off() -> None:
    told = (
        "connect() failed (111: Connection refused) while connecting to upstream\n"
        "upstream prematurely closed connection while reading response header from upstream\n"
        "recv() failed (104: Connection reset by peer) while reading response header\n"
        "signal process started\n"
    )
    assert count_errors(told) == {"refused": 1, "broken_off": 2}


def test_hits_are_read_from_the_metrics() -> None:
    told = '# TYPE x counter\ncurt_cache_requests_total{source="hit"} 7.0\n'
    assert read_hits(told) == 7
    assert read_hits("") == 0


def test_one_failed_request_fails_the_update() -> None:
    same = {"cases": 2, "kept_equal": 2, "kept_hits": 2, "made_twice_equal": 2}
    killed = {
        "failed": 0,
        "answered": 9,
        "struck_and_failed": 0,
        "processes_left_behind": 0,
        "connections": {"refused": 3, "broken_off": 2},
    }
    updated = {"failed": 0, "answered": 9, "by_model": {"a": 5, "b": 4}}
    assert all(judge(same, killed, updated, ["a", "b"]).values())
    assert not judge(same, killed, {**updated, "failed": 1}, ["a", "b"])[
        "no_request_fails_in_an_update"
    ]
    assert not judge(same, killed, {**updated, "by_model": {"a": 9}}, ["a", "b"])[
        "both_models_answered_in_it"
    ]


def test_the_replicas_understand_what_they_are_told() -> None:
    told = up_options(FleetConfig(fallback=None))
    assert "fallback" not in told
    config = ReplicasConfig(**told)
    assert (config.port, config.first_port) == (8100, 8101)


def test_fronts_are_compared_turn_by_turn() -> None:
    first = {
        "answer_ms": {"p50": 40.0, "p99": 100.0},
        "light_ms": {"p50": 1.0, "p99": 3.0},
        "turns_p50_ms": [40.0, 80.0, 40.0],
    }
    front = {
        "answer_ms": {"p50": 44.0, "p99": 90.0},
        "light_ms": {"p50": 2.5, "p99": 5.0},
        "turns_p50_ms": [44.0, 88.0, 400.0],
    }
    assert compare(front, first) == {
        "p50": 1.1,
        "p99": 0.9,
        "p50_of_turns": 1.1,
        "light_p50_more_ms": 1.5,
        "light_p99_more_ms": 2.0,
    }


def test_a_turn_without_an_answer_is_no_measurement() -> None:
    assert p50_of([exchange(latency_ms=30), exchange(503)]) == 30.0
    with pytest.raises(ValueError, match="without an answer"):
        p50_of([exchange(503)])


def test_ray_is_given_the_shipped_file_at_another_port_and_size() -> None:
    told = yaml.safe_load((ROOT / "deploy" / "ray_serve.yaml").read_text(encoding="utf-8"))
    changed = at_port(told, 8123)
    scaling = changed["applications"][0]["deployments"][0]["autoscaling_config"]
    assert changed["http_options"]["port"] == 8123
    assert scaling["min_replicas"] == scaling["max_replicas"] == WORKERS
    assert told["http_options"]["port"] == 8000  # what was read is as it was
    assert changed["applications"][0]["import_path"] == told["applications"][0]["import_path"]


def test_ray_starts_with_haproxy_and_none_of_our_own_settings() -> None:
    config = ReplicasBenchConfig(model=Path("/m"), fallback=None)
    environment = ray_environment(config, 8120, {"CURT_PORT": "1", "HOME": "/root"})
    assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert environment["CURT_MODEL"] == "/m"
    assert environment["HOME"] == "/root"
    assert not {"CURT_PORT", "CURT_FALLBACK"} & set(environment)
