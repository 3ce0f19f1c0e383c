from __future__ import annotations

import json
import shutil
from datetime import date
from pathlib import Path

import pytest

from curt.artifact import load_manifest
from curt.classifier.model import Prediction
from curt.dialogue import THINK_END, LeftOut, render_answer
from curt.engines.protocol import Finish
from curt.law.statutes import STATUTE_VERSION, tier_of
from curt.law.verdict import Term, Verdict
from serve.api.reply import build_defendant, build_reply, describe_tier
from serve.api.schemas import ALL_TASKS, NOTICE, PredictReply
from serve.metrics import Metrics
from serve.served import Identity, Served
from tests.micro import FACTS
from tests.serve.fake_engine import VERDICT
from tests.serve.fake_pool import generation

GOOD = f"窃取8000元{THINK_END}{render_answer(VERDICT)}"


def reply_to(
    folder: Path, text: str, finish: Finish = "stop", candidates: str = "",
    fact: str = FACTS[0], day: date | None = None, **options: bool,
) -> PredictReply:  # fmt: skip
    left_out = LeftOut(120, 3) if options.pop("clipped", False) else LeftOut()
    written = generation(text, finish=finish, left_out=left_out, candidates=candidates)
    return reply_of(folder, Served(written, 48, 32, 1.234), fact=fact, day=day, **options)


def reply_of(
    folder: Path, served: Served, *, fact: str = FACTS[0], day: date | None = None, **options: bool
) -> PredictReply:
    return build_reply(
        served,
        fact=fact,
        date_given=day,
        tasks=ALL_TASKS,
        include_reasoning=options.get("include_reasoning", True),
        identity=Identity.of(folder, load_manifest(folder)),
        request_id="abc",
        deadline_ms=400,
        total_ms=30.0,
    )


def test_a_readable_answer_becomes_a_verdict(empty_model: Path) -> None:
    reply = reply_to(empty_model, GOOD)
    (defendant,) = reply.defendants
    assert defendant.charges
    assert defendant.charges[0].title == "盗窃罪"
    assert defendant.articles
    assert defendant.articles[0].title == "第二百六十四条"
    assert defendant.term
    assert defendant.term.text == "有期徒刑8个月，缓刑12个月"
    assert defendant.term.statutory.in_range is True
    assert defendant.fine_yuan == 2000
    assert defendant.ruling
    assert "缓刑一年" in defendant.ruling
    assert (reply.reasoning, reply.degraded, reply.notice) == ("窃取8000元", False, NOTICE)
    assert (reply.thinking.tokens, reply.thinking.allowed, reply.thinking.stated_budget) == (
        3,
        48,
        32,
    )
    assert reply.timings_ms.queue == 1.23


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        (GOOD, "deadline", "deadline"),
        (GOOD, "length", "answer_too_long"),
        ("胡言乱语", "stop", "unreadable_answer"),
        (f"想{THINK_END}刑期：八百年", "stop", "unreadable_answer"),
        ("", "deadline", "deadline"),
    ],
)
def test_without_a_whole_answer_there_is_no_verdict(
    empty_model: Path, text: str, finish: Finish, reason: str
) -> None:
    reply = reply_to(empty_model, text, finish)
    assert (reply.degraded, reply.degraded_reason, reply.defendants) == (True, reason, [])


def test_a_stand_ins_verdict_carries_no_failed_reasoning_and_blames_no_deadline(
    empty_model: Path,
) -> None:
    served = Served(
        generation(f"窃取8000元{THINK_END}刑期：八百年"), 48, 32, 1.0,
        fallback=Prediction(VERDICT, {"charge": 0.9, "article": 0.9, "term": 0.5}),
    )  # fmt: skip
    reply = reply_of(empty_model, served)
    assert (reply.source, reply.degraded_reason) == ("fallback", "unreadable_answer")
    assert reply.reasoning is None
    assert reply.thinking.tokens == 3  # they were spent all the same
    (message,) = (w.message for w in reply.warnings if w.code == "fallback")
    assert "时限" not in message


def test_reasoning_can_be_left_out(empty_model: Path) -> None:
    assert reply_to(empty_model, GOOD, include_reasoning=False).reasoning is None


def test_what_was_left_out_of_a_fact_is_said(empty_model: Path) -> None:
    reply = reply_to(empty_model, GOOD, clipped=True)
    assert [w.code for w in reply.warnings] == ["fact_clipped"]
    assert reply.left_out
    assert (reply.left_out.characters, reply.left_out.sentences) == (120, 3)
    whole = reply_to(empty_model, GOOD)
    assert (whole.left_out, whole.warnings) == (None, [])


@pytest.mark.parametrize(
    ("allowed", "alone", "cause"), [(20, 64, "load"), (20, 20, "deadline"), (30, 64, None)]
)
def test_less_reasoning_than_the_model_usually_takes_is_said(
    empty_model: Path, allowed: int, alone: int, cause: str | None
) -> None:
    served = Served(generation(GOOD), allowed, 16, 1.0, usual_thinking=30, allowed_alone=alone)
    reply = reply_of(empty_model, served)
    assert [w.code for w in reply.warnings] == (["short_thinking"] if cause else [])
    metrics = Metrics()
    metrics.record_answer(served, total_ms=30.0, deadline_ms=400)
    short = {
        each: metrics.registry.get_sample_value("curt_short_thinking_total", {"cause": each})
        for each in ("load", "deadline")
    }
    assert {each for each, count in short.items() if count} == ({cause} if cause else set())
    ratio = metrics.registry.get_sample_value("curt_thinking_allowed_ratio_sum")
    assert ratio == pytest.approx(allowed / 30)


def test_what_the_classifier_proposed_is_said(empty_model: Path) -> None:
    line = (
        "参考：盗窃8掩饰、隐瞒犯罪所得、犯罪所得收益1；264、133之一；15个月，12个月至无期徒刑；"
        "后果7600+4100=11700元；自首、退赔"
    )
    reply = reply_to(empty_model, GOOD, candidates=line)
    assert reply.proposed
    assert reply.proposed.model_dump() == {
        "charges": [
            {"name": "盗窃", "title": "盗窃罪", "probability": 0.8},
            {
                "name": "掩饰、隐瞒犯罪所得、犯罪所得收益",
                "title": "掩饰、隐瞒犯罪所得、犯罪所得收益罪",
                "probability": 0.1,
            },
        ],
        "articles": [
            {"id": "264", "title": "第二百六十四条"},
            {"id": "133之一", "title": "第一百三十三条之一"},
        ],
        "term": {
            "text": "12个月至无期徒刑",
            "answer": "15个月",
            "low_months": 12,
            "high_months": None,
        },
        "harm": "7600+4100=11700元",
        "circumstances": ["自首", "退赔"],
    }
    assert reply_to(empty_model, "胡言乱语", candidates=line).proposed == reply.proposed
    assert reply_to(empty_model, GOOD).proposed is None


@pytest.mark.parametrize(
    ("version", "in_range", "tier"),
    [
        ("criminal-law-amendment-12", True, "有期徒刑三年至十年、罚金或没收财产"),
        ("criminal-law-amendment-11", False, None),
    ],
)
def test_a_model_is_judged_by_the_law_that_its_manifest_names(
    empty_model: Path, tmp_path: Path, version: str, in_range: bool, tier: str | None
) -> None:
    folder = shutil.copytree(empty_model, tmp_path / "model")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"statute_version": version}))
    verdict = Verdict(("单位行贿",), ("393",), Term("fixed", 84))
    reply = reply_to(folder, f"贿款{THINK_END}{render_answer(verdict)}", fact=FACTS[1])
    term = reply.defendants[0].term
    assert term
    assert (reply.statute_version, term.statutory.in_range, term.statutory.tier) == (
        version, in_range, tier
    )  # fmt: skip
    outside = "term_outside_statute" in {caution.code for caution in reply.warnings}
    assert outside is not in_range


@pytest.mark.parametrize(
    ("fact", "given", "day", "version", "told_by"),
    [
        (FACTS[1], None, None, STATUTE_VERSION, None),
        ("2014年5月6日，" + FACTS[1], None, "2014-05-06", "criminal-law-amendment-8", "fact"),
        ("2014年5月6日，" + FACTS[1], date(2018, 1, 2), "2018-01-02",
         "criminal-law-amendment-10", "request"),
        ("1996年5月6日，" + FACTS[1], None, None, STATUTE_VERSION, None),
        ("2098年5月6日，" + FACTS[1], None, None, STATUTE_VERSION, None),
    ],
)  # fmt: skip
def test_a_reply_names_the_law_of_the_deeds_day(
    empty_model: Path, fact: str, given: date | None, day: str | None, version: str,
    told_by: str | None,
) -> None:  # fmt: skip
    verdict = Verdict(("贪污",), ("382",), Term("fixed", 100))
    reply = reply_to(empty_model, f"{THINK_END}{render_answer(verdict)}", fact=fact, day=given)
    assert reply.law.model_dump(mode="json") == {
        "version": version, "day": day, "told_by": told_by,
    }  # fmt: skip
    assert reply.defendants[0].term
    old = version == "criminal-law-amendment-8"
    tier = "有期徒刑七年至十年" if old else "有期徒刑三年至十年、罚金或没收财产"
    assert reply.defendants[0].term.statutory.tier == tier
    assert [caution.code for caution in reply.warnings] == (["other_tiers"] if old else [])


def test_only_the_tasks_asked_for_are_filled() -> None:
    defendant = build_defendant(VERDICT, ["charge"])
    assert defendant.charges
    assert defendant.model_dump(exclude={"charges"}) == {
        "articles": None, "term": None, "fine_yuan": None, "ruling": None,
    }  # fmt: skip


def test_combined_punishment_belongs_to_no_tier() -> None:
    both = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 240))
    term = build_defendant(both, ["term"]).term
    assert term
    assert term.statutory.in_range is None
    assert term.statutory.tier is None


def test_a_tier_reads_as_the_statute_does() -> None:
    tier = tier_of("盗窃", Term("fixed", 48))
    assert tier
    assert describe_tier(tier) == "有期徒刑三年至十年、罚金或没收财产"
