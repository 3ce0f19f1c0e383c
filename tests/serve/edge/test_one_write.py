"""A reply leaves in one piece, and nothing is held longer than a turn of the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from serve.edge.one_write import OneWriteTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class FakeTransport(asyncio.Transport):
    """Notes what is done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[bytes | str] = []

    def write(self, data: object) -> None:
        assert isinstance(data, bytes)
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")

    def abort(self) -> None:
        self.done.append("abort")

    def is_closing(self) -> bool:
        return "close" in self.done or "abort" in self.done


def do(*steps: Callable[[OneWriteTransport], object]) -> list[bytes | str]:
    """What reaches the transport by steps in one turn, and after it."""

    async def scenario() -> list[bytes | str]:
        inner = FakeTransport()
        transport = OneWriteTransport(inner)
        for step in steps:
            step(transport)
        inner.done.append("turn")
        await asyncio.sleep(0)
        return inner.done

    return asyncio.run(scenario())


def test_head_and_body_leave_together() -> None:
    done = do(lambda t: t.write(HEAD), lambda t: t.write(b"{}"))
    assert done == [HEAD + b"{}", "turn"]


def test_a_head_alone_leaves_at_the_end_of_the_turn() -> None:
    assert do(lambda t: t.write(HEAD)) == ["turn", HEAD]


def test_pieces_of_a_stream_are_not_held() -> None:
    piece = b"8\r\ndata\r\n\r\n\r\n"
    assert do(lambda t: t.write(piece), lambda t: t.write(piece)) == [piece, piece, "turn"]


def test_closing_lets_a_head_out_first() -> None:
    assert do(lambda t: t.write(HEAD), lambda t: t.close()) == [HEAD, "close", "turn"]


def test_aborting_drops_what_is_held() -> None:
    assert do(lambda t: t.write(HEAD), lambda t: t.abort()) == ["abort", "turn"]


def test_everything_else_is_the_transports_own() -> None:
    assert do(lambda t: t.is_closing() and t.write(b"x")) == ["turn"]
