"""The defendants that a text names, as it writes them.

Published facts write names whole (李大勇), masked (张某, 王某宏, 李××) or as letters (甲, A).
Those that stand behind 被告人, alone or in a list, are taken; who is judged elsewhere (另案处理,
已判刑) is none of them, and a name that 被告人 never introduces is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curt.corpus.redaction import AFTER_NAMES, COMPOUND_SURNAMES, SURNAMES, WORDS_LIKE_NAMES

_HAN = "[一-鿿]"
# Any character may be a surname before 某, but these make words of it: 在某市, 系某公司.
_NO_SURNAME = "在从到对将以由为与及至该其有被把给让同是等系因经使驾窃了和往去来用的并又均某犯"
_PLACE = "年月日时地市县区乡镇村街路巷号宾酒商超银公学医小店厂栋车站工网饭国省州些种个人次天"
# What follows a name and is hardly ever part of one.
_END = (
    rf"[{AFTER_NAMES}共预一二三四五先各分时无醉结合商密男女系驾兄姐夫父母主起"
    "窜窃盗抢打持指唆介借采坐乘骑拿趁翻撬接购贩运发提]"
)
_GIVEN = rf"(?![{AFTER_NAMES}等共结指唆醉应盗窃抢打持驾系商预合密借介单]){_HAN}"
_MASK = r"(?:[×＊*○Ｘ]{1,3}|[xX]{1,3})"
_MASKED = (
    rf"(?:{COMPOUND_SURNAMES}|(?![{_NO_SURNAME}]){_HAN})[0-9]?"
    rf"(?:某(?![{_PLACE}])(?:某[甲乙丙丁戊己庚辛]?|[甲乙丙丁戊己庚辛]|[0-9A-Za-z]{{1,2}}|{_MASK}"
    rf"|{_GIVEN}(?={_END}|$))?|{_MASK})"
)
_LETTER = r"(?:[甲乙丙丁戊己庚辛](?![方级类基型醇烷酸状])|[A-Z](?![A-Za-z0-9]))"
_WHOLE = rf"(?:{COMPOUND_SURNAMES}|(?![于时曾向应])[{SURNAMES}])(?:{_GIVEN}){{1,2}}(?={_END}|$)"
_NAME = rf"(?:{_MASKED}|{_LETTER}|(?!{'|'.join(WORDS_LIKE_NAMES)}){_WHOLE})"
_AWAY = r"[（(][^）)]{0,16}(?:另案|判|逃|批捕|起诉|处理|死亡|已决|分案|未到案)[^）)]{0,10}[）)]"
_JOINTLY = "(?:共同(?!生活)|合谋|经(?!营)|预谋|结伙|商量|密谋|二人|两人|分别|先后)"
_LIST = re.compile(
    rf"(?<!同案)(?<!另案)被告人[：:]?(?P<names>{_NAME}(?:[（(][^）)]{{0,24}}[）)])?"
    rf"(?:(?:[、,]|[和与及](?:被告人)?(?={_NAME}{_JOINTLY}))"
    rf"(?:被告人)?{_NAME}(?:[（(][^）)]{{0,24}}[）)])?)*)"
)
_LAST = re.compile(rf"{_NAME}$")
_GONE = re.compile(_AWAY)
_ONE = re.compile(rf"({_NAME})({_AWAY})?(?:[（(][^）)]*[）)])?(?:[、,和与及]|$)(?:被告人)?")
_MASKED_GIVEN = re.compile(rf".{{1,3}}某(?![甲乙丙丁戊己庚辛某]){_HAN}")
_COUNTED = re.compile(
    r"(?<!另)(?<!其他)(?<!其余)(?<!同案)(?:[二两三四五六七八九十]|(?<![0-9])(?:[2-9]|1[0-9]))"
    r"[名个位]?被告人|(?:各|众|诸|全体)被告人"
)


def defendant_names(text: str) -> list[str]:
    """The names in their order; several forms of one name (张某, 张某某) count as the first."""
    away = set(_judged_elsewhere(text))
    names: list[str] = []
    for listed in _LIST.finditer(text):
        group = list(_split(listed["names"]))
        doubtful = len(group) == 1 and _MASKED_GIVEN.fullmatch(group[0])  # 王某窜至某村
        followed = text[listed.end() : listed.end() + 1]
        if doubtful and text.count(group[0]) < 2 and followed not in "、，。（和与及伙":
            group = [group[0][:-1]]
        for name in group:
            same = (old for old in names if old.startswith(name) or name.startswith(old))
            if name not in {*names, *away} and (len(group) > 1 or not any(same)):
                names.append(name)
    return names


def has_several_defendants(text: str) -> bool:
    """Whether a text names more than one defendant, or counts them (三被告人)."""
    return len(defendant_names(text)) > 1 or bool(_COUNTED.search(text))


def _judged_elsewhere(text: str) -> Iterator[str]:
    for gone in _GONE.finditer(text):
        if name := _LAST.search(text[max(0, gone.start() - 5) : gone.start()]):
            yield name[0]


def _split(listed: str) -> Iterator[str]:
    """The names of one list, but for those judged elsewhere."""
    found = _ONE.findall(listed)
    for place, (name, away) in enumerate(found):
        all_but_first = place and any("均" in later for _, later in found[place:])
        if not away and not all_but_first:
            yield name
