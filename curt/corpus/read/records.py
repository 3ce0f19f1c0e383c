"""What becomes of a record that gives no case: it is dropped by a rule, or set aside to be mended.

Nothing is lost either way. Records that can't be read lie in `quarantine.jsonl`, each with its
file, line, reason, remedy and its own text; mended there, the file is given back with `--mended`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path


class RecordError(ValueError):
    """A record that holds no usable case; the message is the reason and never quotes the facts."""


READING_RULES = frozenset(
    {"masked charge", "several defendants", "a fine alone", "no facts", "acquitted"}
)
"""Reasons that say something about the case and can't be mended: such records are dropped."""

REMEDIES: Mapping[str, str] = tomllib.loads(
    Path(__file__).with_name("remedies.toml").read_text(encoding="utf-8")
)


def remedy_for(reason: str) -> str:
    """What mends a record with this reason."""
    return REMEDIES[reason.partition(":")[0]]  # after a colon comes the value
