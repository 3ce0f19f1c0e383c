"""Figures with their units as Chinese texts write them, and their normal form.

8000元, 8,000元, ８０００元, 0.8万元, 8千元, 八千元 and 捌仟元 are all 8000元. What is about so much
(8000余元) is read as that much. Foreign money keeps its name and is no figure here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from curt.law.numerals import parse_number

MEASURES = ("元", "克", "公斤", "吨", "立方米", "平方米", "亩", "mg/100ml")
"""Units whose figures are written in digits in the normal form, however they are spelled."""
COUNTS = (
    *("人次", "人", "名", "次", "个", "件", "部", "张", "份", "枚"),
    *("支", "条", "只", "株", "发", "台", "辆", "头", "起"),
)
"""Units whose figures keep Chinese numerals: 一人, 三次."""

_OTHER_NAMES = {
    "圆": "元",
    "块钱": "元",
    "千克": "公斤",
    "kg": "公斤",
    "g": "克",
    "公克": "克",
    "立方": "立方米",
    "棵": "株",
    "毫克/100毫升": "mg/100ml",
    "毫克/百毫升": "mg/100ml",
    "mg/100毫升": "mg/100ml",
}
_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000}
_FORMAL = str.maketrans(
    "壹贰叁肆伍陆柒捌玖拾佰仟萬億陸柒貳參〇", "一二三四五六七八九十百千万亿六七二三零"
)
HAN_NUMERALS = "零〇一二两三四五六七八九十百千万亿壹贰貳叁參肆伍陆陸柒捌玖拾佰仟萬億"
_DIGIT = "[0-9０-９]"
_NUMBER = (
    rf"{_DIGIT}{{1,3}}(?:[,，\u00a0 ]{_DIGIT}{{3}}){{1,5}}(?!{_DIGIT})(?:[.．]{_DIGIT}{{1,6}})?"
    rf"|{_DIGIT}{{1,16}}(?:[.．]{_DIGIT}{{1,6}})?"
)
_SCALE = "[余多]?(?:[十百万亿拾佰仟萬億]|千(?!克)){1,3}"  # 2千克 is no 2000克
_UNITS = sorted({*MEASURES, *COUNTS, *_OTHER_NAMES}, key=lambda name: (-len(name), name))
_FIGURE = re.compile(
    rf"(?<![0-9０-９.．A-Za-z第])"
    rf"(?:(?P<digits>(?:(?:{_NUMBER}){_SCALE}){{1,4}}(?:{_NUMBER})?|{_NUMBER})"
    rf"|(?<![{HAN_NUMERALS}])(?P<han>[{HAN_NUMERALS}]{{1,20}}))"
    rf"[余多]?(?:人民币)?(?P<unit>{'|'.join(map(re.escape, _UNITS))})",
    re.IGNORECASE,
)
_PART = re.compile(rf"({_NUMBER})([余多十百千万亿拾佰仟萬億]*)")
_SEPARATORS = re.compile("[,，\u00a0 ]")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a text: its first character, the one after its last, value and unit."""

    start: int
    end: int
    value: float
    unit: str


def read_figures(text: str) -> Iterator[Figure]:
    """The figures of a text in their order; what can't be read as a number is passed over."""
    for match in _FIGURE.finditer(text.replace("／", "/")):
        named = match["unit"].lower()
        try:
            value = _read_digits(match["digits"]) if match["digits"] else _read_han(match["han"])
        except ValueError:  # 万元, 百元: words and no number
            continue
        yield Figure(match.start(), match.end(), value, _OTHER_NAMES.get(named, named))


def parse_yuan(text: str) -> int:
    """A sum of money that is the whole text, in yuan: 人民币叁仟元, 1万2千元, 2000.

    Raises ValueError on anything else.
    """
    plain = text.strip().removeprefix("人民币").removeprefix("人民").removesuffix("整").strip()
    plain = plain if plain.endswith(("元", "圆", "块钱")) else f"{plain}元"
    figures = list(read_figures(plain))
    if [(f.start, f.end, f.unit) for f in figures] != [(0, len(plain), "元")]:
        raise ValueError(f"not a sum of money: {text!r}")
    return round(figures[0].value)


def write_figure(value: float) -> str:
    """A number in digits, without zeros after its last decimal: 0.9, 1272400."""
    return f"{value:.0f}" if value == int(value) else f"{value:.6f}".rstrip("0")


def normalise_figures(text: str) -> str:
    """A text with its measures in digits: 4.69万元 and 四万六千九百元 become 46900元.

    Counted things keep Chinese numerals; their digits lose separators and scales as measures do.
    """
    pieces, last = [], 0
    for figure in read_figures(text):
        if figure.unit in COUNTS and text[figure.start] in HAN_NUMERALS:
            continue
        pieces += [text[last : figure.start], write_figure(figure.value), figure.unit]
        last = figure.end
    return "".join([*pieces, text[last:]])


def _read_digits(text: str) -> float:
    """1万2千 is 12,000: the parts add up, each at its own scale."""
    total = 0.0
    for number, scales in _PART.findall(text):
        value = float(_SEPARATORS.sub("", unicodedata.normalize("NFKC", number)))
        for scale in scales.translate(_FORMAL):
            value *= _SCALES.get(scale, 1)
        total += value
    return round(total, 6)


def _read_han(text: str) -> float:
    """A Chinese number of any size: 一亿二千万 is 120,000,000. Raises ValueError on others."""
    plain = text.translate(_FORMAL)
    if plain[0] in "百千万亿零":
        raise ValueError(f"not a number: {text!r}")
    return float(_read_scaled(plain))


def _read_scaled(text: str) -> int:
    for scale in "亿万":
        high, found, low = text.partition(scale)
        if found:
            return _read_scaled(high) * _SCALES[scale] + (_read_scaled(low) if low else 0)
    return parse_number(text)
