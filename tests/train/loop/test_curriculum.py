from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from curt.dialogue import BUDGET_LEVELS, state_budget
from train.loop.curriculum import (
    CURRICULA,
    BudgetRange,
    Curriculum,
    FixedBudgets,
    ShiftingBudgets,
    draw_budget,
)

levels = st.lists(st.sampled_from(BUDGET_LEVELS), min_size=1, max_size=6)
bounds = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted)
curricula = st.one_of(
    st.builds(FixedBudgets, levels=levels),
    st.builds(ShiftingBudgets, levels=levels, start_levels=levels, until=st.floats(0.01, 1)),
    bounds.map(lambda ends: BudgetRange(low=ends[0], high=ends[1])),
)


class CountingRandom(random.Random):
    """Counts what is asked of it."""

    calls = 0

    def random(self):
        self.calls += 1
        return super().random()

    def getrandbits(self, k):
        raise AssertionError("the number of draws would depend on the levels")


def draws(settings, step, steps, count=2000, seed=3):
    rng = random.Random(seed)
    return Counter(draw_budget(rng, step, steps, settings) for _ in range(count))


@given(curricula, st.integers(1, 50), st.data())
def test_shares_are_a_distribution_over_levels_a_prompt_can_state(settings, steps, data):
    step = data.draw(st.integers(0, steps - 1))
    shares = settings.shares(step / steps)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in shares.values())
    assert shares.keys() <= set(BUDGET_LEVELS)


@given(curricula, st.integers(0, 9), st.integers(0, 1000))
def test_every_curriculum_takes_one_draw(settings, step, seed):
    rng = CountingRandom(seed)
    budget = draw_budget(rng, step, 10, settings)
    assert rng.calls == 1
    assert settings.shares(step / 10)[budget] > 0


@given(st.lists(curricula, min_size=2, max_size=2), st.integers(0, 1000))
def test_what_is_drawn_after_the_budgets_is_the_same_under_any_curriculum(pair, seed):
    after = []
    for settings in pair:
        rng = random.Random(seed)
        for step in range(5):
            draw_budget(rng, step, 5, settings)
        after.append(rng.random())
    assert after[0] == after[1]


def test_fixed_levels_come_equally_often_all_along():
    for step in (0, 9):
        counts = draws(FixedBudgets(levels=[16, 32, 64, 128]), step, 10)
        assert counts.keys() == {16, 32, 64, 128}
        assert all(400 < n < 600 for n in counts.values())


def test_a_level_listed_twice_comes_twice_as_often():
    assert FixedBudgets(levels=[16, 16, 64]).shares(0.5) == pytest.approx({16: 2 / 3, 64: 1 / 3})


def test_shifting_starts_wide_and_ends_with_all_levels():
    settings = ShiftingBudgets(start_levels=[64, 128], levels=[16, 32, 64, 128], until=0.5)
    assert draws(settings, 0, 100).keys() == {64, 128}
    assert settings.shares(0.25) == pytest.approx({16: 0.125, 32: 0.125, 64: 0.375, 128: 0.375})
    for progress in (0.5, 0.75, 1.0):
        uniform = {16: 0.25, 32: 0.25, 64: 0.25, 128: 0.25}
        assert settings.shares(progress) == pytest.approx(uniform)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_narrow_budgets_only_become_likelier(one, other, until):
    settings = ShiftingBudgets(until=until)
    early, late = sorted((one, other))
    assert settings.shares(early)[16] <= settings.shares(late)[16] + 1e-12


def test_start_levels_outside_the_final_ones_fade_out():
    settings = ShiftingBudgets(start_levels=[256], levels=[32], until=1)
    assert settings.shares(0) == pytest.approx({256: 1, 32: 0})
    assert settings.shares(1) == pytest.approx({256: 0, 32: 1})
    assert draws(settings, 0, 4).keys() == {256}


def test_a_range_states_the_level_below_what_it_drew():
    settings = BudgetRange(low=20, high=47)
    assert settings.shares(0) == pytest.approx({16: 4 / 28, 24: 8 / 28, 32: 16 / 28})


@given(bounds)
def test_a_range_is_uniform_before_it_is_rounded(ends):
    low, high = ends
    numbers = Counter(state_budget(n) for n in range(low, high + 1))
    expected = {level: n / (high - low + 1) for level, n in numbers.items()}
    assert BudgetRange(low=low, high=high).shares(0.3) == pytest.approx(expected)


@pytest.mark.parametrize("name", CURRICULA)
def test_every_curriculum_is_chosen_by_its_name(name):
    settings = TypeAdapter(Curriculum).validate_python({"type": name})
    assert settings == CURRICULA[name]()


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"type": "fixed", "levels": [17]}, "17"),
        ({"type": "fixed", "levels": []}, "use levels of"),
        ({"type": "shift", "start_levels": [99]}, "99"),
        ({"type": "shift", "until": 0}, "until"),
        ({"type": "range", "low": 64, "high": 32}, "from 64 to 32"),
        ({"type": "fixed", "until": 0.5}, "until"),
    ],
)
def test_bad_settings_are_refused_with_the_value(bad, said):
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(Curriculum).validate_python(bad)


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} of a run of 5"):
        draw_budget(random.Random(0), step, 5, FixedBudgets())
