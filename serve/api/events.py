"""The events of a job under way, sent as they come; a client that hangs up stops the job."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any

from fastapi import Request
from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from serve.edge.context import log_failure
from serve.errors import RequestError
from serve.metrics import CLIENT_CLOSED
from serve.pool.job import JobStream, Piece
from serve.served import Served
from serve.settings import MAX_DEADLINE_MS

# At DEBUG the library logs every event, and events hold the reasoning on a case.
logging.getLogger("sse_starlette").setLevel(logging.INFO)

Event = dict[str, str]
"""Fields of a server-sent event: `event`, `data`, `comment`."""

DRAIN_S = MAX_DEADLINE_MS / 1e3 + 5  # by then every job under way at a shutdown has ended


class JobEvents(EventSourceResponse):
    """Sends the events of a job until it ends or its client hangs up, which stops the worker."""

    def __init__(
        self,
        stream: JobStream,
        request: Request,
        *,
        first: Event,
        tell: Callable[[Piece | Served], Iterable[Event]],
        fail: Callable[[RequestError], Event],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`first` goes out at once, with the headers.

        `tell` writes what the job yields, `fail` the error that ends it. Proxies are told by
        headers to keep nothing and to pass each event on at once.
        """
        self._stream, self._tell, self._fail = stream, tell, fail
        self._request_id: str = request.state.request_id
        self._log: dict[str, Any] = request.state.log
        self._is_complete = False
        super().__init__(
            self._events(first),
            headers=headers,
            sep="\n",
            ping=0,
            client_close_handler_callable=self._note_disconnect,
            shutdown_grace_period=DRAIN_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.close()

    async def _events(self, first: Event) -> AsyncIterator[Event]:
        yield first
        try:
            async for item in self._stream:
                for event in self._tell(item):
                    yield event
        except RequestError as fault:
            self._log.update(error=fault.reason, error_status=fault.status)
            yield self._fail(fault)
        except Exception as error:  # status 200 is out: the client must still be told
            log_failure(self._request_id, error)
            self._log.update(error="internal", error_status=500)
            yield self._fail(RequestError("internal", "internal error"))
        self._is_complete = True

    async def _note_disconnect(self, _: Message) -> None:
        if not self._is_complete:
            self._log["error"] = CLIENT_CLOSED


def to_json(fields: Mapping[str, Any]) -> str:
    """JSON on one line, with Chinese as it is."""
    return json.dumps(fields, ensure_ascii=False)
