from __future__ import annotations

from typing import get_args

import pytest

from curt.corpus.build.clean import RULES, domains_of
from curt.corpus.build.pipeline import Rule
from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.law.verdict import Term, Verdict
from tests.curt.corpus.build.test_dedup import FACT

EIGHT = Term("fixed", 8)


def case(fact: str = FACT, articles=("264",), term: Term = EIGHT, **reasonings: str) -> Case:
    return Case("c", fact, Verdict(("盗窃",), articles, term), "test", reasonings)


@pytest.mark.parametrize(
    ("rule", "dropped", "kept"),
    [
        ("too short", case("盗窃手机。"), case()),
        ("kind", case(FACT + "原审判决认定上述事实。"), case(FACT + "被告人系初犯。")),
        ("kind", case("上诉人张某盗窃。" + FACT), case()),
        ("kind", case("原审查明，" + FACT), case("经审理查明，" + FACT)),
        ("language", case("The defendant stole a phone. " * 3), case(FACT + " iPhone 6S")),
        ("language", case("1234567890" * 5), case()),
        ("few steps", case(full="一步；两步"), case(full="一步；两步；三步")),
        ("few steps", case(full="一；二；三", terse="一"), case()),
        ("repetition", case(full="被告人的行为构成盗窃罪。" * 9), case(full=FACT)),
        ("no term", case(term=Term("exempt")), case()),
    ],
)
def test_rules(rule, dropped, kept):
    assert RULES[rule](dropped)
    assert not RULES[rule](kept)


def test_generated_cases_pass_every_rule_for_facts():
    for generated in generate_cases(200, seed=4):
        assert not any(RULES[name](generated) for name in ("too short", "kind", "language"))


def test_domains_follow_the_chapters():
    assert domains_of(case(articles=("133之一", "264"))) == ("public security", "property")
    assert domains_of(case(articles=("67",))) == ()


def test_every_rule_can_be_configured():
    assert set(get_args(Rule)) == RULES.keys()
