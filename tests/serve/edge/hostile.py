"""Attack a running server with hostile requests and see that it is the same server afterwards.

    python -m tests.serve.edge.hostile --pid $(cat artifacts/demo/server.pid) \
        --log artifacts/demo/server.log --count 10000

Passes when no reply has a status from 500 up but 503, every whole request is answered, no error
and no log line quotes a case, known cases get the same verdicts before, in between and after, no
worker died, and the memory of the server and its workers has not grown.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from curt.config import Config, load_config
from curt.dialogue import state_budget
from curt.files import write_json
from curt.logs import configure_logging
from loadtest._arrivals import load_facts
from tests.serve.edge.hostile_bodies import MARK, Attack, attacks

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 10.0  # a deadline of at most 1 s, and a crowd before it
LINGER_S = 0.3  # how long the client of an unfinished request stays
CANARY_DEADLINE_MS = 10_000  # long enough for the full thinking budget, so verdicts repeat
CANARY_TRIES = 20
WARM_SHARE = 0.2  # of the attacks, before memory counts: caches and pools fill first
MEBIBYTE = 1 << 20


class HostileConfig(Config):
    """What to attack and how much."""

    url: str = "http://127.0.0.1:8000"
    """The server; only plain HTTP."""
    pid: int | None = None
    """Its process, whose memory and children are watched."""
    log: Path | None = None
    """Its log file, searched for text of the cases."""
    count: int = 10_000
    """Attacks."""
    seed: int = 1
    """Of the attacks."""
    at_once: int = 16
    """Connections at the same time."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """Genuine cases: to hide in, and to ask between attacks."""
    canaries: int = 8
    """Genuine cases asked before, after each tenth of the attacks, and at the end."""
    growth_mib: float = 32.0
    """Memory all processes together may gain after the first fifth of the attacks."""
    report: Path = Path("artifacts/hostile.json")
    """File of results."""


@dataclass(slots=True)
class Tally:
    """What came of the attacks."""

    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    seconds: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, attack: Attack, status: str, seconds: float, body: bytes) -> None:
        """Note one reply; `status` is a code, "closed" or "silence"."""
        self.statuses[attack.kind][status] += 1
        if status.isdigit():
            self.seconds.append(seconds)
        if status.startswith("5") and status != "503":
            self.faults.append(f"{attack.kind}: status {status}")
        if status == "silence" and attack.complete:
            self.faults.append(f"{attack.kind}: no answer in {ANSWER_TIMEOUT_S:.0f} s")
        if status not in ("200", "closed", "silence") and quotes_case(body):
            self.faults.append(f"{attack.kind}: status {status} quotes the case")


def quotes_case(text: bytes) -> bool:
    """Whether the mark of the hostile cases stands in a text, plain or escaped."""
    return MARK.encode() in text or json.dumps(MARK)[1:-1].encode() in text


def main() -> None:
    """Attack, write the results, and exit with status 1 when the server did not stand."""
    config = load_config(HostileConfig)
    configure_logging()
    try:
        results = asyncio.run(measure(config))
    except (ValueError, OSError, psutil.Error) as error:
        sys.exit(f"error: {error}")
    write_json(config.report, results)
    logger.info("%s: %s", config.report, "stood" if results["stood"] else results["faults"])
    sys.exit(0 if results["stood"] else 1)


async def measure(config: HostileConfig) -> dict[str, Any]:
    """Run the attacks; the results say whether the server stood, and what it answered."""
    host, port = _address(config.url)
    facts = load_facts(config.cases)
    asked = facts[: config.canaries]
    budget = await full_budget(host, port)
    before = [await verdict_of(host, port, fact, budget) for fact in asked]
    if not any(before):
        raise ValueError(f"{config.url} gives no verdict on genuine cases: is it ready?")
    tally = Tally()
    stream = islice(attacks(config.seed, facts), config.count)
    started_s = time.monotonic()
    parts = 10
    memory_mib: list[float] = []
    front_mib: list[float] = []
    changed = 0
    family = _family(config.pid)
    for part in range(parts):
        share = config.count * (part + 1) // parts - config.count * part // parts
        await storm(host, port, islice(stream, share), tally, config.at_once)
        now = [await verdict_of(host, port, fact, budget) for fact in asked]
        changed += sum(old != new for old, new in zip(before, now, strict=True))
        memory_mib.append(_memory_mib(_family(config.pid)))
        front_mib.append(_memory_mib([p for p in _family(config.pid) if p.pid == config.pid]))
        logger.info("%d%%: %.0f MiB, %d faults", 10 * part + 10, memory_mib[-1], len(tally.faults))
    warm = memory_mib[max(0, round(parts * WARM_SHARE) - 1)]
    growth_mib = memory_mib[-1] - warm
    leaked = _log_quotes(config.log)
    deaths = len(family - _family(config.pid))
    faults = sorted(Counter(tally.faults).items())
    stood = not (faults or changed or leaked or deaths or growth_mib > config.growth_mib)
    return {
        "stood": stood,
        "attacks": config.count,
        "seed": config.seed,
        "seconds": time.monotonic() - started_s,
        "statuses": dict(sum((Counter(c) for c in tally.statuses.values()), Counter[str]())),
        "by_kind": {kind: dict(counter) for kind, counter in sorted(tally.statuses.items())},
        "answer_seconds": _quantiles(tally.seconds),
        "faults": dict(faults),
        "worker_deaths": deaths,
        "canaries_asked": parts * len(asked),
        "canaries_changed": changed,
        "memory_mib": memory_mib,
        "front_memory_mib": front_mib,
        "memory_growth_mib": growth_mib,
        "log_lines_quoting_a_case": leaked,
    }


async def storm(host: str, port: int, stream: Iterator[Attack], tally: Tally, at_once: int) -> None:
    """Make all attacks of the stream, so many at a time."""

    async def work() -> None:
        for attack in stream:
            started_s = time.monotonic()
            status, body = await strike(host, port, attack)
            tally.add(attack, status, time.monotonic() - started_s, body)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def strike(host: str, port: int, attack: Attack) -> tuple[str, bytes]:
    """Make one attack: the status of the reply, "closed" or "silence", and the reply as it came."""
    patience_s = ANSWER_TIMEOUT_S if attack.complete else LINGER_S
    reader, writer = await asyncio.open_connection(host, port)
    try:
        try:
            for piece in attack.pieces:
                writer.write(piece)
                await writer.drain()
                if attack.pause_s:
                    await asyncio.sleep(attack.pause_s)
        except ConnectionError:
            pass  # refused while it was still being sent; the reply may be there all the same
        reply, ended = bytearray(), False
        try:
            async with asyncio.timeout(patience_s):
                while chunk := await reader.read(1 << 16):
                    reply += chunk
                ended = True
        except ConnectionError:
            ended = True
        except TimeoutError:
            pass
        while reply.startswith(b"HTTP/1.1 100 "):
            del reply[: reply.find(b"\r\n\r\n") + 4]
        words = bytes(reply).split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/"):
            return "closed" if ended else "silence", bytes(reply)
        return words[1].decode("latin-1"), bytes(reply)
    finally:
        writer.transport.abort()


async def verdict_of(host: str, port: int, fact: str, budget: int) -> Any:
    """The verdict on a genuine case reasoned on the full budget, or None where none comes.

    Asks again for a while after a storm: its arrivals still shorten everyone's budget, and another
    budget may give another verdict, rightly.
    """
    body = json.dumps({"fact": fact, "deadline_ms": CANARY_DEADLINE_MS}).encode()
    for _ in range(CANARY_TRIES):
        status, text = await _ask(host, port, "POST /predict", body)
        if status == "200":
            answer = json.loads(text)
            if answer["source"] == "model" and answer["thinking"]["stated_budget"] == budget:
                return answer["defendants"], answer["degraded_reason"], answer["thinking"]["tokens"]
        await asyncio.sleep(0.5)
    return None


async def full_budget(host: str, port: int) -> int:
    """The most thinking tokens the model was trained for, as the prompt states them."""
    status, text = await _ask(host, port, "GET /version", b"")
    if status != "200":
        raise ValueError(f"{host}:{port}/version answers {status}: is a Curt server there?")
    return state_budget(int(json.loads(text)["max_thinking_tokens"]))


async def _ask(host: str, port: int, what: str, body: bytes) -> tuple[str, bytes]:
    """Status and body of one well-behaved request."""
    head = (
        f"{what} HTTP/1.1\r\nHost: curt\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(head.encode() + body)
        async with asyncio.timeout(CANARY_DEADLINE_MS / 1e3 + 5):
            reply = await reader.read()
    finally:
        writer.transport.abort()
    first, _, rest = reply.partition(b"\r\n")
    return first.split(b" ")[1].decode(), rest.partition(b"\r\n\r\n")[2]


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"{url} is no plain HTTP address: use http://host:port")
    return parts.hostname, parts.port or 80


def _family(pid: int | None) -> set[psutil.Process]:
    """The server and its children; a worker that was replaced is another process."""
    if pid is None:
        return set()
    process = psutil.Process(pid)
    return {process, *process.children(recursive=True)}


def _memory_mib(family: Iterable[psutil.Process]) -> float:
    return sum(member.memory_info().rss for member in family) / MEBIBYTE


def _log_quotes(log: Path | None) -> int:
    if log is None:
        return 0
    with open(log, "rb") as file:
        return sum(quotes_case(line) for line in file)


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        name: ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
    }


if __name__ == "__main__":
    main()
