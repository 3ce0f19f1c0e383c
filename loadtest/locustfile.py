"""Test whether a server keeps its SLO under open arrivals; the exit code tells.

    locust -f loadtest/ --headless --host http://127.0.0.1:8000 --run-time 60s

Cases arrive as a Poisson stream of `--rate` a second for all of `--run-time`, whatever the
server does. Locust's users add no load (the default of one is right): the total rate is
`--rate` at any number of them. The run starts when `/readyz` says so, and every request from
the first on counts. Locust prints its `--help` before it reads this file; the flags it adds:

    --rate 5               arrivals a second
    --shape steady         or step, spike, soak, diurnal: from --rate to --peak (4 x --rate)
    --steps 4              levels of a step; --spike-at-s, --spike-s: when and how long a spike;
                           --period-s: a day of the diurnal shape
    --slo-p99-ms 400       p99 latency to keep
    --max-miss-rate 0.01   share of requests that may miss (error, refusal, degraded, late)
    --deadline-ms 400      deadline sent with every case
    --cases FILE           JSONL rows with a "fact"; artifacts/demo/corpus/test.jsonl
    --mix short:50,medium:40,long:10   weights by length; as found in the corpus without it
    --length-bounds 100,300   longest short and medium case in characters; thirds of the corpus
    --seed 0               of the schedule and the order of cases
    --timeout-s 10         give a reply up after this long
    --ready-timeout-s 60   wait this long for /readyz
    --api-key-file FILE    key for the Authorization header; else CURT_API_KEY, else none
    --ca-file FILE         PEM certificates to trust in place of the system's
    --slo-report FILE      write the figures as JSON
    --slo-html FILE        write the report as one HTML file
    --require-proof        fail unless the run is long enough to prove its p99 at 95% confidence

One process sends a few hundred requests a second. For more, or from several machines, share the
run out; rates add up to `--rate`, outcomes are merged exactly, the master judges and its exit
code counts:

    locust -f loadtest/ --headless --host URL --run-time 60s --rate 500 --processes 4
    locust -f loadtest/ --headless --host URL --run-time 60s --master --expect-workers 2
    locust -f loadtest/ --worker --master-host MASTER          (twice, each with its own cases)
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from locust import User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from curt.files import write_atomic, write_json
from loadtest._driver import Driver
from loadtest._plan import LoadPlan, RateShare, add_flags, make_driver, new_run
from loadtest._processes import MasterSide, WorkerSide
from loadtest._reply import Outcome
from loadtest._report import make_report

# Locust rounds to two digits before it ranks, so that 404 ms would read as 400 in its tables.
locust.stats.bucket_response_time = round

logger = logging.getLogger("loadtest")


class MissError(Exception):
    """A request that broke the SLO, as Locust's failure table shows it."""


class Arrivals(User):
    """Keeps Locust's clock running; the driver sends the requests."""

    @task
    def stand_by(self) -> None:
        """Wait: arrivals do not depend on users."""
        gevent.sleep(1)


@dataclass
class Run:
    """State from `init` to `quitting`: the driver, or this process's part of a shared run."""

    driver: Driver | None = None
    master: MasterSide | None = None
    worker: WorkerSide | None = None
    ready: bool = False


present = Run()


@events.init_command_line_parser.add_listener
def declare_flags(parser: ArgumentParser) -> None:
    """The flags of the load test beside Locust's own."""
    add_flags(parser)


@events.init.add_listener
def check_start(environment: Environment, runner: Any, **_: Any) -> None:
    """Refuse invalid settings before the run's clock starts."""
    if isinstance(runner, WorkerRunner):
        present.worker = WorkerSide(runner, tell_locust(environment))
        return  # the master checks for all
    if isinstance(runner, MasterRunner):
        present.master = MasterSide(runner)
    options = environment.parsed_options
    plan = plan_of(environment)
    if options.num_users and options.num_users > 1:
        logger.warning("%s users add no load: --rate sets it", options.num_users)
    try:
        plan.make_mix(plan.seed)
        plan.make_shape()
        if options.headless:  # elsewhere the host may still be typed into Locust's page
            plan.make_client()
    except ValueError as error:
        dismiss_workers(options)
        raise SystemExit(f"error: {error}") from None
    if options.headless and not wait_ready(environment):
        write_report(environment, report_of(environment))
        dismiss_workers(options)
        raise SystemExit(f"error: {not_ready(environment)}")


@events.test_start.add_listener
def start_arrivals(environment: Environment, **_: Any) -> None:
    """Begin the arrivals. Without a ready server none are sent, and the run fails."""
    if present.worker:
        return  # begins when the master hands it its share
    present.driver = None
    if not wait_ready(environment):
        logger.error(not_ready(environment))
        return
    plan = plan_of(environment)
    if present.master:
        present.master.start(plan)
        return
    present.driver = make_driver(plan, RateShare(run=new_run()), tell_locust(environment))
    present.driver.start()


@events.test_stopping.add_listener
def stop_arrivals(**_: Any) -> None:
    """End the arrivals and wait for the replies still outstanding."""
    for part in (present.driver, present.master, present.worker):
        if part:
            part.stop()


@events.quitting.add_listener
def conclude(environment: Environment, **_: Any) -> None:
    """Write the report, say what the run proved and set the exit code."""
    stop_arrivals()  # an interrupted run comes here without `test_stopping`
    if present.worker:
        environment.process_exit_code = 0  # the verdict is the master's
        return
    report = report_of(environment)
    write_report(environment, report)
    verdict = report["verdict"]
    logger.info(
        "SLO %s: %s; %s",
        "kept" if verdict["passed"] else "BROKEN",
        "; ".join(verdict["reasons"]) or f"p99 {report['latency_ms']['p99']:.1f} ms",
        report["confidence"]["statement"],
    )
    environment.process_exit_code = 0 if verdict["passed"] else 1


def dismiss_workers(options: Namespace) -> None:
    """End the workers of a run that is refused; those of `--processes` would outlive it."""
    if present.master:
        present.master.dismiss(options.expect_workers)


def plan_of(environment: Environment) -> LoadPlan:
    """The plan that the flags and Locust's page describe."""
    return LoadPlan.of(environment.parsed_options, environment.host)


def tell_locust(environment: Environment) -> Any:
    """A listener that enters outcomes into Locust's own statistics."""

    def report(outcome: Outcome) -> None:
        environment.events.request.fire(
            request_type="POST",
            name="/predict",
            response_time=outcome.latency_ms,
            response_length=0,
            exception=MissError(outcome.miss) if outcome.miss else None,
            context={},
        )

    return report


def wait_ready(environment: Environment) -> bool:
    """Wait for the server to say that it is ready; no uncounted warm-up requests are made."""
    plan = plan_of(environment)
    present.ready = plan.make_client().wait_until_ready(plan.ready_timeout_s)
    return present.ready


def not_ready(environment: Environment) -> str:
    """What to tell a user whose server did not become ready."""
    return (
        f"{environment.host}/readyz did not answer 200 within "
        f"{environment.parsed_options.ready_timeout_s:g} s: start the server with `make serve`, "
        "or raise --ready-timeout-s"
    )


def report_of(environment: Environment) -> dict[str, Any]:
    """The whole report: settings, figures, verdict."""
    master, driver = present.master, present.driver
    source = master or driver
    return make_report(
        plan_of(environment),
        source.outcomes if source else [],
        source.duration_s if source else 0.0,
        ready=present.ready,
        workers=master.workers if master else 0,
        problems=master.problems if master else (),
    )


def write_report(environment: Environment, report: dict[str, Any]) -> None:
    """Write the report where `--slo-report` and `--slo-html` ask for it."""
    options = environment.parsed_options
    if options.slo_report:
        write_json(Path(options.slo_report), report)
    if options.slo_html:
        from loadtest._page import render_page  # draws: slow to import, and often not needed

        write_atomic(Path(options.slo_html), render_page(report))
