"""What a server really wrote, read back as data to train on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace

import pytest

from curt.artifact import MANIFEST, Manifest
from curt.config import run
from curt.corpus.case import Case
from curt.corpus.store import read_cases, write_cases
from curt.dialogue import PROMPT_VERSION, THINK_END, parse_completion, render_answer
from curt.engines.protocol import Generation
from curt.files import sha256
from curt.law.verdict import Term, Verdict
from serve.feedback.answers import AnswerStore
from serve.feedback.facts import FACTS, FactFile
from serve.feedback.feedback import FeedbackRequest, make_row
from serve.feedback.log import FeedbackLog
from serve.served import Identity, Model, Served
from train.data.feedback import FeedbackConfig, find_files, main, make_dataset
from train.data.sources import read_own
from train.data.views import ViewConfig, write_view

WRONG = Verdict(("盗窃",), ("264",), Term("fixed", 8), 2000)
RIGHT = replace(WRONG, term=Term("fixed", 10))
FACT = "2020年3月5日，被告人张建国在某市某超市窃取他人现金8000元，电话13812345678，如实供述。"
OTHER = "被告人李某醉酒后驾驶小型轿车，经鉴定其血液中乙醇含量为150mg/100ml，被当场抓获归案。"
IDENTITY = Identity(
    Model(name="demo", manifest="0123456789ab", precision="int4"),
    Manifest(
        format="ort-genai", precision="int4", stage="test", base="fake", max_fact_tokens=200,
        max_thinking_tokens=64,
    ),
)  # fmt: skip
MONTHS_10 = {"term": {"kind": "fixed", "months": 10}}


@dataclass
class Desk:
    """A server's store and log over one folder."""

    folder: object
    answers: AnswerStore
    log: FeedbackLog
    now_s: float = 100.0

    def answer(self, request_id, fact=FACT, verdict=WRONG, thinking="张建国窃取8000元", **changes):
        values = {
            "text": f"{thinking}{THINK_END}{render_answer(verdict)}", "prompt_tokens": 60,
            "thinking_tokens": 7, "answer_tokens": 20, "thinking_cut": False, "finish": "stop",
            "prefill_ms": 5.0, "decode_ms": 20.0,
        }  # fmt: skip
        served = Served(Generation(**values | changes), 48, 48, 1.5)
        self.answers.remember(request_id, served, fact=fact, identity=IDENTITY)

    def say(self, request_id, verdict="wrong", **rest):
        self.now_s += 1
        body = FeedbackRequest.model_validate({"request_id": request_id, "verdict": verdict} | rest)
        answered = self.answers.find(None, request_id)
        return self.log.record(make_row(body, answered, at_s=self.now_s))


@pytest.fixture
def desk(tmp_path):
    folder = tmp_path / "feedback"
    log = FeedbackLog(folder, max_bytes=2_000)
    facts = FactFile(folder, retention_s=1e6, max_bytes=10**6)
    answers = AnswerStore(folder, facts=facts, keep_facts=True)
    yield Desk(folder, answers, log)
    answers.close()
    log.close()


def make(desk, tmp_path, **options):
    desk.answers.flush()
    values = {
        "feedback": [desk.folder], "facts": desk.folder / FACTS, "out": tmp_path / "out",
    } | options  # fmt: skip
    return make_dataset(FeedbackConfig(**values))


def table(tmp_path, name):
    lines = (tmp_path / "out" / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_a_correction_becomes_a_pair_an_example_and_a_case(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    manifest = make(desk, tmp_path)
    (pair,) = table(tmp_path, "pairs.jsonl")
    assert parse_completion(pair["chosen"]).verdict == RIGHT
    assert parse_completion(pair["rejected"]).verdict == WRONG
    assert parse_completion(pair["chosen"]).thinking == ""
    assert pair["prompt"].endswith("思考预算：0<|im_end|>\n<|im_start|>assistant\n<think>")
    assert (pair["chosen_model"], pair["rejected_model"]) == ("feedback", "demo@0123456789ab")
    (example,) = table(tmp_path, "sft.jsonl")
    assert example["completion"] == pair["chosen"]
    assert example["prompt"] == pair["prompt"]
    (case,) = read_cases(tmp_path / "out" / "cases.jsonl")
    assert (case.verdict, case.source) == (RIGHT, "feedback")
    assert manifest["rows"] == {"pairs.jsonl": 1, "sft.jsonl": 1, "cases.jsonl": 1}


def test_both_sides_may_share_the_reasoning_that_was_given(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    make(desk, tmp_path, thinking="answered")
    (pair,) = table(tmp_path, "pairs.jsonl")
    told = [parse_completion(pair[side]) for side in ("chosen", "rejected")]
    assert [c.thinking for c in told] == ["张某窃取8000元"] * 2
    assert [c.verdict for c in told] == [RIGHT, WRONG]
    assert "思考预算：48" in pair["prompt"]
    assert pair["chosen_thinking_tokens"] == 7


def test_a_right_answer_teaches_with_its_reasoning_and_makes_no_pair(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", "correct")
    make(desk, tmp_path)
    assert table(tmp_path, "pairs.jsonl") == []
    (example,) = table(tmp_path, "sft.jsonl")
    assert parse_completion(example["completion"]).thinking == "张某窃取8000元"
    assert parse_completion(example["completion"]).verdict == WRONG
    assert (example["thinking_tokens"], example["budget"]) == (7, 48)


def test_who_and_how_to_reach_them_is_masked_everywhere(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    manifest = make(desk, tmp_path, thinking="answered")
    assert manifest["redactions"] == {"mobile phone": 1, "name": 2}
    written = "".join(p.read_text(encoding="utf-8") for p in (tmp_path / "out").iterdir())
    assert "张建国" not in written
    assert "13812345678" not in written
    assert "张某" in written


def test_what_could_not_be_used_is_counted_by_its_reason(desk, tmp_path):
    desk.answer("used")
    desk.say("used", "correct")
    desk.say("used", correction=MONTHS_10)
    desk.answer("bare", OTHER)
    desk.say("bare")
    for number in (1, 2):
        desk.answer(f"dispute-{number}", "被告人王某在商场内扒窃他人手机一部，价值三千元整。")
    desk.say("dispute-1", correction=MONTHS_10)
    desk.say("dispute-2", correction={"term": {"kind": "fixed", "months": 12}})
    desk.answer("tested", OTHER)
    desk.say("tested", "correct")
    desk.answer("gone")
    desk.say("gone", "correct")
    desk.answers.flush()
    kept = (desk.folder / FACTS).read_text(encoding="utf-8").splitlines()
    facts = tmp_path / "facts.jsonl"
    facts.write_text("\n".join(k for k in kept if '"gone"' not in k) + "\n", encoding="utf-8")
    torn = tmp_path / "torn.jsonl"
    torn.write_text('{"schema": 1, "half', encoding="utf-8")
    test = tmp_path / "test.jsonl"
    write_cases(test, [Case("t1", f"经审理查明，{OTHER}", WRONG, "test")])
    manifest = make(desk, tmp_path, feedback=[desk.folder, torn], facts=facts, test_corpus=[test])
    assert manifest["not_used"] == {
        "disputed": 2,
        "no fact kept": 1,
        "superseded": 1,
        "test case": 1,
        "unreadable line": 1,
        "wrong without a correction": 1,
    }
    assert (manifest["lines"], manifest["answers"], manifest["used"]) == (8, 6, 1)
    assert manifest["lines"] == manifest["used"] + sum(manifest["not_used"].values())
    assert manifest["contamination_checked"] is True
    (pair,) = table(tmp_path, "pairs.jsonl")  # the last word on it, not the first
    assert parse_completion(pair["chosen"]).verdict == RIGHT


def test_the_same_said_of_one_fact_twice_teaches_once(desk, tmp_path):
    for number in (1, 2, 3):
        desk.answer(f"r{number}")
        desk.say(f"r{number}", correction=MONTHS_10)
    manifest = make(desk, tmp_path)
    assert manifest["used"] == 3
    assert manifest["rows"] == {"pairs.jsonl": 1, "sft.jsonl": 1, "cases.jsonl": 1}


def test_a_stand_ins_mistake_is_not_held_against_the_model(desk, tmp_path):
    desk.answer("r1", finish="deadline")
    whole = {"charges": [{"name": "盗窃"}], "articles": [{"id": "264"}], **MONTHS_10}
    desk.say("r1", correction=whole)
    manifest = make(desk, tmp_path)
    assert manifest["rows"] == {"pairs.jsonl": 0, "sft.jsonl": 1, "cases.jsonl": 1}


def test_full_files_of_a_folder_are_read_in_their_order(desk, tmp_path):
    desk.answer("r1")
    for months in (9, 10, 11, 12, 10):
        desk.say("r1", correction={"term": {"kind": "fixed", "months": months}})
    files = find_files([desk.folder])
    assert len(files) > 1
    assert files[-1].name == "feedback.jsonl"
    make(desk, tmp_path)
    (pair,) = table(tmp_path, "pairs.jsonl")
    assert parse_completion(pair["chosen"]).verdict == RIGHT


def test_rows_are_those_the_views_read(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", "correct")
    make(desk, tmp_path)
    sft = tmp_path / "out" / "sft.jsonl"
    groups = read_own(sft)
    assert groups is not None
    ((candidate,),) = groups
    assert candidate.exact
    config = ViewConfig(dataset=str(sft), view="shortest", out=tmp_path / "again.parquet")
    assert write_view(config) == 1


def test_the_manifest_names_sources_and_holds_the_hash_of_every_file(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    make(desk, tmp_path)
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["files"] == {
        name: sha256(out / name) for name in ("cases.jsonl", "pairs.jsonl", "sft.jsonl")
    }
    assert manifest["sources"][str(desk.folder / FACTS)] == sha256(desk.folder / FACTS)
    assert manifest["prompt_version"] == PROMPT_VERSION
    assert manifest["contamination_checked"] is False


def test_a_real_tokenizer_brings_its_template_and_its_length(desk, tmp_path, micro_model):
    desk.answer("r1", FACT + "另查明，被告人无前科。" * 50)
    desk.say("r1", correction=MONTHS_10)
    folder = tmp_path / "model"
    shutil.copytree(micro_model, folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"max_fact_tokens": 40}))
    make(desk, tmp_path, tokenizer=folder)
    (pair,) = table(tmp_path, "pairs.jsonl")
    assert "……" in pair["prompt"]
    assert len(pair["prompt"]) < 400


def test_nothing_left_is_an_error_with_the_reasons_and_leaves_what_was_there(desk, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.jsonl").write_text("{}")
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    with pytest.raises(ValueError, match="no fact kept"):
        make(desk, tmp_path, facts=None)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old.jsonl"]


@pytest.mark.parametrize("facts", ["[]", "{}", '{"request_id": "r1"}', "half"])
def test_a_file_that_holds_no_facts_is_refused_without_quoting_it(desk, tmp_path, facts):
    desk.answer("r1")
    desk.say("r1", "correct")
    path = tmp_path / "facts.jsonl"
    path.write_text(f"{facts}\n")
    with pytest.raises(ValueError, match=r"facts\.jsonl:1 is no fact") as refusal:
        make(desk, tmp_path, facts=path)
    assert "half" not in str(refusal.value)


def test_facts_of_ones_own_go_by_request_id(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"request_id": "r1", "fact": OTHER}) + "\n")
    make(desk, tmp_path, facts=path)
    assert "醉酒" in table(tmp_path, "pairs.jsonl")[0]["prompt"]


def test_the_command_line(desk, tmp_path):
    desk.answer("r1")
    desk.say("r1", correction=MONTHS_10)
    desk.answers.flush()
    arguments = ["--feedback", str(desk.folder), "--out", str(tmp_path / "out")]
    run(FeedbackConfig, main, [*arguments, "--facts", str(desk.folder / FACTS)])
    assert (tmp_path / "out" / "manifest.json").is_file()
    with pytest.raises(SystemExit, match="nowhere"):
        run(FeedbackConfig, main, ["--feedback", "nowhere", "--out", "x"])
