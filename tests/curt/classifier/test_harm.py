"""Which figures and grades a fact tells, on wordings that the reader was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest

from compress.classifier.harm import fit_harm
from curt.classifier.familiarity import read_text
from curt.classifier.harm import HASHES, HarmReader, split_sum, write_sum
from curt.corpus.case import Case
from curt.law.verdict import Term, Verdict
from tests.cases import common_cases

THEFT, INJURY = "盗窃", "故意伤害"


@pytest.fixture(scope="module")
def reader() -> HarmReader:
    return fit_harm(common_cases(1500, "train"))


def test_held_out_wording_is_read_better_than_by_the_largest_figure(reader: HarmReader) -> None:
    held_out = [case for case in common_cases(300, "held-out", wording="test") if case.harm]
    right = naive = 0
    for case in held_out:
        (charge,) = case.verdict.charges
        told = reader.read(read_text(case.fact), charge)
        right += told.rpartition("=")[2] == case.harm.rpartition("=")[2]
        bare = HarmReader(reader.units)  # every figure scores alike: the first of the unit
        naive += bare.read(read_text(case.fact), charge) == case.harm
    assert right / len(held_out) > 0.8
    assert right > naive


def test_sums_are_added_and_what_is_beside_the_matter_is_left_out(reader: HarmReader) -> None:
    text = read_text(
        "1、2019年3月4日，被告人王某窃得被害人李某现金人民币7600元。2、同年5月6日，被告人王某"
        "窃得被害人赵某手机一部，价值人民币4,100元。王某名下银行账户余额95元，未予冻结。"
    )
    assert reader.read(text, THEFT) == "7600+4100=11700元"
    assert reader.read(text, "一个没有的罪名") == ""
    assert reader.read("被告人王某窃得财物。", THEFT) == ""


def test_a_grade_is_one_of_its_charge(reader: HarmReader) -> None:
    text = read_text("被告人张某持刀将被害人李某捅伤，经鉴定，被害人李某的损伤程度为重伤二级。")
    assert reader.read(text, INJURY) == "重伤二级"
    assert THEFT not in reader.grades
    assert INJURY not in reader.units


def test_it_reads_the_same_after_packing(reader: HarmReader) -> None:
    again = HarmReader.unpack(reader.pack())
    assert dict(again.units) == dict(reader.units)
    for case in common_cases(60, "packed", wording="test"):
        text = read_text(case.fact)
        for charge in case.verdict.charges:
            assert again.read(text, charge) == reader.read(text, charge)


def test_without_told_harm_nothing_is_read() -> None:
    bare = Case("a", "被告人窃得8000元。", Verdict((THEFT,), ("264",), Term("fixed", 8)), "test")
    reader = HarmReader.unpack(fit_harm([bare]).pack())
    assert reader.read(bare.fact, THEFT) == ""
    assert reader.weights.shape == (HASHES, 3)
    assert not np.isnan(reader.weights).any()


def test_sums_are_written_as_cases_tell_them() -> None:
    assert write_sum([7600, 4100]) == "7600+4100=11700"
    assert write_sum([0.1, 0.2]) == "0.1+0.2=0.3"
    assert split_sum("7600+4100=11700元", "元") == ([7600, 4100], 11700)
    assert split_sum("0.9克", "克") == ([0.9], 0.9)
    assert split_sum("轻伤二级", "克") is None
