from __future__ import annotations

import json
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.config import run
from curt.corpus.case import Case
from curt.corpus.store import write_cases
from curt.dialogue import ELLIPSIS, parse_answer, render_completion
from curt.files import write_rows
from curt.law.verdict import Term, Verdict
from tests.train.judge.judge_server import Reply, judge_server
from tests.train.rollouts import make_rollout
from train.data import verify, views
from train.data.candidates import Candidate
from train.data.sources import from_rows, read_own
from train.data.trajectories import TrajectoryWriter
from train.data.verification import (
    CHECKS,
    JUDGE_DISAGREES,
    JUDGE_FAILED,
    REASONS,
    VerificationSettings,
)
from train.data.verify import (
    NO_REFERENCE,
    References,
    VerifyConfig,
    keep_verified,
    verify_batch,
    verify_dataset,
)
from train.data.views import ViewConfig, write_view
from train.judge import Grade

FACT = "2020年1月1日，被告人张某在超市盗窃财物价值36000元。归案后如实供述"
THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 9))
CASE = Case("c-1", FACT, THEFT, "test")
WORKED = "36千5+18=23；从犯3未遂3；23×40%=9"
RIGHT = render_completion(WORKED, THEFT)
SLIP = render_completion("36千5+18=24；从犯3未遂3；24×40%=9", THEFT)
WRONG = render_completion(WORKED, Verdict(("诈骗",), ("266",), Term("fixed", 9)))
ROLLOUTS = {"right": RIGHT, "slip": SLIP, "wrong": WRONG, "broken": "想</think>不知道"}


def candidate(completion=RIGHT, prompt="", **columns):
    return Candidate(prompt, completion, 1.0, columns=columns)


@pytest.fixture
def corpus(tmp_path):
    write_cases(tmp_path / "cases.jsonl", [CASE])
    return tmp_path / "cases.jsonl"


@pytest.fixture
def trajectories(tmp_path):
    for step in (1, 2):
        rows = [
            make_rollout(step=step, completion=text, exact=float(name in ("right", "slip")),
                         thinking_tokens=10 if name == "slip" else 20)
            for name, text in ROLLOUTS.items()
        ]  # fmt: skip
        TrajectoryWriter(tmp_path / "t").write(step, rows)
    return tmp_path / "t"


@pytest.fixture
def verified(tmp_path, corpus, trajectories):
    out = tmp_path / "verified.parquet"
    verify_dataset(VerifyConfig(trajectories=[trajectories], corpus=corpus, out=out))
    return out


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_every_completion_is_kept_with_its_checks_and_counted(
    tmp_path, corpus, trajectories, suffix
):
    out = tmp_path / f"v{suffix}"
    summary = verify_dataset(VerifyConfig(trajectories=[trajectories], corpus=corpus, out=out))
    groups = list(read_own(out))
    assert [len(group) for group in groups] == [4, 4]
    told = {c.completion: c.columns for c in groups[0]}
    assert {text: columns["verified"] for text, columns in told.items()} == {
        RIGHT: True, SLIP: False, WRONG: False, ROLLOUTS["broken"]: False,
    }  # fmt: skip
    assert told[SLIP]["verdict_reason"] == REASONS["arithmetic"]
    assert told[SLIP]["check_arithmetic"] is False
    assert told[ROLLOUTS["broken"]]["check_statutes"] is None
    assert all(parse_answer(columns["reference"]) == THEFT for columns in told.values())
    assert summary == json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (summary["n"], summary["verified"], summary["share"]) == (8, 2, 0.25)
    assert summary["reasons"] == {REASONS[name]: 2 for name in ("arithmetic", "charge", "readable")}
    assert summary["exact"]["n"] == 4
    assert summary["exact"]["failing_a_reasoning_check"] == 2
    assert summary["checks"]["arithmetic"] == {"passed": 4, "failed": 2, "not applicable": 2}


def test_settings_decide_what_is_verified(tmp_path, corpus, trajectories):
    settings = VerificationSettings(checks=("charge", "article", "term"))
    summary = verify_dataset(
        VerifyConfig(
            trajectories=[trajectories], corpus=corpus, out=tmp_path / "v.jsonl", settings=settings
        )
    )
    assert summary["verified"] == 4


PROMPT = "<|im_start|>system\n你是法官<|im_end|>\n<|im_start|>user\n{}\n思考预算：32<|im_end|>\n"


@pytest.mark.parametrize(
    "prompt",
    [
        FACT,
        PROMPT.format(FACT),
        PROMPT.format(FACT[:20] + ELLIPSIS + FACT[-6:]),
    ],
)
def test_the_facts_in_a_prompt_find_the_case(prompt):
    assert References([CASE]).find(candidate(prompt=prompt)) == THEFT


@given(head=st.integers(12, len(FACT) - 2), tail=st.integers(1, len(FACT)))
def test_facts_cut_anywhere_in_the_middle_find_the_case(head, tail):
    clipped = FACT[:head] + ELLIPSIS + FACT[max(tail, head + 1) :]
    assert References([CASE]).find(candidate(prompt=clipped)) == THEFT


def test_facts_of_several_verdicts_find_none():
    other = Case("c-2", FACT, Verdict(("诈骗",), ("266",), Term("fixed", 9)), "test")
    assert References([CASE, other]).find(candidate(prompt=FACT)) is None
    same = Case("c-3", FACT, THEFT, "test")
    assert References([CASE, same]).find(candidate(prompt=FACT)) == THEFT


def test_a_stored_reference_counts_before_the_case_file():
    stored = "罪名：诈骗\n法条：266\n刑期：有期徒刑9个月"
    found = References([CASE]).find(candidate(case_id="c-1", reference=stored))
    assert found is not None
    assert found.charges == ("诈骗",)


def test_a_stored_reference_that_is_no_answer_is_refused():
    with pytest.raises(ValueError, match="stored reference can't be read"):
        References([]).find(candidate(reference="盗窃"))


def test_completions_without_a_reference_are_counted_and_not_verified(tmp_path, corpus):
    rows = [{"prompt": p, "response": RIGHT, "reward": 1.0} for p in (FACT, "另案")]
    data = tmp_path / "public.jsonl"
    data.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    out = tmp_path / "v.parquet"
    summary = verify_dataset(VerifyConfig(dataset=str(data), corpus=corpus, out=out))
    assert (summary["verified"], summary["without_reference"]) == (1, 1)
    table = pq.read_table(out)
    assert table["verified"].to_pylist() == [True, False]
    assert table["verdict_reason"].to_pylist() == ["", NO_REFERENCE]
    assert table["check_charge"].to_pylist() == [True, None]


def test_the_wrong_case_file_is_refused(tmp_path, trajectories):
    write_cases(tmp_path / "other.jsonl", [Case("x", "别的案件", THEFT, "test")])
    config = VerifyConfig(
        trajectories=[trajectories], corpus=tmp_path / "other.jsonl", out=tmp_path / "v.jsonl"
    )
    with pytest.raises(ValueError, match="none of 8 completions has a reference"):
        verify_dataset(config)
    assert not config.out.exists()


def grades(*levels):
    replies = iter(levels)
    return lambda body, number: Reply(content=json.dumps({"grade": next(replies)}))


@pytest.mark.parametrize(
    ("behaviour", "verified", "reasons"),
    [
        (grades("full"), 2, {}),
        (grades("partial"), 0, {JUDGE_DISAGREES: 2}),
        (lambda body, number: Reply("不知道"), 0, {JUDGE_FAILED: 2}),
    ],
)
def test_a_judge_behind_an_endpoint_is_asked_about_what_passes(
    tmp_path, corpus, trajectories, behaviour, verified, reasons
):
    with judge_server(behaviour) as server:
        judge = {"type": "endpoint", "base_url": server.url, "model": "m"}
        config = VerifyConfig(
            trajectories=[trajectories], corpus=corpus, out=tmp_path / "v.parquet", judge=judge
        )
        summary = verify_dataset(config)
    assert len(server.requests) == 1  # of 8 completions two pass, and they are the same
    assert summary["verified"] == verified
    assert {k: v for k, v in summary["reasons"].items() if "judge" in k} == reasons
    asked = pq.read_table(config.out)["check_judge_ruling"].to_pylist()
    assert len(asked) == 8


def test_a_judge_is_asked_only_about_what_passes_the_rules():
    class Judge:
        counts: ClassVar = {}

        def grade(self, questions):
            asked.extend((q.task, q.completion.verdict) for q in questions)
            return [Grade("full") for _ in questions]

    asked = []
    settings = VerificationSettings(judge_tasks=("charge", "ruling"))
    fraud = Verdict(("诈骗",), ("266",), THEFT.term)
    batch = [Candidate("", render_completion(WORKED, v), None) for v in (fraud, THEFT)]
    wrong, right = verify_batch(batch, [THEFT, THEFT], settings, Judge())
    assert (wrong.accepted, right.accepted) == (False, True)
    assert asked == [("charge", THEFT), ("ruling", THEFT)]


def test_the_rule_judge_agrees_with_what_is_right(tmp_path, corpus, trajectories):
    config = VerifyConfig(
        trajectories=[trajectories], corpus=corpus, out=tmp_path / "v.jsonl", judge={"type": "rule"}
    )
    summary = verify_dataset(config)
    assert summary["verified"] == 2
    assert summary["judge"] == {"asked": 2}


def test_a_batch_is_verified_in_order():
    group = [candidate(text) for text in ROLLOUTS.values()]
    outcomes = verify_batch(group, [THEFT] * 4, VerificationSettings())
    assert [outcome.accepted for outcome in outcomes] == [True, False, False, False]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_rows_written_and_read_again_are_the_same_groups(tmp_path, suffix):
    groups = [
        [
            candidate(RIGHT, "甲", raw_term=None, step=s, group=0),
            candidate(SLIP, "甲", raw_term=0.5, step=s, group=0),
        ]
        for s in (1, 2)
    ]
    path = tmp_path / f"rows{suffix}"
    write_rows(path, [c.to_row() for group in groups for c in group])
    assert list(read_own(path)) == groups == list(from_rows(c.to_row() for g in groups for c in g))


def test_a_file_of_another_shape_is_left_to_the_public_reader(tmp_path):
    path = tmp_path / "public.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n')
    assert read_own(path) is None
    assert read_own(tmp_path / "owner-name") is None


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "v.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"v\.parquet can't be read"):
        read_own(tmp_path / "v.parquet")
    (tmp_path / "v.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"v\.jsonl:1 is no JSON"):
        read_own(tmp_path / "v.jsonl")


def test_a_view_of_verified_rows_keeps_what_is_verified(tmp_path, verified):
    options = {"dataset": str(verified), "view": "shortest", "out": tmp_path / "o.jsonl"}
    assert write_view(ViewConfig(**options)) == 2
    rows = [json.loads(line) for line in options["out"].read_text("utf-8").splitlines()]
    assert {row["completion"] for row in rows} == {SLIP}  # shorter, and wrongly reasoned
    assert write_view(ViewConfig(**options, verified_only=True)) == 2
    rows = [json.loads(line) for line in options["out"].read_text("utf-8").splitlines()]
    assert {row["completion"] for row in rows} == {RIGHT}


@pytest.mark.parametrize(
    ("checks", "rows"),
    [
        (["charge", "term"], 4),
        (["arithmetic"], 4),
        (["charge", "arithmetic"], 2),
        (["readable"], 6),
    ],
)
def test_named_checks_alone_decide(tmp_path, verified, checks, rows):
    config = ViewConfig(dataset=str(verified), view="long", out=tmp_path / "o.jsonl", checks=checks)
    assert write_view(config) == rows


def test_a_check_by_a_judge_needs_its_consent():
    passed = {f"check_{name}": True for name in CHECKS} | {"verified": True, "verdict_reason": ""}
    group = [candidate(**passed, check_judge_ruling=held) for held in (True, False, None)]
    kept = keep_verified([group], ["judge_ruling"])
    assert [[c.columns["check_judge_ruling"] for c in g] for g in kept] == [[True]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"verified_only": True}, "run `python -m train.data.verify`"),
        ({"checks": ["terms"]}, r"unknown checks \['terms'\]"),
    ],
)
def test_what_cannot_be_verified_says_what_to_give(tmp_path, trajectories, options, said):
    config = ViewConfig(
        trajectories=[trajectories], view="long", out=tmp_path / "o.jsonl", **options
    )
    with pytest.raises(ValueError, match=said):
        write_view(config)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--trajectories or --dataset"),
        (["--dataset", "a.jsonl", "--trajectories", '["a"]'], "not both"),
        (["--dataset", "a.jsonl", "--out", "o.csv"], ".parquet or .jsonl"),
        (["--dataset", "none.jsonl"], "none.jsonl is not there"),
    ],
)
def test_refusals_say_what_to_do(arguments, said, corpus, capsys):
    given = ["--corpus", str(corpus), "--out", "o.jsonl", *arguments]
    with pytest.raises(SystemExit) as stopped:
        run(VerifyConfig, verify.main, given)
    assert said in f"{stopped.value}{capsys.readouterr().err}"


def test_the_commands_follow_each_other(tmp_path, corpus, trajectories):
    out = tmp_path / "v.parquet"
    given = ["--trajectories", json.dumps([str(trajectories)]), "--corpus", str(corpus)]
    run(VerifyConfig, verify.main, [*given, "--out", str(out)])
    given = ["--dataset", str(out), "--view", "best", "--out", str(tmp_path / "b.parquet")]
    run(ViewConfig, views.main, [*given, "--verified_only", "true"])
    assert pq.read_table(tmp_path / "b.parquet")["completion"].to_pylist() == [RIGHT] * 2
