from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fastapi import Request
from starlette.types import Message

from curt.dialogue import render_completion
from curt.law.verdict import Term, Verdict
from serve.answering.answering import Attended
from serve.api.health import read_budgets
from serve.app import create_app
from serve.edge.keys import add_key, make_key
from serve.errors import ClientGoneError
from serve.settings import Settings
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation

FACT = "被告人张某在某超市窃取他人现金8000元，归案后如实供述。"
THEFT = generation(render_completion("8000", Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)))


def ask(client: AsgiClient, **fields: object):
    return client.post("/predict", json={"fact": FACT, **fields})


def test_the_same_facts_are_answered_once(settings: Settings):
    pool = FakePool(THEFT)
    client = AsgiClient(create_app(settings, pool))
    first, second = ask(client), ask(client, tasks=["charge"])
    assert len(pool.jobs) == 1
    assert first.json()["defendants"][0]["term"]["months"] == 8
    assert second.json()["defendants"][0]["term"] is None  # its own tasks
    assert first.json()["request_id"] != second.json()["request_id"]
    assert second.json()["timings_ms"]["decode"] == 0
    ask(client, fact=FACT + "另查明，张某系累犯。")
    assert len(pool.jobs) == 2
    metrics = client.get("/metrics").text
    assert 'curt_cache_requests_total{source="hit"} 1.0' in metrics


@pytest.mark.parametrize("shared", [False, True])
def test_a_key_learns_nothing_of_what_another_asked(
    settings: Settings, tmp_path: Path, shared: bool
) -> None:
    keys = []
    for name in ("a", "b"):
        key, record = make_key(name, "predict")
        add_key(tmp_path / "keys.json", record)
        keys.append({"x-api-key": key})
    changes = {"keys_file": tmp_path / "keys.json", "cache_shared": shared}
    pool = FakePool(THEFT)
    client = AsgiClient(create_app(settings.model_copy(update=changes), pool))
    for headers in (keys[0], keys[0], keys[1], keys[1]):
        assert client.post("/predict", json={"fact": FACT}, headers=headers).status_code == 200
    assert len(pool.jobs) == (1 if shared else 2)


@pytest.mark.parametrize("path", ["/predict/stream", "/v1/chat/completions"])
def test_streams_read_and_fill_the_cache(settings: Settings, path: str) -> None:
    pool = FakePool(THEFT)
    client = AsgiClient(create_app(settings, pool))
    body = {"fact": FACT}
    if path.startswith("/v1"):
        messages = [{"role": "user", "content": FACT}]
        body = {"model": "curt", "stream": True, "messages": messages}
    first, second = (client.post(path, json=body).text for _ in range(2))
    assert len(pool.jobs) == 1
    assert ask(client).json()["timings_ms"]["decode"] == 0
    assert len(pool.jobs) == 1
    assert "盗窃" in first
    assert "盗窃" in second
    client = AsgiClient(create_app(settings, pool := FakePool(THEFT)))
    ask(client)
    assert "盗窃" in client.post(path, json=body).text
    assert len(pool.jobs) == 1


def test_no_time_to_live_is_no_cache(settings: Settings):
    pool = FakePool(THEFT)
    client = AsgiClient(create_app(settings.model_copy(update={"cache_ttl_s": 0.0}), pool))
    ask(client), ask(client)
    assert len(pool.jobs) == 2


def test_degraded_answers_are_made_anew(settings: Settings):
    pool = FakePool(generation("8000", finish="deadline"))
    client = AsgiClient(create_app(settings, pool))
    assert ask(client).json()["degraded"]
    assert ask(client).json()["degraded"]
    assert len(pool.jobs) == 2


def test_a_limit_is_kept_and_says_when_to_come_back(settings: Settings):
    limited = settings.model_copy(update={"rate_per_s": 0.1, "rate_burst": 2})
    client = AsgiClient(create_app(limited, FakePool(THEFT)))
    assert [ask(client).status_code for _ in range(3)] == [200, 200, 429]
    assert int(ask(client).headers["retry-after"]) >= 1


def test_the_version_tells_accuracy_by_budget(settings: Settings, tmp_path: Path):
    path = tmp_path / "eval.json"
    rows = [{"budget": 0, "exact": 0.1, "n": 50, "other": 1}, {"budget": 64, "exact": 0.7, "n": 50}]
    path.write_text(json.dumps({"by_budget": rows}))
    told = settings.model_copy(update={"evaluation": path})
    version = AsgiClient(create_app(told, FakePool(THEFT))).get("/version").json()
    assert version["by_budget"][1] == {"budget": 64, "exact": 0.7, "n": 50}
    assert "other" not in version["by_budget"][0]
    plain = AsgiClient(create_app(settings, FakePool(THEFT))).get("/version").json()
    assert plain["by_budget"] == []


@pytest.mark.parametrize("text", ["", "{}", '{"by_budget": [{"budget": 1}]}'])
def test_a_file_that_is_no_evaluation_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "eval.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="CURT_EVALUATION"):
        read_budgets(path)


def waiting_client() -> tuple[Request, asyncio.Event]:
    """A request whose client leaves when the event is set."""
    leaves = asyncio.Event()

    async def receive() -> Message:
        await leaves.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "headers": []}, receive), leaves


def test_work_ends_when_its_client_leaves():
    async def scenario() -> tuple[bool, int]:
        request, leaves = waiting_client()
        asyncio.get_running_loop().call_later(0.01, leaves.set)
        with pytest.raises(ClientGoneError):
            async with Attended(request):
                await asyncio.sleep(5)
        task = asyncio.current_task()
        await asyncio.sleep(0.01)  # nothing of it is left to hit what the task does next
        return leaves.is_set(), task.cancelling()

    assert asyncio.run(scenario()) == (True, 0)


def test_a_client_that_leaves_after_the_work_disturbs_nothing():
    async def scenario() -> str:
        request, leaves = waiting_client()
        async with Attended(request):
            await asyncio.sleep(0)
        leaves.set()
        await asyncio.sleep(0.01)
        return "done"

    assert asyncio.run(scenario()) == "done"


def test_an_answer_that_is_there_as_the_client_leaves_does_no_harm():
    async def scenario() -> list[str]:
        seen = []
        for turns in range(8):  # the answer comes some turns before or after the leaving
            request, leaves = waiting_client()
            answer = asyncio.get_running_loop().create_future()
            answer.get_loop().call_soon(leaves.set)
            answer.get_loop().call_later(0, _set_after, answer, turns)
            try:
                async with Attended(request):
                    seen.append(await answer)
            except ClientGoneError:
                seen.append("gone")
            await asyncio.sleep(0.002)
        return seen

    assert set(asyncio.run(scenario())) <= {"answer", "gone"}


def _set_after(answer: asyncio.Future[str], turns: int) -> None:
    if turns:
        answer.get_loop().call_soon(_set_after, answer, turns - 1)
    elif not answer.done():
        answer.set_result("answer")


def test_cancelling_from_outside_is_no_client_that_left():
    async def scenario() -> None:
        request, _ = waiting_client()

        async def work() -> None:
            async with Attended(request):
                await asyncio.sleep(5)

        working = asyncio.create_task(work())
        await asyncio.sleep(0.01)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working

    asyncio.run(scenario())
