"""Write the report of a run.

python -m curt.report --run artifacts/demo --out artifacts/demo/report.html
"""

from __future__ import annotations

import logging
from pathlib import Path

from curt.config import Config, run

logger = logging.getLogger(__name__)


class ReportConfig(Config):
    """Which run to report, and where to."""

    run: Path = Path("artifacts/demo")
    """Folder the stages of one run wrote into."""
    out: Path | None = None
    """HTML file to write; report.html in the run folder when not given."""


def write_report(config: ReportConfig) -> None:
    """Read the run folder, write the page. Raises ValueError where a part is not readable."""
    from curt.files import write_atomic
    from curt.report.inputs import read_run
    from curt.report.page import render_page

    out = config.out or config.run / "report.html"
    page = render_page(read_run(config.run))
    write_atomic(out, page)
    logger.info("report in %s (%d kB)", out, len(page.encode()) // 1000)


if __name__ == "__main__":
    run(ReportConfig, write_report)
