"""How old a defendant was at the deed, as far as a fact tells it."""

from __future__ import annotations

import re

from curt.corpus.deed import deed_day
from curt.law.numerals import NUMBER, parse_number

_AGE = re.compile(
    rf"(?P<who>作案|犯罪|行为|涉案|案发|时年|当时)(?:之?时)?[^，,。；;0-9零一二三四五六七八九十]{{0,4}}"
    rf"(?P<age>{NUMBER})周?岁"
)
_BORN = re.compile(
    r"(?P<year>(?:19|20)[0-9]{2})年(?P<month>[0-9]{1,2})月(?:(?P<day>[0-9]{1,2})日)?(?:出生|生(?![产活效]))"
)
_ROLE = re.compile(
    "(被告人|犯罪嫌疑人)|被害人|受害人|证人|被害单位|同案|死者|伤者|儿[子童]|女[友儿]|[幼少]女|其[子女]"
)
_IN_MARKS = re.compile("([^，。；、（(]*)[（(][^）)]*$")
_NAMED_IN_FRONT = re.compile("(?:被告人|犯罪嫌疑人)[^的与和及]{0,4}$")
_BEFORE = 40  # characters of the same sentence in which the one whose age it is is named
_UNSETTLED = re.compile("[不未]满?$")


def read_age(text: str) -> int | None:
    """The youngest age in years at which a defendant is told to have done the deed.

    Told as an age then (作案时17周岁), or by a day of birth where the day of the deed is known.
    None where a text tells neither; ages of others (被害人李某时年9岁) and bounds (未满18周岁) are
    not read.
    """
    ages = []
    for match in _AGE.finditer(text):
        owner = _owner_of(text, match.start())
        offender = owner or (owner is None and match["who"] in ("作案", "犯罪", "行为", "涉案"))
        if offender and not _UNSETTLED.search(text[match.start() : match.start("age")]):
            ages.append(parse_number(match["age"]))
    births = [match for match in _BORN.finditer(text) if _owner_of(text, match.start())]
    if births and (deed := deed_day(text)):
        for match in births:
            birthday = int(match["month"]), int(match["day"] or 1)
            ages.append(deed.year - int(match["year"]) - ((deed.month, deed.day) < birthday))
    likely = [age for age in ages if 6 <= age <= 100]
    return min(likely, default=None)


def _owner_of(text: str, place: int) -> bool | None:
    """Whether the last person of the sentence before a place is a defendant; None without one.

    What stands in parentheses is of the one right before them.
    """
    before = text[max(0, place - _BEFORE) : place]
    sentence = re.split("[。；;]", before)[-1]
    if marked := _IN_MARKS.search(sentence):
        is_defendant = bool(_NAMED_IN_FRONT.search(marked[1]))
        return is_defendant if _ROLE.search(marked[1]) else None
    roles = _ROLE.findall(sentence)
    return bool(roles[-1]) if roles else None
