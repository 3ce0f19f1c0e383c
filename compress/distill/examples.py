"""Prompts and the completions to learn from them, as token ids: from cases or logged completions.

A completion is thinking, the end of thinking and the answer, tokenised apart as a decoder meets
them: an engine that forces the end of thinking appends its tokens to whatever stands before.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curt.classifier.candidates import draw_candidates
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.corpus.thinking import draw_thinking
from curt.dialogue import (
    THINK_END,
    Prompts,
    encode,
    render_completion,
)
from curt.files import read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

COMPLETIONS = ("completion", "chosen", "response_1")  # columns of the views, the one to learn


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """Token ids of a prompt and its completion.

    The first `thinking_tokens` of the completion are thinking with its end marker; the rest is
    the answer with the end of the turn. `source` is the case's id, or the prompt of a row.
    """

    source: str
    prompt_ids: list[int]
    completion_ids: list[int]
    thinking_tokens: int

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def is_case_file(path: Path) -> bool:
    """Whether a data file holds cases; otherwise it is a view of logged completions.

    Raises ValueError when the file is missing, has an unknown ending, or is empty.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"data {path}: give a .jsonl or .parquet file")
    if not path.is_file():
        raise ValueError(
            f"no data file {path}: make cases with `python -m curt.corpus build`, or a view"
        )
    first = next(read_rows(path), None)
    if first is None:
        raise ValueError(f"{path} is empty: make it again")
    return "case" in first or ("fact" in first and "verdict" in first)


def read_examples(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    verbosity_weights: Mapping[str, float],
    per_case: int,
    max_thinking_tokens: int,
    seed: int,
    candidates: Mapping[str, str] | None = None,
    candidates_share: float = 1.0,
) -> list[TokenisedExample]:
    """Examples of a file: `per_case` draws of each case, or one of each row of a view.

    See `draw_thinking` for the weights, `draw_candidates` for the candidates; nothing of them
    matters to a view, whose prompts are complete. Raises ValueError naming the file, and the row,
    when one can't be read.
    """
    if not is_case_file(path):
        return [
            from_row(row, tokenizer, f"{path}, row {number}")
            for number, row in enumerate(read_rows(path), start=1)
        ]
    rng = random.Random(seed)
    return [
        from_case(
            case,
            tokenizer,
            prompts,
            *draw_thinking(rng, case, tokenizer, verbosity_weights, max_thinking_tokens),
            draw_candidates(rng, prompts, case.id, candidates or {}, candidates_share),
        )
        for case in read_cases(path)
        for _ in range(per_case)
    ]


def from_case(
    case: Case,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    thinking_ids: list[int],
    budget: int,
    candidates: str | None = None,
) -> TokenisedExample:
    """The example of a case whose thinking and stated budget (both in tokens) are given."""
    prompt = prompts.text(case.fact, budget, candidates)
    ending = render_completion("", case.verdict) + _end_of_turn(tokenizer)
    return _join(case.id, tokenizer, prompt, thinking_ids, ending)


def from_row(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> TokenisedExample:
    """The example of a view's row: its prompt and `completion`, `chosen` or `response_1`.

    The turn is ended where the completion was not cut short. `where` names the row in a message.
    Raises ValueError when the row has no prompt or no completion.
    """
    prompt = row.get("prompt")
    completion = next((row[name] for name in COMPLETIONS if row.get(name)), None)
    if not (isinstance(prompt, str) and prompt and isinstance(completion, str)):
        raise ValueError(
            f"{where} lacks a prompt or a completion ({', '.join(COMPLETIONS)}): "
            "write the view with `python -m train.data.views`"
        )
    thinking, closed, answer = completion.partition(THINK_END)
    ending = closed + answer
    if closed and not row.get("truncated"):
        ending = ending.removesuffix(_end_of_turn(tokenizer)) + _end_of_turn(tokenizer)
    return _join(prompt, tokenizer, prompt, encode(tokenizer, thinking), ending)


def split_examples(
    examples: Sequence[TokenisedExample], held_out: int, context: int, seed: int
) -> tuple[list[TokenisedExample], list[TokenisedExample]]:
    """Examples to learn from and those of `held_out` sources, which none of the first share.

    Examples longer than `context` tokens are left out and counted in the log. Raises ValueError
    when nothing is left to learn from.
    """
    fitting = [e for e in examples if len(e) <= context]
    if dropped := len(examples) - len(fitting):
        logger.warning("%d examples over %d tokens are left out", dropped, context)
    sources = sorted({e.source for e in fitting})
    if len(sources) <= held_out:
        raise ValueError(
            f"{len(sources)} cases or prompts to learn from, {held_out} of them held out: "
            "give more --data or a smaller --held_out"
        )
    measured = set(random.Random(seed).sample(sources, held_out))
    learned = [e for e in fitting if e.source not in measured]
    return learned, [e for e in fitting if e.source in measured]


def batch_order(lengths: Sequence[int], batch: int, seed: int) -> Iterator[list[int]]:
    """Endless batches of indices of alike lengths, every example once an epoch.

    A pure function of its arguments, so a resumed run meets the batches an unbroken one would.
    """
    epoch = 0
    while True:
        rng = random.Random(f"{seed}-{epoch}")
        indices = list(range(len(lengths)))
        rng.shuffle(indices)
        bucket = 32 * batch  # sorting within buckets leaves most of the shuffle
        ordered = [
            index
            for start in range(0, len(indices), bucket)
            for index in sorted(indices[start : start + bucket], key=lambda i: lengths[i])
        ]
        batches = [ordered[i : i + batch] for i in range(0, len(ordered), batch)]
        rng.shuffle(batches)
        yield from batches
        epoch += 1


def _join(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    thinking_ids: list[int],
    ending: str,
) -> TokenisedExample:
    """`ending` is the end marker, the answer and the end of turn, or empty without a marker."""
    encoded = tokenizer(ending, add_special_tokens=False, return_offsets_mapping=True)
    # The marker is several tokens where a tokenizer does not know it as one.
    marker = sum(start < len(THINK_END) for start, _ in encoded["offset_mapping"])
    return TokenisedExample(
        source,
        encode(tokenizer, prompt),
        thinking_ids + encoded["input_ids"],
        len(thinking_ids) + marker,
    )


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str:
    token = tokenizer.eos_token
    if not isinstance(token, str):
        raise ValueError("the tokenizer has no end-of-turn token: set its eos_token")
    return token
