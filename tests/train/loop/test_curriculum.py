from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curt.dialogue import BUDGET_LEVELS
from train.loop.curriculum import Curriculum, draw_budget

levels = st.lists(st.sampled_from(BUDGET_LEVELS), min_size=1, max_size=6)
curricula = st.builds(Curriculum, levels=levels, start_levels=levels, until=st.floats(0.01, 1))


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
def test_a_budget_takes_one_draw(settings, step, seed):
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


def test_a_level_listed_twice_comes_twice_as_often():
    settings = Curriculum(start_levels=[16, 16, 64])
    assert settings.shares(0)[16] == pytest.approx(2 / 3)
    counts = draws(settings, 0, 10)
    assert counts.keys() == {16, 64}
    assert 1200 < counts[16] < 1470


def test_shifting_starts_wide_and_ends_with_all_levels():
    settings = Curriculum(start_levels=[64, 128], levels=[16, 32, 64, 128], until=0.5)
    assert draws(settings, 0, 100).keys() == {64, 128}
    assert settings.shares(0.25) == pytest.approx({16: 0.125, 32: 0.125, 64: 0.375, 128: 0.375})
    for progress in (0.5, 0.75, 1.0):
        uniform = {16: 0.25, 32: 0.25, 64: 0.25, 128: 0.25}
        assert settings.shares(progress) == pytest.approx(uniform)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_narrow_budgets_only_become_likelier(one, other, until):
    settings = Curriculum(until=until)
    early, late = sorted((one, other))
    assert settings.shares(early)[16] <= settings.shares(late)[16] + 1e-12


def test_start_levels_outside_the_final_ones_fade_out():
    settings = Curriculum(start_levels=[256], levels=[32], until=1)
    assert settings.shares(0) == pytest.approx({256: 1, 32: 0})
    assert settings.shares(1) == pytest.approx({256: 0, 32: 1})
    assert draws(settings, 0, 4).keys() == {256}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"levels": [17]}, "17"),
        ({"levels": []}, "use levels of"),
        ({"start_levels": [99]}, "99"),
        ({"until": 0}, "until"),
    ],
)
def test_bad_settings_are_refused_with_the_value(bad, said):
    with pytest.raises(ValidationError, match=said):
        Curriculum.model_validate(bad)


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_run_is_refused(step):
    with pytest.raises(ValueError, match=f"step {step} of a run of 5"):
        draw_budget(random.Random(0), step, 5, Curriculum())
