"""Judge the replies of every server by the same rules, and sum them up; pure functions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, stdev
from typing import Any

from benchmarks.client import Exchange, read_verdict
from benchmarks.peers.catalogue import COMPLETIONS, Setting
from curt.dialogue import THINK_END, ParseFailure, parse_answer
from curt.engines.tokenizer import PromptTokenizer
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact
from loadtest._slo import nearest_rank

ANSWER_START = "罪名："


@dataclass(frozen=True, slots=True)
class JudgedReply:
    """One request. `miss` says why it was no full verdict in time; None when it was one.

    `case` is the number of the case it asked about, `exact` whether the verdict was the reference.
    """

    case: int
    at_s: float
    latency_ms: float
    lag_ms: float
    miss: str | None
    exact: bool
    thinking_tokens: int


@dataclass
class Turn:
    """What one server did in one round: steps by rate, and the highest rates."""

    round: int
    steps: dict[float, list[JudgedReply]] = field(default_factory=dict)
    highest_per_s: float = 0.0
    equal_highest_per_s: float | None = None


def judge(
    exchange: Exchange,
    case: int,
    truth: Verdict,
    slo_ms: float,
    tokenizer: PromptTokenizer,
    start_s: float = 0.0,
) -> JudgedReply:
    """What a reply was worth: in time, not degraded, readable; and whether it was right.

    `start_s` is the instant that `at_s` counts from.
    """
    verdict: Verdict | ParseFailure = ParseFailure("no answer")
    degraded, thinking, status = False, 0, exchange.got.status
    if status == 200:
        content = json.loads(exchange.got.body)
        if "choices" in content:  # a completion
            text = content["choices"][0]["text"]
            verdict = parse_answer(answer_of(text))
            thinking = len(tokenizer.encode(text.split(THINK_END, 1)[0]))
        else:
            degraded = content["degraded"]
            verdict = read_verdict(content)
            thinking = content["thinking"]["tokens"]
    miss = None
    if status != 200:
        miss = f"status {status}" if status else "no reply"
    elif degraded:
        miss = "degraded"
    elif isinstance(verdict, ParseFailure):
        miss = "unreadable"
    elif exchange.latency_ms >= slo_ms:
        miss = "late"
    return JudgedReply(
        case=case,
        at_s=exchange.due_s - start_s,
        latency_ms=exchange.latency_ms,
        lag_ms=exchange.lag_ms,
        miss=miss,
        exact=is_exact(verdict, truth),
        thinking_tokens=thinking,
    )


def answer_of(text: str) -> str:
    """The answer of a completion, also where a server left the end of thinking out of its text."""
    _, closed, answer = text.partition(THINK_END)
    if not closed:
        answer = text[text.rfind(ANSWER_START) :] if ANSWER_START in text else ""
    return answer.removesuffix("<|im_end|>")


def summarise(replies: Sequence[JudgedReply], rate_per_s: float) -> dict[str, Any]:
    """Figures of one step. A miss counts as an infinite latency in `p99_ms`, None when it is so.

    Raises ValueError without replies.
    """
    if not replies:
        raise ValueError("no reply to judge: nothing was sent")
    answered = [reply for reply in replies if reply.miss in (None, "late")]
    latencies_ms = [reply.latency_ms for reply in answered]
    latencies_ms += [math.inf] * (len(replies) - len(answered))
    p50_ms, p99_ms = (nearest_rank(latencies_ms, share) for share in (0.5, 0.99))
    tokens = [reply.thinking_tokens for reply in answered]
    return {
        "rate_per_s": round(rate_per_s, 2),
        "requests": len(replies),
        "p50_ms": round(p50_ms, 2) if p50_ms < math.inf else None,
        "p99_ms": round(p99_ms, 2) if p99_ms < math.inf else None,
        "misses": dict(Counter(reply.miss for reply in replies if reply.miss)),
        "exact": fmean(reply.exact for reply in replies),
        "thinking_tokens": round(fmean(tokens), 2) if tokens else None,
        "lag_p99_ms": round(nearest_rank([reply.lag_ms for reply in replies], 0.99), 2),
    }


def accuracy_change(replies: Sequence[JudgedReply], expected: Sequence[float]) -> float:
    """Mean of exact minus what was `expected` of the same case: paired, so cases add no noise.

    Every reply counts; one without a verdict is wrong.
    """
    return fmean(reply.exact - expected[reply.case] for reply in replies)


def keeps_accuracy(
    replies: Sequence[JudgedReply], expected: Sequence[float], within: float
) -> bool:
    """Whether accuracy is not shown to fall short by more than `within`, at one standard error."""
    changes = [reply.exact - expected[reply.case] for reply in replies]
    error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    return fmean(changes) + error >= -within


def summarise_server(
    setting: Setting,
    turns: Sequence[Turn],
    accuracy: Mapping[str, Any],
    expected: Sequence[float],
) -> dict[str, Any]:
    """What a server kept in its turns, and with what accuracy."""

    def sum_up(replies: Sequence[JudgedReply], rate_per_s: float) -> dict[str, Any]:
        change = accuracy_change(replies, expected)
        return summarise(replies, rate_per_s) | {"accuracy_change": change}

    highest = [turn.highest_per_s for turn in turns]
    at_highest = [reply for turn in turns for reply in turn.steps.get(turn.highest_per_s, [])]
    equal = [turn.equal_highest_per_s for turn in turns if turn.equal_highest_per_s is not None]
    told = ("exact", "cases", "without_verdict", "thinking_tokens")
    return {
        **setting.describe(),
        "highest_per_s": _spread(highest),
        **{name: accuracy[name] for name in told},
        "at_highest": sum_up(at_highest, median(highest)) if at_highest else {},
        "steps": [
            sum_up(replies, rate) | {"round": turn.round + 1}
            for turn in turns
            for rate, replies in turn.steps.items()
        ],
        **({"equal_accuracy_highest_per_s": _spread(equal)} if equal else {}),
    }


def compare(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ratios of medians to the best peer; None where either kept no rate or was not measured."""
    ours = [name for name, row in rows.items() if row["protocol"] != COMPLETIONS]
    rates = {name: rows[name]["highest_per_s"]["median"] for name in rows if name not in ours}
    best = max(rates, key=lambda name: rates[name], default=None)
    summary: dict[str, Any] = {"best_peer": best, "ratio_to_best_peer": None}
    if best is None or not rates[best]:
        return summary
    for name in ours:
        equal = rows[name]["equal_accuracy_highest_per_s"]["median"]
        summary["ratio_to_best_peer"] = equal / rates[best]
        summary[name] = {
            "ratio_to_best_peer": rows[name]["highest_per_s"]["median"] / rates[best],
            "ratio_to_best_peer_at_equal_accuracy": equal / rates[best],
            "ratio_to_each_at_equal_accuracy": {
                peer: equal / rate for peer, rate in rates.items() if rate
            },
        }
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


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "median": median(values),
        "range": [min(values), max(values)],
        "rounds": list(values),
    }
