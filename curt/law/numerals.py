"""Chinese numerals, months and article numbers as judgments write them."""

from __future__ import annotations

import re

LAST_ARTICLE = 452  # of the Criminal Law
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
NUMBER = r"(?:[0-9０-９]+|[零〇一二两三四五六七八九十百千]+)"

_DURATION = re.compile(rf"(?:({NUMBER})年)?零?(?:(半)|又?({NUMBER})个?月)?")
_ARTICLE = re.compile(rf"第?({NUMBER})条?(?:[之-]({NUMBER}))?")


def parse_number(text: str) -> int:
    """Read an Arabic or Chinese whole number below 10,000: "二十三" and "23" are both 23.

    What people say is read so too: 八千五 is 8500.

    Raises ValueError on anything else.
    """
    if re.fullmatch(r"[0-9０-９]+", text):
        return int(text)
    if not text or any(c not in _DIGITS and c not in _UNITS for c in text):
        raise ValueError(f"not a number: {text!r}")
    if not any(c in _UNITS for c in text):  # 一三三, digit by digit
        return int("".join(str(_DIGITS[c]) for c in text))
    total, digit, tail = 0, 0, 1
    for position, char in enumerate(text):
        if char in _UNITS:
            # a leading 十 is 10; 百十 reads as 110
            total += (digit or (1 if char == "十" or position == 0 else 0)) * _UNITS[char]
            digit, tail = 0, _UNITS[char] // 10
        else:
            digit = _DIGITS[char]
            tail = tail if digit else 1  # 八千五 is 8500, 八千零五 8005
    return total + digit * tail


def write_number(value: int) -> str:
    """Write 0 to 9,999 in Chinese: 133 is 一百三十三, 12 is 十二."""
    if not 0 <= value < 10_000:
        raise ValueError(f"{value} is outside 0 to 9999")
    if value == 0:
        return "零"
    out, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = value // unit % 10
        if digit:
            out += ("零" if gap and out else "") + "零一二三四五六七八九"[digit] + name
            gap = False
        elif out:
            gap = True
    return out[1:] if out.startswith("一十") else out


def parse_months(text: str) -> int:
    """Read a duration in months: 三年六个月 is 42, 一年半 is 18, 8个月 is 8.

    Raises ValueError when the whole text is not a duration.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise ValueError(f"not a duration: {text!r}")
    years, half, months = match.groups()
    return (
        (parse_number(years) * 12 if years else 0)
        + (6 if half else 0)
        + (parse_number(months) if months else 0)
    )


def write_months(months: int) -> str:
    """Write a duration as judgments do: 42 is 三年六个月."""
    years, rest = divmod(months, 12)
    out = f"{write_number(years)}年" if years else ""
    return out + (f"{write_number(rest)}个月" if rest or not years else "")


def parse_article(text: str) -> str:
    """Read an article of the Criminal Law into its id: 第一百三十三条之一 is "133之一".

    Raises ValueError when the text names no article between 1 and 452.
    """
    match = _ARTICLE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not an article: {text!r}")
    number = parse_number(match[1])
    if not 1 <= number <= LAST_ARTICLE:
        raise ValueError(f"the Criminal Law has no article {number}")
    return f"{number}之{write_number(parse_number(match[2]))}" if match[2] else str(number)


def article_number(article: str) -> int:
    """The bare number CAIL2018 labels use: "133之一" is 133."""
    return int(article.split("之")[0])


def article_order(article: str) -> tuple[int, int]:
    """Sort key that puts 133之一 right after 133."""
    number, _, sub = article.partition("之")
    return int(number), parse_number(sub) if sub else 0


def write_article(article: str) -> str:
    """The official title: "133之一" is 第一百三十三条之一."""
    number, _, sub = article.partition("之")
    return f"第{write_number(int(number))}条" + (f"之{sub}" if sub else "")
