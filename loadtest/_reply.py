"""Check one reply: a valid answer in time, or a miss.

A *miss* is anything a user with a deadline would call one: no answer, an answer other than
200, one of the wrong shape or to another question, one the server flagged as degraded, or one
later than the SLO or than the deadline that was sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtest._cases import Sent

SERVER_PHASES = ("queue", "prefill", "decode")
TIMINGS = (*SERVER_PHASES, "total")
REST = "network and front"
SHED_STATUS = 503
MOST_MS = 1e9  # no phase lasts longer; JSON may hold integers too large for a float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One arrival and what came of it.

    `latency_ms` runs from the scheduled instant to the last byte (or to giving up); `miss` is
    the reason it does not count as served, None when it does; `answered` says that a valid,
    undegraded answer came, however late; `lag_ms` is how late this client itself sent it;
    `at_s` is the scheduled instant from the start of the run and `length` the bucket of the
    case.
    """

    latency_ms: float
    miss: str | None
    answered: bool = False
    lag_ms: float = 0.0
    phases_ms: Mapping[str, float] = field(default_factory=dict)
    thinking_tokens: int | None = None
    at_s: float = 0.0
    length: str = ""
    degraded: bool = False

    def to_json(self) -> dict[str, Any]:
        """Inverse of `Outcome(**row)`; holds nothing of the case."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Slo:
    """The promise: p99 latency in ms, and the share of requests that may miss."""

    p99_ms: float = 400.0
    max_miss_rate: float = 0.01


def judge_reply(
    status: int, body: bytes, latency_ms: float, slo: Slo, sent: Sent, *, lag_ms: float = 0.0
) -> Outcome:
    """Turn one reply of `POST /predict` into an outcome; never raises on what a server sends."""
    if status == SHED_STATUS:
        return Outcome(latency_ms, "shed (503)", lag_ms=lag_ms)
    if status != 200:
        return Outcome(latency_ms, f"status {status}", lag_ms=lag_ms)
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return Outcome(latency_ms, "schema: not JSON", lag_ms=lag_ms)
    flaw = find_flaw(reply, sent)
    if flaw:
        return Outcome(latency_ms, f"schema: {flaw}", lag_ms=lag_ms)
    degraded = reply["degraded"]
    miss = None
    if degraded:
        reason = reply.get("degraded_reason")
        miss = f"degraded: {reason}" if isinstance(reason, str) else "degraded"
    elif latency_ms > slo.p99_ms:
        miss = "over the SLO"
    elif latency_ms > sent.deadline_ms:
        miss = "past its deadline"
    phases_ms = {name: float(reply["timings_ms"][name]) for name in TIMINGS}
    in_server_ms = sum(phases_ms[name] for name in SERVER_PHASES)
    phases_ms[REST] = max(0.0, latency_ms - lag_ms - in_server_ms)
    return Outcome(
        latency_ms,
        miss,
        answered=not degraded,
        lag_ms=lag_ms,
        phases_ms=phases_ms,
        thinking_tokens=reply["thinking"]["tokens"],
        degraded=degraded,
    )


def find_flaw(reply: Any, sent: Sent) -> str | None:
    """The first field of a `/predict` reply that is missing, of the wrong type, or not ours."""
    if not isinstance(reply, dict):
        return "not an object"
    if not isinstance(reply.get("request_id"), str) or not reply["request_id"]:
        return "request_id"
    if reply["request_id"] != sent.request_id:
        return "request_id of another request"
    if not isinstance(reply.get("degraded"), bool):
        return "degraded"
    defendants = reply.get("defendants")
    if not isinstance(defendants, list) or not (defendants or reply["degraded"]):
        return "defendants"  # only a degraded reply may come without a verdict
    if not all(isinstance(defendant, dict) for defendant in defendants):
        return "defendants"
    thinking = reply.get("thinking")
    if not isinstance(thinking, dict) or not _is_count(thinking.get("tokens")):
        return "thinking.tokens"
    timings = reply.get("timings_ms")
    if not isinstance(timings, dict):
        return "timings_ms"
    for name in TIMINGS:
        if not _is_duration(timings.get(name)):
            return f"timings_ms.{name}"
    if not _is_count(reply.get("deadline_ms")):
        return "deadline_ms"
    if reply["deadline_ms"] != sent.deadline_ms:
        return "deadline_ms other than sent"
    if not isinstance(reply.get("warnings"), list):
        return "warnings"
    if not isinstance(reply.get("notice"), str) or not reply["notice"]:
        return "notice"
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_duration(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_MS
