"""The folder of an unfinished distillation: checkpoints that are whole, and what they belong to."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curt.files import sha256, whole_folder, write_json

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

STAGE = "distill"
STATE, SEAL = "state.pt", "checkpoint.json"
KEPT_CHECKPOINTS = 2


def open_run(out: Path, settings: dict[str, Any]) -> Path:
    """The folder where the run that will produce `out` keeps its checkpoints.

    A run with other settings or inputs, or of another kind, is moved aside with a warning that
    names what changed; nothing is deleted but a save that was cut short. Raises ValueError when
    the record of an unfinished run can't be read.
    """
    run = out.with_name(f"{out.name}.run")
    recorded = run / "config.json"
    # Neither how often a run is saved nor how its folder is spelled changes what it makes.
    passing = ("checkpoint_steps", "out")
    config = {k: v for k, v in settings.items() if k not in passing} | {"stage": STAGE}
    if run.exists():
        try:
            previous = json.loads(recorded.read_bytes()) if recorded.is_file() else {}
        except ValueError as error:
            raise ValueError(f"{recorded} is damaged: delete {run} to start anew") from error
        names = config.keys() | previous.keys()
        if changed := sorted(k for k in names if config.get(k) != previous.get(k)):
            number = 1
            while (kept := run.with_name(f"{run.name}.{number}")).exists():
                number += 1
            run.rename(kept)
            logger.warning(
                "starting anew: the run there was made with other %s; it is kept in %s",
                ", ".join(changed),
                kept,
            )
    if not run.exists():
        write_json(recorded, config)
    for unfinished in run.glob(".checkpoint-*"):
        shutil.rmtree(unfinished)
    return run


def write_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Save the state after a step, whole or not at all, and drop all but the newest two."""
    import torch

    with whole_folder(run / f"checkpoint-{state['step']:08d}") as folder:
        torch.save(state, folder / STATE)
        write_json(folder / SEAL, {"sha256": sha256(folder / STATE)})
    for old in sorted(run.glob("checkpoint-*"))[:-KEPT_CHECKPOINTS]:
        shutil.rmtree(old)
    logger.info("checkpoint after step %d", state["step"])


def read_checkpoint(run: Path, device: torch.device) -> dict[str, Any] | None:
    """The newest state of a run, or None. Raises ValueError when its checkpoint is damaged."""
    import torch

    found = sorted(run.glob("checkpoint-*"))
    if not found:
        return None
    folder = found[-1]
    try:
        sealed = json.loads((folder / SEAL).read_bytes())["sha256"] == sha256(folder / STATE)
    except (OSError, ValueError, KeyError):
        sealed = False
    if not sealed:
        raise ValueError(
            f"{folder} is damaged: delete it to go on from the checkpoint before, or from the start"
        )
    state: dict[str, Any] = torch.load(folder / STATE, map_location=device, weights_only=True)
    return state


def close_run(run: Path) -> None:
    """Drop what only a resume needs, once the model folder is written."""
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (run / "config.json").unlink()
    if not any(run.iterdir()):
        run.rmdir()


@contextlib.contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second one interrupts at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    previous = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
