"""Figures with their units as Chinese texts write them, and their normal form.

8000元, 8,000元, ８０００元, ￥8000, 0.8万元, 八千元 and 捌仟元整 are all 8000元. What is about so
much (8000余元) is read as that much, a sum that is told twice (8000元（捌仟元整）) once. Foreign
money keeps its name and is no figure here: no rate is told that a court would change it at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from math import prod
from unicodedata import numeric

from curt.law.numerals import parse_number, write_number

MEASURES = ("元", "克", "公斤", "吨", "立方米", "平方米", "亩", "mg/100ml")
"""Units whose figures are written in digits in the normal form, however they are spelled."""
COUNTS = (
    *("人次", "人", "名", "次", "个", "件", "部", "张", "份", "枚"),
    *("支", "条", "只", "株", "发", "台", "辆", "头", "起"),
)
"""Units whose figures keep Chinese numerals: 一人, 三次."""

_OTHER_NAMES: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("圆", "块钱", "块", "人民币", "rmb", "cny"), ("元", 1)),
    **dict.fromkeys(("g", "公克"), ("克", 1)),
    **dict.fromkeys(("mg", "㎎", "毫克"), ("克", 0.001)),
    **dict.fromkeys(("kg", "㎏", "千克"), ("公斤", 1)),
    **dict.fromkeys(("斤", "市斤"), ("公斤", 0.5)),
    **{"两": ("克", 50), "立方": ("立方米", 1), "棵": ("株", 1)},
}
# Alcohol in blood is any mass in any volume, which is told before it or after.
_VOLUME = "(?P<volume>(?:[1l][0o]{2}|一?百) ?(?:ml|毫升|㎖|m1)|dl|㎗|分升|ml|毫升|l(?![a-z0-9])|升)"
_IN_100_ML = {"ml": 100, "毫升": 100, "l": 0.1, "升": 0.1}
_BREATH = "吹气|吹出|吹了|抽血|验血|血检|测出来|血液酒精|酒精"
_IN_BLOOD = re.compile(
    rf"(?:每{_VOLUME}[^。；，]{{0,24}}|(?:{_BREATH}|乙醇)[^。；，]{{0,14}}|测出)$", re.IGNORECASE
)
_BLOWN = re.compile(f"(?:(?:{_BREATH})[^。；，,0-9]{{0,6}}|测出)$")
_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000, "亿": 100_000_000, "w": 10_000, "k": 1000}
_FORMAL = str.maketrans(
    {
        **dict(zip("壹贰叁肆伍陆柒捌玖拾佰仟", "一二三四五六七八九十百千", strict=True)),
        **{"萬": "万", "億": "亿", "陸": "六", "貳": "二", "參": "三", "〇": "零"},
        **{"廿": "二十", "卅": "三十", "W": "w", "K": "k", "俩": "二", "仨": "三"},
        **dict.fromkeys("余多来几", ""),
    }
)
# As many characters as before, so that places in the text stay.
_HALF_WIDTH = str.maketrans(
    {chr(code): chr(code - 0xFEE0) for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()}
    | {"．": ".", "／": "/", "￥": "¥"}
)
_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ．／￥]")
HAN_NUMERALS = "零〇一二两三四五六七八九十百千万亿壹贰貳叁參肆伍陆陸柒捌玖拾佰仟萬億廿卅俩仨"
_ABOUT_SO = "[余多来几]?"
_GAP = "[ \u00a0]?"
_NUMBER = (
    r"[0-9]{1,3}(?:[,，'’\u00a0 ][0-9]{3}){1,5}(?![0-9])(?:[.][0-9]{1,6})?"
    r"|[0-9]{1,16}(?:[.][0-9]{1,6})?"
)
# 2千克 is no 2000克
_SCALE = (
    rf"{_ABOUT_SO}(?:{_GAP}[十百万亿拾佰仟萬億]|{_GAP}千(?!克)"
    r"|[wk](?=[元块多余几，。；、！？,;）)（(]|左右|$)){1,3}"
)
_UNITS = sorted({*MEASURES, *COUNTS, *_OTHER_NAMES}, key=lambda name: (-len(name), name))
_END = "(?=[，。；、！？,;）)（(]|左右|$)"
# Words that these units stand in, too: 六块电瓶, 一两天, 半斤白酒, 规格5mg×10片
_GUARDS = {
    **{"块": rf"(?:{_END}|(?=[多的给现]))", "两": rf"(?:{_END}|(?=[多海冰]))"},
    **{"人民币": rf"(?:{_END}|(?=[的给现]))", "斤": "(?![白米黄红啤高]*酒)"},
    **dict.fromkeys(("mg", "毫克", "㎎"), "(?![×*xl/])"),
}
_NAMES = "|".join(re.escape(name) + _GUARDS.get(name, "") for name in _UNITS)
_FOREIGN = (
    "美元|美金|美钞|港元|港币|港纸|新台币|台币|澳门元|澳门币|葡币|欧元|英镑|日元|日圆|韩元|韩币|越南盾|泰铢|"
    "缅币|缅元|卢布|卢比|澳元|澳币|加元|加币|新加坡元|新加坡币|瑞士法郎|法郎|林吉特|马币|比索|迪拉姆|"
    "泰达币|比特币|以太币|USDT|USD|HKD|EUR|GBP|JPY|TWD"
)
_SIGNS = {"US$": "美元", "HK$": "港元", "NT$": "新台币", "$": "美元", "€": "欧元", "£": "英镑"}
_ABOUT = "(?:大约|约合|约|共计|合计|总计|共|近)?"
_FIGURE = re.compile(
    rf"(?<![0-9.A-Za-z第])(?P<sign>(?:¥|RMB|CNY){_GAP})?"
    rf"(?:(?P<digits>(?:(?:{_NUMBER}){_SCALE}零?){{1,4}}(?:{_NUMBER})?|{_NUMBER})"
    rf"|(?<![{HAN_NUMERALS}])(?P<han>[{HAN_NUMERALS}]{{1,30}}(?:点[零〇一二三四五六七八九]{{1,6}}[百千万亿]?)?"
    rf"(?:{_ABOUT_SO}[百千万亿]{{1,2}})?|半(?=公?斤|千?克|吨)))"
    rf"(?:{_ABOUT_SO}{_GAP}(?:(?P<marks>[（(])?(?P<mass>mg|㎎|毫克|g|克) ?(?:[（(]乙醇[）)])?"
    rf"(?:[/\\] ?每?|(?P<aside>[（(])?每) ?{_VOLUME}(?(marks)[）)])(?(aside)[）)])"
    rf"|(?:人民币)?(?P<unit>{_NAMES})(?!{_FOREIGN})(?P<half>(?<=[克斤吨g])半)?)"
    r"(?:(?<=[元圆])零?(?:(?P<jiao>[1-9一二三四五六七八九])角)?"
    r"零?(?:(?P<fen>[1-9一二三四五六七八九])分(?!之))?"
    r"(?:[整正](?=$|[，。；、：）)（(\s]))?(?:人民币)?)?"
    # A sign of money needs no unit, nor does 抽血187.
    rf"|(?(sign)|{_ABOUT_SO}(?P<bare>(?<!两)(?:{_END}|(?=[就拿]|的货|出头)))))",
    re.IGNORECASE,
)
_ABROAD = re.compile(rf"(?:{_FOREIGN}){_ABOUT}{_GAP}$", re.IGNORECASE)
_PART = re.compile(rf"({_NUMBER})([ \u00a0余多来几十百千万亿拾佰仟萬億wkWK]*)")
_SEPARATORS = re.compile("[,，'’\u00a0 ]")
_SPENT = re.compile(
    "(?:(?:钱|款|现金|金额|价值?|损失|流水|获利|资|费|总共|一共|加起来|定损|值)[^，。；,;0-9人次条名号点]{0,6}"
    "|[骗卖赚赔欠借付花给收要偷抢盗窃输贷得取刷退补抽套讹敲][了走得取过到他她我家对方]{0,4})$"
)
_BETWEEN = re.compile("一[二两]|[二两]三|三[四五]|四五|五六|六七|七八|八九")
_SPENT_ON = re.compile(
    "(?:[受行索]贿|[骗卖赚赔欠借付花给收要偷抢盗窃输贷取诈汇]|转(?!发)|打[给款到了]|贪污|挪用|侵占|赌)"
    "(?:(?!信息|数据|会员|注册|人数|量|[耕林土]地|件|号|户)[^，。；,;0-9]){0,8}$"
)
"""What is counted in ten thousands after such a verb, with no unit, is money."""
_LEVEL = "(?:10|[1-9]|[Ⅰ-Ⅹ]|I{1,3}|[一二三四五六七八九十壹贰叁肆伍陆柒捌玖拾])"
_GRADE = re.compile(
    rf"(?P<wound>[轻重]伤) ?(?:[（(] ?(?P<in_marks>{_LEVEL}) ?级[）)]|(?P<after>{_LEVEL}) ?级)"
    rf"|(?<![0-9一二三四五六七八九十Ⅰ-ⅩI])(?P<before>{_LEVEL}) ?级(?P<last>[轻重]伤|伤残|残疾)"
)
_TWICE = re.compile(r"(?<![0-9.])([0-9.]+元)[（(](?:大写|小写|即|人民币|[：:])*\1[)）]")
_MONEY_ABROAD = re.compile(
    rf"[0-9{HAN_NUMERALS}][余多]?{_GAP}(?P<after>{_FOREIGN})|(?P<before>{_FOREIGN}){_ABOUT}{_GAP}[0-9{HAN_NUMERALS}]"
    rf"|(?P<sign>{'|'.join(map(re.escape, _SIGNS))}){_GAP}[0-9]"
)
_ANY_ABROAD = re.compile("|".join([_FOREIGN, *map(re.escape, _SIGNS)]))
_CHANGED = re.compile(
    r"[0-9,.万千百余多元]*[（(，,]?[^。；，、]{0,6}?[折兑合][^。；，、]{0,6}人民币"
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a text: its first character, the one after its last, value and unit."""

    start: int
    end: int
    value: float
    unit: str


def read_figures(text: str) -> Iterator[Figure]:
    """The figures of a text in their order; what can't be read as a number is passed over."""
    plain = text.translate(_HALF_WIDTH) if _FULL_WIDTH.search(text) else text
    for match in _FIGURE.finditer(plain):
        named = (match["unit"] or match["mass"] or "元").lower().replace(" ", "")
        if named == "元" and _ABROAD.search(plain, max(0, match.start() - 10), match.start()):
            continue
        try:
            value = _read_digits(match["digits"]) if match["digits"] else _read_han(match["han"])
        except ValueError:  # 万元, 百元: words and no number
            continue
        before = plain[max(0, match.start() - 40) : match.start()]
        bare = match["bare"] is not None and not before.endswith("人民币")
        if bare and 20 <= value <= 600 and _BLOWN.search(before):
            yield Figure(match.start(), match.end(), value, "mg/100ml")
            continue
        large = re.search("[万亿wk]", match[0], re.IGNORECASE)
        digits = match["digits"] and before[-1:] not in ("（", "(")  # 字（1993）58号
        if bare and not (large or "千" in match[0] or (digits and _is_sum(value))):
            continue
        spent = _SPENT.search(before) or (bare and large and _SPENT_ON.search(before))
        if (bare or named == "块") and not spent:  # 电瓶六块 is no money
            continue
        for coin, part in (("jiao", 0.1), ("fen", 0.01)):
            value += part * _read_han(match[coin]) if match[coin] else 0
        unit, factor = _OTHER_NAMES.get(named, (named, 1.0))
        value = (value + (0.5 if match["half"] else 0)) * factor
        blood = match if match["mass"] else _IN_BLOOD.search(before) if unit == "克" else None
        volume = ((blood and blood["volume"]) or "").lower()
        if volume in ("l", "升") and not re.search("血|酒精|乙醇", before):  # waste water
            continue
        if blood and (volume or factor < 1):
            unit, value = "mg/100ml", round(value * 1000 * _IN_100_ML.get(volume, 1), 3)
            value /= 1000 if value > 5000 and factor == 1 else 1  # 128克/100ml is a slip
        yield Figure(match.start(), match.end(), round(value, 6), unit)


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
    text = _GRADE.sub(_write_grade, text)
    for figure in read_figures(text):
        if figure.unit in COUNTS and text[figure.start] in HAN_NUMERALS:
            continue
        pieces += [text[last : figure.start], write_figure(figure.value), figure.unit]
        last = figure.end
    return _TWICE.sub(r"\1", "".join([*pieces, text[last:]]))


def _write_grade(match: re.Match[str]) -> str:
    """轻伤Ⅱ级, 轻伤（2级） and 二级轻伤 are 轻伤二级, 10级伤残 is 十级伤残."""
    told = match["after"] or match["in_marks"] or match["before"]
    grade = len(told) if told[0] in "Ii" else int(told if told.isdecimal() else numeric(told))
    wound, level = match["wound"] or match["last"], f"{write_number(grade)}级"
    return level + wound if "残" in wound else wound + level


def foreign_money(text: str) -> list[str]:
    """Names of the foreign money that a text tells sums of, unless it tells them in yuan too."""
    if not _ANY_ABROAD.search(text):  # found soon, as each word begins with a character of its own
        return []
    names = [
        match["after"] or match["before"] or _SIGNS[match["sign"]]
        for match in _MONEY_ABROAD.finditer(text)
        if not _CHANGED.match(text, match.end())
    ]
    return list(dict.fromkeys(names))


def _is_sum(value: float) -> bool:
    """Whether digits without a unit, after a verb of spending, may be money: no year, no number."""
    return 100 <= value < 1_000_000 and (value == 2000 or not 1950 <= value <= 2100)


def _read_digits(text: str) -> float:
    """1万2千 is 12,000: the parts add up, each at its own scale."""
    total, last = 0.0, 10
    for number, scales in _PART.findall(text):
        scale = prod(_SCALES.get(name, 1) for name in scales.translate(_FORMAL))
        single = scale == 1 and len(number) == 1 and "零" not in text  # 1万2 is 12000
        size = Decimal(last // 10 if single else scale)  # 544864.32万 times a float is a coin short
        total += float(Decimal(_SEPARATORS.sub("", number)) * size)
        last = max(scale, 10)
    return round(total, 6)


def _read_han(text: str) -> float:
    """A Chinese number: 一亿二千万 is 120,000,000, 三点五万 35,000. Raises ValueError on others."""
    plain = text.translate(_FORMAL)
    if plain == "半":
        return 0.5
    if plain.isdecimal():
        return float(plain)
    whole, point, decimals = plain.partition("点")
    if whole[0] in "百千万亿" or (whole[0] == "零" and whole != "零"):
        raise ValueError(f"not a number: {text!r}")
    scale = _SCALES.get(decimals[-1:], 1)
    digits = "".join(str("零一二三四五六七八九".index(c)) for c in decimals if c not in _SCALES)
    return (_read_scaled(whole) + (float(f"0.{digits}") if point else 0)) * scale


def _read_scaled(text: str) -> int:
    for scale in "亿万":
        high, found, low = text.partition(scale)
        if found:
            spoken = _SCALES[scale] // 10 if len(low) == 1 else 1  # 八万四 is 84000
            return _read_scaled(high) * _SCALES[scale] + _read_scaled(low or "零") * spoken
    return parse_number(text[-1] if _BETWEEN.fullmatch(text) else text)  # of 三四 the upper end
