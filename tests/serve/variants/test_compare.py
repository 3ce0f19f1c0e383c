"""Variants held against each other, from lines as the server writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import pytest

from curt.config import run
from curt.logs import JsonFormatter
from serve.variants.compare import (
    CompareConfig,
    Figures,
    choose_baseline,
    differences,
    gather,
    read_json_lines,
    render_page,
    work,
)
from serve.variants.split import Split, TrafficShare
from tests.serve.fake_pool import FakePool
from tests.serve.variants.test_router import FULL, OTHER, make_router, submit


def access(number: int, variant: str | None, **fields: Any) -> dict[str, Any]:
    line = {
        "logger": "serve.access", "route": "/predict", "request_id": f"r{number}", "status": 200,
        "ms": 100.0, "deadline_ms": 400, "degraded": None,
    }  # fmt: skip
    return {**line, **({"variant": variant} if variant else {}), **fields}


def shadow(number: int, **fields: Any) -> dict[str, Any]:
    line = {
        "logger": "serve.variants.shadow", "request_id": f"r{number}",
        "variant": "a", "shadow": "b",
        "live_ms": 100.0, "shadow_ms": 120.0, "same_charges": True, "same_articles": True,
        "same_term": True, "same_verdict": True, "months_apart": 0, "live_degraded": False,
        "shadow_degraded": False,
    }  # fmt: skip
    return {**line, **fields}


VERDICT = {
    "charges": ["盗窃"], "articles": ["264"],
    "term": {"kind": "fixed", "months": 8, "probation_months": 0}, "fine_yuan": 0,
}  # fmt: skip


def hits_of(figures: Figures) -> dict[str, tuple[float, int]]:
    return {name: (sum(hits), len(hits)) for name, hits in figures.items() if ", " not in name}


def test_requests_are_counted_by_variant_and_outcome() -> None:
    rows: list[dict[str, Any] | None] = [
        access(1, "a"),
        access(2, "a", ms=500.0),
        access(3, "a", degraded="deadline"),
        access(4, "a", status=503, error="overloaded"),
        access(5, "a", status=500, error="internal"),
        access(6, "a", status=422, error="invalid_request"),
        access(7, "a", status=499, error="client_closed"),
        access(8, "a", route="/predict/stream", error="engine_error"),
        access(9, None),
        {"logger": "serve.access", "route": "/livez", "status": 200, "ms": 1},
        {"logger": "serve.pool.pool", "message": "worker ready"},
        access(10, "a", ms="x"),
        None,
    ]
    evidence = gather(rows, [])
    a = evidence.variants["a"]
    assert hits_of(a) == {"errors": (2, 6), "refused": (1, 6), "degraded": (1, 3), "late": (1, 3)}
    assert len(a["latency, ms"]) == 3
    assert len(evidence.variants["default"]["errors"]) == 1
    assert evidence.unread == 2


def test_feedback_is_held_against_the_variant_that_answered_and_the_last_word_counts() -> None:
    other = {**VERDICT, "term": {**VERDICT["term"], "months": 20}}  # type: ignore[dict-item]

    def said(number: int, verdict: str, correction: Any, answer: str) -> dict[str, Any]:
        return {
            "request_id": f"r{number}", "verdict": verdict, "correction": correction,
            "answer": {"answer_id": answer, "variant": "b", "verdict": VERDICT},
        }  # fmt: skip

    feedback: list[dict[str, Any] | None] = [
        said(1, "correct", None, "x1"),
        said(2, "correct", None, "x2"),
        said(2, "wrong", other, "x2"),
        said(3, "wrong", None, "x3"),
        {"request_id": "r9", "correction": None, "variant": "a"},
        {"request_id": "r10", "correction": other, "variant": "a"},
        {"request_id": "r11", "correction": None},
        {"request_id": "gone", "correction": None},
        {"correction": None},
    ]
    evidence = gather([access(11, "a")], feedback)
    b, a = evidence.variants["b"], evidence.variants["a"]
    assert hits_of(b) == {
        "judged correct": (1, 3), "charges right": (2, 2), "articles right": (2, 2),
        "term right": (1, 2),
    }  # fmt: skip
    assert hits_of(a)["judged correct"] == (2, 3)
    assert (evidence.unmatched, evidence.unread) == (1, 1)


def test_shadows_are_compared_in_pairs() -> None:
    rows = [shadow(n, same_term=n % 4 > 0, same_verdict=n % 4 > 0) for n in range(40)]
    rows += [shadow(40, same_term=None, same_verdict=None, months_apart=None, shadow_degraded=True)]
    rows += [{**shadow(41), "error": "overloaded"}]
    pairs = gather(rows, []).shadows["b beside a"]
    hits = hits_of(pairs)
    assert (hits["failed"], hits["shadow degraded"]) == ((1, 42), (1, 41))
    assert (hits["same term"], hits["same charges"]) == ((30, 40), (41, 41))
    assert set(pairs["time beyond the live, ms"]) == {20.0}


def made_logs(seed: int = 0) -> list[dict[str, Any] | None]:
    draw = random.Random(seed)
    rows: list[dict[str, Any] | None] = []
    for number in range(1500):
        variant = "b" if number % 3 == 0 else "a"
        slow = 1.5 if variant == "b" else 1.0
        failed = variant == "b" and draw.random() < 0.08
        rows.append(
            access(
                number, variant, ms=round(draw.lognormvariate(4.5, 0.3) * slow, 2),
                status=500 if failed else 200,
            )
        )  # fmt: skip
    return rows + [shadow(n) for n in range(30)]


def test_a_worse_variant_stands_out_and_the_page_is_whole() -> None:
    evidence = gather(made_logs(), [{"request_id": "r1", "correction": None}])
    assert choose_baseline(evidence, None) == "a"
    change = differences(evidence, "a")["b"]["errors"]
    assert change is not None
    assert change.low > 0
    page = render_page(evidence, "a")
    assert re.search(r"<td>errors</td><td>\+\S+ beyond chance<br>", page)
    assert "b beside a" in page
    assert "p50 of latency, ms" in page
    assert "–" in page  # nothing was judged of b
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "<script" not in page
    with pytest.raises(ValueError, match="no variant c"):
        choose_baseline(evidence, "c")
    with pytest.raises(ValueError, match="no request"):
        choose_baseline(gather([], []), None)


def test_names_from_logs_are_text_on_the_page() -> None:
    page = render_page(gather([access(n, "<script>alert(1)</script>") for n in range(9)], []), (
        "<script>alert(1)</script>"
    ))  # fmt: skip
    assert "<script" not in page


def test_the_command_writes_the_page_from_files(tmp_path: Path) -> None:
    logs, out = tmp_path / "server.log", tmp_path / "report.html"
    lines = [json.dumps(row) for row in made_logs()]
    logs.write_text("\n".join([*lines, "not json", ""]), encoding="utf-8")
    feedback = tmp_path / "feedback.jsonl"
    feedback.write_text(json.dumps({"request_id": "r0", "correction": VERDICT}) + "\n")
    options = [f"--feedback={feedback}", f"--out={out}"]
    run(CompareConfig, work, [f"--logs={logs},{logs}", *options])
    assert "of 2000" in out.read_text(encoding="utf-8")
    run(CompareConfig, work, [f"--logs={logs}", *options])
    assert "1 lines could not be read" in out.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        run(CompareConfig, work, [f"--logs={tmp_path / 'none'}", f"--out={out}"])
    assert "No such file" in str(ended.value)


def test_a_shadow_line_as_the_router_writes_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router, _ = make_router(
        Split(live="a", shadow=TrafficShare(name="b", share=1.0)), FakePool(FULL), FakePool(OTHER)
    )

    async def scenario() -> None:
        for _ in range(3):
            await submit(router)
            await asyncio.sleep(0.03)

    with caplog.at_level(logging.INFO, "serve.variants.shadow"):
        asyncio.run(scenario())
    file = tmp_path / "log"
    formatter = JsonFormatter()
    file.write_text("\n".join(formatter.format(record) for record in caplog.records))
    pairs = gather(read_json_lines([file]), []).shadows["b beside a"]
    assert pairs["failed"] == [False] * 3
    assert pairs["same verdict"] == [False] * 3
    assert pairs["term beyond the live, months"] == [12.0] * 3
