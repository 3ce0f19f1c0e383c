"""Model folders as compression meets them: the model inside, its weight, and what a child says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from curt.artifact import ArtifactError, Manifest, parent_of
from curt.engines.transformers import load_model as load_any_model

WEIGHT_SUFFIXES = (".onnx", ".data", ".safetensors")


def load_model(folder: Path, dtype: Any = None) -> Any:
    """The model of an "hf" folder, ready to run, in float32 or a `dtype` of torch.

    Progress bars, which would stand between the lines of the log, stay off from here on.
    """
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    return load_any_model(folder, dtype=dtype or torch.float32).eval()


def describe_child(folder: Path, parent: Manifest, **own: Any) -> dict[str, Any]:
    """The manifest of an artifact made from the folder of `parent`: what it inherits, and its own.

    `own` holds further fields of `Manifest`, and those that differ from the parent's.
    """
    inherited = {
        "base", "prompt_version", "statute_version", "max_fact_tokens", "max_thinking_tokens"
    }  # fmt: skip
    return {**parent.model_dump(include=inherited), "parent": parent_of(folder), **own}


def folder_bytes(folder: Path) -> int:
    """Bytes of every file below a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


def weight_bytes(folder: Path) -> int:
    """Bytes of a model folder's files that hold weights."""
    return sum(f.stat().st_size for f in folder.iterdir() if f.suffix in WEIGHT_SUFFIXES)


def count_parameters(folder: Path) -> int:
    """Numbers in a model folder's safetensors files, read from their headers.

    Raises ArtifactError where it has none.
    """
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (it is no mapping)
                total += math.prod(handle.get_slice(name).get_shape())
    if not total:
        raise ArtifactError(f"{folder} holds no .safetensors file: give a model folder")
    return total
