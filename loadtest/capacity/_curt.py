"""Requests of a capacity search to a server of ours, over plain asyncio streams."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import math
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from loadtest._cases import CaseMix
from loadtest._reply import SERVER_PHASES, Slo, judge_reply
from loadtest.capacity._step import Ask, AskResult

ANY_TIME = Slo(p99_ms=math.inf)  # lateness is judged by the search


@dataclass(frozen=True, slots=True)
class Http:
    """One connection per request to a server such as https://host:8000; bad hosts raise."""

    host: str
    api_key: str | None = field(default=None, repr=False)
    trust: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"host {self.host!r}: use one such as http://127.0.0.1:8000")

    async def send(
        self, method: str, path: str, payload: Mapping[str, Any] | None = None, request_id: str = ""
    ) -> tuple[int, bytes]:
        """Status and body of the reply. Raises OSError when none came whole."""
        parts = urlsplit(self.host)
        secure = parts.scheme == "https"
        body = b"" if payload is None else json.dumps(payload, ensure_ascii=False).encode()
        lines = [
            f"{method} {parts.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {parts.netloc.rpartition('@')[2]}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if request_id:
            lines.append(f"X-Request-ID: {request_id}")
        if self.api_key:
            lines.append(f"Authorization: Bearer {self.api_key}")
        reader, writer = await asyncio.open_connection(
            parts.hostname,
            parts.port or (443 if secure else 80),
            ssl=(self.trust or True) if secure else None,
        )
        try:
            writer.write("\r\n".join([*lines, "", ""]).encode() + body)
            raw = await reader.read()
        finally:
            writer.close()
        return _parse(raw, method)

    async def wait_until_ready(self, limit_s: float) -> bool:
        """Poll /readyz until it answers 200; False when it has not within `limit_s`."""
        end_s = time.monotonic() + limit_s
        while True:
            try:
                async with asyncio.timeout(5):
                    if (await self.send("GET", "/readyz"))[0] == 200:
                        return True
            except OSError:  # a timeout is one too; not listening yet: what the polling is for
                pass
            if time.monotonic() >= end_s:
                return False
            await asyncio.sleep(0.2)


def ask_curt(http_client: Http, mix: CaseMix, run: int, deadline_ms: int) -> Ask:
    """Cases to `POST /predict`, each new to the server, every reply checked in full."""

    async def ask(index: int) -> AskResult:
        sent = mix.request_of(index, run, deadline_ms)
        status, body = await http_client.send("POST", "/predict", sent.payload, sent.request_id)
        outcome = judge_reply(status, body, 0.0, ANY_TIME, sent)
        figures = {f"{name}_ms": outcome.phases_ms.get(name, 0.0) for name in SERVER_PHASES}
        if outcome.thinking_tokens is not None:
            figures["thinking_tokens"] = outcome.thinking_tokens
        return AskResult(outcome.miss, figures)

    return ask


class _Bytes:
    """What `http.client` asks of a socket, over a reply that has come already."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._raw)


def _parse(raw: bytes, method: str) -> tuple[int, bytes]:
    reply = http.client.HTTPResponse(_Bytes(raw), method=method)  # type: ignore[arg-type]
    try:
        reply.begin()
        return reply.status, reply.read()
    except http.client.HTTPException as error:
        raise ConnectionError(type(error).__name__) from None
