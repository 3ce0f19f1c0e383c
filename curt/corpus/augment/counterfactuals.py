"""Pairs of a case that differ in one thing: what must not change its verdict, and what must.

The verdict stays with other names, with another sex, ethnicity or home province of the defendant
(told in a sentence before the facts where these don't tell it), in other words (`local`), and with
a figure aside that does not count (`distractors`). It moves with an amount in the next bracket, and
with 自首 or 累犯 where it was not told, or the other way round. What moves needs a latent draw, so
it comes with generated cases alone; all words but those of the difference stay.
"""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from curt.corpus.augment.distractors import NoRoomError, add_distractors
from curt.corpus.augment.local import LocalParaphraser
from curt.corpus.augment.paraphrase import list_figures, list_names
from curt.corpus.case import Case
from curt.corpus.generate.calculus import circumstances, sentence
from curt.corpus.generate.draw import Drawn, draw
from curt.corpus.generate.facts import shared_lists, tell
from curt.corpus.generate.generator import SOURCE
from curt.corpus.read.extract import extract_reasoning
from curt.corpus.redaction import find_names
from curt.law.term_scale import severity
from curt.law.verdict import Verdict

STAYS = ("name", "sex", "ethnicity", "province", "wording", "aside")
MOVES = ("amount", "surrender", "recidivism")
_ETHNICITIES = ("汉族", "回族", "壮族", "藏族", "维吾尔族", "蒙古族", "彝族", "苗族")
_PROVINCES = tuple(shared_lists()["province"])
_END = r"(?=[，,、）)。；])"
_PERSONAL = {
    "sex": (rf"(被告人[^，。；：（(]{{0,8}}[，（(])([男女]){_END}", ("男", "女")),
    "ethnicity": (rf"([，,（(])([一-鿿]{{1,4}}族){_END}", _ETHNICITIES),
    "province": (rf"(户籍(?:所在)?地[为是：]?)({'|'.join(_PROVINCES)}){_END}", _PROVINCES),
}
_TOLD = re.compile(rf"[，,（(](?:[男女]|[一-鿿]{{1,4}}族){_END}|户籍(?:所在)?地|捕前住")
_MARK = "\x01"
_DEFENDANT = re.compile(r"被告人([一-鿿]某{1,2}[甲乙丙丁]?)")


@dataclass(frozen=True, slots=True)
class Pair:
    """A case and the same with one thing changed, each with its own right verdict."""

    kind: str
    before: Case
    after: Case


def invariant_pairs(case: Case, rng: random.Random) -> Iterator[Pair]:
    """Pairs whose verdict stays, from the text alone; the same state of `rng` gives the same."""
    yield from _pair("name", case, _rename(case.fact, rng))
    known = case
    if not _TOLD.search(case.fact):
        name = _DEFENDANT.search(case.fact)
        told = f"被告人{name[1] if name else ''}，男，汉族，户籍所在地为{rng.choice(_PROVINCES)}。"
        known = replace(case, id=f"{case.id}+person", fact=told + case.fact)
    for kind, (pattern, values) in _PERSONAL.items():
        found = re.search(pattern, known.fact)
        if found and not (kind == "sex" and "强奸" in case.verdict.charges):  # which is a man's
            other = rng.choice([value for value in values if value != found[2]])
            yield from _pair(kind, known, re.sub(pattern, rf"\g<1>{other}", known.fact))
    (retold,) = LocalParaphraser(rng.getrandbits(32)).paraphrase([case.fact])
    yield from _pair("wording", case, retold or case.fact)
    with contextlib.suppress(NoRoomError):
        yield Pair("aside", case, add_distractors(case, rng, 1))


def draw_pairs(case_id: str, rng: random.Random) -> Iterator[Pair]:
    """All pairs of a case that is drawn anew, told in the words of test sets."""
    drawn = draw(rng)
    held, offence = drawn.circumstances, drawn.offence
    groups = {one.group for one in held}
    known = {"surrender": circumstances()["自首"], "recidivism": circumstances()["累犯"]}
    free = {
        kind: one
        for kind, one in known.items()
        if one in held or (offence.admits(one) and one.group not in groups)
    }
    order = (*offence.circumstances.values(), *circumstances().values())
    both = tuple(one for one in order if one in held or one in free.values())
    state = rng.random()

    def tell_side(kind: str, side: Drawn) -> Case:
        # Told with all of `both`, so that other words stay; those it does not hold are cut out.
        own = side.circumstances
        whole = tuple(c if c in own else replace(c, told=_mark(c.told)) for c in both)
        fact = tell(replace(side, circumstances=whole), random.Random(state), "test").fact
        fact = re.sub(f"{_MARK}[^{_MARK}]*{_MARK}。?", "", fact)
        outcome = sentence(offence, side.harm, side.circumstances)
        verdict = Verdict((offence.charge,), offence.articles, outcome.term, outcome.fine_yuan)
        traits = tuple(one.name for one in side.circumstances)
        return Case(f"{case_id}+{kind}", fact, verdict, SOURCE, traits=traits)

    base = tell_side("base", drawn)
    yield from invariant_pairs(base, rng)
    sides = [
        (kind, replace(drawn, circumstances=tuple(c for c in both if (c in held) != (c == one))))
        for kind, one in free.items()
    ]
    for kind, side in (*sides, *_raise_harm(drawn, rng)):
        after = tell_side(kind, side)
        if severity(after.verdict.term) != severity(base.verdict.term):
            yield Pair(kind, base, after)


def _mark(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{_MARK}{text}{_MARK}" for text in texts)


def _raise_harm(drawn: Drawn, rng: random.Random) -> Iterator[tuple[str, Drawn]]:
    """The draw with its harm in the next bracket, each part in proportion, where there is one."""
    harm, offence = drawn.harm, drawn.offence
    higher = [b for b in offence.brackets if isinstance(harm, int) and b.threshold > harm]
    if isinstance(harm, int) and higher:
        low, grain = higher[0].threshold, 100 if offence.unit == "元" else offence.grain
        total = max(low, rng.randint(low, min(higher[0].limit, 2 * low)) // grain * grain)
        rest = [part * total // harm // grain * grain for part in drawn.parts[1:]]
        yield "amount", replace(drawn, harm=total, parts=(total - sum(rest), *rest))


def _pair(kind: str, case: Case, fact: str) -> Iterator[Pair]:
    """The pair, unless nothing was changed, or a figure or circumstance with it."""
    alike = list_figures(fact) == list_figures(case.fact)
    if fact != case.fact and alike and extract_reasoning(fact) == extract_reasoning(case.fact):
        yield Pair(kind, case, replace(case, id=f"{case.id}+{kind}", fact=fact))


def _rename(fact: str, rng: random.Random) -> str:
    """The fact with another surname for each, and another given name where it is not masked."""
    whole, lists = find_names(fact), shared_lists()
    names = sorted(whole | list_names(fact)[0], key=lambda name: (-len(name), name))
    fresh = [one for one in lists["surname"] if one not in fact]
    rng.shuffle(fresh)
    new = dict(zip(sorted({name[0] for name in names}), fresh, strict=False))
    for name in names:
        rest = rng.choice(lists["given"]) if name in whole else name[1:]
        fact = fact.replace(name, new.get(name[0], name[0]) + rest)
    return fact
