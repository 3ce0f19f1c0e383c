"""`POST /predict/batch`: several cases in one request, each answered by itself.

A case that is asked for each of its defendants is as many cases as it names. Each case is admitted,
cached, counted and degraded alone. All share one deadline; a little of it is kept back, because all
replies leave together. They enter the queue in the order given and run earliest-deadline-first
among everything else that waits, with reasoning shortened as under any other load. What becomes of
one case changes nothing for the others; when the client leaves, all of them stop.
"""

from __future__ import annotations

import asyncio
import collections
import hashlib
import logging
import time
from typing import NamedTuple

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.types import Message

from curt.corpus.defendants import defendant_names
from curt.corpus.each_defendant import facts_of_each
from serve.answering.answering import Answering, make_job, wait_for_disconnect
from serve.api.errors import error_responses
from serve.api.reply import Replies, to_response
from serve.api.schemas import (
    BatchCase,
    BatchReply,
    BatchRequest,
    CaseError,
    CaseResult,
)
from serve.edge.context import BATCH_PATH, log_failure, write_access
from serve.edge.limits import charge
from serve.errors import ClientGoneError, OverloadedError, RequestError, TooManyCasesError
from serve.metrics import CLIENT_CLOSED, Metrics
from serve.settings import Settings

RESPONSES = error_responses(400, 401, 403, 408, 413, 422, 429, 503)
MAX_ID_CHARS = 64
REPLY_MS = 1.5  # of the deadline kept back for each case: their replies are written one by one
MAX_KEPT_BACK = 0.1  # of the deadline


class _Question(NamedTuple):
    """A case at its place in the request, or what of it concerns one defendant."""

    place: int
    case: BatchCase
    defendant: str | None
    fact: str


class Batches:
    """Serves the cases of a request side by side."""

    def __init__(
        self,
        answering: Answering,
        replies: Replies,
        settings: Settings,
        metrics: Metrics,
    ) -> None:
        self._answering, self._replies, self._settings = answering, replies, settings
        self._metrics = metrics
        self._max_cases = settings.max_batch_cases
        if settings.rate_per_s is not None:  # a bucket smaller than a batch would never admit it
            limits = settings.rate_burst, settings.max_concurrent
            self._max_cases = min(self._max_cases, *limits)

    async def serve(self, request: Request, body: BatchRequest) -> BatchReply:
        """The results of all cases.

        Raises TooManyCasesError, RateLimitedError, and ClientGoneError when the client leaves.
        """
        most = self._settings.max_fact_chars if body.defendants == "each" else 0
        facts = [case.fact if len(case.fact) <= most else "" for case in body.cases]  # or refused
        named = {i: names for i, fact in enumerate(facts) if (names := defendant_names(fact))}
        count = len(body.cases) + sum(len(names) - 1 for names in named.values())
        request.state.log["cases"] = count
        if count > self._max_cases:
            told = "cases, one for each defendant," if named else "cases"
            raise TooManyCasesError(
                "too_many_cases", f"{count} {told} are too many: send {self._max_cases} or fewer"
            )
        await charge(request, count - 1)
        request.state.counts_cases = True
        asked = [
            _Question(place, case, defendant, fact)
            for place, case in enumerate(body.cases)
            for defendant, fact in (
                facts_of_each(case.fact).items() if place in named else [(None, case.fact)]
            )
        ]
        serving = [
            asyncio.create_task(self._serve_one(request, body, question, number, count))
            for number, question in enumerate(asked)
        ]
        leaving = asyncio.create_task(wait_for_disconnect(request))
        everything = asyncio.gather(*serving)
        leaving.add_done_callback(lambda _: everything.cancel())
        try:
            results = await everything
        except asyncio.CancelledError:
            if not leaving.done():  # it was this request that was cancelled
                raise
            raise ClientGoneError(CLIENT_CLOSED, "the client closed the connection") from None
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        statuses = collections.Counter(result.status for result in results)
        request.state.log["cases_failed"] = count - statuses[200]
        return BatchReply(request_id=request.state.request_id, results=results)

    async def _serve_one(
        self, request: Request, body: BatchRequest, asked: _Question, number: int, count: int
    ) -> CaseResult:
        own, case = _request_of_case(request, number), asked.case
        reply, error, status = None, None, 200
        try:
            most_ms = MAX_KEPT_BACK * self._settings.deadline_ms(body.deadline_ms)
            job = make_job(
                asked.fact,
                own.state.started_s,
                body.deadline_ms,
                self._settings,
                on_unusable=body.on_unusable,
                kept_back_ms=min(REPLY_MS * count, most_ms),
            )
            served = await self._answering.serve(own, job)
            reply = self._replies.reply_to(own, body.one(case, asked.fact), served)
        except RequestError as fault:
            status, error = fault.status, _describe(fault)
        except Exception as failure:
            log_failure(own.state.request_id, failure)
            status, error = 500, CaseError(code="internal", message="internal error")
        except asyncio.CancelledError:
            self._metrics.record_case(499, {"error": CLIENT_CLOSED})
            raise
        if not getattr(own.state, "background", False):
            self._metrics.record_case(status, own.state.log)
        _log_case(own, status, error)
        return CaseResult(
            id=case.id,
            index=asked.place,
            defendant=asked.defendant,
            fact=asked.fact if asked.fact != case.fact else None,
            request_id=own.state.request_id,
            status=status,
            reply=reply,
            error=error,
        )


def make_router(batches: Batches) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post(BATCH_PATH, response_model=BatchReply, responses=RESPONSES)
    async def predict_batch(body: BatchRequest, request: Request) -> Response:
        """The same as /predict for several cases by one deadline, each with a status of its own."""
        return to_response(await batches.serve(request, body))

    return router


def case_request_id(request_id: str, index: int) -> str:
    """The id of one case: the request's, or a hash of it where that is too long, and its number."""
    own = f"{request_id}.{index}"
    if len(own) <= MAX_ID_CHARS:
        return own
    return f"{hashlib.blake2b(request_id.encode(), digest_size=16).hexdigest()}.{index}"


def _request_of_case(request: Request, index: int) -> Request:
    """A request with its own id and log. It never sees a disconnect: the batch watches for that."""
    state = request.scope["state"]
    request_id = case_request_id(state["request_id"], index)
    log = {name: state["log"][name] for name in ("key",) if name in state["log"]}
    scope = {**request.scope, "state": {**state, "request_id": request_id, "log": log}}
    return Request(scope, _never)


async def _never() -> Message:
    await asyncio.get_running_loop().create_future()
    raise AssertionError("that future never completes")


def _describe(fault: RequestError) -> CaseError:
    wait_s = fault.retry_after_s if isinstance(fault, OverloadedError) else None
    return CaseError(code=fault.reason, message=fault.public_message, retry_after_s=wait_s)


def _log_case(own: Request, status: int, error: CaseError | None) -> None:
    route = getattr(own.scope.get("route"), "path", BATCH_PATH)
    line = {
        "request_id": own.state.request_id,
        "method": "POST",
        "route": route,
        "status": status,
        "ms": round((time.monotonic() - own.state.started_s) * 1e3, 2),
        **({"error": error.code} if error else {}),
        **own.state.log,
    }
    write_access(logging.INFO, "POST %s case %d", (route, status), line)
