"""Faults of remote servers, each told by name and none with a word of a prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curt.artifact import ArtifactError
from curt.engines.protocol import Request
from curt.engines.remote import RemoteBusyError, RemoteError, RemoteUnavailableError
from tests.curt.engines.completions_server import CompletionsServer
from tests.curt.engines.remote_engine import RemoteEngine
from tests.micro import FACTS


@pytest.fixture
def server(micro_model: Path) -> Iterator[CompletionsServer]:
    server = CompletionsServer(micro_model, "vllm").start()
    yield server
    server.stop()


@pytest.fixture
def engine(server: CompletionsServer, micro_model: Path) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(micro_model, server.url, "vllm")
    yield engine
    engine.close()


def request(thinking: int = 4) -> Request:
    return Request(FACTS[0], 8, thinking, answer_limit=4)


@pytest.mark.parametrize(
    ("status", "error", "hint"),
    [
        (400, RemoteError, "look at its log"),
        (401, RemoteError, "give its key"),
        (500, RemoteError, "answered 500"),
        (503, RemoteBusyError, "answered 503"),
        (429, RemoteBusyError, "answered 429"),
        (502, RemoteUnavailableError, "answered 502"),
    ],
)
def test_a_status_is_told_without_the_body_that_quotes_the_prompt(
    engine: RemoteEngine,
    server: CompletionsServer,
    status: int,
    error: type[Exception],
    hint: str,
) -> None:
    server.status = status
    with pytest.raises(error, match=hint) as caught:
        engine.generate([request()])
    prompt = engine.encode(request()).ids
    assert str(prompt[0]) + ", " not in str(caught.value)
    assert "8000" not in str(caught.value)
    server.status = None
    assert engine.generate([request()])[0].answer_tokens == 4


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_server_that_dies_in_the_middle_is_told(
    engine: RemoteEngine, server: CompletionsServer, tokens: int
) -> None:
    server.die_after_tokens = tokens
    with pytest.raises(RemoteUnavailableError):
        engine.generate([request()])
    assert engine.generate([request()])[0].answer_tokens == 4


def test_a_server_that_hangs_costs_no_more_than_the_deadline(
    engine: RemoteEngine, server: CompletionsServer
) -> None:
    server.pause_s = 5.0
    started_s = time.monotonic()
    out = engine.generate([Request(FACTS[0], 8, 4, deadline_s=started_s + 0.1)])[0]
    assert (out.finish, out.text) == ("deadline", "")
    assert time.monotonic() - started_s < 0.3


def test_nobody_there_is_told_at_once(micro_model: Path) -> None:
    with pytest.raises(RemoteUnavailableError, match="no connection"):
        RemoteEngine(micro_model, "http://127.0.0.1:9", "vllm")


def test_another_name_than_the_served_one_is_refused(
    server: CompletionsServer, micro_model: Path
) -> None:
    with pytest.raises(RemoteError, match="serves curt"):
        RemoteEngine(micro_model, server.url, "vllm", served_name="qwen")


def test_the_wrong_dialect_is_told(micro_model: Path) -> None:
    server = CompletionsServer(micro_model, "tensorrt-llm").start()
    engine = RemoteEngine(micro_model, server.url, "vllm")
    with pytest.raises(RemoteError, match="does not know"):
        engine.generate([request()])
    server.dialect = "vllm"
    engine.close()
    engine = RemoteEngine(micro_model, server.url, "tensorrt-llm")
    with pytest.raises(RemoteError, match="without token ids"):
        engine.generate([request()])
    engine.close()
    server.stop()


def test_a_folder_the_server_could_not_load_is_refused(empty_ort: Path) -> None:
    with pytest.raises(ArtifactError, match="holds ort-genai, but vllm loads hf"):
        RemoteEngine(empty_ort, "http://127.0.0.1:9", "vllm")


@pytest.fixture
def empty_ort(tmp_path: Path) -> Path:
    from curt.artifact import write_artifact
    from curt.files import write_json

    describe = {
        "format": "ort-genai", "precision": "int4", "stage": "test", "base": "none",
        "max_fact_tokens": 10, "max_thinking_tokens": 10,
    }  # fmt: skip
    with write_artifact(tmp_path / "model", describe) as temporary:
        write_json(temporary / "note.json", {})
    return tmp_path / "model"


def test_connections_are_kept_between_calls(
    engine: RemoteEngine, server: CompletionsServer
) -> None:
    engine.generate([request()])
    before = set(server.connections)
    engine.generate([request(), request(0)][:1])
    assert set(server.connections) == before


def test_tokens_come_in_larger_steps_where_nobody_listens(
    engine: RemoteEngine, server: CompletionsServer
) -> None:
    asked = Request(FACTS[0], 32, 20, answer_limit=20)
    server.events = 0
    *told, last = engine.stream(asked)
    heard, server.events = server.events, 0
    generation = last.generation
    assert generation is not None
    assert heard >= generation.thinking_tokens + generation.answer_tokens
    (again,) = engine.generate([asked])
    assert again.text == generation.text
    assert server.events <= 2 * (2 + 21 // 8) < heard / 2  # two calls: a first event, steps, a last
    assert len(told) > 20


def test_the_thinking_ends_no_turn_and_the_answer_no_thinking(
    engine: RemoteEngine, server: CompletionsServer
) -> None:
    server.bodies.clear()
    engine.generate([request()])
    thinking, answer = server.bodies
    assert set(thinking["logit_bias"].values()) == {-100.0}
    assert answer["logit_bias"] == {str(answer["prompt"][-1]): -100.0}
    assert set(map(int, thinking["logit_bias"])) == set(answer["stop_token_ids"])
    assert answer["prompt"][: len(thinking["prompt"])] == thinking["prompt"]
    assert answer["prompt"][-1] == thinking["stop_token_ids"][0]
