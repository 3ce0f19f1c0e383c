"""The one controller of arrivals: it never waits for the server it loads.

A closed model (a fixed set of users, each waiting for its reply) sends less while a server
stalls and so hides the stall. Here the schedule is drawn beforehand; each arrival gets a
greenlet of its own and its latency counts from the scheduled instant, so that whatever queues
up during a stall is seen as its users see it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import gevent
from gevent.pool import Group

from loadtest._cases import Sent
from loadtest._client import Client, UnansweredError
from loadtest._reply import Outcome, Slo, judge_reply


class Driver:
    """Sends cases on schedule and collects an outcome for each one sent."""

    def __init__(
        self,
        client: Client,
        schedule_s: Iterator[float],
        request_of: Callable[[int], Sent],
        slo: Slo,
        report: Callable[[Outcome], None],
    ) -> None:
        """`request_of` makes the i-th arrival's request; `report` hears of each outcome."""
        self._client = client
        self._schedule_s = schedule_s
        self._request_of = request_of
        self._slo = slo
        self._report = report
        self._in_flight = Group()
        self._due_s: dict[int, float] = {}  # arrivals without an outcome yet
        self._scheduler: gevent.Greenlet | None = None
        self._start_s = 0.0
        self.outcomes: list[Outcome] = []
        self.duration_s = 0.0

    def start(self) -> None:
        """Begin the schedule now."""
        self._start_s = time.monotonic()
        self._scheduler = gevent.spawn(self._run_schedule)

    def stop(self) -> None:
        """End the schedule and wait for what is under way; safe to call again.

        Waiting is part of the measurement: arrivals a stalled server still owes would
        otherwise vanish from it. The client's timeout bounds the wait.
        """
        if self._scheduler is None:
            return
        scheduler, self._scheduler = self._scheduler, None
        self.duration_s = time.monotonic() - self._start_s
        scheduler.kill()
        self._in_flight.join(timeout=self._client.timeout_s + 1)
        self._in_flight.kill()
        for due_s in self._due_s.values():
            waited_ms = (time.monotonic() - due_s) * 1000
            self._settle(Outcome(waited_ms, "unfinished", at_s=due_s - self._start_s))
        self._due_s.clear()

    def _run_schedule(self) -> None:
        for index, offset_s in enumerate(self._schedule_s):
            due_s = self._start_s + offset_s
            gevent.sleep(max(0.0, due_s - time.monotonic()))
            self._due_s[index] = due_s
            self._in_flight.spawn(self._send, index, due_s)

    def _send(self, index: int, due_s: float) -> None:
        sent = self._request_of(index)
        lag_ms = (time.monotonic() - due_s) * 1000
        try:
            status, body = self._client.ask(sent.payload, sent.request_id)
        except UnansweredError as reason:
            outcome = Outcome((time.monotonic() - due_s) * 1000, str(reason), lag_ms=lag_ms)
        else:
            latency_ms = (time.monotonic() - due_s) * 1000
            outcome = judge_reply(status, body, latency_ms, self._slo, sent, lag_ms=lag_ms)
        del self._due_s[index]
        self._settle(replace(outcome, at_s=due_s - self._start_s, length=sent.length))

    def _settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._report(outcome)
