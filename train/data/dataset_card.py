"""The card that goes with a published dataset: what it holds, how it came about, what to mind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import pyarrow as pa

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LISTED = ("penalty", "budget", "config_sha256")
_AVERAGED = ("reward", "exact", "thinking_tokens", "budget")
_MOST_VALUES = 8
_POLICY = re.compile(r"([0-9a-f]{0,12})\+(\d+)")  # as `train.data.candidates` writes it


def render_card(
    table: pa.Table, redactions: Mapping[str, int], *, title: str, license_id: str
) -> str:
    """A README.md with the metadata block that the hub reads."""
    rows = table.num_rows
    size = next((name for limit, name in _SIZES if rows < limit), "n>1M")
    head = {
        "language": ["zh"],
        "license": license_id,
        "task_categories": ["text-generation"],
        "size_categories": [size],
        "tags": ["legal", "grpo", "reasoning", "length-penalty"],
        "configs": [{"config_name": "default", "data_files": "data/train.parquet"}],
    }
    # JSON is YAML: no title can break out of its line.
    block = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    parts = [
        f"---\n{block}\n---\n\n# {title}",
        "Completions of a small legal model on Chinese criminal cases: from the facts to charges, "
        "articles and sentence, with the reasoning and its rewards. For research: no legal advice, "
        "and no basis for a decision about a person.",
        f"## Rows\n\n{rows} rows.\n\n{_columns(table)}",
        f"## How they were made\n\n{_origin(table)}",
        f"## Personal data\n\n{_privacy(redactions)}",
    ]
    return "\n\n".join(parts) + "\n"


def _columns(table: pa.Table) -> str:
    lines = ["| column | type | missing |", "|---|---|---|"]
    lines += [
        f"| `{column.name}` | {column.type} | {table.column(column.name).null_count} |"
        for column in table.schema
    ]
    return "\n".join(lines)


def _origin(table: pa.Table) -> str:
    lines = []
    for name in _LISTED:
        if name in table.column_names:
            values = {v for v in table.column(name).to_pylist() if v is not None}
            lines.append(f"- `{name}`: {_join(sorted(values))}")
    if policies := _policies(table):
        lines.append(f"- sampled from: {_join(policies)}")
    for name in _AVERAGED:
        if name in table.column_names:
            known: list[Any] = [v for v in table.column(name).to_pylist() if v is not None]
            if known:
                lines.append(f"- mean `{name}`: {fmean(known):.3g}")
    for name in table.column_names:
        if name.startswith("weighted_"):
            reward = name.removeprefix("weighted_")
            weights = [f"{weight:.3g}" for weight in _weights(table, reward)]
            weighed = f", weight {_join(weights)}" if weights else ""
            lines.append(f"- rewarded for `{reward}`{weighed}")
    return "\n".join(lines) or "Not known from the columns."


def _policies(table: pa.Table) -> list[str]:
    """Models that wrote completions; checkpoints of a run with the updates made since."""
    names = [n for n in table.column_names if n == "source" or n.endswith("_model")]
    sources = {v for name in names for v in table.column(name).to_pylist() if v}
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


def _weights(table: pa.Table, reward: str) -> list[float]:
    """Weights of a reward, as they show where its raw value is not 0."""
    if f"raw_{reward}" not in table.column_names:
        return []
    raw, weighted = (table.column(f"{kind}_{reward}").to_pylist() for kind in ("raw", "weighted"))
    both = zip(raw, weighted, strict=True)
    return sorted({round(w / r, 6) for r, w in both if r and w is not None})


def _join(values: Sequence[Any]) -> str:
    more = f" and {len(values) - _MOST_VALUES} more" if len(values) > _MOST_VALUES else ""
    return ", ".join(map(str, values[:_MOST_VALUES])) + more


def _privacy(redactions: Mapping[str, int]) -> str:
    found = ", ".join(f"{count} × {kind}" for kind, count in sorted(redactions.items()))
    return (
        "Identity cards, bank accounts, mobile phones and e-mail addresses were replaced by 某 "
        f"before publishing: {found or 'none were found'}. Names are masked where a word "
        "introduces them; others, and street addresses, were not looked for."
    )
