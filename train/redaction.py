"""Personal data out of texts that leave the house."""

from __future__ import annotations

import re

NAMED = "某"

# The longest first: an identity card holds what looks like a phone number.
PATTERNS = {
    "identity card": re.compile(r"(?<!\d)\d{17}[\dXx](?![\dXx])"),
    "bank account": re.compile(r"(?<!\d)\d{16,19}(?!\d)"),
    "mobile phone": re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)"),
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
