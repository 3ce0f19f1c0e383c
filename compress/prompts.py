"""Prompts from a corpus file, rendered as training and serving render them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence

from curt.corpus.case import Case
from curt.dialogue import (
    BUDGET_LEVELS,
    Prompts,
    encode,
    render_completion,
)


def sample_prompts(
    cases: Sequence[Case],
    prompts: Prompts,
    max_thinking_tokens: int,
    count: int,
    seed: int,
    *,
    with_completion: bool = False,
    longest: int | None = None,
) -> list[list[int]]:
    """Token ids of up to `count` prompts, drawn without replacement.

    The stated budget runs through every level the model may be given, so that a measurement covers
    them all. `with_completion` appends the case's own reasoning, where it has one, and verdict, so
    that both what the model reads and what it writes is there. What is longer than `longest` tokens
    is cut. Raises ValueError when there is no case.
    """
    if not cases:
        raise ValueError("no cases to draw prompts from: name another file of cases")
    drawn = random.Random(seed).sample(cases, min(count, len(cases)))
    budgets = [level for level in BUDGET_LEVELS if level <= max_thinking_tokens]
    drawn_prompts = []
    for index, case in enumerate(drawn):
        budget = budgets[index % len(budgets)]
        text = prompts.text(case.fact, budget)
        if with_completion:
            thinking = next(iter(case.reasonings.values()), "")
            text += render_completion(thinking, case.verdict)
        drawn_prompts.append(encode(prompts.tokenizer, text)[:longest])
    return drawn_prompts


def hash_examples(examples: Sequence[Sequence[int]]) -> str:
    """SHA-256 of a calibration set's token ids, in their order."""
    return hashlib.sha256(json.dumps([list(e) for e in examples]).encode()).hexdigest()
