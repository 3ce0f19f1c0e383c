"""Figures that do not count, put among the facts of a case whose verdict stays what it is.

Each claim says itself why it does not count. It stands at the end of a sentence that the next one
does not lean on, names nobody whom the facts name, brings no amount that they have, and is refused
where it would change what `curt.corpus.read.extract` reads from the facts. Real cases, whose
circumstances nobody wrote down, take only claims that are neutral for any case.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from curt.corpus.case import Case
from curt.corpus.generate.facts import shared_lists
from curt.corpus.read.extract import extract_reasoning

TRAIT = "distractors"
SUFFIX = "+distractors"
MOST = 6
"""Distractors that a case may take."""

_TRIES = 4  # draws of figures for one claim before the next is taken


class NoRoomError(ValueError):
    """Too few claims fit a case."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence without its 。, with slots: {n} amount, {w} weight, {o} somebody else, {y}-{m}-{a}
    a date.

    `charges` are the only ones it fits, none meaning any case, real ones included; `not_with` are
    traits that it would contradict.
    """

    text: str
    charges: frozenset[str] = frozenset()
    not_with: frozenset[str] = frozenset()

    @property
    def dated(self) -> bool:
        """Whether it names a year, to which a later 同年 would then seem to refer."""
        return "{y}" in self.text


_TOLD = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
GENERAL = tuple(Claim(text) for text in _TOLD["general"])
PARTICULAR = tuple(
    Claim(row["text"], frozenset(row["charges"]), frozenset(row.get("not_with", ())))
    for row in _TOLD["particular"]
)

# Only a sentence that begins so stands by itself: it names its subject, or is a numbered item. One
# without a subject (左眼部挫伤为轻微伤) or with 其, 随后, 次日 leans on the one before it.
_NAMED = r"(?![在至到于和与向从由对把将被往])[一-鿿]{1,2}[0-9]?某"
_STANDS = re.compile(
    r"\s*(?:被告人|被害人|被害方|公诉机关|检察机关|公安机关|民警|证人|本案|本院|针对指控|在共同犯罪中|"
    r"审查起诉阶段|(?:19|20)[0-9]{2}年[0-9]{1,2}月|[0-9]{1,2}[、．]|[一二三四五六七八九十]{1,3}、|"
    rf"(?:案发后|作案时|案发前)?(?:，)?{_NAMED}|[一-鿿]{{2,14}}(?:人民检察院|公安局|派出所))"
)
_LEANS = re.compile(
    r"\s*(?:[其该此后经并且而但遂即又再因同当次翌前上述以]|随|之后|尔后|期间|途中|至)"
)
_RELATIVE = re.compile(
    r"同年|同月|同日|当年|当月|当日|当天|当晚|次日|次年|次月|翌日|翌年|前述|上述时间"
)
_OPEN, _CLOSE = "“‘「『（(《【[", "”’」』）)》】]"
_FIGURE = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def add_distractors(case: Case, rng: random.Random, count: int) -> Case:
    """The case with `count` (1 to 6) sentences more, whose figures change nothing.

    The verdict and the reasonings stay; the id and the source get a suffix, the traits
    "distractors". The same state of `rng` gives the same case. Raises NoRoomError when fewer claims
    fit, ValueError on a count out of range.
    """
    if not 1 <= count <= MOST:
        raise ValueError(f"{count} distractors: use 1 to {MOST}")
    evidence = extract_reasoning(case.fact)
    fact = case.fact if case.fact.endswith(("。", "！", "？")) else f"{case.fact}。"
    added = 0
    for claim in _draw_claims(case, rng):
        if added == count:
            break
        for _ in range(_TRIES):
            longer, sentence = _insert(fact, claim, rng)
            pieces = split_sentences(longer)
            apart = sentence in pieces  # not where brackets that don't pair swallow it
            if apart:
                pieces.remove(sentence)
                apart = pieces == split_sentences(fact)
            if apart and extract_reasoning(longer) == evidence:
                fact = longer
                added += 1
                break
    if added < count:
        raise NoRoomError(f"{added} of {count} distractors fit: ask for fewer")
    return replace(
        case,
        id=f"{case.id}{SUFFIX}",
        fact=fact,
        source=f"{case.source}{SUFFIX}",
        traits=(*case.traits, TRAIT),
    )


def find_joints(fact: str, *, dated: bool = False) -> list[int]:
    """Where a sentence may be put in: between sentences of which the second does not lean back over
    the gap, and at the end of the fact.

    With `dated`, no later sentence may hold a relative date (同年, 次日) either.
    """
    joints = []
    offset = 0
    sentences = split_sentences(fact)
    for sentence, following in pairwise(sentences):
        offset += len(sentence)
        if not leans_back(following) and not (dated and _RELATIVE.search(fact, offset)):
            joints.append(offset)
    return [*joints, len(fact)]


def split_sentences(fact: str) -> list[str]:
    """The fact in pieces that end with 。 outside quotes and brackets; joined they are the fact."""
    sentences, start, depth = [], 0, 0
    for offset, char in enumerate(fact):
        depth = max(0, depth + (char in _OPEN) - (char in _CLOSE))
        if char == "。" and not depth and fact[offset + 1 : offset + 2] not in tuple(_CLOSE):
            sentences.append(fact[start : offset + 1])
            start = offset + 1
    return sentences + ([fact[start:]] if start < len(fact) else [])


def leans_back(sentence: str) -> bool:
    """Whether a sentence may refer to the one before it (其…, 随后…, 3月5日…, no subject)."""
    return bool(_LEANS.match(sentence)) or not _STANDS.match(sentence)


def _draw_claims(case: Case, rng: random.Random) -> Iterator[Claim]:
    """Claims that fit, in random order; where the case is generated, those of its charge first."""
    particular = _particular(case)
    yield from rng.sample(particular, len(particular))
    yield from rng.sample(GENERAL, len(GENERAL))


def _particular(case: Case) -> Sequence[Claim]:
    if not case.source.startswith("generated"):
        return ()
    charges, traits = set(case.verdict.charges), set(case.traits)
    return [c for c in PARTICULAR if c.charges & charges and not c.not_with & traits]


def _insert(fact: str, claim: Claim, rng: random.Random) -> tuple[str, str]:
    """The fact with a claim put in, and the sentence that it made of it."""
    at = rng.choice(find_joints(fact, dated=claim.dated))
    others = [f"{name}某" for name in shared_lists()["surname"] if name not in fact]
    taken = set(_FIGURE.findall(fact))
    sentence = claim.text.format(
        n=_draw_new(rng, range(1000, 90_000, 500), taken),
        w=_draw_new(rng, range(11, 400), taken),
        o=rng.choice(others or ["甲某"]),
        y=rng.randint(2008, 2016),
        m=rng.randint(1, 12),
        a=rng.randint(1, 28),
    )
    return f"{fact[:at]}{sentence}。{fact[at:]}", f"{sentence}。"


def _draw_new(rng: random.Random, figures: range, taken: set[str]) -> int:
    """A figure that the facts do not have."""
    while True:
        figure = rng.choice(figures)
        if str(figure) not in taken:
            return figure
