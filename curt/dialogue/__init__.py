"""The only owner of prompt text, thinking-budget wording, answer grammar and the parser.

Training, evaluation and serving all go through this module, so that what the model was
trained on is what it is asked and what is read back. Raise `PROMPT_VERSION` with any change
to a text below: artifacts carry it and the engines refuse a mismatch.

A completion is `{thinking}</think>{answer}`; an answer is one field a line:

    罪名：盗窃；诈骗
    法条：264；266
    刑期：有期徒刑8个月
    缓刑：12个月
    罚金：2000元

The last two lines are left out when there is none. Charges are separated by ；, never by 、,
which stands inside charge names (走私、贩卖、运输、制造毒品).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from curt.law.numerals import (
    article_order,
    parse_article,
    parse_months,
    parse_number,
    write_article,
)
from curt.law.numerals import write_months as write_months_in_words
from curt.law.statutes import canonical_charge
from curt.law.verdict import COUNTED_KINDS, TERM_NAMES, Completion, ParseFailure, Term, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_VERSION = "verdict-1"

THINK_START, THINK_END = "<think>", "</think>"
SYSTEM = "你是刑事法官。先在思考预算内推理，再写罪名、法条、刑期、缓刑、罚金。"
BUDGET_LEVELS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)  # tokens
MAX_ANSWER_TOKENS = 64
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

_SEPARATOR = "；"
_FIELDS = ("罪名", "法条", "刑期", "缓刑", "罚金")
_LINE = re.compile(rf"({'|'.join(_FIELDS)})[：:](.*)")
_ANGLES = str.maketrans("<>", "＜＞")
_FINE = re.compile(r"(?:人民币)?([0-9.]{1,15}|[零〇一二两三四五六七八九十百千]+)(万?)元?")


def normalise_fact(fact: str) -> str:
    """Make a fact safe to place in a prompt.

    Control characters and runs of white space become one space, and angle brackets become
    their full-width forms, so that a fact can never spell a special token or end the thinking.
    """
    # Not printable: exactly the categories Other and Separator, but for the plain space.
    if not fact.isprintable():
        fact = "".join(c if c.isprintable() else " " for c in fact)
    return re.sub(r" +", " ", fact).strip().translate(_ANGLES)


def clip_fact(fact: str, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> str:
    """Cut a fact to about `max_tokens`, keeping its head and its tail (where sentences stand)."""
    offsets = tokenizer(fact, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    if len(offsets) <= max_tokens:
        return fact
    head = max_tokens * 2 // 3
    tail = max_tokens - head
    return fact[: offsets[head][0]] + ELLIPSIS + fact[offsets[-tail][0] :]


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


def render_prompt(tokenizer: PreTrainedTokenizerBase, fact: str, budget: int) -> str:
    """The text up to and with the opening of thinking; the model continues with its reasoning."""
    text = tokenizer.apply_chat_template(
        build_messages(fact, budget), tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    return text + THINK_START


def render_completion(thinking: str, verdict: Verdict) -> str:
    """The target text of a training example, without the end-of-turn token."""
    return f"{thinking}{THINK_END}{render_answer(verdict)}"


def render_answer(verdict: Verdict) -> str:
    """The compact answer of the grammar above."""
    lines = [
        f"罪名：{_SEPARATOR.join(verdict.charges)}",
        f"法条：{_SEPARATOR.join(sorted(verdict.articles, key=article_order))}",
        f"刑期：{render_term(verdict.term)}",
    ]
    if verdict.term.probation_months:
        lines.append(f"缓刑：{verdict.term.probation_months}个月")
    if verdict.fine_yuan:
        lines.append(f"罚金：{verdict.fine_yuan}元")
    return "\n".join(lines)


def render_term(term: Term) -> str:
    """The principal penalty in the answer grammar: 有期徒刑8个月, 无期徒刑."""
    months = f"{term.months}个月" if term.kind in COUNTED_KINDS else ""
    return TERM_NAMES[term.kind] + months


def render_ruling(verdict: Verdict, defendant: str = "被告人") -> str:
    """The operative part of a judgment (判决主文) that states this verdict, for people to read."""
    term = verdict.term
    months = write_months_in_words(term.months) if term.kind in COUNTED_KINDS else ""
    charges = "、".join(f"{c}罪" for c in verdict.charges)
    if term.kind == "exempt":
        text = f"{defendant}犯{charges}，免予刑事处罚"
    else:
        text = f"{defendant}犯{charges}，判处{TERM_NAMES[term.kind]}{months}"
    if term.probation_months:
        text += f"，缓刑{write_months_in_words(term.probation_months)}"
    if verdict.fine_yuan:
        text += f"，并处罚金人民币{verdict.fine_yuan}元"
    basis = "、".join(write_article(a) for a in verdict.articles)
    return f"依照《中华人民共和国刑法》{basis}之规定，{text}。"


def parse_completion(text: str) -> Completion:
    """Split a completion into thinking and answer and read the verdict; never raises.

    A completion whose thinking was not closed has no answer and so no verdict.
    """
    body = text.removeprefix(THINK_START)
    thinking, closed, answer = body.partition(THINK_END)
    if not closed:
        return Completion(body, "", ParseFailure("thinking not closed"), thinking_closed=False)
    return Completion(thinking, answer.strip(), parse_answer(answer), thinking_closed=True)


def parse_answer(text: str) -> Verdict | ParseFailure:
    """Read an answer of the grammar above, tolerant of Chinese numerals and charge aliases."""
    fields: dict[str, str] = {}
    for line in text.strip().splitlines():
        match = _LINE.fullmatch(line.strip())
        if not match:
            return ParseFailure("a line outside the grammar")
        if match[1] in fields:
            return ParseFailure(f"{match[1]} given twice")
        fields[match[1]] = match[2].strip()
    missing = [name for name in _FIELDS[:3] if not fields.get(name)]
    if missing:
        return ParseFailure(f"{missing[0]} missing")
    try:
        charges = tuple(dict.fromkeys(canonical_charge(c) for c in _split(fields["罪名"])))
        articles = sorted({parse_article(a) for a in _split(fields["法条"])}, key=article_order)
        term = parse_term(fields["刑期"])
        if "缓刑" in fields:
            term = Term(term.kind, term.months, parse_months(fields["缓刑"]))
        fine = parse_fine(fields["罚金"]) if "罚金" in fields else 0
        return Verdict(charges, tuple(articles), term, fine)
    except ValueError as error:
        return ParseFailure(str(error))


def parse_term(text: str) -> Term:
    """Read a sentence: 有期徒刑三年六个月 (42 months), 拘役四个月，缓刑六个月, 无期徒刑, 死刑.

    Raises ValueError when no penalty can be read.
    """
    principal, _, probation = text.strip().partition("缓刑")
    principal = principal.strip("，,、 ；")
    probation_months = parse_months(probation.strip("，。 ")) if probation else 0
    for kind, name in TERM_NAMES.items():
        if not principal.startswith(name):
            continue
        rest = principal[len(name) :]
        if kind in COUNTED_KINDS:
            return Term(kind, parse_months(rest), probation_months)
        return Term(kind, probation_months=probation_months)
    if principal.startswith("免"):  # 免予刑事处分, 免除处罚
        return Term("exempt")
    raise ValueError(f"not a penalty: {text!r}")


def parse_fine(text: str) -> int:
    """Read a fine in yuan: 2000元, 人民币五千元, 1.5万元. Raises ValueError otherwise."""
    match = _FINE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"not a fine: {text!r}")
    scale = 10_000 if match[2] else 1
    try:
        return round(float(match[1]) * scale)
    except ValueError:
        return parse_number(match[1]) * scale


def _split(text: str) -> list[str]:
    return [part.strip() for part in re.split("[；;]", text) if part.strip()]
