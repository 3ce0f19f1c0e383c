"""Warm-start examples: a case becomes prompts with a stated budget and a completion that fits.

The stated budget is an upper bound drawn at random from the levels that hold the reasoning; how
long the reasoning is under a wide budget is left open on purpose, for GRPO to settle.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from curt.classifier.candidates import draw_candidates
from curt.corpus.case import Case
from curt.corpus.generate.generator import draw_drill
from curt.corpus.thinking import draw_thinking
from curt.dialogue import (
    Prompts,
    encode,
    render_completion,
)
from curt.files import read_rows

CLIPPED = (20, 60)  # characters that a clipped fact keeps


@dataclass(frozen=True, slots=True)
class Branch:
    """One continuation of a case: the rest of its prompt, and the completion to learn."""

    prompt_ids: list[int]
    completion_ids: list[int]


@dataclass(frozen=True, slots=True)
class Example:
    """A case's facts, tokenised once, and the branches that go on from them.

    The stated budget ends the prompt, so branches with different budgets share all before it.
    """

    shared_ids: list[int]
    branches: tuple[Branch, ...]

    def __len__(self) -> int:
        return len(self.shared_ids) + sum(
            len(b.prompt_ids) + len(b.completion_ids) for b in self.branches
        )


def build_examples(
    cases: Iterable[Case],
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    verbosity_weights: Mapping[str, float],
    per_case: int,
    max_thinking_tokens: int,
    seed: int,
    drills: int = 0,
    clipped_share: float = 0.0,
    fitted_share: float = 0.0,
    candidates: Mapping[str, str] | None = None,
    candidates_share: float = 1.0,
) -> list[Example]:
    """One example a case, with `per_case` branches and `drills` steps of arithmetic beside them.

    `verbosity_weights` weighs the keys of `Case.reasonings` and two more: "none" answers at
    once, "cut" breaks a reasoning off at its stated budget, as a forced end of thinking does.
    Verbosities that a case lacks are left out and the rest reweighed. The branches of a case share
    its line of candidates, or have none: see `draw_candidates`. Of a `clipped_share` of the cases
    with a line, a few words of the facts are told: the line holds what is needed, and what is
    short is learned in a third of the time. For `fitted_share` see `draw_thinking`.
    Raises ValueError when that leaves a case nothing.
    """
    rng = random.Random(seed)
    examples = []
    for case in cases:
        line = draw_candidates(rng, prompts, case.id, candidates or {}, candidates_share)
        line = prompts.propose(case.fact, line)
        fact = case.fact
        if line and clipped_share and rng.random() < clipped_share:
            fact = fact[: rng.randint(*CLIPPED)]
        answer = render_completion("", case.verdict) + tokenizer.eos_token
        answer_ids = encode(tokenizer, answer)
        asked, thoughts = [], []
        for _ in range(per_case):
            thinking_ids, budget = draw_thinking(
                rng, case, tokenizer, verbosity_weights, max_thinking_tokens, fitted_share
            )
            asked.append(prompts.encode(fact, budget, line).ids)
            thoughts.append(thinking_ids)
        shared = _common_prefix(asked)
        examples.append(
            Example(
                asked[0][:shared],
                (
                    *(
                        Branch(prompt[shared:], thinking + answer_ids)
                        for prompt, thinking in zip(asked, thoughts, strict=True)
                    ),
                    *(_draw_drill(rng, tokenizer) for _ in range(drills)),
                ),
            )
        )
    return examples


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Examples of rows with `prompt` and `completion`; neighbours of one `case_id` share one.

    Raises ValueError when the file can't be read, or has no row, or one without the two.
    """
    examples = []
    for _, neighbours in groupby(read_rows(path), lambda row: row.get("case_id") or row):
        rows = list(neighbours)
        if not all(row.get("prompt") and row.get("completion") for row in rows):
            raise ValueError(f"{path}: a row lacks prompt or completion: give a view of them")
        asked = [encode(tokenizer, row["prompt"]) for row in rows]
        ends = ["" if row.get("truncated") else tokenizer.eos_token for row in rows]
        answers = [
            encode(tokenizer, row["completion"] + end) for row, end in zip(rows, ends, strict=True)
        ]
        shared = _common_prefix(asked)
        branches = (Branch(ids[shared:], own) for ids, own in zip(asked, answers, strict=True))
        examples.append(Example(asked[0][:shared], tuple(branches)))
    if not examples:
        raise ValueError(f"{path} holds no row: give a view of completions")
    return examples


def _draw_drill(rng: random.Random, tokenizer: PreTrainedTokenizerBase) -> Branch:
    """A drill after the facts, which say nothing about it: only what is given counts."""
    given, answer = draw_drill(rng)
    return Branch(encode(tokenizer, given), encode(tokenizer, answer))


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens all prompts share, leaving each at least one of its own to predict from."""
    shortest = min(len(p) for p in prompts) - 1
    for index in range(shortest):
        if len({p[index] for p in prompts}) > 1:
            return index
    return shortest
