"""Prompts from a corpus file, rendered as training and serving render them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from curt.corpus.case import Case
from curt.dialogue import (
    BUDGET_LEVELS,
    encode,
    prompt_for,
    render_completion,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from curt.artifact import Manifest


def sample_prompts(
    cases: Sequence[Case],
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest,
    count: int,
    seed: int,
    *,
    with_completion: bool = False,
) -> list[list[int]]:
    """Token ids of up to `count` prompts, drawn without replacement.

    Facts are clipped to the manifest's limit; the stated budget runs through every level the
    model may be given, so that a measurement covers them all. `with_completion` appends the
    case's own reasoning, where it has one, and verdict. Raises ValueError when there is no case.
    """
    if not cases:
        raise ValueError("no cases to draw prompts from: name another file with --cases")
    drawn = random.Random(seed).sample(cases, min(count, len(cases)))
    budgets = [level for level in BUDGET_LEVELS if level <= manifest.max_thinking_tokens]
    prompts = []
    for index, case in enumerate(drawn):
        budget = budgets[index % len(budgets)]
        text = prompt_for(tokenizer, case.fact, budget, manifest.max_fact_tokens)
        if with_completion:
            thinking = next(iter(case.reasonings.values()), "")
            text += render_completion(thinking, case.verdict)
        prompts.append(encode(tokenizer, text))
    return prompts


def hash_examples(examples: Sequence[Sequence[int]]) -> str:
    """SHA-256 of a calibration set's token ids, in their order."""
    return hashlib.sha256(json.dumps([list(e) for e in examples]).encode()).hexdigest()
