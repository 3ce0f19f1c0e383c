from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.config import run
from tests.train.rollouts import make_rollout
from train.data import views
from train.data.candidates import Candidate, Range, select
from train.data.sources import from_rollouts, group_rows
from train.data.trajectories import TrajectoryWriter
from train.data.views import ViewConfig, drop_repeats, main, make_view, write_view

CANDIDATES = st.builds(
    Candidate,
    prompt=st.just("问"),
    completion=st.text(min_size=1, max_size=5),
    reward=st.none() | st.floats(-2, 2),
    exact=st.booleans() | st.none(),
    thinking_tokens=st.none() | st.integers(0, 99),
)
GROUPS = st.lists(CANDIDATES, min_size=1, max_size=8)


def candidate(completion="答", reward=1.0, **changes):
    return Candidate("问", completion, reward, **changes)


@given(group=GROUPS)
def test_wide_rows_hold_every_completion_the_best_first(group):
    (row,) = views.wide(group)
    numbers = range(1, len(group) + 1)
    assert sorted(row[f"response_{n}"] for n in numbers) == sorted(c.completion for c in group)
    rewards = [row[f"reward_{n}"] for n in numbers]
    known = [r for r in rewards if r is not None]
    assert rewards[: len(known)] == sorted(known, reverse=True)


@given(group=GROUPS)
def test_the_shortest_right_completion_is_shortest_and_right(group):
    lengths = [c.thinking_tokens for c in group if c.exact and c.thinking_tokens is not None]
    rows = views.shortest(group)
    assert [r["thinking_tokens"] for r in rows] == ([min(lengths)] if lengths else [])
    assert all(r["exact"] for r in rows)


@given(group=GROUPS, margin=st.floats(0, 2), pairing=st.sampled_from(["reward", "length"]))
def test_the_chosen_is_always_better_by_the_margin(group, margin, pairing):
    for pair in views.pairs(group, pairing, margin):
        if pairing == "reward":
            assert pair["chosen_reward"] - pair["rejected_reward"] >= margin
            assert pair["chosen_reward"] > pair["rejected_reward"]
        else:
            if None not in (pair["chosen_reward"], pair["rejected_reward"]):
                assert pair["chosen_reward"] >= pair["rejected_reward"]
            longer, shorter = pair["rejected_thinking_tokens"], pair["chosen_thinking_tokens"]
            assert longer - shorter >= max(margin, 1)


@given(group=GROUPS)
def test_the_shortest_right_is_paired_with_each_that_is_wrong_or_longer(group):
    right = [c for c in group if c.exact and c.thinking_tokens is not None]
    shortest = min((c.thinking_tokens for c in right), default=0)
    worse = [c for c in right if c.thinking_tokens > shortest]
    worse += [c for c in group if c.exact is False]
    found = views.pairs(group, "rest", 0)
    assert sorted(p["rejected"] for p in found) == sorted(c.completion for c in worse if right)
    assert all(p["chosen_thinking_tokens"] == shortest for p in found)


@given(group=GROUPS)
def test_a_wide_row_read_again_is_the_same_group(group):
    (again,) = group_rows(views.wide(group))
    told = [[(c.prompt, c.completion, c.reward) for c in side] for side in (group, again)]
    assert sorted(map(repr, told[0])) == sorted(map(repr, told[1]))


@given(group=GROUPS)
def test_the_best_has_the_most_reward(group):
    known = [c.reward for c in group if c.reward is not None]
    assert [r["reward"] for r in views.best(group)] == ([max(known)] if known else [])


def test_of_equal_rewards_the_shorter_is_best():
    group = [candidate("长", thinking_tokens=30), candidate("短", thinking_tokens=10)]
    assert views.best(group)[0]["completion"] == "短"


def test_only_what_is_known_to_be_wrong_is_negative():
    group = [candidate("对", exact=True), candidate("错", exact=False), candidate("？")]
    assert [r["completion"] for r in views.negatives(group)] == ["错"]


def test_rewards_become_columns():
    rollout = make_rollout(
        reward_raw={"charge": 1.0, "qwen:term": None}, reward_weighted={"charge": 0.3}
    )
    ((row,),) = (views.long(group) for group in from_rollouts([[rollout]]))
    assert (row["raw_charge"], row["raw_qwen:term"], row["weighted_charge"]) == (1.0, None, 0.3)
    assert row["exact"] is True
    assert row["case_id"] == rollout.case_id


def test_filters_bound_any_column_of_numbers():
    group = [candidate(thinking_tokens=n, columns={"raw_format": n / 10}) for n in (0, 5, 10)]
    kept = select([group], {"thinking_tokens": Range(max=5), "raw_format": Range(min=0.5)})
    assert [[c.thinking_tokens for c in g] for g in kept] == [[5]]
    assert list(select([group], {"reward": Range(min=2)})) == []


def test_what_has_no_value_passes_no_filter():
    assert list(select([[candidate(reward=None)]], {"reward": Range()})) == []


@pytest.mark.parametrize("name", ["raw_lenght", "completion"])
def test_a_filter_on_no_number_names_the_columns(name):
    with pytest.raises(ValueError, match=r"no column of numbers .*thinking_tokens"):
        list(select([[candidate()]], {name: Range(min=1)}))


def test_what_was_not_scored_by_a_reward_does_not_pass_a_filter_on_it():
    groups = [[candidate("a")], [candidate("b", columns={"raw_term": 0.9})], [candidate("c")]]
    kept = list(select(groups, {"raw_term": Range(min=0.5)}))
    assert [c.completion for group in kept for c in group] == ["b"]


def test_a_prompt_sampled_twice_keeps_its_best():
    rows = [{"prompt": p, "reward": r} for p, r in (("a", 0.1), ("b", None), ("a", 0.9))]
    assert drop_repeats(rows) == [{"prompt": "a", "reward": 0.9}, {"prompt": "b", "reward": None}]


def test_a_prompt_sampled_twice_keeps_its_shortest_where_length_counts():
    rows = [{"prompt": "a", "reward": r, "thinking_tokens": n} for r, n in ((0.9, 30), (0.5, 10))]
    assert drop_repeats(rows, by_length=True) == rows[1:]


def test_rows_without_a_prompt_are_no_repeats():
    rows = [{"prompt": "", "chosen_reward": r} for r in (1.0, 1.0)]
    assert drop_repeats(rows) == rows


def test_a_length_pair_against_the_rewards_is_left_out():
    group = [
        candidate("短", 0.2, exact=True, thinking_tokens=5),
        candidate("长", 0.9, exact=True, thinking_tokens=50),
    ]
    assert views.pairs(group, "length", 0) == []


@pytest.mark.parametrize("view", ["wide", "best", "pairs"])
def test_groups_without_rewards_are_left_out_and_counted(tmp_path, view, caplog):
    failed = [candidate("甲", None), candidate("乙", None)]
    whole = [candidate("丙", 1.0), candidate("丁", 0.0)]
    config = ViewConfig(dataset="d", view=view, out=tmp_path / "o.jsonl")
    assert len(list(make_view(config, [failed, whole, failed]))) == 1
    assert "2 groups without any reward" in caplog.text


def test_the_shortest_needs_no_reward(tmp_path):
    failed = [candidate("甲", None, exact=True, thinking_tokens=3)]
    config = ViewConfig(dataset="d", view="shortest", out=tmp_path / "o.jsonl")
    assert [row["completion"] for row in make_view(config, [failed])] == ["甲"]


@pytest.mark.parametrize("view", ["wide", "pairs"])
def test_rows_of_a_group_say_how_it_was_sampled(tmp_path, view):
    group = [make_rollout(reward=r, checkpoint_sha256="ab" * 32, step=5) for r in (0.0, 1.0)]
    config = ViewConfig(trajectories=["t"], view=view, out=tmp_path / "o.jsonl")
    (row,) = make_view(config, from_rollouts([group]))
    assert (row["case_id"], row["budget"], row["penalty"]) == ("c-1", 32, "none")
    assert row["response_1_model" if view == "wide" else "chosen_model"] == "abababababab+4"


@pytest.fixture
def trajectories(tmp_path):
    for step in (1, 2):
        rows = [
            make_rollout(
                step=step, group=g, prompt=f"问{g}", completion=f"想</think>{step}{g}{i}",
                exact=float(i > 0), reward=i / 4 + step / 100, thinking_tokens=10 * i,
                reward_raw={"format": 1.0} if step == 1 else {"format": 1.0, "term": 0.5},
            )
            for g in range(2) for i in range(4)
        ]  # fmt: skip
        TrajectoryWriter(tmp_path / "t").write(step, rows)
    return tmp_path / "t"


@pytest.mark.parametrize(
    ("view", "rows"),
    [("long", 16), ("wide", 4), ("best", 4), ("shortest", 4), ("pairs", 4), ("negatives", 4)],
)
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_every_view_of_a_run_is_written(tmp_path, trajectories, view, rows, suffix):
    out = tmp_path / f"out{suffix}"
    assert write_view(ViewConfig(trajectories=[trajectories], view=view, out=out)) == rows
    if suffix == ".parquet":
        assert pq.read_table(out).num_rows == rows
    else:
        lines = out.read_text(encoding="utf-8").splitlines()
        assert all(json.loads(line)["prompt"] for line in lines)
        assert len(lines) == rows


def test_a_view_keeps_one_row_a_prompt_when_asked(tmp_path, trajectories):
    config = ViewConfig(
        trajectories=[trajectories], view="best", out=tmp_path / "o.parquet", dedup=True
    )
    assert write_view(config) == 2
    assert pq.read_table(config.out)["reward"].to_pylist() == pytest.approx([0.77, 0.77])


def test_an_empty_view_is_refused_and_writes_nothing(tmp_path, trajectories):
    config = ViewConfig(
        trajectories=[trajectories], view="long", out=tmp_path / "o.jsonl",
        filters={"reward": Range(min=9)},
    )  # fmt: skip
    with pytest.raises(ValueError, match="widen the filters"):
        write_view(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--trajectories or --dataset"),
        (["--trajectories", '["a"]', "--dataset", "b.jsonl"], "not both"),
        (["--trajectories", '["a"]', "--out", "o.csv"], ".parquet or .jsonl"),
        (["--trajectories", '["a"]', "--filters", '{"reward": {"mim": 1}}'], "mim"),
    ],
)
def test_refusals_say_what_to_do(arguments, said, capsys):
    given = ["--view", "long", "--out", "o.jsonl", *arguments]
    with pytest.raises(SystemExit) as stopped:
        run(ViewConfig, main, given)
    assert said in f"{stopped.value}{capsys.readouterr().err}"


def test_no_run_at_the_given_place(tmp_path):
    given = ["--trajectories", json.dumps([str(tmp_path)]), "--view", "long", "--out", "o.jsonl"]
    with pytest.raises(SystemExit, match="no trajectories"):
        run(ViewConfig, main, given)
