"""Make the train, dev and test sets of a run.

    python -m curt.corpus @configs/demo/corpus.toml --out artifacts/demo/corpus
    python -m curt.corpus @configs/cail/corpus.toml --cail path/to/cail

Without `--cail` the cases are generated; with it they are read from a folder of CAIL2018 files
(`train.json`, `dev.json`, `test.json`).
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from curt.config import Config, load_config
from curt.corpus.cail import ReadReport, read_cail
from curt.corpus.clean import RULES, domains_of
from curt.corpus.dedup import ContaminationFilter, DuplicateFilter
from curt.corpus.judgments import read_judgments
from curt.corpus.store import write_cases
from curt.corpus.synthetic import generate_cases
from curt.files import whole_folder, write_json
from curt.logs import configure_logging
from curt.schema import Case

logger = logging.getLogger(__name__)

Rule = Literal["too short", "appeal", "language", "few steps", "repetition"]
SPLITS = ("test", "dev", "train")


class CorpusConfig(Config):
    """Where the cases come from and where they go."""

    out: Path = Path("artifacts/demo/corpus")
    """Folder for train.jsonl, dev.jsonl, test.jsonl and corpus.json."""
    cail: Path | None = None
    """Folder of CAIL2018 files; generated cases when not given."""
    judgments: Path | None = None
    """File of whole judgments (`document` a line) to split into the three sets, in their place."""
    rules: list[Rule] = ["too short", "appeal", "language"]
    """Read cases: rules of `curt.corpus.clean` that drop a case."""
    near_duplicates: float | None = Field(0.6, gt=0, le=1)
    """Read cases: similarity from which a case repeats an earlier one of its set and is dropped."""
    contamination: float | None = Field(0.5, gt=0, le=1)
    """Read cases: share of a test or dev case that a training case must not hold."""
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
    """Make the corpus and say what it holds; exits with a message on bad input."""
    config = load_config(CorpusConfig)
    configure_logging()
    try:
        summary = build_corpus(config)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    logger.info("corpus %s: %s, dropped %s", config.out, summary["counts"], summary["dropped"])


def build_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Write the three sets, whole or not at all, and return their counts.

    Every record read is either kept or counted as dropped by a named rule; `removed.jsonl` names
    the duplicates and contaminated cases with what they repeat. Raises ValueError when two sources
    are given or a strict reading fails.
    """
    if config.cail and config.judgments:
        raise ValueError("give --cail or --judgments, and not both")
    dropped: dict[str, Counter[str]] = {name: Counter() for name in (*SPLITS, "reading")}
    removed: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    domains: Counter[str] = Counter()
    judged = list(read_judgments(config.judgments, dropped["reading"])) if config.judgments else []
    with whole_folder(config.out) as folder:
        held_out: list[tuple[str, str]] = []
        for split in SPLITS:  # train comes last: it must not hold what the others do
            cases: Iterator[Case] = (case for case in judged if _split_of(case) == split)
            if not config.judgments:
                cases = _read_split(config, split, dropped[split])
            if config.cail or config.judgments:
                cases = _filter(cases, config, split, held_out, dropped[split], removed)
            counts[split] = write_cases(folder / f"{split}.jsonl", count_domains(cases, domains))
        lines = (json.dumps(row, ensure_ascii=False) for row in removed)
        (folder / "removed.jsonl").write_text("".join(f"{r}\n" for r in lines), encoding="utf-8")
        summary = {
            "config": config.model_dump(mode="json"),
            "counts": counts,
            "domains": dict(domains.most_common()),
            "dropped": {split: dict(reasons) for split, reasons in dropped.items()},
        }
        write_json(folder / "corpus.json", summary)
    return summary


def count_domains(cases: Iterable[Case], counts: Counter[str]) -> Iterator[Case]:
    """The cases, counting the chapters of the law they stand in as they pass."""
    for case in cases:
        counts.update(domains_of(case))
        yield case


def _read_split(config: CorpusConfig, split: str, dropped: Counter[str]) -> Iterator[Case]:
    if config.cail:
        report = ReadReport(skipped=dropped)
        yield from read_cail(config.cail / f"{split}.json", strict=config.strict, report=report)
    else:
        yield from generate_cases(getattr(config, split), f"{config.seed}-{split}")


def _split_of(case: Case) -> str:
    """Set of a judgment's case by the hash in its id; defendants of one judgment stay together."""
    share = int(case.id.split("-")[1], 16) / 16**16
    return "test" if share < 0.1 else "dev" if share < 0.2 else "train"


def _same_judgment(case_id: str, other_id: str) -> bool:
    """Whether two cases are defendants of one judgment, who share its facts."""
    return case_id.rsplit("-", 1)[0] == other_id.rsplit("-", 1)[0] != "cail"


def _filter(
    cases: Iterable[Case],
    config: CorpusConfig,
    split: str,
    held_out: list[tuple[str, str]],
    dropped: Counter[str],
    removed: list[dict[str, Any]],
) -> Iterator[Case]:
    """Cases that keep the rules, without repeats; for training without what dev and test hold."""
    repeats = DuplicateFilter(config.near_duplicates) if config.near_duplicates else None
    leaks = None
    if split == "train" and config.contamination:
        leaks = ContaminationFilter(held_out, config.contamination)
    for case in cases:
        broken = next((name for name in config.rules if RULES[name](case)), None)
        if broken is not None:
            dropped[broken] += 1
            continue
        match = repeats.match(case.id, case.fact) if repeats else None
        if match is None and leaks is not None:
            match = leaks.match(case.id, case.fact)
        if match is not None and not _same_judgment(match.id, match.of):
            dropped[match.rule] += 1
            removed.append({"split": split, **asdict(match)})
            continue
        if split != "train":
            held_out.append((case.id, case.fact))
        yield case


if __name__ == "__main__":
    main()
