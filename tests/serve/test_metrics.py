from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import THINK_END, render_answer
from serve.edge.shedding import FRONT_BUSY
from serve.metrics import (
    LATENCY_BUCKETS_S,
    MAX_REASONS,
    PHASE_BUCKETS_S,
    SHED_REASONS,
    Metrics,
    Outcome,
)
from serve.served import Served
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import generation

ROOT = Path(__file__).parents[2]
TEXT = f"窃取8000元{THINK_END}{render_answer(VERDICT)}"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"curt_{name}", labels)


def record(served: Served, total_ms: float = 120.0) -> Metrics:
    metrics = Metrics()
    outcome = metrics.record_answer(served, total_ms=total_ms, deadline_ms=400)
    metrics.record_case(200, {"outcome": outcome})
    return metrics


def cases(metrics: Metrics) -> dict[str, float]:
    counts = {each: value(metrics, "cases_total", outcome=each) for each in get_args(Outcome)}
    return {each: count for each, count in counts.items() if count}


def test_an_answer_is_timed_by_its_phases_and_tokens() -> None:
    full = generation(TEXT, thinking_tokens=30, answer_tokens=20, prefill_ms=20.0, decode_ms=50.0)
    metrics = record(Served(full, 48, 48, queue_ms=10.0))
    assert value(metrics, "queue_seconds_sum") == pytest.approx(0.01)
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(0.03)
    assert value(metrics, "time_per_output_token_seconds_sum") == pytest.approx(0.001)
    assert value(metrics, "answer_latency_seconds_sum") == pytest.approx(0.12)
    assert value(metrics, "thinking_tokens_used_sum") == 30
    assert value(metrics, "thinking_tokens_allowed_sum") == 48
    assert value(metrics, "deadline_missed_total") == 0


def test_only_full_verdicts_in_time_are_good() -> None:
    full, cut = generation(TEXT), generation("想", finish="deadline")
    late = record(Served(full, 48, 48, 1.0), total_ms=400.01)
    assert (cases(late), value(late, "deadline_missed_total")) == ({"late": 1}, 1)
    degraded = record(Served(cut, 48, 48, 1.0))
    assert cases(degraded) == {"degraded": 1}
    assert value(degraded, "degraded_total", reason="deadline") == 1


def test_an_answer_that_took_no_worker_leaves_the_phases_alone() -> None:
    kept = Served(generation(TEXT, prefill_ms=0.0, decode_ms=0.0), 48, 48, 0.0)
    metrics = record(kept, total_ms=2.0)
    assert value(metrics, "answer_latency_seconds_count") == 1
    assert cases(metrics) == {"good": 1}
    for name in ("queue", "prefill", "decode", "time_to_first_token", "time_per_output_token"):
        assert value(metrics, f"{name}_seconds_count") == 0


@pytest.mark.parametrize(
    ("status", "log", "outcome"),
    [
        (503, {"error": "overloaded"}, "refused"),
        (500, {"error": "engine_error"}, "failed"),
        (422, {"error": "empty_fact"}, "rejected"),
        (429, {"error": "rate_limited"}, "rejected"),
        (499, {"error": "client_closed"}, "left"),
        (0, {}, "left"),
        # a stream, whose status was sent before
        (200, {"error": "client_closed"}, "left"),
        (200, {"error": "overrun", "error_status": 503}, "refused"),
        (200, {"error": "internal", "error_status": 500}, "failed"),
        (200, {"error": "client_closed", "outcome": "good"}, "good"),
    ],
)
def test_a_case_is_counted_by_what_became_of_it(
    status: int, log: dict[str, Any], outcome: str
) -> None:
    metrics = Metrics()
    metrics.record_case(status, log)
    assert cases(metrics) == {outcome: 1}


def test_rejections_count_by_reason_and_refusals_of_the_pool_do_not() -> None:
    metrics = Metrics()
    metrics.record_end(422, "empty_fact", 0.001)
    metrics.record_end(503, "overloaded", 0.001)
    metrics.record_end(200, None, 0.1)
    assert value(metrics, "rejected_total", reason="empty_fact") == 1
    assert value(metrics, "rejected_total", reason="overloaded") is None
    assert value(metrics, "requests_total", status="503") == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == 3


@given(st.lists(st.one_of(st.text(), st.from_regex(r"[a-z_]{1,50}", fullmatch=True)), max_size=80))
def test_no_reason_a_mistake_lets_through_grows_the_series_without_end(reasons: list[str]) -> None:
    metrics = Metrics()
    for reason in (*reasons, *(f"r{'x' * n}" for n in range(80))):
        metrics.record_end(422, reason, 0.0)
    shown = re.findall(r'curt_rejected_total\{reason="([^"]*)"\}', metrics.render().decode())
    assert len(shown) <= MAX_REASONS + 1
    assert all(re.fullmatch("[a-z][a-z_]*", reason) for reason in shown)


def test_the_promise_of_400_ms_lies_between_near_buckets() -> None:
    for buckets in (LATENCY_BUCKETS_S, PHASE_BUCKETS_S):
        assert 0.4 in buckets
        assert list(buckets) == sorted(set(buckets))
    near = [bound for bound in LATENCY_BUCKETS_S if 0.39 <= bound <= 0.41]
    assert near == [0.39, 0.4, 0.41]


def test_names_follow_the_conventions_of_prometheus() -> None:
    for family in Metrics().registry.collect():
        if family.name.startswith("process_"):
            continue
        assert re.fullmatch(r"curt_[a-z0-9_]+", family.name)
        assert family.documentation
        for banned in ("_ms", "_millis", "_percent"):
            assert banned not in family.name
        if family.type == "counter":
            assert not family.name.endswith("_total")  # the client library adds it


def test_what_is_known_shows_at_zero() -> None:
    metrics = Metrics()
    metrics.describe(version="1.2.3", model="ort", manifest="abc", precision="int4")
    assert {value(metrics, "shed_total", reason=reason) for reason in SHED_REASONS} == {0}
    assert value(metrics, "degraded_total", reason="deadline") == 0
    labels = {"version": "1.2.3", "model": "ort", "manifest": "abc", "precision": "int4"}
    assert value(metrics, "build_info", **labels) == 1
    assert b"process_resident_memory_bytes" in metrics.render()


def test_every_reason_to_refuse_or_shed_is_known() -> None:
    tree = ast.parse((ROOT / "serve" / "pool" / "pool.py").read_text(encoding="utf-8"))
    reasons = {
        argument.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "OverloadedError"
        for argument in node.args[:1]
        if isinstance(argument, ast.Constant)
    }
    assert reasons | {FRONT_BUSY} == set(SHED_REASONS)
