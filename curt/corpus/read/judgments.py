"""Whole first-instance judgments, split and read by rule: who was sentenced to what, by which law.

A judgment (刑事判决书) has a fixed order: header with the parties, the prosecution's charge, facts
as found, the court's opinion (本院认为), cited law, 判决如下 and the ruling, one item a defendant.
Rulings keep to the wording of the Supreme People's Court's templates, so that rules read them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from curt.corpus.case import Case
from curt.corpus.read.documents import Sections, read_facts, split_document
from curt.corpus.read.extract import extract_reasoning
from curt.corpus.read.records import RecordError
from curt.dialogue import normalise_fact
from curt.law.figures import HAN_NUMERALS, parse_yuan
from curt.law.numerals import NUMBER, article_order, parse_article, parse_months
from curt.law.statutes import article_carries, canonical_charge, is_charge
from curt.law.verdict import REPRIEVE, Term, TermKind, Verdict

SOURCE = "judgments"
COMBINED = "combined punishment"
APPEAL = "appeal"
REASONING = "terse"  # the verbosity under which extracted evidence is filed


@dataclass(frozen=True, slots=True)
class Count:
    """One charge and what it alone brought."""

    charge: str
    term: Term | None
    fine_yuan: int


@dataclass(frozen=True, slots=True)
class Sentencing:
    """What one defendant was sentenced to; `term` is None where there was a fine alone."""

    defendant: str
    counts: tuple[Count, ...]
    term: Term | None
    fine_yuan: int
    combined: bool
    """Whether several penalties were joined (数罪并罚, article 69)."""
    text: str

    @property
    def charges(self) -> tuple[str, ...]:
        """Charges in the order of the ruling."""
        return tuple(dict.fromkeys(count.charge for count in self.counts))


@dataclass(frozen=True, slots=True)
class Judgment:
    """A document, read."""

    sections: Sections
    articles: tuple[str, ...]
    """Those of the Criminal Law that it cites."""
    sentencings: tuple[Sentencing, ...]
    acquitted: tuple[str, ...]
    appeal: bool
    """Whether a first sentence was appealed or tried again."""

    def verdict_of(self, sentencing: Sentencing) -> Verdict:
        """A defendant's verdict with the cited articles that carry the charges.

        Raises RecordError for a unit or a fine alone, which have no principal penalty, and where
        no cited article carries a charge.
        """
        if sentencing.term is None:
            raise RecordError("a fine alone")
        articles = tuple(
            article
            for article in self.articles
            if any(article_carries(article, charge) for charge in sentencing.charges)
        )
        if not articles:
            raise RecordError("no cited article carries the charge")
        ordered = tuple(sorted(set(articles), key=article_order))
        return Verdict(sentencing.charges, ordered, sentencing.term, sentencing.fine_yuan)


def read_document(row: Any) -> Iterator[Case | RecordError]:
    """Yield a case a defendant of a judgment, or why there is none for this one.

    Raises RecordError where the whole document, the text under `document`, can't be read.
    """
    if not isinstance(row, dict) or not isinstance(row.get("document"), str):
        raise RecordError("not an object with a document")
    judgment = read_judgment(row["document"])
    sections = judgment.sections
    fact = normalise_fact(read_facts(sections))
    digest = hashlib.sha256(sections.ruling.encode() + fact.encode()).hexdigest()
    evidence = extract_reasoning(fact)
    several = len(judgment.sentencings) + len(judgment.acquitted) > 1
    traits = (APPEAL,) if judgment.appeal else ()
    for number, sentencing in enumerate(judgment.sentencings, start=1):
        try:
            if not fact:
                raise RecordError("no facts")
            verdict = judgment.verdict_of(sentencing)
        except RecordError as error:
            yield error
            continue
        yield Case(
            id=f"judgment-{digest[:16]}-{number}",
            # With several defendants the facts tell of all: say whose verdict is asked for.
            fact=f"{fact}本案被告人：{sentencing.defendant}。" if several else fact,
            verdict=verdict,
            source=SOURCE,
            reasonings={REASONING: evidence} if evidence else {},
            traits=(COMBINED, *traits) if sentencing.combined else traits,
        )
    for _ in judgment.acquitted:
        yield RecordError("acquitted")


# --- cited law ---------------------------------------------------------------------------------

_STATUTE = re.compile(r"《([^》]*)》")
_CRIMINAL_LAW = re.compile(r"(?:中华人民共和国)?刑法(?:[（(].*)?")
_MISSING_WORD = re.compile(rf"第({NUMBER})(?=第{NUMBER}款)")  # 第六十七第三款
_ARTICLES = re.compile(rf"第?({NUMBER}(?:、{NUMBER})*)条(?:之({NUMBER}))?")


def read_citations(law: str) -> tuple[str, ...]:
    """Articles of the Criminal Law cited in a text, each once, in its order."""
    found: dict[str, None] = {}
    marks = list(_STATUTE.finditer(law))
    for mark, following in zip_longest(marks, marks[1:]):
        if _CRIMINAL_LAW.fullmatch(mark[1]):
            part = law[mark.end() : following.start() if following else len(law)]
            found |= dict.fromkeys(_read_articles(_MISSING_WORD.sub(r"第\1条", part)))
    return tuple(found)


def _read_articles(text: str) -> Iterator[str]:
    for match in _ARTICLES.finditer(text):
        numbers = match[1].split("、")
        for number in numbers:
            branch = f"之{match[2]}" if match[2] and number == numbers[-1] else ""
            try:
                article = parse_article(f"第{number}条{branch}")
            except ValueError:  # 第五百零五条 of an interpretation without its own title
                continue
            yield article


# --- the ruling --------------------------------------------------------------------------------

_KINDS: dict[str, TermKind] = {
    "有期徒刑": "fixed", "拘役": "detention", "管制": "surveillance", "无期徒刑": "life",
    "死刑": "death",
}  # fmt: skip
_DURATION = r"[0-9零〇一二两三四五六七八九十年个月又半]+"
_PENALTY = rf"(有期徒刑|拘役|管制|无期徒刑|{REPRIEVE.pattern}|死刑)({_DURATION}[日天]?)?"
_PARTY = "被告单位|被告人|上诉人（原审被告人）|原审被告人"
_COUNT = re.compile(
    rf"({_PARTY})?((?:(?<=被告人)(?:[^，。；：、（）犯]{{1,15}}、)+)?[^，。；：、（）]{{0,30}}?)犯"
    r"([^，。；（）]{1,40}?)罪(?=[，,；]?(均|各|分别)?(?:判处|免予|免除|单处))"
)
_ACQUITTED = re.compile(rf"(?:{_PARTY})([^，。；：（）犯]{{1,60}}?)均?(?:无罪|不负刑事责任)")
_APPEAL = re.compile(r"上诉人|原审(?:被告|判决|查明)|驳回上诉|终审裁判|本判决为终审")
# What an appeal or a second trial quotes of the earlier judgment, up to the next item
_REVOKED = re.compile(
    r"(?:^|(?<=[。；]))(?:[一二三四五六七八九十]+、)?(?:撤销|维持)"
    r"(?:.{0,2000}?[。；](?=[一二三四五六七八九十]+、)|[^。；]*[。；]?)"
)
_PRINCIPAL = re.compile(rf"判处{_PENALTY}")
_COMBINED = re.compile(rf"执行{_PENALTY}(.*)")
_PROBATION = re.compile(rf"缓刑({_DURATION})")
_FINE = re.compile(rf"罚金(?:各|共?计)?((?:人民币?)?[0-9.{HAN_NUMERALS}]+)")
_FINED = re.compile(r"处罚金(?!刑|，|。|；|$)")
_EXEMPT = re.compile(r"免[予除]刑事处[罚分]|免[予除]处罚")
_LAST_BRACKET = re.compile(r"(?:（[^（）]*）|\([^()]*\))(?=[一二三四五六七八九十]+、)")
_BRACKETS = re.compile(r"（[^（）]*）|\([^()]*\)")
_ITEM_END = re.compile(r"。[一二三四五六七八九十]+、|；[一二三四五六七八九十]+、")
_PRIOR = ("原", "与原", "前", "与前")


def read_judgment(document: str) -> Judgment:
    """Read a document. Raises RecordError with the reason it can't be read."""
    sections = split_document(document)
    sentencings = tuple(_read_sentencings(sections.ruling))
    acquitted = tuple(
        name for match in _ACQUITTED.finditer(sections.ruling) for name in match[1].split("、")
    )
    if not sentencings:
        raise RecordError("acquitted" if acquitted else "no sentence in the ruling")
    return Judgment(
        sections=sections,
        articles=read_citations(sections.law),
        sentencings=sentencings,
        acquitted=acquitted,
        appeal=any(map(_APPEAL.search, (sections.header, sections.facts, sections.ruling))),
    )


def _read_sentencings(ruling: str) -> Iterator[Sentencing]:
    text = _REVOKED.sub("", _strip_brackets(ruling))
    matches = [m for m in _COUNT.finditer(text) if m[2] not in _PRIOR]
    current: Sentencing | None = None
    for match, following in zip_longest(matches, matches[1:]):
        segment = text[match.end() : following.start() if following else len(text)]
        if end := _ITEM_END.search(segment):
            segment = segment[: end.start()]
        if match[4] == "分别":
            raise RecordError("several terms at once")
        count = Count(_read_charge(match[3]), _read_term(segment), _read_fine(segment))
        told = match[0] + segment
        if match[1] or match[2] or current is None:
            if current is not None:
                yield from _finish(current)
            current = Sentencing(match[2].removesuffix("均"), (count,), None, 0, False, told)
        else:
            current = replace(current, counts=(*current.counts, count), text=current.text + told)
    if current is not None:
        yield from _finish(current)


def _finish(sentencing: Sentencing) -> Iterator[Sentencing]:
    """The sentence of each defendant it names, penalties of the counts joined as it says."""
    joined = _join(sentencing)
    yield from (replace(joined, defendant=name) for name in sentencing.defendant.split("、"))


def _join(sentencing: Sentencing) -> Sentencing:
    counts = sentencing.counts
    fines = sum(count.fine_yuan for count in counts)
    if joined := _COMBINED.search(sentencing.text):
        fine = _read_fine(joined[3])
        term = _make_term(joined[1], joined[2], joined[3])
        return replace(sentencing, term=term, fine_yuan=fine or fines, combined=True)
    terms = [count.term for count in counts if count.term is not None]
    if len(terms) > 1:
        raise RecordError("several penalties and none to be served")
    return replace(sentencing, term=terms[0] if terms else None, fine_yuan=fines)


def _strip_brackets(text: str) -> str:
    """Without remarks in brackets, which hold dates and terms of their own."""
    kept = _LAST_BRACKET.sub("。", text.replace("上诉人（原审被告人）", "原审被告人"))
    while (shorter := _BRACKETS.sub("", kept)) != kept:
        kept = shorter
    return kept


def _read_charge(name: str) -> str:
    if not is_charge(name):
        raise RecordError("unknown charge")
    return canonical_charge(name)


def _read_term(segment: str) -> Term | None:
    if _EXEMPT.search(segment):
        return Term("exempt")
    own = segment.split("执行")[0]
    match = _PRINCIPAL.search(own)
    return _make_term(match[1], match[2], own) if match else None


def _make_term(name: str, duration: str | None, rest: str) -> Term:
    probation = _PROBATION.search(rest)
    if duration and duration[-1] in "日天":
        raise RecordError("days in a term")
    if REPRIEVE.fullmatch(name):
        return Term("reprieve")
    try:
        return Term(
            _KINDS[name],
            parse_months(duration.replace("又", "")) if duration else 0,
            parse_months(probation[1]) if probation else 0,
        )
    except ValueError:
        raise RecordError("an impossible term") from None


def _read_fine(segment: str) -> int:
    """Fine in yuan: 二万元, 1.5万元, 人民币叁仟元, 3千元; 0 without one."""
    match = _FINE.search(segment)
    if not match and not _FINED.search(segment):
        return 0
    try:
        return parse_yuan(match[1] if match else "")
    except ValueError:
        raise RecordError("unreadable fine") from None
