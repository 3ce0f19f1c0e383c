"""Servers in virtual time: queue, admission, budget, workers, expiry and the classifier stand-in.

The real server's own functions decide (`serve.pool.schedule.admits` and `serve.pool.forecast`,
with its speed estimator); only the order of events of `serve.pool.pool` is written anew, with
SimPy's clock instead of asyncio's. Workers do not die here and do not slow each other down.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from benchmarks.client import quantiles
from benchmarks.fleet.service import Sample, Service
from curt.artifact import Manifest
from curt.engines.budget import Observation
from serve.pool.forecast import Forecast
from serve.pool.job import Job
from serve.pool.pool import REPLY_MS
from serve.pool.schedule import Demand, admits
from serve.pool.stand_in import LEAST_S
from serve.pool.worker import CALIBRATION_THINKING_TOKENS

Events = Generator[simpy.Event, Any, None]

CLASSIFIER_MS = 0.5  # the classifier's work in the front

JOB = Job("", arrived_s=0.0, deadline_s=0.0)  # all requests are of one client


@dataclass(frozen=True, slots=True)
class Fleet:
    """Equal servers, with settings of `serve.settings`, and the deadline of every request.

    Their balancer picks the one with the fewest requests under way.
    """

    replicas: int
    workers: int = 1
    fallback: bool = True
    deadline_ms: float = 400.0
    queue_size: int = 64
    margin_ms: float = 15.0


@dataclass(slots=True, eq=False)
class SimulatedRequest:
    """One request, the measured reply that it repeats, and what became of it.

    `how` is "answered" by the model, "refused", or the reason why the classifier stood in.
    """

    at_s: float
    deadline_ms: float
    sample: Sample
    how: str = ""
    done_s: float = 0.0
    allowed: int = 0

    @property
    def latency_ms(self) -> float:
        """From the scheduled instant to the reply."""
        return (self.done_s - self.at_s) * 1e3


class Server:
    """One server; `handle` is the life of one request."""

    def __init__(self, env: simpy.Environment, service: Service, fleet: Fleet) -> None:
        self._env, self._service, self._fleet = env, service, fleet
        by_length = sorted(service.samples, key=lambda sample: sample.chars)
        # Times depend on characters here, so a character counts as a token.
        manifest = Manifest.model_construct(
            max_fact_tokens=by_length[-1].chars, max_thinking_tokens=service.max_thinking_tokens
        )
        self._forecast = Forecast(manifest, fleet.margin_ms)
        # As a worker does at its start: short and long prompts with a little thinking.
        for sample in (by_length[:2] + by_length[-2:]) * fleet.workers:
            observation = self._observe(sample, CALIBRATION_THINKING_TOKENS)
            self._forecast.estimator.calibrate([observation])
        # Ordered by deadline; the event is triggered when a worker takes the request.
        self._queue: list[tuple[Demand, simpy.Event]] = []
        self._free_at_s: list[float] = []  # when each worker at work is expected to be free
        self._at_work = 0
        self.under_way = 0
        self.busy_s = 0.0

    def handle(self, request: SimulatedRequest) -> Events:
        """From the instant a client sends the request until it has the reply."""
        self.under_way += 1
        # Half of the time outside the worker is before it, half behind it.
        half_s = request.sample.outside_ms / 2e3
        yield self._env.timeout(half_s)
        request.how = yield from self._answer(request)
        yield self._env.timeout(half_s)
        self.under_way -= 1
        request.done_s = self._env.now

    def _answer(self, request: SimulatedRequest) -> Generator[simpy.Event, Any, str]:
        now_s, forecast, chars = self._env.now, self._forecast, request.sample.chars
        prompt_tokens = forecast.prompt_tokens(chars, now_s)
        deadline_s = now_s + request.deadline_ms / 1e3
        demand = forecast.demand(deadline_s, prompt_tokens, now_s)
        if fault := self._why_refused(demand):
            in_time = deadline_s - now_s >= LEAST_S
            return (yield from self._stand_in(fault if in_time else "refused"))
        forecast.shares.note(JOB, now_s)
        turn = self._env.event()
        bisect.insort(self._queue, (demand, turn), key=lambda each: each[0].deadline_s)
        self._start_next()
        yield turn | self._env.timeout(demand.latest_start_s - now_s)
        if not turn.triggered:
            self._queue.remove((demand, turn))
            return (yield from self._stand_in("expired"))
        now_s = self._env.now
        demand = forecast.demand(deadline_s, prompt_tokens, now_s)
        fault = "expired"  # the estimates may have grown while it waited
        if demand.latest_start_s >= now_s:
            queued = [waiting for waiting, _ in self._queue]
            request.allowed = forecast.allow_thinking(
                JOB, demand, prompt_tokens, queued, self._fleet.workers, now_s
            )
            free_at_s = now_s + forecast.hold_s(demand, request.allowed, now_s)
            self._free_at_s.append(free_at_s)
            finished = yield from self._generate(request, deadline_s)
            self._free_at_s.remove(free_at_s)
            self.busy_s += self._env.now - now_s
            fault = "" if finished else "deadline"
        self._at_work -= 1
        self._start_next()
        return (yield from self._stand_in(fault)) if fault else "answered"

    def _why_refused(self, demand: Demand) -> str:
        now_s = self._env.now
        if demand.latest_start_s < now_s:
            return "deadline_too_short"
        if len(self._queue) >= self._fleet.queue_size:
            return "queue_full"
        idle = self._fleet.workers - len(self._free_at_s)
        free_at_s = [max(now_s, each) for each in self._free_at_s] + [now_s] * idle
        fits = admits(free_at_s, [waiting for waiting, _ in self._queue], demand)
        return "" if fits else "overloaded"

    def _start_next(self) -> None:
        """Give free workers to the waiting requests with the earliest deadlines."""
        while self._queue and self._at_work < self._fleet.workers:
            self._at_work += 1
            self._queue.pop(0)[1].succeed()

    def _generate(
        self, request: SimulatedRequest, deadline_s: float
    ) -> Generator[simpy.Event, Any, bool]:
        """Hold a worker; whether the answer was done in time. Teaches the speed estimator."""
        stop_s = deadline_s - min(self._fleet.margin_ms, REPLY_MS) / 1e3
        room_ms = max(0.0, (stop_s - self._env.now) * 1e3)
        observation = self._observe(request.sample, request.allowed, room_ms)
        yield self._env.timeout((observation.prefill_ms + observation.decode_ms) / 1e3)
        self._forecast.estimator.observe(observation, self._env.now)
        return observation.answer_tokens is not None

    def _observe(self, sample: Sample, allowed: int, room_ms: float = 1e9) -> Observation:
        """What a worker reports of a generation that is stopped after `room_ms`."""
        thinking = min(sample.thinking_tokens, allowed)
        whole_ms = self._service.decode_ms(sample, thinking)
        decode_ms = min(whole_ms, max(0.0, room_ms - sample.prefill_ms))
        finished = decode_ms == whole_ms
        passes = thinking + (1 if allowed else 0) + self._service.answer_tokens
        return Observation(
            fact_chars=sample.chars,
            prompt_tokens=sample.chars,
            prefill_ms=min(sample.prefill_ms, room_ms),
            decoded_tokens=round(passes * decode_ms / whole_ms),
            decode_ms=decode_ms,
            answer_tokens=self._service.answer_tokens if finished else None,
        )

    def _stand_in(self, fault: str) -> Generator[simpy.Event, Any, str]:
        """Answer by the classifier where there is one, else refuse."""
        yield self._env.timeout(CLASSIFIER_MS / 1e3)
        return fault if self._fleet.fallback else "refused"


def simulate(
    service: Service, fleet: Fleet, arrivals_s: Iterable[float], seed: int = 0
) -> tuple[list[SimulatedRequest], float]:
    """What became of a request at each arrival, and the busy share of the workers.

    The same seed gives the same run.
    """
    source, env = random.Random(seed), simpy.Environment()
    servers = [Server(env, service, fleet) for _ in range(fleet.replicas)]
    requests: list[SimulatedRequest] = []

    def arrive() -> Events:
        for at_s in arrivals_s:
            yield env.timeout(max(0.0, at_s - env.now))
            request = SimulatedRequest(env.now, fleet.deadline_ms, source.choice(service.samples))
            turn = len(requests) % len(servers)  # equally loaded servers take turns
            requests.append(request)
            server = min(servers[turn:] + servers[:turn], key=lambda each: each.under_way)
            env.process(server.handle(request))

    env.process(arrive())
    env.run()
    busy_s = sum(each.busy_s for each in servers)
    return requests, busy_s / (fleet.replicas * fleet.workers * env.now) if env.now else 0.0


def summarise(requests: Sequence[SimulatedRequest], seconds: float, busy: float) -> dict[str, Any]:
    """What clients got. A miss is whatever the model does not answer within the deadline.

    `uncut_share` counts the requests whose thinking was not shortened. Raises ValueError without
    requests.
    """
    if not requests:
        raise ValueError("no request arrived: simulate longer or at a higher rate")
    answered = [each for each in requests if each.how == "answered"]
    in_time = sum(each.latency_ms <= each.deadline_ms for each in answered)
    uncut = sum(each.sample.thinking_tokens <= each.allowed for each in answered)
    return {
        "arrived": len(requests),
        "latency_ms": quantiles([each.latency_ms for each in requests]),
        "goodput_per_s": in_time / seconds,
        "misses": len(requests) - in_time,
        "answered_share": in_time / len(requests),
        "how": dict(Counter(each.how for each in requests)),
        "uncut_share": uncut / len(requests),
        "workers_busy": busy,
    }
