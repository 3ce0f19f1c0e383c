"""Figures in any spelling, and their normal form."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curt.classifier.familiarity import read_fact, read_text
from curt.dialogue import Prompts
from curt.law.figures import (
    Figure,
    foreign_money,
    normalise_figures,
    read_figures,
    write_figure,
)
from curt.law.numerals import write_number


@pytest.mark.parametrize(
    "told",
    [
        *("8000元", "8,000元", "8，000元", "8 000元", "８０００元", "８，０００元", "8000.00元"),
        *("0.8万元", "8千元", "8千余元", "八千元", "捌仟元", "捌仟圆", "8000块钱", "8000余元"),
        *("￥8000", "¥8,000.00", "￥8000元", "RMB 8000", "8000 元", "0.8 万元", "8k元", "8'000元"),
        *(
            "8000元整",
            "捌仟元整",
            "8000元人民币",
            "8000元（捌仟元整）",
            "捌仟圆整（大写：8,000元）",
        ),
    ],
)
def test_every_spelling_of_a_sum_is_one_figure(told: str) -> None:
    assert normalise_figures(f"窃得现金{told}，后离开") == "窃得现金8000元，后离开"


@pytest.mark.parametrize(
    ("told", "yuan"),
    [
        *(("骗了三四万元", 40_000), ("花了两三万块钱", 30_000), ("损失七八十万元", 800_000)),
        *(("受贿350万，", 3_500_000), ("骗走老人180万，", 1_800_000), ("骗走12w，", 120_000)),
        *(("骗了人家50万。", 500_000), ("偷了3500，", 3_500), ("给了他1万零500元", 10_500)),
        *(("赌资2W，", 20_000), ("骗了2.3w块，", 23_000)),
        *(("骗走12w,被抓", 120_000), ("损失三五万元", 50_000), ("给了他1万零5百元", 10_500)),
        ("骗走老人12w", 120_000),
    ],
)
def test_sums_as_people_type_them(told: str, yuan: int) -> None:
    for text in (told, read_text(told), f"{told}左右。" if told[-1] in "w万" else told):
        assert [(f.value, f.unit) for f in read_figures(text)] == [(yuan, "元")]


@pytest.mark.parametrize(
    "told",
    [
        "转发量达3万，",
        "点击3万，",
        "获得2015，",
        "市国资字（1993）58号",
        "打了110，",
        "收到13812345678，",
    ],
)
def test_other_bare_numbers_are_no_money(told: str) -> None:
    assert not [f for f in read_figures(told) if f.unit == "元"]


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        ("吹气168，抽血出来是152毫克", "吹气168mg/100ml，抽血出来是152mg/100ml"),
        ("验血一百三十四。", "验血134mg/100ml。"),
        ("抽血3次，花120元", "抽血3次，花120元"),
        ("前后一共24万，都输了", "前后一共240000元，都输了"),
        ("取了一万二，损失六千多", "取了12000元，损失6000元"),
        ("收了一万八的货", "收了18000元的货"),
        ("一共来了三万人", "一共来了三万人"),
    ],
)
def test_everyday_words_leave_units_out(told: str, plain: str) -> None:
    assert normalise_figures(told) == plain


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
        ("1.68mg/ml", "168mg/100ml"),
        ("1.68毫克／毫升", "168mg/100ml"),
        ("168㎎/100ml", "168mg/100ml"),
        ("１６８ｍｇ／１００ ｍｌ", "168mg/100ml"),
        ("三点二七克", "3.27克"),
        ("三千二百元五角", "3200.5元"),
        ("卅五元", "35元"),
        ("1.2w元", "12000元"),
        ("168.3mg／100ML", "168.3mg/100ml"),
        ("1,200株", "1200株"),
    ],
)
def test_measures_are_told_in_digits_and_one_name(told: str, plain: str) -> None:
    assert normalise_figures(told) == plain


BLOOD = [
    "每一百毫升血里有{}毫克酒精",
    *("每百毫升血液含酒精{}毫克", "每100毫升血液中酒精含量为{}毫克", "每100ml血液中乙醇含量{}mg"),
    *("血样中酒精含量达每百毫升{}毫克", "血液酒精含量是{}毫克", "酒精含量{}（mg/100ml）"),
    *(
        "{}毫克／100毫升",
        "{}mg/100mL",
        "{} mg / 100 ml",
        "{}mg每100ml",
        "{}毫克/100ml",
        "{}mg/百毫升",
    ),
    *(
        "{}mg/dL",
        "{}毫克/分升",
        "{}毫克/每百毫升",
        "{}毫克（每百毫升）",
        "{}㎎/㎗",
        "{}mg／l00ml",
        "{}mg(乙醇)/1OOml",
        "{}mg/100m1",
    ),
    *("{}mg\\100ml", "{}毫克每100毫升", "{}毫克每百毫升", "酒精含量为每100毫升{}毫克多"),
]
HUNDREDTHS = [
    "{}mg/mL",
    "{}毫克每毫升",
    "血中{}克/升",
    "酒精{}g/L",
    "每毫升血液含酒精{}毫克",
    "每升血液含酒精{}克",
]
TENFOLDS = ["乙醇含量为{}mg/L", "血液中有{}毫克/升", "每升血液含乙醇{}毫克"]


@given(st.integers(1, 600))
def test_alcohol_is_one_figure_however_it_is_measured(level: int) -> None:
    told = [form.format(n) for form in BLOOD for n in (level, f"{level}.00", write_han(level))]
    told += [form.format(f"{level / 100:.2f}") for form in HUNDREDTHS]
    told += [form.format(level * 10) for form in TENFOLDS]
    told += [f"{level / 1000:.3f}{unit}" for unit in ("g/100ml", "克/100毫升")]
    found = {tuple((f.value, f.unit) for f in read_figures(f"经鉴定，{text}。")) for text in told}
    assert found == {((float(level), "mg/100ml"),)}


@given(st.integers(1, 999), st.sampled_from(["", "多", "余", "来"]))
def test_a_weight_is_one_figure_however_it_is_told(grams: int, about: str) -> None:
    han = write_han(grams)
    told = [f"{n}{about}{gap}{unit}" for n in (grams, han) for gap in ("", " ") for unit in "克g"]
    told += [f"{grams * 1000}{unit}" for unit in ("毫克", "mg", "㎎")]
    assert {normalise_figures(f"冰毒{text}，") for text in told} == {f"冰毒{grams}克，"}
    assert normalise_figures(f"冰毒{han}克半") == f"冰毒{grams}.5克"
    jin = {normalise_figures(f"黄鱼{n}{jin}，") for n in (grams, han) for jin in ("斤", "市斤")}
    assert jin == {f"黄鱼{write_figure(grams / 2)}公斤，"}


@given(st.integers(1, 9999))
def test_lay_people_s_sums_are_told_in_yuan(sum_in_thousands: int) -> None:
    han, digits = write_han(sum_in_thousands * 1000), f"{sum_in_thousands * 1000}"
    units = ("块", "块钱", "多块", "来块", "人民币", "RMB", "余元人民币")
    told = [f"骗走{number}{unit}，" for number in (han, digits) for unit in units]
    told.append(f"骗走{han}，")
    wanted = {f"骗走{digits}元，"}
    assert {normalise_figures(text) for text in told} == wanted
    assert normalise_figures(f"人民币{digits}，") == f"人民币{digits}元，"


@pytest.mark.parametrize(
    ("told", "plain"),
    [
        *(("八万四千五元", "84500元"), ("八万四元", "84000元"), ("一百多万元", "1000000元")),
        *(("1万2元", "12000元"), ("十几万元", "100000元"), ("半斤", "0.25公斤")),
        *(("半克", "0.5克"), ("一两，", "50克，"), ("2两冰毒", "100克冰毒"), ("一吨半", "1.5吨")),
        *(("四万三条", "四万三条"), ("200来棵", "200株"), ("4.3万条", "43000条")),
    ],
)
def test_what_people_say_is_read(told: str, plain: str) -> None:
    assert normalise_figures(told) == plain


@pytest.mark.parametrize(("told", "value"), [("俩人", 2), ("仨人", 3), ("四万三条", 43_000)])
def test_spoken_counts_are_read(told: str, value: float) -> None:
    assert [figure.value for figure in read_figures(told)] == [value]


@pytest.mark.parametrize(
    "told",
    [
        "电瓶六块，",
        "盗走地砖300块，",
        "一两天后",
        "喝了半斤白酒",
        "5mg×10片",
        "于3月得分一千，",
        "总铬150mg/L",
        "每升废水含汞5毫克",
    ],
)
def test_units_that_are_words_too_stay(told: str) -> None:
    assert normalise_figures(told) == told


def test_what_stands_around_a_level_of_alcohol_stays() -> None:
    assert normalise_figures("醉酒（211毫克/100毫升）驾车") == "醉酒（211mg/100ml）驾车"
    assert normalise_figures("含酒精128.93克/100ml") == "含酒精128.93mg/100ml"


@pytest.mark.parametrize(
    "told", ["轻伤2级", "轻伤Ⅱ级", "轻伤II级", "轻伤（二级）", "轻伤(2级)", "轻伤 二级", "二级轻伤"]
)
def test_a_grade_of_injury_has_one_spelling(told: str) -> None:
    assert normalise_figures(f"构成{told}，") == "构成轻伤二级，"
    assert normalise_figures("10级伤残、Ⅷ级伤残、拾级残疾") == "十级伤残、八级伤残、十级残疾"


@pytest.mark.parametrize(
    "told",
    [
        *(
            "500美元",
            "10000日元",
            "港币3000元",
            "3000元港币",
            "美金约5,000元",
            "USD500元",
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


@pytest.mark.parametrize(
    ("told", "yuan"),
    [
        ("窃得50000美元，人民币8000元", 8000.0),
        ("盗走美元2000及现金3000元", 3000.0),
        ("收受港币后取款5000元", 5000.0),
    ],
)
def test_yuan_beside_foreign_money_are_read(told: str, yuan: float) -> None:
    assert [figure.value for figure in read_figures(told)] == [yuan]


def test_counts_are_read_in_chinese_numerals_too() -> None:
    assert list(read_figures("容留三人次吸食")) == [Figure(2, 5, 3.0, "人次")]


FORMAL = str.maketrans("一二三四五六七八九十百千万亿", "壹贰叁肆伍陆柒捌玖拾佰仟萬億")
FULL_WIDTH = str.maketrans("0123456789,.", "０１２３４５６７８９，．")


def write_han(value: int) -> str:
    """A whole number of up to 12 digits in Chinese."""
    for scale, name in ((10**8, "亿"), (10**4, "万")):
        if value >= scale:
            high, low = divmod(value, scale)
            zero = "零" if 0 < low < scale // 10 else ""
            return write_han(high) + name + zero + (write_han(low) if low else "")
    return write_number(value)


@given(st.integers(1, 10**11), st.sampled_from(["元", "克", "亩", "mg/100ml"]))
@example(5_448_643_200, "元")
def test_a_figure_is_the_same_however_it_is_written(value: int, unit: str) -> None:
    numbers = [f"{value}", f"{value:,}", f"{value:,}.00", f"{value:,}".replace(",", " ")]
    numbers += [text.translate(FULL_WIDTH) for text in numbers[:3]]
    numbers += [write_han(value), write_han(value).translate(FORMAL)]
    if value % 100 == 0:
        numbers.append(f"{value / 10_000:.6f}万")
    high, low = divmod(value, 10_000)
    if high and low > 9:
        numbers.append(f"{high}万{low}")
    spellings = [f"{number}{gap}{unit}" for number in numbers for gap in ("", " ", "余")]
    if unit == "元":
        signed = [f"￥{number}" for number in numbers[:3]]
        spellings += signed + [text + mark for text in spellings for mark in ("整", "人民币")]
    assert {normalise_figures(text) for text in spellings} == {f"{value}{unit}"}
    assert write_figure(float(value)) == str(value)


def test_model_and_classifier_are_told_the_same_figures(invented: Path) -> None:
    rows = map(json.loads, (invented / "server_amounts.jsonl").read_text("utf-8").splitlines())
    facts = [row["fact"] for row in rows][:4]
    facts += [
        facts[0].replace("8000", told) for told in ("8\u200b000", "8\u2009000", "８\xad０００")
    ]
    prompts = Prompts(tokenizer=None, max_fact_tokens=None)  # type: ignore[arg-type]
    assert len({prompts.excerpt(fact).text for fact in facts}) == 1
    assert len({read_fact(fact).text for fact in facts}) == 1


def test_foreign_money_is_named_unless_it_is_told_in_yuan_too() -> None:
    told = "窃得3,000美元、港币约5万元、HK$20、€ 5和现金8000元，另有500英镑（折合人民币4600元）。"
    assert foreign_money(told) == ["美元", "港币", "港元", "欧元"]
    assert foreign_money("窃得现金8000元。") == []


@given(st.text("0123456789,，.万千百元克一二十余半块斤两毫骗了级轻伤（）ml/每 ", max_size=60))
def test_the_normal_form_of_a_normal_form_is_itself(text: str) -> None:
    plain = normalise_figures(text)
    assert normalise_figures(plain) == plain


@pytest.mark.parametrize("piece", ["1", "1 000", "1,000,", "1万", "一", "千", "1千"])
def test_long_runs_take_no_more_than_their_length(piece: str) -> None:
    started = time.perf_counter()
    normalise_figures(piece * (20_000 // len(piece)))
    assert time.perf_counter() - started < 1
