from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.law.numerals import article_number, parse_article
from curt.law.statutes import (
    CAIL_ARTICLES,
    CAIL_CHARGES,
    CHARGES,
    Tier,
    article_carries,
    article_charges,
    canonical_charge,
    charge_articles,
    is_charge,
    locate_article,
    term_in_range,
    tier_of,
)
from curt.law.verdict import Term

FAMILIES = ("走私", "经济犯")


def test_the_official_label_lists_are_whole():
    assert len(CAIL_CHARGES) == len(set(CAIL_CHARGES)) == 202
    assert len(CAIL_ARTICLES) == len(set(CAIL_ARTICLES)) == 183
    assert (CAIL_CHARGES[0], CAIL_CHARGES[-1]) == ("妨害公务", "职务侵占")
    assert (CAIL_ARTICLES[0], CAIL_ARTICLES[-1]) == (184, 214)
    assert tuple(CHARGES)[:202] == CAIL_CHARGES


def test_the_lists_agree_with_the_official_files(real_cases):
    assert "\n".join(CAIL_CHARGES) == (real_cases / "accu.txt").read_text().strip()
    assert "\n".join(map(str, CAIL_ARTICLES)) == (real_cases / "law.txt").read_text().strip()


@pytest.mark.parametrize("charge", CHARGES.values(), ids=lambda c: c.name)
def test_every_charge_is_well_formed(charge):
    assert all(parse_article(article) == article for article in charge.articles)
    assert len(set(charge.articles)) == len(charge.articles)
    assert bool(charge.tiers) == (charge.name not in FAMILIES)
    for tier in charge.tiers:
        if tier.max_months:
            assert 6 <= tier.min_months <= tier.max_months <= 180
        else:
            assert tier.min_months == 0
            assert tier.detention or tier.surveillance or tier.life or tier.death
    severity = [(t.death, t.life, t.max_months, t.min_months) for t in charge.tiers]
    assert severity == sorted(severity)


@pytest.mark.parametrize("name", CHARGES)
def test_a_name_survives_every_spelling(name):
    for spelling in (name, f"{name}罪", f"[{name}]", f"【{name}】", f" {name} ", f"[{name}罪]"):
        assert canonical_charge(spelling) == name
    assert canonical_charge(name.replace("、", "")) == name


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("贩卖毒品罪", "走私、贩卖、运输、制造毒品"),
        ("走私、运输毒品", "走私、贩卖、运输、制造毒品"),
        ("运输、贩卖毒品", "走私、贩卖、运输、制造毒品"),
        ("掩饰、隐瞒犯罪所得罪", "掩饰、隐瞒犯罪所得、犯罪所得收益"),
        ("收购赃物", "窝藏、转移、收购、销售赃物"),
        ("强制猥亵罪", "强制猥亵、侮辱妇女"),
        ("强制猥亵、侮辱罪", "强制猥亵、侮辱妇女"),
        ("非法买卖枪支", "非法制造、买卖、运输、邮寄、储存枪支、弹药、爆炸物"),
        ("虚开增值税专用发票罪", "虚开增值税专用发票、用于骗取出口退税、抵扣税款发票"),
        ("偷税", "逃税"),
        ("生产、销售、提供假药罪", "生产、销售假药"),
        ("侵犯公民个人信息", "非法获取公民个人信息"),
        ("容留卖淫", "引诱、容留、介绍卖淫"),
        ("隐匿会计账簿", "隐匿、故意销毁会计凭证、会计帐簿、财务会计报告"),
        ("盗窃枪支", "盗窃、抢夺枪支、弹药、爆炸物"),
        ("盗窃危险物质", "盗窃、抢夺枪支、弹药、爆炸物、危险物质"),
    ],
)
def test_aliases_resolve(alias, name):
    assert canonical_charge(alias) == name


def test_aliases_never_take_the_name_of_another_charge():
    for charge in CHARGES.values():
        for alias in charge.aliases:
            assert canonical_charge(alias) == charge.name


def test_unknown_names_come_back_stripped():
    assert canonical_charge("[走路太快罪] ") == "走路太快"
    assert not is_charge("走路太快")


@pytest.mark.parametrize("name", ["", "  ", "罪", "[]", "【 】"])
def test_a_name_with_nothing_in_it_is_refused(name):
    with pytest.raises(ValueError, match="no charge"):
        canonical_charge(name)
    assert not is_charge(name)


@given(st.text(min_size=1))
def test_canonical_names_are_fixed_points_for_known_charges(name):
    try:
        canonical = canonical_charge(name)
    except ValueError:
        return
    assert not is_charge(canonical) or canonical_charge(canonical) == canonical


# (charge, articles that define it, tiers as (min, max, detention, surveillance, life, death));
# written down from the law apart from the table, for the charges courts meet most.
LAW = [
    ("盗窃", "264", [(6, 36, 1, 1, 0, 0), (36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 0)]),
    ("诈骗", "266", [(6, 36, 1, 1, 0, 0), (36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 0)]),
    ("抢劫", "263", [(36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 1)]),
    ("故意伤害", "234", [(6, 36, 1, 1, 0, 0), (36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 1)]),
    ("故意杀人", "232", [(36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 1)]),
    ("强奸", "236", [(36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 1)]),
    ("交通肇事", "133", [(6, 36, 1, 0, 0, 0), (36, 84, 0, 0, 0, 0), (84, 180, 0, 0, 0, 0)]),
    ("危险驾驶", "133之一", [(0, 0, 1, 0, 0, 0)]),
    ("开设赌场", "303", [(6, 60, 1, 1, 0, 0), (60, 120, 0, 0, 0, 0)]),
    ("容留他人吸毒", "354", [(6, 36, 1, 1, 0, 0)]),
    ("职务侵占", "271", [(6, 36, 1, 0, 0, 0), (36, 120, 0, 0, 0, 0), (120, 180, 0, 0, 1, 0)]),
    ("集资诈骗", "192", [(36, 84, 0, 0, 0, 0), (84, 180, 0, 0, 1, 0)]),
    ("污染环境", "338", [(6, 36, 1, 0, 0, 0), (36, 84, 0, 0, 0, 0), (84, 180, 0, 0, 0, 0)]),
    ("失火", "115", [(6, 36, 1, 0, 0, 0), (36, 84, 0, 0, 0, 0)]),
]


@pytest.mark.parametrize(("charge", "article", "tiers"), LAW)
def test_common_charges_carry_the_tiers_of_the_law(charge, article, tiers):
    known = CHARGES[charge]
    assert known.articles[0] == article
    assert [
        (t.min_months, t.max_months, t.detention, t.surveillance, t.life, t.death)
        for t in known.tiers
    ] == tiers


def test_a_term_on_the_edge_of_two_tiers_belongs_to_the_milder():
    tier = tier_of("盗窃", Term("fixed", 36))
    assert tier == Tier(6, 36, detention=True, surveillance=True, fine=True)
    assert tier_of("盗窃罪", Term("fixed", 37)) == Tier(36, 120, fine=True)


def test_kinds_are_checked_with_their_own_bounds():
    assert term_in_range("危险驾驶", Term("detention", 6))
    assert not term_in_range("危险驾驶", Term("detention", 7))
    assert not term_in_range("危险驾驶", Term("fixed", 6))
    assert not term_in_range("盗窃", Term("fixed", 3))
    assert not term_in_range("盗窃", Term("death"))
    assert term_in_range("故意杀人", Term("death"))
    assert term_in_range("故意杀人", Term("reprieve"))
    assert not term_in_range("盗窃", Term("reprieve"))
    assert term_in_range("盗窃", Term("life"))
    assert term_in_range("盗窃", Term("surveillance", 24))
    assert not term_in_range("盗窃", Term("surveillance", 2))


def test_exemption_is_allowed_and_belongs_to_no_tier():
    assert term_in_range("抢劫", Term("exempt"))
    assert tier_of("抢劫", Term("exempt")) is None


def test_families_allow_everything_and_unknown_charges_nothing():
    assert term_in_range("走私", Term("fixed", 180))
    assert not CHARGES["走私"].tiers
    assert not term_in_range("走路太快", Term("exempt"))
    assert tier_of("走路太快", Term("fixed", 12)) is None
    assert charge_articles("走路太快") == ()


def test_the_most_severe_tier_comes_last():
    assert CHARGES["抢劫"].tiers[-1] == Tier(120, 180, life=True, death=True, fine=True)


def test_articles_and_charges_find_each_other():
    assert article_carries("264", "盗窃罪")
    assert article_carries("133之一", "危险驾驶")
    assert not article_carries("133", "危险驾驶")
    assert not article_carries("264", "诈骗")
    assert article_charges("133之一") == ("危险驾驶",)
    assert article_charges("234")[0] == "故意伤害"
    assert article_charges("1") == ()


def test_a_bare_number_finds_its_branch_by_the_charge():
    assert locate_article(133, ("危险驾驶",)) == "133之一"
    assert locate_article(133, ("危险驾驶", "交通肇事")) == "133"
    assert locate_article(67, ("危险驾驶",)) == "67"


def test_almost_all_real_terms_stand_in_their_tiers(real_cases):
    inside = total = 0
    for line in (real_cases / "dev.json").read_text().splitlines():
        meta = json.loads(line)["meta"]
        term = meta["term_of_imprisonment"]
        charges, months = meta["accusation"], term["imprisonment"]
        if len(charges) > 1 or term["death_penalty"] or term["life_imprisonment"] or months < 6:
            continue
        if canonical_charge(charges[0]) != "危险驾驶":
            total += 1
            inside += term_in_range(charges[0], Term("fixed", months))
            articles = [locate_article(a, (charges[0],)) for a in meta["relevant_articles"]]
            assert {article_number(a) for a in articles} == set(meta["relevant_articles"])
    assert inside / total > 0.97
