"""What reasoning costs a served artifact: passes of its model, and their milliseconds.

With guesses several tokens come out of one pass, so that 45 tokens can take 18, and a deadline
feels passes. The manifest of an artifact with guesses says what a pass takes
(`compress.onnx.speculation`). Completions are replayed: a guess is kept where it equals what was
written, so no model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from curt.artifact import ArtifactError, load_manifest
from curt.config import FrozenModel
from curt.dialogue import THINK_END, Prompt
from curt.engines.onnx.graph import read_settings
from curt.engines.onnx.speculation import Speculation
from curt.engines.protocol import Request
from curt.engines.tokenizer import PromptTokenizer
from curt.engines.writing import Writing


class PassCost(FrozenModel):
    """What passes take on the machine that measured them; a manifest's evaluation holds it."""

    pass_ms: float = Field(1.0, ge=0)
    """A pass over one token."""
    guess_ms: float = Field(0.0, ge=0)
    """Each token more in it."""
    token_ms: float = Field(1.0, gt=0)
    """A token of the artifact's own reasoning, on the average."""
    cost_error: float = Field(0.0, ge=0)
    """Mean relative error on the times of single completions."""

    def total_ms(self, passes: int, guesses: int) -> float:
        """The time of so many passes that fed so many guesses."""
        return self.pass_ms * passes + self.guess_ms * guesses


class Reasoning(NamedTuple):
    """What one reasoning costs; `length` is that in tokens of the same average cost."""

    ms: float
    length: float


class ReasoningCost:
    """What reasoning would cost an artifact, by its guesses and what its passes take."""

    def __init__(self, folder: Path, cost: PassCost) -> None:
        """Read the guesses of a folder that was verified."""
        self.cost = cost
        self.tokenizer = PromptTokenizer(folder)
        self._close = self.tokenizer.single_id(THINK_END)
        eos = read_settings(folder)["model"]["eos_token_id"]
        self._eos_ids: list[int] = eos if isinstance(eos, list) else [eos]
        self._likely = Speculation(folder, self.tokenizer.encode, self._close, self._eos_ids)
        self._least_ms = cost.total_ms(*self.replay([self._close], 0))

    def replay(self, ids: Sequence[int], limit: int) -> tuple[int, int]:
        """Passes after the prefill that write a completion, and guesses fed in them.

        `ids` may end anywhere; `limit` is the most thinking tokens, at least as many as it has.
        """
        writing = Writing(
            Request("", limit, limit, tell_text=False), self.tokenizer, prompt=Prompt([]),
            thinking_limit=limit, close_id=self._close, eos_ids=self._eos_ids,
        )  # fmt: skip
        passes = guesses = 0
        ahead: list[int] = []
        for token in ids:
            writing.take(token)
            if writing.is_complete():  # nothing is fed after the last token
                break
            if ahead and ahead[0] == writing.last_token:
                del ahead[0]
                continue
            ahead = self._likely.after(writing, closed=writing.closed)
            passes, guesses = passes + 1, guesses + len(ahead)
        return passes, guesses

    def measure(self, ids: Sequence[int], budget: int) -> Reasoning:
        """The cost of a completion's reasoning, up to the pass that reads its end if it has one.

        `length` leaves out what ending at once takes and counts in `token_ms`: of the artifact's
        own reasoning it is the number of tokens, on the average.
        """
        thinking = ids.index(self._close) if self._close in ids else len(ids)
        limit = budget if thinking <= budget else thinking + 1  # past it nothing forces the end
        passes, guesses = self.replay(ids[: thinking + 1], limit)
        ms = self.cost.total_ms(passes, guesses)
        return Reasoning(ms, max(0.0, ms - self._least_ms) / self.cost.token_ms)


def read_cost(folder: Path) -> ReasoningCost:
    """Verify an artifact and read what reasoning costs it; ArtifactError where it can't say."""
    told = load_manifest(folder, expect="ort-genai").evaluation
    if "pass_ms" not in told:
        raise ArtifactError(
            f"{folder} does not say what a pass costs: run `python -m compress.onnx.speculation "
            f"--artifact {folder} --out {folder}`"
        )
    return ReasoningCost(folder, PassCost(**{name: told[name] for name in PassCost.model_fields}))
