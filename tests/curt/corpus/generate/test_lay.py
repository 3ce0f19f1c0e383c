"""Cases as people tell them who are no court."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from curt.classifier.familiarity import read_text
from curt.corpus.build.pipeline import CorpusConfig, build_corpus
from curt.corpus.generate.calculus import circumstances, offences
from curt.corpus.generate.draw import draw
from curt.corpus.generate.facts import lay_words, look_alikes, tell
from curt.corpus.generate.generator import generate_cases
from curt.corpus.generate.grammar import Wording, alternatives, parse
from curt.corpus.store import read_cases
from curt.law.figures import read_figures
from curt.law.statutes import CHARGES

WORDS = lay_words()
KNOWN = WORDS["charges"]
SHARED = circumstances()
EVERYDAY = Path(__file__).parents[3] / "fixtures" / "everyday_facts.jsonl"


def pattern(way: str) -> re.Pattern[str]:
    nodes = (re.escape(node) if isinstance(node, str) else ".{0,60}?" for node in parse(way))
    return re.compile("".join(nodes))


def everyday() -> list[dict[str, Any]]:
    return [json.loads(line) for line in EVERYDAY.read_text(encoding="utf-8").splitlines()]


def test_the_register_is_for_charges_grades_and_circumstances_that_there_are() -> None:
    assert WORDS["circumstances"].keys() <= SHARED.keys()
    for charge, table in KNOWN.items():
        grades = {grade.name for grade in offences()[charge].grades}
        assert grades >= table.get("told", {}).keys() | table.get("grade_acts", {}).keys()
        assert "told" not in table or grades <= table["told"].keys()
        if offences()[charge].brackets:
            assert all(act.count("{q}") >= 1 for act in table["acts"]), charge
    for one in look_alikes(lay=True):
        assert one.contradicts <= SHARED.keys()


@pytest.mark.parametrize("wording", ["train", "dev", "test"])
def test_each_wording_tells_in_its_own_words(wording: Wording) -> None:
    rng = random.Random(wording)
    for _ in range(600):
        drawn = draw(rng)
        told = tell(drawn, rng, wording, lay=True)
        for one, words in zip(drawn.circumstances, told.circumstances, strict=True):
            if one.name in WORDS["circumstances"]:
                ways = alternatives(WORDS["circumstances"][one.name], wording, strict=True)
                assert any(pattern(way).search(words) for way in ways), words
            assert words.rstrip("。；，") in told.fact


def test_a_corpus_has_lay_cases_for_training_alone_and_beside_the_others(tmp_path: Path) -> None:
    sizes = {"train": 60, "dev": 60, "test": 60}
    facts = {}
    for name, lay in (("without", 0), ("with", 40)):
        build_corpus(CorpusConfig(out=tmp_path / name, lay=lay, **sizes))
        facts[name] = {
            split: [case.fact for case in read_cases(tmp_path / name / f"{split}.jsonl")]
            for split in sizes
        }
    assert facts["with"].pop("train")[:60] == facts["without"]["train"]
    assert facts["with"] == {split: facts["without"][split] for split in ("dev", "test")}
    told = list(read_cases(tmp_path / "with" / "train.jsonl"))[60:]
    assert [case.id for case in told] == [f"generated-7-lay-{n}" for n in range(40)]


def test_quantities_are_figures_in_everyday_spelling() -> None:
    for case in generate_cases(1500, "figures", lay=True):
        offence = offences()[case.verdict.charges[0]]
        if offence.unit and offence.charge in KNOWN:
            found = [figure.value for figure in read_figures(case.fact)]
            parts = case.harm.removesuffix(offence.unit).partition("=")[0].split("+")
            assert {float(part) for part in parts} <= set(found), case.fact


def test_no_word_of_a_court_is_left_where_there_are_lay_ones() -> None:
    for case in generate_cases(1500, "plain", lay=True):
        charge = case.verdict.charges[0]
        ours = charge in KNOWN and ("told" in KNOWN[charge] or not offences()[charge].grades)
        if ours and SHARED.keys() >= set(case.traits):
            assert not re.search("被害人|公诉|[{}|\x00]|，，|。。|_", case.fact), case.fact


def test_nearly_every_way_to_tell_a_circumstance_holds_a_sign_of_it() -> None:
    rng, told, blind = random.Random(3), 0, 0
    for _ in range(4000):
        drawn = draw(rng)
        words = tell(drawn, rng, rng.choice(("train", "test")), lay=True).circumstances
        for one, text in zip(drawn.circumstances, words, strict=True):
            if one.name in SHARED:
                told += 1
                blind += not any(sign in read_text(text) for sign in one.signs)
    assert told > 2000
    assert blind < 0.02 * told


def test_the_everyday_facts_are_not_of_the_generators_words() -> None:
    """They measure what a reader makes of words that it never met."""
    rows = everyday()
    assert len(rows) == 100
    for row in rows:
        offence = offences()[row["charge"]]
        assert row["charge"] in CHARGES
        assert all(offence.admits(SHARED[name]) for name in row["circumstances"]), row
    told = "\n".join(case.fact for case in generate_cases(4000, "lay", lay=True))
    clauses = {c for row in rows for c in re.split("[，。；！]", row["fact"]) if len(c) > 9}
    assert not [clause for clause in clauses if clause in told]
