"""Where the two differ and the classifier is right more often, its verdict is served."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.classifier.agreement import add_to_folder, fit_agreement
from curt.artifact import MANIFEST
from curt.classifier.confidence import Disputes
from curt.classifier.model import load_classifier
from curt.dialogue import THINK_END, render_answer
from curt.files import sha256
from curt.law.verdict import Term, Verdict
from serve.app import create_app
from serve.settings import Settings
from tests.compress.classifier.test_agreement import make_trials
from tests.compress.classifier.test_familiarity import STRANGE, known_fact
from tests.compress.classifier.test_train import train_splits
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation

WINS = Disputes(
    cases=20, model_nearer=3, classifier_nearer=17,
    classifier_right=14, charge_right=17, term_right=15, is_overruled=True,
)  # fmt: skip
LOSES = WINS.model_copy(update={"is_overruled": False})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_splits(tmp_path_factory.mktemp("overruled"), dev=100).out


def settle(settings: Settings, plain: Path, tmp_path: Path, disputes: Disputes) -> Settings:
    """Settings with a classifier that has an opinion on disputes with the settings' model."""
    folder = tmp_path / "classifier"
    shutil.copytree(plain, folder)
    classifier = load_classifier(folder)
    assert classifier.assessor
    digest = sha256(settings.model / MANIFEST)
    fit = fit_agreement(classifier.assessor, make_trials(classifier, 100, "fit"), "m", digest)
    add_to_folder(folder, classifier, fit.model_copy(update={"disputes": disputes}), {})
    return settings.model_copy(update={"fallback": folder})


def ask(settings: Settings, verdict: Verdict, path: str = "/predict", **body: object) -> Any:
    pool = FakePool(generation(f"想{THINK_END}{render_answer(verdict)}"))
    reply = AsgiClient(create_app(settings, pool)).post(path, json=body)
    assert reply.status_code == 200
    return reply.json()


def differing() -> Verdict:
    """A verdict that no case here has, with probation and a fine."""
    return Verdict(("妨害公务",), ("277",), Term("fixed", 7, 12), fine_yuan=3000)


def codes(reply: Any) -> list[str]:
    return [each["code"] for each in reply["warnings"]]


def test_the_classifiers_verdict_stands_with_the_models_probation_and_fine(
    settings: Settings, plain: Path, tmp_path: Path
) -> None:
    settings = settle(settings, plain, tmp_path, WINS)
    assert settings.fallback
    fact = known_fact()
    own = load_classifier(settings.fallback).predict(fact).verdict
    model = differing()
    reply = ask(settings, model, fact=fact)
    assert reply["source"] == "overruled"
    assert not reply["degraded"]
    assert reply["reasoning"] is None
    (defendant,) = reply["defendants"]
    assert [each["name"] for each in defendant["charges"]] == list(own.charges)
    assert defendant["term"]["months"] == own.term.months
    assert defendant["term"]["probation_months"] == (12 if own.term.months <= 36 else 0)
    assert defendant["fine_yuan"] == 3000
    (caution,) = [each for each in reply["warnings"] if each["code"] == "overruled"]
    assert "妨害公务，有期徒刑7个月" in caution["message"]
    told = {"charge": 18 / 22, "term": 16 / 22, "verdict": 15 / 22}
    assert reply["confidence"]["probabilities"] == pytest.approx(told, abs=1e-4)
    assert reply["confidence"]["term_interval"]["basis"] == "classifier"


def test_a_chat_names_the_same_verdict(settings: Settings, plain: Path, tmp_path: Path) -> None:
    settings = settle(settings, plain, tmp_path, WINS)
    assert settings.fallback
    fact = known_fact()
    own = load_classifier(settings.fallback).predict(fact).verdict
    messages = [{"role": "user", "content": fact}]
    body = {"model": "curt", "messages": messages}
    reply = ask(settings, differing(), "/v1/chat/completions", **body)
    (choice,) = reply["choices"]
    assert choice["message"]["content"].startswith(f"罪名：{own.charges[0]}\n")
    assert choice["message"]["reasoning_content"] is None


def test_a_model_that_agrees_or_is_right_more_often_or_reads_what_is_unfamiliar_is_believed(
    settings: Settings, plain: Path, tmp_path: Path
) -> None:
    fact, other = known_fact(), tmp_path / "other"
    winning = settle(settings, plain, tmp_path, WINS)
    losing = settle(settings, plain, other, LOSES)
    assert winning.fallback
    own = load_classifier(winning.fallback).predict(fact).verdict
    for reply in (
        ask(winning, own, fact=fact),
        ask(losing, differing(), fact=fact),
        ask(winning, differing(), fact=STRANGE),
        ask(winning, replace(own, charges=(*own.charges, "妨害公务")), fact=fact),
    ):
        assert reply["source"] == "model"
        assert reply["reasoning"] == "想"
        assert "overruled" not in codes(reply)
