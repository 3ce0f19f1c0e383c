from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curt.corpus.generate.generator import generate_cases
from curt.corpus.read.cail import read_records
from curt.corpus.read.records import RecordError
from curt.dialogue import Completion, parse_completion, render_completion
from curt.law.verdict import Term, Verdict
from tests.curt.corpus.test_tasks import VERDICTS
from train.data.verification import (
    CHECKS,
    JUDGE_DISAGREES,
    JUDGE_FAILED,
    REASONS,
    VerificationSettings,
    add_grades,
    conclude,
    verify,
)
from train.judge import Grade

THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 9))
RIGHT = "8万30+8=38；自首2；38×80%=30"
WORKED = "36千5+18=23；从犯3未遂3；23×40%=9"
SETTINGS = VerificationSettings()


def answered(verdict: Verdict = THEFT, thinking: str = WORKED) -> Completion:
    return parse_completion(render_completion(thinking, verdict))


def failed(completion: Completion, reference: Verdict = THEFT, **settings) -> set[str]:
    outcome = verify(completion, reference, VerificationSettings(**settings))
    return {name for name, held in outcome.checks.items() if held is False}


def test_a_right_answer_with_right_reasoning_is_accepted():
    outcome = verify(answered(), THEFT, SETTINGS)
    assert (outcome.accepted, outcome.reason) == (True, "")
    assert tuple(outcome.checks) == CHECKS
    assert all(outcome.checks.values())


@pytest.mark.parametrize("verbosity", ["full", "medium", "terse", "brief"])
def test_generated_reasoning_is_accepted_at_every_whole_verbosity(verbosity):
    settings = VerificationSettings(min_steps=1)
    for case in generate_cases(200, seed=12):
        completion = answered(case.verdict, case.reasonings[verbosity])
        outcome = verify(completion, case.verdict, settings)
        assert outcome.accepted, (case.id, outcome.reason)


def test_the_verdicts_of_real_courts_are_accepted_as_answers(real_cases):
    import json

    lines = (real_cases / "test.json").read_text(encoding="utf-8").splitlines()
    verdicts = []
    for line in lines:
        try:
            verdicts.append(next(read_records(json.loads(line))).verdict)
        except RecordError:
            continue
    settings = VerificationSettings(min_steps=0)
    assert len(verdicts) > 500
    assert all(verify(answered(v, ""), v, settings).accepted for v in verdicts)


@given(verdict=VERDICTS)
def test_the_reference_itself_fails_no_check_of_the_answer(verdict):
    assert failed(answered(verdict, ""), verdict, min_steps=0) == set()


@given(
    guess=VERDICTS,
    reference=VERDICTS,
    thinking=st.text("5+17=22；×40%，取9个月。罪第条", max_size=40),
)
def test_accepted_is_what_fails_nothing_and_the_reason_is_the_first_failure(
    guess, reference, thinking
):
    outcome = verify(answered(guess, thinking), reference, SETTINGS)
    wrong = [name for name in CHECKS if outcome.checks[name] is False]
    assert outcome.accepted == (not wrong)
    assert outcome.reason == (REASONS[wrong[0]] if wrong else "")


@pytest.mark.parametrize(
    ("verdict", "thinking", "wrong"),
    [
        (Verdict(("诈骗",), ("264",), THEFT.term), WORKED, {"charge", "statutes"}),
        (Verdict(("盗窃",), ("264", "266"), THEFT.term), WORKED, {"article", "statutes"}),
        (Verdict(("盗窃",), ("264",), Term("fixed", 20)), WORKED, {"term", "conclusion"}),
        (
            Verdict(("盗窃",), ("264",), Term("death")),
            "盗窃。情节严重。死刑",
            {"term", "tier"},
        ),
        (THEFT, "36千5+18=24；从犯3未遂3；24×40%=9", {"arithmetic"}),
        (THEFT, "36千5+18=23；从犯3未遂3；23×40%=10", {"arithmetic", "conclusion"}),
        (THEFT, "诈骗。36千，5+18=23。23×40%=有期徒刑9个月。", {"conclusion"}),
        (THEFT, "23×40%=9", {"steps"}),
        (THEFT, "", {"steps"}),
        (THEFT, "本案应当从轻处罚并且从轻处罚；" * 12, {"repetition"}),
        (THEFT, "适用刑法第六百条；从犯；9个月", {"statutes"}),
    ],
)
def test_each_check_fails_on_its_own_fault(verdict, thinking, wrong):
    assert failed(answered(verdict, thinking)) == wrong


@pytest.mark.parametrize("text", [f"{WORKED}</think>不知道", WORKED])
def test_what_cannot_be_read_is_rejected_for_that(text):
    outcome = verify(parse_completion(text), THEFT, VerificationSettings(checks=("steps",)))
    assert (outcome.accepted, outcome.reason) == (False, REASONS["readable"])
    assert [outcome.checks[n] for n in ("charge", "article", "term")] == [False] * 3


def test_a_tolerance_lets_near_terms_through():
    near = answered(Verdict(("盗窃",), ("264",), Term("fixed", 10)), "盗窃。从犯。10")
    far = answered(Verdict(("盗窃",), ("264",), Term("fixed", 13)), "盗窃。从犯。13")
    assert verify(near, THEFT, SETTINGS).accepted  # ln 11 - ln 10 = 0.10
    assert not verify(far, THEFT, SETTINGS).accepted  # ln 14 - ln 10 = 0.34
    assert verify(far, THEFT, VerificationSettings(min_term_score=0.8)).accepted
    by_ratio = {"term_scale": "ratio", "min_term_score": 0.9}
    assert verify(near, THEFT, VerificationSettings(**by_ratio)).accepted  # 9 / 10
    assert not verify(far, THEFT, VerificationSettings(**by_ratio)).accepted


def test_part_of_the_charges_can_be_made_enough():
    reference = Verdict(("盗窃", "诈骗"), ("264", "266"), Term("fixed", 9))
    assert failed(answered(), reference) == {"charge", "article"}
    assert failed(answered(), reference, min_charge_f1=0.6, min_article_f1=0.6) == set()


def test_a_sentence_the_court_itself_mitigated_is_not_held_to_its_tier():
    robbery = Verdict(("抢劫",), ("263",), Term("fixed", 20))  # 36 months at least
    outcome = verify(answered(robbery, "抢劫。未遂。20"), robbery, SETTINGS)
    assert outcome.accepted
    assert outcome.checks["tier"] is None


def test_checks_that_are_not_required_are_made_all_the_same():
    outcome = verify(answered(THEFT, "23×40%=10"), THEFT, VerificationSettings(checks=("charge",)))
    assert outcome.accepted
    assert (outcome.checks["arithmetic"], outcome.checks["steps"]) == (False, False)


def test_nothing_to_check_is_neither_right_nor_wrong():
    outcome = verify(answered(THEFT, "自首。坦白。从犯"), THEFT, SETTINGS)
    assert (outcome.checks["arithmetic"], outcome.checks["conclusion"]) == (None, None)
    assert outcome.accepted


@pytest.mark.parametrize(
    ("grade", "settings", "accepted", "reason", "check"),
    [
        (Grade("full"), {}, True, "", True),
        (Grade("partial"), {}, False, JUDGE_DISAGREES, False),
        (Grade("partial"), {"judge_level": "partial"}, True, "", True),
        (Grade("wrong"), {"judge_level": "partial"}, False, JUDGE_DISAGREES, False),
        (Grade("undecided"), {}, False, JUDGE_FAILED, None),
        (None, {}, False, JUDGE_FAILED, None),
        (Grade(error_months=2), {"judge_months": 2}, True, "", True),
        (Grade(error_months=3), {"judge_months": 2}, False, JUDGE_DISAGREES, False),
    ],
)
def test_a_judge_can_refuse_and_its_silence_is_no_consent(grade, settings, accepted, reason, check):
    settings = VerificationSettings(**settings)
    outcome = add_grades(verify(answered(), THEFT, settings), {"ruling": grade}, settings)
    assert (outcome.accepted, outcome.reason) == (accepted, reason)
    assert outcome.checks["judge_ruling"] is check


def test_an_unknown_check_is_refused():
    with pytest.raises(ValidationError, match="arithmetic"):
        VerificationSettings(checks=("arithmetics",))


def test_conclude_is_by_the_first_required_failure():
    checks = dict.fromkeys(CHECKS, True) | {"term": False, "steps": False, "tier": None}
    assert conclude(checks).reason == REASONS["term"]
    assert conclude(checks, ["steps"]).reason == REASONS["steps"]
    assert conclude(checks, ["charge", "tier"]).accepted
