"""What older readers make of a checkpoint's settings, and how to say them so both agree.

TensorRT-LLM 1.2 reads models with transformers 4.57.1 (its `requirements.txt`), this project
writes them with transformers 5. Two settings are corrupted in between without a word: the
rotary base, which 4.57 reads from the top level only and otherwise takes for 10,000; and the
tokenizer class that 5 writes, which 4.57 does not know. A third breaks loudly: 4.57 wants
`extra_special_tokens` as a table, 5 writes a list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curt.files import write_json

TOKENIZER_CLASS = "PreTrainedTokenizerFast"
OLD_ROPE_DEFAULT = 10_000.0


def rope_theta(config: Mapping[str, Any]) -> float | None:
    """The rotary base as transformers 5 reads it: nested, else top level."""
    nested = (config.get("rope_parameters") or {}).get("rope_theta")
    base = config.get("rope_theta") if nested is None else nested
    return None if base is None else float(base)


def write_for_older_readers(parent: Path, folder: Path) -> None:
    """Add what older readers need to `folder`'s settings; newer ones read the same as before."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    source = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    base = rope_theta(source)
    config["rope_theta"] = OLD_ROPE_DEFAULT if base is None else base
    scaling = rope_scaling(source)
    if scaling:
        config["rope_scaling"] = scaling
    write_json(path, config)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = TOKENIZER_CLASS
    extra = settings.pop("extra_special_tokens", None)
    if isinstance(extra, list) and extra:
        settings["additional_special_tokens"] = extra
    elif isinstance(extra, dict):
        settings["extra_special_tokens"] = extra
    write_json(path, settings)


def rope_scaling(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rotary scaling as older readers want it; None where there is none."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        return {k: v for k, v in rope.items() if k != "rope_theta"}
    return config.get("rope_scaling")
