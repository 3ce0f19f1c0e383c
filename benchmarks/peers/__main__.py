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
import contextlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import fmean, median
from typing import Any

from benchmarks.client import Exchange, ask, new_run, send_in_turn, send_on_time
from benchmarks.peers.catalogue import (
    COMPLETIONS,
    PLACES,
    PeersConfig,
    Setting,
    curt_setting,
    peer_settings,
)
from benchmarks.peers.judging import (
    JudgedReply,
    Turn,
    compare,
    judge,
    keeps_accuracy,
    raw_rows,
    summarise,
    summarise_server,
)
from benchmarks.run import (
    EXPECTED,
    StartError,
    describe_machine,
    end_servers_when_told,
    write_results,
)
from curt.artifact import load_manifest
from curt.classifier.candidates import load_prompts
from curt.config import run
from curt.corpus.store import read_cases
from curt.engines.tokenizer import PromptTokenizer
from loadtest._arrivals import arrival_times_s, number_fact
from loadtest._http import HttpClient
from loadtest.capacity._rates import SearchPlan, find_highest

log = logging.getLogger(__name__)

EQUAL_WITHIN = 0.01  # of accuracy
SETTLE_S, SETTLED_MS = 20.0, 150.0
TUNING_CLIENTS = 8
MIN_STEP_S = 5.0
MAX_STEPS = 14  # of one search
LOWEST = 0.2  # of a search's first rate; further down nothing is worth the time


class Bench:
    """Runs a server at a time and asks it about the same cases in the same order as the others.

    Servers of completions get the prompt rendered, with the widest thinking budget that the model
    was trained on, so they reason as long as they like; this project's gets the bare facts.
    """

    def __init__(self, config: PeersConfig) -> None:
        """Reads cases and tokenizer. Raises ArtifactError or ValueError on unusable ones."""
        self.config = config
        self._manifest = load_manifest(config.model, expect="hf")
        self.cases = list(read_cases(config.cases, config.accuracy_cases))
        if not self.cases:
            raise ValueError(f"{config.cases} holds no case")
        self._tokenizer = PromptTokenizer(config.model)
        self._prompts = load_prompts(config.model, self._tokenizer, self._manifest.max_fact_tokens)
        self._run = new_run()
        self._url = ""
        self.sent = 0  # so that no two requests of a run are the same

    @contextlib.contextmanager
    def serve(self, setting: Setting) -> Iterator[None]:
        """Run the server, warm. Raises StartError where it does not get there."""
        with setting.start() as server:
            self._url = server.url
            yield

    async def ask_in_turn(self, setting: Setting, count: int, clients: int) -> list[JudgedReply]:
        """So many requests by so many clients that wait."""
        first, bodies = self.take(setting, count)
        client = self._client(setting, patience_s=30.0)
        return self.judge(await send_in_turn(client, bodies, clients), first)

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
        offsets_s = islice(arrival_times_s(rate, seed), len(bodies))
        client = self._client(setting)
        exchanges = await send_on_time(client, offsets_s, bodies.__getitem__, is_lost)
        return self.judge(exchanges, first)

    async def _settle(self, setting: Setting) -> None:
        """Wait until what an earlier step left behind is done, and a few requests are quick."""
        client = self._client(setting, patience_s=SETTLE_S)
        started, quick = time.monotonic(), 0
        while quick < 4 and time.monotonic() - started < SETTLE_S:
            _, bodies = self.take(setting, 1)
            exchange = await ask(client, bodies[0])
            is_quick = exchange.got.status == 200 and exchange.service_ms < SETTLED_MS
            quick = quick + 1 if is_quick else 0
        client.close()

    def _client(self, setting: Setting, **options: float) -> HttpClient:
        return HttpClient(self._url, what=f"POST {setting.path}", **options)

    def take(self, setting: Setting, count: int) -> tuple[int, list[bytes]]:
        """The number of the first of so many new requests, and their bodies."""
        first, self.sent = self.sent, self.sent + count
        bodies = []
        for index in range(first, self.sent):
            fact = self.cases[index % len(self.cases)].fact[: self.config.chars]
            content = self._content(setting, number_fact(fact, self._run, index))
            bodies.append(json.dumps(content | dict(setting.extra), ensure_ascii=False).encode())
        return first, bodies

    def _content(self, setting: Setting, fact: str) -> dict[str, Any]:
        if setting.path != COMPLETIONS:
            return {"fact": fact}
        return {"prompt": self._prompts.text(fact, self._manifest.max_thinking_tokens)}

    def judge(self, exchanges: Sequence[Exchange], first: int) -> list[JudgedReply]:
        """What replies to requests taken from `first` on were worth."""
        start_s = min((exchange.due_s for exchange in exchanges), default=0.0)
        judged = []
        for exchange in exchanges:
            case = (first + exchange.index) % len(self.cases)
            truth, slo_ms = self.cases[case].verdict, self.config.slo_ms
            judged.append(judge(exchange, case, truth, slo_ms, self._tokenizer, start_s))
        return judged


def work(config: PeersConfig) -> None:
    """Measure, write and draw."""
    from benchmarks.pictures import draw_peers

    end_servers_when_told()
    report, rows = asyncio.run(measure(config))
    write_results(config.report, report, rows=rows, picture=draw_peers(report, config.slo_ms))
    log.info("%s: %s", config.report, json.dumps(report["summary"], ensure_ascii=False))


async def measure(config: PeersConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Tune, then rounds: the report and its raw rows. Raises ArtifactError on a bad folder."""
    for folder in (config.ort, *config.plain_ort):
        load_manifest(folder, expect="ort-genai")
    bench = Bench(config)
    tuning, chosen, failed = await tune(bench, peer_settings(config))
    accuracy: dict[str, dict[str, Any]] = {}
    expected = [0.0] * len(bench.cases)  # nothing is expected where there is no peer
    turns: dict[str, list[Turn]] = defaultdict(list)
    servers = [*chosen, curt_setting(config)]  # the last: its accuracy is held against the peers'
    for number in range(config.rounds):
        shift = number % len(servers)
        for setting in servers[shift:] + servers[:shift]:
            try:
                with bench.serve(setting):
                    await bench.ask_in_turn(setting, 60, 2)  # warm
                    if setting.name not in accuracy:
                        accuracy[setting.name] = await find_accuracy(bench, setting)
                        known = [accuracy[p.name]["by_case"] for p in chosen if p.name in accuracy]
                        expected = [fmean(each) for each in zip(*known, strict=True)] or expected
                    earlier = turns[setting.name]
                    start = accuracy[setting.name]["start_per_s"]
                    turn = await take_turn(bench, setting, number, earlier, start, expected)
            except StartError as error:
                failed[f"{setting.name}: round {number + 1}"] = str(error)
                log.warning("%s", error)
                continue
            turns[setting.name].append(turn)
            log.info("%-28s round %d: %.1f/s", setting.name, number + 1, turn.highest_per_s)
    rows = {
        setting.name: summarise_server(setting, own, accuracy[setting.name], expected)
        for setting in servers
        if (own := turns[setting.name])
    }
    report = {
        "settings": config.model_dump(mode="json", exclude=PLACES | {"report"}),
        "machine": describe_machine(),
        "summary": compare(rows),
        "servers": rows,
        "tuning": tuning,
        "failed": failed,
    }
    return report, raw_rows(turns)


async def tune(
    bench: Bench, tried: Mapping[str, Sequence[Setting]]
) -> tuple[dict[str, list[dict[str, Any]]], list[Setting], dict[str, str]]:
    """Try every setting; what each did, the best of each peer, and why others are not there."""
    tuning: dict[str, list[dict[str, Any]]] = {}
    chosen, failed = [], {}
    for name, settings in tried.items():
        rows: list[tuple[tuple[float, float], Setting]] = []
        tuning[name] = []
        for setting in settings:
            try:
                with bench.serve(setting):
                    await bench.ask_in_turn(setting, 2 * TUNING_CLIENTS, TUNING_CLIENTS)
                    replies, every = await ask_many(bench, setting)
            except StartError as error:
                failed[f"{name}: {setting.label}"] = str(error)
                log.warning("%s", error)
                continue
            good = every * fmean(reply.miss is None for reply in replies)
            rows.append(((good, every), setting))  # the latter where none is ever in time
            tuning[name].append(
                setting.describe()
                | {"good_answers_per_s": round(good, 2), "answers_per_s": round(every, 2)}
            )
            log.info("%-28s %-52s %6.1f/s", name, setting.label, good)
        if rows:
            chosen.append(max(rows, key=lambda row: row[0])[1])
    return tuning, chosen, failed


async def ask_many(bench: Bench, setting: Setting) -> tuple[list[JudgedReply], float]:
    """Replies to several clients at once, and how many came a second."""
    started = time.monotonic()
    replies = await bench.ask_in_turn(setting, bench.config.tuning_requests, TUNING_CLIENTS)
    return replies, len(replies) / (time.monotonic() - started)


async def find_accuracy(bench: Bench, setting: Setting) -> dict[str, Any]:
    """What a server without load answers to every case once, and a rate to begin a search at."""
    cases = len(bench.cases)
    await bench.ask_in_turn(setting, -bench.sent % cases, 2)  # begin with the first case
    replies = await bench.ask_in_turn(setting, cases, 2)
    by_case = {reply.case: float(reply.exact) for reply in replies}
    _, per_s = await ask_many(bench, setting)
    return {
        "exact": fmean(reply.exact for reply in replies),
        "cases": len(replies),
        "without_verdict": sum(reply.miss not in (None, "late") for reply in replies),
        "thinking_tokens": fmean(reply.thinking_tokens for reply in replies),
        "by_case": [by_case[case] for case in range(cases)],
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
    if setting.path != COMPLETIONS:
        equal = [before.equal_highest_per_s for before in earlier if before.equal_highest_per_s]
        begin = median(equal) if equal else turn.highest_per_s or start
        turn.equal_highest_per_s = await search(keeps_both, begin)
    return turn


if __name__ == "__main__":
    run(PeersConfig, work, expected=EXPECTED)
