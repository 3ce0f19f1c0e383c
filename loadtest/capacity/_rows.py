"""Raw rows of a search, one request a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from curt.files import write_atomic
from loadtest._reply import Outcome, Slo
from loadtest.capacity._step import RateStep

COLUMNS = ("step", "rate_per_s", "at_s", "latency_ms", "lag_ms", "miss", "answered")


def write_rows(path: Path, steps: Sequence[RateStep]) -> None:
    """Write every request of every step as CSV; an empty `miss` is a good answer in time."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for step in steps:
        for row in step.rows:
            writer.writerow(
                (
                    step.number,
                    step.rate_per_s,
                    f"{row.at_s:.6f}",
                    f"{row.latency_ms:.3f}",
                    f"{row.lag_ms:.3f}",
                    row.miss or "",
                    int(row.answered),
                )
            )
    write_atomic(path, text.getvalue())


def read_rows(path: Path, summaries: Sequence[Mapping[str, Any]], slo: Slo) -> list[RateStep]:
    """The steps behind `Capacity.to_json()["steps"]`, with the rows `write_rows` kept.

    Raises ValueError when the two files are not of one search.
    """
    by_step: dict[int, list[Outcome]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                row = Outcome(
                    float(line["latency_ms"]),
                    line["miss"] or None,
                    answered=line["answered"] == "1",
                    lag_ms=float(line["lag_ms"]),
                    at_s=float(line["at_s"]),
                )
                by_step.setdefault(int(line["step"]), []).append(row)
        steps = [
            RateStep(
                told["number"],
                told["rate_per_s"],
                slo,
                tuple(by_step.get(told["number"], ())),
                told["stopped_early"],
                told["figures"],
                told["asked"],
            )
            for told in summaries
        ]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: no rows of a search ({type(error).__name__}); start anew with --fresh true"
        ) from None
    for step, told in zip(steps, summaries, strict=True):
        if len(step.rows) != told["requests"]:
            raise ValueError(
                f"{path}: {len(step.rows)} rows of step {step.number} and {told['requests']} "
                "reported; start anew with --fresh true"
            )
    return steps
