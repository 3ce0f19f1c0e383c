"""Servers in virtual time: queue, admission, budget, workers, expiry and the classifier stand-in.

The decisions are those of the real server, made by its own functions (`serve.pool.schedule.admits`,
`serve.pool.forecast.Forecast` over `curt.engines.budget`); what is written anew here is only the
order of events of `serve.pool.pool`, with SimPy's clock instead of asyncio's. Workers don't die
here, and a server that refuses everything does not measure its speed anew.
"""

from __future__ import annotations

import bisect
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

import simpy

from benchmarks.client import quantiles
from benchmarks.fleet.service import Noise, Service
from curt.artifact import Manifest
from curt.dialogue import state_budget
from curt.engines.budget import Observation
from serve.pool.forecast import Forecast
from serve.pool.pool import OVERRUN_GRACE_S, REPLY_MS
from serve.pool.schedule import Demand, admits
from serve.pool.stand_in import LEAST_S
from serve.pool.worker import CALIBRATION_THINKING_TOKENS

Events = Generator[simpy.Event, Any, None]

MEAN_SPELL = 20  # requests drawn as they followed each other
TICK_S = 1e-9  # less work than that is none
FALLBACK_MS = 0.5  # the classifier, in the front
NO_NOISE = Noise(prefill_ms=0.0, decode_ms=0.0, front_ms=0.0, outside_ms=0.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """What one server is: the settings of `serve.settings` that matter here."""

    workers: int = 1
    queue_size: int = 64
    margin_ms: float = 15.0
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class Fleet:
    """Servers and the balancer before them.

    With `one_machine` all workers share its cores; else each server has a machine of its own.
    """

    replicas: int
    shape: Shape = field(default_factory=Shape)
    balancer: Literal["round_robin", "least_outstanding"] = "round_robin"
    one_machine: bool = False
    deadline_ms: float = 400.0


@dataclass(slots=True, eq=False)
class Request:
    """One request and what became of it; `how` is empty until it is over.

    `how` ends as full, unreadable, refused, or the reason of a fault of the real server.
    """

    at_s: float
    deadline_ms: float
    chars: int
    noise: Noise = NO_NOISE  # drawn by the machine that takes it
    how: str = ""
    done_s: float = 0.0
    queue_ms: float = 0.0
    allowed: int = 0
    thinking_tokens: int = 0
    shortened: bool = False  # its thinking was ended for want of time

    @property
    def latency_ms(self) -> float:
        """From the scheduled instant to the reply."""
        return (self.done_s - self.at_s) * 1e3

    @property
    def full(self) -> bool:
        """Whether it got a full verdict of the model within its deadline."""
        return self.how == "full" and self.latency_ms <= self.deadline_ms


@dataclass(slots=True, eq=False)
class _Ticket:
    request: Request
    arrived_s: float
    deadline_s: float
    demand: Demand
    prompt_tokens: int
    running: bool = False
    over: bool = False


@dataclass(slots=True)
class _Slot:
    free_at_s: float = 0.0
    busy: bool = False


class Machine:
    """Cores that several workers share: who works slows the others down.

    With `others` more at work a worker takes 1 + contention · others times as long. The
    contention was measured with one other; for more of them this is an extrapolation.
    """

    def __init__(self, env: simpy.Environment, service: Service, source: random.Random) -> None:
        self.env = env
        self._contention = service.contention
        self._noises, self._source = service.noises, source
        self._place = source.randrange(len(self._noises))
        self._at_work = 0
        self._changed = env.event()

    def draw_noise(self) -> Noise:
        """The remainder of the next request here.

        Mostly the one measured after the last drawn (the stationary bootstrap of Politis and
        Romano, 1994): a slow spell of a machine spoils requests that follow each other.
        """
        if self._source.random() < 1 / MEAN_SPELL:
            self._place = self._source.randrange(len(self._noises))
        self._place = (self._place + 1) % len(self._noises)
        return self._noises[self._place]

    def work(self, seconds: float, until_s: float) -> Generator[simpy.Event, Any, float]:
        """Do so much work, or what of it is done by `until_s`; returns the seconds left over."""
        self._enter(1)
        left_s = seconds
        while left_s > TICK_S and self.env.now < until_s - TICK_S:
            slow = 1 + self._contention * (self._at_work - 1)
            began_s = self.env.now
            spell = self.env.timeout(min(left_s * slow, until_s - began_s))
            yield (spell | self._changed) if self._contention else spell
            left_s -= (self.env.now - began_s) / slow
        self._enter(-1)
        return left_s if left_s > TICK_S else 0.0

    def _enter(self, change: int) -> None:
        self._at_work += change
        if self._contention:
            self._changed.succeed()
            self._changed = self.env.event()


class Replica:
    """One server. `submit` starts a request; `on_done` is called when it is over."""

    def __init__(
        self,
        machine: Machine,
        service: Service,
        shape: Shape,
        source: random.Random,
        on_done: Callable[[Request], None],
    ) -> None:
        self._env, self._machine = machine.env, machine
        self._service, self._shape, self._source = service, shape, source
        self._on_done = on_done
        manifest = Manifest(
            format="ort-genai",
            precision="",
            stage="",
            base="",
            max_fact_tokens=service.max_fact_tokens,
            max_thinking_tokens=service.max_thinking_tokens,
        )
        self._forecast = Forecast(manifest, shape.margin_ms)
        for _ in range(shape.workers):
            self._forecast.estimator.calibrate(self._calibration())
        self._queue: list[_Ticket] = []  # ordered by deadline
        self._slots = [_Slot() for _ in range(shape.workers)]
        self._wake = self._env.event()
        self.under_way = 0
        self.busy_s = 0.0
        for slot in self._slots:
            self._env.process(self._serve(slot))

    def submit(self, request: Request) -> None:
        """Take a request that leaves its client now."""
        self.under_way += 1
        request.noise = self._machine.draw_noise()
        # Half of the way is before the server, half behind it; which half hardly matters.
        self._after(request.noise.outside_ms / 2e3, lambda: self._enter(request))

    def _enter(self, request: Request) -> None:
        now_s = self._env.now
        self._forecast.note_arrival(now_s)
        prompt_tokens = self._forecast.prompt_tokens(request.chars, now_s)
        deadline_s = now_s + request.deadline_ms / 1e3
        demand = self._forecast.demand(deadline_s, prompt_tokens, now_s)
        ticket = _Ticket(request, now_s, deadline_s, demand, prompt_tokens)
        if fault := self._why_refused(ticket, now_s):
            self._give_up(ticket, fault)
            return
        bisect.insort(self._queue, ticket, key=lambda each: each.deadline_s)
        patience_s = -LEAST_S if self._shape.fallback else OVERRUN_GRACE_S
        self._after(demand.latest_start_s - now_s, lambda: self._leave(ticket, "expired"))
        self._after(deadline_s + patience_s - now_s, lambda: self._leave(ticket, "overrun"))
        self._wake.succeed()
        self._wake = self._env.event()

    def _why_refused(self, ticket: _Ticket, now_s: float) -> str:
        if ticket.demand.latest_start_s < now_s:
            return "deadline_too_short"
        if len(self._queue) >= self._shape.queue_size:
            return "queue_full"
        free_at_s = [max(now_s, slot.free_at_s) if slot.busy else now_s for slot in self._slots]
        fits = admits(free_at_s, [other.demand for other in self._queue], ticket.demand)
        return "" if fits else "overloaded"

    def _serve(self, slot: _Slot) -> Events:
        while True:
            if self._queue:
                yield from self._run(slot, self._queue.pop(0))
            else:
                yield self._wake

    def _run(self, slot: _Slot, ticket: _Ticket) -> Events:
        now_s, request, forecast = self._env.now, ticket.request, self._forecast
        demand = forecast.demand(ticket.deadline_s, ticket.prompt_tokens, now_s)
        if demand.latest_start_s < now_s:
            self._leave(ticket, "expired")
            return
        waiting = [other.demand for other in self._queue]
        allowed = forecast.allow_thinking(
            demand, ticket.prompt_tokens, waiting, self._shape.workers, now_s
        )
        slot.busy, slot.free_at_s = True, now_s + forecast.hold_s(demand, allowed, now_s)
        ticket.running = True
        request.allowed, request.queue_ms = allowed, (now_s - ticket.arrived_s) * 1e3
        thought = self._service.draw_thought(self._source, state_budget(allowed))
        wanted = self._service.max_thinking_tokens if thought.tokens is None else thought.tokens
        request.shortened = wanted > allowed
        request.thinking_tokens = min(wanted, allowed)
        stop_s = ticket.deadline_s - min(self._shape.margin_ms, REPLY_MS) / 1e3
        finished = yield from self._generate(request, stop_s)
        slot.busy = False
        self.busy_s += self._env.now - now_s
        if ticket.over:
            return
        if not finished:
            self._give_up(ticket, "deadline")
        else:
            noise = request.noise
            delay_s = (noise.front_ms + noise.outside_ms / 2) / 1e3
            self._end(ticket, "full" if thought.readable else "unreadable", delay_s)

    def _generate(self, request: Request, stop_s: float) -> Generator[simpy.Event, Any, bool]:
        """Hold the worker; whether the answer was finished by `stop_s`. Teaches the estimator."""
        service, noise = self._service, request.noise
        began_s = self._env.now
        prefill_s = service.prefill_ms(request.chars, noise) / 1e3
        left_s = yield from self._machine.work(prefill_s, stop_s)
        read_s = self._env.now
        decode_s = service.decode_ms(request.thinking_tokens, noise) / 1e3
        if left_s == 0:
            left_s = yield from self._machine.work(decode_s, stop_s)
        else:
            left_s = decode_s
        closing = 1 if request.allowed else 0
        passes = request.thinking_tokens + closing + service.answer_passes
        observation = Observation(
            fact_chars=request.chars,
            prompt_tokens=service.prompt_tokens(request.chars),
            prefill_ms=(read_s - began_s) * 1e3,
            decoded_tokens=round(passes * (1 - left_s / decode_s)),
            decode_ms=(self._env.now - read_s) * 1e3,
            answer_tokens=service.answer_passes if left_s == 0 else None,
        )
        self._forecast.estimator.observe(observation, self._env.now)
        return left_s == 0

    def _give_up(self, ticket: _Ticket, fault: str) -> None:
        """Answer by the classifier where there is one and time for it, else refuse."""
        in_time = ticket.deadline_s - self._env.now >= LEAST_S or fault not in (
            "deadline_too_short",
            "queue_full",
            "overloaded",
        )
        noise = ticket.request.noise
        how = fault if self._shape.fallback and in_time else "refused"
        self._end(ticket, how, (FALLBACK_MS + noise.front_ms + noise.outside_ms / 2) / 1e3)

    def _end(self, ticket: _Ticket, how: str, delay_s: float) -> None:
        ticket.over = True
        request = ticket.request

        def close() -> None:
            request.how, request.done_s = how, self._env.now
            self.under_way -= 1
            self._on_done(request)

        self._after(delay_s, close)

    def _leave(self, ticket: _Ticket, fault: str) -> None:
        """Give up a request that still waits ("expired") or runs for too long ("overrun")."""
        if ticket.over or (fault == "expired" and ticket.running):
            return
        if ticket in self._queue:
            self._queue.remove(ticket)
        self._give_up(ticket, fault)

    def _calibration(self) -> list[Observation]:
        """Timings as a worker takes them at its start: a short and a long prompt, twice."""
        service = self._service
        longest = max(2, int(service.max_fact_tokens / service.tokens_per_char))
        thinking = min(CALIBRATION_THINKING_TOKENS, service.max_thinking_tokens)
        timings = []
        for chars in [max(1, longest // 5), longest] * 2:
            noise = self._machine.draw_noise()
            timings.append(
                Observation(
                    fact_chars=chars,
                    prompt_tokens=service.prompt_tokens(chars),
                    prefill_ms=service.prefill_ms(chars, noise),
                    decoded_tokens=thinking + 1 + service.answer_passes,
                    decode_ms=service.decode_ms(thinking, noise),
                    answer_tokens=service.answer_passes,
                )
            )
        return timings

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        timer = self._env.timeout(max(0.0, delay_s))
        assert timer.callbacks is not None, "a timer that has just been made"
        timer.callbacks.append(lambda _: act())


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
        start = next(turn) % len(replicas)
        if fleet.balancer == "round_robin":
            return replicas[start]
        ordered = replicas[start:] + replicas[:start]  # among equals in turn, as nginx does
        return min(ordered, key=lambda each: each.under_way)

    def arrive() -> Events:
        for at_s in arrivals_s:
            yield env.timeout(max(0.0, at_s - env.now))
            chars = source.choice(service.chars)
            choose().submit(Request(env.now, fleet.deadline_ms, chars))

    env.process(arrive())
    env.run()
    workers = fleet.replicas * fleet.shape.workers
    busy = sum(each.busy_s for each in replicas) / workers / env.now if env.now else 0.0
    return sorted(done, key=lambda request: request.at_s), busy


def summarise(requests: Sequence[Request], seconds: float, busy: float) -> dict[str, Any]:
    """What clients got. A miss is whatever is no full verdict of the model within the deadline.

    `answered_share` counts unreadable answers in too: they are the model's fault and no server's;
    `uncut_share` those whose thinking no want of time ended. Raises ValueError without requests.
    """
    if not requests:
        raise ValueError("no request arrived: simulate longer or at a higher rate")
    good = [each for each in requests if each.full]
    thought = [each for each in requests if each.how in ("full", "unreadable")]
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
        "thinking_allowed": quantiles([float(each.allowed) for each in thought]),
        "thinking_used": quantiles([float(each.thinking_tokens) for each in thought]),
        "uncut_share": sum(not each.shortened for each in thought) / total,
        "workers_busy": busy,
    }
