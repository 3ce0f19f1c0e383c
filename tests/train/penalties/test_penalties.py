"""Invariants of all penalties; formulas by themselves are in the files beside this one."""

from __future__ import annotations

import doctest
import importlib
import math
import pickle
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from train.penalties import PENALTIES, Group, Invariant, Penalty
from train.penalties.alone.linear import LinearPenalty
from train.penalties.alone.none import NoPenalty
from train.penalties.base import GroupOutcome, History
from train.penalties.group.gated import GatedPenalty
from train.penalties.group.granted import GrantedPenalty
from train.penalties.group.kimi import KimiPenalty

few = settings(max_examples=30)  # for each of many penalties
share = st.floats(0, 0.99)
limit = st.none() | st.integers(1, 400)
# every constant a configuration admits, within reason
CONSTANTS = {
    "none": {},
    "linear": {"weight": share, "limit": limit},
    "cosine": {
        "right_short": st.floats(0.01, 2),
        "right_long": st.floats(0.01, 2),
        "wrong_short": st.floats(-10, 0),
        "wrong_long": st.floats(-10, 0),
        "limit": limit,
    },
    "kimi": {"weight": st.floats(0, 1)},
    "dapo-overlong": {"weight": share, "cache": st.integers(1, 400), "limit": limit},
    "lcpo-exact": {"alpha": st.floats(1e-5, 1)},
    "lcpo-max": {"alpha": st.floats(1e-5, 1), "form": st.sampled_from(["released", "paper"])},
    "arora-zanette": {"alpha": share},
    "laser": {"bonus": st.floats(0, 2), "limit": limit},
    "laser-d": {
        "bonus": st.floats(0, 2),
        "start": st.integers(0, 400),
        "refresh_steps": st.integers(1, 5),
    },
    "alp": {"beta": st.floats(0, 2), "scale": st.integers(1, 1000)},
    "shorter-better": {"alpha": st.floats(0.1, 3), "beta": st.floats(0, 1)},
    "short-rl": {
        "weight": st.floats(0, 1),
        "tolerance": st.integers(0, 100),
        "drop": st.floats(0, 0.5),
        "window": st.integers(1, 5),
    },
    "dler": {"factor": st.floats(0.01, 1), "limit": limit},
    "gr3": {"alpha": st.floats(0, 10)},
    "ddca": {"beta": st.floats(0, 1)},
    "drpo": {"temperature": st.floats(0.1, 5), "limit": st.integers(1, 400)},
    "gated": {
        "weight": share,
        "over_budget": share,
        "tolerance": st.integers(0, 20),
        "floor": st.integers(1, 64),
    },
    "granted": {"weight": share},
}
# Smallest and largest value for c in {0, 1}, lengths and budgets up to `longest`; else 0 and 1.
BOUNDS = {
    "cosine": lambda p, longest: (
        min(p.wrong_short, p.wrong_long),
        max(p.right_short, p.right_long),
    ),
    "kimi": lambda p, longest: (-p.weight / 2, 1 + p.weight / 2),
    "dapo-overlong": lambda p, longest: (-p.weight, 1.0),
    "lcpo-exact": lambda p, longest: (-p.alpha * longest, 1.0),
    "laser": lambda p, longest: (0.0, 1 + p.bonus),
    "laser-d": lambda p, longest: (0.0, 1 + p.bonus),
    "alp": lambda p, longest: (-p.beta * longest / p.scale, 1.0),
    "shorter-better": lambda p, longest: (-p.beta * longest, p.alpha),
    "short-rl": lambda p, longest: (0.0, 1 + p.weight / 2),
    "ddca": lambda p, longest: (0.0, 1 + p.beta / 2),  # two logistic values differ by less than 1
    "drpo": lambda p, longest: (0.0, math.exp(1 / p.temperature)),
}
BUILDS = {name: st.builds(PENALTIES[name], **c) for name, c in CONSTANTS.items()}
ANY_PENALTY = st.one_of(*BUILDS.values())

# A group that shows each declared violation with the default constants.
COUNTEREXAMPLES = {
    ("cosine", "prefers_shorter"): Group((0, 0), (10, 60), 64),
    ("cosine", "spares_wrong"): Group((0, 0), (10, 60), 64),
    ("kimi", "spares_wrong"): Group((1, 0), (10, 90), 64),
    ("dapo-overlong", "spares_wrong"): Group((1, 0), (10, 90), 64),
    ("lcpo-exact", "ranks_right_first"): Group((1, 0), (230, 64), 64),
    ("lcpo-exact", "separates_right"): Group((1, 0), (164, 64), 64),
    ("lcpo-exact", "prefers_shorter"): Group((1, 1), (10, 60), 64),
    ("lcpo-exact", "spares_wrong"): Group((0, 0), (10, 60), 64),
    ("lcpo-exact", "keeps_sign"): Group((1, 0), (230, 64), 64),
    ("lcpo-max", "separates_right"): Group((1, 0), (164, 5), 64),
    ("lcpo-max", "reduces_to_grpo"): Group((1, 0), (164, 164), 64),
    ("alp", "ranks_right_first"): Group((1, 0), (700, 0), 64),
    ("alp", "separates_right"): Group((1, 0), (700, 0), 64),
    ("alp", "spares_wrong"): Group((1, 0), (10, 60), 64),
    ("alp", "keeps_sign"): Group((1, 0), (700, 0), 64),
    ("granted", "prefers_shorter"): Group((1, 1, 0), (60, 30, 10), 64),
    ("shorter-better", "ranks_right_first"): Group((1, 1, 0), (10, 200, 10), 64),
    ("shorter-better", "separates_right"): Group((1, 1, 0), (10, 200, 10), 64),
    ("shorter-better", "prefers_shorter"): Group((1, 0, 0), (60, 10, 50), 64),
    ("shorter-better", "spares_wrong"): Group((1, 0), (60, 10), 64),
    ("shorter-better", "keeps_sign"): Group((1, 1, 0), (10, 200, 10), 64),
}


@st.composite
def groups(draw, longest=400, min_size=1, equal=False, cut=False):
    """Groups with c in {0, 1} or {-1, 1}."""
    size = draw(st.integers(min_size, 8))
    wrong = draw(st.sampled_from([0.0, -1.0]))
    correct = draw(st.lists(st.sampled_from([wrong, 1.0]), min_size=size, max_size=size))
    lengths = draw(st.lists(st.integers(0, longest), min_size=size, max_size=size))
    if equal:
        lengths = lengths[:1] * size
    flags = draw(st.lists(st.booleans(), min_size=size, max_size=size)) if cut else ()
    return Group(tuple(correct), tuple(lengths), draw(st.integers(0, min(longest, 256))), (*flags,))


@st.composite
def histories(draw):
    outcomes = []
    for step in range(1, draw(st.integers(0, 6)) + 1):
        group = draw(groups(min_size=2))
        outcomes.append(GroupOutcome(step, group.correct, group.lengths))
    return History(tuple(outcomes))


def split(group: Group, shaped: list[float]) -> tuple[list[float], list[float]]:
    """Shaped values of right and of wrong completions."""
    pairs = list(zip(group.right, shaped, strict=True))
    return [s for ok, s in pairs if ok], [s for ok, s in pairs if not ok]


def holds(invariant: Invariant, group: Group, shaped: list[float]) -> bool:
    """Whether shaped values satisfy an invariant of `train.penalties.base`."""
    right, wrong = split(group, shaped)
    if invariant == "ranks_right_first":
        return not (right and wrong) or min(right) >= max(wrong)
    if invariant == "separates_right":
        return not (right and wrong) or min(right) > max(wrong)
    if invariant == "reduces_to_grpo":
        one_value = all(max(v) - min(v) < 1e-12 for v in (right, wrong) if v)
        return one_value and (not (right and wrong) or min(right) > max(wrong))
    if invariant == "prefers_shorter":
        rows = list(zip(group.right, group.lengths, shaped, strict=True))
        return all(
            s1 >= s2 - 1e-12 for r1, n1, s1 in rows for r2, n2, s2 in rows if r1 == r2 and n1 < n2
        )
    if invariant == "spares_wrong":
        return wrong == [c for c in group.correct if c <= 0]
    assert invariant == "keeps_sign"
    return all(s >= 0 for s in right) and all(s <= 0 for s in wrong)


def claims(invariant: Invariant) -> list[str]:
    return [name for name, penalty in PENALTIES.items() if invariant not in penalty.breaks]


def some_penalty_claiming(invariant: Invariant):
    return st.one_of(*(BUILDS[name] for name in claims(invariant)))


def test_the_cases_below_cover_every_penalty():
    assert PENALTIES.keys() == CONSTANTS.keys()
    assert all(penalty().type == name for name, penalty in PENALTIES.items())
    assert all(
        set(fields) | {"type"} == set(PENALTIES[name].model_fields)
        for name, fields in CONSTANTS.items()
    )


def test_our_own_breaks_nothing():
    assert GatedPenalty.breaks == {}


@pytest.mark.parametrize("name", claims("ranks_right_first"))
@few
@given(data=st.data(), group=groups(cut=True), history=histories())
def test_no_wrong_completion_outranks_a_right_one(name, data, group, history):
    """Truncated completions included."""
    penalty = data.draw(BUILDS[name])
    assert holds("ranks_right_first", group, penalty(group, history))


@pytest.mark.parametrize("name", claims("separates_right"))
@few
@given(data=st.data(), group=groups(), history=histories())
def test_right_strictly_outranks_wrong(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    assert holds("separates_right", group, penalty(group, history))


@pytest.mark.parametrize("name", claims("reduces_to_grpo"))
@few
@given(data=st.data(), group=groups(equal=True), history=histories())
def test_equal_lengths_reduce_to_plain_grpo(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    assert holds("reduces_to_grpo", group, penalty(group, history))


@pytest.mark.parametrize("name", claims("prefers_shorter"))
@few
@given(data=st.data(), group=groups(), history=histories())
def test_of_two_equally_correct_completions_the_longer_is_never_worth_more(
    name, data, group, history
):
    """With a negative base too: multiplied, a long failure would be worth more than a short."""
    penalty = data.draw(BUILDS[name])
    assert holds("prefers_shorter", group, penalty(group, history))


@pytest.mark.parametrize("name", claims("spares_wrong"))
@few
@given(data=st.data(), group=groups(cut=True), history=histories())
def test_gated_penalties_leave_wrong_completions_alone(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    assert holds("spares_wrong", group, penalty(group, history))


@pytest.mark.parametrize("name", claims("keeps_sign"))
@few
@given(data=st.data(), group=groups(cut=True), history=histories())
def test_no_sign_flips(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    assert holds("keeps_sign", group, penalty(group, history))


def test_every_declared_violation_has_a_counterexample():
    declared = {(n, broken) for n, penalty in PENALTIES.items() for broken in penalty.breaks}
    assert declared == COUNTEREXAMPLES.keys()
    assert {invariant for _, invariant in declared} <= set(get_args(Invariant))


@pytest.mark.parametrize(("name", "invariant"), COUNTEREXAMPLES)
def test_the_published_formula_breaks_what_it_declares(name, invariant):
    group = COUNTEREXAMPLES[name, invariant]
    penalty = PENALTIES[name]()
    assert not holds(invariant, group, penalty(group))
    assert holds(invariant, group, GatedPenalty()(group))


@given(
    penalty=some_penalty_claiming("ranks_right_first"),
    group=groups(),
    partial_share=st.floats(0, 0.99),
    partials=st.lists(st.floats(0, 1), min_size=8, max_size=8),
)
def test_no_wrong_completion_outranks_a_right_one_in_the_total(
    penalty, group, partial_share, partials
):
    """Right completions have partial 1; a wrong one may have it too, with a term nearly right."""
    totals = [
        partial_share * (1.0 if ok else partial) + (1 - partial_share) * s
        for ok, partial, s in zip(group.right, partials, penalty(group), strict=False)
    ]
    assert holds("ranks_right_first", group, totals)


@pytest.mark.parametrize("name", PENALTIES)
@few
@given(data=st.data(), group=groups(longest=100_000, cut=True), history=histories())
def test_values_are_finite_and_within_their_bounds(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    plain = Group(tuple(max(c, 0.0) for c in group.correct), *_rest(group))
    low, high = BOUNDS[name](penalty, 100_000) if name in BOUNDS else (0.0, 1.0)
    shaped = penalty(plain, history)
    assert len(shaped) == len(plain.lengths)
    slack = 1e-9 * max(1, abs(low))
    assert all(math.isfinite(s) and low - slack <= s <= high + slack for s in shaped)


def _rest(group: Group) -> tuple:
    return group.lengths, group.budget, group.truncated


@given(penalty=ANY_PENALTY, group=groups())
def test_a_group_without_a_right_completion_earns_nothing(penalty, group):
    none_right = Group((0.0,) * len(group.correct), *_rest(group))
    assert max(penalty(none_right)) <= 0


@given(penalty=ANY_PENALTY, group=groups(), history=histories())
def test_penalties_pickle(penalty, group, history):
    again = pickle.loads(pickle.dumps(penalty))
    assert again == penalty
    assert again(group, history) == penalty(group, history)


@given(penalty=ANY_PENALTY, group=groups(min_size=2, cut=True), history=histories())
def test_the_order_of_a_group_does_not_matter(penalty, group, history):
    turned = Group(group.correct[::-1], group.lengths[::-1], group.budget, group.truncated[::-1])
    assert penalty(turned, history) == pytest.approx(penalty(group, history)[::-1], abs=1e-12)


@pytest.mark.parametrize("name", [n for n, p in PENALTIES.items() if not p.needs_history])
@few
@given(data=st.data(), group=groups(), history=histories())
def test_only_those_that_declare_it_look_at_history(name, data, group, history):
    penalty = data.draw(BUILDS[name])
    assert penalty(group, history) == penalty(group)


@given(group=groups())
def test_without_weight_a_penalty_is_plain_correctness(group):
    plain = [
        NoPenalty(),
        KimiPenalty(weight=0),
        GrantedPenalty(weight=0),
        LinearPenalty(weight=0),
        GatedPenalty(weight=0, over_budget=0),
    ]
    for penalty in plain:
        assert penalty(group) == list(group.correct)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_folder_says_what_a_penalty_reads(name):
    cls = PENALTIES[name]
    reads = "history" if cls.needs_history else "group" if cls.needs_group else "alone"
    assert cls.__module__ == f"train.penalties.{reads}.{name.replace('-', '_')}"


@pytest.mark.parametrize("name", PENALTIES)
def test_the_worked_examples_in_the_docstring_hold(name):
    cls = PENALTIES[name]
    names = vars(importlib.import_module(cls.__module__))
    tests = [t for t in doctest.DocTestFinder(recurse=False).find(cls, globs=names) if t.examples]
    assert tests, f"{cls.__name__} has no worked example"
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", PENALTIES)
def test_the_docstring_names_its_source(name):
    text = PENALTIES[name].__doc__
    assert "arXiv" in text or name in {"none", "linear", "gated"}


@pytest.mark.parametrize(("correct", "lengths"), [((), ()), ((1.0,), (1, 2)), ((1.0, 0.0), (1,))])
def test_a_group_must_be_whole(correct, lengths):
    with pytest.raises(ValueError, match="one of each"):
        Group(correct, lengths, 64)


def test_truncation_flags_are_none_or_one_a_completion():
    assert Group((1, 0), (1, 2), 64).cut == (False, False)
    assert Group((1, 0), (1, 2), 64, (True, False)).cut == (True, False)
    with pytest.raises(ValueError, match="2 scores and 1 truncation"):
        Group((1, 0), (1, 2), 64, (True,))


CONFIG = TypeAdapter(Penalty)


@pytest.mark.parametrize("name", PENALTIES)
def test_configuration_picks_the_penalty_by_type(name):
    assert CONFIG.validate_python({"type": name}) == PENALTIES[name]()


@pytest.mark.parametrize(
    "value",
    [
        {"type": "quadratic"},
        {"weight": 0.4},
        {"type": "kimi", "alpha": 0.1},
        {"type": "none", "weight": 0.4},
        {"type": "kimi", "weight": 1.5},
        {"type": "gated", "weight": 1.0},
        {"type": "gated", "floor": 0},
        {"type": "lcpo-max", "alpha": 0},
        {"type": "dler", "factor": 0},
        {"type": "dapo-overlong", "weight": 1},
        {"type": "cosine", "right_long": 0},
    ],
)
def test_unknown_types_constants_and_values_are_refused(value):
    with pytest.raises(ValidationError):
        CONFIG.validate_python(value)


@given(penalty=ANY_PENALTY)
def test_configuration_round_trip(penalty):
    assert CONFIG.validate_python(penalty.model_dump(mode="json")) == penalty
