from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.law.numerals import (
    article_number,
    article_order,
    parse_article,
    parse_months,
    parse_number,
    write_article,
    write_months,
    write_number,
)


@given(st.integers(0, 9999))
def test_numbers_read_back_as_written(value):
    assert parse_number(write_number(value)) == value
    assert parse_number(str(value)) == value


@given(st.integers(1, 300))
def test_months_read_back_as_written(months):
    assert parse_months(write_months(months)) == months


@given(st.integers(1, 452), st.integers(0, 9))
def test_articles_read_back_as_written(number, branch):
    article = str(number) + (f"之{write_number(branch)}" if branch else "")
    assert parse_article(write_article(article)) == article
    assert parse_article(article) == article
    assert article_number(article) == number


@pytest.mark.parametrize(
    ("text", "value"),
    [("十", 10), ("十二", 12), ("二十三", 23), ("一百零五", 105), ("一三三", 133), ("两千", 2000)],
)
def test_chinese_numbers(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("text", "months"),
    [("三年六个月", 42), ("一年半", 18), ("8个月", 8), ("三年", 36), ("十一个月", 11)],
)
def test_durations_of_judgments(text, months):
    assert parse_months(text) == months


@pytest.mark.parametrize("text", ["", "个月", "很久", "三", "年", "3.5年"])
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="not a duration"):
        parse_months(text)


@pytest.mark.parametrize("text", ["0", "453", "第九百条", "刑法", "", "264条款"])
def test_text_that_is_no_article_is_refused(text):
    with pytest.raises(ValueError, match=r"article|not a number"):
        parse_article(text)


def test_numbers_outside_four_digits_are_refused():
    for value in (-1, 10_000):
        with pytest.raises(ValueError, match="outside"):
            write_number(value)


def test_branches_sort_after_their_article():
    articles = ["264", "133之二", "134", "133", "133之一"]
    assert sorted(articles, key=article_order) == ["133", "133之一", "133之二", "134", "264"]


@given(st.text(max_size=12))
def test_any_other_text_raises_only_value_error(text):
    for parse in (parse_number, parse_months, parse_article):
        try:
            result = parse(text)
        except ValueError:
            continue
        assert result is not None
