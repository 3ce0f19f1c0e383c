from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from curt.artifact import READER, load_manifest, write_artifact
from curt.classifier.candidates import (
    HEAD,
    MOST_CHARGES,
    MOST_CIRCUMSTANCES,
    PROBE,
    TERM_SHARE,
    Reader,
    charge_shares,
    draw_candidates,
    load_prompts,
    load_reader,
    parse_candidates,
    read_candidates,
    term_range,
    write_candidates,
    write_range,
)
from curt.classifier.familiarity import read_text
from curt.dialogue import Prompts
from curt.law.verdict import Term
from tests.compress.classifier.test_train import THEFT, make_fallback

LINE = re.compile(
    r"参考：(?:[一-鿿、]+\d+){1,3}；\d[\d之一二、]*；[\d一-鿿，]+(?:；后果[^；]+)?(?:；[一-鿿、+\-\d]+(?:，×\d+%)?)?"
)
TERMS = (Term("death"), Term("detention", 4), Term("fixed", 8), Term("fixed", 12), Term("life"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fallback(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def reader(folder: Path) -> Reader:
    return load_reader(folder)


def test_a_line_names_charges_articles_and_a_range_of_terms(reader: Reader) -> None:
    line = reader(THEFT)
    assert LINE.fullmatch(line)
    charges = line.removeprefix(HEAD).split("；")[0]
    assert charges.startswith("盗窃")
    tenths = [int(number) for number in re.findall(r"\d+", charges)]
    assert 1 <= len(tenths) <= MOST_CHARGES
    assert sorted(tenths, reverse=True) == tenths
    assert all(1 <= tenth <= 10 for tenth in tenths)
    assert sum(tenths) <= 11  # of one distribution, rounded
    assert "264" in line.split("；")[1]
    assert reader(THEFT) == line


def test_a_fact_without_a_word_has_no_line(reader: Reader) -> None:
    assert reader("。……！") == ""


def test_shares_of_charges_are_softer_at_a_higher_temperature() -> None:
    scores = np.array([1.0, 0.0, -1.0], np.float32)
    cold, warm = charge_shares(scores, 0.3), charge_shares(scores, 2.0)
    assert cold.sum() == pytest.approx(1)
    assert cold.argmax() == warm.argmax() == 0
    assert cold.max() > warm.max()


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ((0, 0.1, 0.8, 0.1, 0), "8个月"),
        ((0, 0.1, 0.4, 0.4, 0.1), "8至12个月"),
        ((0, 0.45, 0.4, 0.1, 0.05), "4至8个月"),
        ((0.2, 0, 0, 0, 0.8), "无期徒刑"),
        ((0.5, 0, 0, 0, 0.5), "无期徒刑至死刑"),
        ((0.1, 0.1, 0.1, 0.35, 0.35), "12个月至无期徒刑"),
    ],
)
def test_a_range_is_the_narrowest_that_holds_enough(shares: tuple[float, ...], text: str) -> None:
    assert write_range(*term_range(TERMS, np.array(shares, float))) == text
    assert TERM_SHARE == 0.7


@pytest.mark.parametrize(
    ("term", "months"),
    [
        ("8个月", (8, 8)),
        ("8至12个月", (8, 12)),
        ("12个月至无期徒刑", (12, None)),
        ("免予刑事处罚至6个月", (None, 6)),
        ("无期徒刑", (None, None)),
    ],
)
def test_a_line_is_read_as_it_was_written(term: str, months: tuple[int | None, int | None]) -> None:
    read = parse_candidates(f"{HEAD}盗窃10掩饰、隐瞒犯罪所得1；264、133之一；{term}")
    assert read.charges == {"盗窃": 1.0, "掩饰、隐瞒犯罪所得": 0.1}
    assert read.articles == ("264", "133之一")
    assert (read.term, read.terms, read.months) == (term, term, months)
    read = parse_candidates(f"{HEAD}盗窃10；264；7个月，{term}")
    assert (read.term, read.terms, read.months) == ("7个月", term, months)


def test_the_readers_own_line_can_be_read(reader: Reader) -> None:
    read, decider = parse_candidates(reader(THEFT)), reader.classifier.decider
    assert set(read.charges) <= set(decider.labels.charges)
    assert read.articles == decider.decide(reader.classifier.score(THEFT)).verdict.articles
    probe, short = parse_candidates(PROBE), parse_candidates(PROBE.rpartition("；")[0])
    assert (probe.harm, probe.circumstances) == ("7600+4100=11700元", ("自首", "退赔"))
    assert (short.harm, short.circumstances) == (probe.harm, ())
    assert parse_candidates(f"{HEAD}盗窃8；264；8个月；自首").harm == ""


def test_harm_and_circumstances_end_the_line(reader: Reader) -> None:
    decider, details = reader.classifier.decider, reader.classifier.details
    text, (scores, told) = read_text(THEFT), reader.classifier.study(THEFT)
    bare = write_candidates(decider, scores, 1.0)
    assert bare.count("；") == 2
    line = write_candidates(decider, scores, 1.0, details, told)
    assert line.startswith(bare)
    read = parse_candidates(line)
    assert details
    assert read.harm == details.read_harm(text, "盗窃") != ""
    assert list(read.circumstances) == details.find_circumstances(text, "盗窃")[:MOST_CIRCUMSTANCES]
    assert LINE.fullmatch(line)
    weighed = replace(told, circumstances=("自首", "累犯"))
    line = write_candidates(decider, scores, 1.0, details, weighed)
    surrender, relapse = details.ratios["自首"], details.ratios["累犯"]
    assert line.endswith(f"；自首{surrender}、累犯+{relapse}，×{100 + surrender + relapse}%")
    assert parse_candidates(line).circumstances == weighed.circumstances


@pytest.mark.parametrize(
    "line", ["", "盗窃8；264；8个月", f"{HEAD}；264；8个月", f"{HEAD}盗窃8；264"]
)
def test_anything_else_is_no_line_of_candidates(line: str) -> None:
    with pytest.raises(ValueError, match="no line of candidates"):
        parse_candidates(line)


def test_a_model_folder_with_a_reader_asks_it(
    folder: Path, reader: Reader, micro_model: Path, tmp_path: Path
) -> None:
    described = load_manifest(micro_model).model_dump(exclude={"tools", "created", "files"})
    out = tmp_path / "model"
    with write_artifact(out, described, reader=folder):
        pass
    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    prompts = load_prompts(out, tokenizer, 200)
    assert f"\n{reader(THEFT)}\n{THEFT}\n" in prompts.text(THEFT, 16)
    assert load_reader(out / READER)(THEFT) == reader(THEFT)
    assert HEAD not in load_prompts(micro_model, tokenizer, 200).text(THEFT, 16)


def test_training_prompts_have_the_cross_fitted_line_the_readers_or_none(
    reader: Reader, micro_model: Path
) -> None:
    prompts = Prompts(AutoTokenizer.from_pretrained(micro_model), 200, reader)
    known = {"a": "参考：甲9"}

    def draw(case_id: str, share: float, seed: int = 3) -> list[str | None]:
        rng = random.Random(seed)
        return [draw_candidates(rng, prompts, case_id, known, share) for _ in range(400)]

    assert set(draw("a", 1.0)) == {"参考：甲9"}
    assert set(draw("b", 1.0)) == {None}  # the reader is asked
    assert set(draw("a", 0.0)) == {""}
    some = draw("a", 0.85)
    assert some == draw("a", 0.85)
    assert 0.78 < sum(line != "" for line in some) / len(some) < 0.92
    bare = Prompts(prompts.tokenizer, 200)
    assert draw_candidates(random.Random(3), bare, "a", known, 1.0) == ""


def test_a_file_of_candidates_is_read_or_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "candidates.jsonl"
    with pytest.raises(ValueError, match="no candidates in"):
        read_candidates(path)
    path.write_text(json.dumps({"id": "a", "text": "参考：盗窃8"}, ensure_ascii=False) + "\n")
    assert read_candidates(path) == {"a": "参考：盗窃8"}
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match=r"candidates.jsonl: a row lacks 'text'"):
        read_candidates(path)
    assert read_candidates(None) == {}


def test_known_charges_stand_there_in_place_of_those_found(reader: Reader) -> None:
    others = [c for c in reader.classifier.decider.labels.charges if c != "盗窃"][:2]
    (first,) = parse_candidates(reader(THEFT, others[:1])).charges
    assert first == others[0]
    assert parse_candidates(reader(THEFT, others)).charges == dict.fromkeys(others, 0.5)
    assert reader(THEFT, ["没有的罪"]) == reader(THEFT)
