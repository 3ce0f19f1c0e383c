"""A server on raw sockets whose every reply a test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from curt.law.statutes import STATUTE_VERSION

Reply = Callable[[Any], bytes | None]
"""From a request's body, with its API key if it has one, to all that is sent back; None closes the
connection without a word."""


@asynccontextmanager
async def serving(reply: Reply) -> AsyncIterator[str]:
    """The address of a server that answers so. Ends once every client has left."""
    connections: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                body = json.loads(await reader.readexactly(length) or b"null")
                if b"Bearer " in head:
                    body["api_key"] = head.split(b"Bearer ")[1].split(b"\r\n")[0].decode()
                answer = reply(body)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*(task for task in connections if task))


def http(body: dict[str, Any], status: str = "200 OK") -> bytes:
    """A whole reply."""
    data = json.dumps(body, ensure_ascii=False).encode()
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def answer(**changes: Any) -> dict[str, Any]:
    """What `POST /predict` says of a theft, so far as a benchmark reads it."""
    term = {"kind": "fixed", "months": 8, "probation_months": 0}
    told = {
        "charges": [{"name": "盗窃"}],
        "articles": [{"id": "264"}],
        "term": term,
        "fine_yuan": 2000,
    }
    thinking = {"tokens": 21, "allowed": 128, "stated_budget": 128, "cut": False}
    return {
        "defendants": [told],
        "reasoning": "数额较大",
        "degraded": False,
        "degraded_reason": None,
        "source": "model",
        "law": {"version": STATUTE_VERSION, "day": None, "told_by": None},
        "thinking": thinking,
        **changes,
    }
