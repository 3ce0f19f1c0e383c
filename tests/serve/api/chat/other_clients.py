"""What LangChain's and LiteLLM's clients make of a server, as JSON: client → call → outcome.

    .venv-clients/bin/python tests/serve/api/chat/other_clients.py URL < {"fact": …, "schema": …}

The header X-Call tells the server which call a request is of. `make clients-env` installs the
clients; LiteLLM's health check imports fastapi.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import litellm
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

PINGS = "Hey how's it going?", "What's 1 + 1?"  # LiteLLM's proxy sends one of these
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stream": {"stream": True},
    "top_k": {"extra_body": {"top_k": 5}},
    "json_object": {"response_format": {"type": "json_object"}},
    "ping": {"text": PINGS[0], "max_tokens": 5},
    "n": {"n": 2},
    "stop": {"stop": ["。"]},
    "logprobs": {"logprobs": True},
    "tools": {"tools": [TOOL]},
    # The test's pool fails by the deadline.
    "too_short": {"extra_body": {"deadline_ms": 100}},
    "overloaded": {"extra_body": {"deadline_ms": 200}},
    "broken": {"extra_body": {"deadline_ms": 300}},
    "broken_stream": {"extra_body": {"deadline_ms": 500}, "stream": True},
}


class Ruling(BaseModel):
    charges: list[str]
    fine_yuan: int | None


def langchain_calls(url: str, fact: str, schema: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    def chat(call: str) -> ChatOpenAI:
        options = {"default_headers": {"X-Call": call}, "stream_usage": True}
        return ChatOpenAI(model="curt", base_url=url, api_key="none", **options)

    def ask(call: str, text: str = fact, stream: bool = False, **options: Any) -> Any:
        model = chat(call)
        chunks = list(model.stream(text, **options)) if stream else [model.invoke(text, **options)]
        message = chunks[0]
        for chunk in chunks[1:]:
            message += chunk
        refusal, usage = message.additional_kwargs.get("refusal"), message.usage_metadata
        tokens = [usage[f"{kind}_tokens"] for kind in ("input", "output", "total")]
        reasoning = usage["output_token_details"].get("reasoning")
        return {"content": message.content, "refusal": refusal, "usage": [*tokens, reasoning]}

    def structured(call: str, form: Any, text: str = fact, method: Any = "json_schema") -> Any:
        parsed = chat(call).with_structured_output(form, method=method).invoke(text)
        return parsed.model_dump() if isinstance(parsed, BaseModel) else parsed

    return {
        **{name: partial(ask, **options) for name, options in OPTIONS.items()},
        "pydantic": partial(structured, form=Ruling),
        "schema": partial(structured, form=schema),
        "structured_ping": partial(structured, form=Ruling, text=PINGS[0]),
        "function_calling": partial(structured, form=Ruling, method="function_calling"),
    }


def litellm_calls(url: str, fact: str, schema: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    server = {"model": "openai/curt", "api_base": url, "api_key": "none"}

    def request(call: str, text: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return {**server, "messages": messages, "extra_headers": {"X-Call": call}}

    def ask(call: str, text: str = fact, stream: bool = False, **options: Any) -> Any:
        options |= {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        completion = litellm.completion(**request(call, text), **options)
        if stream:
            completion = litellm.stream_chunk_builder(list(completion))
        message, usage = completion.choices[0].message, completion.usage
        refusal, details = getattr(message, "refusal", None), usage.completion_tokens_details
        tokens = [usage.prompt_tokens, usage.completion_tokens, usage.total_tokens]
        told = {"content": message.content, "refusal": refusal}
        return told | {"usage": [*tokens, getattr(details, "reasoning_tokens", None)]}

    def structured(call: str, form: Any) -> Any:
        return json.loads(ask(call, response_format=form)["content"])

    def health(call: str, text: str) -> Any:
        return asyncio.run(litellm.ahealth_check(request(call, text) | {"max_tokens": 16}, "chat"))

    named = {"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}}
    return {
        **{name: partial(ask, **options) for name, options in OPTIONS.items()},
        "pydantic": partial(structured, form=Ruling),
        "schema": partial(structured, form=named),
        **{f"health_{i}": partial(health, text=text) for i, text in enumerate(PINGS)},
    }


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:
        param = getattr(error, "param", None)
        return {"raised": type(error).__name__, "param": param, "text": str(error)}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    litellm.suppress_debug_info = True  # it prints
    outcomes = {
        client: {
            name: outcome(partial(call, f"{client} {name}"))
            for name, call in make(sys.argv[1], **asked).items()
        }
        for client, make in {"langchain": langchain_calls, "litellm": litellm_calls}.items()
    }
    json.dump(outcomes, sys.stdout, default=repr)
