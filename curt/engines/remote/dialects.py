"""What the OpenAI-compatible servers of vLLM and TensorRT-LLM call the same things.

Both take token ids as the prompt of `/v1/completions`, `stop_token_ids`, and a `logit_bias` of at
least -100 by token id; the rest differs and stands in `DIALECTS`. Sources: `CompletionRequest` in
vLLM 0.31 `vllm/entrypoints/openai/completion/protocol.py` and in TensorRT-LLM
`tensorrt_llm/serve/openai_protocol.py`; TensorRT-LLM refuses any field that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curt.artifact import Format

DialectName = Literal["vllm", "tensorrt-llm"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one kind of server is asked.

    `ids` are the fields that make it send token ids; `guided` gives the field that holds a text to
    a regular expression; `formats` are the model folders it can load.
    """

    name: DialectName
    ids: Mapping[str, Any]
    guided: Callable[[str], dict[str, Any]]
    formats: tuple[Format, ...]


def _guided_by_vllm(pattern: str) -> dict[str, Any]:
    return {"structured_outputs": {"regex": pattern}}


def _guided_by_tensorrt_llm(pattern: str) -> dict[str, Any]:
    # Becomes GuidedDecodingParams(regex=...); the server needs `guided_decoding_backend: xgrammar`.
    return {"response_format": {"type": "regex", "regex": pattern}}


DIALECTS: Mapping[DialectName, Dialect] = {
    "vllm": Dialect("vllm", {"return_token_ids": True}, _guided_by_vllm, ("hf",)),
    # Token ids come in place of the text, not beside it.
    "tensorrt-llm": Dialect(
        "tensorrt-llm", {"detokenize": False}, _guided_by_tensorrt_llm, ("hf", "trtllm-hf")
    ),
}
