"""Many servers behind a balancer, and what their clients got."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any, Literal

import simpy

from benchmarks.client import quantiles
from benchmarks.fleet.replica import Machine, Replica, Request, Shape, Steps
from benchmarks.fleet.service import Service
from loadtest._arrivals import arrival_times_s

Balancer = Literal["round_robin", "least_outstanding", "random"]

BURST_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers and what stands before them.

    With `one_machine` all workers share its cores; else each server has a machine of its own.
    """

    replicas: int
    shape: Shape = field(default_factory=Shape)
    balancer: Balancer = "round_robin"
    one_machine: bool = False
    deadline_ms: float = 400.0


def simulate(
    service: Service, fleet: Fleet, arrivals_s: Iterable[float], seed: int = 0
) -> tuple[list[Request], float]:
    """What became of a request at each arrival, and the busy share of the workers.

    The same seed gives the same run.
    """
    source = random.Random(seed)
    env = simpy.Environment()
    done: list[Request] = []

    def new_machine() -> Machine:
        return Machine(env, service, random.Random(source.getrandbits(64)))

    together = new_machine() if fleet.one_machine else None
    replicas = [
        Replica(
            together or new_machine(),
            service,
            fleet.shape,
            random.Random(source.getrandbits(64)),
            done.append,
        )
        for _ in range(fleet.replicas)
    ]
    turn = count()

    def choose() -> Replica:
        if fleet.balancer == "round_robin":
            return replicas[next(turn) % len(replicas)]
        if fleet.balancer == "random":
            return source.choice(replicas)
        start = next(turn) % len(replicas)  # among equals in turn, as nginx does
        ordered = replicas[start:] + replicas[:start]
        return min(ordered, key=lambda each: each.under_way)

    def arrive() -> Steps:
        for at_s in arrivals_s:
            yield env.timeout(max(0.0, at_s - env.now))
            chars = source.choice(service.chars)
            choose().submit(Request(env.now, fleet.deadline_ms, chars))

    env.process(arrive())
    env.run()
    workers = fleet.replicas * fleet.shape.workers
    busy = sum(each.busy_s for each in replicas) / workers / env.now if env.now else 0.0
    return sorted(done, key=lambda request: request.at_s), busy


def poisson(rate_per_s: float, seconds: float, seed: int) -> Iterator[float]:
    """Poisson arrivals for so long."""
    return takewhile(lambda at_s: at_s < seconds, arrival_times_s(rate_per_s, seed))


def bursts(rate_per_s: float, seconds: float, seed: int, factor: float) -> Iterator[float]:
    """The same number of arrivals with a tenth of the time `factor` times as busy as the rest.

    Time runs unevenly through Poisson arrivals of one rate: a second in ten lasts shorter.
    """
    if not factor >= 1:
        raise ValueError(f"bursts of {factor} times the rate: use 1 or more")
    busy_s = BURST_EVERY_S / 10
    quiet_weight = BURST_EVERY_S / (BURST_EVERY_S - busy_s + factor * busy_s)
    busy_mass = busy_s * factor * quiet_weight  # of BURST_EVERY_S seconds' arrivals
    for at_s in poisson(rate_per_s, seconds, seed):
        whole, rest_s = divmod(at_s, BURST_EVERY_S)
        if rest_s < busy_mass:
            within_s = rest_s / (factor * quiet_weight)
        else:
            within_s = busy_s + (rest_s - busy_mass) / quiet_weight
        yield whole * BURST_EVERY_S + within_s


def slice_of(fleet: Fleet, rate_per_s: float, most_replicas: int) -> tuple[Fleet, float]:
    """A part of a large fleet that behaves like the whole, and its share of the arrivals.

    Exact where requests are spread at random: a random part of Poisson arrivals is Poisson, and
    servers know nothing of each other. For the other balancers it is a fleet made of cells of that
    size, each with a balancer of its own, which is a little worse than one balancer over all.
    """
    if fleet.replicas <= most_replicas:
        return fleet, rate_per_s
    share = most_replicas / fleet.replicas
    return replace(fleet, replicas=most_replicas), rate_per_s * share


def summarise(requests: Sequence[Request], seconds: float, busy: float) -> dict[str, Any]:
    """What clients got. A miss is whatever is no full verdict of the model within the deadline.

    `answered_share` counts unreadable answers in too: they are the model's fault and no server's;
    `uncut_share` those whose thinking no want of time ended.
    """
    if not requests:
        raise ValueError("no request arrived: simulate longer or at a higher rate")
    good = [each for each in requests if each.full]
    thought = [each for each in requests if each.how in ("full", "unreadable")]
    granted = [float(each.allowed) for each in thought]
    total = len(requests)
    return {
        "arrived": total,
        "latency_ms": quantiles([each.latency_ms for each in requests]),
        "queue_ms": quantiles([each.queue_ms for each in thought]),
        "goodput_per_s": len(good) / seconds,
        "misses": total - len(good),
        "full_share": len(good) / total,
        "answered_share": sum(each.latency_ms <= each.deadline_ms for each in thought) / total,
        "how": dict(Counter(each.how for each in requests)),
        "refused": sum(each.how == "refused" for each in requests),
        "degraded": sum(each.how not in ("full", "refused") for each in requests),
        "thinking_allowed": quantiles(granted),
        "thinking_allowed_least": min(granted, default=None),
        "thinking_used": quantiles([float(each.thinking_tokens) for each in thought]),
        "uncut_share": sum(not each.shortened for each in thought) / total,
        "workers_busy": busy,
    }
