"""Several cases in one request: each for itself, all by one deadline, none at another's cost."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from curt.dialogue import THINK_END, render_answer
from serve.answering.answering import Answering, OnlyWay
from serve.api.admin import LoadRequest, PromoteRequest, UnloadRequest
from serve.api.batch import REPLY_MS, Batches, case_request_id
from serve.api.reply import Replies
from serve.api.schemas import API_VERSION, BatchReply, BatchRequest, PredictReply
from serve.app import create_app
from serve.edge.context import BATCH_PATH, PREDICT_PATH
from serve.errors import ClientGoneError, OverloadedError
from serve.metrics import Metrics
from serve.pool.job import Job
from serve.served import Identity, Served
from serve.settings import Settings
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import FakePool, generation

GOOD = generation(f"窃取8000元{THINK_END}{render_answer(VERDICT)}")
TORN = generation("8000", finish="deadline")
THEFT = "被告人张某在某超市窃取他人现金8000元。"


@dataclass
class MoodyPool(FakePool):
    """Answers by what stands in the fact: 忙 is refused, 坏 raises, 迟 comes too late."""

    pause_s: float = 0.0
    under_way: int = 0
    most_under_way: int = 0
    cancelled: list[str] = field(default_factory=list)

    async def submit(self, job: Job) -> Served:
        self.jobs.append(job)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.pause_s)
        except asyncio.CancelledError:
            self.cancelled.append(job.fact)
            raise
        finally:
            self.under_way -= 1
        if "忙" in job.fact:
            raise OverloadedError("overloaded", "not now", 3.0)
        if "坏" in job.fact:
            raise LookupError(f"cannot judge {job.fact}")
        return Served(TORN if "迟" in job.fact else GOOD, 48, 48, 1.5)


def client_of(settings: Settings, pool: FakePool | None = None, **changes: Any) -> AsgiClient:
    app = create_app(settings.model_copy(update=changes), pool or MoodyPool(GOOD))
    return AsgiClient(app)


def ask(client: AsgiClient, *facts: str, **fields: Any) -> Any:
    cases = [{"id": f"c{place}", "fact": fact} for place, fact in enumerate(facts)]
    return client.post(BATCH_PATH, json={"cases": cases} | fields)


def numbered(count: int) -> list[str]:
    return [THEFT + f"另有第{place}次。" for place in range(count)]


def test_results_come_in_order_with_ids_that_feedback_knows(
    settings: Settings, tmp_path: Any
) -> None:
    pool = MoodyPool(GOOD)
    client = client_of(settings, pool, feedback=tmp_path / "feedback")
    response = client.post(
        BATCH_PATH,
        json={"cases": [{"fact": fact} for fact in numbered(3)], "tasks": ["charge"], "top_k": 2},
        headers={"X-Request-ID": "batch-1"},
    )
    body = BatchReply.model_validate(response.json())
    assert (response.status_code, body.request_id) == (200, "batch-1")
    assert [result.index for result in body.results] == [0, 1, 2]
    assert [result.id for result in body.results] == [None] * 3
    assert [job.fact for job in pool.jobs] == numbered(3)
    for place, result in enumerate(body.results):
        assert (result.status, result.error) == (200, None)
        assert result.reply is not None
        assert result.request_id == result.reply.request_id == f"batch-1.{place}"
        assert result.reply.defendants[0].term is None
        said = {"request_id": result.request_id, "verdict": "correct"}
        assert client.post("/feedback", json=said).status_code == 201


def test_one_failure_fails_no_other(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        facts = [THEFT, THEFT + "忙", THEFT + "坏", "", "no Chinese", THEFT + "迟"]
        response = ask(client_of(settings), *facts)
    results = response.json()["results"]
    assert response.status_code == 200
    assert [each["status"] for each in results] == [200, 503, 500, 422, 422, 200]
    codes = [each["error"] and each["error"]["code"] for each in results]
    assert codes == [None, "overloaded", "internal", "empty_fact", "not_chinese", None]
    assert results[1]["error"]["retry_after_s"] == 3
    assert [each["reply"] is None for each in results] == [False, True, True, True, True, False]
    assert results[5]["reply"]["degraded_reason"] == "deadline"
    lines = [vars(record) for record in caplog.records]
    assert not any("窃取" in f"{line}" for line in lines)
    cases = [line for line in lines if ".case" not in line["name"] and "case %d" in line["msg"]]
    assert sorted(line["status"] for line in cases) == [200, 200, 422, 422, 500, 503]
    outcomes = [line.get("outcome") for line in cases]
    assert sorted(filter(None, outcomes)) == ["degraded", "good"]
    (whole,) = [line for line in lines if "cases" in line]
    assert (whole["cases"], whole["cases_failed"]) == (6, 4)


def test_all_share_one_deadline_and_wait_at_once(settings: Settings) -> None:
    pool = MoodyPool(GOOD, pause_s=0.02)
    ask(client_of(settings, pool), *numbered(8), deadline_ms=900)
    assert pool.most_under_way == 8
    assert len({job.deadline_s for job in pool.jobs}) == 1
    first = pool.jobs[0]
    assert first.deadline_s - first.arrived_s == pytest.approx(0.9 - 8 * REPLY_MS / 1e3)
    ask(client_of(settings, pool), THEFT)
    assert pool.jobs[-1].deadline_s - pool.jobs[-1].arrived_s == pytest.approx(0.4 - REPLY_MS / 1e3)


def test_each_case_is_cached_and_counted_by_itself(settings: Settings) -> None:
    pool = MoodyPool(GOOD, pause_s=0.01)
    client = client_of(settings, pool)
    client.post("/predict", json={"fact": THEFT})
    ask(client, THEFT, THEFT + "又。", THEFT + "又。", THEFT + "忙")
    assert len(pool.jobs) == 3  # one before, one new, one that is refused
    metrics = client.get("/metrics").text
    assert 'curt_cases_total{outcome="good"} 4.0' in metrics
    assert 'curt_cases_total{outcome="refused"} 1.0' in metrics
    assert "curt_answer_latency_seconds_count 4.0" in metrics


def test_cases_sent_to_the_route_of_one_are_told_where_to_go(settings: Settings) -> None:
    pool = MoodyPool(GOOD)
    response = client_of(settings, pool).post(PREDICT_PATH, json={"cases": [{"fact": THEFT}]})
    assert response.status_code == 422
    assert "send `cases` to POST /predict/batch" in response.json()["error"]["message"]
    assert not pool.jobs


def test_a_case_alone_and_in_a_batch_gets_the_same_reply(settings: Settings) -> None:
    client = client_of(settings)
    alone = client.post(PREDICT_PATH, json={"fact": THEFT}).json()
    in_a_batch = ask(client, THEFT).json()["results"][0]["reply"]
    for reply in (alone, in_a_batch):
        del reply["request_id"], reply["timings_ms"]
    assert alone == in_a_batch


def test_a_single_case_is_asked_and_answered_as_ever(settings: Settings) -> None:
    client = client_of(settings)
    reply = client.post("/predict", json={"fact": THEFT}).json()
    assert PredictReply.model_validate(reply).defendants
    assert "results" not in reply
    wrong = client.post("/predict", json={"fact": 5})
    assert wrong.json()["error"]["message"].startswith("fact: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"cases": []}, "cases: "),
        ({"cases": [{"id": "a", "fact": "x"}, {"id": "a", "fact": "y"}]}, "same id"),
        ({"cases": [{"fact": "x"}], "fact": "x"}, "use only cases, deadline_ms"),
        ({"cases": [{"fact": "x", "deadline_ms": 5}]}, "cases.0: an unknown field: use only fact"),
        ({"cases": [{"fact": THEFT}, {"fact": 3}]}, "cases.1.fact: "),
        ({"cases": [{"id": "张某案", "fact": THEFT}]}, "cases.0.id: "),
        ({"cases": THEFT}, "cases: "),
        ({"cases": [{"fact": THEFT}], "deadline_ms": 1}, "deadline_ms: "),
    ],
)
def test_a_body_that_is_no_batch_is_refused_whole(
    settings: Settings, body: dict[str, Any], message: str
) -> None:
    pool = MoodyPool(GOOD)
    response = client_of(settings, pool).post(BATCH_PATH, json=body)
    assert response.status_code == 422
    told = response.json()["error"]["message"]
    assert message in told
    assert "张某" not in told
    assert not pool.jobs


def test_more_cases_than_the_limit_are_refused_and_it_says_how_many_may_be(
    settings: Settings,
) -> None:
    client = client_of(settings)
    assert ask(client, *numbered(32)).status_code == 200
    refused = ask(client, *numbered(33))
    assert refused.status_code == 422
    assert refused.json()["error"] == {
        "code": "too_many_cases", "message": "33 cases are too many: send 32 or fewer",
    }  # fmt: skip
    fewer = ask(client_of(settings, max_batch_cases=2), *numbered(3))
    assert "send 2 or fewer" in fewer.json()["error"]["message"]


def test_limits_count_cases(settings: Settings) -> None:
    limited = {"rate_per_s": 0.01, "rate_burst": 6, "max_concurrent": 5}
    client = client_of(settings, **limited)
    assert "send 5 or fewer" in ask(client, *numbered(6)).json()["error"]["message"]  # costs one
    assert ask(client, *numbered(4)).status_code == 200
    refused = ask(client, *numbered(2))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limited")
    assert int(refused.headers["retry-after"]) > 1


def test_cases_under_way_count_against_the_limit_and_are_given_back(settings: Settings) -> None:
    pool = MoodyPool(GOOD, pause_s=0.1)
    limited = {"rate_per_s": 1000.0, "rate_burst": 100, "max_concurrent": 5}
    client = client_of(settings, pool, **limited)

    async def both() -> list[int]:
        bodies = [{"cases": [{"fact": f} for f in numbered(n)]} for n in (4, 3)]
        asked = [client._request("POST", BATCH_PATH, json=body) for body in bodies]
        return sorted(response.status_code for response in await asyncio.gather(*asked))

    assert asyncio.run(both()) == [200, 429]
    assert ask(client, *numbered(5)).status_code == 200


def test_a_client_that_leaves_stops_every_case(settings: Settings) -> None:
    pool = MoodyPool(GOOD, pause_s=5)
    manifest = settings.manifest()
    way = OnlyWay(pool, Identity.of(settings.model, manifest))
    metrics = Metrics()
    answering = Answering(lambda: way, settings, metrics)
    body = BatchRequest.model_validate({"cases": [{"fact": fact} for fact in numbered(4)]})

    async def scenario() -> float:
        leaves = asyncio.get_running_loop().create_future()

        async def receive() -> dict[str, str]:
            return await leaves

        state = {"request_id": "gone", "started_s": time.monotonic(), "log": {}}
        request = Request({"type": "http", "headers": [], "state": state}, receive)
        replies = Replies(answering, settings, metrics)
        batches = Batches(answering, replies, settings, metrics)
        serving = asyncio.create_task(batches.serve(request, body))
        await asyncio.sleep(0.05)
        assert pool.under_way == 4
        left_s = time.monotonic()
        leaves.set_result({"type": "http.disconnect"})
        with pytest.raises(ClientGoneError):
            await serving
        while pool.under_way:
            await asyncio.sleep(0)
        return time.monotonic() - left_s

    assert asyncio.run(scenario()) < 0.2
    assert sorted(pool.cancelled) == sorted(numbered(4))


@given(st.text("abXY09._-", min_size=1, max_size=64), st.integers(0, 999))
def test_ids_of_cases_are_ids_and_differ(request_id: str, index: int) -> None:
    own = case_request_id(request_id, index)
    assert 0 < len(own) <= 64
    assert own.endswith(f".{index}")
    assert own != case_request_id(request_id, index + 1)
    assert own != case_request_id(request_id[::-1] + "x", index)


@pytest.mark.parametrize("path", [PREDICT_PATH, BATCH_PATH])
def test_the_description_shows_an_example_that_works(settings: Settings, path: str) -> None:
    client = client_of(settings)
    described = client.get("/openapi.json").json()
    content = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    form = content["schema"]["$ref"].rpartition("/")[2]
    (example,) = described["components"]["schemas"][form]["examples"]
    checker = Draft202012Validator(content["schema"] | {"components": described["components"]})
    checker.validate(example)
    assert client.post(path, json=example).status_code == 200
    assert client.get("/version").json()["api"] == API_VERSION
    assert API_VERSION in described["info"]["description"]


@pytest.mark.parametrize("form", [LoadRequest, PromoteRequest, UnloadRequest])
def test_the_forms_of_admin_show_examples_that_are_valid(form: type[BaseModel]) -> None:
    for example in form.model_json_schema()["examples"]:
        assert form.model_validate(example)


def test_half_a_character_is_told_by_its_place_and_nothing_else(settings: Settings) -> None:
    body = f'{{"cases": [{{"fact": "{THEFT}"}}, {{"fact": "{THEFT}\\ud800"}}]}}'.encode()
    response = client_of(settings).post(
        BATCH_PATH, content=body, headers={"Content-Type": "application/json"}
    )
    told = response.json()
    if response.status_code == 200:
        assert [each["status"] for each in told["results"]] == [200, 422]
    else:
        assert (response.status_code, told["error"]["message"][:12]) == (422, "cases.1.fact")
    assert "窃取" not in told.get("error", {}).get("message", "")


def test_every_route_that_takes_a_body_shows_an_example(settings: Settings, tmp_path: Any) -> None:
    client = client_of(settings, feedback=tmp_path / "feedback")
    described = client.get("/openapi.json").json()
    bodies = {
        (path, method): operation["requestBody"]["content"]["application/json"]
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }
    assert len(bodies) >= 4
    for place, content in bodies.items():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        shown = content.get("examples") or described["components"]["schemas"][name]["examples"]
        assert json.dumps(shown), place
    assert not [
        (path, method)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
        if not operation.get("description")
    ]


BOTH = (
    "2021年3月5日，被告人张某、李某经预谋，窃得现金8600元。李某系累犯。"
    "2021年4月6日，被告人李某窃得手机一部，价值1500元。"
)


def test_each_defendant_of_a_case_gets_a_verdict_on_what_concerns_him(
    settings: Settings, tmp_path: Any
) -> None:
    pool = MoodyPool(GOOD, pause_s=0.02)
    client = client_of(settings, pool, feedback=tmp_path / "feedback")
    body = {"fact": BOTH, "deadline_ms": 900, "defendants": "each"}
    response = client.post(PREDICT_PATH, json=body, headers={"X-Request-ID": "both"})
    reply = BatchReply.model_validate(response.json())
    assert (response.status_code, pool.most_under_way) == (200, 2)
    assert [result.defendant for result in reply.results] == ["张某", "李某"]
    assert [result.fact for result in reply.results] == [job.fact for job in pool.jobs]
    assert "1500元" not in pool.jobs[0].fact
    assert "累犯" in pool.jobs[1].fact
    assert len({job.deadline_s for job in pool.jobs}) == 1
    for place, result in enumerate(reply.results):
        assert (result.index, result.request_id) == (0, f"both.{place}")
        assert result.reply
        assert result.reply.defendants[0].charges
        assert "multi_defendant" not in {caution.code for caution in result.reply.warnings}
    days = [str(result.reply.law.day) for result in reply.results if result.reply]
    assert days == ["2021-03-05", "2021-04-06"]
    said = {"request_id": "both.1", "verdict": "correct"}
    assert client.post("/feedback", json=said).status_code == 201
    client.post(PREDICT_PATH, json=body)
    assert len(pool.jobs) == 2  # kept by what was asked of each
    client.post(PREDICT_PATH, json={"fact": BOTH})
    assert pool.jobs[-1].fact == BOTH  # one verdict, as ever
    metrics = client.get("/metrics").text
    assert 'curt_cases_total{outcome="good"} 5.0' in metrics


def test_a_case_of_one_defendant_is_asked_as_it_came(settings: Settings) -> None:
    pool = MoodyPool(GOOD)
    response = ask(
        client_of(settings, pool), THEFT, BOTH, "三被告人共同盗窃，" * 3, defendants="each"
    )
    results = response.json()["results"]
    assert [each["defendant"] for each in results] == ["张某", "张某", "李某", None]
    assert [each["index"] for each in results] == [0, 1, 1, 2]
    assert [each["fact"] is None for each in results] == [True, False, False, True]
    assert results[0]["id"] == "c0"


def test_more_defendants_than_cases_may_be_are_refused(settings: Settings) -> None:
    pool = MoodyPool(GOOD)
    client = client_of(settings, pool, max_batch_cases=3)
    names = "、".join(f"{surname}某" for surname in "张李王赵")
    fact = f"被告人{names}结伙盗窃，窃得现金8600元。"
    refused = client.post(PREDICT_PATH, json={"fact": fact, "defendants": "each"})
    assert refused.json()["error"] == {
        "code": "too_many_cases",
        "message": "4 cases, one for each defendant, are too many: send 3 or fewer",
    }
    assert not pool.jobs


def test_what_keeps_every_defendant_from_a_verdict_refuses_the_request(settings: Settings) -> None:
    client = client_of(settings, rate_per_s=1e3, rate_burst=9, max_concurrent=9)
    body = {"fact": BOTH.replace("8600元", "8600元，很忙"), "defendants": "each"}
    refused = client.post(PREDICT_PATH, json=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "3")
    assert client.post(PREDICT_PATH, json=body | {"fact": ""}).status_code == 422
    partly = client.post(PREDICT_PATH, json=body | {"fact": BOTH + "李某系主犯，很忙。"})
    assert [each["status"] for each in partly.json()["results"]] == [200, 503]


def test_a_stream_refuses_each_by_the_name_of_the_option(settings: Settings) -> None:
    refused = client_of(settings).post("/predict/stream", json={"fact": BOTH, "defendants": "each"})
    assert refused.status_code == 422
    told = refused.json()["error"]["message"]
    assert told == "defendants: a stream answers for one: ask POST /predict for each"


@pytest.mark.parametrize(
    "day", ["1997-09-30", "2999-01-01", "2021年3月5日", 20210305, "2021-02-30"]
)
def test_a_day_of_the_deed_that_is_none_is_refused(settings: Settings, day: Any) -> None:
    refused = client_of(settings).post(PREDICT_PATH, json={"fact": THEFT, "date": day})
    assert refused.status_code == 422
    assert "date: write a day from 1997-10-01 to" in refused.json()["error"]["message"]
    assert str(day) not in refused.json()["error"]["message"].replace("1997-10-01", "")


def test_the_day_that_a_client_tells_goes_before_the_facts(settings: Settings) -> None:
    client = client_of(settings)
    laws = [
        client.post(PREDICT_PATH, json={"fact": BOTH} | asked).json()["law"]
        for asked in ({}, {"date": "2012-03-04"})
    ]
    in_a_batch = client.post(BATCH_PATH, json={"cases": [{"fact": THEFT, "date": "2012-03-04"}]})
    laws.append(in_a_batch.json()["results"][0]["reply"]["law"])
    eight = {"version": "criminal-law-amendment-8", "day": "2012-03-04", "told_by": "request"}
    assert laws[0]["day"] == "2021-04-06"
    assert laws[1:] == [eight, eight]
