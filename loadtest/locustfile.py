"""Does the server keep its promise under open arrivals? The exit code says so.

    locust -f loadtest/ --headless --host http://127.0.0.1:8000 --run-time 60s

Cases arrive as a Poisson stream of `--rate` a second for all of `--run-time`, whatever the
server does. Locust's users add no load (the default of one is right): the total rate is
`--rate` at any number of them. The run starts when `/readyz` says so, and every request from
the first on counts. Locust prints its `--help` before it reads this file; the flags it adds:

    --rate 5               arrivals a second
    --slo-p99-ms 400       p99 latency to keep
    --max-miss-rate 0.01   share of requests that may miss (error, refusal, degraded, late)
    --deadline-ms 400      deadline sent with every case
    --cases FILE           JSONL rows with a "fact"; artifacts/demo/corpus/test.jsonl
    --seed 0               of the schedule and the order of cases
    --timeout-s 10         give a reply up after this long
    --ready-timeout-s 60   wait this long for /readyz
    --slo-report FILE      write the figures as JSON
    --require-proof        fail unless the run is long enough to prove its p99 at 95% confidence
"""

from __future__ import annotations

import logging
import random
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gevent
import locust.stats
from locust import User, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from curt.files import write_json
from loadtest._arrivals import arrival_times_s, load_facts, number_fact
from loadtest._client import Client
from loadtest._driver import Driver
from loadtest._slo import Outcome, Slo, summarise

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
    """What lives from `test_start` to `quitting`."""

    driver: Driver | None = None
    ready: bool = False


present = Run()


@events.init_command_line_parser.add_listener
def add_flags(parser: ArgumentParser) -> None:
    """Declare the flags of the load test beside Locust's own."""
    add = parser.add_argument_group("SLO").add_argument
    add("--rate", type=float, default=5.0, help="arrivals a second, open Poisson stream")
    add("--slo-p99-ms", type=float, default=400.0, help="p99 latency to keep, in ms")
    add("--max-miss-rate", type=float, default=0.01, help="share of requests that may miss")
    add("--deadline-ms", type=int, default=400, help="deadline sent with every case, in ms")
    add("--cases", default="artifacts/demo/corpus/test.jsonl", help='JSONL rows with a "fact"')
    add("--seed", type=int, default=0, help="seed of the schedule and of the order of cases")
    add("--timeout-s", type=float, default=10.0, help="give a reply up after this many seconds")
    add("--ready-timeout-s", type=float, default=60.0, help="wait this long for /readyz")
    add("--slo-report", default="", help="write the figures to this JSON file")
    add(
        "--require-proof",
        action="store_true",
        help="fail unless the run is long enough to prove p99 at 95%% confidence",
    )


@events.init.add_listener
def check_start(environment: Environment, runner: Any, **_: Any) -> None:
    """Refuse a run that could not mean anything, before its clock starts."""
    options = environment.parsed_options
    if isinstance(runner, MasterRunner | WorkerRunner):
        raise SystemExit(
            "error: one schedule cannot be split over processes: leave out --master, --worker "
            "and --processes, and raise --rate instead"
        )
    if options.num_users and options.num_users > 1:
        logger.warning("%s users add no load: --rate sets it", options.num_users)
    try:
        load_facts(Path(options.cases))
        arrival_times_s(options.rate, options.seed)
        if options.headless:  # elsewhere the host may still be typed into Locust's page
            Client(environment.host or "", options.timeout_s)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    if options.headless and not wait_ready(environment):
        write_report(environment, report_of(environment))
        raise SystemExit(f"error: {not_ready(environment)}")


@events.test_start.add_listener
def start_driver(environment: Environment, **_: Any) -> None:
    """Begin the arrivals. Without a ready server none are sent, and the run fails."""
    present.driver = None
    if not wait_ready(environment):
        logger.error(not_ready(environment))
        return
    options = environment.parsed_options
    facts = load_facts(Path(options.cases))
    random.Random(options.seed).shuffle(facts)
    run = int(time.time())

    def payload_of(index: int) -> dict[str, object]:
        fact = number_fact(facts[index % len(facts)], run, index)
        return {"fact": fact, "deadline_ms": options.deadline_ms, "include_reasoning": False}

    def report(outcome: Outcome) -> None:
        environment.events.request.fire(
            request_type="POST",
            name="/predict",
            response_time=outcome.latency_ms,
            response_length=0,
            exception=MissError(outcome.miss) if outcome.miss else None,
            context={},
        )

    present.driver = Driver(
        Client(environment.host or "", options.timeout_s),
        arrival_times_s(options.rate, options.seed),
        payload_of,
        slo_of(options),
        report,
    )
    present.driver.start()


@events.test_stopping.add_listener
def stop_driver(**_: Any) -> None:
    """End the arrivals and collect what the server still owes."""
    if present.driver:
        present.driver.stop()


@events.quitting.add_listener
def conclude(environment: Environment, **_: Any) -> None:
    """Write the report, say what the run proved and set the exit code."""
    stop_driver()  # an interrupted run comes here without `test_stopping`
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


def slo_of(options: Namespace) -> Slo:
    """The promise the flags describe."""
    return Slo(options.slo_p99_ms, options.max_miss_rate)


def wait_ready(environment: Environment) -> bool:
    """Wait for the server to say that it is ready; no uncounted warm-up requests are made."""
    options = environment.parsed_options
    client = Client(environment.host or "", options.timeout_s)
    present.ready = client.wait_until_ready(options.ready_timeout_s)
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
    options = environment.parsed_options
    driver = present.driver
    outcomes = driver.outcomes if driver else []
    duration_s = driver.duration_s if driver else 0.0
    return {
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": environment.host,
        "ready": present.ready,
        "settings": {
            "rate_per_s": options.rate,
            "run_time_s": options.run_time,
            "slo_p99_ms": options.slo_p99_ms,
            "max_miss_rate": options.max_miss_rate,
            "deadline_ms": options.deadline_ms,
            "timeout_s": options.timeout_s,
            "seed": options.seed,
            "cases": options.cases,
            "require_proof": options.require_proof,
        },
        "duration_s": round(duration_s, 3),
        "achieved_rate_per_s": len(outcomes) / duration_s if duration_s else 0.0,
        **summarise(outcomes, slo_of(options), require_proof=options.require_proof),
    }


def write_report(environment: Environment, report: dict[str, Any]) -> None:
    """Write the JSON report where `--slo-report` asks for it."""
    if environment.parsed_options.slo_report:
        write_json(Path(environment.parsed_options.slo_report), report)
