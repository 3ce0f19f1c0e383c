"""Export a model folder to ONNX Runtime GenAI, for CPU serving or for CUDA.

    python -m compress.onnx.export @configs/demo/compress-ort.toml --model DIR --out DIR

The artifact is built, its graph checked, its tokenizer compared with the parent's, its distance
from the parent measured (`parity.json` and the manifest's evaluation), and only then does it
become a model folder. An artifact too far from its parent is refused and leaves nothing behind.

A CUDA artifact is not run here: its numbers are measured on a twin of the same weights whose
graph differs in one fusion, so that a CPU can run it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from compress.onnx.builder import (
    Device,
    Precision,
    Recipe,
    build_graph,
    check_graph,
    check_model,
    check_room,
    check_same_weights,
)
from compress.onnx.parity import measure_parity
from compress.onnx.picks import add_picks
from compress.prompts import sample_prompts
from curt.artifact import Manifest, load_manifest, parent_of, write_artifact
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.files import write_json

if TYPE_CHECKING:
    from compress.onnx.gptq import QuantisedWeight

log = logging.getLogger(__name__)

PARITY = "parity.json"
# Of a twin's parity row, what holds for the artifact too: its speed on a CPU does not.
_DISTANCES = (
    "max_logit_difference",
    "argmax_agreement",
    "kl",
    "nll_difference",
    "compared_prompts",
    "compared_positions",
)


class ExportOrtConfig(Config):
    """Settings of `python -m compress.onnx.export`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    out: Path
    """Where the ONNX Runtime folder goes; an older one there is replaced when all is well."""
    device: Device = "cpu"
    """What will run it. On cuda activations are float16 (float32 with precision fp32)."""
    precision: Precision = "int4"
    """Type of the weights. fp16 is for cuda only; activations stay float32 on the CPU, but for
    w8a8, where they are rounded to eight bits as well (`compress.onnx.w8a8`)."""
    block_size: int = 32
    """Weights that share one scale (16, 32, 64, 128 or 256); every weight's input width must be
    a multiple of it."""
    algorithm: Literal[
        "default",
        "rtn",
        "rtn_last",
        "k_quant",
        "k_quant_last",
        "k_quant_mixed",
        "gptq",
        "gptq_last",
    ] = "k_quant_mixed"
    """How int4 weights are rounded; "_last" keeps the output layer at int8, "_mixed" the most
    sensitive layers too. "gptq" calibrates, and rounds the output layer by k_quant. int8 always
    uses "default"."""
    symmetric: bool | None = None
    """Whether rtn and gptq grids are centred on zero, without zero points; left out, rtn's are
    and gptq's are not. The other algorithms have grids of their own."""
    picks: bool = True
    """Let the graph tell its picks for guessed answer tokens (`compress.onnx.picks`); CPU only."""
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
    calibration: Path = Path("artifacts/demo/corpus/train.jsonl")
    """JSON Lines file of cases that gptq calibrates on; keep it apart from `cases`."""
    calibration_cases: int = 64
    """How many cases to calibrate on."""
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

    @model_validator(mode="after")
    def _agrees(self) -> ExportOrtConfig:
        if self.calibrates and self.precision != "int4":
            raise ValueError(f"algorithm {self.algorithm} rounds to four bits: use precision int4")
        if self.symmetric is not None and not self.algorithm.startswith(("rtn", "gptq")):
            raise ValueError(f"symmetric: {self.algorithm} has a grid of its own; leave it out")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether weights are rounded on calibration cases rather than by the builder."""
        return self.algorithm.startswith("gptq")

    @property
    def recipe(self) -> Recipe:
        """What the model builder is asked for."""
        return Recipe(
            precision=self.precision,
            device=self.device,
            block_size=self.block_size,
            # what the builder still rounds of a calibrated model: its output layer
            algorithm=self.algorithm.replace("gptq", "k_quant"),
            accuracy_level=self.accuracy_level,
            symmetric=True if self.symmetric is None else self.symmetric,
            calibrated=self.calibrates,
        )


def export_ort(config: ExportOrtConfig) -> dict[str, float]:
    """Build, measure and publish one ONNX Runtime artifact; returns its parity row.

    Raises ArtifactError when the parent must not be loaded; ValueError when a setting does not
    fit the model, when cases to measure or calibrate on are not there, or when the artifact is
    too far from its parent; OSError when the disk is full; RuntimeError when the model builder
    fails. None of these leaves anything behind.
    """
    parent = load_manifest(config.model, expect="hf")
    check_model(config.model, config.recipe)
    check_room(config.model, config.out, config.recipe)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    cases = list(read_cases(config.cases))
    prompts = sample_prompts(cases, tokenizer, parent, config.prompts, config.seed)

    row: dict[str, float] = {}  # the manifest's evaluation, filled in before it is written
    settings = config.model_dump(mode="json")
    with contextlib.ExitStack() as stack:
        source, weights = config.model, None
        if config.calibrates:
            from compress.onnx.gptq import hash_prompts

            samples = _calibration_prompts(config, tokenizer, parent)
            settings["calibration_sha256"] = hash_prompts(samples)
            source = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            weights = _calibrate(config, samples, source)
        describe = _describe(config, parent, settings, row)
        folder = stack.enter_context(write_artifact(config.out, describe))
        started = time.perf_counter()
        build_graph(source, folder, config.recipe)
        log.info("built %s in %.1f s", config.precision, time.perf_counter() - started)
        counts = _check_build(folder, config.recipe, weights)
        if config.picks and config.device == "cpu":
            add_picks(folder / "model.onnx")
        with _runnable(config, source, folder) as runnable:
            _check_tokenizers(runnable, tokenizer, prompts)
            started = time.perf_counter()
            measured = measure_parity(config.model, runnable, prompts, config.continuation_tokens)
        if runnable != folder:
            measured = {name: measured[name] for name in _DISTANCES}
        row |= measured | counts
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
    config: ExportOrtConfig,
    parent: Manifest,
    settings: dict[str, Any],
    evaluation: dict[str, float],
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
        "config": settings,
        "evaluation": evaluation,
    }


def _calibration_prompts(
    config: ExportOrtConfig, tokenizer: Any, parent: Manifest
) -> list[list[int]]:
    """Prompts with their completions: what the model will read and what it will write."""
    if not config.calibration.is_file():
        raise ValueError(
            f"no calibration cases at {config.calibration}: name a corpus file with --calibration"
        )
    cases = list(read_cases(config.calibration))
    if not cases or config.calibration_cases < 1:
        raise ValueError(
            f"{config.calibration_cases} of {len(cases)} calibration cases in "
            f"{config.calibration}: give at least one"
        )
    limit = json.loads((config.model / "config.json").read_bytes())["max_position_embeddings"]
    samples = sample_prompts(
        cases, tokenizer, parent, config.calibration_cases, config.seed, with_completion=True
    )
    return [sample[:limit] for sample in samples]


def _calibrate(
    config: ExportOrtConfig, samples: Sequence[list[int]], folder: Path
) -> Mapping[str, QuantisedWeight]:
    """Write a quantised checkpoint into `folder` for the builder to take over as it is."""
    import torch
    from transformers import AutoModelForCausalLM

    from compress.onnx.checkpoint import write_gptq_checkpoint
    from compress.onnx.gptq import quantise_model

    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    weights = quantise_model(model, samples, config.block_size, symmetric=bool(config.symmetric))
    write_gptq_checkpoint(config.model, weights, folder)
    log.info("calibrated on %d cases in %.1f s", len(samples), time.perf_counter() - started)
    return weights


def _check_build(
    folder: Path, recipe: Recipe, weights: Mapping[str, QuantisedWeight] | None
) -> dict[str, float]:
    counts = check_graph(folder, recipe)
    if weights is not None:
        from compress.onnx.checkpoint import check_graph_weights

        check_graph_weights(folder / "model.onnx", weights)
    return counts


@contextlib.contextmanager
def _runnable(config: ExportOrtConfig, source: Path, folder: Path) -> Iterator[Path]:
    """The export itself, or for CUDA a twin of the same weights that the CPU can run."""
    if config.device == "cpu":
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        twin = Path(temporary)
        build_graph(source, twin, replace(config.recipe, fused=False))
        check_same_weights(folder, twin)
        settings = json.loads((twin / "genai_config.json").read_text(encoding="utf-8"))
        settings["model"]["decoder"]["session_options"]["provider_options"] = []
        write_json(twin / "genai_config.json", settings)
        yield twin


def _check_tokenizers(folder: Path, parent: Any, prompts: Sequence[list[int]]) -> None:
    """Every tokenizer a reader of this folder may use gives the parent's ids.

    The runtime's own tokenizer reads only ByteLevel BPE and turns others into id -1 silently.
    """
    import onnxruntime_genai as og

    from curt.engines.tokenizer import PromptTokenizer

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
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    log.info("%s is ready", config.out)


if __name__ == "__main__":
    main()
