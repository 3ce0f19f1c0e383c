from __future__ import annotations

import json
import random
import re

import pytest

from curt.corpus.redaction import redact


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("被告人张建国伙同李娜（另案处理）窃取手机。", "被告人张某伙同李某（另案处理）窃取手机。"),
        ("被害人欧阳锋报警，欧阳锋称被打。", "被害人欧阳某报警，欧阳某称被打。"),
        ("证人王芳证言。王芳在场。", "证人王某证言。王某在场。"),
        ("被告人赵某于2016年窃取钱某的手机。", "被告人赵某于2016年窃取钱某的手机。"),
        ("被告人李某甲、被害人××、证人Xx。", "被告人李某甲、被害人××、证人Xx。"),
        ("被害人陈述、证人证言，被告人全部退赔。", "被害人陈述、证人证言，被告人全部退赔。"),
        ("被告人申请回避，被告人应当赔偿。", "被告人申请回避，被告人应当赔偿。"),
    ],
)
def test_names_that_a_role_introduces_are_masked_everywhere(text, masked):
    assert redact(text)[0] == masked


def test_masking_twice_changes_nothing():
    once, counts = redact("被告人张建国、被害人孙丽，电话13812345678。")
    assert counts == {"mobile phone": 1, "name": 2}
    assert redact(once) == (once, {})


def test_names_given_to_people_of_real_facts_are_masked(real_cases):
    lines = (real_cases / "train.json").read_text(encoding="utf-8").splitlines()[:1500]
    rng = random.Random(2)
    given = "伟芳娜秀英敏静丽强磊军洋勇艳杰娟涛超霞平刚桂建国志华文德海燕玉兰春梅红"
    introduced = found = 0
    for line in lines:
        text = json.loads(line)["fact"]
        for name in sorted(set(re.findall(r"[王李张刘陈杨赵黄周吴]某(?![某甲乙丙丁0-9])", text))):
            real = name[0] + "".join(rng.sample(given, rng.choice((1, 2, 2))))
            text = text.replace(name, real)
            if re.search(rf"(?:被告人|被害人|证人){real}", text):
                introduced += 1
                found += real not in redact(text)[0]
    assert introduced > 500
    assert found / introduced >= 0.97


def test_masked_real_facts_hardly_change(real_cases):
    """They come with their names masked: what changes is a missed name or a mistake."""
    lines = (real_cases / "dev.json").read_text(encoding="utf-8").splitlines()
    changed = sum("name" in redact(json.loads(line)["fact"])[1] for line in lines)
    assert changed / len(lines) <= 0.02
