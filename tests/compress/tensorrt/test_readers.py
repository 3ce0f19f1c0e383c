from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.tensorrt.readers import rope_theta, write_for_older_readers
from curt.files import write_json

OLD_FOLDER = os.environ.get("CURT_OLD_TRANSFORMERS", "")
READ_BACK = """
import json, sys
sys.path.insert(0, sys.argv[1])
import transformers
from transformers import AutoConfig, AutoTokenizer
folder = sys.argv[2]
config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
print(json.dumps([transformers.__version__, config.rope_theta, tokenizer.eos_token]))
"""


def test_the_rotary_base_is_found_in_both_generations_of_configurations() -> None:
    assert rope_theta({"rope_parameters": {"rope_theta": 5e4}}) == 5e4
    assert rope_theta({"rope_theta": 1e6}) == 1e6
    assert rope_theta({}) is None


@pytest.fixture
def patched(micro_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(micro_model, folder)
    write_for_older_readers(micro_model, folder)
    return folder


def test_older_readers_find_the_rotary_base_and_a_tokenizer_they_know(
    micro_model: Path, patched: Path
) -> None:
    before = json.loads((micro_model / "config.json").read_text())
    after = json.loads((patched / "config.json").read_text())
    assert "rope_theta" not in before
    assert after == before | {"rope_theta": 50_000.0}
    settings = json.loads((patched / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in settings


def test_scaling_and_listed_special_tokens_are_said_the_old_way(
    micro_model: Path, patched: Path, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(micro_model, parent)
    config = json.loads((parent / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 5e4, "rope_type": "yarn", "factor": 4.0}
    write_json(parent / "config.json", config)
    settings = json.loads((patched / "tokenizer_config.json").read_text())
    write_json(patched / "tokenizer_config.json", settings | {"extra_special_tokens": ["<a>"]})
    write_json(patched / "config.json", config)
    write_for_older_readers(parent, patched)
    written = json.loads((patched / "config.json").read_text())
    assert written["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    settings = json.loads((patched / "tokenizer_config.json").read_text())
    assert settings["additional_special_tokens"] == ["<a>"]


@pytest.mark.slow
@pytest.mark.skipif(not OLD_FOLDER, reason="CURT_OLD_TRANSFORMERS names no folder")
def test_the_oldest_transformers_reads_what_was_meant(patched: Path) -> None:
    """The folder holds `pip install --no-deps --target` of transformers 4.57.1 and its hub."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READ_BACK, OLD_FOLDER, str(patched)],
        capture_output=True,
        text=True,
        check=True,
    )
    read = json.loads(done.stdout.splitlines()[-1])
    assert read == ["4.57.1", 50_000.0, "<|im_end|>"]
