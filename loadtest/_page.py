"""The page of a load test: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from curt.html import render_html
from loadtest._figures import draw_histogram, draw_misses, draw_phases, draw_timeline
from loadtest._slo import PHASES, requests_needed


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report that `make_report` made."""
    return render_html(
        "loadtest.html.j2",
        report=report,
        needed={misses: requests_needed(misses) for misses in (0, 4, 10)},
        phase_names=PHASES,
        panels=make_panels(report),
    )


def make_panels(report: Mapping[str, Any]) -> list[tuple[str, str, Markup]]:
    """Title, sentence and figure of everything the run has figures for."""
    slo_ms = report["settings"]["slo_p99_ms"]
    found = []
    if report["latencies_ms"]:
        sentence = "Valid answers, timed from their schedule; refused and failed ones are not here."
        svg = draw_histogram(report["latencies_ms"], report["latency_ms"]["p99"], slo_ms)
        found.append(("Latencies", sentence, svg))
    if report["windows"]:
        window_s = report["window_s"]
        sentence = (
            f"By {window_s:g} s of the schedule. A gap means that the percentile falls on a "
            "request without a valid answer."
        )
        svg = draw_timeline(report["windows"], window_s, slo_ms)
        found.append(("Over the run", sentence, svg))
    if report["phases_ms"]:
        sentence = (
            "Queue, prefill and decode as each reply tells them; the rest of the time from "
            "sending is network, parsing and the server's front."
        )
        found.append(("Where the time goes", sentence, draw_phases(report["phases_ms"])))
    if report["misses_by_reason"]:
        sentence = "Each request counts once, under the first reason found."
        found.append(("Misses", sentence, draw_misses(report["misses_by_reason"])))
    return found
