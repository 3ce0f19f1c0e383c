"""The reasoning that solves a drawn case, at six verbosities.

From a full walk with a self-check to one that leaves a needed step out: without that spread every
rollout of a GRPO group has the same length, and there is nothing to select.
"""

from __future__ import annotations

import random
from dataclasses import replace

from curt.corpus.generate.calculus import LIFE, Circumstance, Grade, Offence, Sentence
from curt.corpus.generate.draw import Drawn
from curt.dialogue import render_term
from curt.law.weighing import scale_months

_SHORT = (("万", 10_000), ("千", 1000))
_MINI_NAMES = 8  # characters of circumstances in "mini" reasoning, three short ones

VERBOSITIES = ("full", "medium", "terse", "brief", "mini", "gap")


def write_reasonings(drawn: Drawn, outcome: Sentence, rng: random.Random) -> dict[str, str]:
    """The same derivation at six verbosities; "gap" leaves a needed step out.

    "brief" is the shortest in which every operand stands where it is used, amounts told in 万 or
    千, ratios in tenths without their minus: 48万3+24=27；退赔1累犯+2；27×110%=30. "mini" keeps the
    operands and leaves the sums out, in at most 16 tokens: 3+24；退赔1累犯+2；30. Of many
    circumstances it tells the sum alone.
    """
    offence, held = drawn.offence, drawn.circumstances
    total = _tell_sum(drawn)
    if outcome.start == LIFE:
        return _life_reasonings(offence, total)
    told = "".join(f"{c.name}{c.ratio:+d}" for c in held)
    sum_of_ratios = f"{told}={_sum_ratios(held, outcome)}" if held else "无情节"
    step = f"{outcome.base}"
    if outcome.bracket is not None:
        step = f"{outcome.start}+{outcome.extra}={outcome.base}"
    scale, result = _scale(outcome), render_term(outcome.term)
    terse_ratios = sum_of_ratios if held else "0"
    gaps = (f"{total}，{step}", sum_of_ratios, f"{offence.charge}，{total}")
    return {
        "full": _full(drawn, total, outcome),
        "medium": f"{offence.charge}。{total}，{step}。{sum_of_ratios}。{scale}={result}。",
        "terse": f"{total}，{step}；{terse_ratios}；{scale}={outcome.months}",
        "brief": _brief(drawn, outcome),
        "mini": _mini(held, outcome),
        "gap": rng.choice(gaps),
    }


def draw_drill(drawn: Drawn, outcome: Sentence, rng: random.Random) -> tuple[str, str] | None:
    """The last steps of reasoning by themselves: what is given, and what follows; None without any.

    Small models are slow to learn arithmetic from whole cases, where it is a few tokens in
    hundreds. The steps stand as they do in "full" and "brief" reasoning.
    """
    if outcome.start == LIFE or not drawn.circumstances:
        return None
    if rng.random() < 0.5:
        full, mark = _full(drawn, _tell_sum(drawn), outcome), "合计"
        steps = full[full.index("基准刑") :]
    else:
        _, tenths, product = _brief(drawn, outcome).split("；")
        base, mark = f"{outcome.base}", "×"
        if outcome.bracket is not None:
            base = f"{outcome.start}+{outcome.extra}={base}"
        steps = f"；{base}；{tenths}；{product}"
    if outcome.bracket is not None and rng.random() < 0.5:
        mark = "="  # of the first sum; the later ones follow
    given, _, answer = steps.partition(mark)
    return given + mark, answer


def _full(drawn: Drawn, total: str, outcome: Sentence) -> str:
    offence = drawn.offence
    articles = "、".join(f"第{a}条" for a in offence.articles_of(drawn.harm))
    lines = [f"先看行为，被告人的行为符合{offence.charge}罪的构成，应适用{articles}。"]
    bracket = outcome.bracket
    if bracket is not None:
        lines.append(
            f"再看后果，{total}{offence.unit}，达到{offence.write(bracket.threshold)}{offence.unit}"
            f"一档，起点{outcome.start}个月，每{offence.write(bracket.every)}{offence.unit}增1个月，"
            f"增{outcome.extra}个月，基准刑{outcome.start}+{outcome.extra}={outcome.base}个月。"
        )
    else:
        lines.append(f"再看后果，{total}，基准刑{outcome.base}个月。")
    told = "，".join(f"{c.name}{c.ratio:+d}" for c in drawn.circumstances)
    ratio = _sum_ratios(drawn.circumstances, outcome)
    lines.append(f"然后看情节，{told or '没有法定或酌定情节'}，合计{ratio}%。")
    lines.append(f"{_scale(outcome)}，取{outcome.months}个月。")
    lines.append(f"最后复核，{outcome.months}个月不超过上限，应为{render_term(outcome.term)}。")
    return "".join(lines)


def _sum_ratios(held: tuple[Circumstance, ...], outcome: Sentence) -> str:
    """The sum of the ratios, and what it is kept at where it leaves the allowed range."""
    total = sum(c.ratio for c in held)
    return f"{total:+d}" + (f"取{outcome.ratio:+d}" if total != outcome.ratio else "")


def _brief(drawn: Drawn, outcome: Sentence) -> str:
    base = f"{outcome.base}"
    if outcome.bracket is not None:
        base = f"{_tell_short(drawn)}{outcome.start}+{outcome.extra}={outcome.base}"
    if drawn.circumstances:
        return f"{base}；{_tell_tenths(drawn.circumstances)}；{_scale(outcome)}={outcome.months}"
    capped = "" if outcome.base == outcome.months else f"{outcome.base}，上限"
    return f"{base}；{capped}{outcome.months}"


def _mini(held: tuple[Circumstance, ...], outcome: Sentence) -> str:
    told = [f"{outcome.base}" if outcome.bracket is None else f"{outcome.start}+{outcome.extra}"]
    if held:
        names = _tell_tenths(held)
        told.append(names if len(names) <= _MINI_NAMES else f"{outcome.ratio:+d}%")
    return "；".join([*told, f"{outcome.months}"])


def tell_harm(drawn: Drawn) -> str:
    """The harm with its unit: a grade, a quantity, or the sum of all quantities that are told."""
    return _tell_sum(replace(drawn, open_sum=len(drawn.parts) > 1)) + drawn.offence.unit


def _tell_sum(drawn: Drawn) -> str:
    """The harm: a grade, a quantity, or the sum of the quantities that the facts leave open."""
    if isinstance(drawn.harm, Grade):
        return drawn.harm.name
    write = drawn.offence.write
    return (
        "+".join(map(write, drawn.parts)) + f"={write(drawn.harm)}"
        if drawn.open_sum
        else write(drawn.harm)
    )


def _tell_short(drawn: Drawn) -> str:
    """The quantity before the sum it leads to, with a mark between where digits would touch."""
    assert isinstance(drawn.harm, int)
    parts = drawn.parts if drawn.open_sum else (drawn.harm,)
    name, size = "", 1
    if drawn.offence.unit == "元":
        name, size = next(
            ((name, size) for name, size in _SHORT if not any(part % size for part in parts)),
            (name, size),
        )
    told = [drawn.offence.write(part // size) + name for part in (*parts, drawn.harm)]
    total = f"{'+'.join(told[:-1])}={told[-1]}" if drawn.open_sum else told[-1]
    return total if name else f"{total}，"


def _tell_tenths(held: tuple[Circumstance, ...]) -> str:
    """退赔1累犯+2 for -10 and +20 percent."""
    return "".join(
        f"{c.name}{-c.ratio // 10}" if c.ratio < 0 else f"{c.name}+{c.ratio // 10}" for c in held
    )


def _scale(outcome: Sentence) -> str:
    """The product that gives the months; before a ceiling that cuts it, its own value."""
    product = f"{outcome.base}×{100 + outcome.ratio}%"
    uncapped = scale_months(outcome.base, outcome.ratio)
    return product if uncapped == outcome.months else f"{product}={uncapped}，上限"


def _life_reasonings(offence: Offence, total: str) -> dict[str, str]:
    return {
        "full": (
            f"先看行为，被告人的行为符合{offence.charge}罪的构成。再看后果，{total}{offence.unit}，"
            "达到最高一档，应为无期徒刑，情节不改变刑种。最后复核，无期徒刑为法定刑种。"
        ),
        "medium": f"{offence.charge}。{total}，最高一档，无期徒刑。",
        "terse": f"{total}，无期",
        "brief": f"{total}，无期",
        "mini": "无期",
        "gap": f"{offence.charge}",
    }
