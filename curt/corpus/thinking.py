"""How much a training example thinks: a reasoning of its case, and a budget stated with it."""

from __future__ import annotations

import random
from collections.abc import Mapping

from curt.corpus.case import Case
from curt.dialogue import BUDGET_LEVELS, encode
from curt.dialogue.prompt import ChatTokenizer

NONE, CUT, GAP = "none", "cut", "gap"


def draw_thinking(
    rng: random.Random,
    case: Case,
    tokenizer: ChatTokenizer,
    weights: Mapping[str, float],
    max_thinking_tokens: int,
    fitted_share: float = 0.0,
) -> tuple[list[int], int]:
    """Thinking token ids and the budget to state with them, an upper bound drawn at random.

    `weights` weighs the keys of `Case.reasonings` and two more: "none" answers at once, "cut"
    breaks a reasoning off at its stated budget. Verbosities a case lacks are left out. Where other
    verbosities are wanted, "none" states a budget of 0: with a larger one, a model that has mostly
    cases without reasoning to learn from would never think.
    For a `fitted_share` of the draws the budget comes first, any level, and then the fullest
    reasoning with a weight that fits it, "gap" left out; none where not even the shortest does.
    Raises ValueError when that leaves nothing to draw.
    """
    levels = [level for level in BUDGET_LEVELS if level <= max_thinking_tokens]
    names = [n for n in weights if n in case.reasonings or n in (NONE, CUT)]
    if not any(weights[n] > 0 for n in names):
        raise ValueError(
            f"{case.id} has no reasoning at verbosity {', '.join(weights)}: give {NONE} a weight"
        )
    if fitted_share and case.reasonings and rng.random() < fitted_share:
        budget = rng.choice(levels)
        whole = [n for n in names if n in case.reasonings and weights[n] > 0 and n != GAP]
        forms = (encode(tokenizer, case.reasonings[n]) for n in whole)
        return max((ids for ids in forms if len(ids) <= budget), key=len, default=[]), budget
    name = rng.choices(names, weights=[weights[n] for n in names])[0]
    if name == NONE or not case.reasonings:
        thinks = any(weight > 0 for other, weight in weights.items() if other != NONE)
        return [], 0 if thinks or rng.random() < 0.5 else rng.choice(levels)
    if name == CUT:
        ids = encode(tokenizer, rng.choice(list(case.reasonings.values())))
        shorter = [level for level in levels if 0 < level < len(ids)]
        if shorter:
            budget = rng.choice(shorter)
            return ids[:budget], budget
    else:
        ids = encode(tokenizer, case.reasonings[name])
    ids = ids[: levels[-1]]
    return ids, rng.choice([level for level in levels if level >= len(ids)])
