"""One run over several processes: the master splits it, workers send their outcomes back.

Every worker drives an equal share of the rate on a seed of its own; independent Poisson streams
add up to one. Outcomes travel whole, so the merged percentiles are exact. A worker that is lost
takes its outcomes with it: that is a reason to fail, never a smaller run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadtest._driver import Driver
from loadtest._plan import LoadPlan, RateShare, make_driver, new_run
from loadtest._reply import Outcome

logger = logging.getLogger("loadtest")

START, STOP, OUTCOMES = "curt_start", "curt_stop", "curt_outcomes"
ROWS_A_MESSAGE = 2000
ARRIVAL_S = 5.0  # for workers to connect to a master that has no work for them
PATIENCE_S = 10.0  # beyond the client's timeout, for the outcomes to arrive


class MasterSide:
    """Shares a run out and collects its outcomes."""

    def __init__(self, runner: MasterRunner) -> None:
        self._runner = runner
        self._owing: set[str] = set()
        self._timeout_s = 0.0
        self._started_s: float | None = None
        self.outcomes: list[Outcome] = []
        self.duration_s = 0.0
        self.workers = 0
        self.problems: list[str] = []
        runner.register_message(OUTCOMES, self._collect)

    def start(self, plan: LoadPlan) -> None:
        """Give every worker that is connected its share, and forget the run before."""
        ids = [worker.id for worker in self._runner.clients.all]
        self.outcomes, self.problems, self.duration_s = [], [], 0.0
        self.workers, self._owing, self._timeout_s = len(ids), set(ids), plan.timeout_s
        self._started_s = time.monotonic()
        run = new_run()
        for index, worker in enumerate(ids):
            share = RateShare(index, len(ids), run)
            self._runner.send_message(
                START, {"plan": asdict(plan), "share": asdict(share)}, client_id=worker
            )

    def stop(self) -> None:
        """Have the workers end and wait for their outcomes; safe to call again."""
        if self._started_s is None:
            return
        self.duration_s, self._started_s = time.monotonic() - self._started_s, None
        self._runner.send_message(STOP)
        end_s = time.monotonic() + self._timeout_s + PATIENCE_S
        while self._owing and time.monotonic() < end_s:
            if not any(worker.id in self._owing for worker in self._runner.clients.all):
                gevent.sleep(0.5)  # they quit: what they sent before that may be on its way
                break
            gevent.sleep(0.05)
        if self._owing:
            self.problems.append(
                f"{len(self._owing)} of {self.workers} workers sent no outcomes: their share of "
                "the run is unknown"
            )

    def dismiss(self, expected: int) -> None:
        """Wait a little for the workers that are expected, and have them quit."""
        end_s = time.monotonic() + ARRIVAL_S
        while len(self._runner.clients) < expected and time.monotonic() < end_s:
            gevent.sleep(0.05)
        self._runner.quit()

    def _collect(self, msg: Any, **_: Any) -> None:
        self.outcomes += [Outcome(**row) for row in msg.data["rows"]]
        if msg.data["error"]:
            self.problems.append(f"a worker could not run: {msg.data['error']}")
        if msg.data["last"]:
            self._owing.discard(msg.node_id)


class WorkerSide:
    """Drives one share of a run and sends its outcomes back."""

    def __init__(self, runner: WorkerRunner, report: Callable[[Outcome], None]) -> None:
        self._runner = runner
        self._report = report
        self._driver: Driver | None = None
        runner.register_message(START, self._start)
        # Draining takes as long as a reply may; heartbeats must go on meanwhile.
        runner.register_message(STOP, lambda **_: self.stop(), concurrent=True)

    def _start(self, msg: Any, **_: Any) -> None:
        plan, share = LoadPlan(**msg.data["plan"]), RateShare(**msg.data["share"])
        try:
            self._driver = make_driver(plan, share, self._report)
        except ValueError as error:
            logger.error("%s", error)
            self._send([], last=True, error=str(error))
            return
        logger.info("share %d of %d", share.index + 1, share.count)
        self._driver.start()

    def stop(self) -> None:
        """End the share and send its outcomes; safe to call again."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        driver.stop()
        rows = [outcome.to_json() for outcome in driver.outcomes]
        for first in range(0, len(rows), ROWS_A_MESSAGE):
            self._send(rows[first : first + ROWS_A_MESSAGE], last=False)
        self._send([], last=True)

    def _send(self, rows: list[dict[str, Any]], *, last: bool, error: str = "") -> None:
        self._runner.send_message(OUTCOMES, {"rows": rows, "last": last, "error": error})
