"""The only owner of prompt text, thinking-budget wording, answer grammar and the parser.

Training, evaluation and serving all go through this package, so that what the model was trained
on is what it is asked and what is read back.
"""

from curt.dialogue.answer import (
    EXAMPLE_ANSWER,
    MAX_ANSWER_TOKENS,
    THINK_END,
    THINK_START,
    Completion,
    ParseFailure,
    answer_pattern,
    parse_answer,
    parse_completion,
    parse_fine,
    parse_term,
    render_answer,
    render_completion,
    render_ruling,
    render_term,
)
from curt.dialogue.excerpt import ELLIPSIS, LeftOut
from curt.dialogue.prompt import (
    BUDGET_LEVELS,
    CHAT_TEMPLATE,
    GRAMMAR_VERSION,
    PROMPT_VERSION,
    SYSTEM,
    TASK_INSTRUCTIONS,
    Prompt,
    Prompts,
    build_messages,
    encode,
    normalise_fact,
    state_budget,
)

__all__ = [
    "BUDGET_LEVELS",
    "CHAT_TEMPLATE",
    "ELLIPSIS",
    "EXAMPLE_ANSWER",
    "GRAMMAR_VERSION",
    "MAX_ANSWER_TOKENS",
    "PROMPT_VERSION",
    "SYSTEM",
    "TASK_INSTRUCTIONS",
    "THINK_END",
    "THINK_START",
    "Completion",
    "LeftOut",
    "ParseFailure",
    "Prompt",
    "Prompts",
    "answer_pattern",
    "build_messages",
    "encode",
    "normalise_fact",
    "parse_answer",
    "parse_completion",
    "parse_fine",
    "parse_term",
    "render_answer",
    "render_completion",
    "render_ruling",
    "render_term",
    "state_budget",
]
