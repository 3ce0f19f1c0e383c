from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.pool.schedule import (
    TARGET_UTILISATION,
    Demand,
    admits,
    count_late,
    seconds_until_free,
    shared_room_s,
    start_times,
)


@st.composite
def demands(draw: st.DrawFn, deadline_s: tuple[float, float] = (0, 10)) -> Demand:
    work_s = draw(st.floats(0.001, 1))
    return Demand(draw(st.floats(*deadline_s)), work_s + draw(st.floats(0, 0.5)), work_s)


QUEUES = st.lists(demands(), max_size=20).map(lambda q: sorted(q, key=lambda d: d.deadline_s))
FREE = st.lists(st.floats(0, 5), min_size=1, max_size=4)


def exact(deadline_s: float, work_s: float) -> Demand:
    """A demand whose time is known."""
    return Demand(deadline_s, work_s, work_s)


def test_each_demand_goes_to_the_worker_that_is_free_first() -> None:
    assert start_times([0.0, 0.5], [exact(9, 1.0)] * 3) == [0.0, 0.5, 1.0]


def test_an_idle_worker_admits_what_fits_and_refuses_what_does_not() -> None:
    assert admits([0.0], [], exact(0.4, 0.3))
    assert not admits([0.0], [], exact(0.4, 0.5))
    assert not admits([], [], exact(0.4, 0.1))


def test_a_short_deadline_is_refused_where_it_would_make_a_waiting_one_late() -> None:
    waiting = [exact(0.5, 0.3)]
    assert not admits([0.0], waiting, exact(0.4, 0.3))
    assert admits([0.0, 0.0], waiting, exact(0.4, 0.3))


def test_one_that_is_late_anyway_blocks_nobody() -> None:
    assert admits([0.0], [Demand(5.0, 9.0, 0.05)], exact(0.4, 0.3))


def test_caution_is_paid_once_and_not_by_everyone_ahead() -> None:
    # Ten milliseconds of work each, allowed for with forty: eight of them fit well before 400 ms.
    waiting = [Demand(0.4, 0.04, 0.01)] * 8
    assert admits([0.0], waiting, Demand(0.4, 0.04, 0.01))
    assert not admits([0.0], [exact(0.4, 0.04)] * 10, exact(0.4, 0.04))


@given(free=FREE, waiting=QUEUES, new=demands())
def test_an_admitted_demand_and_all_that_were_in_time_stay_in_time(
    free: list[float], waiting: list[Demand], new: Demand
) -> None:
    if admits(free, waiting, new):
        together = sorted([*waiting, new], key=lambda d: (d.deadline_s, d is new))
        assert count_late(free, together) <= count_late(free, waiting)


def test_alone_nobody_else_shortens_a_request() -> None:
    assert shared_room_s(0.0, exact(0.4, 0.1), [], 1, 0.0, 0.3) == math.inf


def test_two_share_the_time_to_spare() -> None:
    room_s = shared_room_s(0.0, exact(0.4, 0.1), [exact(0.4, 0.1)], 1, 0.0, 0.3)
    assert room_s == pytest.approx(0.1)


def test_alike_requests_that_wait_together_get_alike_shares() -> None:
    now_s, shares = 0.0, []
    for behind in (3, 2, 1):
        room_s = shared_room_s(now_s, exact(1.0, 0.1), [exact(1.0, 0.1)] * behind, 1, 0.0, 0.3)
        shares.append(room_s)
        now_s += 0.1 + room_s
    assert shares == pytest.approx([0.15] * 3)


def test_a_lost_one_behind_shortens_nobody() -> None:
    assert shared_room_s(0.0, exact(0.4, 0.1), [exact(0.15, 0.1)], 1, 0.0, 0.3) == math.inf


def test_many_arrivals_shorten_everyone() -> None:
    # 5 a second on one worker leave 200 ms each, of which 100 are no thinking
    room_s = shared_room_s(0.0, exact(0.4, 0.1), [], 1, 5.0, 0.3)
    assert room_s == pytest.approx(0.2 * TARGET_UTILISATION - 0.1)
    assert shared_room_s(0.0, exact(0.4, 0.1), [], 1, 500.0, 0.3) == 0


def test_arrivals_that_the_workers_can_do_shorten_nobody() -> None:
    usual_s = TARGET_UTILISATION / 5
    assert shared_room_s(0.0, exact(0.4, 0.1), [], 1, 5.0, usual_s) == math.inf
    assert shared_room_s(0.0, exact(0.4, 0.1), [], 1, 5.0, usual_s * 1.01) < math.inf


@given(
    own=demands((1, 10)),
    waiting=QUEUES,
    workers=st.integers(1, 8),
    rate=st.floats(0, 1000),
    usual_s=st.floats(0, 1),
)
def test_more_arrivals_or_more_who_wait_never_give_more_room(
    own: Demand, waiting: list[Demand], workers: int, rate: float, usual_s: float
) -> None:
    room_s = shared_room_s(0.0, own, waiting, workers, rate, usual_s)
    assert room_s >= 0
    assert shared_room_s(0.0, own, waiting, workers, rate + 1, usual_s) <= room_s
    assert room_s <= shared_room_s(0.0, own, waiting[:-1], workers, rate, usual_s)


def test_retry_waits_for_what_is_queued_in_whole_seconds() -> None:
    assert seconds_until_free(0.0, [0.0], []) == 1
    assert seconds_until_free(0.0, [2.5], [exact(9, 1.0)]) == 4
