"""A completions server over one of `engines`, as a team would write it in an afternoon.

    python -m benchmarks.peers.server --library onnxruntime-genai --model FOLDER \
        --tokenizer FOLDER/tokenizer.json --arrangement processes --slots 2 --port 8172

Prompts arrive rendered and leave as text: no facts to clean, no verdict to read, no statute to
look up, no metrics, so whatever this project's server does beside generation counts against it.
Three arrangements are worth trying: generation in a pool of `threads` of the server's process, in
a pool of `processes` behind it that share one queue, or `uvicorn`'s own workers, one model each.
`batch` requests that wait are completed together where the engine knows how.
"""

from __future__ import annotations

import asyncio
import os
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

CONFIG = "PEER_SERVER"
Waiting = tuple[list[int], int, asyncio.Future[list[int]]]
_engine: PeerEngine | None = None  # one a process: what a pool's initializer leaves for its calls


class ServerConfig(EngineConfig):
    """What to serve and how."""

    library: Literal["onnxruntime-genai", "transformers", "openvino", "llama.cpp"]
    """What completes."""
    tokenizer: Path
    """tokenizer.json of the model."""
    port: int
    """Where to listen, on this machine only."""
    arrangement: Literal["threads", "processes", "uvicorn"]
    """Where engines run."""
    batch: int = 1
    """Requests that are completed together."""


class Ask(BaseModel):
    """The part of OpenAI's request that is read."""

    prompt: str
    max_tokens: int = 192


def load_engine(config: ServerConfig) -> None:
    """Load the engine into this process and let it complete something."""
    global _engine
    _engine = ENGINES[config.library](config)
    _engine.complete([[1, 2, 3]] * config.batch, 8)


def complete(prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy completions by this process's engine."""
    assert _engine is not None
    return _engine.complete(prompts, max_tokens)


def make_app() -> FastAPI:
    """The app that the environment configures."""
    from tokenizers import Tokenizer

    config = ServerConfig.model_validate_json(os.environ[CONFIG])
    tokenizer = Tokenizer.from_file(str(config.tokenizer))
    queue: asyncio.Queue[Waiting] = asyncio.Queue()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with make_pool(config) as pool:
            tasks = [
                asyncio.create_task(serve_queue(queue, pool, config.batch))
                for _ in range(config.slots)
            ]
            yield
            for task in tasks:
                task.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/v1/completions")
    async def completions(ask: Ask) -> dict[str, Any]:
        ids = tokenizer.encode(ask.prompt, add_special_tokens=False).ids
        done: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        queue.put_nowait((ids, ask.max_tokens, done))
        tokens = await done
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
    for future in [pool.submit(complete, [[1, 2, 3]], 64) for _ in range(4 * config.slots)]:
        future.result()
    return pool


async def serve_queue(queue: asyncio.Queue[Waiting], pool: Executor, batch: int) -> None:
    """Complete what waits, up to `batch` at once, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        taken = [await queue.get()]
        while len(taken) < batch and not queue.empty():
            taken.append(queue.get_nowait())
        taken = [one for one in taken if not one[2].done()]  # the others' clients left
        if not taken:
            continue
        most = max(limit for _, limit, _ in taken)
        try:
            results = await loop.run_in_executor(pool, complete, [ids for ids, _, _ in taken], most)
        except Exception as error:  # told to every client that waits for it
            for _, _, done in taken:
                if not done.done():
                    done.set_exception(error)
            continue
        for (_, limit, done), tokens in zip(taken, results, strict=True):
            if not done.done():
                done.set_result(tokens[:limit])


def work(config: ServerConfig) -> None:
    """Serve until told to stop."""
    workers = config.slots if config.arrangement == "uvicorn" else 1
    own = config.model_copy(update={"slots": 1}) if workers > 1 else config
    os.environ[CONFIG] = own.model_dump_json()
    uvicorn.run(
        "benchmarks.peers.server:make_app",
        factory=True,
        host="127.0.0.1",
        port=config.port,
        workers=workers,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    run(ServerConfig, work)
