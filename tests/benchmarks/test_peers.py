"""The comparison with peers: its yardstick and its servers' plumbing."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.client import Client, Exchange, Got
from benchmarks.peers import server
from benchmarks.peers.catalogue import Places, Setting, curt_settings, peer_settings
from benchmarks.peers.cross_check import summarise as summarise_check
from benchmarks.peers.engines import Continuous, PromptRun
from benchmarks.peers.judging import (
    Bodies,
    JudgedReply,
    accuracy_change,
    answer_of,
    judge,
    keeps_accuracy,
    summarise,
)
from benchmarks.peers.plot import draw_peers
from benchmarks.peers.report import Turn, compare, raw_rows
from benchmarks.peers.running import ServerRotation, run_setting
from benchmarks.run import StartError
from curt.corpus.case import Case
from curt.dialogue import THINK_START
from curt.engines.tokenizer import PromptTokenizer
from curt.law.verdict import Term, Verdict
from tests.micro import FACTS

TRUTH = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
ANSWER = "罪名：盗窃\n法条：264\n刑期：有期徒刑8个月\n罚金：2000元"


def places(folder: Path, port: int = 8172) -> Places:
    return Places(
        folder, folder, (folder,), None, folder / "work", folder / "none", folder / "none", port
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
    chat = {
        "choices": [{"message": {"content": ANSWER}}],
        "curt": {"degraded": False, "thinking": {"tokens": 20}},
    }
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
    for protocol, content in (("completions", completion), ("chat", chat), ("predict", predict)):
        read = judge(exchange_of(content), protocol, 3, TRUTH, 400, tokenizer)
        assert (read.miss, read.exact, read.case) == (None, True, 3), protocol
        assert read.thinking_tokens > 0
        late = judge(exchange_of(content, 400.1), protocol, 3, TRUTH, 400, tokenizer)
        assert (late.miss, late.exact) == ("late", True)
    degraded = judge(exchange_of(predict | {"degraded": True}), "predict", 0, TRUTH, 400, tokenizer)
    assert degraded.miss == "degraded"
    unread = judge(
        exchange_of({"choices": [{"text": "8个月"}]}), "completions", 0, TRUTH, 400, tokenizer
    )
    assert (unread.miss, unread.exact) == ("unreadable", False)
    assert judge(exchange_of({}, status=503), "chat", 0, TRUTH, 400, tokenizer).miss == "status 503"
    assert judge(exchange_of({}, status=0), "chat", 0, TRUTH, 400, tokenizer).miss == "no reply"


def test_an_answer_is_found_where_the_end_of_thinking_was_left_out() -> None:
    assert answer_of(f"5+3=8</think>{ANSWER}") == ANSWER
    assert answer_of(f"5+3=8{ANSWER}") == ANSWER
    assert answer_of("5+3=8") == ""


def test_a_miss_counts_as_an_infinite_latency() -> None:
    good = [reply(float(ms)) for ms in range(200)]
    assert summarise(good, 10)["p99_ms"] == 198.0
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


def test_bodies_are_all_different_and_hold_the_prompt(micro_model: Path, tmp_path: Path) -> None:
    cases = [Case(str(i), fact, TRUTH, "test") for i, fact in enumerate(FACTS)]
    bodies = Bodies(cases, PromptTokenizer(micro_model), 200, 64, 30)
    shipped, off, capped = curt_settings(places(tmp_path), 400)
    peer = Setting("p", "one", "m", ("true",), 8172, extra={"max_tokens": 9})
    made = [json.loads(body) for body in bodies.make(peer, 1, 0, 4)]
    assert len({content["prompt"] for content in made}) == 4
    assert all(content["prompt"].endswith(THINK_START) for content in made)
    assert made[0]["max_tokens"] == 9
    assert json.loads(bodies.make(shipped, 1, 0, 1)[0])["deadline_ms"] == 400
    assert json.loads(bodies.make(off, 1, 0, 1)[0])["deadline_ms"] == 60_000
    assert json.loads(bodies.make(capped, 1, 0, 1)[0])["max_completion_tokens"] == 96


def test_a_peer_that_is_not_installed_has_no_setting(tmp_path: Path) -> None:
    found = peer_settings(places(tmp_path), 192)
    assert list(found) == ["onnxruntime-genai + FastAPI", "transformers + FastAPI"]
    assert len({s.label for settings in found.values() for s in settings}) == 7


def server_row(rate: float, equal: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "setting": "one",
        "highest_per_s": {"median": rate, "range": [rate, rate]},
        "steps": [{"rate_per_s": rate, "p99_ms": 100.0}],
    }
    if equal is not None:
        row["equal_accuracy_highest_per_s"] = {"median": equal, "range": [equal, equal]}
    return row


def test_the_ratio_is_to_the_best_peer_at_equal_accuracy() -> None:
    rows = {"a": server_row(10), "b": server_row(20), "curt": server_row(60, 40)}
    summary = compare(rows, ["a", "b"])
    assert summary["best_peer"] == "b"
    assert summary["ratio_to_best_peer"] == 2
    assert summary["curt"]["ratio_to_best_peer"] == 3
    assert summary["curt"]["ratio_to_each_at_equal_accuracy"] == {"a": 4, "b": 2}
    assert compare({"curt": server_row(60, 40)}, [])["ratio_to_best_peer"] is None
    assert draw_peers({"servers": rows}, 400).startswith(b"\x89PNG")


def test_every_request_is_a_raw_row() -> None:
    rows = raw_rows({"curt": [Turn(0, {5.0: [reply(), reply(miss="late")]})]})
    assert [(row["server"], row["round"], row["miss"]) for row in rows] == [
        ("curt", 1, ""),
        ("curt", 1, "late"),
    ]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    dying = (sys.executable, "-c", "raise SystemExit('no such weights')")
    with (
        pytest.raises(StartError, match="no such weights"),
        run_setting(Setting("p", "one", "m", dying, 8172)),
    ):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("slow", [True, False])
def test_a_slow_starter_is_stopped_between_its_turns_and_gone_after(
    slow: bool, tmp_path: Path
) -> None:
    port = free_port()
    command = (sys.executable, "-m", "http.server", str(port), "--directory", str(tmp_path))
    setting = Setting("p", "one", "m", command, port, ready_path="/", slow_to_start=slow)
    with ServerRotation() as rotation:
        with rotation.run(setting) as first:
            assert state_of(first.process.pid) in "RS"
            with pytest.raises(StartError, match="is taken"), run_setting(setting):
                pass
        if slow:
            end_s = time.monotonic() + 5
            while state_of(first.process.pid) != "T":  # it stops when it next runs
                assert time.monotonic() < end_s
                time.sleep(0.01)
        else:
            assert first.process.returncode is not None
        with rotation.run(setting) as second:
            assert (second.process.pid == first.process.pid) == slow
            client = Client(setting.url, what="POST /")
            got = asyncio.run(client.exchange(b""))
            assert got.status == 501  # it knows no POST, but it answers
    assert second.process.returncode is not None


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
        results = list(pool.map(lambda n: engine.complete([[n]], n + 5), range(8)))
    assert results == [[list(range(1, n + 6))] for n in range(8)]
    assert 1 < engine.most <= 4
    for _ in range(2):  # the one that broke it, and who comes later
        with pytest.raises(RuntimeError, match="a bad token"):
            engine.complete([[-1]], 3)


def test_waiting_requests_are_completed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    gate = threading.Event()

    class Slow:
        def complete(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
            gate.wait(5)
            sizes.append(len(prompts))
            return [prompt * max_tokens for prompt in prompts]

    monkeypatch.setattr(server, "_engine", Slow())

    async def go() -> list[list[int]]:
        queue: asyncio.Queue[server.Waiting] = asyncio.Queue()
        futures = [asyncio.get_running_loop().create_future() for _ in range(6)]
        with ThreadPoolExecutor(1) as pool:
            task = asyncio.create_task(server.serve_queue(queue, pool, 4))
            queue.put_nowait(([0], 2, futures[0]))
            await asyncio.sleep(0.05)
            for number, future in enumerate(futures[1:], start=1):
                queue.put_nowait(([number], 2, future))
            gate.set()
            done = await asyncio.gather(*futures)
            task.cancel()
        return done

    assert asyncio.run(go()) == [[number] * 2 for number in range(6)]
    assert sizes == [1, 4, 1]


def test_the_cross_check_counts_from_due_and_from_sending() -> None:
    def exchange(latency_ms: float, lag_ms: float, got: Got) -> Exchange:
        return Exchange(0, 0.0, lag_ms / 1e3, latency_ms / 1e3, got)

    good = Got(200, b'{"degraded":true}')
    row = summarise_check([*(exchange(10.0 + i, 2.0, good) for i in range(100)),
                           exchange(1.0, 0.0, Got(503))])  # fmt: skip
    assert row["p50_ms"] == pytest.approx(60.0)
    assert row["sent_p50_ms"] == pytest.approx(58.0)
    assert row["p99_ms"] == pytest.approx(109.0)
    assert (row["answered"], row["degraded"]) == (100, 100)
    with pytest.raises(ValueError, match="no reply with status 200"):
        summarise_check([])
