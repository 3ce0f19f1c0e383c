"""`/batches`: many cases at once, answered when nobody waits.

    POST   /batches               JSON Lines, a body of /predict each, or OpenAI's batch file
    GET    /batches/{id}          how far it is
    GET    /batches/{id}/results  JSON Lines in the order of the cases, as far as it is
    DELETE /batches/{id}          ends it; one that is over is deleted

Each case is asked of the routes that clients ask, in the background: it waits in the pool behind
every live request and gives its worker up to one. Its result is on the disk before that of the
next; a server that was killed goes on after the last whole result, so each case has exactly one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry, Counter
from starlette.types import ASGIApp, Receive, Scope, Send

from curt.files import write_atomic
from serve.answering.answering import Startable
from serve.api.errors import error_responses
from serve.batches.store import CANCELLED, RESULTS, Batch, BatchStore
from serve.edge.context import BATCHES_PATH, log_failure
from serve.edge.limits import charge
from serve.errors import OverloadedError, RequestError
from serve.feedback.feedback import owner_of
from serve.feedback.log import AppendLog
from serve.settings import MAX_DEADLINE_MS

logger = logging.getLogger(__name__)

LOOK_S = 5.0  # between two looks for what failed, and for what is too old
MAX_TRIES = 10  # of a case that gets 503, though it has all the time there is
MAX_KEPT = 100  # batches of one owner
BLOCK_BYTES = 65_536


class NoBatchError(RequestError):
    """No batch of that id belongs to who asks."""

    status = 404


class BatchWork:
    """Answers the cases of all batches in a store, a few of each at a time."""

    def __init__(
        self,
        store: BatchStore,
        routes: ASGIApp,
        workers: Startable,
        width: int,
        registry: CollectorRegistry,
    ) -> None:
        """`routes` stand below `BATCHES_PATH`; `width`: cases of one batch under way at once."""
        self.store, self._routes, self._workers, self._width = store, routes, workers, width
        self._tasks: dict[Batch, asyncio.Task[None]] = {}
        self._cases = Counter(
            "curt_batch_lines", "Cases of batches by status", ["status"], registry=registry
        )

    def begin(self, batch: Batch) -> None:
        """Begin or go on with a batch, unless it is under way or over."""
        if batch not in self._tasks and batch.state == "in_progress":
            task = self._tasks[batch] = asyncio.create_task(self._finish(batch))
            task.add_done_callback(lambda _: self._tasks.pop(batch))

    async def leave(self, batch: Batch) -> None:
        """Stop a batch, if it is under way."""
        await _end([self._tasks[batch]] if batch in self._tasks else ())

    async def keep_working(self) -> None:
        """Go on with every batch, and delete those that are too old, until cancelled.

        The folder is then free for another server.
        """
        try:
            while True:
                for batch in list(self.store.batches.values()):
                    if time.time() > batch.created_s + self.store.retention_s:
                        await self.leave(batch)
                        await asyncio.to_thread(self.store.remove, batch)
                    else:
                        self.begin(batch)
                await asyncio.sleep(LOOK_S)
        finally:
            await _end(self._tasks.values())
            self.store.close()

    async def _finish(self, batch: Batch) -> None:
        under_way: deque[asyncio.Task[tuple[int, bytes]]] = deque()
        log = None
        try:
            log = await asyncio.to_thread(AppendLog, batch.folder / RESULTS, max_bytes=2**63)
            cases = batch.cases()
            while True:
                while len(under_way) < self._width and (case := next(cases, None)):
                    under_way.append(asyncio.create_task(self._answer(batch, *case)))
                if not under_way:
                    return
                status, result = await under_way.popleft()
                await asyncio.to_thread(log.append, result)
                batch.note(result)
                self._cases.labels(str(status)).inc()
        except OSError as error:  # a full disk: the next look tries again
            logger.error("%s can't be written: %s", batch.folder.name, error.strerror)
        except Exception as failure:
            log_failure(batch.folder.name, failure)
        finally:
            await _end(under_way)
            if log:
                log.close()

    async def _answer(
        self, batch: Batch, index: int, case: tuple[str, dict[str, Any], str | None]
    ) -> tuple[int, bytes]:
        """The status of a case, and its result in the form of OpenAI's batches."""
        path, body, name = case
        request_id = f"{batch.folder.name}.{index}"
        if body.get("deadline_ms") is None:  # nobody waits: all the reasoning there can be
            body["deadline_ms"] = MAX_DEADLINE_MS
        for tries in range(1, MAX_TRIES + 1):
            while not self._workers.ready:
                await asyncio.sleep(0.5)
            reply = await self._ask(path, body, request_id)
            if reply.status_code != 503 or tries == MAX_TRIES:
                break
            await asyncio.sleep(float(reply.headers.get("retry-after", 1)))
        status = reply.status_code
        response = {"status_code": status, "request_id": request_id, "body": reply.json()}
        row = {"id": request_id, "custom_id": name, "response": response, "error": None}
        return status, json.dumps(row, ensure_ascii=False).encode()

    async def _ask(self, path: str, body: dict[str, Any], request_id: str) -> httpx.Response:
        async def routes(scope: Scope, receive: Receive, send: Send) -> None:
            await self._routes({**scope, "state": {"background": True}}, receive, send)

        headers = {"X-Request-ID": request_id}
        url = f"http://curt{BATCHES_PATH}{path}"
        request = httpx.Request("POST", url, headers=headers, json=body)
        response = await httpx.ASGITransport(routes).handle_async_request(request)
        await response.aread()
        return response


def make_router(work: BatchWork) -> APIRouter:
    """The routes."""
    store = work.store
    own = {404: "No such batch of this key", 422: "A line is no case"}
    responses = error_responses(401, 403, 408, 413, 429, 503, own=own)
    router = APIRouter(prefix=BATCHES_PATH, responses=responses)

    def find(request: Request, name: str) -> Batch:
        batch = store.batches.get(name)
        if batch is None or batch.owner != owner_of(request):
            raise NoBatchError("no_batch", "no such batch of yours: it may have been deleted")
        return batch

    def describe(batch: Batch) -> dict[str, Any]:
        counts = {"total": batch.total, "done": batch.done, "failed": batch.failed}
        times = {"created_at": batch.created_s, "expires_at": batch.created_s + store.retention_s}
        stamps = {name: datetime.fromtimestamp(at_s, UTC) for name, at_s in times.items()}
        return {"id": batch.folder.name, "state": batch.state, **counts, **stamps}

    @router.post("", status_code=202)
    async def create(request: Request) -> dict[str, Any]:
        """Take JSON Lines of cases, to be answered when nobody waits."""
        owner = owner_of(request)
        if sum(batch.owner == owner for batch in store.batches.values()) >= MAX_KEPT:
            raise OverloadedError("too_many_batches", "too many are kept: delete one", 60.0)
        try:
            with tempfile.TemporaryFile(dir=store.folder) as file:  # which a kill deletes, too
                async for piece in request.stream():
                    file.write(piece)
                file.seek(0)
                total = await asyncio.to_thread(store.count, file)
                request.state.log["cases"] = total
                await charge(request, total - 1, at_once=False)
                batch = await asyncio.to_thread(store.add, file, owner, total)
        except OSError:
            raise OverloadedError("unwritable", "it can't be kept now: try later", 30.0) from None
        work.begin(batch)
        return describe(batch)

    @router.get("/{name}")
    async def show(name: str, request: Request) -> dict[str, Any]:
        """How far a batch is: its cases, those with a result, and those of another status."""
        return describe(find(request, name))

    @router.get("/{name}/results", response_class=StreamingResponse)
    async def show_results(name: str, request: Request) -> StreamingResponse:
        """The results in the order of the cases, as far as there are any."""
        batch = find(request, name)
        blocks = _first_bytes(batch.folder / RESULTS, batch.size)
        return StreamingResponse(blocks, media_type="application/jsonl")

    @router.delete("/{name}")
    async def end(name: str, request: Request) -> dict[str, Any]:
        """End a batch; one that is over is deleted."""
        batch = find(request, name)
        if batch.state != "in_progress":
            described = describe(batch)
            await asyncio.to_thread(store.remove, batch)
            return described
        await asyncio.to_thread(write_atomic, batch.folder / CANCELLED, b"")
        await work.leave(batch)
        return describe(batch)

    return router


def _first_bytes(path: Path, size: int) -> Iterator[bytes]:
    if size:
        with open(path, "rb") as file:
            while size and (block := file.read(min(BLOCK_BYTES, size))):
                size -= len(block)
                yield block


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
