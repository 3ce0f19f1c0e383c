"""The seeded case generator: facts that need reasoning, and the reasoning that solves them.

It draws a latent case (offence, harm, circumstances), computes the sentence with
`curt.corpus.generate.calculus`, and writes the facts in varied wording with look-alikes and noise.
Each case carries its reasoning at several verbosities, from a full walk with a self-check to one
that leaves a needed step out: without that spread every rollout of a GRPO group has the same length
and there is nothing to select.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from curt.corpus.case import Case
from curt.corpus.generate.calculus import (
    EXCLUSIVE,
    LIFE,
    OFFENCES,
    RATIOS,
    Bracket,
    Offence,
    Sentence,
    allows,
    sentence,
)
from curt.corpus.generate.wording import (
    ACTS,
    CIRCUMSTANCES,
    LOOKALIKES,
    NOISE,
    OPENINGS,
    PLACES,
    SURNAMES,
)
from curt.dialogue import render_term
from curt.law.verdict import Verdict

SOURCE = "generated"
VERBOSITIES = ("full", "medium", "terse", "brief", "mini", "gap")
_SPLITTABLE = frozenset({"元"})


def generate_cases(count: int, seed: int | str) -> Iterator[Case]:
    """Yield `count` cases; the same seed gives the same cases, on any machine.

    Training and test sets take different seeds; `id` is `generated-{seed}-{index}`.
    """
    rng = random.Random(seed)
    for index in range(count):
        yield _draw_case(rng, f"{SOURCE}-{seed}-{index}")


def draw_drill(rng: random.Random) -> tuple[str, str]:
    """A step of reasoning by itself, without a case: what is given, and what follows from it.

    Small models are slow to learn arithmetic from whole cases, where it is a few tokens in
    hundreds. The steps stand as they do in "full" and "brief" reasoning.
    """
    while True:
        offence = rng.choice(OFFENCES)
        harm, parts = _draw_harm(rng, offence)
        circumstances = _draw_circumstances(rng, offence)
        outcome = sentence(offence, harm, circumstances)
        if outcome.bracket is not None and outcome.start != LIFE and circumstances:
            break
    reasonings = write_reasonings(offence, harm, parts, circumstances, outcome, rng)
    if rng.random() < 0.5:
        given, _, answer = reasonings["full"].partition("月，增")
        quantity, _, rest = answer.partition("然后看情节，")
        told, _, conclusion = rest.partition("合计")
        steps = (
            (f"{given[given.index('再看后果') :]}月，增", quantity),
            (f"{quantity[quantity.index('基准刑') :]}然后看情节，{told}合计", conclusion),
        )
    else:
        quantity, tenths, product = reasonings["brief"].split("；")
        head, _, increments = quantity.rpartition(f"{outcome.start}+")
        base, _, result = product.partition("×")
        steps = (
            (f"{head}{outcome.start}+", increments),
            (f"；{tenths}；{base}×", result),
        )
    return rng.choice(steps)


def _draw_case(rng: random.Random, case_id: str) -> Case:
    offence = rng.choice(OFFENCES)
    harm, parts = _draw_harm(rng, offence)
    circumstances = _draw_circumstances(rng, offence)
    outcome = sentence(offence, harm, circumstances)
    verdict = Verdict((offence.charge,), offence.articles, outcome.term, outcome.fine_yuan)
    return Case(
        id=case_id,
        fact=_write_fact(rng, offence, harm, parts, circumstances),
        verdict=verdict,
        source=SOURCE,
        reasonings=write_reasonings(offence, harm, parts, circumstances, outcome, rng),
        traits=circumstances,
    )


def _draw_harm(rng: random.Random, offence: Offence) -> tuple[int | str, tuple[int, ...]]:
    """A grade, or a quantity with the parts it is told in (one part: told as a whole)."""
    if offence.grades is not None:
        return rng.choice(list(offence.grades)), ()
    bracket = rng.choices(offence.brackets, weights=(70, 22, 8, 4)[: len(offence.brackets)])[0]
    step = _grain(bracket)
    quantity = rng.randrange(bracket.threshold, bracket.limit + 1, step)
    if offence.unit in _SPLITTABLE and quantity >= 2 * step and rng.random() < 0.2:
        first = rng.randrange(step, quantity, step)
        return quantity, (first, quantity - first)
    return quantity, (quantity,)


def _grain(bracket: Bracket) -> int:
    """Money comes in whole increments, all else in halves, so that some leave a remainder."""
    return bracket.per if bracket.per >= 1000 else max(1, bracket.per // 2)


def _draw_circumstances(rng: random.Random, offence: Offence) -> tuple[str, ...]:
    wanted = rng.choices((0, 1, 2, 3, 4), weights=(10, 25, 35, 22, 8))[0]
    chosen: list[str] = []
    for name in rng.sample(list(RATIOS), len(RATIOS)):
        if len(chosen) == wanted:
            break
        clash = any(name in group and group & set(chosen) for group in EXCLUSIVE)
        if not clash and allows(offence, name):
            chosen.append(name)
    return tuple(chosen)


def _write_fact(
    rng: random.Random,
    offence: Offence,
    harm: int | str,
    parts: tuple[int, ...],
    circumstances: tuple[str, ...],
) -> str:
    defendant, victim = (f"{s}某" for s in rng.sample(SURNAMES, 2))
    date = f"20{rng.randint(10, 24)}年{rng.randint(1, 12)}月{rng.randint(1, 28)}日"
    slots = {"d": defendant, "v": victim, "p": rng.choice(PLACES)}
    act = rng.choice(ACTS[offence.charge]).format(**slots, q=_tell_harm(rng, offence, harm, parts))
    lead = rng.choice(OPENINGS).format(date=date)
    if not act.startswith(defendant):  # 民警在…: the act names its own subject
        lead = lead.removesuffix("被告人")
    # Circumstances are told in the order in which the reasoning lists them.
    clauses = [rng.choice(CIRCUMSTANCES[c]) for c in circumstances]
    noise = [n for n in NOISE if not _clashes(n, harm, circumstances)]
    extras = rng.sample(noise, rng.choices((0, 1, 2, 3), weights=(2, 4, 3, 1))[0])
    for extra in _draw_lookalikes(rng, circumstances) + extras:
        clauses.insert(rng.randint(0, len(clauses)), extra)
    told = [clause.format(**slots) for clause in clauses]
    return "。".join([lead + act, *told]) + "。"


def _clashes(noise: str, harm: int | str, circumstances: tuple[str, ...]) -> bool:
    """Whether a noise clause would contradict the case."""
    return ("医院" in noise and "死亡" in str(harm)) or (
        bool({"未成年", "老年"} & set(circumstances)) and ("务工" in noise or "公司" in noise)
    )


def _draw_lookalikes(rng: random.Random, circumstances: tuple[str, ...]) -> list[str]:
    """Clauses that resemble a circumstance without contradicting one that holds."""
    if rng.random() < 0.5:
        return []
    banned = ""
    if {"自首", "坦白", "认罪认罚"} & set(circumstances):
        banned += "供述辩称"
    text = rng.choice(LOOKALIKES)
    contradiction = (
        ("拒不供述" in text and "供述" in banned)
        or ("辩称" in text and "辩称" in banned)
        or ("不予谅解" in text and "谅解" in circumstances)
        or ("不属实" in text and "立功" in circumstances)
        or ("无犯罪记录" in text and {"累犯", "前科"} & set(circumstances))
        or ("未支付" in text and "退赔" in circumstances)
        or ("三十二周岁" in text and {"未成年", "老年"} & set(circumstances))
    )
    return [] if contradiction else [text]


def _tell_harm(
    rng: random.Random, offence: Offence, harm: int | str, parts: tuple[int, ...]
) -> str:
    if isinstance(harm, str):
        return harm
    if offence.unit != "元":
        return f"{harm}{offence.unit}"
    if len(parts) == 2:
        first, second = parts
        return rng.choice(
            (
                f"现金{first}元，次日以同样方式又涉及{second}元",
                f"财物两次，分别为{first}元、{second}元",
                f"{first}元，另有{second}元",
            )
        )
    return rng.choice((f"财物价值{harm}元", f"现金{harm}元", f"人民币{harm}元"))


def write_reasonings(
    offence: Offence,
    harm: int | str,
    parts: tuple[int, ...],
    circumstances: tuple[str, ...],
    outcome: Sentence,
    rng: random.Random,
) -> dict[str, str]:
    """The same derivation at six verbosities; "gap" leaves a needed step out.

    "brief" is the shortest that a small model can follow: every operand stands where it is used,
    amounts are told in 万 or 千, ratios in tenths without their minus:
    48万3+24=27；退赔1累犯+2；27×110%=30.
    """
    total = f"{parts[0]}+{parts[1]}={harm}" if len(parts) == 2 else f"{harm}"
    if outcome.start == LIFE:
        return _life_reasonings(offence, total)
    ratios = "".join(f"{c}{RATIOS[c]:+d}" for c in circumstances)
    sum_of_ratios = f"{ratios}={_sum_ratios(circumstances, outcome)}" if circumstances else "无情节"
    scale = _scale(outcome)
    result = render_term(outcome.term)
    increments = f"{outcome.start}+{outcome.extra}={outcome.base}"
    step = increments if outcome.bracket else f"{outcome.base}"
    terse_ratios = sum_of_ratios if circumstances else "0"
    gaps = (f"{total}，{step}", sum_of_ratios, f"{offence.charge}，{total}")
    return {
        "full": _full(offence, harm, total, circumstances, outcome),
        "medium": f"{offence.charge}。{total}，{step}。{sum_of_ratios}。{scale}={result}。",
        "terse": f"{total}，{step}；{terse_ratios}；{scale}={outcome.months}",
        "brief": _brief(offence, harm, parts, circumstances, outcome),
        "mini": f"{outcome.base}{outcome.ratio:+d}%={outcome.months}",
        "gap": rng.choice(gaps),
    }


def _full(
    offence: Offence,
    harm: int | str,
    total: str,
    circumstances: tuple[str, ...],
    outcome: Sentence,
) -> str:
    articles = "、".join(f"第{a}条" for a in offence.articles)
    lines = [f"先看行为，被告人的行为符合{offence.charge}罪的构成，应适用{articles}。"]
    bracket = outcome.bracket
    if bracket is not None:
        lines.append(
            f"再看后果，{total}{offence.unit}，达到{bracket.threshold}{offence.unit}一档，"
            f"起点{outcome.start}个月，每{bracket.per}{offence.unit}增1个月，"
            f"增{outcome.extra}个月，基准刑{outcome.start}+{outcome.extra}={outcome.base}个月。"
        )
    else:
        lines.append(f"再看后果，{harm}，基准刑{outcome.base}个月。")
    told = "，".join(f"{c}{RATIOS[c]:+d}" for c in circumstances) or "没有法定或酌定情节"
    lines.append(f"然后看情节，{told}，合计{_sum_ratios(circumstances, outcome)}%。")
    lines.append(f"{_scale(outcome)}，取{outcome.months}个月。")
    lines.append(f"最后复核，{outcome.months}个月不超过上限，应为{render_term(outcome.term)}。")
    return "".join(lines)


def _sum_ratios(circumstances: tuple[str, ...], outcome: Sentence) -> str:
    """The sum of the ratios, and what it is kept at where it leaves the allowed range."""
    total = sum(RATIOS[c] for c in circumstances)
    return f"{total:+d}" + (f"取{outcome.ratio:+d}" if total != outcome.ratio else "")


def _brief(
    offence: Offence,
    harm: int | str,
    parts: tuple[int, ...],
    circumstances: tuple[str, ...],
    outcome: Sentence,
) -> str:
    base = f"{outcome.base}"
    if outcome.bracket is not None:
        base = f"{_tell_total(offence, harm, parts)}{outcome.start}+{outcome.extra}={outcome.base}"
    if circumstances:
        return f"{base}；{_tell_tenths(circumstances)}；{_scale(outcome)}={outcome.months}"
    capped = "" if outcome.base == outcome.months else f"{outcome.base}，上限"
    return f"{base}；{capped}{outcome.months}"


def _tell_total(offence: Offence, harm: int | str, parts: tuple[int, ...]) -> str:
    """The quantity before the sum it leads to, with a mark between where digits would touch."""
    told = [_shorten(part, offence) for part in parts]
    total = f"{'+'.join(told)}={_shorten(int(harm), offence)}" if len(told) > 1 else told[0]
    return total if total[-1] in "万千" else f"{total}，"


def _shorten(quantity: int, offence: Offence) -> str:
    """48万 for 480000 yuan, 36千 for 36000; other units as they are."""
    if offence.unit != "元":
        return str(quantity)
    for unit, size in (("万", 10_000), ("千", 1000)):
        if quantity % size == 0:
            return f"{quantity // size}{unit}"
    return str(quantity)


def _tell_tenths(circumstances: tuple[str, ...]) -> str:
    """退赔1累犯+2 for -10 and +20 percent."""
    return "".join(
        f"{c}{-RATIOS[c] // 10}" if RATIOS[c] < 0 else f"{c}+{RATIOS[c] // 10}"
        for c in circumstances
    )


def _scale(outcome: Sentence) -> str:
    """The product that gives the months; before a ceiling that cuts it, its own value."""
    product = f"{outcome.base}×{100 + outcome.ratio}%"
    uncapped = (outcome.base * (100 + outcome.ratio) + 50) // 100
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
