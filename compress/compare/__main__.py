"""Compare artifacts with the parent they were made from: one table, one page, one default.

    python -m compress.compare --parent artifacts/demo/grpo-default \
        --artifacts '["artifacts/demo/ort-fp32", "artifacts/demo/ort-int4"]' \
        --corpus artifacts/demo/corpus/test.jsonl --limit 100 --out artifacts/demo/choice

Every result is kept under the hash of what it depends on, so a stopped run goes on where it
was. Speeds are the exception: they are measured for all folders together or not at all.
"""

from __future__ import annotations

import logging
from functools import partial

from compress.compare.settings import CompareConfig
from curt.config import run

log = logging.getLogger(__name__)


def work(config: CompareConfig) -> None:
    """Measure what is missing and write the report."""
    from compress.compare.compare import write_report
    from curt.evaluate import open_engine

    report = write_report(config, partial(open_engine, batch=config.batch))
    log.info("default: %s; page in %s", report["choice"]["name"], config.out / "report.html")


if __name__ == "__main__":
    run(CompareConfig, work)
