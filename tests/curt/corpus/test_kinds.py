from __future__ import annotations

import json
import time
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.generate.generator import generate_cases
from curt.corpus.kinds import ORDINARY, Kind, chinese_share, fit_classifier, kind_of
from tests.micro import FACTS

FIXTURES = Path(__file__).parents[2] / "fixtures"
HELD_OUT: dict[str, list[str]] = tomllib.loads((FIXTURES / "kinds.toml").read_text("utf-8"))
UNSEEN: dict[str, dict[str, list[str]]] = tomllib.loads(
    (FIXTURES / "kinds_unseen.toml").read_text("utf-8")
)
FOREIGN = tomllib.loads((FIXTURES / "foreign_texts.toml").read_text("utf-8"))


@pytest.mark.parametrize("held_out", [HELD_OUT, *UNSEEN.values()])
def test_held_out_texts_of_every_kind_are_told_apart(held_out: dict[str, list[str]]) -> None:
    found = [(kind, kind_of(text)) for kind, texts in held_out.items() for text in texts]
    assert {kind for kind, _ in found} == set(get_args(Kind))
    assert sum(kind == told for kind, told in found) >= 0.93 * len(found)
    ordinary = [(kind == ORDINARY) == (told == ORDINARY) for kind, told in found]
    assert sum(ordinary) >= 0.97 * len(found)


def test_texts_of_others_are_no_prosecution() -> None:
    found = {name: [kind_of(text) for text in texts] for name, texts in FOREIGN.items()}
    assert all(ORDINARY not in kinds for kinds in found.values())
    for name in ("taiwan_traditional", "taiwan_simplified"):
        assert set(found[name]) == {"taiwan"}
    assert set(found["english"]) == {"not_chinese"}


def test_real_prosecutions_are_hardly_ever_taken_for_another_kind(real_cases: Path) -> None:
    with (real_cases / "test.json").open(encoding="utf-8") as lines:
        facts = [json.loads(line)["fact"] for line, _ in zip(lines, range(500), strict=False)]
    assert sum(kind_of(fact) != ORDINARY for fact in facts) <= 0.02 * len(facts)


def test_generated_cases_are_prosecutions() -> None:
    kinds = [kind_of(fact) for fact in (*FACTS, *(c.fact for c in generate_cases(200, seed=9)))]
    assert kinds.count(ORDINARY) >= 0.99 * len(kinds)


@pytest.mark.parametrize(
    ("kind", "fact"),
    [
        ("appeal", "原审认定被告人丁某盗窃电动车一辆。宣判后，丁某以量刑过重为由提出上诉。"),
        ("appeal", "一审法院判处其有期徒刑一年，被告人不服。本院依法组成合议庭进行二审。"),
        ("retrial", "申诉人宋某因诈骗一案不服生效判决，本院依照审判监督程序提审本案。"),
        ("commutation", "执行机关以罪犯龚某在服刑期间确有悔改表现为由，报请减去有期徒刑六个月。"),
        ("commutation", "罪犯唐某积极劳动，获得表扬三次，监狱提请对其假释，现已审理终结。"),
        ("private_prosecution", "自诉人许某以被告人韩某在网上散布谣言犯诽谤罪，向本院起诉。"),
        ("civil", "原告傅某诉称，被告沈某驾车将其撞伤，请求判令被告赔偿医疗费八千元。"),
        ("incidental_civil", "附带民事诉讼原告人傅某请求判令被告人沈某赔偿误工费三千元。"),
        ("jurisdiction", "被告人程某合同诈骗一案，上级法院决定由邻县法院审理，指定管辖。"),
        ("withdrawn", "审理过程中，某区人民检察院以证据不足为由申请撤回起诉，本院予以准许。"),
        (
            "compulsory_treatment",
            "被申请人汪某砍伤路人，经鉴定无责任能力，申请对其强制医疗。",
        ),
        (
            "state_compensation",
            "赔偿请求人田某被羁押百日后获判无罪，请求赔偿侵犯人身自由的损失。",
        ),
    ],
)
def test_other_procedures_are_named(kind: str, fact: str) -> None:
    assert kind_of(fact) == kind


@pytest.mark.parametrize(
    ("kind", "fact"),
    [
        ("question", "一审判了两年，家里人想上诉，会不会越上诉判得越重？"),
        ("press", "记者获悉，备受关注的一起旧案今日再审，旁听席座无虚席。"),
        ("withdrawn", "检方认为关键证据不足，开庭次日将全案撤回，法院裁定准许。"),
    ],
)
def test_who_asks_or_reports_of_a_procedure_is_no_party_to_it(kind: str, fact: str) -> None:
    assert kind_of(fact) == kind


@pytest.mark.parametrize(
    "fact",
    [
        "被告人邹某曾因盗窃罪被判处有期徒刑三年，后被裁定减刑，又因抢劫被裁定假释，现盗窃归案。",
        "公诉机关指控被告人邹某打伤原告傅某，附带民事诉讼原告人请求赔偿医疗费。",
        "被告人喆堃与犇某盗掘古墓，挖出民国三年银元二枚，被公安机关抓获。",
        "被告人李某在网上查询如何判刑？后持刀捅伤被害人王某，致其重伤。",
    ],
)
def test_what_sounds_like_another_kind_in_a_prosecution_is_none(fact: str) -> None:
    assert kind_of(fact) == ORDINARY


def test_the_invented_inputs_are_named(invented: Path) -> None:
    names = {"civil suit": "civil", "incidental civil": "incidental_civil", "child of 11": "child"}
    for line in (invented / "server_not_first_instance.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        kind = names.get(row["kind"], row["kind"].replace(" ", "_"))
        assert kind_of(row["fact"]) == kind


@given(st.text(max_size=200))
def test_any_text_has_a_kind(text: str) -> None:
    assert kind_of(text) in get_args(Kind)
    assert 0 <= chinese_share(text) <= 1


def test_a_long_text_takes_no_longer_than_its_length() -> None:
    fit_classifier()
    started = time.perf_counter()
    for piece in ("指定", "罪犯", "被申请人", "執行機關", "检察院"):
        kind_of(piece * (20_000 // len(piece)))
    assert time.perf_counter() - started < 2
