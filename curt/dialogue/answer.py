"""What a model writes: `{thinking}</think>{answer}`; an answer is one field a line:

    罪名：盗窃；诈骗
    法条：264；266
    刑期：有期徒刑8个月
    缓刑：12个月
    罚金：2000元

`LINES` is the grammar, and the renderer, the parser, the pattern for a constrained decoder and the
description for a model that does not know it follow it: another optional line is one more entry,
and a field of `Verdict` to hold it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import permutations
from typing import Any

from curt.law.figures import parse_yuan
from curt.law.numerals import (
    LAST_ARTICLE,
    article_order,
    parse_article,
    parse_months,
    write_article,
    write_months,
)
from curt.law.statutes import CHARGES, canonical_charge
from curt.law.verdict import (
    COUNTED_KINDS,
    MAX_MONTHS,
    MAX_PROBATION_MONTHS,
    REPRIEVE,
    TERM_NAMES,
    Term,
    Verdict,
)

THINK_START, THINK_END = "<think>", "</think>"
MAX_ANSWER_TOKENS = 64
RECENT = 1024  # values of a line to remember: most are those of an earlier answer
MOST_CHARGES, MOST_ARTICLES = 4, 8  # in a pattern: more would not fit the tokens of an answer

_SEPARATOR = "；"  # never 、, which stands inside charge names (走私、贩卖、运输、制造毒品)
_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
_MARKS = re.compile(r"^[\s>#*•-]+|\*\*|`")  # of Markdown
_NOTHING = {"无", "没有", "不适用", "无缓刑", "无罚金"}
# 《刑法》第二百六十四条第一款: only the article counts.
_CITED = re.compile(
    "(?:《?(?:中华人民共和国)?刑法》?)?(.*?)(?:第?[0-9零〇一二两三四五六七八九十]{1,4}[款项])*"
)


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A completion that holds no readable verdict: data for the reward, not an exception."""

    reason: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One model output, split at the end of thinking. Lengths are tokens, never characters."""

    thinking: str
    answer: str
    verdict: Verdict | ParseFailure
    thinking_closed: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One line of an answer: how a part of a verdict is written and read.

    `parse` gives the value of the verdict's (or its term's) field and raises ValueError where
    there is none. `pattern` is a regular expression of what `render` writes.
    """

    name: str
    field: str
    render: Callable[[Verdict], str]
    parse: Callable[[str], Any]
    pattern: Callable[[], str]
    hint: str
    """What stands in the line, told to a model that was not trained on it."""
    required: bool = True
    """Optional lines are left out where `render` gives nothing."""

    @property
    def label(self) -> str:
        """What the line begins with: 罪名："""
        return f"{self.name}："


def render_term(term: Term) -> str:
    """The principal penalty in the answer grammar: 有期徒刑8个月, 无期徒刑."""
    months = f"{term.months}个月" if term.kind in COUNTED_KINDS else ""
    return TERM_NAMES[term.kind] + months


@lru_cache(maxsize=RECENT)
def parse_term(text: str) -> Term:
    """Read a sentence: 有期徒刑三年六个月 (42 months), 拘役四个月，缓刑六个月, 无期徒刑, 死缓.

    Raises ValueError when no penalty can be read.
    """
    principal, _, probation = text.strip().partition("缓刑")
    principal = principal.strip("，,、 ；")
    probation_months = parse_months(probation.strip("，。 ")) if probation else 0
    if REPRIEVE.match(principal):
        return Term("reprieve")
    for kind, name in TERM_NAMES.items():
        if not principal.startswith(name):
            continue
        rest = principal[len(name) :]
        if kind in COUNTED_KINDS:
            return Term(kind, parse_months(rest), probation_months)
        return Term(kind, probation_months=probation_months)
    if principal.startswith("免"):  # 免予刑事处分, 免除处罚
        return Term("exempt")
    raise ValueError(f"not a penalty: {text!r}")


@lru_cache(maxsize=RECENT)
def parse_fine(text: str) -> int:
    """Read a fine in yuan: 2000元, 人民币五千元, 1.5万元, 叁仟元. Raises ValueError otherwise."""
    return parse_yuan(text)


@lru_cache(maxsize=RECENT)
def _parse_charges(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(canonical_charge(charge) for charge in _split(text)))


@lru_cache(maxsize=RECENT)
def _parse_articles(text: str) -> tuple[str, ...]:
    cited = (_CITED.fullmatch(part) for part in _split(text, "[；;、,，]"))
    articles = {parse_article(match[1]) for match in cited if match and match[1]}
    if not articles:
        raise ValueError(f"not an article: {text!r}")
    return tuple(sorted(articles, key=article_order))


def _split(text: str, marks: str = "[；;]") -> list[str]:
    return [part.strip() for part in re.split(marks, text) if part.strip()]


def _charges_pattern() -> str:
    names = sorted(CHARGES, key=lambda name: (-len(name), name))
    return _list_of(_any_of(map(re.escape, names)), MOST_CHARGES)


def charge_lists(charges: Sequence[str]) -> list[str]:
    """How the line of charges may read that names some of `charges`, each once, in any order."""
    counts = range(1, min(len(charges), MOST_CHARGES) + 1)
    return [_SEPARATOR.join(names) for n in counts for names in permutations(charges, n)]


def _articles_pattern() -> str:
    article = _any_of(str(n) for n in range(1, LAST_ARTICLE + 1)) + "(之[一二三四五六七八九])?"
    return _list_of(article, MOST_ARTICLES)


def _term_pattern() -> str:
    return _any_of(
        f"{name}{_up_to(MAX_MONTHS[kind])}个月" if kind in COUNTED_KINDS else name
        for kind, name in TERM_NAMES.items()
    )


def _any_of(choices: Iterable[str]) -> str:
    return f"({'|'.join(choices)})"


def _list_of(item: str, most: int) -> str:
    return f"{item}({_SEPARATOR}{item}){{0,{most - 1}}}"


def _up_to(most: int) -> str:
    return _any_of(str(number) for number in range(1, most + 1))


CHARGES_LINE = Line(
    "罪名",
    "charges",
    lambda v: _SEPARATOR.join(v.charges),
    _parse_charges,
    _charges_pattern,
    "不带“罪”字，多个用“；”分开",
)
ARTICLES_LINE = Line(
    "法条",
    "articles",
    lambda v: _SEPARATOR.join(sorted(v.articles, key=article_order)),
    _parse_articles,
    _articles_pattern,
    "刑法条文的序号，多个用“；”分开",
)
TERM_LINE = Line(
    "刑期",
    "term",
    lambda v: render_term(v.term),
    parse_term,
    _term_pattern,
    "有期徒刑、拘役或管制，后面写月数；或者无期徒刑、死刑、免予刑事处罚",
)
PROBATION_LINE = Line(
    "缓刑",
    "probation_months",
    lambda v: f"{v.term.probation_months}个月" if v.term.probation_months else "",
    parse_months,
    lambda: f"{_up_to(MAX_PROBATION_MONTHS)}个月",
    "月数，没有就不写这一行",
    required=False,
)
FINE_LINE = Line(
    "罚金",
    "fine_yuan",
    lambda v: f"{v.fine_yuan}元" if v.fine_yuan else "",
    parse_fine,
    lambda: "[1-9][0-9]{0,8}元",
    "元数，没有就不写这一行",
    required=False,
)
LINES = (CHARGES_LINE, ARTICLES_LINE, TERM_LINE, PROBATION_LINE, FINE_LINE)
"""The answer grammar, in the order its lines are written; required lines come first."""

_LINE = re.compile(rf"({'|'.join(line.name for line in LINES)})[：:](.*)")


def render_completion(thinking: str, verdict: Verdict) -> str:
    """The target text of a training example, without the end-of-turn token."""
    return f"{thinking}{THINK_END}{render_answer(verdict)}"


def render_answer(verdict: Verdict) -> str:
    """The compact answer of the grammar."""
    texts = ((line, line.render(verdict)) for line in LINES)
    return "\n".join(line.label + text for line, text in texts if text or line.required)


EXAMPLE_ANSWER = render_answer(
    Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 8, probation_months=12), 2000)
)


def describe_grammar() -> str:
    """The grammar in words, for the prompt of a model that was not trained on it."""
    lines = "\n".join(line.label + line.hint for line in LINES)
    return f"推理写完后写{THINK_END}，再只写下面各行，不写别的：\n{lines}\n例如：\n{EXAMPLE_ANSWER}"


def parse_completion(text: str) -> Completion:
    """Split a completion into thinking and answer and read the verdict; never raises.

    A completion whose thinking was not closed has no answer and so no verdict.
    """
    body = text.removeprefix(THINK_START)
    thinking, closed, answer = body.partition(THINK_END)
    if not closed:
        return Completion(body, "", ParseFailure("thinking not closed"), thinking_closed=False)
    return Completion(thinking, answer.strip(), parse_answer(answer), thinking_closed=True)


def parse_answer(text: str) -> Verdict | ParseFailure:
    """Read an answer of the grammar as models write it.

    Chinese numerals, aliases of charges, citations (《刑法》第二百六十四条第一款), Markdown, empty
    lines and 缓刑：无 are understood.
    """
    given: dict[str, str] = {}
    for row in text.translate(_DIGITS).splitlines():
        row = _MARKS.sub("", row).strip()
        if not row:
            continue
        match = _LINE.fullmatch(row)
        if not match:
            return ParseFailure("a line outside the grammar")
        if match[1] in given:
            return ParseFailure(f"{match[1]} given twice")
        given[match[1]] = match[2].strip(" \t。")
    given = {name: value for name, value in given.items() if value not in _NOTHING}
    for line in LINES:
        if line.required and not given.get(line.name):
            return ParseFailure(f"{line.name} missing")
    try:
        fields = {line.field: line.parse(given[line.name]) for line in LINES if line.name in given}
        if (probation_months := fields.pop(PROBATION_LINE.field, None)) is not None:
            fields["term"] = replace(fields["term"], probation_months=probation_months)
        return Verdict(**fields)
    except ValueError as error:
        return ParseFailure(str(error))


@lru_cache(maxsize=1)
def answer_pattern() -> str:
    """A regular expression of all answers `parse_answer` reads, as `render_answer` writes them.

    Only charges of the statute table, and only months a term of their kind may have.
    """
    required = "\\n".join(line.label + line.pattern() for line in LINES if line.required)
    optional = (f"(\\n{line.label}{line.pattern()})?" for line in LINES if not line.required)
    return required + "".join(optional)


def render_ruling(verdict: Verdict, defendant: str = "被告人") -> str:
    """The operative part of a judgment (判决主文) that states this verdict, for people to read."""
    term = verdict.term
    months = write_months(term.months) if term.kind in COUNTED_KINDS else ""
    charges = "、".join(f"{c}罪" for c in verdict.charges)
    if term.kind == "exempt":
        text = f"{defendant}犯{charges}，免予刑事处罚"
    else:
        text = f"{defendant}犯{charges}，判处{TERM_NAMES[term.kind]}{months}"
    if term.probation_months:
        text += f"，缓刑{write_months(term.probation_months)}"
    if verdict.fine_yuan:
        text += f"，并处罚金人民币{verdict.fine_yuan}元"
    basis = "、".join(write_article(a) for a in verdict.articles)
    return f"依照《中华人民共和国刑法》{basis}之规定，{text}。"
