"""How old a defendant was at the deed, as far as a fact tells it of him."""

from __future__ import annotations

import re
from unicodedata import normalize

from curt.corpus.deed import deed_day
from curt.law.numerals import NUMBER, parse_number

# The role and at most a name: what follows is told of nobody else.
_DEFENDANT = (
    r"(?:被告人|犯罪嫌疑人)(?:(?![伙与和对将把殴教猥同向给明])[^，。；、,;:：（）()\s0-9]){0,4}"
    r"(?:[，,][男女])?[，,（(]?(?:系|是)?"
)
_AGE = re.compile(
    _DEFENDANT + r"(?:实施)?(?:作案|犯罪|行为|涉案|案发|当)?时年?"
    rf"(?:已满|年满|刚满|年仅|年龄为|仅|才|只有|满|系|是)?(?P<age>{NUMBER})周?岁"
)
_DAY = r"(?P<{0}>(?:19|20)[0-9]{{2}})年(?P<{1}>[0-9]{{1,2}})月(?:(?P<{2}>[0-9]{{1,2}})日)?"
_BORN = re.compile(
    _DEFENDANT + r"(?:(?:出生|生)于" + _DAY.format("y", "m", "d") + "|"
    + _DAY.format("year", "month", "day") + r"(?:出生|生(?=[，,。；;）)])))"
)  # fmt: skip


def read_age(text: str) -> int | None:
    """The youngest age in years at which a defendant is told to have done the deed.

    Told right after him: as an age then (被告人张某作案时17周岁), or as a day of birth where the
    day of the deed is known. None where a text tells neither; ages of others and bounds
    (未满18周岁) are not read.
    """
    text = normalize("NFKC", text)
    ages = [parse_number(match["age"]) for match in _AGE.finditer(text)]
    births = list(_BORN.finditer(text))
    if births and (deed := deed_day(text)):
        for match in births:
            year, month, day = (
                int(match[one] or match[other] or 1)
                for one, other in (("y", "year"), ("m", "month"), ("d", "day"))
            )
            ages.append(deed.year - year - ((deed.month, deed.day) < (month, day)))
    return min((age for age in ages if 6 <= age <= 100), default=None)
