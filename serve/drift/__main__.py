"""Make the reference of drift from a corpus, or draw the page of a server's saved figures.

python -m serve.drift mix artifacts/demo/corpus/train.jsonl mix.json    # CURT_DRIFT_REFERENCE
python -m serve.drift page feedback/drift.json > drift.html
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from pydantic_settings import CliPositionalArg, CliSubCommand

from curt.config import Config, run
from curt.files import write_json
from serve.drift.tally import read_corpus_mix, read_mix


class MixConfig(BaseModel):
    """Count the charges of a corpus."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    corpus: CliPositionalArg[Path]
    """Case file: train.jsonl or .parquet."""
    out: CliPositionalArg[Path]
    """File to write."""


class PageConfig(BaseModel):
    """Draw saved figures as HTML on standard output."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    figures: CliPositionalArg[Path]
    """drift.json of a server, or - for standard input."""
    reference: Path | None = None
    """File made by mix."""


class DriftConfig(Config):
    """What to do."""

    mix: CliSubCommand[MixConfig]
    page: CliSubCommand[PageConfig]


def work(config: DriftConfig) -> None:
    """Make a reference, or draw a page."""
    if config.mix:
        write_json(config.mix.out, read_corpus_mix(config.mix.corpus).model_dump())
    elif config.page:
        from serve.drift.page import render_page

        file = config.page.figures
        figures = json.loads(sys.stdin.read() if str(file) == "-" else file.read_text())
        if config.page.reference:
            figures["reference"] = read_mix(config.page.reference).model_dump()
        sys.stdout.write(render_page(figures))
    else:
        raise ValueError("say what to do, mix or page: --help shows how")


if __name__ == "__main__":
    run(DriftConfig, work)
