"""The declared sentencing calculus behind generated cases: one readable table.

It has the shape of the Supreme People's Court's sentencing guideline (starting point, increments
by quantity, adjustment ratios by circumstance, rounding, clamp to the statutory tier). The numbers
are simplified for a small model: a *declared* law that can be checked step by step, no claim about
what a court would decide.

A sentence is computed so:

1. find the offence's highest bracket that the quantity reaches;
2. base = bracket's months + quantity // bracket's `per`;
3. ratio = sum of the circumstances' percentages, kept from -60 up;
4. months = base x (100 + ratio) / 100, rounded half up;
5. kept within the statutory range of the charge: at least 1 month, at most its `ceiling`;
6. under 6 months is 拘役, from 6 months 有期徒刑; under 1 month before the clamp, exempt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curt.law.verdict import Term
from curt.scores.reasoning import RATIO_FLOOR

LIFE = -1  # months of a bracket that means 无期徒刑, whatever the circumstances


@dataclass(frozen=True, slots=True)
class Bracket:
    """From `threshold` units on: `months`, and one month more for every `per` units."""

    threshold: int
    months: int
    per: int
    limit: int
    """Largest quantity drawn in this bracket."""


@dataclass(frozen=True, slots=True)
class Offence:
    """One charge of the generator. `brackets` for counted harm, `grades` for named harm."""

    charge: str
    articles: tuple[str, ...]
    unit: str
    brackets: tuple[Bracket, ...] = ()
    grades: Mapping[str, int] | None = None
    fine_per_month: int = 0
    ceiling: int = 180


def _brackets(*rows: tuple[int, int, int, int]) -> tuple[Bracket, ...]:
    return tuple(Bracket(*row) for row in rows)


#                   from    months    per    up to
_SMALL = _brackets((   2_000,    5,   2_000,    58_000),
                (  60_000,   30,  10_000,   390_000),
                ( 400_000,  112,  50_000, 1_000_000))  # fmt: skip
_LARGE = _brackets((  60_000,    3,  20_000,   480_000),
                ( 500_000,   31, 100_000, 2_900_000),
                (3_000_000, 105, 200_000, 6_000_000))  # fmt: skip

OFFENCES: tuple[Offence, ...] = (
    Offence("盗窃", ("264",), "元", _SMALL, fine_per_month=1000),
    Offence("诈骗", ("266",), "元", _SMALL, fine_per_month=1000),
    Offence("抢夺", ("267",), "元", _SMALL, fine_per_month=1000),
    Offence("敲诈勒索", ("274",), "元", _SMALL, fine_per_month=1000),
    Offence("故意毁坏财物", ("275",), "元", _SMALL[:2], ceiling=84),
    Offence("掩饰、隐瞒犯罪所得、犯罪所得收益", ("312",), "元", _SMALL[:2], fine_per_month=500,
            ceiling=84),
    Offence("合同诈骗", ("224",), "元", _LARGE, fine_per_month=2000),
    Offence("信用卡诈骗", ("196",), "元", _LARGE, fine_per_month=2000),
    Offence("职务侵占", ("271",), "元", _LARGE, fine_per_month=2000),
    Offence("贪污", ("382", "383"), "元", _LARGE, fine_per_month=5000),
    Offence("非法吸收公众存款", ("176",), "元", _LARGE, fine_per_month=2000),
    Offence("开设赌场", ("303",), "元", _LARGE[:2], fine_per_month=2000, ceiling=120),
    Offence("抢劫", ("263",), "元",
            _brackets((1_000, 36, 1_000, 40_000), (60_000, 114, 10_000, 300_000)),
            fine_per_month=500),
    Offence("故意伤害", ("234",), "", grades={
        "轻伤二级": 8, "轻伤一级": 14, "重伤二级": 40, "重伤一级": 60, "死亡": 130}),
    Offence("过失致人死亡", ("233",), "人", _brackets((1, 35, 1, 1), (2, 45, 1, 3)), ceiling=84),
    Offence("交通肇事", ("133",), "", grades={
        "一人重伤后逃逸": 10, "一人死亡": 14, "二人死亡": 26, "一人死亡后逃逸": 40,
        "三人死亡": 44}, ceiling=84),
    Offence("危险驾驶", ("133之一",), "mg/100ml", _brackets((80, 0, 50, 300)), fine_per_month=2000,
            ceiling=5),
    Offence("走私、贩卖、运输、制造毒品", ("347",), "克",
            _brackets((1, 7, 1, 9), (10, 79, 2, 48), (50, 180, 1_000, 200), (500, LIFE, 1, 900)),
            fine_per_month=500),
    Offence("非法持有毒品", ("348",), "克", _brackets((10, 7, 2, 48), (50, 79, 10, 300)),
            fine_per_month=500),
    Offence("容留他人吸毒", ("354",), "人次", _brackets((3, 3, 1, 15)), fine_per_month=500,
            ceiling=36),
    Offence("寻衅滋事", ("293",), "", grades={
        "二人轻微伤": 8, "一人轻伤": 12, "二人轻伤": 18, "一人重伤": 36}, ceiling=120),
    Offence("聚众斗殴", ("292",), "", grades={
        "未持械": 10, "一人轻微伤": 12, "一人轻伤": 16, "持械": 40}, ceiling=120),
    Offence("妨害公务", ("277",), "", grades={
        "推搡民警": 6, "一人轻微伤": 8, "二人轻微伤": 10, "一人轻伤": 14}, ceiling=36),
    Offence("非法拘禁", ("238",), "小时", _brackets((24, 4, 12, 240)), ceiling=36),
    Offence("盗伐林木", ("345",), "立方米", _brackets((2, 4, 1, 19), (20, 26, 2, 90),
            (100, 64, 5, 200)), fine_per_month=500),
    Offence("污染环境", ("338",), "吨", _brackets((3, 7, 3, 60), (100, 31, 20, 600)),
            fine_per_month=1000, ceiling=84),
)  # fmt: skip

RATIOS: Mapping[str, int] = {  # percent of the base
    "自首": -20,
    "坦白": -10,
    "立功": -20,
    "未遂": -30,
    "从犯": -30,
    "未成年": -30,
    "老年": -20,
    "谅解": -10,
    "退赔": -10,
    "认罪认罚": -10,
    "累犯": 20,
    "前科": 10,
}

# Of each group a case holds at most one.
EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset({"自首", "坦白"}),
    frozenset({"累犯", "前科", "未成年"}),
    frozenset({"未成年", "老年"}),
    frozenset({"未遂", "退赔"}),
)
TRAFFIC = frozenset({"危险驾驶", "交通肇事", "过失致人死亡"})


@dataclass(frozen=True, slots=True)
class Sentence:
    """A computed sentence with every intermediate value, for reasoning that can be checked."""

    start: int
    extra: int
    base: int
    ratio: int
    months: int
    term: Term
    fine_yuan: int
    bracket: Bracket | None


def allows(offence: Offence, circumstance: str) -> bool:
    """Whether a circumstance makes sense for an offence."""
    if circumstance in {"未遂", "从犯"}:
        return offence.charge not in TRAFFIC and offence.grades is None
    if circumstance == "退赔":
        return offence.unit == "元"
    if circumstance == "谅解":
        return offence.unit == "元" or offence.grades is not None
    return True


def sentence(offence: Offence, harm: int | str, circumstances: tuple[str, ...]) -> Sentence:
    """Apply the calculus. `harm` is a quantity in the offence's unit, or the name of a grade.

    Raises ValueError for a quantity under the lowest bracket and KeyError for an unknown grade or
    circumstance.
    """
    bracket = None
    if isinstance(harm, str):
        assert offence.grades is not None
        start, extra = offence.grades[harm], 0
    else:
        reached = [r for r in offence.brackets if harm >= r.threshold]
        if not reached:
            raise ValueError(
                f"{harm}{offence.unit} is under the lowest bracket of {offence.charge}"
            )
        bracket = reached[-1]
        start, extra = bracket.months, harm // bracket.per
    ratio = sum(RATIOS[c] for c in circumstances)
    ratio = max(RATIO_FLOOR, ratio)
    if start == LIFE:
        return Sentence(LIFE, 0, LIFE, ratio, 0, Term("life"), 50_000, bracket)
    base = start + extra
    hundredths = base * (100 + ratio)
    months = (hundredths + 50) // 100
    if months < 1:
        return Sentence(start, extra, base, ratio, 0, Term("exempt"), 0, bracket)
    months = min(months, offence.ceiling)
    fine = months * offence.fine_per_month
    probation = probation_months(months, ratio, circumstances)
    kind = "detention" if months < 6 else "fixed"
    term = Term("detention" if kind == "detention" else "fixed", months, probation)
    return Sentence(start, extra, base, ratio, months, term, fine, bracket)


def probation_months(months: int, ratio: int, circumstances: tuple[str, ...]) -> int:
    """Probation: at most 36 months, mitigated by 20% or more, no recidivist (articles 72-74)."""
    if months > 36 or ratio > -20 or "累犯" in circumstances:
        return 0
    if months < 6:
        return 2 * months
    return 12 * min(5, -(-months // 12) + 1)
