"""The seeded case generator: facts that need reasoning, and the reasoning that solves them.

It draws a latent case (`draw`), computes the sentence (`calculus`), and tells the facts as court
documents do (`facts`, from the grammar in `charges/` and `wording/`). Each case carries its
reasoning at several verbosities (`reasoning`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

from curt.corpus.case import Case
from curt.corpus.generate import reasoning
from curt.corpus.generate.calculus import offences, sentence
from curt.corpus.generate.draw import Drawn, draw, draw_circumstances, draw_of
from curt.corpus.generate.facts import Told, lay_words, tell
from curt.corpus.generate.grammar import Wording
from curt.corpus.generate.reasoning import VERBOSITIES, write_reasonings
from curt.law.verdict import Verdict

__all__ = ["SOURCE", "VERBOSITIES", "draw_drill", "generate_cases", "generate_marked"]

SOURCE = "generated"
EVEN_ODDS = 12.0  # percent, of any circumstance where all are to be learned alike


def generate_cases(
    count: int, seed: int | str, wording: Wording = "train", lay: bool = False
) -> Iterator[Case]:
    """Yield `count` cases; the same seed gives the same cases, on any machine.

    Training, development and test sets take different seeds, and different wording: "dev" and
    "test" tell acts and circumstances in ways that "train" never does. A court tells
    them, or with `lay` people who are none. `id` is `generated-{seed}-{index}`.
    """
    rng = random.Random(seed)
    for index in range(count):
        drawn = _draw_lay(rng) if lay else draw(rng)
        yield _tell_case(drawn, rng, f"{SOURCE}-{seed}-{index}", wording, lay)[0]


def _draw_lay(rng: random.Random) -> Drawn:
    """Half of charges with lay words, rare ones more than their share; any circumstance in half."""
    told = [offences()[charge] for charge in lay_words()["charges"]]
    known = rng.choices(told, weights=[math.sqrt(offence.share) for offence in told])[0]
    drawn = draw_of(rng, known) if rng.random() < 0.5 else draw(rng)
    odds = rng.choice((None, EVEN_ODDS))
    return replace(drawn, circumstances=draw_circumstances(rng, drawn.offence, odds))


def draw_drill(rng: random.Random) -> tuple[str, str]:
    """A step of reasoning by itself, without a case; see `reasoning.draw_drill`.

    Quantities are spread over the brackets evenly and all circumstances are as likely, so that no
    sum or product stays rare.
    """
    while True:
        drawn = draw(rng)
        if brackets := drawn.offence.brackets:
            bracket = rng.choice(brackets)
            drawn = replace(drawn, harm=rng.randint(bracket.threshold, bracket.limit))
        drawn = replace(drawn, circumstances=draw_circumstances(rng, drawn.offence, EVEN_ODDS))
        outcome = sentence(drawn.offence, drawn.harm, drawn.circumstances)
        if drill := reasoning.draw_drill(drawn, outcome, rng):
            return drill


def generate_marked(
    charge: str, count: int, seed: int | str
) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """Cases of a charge in which any circumstance is as likely, with the words that tell each of
    their traits.

    In training wording: for a reader that is to find those words.
    """
    rng = random.Random(f"{seed} {charge}")
    for index in range(count):
        drawn = draw_of(rng, offences()[charge])
        drawn = replace(drawn, circumstances=draw_circumstances(rng, drawn.offence, EVEN_ODDS))
        case, told = _tell_case(drawn, rng, f"{SOURCE}-{seed}-{charge}-{index}", "train")
        yield case, told.circumstances


def _tell_case(
    drawn: Drawn,
    rng: random.Random,
    case_id: str,
    wording: Wording,
    lay: bool = False,
) -> tuple[Case, Told]:
    outcome = sentence(drawn.offence, drawn.harm, drawn.circumstances)
    told = tell(drawn, rng, wording, lay)
    drawn = replace(drawn, open_sum=told.open_sum)
    offence = drawn.offence
    articles = offence.articles_of(drawn.harm)
    case = Case(
        id=case_id,
        fact=told.fact,
        verdict=Verdict((offence.charge,), articles, outcome.term, outcome.fine_yuan),
        source=SOURCE,
        reasonings=write_reasonings(drawn, outcome, rng),
        traits=tuple(circumstance.name for circumstance in drawn.circumstances),
        harm=reasoning.tell_harm(drawn),
    )
    return case, told
