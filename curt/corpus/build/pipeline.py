"""Make the train, dev and test sets of a run, with a data card and counts of what was dropped.

    python -m curt.corpus build @configs/demo/corpus.toml --out artifacts/demo/corpus
    python -m curt.corpus build @configs/cail/corpus.toml --cail path/to/cail
    python -m curt.corpus build @configs/cail/corpus.toml --hub china-ai-law-challenge/cail2018

Without a source the cases are generated. What is read is cleaned by named rules, freed of repeats
and, for training, of what the test sets hold; each record ends as a case, as dropped for a reason,
or set aside in `quarantine.jsonl`, which can be mended and given back with `--mended`. A build that
was stopped goes on where it was when the same command is run again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator
from tqdm import tqdm

from curt.config import Config
from curt.corpus.build.clean import domains_of
from curt.corpus.build.parallel import Backend
from curt.corpus.build.record_table import QUARANTINED, SPLITS, RecordTable
from curt.corpus.build.set_counts import SetCounts
from curt.corpus.read.cail import COLUMNS
from curt.corpus.read.records import remedy_for
from curt.corpus.read.sources import Shard, cut_file, cut_hub, cut_mended, taken_columns
from curt.corpus.store import find_cases, open_case_file
from curt.files import sha256, whole_folder, write_atomic, write_json
from curt.law.verdict import Term

logger = logging.getLogger(__name__)

BUILD_VERSION = 2
"""Raise it when the same records would come out otherwise; stopped builds then start anew."""

Rule = Literal["too short", "language", "kind", "few steps", "repetition", "no term"]


class CorpusConfig(Config):
    """Where the cases come from and where they go."""

    out: Path = Path("artifacts/demo/corpus")
    """Folder for the three sets, corpus.json, card.html, removed.jsonl and quarantine.jsonl."""
    format: Literal["jsonl", "parquet"] = "jsonl"
    """Of the three sets."""
    cail: Path | None = None
    """Folder of files with labelled cases, CAIL2018's and others'; see `files`. One file is split
    into the three sets by its cases' hashes."""
    judgments: Path | None = None
    """File of whole judgments (`document` a line), or folder of text, HTML and DOCX files; split
    likewise."""
    map: dict[str, str] = {}
    """Columns that have other names than those known: {"fact": "案情经过", "term": "判几个月"}."""
    cases: Path | None = None
    """Folder of sets that this command wrote before, in either format."""
    hub: str | None = None
    """Hugging Face data set with CAIL2018's columns: a hub id or a local folder."""
    files: dict[str, list[str]] = {split: [f"{split}.json"] for split in SPLITS}
    """With `cail`: the files of each set, as first_stage/train.json and restData/rest_data.json."""
    hub_splits: dict[str, str] = {
        "train": "exercise_contest_train",
        "dev": "exercise_contest_valid",
        "test": "exercise_contest_test",
    }
    """With `hub`: its name for each set."""
    encoding: Literal["auto", "utf-8", "gb18030"] = "auto"
    """Of JSON lines; auto looks at the first megabyte of each file."""
    mended: list[Path] = []
    """Quarantine files of earlier builds, mended, whose records are read as well."""
    rules: list[Rule] = ["too short", "language", "kind"]
    """Read cases: rules of `curt.corpus.build.clean` that drop a case."""
    near_duplicates: float | None = Field(0.6, gt=0, le=1)
    """Read cases: similarity from which a case repeats an earlier one of its set and is dropped."""
    contamination: float | None = Field(0.5, gt=0, le=1)
    """Read cases: share of a test or dev case that a training case must not hold."""
    embedding: str | None = "lsa"
    """Read cases: model whose vectors find repeats in other words; a sentence-transformers id or
    folder, or `lsa`, which is fitted on the cases."""
    alike: float = Field(0.93, gt=0, le=1)
    """Cosine similarity from which two cases that share most figures are one."""
    backend: Backend = "datasets"
    """What shards run on: this process (serial), `datasets` with processes, or Ray Data (ray)."""
    workers: int = Field(2, ge=1)
    """Processes of the backend."""
    shard_records: int = Field(5000, ge=1)
    """Records in a shard."""
    strict: bool = False
    """Fail on the first record that can't be read rather than set it aside."""
    train: int = 12_000
    """Generated training cases."""
    lay: int = Field(0, ge=0)
    """As many more of them, told as people do who are no court."""
    dev: int = 300
    """Generated development cases."""
    test: int = 600
    """Generated test cases."""
    seed: int = 7
    """Each split draws from this seed and its own name, so no two seeds share a set."""

    @model_validator(mode="after")
    def _one_source(self) -> CorpusConfig:
        given = [name for name in ("cail", "judgments", "cases", "hub") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {', '.join(given)}, and not both")
        if unknown := self.map.keys() - COLUMNS.keys():
            raise ValueError(f"map names {sorted(unknown)}: use {', '.join(COLUMNS)}")
        for name in ("files", "hub_splits"):
            if unknown := getattr(self, name).keys() - set(SPLITS):
                raise ValueError(f"{name} names {sorted(unknown)}: use {', '.join(SPLITS)}")
        return self

    @property
    def reads(self) -> bool:
        """Whether cases are read rather than generated."""
        return bool(self.cail or self.judgments or self.cases or self.hub or self.mended)


def build_corpus(config: CorpusConfig) -> dict[str, Any]:
    """Write the sets, whole or not at all, and return what corpus.json says of them.

    Raises ValueError on a source that can't be read, or on a record when strict.
    """
    from curt.corpus.build.card import render_card

    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError("a corpus needs pyarrow: install it, with pip install pyarrow")
    started = time.monotonic()
    with whole_folder(config.out) as folder:
        summary: dict[str, Any] = {"config": config.model_dump(mode="json")}
        if config.reads:
            summary |= _build_read(config, folder)
        else:
            summary |= _build_generated(config, folder)
        summary["seconds"] = round(time.monotonic() - started, 1)
        (folder / "card.html").write_text(render_card(summary), encoding="utf-8")
        summary["files"] = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in sorted(folder.iterdir())
        }
        write_json(folder / "corpus.json", summary)
    shutil.rmtree(_work_folder(config), ignore_errors=True)
    return summary


def _build_generated(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    from curt.corpus.generate.generator import generate_cases

    sets = {}
    for split in SPLITS:
        seen = SetCounts()
        cases = generate_cases(getattr(config, split), f"{config.seed}-{split}", split)
        lay = generate_cases(config.lay * (split == "train"), f"{config.seed}-lay", lay=True)
        with open_case_file(folder / f"{split}.{config.format}") as write:
            for case in chain(cases, lay):
                write(json.dumps(case.to_json(), ensure_ascii=False))
                seen.add(case.verdict.charges, case.verdict.term, len(case.fact), domains_of(case))
        sets[split] = seen.to_json()
    counts = {split: sets[split]["cases"] for split in SPLITS}
    total = sum(counts.values())
    return {"inputs": [], "records": total, "outcomes": total, "counts": counts, "dropped": {},
            "quarantined": {}, "stages": {}, "sets": sets}  # fmt: skip


def _build_read(config: CorpusConfig, folder: Path) -> dict[str, Any]:
    from curt.corpus.build.filters import BuildContext, drop_alike, drop_contaminated, drop_repeats
    from curt.corpus.build.parallel import map_shards
    from curt.corpus.build.prepare import Preparation, prepare_shard

    stages: dict[str, float] = {}
    with _timed(stages, "plan"):
        shards = plan_shards(config)
        inputs = _describe_inputs(shards)
        context = BuildContext(
            _open_work_folder(config, shards, inputs), config.backend, config.workers
        )
    compares = bool(config.near_duplicates or config.embedding)
    tasks = [
        Preparation(
            shard,
            tuple(config.rules),
            compares,
            context.folder / f"{number:05}.parquet",
            config.strict,
        )
        for number, shard in enumerate(shards)
    ]
    with _timed(stages, "read, clean, sign"):
        files = map_shards(
            prepare_shard, tasks, backend=config.backend, workers=config.workers, label="read"
        )
        table = RecordTable(files)
    if config.near_duplicates:
        with _timed(stages, "near duplicates"):
            for split in SPLITS:
                drop_repeats(table, split, config.near_duplicates, context)
    if config.contamination:
        with _timed(stages, "contamination"):
            drop_contaminated(table, config.contamination, context)
    if config.embedding:
        with _timed(stages, "embeddings"):
            drop_alike(table, config.embedding, config.alike, context)
    with _timed(stages, "write"):
        sets = {
            split: _write_set(table, split, folder / f"{split}.{config.format}") for split in SPLITS
        }
        _write_removed(table, folder / "removed.jsonl")
        _write_quarantine(table, folder / "quarantine.jsonl")
    totals = table.count()
    assert {split: sets[split]["cases"] for split in SPLITS} == totals["counts"]
    return {"inputs": inputs, **totals, "stages": stages, "sets": sets}


def plan_shards(config: CorpusConfig) -> list[Shard]:
    """Shards of every source, mended records last. Raises ValueError on a missing one."""
    size = config.shard_records
    shards: list[Shard] = []
    if config.cail and config.cail.is_file():
        shards += cut_file(config.cail.resolve(), "cail", None, size, config.encoding)
    elif config.cail:
        for split, names in config.files.items():
            for name in names:
                path = (config.cail / name).resolve()
                shards += cut_file(path, "cail", split, size, config.encoding)
    elif config.judgments:
        inside = sorted(path for path in config.judgments.rglob("*") if path.is_file())
        for path in inside or [config.judgments]:
            shards += cut_file(path.resolve(), "judgments", None, size, config.encoding)
    elif config.cases:
        for split in SPLITS:
            path = find_cases(config.cases, split).resolve()
            shards += cut_file(path, "cases", split, size, "utf-8")
    elif config.hub:
        shards += cut_hub(config.hub, config.hub_splits, size)
    shards = [replace(shard, columns=config.map) for shard in shards]
    for path in config.mended:
        shards += cut_mended(path.resolve(), size)
    return shards


def _describe_inputs(shards: list[Shard]) -> list[dict[str, Any]]:
    """Each source once, with its size and age where it is a file."""
    described: dict[str, dict[str, Any]] = {}
    for shard in shards:
        path = Path(shard.source)
        entry = described.setdefault(shard.source, {"source": shard.source, "records": 0})
        entry["records"] += shard.count
        entry["encoding"] = shard.encoding
        if "columns" not in entry:
            entry["columns"] = taken_columns(shard)
        if path.is_file():
            entry |= {"bytes": path.stat().st_size, "modified_ns": path.stat().st_mtime_ns}
    return list(described.values())


def _work_folder(config: CorpusConfig) -> Path:
    return config.out.resolve().with_name(f".{config.out.name}.build")


def _open_work_folder(
    config: CorpusConfig, shards: list[Shard], inputs: list[dict[str, Any]]
) -> Path:
    """The folder of intermediate files: that of a stopped build of the same, or an empty one."""
    settings = config.model_dump(mode="json", exclude={"out", "format", "backend", "workers"})
    plan = [BUILD_VERSION, settings, inputs, [shard.to_json() for shard in shards]]
    mark = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
    folder = _work_folder(config)
    marker = folder / "plan.sha256"
    if marker.is_file() and marker.read_text(encoding="utf-8") == mark:
        logger.info("going on with the build that was stopped in %s", folder)
        return folder
    if folder.exists():
        logger.info("the build that was stopped in %s had other settings: starting anew", folder)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_atomic(marker, mark)
    return folder


def _write_set(table: RecordTable, split: str, path: Path) -> dict[str, Any]:
    counts = SetCounts()
    places = table.kept(split)
    columns = ("case", "charges", "term", "months", "characters", "domains")
    with open_case_file(path) as write:
        for row in tqdm(table.rows(columns, places), desc=path.name, total=len(places)):
            write(row["case"])
            term = Term(row["term"], row["months"])
            counts.add(row["charges"], term, row["characters"], row["domains"])
    return counts.to_json()


def _write_removed(table: RecordTable, path: Path) -> None:
    """What was dropped because of another case: ids and why, no facts."""
    removals = sorted(table.removals, key=lambda removal: removal.index)
    wanted = {place for removal in removals for place in (removal.index, removal.of)}
    names = table.rows(["id", "source", "line"], wanted)
    known = dict(zip(sorted(wanted), names, strict=True))
    with open(path, "w", encoding="utf-8") as file:
        for removal in removals:
            row = {
                "split": table.split_name(removal.index),
                "rule": removal.rule,
                "similarity": round(removal.similarity, 4),
                **known[removal.index],
                "of": {"split": table.split_name(removal.of), **known[removal.of]},
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_quarantine(table: RecordTable, path: Path) -> None:
    """Records that could not be read, each with what would mend it and its own text."""
    columns = ("split", "kind", "source", "line", "part", "reason", "record")
    with open(path, "w", encoding="utf-8") as file:
        for row in table.rows(columns, np.flatnonzero(table.status == QUARANTINED)):
            row["remedy"] = remedy_for(row["reason"])
            row = {"file": row.pop("source"), **row, "record": row["record"]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    stages[name] = round(time.monotonic() - start, 2)
    logger.info("%s: %.1f s", name, stages[name])
