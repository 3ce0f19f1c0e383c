"""Dashboard and alerts ask for metrics the server has, and the alerts fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve.answering.cache import CacheMetrics
from serve.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "curt.json"
RULES = DEPLOY / "rules.yml"
NAME = re.compile(r"\b(?:curt|process|up)(?:_[a-z0-9_]+|:[a-z0-9_:]+)?\b(?=\s*[\[{})=><]|\s|$)")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}


@cache
def known_names() -> frozenset[str]:
    """Every series the server shows, and those the rules record."""
    metrics = Metrics()
    CacheMetrics(metrics.registry)
    names = {"up", "curt_drift_distance", "curt_drift_distance_limit", "curt_drift_drifted"}
    for family in metrics.registry.collect():
        names |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
    return frozenset(names | {rule["record"] for rule in rules() if "record" in rule})


@cache
def dashboard() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]:
        yield from group["rules"]


def queries() -> dict[str, str]:
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            found[f"{panel['title']} {target['refId']}"] = target["expr"]
    return found


def names_in(expression: str) -> set[str]:
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\b(?:by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    return set(NAME.findall(bare))


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_query_of_the_dashboard_asks_for_metrics_there_are() -> None:
    asked = queries()
    assert len(asked) > 25
    for title, expression in asked.items():
        names = names_in(expression)
        assert names, title
        assert names - known_names() == set(), title


def test_every_alert_asks_for_metrics_there_are_and_says_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 9
    for rule in rules():
        assert names_in(rule["expr"]) - known_names() == set(), rule
        assert names_in(rule["expr"])
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "action", "runbook"} == set(alert["annotations"])
        anchor = f"docs/operations.md#{alert['alert'].lower()}"
        assert alert["annotations"]["runbook"] == anchor


def test_every_alert_has_its_page_in_the_runbook_and_no_page_is_left_over() -> None:
    page = (DEPLOY.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    runbook = page.split("\n## Runbook\n")[1].split("\n## ")[0]
    parts = re.split(r"^### +(\w+)\s*$", runbook, flags=re.M)
    pages = dict(zip(parts[1::2], parts[2::2], strict=True))
    scaling = DEPLOY / "k8s" / "components" / "monitoring" / "scaling-rules.yaml"
    groups = yaml.safe_load(scaling.read_text(encoding="utf-8"))["spec"]["groups"]
    everywhere = [*rules(), *(rule for group in groups for rule in group["rules"])]
    alerts = {rule["alert"]: rule for rule in everywhere if "alert" in rule}
    assert set(pages) == set(alerts)
    for name, text in pages.items():
        assert len(text.split()) > 20, name
        anchor = f"docs/operations.md#{name.lower()}"
        assert alerts[name]["annotations"]["runbook"] == anchor


def test_redis_is_reached_by_the_server_alone_and_keeps_nothing_on_disk() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    redis = compose["services"]["redis"]
    assert redis["networks"] == ["cache"]
    assert compose["networks"]["cache"] == {"internal": True}
    beside = {name for name, each in compose["services"].items() if "cache" in each["networks"]}
    assert beside == {"redis", "server"}
    assert '--save ""' in redis["command"]
    assert {"ports", "volumes"} & set(redis) == set()


def test_the_server_has_a_place_for_the_socket_of_its_processes() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    assert compose["services"]["server"]["tmpfs"] == ["/tmp"]


def test_a_metric_that_does_not_exist_would_be_noticed() -> None:
    assert names_in('sum by (le) (rate(curt_nothing_total{up="curt_x"}[5m])) / up') == {
        "curt_nothing_total",
        "up",
    }
    assert "curt_nothing_total" not in known_names()


def test_the_dashboard_shows_every_metric_of_the_server() -> None:
    shown = {name for expression in queries().values() for name in names_in(expression)}
    shown |= {name for rule in rules() for name in names_in(rule["expr"])}
    missing = [
        family.name
        for family in Metrics().registry.collect()
        if family.name.startswith("curt_")
        and not any(name.startswith(family.name) for name in shown)
    ]
    assert missing == []


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert all(x < 24 for x, _ in cells)
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_promise_is_a_line_on_the_latency_panels() -> None:
    steps = {
        panel["title"]: [
            s["value"] for s in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
        ]
        for panel in dashboard()["panels"]
        if "thresholds" in panel.get("fieldConfig", {}).get("defaults", {})
    }
    assert steps["Answers"] == [None, 0.4]
    assert steps["p99 of answers"] == [None, 0.4]


def test_compose_hands_over_the_files_there_are() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for volume in service.get("volumes", ()):
            if isinstance(volume, str) and volume.startswith("./"):
                assert (DEPLOY / volume.partition(":")[0]).exists(), volume
                assert volume.endswith(":ro")
    provider = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "dashboards" / "curt.yml").read_text()
    )["providers"][0]
    mounted = [str(volume) for volume in compose["services"]["grafana"]["volumes"]]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted
    source = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"][0]
    assert {
        panel["datasource"]["uid"] for panel in dashboard()["panels"] if "targets" in panel
    } == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"


def test_prometheus_reads_the_configuration_and_the_rules() -> None:
    promtool("check", "config", str(DEPLOY / "prometheus.yml"))


def test_prometheus_reads_every_query_of_the_dashboard(tmp_path: Path) -> None:
    expressions = [
        expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
        for expression in queries().values()
    ]
    recorded = [{"record": f"q:{n}", "expr": text} for n, text in enumerate(expressions)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool("check", "rules", str(file))


def series(name: str, per_minute: float, labels: str = "", minutes: int = 30) -> dict[str, str]:
    """A counter (or, at 0 a minute, a gauge at 0) for so many minutes."""
    tags = ",".join(part for part in ('job="curt",instance="a"', labels) if part)
    return {"series": f"{name}{{{tags}}}", "values": f"0+{per_minute}x{minutes}"}


def healthy(**changed: float) -> list[dict[str, str]]:
    """A server that answers 600 requests a minute, all of them well but for what is `changed`."""
    rates = {"good": 600, "left": 0, "rejected": 0, "refused": 0, "failed": 0,
             "degraded": 0, "late": 0, "deaths": 0, "down": 0, "workers": 2,
             "short": 0, "drifted": 0} | changed  # fmt: skip
    up = 1 - rates["down"]
    return [
        *(
            series("curt_cases_total", rates[name], f'outcome="{name}"')
            for name in ("good", "degraded", "refused", "failed", "left", "rejected")
        ),
        series("curt_worker_deaths_total", rates["deaths"]),
        series("curt_short_thinking_total", rates["short"], 'cause="load"'),
        series("curt_short_thinking_total", 300, 'cause="deadline"'),
        series("curt_thinking_allowed_ratio_count", 600),
        series("curt_answer_latency_seconds_bucket", 600 - rates["late"], 'le="0.4"'),
        series("curt_answer_latency_seconds_bucket", 600, 'le="0.5"'),
        series("curt_answer_latency_seconds_bucket", 600, 'le="+Inf"'),
        {"series": 'curt_workers_ready{job="curt",instance="a"}',
         "values": f"{rates['workers']}x30"},
        {"series": 'curt_drift_drifted{job="curt",instance="a"}',
         "values": f"{rates['drifted']}x30"},
        {"series": 'up{job="curt",instance="a"}', "values": f"{up}x30"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "firing"),
    [
        ({}, set()),
        ({"late": 30}, {"CurtSlow"}),
        ({"refused": 120}, {"CurtRefuses", "CurtMissesBurnFast", "CurtMissesBurnSlowly"}),
        ({"good": 540, "degraded": 60}, {"CurtDegraded", "CurtMissesBurnSlowly"}),
        ({"short": 150}, {"CurtThinksLittle"}),
        ({"drifted": 1}, {"CurtDrift"}),
        ({"failed": 1}, {"CurtFails"}),
        ({"left": 600, "rejected": 600}, set()),
        # Cases, not requests: of a batch of 20 that is one request, 5 cases missing are 25%.
        (
            {"good": 15, "degraded": 5},
            {"CurtDegraded", "CurtMissesBurnFast", "CurtMissesBurnSlowly"},
        ),
        ({"workers": 0}, {"CurtNoWorker"}),
        ({"deaths": 1}, {"CurtWorkersRestart"}),
        ({"down": 1}, {"CurtDown"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_alerts_fire_for_their_reason_alone(
    tmp_path: Path, changes: dict[str, float], firing: set[str]
) -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    assert firing <= set(alerts)
    checks = []
    for name, rule in alerts.items():
        # Labels and annotations are not the point: only whether it fires.
        query = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
        value = 1 if name in firing else 0
        checks.append(
            {
                "expr": query,
                "eval_time": "30m",
                "exp_samples": [{"labels": "{}", "value": value}],
            }
        )
        assert rule["expr"]
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {"interval": "1m", "input_series": healthy(**changes), "promql_expr_test": checks}
        ],
    }
    file = tmp_path / "rules_test.yml"
    file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(file))


@pytest.mark.parametrize(
    ("changes", "busy", "waiting_s", "overload"),
    [
        # 60 requests a minute of 0.5 s on two workers: half of each worker's time.
        ({}, 0.25, 0.024, 0),
        # Those refused never waited; the ratio says so.
        ({"overloaded": 60}, 0.25, 0.024, 0.5),
        # Nobody asks: 0, and not the NaN of an empty histogram.
        ({"asked": 0}, 0, 0, 0),
    ],
    ids=["steady", "overloaded", "quiet"],
)
def test_autoscalers_are_told_of_load_refusals_and_silence(
    tmp_path: Path, changes: dict[str, float], busy: float, waiting_s: float, overload: float
) -> None:
    rates = {"asked": 60.0, "overloaded": 0.0} | changes
    asked = rates["asked"]
    inputs = [
        series("curt_prefill_seconds_sum", asked * 0.1),
        series("curt_decode_seconds_sum", asked * 0.4),
        series("curt_queue_seconds_bucket", 0, 'le="0.005"'),
        series("curt_queue_seconds_bucket", asked, 'le="0.025"'),
        series("curt_queue_seconds_bucket", asked, 'le="+Inf"'),
        series("curt_cases_total", asked, 'outcome="good"'),
        series("curt_cases_total", rates["overloaded"], 'outcome="refused"'),
        series("curt_shed_total", rates["overloaded"], 'reason="overloaded"'),
        {"series": 'curt_workers_ready{job="curt",instance="a"}', "values": "2x30"},
    ]
    wanted = {
        "curt:busy_ratio:rate2m": busy,
        "curt:queue_wait_seconds:p95_2m": waiting_s,
        "curt:overload_ratio:rate2m": overload,
    }
    checks = [
        # Rounded to a microsecond: the quantile is not exact in binary.
        {"expr": f"round(sum({name}), 1e-6)", "eval_time": "20m",
         "exp_samples": [{"labels": "{}", "value": value}]}
        for name, value in wanted.items()
    ]  # fmt: skip
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": checks}],
    }
    file = tmp_path / "load_test.yml"
    file.write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(file))
