"""One connection per arrival: every case comes from a different user."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent

KEY_VARIABLE = "CURT_API_KEY"


class UnansweredError(Exception):
    """No HTTP reply came; the message is the reason to count it under."""


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to the server under test at `host`, such as http://127.0.0.1:8000.

    A reply that has not ended after `timeout_s` is given up. `api_key` goes into the
    Authorization header and nowhere else. `ca_file` holds the certificates to trust in place of
    the system's.
    """

    host: str
    timeout_s: float
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    trust: ssl.SSLContext | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        parts = urlsplit(self.host)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"host {self.host!r}: use one such as http://127.0.0.1:8000")
        if parts.scheme == "https":  # once: reading a system's certificates takes milliseconds
            object.__setattr__(self, "trust", trust_in(self.ca_file))

    def ask(self, payload: Mapping[str, Any], request_id: str) -> tuple[int, bytes]:
        """POST a case to /predict; status and body. Raises UnansweredError when no reply came."""
        body = json.dumps(payload, ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "X-Request-ID": request_id}
        return self._send("POST", "/predict", body, headers)

    def wait_until_ready(self, limit_s: float) -> bool:
        """Poll /readyz until it answers 200; False when it has not within `limit_s`."""
        end_s = time.monotonic() + limit_s
        while True:
            try:
                if self._send("GET", "/readyz", None, {})[0] == 200:
                    return True
            except UnansweredError:
                pass  # not listening yet: what the polling is for
            if time.monotonic() >= end_s:
                return False
            gevent.sleep(0.2)

    def _send(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> tuple[int, bytes]:
        parts = urlsplit(self.host)
        connection = (
            http.client.HTTPSConnection(parts.hostname or "", parts.port, context=self.trust)
            if self.trust
            else http.client.HTTPConnection(parts.hostname or "", parts.port)
        )
        sent = {"Connection": "close", **headers}
        if self.api_key:
            sent["Authorization"] = f"Bearer {self.api_key}"
        try:
            # The sockets are gevent's (Locust patches them), so this limits the whole exchange;
            # a socket timeout would start again with every byte.
            with gevent.Timeout(self.timeout_s):
                connection.request(method, parts.path.rstrip("/") + path, body, sent)
                reply = connection.getresponse()
                return reply.status, reply.read()
        except gevent.Timeout:
            raise UnansweredError("timeout") from None
        except (OSError, http.client.HTTPException) as error:
            raise UnansweredError(f"connection: {type(error).__name__}") from error
        finally:
            connection.close()


def trust_in(ca_file: str | None) -> ssl.SSLContext:
    """A TLS context that trusts the system's certificates, or those of a PEM file.

    Raises ValueError when the file can't be read as certificates.
    """
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"--ca-file {ca_file}: no certificates ({type(error).__name__}); give a PEM file"
        ) from None


def read_api_key(path: str) -> str | None:
    """The key in a file, else in the environment's CURT_API_KEY, else None.

    Raises ValueError without a word of what the key holds.
    """
    source = f"--api-key-file {path}" if path else KEY_VARIABLE
    try:
        given = Path(path).read_text(encoding="utf-8") if path else os.environ.get(KEY_VARIABLE, "")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{source} can't be read ({type(error).__name__}): give a text file with the key"
        ) from None
    key = given.strip()
    if path and not key:
        raise ValueError(f"{source} is empty: put the key into it")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"{source} is no key: one line of ASCII letters, digits and signs")
    return key or None
