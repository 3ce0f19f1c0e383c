from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.dialogue import render_answer
from curt.engines.onnx.cost import Reasoning
from curt.law.verdict import Term, Verdict
from train.data.trajectories import TrajectoryWriter
from train.judge import Grade, RuleJudgeSettings, make_judge
from train.loop.group_reward import (
    GroupReward,
    check_groups,
    count_thinking,
)
from train.loop.scoring import Scorer
from train.loop.trainer import resume_history
from train.penalties.alone.linear import LinearPenalty
from train.penalties.alone.none import NoPenalty
from train.penalties.group.alp import AlpPenalty
from train.penalties.group.gated import GatedPenalty
from train.penalties.group.kimi import KimiPenalty

END, EOS = 90, 99
RIGHT = Verdict(("盗窃",), ("264",), Term("fixed", 8))
OTHER = Verdict(("诈骗",), ("266",), Term("fixed", 8))
RIGHT_JSON, OTHER_JSON = (json.dumps(verdict.to_json()) for verdict in (RIGHT, OTHER))
WEIGHTS = {"format": 0.1, "charge": 0.3, "article": 0.2, "term": 0.4}


def make_reward(penalty=None, **changes):
    options = {
        "penalty": penalty or GatedPenalty(weight=0.4, tolerance=0),
        "scorer": Scorer(WEIGHTS),
        "partial_share": 0.4,
        "num_generations": 2,
        "end_id": END,
        "eos_ids": [EOS],
        "config_sha256": "abc",
    }
    return GroupReward(**options | changes)


def ids(thinking: int, answer: int = 5, *, closed: bool = True, ended: bool = True) -> list[int]:
    return [1] * thinking + [END] * closed + [2] * answer + [EOS] * ended


def call(reward, rows, *, step=0, budgets=None, references=None):
    """`rows`: (prompt, completion text, token ids); returns rewards and the metrics logged."""
    metrics = {}
    prompts = [row[0] for row in rows]
    values = reward(
        prompts=prompts,
        completions=[row[1] for row in rows],
        completion_ids=[row[2] for row in rows],
        reference=references or [RIGHT_JSON] * len(rows),
        budget=budgets or [128] * len(rows),
        case_id=[f"case-{prompt}" for prompt in prompts],
        trainer_state=SimpleNamespace(global_step=step),
        log_metric=metrics.__setitem__,
        log_extra=None,
    )
    return values, metrics


def text(verdict: Verdict) -> str:
    return f"想</think>{render_answer(verdict)}"


def test_rewards_worked_by_hand():
    rows = [
        ("a", text(RIGHT), ids(10)),
        ("a", text(RIGHT), ids(110)),
        ("b", text(OTHER), ids(10)),
        ("b", "想", ids(60, 0, closed=False, ended=False)),
    ]
    values, _ = call(make_reward(), rows)
    # .4 x 1 + .6 x 1; .4 x 1 + .6 x .6; only format and term, .4 x .5; nothing
    assert values == pytest.approx([1.0, 0.76, 0.2, 0.0])


def test_each_group_is_scored_by_its_own_lengths():
    rows = [("a", text(RIGHT), ids(n)) for n in (10, 110)]
    rows += [("b", text(RIGHT), ids(n)) for n in (110, 110)]
    values, _ = call(make_reward(), rows)
    assert values == pytest.approx([1.0, 0.76, 1.0, 1.0])


def test_each_group_has_its_own_reference_and_budget():
    rows = [("a", text(OTHER), ids(10))] * 2 + [("b", text(OTHER), ids(64))] * 2
    references = [RIGHT_JSON] * 2 + [OTHER_JSON] * 2
    penalty = GatedPenalty(weight=0, over_budget=0.5)
    values, _ = call(make_reward(penalty), rows, references=references, budgets=[128, 128, 32, 32])
    assert values == pytest.approx([0.2, 0.2, 0.7, 0.7])


def test_metrics_are_means_over_the_batch():
    rows = [
        ("a", text(RIGHT), ids(10)),
        ("a", text(RIGHT), ids(110)),
        ("b", text(OTHER), ids(20)),
        ("b", "想", ids(60, 0, closed=False, ended=False)),
    ]
    _, metrics = call(make_reward(), rows, budgets=[64] * 4)
    assert metrics["exact"] == 0.5
    assert metrics["partial"] == pytest.approx(2.5 / 4)
    assert metrics["thinking_tokens"] == 50
    assert metrics["within_budget"] == 0.75
    assert metrics["reward_format"] == 0.75
    assert metrics["reward_charge"] == 0.5
    assert metrics["reward_term"] == 0.75
    assert 0 < metrics["shaped"] < 0.5
    tokens = {
        kind: metrics[f"thinking_tokens_{kind}"] for kind in ("right", "wrong", "easy", "hard")
    }
    assert tokens == {"right": 60, "wrong": 40, "easy": 60, "hard": 40}
    assert metrics["reward_right"] > 0.7 > 0.2 > metrics["reward_wrong"]
    assert "thinking_tokens_medium" not in metrics
    assert "misranked" not in metrics  # no group has both


def test_a_wrong_completion_that_earns_more_is_told():
    """Unconditional, a tenth of a right answer a token: 12 tokens longer costs more than right."""
    rows = [("a", text(RIGHT), ids(14)), ("a", text(RIGHT), ids(60)), ("a", text(OTHER), ids(2))]
    penalty = AlpPenalty(beta=0.1, scale=1)
    _, metrics = call(make_reward(penalty, partial_share=0, num_generations=3), rows)
    assert metrics["misranked"] == 0.5
    _, metrics = call(make_reward(num_generations=3), rows)
    assert metrics["misranked"] == 0


def test_rollouts_keep_what_was_made_and_how_it_was_scored():
    tokens = ids(12, 6)
    reward = make_reward(KimiPenalty())
    values, _ = call(reward, [("a", text(RIGHT), tokens), ("a", "想", [1, 1, 1])], step=4)
    first, second = reward.pending
    assert (first.step, first.group, first.case_id, first.penalty) == (5, 0, "case-a", "kimi")
    assert first.token_ids == tokens
    assert (first.thinking_tokens, first.answer_tokens, first.truncated) == (12, 6, False)
    assert (second.thinking_tokens, second.answer_tokens, second.truncated) == (3, 0, True)
    assert (first.exact, first.partial) == (1.0, 1.0)
    assert first.prompt_sha256 == second.prompt_sha256
    assert len(first.prompt_sha256) == 64
    assert [first.reward, second.reward] == values


def test_what_counts_as_correct_is_what_the_penalty_presses_on():
    near = Verdict(("盗窃",), ("264",), Term("fixed", 6))  # ln 9 - ln 7 = .25
    rows = [("a", text(near), ids(10)), ("a", text(near), ids(110))]
    penalty = GatedPenalty(weight=0.5, tolerance=0)
    values, metrics = call(make_reward(penalty, partial_share=0), rows)
    assert values == [0.0, 0.0]
    graded = make_reward(penalty, partial_share=0, scorer=Scorer(WEIGHTS, correctness="graded"))
    values, metrics = call(graded, rows)
    assert values == pytest.approx([0.8, 0.4])
    assert (metrics["correct"], metrics["exact"]) == (0.8, 0.0)
    assert [(r.correct, r.exact) for r in graded.pending] == [(0.8, 0.0)] * 2


def test_pending_holds_one_batch_only():
    reward = make_reward(NoPenalty())
    rows = [("a", text(RIGHT), ids(3))] * 2
    call(reward, rows)
    call(reward, rows, step=1)
    assert [r.step for r in reward.pending] == [2, 2]


def test_thinking_is_counted_by_ids_and_not_by_text():
    text_without_end, tokens = "三字经", ids(7)
    reward = make_reward(NoPenalty())
    call(reward, [("a", text_without_end, tokens)] * 2)
    assert {r.thinking_tokens for r in reward.pending} == {7}


def test_a_batch_cut_inside_a_group_is_refused():
    rows = [("a", text(RIGHT), ids(3))] * 3
    with pytest.raises(ValueError, match="3 completions, no multiple of 2"):
        call(make_reward(), rows)


def test_a_group_of_two_prompts_is_refused():
    rows = [("a", text(RIGHT), ids(3)), ("b", text(RIGHT), ids(3))]
    with pytest.raises(ValueError, match="mixes prompts"):
        call(make_reward(), rows)


@given(prompts=st.lists(st.text(max_size=3), max_size=5), size=st.integers(1, 6))
def test_whole_groups_pass(prompts, size):
    assert check_groups([p for p in prompts for _ in range(size)], size) is None


@pytest.mark.parametrize(
    ("tokens", "count"), [([], 0), ([9], 0), ([1, 2, 9, 3, 9], 2), ([1, 2, 3], 3)]
)
def test_counting_thinking_tokens(tokens, count):
    assert count_thinking(tokens, 9) == count


class Failing:
    """A judge that fails on every second question."""

    def __init__(self):
        self.counts = {"asked": 2, "failed_timeout": 1}

    def grade(self, questions):
        return [Grade("full") if i % 2 else None for i in range(len(questions))]


def test_a_completion_without_a_reward_is_kept_and_never_shown_to_trl_as_none():
    rows = [("a", text(RIGHT), ids(10)), ("a", text(RIGHT), ids(20))]
    scorer = Scorer({"j:ruling": 1.0, "term": 0.0}, {"j": Failing()}, "sum")
    reward = make_reward(NoPenalty(), scorer=scorer, partial_share=1.0)
    values, metrics = call(reward, rows)
    assert values == [2.0, 2.0]  # TRL would print the prompt of a None
    assert [r.reward for r in reward.pending] == [None, 2.0]
    assert [r.reward_raw["term"] for r in reward.pending] == [1.0, 1.0]
    assert metrics["unrewarded"] == 0.5
    assert metrics["reward_j:ruling"] == metrics["weighted_j:ruling"] == 2.0
    assert metrics["judge_j_failed_timeout"] == 1


def test_when_every_judge_fails_nothing_is_learned():
    scorer = Scorer({"j:ruling": 1.0}, {"j": Failing()}, "sum")
    reward = make_reward(NoPenalty(), scorer=scorer, partial_share=1.0, num_generations=1)
    values, metrics = call(reward, [("a", text(RIGHT), ids(10))])
    assert (values, metrics["unrewarded"]) == ([0.0], 1.0)
    assert "partial" not in metrics


def test_a_judge_does_not_count_where_rewards_have_no_share():
    scorer = Scorer({"j:ruling": 1.0}, {"j": Failing()}, "sum")
    reward = make_reward(NoPenalty(), scorer=scorer, partial_share=0.0)
    values, _ = call(reward, [("a", text(RIGHT), ids(10)), ("a", text(OTHER), ids(10))])
    assert values == [1.0, 0.0]


def test_rewards_are_kept_raw_and_weighted():
    reward = make_reward(scorer=Scorer({"charge": 0.5, "term": 0.25, "legality": 0.0}))
    _, metrics = call(reward, [("a", text(RIGHT), ids(10)), ("a", text(OTHER), ids(10))])
    first, second = reward.pending
    assert first.reward_weighted == {"charge": 0.5, "term": 0.25}
    assert second.reward_raw == {"charge": 0.0, "term": 1.0, "legality": 1.0}
    assert metrics["weighted_term"] == 0.25


def test_the_rule_judge_grades_in_a_group():
    scorer = Scorer({"rule:charge": 1.0}, {"rule": make_judge(RuleJudgeSettings())}, "sum")
    values, _ = call(
        make_reward(NoPenalty(), scorer=scorer, partial_share=1.0),
        [("a", text(RIGHT), ids(10)), ("a", text(OTHER), ids(10))],
    )
    assert values == [2.0, -2.0]


class Priced:
    """A price list in place of an artifact: two tokens a pass, half a millisecond each."""

    def measure(self, ids, budget):
        thinking = count_thinking(ids, END)
        return Reasoning(thinking / 4 + 0.5, thinking / 2 + 0.125)


def test_the_penalty_sees_what_reasoning_costs_where_it_is_priced():
    rows = [("a", text(RIGHT), ids(30)), ("a", text(RIGHT), ids(80)), ("a", "想", [1] * 5)]
    penalty = LinearPenalty(weight=0.5, limit=100)
    reward = make_reward(penalty, cost=Priced(), partial_share=0, num_generations=3)
    values, metrics = call(reward, rows)
    assert values == pytest.approx([1 - 0.5 * 0.15125, 1 - 0.5 * 0.40125, 0])
    first, _, cut = reward.pending
    assert (first.thinking_tokens, first.thinking_ms) == (30, 8.0)
    assert (first.length, cut.length) == (15.125, 2.625)
    assert metrics["thinking_ms"] == pytest.approx((8 + 20.5 + 1.75) / 3)


def test_a_history_read_back_holds_the_lengths_that_were_penalised(tmp_path):
    rows = [("a", text(RIGHT), ids(31)), ("a", text(OTHER), ids(7))]
    for cost, lengths in ((Priced(), (15.625, 3.625)), (None, (31, 7))):
        reward = make_reward(cost=cost)
        call(reward, rows)
        folder = tmp_path / str(cost is None)
        TrajectoryWriter(folder).write(1, reward.pending)
        (group,) = resume_history(folder, 1).groups
        assert group.lengths == lengths
        assert tuple(r.length for r in reward.pending) == lengths
