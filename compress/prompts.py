"""Prompts from a corpus file, rendered as training and serving render them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

from curt.dialogue import BUDGET_LEVELS, clip_fact, normalise_fact, render_completion, render_prompt
from curt.schema import Case

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from curt.artifact import Manifest


def read_cases(path: Path) -> list[Case]:
    """Cases from a JSON Lines file of `Case.to_json` rows.

    Raises ValueError when the file is missing, empty or holds a malformed row.
    """
    if not path.is_file():
        raise ValueError(f"no cases at {path}: make the corpus first or name a file with --cases")
    cases = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                cases.append(Case.from_json(json.loads(line)))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}:{number} is not a case row: {error!r}") from error
    if not cases:
        raise ValueError(f"{path} holds no case: name another file with --cases")
    return cases


def sample_prompts(
    cases: list[Case],
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
    case's own reasoning, where it has one, and verdict.
    """
    drawn = random.Random(seed).sample(cases, min(count, len(cases)))
    budgets = [level for level in BUDGET_LEVELS if level <= manifest.max_thinking_tokens]
    prompts = []
    for index, case in enumerate(drawn):
        fact = clip_fact(normalise_fact(case.fact), tokenizer, manifest.max_fact_tokens)
        text = render_prompt(tokenizer, fact, budgets[index % len(budgets)])
        if with_completion:
            thinking = next(iter(case.reasonings.values()), "")
            text += render_completion(thinking, case.verdict)
        prompts.append(list(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return prompts
