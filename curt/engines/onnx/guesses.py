"""What a model is used to writing, so that an engine can check many tokens in one pass.

The phrases of a model's own completions, counted when its folder is made: after these last few
tokens, that one came nearly always. As with the statutes (`curt.engines.onnx.lookup`) a guess
changes the number of passes and not the choice (in w8a8 it can tip a close one). The table belongs
to the folder and does not grow while it serves, so that a result never depends on the requests
before it.

A pass of the demo model in int4 costs .15 ms and each guess within it .05: a guess pays where it is
right more often than in 33 of 100 cases. `LEAST_CHANCE` is higher than that, as a table counts on
cases it has seen. In w8a8 a guess costs .02 ms, and a folder's table may say that it takes less.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from curt.engines.onnx.graph import LIKELIEST_WINDOW
from curt.files import write_atomic

GUESSES = "guesses.json"
LONGEST_KEY = 5  # tokens looked back at
LEAST_CHANCE = 0.55  # that all guesses up to one are right, unless the table says otherwise
LEAST_SEEN = 8  # a phrase of fewer completions is chance, or someone's own
_REMEMBERED = 1 << 14

Key = tuple[int, ...]


class GuessTable:
    """The likeliest next token after some last tokens, and how likely it is."""

    def __init__(
        self,
        nexts: dict[Key, tuple[int, float]],
        ends: Iterable[int],
        least_chance: float = LEAST_CHANCE,
    ) -> None:
        """`nexts` by the last 1 to `LONGEST_KEY` tokens; the longest key that is there decides.

        Guesses go on while the chance that all are right is `least_chance` or more. Where one of
        `ends` is the likeliest, nothing is guessed: an end of turn is never fed.
        """
        self._nexts = nexts
        self._ends = frozenset(ends)
        self._least_chance = least_chance
        self._after = lru_cache(_REMEMBERED)(self._follow)

    def __len__(self) -> int:
        return len(self._nexts)

    def after(self, text: Sequence[int], most: int) -> tuple[int, ...]:
        """Up to `most` tokens that may follow `text`, as long as all are likely right."""
        return self._after(tuple(text[-LONGEST_KEY:]))[:most]

    def _follow(self, key: Key) -> tuple[int, ...]:
        chance = 1.0
        guesses: list[int] = []
        while len(guesses) < LIKELIEST_WINDOW - 1:
            found = self._find(key)
            if found is None:
                break
            token, right = found
            chance *= right
            if chance < self._least_chance or token in self._ends:
                break
            guesses.append(token)
            key = (*key, token)[-LONGEST_KEY:]
        return tuple(guesses)

    def _find(self, key: Key) -> tuple[int, float] | None:
        for start in range(len(key)):
            found = self._nexts.get(key[start:])
            if found is not None:
                return found
        return None


def learn_guesses(completions: Iterable[Sequence[int]], close: int) -> dict[Key, tuple[int, float]]:
    """Count what follows what in completions of token ids; each ends with its end of turn if any.

    Only phrases of at least `LEAST_SEEN` completions count. A key that reaches over the end of
    thinking (`close`) would tie the answer's phrases to single reasonings, so keys stop there.
    """
    follows: defaultdict[Key, Counter[int]] = defaultdict(Counter)
    seen_in: defaultdict[Key, int] = defaultdict(int)
    for completion in completions:
        keys: set[Key] = set()
        for place in range(1, len(completion)):
            for length in range(1, min(LONGEST_KEY, place) + 1):
                key = tuple(completion[place - length : place])
                follows[key][completion[place]] += 1
                keys.add(key)
                if key[0] == close:
                    break
        for key in keys:
            seen_in[key] += 1
    learnt = {}
    for key, nexts in follows.items():
        if seen_in[key] >= LEAST_SEEN:
            token, times = nexts.most_common(1)[0]
            learnt[key] = token, round(times / (nexts.total() + 1), 3)
    return learnt


def write_guesses(
    folder: Path, learnt: dict[Key, tuple[int, float]], least_chance: float = LEAST_CHANCE
) -> None:
    """Write a table into a model folder that is being made."""
    rows = [[*key, token, right] for key, (token, right) in sorted(learnt.items())]
    table = {"least_chance": least_chance, "rows": rows}
    write_atomic(folder / GUESSES, json.dumps(table, separators=(",", ":")) + "\n")


def read_guesses(folder: Path, ends: Iterable[int]) -> GuessTable | None:
    """A model folder's table, None where it has none. `ends` are the tokens that end a turn."""
    file = folder / GUESSES
    if not file.is_file():
        return None
    table = json.loads(file.read_text(encoding="utf-8"))
    nexts = {tuple(row[:-2]): (row[-2], row[-1]) for row in table["rows"]}
    return GuessTable(nexts, ends, table.get("least_chance", LEAST_CHANCE))
