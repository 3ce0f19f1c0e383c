"""Figures in any spelling, and their normal form."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.law.figures import Figure, normalise_figures, read_figures, write_figure


@pytest.mark.parametrize(
    "told",
    [
        *("8000元", "8,000元", "8，000元", "8 000元", "８０００元", "８，０００元", "8000.00元"),
        *("0.8万元", "8千元", "8千余元", "八千元", "捌仟元", "捌仟圆", "8000块钱", "8000余元"),
    ],
)
def test_every_spelling_of_a_sum_is_one_figure(told: str) -> None:
    assert normalise_figures(f"窃得现金{told}后离开") == "窃得现金8000元后离开"


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        ("1万2千元", "12000元"),
        ("10余万元", "100000元"),
        ("12，345，678元", "12345678元"),
        ("一百二十三万四千五百六十七元", "1234567元"),
        ("一亿二千万元", "120000000元"),
        ("叁拾伍万元", "350000元"),
        ("2千克", "2公斤"),
        ("2千元", "2000元"),
        ("３．２７g", "3.27克"),
        ("168毫克/100毫升", "168mg/100ml"),
        ("168.3mg／100ML", "168.3mg/100ml"),
        ("1,200株", "1200株"),
    ],
)
def test_measures_are_told_in_digits_and_one_name(told: str, plain: str) -> None:
    assert normalise_figures(told) == plain


@pytest.mark.parametrize(
    "told",
    [
        *(
            "500美元",
            "10000日元",
            "万元户",
            "一人",
            "三次",
            "2次，200元",
            "第264条",
            "2019年3月4日",
        ),
        *("137××××9449", "第三人", ""),
    ],
)
def test_what_is_no_measure_stays(told: str) -> None:
    assert normalise_figures(told) == told


def test_counts_are_read_in_chinese_numerals_too() -> None:
    assert list(read_figures("容留三人次吸食")) == [Figure(2, 5, 3.0, "人次")]


@given(st.integers(1, 10**9))
def test_a_sum_is_the_same_however_it_is_written(value: int) -> None:
    spellings = [f"{value}元", f"{value:,}元", f"{value:,}元".replace(",", "，")]
    if value % 100 == 0:
        spellings.append(f"{value / 10_000:.6f}万元")
    assert {normalise_figures(text) for text in spellings} == {f"{value}元"}
    assert write_figure(float(value)) == str(value)


@given(st.text("0123456789,，.万千百元克一二十余 ", max_size=60))
def test_the_normal_form_of_a_normal_form_is_itself(text: str) -> None:
    plain = normalise_figures(text)
    assert normalise_figures(plain) == plain


@pytest.mark.parametrize("piece", ["1", "1 000", "1,000,", "1万", "一", "千", "1千"])
def test_long_runs_take_no_more_than_their_length(piece: str) -> None:
    started = time.perf_counter()
    normalise_figures(piece * (20_000 // len(piece)))
    assert time.perf_counter() - started < 1
