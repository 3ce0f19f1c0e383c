"""Of facts unlike those that probabilities were fitted on, a reply claims none."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import Request

from curt.classifier.candidates import load_reader
from curt.classifier.model import Findings, load_classifier
from curt.dialogue import Prompts
from curt.engines.protocol import Generation
from serve.answering.answering import Answering, OnlyWay
from serve.api.reply import Replies
from serve.api.schemas import PredictRequest
from serve.app import create_app
from serve.metrics import Metrics
from serve.pool.worker import find
from serve.served import Identity, Served
from serve.settings import Settings
from tests.compress.classifier.test_familiarity import STRANGE, known_fact
from tests.compress.classifier.test_train import train_splits
from tests.serve.api.test_batch import GOOD
from tests.serve.asgi_client import AsgiClient
from tests.serve.fake_pool import FakePool, generation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_splits(tmp_path_factory.mktemp("unfamiliar"), dev=100).out


def ask(
    settings: Settings,
    folder: Path,
    fact: str,
    answer: Generation = GOOD,
    findings: Findings | None = None,
    **fields: object,
) -> Any:
    served = settings.model_copy(update={"fallback": folder})
    reply = AsgiClient(create_app(served, FakePool(answer, findings=findings))).post(
        "/predict", json={"fact": fact, **fields}
    )
    assert reply.status_code == 200
    return reply.json()


def test_no_probability_is_given_of_unfamiliar_text(settings: Settings, folder: Path) -> None:
    own, other = ask(settings, folder, known_fact()), ask(settings, folder, STRANGE)
    assert own["confidence"]["charges"]
    assert other["confidence"] is None
    codes = [[each["code"] for each in reply["warnings"]] for reply in (own, other)]
    assert ["unfamiliar_text" in each for each in codes] == [False, True]
    assert other["defendants"][0]["term"]["months"] == 8  # the verdict itself stays
    cautious = ask(settings, folder, STRANGE, on_low_confidence="interval")
    assert cautious["defendants"][0]["term"] is None
    assert cautious["defendants"][0]["charges"]


def test_what_the_workers_reader_found_is_taken_if_it_is_the_same_classifier(
    settings: Settings, folder: Path
) -> None:
    reader, fact = load_reader(folder), known_fact()
    reader(fact)  # as for a prompt
    found = find(SimpleNamespace(prompts=Prompts(None, None, reader)), fact)  # type: ignore[arg-type]
    assert found is not None
    assert reader.classifier.reading.cache_info().misses == 1  # read once for both
    alone, told = (ask(settings, folder, fact, findings=each) for each in (None, found))
    assert told["confidence"] == alone["confidence"] is not None
    other = replace(found, unfamiliar=True, figures_beyond=("9元",))
    told = ask(settings, folder, fact, findings=other)
    assert told["confidence"] is None
    assert "figure_out_of_range" in [each["code"] for each in told["warnings"]]
    own = ask(settings, folder, fact, findings=replace(other, by="another classifier"))
    assert own["confidence"] == alone["confidence"]


def test_figures_beyond_the_training_facts_and_foreign_money_are_named(
    settings: Settings, folder: Path
) -> None:
    fact = "被告人赵某在某小区秘密窃取钱某现金{}。赵某被抓获归案后如实供述。"
    for told, expected in (
        ("9,000亿元", {"figure_out_of_range": "900000000000元"}),
        ("5000港元", {"foreign_currency": "港元"}),
        ("8000元", {}),
    ):
        codes = ("figure_out_of_range", "foreign_currency")
        warnings = ask(settings, folder, fact.format(told))["warnings"]
        found = {each["code"]: each["message"] for each in warnings if each["code"] in codes}
        assert found.keys() == expected.keys()
        assert all(expected[code] in found[code] for code in found)


def test_the_classifiers_own_verdict_on_unfamiliar_text_claims_nothing(
    settings: Settings, folder: Path
) -> None:
    classifier, pool = load_classifier(folder), FakePool(GOOD)
    identity = Identity.of(settings.model, settings.manifest())
    way = OnlyWay(pool, identity)
    metrics = Metrics()
    answering = Answering(lambda *_: way, settings, metrics, classifier=classifier)
    replies = Replies(answering, settings, metrics)

    state = {"request_id": "r", "started_s": time.monotonic(), "log": {}, "way": way}
    asking = Request({"type": "http", "headers": [], "state": state})
    for fact, claims in ((known_fact(), True), (STRANGE, False)):
        nothing = generation("", finish="deadline", prompt_tokens=0, answer_tokens=0)
        served = Served(nothing, 0, 0, 0.0, classifier.predict(fact), "overloaded")
        reply = replies.reply_to(asking, PredictRequest(fact=fact), served)
        assert reply.source == "fallback"
        assert (reply.confidences is not None) is claims
        assert (reply.confidence is not None) is claims
