"""Masks personal data in texts that are published or sent: numbers, e-mail addresses, names.

Published judgments mask most names as 张某; where one was missed it stands behind what a person is
in the case (被告人张建国) or before what became of them (李娜（另案处理）). Such a name is masked
wherever it stands in the text. A name that no such word introduces is not found.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

NAMED = "某"

_GAP = r"[ \-　]?"  # people write 138 1234 5678


def _digits(count: str) -> str:
    return rf"(?:[0-9０-９]{_GAP}){{{count}}}[0-9０-９]"


_ALONE, _END = r"(?<![0-9０-９.])", r"(?![0-9０-９])"
# The longest first: an identity card holds what looks like a phone number.
PATTERNS = {
    "identity card": re.compile(
        rf"{_ALONE}{_digits('16')}{_GAP}[0-9０-９XxＸｘ](?![0-9０-９XxＸｘ])"
    ),
    "bank account": re.compile(rf"{_ALONE}{_digits('15,18')}{_END}"),
    "old identity card": re.compile(rf"{_ALONE}{_digits('14')}{_END}"),
    "mobile phone": re.compile(
        rf"(?:[+＋]?(?:86|８６){_GAP})?{_ALONE}[1１]{_GAP}[3-9３-９]{_GAP}{_digits('8')}{_END}"
        rf"|[+＋](?:86|８６){_GAP}[1１]{_GAP}[3-9３-９]{_GAP}{_digits('8')}{_END}"
    ),
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.ASCII),
}


WORDS: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("names.toml").read_text(encoding="utf-8")
)
"""How names begin and end."""
SURNAMES: str = WORDS["surnames"]
COMPOUND_SURNAMES: str = WORDS["compound_surnames"]
WORDS_LIKE_NAMES = tuple(WORDS["words_like_names"])
AFTER_NAMES: str = WORDS["after_names"]
_ROLE = (
    "被告人|被害人|被害者|受害人|证人|同案犯|同案人|犯罪嫌疑人|嫌疑人|上诉人|自诉人|原告人|"
    "辩护人|同伙|死者|伤者|委托代理人|法定代理人|户主|车主|货主|店主|业主|老板|其妻|其夫|其子|"
    "其女|其父|其母"
)
_GIVEN = r"[一-鿿]"
_FATE = r"(?=（(?:均?已?另案|均?已判|均?在逃|均?另处|已死亡|男|女|殁年|时年))"
_INTRODUCED = re.compile(rf"(?:{_ROLE})((?:{COMPOUND_SURNAMES}|[{SURNAMES}]){_GIVEN}{{1,2}})")
_JUDGED_ELSEWHERE = re.compile(
    rf"(?<=[、，。；和与及伙同向从找对])((?:{COMPOUND_SURNAMES}|[{SURNAMES}]){_GIVEN}{{1,2}}){_FATE}"
)
_AFTER = frozenset(f"{AFTER_NAMES},.;:() ")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with identifying numbers, addresses and names masked, and how many of each kind.

    Numbers and addresses become 某, a name its surname with 某.

    >>> redact("电话13812345678，金额13812345元")
    ('电话某，金额13812345元', {'mobile phone': 1})
    >>> redact("被告人张建国伙同李娜（另案处理）窃取手机，张建国逃逸")
    ('被告人张某伙同李某（另案处理）窃取手机，张某逃逸', {'name': 3})
    """
    found = {}
    for kind, pattern in PATTERNS.items():
        text, count = pattern.subn(NAMED, text)
        if count:
            found[kind] = count
    for name in sorted(find_names(text), key=len, reverse=True):
        masked = (name[:2] if re.match(COMPOUND_SURNAMES, name) else name[0]) + NAMED
        found["name"] = found.get("name", 0) + text.count(name)
        text = text.replace(name, masked)
    return text, found


def find_names(text: str) -> set[str]:
    """The names that are not masked, and that a role or a fate introduces."""
    names = {match[1] for match in _JUDGED_ELSEWHERE.finditer(text)}
    for match in _INTRODUCED.finditer(text):
        long, following = match[1], text[match.end() : match.end() + 1]
        short = long[:-1]
        if NAMED in long or "×" in long or long.startswith(WORDS_LIKE_NAMES):
            continue
        surname = 2 if re.match(COMPOUND_SURNAMES, long) else 1
        if len(short) == surname or (following in _AFTER and long[-1] not in _AFTER):
            names.add(long)
        elif long[-1] in _AFTER or text.count(short) > text.count(long):
            names.add(short)
        else:
            names.add(long)
    return {name for name in names if NAMED not in name}
