"""Both ends of the page for its tests: a scripted server behind it, a browser's tab before it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from sse_starlette import ServerSentEvent

from serve.api.page.page import build_page
from serve.api.reply import build_reply
from serve.served import Identity, Served
from serve.settings import Settings
from tests.serve.fake_pool import generation

FACT = "2021年6月8日，被告人陈某在某超市窃取手机一部，价值人民币4200元，次日投案，认罪认罚。"
ANSWER = "</think>罪名：盗窃\n法条：264\n刑期：有期徒刑15个月\n罚金：8000元"
CANDIDATES = (
    "参考：盗窃8抢夺1；264；8个月，6至10个月；"
    "后果4200元，500元一档5+2=7，罚1000；自首-20、退赔-10，×70%"
)
EXAMPLE: str = json.loads(
    re.search(r"const EXAMPLES = \[\s*(\".*?\"),\n", build_page()[0])[1]  # type: ignore[index]
)
"""What the page asks by itself when it opens."""
THOUGHTS = ["窃取4200元，", "起点5个月，自首，", "取15个月。"]


@dataclass
class Backend:
    """What the page talks to; a test sets how it answers and reads what was sent.

    The example that the page opens with has an answer of its own, or none, and is not noted.
    """

    reply: dict[str, Any]
    example: dict[str, Any] | None = None
    example_pause_s: float = 0.0
    streams: bool = True
    feedback: bool = True
    by_budget: list[dict[str, float]] | None = None
    error: tuple[int, dict[str, Any]] | None = None
    events: list[bytes] | None = None
    pause_s: float = 0.0
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    hung_up: bool = False

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/")
        async def page() -> HTMLResponse:
            document, policy = build_page()
            return HTMLResponse(document, headers={"Content-Security-Policy": policy})

        @app.get("/version")
        async def version() -> dict[str, Any]:
            return {"by_budget": self.by_budget} if self.by_budget else {}

        @app.post("/predict")
        async def predict(request: Request) -> Response:
            if (await request.json())["fact"] == EXAMPLE:
                await asyncio.sleep(self.example_pause_s)
                if self.example:
                    return JSONResponse(self.example)
                return JSONResponse({"error": {"code": "starting", "message": ""}}, 503)
            await self.note("/predict", request)
            if self.error:
                return JSONResponse(self.error[1], self.error[0], {"Retry-After": "2"})
            return JSONResponse(self.reply)

        @app.post("/predict/stream")
        async def stream(request: Request) -> Response:
            if not self.streams:
                return JSONResponse({"error": {"code": "not_found", "message": ""}}, 404)
            await self.note("/predict/stream", request)
            if self.error:
                return JSONResponse(self.error[1], self.error[0], {"Retry-After": "2"})
            return StreamingResponse(self.send(request), media_type="text/event-stream")

        @app.post("/feedback")
        async def feedback(request: Request) -> Response:
            if not self.feedback:
                return JSONResponse({"error": {"code": "not_found", "message": ""}}, 404)
            await self.note("/feedback", request)
            return JSONResponse({"status": "recorded"}, 201)

        @app.head("/feedback")
        async def probe() -> Response:
            return Response(status_code=405 if self.feedback else 404)

        return app

    async def note(self, path: str, request: Request) -> None:
        self.asked.append((path, await request.json()))
        self.keys.append(request.headers.get("authorization"))

    async def send(self, request: Request) -> AsyncIterator[bytes]:
        verdict = format_event("verdict", json.dumps(self.reply, ensure_ascii=False))
        thoughts = [format_event("reasoning", json.dumps({"text": text})) for text in THOUGHTS]
        try:
            for event in self.events or [b": begun\n\n", *thoughts, verdict]:
                yield event
                await asyncio.sleep(self.pause_s)
        except asyncio.CancelledError:
            self.hung_up = True
            raise


def format_event(name: str, data: str) -> bytes:
    """One event as it stands in a stream."""
    return ServerSentEvent(data, event=name, sep="\n").encode()


def reply(settings: Settings, **changes: Any) -> dict[str, Any]:
    made = generation("".join(THOUGHTS) + ANSWER, candidates=CANDIDATES)
    served = Served(made, 48, 32, 1.5)
    built = build_reply(
        served,
        fact=FACT,
        tasks=["charge", "article", "term", "ruling"],
        include_reasoning=True,
        identity=Identity.of(settings.model, settings.manifest()),
        request_id="request-7",
        deadline_ms=400,
        total_ms=31.0,
    )
    return json.loads(built.model_dump_json()) | changes


class Visitor:
    """A tab of the page, with what its scripts complained of."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**({"locale": "zh-CN"} | options))
        self.context.set_default_timeout(5_000)
        self.tab = self.context.new_page()
        self.faults: list[str] = []
        self.addresses: set[str] = set()
        self.tab.on("pageerror", lambda error: self.faults.append(str(error)))
        self.tab.on("request", lambda request: self.addresses.add(request.url))
        self.tab.on("console", self._hear)
        self.address = address
        self.tab.goto(address)

    def _hear(self, message: Any) -> None:
        # Chromium logs each reply of 400 and above; only the policy's complaints count here.
        if "Security Policy" in message.text:
            self.faults.append(message.text)

    def ask(self, fact: str = FACT) -> None:
        self.tab.fill("#fact", fact)
        self.tab.click("#go")

    def text(self, selector: str) -> str:
        return str(self.tab.inner_text(selector))

    def wait(self, selector: str, state: str = "visible") -> None:
        self.tab.wait_for_selector(selector, state=state)

    def leave(self) -> None:
        self.context.close()
        assert self.faults == []
        own = ("data:", "blob:", self.address)
        assert all(url.startswith(own) for url in self.addresses)
