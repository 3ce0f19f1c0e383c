"""A sequence of tokens in a generator of onnxruntime-genai, fed and asked for the next one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og

PICKS = "picks"
"""Output of a graph, (1, tokens): the likeliest token after each of the last tokens fed."""

PICKS_WINDOW = 16
"""How many of the last tokens fed have their pick."""


class OrtSequence:
    """Tokens fed to a generator, and what the model picks after the last few of them."""

    def __init__(self, generator: Any, ids: Sequence[int], *, has_picks: bool) -> None:
        """`generator` holds exactly `ids` already."""
        self._generator = generator
        self._ids = list(ids)
        self._has_picks = has_picks
        self._picks: npt.NDArray[np.int64] | None = None
        self.passes = 0

    def feed(self, ids: Sequence[int]) -> None:
        """Run the model over some more tokens, in one pass."""
        append_tokens(self._generator, ids)
        self._ids += ids
        self._picks = None
        self.passes += 1

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens; the next thing to do is to feed others."""
        if count:
            del self._ids[-count:]
            self._generator.rewind_to(len(self._ids))

    def pick(self, behind: int = 0) -> int:
        """The likeliest token after the last one fed, or after the one `behind` tokens earlier.

        Before the last only where the graph tells its picks, and only within the last feed.
        """
        if not self._has_picks:
            assert behind == 0, "this graph tells the last position's logits only"
            return int(self._generator.get_logits()[0, -1].argmax())
        if self._picks is None:
            self._picks = self._generator.get_output(PICKS)[0]
        return int(self._picks[-1 - behind])

    def logits(self, behind: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the logits there, (vocab,); drops the tokens behind that place."""
        if behind:
            last = self._ids[-behind - 1]
            self.drop(behind + 1)
            self.feed([last])
        return np.array(self._generator.get_logits()[0, -1], np.float32)


def append_tokens(generator: Any, ids: Sequence[int]) -> None:
    """Run the model over some more tokens.

    Every token goes in here, also the ones picked from the logits: an append right after
    `generate_next_token` gives wrong logits unless `get_logits` was called in between (0.18).
    """
    generator.append_tokens(np.asarray(ids, dtype=np.int32))


def has_picks(generator: Any) -> bool:
    """Whether the graph tells its picks; the generator must hold a token."""
    try:
        generator.get_output(PICKS)
    except RuntimeError:  # "was not found": there is no list of outputs to look into
        return False
    return True


def session_config(folder: Path, threads: int, allow_spinning: bool) -> Any:
    """The folder's onnxruntime_genai.Config with this many intra-op threads."""
    config = og.Config(str(folder))
    options = {
        "intra_op_num_threads": threads,
        "session.intra_op.allow_spinning": "1" if allow_spinning else "0",
    }
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return config
