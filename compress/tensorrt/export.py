"""Export a model folder for TensorRT-LLM: the unified Hugging Face checkpoint of ModelOpt.

    python -m compress.tensorrt.export @configs/demo/compress-trt.toml --model DIR --out DIR \
        --gpu h200

TensorRT-LLM's LLM API and `trtllm-serve` load the folder as it is; `launch.sh` in it starts the
server with `serve-config.yaml`, sized from the deadline. `--gpu` picks the weight format.
Quantisation, export and verification run on a CPU: the checkpoint's own numbers are run on cases,
beside its parent's, before it becomes a model folder (`verification.json`); one that differs is
refused and leaves nothing behind. Where a GPU and
TensorRT-LLM are there, it is loaded and made to write a token too; elsewhere the log says that
this was not tried.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from compress.distance import MAX_KL, compare_on
from compress.folders import count_parameters, describe_child, load_model, weight_bytes
from compress.prompts import hash_examples, sample_prompts
from compress.tensorrt.formats import FORMATS, Precision, choose_precision
from compress.tensorrt.quantise import model_widths, quantise
from compress.tensorrt.readers import write_for_older_readers
from compress.tensorrt.replay import compare_answers, load_dequantised, weight_errors
from compress.tensorrt.serve import (
    Backend,
    Sizes,
    Workload,
    build_options,
    count_kv_bytes,
    size_server,
    write_server,
)
from curt.artifact import Manifest, load_manifest, write_artifact
from curt.checkpoint import check_servable
from curt.classifier.candidates import load_prompts
from curt.config import Config, run
from curt.corpus.case import Case
from curt.corpus.store import read_cases
from curt.dialogue import (
    Prompts,
    encode,
    render_completion,
)
from curt.files import sha256, write_json

log = logging.getLogger(__name__)

VERIFICATION = "verification.json"
COMPARED_EXAMPLES = 16


class ExportTrtConfig(Config):
    """Settings of `python -m compress.tensorrt.export`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    out: Path
    """Where the checkpoint goes; an older one there is replaced when all is well."""
    gpu: str | None = None
    """The GPU to serve on (`curt.hardware`): picks the precision and sizes the server."""
    precision: Precision | None = None
    """Weight format; overrides what `gpu` would pick. Without either: fp8."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSON Lines file of cases to calibrate on."""
    compare_on: Path | None = None
    """JSON Lines file of cases to compare answers on; by default some of `cases` are set apart."""
    calibration_cases: int = 64
    """How many cases to calibrate on."""
    compared_cases: int = 16
    """How many cases to compare likelihood and answers on, none of them calibrated on."""
    max_kl: float = MAX_KL
    """Refuse a checkpoint whose mean KL from its parent, in nats a token, is above this."""
    max_nll_difference: float = 0.05
    """Refuse one that finds the cases' own completions less likely by this, in nats a token."""
    seed: int = 0
    tensor_parallel: int = 1
    """GPUs that share each layer."""
    slo_ms: float = 400.0
    """The deadline the server is sized for."""
    slo_thinking_tokens: int = 16
    """Thinking tokens that must fit the deadline at full load; the server may allow more."""
    max_batch_size: int = 32
    """Requests the server may run at once; the deadline may allow fewer."""
    gpu_memory_fraction: float = 0.9
    """Share of the free GPU memory given to the key-value cache, at most."""
    guided_decoding: Backend = "xgrammar"
    """What enforces an answer grammar in the server."""
    port: int = 8001
    check_only: bool = False
    """Only say whether `model` can be exported so."""


def export_trt(config: ExportTrtConfig) -> None:
    """Quantise, export, verify and publish one checkpoint.

    Raises ArtifactError when the parent must not be loaded, ValueError when a setting does not
    fit the model or the GPU, no cases are there, or the checkpoint differs from its parent.
    """
    parent = load_manifest(config.model, expect="hf")
    check_servable(
        config.model, parent.max_fact_tokens, parent.max_thinking_tokens, parent.prompt_version
    )
    shape = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
    precision, reason = choose_precision(config.gpu, config.precision, widths=model_widths(shape))
    log.info("precision %s: %s", precision, reason)
    _check_parallel(config, shape)
    if config.check_only:
        return
    _size(config, parent, shape, precision)  # a deadline out of reach is refused before the work
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    asked = load_prompts(config.model, tokenizer, parent.max_fact_tokens)
    calibrated_on, compared = _split_cases(config)
    examples = sample_prompts(
        calibrated_on,
        asked,
        parent.max_thinking_tokens,
        config.calibration_cases,
        config.seed,
        with_completion=True,
    )
    settings = config.model_dump(mode="json") | {
        "precision": precision,
        "precision_reason": reason,
        "calibration_cases": len(examples),
        "calibration_sha256": hash_examples(examples),
        "cases_sha256": sha256(config.cases),
    }
    figures: dict[str, float] = {}  # the manifest's evaluation, filled in before it is written
    describe = describe_child(
        config.model,
        parent,
        format="trtllm-hf",
        precision=precision,
        stage="export_trt",
        config=settings,
        evaluation=figures,
    )
    with write_artifact(config.out, describe) as folder:
        started = time.perf_counter()
        quantise(config.model, precision, examples, config.seed, folder)
        log.info("quantised to %s in %.1f s", precision, time.perf_counter() - started)
        tokenizer.save_pretrained(folder)
        write_for_older_readers(config.model, folder)
        started = time.perf_counter()
        figures |= _compare_models(config, parent, precision, folder, asked, examples, compared)
        _gate(config, precision, figures)
        sizes = _size(config, parent, shape, precision, weight_bytes(folder))
        options = build_options(
            sizes,
            memory_fraction=config.gpu_memory_fraction,
            tensor_parallel=config.tensor_parallel,
            guided_decoding=config.guided_decoding,
        )
        write_server(folder, options, sizes, config.port)
        figures["engine_started"] = float(start_engine(folder, examples[0]))
        log.info("verified in %.1f s: %s", time.perf_counter() - started, json.dumps(figures))
        write_json(folder / VERIFICATION, figures)
    log.info("%s is ready", config.out)


def start_engine(folder: Path, prompt: list[int]) -> bool:
    """Load the checkpoint with TensorRT-LLM and write one token, where that is possible.

    Returns False, and logs so, without a GPU or without TensorRT-LLM. Raises RuntimeError when
    the engine writes nothing; whatever it raises itself passes through.
    """
    if not torch.cuda.is_available() or importlib.util.find_spec("tensorrt_llm") is None:
        log.warning("no GPU with TensorRT-LLM here: engine start-up was not tried")
        return False
    from tensorrt_llm import LLM, SamplingParams

    with LLM(model=str(folder)) as engine:
        output = engine.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0))[0]
    if not output.outputs[0].token_ids:
        raise RuntimeError(f"TensorRT-LLM loaded {folder} but wrote no token")
    return True


def _check_parallel(config: ExportTrtConfig, shape: dict[str, Any]) -> None:
    parts = config.tensor_parallel
    for key in ("num_attention_heads", "intermediate_size"):
        if parts < 1 or shape[key] % parts:
            raise ValueError(f"tensor_parallel {parts} does not divide {key} {shape[key]}")


def _split_cases(config: ExportTrtConfig) -> tuple[list[Case], list[Case]]:
    """Cases to draw calibration from, and cases to compare answers on: apart, if there are more."""
    cases = list(read_cases(config.cases))
    draw = random.Random(config.seed)
    if config.compare_on:
        others = list(read_cases(config.compare_on))
        return cases, draw.sample(others, min(config.compared_cases, len(others)))
    draw.shuffle(cases)
    compared = cases[: min(config.compared_cases, len(cases))]
    rest = cases[len(compared) :]
    if not rest:
        log.warning("only %d cases: answers are compared on calibration cases", len(cases))
        rest = cases
    return rest, compared


def _compare_models(
    config: ExportTrtConfig,
    parent: Manifest,
    precision: Precision,
    folder: Path,
    asked: Prompts,
    examples: Sequence[list[int]],
    cases: Sequence[Case],
) -> dict[str, float]:
    source = load_model(config.model)
    child = load_dequantised(folder, precision)
    seen = examples[:COMPARED_EXAMPLES]
    errors, most = weight_errors(source, child, seen), FORMATS[precision].most_error
    if wrong := [f"{name} ({error:.1%})" for name, error in errors.items() if not error <= most]:
        raise ValueError(
            f"{precision} moves {', '.join(wrong[:5])} from its parent's, more than {most:.1%}: "
            "the quantiser packed it wrongly; use another precision"
        )
    distance = compare_on(source, child, seen).to_row()
    distance["worst_weight_error"] = max(errors.values())
    if not cases:
        return distance
    prompts: list[list[int]] = []
    completions: list[list[int]] = []
    for case in cases:
        prompts.append(asked.encode(case.fact, parent.max_thinking_tokens).ids)
        answer = render_completion(next(iter(case.reasonings.values()), ""), case.verdict)
        completions.append(encode(asked.tokenizer, answer))
    answers = compare_answers(
        source, child, asked.tokenizer, prompts, completions, cases, parent.max_thinking_tokens
    )
    return distance | answers


def _gate(config: ExportTrtConfig, precision: Precision, figures: dict[str, float]) -> None:
    remedy = "calibrate on more cases or use another precision"
    # "not <=" so that a NaN is refused too
    if not figures["kl"] <= config.max_kl:
        raise ValueError(
            f"{precision} is {figures['kl']:.4g} nats a token from its parent, more than max_kl "
            f"{config.max_kl}: {remedy}"
        )
    if "nll_difference" in figures and not figures["nll_difference"] <= config.max_nll_difference:
        raise ValueError(
            f"{precision} finds the cases {figures['nll_difference']:.4g} nats a token less likely "
            f"than its parent, more than max_nll_difference {config.max_nll_difference}: {remedy}"
        )


def _size(
    config: ExportTrtConfig,
    parent: Manifest,
    shape: dict[str, Any],
    precision: Precision,
    written_bytes: int | None = None,
) -> Sizes:
    """The server's sizes; before the weights are written, from the least they can take."""
    parameters = count_parameters(config.model)
    least = round(parameters * FORMATS[precision].least_bits / 8)
    work = Workload(
        slo_ms=config.slo_ms,
        fact_tokens=parent.max_fact_tokens,
        thinking_tokens=parent.max_thinking_tokens,
        context_tokens=shape["max_position_embeddings"],
        weight_bytes=least if written_bytes is None else written_bytes,
        parameters=parameters,
        kv_bytes_per_token=count_kv_bytes(shape),
        precision=precision,
        tensor_parallel=config.tensor_parallel,
        slo_thinking_tokens=config.slo_thinking_tokens,
    )
    return size_server(work, config.gpu, config.max_batch_size, config.gpu_memory_fraction)


if __name__ == "__main__":
    run(ExportTrtConfig, export_trt, expected=(OSError, RuntimeError, ValueError))
