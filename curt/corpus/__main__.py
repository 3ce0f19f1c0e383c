"""Make the train, dev and test sets of a run.

    python -m curt.corpus @configs/demo/corpus.toml --out artifacts/demo/corpus
    python -m curt.corpus @configs/cail/corpus.toml --cail path/to/cail

Without `--cail` the cases are generated; with it they are read from a folder of CAIL2018 files
(`train.json`, `dev.json`, `test.json`).
"""

from __future__ import annotations

import logging
from pathlib import Path

from curt.config import Config, load_config
from curt.corpus.cail import ReadReport, read_cail
from curt.corpus.store import write_cases
from curt.corpus.synthetic import generate_cases
from curt.files import whole_folder, write_json
from curt.logs import configure_logging

logger = logging.getLogger(__name__)


class CorpusConfig(Config):
    """Where the cases come from and where they go."""

    out: Path = Path("artifacts/demo/corpus")
    """Folder for train.jsonl, dev.jsonl, test.jsonl and corpus.json."""
    cail: Path | None = None
    """Folder of CAIL2018 files; generated cases when not given."""
    strict: bool = False
    """Fail on the first unreadable CAIL2018 line rather than skip and count it."""
    train: int = 12_000
    """Generated training cases."""
    dev: int = 300
    """Generated development cases."""
    test: int = 600
    """Generated test cases."""
    seed: int = 7
    """Each split draws from this seed and its own name, so no two seeds share a set."""


def main() -> None:
    """Make the corpus and say what it holds."""
    config = load_config(CorpusConfig)
    configure_logging()
    counts: dict[str, int] = {}
    skipped: dict[str, dict[str, int]] = {}
    with whole_folder(config.out) as folder:
        for split in ("train", "dev", "test"):
            path = folder / f"{split}.jsonl"
            if config.cail is None:
                cases = generate_cases(getattr(config, split), f"{config.seed}-{split}")
                counts[split] = write_cases(path, cases)
            else:
                report = ReadReport()
                source = config.cail / f"{split}.json"
                counts[split] = write_cases(
                    path, read_cail(source, strict=config.strict, report=report)
                )
                skipped[split] = dict(report.skipped)
        write_json(
            folder / "corpus.json",
            {"config": config.model_dump(mode="json"), "counts": counts, "skipped": skipped},
        )
    logger.info("corpus %s: %s, skipped %s", config.out, counts, skipped)


if __name__ == "__main__":
    main()
