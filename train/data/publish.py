"""Make a view of trajectories fit to publish: redacted, with a card, in a folder.

    python -m train.data.publish --view_file artifacts/views/long.parquet --out artifacts/published
    hf upload owner/name artifacts/published --repo-type dataset --private

Look at the folder before it leaves the house: masking by rule misses names.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curt.config import Config, run
from curt.corpus.redaction import redact
from curt.files import whole_folder, write_parquet
from curt.html import render_text

logger = logging.getLogger(__name__)

# Columns that reveal the text before redaction: token ids decode to it, and with the hash of a
# prompt one can try every phone number until the hash matches.
_LEFT_OUT = ("token_ids", "prompt_sha256")
_HASHES = ("config_sha256", "checkpoint_sha256")

# Of the card: the size classes of the hub, columns listed by value, columns averaged.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LISTED = ("penalty", "budget", "config_sha256")
_AVERAGED = ("reward", "exact", "thinking_tokens", "budget")
_POLICY = re.compile(r"([0-9a-f]{0,12})\+(\d+)")  # as `train.data.sources` writes it


class PublishConfig(Config):
    """What to publish and where."""

    view_file: Path
    """Parquet file of `train.data.views`."""
    out: Path
    """Folder to make: the card and data/train.parquet."""
    title: str = "Length-penalised reasoning on Chinese criminal cases"
    """First line of the card."""
    license: str = "apache-2.0"
    """For the card; generated cases carry no other rights, real ones may."""


def prepare(config: PublishConfig) -> None:
    """Write the redacted table and its card to `out`, whole or not at all.

    Raises ValueError when the view can't be read or has no rows.
    """
    try:
        table = pq.read_table(config.view_file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"{config.view_file} can't be read ({error}): make it with train.data.views"
        ) from error
    if not table.num_rows:
        raise ValueError(f"{config.view_file} has no rows: make it with wider filters")
    table, redactions = redact_table(table)
    with whole_folder(config.out) as folder:
        write_parquet(folder / "data" / "train.parquet", table)
        (folder / "README.md").write_text(
            render_card(table, redactions, title=config.title, license_id=config.license),
            encoding="utf-8",
        )
    logger.info("%d rows in %s, redacted: %s", table.num_rows, config.out, dict(redactions))


def redact_table(table: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """The table with all text redacted, nested text included, and how much of each kind it held.

    Columns that give the text away are left out. Raises ValueError on binary columns.
    """
    table = table.drop_columns([name for name in _LEFT_OUT if name in table.column_names])
    table = table.replace_schema_metadata(None)  # other tools may keep text there
    counts: Counter[str] = Counter()

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(cleaned(item) for item in value)
        if not isinstance(value, str):
            return value
        text, found = redact(value)
        counts.update(found)
        return text

    for index, column in enumerate(table.schema):
        if column.name in _HASHES or pa.types.is_primitive(column.type):
            continue
        if _holds_bytes(column.type):
            raise ValueError(
                f"column {column.name!r} is binary and can't be redacted: leave it out"
            )
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        values = [cleaned(value) for value in table.column(index).to_pylist()]
        table = table.set_column(index, column.with_type(kind), pa.array(values, kind))
    return table, counts


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return "binary" in str(kind)  # binary, large_binary, binary_view, fixed_size_binary[n]


def render_card(
    table: pa.Table, redactions: Mapping[str, int], *, title: str, license_id: str
) -> str:
    """A README.md with the metadata block that the hub reads."""
    from huggingface_hub import DatasetCardData

    known = {
        name: [value for value in table.column(name).to_pylist() if value is not None]
        for name in table.column_names
    }
    rewards = [n.removeprefix("weighted_") for n in table.column_names if n.startswith("weighted_")]
    return render_text(
        "dataset.md.j2",
        metadata=DatasetCardData(
            language=["zh"],
            license=license_id,
            task_categories=["text-generation"],
            size_categories=[
                next((name for limit, name in _SIZES if table.num_rows < limit), "n>1M")
            ],
            tags=["legal", "grpo", "reasoning", "length-penalty"],
            configs=[{"config_name": "default", "data_files": "data/train.parquet"}],
        ),
        title=title,
        table=table,
        listed=[(name, sorted(set(known[name]))) for name in _LISTED if name in known],
        policies=_policies(known),
        means=[(name, fmean(known[name])) for name in _AVERAGED if known.get(name)],
        rewards=[(name, _weights(table, name)) for name in rewards],
        redactions=redactions,
    )


def _policies(known: Mapping[str, Sequence[Any]]) -> list[str]:
    """Models that wrote completions; checkpoints of a run with the updates made since."""
    names = [name for name in known if name == "source" or name.endswith("_model")]
    sources = {value for name in names for value in known[name] if value}
    updates: dict[str, list[int]] = {}
    others = []
    for source in sorted(sources):
        if match := _POLICY.fullmatch(source):
            updates.setdefault(match[1], []).append(int(match[2]))
        else:
            others.append(source)
    return others + [
        f"checkpoint `{checkpoint or 'unknown'}` after {min(steps)} to {max(steps)} updates"
        for checkpoint, steps in updates.items()
    ]


def _weights(table: pa.Table, reward: str) -> list[str]:
    """Weights of a reward, as they show where its raw value is not 0."""
    if f"raw_{reward}" not in table.column_names:
        return []
    raw, weighted = (table.column(f"{kind}_{reward}").to_pylist() for kind in ("raw", "weighted"))
    both = zip(raw, weighted, strict=True)
    weights = sorted({round(w / r, 6) for r, w in both if r and w is not None})
    return [f"{weight:.3g}" for weight in weights]


if __name__ == "__main__":
    run(PublishConfig, prepare)
