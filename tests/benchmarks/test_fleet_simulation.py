"""The fleet in virtual time: does it queue, slow down, shorten, refuse and size as it should."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.client import arrivals_for
from benchmarks.fleet.service import Noise, Service, Thought
from benchmarks.fleet.simulation import (
    NO_NOISE,
    Fleet,
    Machine,
    Request,
    Shape,
    simulate,
    summarise,
)
from benchmarks.fleet.sizing import Effort, Target, size, try_fleet

QUIET = Noise(prefill_ms=0.0, decode_ms=0.0, front_ms=2.0, outside_ms=1.0)
EFFORT = Effort(requests=800, cell=4)


def make_service(**changes: Any) -> Service:
    """10 ms of prefill, 5 of answer and 20 tokens of 0.5 ms: 25 ms in a worker, 28 in all."""
    fields = {
        "prefill_base_ms": 0.0,
        "prefill_char_ms": 0.1,
        "answer_ms": 5.0,
        "token_ms": 0.5,
        "contention": 0.0,
        "tokens_per_char": 0.5,
        "max_fact_tokens": 200,
        "max_thinking_tokens": 128,
        "thoughts": {128: (Thought(tokens=20, readable=True),)},
        "noises": (QUIET,),
        "chars": (100,),
    }
    return Service.model_validate(fields | changes)


def run(service: Service, fleet: Fleet, rate: float, seconds: float = 20.0) -> dict[str, Any]:
    requests, busy = simulate(service, fleet, arrivals_for(rate, 3, seconds), seed=3)
    return summarise(requests, seconds, busy)


def test_a_request_alone_takes_the_sum_of_its_parts() -> None:
    (request,), _ = simulate(make_service(), Fleet(1), [0.5])
    assert request.how == "full"
    assert request.latency_ms == pytest.approx(28.0)
    assert (request.thinking_tokens, request.shortened) == (20, False)


def test_two_at_once_share_a_worker_by_turns_and_two_workers_not_at_all() -> None:
    one, _ = simulate(make_service(), Fleet(1), [0.5, 0.5])
    two, _ = simulate(make_service(), Fleet(2), [0.5, 0.5])
    assert sorted(each.latency_ms for each in one) == pytest.approx([28.0, 53.0])
    assert [each.latency_ms for each in two] == pytest.approx([28.0, 28.0])


def test_workers_of_one_machine_slow_each_other_down_and_others_do_not() -> None:
    service = make_service(contention=0.4)
    together, _ = simulate(service, Fleet(2, one_machine=True), [0.5, 0.5])
    apart, _ = simulate(service, Fleet(2), [0.5, 0.5])
    assert [each.latency_ms for each in together] == pytest.approx([38.0, 38.0])
    assert [each.latency_ms for each in apart] == pytest.approx([28.0, 28.0])


def test_contention_counts_only_while_another_is_at_work() -> None:
    env = simpy.Environment()
    machine = Machine(env, make_service(contention=1.0), random.Random(0))
    ends: dict[str, float] = {}

    def work(name: str, start_s: float, seconds: float) -> Any:
        yield env.timeout(start_s)
        left_s = yield from machine.work(seconds, until_s=100.0)
        ends[name] = env.now
        assert left_s == 0

    env.process(work("long", 0.0, 4.0))
    env.process(work("short", 1.0, 1.0))
    env.run()
    # 1 s alone, 2 s beside each other at half speed, 2 s alone.
    assert ends == pytest.approx({"short": 3.0, "long": 5.0})


def test_work_stops_at_its_deadline_and_tells_what_is_left() -> None:
    env = simpy.Environment()
    machine = Machine(env, make_service(), random.Random(0))
    left: list[float] = []

    def work() -> Any:
        left.append((yield from machine.work(3.0, until_s=1.0)))

    env.process(work())
    env.run()
    assert left == pytest.approx([2.0])


def test_under_load_thinking_is_shortened_before_anyone_is_refused() -> None:
    # Enough of the time goes into thinking that it can pay for the others.
    service = make_service(thoughts={128: (Thought(tokens=60, readable=True),)})
    calm, busy = (run(service, Fleet(1), rate) for rate in (4.0, 32.0))
    assert calm["uncut_share"] == 1.0
    assert busy["uncut_share"] < 0.5
    assert busy["answered_share"] > 0.99


def test_beyond_capacity_it_refuses_or_degrades_and_still_answers_at_its_capacity() -> None:
    with_classifier = run(make_service(), Fleet(1), 200.0)
    without = run(make_service(), Fleet(1, Shape(fallback=False)), 200.0)
    assert with_classifier["refused"] == 0 < with_classifier["degraded"]
    assert without["refused"] > 0 == without["degraded"]
    # 15 ms of a worker without thinking: 66 a second at most.
    assert 50 < without["goodput_per_s"] < 70
    assert with_classifier["latency_ms"]["p99"] < 400


def test_a_deadline_that_no_request_can_meet_is_refused_at_once() -> None:
    row = run(make_service(), Fleet(1, Shape(fallback=False), deadline_ms=20.0), 5.0)
    assert row["refused"] == row["arrived"] > 0
    assert row["latency_ms"]["max"] < 5


def test_an_unreadable_answer_is_a_miss_of_the_model_and_none_of_the_fleet() -> None:
    service = make_service(thoughts={128: (Thought(tokens=20, readable=False),)})
    row = run(service, Fleet(1), 4.0)
    assert (row["full_share"], row["answered_share"]) == (0.0, 1.0)


def test_thinking_that_was_cut_where_measured_uses_all_it_is_allowed() -> None:
    service = make_service(thoughts={128: (Thought(tokens=None, readable=True),)})
    (request,), _ = simulate(service, Fleet(1), [0.5])
    assert (request.thinking_tokens, request.allowed, request.shortened) == (128, 128, False)


def test_slow_spells_are_drawn_as_they_followed_each_other() -> None:
    noises = tuple(QUIET.model_copy(update={"front_ms": float(n)}) for n in range(200))
    machine = Machine(simpy.Environment(), make_service(noises=noises), random.Random(1))
    drawn = [machine.draw_noise().front_ms for _ in range(4_000)]
    following = sum((after - before) % 200 == 1 for before, after in pairwise(drawn))
    assert 0.93 < following / 3_999 < 0.97
    assert len(set(drawn)) > 190


def test_the_least_loaded_server_spares_its_clients_the_queue() -> None:
    service = make_service(chars=(20, 40, 300))  # equal ones need no better turn than the next
    rows = {
        name: run(service, Fleet(4, balancer=name), 90.0)["latency_ms"]["p99"]
        for name in ("least_outstanding", "round_robin")
    }
    assert rows["least_outstanding"] < rows["round_robin"]


def test_a_run_repeats_with_its_seed() -> None:
    service = make_service(
        chars=(60, 100, 200), thoughts={128: (Thought(tokens=5, readable=True),) * 3}
    )
    first, second, other = (
        [each.latency_ms for each in simulate(service, Fleet(2), [0.1, 0.11, 0.12, 0.13], n)[0]]
        for n in (1, 1, 5)
    )
    assert first == second != other


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.floats(1, 150),
    st.booleans(),
    st.floats(0, 1),
    st.integers(30, 800),
    st.integers(0, 2**16),
)
def test_every_request_ends_once_and_none_before_it_came(
    replicas: int,
    workers: int,
    rate: float,
    fallback: bool,
    contention: float,
    deadline_ms: int,
    seed: int,
) -> None:
    service = make_service(contention=contention, chars=(40, 100, 400))
    fleet = Fleet(replicas, Shape(workers, fallback=fallback), deadline_ms=float(deadline_ms))
    arrivals_s = list(arrivals_for(rate, seed, 2.0))
    requests, busy = simulate(service, fleet, arrivals_s, seed)
    assert [each.at_s for each in requests] == pytest.approx(arrivals_s)
    assert all(each.how and each.latency_ms > 0 for each in requests)
    assert all(each.how == "full" for each in requests if each.full)
    assert 0 <= busy <= 1.0001
    # The server's own promise: a reply by the deadline, and the way to and from it.
    assert all(each.latency_ms <= deadline_ms + 60 for each in requests)


def test_more_servers_are_needed_for_more_arrivals_and_each_size_meets_the_target() -> None:
    service, target = make_service(), Target()
    sizes = [size(service, Fleet(1), rate, target, EFFORT) for rate in (1.0, 100.0, 1_000.0)]
    assert sizes[0]["replicas"] == 1
    assert all(target.met_by(row) for row in sizes)
    # 25 ms a request, 15 without thinking: 40 a second, or a little more with some cut short.
    assert 100 / 45 <= sizes[1]["replicas"] <= 6
    assert 1_000 / 45 <= sizes[2]["replicas"] <= 50
    smaller = [row for row in sizes[2]["tried"] if row["replicas"] < sizes[2]["replicas"]]
    assert smaller == [] or not smaller[-1]["met"]


def test_a_model_too_slow_for_the_deadline_has_no_size() -> None:
    slow = make_service(answer_ms=500.0)
    with pytest.raises(ValueError, match="quicker machine"):
        size(slow, Fleet(1), 1.0, Target(), EFFORT)


def test_a_trial_of_a_large_fleet_says_how_much_of_it_was_simulated() -> None:
    row = try_fleet(make_service(), Fleet(400), 10_000.0, EFFORT)
    assert (row["replicas"], row["simulated_replicas"]) == (400, 4)
    assert row["simulated_rate_per_s"] == pytest.approx(100.0)
    assert row["arrived"] == pytest.approx(EFFORT.requests, rel=0.1)


def test_nothing_that_arrived_has_no_summary() -> None:
    with pytest.raises(ValueError, match="simulate longer"):
        summarise([], 1.0, 0.0)


def test_a_late_full_verdict_is_no_full_answer() -> None:
    late = Request(0.0, 400.0, 100, NO_NOISE, how="full", done_s=0.5)
    assert not late.full
    assert summarise([late], 1.0, 0.1)["misses"] == 1
