"""The judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence

import openai

from train.judge.cache import ReplyCache
from train.judge.prompts import PROMPTS_VERSION, build_judge_messages, parse_grade, render_grade
from train.judge.protocol import Grade, JudgeUnavailableError, Question
from train.judge.settings import EndpointJudgeSettings

logger = logging.getLogger(__name__)

Messages = list[dict[str, str]]


class EndpointJudge:
    """Asks a model for grades, many at once.

    Questions that are the same are asked once, and grades are kept in the cache. Retries, their
    pauses and timeouts are the client library's. Raises ValueError when the key can't be sent.
    """

    def __init__(self, settings: EndpointJudgeSettings) -> None:
        read_api_key(settings.api_key_env)  # fail now, not at the first step
        self.settings = settings
        self.counts: Counter[str] = Counter()
        self._cache = ReplyCache(settings.cache) if settings.cache else None
        self._recent: deque[bool] = deque(maxlen=settings.failure_window)  # failed?

    def grade(self, questions: Sequence[Question]) -> list[Grade | None]:
        """One grade a question. Raises JudgeUnavailableError when too many of the newest fail."""
        keys, asked = [], {}
        for question in questions:
            messages = build_judge_messages(question)
            key = self._key(messages)
            keys.append(key)
            asked[key] = (question.task, messages)
        replies = self._cache.read(asked) if self._cache else {}
        missing = {key: messages for key, (_, messages) in asked.items() if key not in replies}
        self.counts["cached"] += len(replies)
        self.counts["asked"] += len(missing)
        fresh = asyncio.run(self._ask(missing)) if missing else {}
        grades = {
            key: parse_grade(reply, asked[key][0]) for key, reply in (replies | fresh).items()
        }
        for key in fresh:
            if grades[key] is None:
                self.counts["failed_reply"] += 1
        readable = {key: render_grade(grade) for key in fresh if (grade := grades[key]) is not None}
        if self._cache and readable:
            self._cache.write(readable)
        self._recent.extend(key not in readable for key in missing)
        self._check()
        return [grades.get(key) for key in keys]

    async def _ask(self, questions: Mapping[str, Messages]) -> dict[str, str]:
        """Replies by key; those that never came are counted and left out."""
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
        try:
            reply = await client.chat.completions.create(
                model=self.settings.model,
                messages=messages,
                temperature=0.0,
                max_tokens=self.settings.max_tokens,
            )
            content = reply.choices[0].message.content or ""
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
        raise JudgeUnavailableError(
            f"the judge {self.settings.model} failed on {share:.0%} of the last {len(recent)} "
            f"questions ({', '.join(f'{k} {v}' for k, v in reasons.most_common())}): look at "
            f"{self.settings.base_url}, then run the same command again"
        )

    def _key(self, messages: Messages) -> str:
        text = json.dumps([self.settings.model, PROMPTS_VERSION, messages], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def read_api_key(variable: str) -> str:
    """The key in an environment variable, "none" when it is unset.

    Raises ValueError for a key that no HTTP header can carry: left to the client library, its
    text would end up in the message of a connection error.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable} holds characters that no key has: set it again")
    return key or "none"
