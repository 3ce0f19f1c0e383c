"""Engines of other people behind their OpenAI-compatible servers: vLLM and TensorRT-LLM.

The prompt is rendered and encoded here, with the model folder's own tokenizer, and sent as token
ids, so that every engine reads the same tokens and a fact can never spell a special one. Token ids
come back and are decoded here, too.

A request makes two calls of `/v1/completions`: the thinking, stopped by its end token or its limit,
and the answer after a prompt that holds both and the end of thinking. The server's prefix cache
makes the second prefill short. So a limit is held exactly and on every server, whatever it knows of
thinking; the end of the turn can be forbidden to the thinking alone, and a grammar asked for the
answer alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx

from curt.artifact import ArtifactError, Format, load_manifest
from curt.classifier.candidates import load_prompts
from curt.dialogue import THINK_END, Prompt, answer_pattern
from curt.engines.protocol import Generation, GenerationStep, Request
from curt.engines.tokenizer import PromptTokenizer, read_context_tokens, read_eos_ids
from curt.engines.writing import Writing

CONNECT_S = 2.0
PATIENCE_S = 30.0  # between two bytes; a first request may compile for longer: ask again
HEALTH_S = 2.0
FORBID = -100.0  # the lowest bias OpenAI's interface has
HINTS = {
    400: ": look at its log for what it does not know",
    401: ": give its key",
    404: ": give its root address, without /v1",
    422: ": look at its log for what it does not know",
}
GONE = frozenset({502, 504})  # of a proxy whose server is away
BUSY = frozenset({429, 503})
UNHEARD_STEP_TOKENS = 8  # that come at once where nobody listens: each event costs the front time


class RemoteError(RuntimeError):
    """The server refused a request or sent what can't be used; never holds a word of a prompt."""


class RemoteUnavailableError(RemoteError):
    """The server can't be reached, or went away in the middle of a request."""


class RemoteBusyError(RemoteError):
    """The server has more to do than it takes; `retry_after_s` is when it wants to be asked."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RemoteModel:
    """A model folder that a remote server has loaded. Use it within one event loop.

    Its subclasses say how one kind of server is asked. All take token ids as the prompt of
    `/v1/completions`, `stop_token_ids`, and a `logit_bias` of at least -100 by token id.
    """

    is_remote: ClassVar = True
    serves: ClassVar = True
    name: ClassVar[str]
    formats: ClassVar[tuple[Format, ...]]
    """The model folders that such a server can load."""
    token_id_fields: ClassVar[Mapping[str, Any]]
    """The fields of a call that make the server send token ids."""
    step_field: ClassVar[str | None] = None
    """The field of a call that says how many tokens an event holds, where the server has one."""

    @staticmethod
    def guided_fields(pattern: str) -> dict[str, Any]:
        """The fields of a call that hold a text to a regular expression."""
        raise NotImplementedError

    def __init__(
        self,
        folder: Path | str,
        url: str,
        *,
        served_name: str | None = None,
        api_key: str | None = None,
        guided: bool = True,
    ) -> None:
        """Verify `folder`, the one that the server at `url` serves, and read its tokenizer.

        `url` is the server's root, http://host:port. `served_name` is what it calls the model, to
        be given where it serves several. `guided` holds answers to the grammar, but not to the
        charges of their line: a server compiles a pattern once. Raises ArtifactError when the
        folder must not be used.
        """
        folder = Path(folder)
        self.manifest = load_manifest(folder)
        if self.manifest.format not in self.formats:
            raise ArtifactError(
                f"{folder} holds {self.manifest.format}, but {self.name} loads "
                f"{' or '.join(self.formats)}"
            )
        self.tokenizer = PromptTokenizer(folder)
        self.prompts = load_prompts(folder, self.tokenizer, self.manifest.max_fact_tokens)
        self._context_tokens = read_context_tokens(folder)
        self._eos_ids = read_eos_ids(folder, self.tokenizer)
        self._close_id = self.tokenizer.single_id(THINK_END)
        self._is_guided = guided
        self._wanted_name = served_name
        self._served_name: str | None = None  # known once it is open
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
        wanted = self._wanted_name or (names[0] if len(names) == 1 else None)
        if wanted not in names:
            raise RemoteError(
                f"the server serves {', '.join(names)[:200] or 'nothing'}: name one of them"
            )
        room = cards[names.index(wanted)].get("max_model_len")
        if isinstance(room, int):  # vLLM tells, TensorRT-LLM does not
            self._context_tokens = min(self._context_tokens, room)
        self._served_name = wanted

    async def is_healthy(self) -> bool:
        """Whether the server answers its health check."""
        try:
            return (await self._client.get("/health", timeout=HEALTH_S)).status_code == 200
        except httpx.TransportError:
            return False

    async def close(self) -> None:
        """Close all connections, which ends what the server still works on for them."""
        await self._client.aclose()

    def encode(self, request: Request) -> Prompt:
        """A request's prompt, up to and with the opening of thinking."""
        return self.prompts.encode(request.fact, request.stated_budget, request.candidates)

    async def stream(
        self, request: Request, prompt: Prompt | None = None
    ) -> AsyncGenerator[GenerationStep, None]:
        """Complete a request step by step; closing the generator aborts it at the server.

        `prompt` is `encode(request)`, where the caller has it already. Raises ValueError when
        prompt and answer can't fit the context, RemoteError when the server refuses,
        RemoteBusyError when it has too much to do, RemoteUnavailableError when it is not there.
        """
        if self._served_name is None:
            raise RuntimeError("open() the model first")
        prompt = self.encode(request) if prompt is None else prompt
        writing = Writing(
            request,
            self.tokenizer,
            prompt=prompt,
            thinking_limit=request.fit_thinking(len(prompt), self._context_tokens),
            close_id=self._close_id,
            eos_ids=self._eos_ids,
        )
        started_s, prefill_s = time.monotonic(), 0.0
        while not writing.must_stop():
            called_s, first, over = time.monotonic(), True, False
            body = self._call_body(writing, prompt)
            async with aclosing(self._choices(body, request)) as choices:
                async for choice in choices:
                    ids, reason = self._read_choice(choice)
                    if first and (ids or reason):
                        first = False
                        prefill_s += time.monotonic() - called_s
                        yield GenerationStep("prefill")
                        if writing.thinking_limit == 0:
                            writing.close(cut=True)
                    for token in ids if not over else ():
                        step = writing.take(token)
                        if step:
                            yield step
                        over = writing.is_complete() or bool(step and step.phase == "close")
                        if over:
                            break
                    if reason and not over:
                        over = True
                        if writing.closed:
                            writing.finish = "stop" if reason == "stop" else "length"
                        else:  # a server may keep the token it stopped at to itself
                            yield writing.close(cut=reason == "length")
                    # After the server's last word the stream is read to its end, which keeps the
                    # connection; anything else is cut off here, which frees the server.
                    if over and reason is None:
                        break
            if not over:  # no more came in time
                writing.finish = "deadline"
        decode_s = time.monotonic() - started_s - prefill_s
        yield writing.end(prefill_s * 1e3, decode_s * 1e3)

    def _call_body(self, writing: Writing, prompt: Prompt) -> dict[str, Any]:
        """What to ask next: the thinking, or the answer once that is closed."""
        body = {
            "model": self._served_name,
            "stream": True,
            "temperature": 0.0,
            "top_k": 1,  # greedy, whatever generation_config.json would have
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "include_stop_str_in_output": False,
            **self.token_id_fields,
        }
        if self.step_field and not writing.request.tell_text:
            body[self.step_field] = UNHEARD_STEP_TOKENS
        if not writing.closed and writing.thinking_limit > 0:
            return body | {
                "prompt": prompt.ids,
                # One token more than the limit tells whether the model would have ended by itself.
                "max_tokens": writing.thinking_limit + 1,
                "stop_token_ids": [self._close_id],
                "logit_bias": {str(token): FORBID for token in self._eos_ids},
            }
        body |= {
            "prompt": [*prompt.ids, *writing.thinking, self._close_id],
            "max_tokens": writing.request.answer_limit,
            "stop_token_ids": self._eos_ids,
            "logit_bias": {str(self._close_id): FORBID},
        }
        if self._is_guided:
            body |= self.guided_fields(answer_pattern())
        return body

    def _read_choice(self, choice: Mapping[str, Any]) -> tuple[list[int], str | None]:
        """The token ids that a streamed choice brings, and why the call ends if it does.

        Raises RemoteError where it lacks token ids, RemoteUnavailableError where the server gave
        the request up.
        """
        ids, reason = choice.get("token_ids") or [], choice.get("finish_reason")
        if not ids and choice.get("text"):
            raise RemoteError(f"the server sends text without token ids: is it {self.name}?")
        if reason not in (None, "stop", "length"):
            raise RemoteUnavailableError(f"the server ended the request: {str(reason)[:20]}")
        return ids, reason

    async def _choices(
        self, body: dict[str, Any], request: Request
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The streamed choices of one call, until the server or the deadline ends it."""
        deadline_s = request.deadline_s
        headers = {"traceparent": request.traceparent} if request.traceparent else None
        try:
            async with asyncio.timeout(_seconds_until(deadline_s)):
                call = self._client.build_request(
                    "POST", "/v1/completions", json=body, headers=headers
                )
                response = await self._client.send(call, stream=True)
            async with aclosing(response):
                await _checked(response)
                async with aclosing(_events(response)) as events:
                    # events that have come already are read without a pause for the timeout
                    while deadline_s is None or time.monotonic() < deadline_s:
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


class VllmModel(RemoteModel):
    """A folder behind vLLM 0.31: `CompletionRequest` in its
    `vllm/entrypoints/openai/completion/protocol.py`."""

    name = "vllm"
    formats = ("hf",)
    token_id_fields: ClassVar = {"return_token_ids": True}
    # Releases without it ignore it. The first and the last event come at once all the same.
    step_field = "stream_interval"

    @staticmethod
    def guided_fields(pattern: str) -> dict[str, Any]:
        """The fields of a call that hold a text to a regular expression."""
        return {"structured_outputs": {"regex": pattern}}


class TensorRtLlmModel(RemoteModel):
    """A folder behind TensorRT-LLM: `CompletionRequest` in its `tensorrt_llm/serve/
    openai_protocol.py`, which refuses any field that it does not know."""

    name = "tensorrt-llm"
    formats = ("hf", "trtllm-hf")
    token_id_fields: ClassVar = {"detokenize": False}  # in place of the text, not beside it

    @staticmethod
    def guided_fields(pattern: str) -> dict[str, Any]:
        """The fields of a call that hold a text to a regular expression."""
        # Becomes GuidedDecodingParams(regex=...); the server needs `guided_decoding_backend:
        # xgrammar`.
        return {"response_format": {"type": "regex", "regex": pattern}}


async def complete(model: RemoteModel, request: Request) -> Generation:
    """One generation from beginning to end."""
    async with aclosing(model.stream(replace(request, tell_text=False))) as steps:
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
    if response.status_code in BUSY:
        wait = response.headers.get("retry-after", "")
        raise RemoteBusyError(message, float(wait) if wait.isdecimal() else 1.0)
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


def _seconds_until(deadline_s: float | None) -> float | None:
    return None if deadline_s is None else deadline_s - time.monotonic()
