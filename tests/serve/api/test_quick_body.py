"""What the quick way answers, and that it leaves everything else to the framework's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from serve.api.quick_body import JSON, QuickBody, read_one_case
from serve.api.schemas import PredictRequest
from serve.app import create_app
from serve.settings import Settings
from tests.micro import FACTS
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation


def chunk(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def headers(content_type: bytes | None = JSON) -> Scope:
    return {"type": "http", "headers": [(b"content-type", content_type)] if content_type else []}


def read(body: object, content_type: bytes | None = JSON) -> PredictRequest | None:
    return read_one_case(headers(content_type), [chunk(json.dumps(body).encode())])


@pytest.mark.parametrize(
    "content_type", [JSON, b"application/json; charset=utf-8", b"Application/JSON"]
)
def test_one_right_case_in_json_is_read(content_type: bytes) -> None:
    asked = read({"fact": FACTS[0], "deadline_ms": 250, "tasks": ["term"]}, content_type)
    assert asked == PredictRequest(fact=FACTS[0], deadline_ms=250, tasks=["term"])


def test_a_body_in_pieces_is_read_whole() -> None:
    data = json.dumps({"fact": FACTS[0]}, ensure_ascii=False).encode()
    asked = read_one_case(headers(), [chunk(data[:20], more=True), chunk(data[20:])])
    assert asked == PredictRequest(fact=FACTS[0])


@pytest.mark.parametrize(
    "body",
    [{"cases": [{"fact": FACTS[0]}]}, {"fact": 5}, {"fact": FACTS[0], "x": 1}, [], 5, None, {}],
)
def test_anything_else_is_left_alone(body: object) -> None:
    assert read(body) is None


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"fact": NaN}'])
def test_what_is_no_json_is_left_alone(data: bytes) -> None:
    assert read_one_case(headers(), [chunk(data)]) is None


@pytest.mark.parametrize("content_type", [None, b"text/plain", b"application/xml", b""])
def test_another_content_type_is_left_alone(content_type: bytes | None) -> None:
    assert read({"fact": FACTS[0]}, content_type) is None


def test_a_client_that_left_is_left_alone() -> None:
    data = json.dumps({"fact": FACTS[0]}).encode()
    assert read_one_case(headers(), [chunk(data, more=True), {"type": "http.disconnect"}]) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*PredictRequest.model_fields, "other"]), json_values))
def test_it_takes_exactly_what_the_schema_takes(body: dict[str, Any]) -> None:
    value = json.loads(json.dumps(body))
    try:
        expected = PredictRequest.model_validate(value)
    except ValidationError:
        expected = None
    assert read(body) == expected


def test_the_framework_reads_from_the_first_byte() -> None:
    seen: list[Message] = []

    async def framework(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive(), await receive()])

    async def never(body: PredictRequest, request: object) -> Any:
        raise AssertionError("this is no right case")

    waiting = [chunk(b"{", more=True), chunk(b"x"), {"type": "http.disconnect"}]
    sent = list(waiting)

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent here")

    asyncio.run(QuickBody(framework, never)(headers(), receive, send))
    assert seen == sent


def test_both_ways_give_the_same_reply(settings: Settings) -> None:
    client = AsgiClient(create_app(settings, FakePool(generation(""))))
    quick = client.post("/predict", json={"fact": FACTS[0]}).json()
    several = client.post("/predict", json={"cases": [{"fact": FACTS[0]}]}).json()
    slow = several["results"][0]["reply"]
    for reply in (quick, slow):
        del reply["request_id"], reply["timings_ms"]
    assert quick == slow
