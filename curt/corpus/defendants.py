"""The defendants that a text names, as it writes them.

Published facts write names whole (李大勇, 买买提·吐尔逊), masked (张某, 王某宏, 李××) or as letters
(甲, A). Those that stand behind 被告人, alone or in a list, are taken (behind 犯罪嫌疑人 where no
被告人 is told of); who is judged elsewhere (另案处理, 已判刑) is none of them. A name that no such
word introduces is not found, nor always a whole one of a surname that is rare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curt.corpus.redaction import AFTER_NAMES, COMPOUND_SURNAMES, SURNAMES, WORDS

_HAN = "[一-鿿]"
_PLACE = "|".join(WORDS["places"])
_VERBS = f"[{AFTER_NAMES.replace('明', '')}{WORDS['verbs']}]|{'|'.join(WORDS['phrases'])}"
_END = rf"(?:{_VERBS}|[{WORDS['other_ends']}])"
_GIVEN = rf"(?!{_VERBS}|[共应合单]){_HAN}"
_APART = rf"(?:(?![将等和与及的]){_HAN}){{1,2}}(?=[、（(])"
_GIVEN_NAMES: str = WORDS["given_names"]
_MASK = "[×＊*○ＸxX]"
_AFTER_MASK = rf"(?:{_GIVEN}(?={_END}|$)|{_APART}|·{_HAN}{{1,6}}?(?={_END}))"
_MASKED = (
    rf"(?:{COMPOUND_SURNAMES}|(?![{WORDS['no_surnames']}]){_HAN}|(?<=、)和|[A-Z])[0-9]?"
    rf"(?:某(?!{_PLACE})(?:某[甲乙丙丁戊己庚辛]?|[甲乙丙丁戊己庚辛]|[0-9A-Za-z]{{1,2}}|{_MASK}{{1,3}}"
    rf"|{_AFTER_MASK})?|{_MASK}{{1,3}}"
    rf"(?:(?<!{_MASK}{_MASK})(?:[{_GIVEN_NAMES}](?={_END})|{_APART}))?)"
)
_LETTER = (
    r"(?:[甲乙丙丁戊己庚辛](?:[0-9](?![0-9])|(?![方级类基型醇烷酸状]))"
    rf"|[{SURNAMES}]?[A-Z](?![A-Za-z0-9])|[{SURNAMES}][0-9](?![0-9]))"
)
_WHOLE = (
    rf"(?:(?:{COMPOUND_SURNAMES}|(?:(?<=、)|(?![于时曾向应]))[{SURNAMES}]|[向于](?={_APART})"
    rf"|[小阿老](?=[{SURNAMES}]{_END}))(?:{_APART}|(?:{_GIVEN}){{1,2}}(?={_END}|$))"
    rf"|(?:{COMPOUND_SURNAMES})(?:{_GIVEN}){{2}}|(?<=、)[{SURNAMES}]{_GIVEN}[{_GIVEN_NAMES}]?)"
)
_PLAIN = rf"(?!{'|'.join(WORDS['no_persons'])})(?:(?!的){_GIVEN})"  # of any surname, or none
_FORM = (
    rf"{_HAN}{{1,8}}(?:[·•・]{_HAN}{{1,8}}?)+(?=[{WORDS['ends_of_long_names']}])|{_MASKED}|{_LETTER}"
    rf"|(?!{'|'.join(WORDS['words_like_names'])}){_WHOLE}"
    rf"|(?<!、被告人){_PLAIN}{{2,5}}(?=、被告人)|(?:{_GIVEN}){{2}}某某(?={_END})"
)
_NAME = re.compile(
    rf"{_FORM}|(?!{'|'.join(WORDS['no_persons'])})([{SURNAMES}](?:{_GIVEN}){{1,2}})(?=.{{1,300}}\1)"
)
_LATER = re.compile(rf"{_NAME.pattern}|(?<=、被告人){_PLAIN}{{2,5}}(?={_END})")
_AWAY = r"[（(][^）)]{0,16}(?:另案|判|逃|批捕|起诉|处理|死亡|已决|分案|未到案)[^）)]{0,10}[）)]"
_JOINTLY = "(?:共同(?!生活)|合谋|经(?!营)|预谋|结伙|商量|密谋|二人|两人|分别|先后)"
_INTRODUCED = re.compile(
    '(?<!同案)(?<!另案)被告人[：:]?(?:[“"][^”"]{1,8}[”"](?:[（(](?:真名|本名|即)))?'
)
_NOTE = re.compile("(?:[（(][^）)]{0,24})?[）)]")
_JOINED = re.compile(rf"[、,](?:被告人)?|[和与及](?:被告人)?(?=(?:{_FORM}){_JOINTLY})|和(?=被告人)")
_LAST = re.compile(rf"(?:{_FORM})$")
_GONE = re.compile(_AWAY)
_MASKED_GIVEN = re.compile(rf".{{1,3}}某(?![甲乙丙丁戊己庚辛某{_GIVEN_NAMES}]){_HAN}")
COUNTED = re.compile(
    r"(?<!另)(?<!其他)(?<!其余)(?<!同案)(?:[二两三四五六七八九十]|(?<![0-9])(?:[2-9]|1[0-9]))"
    r"[名个位]?被告人|(?:各|众|诸|全体)被告人"
)


def defendant_names(text: str) -> list[str]:
    """The names in their order; several forms of one name (张某, 张某某) count as the first."""
    away = set(_judged_elsewhere(text))
    names: list[str] = []
    for group, followed in _read_lists(text):
        doubtful = len(group) == 1 and _MASKED_GIVEN.fullmatch(group[0])  # 王某窜至某村
        if doubtful and text.count(group[0]) < 2 and followed not in "、，。（和与及伙":
            group = [group[0][:-1]]
        for name in group:
            others = [old for old in names if old not in group]
            same = (old for old in others if old.startswith(name) or name.startswith(old))
            if name not in {*names, *away} and not any(same):
                names.append(name)
    return names


def has_several_defendants(text: str) -> bool:
    """Whether a text names more than one defendant, or counts them (三被告人).

    A company (被告单位) is one too, though `defendant_names` gives the persons alone.
    """
    names = defendant_names(text)
    return len(names) > 1 or bool(COUNTED.search(text) or (names and "被告单位" in text))


def _read_lists(text: str) -> Iterator[tuple[list[str], str]]:
    """The names of each list but for those judged elsewhere, and the character after it."""
    place, group = 0, list[tuple[str, str]]()
    text = text if "被告人" in text else text.replace("犯罪嫌疑人", "被告人")
    while introduced := _INTRODUCED.search(text, place):
        place, group = introduced.end(), []
        while name := (_LATER if group else _NAME).match(text, place):
            note = _NOTE.match(text, name.end())
            group.append((name[0], note[0] if note and _GONE.fullmatch(note[0]) else ""))
            end = place = note.end() if note else name.end()
            if not (joined := _JOINED.match(text, place)):
                break
            place = joined.end()
        if group:
            all_away = "均" in group[-1][1]
            kept = [n for at, (n, away) in enumerate(group) if not (away or (all_away and at))]
            yield kept, text[end : end + 1]


def _judged_elsewhere(text: str) -> Iterator[str]:
    for gone in _GONE.finditer(text):
        if name := _LAST.search(text[max(0, gone.start() - 5) : gone.start()]):
            yield name[0]
