"""One connection per arrival: every case comes from a different user."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import gevent


class UnansweredError(Exception):
    """No HTTP reply came; the message is the reason to count it under."""


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to the server under test at `host`, such as http://127.0.0.1:8000.

    A reply that has not ended after `timeout_s` is given up.
    """

    host: str
    timeout_s: float

    def __post_init__(self) -> None:
        parts = urlsplit(self.host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"host {self.host!r}: use one such as http://127.0.0.1:8000")

    def ask(self, payload: Mapping[str, Any]) -> tuple[int, bytes]:
        """POST a case to /predict; status and body. Raises UnansweredError when no reply came."""
        return self._send("POST", "/predict", json.dumps(payload, ensure_ascii=False).encode())

    def wait_until_ready(self, limit_s: float) -> bool:
        """Poll /readyz until it answers 200; False when it has not within `limit_s`."""
        end_s = time.monotonic() + limit_s
        while True:
            try:
                if self._send("GET", "/readyz", None)[0] == 200:
                    return True
            except UnansweredError:
                pass  # not listening yet: what the polling is for
            if time.monotonic() >= end_s:
                return False
            gevent.sleep(0.2)

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        parts = urlsplit(self.host)
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port)
        headers = {"Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            # The sockets are gevent's (Locust patches them), so this limits the whole exchange;
            # a socket timeout would start again with every byte.
            with gevent.Timeout(self.timeout_s):
                connection.request(method, parts.path.rstrip("/") + path, body, headers)
                reply = connection.getresponse()
                return reply.status, reply.read()
        except gevent.Timeout:
            raise UnansweredError("timeout") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnansweredError(f"connection: {type(error).__name__}") from error
        finally:
            connection.close()
