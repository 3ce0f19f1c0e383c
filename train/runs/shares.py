"""How a step's batch is cut up among processes and passes; torch-free, for planning."""

from __future__ import annotations


def cut_batch(
    groups: int, size: int, *, processes: int, micro_batch: int | None, what: str
) -> tuple[int, int]:
    """Rows of one pass and passes of one step, for one process.

    Args:
        groups: whole units of the step's batch; one is never split between processes.
        size: rows of a group.
        processes: processes that share the step.
        micro_batch: rows a pass may have at most; a process's whole share when not given.
        what: name of the setting, for messages.

    Raises ValueError when groups don't divide among processes, or a share into passes.
    """
    if groups % processes:
        raise ValueError(
            f"{what} = {groups} does not divide among {processes} processes, and a group is never "
            "split: choose a multiple, or another number of processes"
        )
    share = groups // processes * size
    one_pass = min(micro_batch or share, share)
    if share % one_pass:
        raise ValueError(
            f"micro_batch {one_pass} does not divide a process's share of {share}: choose a divisor"
        )
    return one_pass, share // one_pass
