"""The tokenizer of a serving worker: the same ids as AutoTokenizer without importing torch.

`transformers.AutoTokenizer` imports torch wherever torch is installed: about 300 MB and a second
or more per worker process, for nothing. This reads the same two files through the `tokenizers`
package and renders the chat template with transformers' own renderer, which needs no torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers.utils.chat_template_utils import render_jinja_template

from curt.artifact import ArtifactError
from curt.dialogue import encode

_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class PromptTokenizer:
    """The part of a transformers tokenizer that `curt.dialogue` and an engine use."""

    def __init__(self, folder: Path | str) -> None:
        """Read a model folder's tokenizer and chat template; ArtifactError when either lacks."""
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
        self._stream = DecodeStream(skip_special_tokens=False)

    def push(self, token: int) -> str:
        """The text this token completed, empty while a character waits for its last byte."""
        return self._stream.step(self._tokenizer, token) or ""
