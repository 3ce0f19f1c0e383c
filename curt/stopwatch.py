"""Run a stage's command and record how long it took and how much memory.

    python -m curt.stopwatch artifacts/demo/timing.json warm-start -- python -m train.sft ...

The figures go into the JSON file only when the command succeeds; its exit code is passed on.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from curt.files import write_json


def main(argv: list[str] | None = None) -> int:
    """Run the command of `argv` and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) < 4 or arguments[2] != "--":
        sys.exit("usage: python -m curt.stopwatch FILE STAGE -- COMMAND [ARG ...]")
    file, stage, command = Path(arguments[0]), arguments[1], arguments[3:]
    # Ctrl-C reaches the command too, which may save its work first: only wait for it.
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    started = time.monotonic()
    try:
        code = subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, previous)
    if code == 0:
        peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        record(file, stage, time.monotonic() - started, peak_kib / 1024)
    return code if code >= 0 else 128 - code  # as a shell reports a signal


def record(file: Path, stage: str, seconds: float, peak_mib: float) -> None:
    """Set one stage's figures in a timing file, leaving the others.

    `peak_mib` is the most resident memory that any single process of the stage held.
    """
    timings = json.loads(file.read_bytes()) if file.is_file() else {}
    row = {"seconds": round(seconds, 1), "peak_mib": round(peak_mib)}
    write_json(file, {**timings, stage: row})


if __name__ == "__main__":
    sys.exit(main())
