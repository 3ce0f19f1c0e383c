"""A local stand-in for the hub's HTTP: what `HfApi` calls to create a repository and commit."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar


class Hub:
    """Files by path, once a commit has come in; `refuse` maps a part of a path to a status."""

    def __init__(self, refuse: dict[str, int] | None = None) -> None:
        self.refuse = refuse or {}
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, Any]] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                hub.tokens.add(self.headers.get("authorization"))
                status, reply = hub.answer(self.path, body)
                data = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _chunks(self) -> bytes:
                body = b""
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                return body

            def log_message(self, *_: Any) -> None:
                """Keep the test output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "refused"}
        if path.endswith("/repos/create"):
            wanted = json.loads(body)
            self.created.append(wanted)
            return 200, {"url": f"{self.url}/datasets/{wanted['organization']}/{wanted['name']}"}
        if path.endswith("/validate-yaml"):
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            wanted = [file["path"] for file in json.loads(body)["files"]]
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return 200, {"files": [{"path": name, **mode} for name in wanted]}
        if "/commit/" in path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    value = item["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            commit = f"{self.url}/datasets/owner/name/commit/abc"
            return 200, {"commitUrl": commit, "commitOid": "abc", "pullRequestUrl": None}
        return 404, {"error": path}


def hub_server(refuse: dict[str, int] | None = None) -> AbstractContextManager[Hub]:
    """A stand-in in a thread."""
    return running(Hub(refuse))


AnyHub = TypeVar("AnyHub", bound=Hub)


@contextmanager
def running(hub: AnyHub) -> Iterator[AnyHub]:
    """Run a stand-in in a thread."""
    thread = threading.Thread(target=hub.http.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.http.shutdown()
        hub.http.server_close()
        thread.join()
