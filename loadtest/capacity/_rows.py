"""Raw rows of a search, one request a line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from curt.files import write_atomic
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
