"""Neighbours for tests of the routes: a pool that answers every job alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from curt.classifier.model import Findings
from curt.engines.protocol import Generation
from serve.pool.job import Job, Piece
from serve.served import Served


def generation(text: str, **changes: object) -> Generation:
    values: dict[str, object] = {
        "text": text, "prompt_tokens": 60, "thinking_tokens": 3, "answer_tokens": 20,
        "thinking_cut": False, "finish": "stop", "prefill_ms": 5.0, "decode_ms": 20.0,
    }  # fmt: skip
    return Generation(**(values | changes))  # type: ignore[arg-type]


@dataclass
class FakeStream:
    """Tells what it was given."""

    events: list[Piece | Served]
    told: Callable[[Served], None] = lambda _: None

    def on_end(self, callback: Callable[[Served], None]) -> None:
        self.told = callback

    def __aiter__(self) -> FakeStream:
        return self

    async def __anext__(self) -> Piece | Served:
        if not self.events:
            raise StopAsyncIteration
        event = self.events.pop(0)
        if isinstance(event, Served):
            self.told(event)
        return event

    def close(self) -> None:
        self.events.clear()


@dataclass
class FakePool:
    """Answers every job with one generation, or raises."""

    answer: Generation | Exception
    ready: bool = True
    jobs: list[Job] = field(default_factory=list)
    findings: Findings | None = None

    async def start(self) -> None:
        return

    def drain(self) -> None:
        self.ready = False

    async def stop(self) -> None:
        self.drain()

    async def submit(self, job: Job) -> Served:
        self.jobs.append(job)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Served(self.answer, 48, 48, 1.5, findings=self.findings)

    def stream(self, job: Job) -> FakeStream:
        self.jobs.append(job)
        if isinstance(self.answer, Exception):
            raise self.answer
        return FakeStream([Piece("推理", 1), Served(self.answer, 48, 48, 1.5)])

    def expected_thinking(self, job: Job) -> int | None:
        return 48
