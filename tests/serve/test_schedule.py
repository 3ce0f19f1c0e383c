from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.schedule import Demand, admits, finish_times, latest_finish, seconds_until_free

DEMANDS = st.lists(
    st.builds(Demand, deadline_s=st.floats(0, 10), least_s=st.floats(0.001, 1)), max_size=20
).map(lambda demands: sorted(demands, key=lambda d: d.deadline_s))
FREE = st.lists(st.floats(0, 5), min_size=1, max_size=4)


def test_each_demand_goes_to_the_worker_that_is_free_first() -> None:
    demands = [Demand(9, 1.0), Demand(9, 1.0), Demand(9, 1.0)]
    assert finish_times([0.0, 0.5], demands) == [1.0, 1.5, 2.0]


def test_an_idle_worker_admits_what_fits_and_refuses_what_does_not() -> None:
    assert admits([0.0], [], Demand(0.4, 0.3))
    assert not admits([0.0], [], Demand(0.4, 0.5))
    assert not admits([], [], Demand(0.4, 0.1))


def test_a_short_deadline_is_refused_where_it_would_make_a_waiting_one_late() -> None:
    waiting = [Demand(0.5, 0.3)]
    assert not admits([0.0], waiting, Demand(0.4, 0.3))
    assert admits([0.0, 0.0], waiting, Demand(0.4, 0.3))


def test_one_that_is_late_anyway_blocks_nobody() -> None:
    assert admits([0.0], [Demand(5.0, 9.0)], Demand(0.4, 0.3))


@given(free=FREE, waiting=DEMANDS, new=st.builds(Demand, st.floats(0, 10), st.floats(0.001, 1)))
def test_an_admitted_demand_and_all_that_were_in_time_stay_in_time(
    free: list[float], waiting: list[Demand], new: Demand
) -> None:
    if admits(free, waiting, new):
        together = sorted([*waiting, new], key=lambda d: (d.deadline_s, d is new))
        late = sum(
            f > d.deadline_s for f, d in zip(finish_times(free, together), together, strict=True)
        )
        before = sum(
            f > d.deadline_s for f, d in zip(finish_times(free, waiting), waiting, strict=True)
        )
        assert late <= before


def test_alone_a_request_may_use_its_whole_deadline() -> None:
    assert latest_finish(0.0, Demand(0.4, 0.1), [], 1, 0.0) == 0.4


def test_two_share_the_time_to_spare() -> None:
    assert latest_finish(0.0, Demand(0.4, 0.1), [Demand(0.4, 0.1)], 1, 0.0) == pytest.approx(0.2)


def test_alike_requests_that_wait_together_get_alike_shares() -> None:
    now_s, shares = 0.0, []
    for behind in (3, 2, 1, 0):
        end_s = latest_finish(now_s, Demand(1.0, 0.1), [Demand(1.0, 0.1)] * behind, 1, 0.0)
        shares.append(end_s - now_s)
        now_s = end_s
    assert shares == pytest.approx([0.25] * 4)


def test_a_lost_one_behind_shortens_nobody() -> None:
    assert latest_finish(0.0, Demand(0.4, 0.1), [Demand(0.15, 0.1)], 1, 0.0) == 0.4


def test_many_arrivals_shorten_everyone() -> None:
    # 5 a second on one worker at 75% leave 150 ms each
    assert latest_finish(0.0, Demand(0.4, 0.1), [], 1, 5.0) == pytest.approx(0.15)
    assert latest_finish(0.0, Demand(0.4, 0.1), [], 1, 500.0) == pytest.approx(0.1)


@given(
    own=st.builds(Demand, st.floats(1, 10), st.floats(0.001, 1)),
    waiting=DEMANDS,
    workers=st.integers(1, 8),
    rate=st.floats(0, 1000),
)
def test_the_least_always_fits_and_the_deadline_is_never_passed(
    own: Demand, waiting: list[Demand], workers: int, rate: float
) -> None:
    finish = latest_finish(0.0, own, waiting, workers, rate)
    assert own.least_s <= finish <= own.deadline_s


def test_retry_waits_for_what_is_queued_in_whole_seconds() -> None:
    assert seconds_until_free(0.0, [0.0], []) == 1
    assert seconds_until_free(0.0, [2.5], [Demand(9, 1.0)]) == 4
