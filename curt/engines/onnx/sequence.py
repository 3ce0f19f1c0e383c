"""Sequences of tokens, fed and asked for the next one; here in onnxruntime-genai's generator."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from curt.engines.onnx.graph import PICKS, PICKS_WINDOW

__all__ = [
    "PICKS",
    "PICKS_WINDOW",
    "GenaiModel",
    "OrtSequence",
    "TokenSequence",
    "append_tokens",
    "has_picks",
    "session_config",
]


class TokenSequence(Protocol):
    """Tokens fed to a model, by whichever runtime."""

    passes: int
    has_picks: bool

    def feed(self, ids: Sequence[int], telling: int = PICKS_WINDOW) -> None:
        """Run the model over some more tokens; the last `telling` of them need a pick."""
        ...

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens; the next thing to do is to feed others."""
        ...

    def rewind_to(self, tokens: int) -> None:
        """Hold the first `tokens` tokens only; the next thing to do is to feed others."""
        ...

    def pick(self, behind: int = 0) -> int:
        """The likeliest token after the last one fed, or after one `behind` tokens earlier."""
        ...

    def logits(self, behind: int = 0) -> npt.NDArray[np.float32]:
        """A copy of the logits there, (vocab,); drops the tokens behind that place."""
        ...


class OrtSequence:
    """Tokens fed to a generator, and what the model picks after the last few of them."""

    def __init__(self, generator: Any, ids: Sequence[int], *, has_picks: bool) -> None:
        """`generator` holds exactly `ids` already."""
        self._generator = generator
        self._ids = list(ids)
        self.has_picks = has_picks
        self._picks: npt.NDArray[np.int64] | None = None
        self.passes = 0

    def feed(self, ids: Sequence[int], telling: int = PICKS_WINDOW) -> None:
        """Run the model over some more tokens, in one pass; all the window's picks are told."""
        append_tokens(self._generator, ids)
        self._ids += ids
        self._picks = None
        self.passes += 1

    def drop(self, count: int) -> None:
        """Forget the last `count` tokens; the next thing to do is to feed others."""
        if count:
            self.rewind_to(len(self._ids) - count)

    def rewind_to(self, tokens: int) -> None:
        """Hold the first `tokens` tokens only; the next thing to do is to feed others."""
        del self._ids[tokens:]
        self._generator.rewind_to(tokens)

    def pick(self, behind: int = 0) -> int:
        """The likeliest token after the last one fed, or after the one `behind` tokens earlier.

        Before the last only where the graph tells its picks, and only within the last feed.
        """
        if not self.has_picks:
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


class GenaiModel:
    """A model on onnxruntime-genai, which begins sequences."""

    def __init__(self, model: Any) -> None:
        """`model` is an `onnxruntime_genai.Model`."""
        self._model = model

    def begin(self, capacity_tokens: int) -> OrtSequence:
        """An empty sequence with room for this many tokens."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=capacity_tokens, do_sample=False)
        return OrtSequence(og.Generator(self._model, params), [], has_picks=self.has_picks)

    @functools.cached_property
    def has_picks(self) -> bool:
        """Whether the graph tells its picks, as a generator with a token in it knows."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=8, do_sample=False)
        generator = og.Generator(self._model, params)
        append_tokens(generator, [0])
        return has_picks(generator)


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
    import onnxruntime_genai as og  # 20 MB that a plain session does without

    config = og.Config(str(folder))
    options = {
        "intra_op_num_threads": threads,
        "session.intra_op.allow_spinning": "1" if allow_spinning else "0",
    }
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return config


def load_genai(folder: Path, threads: int, allow_spinning: bool) -> Any:
    """The folder as an onnxruntime_genai.Model."""
    import onnxruntime_genai as og

    return og.Model(session_config(folder, threads, allow_spinning))
