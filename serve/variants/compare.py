"""Compare variants by the server's logs and by feedback, in a page of tables.

    python -m serve.variants.compare --logs server.log --feedback feedback.jsonl --out report.html

Reads JSON log lines: `serve.access` for requests, `serve.variants.shadow` for shadows; and
feedback, as `/feedback` keeps it or as lines of `{"request_id", "correction", "variant"}`, where no
correction means that the answer was right. Everything is compared with `--baseline`, by default the
variant with most requests. Intervals are 95% and take requests as independent.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from curt.config import Config, run
from curt.files import write_atomic
from curt.html import render_html
from curt.scores.statistics import Span, quantile, share

logger = logging.getLogger(__name__)

UNNAMED = "default"  # the variant of lines from a server that had but one
ROUTES = frozenset({"/predict", "/predict/batch", "/predict/stream", "/v1/chat/completions"})
PARTS = ("charges", "articles", "term")
QUANTILES = (0.5, 0.95, 0.99)
MISSING = "–"

Row = dict[str, Any]
# Values by figure. A name that ends with a unit after a comma holds numbers, any other yes or no.
Figures = dict[str, list[float]]
Columns = Mapping[str, Mapping[str, Span | None]]


class CompareConfig(Config):
    """What to compare."""

    logs: list[Path]
    """The server's logs in JSON lines."""
    out: Path
    """The page to write."""
    feedback: list[Path] = Field(default_factory=list)
    """JSON lines of feedback."""
    baseline: str | None = None
    """Variant to compare with; the one most used by default."""


def new_figures() -> Figures:
    """Figures that start empty."""
    return defaultdict(list)


@dataclass(slots=True)
class Evidence:
    """All that was read: figures of requests by variant, of pairs of answers by "b beside a"."""

    variants: dict[str, Figures] = field(default_factory=lambda: defaultdict(new_figures))
    shadows: dict[str, Figures] = field(default_factory=lambda: defaultdict(new_figures))
    unread: int = 0
    unmatched: int = 0


def read_json_lines(paths: Iterable[Path]) -> Iterator[Row | None]:
    """Objects of the files' lines; None for a line that is none. Raises OSError."""
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in filter(str.strip, file):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield row if isinstance(row, dict) else None


def gather(logs: Iterable[Row | None], feedback: Iterable[Row | None]) -> Evidence:
    """Count log lines and feedback. Lines of other kinds are left out; broken ones counted."""
    evidence, variant_of = Evidence(), {}
    for row in logs:
        try:
            if row is None:
                evidence.unread += 1
            elif row.get("logger") == "serve.access" and row.get("route") in ROUTES:
                variant = str(row.get("variant") or UNNAMED)
                count_request(evidence.variants[variant], row)
                variant_of[row["request_id"]] = variant
            elif row.get("logger") == "serve.variants.shadow" and row.get("shadow"):
                count_shadow(evidence.shadows[f"{row['shadow']} beside {row['variant']}"], row)
        except (KeyError, TypeError, ValueError):
            evidence.unread += 1
    last: dict[str, Row] = {}  # the last word on an answer counts
    for row in feedback:
        if row is None or not isinstance(row.get("request_id"), str):
            evidence.unread += 1
            continue
        answer = row["answer"] if isinstance(row.get("answer"), dict) else {}
        last[str(answer.get("answer_id") or row["request_id"])] = {**row, "answer": answer}
    for row in last.values():
        named = row.get("variant") or row["answer"].get("variant")
        named = named or variant_of.get(row["request_id"])
        if named is None:
            evidence.unmatched += 1
            continue
        try:
            count_judgement(evidence.variants[str(named)], row, row["answer"].get("verdict"))
        except (KeyError, TypeError, AttributeError):
            evidence.unread += 1
    return evidence


def count_request(figures: Figures, row: Row) -> None:
    """Count one access line. What a client did wrong, or left, says nothing of a variant."""
    status, took_ms, deadline_ms = int(row["status"]), float(row["ms"]), row.get("deadline_ms")
    if 400 <= status < 500:
        return
    # A stream may fail after its status went out.
    failed = status != 503 and (status >= 500 or bool(row.get("error")))
    figures["refused"].append(status == 503)
    figures["errors"].append(failed)
    if status != 503 and not failed:
        figures["latency, ms"].append(took_ms)
        figures["degraded"].append(row.get("degraded") is not None)
        figures["late"].append(deadline_ms is not None and took_ms > float(deadline_ms))


def count_shadow(figures: Figures, row: Row) -> None:
    """Count one line of a shadow."""
    figures["failed"].append(bool(row.get("error")))
    if row.get("error"):
        return
    figures["time beyond the live, ms"].append(float(row["shadow_ms"]) - float(row["live_ms"]))
    for whose in ("live", "shadow"):
        figures[f"{whose} degraded"].append(bool(row[f"{whose}_degraded"]))
    for part in (*PARTS, "verdict"):
        if row[f"same_{part}"] is not None:
            figures[f"same {part}"].append(bool(row[f"same_{part}"]))
    if row["months_apart"] is not None:
        figures["term beyond the live, months"].append(float(row["months_apart"]))


def count_judgement(figures: Figures, row: Row, answered: Mapping[str, Any] | None) -> None:
    """Count what a person said of one answer, and of its parts where both verdicts are known."""
    correction = row.get("correction")
    is_correct = row.get("verdict", "wrong" if correction else "correct") == "correct"
    figures["judged correct"].append(is_correct)
    # Without the answer it is unknown which parts of a wrong one were wrong; counting the parts of
    # right ones alone would make all parts look right.
    if answered and (is_correct or correction):
        for part in PARTS:
            said, given = (
                sorted(map(str, verdict[part])) if part != "term" else verdict[part]
                for verdict in (correction or answered, answered)
            )
            figures[f"{part} right"].append(is_correct or said == given)


def measure(figures: Figures) -> dict[str, Span | None]:
    """Every rate and the quantiles of every number; None where too little was counted."""
    spans: dict[str, Span | None] = {}
    for name, values in figures.items():
        if ", " in name:
            spans |= {f"p{q * 100:g} of {name}": quantile(values, q) for q in QUANTILES}
        elif values:
            spans[name] = share(sum(values) / len(values), len(values))
    return spans


def differences(evidence: Evidence, baseline: str) -> dict[str, dict[str, Span | None]]:
    """Of every other variant and each of its figures, how much above the baseline's it lies."""
    base = measure(evidence.variants[baseline])
    return {
        name: {
            figure: span.minus(other) if span and (other := base.get(figure)) else None
            for figure, span in measure(figures).items()
        }
        for name, figures in sorted(evidence.variants.items())
        if name != baseline
    }


def choose_baseline(evidence: Evidence, wanted: str | None) -> str:
    """The variant to compare the others with. Raises ValueError where there is none such."""
    variants = evidence.variants
    if not variants:
        raise ValueError("no request in these logs: give the server's log in JSON, of one or more")
    if wanted is not None and wanted not in variants:
        raise ValueError(f"no variant {wanted} in these logs: there are {', '.join(variants)}")
    return wanted or max(variants, key=lambda name: len(variants[name]["errors"]))


def render_page(evidence: Evidence, baseline: str) -> str:
    """The whole report as one HTML text."""
    changes = differences(evidence, baseline)
    return render_html(
        "variants.html.j2",
        baseline=baseline,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        figures=table({name: measure(evidence.variants[name]) for name in (baseline, *changes)}),
        changes=table(changes, sign="+"),
        shadows=table({name: measure(pairs) for name, pairs in evidence.shadows.items()}),
        unread=evidence.unread,
        unmatched=evidence.unmatched,
    )


def table(columns: Columns, sign: str = "") -> list[list[str]]:
    """A heading row of names, then a row a figure; empty where there is no column."""
    figures = list(dict.fromkeys(figure for spans in columns.values() for figure in spans))
    rows = [
        [figure, *(show(figure, spans.get(figure), sign) for spans in columns.values())]
        for figure in figures
    ]
    return [["", *columns], *rows] if columns else []


def show(figure: str, span: Span | None, sign: str = "") -> str:
    """An estimate and its interval: 5.0% of 200 (3.1% to 7.9%), or 120.0 ms (110.0 to 131.0).

    With `sign` "+" it is a difference, and marked where its interval leaves out zero.
    """
    if span is None:
        return MISSING
    _, _, unit = figure.partition(", ")
    form = f"{sign}.1f" if unit else f"{sign}.1%"
    value, low, high = (format(number, form) for number in (span.value, span.low, span.high))
    told = f" {unit}" if unit else f" of {span.n}" if span.n else ""
    mark = " beyond chance" if sign and span.low * span.high > 0 else ""
    return f"{value}{told}{mark} ({low} to {high})"


def work(config: CompareConfig) -> None:
    """Write the page."""
    evidence = gather(read_json_lines(config.logs), read_json_lines(config.feedback))
    baseline = choose_baseline(evidence, config.baseline)
    write_atomic(config.out, render_page(evidence, baseline))
    total = sum(len(figures["errors"]) for figures in evidence.variants.values())
    logger.info("wrote %s: %d requests, baseline %s", config.out, total, baseline)


if __name__ == "__main__":
    run(CompareConfig, work)
