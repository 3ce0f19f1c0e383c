"""Guesses what an answer goes on with, so that an engine can check many tokens in one pass.

An answer repeats what is known: its field names, the article of its charge, the months its
reasoning ended with. A pass of the model over several tokens costs little more than over one, so
an engine feeds the guess along and keeps what the model itself picks; the first token that differs
ends the guess. So a guess changes the number of passes and never the choice; only where two tokens
are as good as equally likely may the rounding of a wider pass tip it, at four or eight bits.

Only answers are guessed. Looking the next tokens up in the prompt and the text so far, as prompt
lookup does for summaries and code, loses here: reasoning is new figures, and of 44 tokens guessed
so for a verdict 0.8 were right. What a model is used to writing there is known to
`curt.engines.onnx.guesses`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from curt.dialogue import THINK_END
from curt.dialogue.answer import ARTICLES_LINE, CHARGES_LINE, FINE_LINE, TERM_LINE
from curt.law.statutes import CHARGES, Charge
from curt.law.verdict import TERM_NAMES

MOST_GUESSED = 12  # tokens: a charge's whole article and the name of its penalty
LONGEST_KEY = 3  # tokens looked back at

_AFTER_MONTHS = f"个月\n{FINE_LINE.label}"

Encode = Callable[[str], list[int]]


class PhraseTable:
    """What follows within phrases; where two of them disagree, nothing does."""

    def __init__(self, phrases: Iterable[Sequence[int]], figures: Iterable[int] = ()) -> None:
        """`phrases` are token ids. `figures` are tokens that tell too little of what follows them:
        only a whole key that ends in one counts."""
        vague = frozenset(figures)
        follows: dict[tuple[int, ...], tuple[int, ...]] = {}
        for phrase in phrases:
            ids = tuple(phrase)
            for end in range(1, len(ids) + 1):
                for length in range(1, min(LONGEST_KEY, end) + 1):
                    if length < LONGEST_KEY and ids[end - 1] in vague:
                        continue
                    key, rest = ids[end - length : end], ids[end:]
                    follows[key] = _shared(follows[key], rest) if key in follows else rest
        self._follows = follows

    def after(self, text: Sequence[int]) -> tuple[int, ...]:
        """What every phrase that holds the end of `text` goes on with.

        The longest end that any phrase holds decides; empty where phrases disagree or none does.
        """
        for length in range(min(LONGEST_KEY, len(text)), 0, -1):
            rest = self._follows.get(tuple(text[-length:]))
            if rest is not None:
                return rest
        return ()


class AnswerLookup:
    """Phrases of the statutes in one tokenizer's tokens."""

    def __init__(self, encode: Encode) -> None:
        """`encode` gives the token ids of a text that may hold special tokens."""
        self._figures = frozenset(
            ids[0] for figure in range(10) if len(ids := encode(str(figure))) == 1
        )
        self._statutes = PhraseTable((encode(text) for text in answer_phrases()), self._figures)
        self._penalties = [
            tuple(encode(TERM_LINE.label + TERM_NAMES[kind]))
            for kind in ("fixed", "detention", "surveillance")
        ]
        self._unit = tuple(encode(_AFTER_MONTHS))

    def begin(self, thinking: Sequence[int]) -> AnswerGuess:
        """Guesses for an answer after this reasoning, in tokens."""
        months = last_run(thinking, self._figures)
        return AnswerGuess(
            self._statutes,
            dict.fromkeys(self._penalties, months + self._unit) if months else {},
        )


class AnswerGuess:
    """The guesses for one answer."""

    def __init__(
        self, table: PhraseTable, endings: Mapping[tuple[int, ...], tuple[int, ...]]
    ) -> None:
        """`endings` say what follows where an answer ends so; they go before the table."""
        self._table = table
        self._endings = endings

    def after(self, answer: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens, at most `MOST_GUESSED`, that may follow `answer`.

        The answer begins with the end of thinking.
        """
        rest = self._table.after(answer)
        for end, ending in self._endings.items():
            if tuple(answer[-len(end) :]) == end:
                rest = ending
        return list(rest[: min(most, MOST_GUESSED)])


def answer_phrases() -> list[str]:
    """Beginnings of answers, one for each charge the statutes place, and what joins their lines."""
    beginnings = [
        f"{THINK_END}{CHARGES_LINE.label}{charge.name}\n{ARTICLES_LINE.label}{charge.articles[0]}\n"
        f"{TERM_LINE.label}{_usual_penalty(charge)}"
        for charge in CHARGES.values()
        if charge.articles
    ]
    return [*beginnings, _AFTER_MONTHS]


def last_run(ids: Sequence[int], among: frozenset[int]) -> tuple[int, ...]:
    """The last stretch of `ids` that all are `among` these; empty when there is none."""
    end = len(ids)
    while end and ids[end - 1] not in among:
        end -= 1
    start = end
    while start and ids[start - 1] in among:
        start -= 1
    return tuple(ids[start:end])


def _usual_penalty(charge: Charge) -> str:
    only_detention = bool(charge.tiers) and not any(tier.max_months for tier in charge.tiers)
    return TERM_NAMES["detention" if only_detention else "fixed"]


def _shared(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return tuple(left[:length])
