"""Compare variants by the server's metrics and by feedback, in a page of tables.

    curl -s localhost:8000/metrics > metrics.txt
    python -m serve.variants.compare --metrics metrics.txt --feedback feedback.jsonl --out page.html

Files of several replicas add up. Everything is compared with the variant that had most requests.
Intervals are 95% and take requests as independent.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from pydantic import Field

from curt.config import Config, run
from curt.files import read_json_lines, write_atomic
from curt.html import render_html
from curt.scores.statistics import Span, quantile, share
from serve.variants.metrics import VERDICT_PARTS

logger = logging.getLogger(__name__)

QUANTILES = (0.5, 0.95, 0.99)

Counts = defaultdict[str, Counter[str]]  # by variant, then by outcome, part of verdict or bucket
Spans = dict[str, Span | None]  # by figure; None where there is too little to tell


class CompareConfig(Config):
    """What to compare."""

    metrics: list[Path]
    """What `/metrics` said, a file a server."""
    out: Path
    """The page to write."""
    feedback: list[Path] = Field(default_factory=list)
    """JSON lines of feedback, as `/feedback` keeps them."""


def read_metrics(paths: Iterable[Path]) -> dict[str, Counts]:
    """Counts of every metric by variant. Raises OSError, ValueError on a file of another form."""
    counts: dict[str, Counts] = defaultdict(lambda: defaultdict(Counter))
    for path in paths:
        for family in text_string_to_metric_families(path.read_text(encoding="utf-8")):
            for name, labels, value, *_ in family.samples:
                if name.startswith("curt_variant_"):
                    (other,) = (labels.keys() - {"variant"}) or {""}
                    named, counted = labels.get("variant", ""), labels.get(other, "")
                    counts[name.removeprefix("curt_variant_")][named][counted] += round(value)
    return counts


def read_feedback(paths: Iterable[Path]) -> Counts:
    """What people said of each variant's answers; of each answer the last word counts."""
    rows = (row for path in paths for row in read_json_lines(path))
    judged: Counts = defaultdict(Counter)
    for row in {row["answer"]["answer_id"]: row for row in rows}.values():
        judged[row["answer"]["variant"]][row["verdict"]] += 1
    return judged


def measure_requests(ended: Counter[str], buckets: Counter[str], judged: Counter[str]) -> Spans:
    """Rates of how a variant's requests ended, its latencies, and what people said of it."""
    answers = ended["full"] + ended["late"] + ended["degraded"]
    requests = answers + ended["failed"] + ended["refused"]
    spans = rates({name: (ended[name], requests) for name in ("failed", "refused")})
    spans |= rates({name: (ended[name], answers) for name in ("degraded", "late")})
    spans |= rates({"judged correct": (judged["correct"], judged.total())})
    latencies_ms, below = [], 0
    for edge_s, count in sorted((float(edge), count) for edge, count in buckets.items()):
        latencies_ms += [edge_s * 1e3] * (count - below)
        below = count
    return spans | {f"p{q * 100:g} of latency, ms": quantile(latencies_ms, q) for q in QUANTILES}


def measure_shadow(ended: Counter[str], differences: Counter[str]) -> Spans:
    """Rates of how a shadow's copies ended, and of pairs of verdicts that agreed in a part."""
    pairs = ended["agreed"] + ended["differed"]
    ran = pairs + ended["degraded"] + ended["failed"]
    spans = rates({name: (ended[name], ran) for name in ("failed", "degraded")})
    spans |= rates({f"same {part}": (pairs - differences[part], pairs) for part in VERDICT_PARTS})
    return spans | rates({"same verdict": (ended["agreed"], pairs)})


def rates(hits: dict[str, tuple[int, int]]) -> Spans:
    """Hits by cases with their intervals; None where there was no case."""
    return {name: share(hit / n, n) if n else None for name, (hit, n) in hits.items()}


def subtract(spans: Spans, base: Spans) -> Spans:
    """How much above those of a baseline the figures of a variant lie."""
    pairs = {figure: (span, base[figure]) for figure, span in spans.items()}
    return {figure: a.minus(b) if a and b else None for figure, (a, b) in pairs.items()}


def render_page(counts: dict[str, Counts], judged: Counts) -> str:
    """The whole report as one HTML text. Raises ValueError where no variant had a request."""
    ended, buckets = counts["requests_total"], counts["latency_seconds_bucket"]
    if not any(ended.values()):
        raise ValueError("no request of a variant in these metrics: give what /metrics says")
    baseline = max(ended, key=lambda name: ended[name].total())
    names = [baseline, *sorted(ended.keys() - {baseline})]
    measured = {n: measure_requests(ended[n], buckets[n], judged[n]) for n in names}
    shadows, differences = counts["shadow_total"], counts["shadow_differences_total"]
    return render_html(
        "variants.html.j2",
        baseline=baseline,
        figures=measured,
        changes={name: subtract(measured[name], measured[baseline]) for name in names[1:]},
        shadows={n: measure_shadow(shadows[n], differences[n]) for n in sorted(shadows)},
    )


def work(config: CompareConfig) -> None:
    """Write the page."""
    counts, judged = read_metrics(config.metrics), read_feedback(config.feedback)
    write_atomic(config.out, render_page(counts, judged))
    logger.info("wrote %s", config.out)


if __name__ == "__main__":
    run(CompareConfig, work)
