"""Reasoning for real cases, extracted from the facts by rule and invented by nobody.

A real case has no chain of thought. What can be had without a judge is the evidence that a
sentence turns on, quoted or normalised from the facts: `轻伤二级；自首；谅解；赔偿70000元`.
The labels are never read, so the line holds nothing that the facts do not.

The rules, in the order in which their items stand:

| item | rule |
|---|---|
| 死亡, 死亡2人 | a person died: 致二人死亡, 抢救无效死亡, 被害人…死亡 |
| 重伤二级, 轻伤一级 | the gravest grade; 轻微伤 only when nothing graver is named |
| 全部责任 | blame in a traffic accident, and 逃逸 |
| 海洛因2.5克 | the largest total (共计, 合计), else the largest weight, with the drug named most |
| 血醇150mg | the alcohol in 100 ml of blood |
| 林木31株, 蓄积30.85立方米 | the largest count and volume |
| 金额5000元 | the largest total of the offence, else the largest single amount |
| 3起 | how often, where the facts say 作案3起, 贩卖毒品3次 |
| 入户, 持械, 未遂, 从犯, … | circumstances by their terms of art |
| 赔偿70000元 | the largest compensation |

A clause with 不, 未, 没, 无 or 非 before a circumstance does not count. What counsel claims and
the court later rejects is beyond such rules.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from curt.law.numerals import parse_number

MAX_CHARACTERS = 40
SEPARATOR = "；"

_NUMBER = r"([0-9]{1,12}(?:\.[0-9]{1,6})?)"
_HAN_NUMBER = "[一二两三四五六七八九十][一二两三四五六七八九十百千零]*"
_AMOUNT = re.compile(rf"(?:{_NUMBER}|({_HAN_NUMBER}))([万亿]?)[余多]?元")
_TOTAL = r"(?:共计|合计|总计|累计|总价值|价值共|总额|总净重|总重)"
_GAIN = (
    r"(?:价值|骗取|骗走|骗得|骗到|诈骗|窃得|窃取|盗走|盗窃|盗取|抢走|抢得|抢劫|劫得|收受|贪污|"
    r"受贿|挪用|侵占|索要|敲诈|勒索|数额|金额|税额|税款|销售额|获利|违法所得|非法所得)"
)
_COMPENSATION = re.compile(r"赔偿|退赔|退赃|谅解|返还|退还|医疗费|罚款|罚金|补偿")
_CLAUSE = re.compile(r"[^，,。；;：:]+")
_SENTENCE = re.compile(r"[^。；;]+")
_NEGATION = re.compile(r"[不未没无非否]")

_TABLES: Mapping[str, Mapping[str, str]] = tomllib.loads(
    Path(__file__).with_name("evidence.toml").read_text(encoding="utf-8")
)
_DRUGS, _CIRCUMSTANCES = (tuple(_TABLES[name].items()) for name in ("drugs", "circumstances"))
_GRADES = ("重伤一级", "重伤二级", "重伤", "轻伤一级", "轻伤二级", "轻伤")
_PEOPLE = r"([0-9]{1,3}|[一二两三四五六七八九十]{1,3})(?:人|名)"
_THOUSANDS = re.compile(r"(?<=[0-9])[,，](?=[0-9]{3}(?![0-9]))")

_INCLUDES = {"前科": "累犯", "坦白": "自首"}
_NEGATIVE_TERMS = frozenset({"未遂", "未成年犯", "幼女", "无证"})


def extract_reasoning(fact: str) -> str:
    """The evidence in a fact as one line of at most `MAX_CHARACTERS`, empty when none is found.

    An item that no longer fits is left out and a shorter one may follow. The result depends on
    the fact alone.
    """
    line = ""
    for item in _items(_THOUSANDS.sub("", fact)):
        longer = f"{line}{SEPARATOR}{item}" if line else item
        if len(longer) <= MAX_CHARACTERS:
            line = longer
    return line


def _items(fact: str) -> Iterator[str]:
    drugs, alcohol = _drugs(fact), _alcohol(fact)
    yield from filter(None, (_death(fact), _injury(fact), *_accident(fact), drugs, alcohol))
    yield from _timber(fact)
    # a drug's price and a car's damage decide nothing
    if not drugs and not alcohol and (amount := _gain_yuan(fact)):
        yield f"金额{amount}元"
    if times := re.search(
        r"(?:作案|盗窃|诈骗|抢劫|贩卖|贩毒|容留)[^，。；0-9]{0,10}?([0-9]{1,2})(?:次|起)(?!事故)",
        fact,
    ):
        yield f"{times[1]}起"
    found: set[str] = set()
    for name, pattern in _CIRCUMSTANCES:
        if _INCLUDES.get(name) not in found and _holds(fact, pattern, name):
            found.add(name)
            yield name
    if paid := _largest_yuan(_clauses_with(fact, r"赔偿|补偿"), exclude=None):
        yield f"赔偿{paid}元"


def _holds(fact: str, pattern: str, name: str) -> bool:
    """Whether a circumstance stands in some clause without a negation before it."""
    for clause in _CLAUSE.findall(fact):
        match = re.search(pattern, clause)
        if match and (
            name in _NEGATIVE_TERMS or not _NEGATION.search(clause[: match.start()][-8:])
        ):
            return True
    return False


def _death(fact: str) -> str:
    if many := re.search(rf"(?:致|造成)[^，。；]{{0,8}}?{_PEOPLE}(?:当场)?死亡", fact):
        count = parse_number(many[1])
        return f"死亡{count}人" if count > 1 else "死亡"
    pattern = (
        r"(?:抢救无效|当场|被害人[^，。；]{0,16}|致[^，。；]{0,10})[^。；，]{0,12}死亡"
        r"(?!赔偿|证|医学)"
    )
    return "死亡" if re.search(pattern, fact) else ""


def _injury(fact: str) -> str:
    grade = next((g for g in _GRADES if g in fact), "")
    return grade or ("轻微伤" if "轻微伤" in fact else "")


def _accident(fact: str) -> Iterator[str]:
    if "事故" not in fact or not re.search(r"驾驶|车", fact):
        return
    if blame := re.search(r"[负承担]{1,2}[^，。；]{0,8}?(全部|主要|同等|次要)责任", fact):
        yield f"{blame[1]}责任"
    if _holds(fact, r"逃逸|逃离现场|驶离现场", "逃逸"):
        yield "逃逸"


def _drugs(fact: str) -> str:
    if not re.search("|".join(pattern for _, pattern in _DRUGS), fact):
        return ""
    weights = [
        (bool(m["total"]), float(m["grams"]) * (1000 if m["kilo"] else 1))
        for m in re.finditer(
            rf"(?P<total>{_TOTAL}[^，。；\d]{{0,14}})?(?<![0-9.])(?P<grams>[0-9]{{1,9}}(?:\.[0-9]{{1,6}})?)余?"
            r"(?P<kilo>千|公斤)?(?:(?<=公斤)|克|g(?![a-zA-Z/]))",
            fact,
        )
    ]
    if not weights:
        return ""
    _, grams = max(weights)
    # the general word comes last, so any drug that is named wins a tie
    counts = [(len(re.findall(pattern, fact)), name) for name, pattern in _DRUGS[:-1]]
    most, name = max(counts, key=lambda pair: pair[0])
    return f"{name if most else '毒品'}{_plain(grams)}克"


def _alcohol(fact: str) -> str:
    if not re.search(r"乙醇|酒精|血醇|醉酒", fact):
        return ""
    values = [
        float(m[1])
        for m in re.finditer(rf"{_NUMBER}\s*(?:mg|MG|㎎|毫克)\s*[/／]\s*(?:100|1)", fact)
    ]
    values = [v for v in values if 20 <= v <= 600]
    return f"血醇{_plain(max(values))}mg" if values else ""


def _timber(fact: str) -> Iterator[str]:
    if not re.search(r"采伐|砍伐|盗伐|滥伐|蓄积|立木|林木", fact):
        return
    if trees := [int(m) for m in re.findall(r"([0-9]{1,9})\s*余?[株棵]", fact)]:
        yield f"林木{max(trees)}株"
    if volumes := [float(m) for m in re.findall(rf"{_NUMBER}\s*(?:立方米|m³|m3)", fact)]:
        yield f"蓄积{_plain(max(volumes))}立方米"


def _gain_yuan(fact: str) -> int:
    totals = _clauses_with(fact, _TOTAL)
    gains = _clauses_with(fact, _GAIN)
    return _largest_yuan(totals, _COMPENSATION) or _largest_yuan(gains, _COMPENSATION)


def _clauses_with(fact: str, pattern: str) -> list[str]:
    return [c for c in _CLAUSE.findall(fact) if re.search(pattern, c)]


def _largest_yuan(clauses: list[str], exclude: re.Pattern[str] | None) -> int:
    amounts = [
        _read_yuan(match)
        for clause in clauses
        if exclude is None or not exclude.search(clause)
        for match in _AMOUNT.finditer(clause)
    ]
    return max(amounts, default=0)


def _read_yuan(match: re.Match[str]) -> int:
    digits, words, unit = match.groups()
    scale = {"": 1, "万": 10_000, "亿": 100_000_000}[unit]
    return round((float(digits) if digits else parse_number(words)) * scale)


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
