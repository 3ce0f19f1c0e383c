from __future__ import annotations

import json
import random

import pytest

from curt.corpus.build.contamination import HeldOut
from tests.curt.corpus.build.test_dedup import FACT, OTHER, edit


@pytest.mark.parametrize(
    "told",
    [
        FACT,
        FACT[10:80],
        f"公诉机关指控，{FACT}另查明，被告人系初犯，愿意退赔。案发后其亲属代为赔偿。",
        FACT.replace("张某", "王某某"),
    ],
)
def test_a_test_case_is_recognised_whole_cut_and_inside_a_longer_one(told):
    match = HeldOut.build([("u", OTHER), ("t", FACT)]).match(told)
    assert match is not None
    assert match[0] == "t"
    assert 0.5 <= match[1] <= 1


def test_another_case_is_no_contamination():
    assert HeldOut.build([("t", FACT)]).match(OTHER) is None
    assert HeldOut.build([]).match(OTHER) is None
    assert HeldOut.build([("t", FACT)]).match("") is None


def test_a_saved_index_answers_alike(tmp_path):
    held_out = HeldOut.build([("u", OTHER), ("t", FACT)])
    held_out.save(tmp_path / "index")
    loaded = HeldOut.load(tmp_path / "index")
    for text in (FACT, FACT[20:90], OTHER[:70], "另一件事"):
        assert loaded.match(text) == held_out.match(text)


@pytest.mark.parametrize("threshold", [0, -0.1, 1.01])
def test_thresholds_outside_the_range_are_refused(threshold):
    with pytest.raises(ValueError, match="use more than 0"):
        HeldOut.build([]).match(FACT, threshold)


def test_planted_test_cases_are_found_among_real_facts(real_cases):
    def read(name: str, count: int) -> list[str]:
        lines = (real_cases / name).read_text(encoding="utf-8").splitlines()[:count]
        return [fact for line in lines if len(fact := json.loads(line)["fact"]) > 80]

    test, others = read("test.json", 400), read("dev.json", 400)
    held_out = HeldOut.build((f"t{i}", fact) for i, fact in enumerate(test))
    rng = random.Random(2)
    found = [held_out.match(edit(fact[: len(fact) * 3 // 4], rng, 0.01)) for fact in test]
    right = sum(match is not None and match[0] == f"t{i}" for i, match in enumerate(found))
    assert right / len(test) >= 0.98
    false = [match for fact in others if (match := held_out.match(fact))]
    assert len(false) / len(others) <= 0.02  # what there is are true repeats between the sets
