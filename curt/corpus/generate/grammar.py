"""A context-free grammar of Chinese text: lists of alternatives whose slots name other lists.

In a text, `{name}` is an alternative of the list `name`, or the value bound to it; `{name.1}` is
drawn once and stays the same while one incident is told; `{one|two|}` is one of its parts, which
may hold slots and may be empty. Every fifth alternative of a list of five or more is held out:
training never sees it, and development and test cases tell acts and circumstances with nothing
else, each with alternatives of its own where there are ten or more.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache
from typing import Literal

Wording = Literal["train", "dev", "test"]
Lists = Mapping[str, Sequence[str]]
Node = str | tuple[str, ...]  # plain text, or the parts of a slot; one part is a name

HELD_OUT_EVERY = 5


class GrammarError(ValueError):
    """A text that can't be read, or a slot that nothing fills."""


def alternatives(texts: Sequence[str], wording: Wording, *, strict: bool = False) -> Sequence[str]:
    """The texts a wording may use: "train" those not held out; the others all of them, or their
    held-out ones if strict.

    Lists of fewer than five hold nothing out.
    """
    if len(texts) < HELD_OUT_EVERY:
        return texts
    if wording == "train":
        return [text for place, text in enumerate(texts, 1) if place % HELD_OUT_EVERY]
    if not strict:
        return texts
    held_out = texts[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    return held_out if len(held_out) < 2 else held_out[wording == "test" :: 2]


def expand(
    text: str,
    rng: random.Random,
    lists: Lists,
    bound: MutableMapping[str, str],
    wording: Wording,
) -> str:
    """Fill every slot of a text. Raises GrammarError for a slot that neither side fills."""
    out = []
    for node in parse(text):
        if isinstance(node, str):
            out.append(node)
        elif len(node) > 1:
            out.append(expand(rng.choice(node), rng, lists, bound, wording))
        else:
            out.append(_fill(node[0], rng, lists, bound, wording))
    return "".join(out)


def _fill(
    name: str,
    rng: random.Random,
    lists: Lists,
    bound: MutableMapping[str, str],
    wording: Wording,
) -> str:
    if name in bound:
        return bound[name]
    plain, dot, _ = name.partition(".")
    if plain in bound:
        return bound[plain]
    if plain not in lists:
        raise GrammarError(f"nothing fills the slot {{{name}}}: add a list of that name")
    chosen = rng.choice(alternatives(lists[plain], wording))
    told = expand(chosen, rng, lists, bound, wording)
    if dot:
        bound[name] = told
    return told


@cache
def parse(text: str) -> tuple[Node, ...]:
    """Split a text into plain parts and slots. Raises GrammarError for unpaired braces."""
    nodes: list[Node] = []
    plain = depth = start = 0
    parts: list[str] = []
    for place, sign in enumerate(text):
        if sign == "{":
            if depth == 0:
                if text[plain:place]:
                    nodes.append(text[plain:place])
                parts, start = [], place + 1
            depth += 1
        elif sign == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                nodes.append((*parts, text[start:place]))
                plain = place + 1
        elif sign == "|" and depth == 1:
            parts.append(text[start:place])
            start = place + 1
    if depth:
        raise GrammarError(f"braces that don't pair in {text!r}")
    if text[plain:]:
        nodes.append(text[plain:])
    return tuple(nodes)
