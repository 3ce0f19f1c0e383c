"""A Hugging Face folder as a GGUF file of llama.cpp; runs in the peers' environment.

    python -m benchmarks.peers.formats --kind q4_0 --source MODEL_FOLDER --target NEW_FOLDER

`benchmarks.peers.catalogue` calls it. GGUF files are written at float32 by the `gguf` package and
quantised by llama.cpp's own routine. Imports nothing of this project that takes more than that
environment has.
"""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path
from typing import Any, Literal

from curt.config import Config, run
from curt.files import whole_folder

GGUF_FILE = "model.gguf"


class FormatConfig(Config):
    """What to write of what."""

    kind: Literal["q4_0", "q8_0"]
    """llama.cpp's name of the format."""
    source: Path
    """Hugging Face model folder."""
    target: Path
    """Folder to make; it appears under its name only when all of it is there."""


def work(config: FormatConfig) -> None:
    """Convert."""
    with whole_folder(config.target) as folder:
        write_gguf(config.source, folder / GGUF_FILE, config.kind)


def write_gguf(source: Path, file: Path, kind: str) -> None:
    """Write weights of four or eight bits as one file.

    Raises ValueError for an architecture that is not Qwen2 or Qwen3, RuntimeError when the
    quantiser fails.
    """
    import llama_cpp

    whole = file.with_name("f32.gguf")
    _write_float_gguf(source, whole)
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    paths = (os.fsencode(whole), os.fsencode(file))
    if status := llama_cpp.llama_model_quantize(*paths, ctypes.byref(options)):
        raise RuntimeError(f"llama.cpp's quantiser failed with status {status}")
    whole.unlink()


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


if __name__ == "__main__":
    run(FormatConfig, work, expected=(OSError, RuntimeError, ValueError))
