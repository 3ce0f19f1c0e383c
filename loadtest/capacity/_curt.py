"""Requests of a capacity search to a server of ours."""

from __future__ import annotations

import json
import math

from loadtest._cases import CaseMix
from loadtest._http import HttpClient
from loadtest._reply import SERVER_PHASES, Slo, judge_reply
from loadtest.capacity._step import Ask, AskResult

ANY_TIME = Slo(p99_ms=math.inf)  # lateness is judged by the search


def ask_curt(client: HttpClient, mix: CaseMix, run: int, deadline_ms: int) -> Ask:
    """Cases to `POST /predict`, each new to the server, every reply checked in full."""

    async def ask(index: int) -> AskResult:
        sent = mix.request_of(index, run, deadline_ms)
        body = json.dumps(sent.payload, ensure_ascii=False).encode()
        got = await client.exchange(body, request_id=sent.request_id)
        if got.failure:
            return AskResult(f"connection: {got.failure}")
        outcome = judge_reply(got.status, got.body, 0.0, ANY_TIME, sent)
        figures = {f"{name}_ms": outcome.phases_ms.get(name, 0.0) for name in SERVER_PHASES}
        if outcome.thinking_tokens is not None:
            figures["thinking_tokens"] = outcome.thinking_tokens
        return AskResult(outcome.miss, figures)

    return ask
