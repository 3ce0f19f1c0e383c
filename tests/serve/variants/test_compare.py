"""Variants held against each other, from lines as the server writes them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curt.logs import JsonFormatter
from curt.scores.statistics import Span
from serve.variants.compare import (
    choose_baseline,
    differences,
    gather,
    main,
    quantile,
    read_json_lines,
    share,
)
from serve.variants.compare_page import render_page
from serve.variants.split import Share, Split
from tests.serve.fake_pool import FakePool
from tests.serve.variants.test_router import FULL, OTHER, job, make_router


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
    assert (a.total, a.answered, a.late, a.degraded, a.refused, a.errors) == (6, 3, 1, 1, 1, 2)
    assert evidence.variants["default"].total == 1
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
    assert (b.judged, b.correct) == (3, 1)
    assert b.parts == {"charges": [True, True], "articles": [True, True], "term": [True, False]}
    assert (a.judged, a.correct) == (3, 2)
    assert (evidence.unmatched, evidence.unread) == (1, 1)


def test_shadows_are_compared_in_pairs() -> None:
    rows = [shadow(n, same_term=n % 4 > 0, same_verdict=n % 4 > 0) for n in range(40)]
    rows += [shadow(40, same_term=None, same_verdict=None, months_apart=None, shadow_degraded=True)]
    rows += [{**shadow(41), "error": "overloaded"}]
    pairs = gather(rows, []).pairs["a", "b"]
    assert (pairs.compared, pairs.failed, pairs.shadow_degraded) == (41, 1, 1)
    assert sum(pairs.same["term"]) / len(pairs.same["term"]) == 0.75
    assert set(pairs.extra_ms) == {20.0}


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_intervals_of_quantiles_cover_what_they_promise(q: float) -> None:
    draw = np.random.default_rng(0)
    truth = -np.log(1 - q)
    spans = [quantile(list(draw.exponential(size=400)), q) for _ in range(600)]
    covered = [span.low <= truth <= span.high for span in spans if span]
    assert len(covered) == 600
    assert 0.93 <= np.mean(covered) <= 0.985


def test_too_few_values_have_no_p99() -> None:
    assert quantile([1.0] * 100, 0.99) is None
    assert quantile([1.0] * 1000, 0.99) == Span(1.0, 1.0, 1.0)
    assert quantile([], 0.5) is None
    assert share(0, 0) is None


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
    change = differences(evidence, "a", lambda r: r.shares())["b"]["errors"]
    assert change is not None
    assert change.low > 0
    page = render_page(evidence, "a")
    assert "b differs from a beyond chance in: errors" in page
    assert "b beside a" in page
    assert page.count("<svg ") == 3
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


def test_the_command_writes_the_page_from_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, out = tmp_path / "server.log", tmp_path / "report.html"
    lines = [json.dumps(row) for row in made_logs()]
    logs.write_text("\n".join([*lines, "not json", ""]), encoding="utf-8")
    feedback = tmp_path / "feedback.jsonl"
    feedback.write_text(json.dumps({"request_id": "r0", "correction": VERDICT}) + "\n")
    main(["--logs", str(logs), "--feedback", str(feedback), "--out", str(out)])
    assert "1 lines could not be read" in out.read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["--logs", str(tmp_path / "none"), "--out", str(out)])
    assert ended.value.code == 2
    assert "No such file" in capsys.readouterr().err


def test_a_shadow_line_as_the_router_writes_it_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    router, _ = make_router(
        Split(live="a", shadow=Share(name="b", share=1.0)), FakePool(FULL), FakePool(OTHER)
    )

    async def scenario() -> None:
        for _ in range(3):
            await router.submit(job())
            await asyncio.sleep(0.03)

    with caplog.at_level(logging.INFO, "serve.variants.shadow"):
        asyncio.run(scenario())
    file = tmp_path / "log"
    formatter = JsonFormatter()
    file.write_text("\n".join(formatter.format(record) for record in caplog.records))
    pairs = gather(read_json_lines([file]), []).pairs["a", "b"]
    assert pairs.compared == 3
    assert pairs.same["verdict"] == [False] * 3
    assert pairs.months_apart == [12.0] * 3
