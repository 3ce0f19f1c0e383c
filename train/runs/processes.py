"""One run on several processes: who writes, who waits, and how wrapped models are called.

`accelerate launch` starts the processes; without it there is one, and nothing here costs anything.
The main process alone opens the run, writes trajectories and the model folder, and closes the run.
"""

from __future__ import annotations

import atexit
import functools
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object

T = TypeVar("T")

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def join_processes() -> PartialState:
    """Meet the other processes of the launch; all but the main one log warnings only."""
    state = PartialState(cpu=not torch.cuda.is_available())
    if state.num_processes > 1:  # its threads abort an interpreter that ends around them
        atexit.register(state.destroy_process_group)
    _read_numbered_cpus()
    if not state.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    return state


@functools.cache
def _read_numbered_cpus() -> None:
    """Let `torch.load` put tensors on "cpu:0", as accelerate names the device of gloo processes.

    The Trainer loads the optimiser of a checkpoint to its device by name; torch knows "cpu" only.
    """
    torch.serialization.register_package(
        100,  # after torch's own
        lambda storage: None,
        lambda storage, location: storage if location.startswith("cpu:") else None,
    )


def ask_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in every process.

    An error there is raised in all of them, so that none waits for the others for ever.
    """
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def any_process(flag: bool) -> bool:
    """Whether the flag is set in at least one process; all must ask."""
    return any(gather_object([flag]))


def call_within(wrapper: Any, module: Any, work: Callable[[], T]) -> T:
    """Run `work`, which calls parts of `module`, as the forward pass of the module's wrapper.

    DDP, FSDP and DeepSpeed gather weights and average gradients around the wrapper's forward; parts
    called beside it would train every process on its own gradients.
    """
    if PartialState().num_processes == 1:
        return work()
    inner = module.forward

    def forward() -> T:
        module.forward = inner
        return work()

    module.forward = forward
    try:
        result: T = wrapper()
    finally:
        module.forward = inner
    return result


def leave(message: str) -> NoReturn:
    """End the run early in all processes, with the main one's message and status 1."""
    sys.exit(message if PartialState().is_main_process else 0)
