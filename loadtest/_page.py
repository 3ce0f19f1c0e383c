"""The page of a load test: one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curt.html import render_html
from curt.report.figures import draw_latencies
from loadtest import _figures
from loadtest._slo import PHASES, requests_needed


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report that `make_report` made."""
    return render_html(
        "loadtest.html.j2",
        report=report,
        needed={misses: requests_needed(misses) for misses in (0, 4, 10)},
        phase_names=PHASES,
        draw_latencies=draw_latencies,
        figures=_figures,
    )
