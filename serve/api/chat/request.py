"""What OpenAI's clients send, and how it maps to a fact, a deadline and a thinking budget.

| parameter | here |
|---|---|
| `messages` | those of the user are the fact; other roles are refused, a follow-up as well |
| `deadline_ms` | ours, as in /predict; send it as an extra field of the body |
| `max_completion_tokens`, `max_tokens` | bounds the thinking: the answer's 64 tokens come off it |
| `reasoning_effort` | bounds the thinking: none 0, minimal 16, low 32, medium 96 tokens |
| `response_format` | text (the answer grammar), json_object, or a json_schema of a verdict |
| `stream`, `stream_options.include_usage` | as there |
| no effect, named in a header | temperature, top_p, top_k, seed, penalties, user: `IGNORED` |
| refused, named as `param` | several choices, tools, log probabilities, stop words: `REFUSED` |

An answer of more tokens than were asked for is cut to nothing, with the finish reason "length".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curt.dialogue import MAX_ANSWER_TOKENS
from serve.api.chat.verdict_schema import SchemaError, check_schema
from serve.errors import openai_type
from serve.settings import MAX_DEADLINE_MS, MIN_DEADLINE_MS

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

EFFORT_TOKENS: Mapping[Effort, int | None] = {
    "none": 0, "minimal": 16, "low": 32, "medium": 96, "high": None, "xhigh": None, "max": None,
}  # fmt: skip

# Sampling parameters, which have no effect on greedy decoding, and bookkeeping.
IGNORED = frozenset(
    {"temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty",
     "repetition_penalty", "user",
     "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata",
     "service_tier", "parallel_tool_calls", "verbosity"}
)  # fmt: skip
# Each with its neutral values, which are accepted.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "stop": (None, "", []),
    "modalities": (None, [], ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
    "store": (None, False),
}


PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,39}")  # a name like this can't hold a word of a case


class ApiError(Exception):
    """An error in OpenAI's shape. `param` is a parameter's name, and never a client's text."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the reply."""
        error = {
            "message": self.message,
            "type": openai_type(self.status),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class ContentPart(BaseModel):
    """A part of a message; only text is read."""

    model_config = ConfigDict(frozen=True)
    type: str
    text: str | None = None


class Message(BaseModel):
    """A message of the conversation; fields beyond these are not read."""

    model_config = ConfigDict(frozen=True)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None


class JsonSchema(BaseModel):
    """A named JSON schema."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)
    name: str = ""
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(BaseModel):
    """How the verdict is written."""

    model_config = ConfigDict(frozen=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(BaseModel):
    """What a stream tells beside the answer."""

    model_config = ConfigDict(frozen=True)
    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`; see the module for what each parameter does."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",  # `ignored_parameters` looks at all other fields
        json_schema_extra={
            "examples": [
                {
                    "model": "curt",
                    "messages": [{"role": "user", "content": "被告人张某窃取他人现金8000元。"}],
                    "deadline_ms": 400,
                }
            ]
        },
    )

    model: str = Field(max_length=200)
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    reasoning_effort: Effort | None = None
    response_format: ResponseFormat | None = None
    deadline_ms: int | None = Field(None, ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS)


def ignored_parameters(body: ChatRequest) -> list[str]:
    """Names of the parameters sent that have no effect, for a header of the reply.

    Raises ApiError on parameters that are not supported or not known.
    """
    ignored = []
    for name, value in (body.model_extra or {}).items():
        if name in IGNORED:
            if value is not None:
                ignored.append(name)
        elif name not in REFUSED:
            known = ", ".join(ChatRequest.model_fields)
            raise ApiError(
                400,
                "unknown_parameter",
                f"an unknown parameter: this server takes {known}",
                param=name if PARAMETER.fullmatch(name) else None,
            )
        elif not any(type(value) is type(idle) and value == idle for idle in REFUSED[name]):
            raise ApiError(
                400,
                "unsupported_parameter",
                f"{name} is not supported: the answer is one verdict, in text; leave it out",
                param=name,
            )
    return sorted(ignored)


def fact_of(body: ChatRequest) -> str:
    """The text of the user's messages. Raises ApiError where there is none, or anything else.

    The model judges facts and follows no instructions: a message that it can't heed is refused
    rather than dropped, and a question about an earlier answer rather than judged as a case.
    """
    roles = {message.role for message in body.messages}
    if "assistant" in roles:
        raise _wrong_messages(
            "follow_up", "a follow-up can't be answered: send the facts of one case by themselves"
        )
    if roles - {"user"}:
        raise _wrong_messages(
            "unsupported_role", "no instructions are followed: send messages of the user alone"
        )
    return "\n".join(_text_of(message) for message in body.messages)


def _text_of(message: Message) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if any(part.type != "text" or part.text is None for part in message.content):
        raise _wrong_messages(
            "unsupported_content", "only text can be read: send the facts as text"
        )
    return "\n".join(part.text or "" for part in message.content)


def _wrong_messages(code: str, message: str) -> ApiError:
    return ApiError(400, code, message, param="messages")


def most_tokens(body: ChatRequest) -> int | None:
    """The most tokens that reasoning and answer may have together; None for any number."""
    given = [each for each in (body.max_completion_tokens, body.max_tokens) if each is not None]
    return min(given, default=None)


def thinking_bound(body: ChatRequest, model_max_tokens: int) -> int | None:
    """The most thinking tokens that the request allows; None where that bounds nothing.

    `model_max_tokens` is the most the model ever thinks.
    """
    bounds = [] if body.reasoning_effort is None else [EFFORT_TOKENS[body.reasoning_effort]]
    most = most_tokens(body)
    if most is not None:
        bounds.append(max(0, most - MAX_ANSWER_TOKENS))
    tightest = min((bound for bound in bounds if bound is not None), default=model_max_tokens)
    return None if tightest >= model_max_tokens else tightest


def schema_of(body: ChatRequest) -> dict[str, Any] | None:
    """The JSON schema to answer in: {} where any JSON will do, None where text is wanted.

    Raises ApiError on a schema that verdicts don't fit.
    """
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {}
    if wanted.json_schema is None:
        raise ApiError(400, "invalid_schema", "json_schema is missing", param="response_format")
    try:
        check_schema(wanted.json_schema.schema_)
    except SchemaError as error:
        raise ApiError(400, "invalid_schema", str(error), param="response_format") from None
    return wanted.json_schema.schema_
