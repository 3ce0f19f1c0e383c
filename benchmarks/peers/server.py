"""A completions server over one of `engines`, as a team would write it in an afternoon.

    python -m benchmarks.peers.server '{"library": "onnxruntime-genai", "model": "...",
        "port": 8172, "arrangement": "processes", "slots": 2, "threads": 1}'

Prompts arrive rendered and leave as text: no facts to clean, no verdict to read, no statute to
look up, no metrics, so whatever this project's server does beside generation counts against it.
Three arrangements are worth trying: generation in a pool of `threads` of the server's process, in
a pool of `processes` behind it that share one queue, or `uvicorn`'s own workers, one model each.
`batch` requests that wait are completed together where the engine knows how.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from multiprocessing import get_context
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.engines import ENGINES, PeerEngine

ORDER = "PEER_ORDER"
Waiting = tuple[list[int], int, asyncio.Future[list[int]]]
_engine: PeerEngine | None = None  # one a process: what a pool's initializer leaves for its calls


class Ask(BaseModel):
    """The part of OpenAI's request that is read."""

    prompt: str
    max_tokens: int = 192


def load_engine(order: dict[str, Any]) -> None:
    """Load the ordered engine into this process and let it complete something."""
    global _engine
    _engine = ENGINES[order["library"]](order)
    _engine.complete([[1, 2, 3]] * order.get("batch", 1), 8)


def complete(prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy completions by this process's engine."""
    assert _engine is not None
    return _engine.complete(prompts, max_tokens)


def make_app() -> FastAPI:
    """The app that the environment orders."""
    from tokenizers import Tokenizer

    order = json.loads(os.environ[ORDER])
    tokenizer = Tokenizer.from_file(order["tokenizer"])
    queue: asyncio.Queue[Waiting] = asyncio.Queue()

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        with make_pool(order) as pool:
            tasks = [
                asyncio.create_task(serve_queue(queue, pool, order.get("batch", 1)))
                for _ in range(order["slots"])
            ]
            yield
            for task in tasks:
                task.cancel()

    app = FastAPI(lifespan=run)

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


def make_pool(order: dict[str, Any]) -> Executor:
    """Whatever the engine runs in, loaded and warm."""
    slots = order["slots"]
    if order["arrangement"] != "processes":
        load_engine(order)
        return ThreadPoolExecutor(slots)
    pool = ProcessPoolExecutor(slots, get_context("spawn"), load_engine, (order,))
    # All start at once, and none is ready before the others are.
    for future in [pool.submit(complete, [[1, 2, 3]], 64) for _ in range(4 * slots)]:
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


def main() -> None:
    """Serve as ordered by the first argument until told to stop."""
    order = json.loads(sys.argv[1])
    os.environ[ORDER] = sys.argv[1]
    workers = order["slots"] if order["arrangement"] == "uvicorn" else 1
    if workers > 1:
        os.environ[ORDER] = json.dumps(order | {"slots": 1})
    uvicorn.run(
        "benchmarks.peers.server:make_app",
        factory=True,
        host="127.0.0.1",
        port=order["port"],
        workers=workers,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
