"""Facts unlike those trained on are told apart, and the probabilities of the others stay."""

from __future__ import annotations

import io
import json
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from compress.classifier.familiarity import LEEWAY, MAX_PAIRS, fit_familiarity, share_unfamiliar
from compress.classifier.train import train_classifier
from curt.artifact import MANIFEST, ArtifactError
from curt.classifier.familiarity import Familiarity
from curt.classifier.model import FAMILIARITY, Classifier, load_classifier
from curt.corpus.generate.generator import Wording, generate_cases
from curt.files import write_json
from tests.cases import common_cases
from tests.compress.classifier.test_train import write_splits
from tests.micro import FACTS

STRANGE = (
    "二〇一六年仲夏，原告与被告就房屋租赁合同履行产生纠纷，双方经社区调解未果，遂诉至本院，"
    "请求判令返还押金并赔偿装修损失，被告辩称墙面渗漏系上层住户所致。"
)

FOREIGN: dict[str, list[str]] = tomllib.loads(
    (Path(__file__).parents[2] / "fixtures" / "foreign_texts.toml").read_text(encoding="utf-8")
)
NEWER = ("formulas", "bare_threshold", "least", "greatest")
SPLITS: tuple[tuple[int, Wording], ...] = ((6000, "train"), (300, "dev"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_splits(tmp_path_factory.mktemp("familiarity"), dev=200)
    train_classifier(config.model_copy(update={"test": config.dev}))
    return config.out


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return load_classifier(folder)


def known_fact() -> str:
    return next(case.fact for case in common_cases(400, "train") if len(case.fact) > 60)


def test_figures_beyond_those_of_all_training_facts_are_told() -> None:
    facts = [
        "被告人窃得现金200元和8,000元。",
        "被告人窃得现金3万元。",
        "血液中乙醇含量为168mg/100ml。",
    ]
    fit = fit_familiarity(facts, facts)
    for own in ("窃得现金捌仟元。", "窃得30,000元，其中一张面额1元。", "乙醇含量168毫克/100毫升。"):
        assert fit.figures_beyond(own) == []
    assert fit.figures_beyond("窃得3.1万元，乙醇含量80mg/100ml。") == ["31000元", "80mg/100ml"]
    assert fit.figures_beyond("窃得7,999元，毒品5克。") == ["7999元", "5克"]
    assert Familiarity.read(fit.pack()).figures_beyond("窃得3.1万元。") == ["31000元"]


def test_other_facts_of_the_same_kind_are_hardly_ever_unfamiliar(classifier: Classifier) -> None:
    fit = classifier.familiarity
    assert fit is not None
    facts = [case.fact for case in common_cases(300, "unseen")]
    assert share_unfamiliar(fit, facts) < 0.05
    assert classifier.manifest.evaluation["test_unfamiliar"] <= 0.005 + 1e-9
    assert classifier.manifest.evaluation["unfamiliar_threshold"] == fit.threshold


def test_text_of_another_kind_is_unfamiliar(classifier: Classifier) -> None:
    assert classifier.is_unfamiliar(STRANGE)
    assert not classifier.is_unfamiliar(known_fact())
    assert not classifier.is_unfamiliar("，。！")  # which has no verdict either


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_kinds_of_text_are_unfamiliar(classifier: Classifier, kind: str) -> None:
    assert len(FOREIGN[kind]) >= 6
    assert share_unfamiliar(classifier.familiarity, FOREIGN[kind]) == 1.0


@pytest.mark.slow
def test_real_cases_are_familiar_to_a_classifier_of_generated_ones(real_cases: Path) -> None:
    with (real_cases / "test.json").open(encoding="utf-8") as lines:
        facts = [json.loads(line)["fact"] for line in lines]
    train, dev = (
        [case.fact for case in generate_cases(count, wording, wording)] for count, wording in SPLITS
    )
    fit = fit_familiarity(train, dev)
    assert share_unfamiliar(fit, facts) < 0.1
    for kind, texts in FOREIGN.items():
        assert share_unfamiliar(fit, texts) == 1.0, kind


def test_a_fact_without_the_formulas_has_a_lower_threshold() -> None:
    train = ["公诉机关指控被告人盗窃"] * 30 + ["公诉机关指控被告人诈骗他人财物甚多"]
    fit = fit_familiarity(train, train)
    assert fit.holds_formula("该被告人")
    for none in ("被告", "", "财物甚多他人"):  # the last stands in one fact of 31
        assert not fit.holds_formula(none)
    without, beside = "财物甚多他人", "被告人财物甚多他人"
    fit = replace(fit, bare_threshold=1.0, threshold=10.0)
    assert min(fit.surprise(without), fit.surprise(beside)) > 1.0
    assert fit.is_unfamiliar(without)
    assert not fit.is_unfamiliar(beside)


def test_a_file_made_before_there_were_formulas_has_one_threshold(classifier: Classifier) -> None:
    fit = classifier.familiarity
    buffer = io.BytesIO()
    older = {name: each for name, each in asdict(fit).items() if name not in NEWER}
    np.savez_compressed(buffer, **older)
    again = Familiarity.read(buffer.getvalue())
    assert again.threshold == fit.threshold
    assert again.bare_threshold == np.inf
    assert not again.holds_formula(known_fact())
    assert again.is_unfamiliar(FOREIGN["english"][0])
    assert again.figures_beyond("窃得现金800亿元。") == []
    del older["threshold"]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **older)
    with pytest.raises(KeyError):
        Familiarity.read(buffer.getvalue())


def test_a_folder_made_before_there_was_a_way_to_tell_loads_and_warns_of_nothing(
    folder: Path, tmp_path: Path
) -> None:
    older = tmp_path / "older"
    older.mkdir()
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"][FAMILIARITY]
    for name in manifest["files"]:
        (older / name).write_bytes((folder / name).read_bytes())
    write_json(older / MANIFEST, manifest)
    loaded = load_classifier(older)
    assert loaded.familiarity is None
    assert not loaded.is_unfamiliar(STRANGE)


def test_an_altered_file_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / FAMILIARITY).write_bytes((copy / FAMILIARITY).read_bytes() + b"0")
    with pytest.raises(ArtifactError, match=r"familiarity.npz is not the file"):
        load_classifier(copy)


def test_what_is_packed_is_read_back(classifier: Classifier) -> None:
    fit = classifier.familiarity
    again = Familiarity.read(fit.pack())
    assert again.surprise(STRANGE) == fit.surprise(STRANGE)
    assert again.threshold == fit.threshold
    assert len(fit.twos) <= MAX_PAIRS
    assert len(fit.pack()) < 600_000


def test_surprise_is_the_mean_of_the_characters_own() -> None:
    fit = fit_familiarity(["甲乙甲乙", "甲丙"], ["甲乙"])
    alone = {char: (count + 0.5) / (6 + 4000) for char, count in (("乙", 2), ("丙", 1), ("丁", 0))}
    assert fit.surprise("甲乙") == pytest.approx(-np.log((2 + 5 * alone["乙"]) / (3 + 5)))
    expected = -np.log((1 + 5 * alone["丙"]) / 8) - np.log(5 * alone["丁"] / (1 + 5))
    assert fit.surprise("甲，丙丁") == pytest.approx(expected / 2)
    assert fit.threshold == pytest.approx(fit.surprise("甲乙") + LEEWAY)
    with pytest.raises(ValueError, match="two letters"):
        fit_familiarity(["，"], ["甲乙"])


@hypothesis_settings(deadline=None, max_examples=50)
@given(st.text())
def test_any_text_has_a_finite_surprise(text: str) -> None:
    fit = fit_familiarity(FACTS, FACTS)
    assert 0 <= fit.surprise(text) < 30


def test_it_takes_a_small_part_of_a_millisecond(classifier: Classifier) -> None:
    fact, times_ms = (STRANGE * 10)[:300], []
    for _ in range(200):
        started_s = time.perf_counter()
        classifier.is_unfamiliar(fact)
        times_ms.append((time.perf_counter() - started_s) * 1e3)
    assert np.percentile(times_ms, 25) < 0.5
