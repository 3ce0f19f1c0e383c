from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from curt.artifact import ArtifactError
from curt.dialogue import Prompts
from curt.engines.tokenizer import PromptTokenizer


@given(st.text(max_size=200), st.integers(8, 60), st.sampled_from([0, 8, 64]))
@settings(deadline=None, max_examples=60)
def test_it_agrees_with_the_transformers_tokenizer(
    micro_model: Path, text: str, length_tokens: int, budget: int
) -> None:
    light, full = PromptTokenizer(micro_model), AutoTokenizer.from_pretrained(micro_model)
    prompt = Prompts(full, length_tokens).text(text, budget)
    assert Prompts(light, length_tokens).text(text, budget) == prompt
    ids = full(prompt, add_special_tokens=False)["input_ids"]
    assert light.encode(prompt) == ids
    assert light.decode(ids) == full.decode(ids)


def test_a_stream_holds_a_character_back_until_it_is_whole(micro_model: Path) -> None:
    tokenizer = PromptTokenizer(micro_model)
    ids = tokenizer.encode("龘a")  # a character the tokenizer knows only as three bytes
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) == "龘a"
    assert "" in pieces
    assert not any("\ufffd" in piece for piece in pieces)


def test_it_needs_no_torch() -> None:
    code = "import curt.engines.tokenizer, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_without_tokenizer_or_template_is_refused(
    micro_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        PromptTokenizer(tmp_path)
    shutil.copytree(micro_model, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="chat template"):
        PromptTokenizer(tmp_path)
