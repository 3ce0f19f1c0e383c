from __future__ import annotations

from datetime import date

import pytest

from curt.law.legality import article_exists, cited_articles, has_basis, is_in_tier
from curt.law.verdict import Term, Verdict


@pytest.mark.parametrize(
    ("text", "articles"),
    [
        ("依照第二百六十四条、第67条", ["264", "67"]),
        ("《中华人民共和国刑法》第一百三十三条之一", ["133之一"]),
        ("《刑法》第五百条", [None]),
        ("第264条之五", [None]),
        ("《中华人民共和国刑事诉讼法》第二百条。第六百条", [None]),
        ("没有条文", []),
    ],
)
def test_citations_are_found_and_those_of_other_laws_passed_over(text, articles):
    assert list(cited_articles(text)) == articles


@pytest.mark.parametrize(
    ("article", "exists"),
    [("264", True), ("133之一", True), ("17之一", True), ("133之九", False), ("453", False)],
)
def test_which_articles_exist(article, exists):
    assert article_exists(article) is exists


@pytest.mark.parametrize(
    ("articles", "holds"),
    [(("264",), True), (("264", "67"), True), (("67",), False), (("264", "266"), False)],
)
def test_articles_are_a_basis_when_they_carry_the_charges_and_no_other(articles, holds):
    assert has_basis(Verdict(("盗窃",), articles, Term("fixed", 9))) is holds


@pytest.mark.parametrize(
    ("charge", "article", "months", "on", "basis", "in_tier"),
    [
        ("单位受贿", "387", 96, None, True, True),
        ("单位受贿", "387", 96, date(2024, 3, 1), True, True),
        ("单位受贿", "387", 96, date(2024, 2, 29), True, False),
        ("袭警", "277", 12, date(2021, 2, 28), False, False),
        ("嫖宿幼女", "360", 72, date(2015, 10, 31), True, True),
        ("嫖宿幼女", "360", 72, date(2015, 11, 1), False, False),
        ("嫖宿幼女", "360", 72, None, True, True),
    ],
)
def test_a_verdict_is_judged_by_the_law_of_its_day(charge, article, months, on, basis, in_tier):
    verdict = Verdict((charge,), (article,), Term("fixed", months))
    assert has_basis(verdict, on) is basis
    assert is_in_tier(verdict, on) is in_tier
