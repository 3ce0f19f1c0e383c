from __future__ import annotations

import json
import logging
import pickle
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from curt.endpoint import (
    ChatEndpoint,
    EndpointSettings,
    EndpointUnavailableError,
    Question,
    ReplyCache,
)
from tests.train.judge.judge_server import Reply, judge_server

FACT = "被告人张某盗窃3000元"


def settings(url: str, **changes) -> EndpointSettings:
    options = {"base_url": url, "model": "m", "timeout_s": 5.0, "retries": 1}
    return EndpointSettings(**options | changes)


def chat(url: str, *, whole: bool = False, **changes) -> ChatEndpoint:
    return ChatEndpoint(settings(url, **changes), "v1", whole=whole)


def question(text: str = FACT) -> Question:
    return Question([{"role": "user", "content": text}], lambda reply: reply.strip() or None)


def echo(body, _):
    text = body["messages"][0]["content"]
    return Reply(f"答{text}", pause_s=0.02 * (len(text) % 3))


def test_replies_come_back_in_order_and_so_many_at_once():
    with judge_server(echo) as server:
        endpoint = chat(server.url, concurrency=4)
        texts = ["字" * n for n in range(1, 41)]
        assert endpoint.ask([question(t) for t in texts]) == [f"答{t}" for t in texts]
    assert 2 <= server.peak <= 4
    assert endpoint.counts == {"cached": 0, "asked": 40}


def test_the_same_question_is_asked_once_and_none_asks_nothing():
    with judge_server(echo) as server:
        endpoint = chat(server.url)
        assert endpoint.ask([question()] * 5) == [f"答{FACT}"] * 5
        assert endpoint.ask([]) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "trouble",
    [Reply(status=500, body=b"{}"), Reply(status=503, body=b"busy"), Reply(drop=True),
     Reply("晚", pause_s=1.2)],
    ids=["500", "503", "dropped", "slow"],
)  # fmt: skip
def test_passing_trouble_is_retried(trouble):
    with judge_server(lambda _, number: trouble if number == 1 else Reply("好")) as server:
        endpoint = chat(server.url, timeout_s=1.0)
        assert endpoint.ask([question()]) == ["好"]
    assert len(server.requests) == 2
    assert not any(name.startswith("failed") for name in endpoint.counts)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Reply(status=500, body=b"{}"), "failed_status_500"),
        (Reply(status=404, body=b"{}"), "failed_status_404"),
        (Reply(drop=True), "failed_connection"),
        (Reply("好", pause_s=0.6), "failed_timeout"),
        (Reply(body=b"<html>gateway</html>"), "failed_reply"),
        (Reply(body=b"[]"), "failed_reply"),
        (Reply(body=b'{"choices": []}'), "failed_reply"),
        (Reply(body=b"[" * 200_000), "failed_reply"),
        (Reply(None), "failed_reply"),
        (Reply(5), "failed_reply"),
        (Reply("  "), "failed_reply"),
    ],
)
def test_lasting_trouble_gives_none_and_is_counted(trouble, reason):
    with judge_server(lambda *_: trouble) as server:
        endpoint = chat(server.url, timeout_s=0.4, retries=0)
        assert endpoint.ask([question()]) == [None]
    assert endpoint.counts[reason] == 1


def cut_reply(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "length", "message": message}
    row = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return Reply(body=json.dumps(row).encode())


@pytest.mark.parametrize(("whole", "expected"), [(True, [None]), (False, ["半句"])])
def test_a_reply_cut_at_its_limit_counts_where_half_is_enough(whole, expected):
    with judge_server(lambda *_: cut_reply("半句")) as server:
        endpoint = chat(server.url, whole=whole)
        assert endpoint.ask([question()]) == expected
    assert endpoint.counts["failed_cut"] == int(whole)


def test_too_many_failures_stop_early_and_what_came_is_kept(tmp_path):
    def failing(_, number):
        return Reply("好") if number <= 8 else Reply(status=500, body=b"{}")

    cache = tmp_path / "c.sqlite"
    with judge_server(failing) as server:
        endpoint = chat(server.url, retries=0, concurrency=1, failure_window=20, cache=cache)
        with pytest.raises(EndpointUnavailableError, match=r"failed_status_500.*same command"):
            endpoint.ask([question(f"第{n}问") for n in range(400)])
        assert len(server.requests) == 16  # two rounds of eight, not 400
    with closing(sqlite3.connect(cache)) as connection:
        assert connection.execute("SELECT count(*) FROM replies").fetchone() == (8,)


def test_a_second_run_is_answered_from_the_cache_and_other_settings_are_not(tmp_path):
    cache = tmp_path / "deep" / "c.sqlite"
    with judge_server(echo) as server:
        asked = [question(t) for t in ("甲", "乙")]
        first = chat(server.url, cache=cache).ask(asked)
        again = chat(server.url, cache=cache)
        assert again.ask(asked) == first
        assert again.counts == {"cached": 2}
        assert len(server.requests) == 2
        chat(server.url, cache=cache, model="other").ask(asked)
        chat(server.url, cache=cache, temperature=0.7).ask(asked)
        ChatEndpoint(settings(server.url, cache=cache), "v2").ask(asked)
    assert len(server.requests) == 8


def test_what_can_no_longer_be_read_is_asked_again(tmp_path):
    cache = tmp_path / "c.sqlite"
    messages = question().messages
    with judge_server(lambda _, number: Reply("旧" if number == 1 else "新")) as server:
        assert chat(server.url, cache=cache).ask([Question(messages, str)]) == ["旧"]
        strict = Question(messages, lambda reply: reply if reply == "新" else None)
        assert chat(server.url, cache=cache).ask([strict]) == ["新"]


def test_processes_can_share_a_cache(tmp_path):
    code = (
        "import sys; from pathlib import Path; from curt.endpoint import ReplyCache\n"
        "cache = ReplyCache(Path(sys.argv[1]))\n"
        "[cache.write({f'{sys.argv[2]}-{n}': 'x'}) for n in range(50)]"
    )
    path = tmp_path / "c.sqlite"
    root = Path(__file__).parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=root) for name in "ab"
    ]
    assert [w.wait(timeout=60) for w in writers] == [0, 0]
    assert len(ReplyCache(path).read(f"{name}-{n}" for name in "ab" for n in range(50))) == 100


def test_neither_key_nor_question_is_logged_or_told(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("CURT_ENDPOINT_API_KEY", "sk-very-secret\n")
    caplog.set_level(logging.INFO)
    with judge_server(lambda *_: Reply(status=401, body=b"{}")) as server:
        endpoint = chat(server.url, failure_window=4, cache=tmp_path / "c.sqlite")
        with pytest.raises(EndpointUnavailableError) as stopped:
            endpoint.ask([question(f"{FACT}{n}") for n in range(8)])
        assert server.keys == {"Bearer sk-very-secret"}
    told = f"{stopped.value} {vars(endpoint)} {caplog.text}"
    assert "very-secret" not in told
    assert FACT not in told


@pytest.mark.parametrize("key", ["sk-very\nsecret", "sk-very-secret钥"])
def test_a_key_no_header_can_carry_is_refused_unseen(key, monkeypatch):
    monkeypatch.setenv("CURT_ENDPOINT_API_KEY", key)
    with pytest.raises(ValueError, match="CURT_ENDPOINT_API_KEY holds") as refused:
        chat("http://127.0.0.1:9/v1")
    assert "secret" not in str(refused.value)


def test_an_endpoint_can_be_sent_to_another_process(tmp_path):
    with judge_server(echo) as server:
        endpoint = chat(server.url, cache=tmp_path / "c.sqlite")
        copy = pickle.loads(pickle.dumps(endpoint))
        assert copy.ask([question("甲")]) == ["答甲"]


def test_the_module_loads_no_client_until_something_is_asked():
    code = "import sys, curt.endpoint; print('openai' in sys.modules)"
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr
