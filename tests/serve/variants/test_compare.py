"""Variants held against each other, from metrics as the server gives them."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from curt.config import run
from curt.scores.statistics import Span
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.variants.compare import (
    CompareConfig,
    Spans,
    measure_requests,
    measure_shadow,
    read_feedback,
    read_metrics,
    render_page,
    subtract,
    work,
)
from serve.variants.metrics import VariantMetrics
from serve.variants.split import Split
from tests.serve.fake_pool import FakePool
from tests.serve.variants.test_router import FULL, OTHER, make_router


def write_metrics(path: Path, requests: dict[str, list[str]], latency_s: float = 0.1) -> Path:
    """What a server says that had these requests of each variant, by how they ended."""
    metrics = Metrics()
    variants = VariantMetrics(metrics)
    first = next(iter(requests))
    variants.show_split(Split(first), requests)
    for name, endings in requests.items():
        for ending in endings:
            variants.requests.labels(name, ending).inc()
            if ending in ("full", "late", "degraded"):
                variants.latency.labels(name).observe(latency_s)
    path.write_bytes(metrics.render())
    return path


def measured(paths: list[Path], name: str) -> Spans:
    counts = read_metrics(paths)
    feedback = read_feedback([])
    ended, buckets = counts["requests_total"], counts["latency_seconds_bucket"]
    return measure_requests(ended[name], buckets[name], feedback[name])


def hits_of(spans: Spans) -> dict[str, tuple[int, int] | None]:
    return {
        name: span and (round(span.value * span.n), span.n)
        for name, span in spans.items()
        if ", " not in name
    }


def test_rates_are_of_the_requests_they_are_about_and_replicas_add_up(tmp_path: Path) -> None:
    endings = ["full"] * 4 + ["late", "degraded", "failed", "refused", "cancelled", "rerouted"]
    one = write_metrics(tmp_path / "one", {"a": endings, "b": ["full"]})
    other = write_metrics(tmp_path / "other", {"a": endings})
    assert hits_of(measured([one], "a")) == {
        "failed": (1, 8), "refused": (1, 8), "degraded": (1, 6), "late": (1, 6),
        "judged correct": None,
    }  # fmt: skip
    assert hits_of(measured([one, other], "a"))["failed"] == (2, 16)
    assert hits_of(measured([one, other], "b"))["failed"] == (0, 1)


def test_latencies_are_edges_of_the_buckets_they_fell_in(tmp_path: Path) -> None:
    fast = write_metrics(tmp_path / "fast", {"a": ["full"] * 160}, latency_s=0.09)
    slow = write_metrics(tmp_path / "slow", {"a": ["full"] * 40}, latency_s=0.22)
    spans = measured([fast, slow], "a")
    assert spans["p50 of latency, ms"] == Span(100.0, 100.0, 100.0)
    assert spans["p95 of latency, ms"] == Span(250.0, 250.0, 250.0)
    assert spans["p99 of latency, ms"] is None  # of two hundred


def feedback_row(answer: str, verdict: str, variant: str = "b") -> dict[str, Any]:
    return {
        "request_id": "r", "verdict": verdict, "answer": {"answer_id": answer, "variant": variant},
    }  # fmt: skip


def test_feedback_is_held_against_the_variant_that_answered_and_the_last_word_counts(
    tmp_path: Path,
) -> None:
    rows = [
        feedback_row("x1", "correct"),
        feedback_row("x2", "correct"),
        feedback_row("x2", "wrong"),
        feedback_row("x3", "correct", "a"),
    ]
    path = tmp_path / "feedback.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    judged = read_feedback([path])
    assert judged == {"b": {"correct": 1, "wrong": 1}, "a": {"correct": 1}}


def test_copies_are_compared_in_pairs_of_full_verdicts(tmp_path: Path) -> None:
    pools = {"a": FakePool(FULL), "b": FakePool(OTHER)}
    router, metrics = make_router(pools, "shadow", 0.999999)

    async def scenario() -> None:
        for _ in range(3):
            now_s = time.monotonic()
            await router.choose().submit(Job("窃取", now_s, now_s + 0.4))
            await asyncio.sleep(0.03)

    asyncio.run(scenario())
    path = tmp_path / "metrics"
    path.write_bytes(metrics.render())
    counts = read_metrics([path])
    copies = counts["shadow_total"]["b"]
    assert hits_of(measure_shadow(copies, counts["shadow_differences_total"]["b"])) == {
        "failed": (0, 3), "degraded": (0, 3), "same charges": (3, 3), "same articles": (3, 3),
        "same term": (0, 3), "same verdict": (0, 3),
    }  # fmt: skip
    page = render_page(counts, read_feedback([]))
    assert re.search(r"<h2>Shadows</h2>.*<th>b</th>", page, re.DOTALL)


@pytest.fixture
def worse(tmp_path: Path) -> Path:
    draw = random.Random(0)
    failing = ["failed" if draw.random() < 0.08 else "full" for _ in range(500)]
    return write_metrics(tmp_path / "metrics", {"a": ["full"] * 1000, "b": failing})


def test_a_worse_variant_stands_out_and_the_page_is_whole(worse: Path) -> None:
    change = subtract(measured([worse], "b"), measured([worse], "a"))["failed"]
    assert change is not None
    assert change.low > 0
    page = render_page(read_metrics([worse]), read_feedback([]))
    assert "variants against a" in page
    assert re.search(r"<td>failed</td>\s*<td>\+\S+ beyond chance<br>", page)
    assert re.search(r"<td>failed</td>\s*<td>0.0% of 1000<br>", page)
    assert re.search(r"<td>p50 of latency, ms</td>\s*<td>100.0<br>", page)
    assert "–" in page  # nothing was judged
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "<script" not in page


def test_names_from_metrics_are_text_on_the_page(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "metrics", {"<script>alert(1)</script>": ["full"] * 9})
    assert "<script" not in render_page(read_metrics([path]), read_feedback([]))


def test_the_command_writes_the_page_from_files(tmp_path: Path, worse: Path) -> None:
    feedback, out = tmp_path / "feedback.jsonl", tmp_path / "report.html"
    feedback.write_text(json.dumps(feedback_row("x", "correct")) + "\n")
    run(
        CompareConfig,
        work,
        [f"--metrics={worse},{worse}", f"--feedback={feedback}", f"--out={out}"],
    )
    page = out.read_text(encoding="utf-8")
    assert "of 2000" in page
    assert re.search(r"<td>judged correct</td>\s*<td>–</td>\s*<td>100.0% of 1<br>", page)


@pytest.mark.parametrize(
    ("text", "problem"), [(None, "No such file"), ("", "no request"), ("{", "")]
)
def test_what_is_no_servers_metrics_is_refused(
    tmp_path: Path, text: str | None, problem: str
) -> None:
    path = tmp_path / "metrics"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        run(CompareConfig, work, [f"--metrics={path}", f"--out={tmp_path / 'out'}"])
    assert problem in str(ended.value)
    assert not (tmp_path / "out").exists()
