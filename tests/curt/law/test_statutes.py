from __future__ import annotations

import json
import re
from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.law.numerals import article_number, parse_article, parse_number
from curt.law.statutes import (
    CAIL_ARTICLES,
    CAIL_CHARGES,
    CHARGES,
    STATUTE_VERSION,
    STATUTE_VERSIONS,
    Tier,
    article_carries,
    article_charges,
    canonical_charge,
    charge_articles,
    is_charge,
    law_day,
    locate_article,
    other_tiers,
    term_in_range,
    tier_of,
    version_on,
)
from curt.law.verdict import Term

FAMILIES = ("走私", "经济犯")
# Labels of CAIL2018 beside which today's own name of the charge stands in the table.
NO_NAMES_OF_TODAY = (
    *FAMILIES,
    "组织、强迫、引诱、容留、介绍卖淫",
    "制造、贩卖、传播淫秽物品",
    "盗窃、抢夺枪支、弹药、爆炸物",
)
UNKNOWN_SETS = [("走私废物", date(1997, 10, 1))]
FIRST_DAYS = {*STATUTE_VERSIONS.values(), date(1998, 12, 29)}  # that of the Decision on 骗购外汇


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
    assert charge.articles or charge.name == "经济犯"
    sets = (*charge.earlier, (charge.since, charge.tiers))
    days = [first for first, _ in sets]
    assert days == sorted(set(days))
    assert set(days) <= FIRST_DAYS
    assert charge.until is None or charge.until > charge.since
    assert all(old != new for (_, old), (_, new) in pairwise(sets))
    for first, tiers in sets:
        unknown = charge.name in FAMILIES or (charge.name, first) in UNKNOWN_SETS
        assert bool(tiers) != unknown
        for tier in tiers:
            if tier.max_months:
                assert 6 <= tier.min_months <= tier.max_months <= 180
            else:
                assert tier.min_months == 0
                assert tier.detention or tier.surveillance or tier.life or tier.death
        severity = [(t.death, t.life, t.max_months, t.min_months) for t in tiers]
        assert severity == sorted(severity)


def test_the_charges_of_todays_law_are_all_there():
    assert sum(c.until is None for c in CHARGES.values()) - len(NO_NAMES_OF_TODAY) == 483
    assert set(NO_NAMES_OF_TODAY) < set(CAIL_CHARGES)


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
        ("抢劫枪支罪", "抢劫枪支、弹药、爆炸物、危险物质"),
        ("泄露内幕信息罪", "内幕交易、泄露内幕信息"),
        ("操纵证券市场罪", "操纵证券、期货市场"),
        ("抽逃出资罪", "虚假出资、抽逃出资"),
        ("生产、销售劣药罪", "生产、销售、提供劣药"),
        ("徇私舞弊低价出售国有资产罪", "徇私舞弊低价折股、出售公司、企业资产"),
        ("徇私舞弊低价折股、出售国有资产罪", "徇私舞弊低价折股、出售公司、企业资产"),
        ("为境外非法提供国家秘密罪", "为境外窃取、刺探、收买、非法提供国家秘密、情报"),
        ("利用邪教组织破坏法律实施罪", "组织、利用会道门、邪教组织、利用迷信破坏法律实施"),
        ("资助恐怖活动罪", "帮助恐怖活动"),
        ("组织参与境外赌博罪", "组织参与国(境)外赌博"),
        ("走私固体废物罪", "走私废物"),
        ("食品监管渎职罪", "食品、药品监管渎职"),
        ("吸收客户资金不入帐罪", "吸收客户资金不入账"),
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


# What the law had before Amendment XII and has since 2024-03-01, by hand; D 拘役, F 罚金, L life.
AMENDMENT_12 = [
    ("行贿", "390", "6-60DF 60-120F 120-180LF", "6-36DF 36-120F 120-180LF"),
    ("单位行贿", "393", "6-60DF", "6-36DF 36-120F"),
    ("对单位行贿", "391", "6-36DF", "6-36DF 36-84F"),
    ("单位受贿", "387", "6-60D", "6-36D 36-120"),
    ("非法经营同类营业", "165", "6-36DF 36-84F", "6-36DF 36-84F"),
    ("为亲友非法牟利", "166", "6-36DF 36-84F", "6-36DF 36-84F"),
    ("徇私舞弊低价折股、出售公司、企业资产", "169", "6-36D 36-84", "6-36D 36-84"),
    ("对有影响力的人行贿", "390之一", "6-36DF 36-84F 84-120F", "6-36DF 36-84F 84-120F"),
]


@pytest.mark.parametrize(("charge", "article", "before", "since"), AMENDMENT_12)
def test_amendment_12_holds_from_its_first_day(charge, article, before, since):
    known = CHARGES[charge]
    assert article in known.articles
    for day, tiers in ((date(2024, 2, 29), before), (date(2024, 3, 1), since)):
        assert " ".join(map(short, known.tiers_on(day))) == tiers
    assert known.tiers_on(date.today()) == known.tiers
    assert STATUTE_VERSION == "criminal-law-amendment-12"


def short(tier):
    marks = {"D": tier.detention, "L": tier.life, "F": tier.fine}
    flags = "".join(mark for mark, there in marks.items() if there)
    return f"{tier.min_months}-{tier.max_months}{flags}"


@pytest.mark.parametrize(
    ("charge", "day", "term", "allowed"),
    [
        ("单位行贿", "2024-02-29", Term("fixed", 84), False),
        ("单位行贿", "2024-03-01", Term("fixed", 84), True),
        ("盗窃", "2011-04-30", Term("death"), True),
        ("盗窃", "2011-05-01", Term("death"), False),
        ("集资诈骗", "2021-02-28", Term("fixed", 12), True),
        ("集资诈骗", "2021-03-01", Term("fixed", 12), False),
        ("贪污", "2015-10-31", Term("fixed", 12), True),
        ("开设赌场", "2021-02-28", Term("fixed", 120), True),
        ("危险驾驶", "2011-04-30", Term("detention", 2), False),  # not yet an offence
        ("危险驾驶", "2011-05-01", Term("detention", 2), True),
        ("走私废物", "2001-01-01", Term("life"), True),  # not known: bounds nothing
        ("嫖宿幼女", "2014-06-01", Term("fixed", 72), True),
        ("嫖宿幼女", "2020-06-01", Term("fixed", 72), True),  # judged by the law of its time
        ("盗窃", "1997-09-30", Term("fixed", 12), False),  # before the table begins
    ],
)
def test_a_day_is_judged_by_the_tiers_it_had(charge, day, term, allowed):
    assert term_in_range(charge, term, date.fromisoformat(day)) is allowed


def test_a_charge_that_is_gone_is_known_and_dated():
    assert is_charge("嫖宿幼女罪")
    assert is_charge("嫖宿幼女罪", date(2015, 10, 31))
    assert not is_charge("嫖宿幼女罪", date(2015, 11, 1))
    assert not is_charge("袭警罪", date(2021, 2, 28))
    assert is_charge("袭警罪", date(2021, 3, 1))
    assert term_in_range("嫖宿幼女", Term("fixed", 72))


def test_a_version_stands_for_its_last_day():
    assert law_day("criminal-law-amendment-11") == date(2024, 2, 29)
    assert law_day("criminal-law-amendment-8") == date(2015, 10, 31)
    assert law_day(STATUTE_VERSION) is None
    assert law_day("our-own-law") is None


def test_a_day_has_a_version_and_may_have_had_other_tiers() -> None:
    days = [date(1997, 9, 30), date(1997, 10, 1), date(2015, 10, 31), date(2015, 11, 1)]
    assert [version_on(day) for day in days] == [
        None, "criminal-law-1997", "criminal-law-amendment-8", "criminal-law-amendment-9",
    ]  # fmt: skip
    assert version_on(date.today()) == STATUTE_VERSION
    assert other_tiers("贪污", date(2015, 10, 31))
    assert not other_tiers("贪污", date(2015, 10, 31), date(2012, 1, 1))
    assert not other_tiers("贪污", date(2015, 11, 1))
    assert not other_tiers("危险驾驶", date(2011, 4, 30))  # there was no such charge
    assert not other_tiers("偷看天空", date(2011, 4, 30))


# Articles of every chapter whose charges are compared with the text of the law, where a developer
# has that. Fines are left out.
SPOT_CHECKED = [
    "105", "107", "109", "123", "126", "128", "129", "146", "159", "160", "161",
    "165", "173", "181", "182", "187", "195", "202", "209", "219之一", "234之一", "249",
    "254", "264", "270", "272", "291之一", "300", "306", "334", "343", "371", "378",
    "384", "390之一", "398", "400", "405", "410", "426", "430", "446",
]  # fmt: skip
_YEARS = "([一二三四五六七八九十]+)年以"
_PENALTY = re.compile(
    f"(?:{_YEARS}上)?(?:{_YEARS}下)?有期徒刑((?:[、或者]*(?:无期徒刑|死刑|拘役|管制))*)"
)


@pytest.mark.parametrize("article", SPOT_CHECKED)
def test_tiers_agree_with_the_text_of_the_law(statute_text, article):
    text = statute_text[article]
    text = text.replace("无期徒刑或者十年以上有期徒刑", "十年以上有期徒刑或者无期徒刑")
    stated = set()
    for low, high, rest in _PENALTY.findall(text):
        months = [parse_number(years) * 12 if years else 0 for years in (low, high)]
        flags = [word in rest for word in ("拘役", "管制", "无期", "死刑")]
        stated.add((max(6, months[0]), months[1] or 180, *flags))
    charges = [c for c in CHARGES.values() if c.articles[:1] == (article,) and not c.until]
    known = {
        (t.min_months, t.max_months, t.detention, t.surveillance, t.life, t.death)
        for charge in charges
        for t in charge.tiers
    }
    assert known == stated


@pytest.fixture(scope="session")
def statute_text():
    """The text of articles by id, as of Amendment XI."""
    path = Path(__file__).parents[4] / "shared" / "data" / "statute_text.json"
    if not path.is_file():
        pytest.skip("no text of the law beside this checkout")
    found = {}
    for row in json.loads(path.read_text(encoding="utf-8")).values():
        if "&" not in row["法条"]:
            found[parse_article(row["法条"].replace("条", "", 1))] = row["内容"]
    return found


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
