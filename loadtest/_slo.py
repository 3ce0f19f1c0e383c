"""Whether a run keeps the promise, and what it proves."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Any

from loadtest._reply import REST, SERVER_PHASES, TIMINGS, Outcome, Slo

CONFIDENCE = 0.95
CLAIMED_TAIL = 0.01  # "p99 under the SLO" says that fewer than 1% of requests miss
MOST_REQUESTS = 10**9  # that a proof may ask for
QUANTILES = (0.5, 0.9, 0.95, 0.99)
PHASES = (*SERVER_PHASES, REST)


def nearest_rank(values: Sequence[float], quantile: float) -> float:
    """The exact quantile: the ceil(q·n)-th smallest value, never an interpolation or a bucket.

    Raises ValueError on no values.
    """
    if not values:
        raise ValueError("a quantile of no values: make at least one request")
    # The nudge keeps 0.99 · 100 = 99.00000000000001 from asking for the 100th value.
    rank = math.ceil(quantile * len(values) - 1e-9)
    return sorted(values)[max(rank, 1) - 1]


def miss_rate_upper_bound(misses: int, requests: int, confidence: float = CONFIDENCE) -> float:
    """One-sided Clopper-Pearson upper bound of a miss rate.

    The largest rate at which `misses` or fewer in `requests` would still be seen with
    probability 1 - confidence: a quantile of a beta distribution. It takes requests as
    independent; misses that come in bursts make it optimistic. Clopper and Pearson, Biometrika 26
    (1934).
    """
    if not 0 <= misses <= requests:
        raise ValueError(f"{misses} misses in {requests} requests: use 0 to {requests}")
    if misses == requests:
        return 1.0
    from scipy.special import betaincinv  # slow to import

    return float(betaincinv(misses + 1, requests - misses, confidence))


def requests_needed(misses: int, rate: float = CLAIMED_TAIL) -> int:
    """The fewest requests in which `misses` still prove a miss rate under `rate`."""
    counts = range(max(misses, 1), MOST_REQUESTS)
    return counts[
        bisect_left(counts, True, key=lambda count: miss_rate_upper_bound(misses, count) < rate)
    ]


def state_confidence(misses: int, requests: int, slo: Slo) -> dict[str, Any]:
    """What the run proves: the bound on the miss rate, and whether "p99 < SLO" follows."""
    claim = f"p99 < {slo.p99_ms:g} ms at {CONFIDENCE:.0%} confidence"
    if not requests:
        return {
            "level": CONFIDENCE,
            "miss_rate_upper": 1.0,
            "proven": False,
            "statement": f"{claim}: not proven, no request was made",
        }
    upper = miss_rate_upper_bound(misses, requests)
    proven = upper < CLAIMED_TAIL
    seen = f"{misses} misses in {requests} requests, miss rate at most {upper:.3%}"
    if proven:
        statement = f"{claim}: proven ({seen})"
    elif misses / requests > CLAIMED_TAIL:
        statement = f"{claim}: not proven ({seen})"
    else:
        statement = (
            f"{claim}: not proven, too few requests ({seen}; "
            f"{requests_needed(misses)} needed with {misses} misses)"
        )
    return {
        "level": CONFIDENCE,
        "miss_rate_upper": upper,
        "proven": proven,
        "statement": statement,
    }


def summarise(outcomes: Sequence[Outcome], slo: Slo, *, require_proof: bool) -> dict[str, Any]:
    """Counts, exact percentiles, confidence and verdict of a run, ready for JSON.

    `latency_ms` ranks a request without a valid answer above every answer, so that quick
    refusals cannot lower a percentile; null stands for such a percentile. `max` is the slowest
    valid answer; `latencies_ms` holds the valid answers' latencies, late ones included, and
    `answered_at_s` when each was due.
    """
    requests = len(outcomes)
    misses = sum(outcome.miss is not None for outcome in outcomes)
    answered = [outcome for outcome in outcomes if outcome.answered]
    lags = [outcome.lag_ms for outcome in outcomes]
    latency_ms = rank_latencies(outcomes)
    latency_ms["max"] = max((outcome.latency_ms for outcome in answered), default=None)
    tokens = [o.thinking_tokens for o in answered if o.thinking_tokens is not None]
    confidence = state_confidence(misses, requests, slo)
    reasons = find_breaches(requests, misses, latency_ms["p99"], slo)
    if require_proof and not confidence["proven"]:
        reasons.append(confidence["statement"])
    return {
        "requests": requests,
        "misses": misses,
        "miss_rate": misses / requests if requests else None,
        "misses_by_reason": dict(Counter(o.miss for o in outcomes if o.miss is not None)),
        "degraded": sum(outcome.degraded for outcome in outcomes),
        "latency_ms": latency_ms,
        "latencies_ms": [round(outcome.latency_ms, 1) for outcome in answered],
        "answered_at_s": [round(outcome.at_s, 3) for outcome in answered],
        "schedule_lag_ms": {
            "p99": nearest_rank(lags, 0.99) if lags else None,
            "max": max(lags, default=None),
        },
        "server_ms": {
            name: _mean([o.phases_ms[name] for o in answered if name in o.phases_ms])
            for name in TIMINGS
        },
        "phases_ms": summarise_phases(answered),
        "by_length": summarise_lengths(outcomes),
        "thinking_tokens_mean": _mean(tokens),
        "confidence": confidence,
        "verdict": {"passed": not reasons, "reasons": reasons},
    }


def rank_latencies(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Exact percentiles by name; see `rank_latency`."""
    return {f"p{q * 100:g}": rank_latency(outcomes, q) for q in QUANTILES}


def rank_latency(outcomes: Sequence[Outcome], quantile: float) -> float | None:
    """The exact quantile, unanswered requests ranking last; None on such a one, or on none."""
    ranked = [outcome.latency_ms if outcome.answered else math.inf for outcome in outcomes]
    value = nearest_rank(ranked, quantile) if ranked else math.inf
    return value if math.isfinite(value) else None


def summarise_phases(answered: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Percentiles, mean and greatest of every phase of the valid answers.

    What the server does not tell of (network, parsing, writing the reply) is the rest of the
    time from sending. Percentiles of phases do not add up to those of the whole; means do.
    """
    found = {}
    for name in PHASES:
        values = [o.phases_ms[name] for o in answered if name in o.phases_ms]
        if values:
            ranks = {f"p{q * 100:g}": nearest_rank(values, q) for q in QUANTILES}
            found[name] = {"mean": math.fsum(values) / len(values), **ranks, "max": max(values)}
    return found


def summarise_lengths(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Requests, misses and percentiles by length of the case."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.length:
            groups.setdefault(outcome.length, []).append(outcome)
    return {name: _in_short(rows) for name, rows in sorted(groups.items())}


def summarise_windows(outcomes: Sequence[Outcome], window_s: float) -> list[dict[str, Any]]:
    """The same for every window of the schedule, empty ones included."""
    if not outcomes:
        return []
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(int(outcome.at_s / window_s), []).append(outcome)
    return [
        {"from_s": number * window_s, **_in_short(groups.get(number, []))}
        for number in range(max(groups) + 1)
    ]


def _in_short(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "requests": len(outcomes),
        "misses": sum(outcome.miss is not None for outcome in outcomes),
        **rank_latencies(outcomes),
    }


def find_breaches(requests: int, misses: int, p99_ms: float | None, slo: Slo) -> list[str]:
    """Why a run fails its SLO; empty when it keeps it. A run without requests never passes."""
    if not requests:
        return ["no request was made"]
    reasons = []
    if p99_ms is None:
        reasons.append("p99 falls on a request without a valid answer")
    elif p99_ms > slo.p99_ms:
        reasons.append(f"p99 is {p99_ms:.1f} ms, over {slo.p99_ms:g} ms")
    if misses / requests > slo.max_miss_rate:
        reasons.append(
            f"{misses} of {requests} requests missed ({misses / requests:.2%}), "
            f"over {slo.max_miss_rate:.2%}"
        )
    return reasons


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
