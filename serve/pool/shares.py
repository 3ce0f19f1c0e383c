"""Fair shares: how much of the workers' time the requests of each client may take.

Under load each client gets time by its weight, and what one does not use the others share (weighted
max-min fairness). It goes by requests that were admitted, so neither many requests nor short
deadlines buy a larger part: who asks little keeps its reasoning and its place in the queue beside
one who asks for everything.
"""

from __future__ import annotations

from collections import deque

from serve.pool.job import Job

WINDOW_S = 5.0
FAR = 2.0  # times as many requests, by weight, as another: its own must give way


class Shares:
    """Counts the admitted requests of each client."""

    def __init__(self) -> None:
        self._admitted_s: dict[str, deque[float]] = {}
        self._weights: dict[str, float] = {}

    def note(self, job: Job, now_s: float) -> None:
        """Count a request that was admitted; what is refused must shorten nobody's thinking."""
        self._weights[job.client] = job.weight
        self._admitted_s.setdefault(job.client, deque(maxlen=10_000)).append(now_s)

    def withdraw(self, job: Job, admitted_s: float) -> None:
        """Count a request no longer, because its client left before a worker had it."""
        admitted = self._admitted_s.get(job.client)
        if admitted and admitted_s >= admitted[0]:
            admitted.remove(admitted_s)

    def per_s(self, client: str, now_s: float) -> float:
        """A client's admitted requests a second."""
        admitted = self._admitted_s.get(client, deque())
        while admitted and admitted[0] < now_s - WINDOW_S:
            admitted.popleft()
        # n arrivals have n - 1 intervals between them.
        return max(0, len(admitted) - 1) / WINDOW_S

    def rank(self, other: Job, own: Job, now_s: float) -> int:
        """1 where another job must give way to this one, -1 the other way round, else 0.

        It must where its client has had far more requests, by weight, than the other has with the
        next two. Whatever was asked, the background gives way.
        """
        if other.background or own.background:
            return other.background - own.background
        if other.client == own.client:
            return 0
        others = self.per_s(other.client, now_s) / other.weight
        ours = self.per_s(own.client, now_s) / own.weight
        if others > FAR * (ours + 2 / WINDOW_S / own.weight):
            return 1
        return -1 if ours > FAR * (others + 2 / WINDOW_S / other.weight) else 0

    def allot(self, job: Job, capacity: float, usual_s: float, now_s: float) -> float:
        """The workers' seconds in a second that a client may use, of `capacity` there are.

        `usual_s` is how long a request holds a worker where it thinks as long as usual.
        """
        wanted = {name: self.per_s(name, now_s) * usual_s for name in list(self._admitted_s)}
        for name, seconds in wanted.items():
            if not seconds and name != job.client and not self._admitted_s[name]:
                del self._admitted_s[name], self._weights[name]
        weights = {name: self._weights[name] for name in self._admitted_s}
        weights[job.client] = job.weight
        left = capacity
        for name in sorted(weights, key=lambda name: wanted.get(name, 0.0) / weights[name]):
            share = left * weights[name] / sum(weights.values())
            if name == job.client:
                return share
            left -= min(wanted[name], share)
            del weights[name]
        raise AssertionError("the client is among them")
