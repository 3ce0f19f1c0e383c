from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curt.dialogue import THINK_END, render_answer
from curt.law.verdict import Term, Verdict
from serve.api.errors import install_handlers
from serve.api.reply import build_reply
from serve.api.schemas import ALL_TASKS
from serve.edge.context import RequestContext
from serve.feedback.answers import AnswerStore
from serve.feedback.corrections import BadCorrectionError, Correction, complete
from serve.feedback.facts import FACTS, FactFile
from serve.feedback.feedback import make_router
from serve.feedback.log import (
    FEEDBACK,
    MAX_LINES_AN_ANSWER,
    AppendLog,
    FeedbackLog,
    log_files,
    mend,
    read_lines,
)
from serve.feedback.recorder import AnswerRecorder
from serve.metrics import Metrics
from serve.served import Identity, Served
from serve.settings import Settings
from tests.micro import FACTS as SOME_FACTS
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import generation

SECRET = "某市幸福路三号的秘密"
SERVED = Served(generation(f"窃取{SECRET}{THINK_END}{render_answer(VERDICT)}"), 48, 48, 1.5)


@dataclass
class Clock:
    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Desk:
    """A front with the feedback route, and answers to speak of."""

    client: AsgiClient
    answers: AnswerStore
    log: FeedbackLog
    identity: Identity
    metrics: Metrics

    def answer(self, request_id: str, served: Served = SERVED, owner: str | None = None) -> None:
        self.answers.remember(
            request_id, served, fact=SOME_FACTS[0] + SECRET, identity=self.identity, owner=owner
        )

    def say(self, request_id: str = "r1", verdict: str = "wrong", **rest: Any) -> Any:
        body = {"request_id": request_id, "verdict": verdict} | rest
        return self.client.post("/feedback", json=body)


@dataclass
class Key:
    id: str


@pytest.fixture
def open_desk(tmp_path: Path, settings: Settings) -> Iterator[Callable[..., Desk]]:
    opened: list[Desk] = []

    def close() -> None:
        while opened:
            desk = opened.pop()
            desk.answers.close()
            desk.log.close()

    def make(**options: Any) -> Desk:
        close()
        options |= {"feedback": tmp_path / "feedback"}
        recorder = AnswerRecorder.open(settings.model_copy(update=options))
        assert recorder is not None
        answers, log, metrics = recorder.answers, recorder.log, Metrics()
        app = FastAPI()

        @app.middleware("http")
        async def know_who_asks(request: Request, call_next: Any) -> Any:
            if name := request.headers.get("x-key"):
                request.state.api_key = Key(name)
            return await call_next(request)

        app.add_middleware(RequestContext, metrics=metrics)
        install_handlers(app)
        app.include_router(make_router(answers, log, metrics.registry))
        identity = Identity.of(settings.model, settings.manifest())
        opened.append(Desk(AsgiClient(app), answers, log, identity, metrics))
        return opened[-1]

    yield make
    close()


@pytest.fixture
def desk(open_desk: Callable[..., Desk]) -> Desk:
    desk = open_desk()
    desk.answer("r1")
    return desk


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in log_files(folder / FEEDBACK) for line in read_lines(path)]


def test_a_correction_of_one_part_keeps_the_others(desk: Desk, tmp_path: Path) -> None:
    response = desk.say(correction={"term": {"kind": "fixed", "months": 10}}, user="judge-7")
    assert (response.status_code, response.json()["status"]) == (201, "recorded")
    (row,) = rows(tmp_path / "feedback")
    assert row["correction"] == {
        "charges": ["盗窃"],
        "articles": ["264"],
        "term": {"kind": "fixed", "months": 10, "probation_months": 0},
        "fine_yuan": 2000,
    }
    assert row["answer"]["verdict"]["term"]["months"] == 8
    assert row["answer"]["thinking_tokens"] == 3
    assert row["answer"]["variant"] == "default"
    assert row["user"] == "judge-7"
    assert b'curt_feedback_total{verdict="wrong"} 1.0' in desk.metrics.render()


def test_the_replys_own_defendant_is_a_correction(desk: Desk, tmp_path: Path) -> None:
    reply = build_reply(
        SERVED, fact=SOME_FACTS[0], tasks=ALL_TASKS, include_reasoning=False,
        identity=desk.identity, request_id="r1", deadline_ms=400, total_ms=20,
    )  # fmt: skip
    defendant = reply.model_dump(mode="json")["defendants"][0]
    assert desk.say(correction=defendant).json()["error"]["code"] == "no_change"
    defendant["fine_yuan"] = 5000
    assert desk.say(correction=defendant).status_code == 201
    assert rows(tmp_path / "feedback")[0]["correction"]["fine_yuan"] == 5000


@pytest.mark.parametrize(
    ("correction", "code"),
    [
        ({"charges": [{"name": "不存在的罪名"}]}, "unknown_charge"),
        ({"articles": [{"id": "9999"}]}, "unknown_article"),
        ({"articles": [{"id": "133之九"}]}, "unknown_article"),
        ({"articles": [{"id": "67"}]}, "unknown_article"),
        ({"articles": [{"id": SECRET}]}, "unknown_article"),
        ({"term": {"kind": "fixed", "months": 400}}, "impossible_term"),
        ({"term": {"kind": "life", "months": 3}}, "impossible_term"),
        ({"term": {"kind": "fixed", "months": 60, "probation_months": 60}}, "impossible_term"),
        ({"term": {"kind": "surveillance", "months": 6, "probation_months": 6}}, "impossible_term"),
        ({"term": {"kind": "death"}}, "impossible_term"),
        ({"term": {"kind": "flogging"}}, "invalid_request"),
        ({"termm": {"kind": "life"}}, "invalid_request"),
        ({"charges": []}, "invalid_request"),
        ({"fine_yuan": -1}, "invalid_request"),
        ({}, "no_change"),
    ],
)
def test_what_no_court_could_mean_is_refused_and_not_kept(
    desk: Desk, tmp_path: Path, correction: dict[str, Any], code: str
) -> None:
    response = desk.say(correction=correction)
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)
    assert SECRET not in response.text
    assert rows(tmp_path / "feedback") == []


@pytest.mark.parametrize(
    "body",
    [
        {"verdict": "perhaps"},
        {"verdict": "correct", "correction": {"fine_yuan": 1}},
        {"verdict": "wrong", "comment": "长" * 501},
        {"verdict": "wrong", "user": "a@b.c"},
        {"verdict": "wrong", "surprise": 1},
        {"verdict": "wrong", "request_id": "a b"},
    ],
)
def test_a_malformed_body_is_refused(desk: Desk, body: dict[str, Any]) -> None:
    assert desk.client.post("/feedback", json={"request_id": "r1"} | body).status_code == 422


def test_an_unknown_an_expired_and_anothers_answer_are_404(
    open_desk: Callable[..., Desk],
) -> None:
    desk = open_desk(max_answers=3)
    desk.answer("mine", owner="alice")
    assert desk.say("nobody").json()["error"]["code"] == "unknown_request"
    assert desk.say("mine").status_code == 404
    body = {"request_id": "mine", "verdict": "correct"}
    send = desk.client.post
    assert send("/feedback", json=body, headers={"x-key": "mallory"}).status_code == 404
    assert send("/feedback", json=body, headers={"x-key": "alice"}).status_code == 201
    for number in range(3):
        desk.answer(f"later-{number}", owner="alice")
    assert send("/feedback", json=body, headers={"x-key": "alice"}).status_code == 404
    assert len(desk.answers) == 3


def test_an_answer_expires(tmp_path: Path, settings: Settings) -> None:
    clock = Clock()
    store = AnswerStore(tmp_path, ttl_s=100, clock=clock)
    identity = Identity.of(settings.model, settings.manifest())
    store.remember("r1", SERVED, fact="盗", identity=identity)
    clock.now_s += 99
    assert store.find(None, "r1") is not None
    clock.now_s += 2
    assert store.find(None, "r1") is None
    store.close()


def test_the_same_twice_is_one_line_and_a_change_of_mind_another(
    desk: Desk, tmp_path: Path
) -> None:
    sent = [desk.say(verdict=v).status_code for v in ("wrong", "wrong", "correct", "wrong")]
    assert sent == [201, 200, 201, 201]
    assert [row["verdict"] for row in rows(tmp_path / "feedback")] == ["wrong", "correct", "wrong"]


def test_endless_changes_of_mind_are_refused(desk: Desk) -> None:
    codes = [desk.say(comment=f"第{n}次").status_code for n in range(MAX_LINES_AN_ANSWER + 1)]
    assert codes == [201] * MAX_LINES_AN_ANSWER + [429]


def test_answers_and_what_was_said_outlive_a_restart(open_desk: Callable[..., Desk]) -> None:
    first = open_desk()
    first.answer("r1")
    assert first.say().status_code == 201
    again = open_desk()
    assert again.say().status_code == 200
    assert again.say(verdict="correct").status_code == 201


def test_two_servers_never_share_a_folder(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another server"):
        FeedbackLog(tmp_path / "feedback")


def test_a_degraded_answer_needs_a_whole_correction(desk: Desk, tmp_path: Path) -> None:
    desk.answer("cut", replace(SERVED, generation=replace(SERVED.generation, finish="deadline")))
    assert desk.say("cut", verdict="correct").json()["error"]["code"] == "no_verdict"
    part = {"charges": [{"name": "盗窃罪"}]}
    assert desk.say("cut", correction=part).json()["error"]["code"] == "incomplete_correction"
    whole = part | {"articles": [{"id": "第二百六十四条"}], "term": {"kind": "fixed", "months": 6}}
    assert desk.say("cut", correction=whole).status_code == 201
    (row,) = rows(tmp_path / "feedback")
    assert row["answer"]["degraded"] == "deadline"
    assert row["correction"]["articles"] == ["264"]


def test_facts_are_not_kept_unless_asked_and_never_stand_beside_feedback(
    open_desk: Callable[..., Desk], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    folder = tmp_path / "feedback"
    desk = open_desk()
    desk.answer("r1")
    desk.say(comment="被告人张建国电话13812345678")
    desk.answers.flush()
    assert not (folder / FACTS).exists()
    kept = open_desk(keep_facts=True)
    kept.answer("r2")
    kept.answers.flush()
    (fact,) = map(json.loads, read_lines(folder / FACTS))
    assert fact["request_id"] == "r2"
    assert SECRET in fact["fact"]
    assert SECRET in fact["thinking"]
    assert (folder / FACTS).stat().st_mode & 0o077 == 0
    others = b"".join(p.read_bytes() for p in folder.iterdir() if p.name != FACTS)
    assert SECRET.encode() not in others
    assert b"13812345678" not in others
    assert "张建国".encode() not in others
    assert SECRET not in caplog.text


def test_facts_past_their_retention_are_gone_from_the_disk(tmp_path: Path) -> None:
    facts = FactFile(tmp_path, retention_s=100, max_bytes=10_000)
    for at_s in (0, 50, 120):
        facts.append({"at_s": at_s, "fact": f"第{at_s}号"})
    assert facts.sweep(99) == 0
    assert facts.sweep(160) == 2
    assert [json.loads(line)["at_s"] for line in read_lines(facts.path)] == [120]
    assert facts.sweep(1000) == 1
    assert not facts.path.exists()


def test_an_old_run_s_facts_are_deleted_though_facts_are_off_now(
    open_desk: Callable[..., Desk], tmp_path: Path
) -> None:
    folder = tmp_path / "feedback"
    folder.mkdir()
    (folder / FACTS).write_text(json.dumps({"at_s": 1.0, "fact": SECRET}) + "\n")
    (folder / f".{FACTS}.77.tmp").write_text(SECRET)
    open_desk(keep_facts=False)
    assert [p.name for p in folder.iterdir() if SECRET.encode() in p.read_bytes()] == []


def test_facts_stay_within_their_bound(tmp_path: Path) -> None:
    facts = FactFile(tmp_path, retention_s=1e9, max_bytes=2_000)
    for number in range(200):
        facts.append({"at_s": number, "fact": "盗窃"})
        assert facts.path.stat().st_size <= 2_000
    assert json.loads(list(read_lines(facts.path))[-1])["at_s"] == 199


def test_the_store_stays_within_its_bound_on_disk(tmp_path: Path, settings: Settings) -> None:
    identity = Identity.of(settings.model, settings.manifest())
    store = AnswerStore(tmp_path, max_answers=10)
    for number in range(55):
        store.remember(f"r{number}", SERVED, fact="盗", identity=identity)
    store.close()
    lines = sum(1 for path in tmp_path.glob("answers*.jsonl") for _ in read_lines(path))
    assert lines <= 20
    again = AnswerStore(tmp_path, max_answers=10)
    found = [number for number in range(55) if again.find(None, f"r{number}")]
    again.close()
    assert found == list(range(45, 55))


def test_a_full_disk_is_a_503_and_leaves_no_half_line(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.say()
    with monkeypatch.context() as patch:
        patch.setattr("serve.feedback.log.write_all", write_half_and_fail)
        response = desk.say(verdict="correct")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "30"
    assert desk.say(verdict="correct").status_code == 201
    assert [row["verdict"] for row in rows(tmp_path / "feedback")] == ["wrong", "correct"]


def write_half_and_fail(descriptor: int, data: bytes) -> None:
    import os

    os.write(descriptor, data[: len(data) // 2])
    raise OSError(28, "No space left on device")


LINES = st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=30)


@hypothesis_settings(max_examples=25, deadline=None)
@given(lines=LINES, cut=st.integers(1, 50), max_bytes=st.integers(1, 200))
def test_after_any_crash_every_kept_line_is_there_and_none_is_half(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cut: int, max_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    log = AppendLog(path, max_bytes)
    for line in lines:
        log.append(line)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" * cut)  # died while it wrote one more
    again = AppendLog(path, max_bytes)
    again.append(b"next")
    again.close()
    read = [line for file in log_files(path) for line in read_lines(file)]
    assert read == [*lines, b"next"]
    assert all(len(list(read_lines(f))) == 1 or f.stat().st_size <= max_bytes
               for f in log_files(path))  # fmt: skip


def test_a_half_line_longer_than_a_block_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"kept\n" + b"x" * 200_000)
    assert mend(path) == 200_000
    assert path.read_bytes() == b"kept\n"


@given(
    months=st.integers(1, 300),
    answered=st.sampled_from([VERDICT, Verdict(("诈骗",), ("266",), Term("detention", 4))]),
)
def test_a_term_alone_changes_nothing_else(months: int, answered: Verdict) -> None:
    given_term = Correction.model_validate({"term": {"kind": "fixed", "months": months}})
    corrected = complete(given_term, answered)
    assert replace(corrected, term=answered.term) == answered
    assert corrected.term == Term("fixed", months)


def test_death_passes_where_a_tier_allows_it() -> None:
    correction = Correction.model_validate(
        {
            "charges": [{"name": "故意杀人"}],
            "articles": [{"id": "232"}],
            "term": {"kind": "death"},
        }
    )
    assert complete(correction, None).term == Term("death")
    theft = Correction.model_validate({"term": {"kind": "death"}})
    with pytest.raises(BadCorrectionError, match="死刑"):
        complete(theft, VERDICT)
