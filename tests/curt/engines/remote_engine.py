"""A `RemoteModel` as an engine that blocks, so that one contract tests all engines."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Sequence
from pathlib import Path

from curt.dialogue import Prompt
from curt.engines.protocol import Generation, GenerationStep, Request
from curt.engines.registry import ENGINES
from curt.engines.remote import RemoteError, RemoteModel, complete

CONCURRENCY = 16


class RemoteEngine:
    """A `RemoteModel` as an engine: blocking, with an event loop of its own."""

    def __init__(
        self,
        folder: Path | str,
        url: str,
        name: str,
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
        model = ENGINES[name]
        assert issubclass(model, RemoteModel)
        self._model = model(folder, url, served_name=served_name, api_key=api_key, guided=guided)
        self.manifest = self._model.manifest
        self.name = name
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

    def encode(self, request: Request) -> Prompt:
        """A request's prompt, up to and with the opening of thinking."""
        return self._model.encode(request)

    def stream(self, request: Request) -> Generator[GenerationStep, None, None]:
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
