"""A completions server over one of `engines`, as a team would write it in an afternoon.

    python -m benchmarks.peers.server --library onnxruntime-genai --model FOLDER \
        --tokenizer FOLDER/tokenizer.json --arrangement processes --slots 2 --port 8172

Prompts arrive rendered and leave as text: no facts to clean, no verdict to read, no statute to
look up, no metrics, so whatever this project's server does beside generation counts against it.
Two arrangements are worth trying: generation in a pool of `threads` of the server's process, or in
a pool of `processes` behind it that share one queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.engines import ENGINES, EngineConfig, PeerEngine
from curt.config import run

_engine: PeerEngine | None = None  # one a process: what a pool's initializer leaves for its calls


class ServerConfig(EngineConfig):
    """What to serve and how."""

    library: Literal["onnxruntime-genai", "llama.cpp"]
    """What completes."""
    tokenizer: Path
    """tokenizer.json of the model."""
    port: int
    """Where to listen, on this machine only."""
    arrangement: Literal["threads", "processes"]
    """Where engines run."""


class Ask(BaseModel):
    """The part of OpenAI's request that is read."""

    prompt: str
    max_tokens: int = 192


def load_engine(config: ServerConfig) -> None:
    """Load the engine into this process and let it complete something."""
    global _engine
    _engine = ENGINES[config.library](config)
    _engine.complete([1, 2, 3], 8)


def complete(prompt: list[int], max_tokens: int) -> list[int]:
    """A greedy completion by this process's engine."""
    assert _engine is not None
    return _engine.complete(prompt, max_tokens)


def make_app(config: ServerConfig) -> FastAPI:
    """The app; its engines are loaded when it starts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(config.tokenizer))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with make_pool(config) as app.state.pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/completions")
    async def completions(ask: Ask) -> dict[str, Any]:
        ids = tokenizer.encode(ask.prompt, add_special_tokens=False).ids
        loop = asyncio.get_running_loop()
        tokens = await loop.run_in_executor(app.state.pool, complete, ids, ask.max_tokens)
        return {
            "choices": [{"index": 0, "text": tokenizer.decode(tokens), "finish_reason": "stop"}],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(tokens)},
        }

    return app


def make_pool(config: ServerConfig) -> Executor:
    """Whatever the engine runs in, loaded and warm."""
    if config.arrangement != "processes":
        load_engine(config)
        return ThreadPoolExecutor(config.slots)
    pool = ProcessPoolExecutor(config.slots, get_context("spawn"), load_engine, (config,))
    # All start at once, and none is ready before the others are.
    for future in [pool.submit(complete, [1, 2, 3], 64) for _ in range(4 * config.slots)]:
        future.result()
    return pool


def work(config: ServerConfig) -> None:
    """Serve until told to stop."""
    uvicorn.run(
        make_app(config),
        host="127.0.0.1",
        port=config.port,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    run(ServerConfig, work)
