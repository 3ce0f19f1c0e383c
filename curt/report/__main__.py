"""Write the report of a run.

python -m curt.report --run artifacts/demo --out artifacts/demo/report.html
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from curt.config import Config, load_config
from curt.logs import configure_logging

logger = logging.getLogger(__name__)


class ReportConfig(Config):
    """Which run to report, and where to."""

    run: Path = Path("artifacts/demo")
    """Folder the stages of one run wrote into."""
    out: Path | None = None
    """HTML file to write; report.html in the run folder when not given."""


def main() -> None:
    """Read the run folder, write the page."""
    config = load_config(ReportConfig)
    configure_logging()
    from curt.files import write_atomic
    from curt.report.inputs import read_run
    from curt.report.page import render_page

    out = config.out or config.run / "report.html"
    try:
        page = render_page(read_run(config.run))
    except ValueError as error:
        sys.exit(f"error: {error}")
    write_atomic(out, page)
    logger.info("report in %s (%d kB)", out, len(page.encode()) // 1000)


if __name__ == "__main__":
    main()
