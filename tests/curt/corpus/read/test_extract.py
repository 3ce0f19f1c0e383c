from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.read.extract import MAX_CHARACTERS, SEPARATOR, extract_reasoning


@pytest.mark.parametrize(
    ("fact", "evidence"),
    [
        (
            "打成轻伤二级。主动投案，赔偿70,000元并取得谅解。",
            "轻伤二级；自首；谅解；赔偿70000元",
        ),
        ("骗取王某人民币9.5万余元。", "金额95000元"),
        ("窃得手机价值300元，窃得电脑价值2000元，共计价值2300元。", "金额2300元"),
        ("被盗物品价值五百七十五元。", "金额575元"),
        ("贩卖海洛因0.5克、0.3克，共计贩卖0.8克，系累犯。", "海洛因0.8克；累犯"),
        ("以100元的价格贩卖冰毒0.4克。", "冰毒0.4克"),
        ("血液中乙醇含量为147.58mg／100ml。", "血醇147.58mg"),
        ("采伐杉树31株，立木蓄积30.8583立方米。", "林木31株；蓄积30.86立方米"),
        ("驾驶货车致二人死亡，负事故全部责任，肇事后逃逸。", "死亡2人；全部责任；逃逸"),
        ("入户盗窃未遂。", "入户；未遂"),
        ("因犯盗窃罪被判处刑罚。", "前科"),
        ("伤情构成轻微伤。", "轻微伤"),
        ("在路上行走。", ""),
        ("", ""),
    ],
)
def test_evidence_is_quoted_or_normalised(fact, evidence):
    assert extract_reasoning(fact) == evidence


@pytest.mark.parametrize(
    "fact", ["未取得被害人谅解。", "其行为不构成自首。", "没有立功表现。", "不属于从犯。"]
)
def test_denied_circumstances_do_not_count(fact):
    assert extract_reasoning(fact) == ""


def test_a_compensation_is_no_gain():
    assert extract_reasoning("赔偿各项损失共计5000元。") == "赔偿5000元"


def test_death_of_an_animal_or_a_death_certificate_is_no_death():
    assert extract_reasoning("鸟类共20只，已全部死亡。") == ""
    assert extract_reasoning("支付死亡赔偿金。") == ""


def test_the_gravest_injury_stands_for_all():
    assert extract_reasoning("一人轻伤一级，一人重伤二级，一人轻微伤。") == "重伤二级"


def test_a_long_line_is_capped_between_items():
    fact = (
        "重伤二级。持刀入户，扒窃，窃得价值123456元，作案12起。系累犯，从犯，未遂，主动投案，"
        "立功，认罪认罚，取得谅解，退赃，赔偿987654元。"
    )
    evidence = extract_reasoning(fact)
    assert len(evidence) <= MAX_CHARACTERS
    assert evidence.startswith("重伤二级；金额123456元；12起；入户")
    assert all(evidence.split(SEPARATOR))


WORDS = (
    "共计,价值,999999999999999999999999999999,1.5,万,元,克,海洛因,致,人,死亡,赔偿,，,。,轻伤,一级,"
    "事故,负,全部责任,mg/100,乙醇,采伐,株,立方米,²,٣,百,十"
)
PIECES = st.sampled_from(WORDS.split(","))


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=25).map("".join)))
def test_any_text_gives_one_short_line(fact):
    evidence = extract_reasoning(fact)
    assert len(evidence) <= MAX_CHARACTERS
    assert "\n" not in evidence
    assert evidence == extract_reasoning(fact)
