"""Engines of other people behind their OpenAI-compatible servers: vLLM and TensorRT-LLM.

The prompt is rendered and encoded here, with the model folder's own tokenizer, and sent as token
ids, so that every engine reads the same tokens and a fact can never spell a special one. Token ids
come back and are decoded here, too. `RemoteModel` is asynchronous, for a server's front;
`RemoteEngine` is the same behind `curt.engines.protocol.Engine`, for evaluation and benchmarks.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from curt.artifact import ArtifactError, load_manifest
from curt.dialogue import (
    THINK_END,
    answer_pattern,
    encode_prompt,
)
from curt.engines.protocol import Generation, Request, Step
from curt.engines.remote.course import Course, RemoteError, RemoteUnavailableError, Words
from curt.engines.remote.dialects import DIALECTS, DialectName
from curt.engines.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    pass

CONNECT_S = 2.0
PATIENCE_S = 600.0  # without a deadline: a first request may compile
HEALTH_S = 2.0
CONCURRENCY = 16
HINTS = {
    400: ": look at its log for what it does not know",
    401: ": give its key",
    404: ": give its root address, without /v1",
    422: ": look at its log for what it does not know",
}
GONE = frozenset({502, 503, 504})  # of a proxy whose server is away, or a server going down


class RemoteModel:
    """A model folder that a remote server has loaded. Use it within one event loop."""

    def __init__(
        self,
        folder: Path | str,
        url: str,
        dialect: DialectName,
        *,
        served_name: str | None = None,
        api_key: str | None = None,
        guided: bool = False,
    ) -> None:
        """Verify `folder`, the one that the server at `url` serves, and read its tokenizer.

        `url` is the server's root, http://host:port. `served_name` is what it calls the model, to
        be given where it serves several. `guided` holds answers to the grammar. Raises
        ArtifactError when the folder must not be used.
        """
        folder = Path(folder)
        self.dialect = DIALECTS[dialect]
        self.manifest = load_manifest(folder)
        if self.manifest.format not in self.dialect.formats:
            raise ArtifactError(
                f"{folder} holds {self.manifest.format}, but {dialect} loads "
                f"{' or '.join(self.dialect.formats)}"
            )
        self.tokenizer = PromptTokenizer(folder)
        self._context_tokens = _context_tokens(folder)
        self._eos_ids = _eos_ids(folder, self.tokenizer)
        self._close_id = _close_id(self.tokenizer)
        self._pattern = answer_pattern() if guided else None
        self._served_name = served_name
        self._words: Words | None = None
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {api_key}"} if api_key else None,
            timeout=httpx.Timeout(PATIENCE_S, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=256),
            trust_env=False,  # cases go to the server that was named, through no proxy
        )

    async def open(self) -> None:
        """Ask the server what it serves. Raises RemoteError, RemoteUnavailableError.

        Call it again once the server was away: it may have come back with another limit.
        """
        try:
            response = await self._client.get("/v1/models", timeout=HEALTH_S)
        except httpx.TransportError as error:
            raise RemoteUnavailableError(f"no connection ({type(error).__name__})") from None
        cards = _object((await _checked(response)).content).get("data", [])
        names = [str(card["id"]) for card in cards]
        wanted = self._served_name or (names[0] if len(names) == 1 else None)
        if wanted not in names:
            raise RemoteError(
                f"the server serves {', '.join(names)[:200] or 'nothing'}: name one of them"
            )
        room = cards[names.index(wanted)].get("max_model_len")
        if isinstance(room, int):  # vLLM tells, TensorRT-LLM does not
            self._context_tokens = min(self._context_tokens, room)
        self._words = Words(
            tokenizer=self.tokenizer,
            dialect=self.dialect,
            served_name=wanted,
            close_id=self._close_id,
            eos_ids=self._eos_ids,
            answer_pattern=self._pattern,
        )

    async def is_healthy(self) -> bool:
        """Whether the server answers its health check."""
        try:
            return (await self._client.get("/health", timeout=HEALTH_S)).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close all connections, which ends what the server still works on for them."""
        await self._client.aclose()

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, up to and with the opening of thinking."""
        limit = self.manifest.max_fact_tokens
        return encode_prompt(self.tokenizer, request.fact, request.stated_budget, limit)

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.tokenizer.encode(text))

    async def stream(
        self, request: Request, prompt: Sequence[int] | None = None
    ) -> AsyncGenerator[Step, None]:
        """Complete a request step by step; closing the generator aborts it at the server.

        `prompt` is `encode(request)`, where the caller has it already. Raises ValueError when
        prompt and answer can't fit the context, RemoteError when the server refuses,
        RemoteUnavailableError when it is not there.
        """
        if self._words is None:
            raise RuntimeError("open() the model first")
        prompt = self.encode(request) if prompt is None else prompt
        course = Course(
            request, self._words, prompt, request.fit_thinking(len(prompt), self._context_tokens)
        )
        while not course.finished:
            if _is_past(request.deadline_s):
                course.expire()
                break
            async with aclosing(self._choices(course.next_call(), request.deadline_s)) as choices:
                async for choice in choices:
                    for step in course.take(choice):
                        yield step
                    # After the server's last word the stream is read to its end, which keeps the
                    # connection; anything else is cut off here, which frees the server.
                    if course.call_over and choice.get("finish_reason") is None:
                        break
            if not course.call_over:  # no more came in time
                course.expire()
        yield Step("end", generation=course.generation())

    async def _choices(
        self, body: dict[str, Any], deadline_s: float | None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The streamed choices of one call, until the server or the deadline ends it."""
        try:
            async with asyncio.timeout(_seconds_until(deadline_s)):
                request = self._client.build_request("POST", "/v1/completions", json=body)
                response = await self._client.send(request, stream=True)
            async with aclosing(response):
                await _checked(response)
                async with aclosing(_events(response)) as events:
                    # events that have come already are read without a pause for the timeout
                    while not _is_past(deadline_s):
                        async with asyncio.timeout(_seconds_until(deadline_s)):
                            event = await anext(events, None)
                        if event is None:
                            return
                        if "error" in event:  # in the middle of a stream of status 200
                            raise RemoteError("the server failed while it generated")
                        for choice in event.get("choices") or []:
                            yield choice
        except TimeoutError:  # the deadline
            return
        except httpx.TimeoutException as error:
            raise RemoteUnavailableError(f"too slow ({type(error).__name__})") from None
        except httpx.TransportError as error:  # its text may quote what was sent
            raise RemoteUnavailableError(f"connection lost ({type(error).__name__})") from None


class RemoteEngine:
    """A `RemoteModel` as an engine: blocking, with an event loop of its own."""

    def __init__(
        self,
        folder: Path | str,
        url: str,
        dialect: DialectName,
        *,
        served_name: str | None = None,
        api_key: str | None = None,
        guided: bool = False,
        concurrency: int = CONCURRENCY,
    ) -> None:
        """As `RemoteModel`; `concurrency` is how many requests `generate` has under way at once.

        Raises RemoteError when the server is not there or serves something else.
        """
        if concurrency < 1:
            raise ValueError(f"{concurrency} requests at once: use 1 or more")
        self._model = RemoteModel(
            folder, url, dialect, served_name=served_name, api_key=api_key, guided=guided
        )
        self.manifest = self._model.manifest
        self.name: str = dialect
        self.tokenizer = self._model.tokenizer
        self._concurrency = concurrency
        self._loop = asyncio.new_event_loop()
        try:
            self._loop.run_until_complete(self._model.open())
        except RemoteError:
            self.close()
            raise

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Greedy completions, in order, several at once. Not to be called in a running loop."""

        async def run() -> list[Generation]:
            gate = asyncio.Semaphore(self._concurrency)

            async def one(request: Request) -> Generation:
                async with gate:
                    return await complete(self._model, request)

            tasks = [asyncio.ensure_future(one(request)) for request in requests]
            try:
                return await asyncio.gather(*tasks)
            except BaseException:
                for task in tasks:  # what goes on for a call that failed is worth nothing
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise

        return self._loop.run_until_complete(run())

    def encode(self, request: Request) -> list[int]:
        """The token ids of a request's prompt, up to and with the opening of thinking."""
        return self._model.encode(request)

    def stream(self, request: Request) -> Generator[Step, None, None]:
        """Complete a request step by step; closing the generator aborts it at the server."""
        steps = self._model.stream(request)
        try:
            while (step := self._loop.run_until_complete(anext(steps, None))) is not None:
                yield step
        finally:
            self._loop.run_until_complete(steps.aclose())

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._finish())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _finish(self) -> None:
        await self._model.close()
        # A stream that was cut off leaves generators of httpx behind, which the loop closes.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)


async def complete(model: RemoteModel, request: Request) -> Generation:
    """One generation from beginning to end."""
    async with aclosing(model.stream(request)) as steps:
        async for step in steps:
            if step.generation:
                return step.generation
    raise AssertionError("a stream ends with its generation")


async def _checked(response: httpx.Response) -> httpx.Response:
    """The response, if it is one. Its body is never quoted: servers repeat what they were sent."""
    if response.status_code == 200:
        return response
    message = f"the server answered {response.status_code} to {response.request.url.path}"
    if response.status_code in GONE:
        raise RemoteUnavailableError(message)
    raise RemoteError(message + HINTS.get(response.status_code, ""))


async def _events(response: httpx.Response) -> AsyncGenerator[dict[str, Any], None]:
    """The JSON objects of a stream of server-sent events, up to its [DONE].

    Raises RemoteUnavailableError when it breaks off before.
    """
    over = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            over = True  # the end of the body follows: reading it keeps the connection
        elif not over:
            yield _object(data)
    if not over:
        raise RemoteUnavailableError("the server broke off its answer")


def _object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        raise RemoteError("the server sent something that is no JSON") from None
    if not isinstance(value, dict):
        raise RemoteError("the server sent something that is no JSON object")
    return value


def _context_tokens(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config["max_position_embeddings"])


def _eos_ids(folder: Path, tokenizer: PromptTokenizer) -> list[int]:
    """The ends of a turn: the tokenizer's and those of generation_config.json."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    eos = settings.get("eos_token")
    ids = set(tokenizer.encode(eos["content"] if isinstance(eos, dict) else eos) if eos else [])
    generation = folder / "generation_config.json"
    if generation.is_file():  # Qwen's hub checkpoints list two
        listed = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
        ids |= set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if not ids:
        raise ArtifactError(f"{folder} names no end-of-turn token: export it with its tokenizer")
    return sorted(ids)


def _close_id(tokenizer: PromptTokenizer) -> int:
    ids = tokenizer.encode(THINK_END)
    if len(ids) != 1:
        raise ArtifactError(
            f"the tokenizer splits {THINK_END} into {len(ids)} tokens: add it as a special token "
            "and train again"
        )
    return ids[0]


def _seconds_until(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else deadline_s - time.monotonic()


def _is_past(deadline_s: float | None) -> bool:
    return deadline_s is not None and time.monotonic() >= deadline_s
