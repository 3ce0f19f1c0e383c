"""One function over many shards: in this process, on `datasets`' processes, or on Ray Data.

Each shard's work writes a file of its own and gives back its path, so that results do not depend
on what ran where, and a stopped build finds what is done. On a cluster the build's folders must lie
on storage that every node sees under the same path.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from tqdm import tqdm

Backend = Literal["serial", "datasets", "ray"]
T = TypeVar("T")

logger = logging.getLogger(__name__)


def map_shards(
    work: Callable[[T], Path],
    tasks: Sequence[T],
    *,
    backend: Backend = "serial",
    workers: int = 2,
    label: str = "",
) -> list[Path]:
    """`work` of each task, in their order, with a progress bar.

    Tasks and `work` must pickle. Raises the first error of a worker.
    """
    if backend == "serial" or len(tasks) < 2:
        return [work(task) for task in tqdm(tasks, desc=label, disable=not tasks)]
    packed = [pickle.dumps((work, task)) for task in tasks]
    run = _map_with_datasets if backend == "datasets" else _map_with_ray
    results = run(packed, min(workers, len(tasks)), label)
    for result in results:
        if result["error"]:
            raise pickle.loads(result["error"])  # noqa: S301
    return [Path(result["path"]) for result in results]


def _run(row: dict[str, Any]) -> dict[str, Any]:
    """The path, or the error to raise: frameworks wrap what workers raise, each in its own way."""
    work, task = pickle.loads(row["task"])  # noqa: S301, our own of a moment ago
    try:
        return {"path": str(work(task)), "error": b""}
    except (OSError, ValueError) as error:
        return {"path": "", "error": pickle.dumps(error)}


def _map_with_datasets(packed: list[bytes], workers: int, label: str) -> list[dict[str, Any]]:
    import datasets

    table = datasets.Dataset.from_dict({"task": packed})
    done = table.map(
        _run,
        num_proc=workers,
        remove_columns=["task"],
        load_from_cache_file=False,
        desc=label,
    )
    return list(done)


def _map_with_ray(packed: list[bytes], workers: int, label: str) -> list[dict[str, Any]]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    import ray

    logger.info("%s: %d shards on Ray Data", label, len(packed))
    if not ray.is_initialized():  # it stays up for the next map and ends with this process
        cluster = "RAY_ADDRESS" in os.environ  # else Ray starts on this machine
        ray.init(
            num_cpus=None if cluster else workers,
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    rows = ray.data.from_items([{"task": task} for task in packed], override_num_blocks=len(packed))
    return list(rows.map(_run).take_all())
