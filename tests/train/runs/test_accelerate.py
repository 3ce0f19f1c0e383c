"""The launch configurations, as accelerate itself reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tests.train.training_runs import ROOT

FOLDER = ROOT / "configs" / "accelerate"
KINDS = {
    "single-gpu": (DistributedType.NO, 1, 1),
    "ddp": (DistributedType.MULTI_GPU, 1, 8),
    "multi-node": (DistributedType.MULTI_GPU, 2, 16),
    "zero2-offload": (DistributedType.DEEPSPEED, 1, 8),
    "zero3": (DistributedType.DEEPSPEED, 1, 8),
    "fsdp2": (DistributedType.FSDP, 1, 8),
    "cpu-ddp": (DistributedType.MULTI_GPU, 1, 2),
}
ZERO_STAGES = {"zero2-offload": 2, "zero3": 3}


def test_every_file_is_one_of_the_known_kinds():
    assert {f.stem for f in FOLDER.glob("*.yaml")} == KINDS.keys()
    assert {f.stem for f in FOLDER.glob("*.json")} == ZERO_STAGES.keys()


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_it_and_finds_what_it_promises(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    kind, machines, processes = KINDS[name]
    assert DistributedType(config.distributed_type) == kind
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert config.use_cpu == (name == "cpu-ddp")


@pytest.mark.parametrize("name", ZERO_STAGES)
def test_deepspeed_files_leave_sizes_to_the_recipe(name):
    launched = load_config_from_file(str(FOLDER / f"{name}.yaml")).deepspeed_config
    file = ROOT / launched["deepspeed_config_file"]
    assert file == FOLDER / f"{name}.json"
    settings = json.loads(Path(file).read_bytes())
    zero = settings["zero_optimization"]
    assert zero["stage"] == ZERO_STAGES[name]
    assert launched["zero3_init_flag"] == (zero["stage"] == 3)
    assert ("offload_optimizer" in zero) == (name == "zero2-offload")
    # a figure here that the recipe contradicts would end the run
    sizes = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    assert {settings[size] for size in sizes} == {"auto"}
    # `gather_weights` needs the whole model in the main process
    whole = zero.get("stage3_gather_16bit_weights_on_model_save", zero["stage"] < 3)
    assert whole is True
    # accelerate ignores, or refuses, what both files set
    assert launched.keys() == {
        "deepspeed_config_file", "deepspeed_multinode_launcher", "zero3_init_flag",
    }  # fmt: skip


def test_fsdp_shards_as_version_2_and_writes_whole_checkpoints():
    settings = load_config_from_file(str(FOLDER / "fsdp2.yaml")).fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_state_dict_type"] == "FULL_STATE_DICT"
