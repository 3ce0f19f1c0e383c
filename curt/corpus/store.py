"""Case files: one JSON object a line, as `Case.to_json` writes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from curt.files import write_atomic
from curt.schema import Case


def write_cases(path: Path, cases: Iterable[Case]) -> int:
    """Write cases atomically and return how many there were."""
    lines = [json.dumps(case.to_json(), ensure_ascii=False) for case in cases]
    write_atomic(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def read_cases(path: Path, limit: int | None = None) -> Iterator[Case]:
    """Yield up to `limit` cases of a file.

    Raises ValueError naming file and line when a line is no case: these files are our own
    output, so a bad line means a damaged file, not dirty data.
    """
    if not path.is_file():
        raise ValueError(f"no case file {path}: make one with `python -m curt.corpus`")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if limit is not None and number > limit:
                return
            try:
                case = Case.from_json(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}:{number} is no case ({type(error).__name__}): make the corpus again"
                ) from error
            yield case
