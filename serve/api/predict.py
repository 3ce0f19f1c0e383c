"""`POST /predict`: the verdict on the facts of one case."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from serve.answering.answering import Answering, make_job
from serve.api.errors import error_responses
from serve.api.reply import Replies, to_response
from serve.api.schemas import PredictReply, PredictRequest
from serve.edge.context import PREDICT_PATH
from serve.settings import Settings

RESPONSES = error_responses(400, 401, 403, 408, 413, 422, 429, 503)


def make_router(answering: Answering, replies: Replies, settings: Settings) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post(PREDICT_PATH, response_model=PredictReply, responses=RESPONSES)
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Charges, articles, term, fine and ruling for the facts of one case."""
        job = make_job(
            body.fact,
            request.state.started_s,
            body.deadline_ms,
            settings,
            on_unusable=body.on_unusable,
        )
        served = await answering.serve(request, job)
        return to_response(replies.reply_to(request, body, served))

    return router
