"""A Hugging Face folder in the formats of llama.cpp and OpenVINO; runs in the peers' environment.

    python -m benchmarks.peers.formats q4_0 MODEL_FOLDER TARGET_FOLDER

`benchmarks.decode_peers` calls it and reads `facts.json`, written last, from the target. GGUF files
are written at float32 by the `gguf` package and quantised by llama.cpp's own routine; OpenVINO's
come from optimum-intel, weights compressed by NNCF. Imports nothing of this project, whose
packages that environment lacks.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FACTS = "facts.json"
GGUF_FILE = "model.gguf"
# Weights of four bits with blocks of 32 and zero points, and an output layer of eight: what
# this project's own export makes of a model by default.
OPENVINO_BITS: dict[str, dict[str, Any] | None] = {
    "ov-int4": {"bits": 4, "sym": False, "group_size": 32, "ratio": 1.0},
    "ov-int4-g128": {"bits": 4, "sym": True, "group_size": 128, "ratio": 1.0},
    "ov-int8": {"bits": 8},
    "ov-fp32": None,
}
GGUF_TYPES = {"q4_0": "Q4_0", "q4_k_m": "Q4_K_M", "q8_0": "Q8_0", "f32": None}
_READ_WHOLE = ("MatMul", "FullyConnected")


def write_gguf(source: Path, target: Path, kind: str) -> dict[str, Any]:
    """Write `model.gguf` of one of GGUF_TYPES; returns its facts.

    Raises ValueError for an architecture that is not Qwen2 or Qwen3, RuntimeError when the
    quantiser fails.
    """
    import gguf

    whole = target / (GGUF_FILE if kind == "f32" else "f32.gguf")
    _write_float_gguf(source, whole)
    if (name := GGUF_TYPES[kind]) is not None:
        import llama_cpp

        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        paths = (os.fsencode(whole), os.fsencode(target / GGUF_FILE))
        if status := llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
            raise RuntimeError(f"llama.cpp's quantiser failed with status {status}")
        whole.unlink()
    tensors = gguf.GGUFReader(target / GGUF_FILE).tensors
    untied = any(t.name == "output.weight" for t in tensors)
    read = [t for t in tensors if not (untied and t.name == "token_embd.weight")]
    types: dict[str, int] = {}
    for tensor in read:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    return {"weight_bytes_per_token": sum(types.values()), "bytes_by_type": types}


def _write_float_gguf(source: Path, file: Path) -> None:
    import gguf
    from safetensors import safe_open

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    names = {"qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}
    if config["model_type"] not in names:
        raise ValueError(f"{config['model_type']} in {source}: only {', '.join(names)} are known")
    arch = names[config["model_type"]]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(file), gguf.MODEL_ARCH_NAMES[arch])
    writer.add_name(source.name)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, source, config)
    mapping = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for part in sorted(source.glob("*.safetensors")):
        with safe_open(part, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping, it only has this method
                if name == "lm_head.weight" and config["tie_word_embeddings"]:
                    continue
                new = mapping.get_name(name, try_suffixes=(".weight", ".bias"))
                if new is None:
                    raise ValueError(f"{name} in {part} has no place in a GGUF file")
                writer.add_tensor(new, tensors.get_tensor(name).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: Any, source: Path, config: dict[str, Any]) -> None:
    """Rows beyond the tokenizer's get names of their own, as a file must name every row."""
    import gguf

    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = [f"[PAD{i}]" for i in range(config["vocab_size"])]
    types = [gguf.TokenType.UNUSED] * len(tokens)
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = (
            gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")  # the split this project's tokenizers are trained with
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)


def write_openvino(source: Path, target: Path, kind: str) -> dict[str, Any]:
    """Write the model of one of OPENVINO_BITS and its tokenizer; returns its facts."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    bits = OPENVINO_BITS[kind]
    how: dict[str, Any] = {"load_in_8bit": False}
    if bits is not None:
        how = {"quantization_config": OVWeightQuantizationConfig(**bits)}
    model = OVModelForCausalLM.from_pretrained(source, export=True, compile=False, **how)
    model.save_pretrained(target)
    parts = convert_tokenizer(AutoTokenizer.from_pretrained(source), with_detokenizer=True)
    for name, part in zip(("tokenizer", "detokenizer"), parts, strict=True):
        openvino.save_model(part, target / f"openvino_{name}.xml")
    graph = openvino.Core().read_model(target / "openvino_model.xml")
    types: dict[str, int] = {}
    for constant, size in _read_constants(graph):
        types[constant] = types.get(constant, 0) + size
    return {"weight_bytes_per_token": sum(types.values()), "bytes_by_type": types}


def _read_constants(graph: Any) -> Iterator[tuple[str, int]]:
    """(type, bytes) of each constant that a matrix product reads, scales and zero points too."""
    seen: set[str] = set()
    stack = [
        node.input(1).get_source_output().get_node()
        for node in graph.get_ops()
        if node.get_type_name() in _READ_WHOLE
    ]
    while stack:
        node = stack.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() == "Constant":
            yield node.get_element_type().get_type_name(), int(node.get_byte_size())
        elif node.get_type_name() in ("Convert", "Multiply", "Subtract", "Reshape", "Transpose"):
            stack += [output.get_node() for output in node.input_values()]


WRITERS: dict[str, Callable[[Path, Path, str], dict[str, Any]]] = {
    **dict.fromkeys(GGUF_TYPES, write_gguf),
    **dict.fromkeys(OPENVINO_BITS, write_openvino),
}


def convert(kind: str, source: Path, target: Path) -> None:
    """Write `target` as a whole: it appears under its name only when all of it is there."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        facts = WRITERS[kind](source, temporary, kind)
        sizes = (f.stat().st_size for f in temporary.iterdir() if f.suffix in (".bin", ".gguf"))
        facts |= {"model_bytes": max(sizes)}  # the tokenizer's .bin is the small one
        (temporary / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    convert(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
