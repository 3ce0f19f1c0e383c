from __future__ import annotations

import pytest

from curt.corpus.age import read_age
from curt.corpus.kinds import kind_of


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("被告人张某（作案时17周岁）盗窃手机一部。", 17),
        ("赵某（作案时十六岁）盗窃手机一部。", 16),
        ("被告人张某，时年十七岁，盗窃手机一部。", 17),
        ("被告人于2022年12月2日盗窃手机一部。被告人系2006年2月1日出生。", 16),
        ("被告人张某，女，2004年12月2日出生。2022年12月2日，张某盗窃手机一部。", 18),
        ("被告人张某，男，2004年12月3日出生。2022年12月2日，张某盗窃手机一部。", 17),
        ("被告人作案时已满十六周岁不满十八周岁，盗窃手机一部。", 16),
        ("被告人李某（作案时78岁）盗窃手机一部。", 78),
    ],
)
def test_the_age_at_the_deed_is_read_however_it_is_told(text, age):
    assert read_age(text) == age


@pytest.mark.parametrize(
    "text",
    [
        "被告人王某猥亵被害人李某（时年9周岁）。",
        "被告人王某对被害人李某（案发时年仅13岁）实施猥亵。",
        "2014年6月10日，被告人王某伙同雷某（1997年2月15日出生，另案处理）窜至某村盗窃。",
        "被告人王某与女友李某（时年16岁）同居，后盗窃。",
        "被告人方某，男，1990年3月2日出生，盗窃手机一部。",
        "被告人张某犯罪时未满18周岁。",
        "现年77岁的被告人盗窃手机一部。",
    ],
)
def test_ages_of_others_bounds_and_days_without_a_deed_are_left_alone(text):
    assert read_age(text) is None


@pytest.mark.parametrize(
    "told",
    ["犯罪时未满十八周岁", "已满十六周岁不满十八周岁", "作案时17周岁", "（时年15岁）"],
)
def test_whoever_may_be_tried_is_no_child(told):
    assert kind_of(f"被告人李某{told}，在某超市盗窃手机一部，价值3000元。") == "prosecution"
