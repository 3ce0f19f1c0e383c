"""Export a model folder for TensorRT-LLM: the unified Hugging Face checkpoint of ModelOpt.

    python -m compress.export_trt @configs/demo/export-trt.toml --model DIR --out DIR

TensorRT-LLM's LLM API and `trtllm-serve` load the folder as it is; `launch.sh` in it starts the
server. Quantisation, export and verification run on a CPU. The checkpoint is compared with its
parent tensor by tensor before it becomes a model folder (`verification.json`); one that differs
is refused and leaves nothing behind. Where a GPU and TensorRT-LLM are there, it is loaded and
made to write a token too; elsewhere the log says that this was not tried.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from compress.prompts import sample_prompts
from compress.verify_trt import (
    INT4_BLOCK,
    TOKENIZER_CLASS,
    Precision,
    rope_theta,
    verify_checkpoint,
)
from curt.artifact import Manifest, load_manifest, parent_of, write_artifact
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.dialogue import MAX_ANSWER_TOKENS
from curt.files import write_atomic, write_json

log = logging.getLogger(__name__)

VERIFICATION = "verification.json"
SERVE_CONFIG = "serve-config.yaml"
LAUNCH = "launch.sh"

# FP8 for Ada, Hopper and Blackwell; INT4 AWQ for Ampere.
_RECIPES: dict[Precision, str | None] = {
    "fp8": "FP8_DEFAULT_CFG",
    "int4_awq": "INT4_AWQ_CFG",
    "bf16": None,
}
_COMPARED_EXAMPLES = 16
_PROMPT_OVERHEAD_TOKENS = 128  # system text, budget line and chat markers, generously


class ExportTrtConfig(Config):
    """Settings of `python -m compress.export_trt`."""

    model: Path
    """The parent: a Hugging Face model folder of this project."""
    out: Path
    """Where the checkpoint goes; an older one there is replaced when all is well."""
    precision: Precision = "fp8"
    """fp8 for Ada, Hopper and Blackwell GPUs, int4_awq for Ampere, bf16 for a baseline."""
    cases: Path = Path("artifacts/demo/corpus/test.jsonl")
    """JSON Lines file of cases to calibrate on."""
    calibration_cases: int = 64
    """How many cases to calibrate on."""
    max_kl: float = 0.05
    """Refuse a checkpoint whose mean KL from its parent, in nats a token, is above this."""
    seed: int = 0
    tensor_parallel: int = 1
    """GPUs `launch.sh` shares the model over."""
    max_batch_size: int = 32
    """Requests `launch.sh` lets run at once."""
    gpu_memory_fraction: float = 0.9
    """Share of the free GPU memory given to the key-value cache."""
    port: int = 8001


def export_trt(config: ExportTrtConfig) -> dict[str, float]:
    """Quantise, export, verify and publish one checkpoint; returns the verification's figures.

    Raises ArtifactError when the parent must not be loaded, ValueError when a setting does not
    fit the model or no cases are there, and VerificationError when the checkpoint differs from
    its parent.
    """
    parent = load_manifest(config.model, expect="hf")
    _check_widths(config)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    examples = sample_prompts(
        list(read_cases(config.cases)),
        tokenizer,
        parent,
        config.calibration_cases,
        config.seed,
        with_completion=True,
    )
    figures: dict[str, float] = {}  # the manifest's evaluation, filled in before it is written
    with write_artifact(config.out, _describe(config, parent, figures)) as folder:
        started = time.perf_counter()
        figures |= _quantise_and_save(config, examples, folder)
        log.info("quantised to %s in %.1f s", config.precision, time.perf_counter() - started)
        # "not <=" so that a NaN is refused too
        if not figures["kl"] <= config.max_kl:
            raise ValueError(
                f"{config.precision} is {figures['kl']:.4g} nats a token from its parent, more "
                f"than max_kl {config.max_kl}: calibrate on more cases or use another precision"
            )
        tokenizer.save_pretrained(folder)
        _patch_for_older_readers(config.model, folder)
        _write_launcher(config, parent, folder)
        started = time.perf_counter()
        texts = [str(tokenizer.decode(ids, skip_special_tokens=False)) for ids in examples]
        figures |= verify_checkpoint(folder, config.model, config.precision, texts)
        figures["engine_started"] = float(start_engine(folder, examples[0]))
        log.info("verified in %.1f s: %s", time.perf_counter() - started, json.dumps(figures))
        write_json(folder / VERIFICATION, figures)
    return figures


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


def _describe(
    config: ExportTrtConfig, parent: Manifest, evaluation: dict[str, float]
) -> dict[str, Any]:
    return {
        "format": "trtllm-hf",
        "precision": config.precision,
        "stage": "export_trt",
        "base": parent.base,
        "parent": parent_of(config.model),
        "prompt_version": parent.prompt_version,
        "statute_version": parent.statute_version,
        "max_fact_tokens": parent.max_fact_tokens,
        "max_thinking_tokens": parent.max_thinking_tokens,
        "config": config.model_dump(mode="json"),
        "evaluation": evaluation,
    }


def _check_widths(config: ExportTrtConfig) -> None:
    if config.precision != "int4_awq":
        return
    shape = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
    heads = shape["num_attention_heads"]
    head_dim = shape.get("head_dim") or shape["hidden_size"] // heads
    for name, width in (
        ("hidden_size", shape["hidden_size"]),
        ("intermediate_size", shape["intermediate_size"]),
        ("attention width", heads * head_dim),
    ):
        if width % INT4_BLOCK:
            raise ValueError(f"{name} {width} is no multiple of {INT4_BLOCK}: use fp8 or bf16")


def _quantise_and_save(
    config: ExportTrtConfig, examples: list[list[int]], folder: Path
) -> dict[str, float]:
    """Write the checkpoint; returns how far the quantised model is from its parent."""
    from transformers import AutoModelForCausalLM

    with _quiet_modelopt():
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.bfloat16).eval()
        if not model.config.architectures:  # the exporter looks its layer names up by it
            model.config.architectures = [type(model).__name__]

        def calibrate(module: torch.nn.Module) -> None:
            for ids in examples:
                module(torch.tensor([ids]))

        recipe = _RECIPES[config.precision]
        with torch.inference_mode():
            if recipe:
                model = mtq.quantize(model, getattr(mtq, recipe), calibrate)
            source = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32).eval()
            distance = _distance(source, model, examples[:_COMPARED_EXAMPLES])
            export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)
    return distance


def _distance(
    parent: torch.nn.Module, child: torch.nn.Module, examples: list[list[int]]
) -> dict[str, float]:
    """Mean KL(parent ‖ child) in nats a token and argmax agreement, as the GPU would compute."""
    kl = agreed = positions = 0.0
    for ids in examples:
        left = parent(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        right = child(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        kl += float((left.exp() * (left - right)).sum())
        agreed += float((left.argmax(-1) == right.argmax(-1)).sum())
        positions += len(ids)
    return {"kl": kl / positions, "argmax_agreement": agreed / positions}


@contextlib.contextmanager
def _quiet_modelopt() -> Iterator[None]:
    """Send ModelOpt's prints to the debug log and drop the warnings it always gives."""
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # ModelOpt declares an older transformers than it works with.
        warnings.filterwarnings("ignore", message=r"transformers \S+ is not tested")
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        yield
    for line in printed.getvalue().splitlines():
        log.debug("modelopt: %s", line)


def _patch_for_older_readers(parent: Path, folder: Path) -> None:
    """Say things the way transformers 4.57, inside TensorRT-LLM 1.2, reads them.

    It reads the rotary base only from the top level, falling back to 10,000 without a word, and
    does not know the tokenizer class that transformers 5 writes.
    """
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    source = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    config["rope_theta"] = rope_theta(source)
    rope = source.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        config["rope_scaling"] = {k: v for k, v in rope.items() if k != "rope_theta"}
    write_json(path, config)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = TOKENIZER_CLASS
    write_json(path, settings)


def _write_launcher(config: ExportTrtConfig, parent: Manifest, folder: Path) -> None:
    """`launch.sh` and the server's configuration, sized for this model's prompts."""
    longest = (
        parent.max_fact_tokens
        + _PROMPT_OVERHEAD_TOKENS
        + parent.max_thinking_tokens
        + MAX_ANSWER_TOKENS
    )
    write_atomic(
        folder / SERVE_CONFIG,
        "# Read by trtllm-serve; see launch.sh beside it.\n"
        "enable_chunked_prefill: true\n"
        "kv_cache_config:\n"
        "  enable_block_reuse: true  # every prompt starts with the same system text\n"
        "cuda_graph_config:\n"
        "  enable_padding: true\n"
        f"  max_batch_size: {config.max_batch_size}\n",
    )
    script = folder / LAUNCH
    write_atomic(
        script,
        "#!/bin/sh\n"
        "# Starts TensorRT-LLM's OpenAI-compatible server on this folder.\n"
        'here=$(cd "$(dirname "$0")" && pwd)\n'
        'exec trtllm-serve "$here" \\\n'
        f'  --host "${{HOST:-127.0.0.1}}" --port "${{PORT:-{config.port}}}" \\\n'
        f"  --tp_size {config.tensor_parallel} --max_batch_size {config.max_batch_size} \\\n"
        f"  --max_num_tokens {max(2048, 2 * longest)} --max_seq_len {longest} \\\n"
        f"  --kv_cache_free_gpu_memory_fraction {config.gpu_memory_fraction} \\\n"
        f'  --config "$here/{SERVE_CONFIG}" "$@"\n',
    )
    script.chmod(0o755)


def main(argv: list[str] | None = None) -> None:
    """Export as the configuration says."""
    config = load_config(ExportTrtConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        export_trt(config)
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    log.info("%s is ready", config.out)


if __name__ == "__main__":
    main()
