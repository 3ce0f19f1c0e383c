"""Ask an OpenAI-compatible endpoint many chat questions at once; cache replies, count failures.

Equal questions are asked once. Replies that could be read are kept in an SQLite file, so that a
stopped run continues where it was. Retries, pauses and timeouts are left to the client library.
Neither questions nor replies are logged; the cache holds replies, which may be personal data where
the questions are.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import openai

Messages = list[dict[str, str]]

_ROUNDS = 8  # requests a slot takes before what came is kept and failures are judged


class EndpointSettings(BaseModel):
    """How to reach a language model behind an OpenAI-compatible endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    """Up to and with /v1."""
    model: str
    """Name the endpoint serves the model under."""
    api_key_env: str = "CURT_ENDPOINT_API_KEY"
    """Environment variable that holds the key; endpoints without keys need none."""
    timeout_s: float = Field(60.0, gt=0)
    """For one request."""
    retries: int = Field(3, ge=0)
    """After timeouts, lost connections and statuses 408, 409, 429 and 5xx, with growing pauses or
    those the server asks for."""
    concurrency: int = Field(16, ge=1)
    """Requests under way at once."""
    cache: Path | None = None
    """SQLite file of replies, shared by runs."""
    max_tokens: int = Field(2048, ge=8)
    """Longest reply."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0 asks for the likeliest reply."""
    max_failed_share: float = Field(0.2, ge=0, lt=1)
    """Share of the newest questions that may fail before the run is stopped."""
    failure_window: int = Field(200, ge=4)
    """How many questions that share is taken over; judged once a quarter of it is filled."""


class EndpointUnavailableError(RuntimeError):
    """Too many of the newest questions failed."""


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, and how to read the reply.

    `read` gives the text to keep and return, or None where the reply is no answer; it also reads
    what the cache holds, so reading twice must change nothing.
    """

    messages: Messages
    read: Callable[[str], str | None]


class ChatEndpoint:
    """Asks questions, many at once.

    `version` names the wording of the prompts: another version asks anew. `whole` refuses a reply
    that was cut at `max_tokens`. `counts` holds "asked", "cached" and "failed_..." by reason.
    Raises ValueError when the key can't be sent.
    """

    def __init__(self, settings: EndpointSettings, version: str, *, whole: bool = False) -> None:
        read_api_key(settings.api_key_env)  # fail now, not at the first question
        self.settings = settings
        self.version = version
        self.whole = whole
        self.counts: Counter[str] = Counter()
        self._cache = ReplyCache(settings.cache) if settings.cache else None
        self._recent: deque[bool] = deque(maxlen=settings.failure_window)  # failed?

    def ask(self, questions: Sequence[Question]) -> list[str | None]:
        """What was read from the reply to each question, None where nothing could be.

        Must not be called inside a running event loop. Raises EndpointUnavailableError when too
        many of the newest questions fail; what was read until then is kept.
        """
        keys = [self._key(question.messages) for question in questions]
        asked = dict(zip(keys, questions, strict=True))
        found: dict[str, str] = {}
        for key, reply in (self._cache.read(asked) if self._cache else {}).items():
            if (text := asked[key].read(reply)) is not None:
                found[key] = text
        self.counts["cached"] += len(found)
        missing = [key for key in asked if key not in found]
        step = self.settings.concurrency * _ROUNDS
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            self.counts["asked"] += len(part)
            replies = asyncio.run(self._ask_all({key: asked[key].messages for key in part}))
            fresh = {}
            for key, reply in replies.items():
                if (text := asked[key].read(reply)) is None:
                    self.counts["failed_reply"] += 1
                else:
                    fresh[key] = text
            if self._cache and fresh:
                self._cache.write(fresh)
            found |= fresh
            self._recent.extend(key not in fresh for key in part)
            self._check()
        return [found.get(key) for key in keys]

    async def _ask_all(self, questions: Mapping[str, Messages]) -> dict[str, str]:
        """Replies by key; those that never came are counted and left out."""
        import openai

        settings = self.settings
        gate = asyncio.Semaphore(settings.concurrency)
        async with openai.AsyncOpenAI(
            base_url=settings.base_url,
            api_key=read_api_key(settings.api_key_env),
            timeout=settings.timeout_s,
            max_retries=settings.retries,
        ) as client:

            async def ask(key: str, messages: Messages) -> tuple[str, str | None]:
                async with gate:
                    return key, await self._ask_one(client, messages)

            replies = await asyncio.gather(*(ask(*item) for item in questions.items()))
        return {key: reply for key, reply in replies if reply is not None}

    async def _ask_one(self, client: openai.AsyncOpenAI, messages: Messages) -> str | None:
        import openai

        try:
            reply = await client.chat.completions.create(
                model=self.settings.model,
                messages=messages,  # type: ignore[arg-type]  # plain dicts are what goes out
                temperature=self.settings.temperature,
                max_tokens=self.settings.max_tokens,
            )
            choice = reply.choices[0]
            content: object = choice.message.content or ""
            if self.whole and choice.finish_reason == "length":
                self.counts["failed_cut"] += 1
                return None
            if isinstance(content, str):  # the library checks no types
                return content
            self.counts["failed_reply"] += 1
        except openai.APITimeoutError:
            self.counts["failed_timeout"] += 1
        except openai.APIConnectionError:
            self.counts["failed_connection"] += 1
        except openai.APIStatusError as error:
            self.counts[f"failed_status_{error.status_code}"] += 1
        except (openai.APIError, ValueError, RecursionError):  # a body that is no JSON
            self.counts["failed_reply"] += 1
        except (AttributeError, LookupError, TypeError):  # JSON that is no chat completion
            self.counts["failed_reply"] += 1
        return None

    def _check(self) -> None:
        recent = self._recent
        if len(recent) * 4 < self.settings.failure_window:
            return
        share = sum(recent) / len(recent)
        if share <= self.settings.max_failed_share:
            return
        reasons = Counter({k: v for k, v in self.counts.items() if k.startswith("failed_")})
        raise EndpointUnavailableError(
            f"{self.settings.model} failed on {share:.0%} of the last {len(recent)} questions "
            f"({', '.join(f'{k} {v}' for k, v in reasons.most_common())}): look at "
            f"{self.settings.base_url}, then run the same command again"
        )

    def _key(self, messages: Messages) -> str:
        parts: list[object] = [self.settings.model, self.version, messages]
        if self.settings.temperature:
            parts.append(self.settings.temperature)
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()


class ReplyCache:
    """A table from a question's hash to the reply, in one SQLite file.

    Each call opens its own connection: several processes may share the file, and the object can be
    sent to another process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")  # waits for other processes, a later lock may not
            connection.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
            )

    def read(self, keys: Iterable[str]) -> dict[str, str]:
        """Replies by key, of those that are there."""
        query = "SELECT key, reply FROM replies WHERE key IN (SELECT value FROM json_each(?))"
        with closing(self._connect()) as connection:
            return dict(connection.execute(query, [json.dumps(list(keys))]).fetchall())

    def write(self, replies: Mapping[str, str]) -> None:
        """Keep replies; one that is there already stays."""
        with closing(self._connect()) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO replies VALUES (?, ?)", replies.items())

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)  # seconds another writer may take


def read_api_key(variable: str) -> str:
    """The key in an environment variable, "none" when it is unset.

    Raises ValueError for a key that no HTTP header can carry: left to the client library, its
    text would end up in the message of a connection error.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable} holds characters that no key has: set it again")
    return key or "none"
