from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.pool.job import Job
from serve.pool.shares import WINDOW_S, Shares

NOW_S = 100.0


def job(client: str, weight: float = 1.0) -> Job:
    return Job("窃取", NOW_S, NOW_S + 1, client=client, weight=weight)


def shares(**per_s: float) -> Shares:
    """Clients with so many requests a second each."""
    shares = Shares()
    for client, rate in per_s.items():
        count = round(rate * WINDOW_S) + 1
        for n in range(count):
            shares.note(job(client), NOW_S - WINDOW_S * (1 - n / count))
    return shares


def test_one_client_may_use_everything() -> None:
    assert shares(a=100).allot(job("a"), 2.0, 0.1, NOW_S) == 2.0
    assert shares().allot(job("a"), 2.0, 0.1, NOW_S) == 2.0


def test_what_one_does_not_use_the_others_share() -> None:
    # a wants 0.2 of 2 seconds; b and c want 10 each and get 0.9
    three = shares(a=2, b=100, c=100)
    assert three.allot(job("b"), 2.0, 0.1, NOW_S) == pytest.approx(0.9)
    assert three.allot(job("a"), 2.0, 0.1, NOW_S) == pytest.approx(2 / 3)  # it could have more


def test_a_weight_of_two_is_twice_as_much() -> None:
    two = shares(a=100, b=100)
    two.note(job("b", weight=3.0), NOW_S)
    assert two.allot(job("a"), 2.0, 0.1, NOW_S) == pytest.approx(0.5)
    assert two.allot(job("b", weight=3.0), 2.0, 0.1, NOW_S) == pytest.approx(1.5)


def test_who_asks_far_more_gives_way_and_nobody_to_itself() -> None:
    both = shares(a=100, b=10)
    assert both.rank(job("a"), job("b"), NOW_S) == 1
    assert both.rank(job("b"), job("a"), NOW_S) == -1
    assert both.rank(job("a"), job("a"), NOW_S) == 0
    assert shares(a=15, b=10).rank(job("a"), job("b"), NOW_S) == 0
    assert both.rank(job("a", weight=10), job("b"), NOW_S) == 0
    background = replace(job("b"), background=True)
    assert [both.rank(background, job("a"), NOW_S), both.rank(job("a"), background, NOW_S)] == [
        1,
        -1,
    ]


def test_who_is_gone_is_forgotten() -> None:
    both = shares(a=10, b=10)
    later_s = NOW_S + 2 * WINDOW_S
    assert both.allot(job("b"), 2.0, 1.0, later_s) == 2.0
    assert set(both._admitted_s) <= {"b"}


@given(
    rates=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.2, 50), min_size=1),
    capacity=st.floats(0.1, 10),
)
def test_no_more_is_allotted_than_there_is_and_nothing_is_left_while_someone_wants_it(
    rates: dict[str, float], capacity: float
) -> None:
    all_of_them = shares(**rates)
    wanted = {client: all_of_them.per_s(client, NOW_S) * 0.1 for client in rates}
    used = {
        client: min(wanted[client], all_of_them.allot(job(client), capacity, 0.1, NOW_S))
        for client in rates
    }
    assert sum(used.values()) <= capacity + 1e-9
    assert sum(used.values()) == pytest.approx(min(capacity, sum(wanted.values())))
