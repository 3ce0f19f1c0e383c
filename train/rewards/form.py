"""The form of a completion, whatever it says: grammar, layout, repetition."""

from __future__ import annotations

import json
import re
from typing import Any, get_type_hints

from pydantic import ConfigDict, Field, ValidationError, create_model

from curt.dialogue import Completion, ParseFailure, render_answer
from curt.dialogue.answer import LINES
from curt.law.verdict import Term, Verdict
from curt.scores.reasoning import repetition_ratio

_HEADING = re.compile(r"^#{1,6} +\S")
_SECTIONS = tuple(line.name for line in LINES if line.required)


# How a part of a verdict stands in an answer of JSON, by its type in `Verdict` or `Term`.
_JSON_FIELDS: dict[Any, Any] = {
    tuple[str, ...]: (list[str], Field(min_length=1)),
    Term: (str, Field(min_length=1)),
    int: (int, Field(0, ge=0)),
}
_TYPES = get_type_hints(Term) | get_type_hints(Verdict)

AnswerObject = create_model(
    "AnswerObject",
    __config__=ConfigDict(extra="forbid", strict=True),
    __doc__="The answer as JSON, for models that are asked for it: a field for each line.",
    **{line.field: _JSON_FIELDS[_TYPES[line.field]] for line in LINES},
)


def format_reward(completion: Completion, reference: Verdict) -> float:
    """1 when the thinking is closed and the answer follows the grammar, else 0."""
    return float(not isinstance(completion.verdict, ParseFailure))


def format_error_reward(completion: Completion, reference: Verdict) -> float:
    """0 when the completion can be read, else -1."""
    return format_reward(completion, reference) - 1.0


def structure_reward(completion: Completion, reference: Verdict) -> float:
    """1 when the answer is written as the grammar writes it, 0.5 when it can only be read.

    Aliases of a charge, Chinese numerals and blanks are read but cost tokens and consistency.
    """
    verdict = completion.verdict
    if isinstance(verdict, ParseFailure):
        return 0.0
    return 1.0 if completion.answer == render_answer(verdict) else 0.5


def markdown_reward(completion: Completion, reference: Verdict) -> float:
    """For Markdown answers: share of 罪名, 法条 and 刑期 with a heading of their own, in order.

    0 when a code fence is left open.
    """
    lines = completion.answer.splitlines()
    if sum(line.lstrip().startswith("```") for line in lines) % 2:
        return 0.0
    headings = iter(line for line in lines if _HEADING.match(line))
    # A shared iterator: each section is looked for after the one before.
    return sum(any(name in h for h in headings) for name in _SECTIONS) / len(_SECTIONS)


def json_reward(completion: Completion, reference: Verdict) -> float:
    """For JSON answers: 1 when the answer fits `AnswerObject`, 0.2 for another JSON object."""
    try:
        value = json.loads(completion.answer)
    except (ValueError, RecursionError):
        return 0.0
    if not isinstance(value, dict):
        return 0.0
    try:
        AnswerObject.model_validate(value)
    except ValidationError:
        return 0.2
    return 1.0


def repetition_reward(completion: Completion, reference: Verdict) -> float:
    """Share of distinct 8-grams (characters) in the thinking, in (0, 1]; 1 for a short one.

    Repetition is how reasoning fills a length it is paid for (arXiv 2502.03373, section 4).
    """
    return 1 - repetition_ratio(completion.thinking)
