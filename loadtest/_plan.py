"""The settings of a run: its flags, and what is derived from them."""

from __future__ import annotations

import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from loadtest._arrivals import load_facts
from loadtest._cases import CaseMix, mix_cases, parse_bounds, parse_mix
from loadtest._client import Client, read_api_key
from loadtest._driver import Driver
from loadtest._reply import Outcome, Slo
from loadtest._shapes import KINDS, SOAK_WINDOW_S, LoadShape, make_shape


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """A run's settings, as flags gave them; `run_time` in seconds, None for until stopped."""

    host: str
    run_time: float | None
    rate: float
    shape: str
    peak: float | None
    steps: int
    spike_at_s: float | None
    spike_s: float | None
    period_s: float | None
    slo_p99_ms: float
    max_miss_rate: float
    deadline_ms: int
    cases: str
    mix: str
    length_bounds: str
    seed: int
    timeout_s: float
    ready_timeout_s: float
    require_proof: bool
    api_key_file: str
    ca_file: str

    @classmethod
    def of(cls, options: Namespace, host: str | None) -> LoadPlan:
        """The plan that Locust's parsed options describe."""
        names = [field.name for field in fields(cls) if field.name != "host"]
        return cls(host=host or "", **{name: getattr(options, name) for name in names})

    @property
    def slo(self) -> Slo:
        """The promise to keep."""
        return Slo(self.slo_p99_ms, self.max_miss_rate)

    def make_shape(self) -> LoadShape:
        """The rate over time of the whole run. Raises ValueError on a bad flag."""
        return make_shape(
            self.shape,
            self.rate,
            peak_per_s=self.peak,
            run_s=self.run_time,
            steps=self.steps,
            spike_at_s=self.spike_at_s,
            spike_s=self.spike_s,
            period_s=self.period_s,
        )

    def make_mix(self, seed: int) -> CaseMix:
        """The cases by length. Raises ValueError where there are none."""
        return mix_cases(
            load_facts(Path(self.cases)),
            seed,
            weights=parse_mix(self.mix),
            bounds_chars=parse_bounds(self.length_bounds),
        )

    def make_client(self) -> Client:
        """Raises ValueError on a bad host, key file or certificate file."""
        return Client(
            self.host, self.timeout_s, read_api_key(self.api_key_file), self.ca_file or None
        )

    def window_s(self, span_s: float) -> float:
        """Whole seconds that cut a run into about thirty, or a soak into minutes."""
        return SOAK_WINDOW_S if self.shape == "soak" else float(max(1, round(span_s / 30)))

    def describe(self) -> dict[str, Any]:
        """The settings for a report. A key is told of by its presence alone."""
        told = asdict(self)
        told["rate_per_s"] = told.pop("rate")
        told["run_time_s"] = told.pop("run_time")
        told["peak_per_s"] = told.pop("peak")
        told["api_key"] = "sent" if read_api_key(told.pop("api_key_file")) else "none"
        return told


@dataclass(frozen=True, slots=True)
class RateShare:
    """Which of `count` equal parts of a run this process drives; `run` numbers its cases."""

    index: int = 0
    count: int = 1
    run: int = 0

    def seed_of(self, seed: int) -> int:
        """A seed of its own, so that parts are drawn apart; the first keeps the run's."""
        return random.Random(f"{seed} {self.index}").getrandbits(48) if self.index else seed


def new_run() -> int:
    """A number no earlier run had, with room for the shares of one."""
    return int(time.time()) * 1000


def make_driver(plan: LoadPlan, share: RateShare, report: Callable[[Outcome], None]) -> Driver:
    """The driver of one share. Raises ValueError on invalid settings."""
    seed = share.seed_of(plan.seed)
    mix = plan.make_mix(seed)
    run = share.run + share.index
    return Driver(
        plan.make_client(),
        plan.make_shape().split(share.count).arrival_times_s(seed),
        lambda index: mix.request_of(index, run, plan.deadline_ms),
        plan.slo,
        report,
    )


def add_flags(parser: ArgumentParser) -> None:
    """Declare the flags of the load test beside Locust's own."""
    add = parser.add_argument_group("SLO").add_argument
    add("--rate", type=float, default=5.0, help="arrivals a second, open Poisson stream")
    add("--shape", default="steady", choices=KINDS, help="how the rate changes over the run")
    add("--peak", type=float, help="highest rate of a step, spike or diurnal shape; 4 x --rate")
    add("--steps", type=int, default=4, help="levels of a step shape")
    add("--spike-at-s", type=float, help="when the spike begins; after a third of the run")
    add("--spike-s", type=float, help="how long the spike lasts; a tenth of the run")
    add("--period-s", type=float, help="length of a day of the diurnal shape; the run")
    add("--slo-p99-ms", type=float, default=400.0, help="p99 latency to keep, in ms")
    add("--max-miss-rate", type=float, default=0.01, help="share of requests that may miss")
    add("--deadline-ms", type=int, default=400, help="deadline sent with every case, in ms")
    add("--cases", default="artifacts/demo/corpus/test.jsonl", help='JSONL rows with a "fact"')
    add("--mix", default="", help="weights by length: short:50,medium:40,long:10; as found")
    add("--length-bounds", default="", help="longest short and medium case, in characters")
    add("--seed", type=int, default=0, help="seed of the schedule and of the order of cases")
    add("--timeout-s", type=float, default=10.0, help="give a reply up after this many seconds")
    add("--ready-timeout-s", type=float, default=60.0, help="wait this long for /readyz")
    add("--api-key-file", default="", help="file with the API key; else CURT_API_KEY, else none")
    add("--ca-file", default="", help="PEM certificates to trust in place of the system's")
    add("--slo-report", default="", help="write the figures to this JSON file")
    add("--slo-html", default="", help="write the report to this HTML file")
    add(
        "--require-proof",
        action="store_true",
        help="fail unless the run is long enough to prove p99 at 95%% confidence",
    )
