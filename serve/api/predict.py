"""`POST /predict`: the verdict on the facts of one case."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.answering.answering import Answering, make_job
from serve.api.batch import Batches
from serve.api.errors import error_responses
from serve.api.reply import Replies, to_response
from serve.api.schemas import BatchReply, BatchRequest, PredictReply, PredictRequest
from serve.edge.context import PREDICT_PATH
from serve.errors import OverloadedError, RequestError
from serve.settings import Settings

RESPONSES = error_responses(400, 401, 403, 408, 413, 422, 429, 503)


def make_router(
    answering: Answering, replies: Replies, settings: Settings, batches: Batches
) -> APIRouter:
    """The route; `batches` answer for each of several defendants."""
    router = APIRouter()

    @router.post(PREDICT_PATH, response_model=PredictReply | BatchReply, responses=RESPONSES)
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Charges, articles, term, fine and ruling for one case; for each defendant as a batch."""
        job = make_job(
            body.fact,
            request.state.started_s,
            body.deadline_ms,
            settings,
            on_unusable=body.on_unusable,
        )
        if body.defendants == "each":
            results = await batches.serve(request, BatchRequest.of(body))
            return to_response(_answered(results))
        served = await answering.serve(request, job)
        return to_response(replies.reply_to(request, body, served))

    return router


def _answered(reply: BatchReply) -> BatchReply:
    """The results, if any has a verdict; else what refused the first refuses the request."""
    first = reply.results[0]
    if not (error := first.error) or any(result.reply for result in reply.results):
        return reply
    fault = RequestError(error.code, error.message)
    if error.retry_after_s is not None:
        fault = OverloadedError(error.code, error.message, error.retry_after_s)
    fault.status = first.status
    raise fault
