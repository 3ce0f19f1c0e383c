from __future__ import annotations

import json
from dataclasses import replace

import pytest

from curt.classifier.model import Findings
from curt.dialogue import LeftOut
from curt.engines.budget import Observation
from curt.engines.protocol import Generation, Request
from serve.pool.messages import (
    Calibrate,
    Calibrated,
    Cancel,
    Cancelled,
    EngineBusy,
    EngineRaised,
    Generated,
    LoadFailed,
    Message,
    Reasoning,
    decode,
    encode,
)

GENERATION = Generation("想</think>答", 10, 1, 1, False, "stop", 1.5, 2.5, 2, answer_passes=1)
EVERY_KIND: list[Message] = [
    Request("窃取“现金”\n8000元", 64, 48, deadline_s=12.25, tell_text=False),
    Calibrate(),
    Cancel(),
    Reasoning("窃取"),
    Generated(GENERATION, Findings("ab-", "AACAPw==", True, ("9元",))),
    Generated(replace(GENERATION, left_out=LeftOut(12, 2), candidates="参考：盗窃8；264；8个月")),
    Calibrated((Observation(10, 5, 1.0, 2, 3.0, None), Observation(20, 9, 2.0, 2, 3.0, 1))),
    Cancelled(),
    EngineRaised("ValueError", ("engine.py:7 generate",)),
    EngineBusy(2.0),
    LoadFailed("ArtifactError: no model"),
]


@pytest.mark.parametrize("message", EVERY_KIND, ids=lambda message: type(message).__name__)
def test_a_message_arrives_as_it_was_sent(message: Message) -> None:
    received = decode(encode(message))
    assert received == message
    if isinstance(message, Generated):  # equality leaves it out
        assert isinstance(received, Generated)
        assert received.generation.answer_passes == 1


def test_what_the_engine_raised_is_told_without_the_facts_it_may_quote() -> None:
    try:
        raise ValueError("被告人张某")
    except ValueError as error:
        raised = EngineRaised.by(error)
    assert raised.error == "ValueError"
    assert "test_messages.py" in raised.stack[-1]
    assert "张某" not in encode(raised).decode()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'["Pickle", {}]', b'["Reasoning", {}]', b'["Request", {"no": 1}]']
)
def test_anything_else_is_no_message(data: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        decode(data)


def test_a_message_without_content_is_its_name() -> None:
    assert json.loads(encode(Cancel())) == ["Cancel", {}]
