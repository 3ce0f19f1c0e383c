"""Export a model folder to ONNX Runtime GenAI for CPU serving.

    python -m compress.export_ort @configs/demo/export-ort.toml --model DIR --out DIR

The artifact is built, its tokenizer compared with the parent's, its distance from the parent
measured (`parity.json` and the manifest's evaluation), and only then does it become a model
folder. An artifact too far from its parent is refused and leaves nothing behind.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from compress.parity import measure_parity
from compress.prompts import sample_prompts
from curt.artifact import Manifest, load_manifest, parent_of, write_artifact
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.files import write_json

log = logging.getLogger(__name__)

PARITY = "parity.json"


class ExportOrtConfig(Config):
    """Settings of `python -m compress.export_ort`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    out: Path
    """Where the ONNX Runtime folder goes; an older one there is replaced when all is well."""
    precision: Literal["int4", "int8", "fp32"] = "int4"
    """Type of the weights. Activations stay float32."""
    block_size: int = 32
    """Weights that share one scale (16, 32, 64, 128 or 256); every weight's input width must be
    a multiple of it."""
    algorithm: Literal["default", "rtn", "rtn_last", "k_quant", "k_quant_last", "k_quant_mixed"] = (
        "k_quant_mixed"
    )
    """How int4 weights are rounded; "_last" keeps the output layer at int8, "_mixed" the most
    sensitive layers too. int8 always uses "default"."""
    accuracy_level: int = 4
    """Type in which a quantised product is computed: 4 int8 (fast), 1 float32."""
    max_kl: float = 0.05
    """Refuse an artifact whose mean KL from its parent, in nats a token, is above this."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSON Lines file of cases to measure parity on."""
    prompts: int = 32
    """How many prompts to measure parity on."""
    continuation_tokens: int = 96
    """Length limit of the parent's greedy continuation of each prompt."""
    seed: int = 0

    # Plain integers rather than literals, which a command line's text does not match.
    @field_validator("block_size")
    @classmethod
    def _known_block(cls, value: int) -> int:
        if value not in (16, 32, 64, 128, 256):
            raise ValueError("use 16, 32, 64, 128 or 256")
        return value

    @field_validator("accuracy_level")
    @classmethod
    def _known_level(cls, value: int) -> int:
        if value not in (1, 4):
            raise ValueError("use 4 (int8) or 1 (float32)")
        return value


def export_ort(config: ExportOrtConfig) -> dict[str, float]:
    """Build, measure and publish one ONNX Runtime artifact; returns its parity row.

    Raises ArtifactError when the parent must not be loaded, ValueError when a setting does not
    fit the model, when no cases are there, or when the artifact is too far from its parent,
    and RuntimeError when the model builder fails.
    """
    parent = load_manifest(config.model, expect="hf")
    _check_widths(config)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    cases = list(read_cases(config.cases))
    prompts = sample_prompts(cases, tokenizer, parent, config.prompts, config.seed)

    row: dict[str, float] = {}  # the manifest's evaluation, filled in before it is written
    with write_artifact(config.out, _describe(config, parent, row)) as folder:
        started = time.perf_counter()
        _build(config, folder)
        log.info("built %s in %.1f s", config.precision, time.perf_counter() - started)
        _check_tokenizers(folder, tokenizer, prompts)
        started = time.perf_counter()
        row |= measure_parity(config.model, folder, prompts, config.continuation_tokens)
        log.info("measured parity in %.1f s: %s", time.perf_counter() - started, json.dumps(row))
        # "not <=" so that a NaN is refused too
        if not row["kl"] <= config.max_kl:
            raise ValueError(
                f"{config.precision} is {row['kl']:.4g} nats a token from its parent, more than "
                f"max_kl {config.max_kl}: use a smaller block_size, another algorithm or int8"
            )
        write_json(folder / PARITY, row)
    return row


def _describe(
    config: ExportOrtConfig, parent: Manifest, evaluation: dict[str, float]
) -> dict[str, Any]:
    return {
        "format": "ort-genai",
        "precision": config.precision,
        "stage": "export_ort",
        "base": parent.base,
        "parent": parent_of(config.model),
        "prompt_version": parent.prompt_version,
        "statute_version": parent.statute_version,
        "max_fact_tokens": parent.max_fact_tokens,
        "max_thinking_tokens": parent.max_thinking_tokens,
        "config": config.model_dump(mode="json"),
        "evaluation": evaluation,
    }


def _check_widths(config: ExportOrtConfig) -> None:
    """Block quantisation pads a last, partial block silently: refuse it instead."""
    if config.precision == "fp32":
        return
    shape = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
    heads = shape["num_attention_heads"]
    widths = {
        "hidden_size": shape["hidden_size"],
        "intermediate_size": shape["intermediate_size"],
        "attention width": heads * (shape.get("head_dim") or shape["hidden_size"] // heads),
    }
    for name, width in widths.items():
        if width % config.block_size:
            raise ValueError(
                f"{name} {width} is no multiple of block_size {config.block_size}: lower it"
            )


def _build(config: ExportOrtConfig, folder: Path) -> None:
    """Run the model builder in a process of its own: it prints and imports into the top level."""
    # The last position's logits are all an engine reads; the rest cost a seventh of a demo prefill.
    options = ["hf_token=false", "prune_lm_head=true"]
    if config.precision != "fp32":
        algorithm = config.algorithm if config.precision == "int4" else "default"
        options += [
            f"block_size={config.block_size}",
            f"accuracy_level={config.accuracy_level}",
            f"algo_config={algorithm}",
        ]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
        command += ["-i", str(config.model), "-o", str(folder), "-c", cache]
        command += ["-p", config.precision, "-e", "cpu", "--extra_options", *options]
        done = subprocess.run(
            command,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    log.debug("%s", done.stdout)
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-15:])
        raise RuntimeError(f"the model builder failed with status {done.returncode}:\n{tail}")


def _check_tokenizers(folder: Path, parent: Any, prompts: Sequence[list[int]]) -> None:
    """Every tokenizer a reader of this folder may use gives the parent's ids.

    The runtime's own tokenizer reads only ByteLevel BPE and turns others into id -1 silently.
    """
    import onnxruntime_genai as og

    from curt.engines.prompt_tokenizer import PromptTokenizer

    runtime = og.Tokenizer(og.Model(str(folder)))
    light = PromptTokenizer(folder)
    for prompt in prompts:
        text = parent.decode(prompt, skip_special_tokens=False)
        expected = parent(text, add_special_tokens=False)["input_ids"]
        for name, ids in (
            ("onnxruntime-genai", [int(i) for i in runtime.encode(text)]),
            ("the exported", light.encode(text)),
        ):
            if ids != expected:
                raise ValueError(
                    f"{name} tokenizer gives other ids than the parent's: train the model with a "
                    "ByteLevel BPE tokenizer"
                )


def main(argv: list[str] | None = None) -> None:
    """Export as the configuration says."""
    config = load_config(ExportOrtConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        export_ort(config)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    log.info("%s is ready", config.out)


if __name__ == "__main__":
    main()
