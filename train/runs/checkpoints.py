"""Runs that survive Ctrl-C and kill -9: only a finished checkpoint counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curt.files import sha256, write_json

CONTINUED = ("checkpoint-*", "round-*")
"""What a training goes on from."""


def run_folder(out: Path) -> Path:
    """Where the run that will produce `out` keeps what it needs."""
    return out.with_name(f"{out.name}.run")


def open_run(
    out: Path,
    settings: dict[str, Any],
    inputs: dict[str, Path],
    continued: Sequence[str] = CONTINUED,
) -> Path:
    """The folder where the run that will produce `out` keeps its checkpoints and trajectories.

    `inputs` are files the run depends on; their hashes are recorded with the settings. What a
    finished run left is moved aside, never deleted; so are the samples of one with other settings
    that ended before there was anything to go on from. Raises ValueError when an unfinished run
    with other settings or inputs left a file that matches one of the patterns `continued`.
    """
    run = run_folder(out)
    recorded = run / "config.json"
    config = {**settings, "inputs": {name: sha256(path) for name, path in inputs.items()}}
    previous = json.loads(recorded.read_bytes()) if recorded.is_file() else {}
    names = config.keys() | previous.keys()
    changed = sorted(k for k in names if config.get(k) != previous.get(k))
    if previous and changed and any(next(run.glob(name), None) for name in continued):
        raise ValueError(
            f"{run} holds an unfinished run with other {', '.join(changed)}: "
            "delete it to start anew, or give another --out"
        )
    samples_of_others = changed and next(run.glob("trajectories/*"), None)
    if run.exists() and (not previous or samples_of_others):
        _move_aside(run)
    write_json(recorded, config)
    return run


def _move_aside(run: Path) -> None:
    number = 1
    while (kept := run.with_name(f"{run.name}.{number}")).exists():
        number += 1
    run.rename(kept)


def last_checkpoint(run: Path) -> Path | None:
    """The newest finished checkpoint; broken ones of a killed run are removed.

    The trainer writes `trainer_state.json` last, so a checkpoint without a readable one is
    unfinished.
    """
    found = sorted(run.glob("checkpoint-*"), key=checkpoint_step)
    for checkpoint in reversed(found):
        try:
            json.loads((checkpoint / "trainer_state.json").read_bytes())
        except (FileNotFoundError, json.JSONDecodeError):
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def saved_processes(checkpoint: Path) -> int:
    """How many processes wrote the checkpoint: each leaves the state of its random generators."""
    return len(list(checkpoint.glob("rng_state*.pth")))


def share_random_state(checkpoint: Path, processes: int) -> None:
    """Let any number of processes resume with the main process's random state.

    For training that draws nothing but the order of its data, which all processes must agree on.
    """
    states = sorted(checkpoint.glob("rng_state*.pth"))  # "_0.pth" sorts before "_1.pth"
    names = (
        ["rng_state.pth"] if processes == 1 else [f"rng_state_{n}.pth" for n in range(processes)]
    )
    for name in names:
        if states and not (checkpoint / name).exists():
            shutil.copyfile(states[0], checkpoint / name)
