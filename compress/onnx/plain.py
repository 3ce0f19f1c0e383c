"""Run an exported folder with plain ONNX Runtime, without onnxruntime-genai.

    python -m compress.onnx.plain --artifact DIR --cases artifacts/demo/corpus/dev.jsonl

The exported `model.onnx` is a plain graph: token ids, an attention mask and each layer's past
keys and values go in, the last position's logits and the grown keys and values come out. So
`onnxruntime` or `onnxruntime-gpu` alone can serve it with the loop below. The command checks
that: it scores the corpus's own completions, and compares greedy tokens with the genai runtime's.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from compress.prompts import sample_prompts
from curt.artifact import ArtifactError, load_manifest
from curt.config import Config, load_config
from curt.corpus.store import read_cases
from curt.files import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

log = logging.getLogger(__name__)

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class PlainConfig(Config):
    """Settings of `python -m compress.onnx.plain`."""

    artifact: Path
    """The ONNX Runtime model folder."""
    cases: Path = Path("artifacts/demo/corpus/dev.jsonl")
    """JSON Lines file of cases whose completions are scored."""
    prompts: int = 64
    """How many cases to use."""
    max_new_tokens: int = 96
    """Length limit of a greedy continuation."""
    threads: int = 1
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Execution providers of ONNX Runtime, the preferred one first."""
    seed: int = 0
    out: Path | None = None
    """JSON file for the result; it is logged in any case."""


class PlainModel:
    """An exported graph in a plain `InferenceSession`; one sequence at a time.

    The folder's manifest is not looked at: an export may be checked before it has one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        threads: int = 1,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        """Load `folder` with this many intra-op threads on the named execution providers.

        Raises ArtifactError when the folder is no export, ValueError for a provider this build
        of ONNX Runtime lacks.
        """
        lacking = sorted(set(providers) - set(ort.get_available_providers()))
        if lacking:
            raise ValueError(
                f"this ONNX Runtime has no {', '.join(lacking)}: install onnxruntime-gpu or use "
                f"one of {', '.join(ort.get_available_providers())}"
            )
        file = folder / "genai_config.json"
        if not file.is_file():
            raise ArtifactError(f"{folder} has no {file.name}: export it with compress.onnx.export")
        settings = json.loads(file.read_text(encoding="utf-8"))["model"]
        decoder = settings["decoder"]
        eos = settings["eos_token_id"]
        self.eos_ids: list[int] = eos if isinstance(eos, list) else [eos]
        self.context_tokens: int = settings["context_length"]

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            folder / decoder["filename"], options, providers=list(providers)
        )
        # keys and values stay where they are computed
        self._device = "cuda" if providers[0].startswith("CUDA") else "cpu"
        self._types = {i.name: _TYPES[i.type] for i in self._session.get_inputs()}
        names, layers = decoder["inputs"], range(decoder["num_hidden_layers"])
        self._names = names
        self._logits = decoder["outputs"]["logits"]
        self._past = [
            names[f"past_{part}_names"] % layer for layer in layers for part in ("key", "value")
        ]
        self._present = [
            decoder["outputs"][f"present_{part}_names"] % layer
            for layer in layers
            for part in ("key", "value")
        ]
        self._past_shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self.forget()

    def forget(self) -> None:
        """Start a new sequence."""
        self._tokens = 0
        self._state = [
            ort.OrtValue.ortvalue_from_numpy(
                np.zeros(self._past_shape, self._types[name]), self._device
            )
            for name in self._past
        ]

    def feed(self, ids: Sequence[int]) -> Logits:
        """Run over more tokens of the sequence; returns the last one's logits (vocabulary,).

        Raises ValueError without tokens, and where the sequence outgrows the context.
        """
        total = self._tokens + len(ids)
        if not ids or total > self.context_tokens:
            raise ValueError(
                f"{len(ids)} tokens after {self._tokens}: give at least one, and no more than the "
                f"context of {self.context_tokens} in all"
            )
        names = self._names
        inputs = {
            names["input_ids"]: np.asarray([ids]),
            names["attention_mask"]: np.ones((1, total)),
        }
        # graphs whose attention rotates by itself have no such input
        position_ids = names.get("position_ids", "position_ids")
        if position_ids in self._types:
            inputs[position_ids] = np.arange(self._tokens, total)[None]
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value, self._types[name]))
        for name, state in zip(self._past, self._state, strict=True):
            binding.bind_ortvalue_input(name, state)
        binding.bind_output(self._logits, "cpu")
        for name in self._present:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        logits, *self._state = binding.get_outputs()
        self._tokens = total
        last: Logits = logits.numpy()[0, -1].astype(np.float32)
        return last

    def greedy(self, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
        """The likeliest next tokens after `prompt`, up to the end of the turn or the limit."""
        self.forget()
        logits = self.feed(prompt)
        tokens: list[int] = []
        for _ in range(min(max_new_tokens, self.context_tokens - len(prompt))):
            token = int(logits.argmax())
            if token in self.eos_ids:
                break
            tokens.append(token)
            if len(tokens) == max_new_tokens or self._tokens == self.context_tokens:
                break
            logits = self.feed([token])
        return tokens

    def losses(self, prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
        """Negative log-likelihood of each token of `continuation` after `prompt`, in nats."""
        self.forget()
        logits, losses = self.feed(prompt), []
        for position, token in enumerate(continuation):
            shifted = logits.astype(np.float64) - logits.max()
            losses.append(float(np.log(np.exp(shifted).sum()) - shifted[token]))
            if position + 1 < len(continuation):
                logits = self.feed([token])
        return losses


def split_completions(
    prompts: Sequence[list[int]], wholes: Sequence[list[int]]
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion tokens, from prompts alone and prompts with completions.

    Raises ValueError where a tokenizer joins the seam between the two.
    """
    pairs = []
    for prompt, whole in zip(prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
            raise ValueError(
                "the tokenizer joins prompt and completion into one token: train it with the "
                "thinking marks as special tokens"
            )
        pairs.append((prompt, whole[len(prompt) :]))
    return pairs


def mean_loss(
    model: PlainModel, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]
) -> tuple[float, int]:
    """Mean negative log-likelihood of completions, in nats a token, and how many tokens."""
    losses = [loss for prompt, completion in pairs for loss in model.losses(prompt, completion)]
    if not losses:
        raise ValueError("no completions to score: name another file with --cases")
    return sum(losses) / len(losses), len(losses)


def genai_greedy(
    folder: Path, prompts: Iterable[Sequence[int]], max_new_tokens: int, threads: int = 1
) -> list[list[int]]:
    """What `PlainModel.greedy` gives for each prompt, by onnxruntime-genai."""
    import onnxruntime_genai as og

    from curt.engines.onnx.engine import append_tokens, session_config

    model = og.Model(session_config(folder, threads, allow_spinning=False))
    eos_ids = PlainModel(folder).eos_ids
    answers = []
    for prompt in prompts:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + max_new_tokens, do_sample=False)
        generator = og.Generator(model, params)
        append_tokens(generator, list(prompt))
        tokens: list[int] = []
        while (token := int(generator.get_logits()[0, -1].argmax())) not in eos_ids:
            tokens.append(token)
            if len(tokens) == max_new_tokens:
                break
            append_tokens(generator, [token])
        answers.append(tokens)
    return answers


def compare_with_genai(config: PlainConfig) -> dict[str, float]:
    """Score completions and compare greedy tokens with onnxruntime-genai; returns a flat row.

    `nll` in nats a token over `tokens` completion tokens, `perplexity`, and `same_as_genai`, the
    share of prompts whose greedy tokens are all the same. Raises ArtifactError when the artifact
    must not be loaded and ValueError when there is nothing to score.
    """
    manifest = load_manifest(config.artifact, expect="ort-genai")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.artifact)
    cases = list(read_cases(config.cases))
    prompts, wholes = (
        sample_prompts(
            cases, tokenizer, manifest, config.prompts, config.seed, with_completion=with_completion
        )
        for with_completion in (False, True)
    )
    model = PlainModel(config.artifact, threads=config.threads, providers=config.providers)
    nll, tokens = mean_loss(model, split_completions(prompts, wholes))
    plain = [model.greedy(prompt, config.max_new_tokens) for prompt in prompts]
    genai = genai_greedy(config.artifact, prompts, config.max_new_tokens, config.threads)
    same = sum(a == b for a, b in zip(plain, genai, strict=True))
    return {
        "nll": nll,
        "perplexity": float(np.exp(nll)),
        "tokens": float(tokens),
        "prompts": float(len(prompts)),
        "same_as_genai": same / len(prompts),
    }


def main(argv: list[str] | None = None) -> None:
    """Score one artifact, log and optionally write the result."""
    config = load_config(PlainConfig, argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        row = compare_with_genai(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    log.info("plain ONNX Runtime on %s: %s", config.artifact, json.dumps(row))
    if config.out:
        write_json(config.out, row)


if __name__ == "__main__":
    main()
