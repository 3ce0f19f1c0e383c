"""Generated cases of a few common charges, for tests that learn something from a few hundred."""

from __future__ import annotations

from functools import cache
from itertools import islice

from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.corpus.generate.grammar import Wording

COMMON = ("盗窃", "诈骗", "故意伤害", "危险驾驶", "走私、贩卖、运输、制造毒品", "交通肇事")


def common_cases(count: int, seed: int | str, wording: Wording = "train") -> list[Case]:
    """The first `count` generated cases of these charges."""
    return list(_draw(count, seed, wording))


@cache
def _draw(count: int, seed: int | str, wording: Wording) -> tuple[Case, ...]:
    cases = generate_cases(20 * count, seed, wording)
    return tuple(islice((c for c in cases if c.verdict.charges[0] in COMMON), count))
