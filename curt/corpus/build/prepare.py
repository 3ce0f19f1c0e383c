"""The part of a build that needs one shard alone: read, clean, and sign its cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curt.corpus.build.clean import RULES, domains_of
from curt.corpus.build.fingerprint import (
    digest_text,
    hash_figures,
    normalise_for_comparison,
    sign_texts,
)
from curt.corpus.read.records import READING_RULES
from curt.corpus.read.sources import ReadRecord, Shard, read_shard
from curt.files import write_parquet

COLUMNS = (
    "source", "line", "part", "kind", "split", "status", "reason", "record", "id", "case",
    "digest", "group", "signature", "figures", "domains", "charges", "term", "months", "characters",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Preparation:
    """A shard, the rules to apply, and the Parquet file that takes what comes of it."""

    shard: Shard
    rules: tuple[str, ...]
    sign: bool
    out: Path
    strict: bool = False


def prepare_shard(task: Preparation) -> Path:
    """Write a row an outcome and return the file; one that is there already stays as it is.

    `status` is kept, dropped (by the rule in `reason`) or quarantined. Raises ValueError on the
    first record that can't be read when the task is strict.
    """
    if task.out.is_file():
        return task.out
    import pyarrow as pa

    rows = [_judge(outcome, task.rules) for outcome in read_shard(task.shard)]
    bad = next((row for row in rows if row["status"] == "quarantined"), None)
    if task.strict and bad is not None:
        raise ValueError(
            f"{bad['source']}, line {bad['line']}: {bad['reason']}: mend it, or build without "
            "strict to have it set aside"
        )
    if task.sign:
        _sign([row for row in rows if row["status"] == "kept"])
    write_parquet(task.out, pa.Table.from_pylist(rows, _schema()), compression="zstd")
    return task.out


def _judge(outcome: ReadRecord, rules: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "source": outcome.source, "line": outcome.line, "part": outcome.part,
        "kind": outcome.kind, "split": outcome.split, "reason": outcome.reason,
    }  # fmt: skip
    case = outcome.case
    if case is None:
        status = "dropped" if outcome.reason in READING_RULES else "quarantined"
        return row | {"status": status, "record": outcome.record}
    broken = next((name for name in rules if RULES[name](case)), "")
    verdict = case.verdict
    return row | {
        "status": "dropped" if broken else "kept",
        "reason": broken,
        "id": case.id,
        "case": json.dumps(case.to_json(), ensure_ascii=False),
        "domains": domains_of(case),
        "charges": verdict.charges,
        "term": verdict.term.kind,
        "months": verdict.term.months,
        "characters": len(case.fact),
        # Defendants of one judgment share their facts and are no repeats of each other.
        "group": int.from_bytes(digest_text(f"{outcome.source}:{outcome.line}")[:8], "little"),
    }


def _sign(rows: Sequence[dict[str, Any]]) -> None:
    plain = [normalise_for_comparison(json.loads(row["case"])["fact"]) for row in rows]
    for row, text, signature in zip(rows, plain, sign_texts(plain), strict=True):
        row["digest"] = digest_text(text)
        row["signature"] = signature.tobytes()
        row["figures"] = hash_figures(text).tobytes()


def _schema() -> Any:
    import pyarrow as pa

    types = {
        "line": pa.int64(), "part": pa.int32(), "months": pa.int32(), "characters": pa.int32(),
        "group": pa.uint64(), "digest": pa.binary(), "signature": pa.binary(),
        "figures": pa.binary(), "domains": pa.list_(pa.string()),
        "charges": pa.list_(pa.string()),
    }  # fmt: skip
    return pa.schema({name: types.get(name, pa.string()) for name in COLUMNS})
