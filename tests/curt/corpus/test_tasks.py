from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.__main__ import tasks as tasks_command
from curt.corpus.case import Case
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from curt.corpus.tasks import (
    COLUMNS,
    TASKS,
    TasksConfig,
    build_task,
    build_tasks,
    draw_stratified,
    render_task_answer,
    share_seats,
    stratum_of,
    term_bin,
)
from curt.dialogue import TASK_INSTRUCTIONS, parse_answer, render_ruling
from curt.law.numerals import article_order
from curt.law.statutes import CHARGES
from curt.law.verdict import Term, Verdict

TERMS = st.one_of(
    st.builds(Term, st.just("fixed"), st.integers(1, 300), st.integers(0, 60)),
    st.builds(Term, st.just("detention"), st.integers(1, 12), st.integers(0, 60)),
    st.builds(Term, st.just("surveillance"), st.integers(1, 36)),
    st.sampled_from([Term("life"), Term("death"), Term("exempt")]),
)
ARTICLES = sorted({a for charge in CHARGES.values() for a in charge.articles}, key=article_order)
VERDICTS = st.builds(
    lambda charges, articles, term, fine: Verdict(
        tuple(charges), tuple(sorted(articles, key=article_order)), term, fine
    ),
    st.lists(st.sampled_from(list(CHARGES)), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(ARTICLES), min_size=1, max_size=4, unique=True),
    TERMS,
    st.integers(0, 10**7),
)
THEFT = Verdict(("盗窃",), ("264",), Term("fixed", 36, 48), 3000)


@given(verdict=VERDICTS)
def test_the_answers_to_the_tasks_say_together_what_the_verdict_says(verdict):
    parts = [render_task_answer(verdict, task) for task in ("charge", "article", "term")]
    whole = render_task_answer(verdict, "verdict")
    assert parse_answer(whole) == verdict
    assert parse_answer("\n".join(parts)) == replace(verdict, fine_yuan=0)
    assert render_task_answer(verdict, "ruling") == render_ruling(verdict)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("charge", "罪名：盗窃"),
        ("article", "法条：264"),
        ("term", "刑期：有期徒刑36个月\n缓刑：48个月"),
        ("verdict", "罪名：盗窃\n法条：264\n刑期：有期徒刑36个月\n缓刑：48个月\n罚金：3000元"),
        (
            "ruling",
            "依照《中华人民共和国刑法》第二百六十四条之规定，被告人犯盗窃罪，"
            "判处有期徒刑三年，缓刑四年，并处罚金人民币3000元。",
        ),
    ],
)
def test_a_row_of_each_task(task, answer):
    row = build_task(Case("c-1", "被告人盗窃\n<三次>", THEFT, "test"), task)
    assert row == {
        "id": f"c-1/{task}",
        "task": task,
        "instruction": TASK_INSTRUCTIONS[task],
        "fact": "被告人盗窃 ＜三次＞",
        "answer": answer,
    }


def test_every_task_has_an_instruction_of_its_own():
    assert tuple(TASK_INSTRUCTIONS) == TASKS
    assert len(set(TASK_INSTRUCTIONS.values())) == len(TASKS)


@given(
    sizes=st.dictionaries(st.text("甲乙丙丁戊", min_size=1), st.integers(1, 40), min_size=1),
    share=st.floats(0, 1),
)
def test_seats_are_shared_out_whole_and_each_stratum_has_one_where_there_is_room(sizes, share):
    seats = int(share * sum(sizes.values()))
    shares = share_seats(sizes, seats)
    assert sum(shares.values()) == seats
    assert all(0 <= shares[name] <= sizes[name] for name in sizes)
    if seats >= len(sizes):
        assert min(shares.values()) >= 1
    for a in sizes:  # of two strata the larger never gets less
        assert all(shares[a] >= shares[b] for b in sizes if sizes[a] > sizes[b])


def test_seats_follow_the_sizes():
    assert share_seats({"a": 600, "b": 300, "c": 99, "d": 1}, 100) == {
        "a": 59, "b": 30, "c": 10, "d": 1,
    }  # fmt: skip


def test_more_seats_than_members_are_refused():
    with pytest.raises(ValueError, match="5 seats for 3 members"):
        share_seats({"a": 3}, 5)


def test_a_draw_repeats_with_its_seed_and_takes_nobody_twice():
    strata = {"a": list(range(50)), "b": list(range(50, 60))}
    drawn = draw_stratified(strata, 30, random.Random(3))
    assert drawn == draw_stratified(strata, 30, random.Random(3))
    assert len(set(drawn)) == 30
    assert drawn != draw_stratified(strata, 30, random.Random(4))


@pytest.mark.parametrize(
    ("term", "name"),
    [
        (Term("fixed", 6), "to 6 months"),
        (Term("fixed", 7), "to 12 months"),
        (Term("fixed", 121), "over 120 months"),
        (Term("life"), "life"),
        (Term("exempt"), "exempt"),
    ],
)
def test_bins_of_terms(term, name):
    assert term_bin(term) == name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_cases(folder / "train.jsonl", generate_cases(600, "tasks-train"))
    write_cases(folder / "test.parquet", generate_cases(200, "tasks-test"))
    return folder


def read_set(folder, name):
    path = folder / f"{name}.jsonl"
    if path.is_file():
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


@pytest.mark.parametrize("format_", ["jsonl", "parquet"])
@pytest.mark.parametrize("every_task", [True, False])
def test_sets_have_the_rows_asked_for_in_equal_parts(tmp_path, corpus, format_, every_task):
    config = TasksConfig(
        corpus=corpus, out=tmp_path / "out", train=400, test=100, format=format_,
        every_task=every_task,
    )  # fmt: skip
    manifest = build_tasks(config)
    facts = {}
    for name, rows in (("train", 400), ("test", 100)):
        read = read_set(config.out, name)
        counts = manifest["sets"][name]
        tasks = Counter(row["task"] for row in read)
        assert len(read) == counts["rows"] == rows
        assert set(tasks.values()) == {rows // 4}
        assert tasks == counts["tasks"]
        assert counts["cases"] == rows // (4 if every_task else 1)
        assert sum(counts["terms"].values()) == sum(counts["strata"].values()) == counts["cases"]
        assert len({row["id"] for row in read}) == rows
        assert all(tuple(row) == COLUMNS for row in read)
        facts[name] = {row["fact"] for row in read}
        assert len(facts[name]) == counts["cases"]
    assert not facts["train"] & facts["test"]


def test_every_stratum_is_in_a_set_that_has_room(tmp_path, corpus):
    config = TasksConfig(corpus=corpus, out=tmp_path / "out", train=1600, test=100)
    counts = build_tasks(config)["sets"]["train"]
    assert counts["strata"].keys() == {
        stratum_of(case.verdict) for case in generate_cases(600, "tasks-train")
    }


def test_the_same_seed_makes_the_same_sets(tmp_path, corpus):
    options = {"corpus": corpus, "train": 80, "test": 40}
    first, again, other = (
        build_tasks(TasksConfig(out=tmp_path / name, seed=seed, **options))["files"]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_one_file_gives_both_sets_and_no_facts_to_both(tmp_path):
    cases = list(generate_cases(100, "one"))
    twins = [Case(f"twin-{c.id}", c.fact, c.verdict, "test") for c in cases]
    write_cases(tmp_path / "all.jsonl", [*cases, *twins])
    config = TasksConfig(corpus=tmp_path / "all.jsonl", out=tmp_path / "out", train=320, test=80)
    build_tasks(config)
    train, test = ({row["fact"] for row in read_set(config.out, n)} for n in ("train", "test"))
    assert (len(train), len(test), train & test) == (80, 20, set())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"train": 4000, "test": 40},
            r"train.jsonl has \d+ cases .* 1000 are needed: ask for fewer --train",
        ),
        ({"test": 1002}, "1002 test rows over 4 tasks are no equal parts"),
    ],
)
def test_what_cannot_be_built_says_why_and_leaves_nothing(tmp_path, corpus, options, said):
    config = TasksConfig(corpus=corpus, out=tmp_path / "out", **options)
    with pytest.raises(ValueError, match=said):
        build_tasks(config)
    assert not config.out.exists()


def test_no_corpus_at_the_given_place(tmp_path):
    config = TasksConfig(corpus=tmp_path / "none", out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"no corpus .*curt.corpus build"):
        build_tasks(config)


def test_a_task_given_twice_is_refused(tmp_path, corpus, capsys):
    arguments = [
        "--corpus",
        str(corpus),
        "--out",
        str(tmp_path / "o"),
        "--tasks",
        '["term","term"]',
    ]
    with pytest.raises(SystemExit, match="each once"):
        tasks_command(arguments)


def test_the_command_writes_sets_and_manifest(tmp_path, corpus):
    out = tmp_path / "o"
    tasks_command(["--corpus", str(corpus), "--out", str(out), "--train", "40", "--test", "20"])
    assert sorted(p.name for p in out.iterdir()) == ["manifest.json", "test.jsonl", "train.jsonl"]
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert {p.rpartition("/")[2] for p in manifest["corpus_files"]} == {
        "train.jsonl", "test.parquet",
    }  # fmt: skip
