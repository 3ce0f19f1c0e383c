"""The comparison with peers: its search, its yardstick, its client, its servers' plumbing."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers import server
from benchmarks.peers.catalogue import Places, Setting, curt_settings, peer_settings
from benchmarks.peers.client import Client, Reply, send_in_turn, send_on_schedule
from benchmarks.peers.cross_check import summarise as summarise_check
from benchmarks.peers.engines import Continuous, Sequence
from benchmarks.peers.judging import (
    Bodies,
    Outcome,
    accuracy_change,
    answer_of,
    judge,
    keeps_accuracy,
    summarise,
)
from benchmarks.peers.plot import draw_peers
from benchmarks.peers.profile import phases, rank
from benchmarks.peers.report import Turn, compare, raw_rows
from benchmarks.peers.running import Hall, StartError, run_server
from benchmarks.peers.search import find_highest
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


def outcome(latency_ms: float = 10, miss: str | None = None, **more: Any) -> Outcome:
    row = {"case": 0, "at_s": 0.0, "lag_ms": 0.1, "exact": miss is None, "thinking_tokens": 20}
    return Outcome(latency_ms=latency_ms, miss=miss, **(row | more))


def reply_of(content: object, latency_ms: float = 10, status: int = 200) -> Reply:
    return Reply(0, 0.0, status, latency_ms, 0.1, json.dumps(content).encode())


@given(limit=st.floats(1.0, 200.0), start=st.floats(1.0, 200.0), factor=st.floats(1.05, 2.0))
def test_the_search_ends_just_below_the_limit(limit: float, start: float, factor: float) -> None:
    tried: list[float] = []

    async def keeps(rate: float) -> bool:
        tried.append(rate)
        return rate <= limit

    found = asyncio.run(find_highest(keeps, start, factor=factor, precision=0.06))
    assert found == max((rate for rate in tried if rate <= limit), default=0.0)
    if len(tried) < 14 and found:  # it stopped because it knew, not because it was tired
        assert limit < found * 1.0601 * 1.0001


def test_the_search_gives_up_far_below_its_start() -> None:
    async def keeps(rate: float) -> bool:
        return False

    assert asyncio.run(find_highest(keeps, 10.0)) == 0.0
    with pytest.raises(ValueError, match="factor 1"):
        asyncio.run(find_highest(keeps, 10.0, factor=1))


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
        read = judge(reply_of(content), protocol, 3, TRUTH, 400, tokenizer)
        assert (read.miss, read.exact, read.case) == (None, True, 3), protocol
        assert read.thinking_tokens > 0
        late = judge(reply_of(content, 400.0), protocol, 3, TRUTH, 400, tokenizer)
        assert (late.miss, late.exact) == ("late", True)
    degraded = judge(reply_of(predict | {"degraded": True}), "predict", 0, TRUTH, 400, tokenizer)
    assert degraded.miss == "degraded"
    unread = judge(
        reply_of({"choices": [{"text": "8个月"}]}), "completions", 0, TRUTH, 400, tokenizer
    )
    assert (unread.miss, unread.exact) == ("unreadable", False)
    assert judge(reply_of({}, status=503), "chat", 0, TRUTH, 400, tokenizer).miss == "status 503"
    assert judge(reply_of({}, status=0), "chat", 0, TRUTH, 400, tokenizer).miss == "no reply"


def test_an_answer_is_found_where_the_end_of_thinking_was_left_out() -> None:
    assert answer_of(f"5+3=8</think>{ANSWER}") == ANSWER
    assert answer_of(f"5+3=8{ANSWER}") == ANSWER
    assert answer_of("5+3=8") == ""


def test_a_miss_counts_as_an_infinite_latency() -> None:
    good = [outcome(float(ms)) for ms in range(200)]
    assert summarise(good, 10)["p99_ms"] == 198.0
    spoilt = [*good[:197], *[outcome(5, "degraded")] * 3]
    row = summarise(spoilt, 10)
    assert row["p99_ms"] is None
    assert row["misses"] == {"degraded": 3}
    with pytest.raises(ValueError, match="nothing was sent"):
        summarise([], 10)


def test_accuracy_is_compared_case_by_case() -> None:
    easy, hard = outcome(exact=True, case=0), outcome(exact=False, case=1)
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


def test_raw_rows_are_whole_and_the_same_each_time() -> None:
    turn = Turn(0, {5.0: [outcome(), outcome(miss="late")]})
    packed = raw_rows({"curt": [turn]})
    assert packed == raw_rows({"curt": [turn]})
    assert gzip.decompress(packed).decode().splitlines()[2].split(",")[7] == "late"


@asynccontextmanager
async def echo(delay_s: float) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(
                    int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                )
                await asyncio.sleep(delay_s)
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode())
                writer.write(body)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await asyncio.sleep(0.05)


BODIES = [str(i).encode() for i in range(60)]


# The stand-in server's streams end with the loop.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_every_request_gets_its_own_reply_or_the_step_ends_early() -> None:
    async def go() -> None:
        async with echo(0.02) as url:
            client = Client(url, "/")
            replies = await send_on_schedule(client, BODIES, 200.0, seed=1)
            assert {(r.index, r.body) for r in replies} == set(enumerate(BODIES))
            assert all(r.status == 200 and r.latency_ms >= 20 for r in replies)
            in_turn = await send_in_turn(client, BODIES[:10], 3)
            assert {(r.index, r.body) for r in in_turn} == set(enumerate(BODIES[:10]))
            few = await send_on_schedule(client, BODIES, 200.0, 1, lambda seen: len(seen) > 3)
            assert 3 < len(few) < 60
            client.close()

    asyncio.run(go())


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    dying = (sys.executable, "-c", "raise SystemExit('no such weights')")
    with (
        pytest.raises(StartError, match="no such weights"),
        run_server(Setting("p", "one", "m", dying, 8172)),
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
    with Hall() as hall:
        with hall.run(setting) as first:
            assert state_of(first.pid) in "RS"
            with pytest.raises(StartError, match="is taken"), run_server(setting):
                pass
        if slow:
            end_s = time.monotonic() + 5
            while state_of(first.pid) != "T":  # it stops when it next runs
                assert time.monotonic() < end_s
                time.sleep(0.01)
        else:
            assert first.returncode is not None
        with hall.run(setting) as second:
            assert (second.pid == first.pid) == slow
            client = Client(setting.url, "/")
            assert asyncio.run(client.ask(b""))[0] == 501  # it knows no POST, but it answers
    assert second.returncode is not None


class Counting(Continuous):
    """Writes 1, 2, 3, ... to every sequence; fails where a prompt holds -1."""

    def __init__(self) -> None:
        self.running: list[Sequence] = []
        self.most = 0
        super().__init__(4)

    def begin(self, sequence: Sequence) -> None:
        self.running.append(sequence)

    def step(self) -> list[Sequence]:
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


def test_a_profile_ranks_functions_and_phases() -> None:
    ranked = rank(["main (a.py:1);work (b.py:2) 3", "main (a.py:9) 1"])
    assert ranked["own"] == {"work (b.py)": 0.75, "main (a.py)": 0.25}
    assert ranked["whole"]["main (a.py)"] == 1
    with pytest.raises(ValueError, match="no sample"):
        rank([])
    timings = {"queue": 1.0, "prefill": 2.0, "decode": 3.0, "total": 7.0}
    told = phases([reply_of({"timings_ms": timings}, 8.0), reply_of({}, 9.0, status=503)])
    assert (told["front"], told["network_and_client"]) == (1.0, 1.0)


def test_the_cross_check_counts_from_due_and_from_sending() -> None:
    replies = [Reply(i, 0.0, 200, 10.0 + i, 2.0, b'{"degraded":true}') for i in range(100)]
    row = summarise_check([*replies, Reply(0, 0.0, 503, 1.0, 0.0, b"")])
    assert (row["p50_ms"], row["sent_p50_ms"], row["p99_ms"]) == (60.0, 58.0, 109.0)
    assert (row["answered"], row["degraded"]) == (100, 100)
    with pytest.raises(ValueError, match="no reply with status 200"):
        summarise_check([])
