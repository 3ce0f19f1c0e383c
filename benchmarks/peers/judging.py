"""Judge the replies of every server by the same rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.client import Exchange, read_verdict
from benchmarks.peers.catalogue import MODEL_NAME, Protocol, Setting
from curt.corpus.case import Case
from curt.dialogue import THINK_END, ParseFailure, parse_answer, prompt_for
from curt.engines.tokenizer import PromptTokenizer
from curt.law.verdict import Verdict
from curt.scores.metrics import is_exact
from loadtest._arrivals import number_fact

_ANSWER_START = "罪名："


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


class Bodies:
    """Request bodies: every server is asked about the same cases in the same order.

    Servers of completions get the prompt rendered, with the widest thinking budget that the model
    was trained on, so they reason as long as they like; this project's gets the bare facts.
    """

    def __init__(self, cases: Sequence[Case], tokenizer: PromptTokenizer, max_fact_tokens: int,
                 budget: int, chars: int) -> None:  # fmt: skip
        self.cases = list(cases)
        self._tokenizer, self._max_fact_tokens = tokenizer, max_fact_tokens
        self._budget, self._chars = budget, chars

    def make(self, setting: Setting, run: int, first: int, count: int) -> list[bytes]:
        """Bodies of requests `first` to `first + count`, each unlike any other of the run."""
        bodies = []
        for index in range(first, first + count):
            fact = self.cases[index % len(self.cases)].fact[: self._chars]
            content = self._content(setting.protocol, number_fact(fact, run, index))
            bodies.append(json.dumps(content | dict(setting.extra), ensure_ascii=False).encode())
        return bodies

    def _content(self, protocol: Protocol, fact: str) -> dict[str, Any]:
        if protocol == "predict":
            return {"fact": fact}
        if protocol == "chat":
            return {"model": MODEL_NAME, "messages": [{"role": "user", "content": fact}]}
        prompt = prompt_for(self._tokenizer, fact, self._budget, self._max_fact_tokens)
        return {"prompt": prompt}


def judge(
    exchange: Exchange,
    protocol: Protocol,
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
        if protocol == "completions":
            text = content["choices"][0]["text"]
            verdict = parse_answer(answer_of(text))
            thinking = len(tokenizer.encode(text.split(THINK_END, 1)[0]))
        elif protocol == "chat":
            degraded = content["curt"]["degraded"]
            verdict = parse_answer(content["choices"][0]["message"]["content"] or "")
            thinking = content["curt"]["thinking"]["tokens"]
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
        answer = text[text.rfind(_ANSWER_START) :] if _ANSWER_START in text else ""
    return answer.removesuffix("<|im_end|>")


def summarise(replies: Sequence[JudgedReply], rate_per_s: float) -> dict[str, Any]:
    """Figures of one step. A miss counts as an infinite latency in `p99_ms`, None when it is so.

    Raises ValueError without replies.
    """
    if not replies:
        raise ValueError("no reply to judge: nothing was sent")
    ordered = sorted(float("inf") if o.miss and o.miss != "late" else o.latency_ms
                     for o in replies)  # fmt: skip
    misses: dict[str, int] = {}
    for reply in replies:
        if reply.miss:
            misses[reply.miss] = misses.get(reply.miss, 0) + 1
    p99 = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    answered = [o for o in replies if o.miss in (None, "late")]
    return {
        "rate_per_s": round(rate_per_s, 2),
        "requests": len(replies),
        "p50_ms": _finite(ordered[len(ordered) // 2]),
        "p99_ms": _finite(p99),
        "misses": misses,
        "exact": fmean(o.exact for o in replies),
        "thinking_tokens": round(fmean(o.thinking_tokens for o in answered), 2)
        if answered
        else None,
        "lag_p99_ms": round(sorted(o.lag_ms for o in replies)[int(0.99 * len(replies))], 2),
    }


def accuracy_change(replies: Sequence[JudgedReply], expected: Sequence[float]) -> float:
    """Mean of exact minus what was `expected` of the same case: paired, so cases add no noise.

    Every reply counts; one without a verdict is wrong.
    """
    return fmean(o.exact - expected[o.case] for o in replies)


def keeps_accuracy(
    replies: Sequence[JudgedReply], expected: Sequence[float], within: float
) -> bool:
    """Whether accuracy is not shown to fall short by more than `within`, at one standard error."""
    changes = [o.exact - expected[o.case] for o in replies]
    error = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    return fmean(changes) + error >= -within


def _finite(value: float) -> float | None:
    return round(value, 2) if value != float("inf") else None
