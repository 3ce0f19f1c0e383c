"""Export a model folder to ONNX Runtime GenAI, for CPU serving or for CUDA.

    python -m compress.onnx.export --precision int4 --model DIR --out DIR

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
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from compress.distance import MAX_KL
from compress.folders import describe_child
from compress.onnx.builder import (
    build_graph,
    check_graph,
    check_model,
    check_room,
    check_same_weights,
)
from compress.onnx.parity import measure_parity
from compress.onnx.recipes import DEFAULT_RECIPE, RECIPES, Device, Recipe
from compress.onnx.speculation import add_likeliest
from compress.prompts import hash_examples, sample_prompts
from curt.artifact import load_manifest, write_artifact
from curt.checkpoint import check_servable
from curt.classifier.candidates import load_prompts
from curt.config import Config, run
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
    precision: str = DEFAULT_RECIPE
    """The recipe: one of `compress.onnx.recipes.RECIPES`."""
    block_size: int | None = None
    """Weights that share one scale (16, 32, 64, 128 or 256); every weight's input width must be a
    multiple of it. Left out, the recipe's own."""
    tell_likeliest: bool = True
    """Let the graph tell the likeliest token after each of the last tokens, so that an engine can
    check guesses (`compress.onnx.speculation`); CPU only."""
    max_kl: float = MAX_KL
    """Refuse an artifact whose mean KL from its parent, in nats a token, is above this."""
    cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """JSON Lines file of cases to measure parity on."""
    prompts: int = 32
    """How many prompts to measure parity on."""
    continuation_tokens: int = 96
    """Length limit of the parent's greedy continuation of each prompt."""
    calibration: Path = Path("artifacts/demo/corpus/train.jsonl")
    """JSON Lines file of cases that int4 calibrates on; keep it apart from `cases`."""
    calibration_cases: int = Field(64, ge=1)
    """How many cases to calibrate on."""
    seed: int = 0
    check_only: bool = False
    """Only say whether `model` can be exported so."""

    @model_validator(mode="after")
    def _agrees(self) -> ExportOrtConfig:
        if self.precision not in RECIPES:
            raise ValueError(f"precision {self.precision}: use one of {', '.join(RECIPES)}")
        _ = self.recipe  # refuses a device or a block size that does not suit it
        return self

    @property
    def recipe(self) -> Recipe:
        """How the artifact is made."""
        return RECIPES[self.precision](self.device, self.block_size)


def export_ort(config: ExportOrtConfig) -> None:
    """Build, measure and publish one ONNX Runtime artifact.

    Raises ArtifactError when the parent must not be loaded; ValueError when a setting does not
    fit the model, when cases to measure or calibrate on are not there, or when the artifact is
    too far from its parent; OSError when the disk is full; RuntimeError when the model builder
    fails. None of these leaves anything behind.
    """
    parent, recipe = load_manifest(config.model, expect="hf"), config.recipe
    check_model(config.model, recipe)
    check_servable(
        config.model, parent.max_fact_tokens, parent.max_thinking_tokens, parent.prompt_version
    )
    if config.check_only:
        return
    check_room(config.model, config.out, recipe)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    asked = load_prompts(config.model, tokenizer, parent.max_fact_tokens)
    cases = list(read_cases(config.cases))
    prompts = sample_prompts(cases, asked, parent.max_thinking_tokens, config.prompts, config.seed)

    row: dict[str, float] = {}  # the manifest's evaluation, filled in before it is written
    settings = config.model_dump(mode="json") | {"block_size": recipe.block_size}
    with contextlib.ExitStack() as stack:
        source = config.model
        weights: Mapping[str, QuantisedWeight] = {}
        if recipe.calibrates:
            shape = json.loads((config.model / "config.json").read_bytes())
            samples = sample_prompts(
                list(read_cases(config.calibration)),
                asked,
                parent.max_thinking_tokens,
                config.calibration_cases,
                config.seed,
                with_completion=True,
                longest=shape["max_position_embeddings"],
            )
            settings["calibration_sha256"] = hash_examples(samples)
            source = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            started = time.perf_counter()
            weights = recipe.calibrate(config.model, samples, source)
            log.info("calibrated on %d in %.1f s", len(samples), time.perf_counter() - started)
        describe = describe_child(
            config.model,
            parent,
            format="ort-genai",
            precision=recipe.precision,
            stage="export_ort",
            config=settings,
            evaluation=row,
        )
        folder = stack.enter_context(write_artifact(config.out, describe))
        started = time.perf_counter()
        build_graph(source, folder, recipe)
        log.info("built %s in %.1f s", config.precision, time.perf_counter() - started)
        counts = check_graph(folder, recipe)
        if weights:
            from compress.onnx.checkpoint import check_graph_weights

            check_graph_weights(folder / "model.onnx", weights)
        if config.tell_likeliest and config.device == "cpu":
            add_likeliest(folder / "model.onnx")
        with _runnable(config, source, folder) as runnable:
            _check_tokenizer(runnable, tokenizer, prompts)
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
                f"max_kl {config.max_kl}: use a smaller block_size or another precision"
            )
        write_json(folder / PARITY, row)
    log.info("%s is ready", config.out)


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


def _check_tokenizer(folder: Path, parent: Any, prompts: Sequence[list[int]]) -> None:
    """The tokenizer of our engines gives the parent's ids, or ValueError is raised."""
    from curt.engines.tokenizer import PromptTokenizer

    light = PromptTokenizer(folder)
    for prompt in prompts:
        text = parent.decode(prompt, skip_special_tokens=False)
        if light.encode(text) != parent(text, add_special_tokens=False)["input_ids"]:
            raise ValueError(
                f"{folder / 'tokenizer.json'} gives other ids than the parent's: use a checkpoint "
                "whose tokenizer falls back to bytes"
            )


if __name__ == "__main__":
    run(ExportOrtConfig, export_ort, expected=(OSError, RuntimeError, ValueError))
