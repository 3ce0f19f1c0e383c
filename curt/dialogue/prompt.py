"""What a model is asked: the system text, the facts, and the thinking budget.

A model that was not trained on the answer grammar is told it (`GRAMMAR_VERSION`). Raise
`PROMPT_VERSION` with any change to a text here or to the answer grammar: artifacts carry it
and the engines refuse a mismatch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from curt.dialogue.answer import LINES, THINK_END, THINK_START, describe_grammar
from curt.dialogue.excerpt import NOTHING, Excerpt, LeftOut, make_excerpt
from curt.law.figures import normalise_figures

PROMPT_VERSION = "verdict-4"
GRAMMAR_VERSION = f"{PROMPT_VERSION}+grammar-1"
"""The version of prompts that tell the answer grammar."""

SYSTEM = f"你是刑事法官。先在思考预算内推理，再写{'、'.join(line.name for line in LINES)}。"
BUDGET_LEVELS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # tokens

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


def normalise_fact(fact: str) -> str:
    """Make a fact safe to place in a prompt.

    Control characters and runs of white space become one space, and angle brackets become
    their full-width forms, so that a fact can never spell a special token or end the thinking.
    """
    # Not printable: exactly the categories Other and Separator, but for the plain space.
    if not fact.isprintable():
        fact = "".join(c if c.isprintable() else " " for c in fact)
    if "  " in fact:
        fact = re.sub(" +", " ", fact)
    return fact.strip().replace("<", "＜").replace(">", "＞")


def state_budget(thinking_tokens: int) -> int:
    """Round a budget down to a level the model was trained on. Raises ValueError below 0."""
    if thinking_tokens < 0:
        raise ValueError(f"a thinking budget of {thinking_tokens} tokens: use 0 or more")
    return max(level for level in BUDGET_LEVELS if level <= thinking_tokens)


def build_messages(
    fact: str, budget: int, candidates: str = "", version: str = PROMPT_VERSION
) -> list[dict[str, str]]:
    """Chat messages for a normalised fact, after the line of candidates where there is one.

    The budget comes last, so it can be chosen late. Raises ValueError for an unknown version.
    """
    if version not in (PROMPT_VERSION, GRAMMAR_VERSION):
        raise ValueError(f"prompt {version}: use {PROMPT_VERSION} or {GRAMMAR_VERSION}")
    told = f"\n{describe_grammar()}" if version == GRAMMAR_VERSION else ""
    lines = [candidates, fact, f"思考预算：{state_budget(budget)}"]
    return [
        {"role": "system", "content": SYSTEM + told},
        {"role": "user", "content": "\n".join(lines if candidates else lines[1:])},
    ]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The token ids of a prompt, how much of the fact it lacks, and its line of candidates."""

    ids: list[int]
    left_out: LeftOut = NOTHING
    candidates: str = ""

    def __len__(self) -> int:
        return len(self.ids)


class Prompts:
    """Renders the prompts of one model: every stage asks it, so that all ask the model alike.

    The methods take raw facts. Where `candidates` are not given, the reader proposes them; an
    empty text leaves their line out.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        max_fact_tokens: int | None,
        reader: Callable[[str], str] | None = None,
        version: str = PROMPT_VERSION,
    ) -> None:
        """Facts above `max_fact_tokens` become excerpts; None for no limit.

        `reader` proposes the line of candidates for a raw fact, an empty text where it has none.
        """
        self.version = version
        self.tokenizer, self.max_fact_tokens, self.reader = tokenizer, max_fact_tokens, reader

    def excerpt(self, fact: str) -> Excerpt:
        """What stands in the prompt in place of a fact, normalised, and what was left out."""
        fact = normalise_figures(normalise_fact(fact))
        if self.max_fact_tokens is None:
            return Excerpt(fact)
        return make_excerpt(fact, self.max_fact_tokens, self._find_tokens)

    def propose(self, fact: str, candidates: str | None = None) -> str:
        """The line of candidates before a fact: the one given, or the reader's; may be empty."""
        if candidates is None:
            candidates = self.reader(fact) if self.reader else ""
        return candidates

    def messages(
        self, fact: str, budget: int, candidates: str | None = None
    ) -> list[dict[str, str]]:
        """The chat messages about a fact, with a thinking budget in tokens."""
        excerpt, proposed = self.excerpt(fact), self.propose(fact, candidates)
        return build_messages(excerpt.text, budget, proposed, self.version)

    def text(self, fact: str, budget: int, candidates: str | None = None) -> str:
        """The text up to and with the opening of thinking; the model goes on with its reasoning."""
        return self._render(self.messages(fact, budget, candidates))

    def encode(self, fact: str, budget: int, candidates: str | None = None) -> Prompt:
        """The token ids of `text`, what of the fact was left out, and the candidates."""
        excerpt, proposed = self.excerpt(fact), self.propose(fact, candidates)
        messages = build_messages(excerpt.text, budget, proposed, self.version)
        return Prompt(encode(self.tokenizer, self._render(messages)), excerpt.left_out, proposed)

    def _render(self, messages: list[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        before, opened, after = text.rpartition(THINK_START)
        if opened and not after.strip():  # the template opens it, with a line break perhaps
            return text
        # Some templates close it at once: they are for answers without thinking.
        return (before if opened and after.strip() == THINK_END else text) + THINK_START

    def _find_tokens(self, text: str) -> Sequence[tuple[int, int]]:
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans: Sequence[tuple[int, int]] = encoded["offset_mapping"]
        return spans


def encode(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """The token ids of a text that already spells its special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
