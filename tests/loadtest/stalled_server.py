"""A server that answers at once, except that it stands still for a while in every period."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@contextmanager
def serving(
    *, stall_s: float = 1.0, period_s: float = 5.0, service_s: float = 0.005
) -> Iterator[str]:
    """A server of `/predict` replies until the block ends; yields its address.

    Each request takes `service_s`; one that comes in the first `stall_s` of any `period_s` waits
    for the rest of the stall first.
    """
    started_s = time.monotonic()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            asked_s = time.monotonic()
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            phase_s = (asked_s - started_s) % period_s
            time.sleep(max(0.0, stall_s - phase_s) + service_s)
            total_ms = (time.monotonic() - asked_s) * 1e3
            self._reply(
                {
                    "request_id": self.headers["X-Request-ID"],
                    "degraded": False,
                    "defendants": [{"charges": []}],
                    "thinking": {"tokens": 0},
                    "timings_ms": {
                        "queue": total_ms,
                        "prefill": 0.0,
                        "decode": 0.0,
                        "total": total_ms,
                    },
                    "deadline_ms": body["deadline_ms"],
                    "warnings": [],
                    "notice": "for reference only",
                }
            )

        def _reply(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except BrokenPipeError:
                return  # the client gave up: its own figures say so

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
