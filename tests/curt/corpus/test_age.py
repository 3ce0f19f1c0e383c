from __future__ import annotations

import pytest

from curt.classifier.details import age_of, name_roles
from curt.classifier.familiarity import read_text
from curt.corpus.age import read_age
from curt.corpus.kinds import kind_of


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("被告人张某（作案时17周岁）盗窃手机一部。", 17),
        ("被告人张某（作案时１７周岁）盗窃手机一部。", 17),
        ("被告人张某，时年十七岁，盗窃手机一部。", 17),
        ("被告人张某于2022年12月2日盗窃手机一部。被告人张某系2006年2月1日出生。", 16),
        ("被告人张某，女，2004年12月2日出生。2022年12月2日，张某盗窃手机一部。", 18),
        ("被告人张某，男，2004年12月3日出生。2022年12月2日，张某盗窃手机一部。", 17),
        ("被告人张某出生于2006年2月1日，2022年5月3日盗窃手机一部。", 16),
        ("被告人作案时已满十六周岁不满十八周岁，盗窃手机一部。", 16),
        ("被告人李某（作案时78岁）盗窃手机一部。", 78),
    ],
)
def test_the_age_at_the_deed_is_read_however_it_is_told(text, age):
    assert read_age(text) == age
    told = "未成年" if age < 18 else "老年" if age > 75 else ""
    assert age_of(name_roles(read_text(text))) == told


@pytest.mark.parametrize(
    "text",
    [
        "被告人王某猥亵被害人李某（时年9周岁）。",
        "被告人王某对被害人李某（案发时年仅13岁）实施猥亵。",
        "2014年6月10日，被告人王某伙同雷某（1997年2月15日出生，另案处理）窜至某村盗窃。",
        "被告人王某伙同李某（作案时15周岁，另案处理）盗窃手机一部。",
        "被告人王某殴打学生（时年15岁）。",
        "被告人王某，男，1980年3月1日出生，系教师，多次猥亵学生李某，李某当时12岁。",
        "被告人张某明知对方2010年3月1日出生，2023年5月1日仍与其发生性关系。",
        "被告人张某抢劫老人王某，王某时年82岁。",
        "被告人王某与女友李某（时年16岁）同居，后盗窃。",
        "被告人方某，男，1990年3月2日出生，盗窃手机一部。",
        *(
            "被告人张某犯罪时未满18周岁。",
            "被告人张某作案时不到16周岁。",
            "被告人张某作案时不足16周岁。",
        ),
        "现年77岁的被告人盗窃手机一部。",
    ],
)
def test_ages_of_others_bounds_and_days_without_a_deed_are_left_alone(text):
    assert read_age(text) is None
    assert age_of(name_roles(read_text(text))) == ""


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        *(("犯罪时未满十八周岁", "prosecution"), ("已满十六周岁不满十八周岁", "prosecution")),
        *(("作案时17周岁", "prosecution"), ("（时年15岁）", "prosecution")),
        *(("作案时未达14周岁", "child"), ("作案时十岁", "child")),
    ],
)
def test_whoever_may_be_tried_is_no_child(told, kind):
    assert kind_of(f"被告人李某{told}，在某超市盗窃手机一部，价值3000元。") == kind
