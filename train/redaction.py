"""Personal data out of texts that leave the house."""

from __future__ import annotations

import re

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


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with identifying numbers and addresses as 某, and how many of each kind there were.

    Names are not looked for: published judgments write them as 张某 already.

    >>> redact("电话13812345678，金额13812345元")
    ('电话某，金额13812345元', {'mobile phone': 1})
    """
    found = {}
    for kind, pattern in PATTERNS.items():
        text, count = pattern.subn(NAMED, text)
        if count:
            found[kind] = count
    return text, found
