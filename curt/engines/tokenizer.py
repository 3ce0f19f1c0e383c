"""The tokenizer of a serving worker: the same ids as AutoTokenizer without importing torch.

`transformers.AutoTokenizer` imports torch wherever torch is installed: about 300 MB and a second
or more per worker process, for nothing. This reads the same two files through the `tokenizers`
package and renders the chat template with transformers' own renderer, which needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curt.artifact import ArtifactError
from curt.dialogue import encode

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class PromptTokenizer:
    """The part of a transformers tokenizer that `curt.dialogue` and an engine use."""

    def __init__(self, folder: Path | str) -> None:
        """Read a model folder's tokenizer and chat template; ArtifactError when either lacks."""
        from tokenizers import Tokenizer

        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ArtifactError(f"{folder} has no tokenizer.json: export it with a fast tokenizer")
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = folder / "chat_template.jinja"
        self._template = (
            template.read_text(encoding="utf-8")
            if template.is_file()
            else settings.get("chat_template")
        )
        if not isinstance(self._template, str):
            raise ArtifactError(f"{folder} has no chat template: export it with its tokenizer")
        self._special = {
            name: value["content"] if isinstance(value, dict) else value
            for name in _SPECIAL_NAMES
            if (value := settings.get(name)) is not None
        }

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = False
    ) -> dict[str, Any]:
        """Token ids under "input_ids" and, if asked for, character spans under "offset_mapping"."""
        encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        out: dict[str, Any] = {"input_ids": encoding.ids}
        if return_offsets_mapping:
            out["offset_mapping"] = encoding.offsets
        return out

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
    ) -> str:
        """The chat as text. Tokenising here is refused: `encode` the text instead."""
        from transformers.utils.chat_template_utils import render_jinja_template

        if tokenize:
            raise ValueError("tokenize=True: render first, then encode the text")
        rendered = render_jinja_template(
            [messages],
            chat_template=self._template,
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )
        # 5.x returns (texts, masks); its annotation still says str.
        texts: Any = rendered[0]
        return str(texts[0])

    def encode(self, text: str) -> list[int]:
        """Token ids of a text that already spells its special tokens."""
        return encode(self, text)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return len(self.encode(text))

    def vocabulary(self) -> dict[str, int]:
        """The id of every token."""
        return dict(self._tokenizer.get_vocab())

    def single_id(self, text: str) -> int:
        """The one token of a text. Raises ArtifactError where the tokenizer splits it."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise ArtifactError(
                f"the tokenizer splits {text} into {len(ids)} tokens: add it as a special token "
                "and train again"
            )
        return ids[0]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, special tokens spelt out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    def stream(self) -> TextStream:
        """A fresh incremental decoder."""
        return TextStream(self._tokenizer)


class TextStream:
    """Turns tokens into text as soon as whole characters are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._begin()

    def push(self, token: int) -> str:
        """The text this token completed, empty while a character waits for its last byte."""
        try:
            return self._stream.step(self._tokenizer, token) or ""
        except Exception as error:
            # A tokenizer that falls back to bytes gives up on bytes that make no character.
            if "Invalid prefix" not in str(error):
                raise
            self._begin()
            return self._stream.step(self._tokenizer, token) or ""

    def _begin(self) -> None:
        from tokenizers.decoders import DecodeStream

        self._stream: Any = DecodeStream(skip_special_tokens=False)


def read_context_tokens(folder: Path) -> int:
    """How many tokens the model of an "hf" folder reads at most.

    Raises ArtifactError where its config.json does not say so.
    """
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = shape.get("max_position_embeddings")
    if not isinstance(context, int):
        remedy = (
            "its text model is nested in text_config; train from the checkpoint of that alone"
            if "text_config" in shape
            else "use a checkpoint that says so, as those of Qwen, Llama and Gemma do"
        )
        raise ArtifactError(f"{folder}: config.json has no max_position_embeddings: {remedy}")
    return context


def read_eos_ids(folder: Path, tokenizer: PromptTokenizer) -> list[int]:
    """The ends of a turn of an hf folder: the tokenizer's and those of generation_config.json."""
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    eos = settings.get("eos_token")
    ids = set(tokenizer.encode(eos["content"] if isinstance(eos, dict) else eos) if eos else [])
    generation = folder / "generation_config.json"
    if generation.is_file():  # Qwen's hub checkpoints list two
        listed = json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")
        ids |= set(listed if isinstance(listed, list) else [] if listed is None else [listed])
    if not ids:
        raise ArtifactError(f"{folder} names no end-of-turn token: export it with its tokenizer")
    return sorted(ids)
