"""What a model is asked: the system text, the facts, and the thinking budget.

Raise `PROMPT_VERSION` with any change to a text here or to the answer grammar: artifacts carry it
and the engines refuse a mismatch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from curt.dialogue.answer import LINES, THINK_START

PROMPT_VERSION = "verdict-1"

SYSTEM = f"你是刑事法官。先在思考预算内推理，再写{'、'.join(line.name for line in LINES)}。"
BUDGET_LEVELS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # tokens
ELLIPSIS = "……"

TASK_INSTRUCTIONS = {
    "charge": "根据案件事实判断被告人构成的罪名。只写“罪名：”一行，多个罪名用“；”分开。",
    "article": "根据案件事实写出应适用的刑法条文序号。只写“法条：”一行，多个条文用“；”分开。",
    "term": "根据案件事实判断应判处的主刑。写“刑期：”一行，宣告缓刑的再写“缓刑：”一行。",
    "ruling": "根据案件事实写出判决主文，包括所依据的刑法条文、罪名、主刑、缓刑和罚金。",
    "verdict": "根据案件事实写出罪名、法条、刑期，有缓刑、罚金的也写出，每项一行。",
}
"""What a single task asks, in sets of `curt.corpus.tasks`; its answers are lines of the grammar."""

# ChatML, as Qwen uses it; only for tokenizers trained here. A real checkpoint brings its own.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ChatTokenizer(Protocol):
    """What a prompt needs of a tokenizer: that of transformers, or `curt.engines.tokenizer`."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool = False
    ) -> Any:
        """Token ids under "input_ids" and, if asked for, character spans under "offset_mapping"."""

    def apply_chat_template(
        self, messages: list[dict[str, str]], /, *, tokenize: bool, add_generation_prompt: bool
    ) -> Any:
        """The chat as text, where `tokenize` is False."""


_ANGLES = str.maketrans("<>", "＜＞")


def normalise_fact(fact: str) -> str:
    """Make a fact safe to place in a prompt.

    Control characters and runs of white space become one space, and angle brackets become
    their full-width forms, so that a fact can never spell a special token or end the thinking.
    """
    # Not printable: exactly the categories Other and Separator, but for the plain space.
    if not fact.isprintable():
        fact = "".join(c if c.isprintable() else " " for c in fact)
    return re.sub(r" +", " ", fact).strip().translate(_ANGLES)


def clip_fact(fact: str, tokenizer: ChatTokenizer, max_tokens: int) -> str:
    """Cut a fact to about `max_tokens`, keeping its head and its tail (where sentences stand)."""
    offsets = tokenizer(fact, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    if len(offsets) <= max_tokens:
        return fact
    head = max_tokens * 2 // 3
    tail = max_tokens - head
    return fact[: offsets[head][0]] + ELLIPSIS + fact[offsets[-tail][0] :]


def prepare_fact(tokenizer: ChatTokenizer, fact: str, max_tokens: int) -> str:
    """A raw fact as it stands in a prompt: normalised, and cut to about `max_tokens`."""
    return clip_fact(normalise_fact(fact), tokenizer, max_tokens)


def is_clipped(fact: str, max_tokens: int, count_tokens: Callable[[str], int]) -> bool:
    """Whether `prepare_fact` cuts a raw fact."""
    text = normalise_fact(fact)
    # A token is a byte or more, so a short fact need not be tokenised to tell.
    return len(text.encode()) > max_tokens and count_tokens(text) > max_tokens


def state_budget(thinking_tokens: int) -> int:
    """Round a budget down to a level the model was trained on. Raises ValueError below 0."""
    if thinking_tokens < 0:
        raise ValueError(f"a thinking budget of {thinking_tokens} tokens: use 0 or more")
    return max(level for level in BUDGET_LEVELS if level <= thinking_tokens)


def build_messages(fact: str, budget: int) -> list[dict[str, str]]:
    """Chat messages for a normalised fact. The budget comes last, so it can be chosen late."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{fact}\n思考预算：{state_budget(budget)}"},
    ]


def render_prompt(tokenizer: ChatTokenizer, fact: str, budget: int) -> str:
    """The text up to and with the opening of thinking; the model continues with its reasoning."""
    text = tokenizer.apply_chat_template(
        build_messages(fact, budget), tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text + THINK_START


def prompt_for(tokenizer: ChatTokenizer, fact: str, budget: int, max_fact_tokens: int) -> str:
    """The prompt text of a raw fact, with a thinking budget in tokens."""
    return render_prompt(tokenizer, prepare_fact(tokenizer, fact, max_fact_tokens), budget)


def encode_prompt(
    tokenizer: ChatTokenizer, fact: str, budget: int, max_fact_tokens: int
) -> list[int]:
    """The token ids of `prompt_for`."""
    return encode(tokenizer, prompt_for(tokenizer, fact, budget, max_fact_tokens))


def encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """The token ids of a text that already spells its special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
