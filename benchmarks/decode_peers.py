"""Prefill and decode of ONNX Runtime GenAI beside llama.cpp and OpenVINO, on the same weights.

    python -m benchmarks.decode_peers --model artifacts/demo/grpo-default \
        --ort '["artifacts/demo/ort-int4", "artifacts/demo/ort-int8", "artifacts/demo/ort-fp32"]' \
        --peers_python PEERS/bin/python

The peers want an environment of their own (llama.cpp is compiled there by a C++ compiler and
cmake, which takes many minutes):

    python -m venv PEERS
    PEERS/bin/pip install openvino openvino-genai nncf gguf safetensors
    PEERS/bin/pip install torch==2.13.0 optimum-intel && PEERS/bin/pip uninstall -y torchvision
    PEERS/bin/pip install llama-cpp-python

(torch from the CPU index; the torchvision that comes along does not fit a CPU build of torch and
breaks the export.) A peer that is not there is reported as "not installed".

Every variant is a process of its own that holds its model and is stopped while another has its
turn, so that a library whose threads spin while they wait disturbs nobody; ratios are between
runs of the same round. All read the same token ids and write greedily to the same length. Before
the clock starts each completes a few short prompts, whose tokens are compared with those of
transformers at float32: agreement near 1 is due at float32, less at four bits. OpenVINO computes
in bfloat16 where the processor has it, its "fp32" too. At one thread the first folder and its
"spinning" twin are the same thing: how far their ratio is from 1 is the noise of the measurement.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks.peer_formats import FACTS, GGUF_TYPES, OPENVINO_BITS
from benchmarks.peer_process import ROOT, Variant, open_worker
from compress.report.subject import SENTENCE
from compress.report.weights import context_tokens, weight_bytes, weight_bytes_per_token
from compress.speed import COPY_BYTES, copy_gb_per_s, spread
from curt.artifact import MANIFEST, load_manifest
from curt.config import Config, load_config
from curt.engines.prompt_tokenizer import PromptTokenizer
from curt.files import sha256, write_json
from curt.logs import configure_logging

log = logging.getLogger(__name__)

# What must be importable for a variant, and the distributions whose versions are recorded.
MODULES = {
    "llama.cpp": ("llama_cpp", "gguf", "safetensors"),
    "openvino": ("openvino_genai", "optimum.intel", "nncf"),
}
DISTRIBUTIONS = ("llama-cpp-python", "gguf", "openvino", "openvino-genai", "optimum-intel", "nncf")
PLACES = {"model", "ort", "peers_python", "work", "out"}  # of this machine, no part of a result
CHECK_TOKENS, CHECK_PROMPT_TOKENS = 24, 48


class DecodePeersConfig(Config):
    """Settings of `python -m benchmarks.decode_peers`."""

    model: Path
    """The Hugging Face model folder whose weights all run."""
    ort: list[Path] = Field(min_length=1)
    """Its ONNX Runtime folders; the first is what everything is compared with."""
    peers_python: Path = Path(sys.executable)
    """Python of the environment that has the peers."""
    peers: list[str] = ["q4_0", "q4_k_m", "f32", "ov-int4", "ov-int8", "ov-fp32"]
    """Formats to convert to and run; see `benchmarks.peer_formats`."""
    work: Path = Path("artifacts/bench/peers")
    """Folder that keeps converted models for the next run."""
    threads: tuple[int, ...] = (1, 2)
    """Thread counts to measure at."""
    rounds: int = Field(5, ge=1)
    """Rounds at each thread count, all variants in each."""
    prompt_tokens: int = Field(500, ge=1)
    """Length of the prompt."""
    decode_tokens: int = Field(64, ge=2)
    """Forward passes after it."""
    check_prompts: int = Field(4, ge=1)
    """Short prompts to compare tokens with transformers on."""
    out: Path = Path("benchmarks/decode_peers.json")
    """File of results; those of other models in it are kept."""


def measure(config: DecodePeersConfig) -> dict[str, Any]:
    """Everything about one model: versions, what is not installed or failed, rows by threads.

    Raises ArtifactError when a folder must not be loaded; ValueError for an unknown format or
    when prompt and answer do not fit the context.
    """
    manifest = load_manifest(config.model, expect="hf")
    known = set(GGUF_TYPES) | set(OPENVINO_BITS)
    if unknown := sorted(set(config.peers) - known):
        raise ValueError(f"peers {', '.join(unknown)}: use some of {', '.join(sorted(known))}")
    capacity = config.prompt_tokens + config.decode_tokens + 1
    if capacity > (room := context_tokens(config.model)):
        raise ValueError(f"{capacity} tokens do not fit the context of {room}: shorten the prompt")
    prompts = make_prompts(config)
    peers, missing = prepare_peers(config)
    variants = [*describe_ort(config.ort), *peers]
    expected = follow_transformers(config.model, prompts[1:])
    rows = [
        row
        for threads in config.threads
        for row in _measure_at(config, variants, threads, prompts, expected, capacity)
    ]
    return {
        "settings": config.model_dump(mode="json", exclude=PLACES),
        "model": manifest.base,
        "machine": f"{_cpu_name()}, {os.cpu_count()} cores",
        "versions": _versions(config.peers_python),
        "missing": missing,
        "compared_with": config.ort[0].name,
        "rows": rows,
    }


def make_prompts(config: DecodePeersConfig) -> list[list[int]]:
    """Token ids of the timed prompt, then of the short ones to compare on, all different."""
    tokenizer = PromptTokenizer(config.model)
    text = SENTENCE * (config.prompt_tokens // 4 + 2)  # a sentence is well over four tokens
    ids = tokenizer.encode(text)
    offsets = range(0, config.check_prompts * 7, 7)
    return [
        ids[: config.prompt_tokens],
        *(ids[offset : offset + CHECK_PROMPT_TOKENS] for offset in offsets),
    ]


def describe_ort(folders: Sequence[Path]) -> list[Variant]:
    """Each folder as this project's server runs it, and the first with spinning threads too."""
    variants = []
    for folder in folders:
        load_manifest(folder, expect="ort-genai")
        for spin in (False, True) if folder == folders[0] else (False,):
            variants.append(
                Variant(
                    name=folder.name + (", spinning" if spin else ""),
                    library="onnxruntime-genai",
                    model=folder.resolve(),
                    python=Path(sys.executable),
                    weight_bytes_per_token=weight_bytes_per_token(folder),
                    model_bytes=weight_bytes(folder),
                    spin=spin,
                )
            )
    return variants


def prepare_peers(config: DecodePeersConfig) -> tuple[list[Variant], dict[str, str]]:
    """Variants whose library is there, converted; and why each other one is not among them."""
    lacking = {library: _lacking(config.peers_python, names) for library, names in MODULES.items()}
    origin = sha256(config.model / MANIFEST)[:12]
    variants, missing = [], {}
    for kind in config.peers:
        library = "llama.cpp" if kind in GGUF_TYPES else "openvino"
        name = f"{library} {kind.removeprefix('ov-')}"
        if lacking[library]:
            missing[name] = f"not installed: {', '.join(lacking[library])}"
            log.warning("%s: %s", name, missing[name])
            continue
        folder = config.work / f"{config.model.resolve().name}-{origin}-{kind}"
        if not (folder / FACTS).is_file() and (error := _convert(config, kind, folder)):
            missing[name] = f"conversion failed: {error}"
            log.warning("%s: %s", name, missing[name])
            continue
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        variants.append(
            Variant(
                name=name,
                library=library,
                model=folder.resolve(),
                python=config.peers_python.absolute(),  # resolved, it would leave its environment
                weight_bytes_per_token=facts["weight_bytes_per_token"],
                model_bytes=facts["model_bytes"],
            )
        )
    return variants, missing


def follow_transformers(model: Path, prompts: Sequence[list[int]]) -> list[list[int]]:
    """What transformers writes greedily at float32, each up to its stop token."""
    import torch
    from transformers import AutoModelForCausalLM

    parent = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    written = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            whole = parent.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=CHECK_TOKENS,
                pad_token_id=0,
            )
            tokens = whole[0, len(prompt) :].tolist()
            # from here on the libraries differ: some mask it, some go on
            stops = parent.generation_config.eos_token_id
            stops = stops if isinstance(stops, list) else [stops]
            end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
            written.append(tokens[:end])
    return written


def agreement(expected: Sequence[Sequence[int]], written: Sequence[Sequence[int]]) -> float:
    """Share of the expected tokens that were written before the first difference of each text.

    1 when there was nothing to write. Raises ValueError when the counts of texts differ.
    """
    same = total = 0
    for right, tokens in zip(expected, written, strict=True):
        total += len(right)
        for a, b in zip(right, tokens, strict=False):
            if a != b:
                break
            same += 1
    return same / total if total else 1.0


def _measure_at(
    config: DecodePeersConfig,
    variants: Sequence[Variant],
    threads: int,
    prompts: Sequence[list[int]],
    expected: Sequence[Sequence[int]],
    capacity: int,
) -> list[dict[str, Any]]:
    source = np.ones(COPY_BYTES // 8)
    target = np.zeros_like(source)
    copies: list[float] = []
    seen: list[list[dict[str, Any]]] = [[] for _ in variants]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(open_worker(v, threads, capacity)) for v in variants]
        agreements = []
        for worker in workers:
            texts = [worker.run(p, CHECK_TOKENS - 1)["tokens"] for p in prompts[1:]]
            agreements.append(agreement(expected, texts))
            worker.run(prompts[0], config.decode_tokens)  # warm up at full length
        for turn in range(config.rounds):
            copies.append(max(copy_gb_per_s(source, target, threads) for _ in range(3)))
            for place in range(len(variants)):
                index = (turn + place) % len(variants)  # nobody is always first
                seen[index].append(workers[index].run_round(prompts[0], config.decode_tokens))
            log.info("%d threads: round %d of %d", threads, turn + 1, config.rounds)
        loads = [worker.load_s for worker in workers]
    return [
        {"variant": variant.name, "library": variant.library, "threads": threads}
        | {"load_s": load_s, "greedy_agreement": agreed}
        | summarise(variant, len(prompts[0]), own, seen[0], copies)
        for variant, load_s, agreed, own in zip(variants, loads, agreements, seen, strict=True)
    ]


def summarise(
    variant: Variant,
    prompt_tokens: int,
    own: Sequence[Mapping[str, Any]],
    first: Sequence[Mapping[str, Any]],
    copies: Sequence[float],
) -> dict[str, Any]:
    """Medians and ranges of one variant's rounds; `*_to_first` are ratios within a round."""

    def prefill(run: Mapping[str, Any]) -> float:
        return float(prompt_tokens * run["runs"] / run["prefill_s"])

    def decode(run: Mapping[str, Any]) -> float:
        return float(run["passes"] / run["decode_s"])

    pairs = list(zip(own, first, strict=True))
    read_gb = variant.weight_bytes_per_token / 1e9
    figures = {
        "prefill_tokens_per_s": [prefill(run) for run in own],
        "decode_tokens_per_s": [decode(run) for run in own],
        "prefill_to_first": [prefill(a) / prefill(b) for a, b in pairs],
        "decode_to_first": [decode(a) / decode(b) for a, b in pairs],
        "copy_gb_per_s": list(copies),
        "bandwidth_share": [
            decode(run) * read_gb / copy for run, copy in zip(own, copies, strict=True)
        ],
    }
    return {name: spread(values).model_dump() for name, values in figures.items()} | {
        "weight_mb_per_token": variant.weight_bytes_per_token / 1e6,
        "model_mb": variant.model_bytes / 1e6,
        "peak_rss_mb": max(run["rss_mb"] for run in own),
    }


def _convert(config: DecodePeersConfig, kind: str, folder: Path) -> str:
    """Convert in the peers' environment; the last line of what went wrong, or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(config.model.resolve()), str(folder.resolve())]
    log.info("converting to %s", kind)
    done = subprocess.run(
        [str(config.peers_python), "-m", "benchmarks.peer_formats", kind, *paths],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    said = done.stderr.strip().splitlines() or ["without a word"]
    return said[-1] if done.returncode else ""


def _lacking(python: Path, modules: Sequence[str]) -> list[str]:
    """Which modules an environment has not, asked without importing the heavy ones."""
    code = (
        "import importlib.util as u, sys\n"
        "def has(n):\n"
        "    try: return u.find_spec(n) is not None\n"
        "    except ModuleNotFoundError: return False\n"
        "print(' '.join(n for n in sys.argv[1:] if not has(n)))"
    )
    return _ask(python, code, *modules).split()


def _versions(python: Path) -> dict[str, str]:
    code = (
        "import importlib.metadata as m, json, sys\n"
        "have = {d.metadata['Name']: d.version for d in m.distributions()}\n"
        "print(json.dumps({n: have[n] for n in sys.argv[1:] if n in have}))"
    )
    own = _ask(Path(sys.executable), code, "onnxruntime-genai", "onnxruntime")
    found: dict[str, str] = json.loads(own) | json.loads(_ask(python, code, *DISTRIBUTIONS))
    return found


def _ask(python: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [str(python), "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def main(argv: list[str] | None = None) -> None:
    """Measure and write the results; exits with a message on bad input."""
    config = load_config(DecodePeersConfig, argv)
    configure_logging()
    try:
        result = measure(config)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    kept = json.loads(config.out.read_text(encoding="utf-8")) if config.out.is_file() else {}
    write_json(config.out, kept | {config.model.resolve().name: result})
    for row in result["rows"]:
        log.info(
            "%-24s %d threads: prefill %6.0f, decode %6.0f tokens/s, %.2f of %s",
            row["variant"],
            row["threads"],
            row["prefill_tokens_per_s"]["median"],
            row["decode_tokens_per_s"]["median"],
            row["decode_to_first"]["median"],
            result["compared_with"],
        )


if __name__ == "__main__":
    main()
