from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.deed import deed_day
from curt.corpus.generate.generator import generate_cases


@pytest.mark.parametrize(
    ("fact", "day"),
    [
        ("2021年6月8日15时许，被告人陈某窃取手机一部，后被抓获。", date(2021, 6, 8)),
        ("公诉机关指控，2015年7月，被告人马某、罗某在车站扒窃。", date(2015, 7, 1)),
        ("2010年3月2日、2012年11月5日，被告人花某两次入户盗窃。", date(2012, 11, 5)),
        (
            "被告人蓝某，1985年3月4日出生。2009年5月6日，因犯盗窃罪被判处有期徒刑一年，2010年5月5日"
            "刑满释放。2014年8月9日，其窃得手机一部。2014年8月10日，蓝某主动投案。",
            date(2014, 8, 9),
        ),
        ("20××年3月5日，被告人谷某盗窃电动车一辆。", None),
        ("被告人冉某自2019年起非法经营烟草。", None),
        ("2021年2月30日，被告人盛某盗窃。", None),
        ("2021年3月6日，被告人路某在家中被抓获。", None),
        ("", None),
    ],
)
def test_the_day_of_the_deed_is_read_and_no_other(fact: str, day: date | None) -> None:
    assert deed_day(fact) == day


def test_generated_cases_tell_their_day() -> None:
    days = [deed_day(case.fact) for case in generate_cases(200, seed=3)]
    assert sum(day is not None for day in days) >= 190
    assert all(2008 <= day.year <= 2024 for day in days if day)


@given(st.text("0123456789年月日，。被告人出生盗窃 ", max_size=60))
def test_any_text_has_a_day_or_none(text: str) -> None:
    assert deed_day(text) is None or 1900 <= deed_day(text).year < 2100  # type: ignore[union-attr]
