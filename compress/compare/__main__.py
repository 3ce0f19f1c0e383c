"""Compare artifacts with the parent they were made from: one table, one page, one default.

    python -m compress.compare --parent artifacts/demo/grpo-default \
        --artifacts '["artifacts/demo/ort-fp32", "artifacts/demo/ort-int4"]' \
        --corpus artifacts/demo/corpus/test.jsonl --limit 100 --out artifacts/demo/choice

Every result is kept under the hash of what it depends on, so a stopped run goes on where it
was. Speeds are the exception: they are measured for all folders together or not at all.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compress.compare.settings import ReportConfig
from curt.config import load_config
from curt.logs import configure_logging

if TYPE_CHECKING:
    from curt.engines import Engine

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> None:
    """Measure what is missing and write the report; exits with a message on bad input."""
    config = load_config(ReportConfig, argv)
    configure_logging()
    from compress.compare.compare import write_report
    from curt.evaluate import open_engine

    def open_folder(folder: Path) -> Engine:
        return open_engine(folder, batch=config.batch)

    try:
        report = write_report(config, open_folder)
    except ValueError as error:
        sys.exit(f"error: {error}")
    log.info("default: %s; page in %s", report["choice"]["name"], config.out / "report.html")


if __name__ == "__main__":
    main()
