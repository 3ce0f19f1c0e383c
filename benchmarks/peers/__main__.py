"""This project's server beside what people would run instead: the highest rate each one keeps.

    python -m benchmarks.peers --peers_python .venv-peers/bin/python \
        --vllm .venv-vllm

Same machine, same weights, same prompts, same model of reasoning, so the same length: everybody is
asked greedily about the same cases, each under a number of its own so that no cache answers, and
everybody's reply is read by the same parser. A rate is kept when the 99th percentile of the time
from the scheduled instant of an open-loop Poisson arrival is below the limit; errors, refusals and
degraded or unreadable answers count as infinitely late. First each peer's settings are tried and
the best one kept; then servers take turns, one at a time on the machine, round after round. The
first round searches, the later ones start from where it ended.

This project's server shortens its reasoning under load, so its highest rate is given twice: with
whatever accuracy it has there, and with an accuracy at most one point below the peers' on the same
cases.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

from pydantic import Field

from benchmarks.client import Client, Exchange, ask, new_run, send_in_turn, send_on_time
from benchmarks.peers.catalogue import Places, Setting, curt_settings, peer_settings
from benchmarks.peers.judging import Bodies, JudgedReply, judge, keeps_accuracy, summarise
from benchmarks.peers.report import Turn, raw_rows, summarise_all
from benchmarks.peers.running import ServerRotation
from benchmarks.run import EXPECTED, StartError, end_servers_when_told, write_results
from curt.artifact import load_manifest
from curt.config import Config, run
from curt.corpus.store import read_cases
from curt.engines.tokenizer import PromptTokenizer
from loadtest._arrivals import arrival_times_s
from loadtest.capacity._rates import SearchPlan, find_highest

log = logging.getLogger(__name__)

PLACES = {  # of this machine, no part of a result
    "ort",
    "plain_ort",
    "fallback",
    "model",
    "work",
    "peers_python",
    "vllm",
    "cases",
    "report",
    "port",
}
EQUAL_WITHIN = 0.01  # of accuracy
SETTLE_S, SETTLED_MS = 20.0, 150.0
TUNING_CLIENTS = 8
MIN_STEP_S = 5.0
MAX_STEPS = 14  # of one search
LOWEST = 0.2  # of a search's first rate; further down nothing is worth the time


class PeersConfig(Config):
    """Settings of `python -m benchmarks.peers`."""

    model: Path = Path("artifacts/demo/grpo-default")
    """The Hugging Face model folder whose weights all run."""
    ort: Path = Path("artifacts/demo/ort-w8a8")
    """Its ONNX Runtime folder for this project's server."""
    plain_ort: list[Path] = [
        Path("artifacts/demo/ort-w8a8-plain"),
        Path("artifacts/demo/ort-int4-plain"),
    ]
    """Folders with logits as their only output, as onnxruntime-genai's own generator takes it; the
    first is the format that this project's server has."""
    fallback: Path | None = Path("artifacts/demo/fallback")
    """Classifier folder of this project's server."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """What to ask about."""
    work: Path = Path("artifacts/bench/peers")
    """Folder that keeps converted models for the next run."""
    peers_python: Path = Path(".venv-peers/bin/python")
    """Python of the environment with llama.cpp and OpenVINO; left out where it is not there."""
    vllm: Path = Path(".venv-vllm")
    """Environment with vLLM; left out where it is not there."""
    only: list[str] = []
    """Names of servers to measure; all when empty."""
    port: int = Field(8170, ge=1024, le=65535)
    """Port that the servers take in turn."""
    slo_ms: int = Field(400, ge=20)
    """Limit of the 99th percentile, and the deadline of this project's requests."""
    rounds: int = Field(3, ge=1)
    """Turns of every server."""
    step_requests: int = Field(150, ge=20)
    """Requests at one rate, at least, where `step_s` allows."""
    step_s: float = Field(15.0, gt=0)
    """The longest that one rate lasts."""
    accuracy_cases: int = Field(300, ge=1)
    """Cases that are asked about, and on which accuracy is measured."""
    tuning_requests: int = Field(200, ge=1)
    """Requests with which a setting is tried."""
    max_tokens: int = Field(192, ge=1)
    """Tokens that a completion may have: thinking and answer, far more than either takes."""
    chars: int = Field(300, ge=1)
    """Length that facts are cut to."""
    report: Path = Path("benchmarks/results/peers.json")
    """File of results; raw rows and a picture go beside it."""


class Bench:
    """Runs servers and asks them; everything that a measurement needs at hand."""

    def __init__(self, config: PeersConfig) -> None:
        """Reads cases and tokenizer. Raises ArtifactError or ValueError on unusable folders."""
        self.config = config
        manifest = load_manifest(config.model, expect="hf")
        for folder in (config.ort, *config.plain_ort):
            load_manifest(folder, expect="ort-genai")
        self.cases = list(read_cases(config.cases, config.accuracy_cases))
        if not self.cases:
            raise ValueError(f"{config.cases} holds no case")
        self.tokenizer = PromptTokenizer(config.model)
        self._bodies = Bodies(
            self.cases,
            self.tokenizer,
            manifest.max_fact_tokens,
            manifest.max_thinking_tokens,
            config.chars,
        )
        self._run = new_run()
        self.sent = 0  # so that no two requests of a run are the same

    def places(self) -> Places:
        """Where everything lies."""
        c = self.config
        return Places(
            c.model, c.ort, tuple(c.plain_ort), c.fallback, c.work, c.peers_python, c.vllm, c.port
        )

    async def ask_in_turn(self, setting: Setting, count: int, clients: int) -> list[JudgedReply]:
        """So many requests by so many clients that wait."""
        first, bodies = self.take(setting, count)
        client = Client(setting.url, 30.0, f"POST {setting.path}")
        return self.judge(setting, await send_in_turn(client, bodies, clients), first)

    async def ask_at(self, setting: Setting, rate: float, seed: int) -> list[JudgedReply]:
        """A step of open-loop arrivals; cut short once it is lost."""
        slo_ms = self.config.slo_ms
        seconds = min(self.config.step_s, max(MIN_STEP_S, self.config.step_requests / rate))
        first, bodies = self.take(setting, max(20, round(rate * seconds)))
        allowed = len(bodies) // 100

        def is_lost(exchanges: Sequence[Exchange]) -> bool:
            bad = sum(e.got.status != 200 or e.latency_ms >= slo_ms for e in exchanges)
            return bad > 2 * allowed + 10

        await self._settle(setting)
        client = Client(setting.url, what=f"POST {setting.path}")
        offsets_s = islice(arrival_times_s(rate, seed), len(bodies))
        exchanges = await send_on_time(client, offsets_s, bodies.__getitem__, is_lost)
        return self.judge(setting, exchanges, first)

    async def _settle(self, setting: Setting) -> None:
        """Wait until what an earlier step left behind is done, and a few requests are quick."""
        client = Client(setting.url, SETTLE_S, f"POST {setting.path}")
        started, quick = time.monotonic(), 0
        while quick < 4 and time.monotonic() - started < SETTLE_S:
            _, bodies = self.take(setting, 1)
            exchange = await ask(client, bodies[0])
            is_quick = exchange.got.status == 200 and exchange.service_ms < SETTLED_MS
            quick = quick + 1 if is_quick else 0
        client.close()

    def take(self, setting: Setting, count: int) -> tuple[int, list[bytes]]:
        """The number of the first of so many new requests, and their bodies."""
        first, self.sent = self.sent, self.sent + count
        return first, self._bodies.make(setting, self._run, first, count)

    def judge(
        self, setting: Setting, exchanges: Sequence[Exchange], first: int
    ) -> list[JudgedReply]:
        """What replies to requests taken from `first` on were worth."""
        start_s = min((exchange.due_s for exchange in exchanges), default=0.0)
        judged = []
        for exchange in exchanges:
            case = (first + exchange.index) % len(self.cases)
            truth, slo_ms = self.cases[case].verdict, self.config.slo_ms
            judged.append(
                judge(exchange, setting.protocol, case, truth, slo_ms, self.tokenizer, start_s)
            )
        return judged


def work(config: PeersConfig) -> None:
    """Measure, write and draw."""
    from benchmarks.peers.plot import draw_peers

    end_servers_when_told()
    with ServerRotation() as rotation:
        report, rows = asyncio.run(measure(config, rotation))
    write_results(config.report, report, rows=rows, picture=draw_peers(report, config.slo_ms))
    log.info("%s: %s", config.report, json.dumps(report["summary"], ensure_ascii=False))


async def measure(
    config: PeersConfig, rotation: ServerRotation
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tune, then rounds: the report and its raw rows."""
    bench = Bench(config)
    places = bench.places()
    ours = curt_settings(places, config.slo_ms)
    tried = {
        name: settings
        for name, settings in peer_settings(places, config.max_tokens).items()
        if not config.only or name in config.only
    }
    if config.only:
        ours = [setting for setting in ours if setting.name in config.only]
    tuning, chosen, failed = await tune(bench, rotation, tried)
    accuracy: dict[str, dict[str, Any]] = {}
    expected = [0.0] * len(bench.cases)  # nothing is expected where there is no peer
    turns: dict[str, list[Turn]] = defaultdict(list)
    servers = [*chosen, *ours]  # this project's last: its accuracy is held against the peers'
    for number in range(config.rounds):
        shift = number % len(servers)
        for setting in servers[shift:] + servers[:shift]:
            try:
                with rotation.run(setting):
                    await bench.ask_in_turn(setting, 60, 2)  # warm
                    if setting.name not in accuracy:
                        accuracy[setting.name] = await find_accuracy(bench, setting)
                        expected = expect(bench, chosen, accuracy)
                    earlier = turns[setting.name]
                    start = accuracy[setting.name]["start_per_s"]
                    turn = await take_turn(bench, setting, number, earlier, start, expected)
            except StartError as error:
                failed[f"{setting.name}: round {number + 1}"] = str(error)
                log.warning("%s", error)
                continue
            turns[setting.name].append(turn)
            log.info("%-28s round %d: %.1f/s", setting.name, number + 1, turn.highest_per_s)
    servers = [setting for setting in servers if turns[setting.name]]
    settings = config.model_dump(mode="json", exclude=PLACES)
    report = summarise_all(settings, servers, turns, accuracy, expected)
    return report | {"tuning": tuning, "failed": failed}, raw_rows(turns)


async def tune(
    bench: Bench, rotation: ServerRotation, tried: Mapping[str, Sequence[Setting]]
) -> tuple[dict[str, list[dict[str, Any]]], list[Setting], dict[str, str]]:
    """Try every setting; what each did, the best of each peer, and why others are not there."""
    tuning: dict[str, list[dict[str, Any]]] = {}
    chosen, failed = [], {}
    for name, settings in tried.items():
        rows: list[tuple[tuple[float, float], Setting]] = []
        tuning[name] = []
        for setting in settings:
            try:
                with rotation.run(setting):
                    await bench.ask_in_turn(setting, 2 * TUNING_CLIENTS, TUNING_CLIENTS)
                    started = time.monotonic()
                    replies = await bench.ask_in_turn(
                        setting, bench.config.tuning_requests, TUNING_CLIENTS
                    )
                    seconds = time.monotonic() - started
            except StartError as error:
                failed[f"{name}: {setting.label}"] = str(error)
                log.warning("%s", error)
                continue
            good = sum(o.miss is None for o in replies) / seconds
            every = len(replies) / seconds  # decides between those that are never in time
            rows.append(((good, every), setting))
            tuning[name].append(
                setting.describe()
                | {"good_answers_per_s": round(good, 2), "answers_per_s": round(every, 2)}
            )
            log.info("%-28s %-52s %6.1f/s", name, setting.label, good)
        if rows:
            chosen.append(max(rows, key=lambda row: row[0])[1])
    return tuning, chosen, failed


def expect(
    bench: Bench, peers: Sequence[Setting], accuracy: Mapping[str, Mapping[str, Any]]
) -> list[float]:
    """How many of the peers, as a share, are right about each case."""
    known = [accuracy[peer.name]["by_case"] for peer in peers if peer.name in accuracy]
    return [fmean(flags) for flags in zip(*known, strict=True)] or [0.0] * len(bench.cases)


async def find_accuracy(bench: Bench, setting: Setting) -> dict[str, Any]:
    """What a server without load answers to every case once, and a rate to begin a search at."""
    cases = len(bench.cases)
    await bench.ask_in_turn(setting, -bench.sent % cases, 2)  # begin with the first case
    replies = await bench.ask_in_turn(setting, cases, 2)
    by_case = {o.case: o.exact for o in replies}
    started = time.monotonic()
    loaded = await bench.ask_in_turn(setting, bench.config.tuning_requests, TUNING_CLIENTS)
    per_s = len(loaded) / (time.monotonic() - started)
    unread = sum(o.miss not in (None, "late") for o in replies)
    return {
        "exact": fmean(o.exact for o in replies),
        "cases": len(replies),
        "without_verdict": unread,
        "thinking_tokens": fmean(o.thinking_tokens for o in replies),
        "by_case": [float(by_case[case]) for case in range(cases)],
        "start_per_s": 0.7 * per_s,
    }


async def take_turn(
    bench: Bench,
    setting: Setting,
    number: int,
    earlier: Sequence[Turn],
    start: float,
    expected: Sequence[float],
) -> Turn:
    """One server's turn: the highest rate it keeps; this project's at equal accuracy too."""
    turn = Turn(number)

    async def replies_at(rate: float) -> list[JudgedReply]:
        rate = round(rate, 2)
        if rate not in turn.steps:
            turn.steps[rate] = await bench.ask_at(setting, rate, seed=1 + number)
            row = summarise(turn.steps[rate], rate)
            log.info("%s: %s", setting.name, json.dumps(row))
        return turn.steps[rate]

    async def keeps(rate: float) -> bool:
        p99 = summarise(await replies_at(rate), rate)["p99_ms"]
        return p99 is not None and p99 < bench.config.slo_ms

    async def keeps_both(rate: float) -> bool:
        kept = await keeps(rate)
        return kept and keeps_accuracy(await replies_at(rate), expected, EQUAL_WITHIN)

    found = [before.highest_per_s for before in earlier if before.highest_per_s]
    factor, precision = (1.1, 0.11) if found else (1.4, 0.06)

    async def search(keeps_rate: Callable[[float], Awaitable[bool]], begin: float) -> float:
        plan = SearchPlan(
            start_per_s=begin,
            factor=factor,
            precision=precision,
            min_per_s=LOWEST * begin,
            max_steps=MAX_STEPS,
        )
        return await find_highest(keeps_rate, plan)

    turn.highest_per_s = await search(keeps, median(found) if found else start)
    if setting.protocol != "completions":
        equal = [before.equal_highest_per_s for before in earlier if before.equal_highest_per_s]
        begin = median(equal) if equal else turn.highest_per_s or start
        turn.equal_highest_per_s = await search(keeps_both, begin)
    return turn


if __name__ == "__main__":
    run(PeersConfig, work, expected=EXPECTED)
