"""Likely tokens that are fed along with the next one, so that a pass checks many of them.

A pass over several tokens costs little more than one over a single token. So tokens that are likely
to follow are fed along, and kept as far as the model itself picks the same; the first that differs
ends the guess. A guess changes the number of passes and never the choice; only where two tokens are
as good as equally likely may the rounding of a wider pass tip it, at four or eight bits.

There are two sources: phrases of the statutes, and what this model is used to writing. Looking
the next tokens up in the prompt and the text so far, as prompt lookup does for summaries and code,
loses here: reasoning is new figures, and of 44 tokens guessed so for a verdict 0.8 were right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from curt.dialogue import THINK_END
from curt.dialogue.answer import ARTICLES_LINE, CHARGES_LINE, FINE_LINE, TERM_LINE
from curt.engines.onnx.graph import LIKELIEST_WINDOW
from curt.engines.writing import Writing
from curt.law.statutes import CHARGES, Charge
from curt.law.verdict import TERM_NAMES

GUESSES = "guesses.json"
"""The file of a model folder that holds what the model is used to writing."""

MOST_GUESSED = 12  # tokens of an answer: a charge's whole article and the name of its penalty
LONGEST_PHRASE_KEY = 3  # tokens looked back at in the statutes' phrases
LONGEST_HABIT_KEY = 5  # and in the model's own
LEAST_CHANCE = 0.55
"""How likely all guesses up to one must be right, unless the table says otherwise.

A pass of the demo model in int4 costs .15 ms and each guess within it .05, so that a guess pays
where it is right in more than 33 of 100 cases; this is higher, as a table counts on cases it has
seen. In w8a8 a guess costs .02 ms.
"""

_REMEMBERED = 1 << 14

_AFTER_MONTHS = f"个月\n{FINE_LINE.label}"

Key = tuple[int, ...]
T = TypeVar("T")


class Speculation:
    """What is likely in the completions of a model folder, before its model says so."""

    def __init__(
        self,
        folder: Path,
        encode: Callable[[str], list[int]],
        close_id: int,
        eos_ids: Iterable[int],
    ) -> None:
        """`encode` gives the token ids of a text that may hold special tokens."""
        self._close_id = close_id
        self._statutes = StatutePhrases(encode)
        self._habits = read_habits(folder, eos_ids)

    def after(self, writing: Writing, *, closed: bool) -> list[int]:
        """Tokens to feed along with the last one, by which the thinking is `closed` or not."""
        return self._after_answer(writing) if closed else self._after_thinking(writing)

    def _after_thinking(self, writing: Writing) -> list[int]:
        room, answer_limit = writing.thinking_room, writing.request.answer_limit
        if room == 0:  # whatever the model picks at the limit, the end of thinking follows
            return [self._close_id]
        guess = list(self._habits.after(writing.thinking, room + 1 + answer_limit))
        end = guess.index(self._close_id) if self._close_id in guess else len(guess)
        return guess[:room] if end > room else guess[: end + 1 + answer_limit]

    def _after_answer(self, writing: Writing) -> list[int]:
        most = min(writing.answer_room, MOST_GUESSED)
        text = [self._close_id, *writing.answer]
        guess = self._statutes.after(text, writing.thinking) or self._habits.after(text, most)
        return list(guess[:most])


class StatutePhrases:
    """What an answer repeats of the statutes and of its reasoning, in one tokenizer's tokens."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        """`encode` gives the token ids of a text that may hold special tokens."""
        self._figures = frozenset(
            ids[0] for figure in range(10) if len(ids := encode(str(figure))) == 1
        )
        self._phrases = PhraseTable((encode(text) for text in answer_phrases()), self._figures)
        self._penalties = [
            tuple(encode(TERM_LINE.label + TERM_NAMES[kind]))
            for kind in ("fixed", "detention", "surveillance")
        ]
        self._unit = tuple(encode(_AFTER_MONTHS))

    def after(self, answer: Sequence[int], thinking: Sequence[int]) -> Key:
        """What may follow `answer`, which begins with the end of thinking.

        After the name of a penalty, the months that the reasoning ended with.
        """
        for penalty in self._penalties:
            if tuple(answer[-len(penalty) :]) == penalty:
                months = last_run(thinking, self._figures)
                if months:
                    return months + self._unit
        return self._phrases.after(answer)


class PhraseTable:
    """What follows within phrases; where two of them disagree, nothing does."""

    def __init__(self, phrases: Iterable[Sequence[int]], figures: Iterable[int] = ()) -> None:
        """`phrases` are token ids. `figures` are tokens that tell too little of what follows them:
        only a whole key that ends in one counts."""
        vague = frozenset(figures)
        follows: dict[Key, Key] = {}
        for phrase in phrases:
            ids = tuple(phrase)
            for end in range(1, len(ids) + 1):
                for length in range(1, min(LONGEST_PHRASE_KEY, end) + 1):
                    if length < LONGEST_PHRASE_KEY and ids[end - 1] in vague:
                        continue
                    key, rest = ids[end - length : end], ids[end:]
                    follows[key] = common_prefix(follows[key], rest) if key in follows else rest
        self._follows = follows

    def after(self, text: Sequence[int]) -> Key:
        """What every phrase that holds the end of `text` goes on with.

        The longest end that any phrase holds decides; empty where phrases disagree or none does.
        """
        return longest_match(self._follows, tuple(text[-LONGEST_PHRASE_KEY:])) or ()


class HabitTable:
    """What a model is used to writing: the likeliest token after some last tokens, and how likely.

    Counted over the model's own completions when its folder is made
    (`compress.onnx.speculation`). It does not grow while it serves, so that a result
    never depends on the requests before it.
    """

    def __init__(
        self,
        nexts: dict[Key, tuple[int, float]],
        ends: Iterable[int],
        least_chance: float = LEAST_CHANCE,
    ) -> None:
        """`nexts` by the last 1 to `LONGEST_HABIT_KEY` tokens; the longest key there decides.

        Guesses go on while the chance that all are right is `least_chance` or more. Where one of
        `ends` is the likeliest, nothing is guessed: an end of turn is never fed.
        """
        self._nexts = nexts
        self._ends = frozenset(ends)
        self._least_chance = least_chance
        self._after = lru_cache(_REMEMBERED)(self._follow)

    def __len__(self) -> int:
        return len(self._nexts)

    def after(self, text: Sequence[int], most: int) -> Key:
        """Up to `most` tokens that may follow `text`, as long as all are likely right."""
        return self._after(tuple(text[-LONGEST_HABIT_KEY:]))[:most]

    def _follow(self, key: Key) -> Key:
        chance = 1.0
        guesses: list[int] = []
        while len(guesses) < LIKELIEST_WINDOW - 1:
            found = longest_match(self._nexts, key)
            if found is None:
                break
            token, right = found
            chance *= right
            if chance < self._least_chance or token in self._ends:
                break
            guesses.append(token)
            key = (*key, token)[-LONGEST_HABIT_KEY:]
        return tuple(guesses)


def read_habits(folder: Path, ends: Iterable[int]) -> HabitTable:
    """A model folder's table, an empty one where it has none. `ends` are what ends a turn."""
    file = folder / GUESSES
    if not file.is_file():
        return HabitTable({}, ends)
    table = json.loads(file.read_text(encoding="utf-8"))
    nexts = {tuple(row[:-2]): (row[-2], row[-1]) for row in table["rows"]}
    return HabitTable(nexts, ends, table.get("least_chance", LEAST_CHANCE))


def answer_phrases() -> list[str]:
    """Beginnings of answers, one for each charge the statutes place, and what joins their lines."""
    beginnings = [
        f"{THINK_END}{CHARGES_LINE.label}{charge.name}\n{ARTICLES_LINE.label}{charge.articles[0]}\n"
        f"{TERM_LINE.label}{_usual_penalty(charge)}"
        for charge in CHARGES.values()
        if charge.articles
    ]
    return [*beginnings, _AFTER_MONTHS]


def last_run(ids: Sequence[int], among: frozenset[int]) -> Key:
    """The last stretch of `ids` that all are `among` these; empty when there is none."""
    end = len(ids)
    while end and ids[end - 1] not in among:
        end -= 1
    start = end
    while start and ids[start - 1] in among:
        start -= 1
    return tuple(ids[start:end])


def common_prefix(left: Sequence[int], right: Sequence[int]) -> Key:
    """What both begin with."""
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return tuple(left[:length])


def longest_match(table: dict[Key, T], key: Key) -> T | None:
    """What a table has for the longest end of `key` that it holds."""
    for start in range(len(key)):
        found = table.get(key[start:])
        if found is not None:
            return found
    return None


def _usual_penalty(charge: Charge) -> str:
    only_detention = bool(charge.tiers) and not any(tier.max_months for tier in charge.tiers)
    return TERM_NAMES["detention" if only_detention else "fixed"]
