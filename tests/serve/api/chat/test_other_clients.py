"""The OpenAI-compatible routes, asked by LangChain's and LiteLLM's clients over a real socket."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request, Response

from curt.dialogue import parse_answer
from serve.api.chat.verdict_schema import VERDICT_SCHEMA
from serve.errors import DeadlineTooShortError, EngineFailedError, OverloadedError
from serve.pool.job import Job, Piece
from serve.served import Served
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.api.chat.test_chat import FakePool, FakeTold, make_app, serving
from tests.serve.fake_engine import VERDICT

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parents[4] / ".venv-clients"
REFUSALS = {
    100: DeadlineTooShortError("deadline_too_short", "too short"),
    200: OverloadedError("overloaded", "behind those waiting"),
    300: EngineFailedError("worker_died", "two workers died on it"),
}
BROKEN_STREAM = {500: [Piece("窃", 1), EngineFailedError("engine_error", "no logits")]}
# Each client's own error by status; None is a fault in mid-stream.
RAISED: dict[str, dict[int | None, str]] = {
    "langchain": {
        400: "OpenAIInvalidRequestError", 500: "OpenAIAPIError", 503: "OpenAIAPIError",
        None: "APIError",
    },
    "litellm": {
        400: "BadRequestError", 500: "InternalServerError", 503: "ServiceUnavailableError",
        None: "MidStreamFallbackError",
    },
}  # fmt: skip


@dataclass
class FaultyPool(FakePool):
    """Fails as the deadline says."""

    def _read(self, job: Job) -> None:
        deadline_ms = round((job.deadline_s - job.arrived_s) * 1000)
        self.refusal, self.pieces = REFUSALS.get(deadline_ms), BROKEN_STREAM.get(deadline_ms)

    async def submit(self, job: Job) -> Served:
        self._read(job)
        return await super().submit(job)

    def stream(self, job: Job) -> FakeTold:
        self._read(job)
        return super().stream(job)


@dataclass(frozen=True)
class Told:
    """What each call gave, and how many requests it sent, by client and call."""

    outcomes: dict[str, dict[str, Any]]
    requests: Counter[str]


@pytest.fixture(scope="module")
def told(empty_model: Path) -> Told:
    if not (CLIENTS / "ready").is_file():
        pytest.skip("no LangChain and LiteLLM here: make clients-env")
    app = make_app(FaultyPool(), Settings(model=empty_model, workers=1))
    requests: Counter[str] = Counter()

    @app.middleware("http")
    async def count(
        request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        requests[request.headers["x-call"]] += 1
        return await call_next(request)

    with serving(app) as url:
        done = subprocess.run(
            [CLIENTS / "bin/python", Path(__file__).parent / "other_clients.py", f"{url}/v1"],
            input=json.dumps({"fact": FACTS[0], "schema": VERDICT_SCHEMA}),
            # Otherwise it asks the network for a table of prices, with three tries.
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Told(json.loads(done.stdout), requests)


@pytest.mark.parametrize("client", RAISED)
def test_verdicts_in_text_and_json_with_usage(told: Told, client: str) -> None:
    gave, verdict = told.outcomes[client], VERDICT.to_json()
    for call in ("plain", "stream", "top_k"):
        assert parse_answer(gave[call]["content"]) == VERDICT
        assert gave[call]["usage"] == [60, 23, 83, 3]
    assert json.loads(gave["json_object"]["content"]) == gave["schema"] == verdict
    assert gave["pydantic"] == {name: verdict[name] for name in ("charges", "fine_yuan")}


@pytest.mark.parametrize("client", RAISED)
def test_a_ping_in_english_is_answered_with_a_refusal(told: Told, client: str) -> None:
    gave = told.outcomes[client]["ping"]
    assert not gave["content"]
    assert "Chinese" in gave["refusal"]
    assert gave["usage"] == [0, 0, 0, None]


def test_the_health_check_of_litellm_finds_the_model_healthy(told: Told) -> None:
    for call in ("health_0", "health_1"):
        assert told.outcomes["litellm"][call] == {}  # else it holds an error
        assert told.requests[f"litellm {call}"] == 1


def test_structured_output_that_can_not_be_is_refused(told: Told) -> None:
    gave = told.outcomes["langchain"]
    assert gave["structured_ping"]["raised"] == "OpenAIRefusalError"
    assert gave["function_calling"]["param"] == "tool_choice"


@pytest.mark.parametrize("client", RAISED)
@pytest.mark.parametrize(
    ("call", "status", "param", "requests"),
    [
        *((name, 400, name, 1) for name in ("n", "stop", "logprobs", "tools")),
        ("too_short", 400, "deadline_ms", 1),
        ("broken", 500, None, 1),
        ("overloaded", 503, None, 3),
        ("broken_stream", None, None, 1),
    ],
)
def test_only_an_overload_is_asked_again(
    told: Told, client: str, call: str, status: int | None, param: str | None, requests: int
) -> None:
    gave = told.outcomes[client][call]
    assert (gave["raised"], gave["param"]) == (RAISED[client][status], param)
    assert told.requests[f"{client} {call}"] == requests
