from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.config import run
from curt.corpus.generate.generator import generate_cases
from curt.corpus.store import write_cases
from tests.train.rollouts import make_rollout
from train.data.length_figures import (
    LengthFiguresConfig,
    LengthRow,
    describe_lengths,
    describe_obedience,
    main,
    obedience_of_evaluation,
    read_figures,
    render_markdown,
    rows_of_evaluation,
    rows_of_rollouts,
)
from train.data.trajectories import TrajectoryWriter

ROWS = [
    LengthRow(exact=True, thinking_tokens=10, circumstances=0, stated_budget=16),
    LengthRow(exact=True, thinking_tokens=20, circumstances=2, stated_budget=16),
    LengthRow(exact=False, thinking_tokens=30, circumstances=2, stated_budget=64),
    LengthRow(exact=False, thinking_tokens=64, circumstances=2, stated_budget=64, cut=True),
]
REPORT = {
    "stated_budget": 128,
    "thinking_lengths": [10, 20, 60],
    "exact_cases": [True, True, False],
    "circumstances": [0, 1, 1],
    "by_budget": [
        {"budget": 16, "n": 3, "exact": 0.5, "mean_thinking": 12.0, "p95_thinking": 16.0,
         "within": 0.9, "cut": 0.1, "scores": {}},
    ],
}  # fmt: skip

rows = st.lists(
    st.builds(
        LengthRow,
        exact=st.booleans(),
        thinking_tokens=st.integers(0, 200),
        circumstances=st.none() | st.integers(0, 4),
        stated_budget=st.none() | st.sampled_from([0, 16, 64]),
        cut=st.booleans(),
    )
)


def test_lengths_by_correctness_worked_by_hand():
    figures = describe_lengths(ROWS)
    assert figures["by_correctness"] == {
        "right": {"n": 2, "mean": 15, "p50": 10, "p95": 20},
        "wrong": {"n": 2, "mean": 47, "p50": 30, "p95": 64},
    }
    assert figures["overthinking"] == pytest.approx(47 / 15)


def test_lengths_by_difficulty_worked_by_hand():
    none, two = describe_lengths(ROWS)["by_circumstances"]
    assert none == {
        "circumstances": 0, "n": 1, "mean": 10, "p50": 10, "p95": 10,
        "right_mean": 10, "wrong_mean": None, "exact": 1.0,
    }  # fmt: skip
    assert (two["n"], two["right_mean"], two["wrong_mean"]) == (3, 20, 47)
    assert two["exact"] == pytest.approx(1 / 3)


def test_obedience_worked_by_hand():
    narrow, wide = describe_obedience(ROWS)
    assert (narrow["budget"], narrow["n"], narrow["mean"], narrow["p95"]) == (16, 2, 15, 20)
    assert (narrow["within"], narrow["exact"]) == (0.5, 1.0)
    assert (wide["budget"], wide["exact"]) == (64, 0.0)
    assert wide["within"] == 0.5  # the one that was cut at 64 did not end by itself


@given(rows)
def test_no_row_is_lost_or_counted_twice(rows):
    figures = describe_lengths(rows)
    assert sum(side["n"] for side in figures["by_correctness"].values()) == len(rows)
    known = [r for r in rows if r.circumstances is not None]
    assert sum(row["n"] for row in figures["by_circumstances"]) == len(known)
    right = sum(row["exact"] * row["n"] for row in figures["by_circumstances"])
    assert right == pytest.approx(sum(r.exact for r in known))
    stated = [r for r in rows if r.stated_budget is not None]
    assert sum(row["n"] for row in describe_obedience(rows)) == len(stated)


@given(rows)
def test_any_figures_can_be_shown_and_stored(rows):
    figures = {**describe_lengths(rows), "obedience": describe_obedience(rows)}
    assert json.loads(json.dumps(figures)) == figures
    page = render_markdown(figures)
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert all(len({line.count("|") for line in table}) == 1 for table in tables)
    assert bool(tables) == bool(rows)


def test_the_page_names_its_columns_and_units():
    page = render_markdown({**describe_lengths(ROWS), "obedience": describe_obedience(ROWS)})
    assert "| verdict | n | mean | p50 | p95 |" in page
    assert "| right | 2 | 15.0 | 10.0 | 20.0 |" in page
    assert "| 0 | 1 | 10.0 | 10.0 | 10.0 | 10.0 | – | 100.0% |" in page
    assert "| 16 | 2 | 15.0 | 10.0 | 20.0 | 50.0% | 100.0% |" in page
    assert "Wrong verdicts take 3.13 times the thinking of right ones." in page


def test_an_evaluation_becomes_rows():
    assert rows_of_evaluation(REPORT) == [
        LengthRow(True, 10, 0, 128),
        LengthRow(True, 20, 1, 128),
        LengthRow(False, 60, 1, 128),
    ]
    (table,) = [obedience_of_evaluation(REPORT)]
    assert table == [{"budget": 16, "n": 3, "mean": 12.0, "p95": 16.0, "within": 0.9, "exact": 0.5}]


def test_an_evaluation_without_difficulties_gives_the_other_tables():
    older = {k: v for k, v in REPORT.items() if k != "circumstances"}
    figures = describe_lengths(rows_of_evaluation(older))
    assert figures["by_circumstances"] == []
    assert figures["by_correctness"]["right"]["mean"] == 15


@pytest.mark.parametrize("key", ["thinking_lengths", "exact_cases"])
def test_an_evaluation_without_rows_names_what_it_lacks(key):
    with pytest.raises(ValueError, match=f"lacks {key}: evaluate the model again"):
        rows_of_evaluation({k: v for k, v in REPORT.items() if k != key})


def test_budgets_without_their_figures_are_refused():
    older = {"by_budget": [{"budget": 16, "n": 3, "exact": 0.5, "mean_thinking": 12.0}]}
    with pytest.raises(ValueError, match="lack p95_thinking, within"):
        obedience_of_evaluation(older)


def test_rollouts_of_a_run_become_figures(tmp_path):
    cases = list(generate_cases(12, seed=3))
    write_cases(tmp_path / "train.jsonl", cases)
    writer = TrajectoryWriter(tmp_path / "trajectories")
    writer.write(1, [make_rollout(case_id=cases[0].id, step=1, thinking_tokens=99)])
    writer.write(
        2,
        [
            make_rollout(
                case_id=c.id, step=2, budget=32, thinking_tokens=30 + i, exact=float(i % 2)
            )
            for i, c in enumerate(cases[:4])
        ],
    )
    config = LengthFiguresConfig(
        trajectories=tmp_path / "trajectories", corpus=tmp_path / "train.jsonl", last_steps=1
    )
    figures = read_figures(config)
    assert figures["obedience"] == [
        {"budget": 32, "n": 4, "mean": 31.5, "p50": 31, "p95": 33, "within": 0.75, "exact": 0.5}
    ]
    counted = {row["circumstances"]: row["n"] for row in figures["by_circumstances"]}
    traits = [len(c.traits) for c in cases[:4]]
    assert counted == {count: traits.count(count) for count in sorted(traits)}
    bare = read_figures(LengthFiguresConfig(trajectories=tmp_path / "trajectories"))
    assert bare["by_circumstances"] == []
    assert sum(side["n"] for side in bare["by_correctness"].values()) == 5


def test_another_corpus_than_the_runs_is_refused():
    rollout = {
        "case_id": "c-9", "exact": 1.0, "thinking_tokens": 5, "budget": 16, "truncated": False,
    }  # fmt: skip
    with pytest.raises(ValueError, match="case c-9 is not in the corpus"):
        rows_of_rollouts([rollout], {"c-1": 2})


def test_the_command_shows_and_writes_the_tables(tmp_path, capsys):
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps(REPORT))
    out = tmp_path / "figures"
    run(LengthFiguresConfig, main, ["--evaluation", str(path), "--out", str(out)])
    page = capsys.readouterr().out
    assert "## Thinking tokens under a stated budget" in page
    assert (out / "length-figures.md").read_text() == page
    stored = json.loads((out / "length-figures.json").read_text())
    assert stored["by_correctness"]["wrong"]["n"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give --evaluation or --trajectories"),
        (["--evaluation", "a.json", "--trajectories", "b"], "and not both"),
        (["--evaluation", "absent.json"], "absent.json"),
        (["--trajectories", "absent"], "no trajectories in absent"),
    ],
)
def test_bad_input_ends_with_a_message(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=said):
        run(LengthFiguresConfig, main, arguments)
