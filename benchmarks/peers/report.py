"""Summarise turns in a report: rates, accuracy, ratios, raw rows; pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.peers.catalogue import Setting
from benchmarks.peers.judging import JudgedReply, accuracy_change, summarise
from benchmarks.run import describe_machine


@dataclass
class Turn:
    """What one server did in one round: steps by rate, and the highest rates."""

    round: int
    steps: dict[float, list[JudgedReply]] = field(default_factory=dict)
    highest_per_s: float = 0.0
    equal_highest_per_s: float | None = None


def summarise_all(
    settings: Mapping[str, Any],
    servers: Sequence[Setting],
    turns: Mapping[str, Sequence[Turn]],
    accuracy: Mapping[str, Mapping[str, Any]],
    expected: Sequence[float],
) -> dict[str, Any]:
    """The report: what each server kept, and how this project's stands to the best peer."""
    rows: dict[str, Any] = {}
    for setting in servers:
        own = turns[setting.name]
        seen = accuracy[setting.name]
        steps = [
            summarise(replies, rate)
            | {"round": turn.round + 1, "accuracy_change": accuracy_change(replies, expected)}
            for turn in own
            for rate, replies in turn.steps.items()
        ]
        rows[setting.name] = setting.describe() | {
            "highest_per_s": _spread([turn.highest_per_s for turn in own]),
            "exact": seen["exact"],
            "cases": seen["cases"],
            "without_verdict": seen["without_verdict"],
            "thinking_tokens": seen["thinking_tokens"],
            "at_highest": _at_highest(own, expected),
            "steps": steps,
        }
        if own[0].equal_highest_per_s is not None:
            rows[setting.name]["equal_accuracy_highest_per_s"] = _spread(
                [turn.equal_highest_per_s or 0.0 for turn in own]
            )
    return {
        "settings": settings,
        "machine": describe_machine(),
        "summary": compare(rows, [s.name for s in servers if s.protocol == "completions"]),
        "servers": rows,
    }


def compare(rows: Mapping[str, Mapping[str, Any]], peers: Sequence[str]) -> dict[str, Any]:
    """Ratios of medians to the best peer; None where either kept no rate or was not measured."""
    rates = {name: rows[name]["highest_per_s"]["median"] for name in peers}
    best = max(rates, key=lambda name: rates[name], default=None)
    summary: dict[str, Any] = {"best_peer": best, "ratio_to_best_peer": None}
    if best is None or not rates[best]:
        return summary
    ours = [name for name in rows if name not in rates]
    for name in ours:
        equal = rows[name]["equal_accuracy_highest_per_s"]["median"] / rates[best]
        summary[name] = {
            "ratio_to_best_peer": rows[name]["highest_per_s"]["median"] / rates[best],
            "ratio_to_best_peer_at_equal_accuracy": equal,
            "ratio_to_each_at_equal_accuracy": {
                peer: rows[name]["equal_accuracy_highest_per_s"]["median"] / rate
                for peer, rate in rates.items()
                if rate
            },
        }
    if ours:  # the server as shipped comes first
        summary["ratio_to_best_peer"] = summary[ours[0]]["ratio_to_best_peer_at_equal_accuracy"]
    return summary


def raw_rows(turns: Mapping[str, Sequence[Turn]]) -> list[dict[str, Any]]:
    """Every request of every step."""
    return [
        {
            "server": name,
            "round": turn.round + 1,
            "rate_per_s": rate,
            "case": reply.case,
            "at_s": f"{reply.at_s:.3f}",
            "latency_ms": f"{reply.latency_ms:.2f}",
            "lag_ms": f"{reply.lag_ms:.2f}",
            "miss": reply.miss or "",
            "exact": int(reply.exact),
            "thinking_tokens": reply.thinking_tokens,
        }
        for name, own in turns.items()
        for turn in own
        for rate, replies in turn.steps.items()
        for reply in replies
    ]


def _at_highest(own: Sequence[Turn], expected: Sequence[float]) -> dict[str, Any]:
    """Accuracy and length over the rounds at each one's highest rate."""
    replies = [o for turn in own for o in turn.steps.get(turn.highest_per_s, [])]
    if not replies:
        return {}
    row = summarise(replies, median(turn.highest_per_s for turn in own))
    return row | {"accuracy_change": accuracy_change(replies, expected)}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": median(values),
        "range": [min(values), max(values)],
        "rounds": list(values),
    }
