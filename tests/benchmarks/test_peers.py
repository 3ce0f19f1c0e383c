"""The comparison with peers: its yardstick and its servers' plumbing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from benchmarks.client import Exchange
from benchmarks.peers import server
from benchmarks.peers.__main__ import Bench
from benchmarks.peers.catalogue import (
    COMPLETIONS,
    PREDICT,
    PeersConfig,
    Setting,
    curt_setting,
    peer_settings,
)
from benchmarks.peers.engines import Continuous, PromptRun
from benchmarks.peers.judging import (
    JudgedReply,
    Turn,
    accuracy_change,
    answer_of,
    compare,
    judge,
    keeps_accuracy,
    raw_rows,
    summarise,
    summarise_server,
)
from benchmarks.pictures import draw_peers
from benchmarks.run import StartError, free_port, run_server
from curt.dialogue import THINK_START
from curt.engines.tokenizer import PromptTokenizer
from curt.law.verdict import Term, Verdict
from loadtest._http import Got, HttpClient
from tests.compress.onnx.exports import write_cases

TRUTH = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
ANSWER = "罪名：盗窃\n法条：264\n刑期：有期徒刑8个月\n罚金：2000元"


def configured(folder: Path, **more: Any) -> PeersConfig:
    nothing = folder / "none"
    return PeersConfig(
        model=folder, ort=folder, plain_ort=[folder], peers_python=nothing, vllm=nothing, **more
    )


def reply(latency_ms: float = 10, miss: str | None = None, **more: Any) -> JudgedReply:
    row = {"case": 0, "at_s": 0.0, "lag_ms": 0.1, "exact": miss is None, "thinking_tokens": 20}
    return JudgedReply(latency_ms=latency_ms, miss=miss, **(row | more))


def exchange_of(content: object, latency_ms: float = 10, status: int = 200) -> Exchange:
    return Exchange(
        0, 5.0, 5.0001, 5.0 + latency_ms / 1e3, Got(status, json.dumps(content).encode())
    )


def test_every_protocol_is_read_by_one_yardstick(micro_model: Path) -> None:
    tokenizer = PromptTokenizer(micro_model)
    completion = {"choices": [{"text": f"8个月</think>{ANSWER}<|im_end|>"}]}
    predict = {
        "degraded": False,
        "thinking": {"tokens": 20},
        "defendants": [
            {
                "charges": [{"name": "盗窃", "title": "盗窃罪"}],
                "articles": [{"id": "264", "title": "第二百六十四条"}],
                "term": {"kind": "fixed", "months": 8, "probation_months": 0},
                "fine_yuan": 2000,
            }
        ],
    }
    for content in (completion, predict):
        read = judge(exchange_of(content), 3, TRUTH, 400, tokenizer)
        assert (read.miss, read.exact, read.case) == (None, True, 3)
        assert read.thinking_tokens > 0
        late = judge(exchange_of(content, 400.1), 3, TRUTH, 400, tokenizer)
        assert (late.miss, late.exact) == ("late", True)
    degraded = judge(exchange_of(predict | {"degraded": True}), 0, TRUTH, 400, tokenizer)
    assert degraded.miss == "degraded"
    unread = judge(exchange_of({"choices": [{"text": "8个月"}]}), 0, TRUTH, 400, tokenizer)
    assert (unread.miss, unread.exact) == ("unreadable", False)
    assert judge(exchange_of({}, status=503), 0, TRUTH, 400, tokenizer).miss == "status 503"
    assert judge(exchange_of({}, status=0), 0, TRUTH, 400, tokenizer).miss == "no reply"


def test_an_answer_is_found_where_the_end_of_thinking_was_left_out() -> None:
    assert answer_of(f"5+3=8</think>{ANSWER}") == ANSWER
    assert answer_of(f"5+3=8{ANSWER}") == ANSWER
    assert answer_of("5+3=8") == ""


def test_a_miss_counts_as_an_infinite_latency() -> None:
    good = [reply(float(ms)) for ms in range(200)]
    assert summarise(good, 10)["p99_ms"] == 197.0
    spoilt = [*good[:197], *[reply(5, "degraded")] * 3]
    row = summarise(spoilt, 10)
    assert row["p99_ms"] is None
    assert row["misses"] == {"degraded": 3}
    with pytest.raises(ValueError, match="nothing was sent"):
        summarise([], 10)


def test_accuracy_is_compared_case_by_case() -> None:
    easy, hard = reply(exact=True, case=0), reply(exact=False, case=1)
    assert accuracy_change([easy, easy, hard], [1.0, 0.0]) == 0
    assert keeps_accuracy([easy, hard] * 20, [1.0, 0.0], 0.01)
    assert not keeps_accuracy([hard] * 20 + [easy] * 20, [1.0, 1.0], 0.01)


def test_requests_are_all_different_and_hold_the_prompt(micro_model: Path, tmp_path: Path) -> None:
    cases = write_cases(tmp_path / "cases.jsonl")
    bench = Bench(configured(micro_model, cases=cases, chars=30))
    peer = Setting("p", "one", "m", nobody, extra={"max_tokens": 9})
    first, bodies = bench.take(peer, 4)
    made = [json.loads(body) for body in bodies]
    assert first == 0
    assert len({content["prompt"] for content in made}) == 4
    assert all(content["prompt"].endswith(THINK_START) for content in made)
    assert made[0]["max_tokens"] == 9
    first, (shipped,) = bench.take(curt_setting(bench.config), 1)
    assert first == 4
    assert json.loads(shipped)["deadline_ms"] == 400


def nobody() -> Any:
    raise AssertionError("nobody starts it")


def test_a_peer_that_is_not_installed_has_no_setting(tmp_path: Path) -> None:
    found = peer_settings(configured(tmp_path))
    assert list(found) == ["onnxruntime-genai + FastAPI"]
    assert len({s.label for settings in found.values() for s in settings}) == 2


def server_row(rate: float, equal: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "setting": "one",
        "protocol": COMPLETIONS if equal is None else PREDICT,
        "highest_per_s": {"median": rate, "range": [rate, rate]},
        "steps": [{"rate_per_s": rate, "p99_ms": 100.0}],
    }
    if equal is not None:
        row["equal_accuracy_highest_per_s"] = {"median": equal, "range": [equal, equal]}
    return row


def test_the_ratio_is_to_the_best_peer_at_equal_accuracy() -> None:
    rows = {"a": server_row(10), "b": server_row(20), "curt": server_row(60, 40)}
    summary = compare(rows)
    assert summary["best_peer"] == "b"
    assert summary["ratio_to_best_peer"] == 2
    assert summary["curt"]["ratio_to_best_peer"] == 3
    assert summary["curt"]["ratio_to_each_at_equal_accuracy"] == {"a": 4, "b": 2}
    assert compare({"curt": server_row(60, 40)})["ratio_to_best_peer"] is None
    assert draw_peers({"servers": rows}, 400).startswith(b"\x89PNG")


def test_every_request_is_a_raw_row() -> None:
    rows = raw_rows({"curt": [Turn(0, {5.0: [reply(), reply(miss="late")]})]})
    assert [(row["server"], row["round"], row["miss"]) for row in rows] == [
        ("curt", 1, ""),
        ("curt", 1, "late"),
    ]


def test_a_turn_is_summed_up_with_its_accuracy_against_the_peers() -> None:
    turns = [Turn(0, {5.0: [reply(), reply(miss="late")], 7.0: [reply(exact=False)]}, 5.0, 7.0)]
    seen = {"exact": 0.5, "cases": 2, "without_verdict": 0, "thinking_tokens": 20.0}
    row = summarise_server(Setting("curt", "as shipped", "m", nobody, PREDICT), turns, seen, [1.0])
    assert row["highest_per_s"] == {"median": 5.0, "range": [5.0, 5.0], "rounds": [5.0]}
    assert row["equal_accuracy_highest_per_s"]["median"] == 7.0
    assert (row["at_highest"]["requests"], row["at_highest"]["accuracy_change"]) == (2, -0.5)
    assert [step["accuracy_change"] for step in row["steps"]] == [-0.5, -1.0]
    assert row["exact"] == 0.5


def test_a_server_that_does_not_start_says_why() -> None:
    dying = (sys.executable, "-c", "raise SystemExit('no such weights')")
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StartError, match="no such weights"), run_server(dying, url, os.environ):
        pass


def test_a_server_keeps_its_port_during_its_turn_and_is_gone_after(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = (sys.executable, "-m", "http.server", str(port), "--directory", str(tmp_path))

    def start() -> Any:
        return run_server(command, url, os.environ, ready_path="/")

    for _ in range(2):
        with start() as server:
            with pytest.raises(StartError, match="is taken"), start():
                pass
            got = asyncio.run(HttpClient(url, what="POST /").exchange(b""))
            assert got.status == 501  # it knows no POST, but it answers
        assert server.process.returncode is not None


class Counting(Continuous):
    """Writes 1, 2, 3, ... to every sequence; fails where a prompt holds -1."""

    def __init__(self) -> None:
        self.running: list[PromptRun] = []
        self.most = 0
        super().__init__(4)

    def begin(self, sequence: PromptRun) -> None:
        self.running.append(sequence)

    def step(self) -> list[PromptRun]:
        time.sleep(0.002)
        self.most = max(self.most, len(self.running))
        if any(-1 in sequence.prompt for sequence in self.running):
            raise RuntimeError("a bad token")
        for sequence in self.running:
            sequence.written.append(len(sequence.written) + 1)
        ended = [s for s in self.running if len(s.written) == s.max_tokens]
        self.running = [s for s in self.running if s not in ended]
        return ended


def test_requests_join_those_under_way_and_an_engine_that_fails_tells_everybody() -> None:
    engine = Counting()
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda n: engine.complete([n], n + 5), range(8)))
    assert results == [list(range(1, n + 6)) for n in range(8)]
    assert 1 < engine.most <= 4
    for _ in range(2):  # the one that broke it, and who comes later
        with pytest.raises(RuntimeError, match="a bad token"):
            engine.complete([-1], 3)


class Echo:
    """Says its prompt again."""

    def __init__(self, config: server.ServerConfig) -> None:
        self.slots = config.slots

    def complete(self, prompt: list[int], max_tokens: int) -> list[int]:
        return prompt[:max_tokens]


def test_a_peer_answers_as_openai_servers_do(
    micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(server.ENGINES, "llama.cpp", Echo)
    config = server.ServerConfig(
        model=micro_model, slots=2, library="llama.cpp", port=0, arrangement="threads",
        tokenizer=micro_model / "tokenizer.json",
    )  # fmt: skip
    with TestClient(server.make_app(config)) as client:
        assert client.get("/health").status_code == 200
        told = client.post("/v1/completions", json={"prompt": "盗窃现金", "max_tokens": 99}).json()
    assert told["choices"][0]["text"] == "盗窃现金"
    assert told["usage"]["completion_tokens"] == told["usage"]["prompt_tokens"]
