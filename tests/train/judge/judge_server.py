"""A real HTTP server that speaks /v1/chat/completions and misbehaves as told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[[dict[str, Any], int], "Reply"]


class Reply:
    """What to answer: a status and body, after a pause; or drop the connection."""

    def __init__(
        self,
        content: str | None = None,
        *,
        status: int = 200,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        pause_s: float = 0.0,
        drop: bool = False,
    ) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}  # fmt: skip  # noqa: E501
        chat = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}  # fmt: skip  # noqa: E501
        self.body = json.dumps(chat).encode() if body is None else body
        self.status, self.headers, self.pause_s, self.drop = status, headers or {}, pause_s, drop


class JudgeServer:
    """Counts its requests and how many it served at once."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.peak = self._running = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.serve(self)

            def log_message(self, *_: Any) -> None:
                """Keep the test output clean."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # more than any test opens at once

        self.http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.requests.append(body)
            self.keys.add(handler.headers["authorization"])
            number = len(self.requests)
            self._running += 1
            self.peak = max(self.peak, self._running)
        reply = self.behaviour(body, number)
        time.sleep(reply.pause_s)
        with self._lock:
            self._running -= 1
        if reply.drop:
            handler.connection.close()
            return
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(reply.body)))
        handler.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up waiting
            handler.wfile.write(reply.body)


@contextmanager
def judge_server(behaviour: Behaviour) -> Iterator[JudgeServer]:
    """Run a server in a thread."""
    server = JudgeServer(behaviour)
    thread = threading.Thread(target=server.http.serve_forever, args=[0.02], daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
