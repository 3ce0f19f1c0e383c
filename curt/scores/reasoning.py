"""Whether reasoning agrees with itself and with the answer that follows it, and its form.

Checked is what a rule can check: sums, products, a value carried from one step to the next, the
final figure or penalty, a charge named as the conclusion, the number of steps, and repetition. No
reference is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

from curt.dialogue import parse_term
from curt.law.statutes import canonical_charge, is_charge
from curt.law.verdict import COUNTED_KINDS, REPRIEVE, Verdict
from curt.law.weighing import sum_ratios

LEAST_STEPS = 3  # of reasoning that is fit to train on
MOST_REPETITION = 0.7  # likewise
_GRAM = 8  # characters

_NAME = "[一-鿿]{0,12}"
# 5+17=22 · 退赔-10从犯-30=-40 · 退赔-10，从犯-30，合计-40%
_FIGURE = r"\d+(?:\.\d+)?"
_SUM = re.compile(
    rf"((?:{_NAME}[+\-]?{_FIGURE})(?:，?{_NAME}[+\-]{_FIGURE})*)(?:=|，合计)([+\-]?{_FIGURE})"
)
_TERMS = re.compile(rf"[+\-]?{_FIGURE}")
# -80取-60: a sum kept at the limit of what circumstances may move
_KEPT = re.compile(r"[+\-]?\d+取([+\-]\d+)")
# 22×40%=9 · 22×40%，取9个月 · 27×70%=有期徒刑19个月 · 22-60%=9
_PRODUCT = re.compile(r"(\d+)(?:×(\d+)|([+\-]\d+))%(?:=|，取)(?:有期徒刑|拘役|管制)?(\d+)")
# ；退赔1累犯+2；27×110%: ratios in tenths, down unless they carry a plus
_TENTHS = re.compile(r"；((?:[一-鿿]+\+?\d)+)；\d+×(\d+)%")
_TENTH = re.compile(r"(\+?)(\d)")
_PENALTY = re.compile(
    r"(?:有期徒刑|拘役|管制)[0-9零一二三四五六七八九十百年个月]+|无期徒刑"
    rf"|{REPRIEVE.pattern}|死刑"
)
_LAST_FIGURE = re.compile(r"(\d+)(?:个月)?[。.]?$")
_NAMED = re.compile(r"([一-鿿、]{2,60}?)(?:罪|。)")
_STEP = re.compile(r"[；;。\n]")


def check_reasoning(thinking: str, verdict: Verdict) -> Iterator[bool]:
    """Outcome of every check that applies: arithmetic first, then the conclusions."""
    yield from check_arithmetic(thinking)
    yield from check_conclusions(thinking, verdict)


def check_arithmetic(thinking: str) -> Iterator[bool]:
    """Outcome of every sum and product, each also against the values it takes from earlier ones."""
    for match in _TENTHS.finditer(thinking):
        moved = sum(10 * int(n) if plus else -10 * int(n) for plus, n in _TENTH.findall(match[1]))
        yield int(match[2]) == 100 + sum_ratios([moved])
    base: Decimal | None = None
    ratio: Decimal | None = None
    for match in sorted((*_SUM.finditer(thinking), *_PRODUCT.finditer(thinking)), key=_start):
        if match.re is _SUM:
            terms = _TERMS.findall(match[1])
            stated = Decimal(match[2])
            yield sum(map(Decimal, terms)) == stated
            if terms[0][0].isdigit():
                base = stated
            else:  # ratios carry their sign, 退赔-10; quantities don't
                kept = _KEPT.match(thinking, match.start(2))
                ratio = Decimal(kept[1]) if kept else stated
        else:
            percent = int(match[2]) if match[2] else 100 + int(match[3])
            right = (int(match[1]) * percent + 50) // 100 == int(match[4])
            yield right and base in (None, int(match[1])) and ratio in (None, percent - 100)


def check_conclusions(thinking: str, verdict: Verdict) -> Iterator[bool]:
    """Whether the last penalty or figure, and the last charge named, are those of the answer."""
    penalties = _PENALTY.findall(thinking)
    figure = _LAST_FIGURE.search(thinking)
    if penalties:
        yield _reads_as(penalties[-1], verdict)
    elif figure and verdict.term.kind in COUNTED_KINDS:
        yield int(figure[1]) == verdict.term.months
    named = [charge for text in _NAMED.findall(thinking) if (charge := _charge_at_end(text))]
    if named:
        yield named[-1] in verdict.charges


def count_steps(thinking: str) -> int:
    """Steps of reasoning: the parts between ；, 。 and line ends that say something."""
    return sum(bool(step.strip()) for step in _STEP.split(thinking))


def repetition_ratio(text: str) -> float:
    """Share of 8-grams (characters) that came before, in [0, 1); 0 for a short text."""
    grams = [text[i : i + _GRAM] for i in range(len(text) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _charge_at_end(text: str) -> str | None:
    """The longest charge name that ends a text: 被告人的行为符合盗窃 holds 盗窃."""
    tails = (text[start:] for start in range(len(text) - 1))
    return next((canonical_charge(tail) for tail in tails if is_charge(tail)), None)


def _reads_as(penalty: str, verdict: Verdict) -> bool:
    try:
        stated = parse_term(penalty)
    except ValueError:  # 有期徒刑三百年: a conclusion no answer can agree with
        return False
    return (stated.kind, stated.months) == (verdict.term.kind, verdict.term.months)


def _start(match: re.Match[str]) -> int:
    return match.start()
