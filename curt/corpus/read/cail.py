"""Records with labels as cases: CAIL2018, and releases that name its columns otherwise.

The labels say less than a judgment does; this is what is done about it:

- `imprisonment` is a number of months without a kind. Imprisonment (有期徒刑) is six months at
  least (Criminal Law, article 45), so fewer months are read as 拘役, and so are up to twelve
  where none of the charges carries imprisonment (危险驾驶). Everything else is 有期徒刑. A 管制
  cannot be told apart and is read the same way.
- 0 months without life or death is read as exempt. Some of these were sentences of a fine alone,
  which keep their `fine_yuan`.
- Articles are bare numbers; `locate_article` gives 133 back its 之一 where the charge says so.
  Where a release has no column of them, the article that defines the charge stands for them.
- Probation is not labelled in CAIL2018, so it is 0.

Facts are kept as they are, without HTML and without a blank after every character. One that repeats
a recommended sentence carries the trait `RECOMMENDATION`, since it hands over part of the answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from curt.corpus.case import Case
from curt.corpus.read.documents import RULING_MARK, plain_text
from curt.corpus.read.extract import extract_reasoning
from curt.corpus.read.judgments import read_document
from curt.corpus.read.records import RecordError
from curt.dialogue import THINK_END, ParseFailure, normalise_fact, parse_answer, parse_term
from curt.dialogue.answer import ARTICLES_LINE
from curt.law.figures import parse_yuan
from curt.law.numerals import article_order, parse_months
from curt.law.statutes import CHARGES, MIN_FIXED_MONTHS, canonical_charge, is_charge, locate_article
from curt.law.verdict import MAX_MONTHS, MAX_PROBATION_MONTHS, TERM_NAMES, Term, Verdict

SOURCE = "cail2018"
RECOMMENDATION = "recommended sentence in the facts"
REASONING = "terse"  # the verbosity under which extracted evidence is filed
MAX_ONE_CHARGE_MONTHS = 240
"""More is reached only where sums of 35 years are joined (article 69)."""

_RECOMMENDATION = re.compile(r"建议[^。；]{0,30}(?:判处|量刑|适用缓刑)|量刑建议")
_MASKED = re.compile(r"[×＊*某]|[Xx]{2}")
_FLAGS = {
    **dict.fromkeys(("true", "1", "1.0"), True),
    **dict.fromkeys(("false", "0", "0.0", "none", ""), False),
}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "fact": ("facts", "justice", "案情", "事实", "犯罪事实", "input", "instruction", "question",
             "prompt"),
    "charges": ("accusation", "accusations", "charge", "caseCause", "Crime Type", "罪名", "案由"),
    "articles": ("relevant_articles", "relevant_article", "article", "laws", "law", "法条"),
    "term": ("imprisonment", "term_of_imprisonment", "penalty", "sentence", "judge", "刑期"),
    "fine": ("punish_of_money", "fine_yuan", "罚金"),
    "probation": ("probation_months", "缓刑"),
    "defendants": ("criminals_info", "outcomes", "labels"),
    "name": ("subject", "defendant", "姓名"),
    "document": ("text", "content", "Full Document", "全文"),
    "answer": ("output", "response", "completion", "chosen"),
}  # fmt: skip
"""The columns that known releases have for each part of a case; the first one that is filled."""


def read_records(row: Any) -> Iterator[Case | RecordError]:
    """A row's case, or one a defendant, or that of a judgment; RecordErrors for what gives none."""
    told, _ = take_columns(row)
    people = told.get("defendants")
    if isinstance(people, Mapping):
        people = [{"name": n, **p} for n, p in people.items() if isinstance(p, Mapping)]
    people = _objects(people)
    if "charges" in told or not people:
        if "document" in told and not told.keys() & {"charges", "answer"}:
            yield from read_document({"document": told["document"]})
        else:
            yield _make_case(told)
        return
    for number, person in enumerate(people, start=1):
        try:
            yield _make_case({**told, **take_columns(person)[0]}, number * (len(people) > 1))
        except RecordError as error:
            yield error


def take_columns(row: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """A row with its parts under the names of `COLUMNS`, and the column each was found in."""
    if not isinstance(row, Mapping):
        raise RecordError("not an object")
    flat = dict(row)
    for nest in ("meta", "term_of_imprisonment", "penalty"):
        if isinstance(flat.get(nest), Mapping):
            flat |= flat.pop(nest)
    turns = _objects(flat.get("conversations") or flat.get("messages"))
    if sum(turn.get("from", turn.get("role")) in ("human", "user") for turn in turns) > 1:
        raise RecordError("several questions")
    for turn in turns:
        role, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        flat["answer" if role in ("gpt", "assistant") else "fact"] = text
    filled = {name for name, value in flat.items() if value not in (None, "") and value == value}
    columns = {
        part: name
        for part, names in COLUMNS.items()
        for name in reversed((part, *names))
        if name in filled
    }
    return flat | {part: flat[name] for part, name in columns.items()}, columns


def _make_case(told: Mapping[str, Any], number: int = 0) -> Case:
    fact = told.get("fact")
    if isinstance(fact, list) and all(isinstance(paragraph, str) for paragraph in fact):
        fact = "\n".join(fact)
    if not isinstance(fact, str) or not normalise_fact(fact := plain_text(fact)):
        raise RecordError("no fact")
    if 0 <= fact.find("本院认为") < fact.rfind(RULING_MARK):
        raise RecordError("the ruling in the facts")
    if not number and len(_items(told.get("criminals", told.get("defendants")))) > 1:
        raise RecordError("several defendants")
    evidence = extract_reasoning(fact)
    digest = hashlib.sha256(normalise_fact(fact).encode()).hexdigest()[:16]
    return Case(
        id=f"cail-{digest}-{number}" if number else f"cail-{digest}",
        fact=f"{fact}本案被告人：{told.get('name', number)}。" if number else fact,
        verdict=_read_verdict(told),
        source=SOURCE,
        reasonings={REASONING: evidence} if evidence else {},
        traits=(RECOMMENDATION,) if _RECOMMENDATION.search(fact) else (),
    )


def _read_verdict(told: Mapping[str, Any]) -> Verdict:
    if "answer" in told and "charges" not in told:
        verdict = parse_answer(str(told["answer"]).rpartition(THINK_END)[2])
        if isinstance(verdict, ParseFailure):
            raise RecordError("unreadable answer")
        return verdict
    charges = _read_charges(told.get("charges"))
    defining = tuple(dict.fromkeys(CHARGES[charge].articles[0] for charge in charges))
    told = {**told, **{p: 0 for p in ("fine", "probation") if told.get(p) in ("无", "否")}}
    term = _read_term(told, charges)
    probation = _read_whole(told.get("probation", 0), "term", parse_months)
    if probation > MAX_PROBATION_MONTHS:
        raise RecordError("an impossible term")
    return Verdict(
        charges=charges,
        articles=_read_articles(told["articles"], charges) if "articles" in told else defining,
        term=replace(term, probation_months=probation) if probation else term,
        fine_yuan=_read_whole(told.get("fine", 0), "fine", parse_yuan),
    )


def _objects(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _items(value: Any) -> list[str]:
    """What a list holds, or text that spells one: ['盗窃'], 盗窃；诈骗, 264,67."""
    listed = re.split(r"[；;,，\s]+", value) if isinstance(value, str) else value
    listed = listed if isinstance(listed, list) else [] if listed is None else [listed]
    return [item for each in listed if (item := str(each).strip("[]【】'\" "))]


def _read_charges(value: Any) -> tuple[str, ...]:
    listed = _items(value)
    names = [n for item in listed for n in ([item] if is_charge(item) else item.split("、"))]
    if not names:
        raise RecordError("no charge")
    if any(map(_MASKED.search, names)):
        raise RecordError("masked charge")
    if not all(map(is_charge, names)):
        raise RecordError("unknown charge")
    return tuple(dict.fromkeys(map(canonical_charge, names)))


def _read_articles(value: Any, charges: tuple[str, ...]) -> tuple[str, ...]:
    if not (items := _items(value)):
        raise RecordError("no article")
    try:
        found = ARTICLES_LINE.parse("；".join(items))
    except ValueError:
        raise RecordError("unreadable article") from None
    articles = {locate_article(int(a), charges) if a.isdigit() else a for a in found}
    return tuple(sorted(articles, key=article_order))


def _read_term(told: Mapping[str, Any], charges: tuple[str, ...]) -> Term:
    if _read_flag(told, "death_penalty"):
        return Term("death")
    if _read_flag(told, "life_imprisonment"):
        return Term("life")
    for kind in ("detention", "surveillance"):
        if told.get(kind):
            told = {**told, "term": f"{TERM_NAMES[kind]}{told[kind]}个月"}
    if "term" not in told:
        raise RecordError("no term")
    parse = parse_term if re.search("[刑役制]", str(told["term"])) else parse_months
    months = _read_whole(told["term"], "term", parse)
    if isinstance(months, Term):
        return months
    if months > (MAX_ONE_CHARGE_MONTHS if len(charges) == 1 else MAX_MONTHS["fixed"]):
        raise RecordError("term over the legal maximum")
    if months == 0:
        return Term("exempt")
    imprisons = any(
        tier.max_months for charge in charges for tier in CHARGES[charge].tiers
    ) or not any(CHARGES[charge].tiers for charge in charges)
    if months < MIN_FIXED_MONTHS or (not imprisons and months <= MAX_MONTHS["detention"]):
        return Term("detention", months)
    return Term("fixed", months)


def _read_flag(term: Mapping[str, Any], name: str) -> bool:
    """True, 1 and "true" in any case hold, as do their opposites; nothing at all is False."""
    value = term.get(name)
    known = _FLAGS.get(str(value).strip().lower())
    if known is None:
        raise RecordError(f"unreadable flag: {name} is {str(value)[:20]!r}")
    return known


def _read_whole(value: Any, name: str, parse: Callable[[str], Any] = float) -> Any:
    """A whole number of 0 or more, also as text or as 3.0; what else `parse` makes of a text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        try:
            return parse(value.strip())
        except (AttributeError, ValueError):
            raise RecordError(f"unreadable {name}") from None
    if isinstance(value, bool) or not number.is_integer() or number < 0:
        raise RecordError(f"unreadable {name}")
    return int(number)
