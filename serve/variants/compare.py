"""Hold variants against each other, from the server's logs and what people said.

    python -m serve.variants.compare --logs server.log --feedback feedback.jsonl --out report.html

Reads JSON log lines: `serve.access` for requests, `serve.variants.shadow` for shadows; and
feedback, as `/feedback` keeps it or as lines of `{"request_id", "correction", "variant"}`, where no
correction means that the answer was right. Everything is held against `--baseline`, by default the
variant with most requests. Intervals are 95% and take requests as independent.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curt.files import write_atomic
from curt.logs import configure_logging
from curt.scores import statistics
from curt.scores.statistics import Span, Z

logger = logging.getLogger(__name__)

UNNAMED = "default"  # the variant of lines from a server that had but one
QUANTILES = (0.5, 0.95, 0.99)
ROUTES = frozenset({"/predict", "/predict/batch", "/predict/stream", "/v1/chat/completions"})


@dataclass(slots=True)
class Requests:
    """What the logs say of one variant. Latencies are of its answers, in milliseconds."""

    total: int = 0
    errors: int = 0
    refused: int = 0
    degraded: int = 0
    late: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    judged: int = 0
    correct: int = 0
    parts: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))

    @property
    def answered(self) -> int:
        """Requests that got an answer."""
        return len(self.latencies_ms)

    def shares(self) -> dict[str, Span | None]:
        """Rates by name; None where nothing was counted."""
        rates = {
            "errors": share(self.errors, self.total),
            "refused": share(self.refused, self.total),
            "degraded": share(self.degraded, self.answered),
            "late": share(self.late, self.answered),
            "judged correct": share(self.correct, self.judged),
        }
        for part in ("charges", "articles", "term"):
            rates[f"{part} right"] = share(sum(self.parts[part]), len(self.parts[part]))
        return rates

    def quantiles_ms(self) -> dict[str, Span | None]:
        """Latencies: p50, p95 and p99."""
        return {f"p{q * 100:g}": quantile(self.latencies_ms, q) for q in QUANTILES}


@dataclass(slots=True)
class Pairs:
    """A shadow beside the variant that answered, on the same requests."""

    compared: int = 0
    failed: int = 0
    same: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    live_degraded: int = 0
    shadow_degraded: int = 0
    months_apart: list[float] = field(default_factory=list)
    extra_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Evidence:
    """All that was read: requests by variant, pairs by (live, shadow)."""

    variants: dict[str, Requests] = field(default_factory=lambda: defaultdict(Requests))
    pairs: dict[tuple[str, str], Pairs] = field(default_factory=lambda: defaultdict(Pairs))
    unread: int = 0
    unmatched: int = 0


def share(hits: int, total: int) -> Span | None:
    """A share with Wilson's interval; None of nothing."""
    return statistics.share(hits / total, total) if total else None


def quantile(values: Sequence[float], q: float) -> Span | None:
    """A quantile with the interval between two order statistics; None where there are too few.

    The number of values below the quantile is binomial, so that ranks n·q ± Z·sqrt(n·q·(1-q))
    hold it between them (Conover 1999); outside of 1..n there is no bound.
    """
    n, ordered = len(values), sorted(values)
    reach = Z * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - reach), math.ceil(n * q + reach) + 1
    if low < 1 or high > n:
        return None
    return Span(ordered[math.ceil(n * q) - 1], ordered[low - 1], ordered[high - 1])


def read_json_lines(paths: Iterable[Path]) -> Iterator[dict[str, Any] | None]:
    """Objects of the files' lines; None for a line that is none. Raises OSError."""
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield row if isinstance(row, dict) else None


def gather(logs: Iterable[dict[str, Any] | None], feedback: Iterable[dict[str, Any] | None]) -> (
    Evidence
):  # fmt: skip
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
                count_pair(evidence.pairs[str(row["variant"]), str(row["shadow"])], row)
        except (KeyError, TypeError, ValueError):
            evidence.unread += 1
    # The last word on an answer counts.
    last: dict[str, dict[str, Any]] = {}
    for row in feedback:
        if row is None or not isinstance(row.get("request_id"), str):
            evidence.unread += 1
            continue
        answer = row.get("answer")
        key = answer.get("answer_id") if isinstance(answer, dict) else None
        last[str(key or row["request_id"])] = row
    for row in last.values():
        answer = row["answer"] if isinstance(row.get("answer"), dict) else {}
        named = row.get("variant") or answer.get("variant") or variant_of.get(row["request_id"])
        if named is None:
            evidence.unmatched += 1
            continue
        try:
            count_judgement(evidence.variants[str(named)], row, answer.get("verdict"))
        except (KeyError, TypeError, AttributeError):
            evidence.unread += 1
    return evidence


def count_request(requests: Requests, row: Mapping[str, Any]) -> None:
    """Count one access line. What a client did wrong, or left, says nothing of a variant."""
    status, took_ms = int(row["status"]), float(row["ms"])
    if 400 <= status < 500:
        return
    requests.total += 1
    if status == 503:
        requests.refused += 1
    elif status >= 500 or row.get("error"):  # a stream may fail after its status went out
        requests.errors += 1
    else:
        requests.latencies_ms.append(took_ms)
        requests.degraded += row.get("degraded") is not None
        deadline_ms = row.get("deadline_ms")
        requests.late += deadline_ms is not None and took_ms > float(deadline_ms)


def count_pair(pairs: Pairs, row: Mapping[str, Any]) -> None:
    """Count one line of a shadow."""
    if row.get("error"):
        pairs.failed += 1
        return
    extra_ms = float(row["shadow_ms"]) - float(row["live_ms"])
    pairs.compared += 1
    pairs.live_degraded += bool(row["live_degraded"])
    pairs.shadow_degraded += bool(row["shadow_degraded"])
    pairs.extra_ms.append(extra_ms)
    for part in ("charges", "articles", "term", "verdict"):
        if row[f"same_{part}"] is not None:
            pairs.same[part].append(bool(row[f"same_{part}"]))
    if row["months_apart"] is not None:
        pairs.months_apart.append(float(row["months_apart"]))


def count_judgement(
    requests: Requests, row: Mapping[str, Any], answered: Mapping[str, Any] | None
) -> None:
    """Count what a person said of one answer, and of its parts where both verdicts are known."""
    correction = row.get("correction")
    is_correct = row.get("verdict", "wrong" if correction else "correct") == "correct"
    requests.judged += 1
    requests.correct += is_correct
    # Without the answer a wrong one can't be told by its parts; counting the right ones alone
    # would make them all look right.
    if answered and (is_correct or correction):
        for part in ("charges", "articles", "term"):
            same = is_correct or _plain((correction or {})[part]) == _plain(answered[part])
            requests.parts[part].append(same)


def _plain(part: Any) -> Any:
    return sorted(map(str, part)) if isinstance(part, list) else part


def differences(
    evidence: Evidence, baseline: str, measure: Callable[[Requests], Mapping[str, Span | None]]
) -> dict[str, dict[str, Span | None]]:
    """Of every other variant and each of its figures, how much above the baseline's it lies."""
    base = measure(evidence.variants[baseline])
    found: dict[str, dict[str, Span | None]] = {}
    for name, requests in evidence.variants.items():
        if name != baseline:
            own = measure(requests)
            found[name] = {
                figure: span.minus(other) if span and (other := base[figure]) else None
                for figure, span in own.items()
            }
    return found


def choose_baseline(evidence: Evidence, wanted: str | None) -> str:
    """The variant to hold the others against. Raises ValueError where there is none such."""
    variants = evidence.variants
    if not variants:
        raise ValueError("no request in these logs: give the server's log in JSON, of one or more")
    if wanted is not None and wanted not in variants:
        raise ValueError(f"no variant {wanted} in these logs: there are {', '.join(variants)}")
    return wanted or max(variants, key=lambda name: variants[name].total)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report; exits with status 2 and a message when it can't."""
    parser = argparse.ArgumentParser(
        prog="python -m serve.variants.compare",
        description="Compare variants by logs and feedback.",
    )
    parser.add_argument("--logs", type=Path, nargs="+", required=True, help="JSON lines")
    parser.add_argument("--feedback", type=Path, nargs="*", default=[], help="JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="the page to write")
    parser.add_argument("--baseline", help="variant to compare with; the one most used by default")
    arguments = parser.parse_args(argv)
    configure_logging()
    from serve.variants.compare_page import (
        render_page,  # matplotlib takes a second: not before --help
    )

    try:
        logs, feedback = read_json_lines(arguments.logs), read_json_lines(arguments.feedback)
        evidence = gather(logs, feedback)
        baseline = choose_baseline(evidence, arguments.baseline)
        write_atomic(arguments.out, render_page(evidence, baseline))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    total = sum(requests.total for requests in evidence.variants.values())
    logger.info("wrote %s: %d requests, baseline %s", arguments.out, total, baseline)


if __name__ == "__main__":
    main()
