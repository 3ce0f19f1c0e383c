"""A drawn case in words: header, incidents, harm, circumstances, noise, evidence, procedure."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from curt.corpus.generate.calculus import Circumstance, Grade, Offence
from curt.corpus.generate.draw import Drawn
from curt.corpus.generate.grammar import Lists, Wording, alternatives, expand

_HERE = Path(__file__).parent / "wording"
_TABLES = frozenset(("circumstances", "lookalikes"))
# What an empty part, or a title before a name that has its own, leaves behind.
_DOUBLED = re.compile(r"([，。；：])[，。；：]+|(被告人|被害人)(?:被告人|被害人)+")
ASIDE = 0.25
"""How often a fact tells a large figure that does not count; twice this often one of two."""
_MEASURED_ONCE = frozenset(("mg/100ml", "次", "人次", "名"))  # nobody has another of these
_TOTAL = "\x00"  # marks a told total until the fact is whole

MASKS: Mapping[str, int] = {
    "{surname}某": 45,
    "{surname}某某": 15,
    "{surname}某{letter}": 8,
    "{surname}××": 4,
    "{surname}xx": 4,
    "{surname}{given}": 16,
    "{surname}某{number}": 8,
}
"""How a court hides names, and how often; one form a case."""


@dataclass(frozen=True, slots=True)
class Told:
    """Facts, whether they leave the sum of several incidents to the reader, and the words that
    tell each circumstance, in their order."""

    fact: str
    open_sum: bool
    circumstances: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LookAlike:
    """What sounds like a circumstance and is none; told beside none that it `contradicts`."""

    told: tuple[str, ...]
    contradicts: frozenset[str]
    only: frozenset[str]
    """Kinds of offence (`Offence.kinds`) that it goes with; any where empty."""


@cache
def shared_lists() -> Lists:
    """The lists that every charge may draw from."""
    lists: dict[str, list[str]] = {}
    for path in sorted(_HERE.glob("*.toml")):
        if path.stem not in _TABLES:
            lists |= tomllib.loads(path.read_text(encoding="utf-8"))
    return lists


@cache
def lay_words() -> Mapping[str, Any]:
    """How people tell a case who are no court: lists, circumstances, look-alikes and charges."""
    return tomllib.loads(_HERE.with_name("lay.toml").read_text(encoding="utf-8"))


@cache
def look_alikes(lay: bool = False) -> Sequence[LookAlike]:
    """All look-alikes of a court or of lay people, in the order of their file."""
    court = tomllib.loads((_HERE / "lookalikes.toml").read_text(encoding="utf-8"))
    return [
        LookAlike(tuple(t["told"]), frozenset(t["contradicts"]), frozenset(t.get("only", ())))
        for t in (lay_words()["lookalikes"] if lay else court.values())
    ]


def tell(drawn: Drawn, rng: random.Random, wording: Wording, lay: bool = False) -> Told:
    """The facts of a case. The same draw and state of `rng` give the same words."""
    return (_LayTeller if lay else _Teller)(drawn, rng, wording).tell()


class _Teller:
    """Tells one case: its people, its years and its lists stay the same throughout."""

    def __init__(self, drawn: Drawn, rng: random.Random, wording: Wording) -> None:
        self.drawn, self.rng, self.wording = drawn, rng, wording
        self.lists = {**shared_lists(), **drawn.offence.slots}
        if "victim" in drawn.offence.kinds:
            for name in ("noise", "evidence", "procedure"):
                self.lists[name] = [*self.lists[name], *self.lists[f"{name}_victim"]]
        self.year = rng.randint(2008, 2023)
        form = rng.choices(list(MASKS), weights=list(MASKS.values()))[0]
        surnames = rng.sample(self.lists["surname"], 4)
        self.defendant, self.victim, other, accomplice = (
            self._expand(form, {"surname": name, "letter": "甲乙丙丁"[n], "number": f"{n + 1}"})
            for n, name in enumerate(surnames)
        )
        self.people = {"o": other, "co": accomplice}
        # Years before that of the offence, for earlier sentences.
        self.people |= {f"y{ago}": f"{self.year - ago}" for ago in range(13)}
        self.numbered = rng.random() < 0.5
        # How much the court writes around the acts: a third of real facts has little of it, some
        # run on for pages.
        self.detail = rng.choices((0, 1, 2, 4, 8, 16), weights=(20, 30, 25, 13, 8, 4))[0]
        self.lead, self.look_alikes = "被告人", look_alikes()
        self.lay: Mapping[str, Any] = {}  # in place of what the offence and its grades have

    def tell(self) -> Told:
        """Header, incidents with their harm, what followed, and how it was proved."""
        rng, drawn = self.rng, self.drawn
        acts = [self._incident(part, place) for place, part in enumerate(drawn.parts or (0,))]
        lead = f"{self.lead}{self.defendant}"
        if lead not in acts[0]:
            acts[0] = acts[0].replace(self.defendant, lead, 1)
        told = [self._pick("header"), *acts]
        if len(acts) > 1 and rng.random() < 0.6:
            told.append(self._pick("sum"))
        if isinstance(drawn.harm, Grade):
            told.append(self._tell_held_out(drawn.harm))
        texts = alternatives(self.lay.get("after", drawn.offence.after), self.wording)
        for text in rng.sample(texts, min(len(texts), rng.randint(0, 1 + self.detail // 2))):
            told.append(self._write(text))
        circumstances = [self._tell_held_out(one) for one in drawn.circumstances]
        told += self._among_others(circumstances, "".join(told))
        for name, odds in (("evidence", 0.3), ("procedure", 0.25)):
            repeats = sum(rng.random() < odds for _ in range(1 + self.detail))
            told += [self._pick(name) for _ in range(min(repeats, 3))]
        fact = self._join([text for text in told if text])
        open_sum = len(drawn.parts) > 1 and _TOTAL not in fact
        fact = _DOUBLED.sub(r"\1\2", fact.replace(_TOTAL, ""))
        return Told(fact, open_sum, tuple(circumstances))

    def _incident(self, part: int, place: int) -> str:
        """One incident: its number where there are several, its time, and the act."""
        drawn, acts = self.drawn, self.lay.get("acts", self.drawn.offence.acts)
        if isinstance(drawn.harm, Grade):
            own = self.lay.get("grade_acts", {}).get(drawn.harm.name)
            acts = own or drawn.harm.acts or acts
        act = self.rng.choice(alternatives(acts, self.wording, strict=True))
        quantity = {"q": self._tell_quantity(part)} if drawn.parts else {}
        number = f"{place + 1}、" if self.numbered and len(drawn.parts) > 1 else ""
        return f"{number}{self._date(place)}，{self._write(act, quantity)}"

    def _tell_quantity(self, quantity: int) -> str:
        return tell_quantity(quantity, self.drawn.offence, self.rng)

    def _join(self, told: Sequence[str]) -> str:
        return "".join(text if text[-1] in "。；：，！" else f"{text}。" for text in told)

    def _among_others(self, circumstances: Sequence[str], so_far: str) -> list[str]:
        """The circumstances, mostly in the order in which reasoning lists them, among the rest."""
        rng, told = self.rng, list(circumstances)
        if rng.random() < 0.3:
            rng.shuffle(told)
        names = {one.name for one in self.drawn.circumstances}
        kinds = self.drawn.offence.kinds
        others = [
            one
            for one in self.look_alikes
            if not one.contradicts & names and (not one.only or one.only & kinds)
        ]
        extras = [self._write(rng.choice(rng.choice(others).told))] if rng.random() < 0.4 else []
        noise = alternatives(self.lists["noise"], self.wording)
        extras += map(self._write, rng.sample(noise, rng.randint(0, 1 + 2 * self.detail)))
        extras += [self._aside() for _ in range(2) if rng.random() < ASIDE]
        caught = "自首" in names or "抓获" in so_far or "查获" in so_far
        if not caught and rng.random() < 0.6:
            extras.append(self._pick("arrest"))
        for extra in extras:
            told.insert(rng.randint(0, len(told)), extra)
        return told

    def _aside(self) -> str:
        """A large figure that does not count."""
        counted = bool(self.drawn.parts) and self.drawn.offence.unit not in _MEASURED_ONCE
        if not counted or self.rng.random() < 0.5:
            return self._pick("aside")
        grain, parts = self.drawn.offence.grain, self.drawn.parts
        other = int(self.rng.choice(parts) * self.rng.uniform(0.3, 3)) // grain * grain + grain
        while other in (*parts, sum(parts)):
            other += grain
        text = self.rng.choice(alternatives(self.lists["aside_counted"], self.wording))
        return self._write(text, {"q_other": self._tell_quantity(other)})

    def _pick(self, name: str) -> str:
        return self._write(self.rng.choice(alternatives(self.lists[name], self.wording)))

    def _tell_held_out(self, one: Circumstance | Grade) -> str:
        own = self.lay.get("told", {}).get(one.name)
        known = alternatives(own or one.told, self.wording, strict=True)
        if self.wording == "train" and not own and isinstance(one, Circumstance):
            known = [*known, *one.train_only]
        return self._write(self.rng.choice(known))

    def _write(self, text: str, more: Mapping[str, str] | None = None) -> str:
        """Expand a text with the people and the totals of this case bound."""
        bound = {**self.people, **(more or {})}
        bound["d"] = self._called("被告人", self.defendant, 0.5)
        bound["v"] = self._called("被害人", self.victim, 0.7)
        bound["q_total"] = _TOTAL + self._tell_quantity(sum(self.drawn.parts))
        bound["n"] = f"{len(self.drawn.parts)}"
        bound["p"] = self._expand("{place}", dict(bound))
        return self._expand(text, bound)

    def _expand(self, text: str, bound: dict[str, str]) -> str:
        return expand(text, self.rng, self.lists, bound, self.wording)

    def _called(self, role: str, name: str, odds: float) -> str:
        return role + name if self.rng.random() < odds else name

    def _date(self, place: int) -> str:
        month = self.rng.randint(1, 12)
        again = place > 0 and self.rng.random() < 0.5
        return self._expand(
            self.rng.choices(list(DATES), weights=list(DATES.values()))[0],
            {
                "year": "同年" if again else f"{self.year}年",
                "month": f"{month}月",
                "later": f"{self.rng.randint(month, 12)}月",
                "day": f"{self.rng.randint(1, 28)}日",
                "clock": f"{self.rng.randint(0, 23)}时",
                "twelve": f"{self.rng.randint(1, 12)}时",
                "minute": f"{self.rng.randint(1, 59)}分",
            },
        )


class _LayTeller(_Teller):
    """Tells it as people do who are no court: shortly, in run-on sentences, without roles."""

    def __init__(self, drawn: Drawn, rng: random.Random, wording: Wording) -> None:
        super().__init__(drawn, rng, wording)
        words = lay_words()
        charge = words["charges"].get(drawn.offence.charge, {})
        courts = ("header", "aside", "aside_counted", "evidence", "procedure")
        self.lists |= words["lists"] | {name: [""] for name in courts}
        self.lay = {"after": [""], **charge}
        self.lay["told"] = words["circumstances"] | charge.get("told", {})
        self.lead, self.look_alikes = "", look_alikes(lay=True)
        self.numbered, self.detail = False, rng.choice((0, 0, 1))
        self.named: set[str] = set()
        self.defendant, self.victim = self._pick("lay_defendant"), self._pick("lay_victim")
        self.people |= {"o": self._pick("lay_other"), "co": self._pick("lay_other")}

    def _tell_quantity(self, quantity: int) -> str:
        unit = self.drawn.offence.unit
        units = {"元": ("元", "块钱"), "mg/100ml": ("", "毫克", "mg/100ml")}.get(unit, (unit,))
        return self.drawn.offence.write(quantity) + self.rng.choice(units)

    def _called(self, role: str, name: str, odds: float) -> str:
        """Whom the fact has named is 他 or 对方 more often than not."""
        again = name in self.named and self.rng.random() < odds
        self.named.add(name)
        if name in ("我", "她") or not again:
            return name
        return "他" if role == "被告人" else self.rng.choice(("对方", "人家"))

    def _date(self, place: int) -> str:
        return self._pick("lay_again" if place else "lay_date")

    def _join(self, told: Sequence[str]) -> str:
        marked = [text.strip("。；，") + self.rng.choice("，，。") for text in told]
        return f"{''.join(marked)[:-1]}。"


DATES: Mapping[str, int] = {
    "{year}{month}{day}{|许}": 22,
    "{year}{month}{day}{clock}许": 16,
    "{year}{month}{day}{clock}{minute}许": 16,
    "{year}{month}{day}{凌晨|上午|下午|晚上|晚|中午|早上|夜间|清晨|傍晚}{twelve}许": 18,
    "{year}{month}的一天{|晚上|下午|上午|凌晨}": 10,
    "{year}{month}{至|到|份至}{later}{期间|间|}": 12,
    "{year}{month}{初|底|中旬|份|上旬|下旬|间}": 6,
}
"""How a court tells when an incident was, and how often."""


def tell_quantity(quantity: int, offence: Offence, rng: random.Random) -> str:
    """A quantity with its unit in one of the ways that courts write it."""
    if offence.unit != "元":
        return f"{offence.write(quantity)}{offence.unit}"
    number, form = f"{quantity}元", rng.random()
    if quantity >= 10_000 and quantity % 100 == 0 and form < 0.45:
        number = f"{quantity / 10_000:g}万元"
    elif quantity >= 1000 and form < 0.05:
        number = f"{quantity:,}元"
    return f"{rng.choice(('人民币', ''))}{number}"
