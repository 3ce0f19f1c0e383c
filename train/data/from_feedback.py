"""Feedback that a server wrote, as data to train on.

    python -m train.data.from_feedback --feedback feedback --facts feedback/facts.jsonl \
        --test_corpus artifacts/demo/corpus/test.jsonl --tokenizer artifacts/demo/grpo-default \
        --out artifacts/feedback

| file | a row |
|---|---|
| pairs.jsonl | `prompt`, `chosen` (the correction), `rejected` (what was answered): view `pairs` |
| sft.jsonl | a prompt and the completion that was right or should have been: view `shortest` |
| cases.jsonl | the facts with the right verdict, for `train.sft` and `train.grpo` |
| manifest.json | what it was made from, every count, the hash of every file |

Nobody wrote a reasoning for a correction. So pairs speak of a budget of 0, where both sides answer
at once (`--thinking none`), or share the reasoning that was given, under the budget it was given
(`--thinking answered`): then only the answers differ, which is all a preference loss sees.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from curt.config import Config, run
from curt.corpus.build.contamination import HeldOut
from curt.corpus.build.fingerprint import normalise_for_comparison
from curt.corpus.case import Case
from curt.corpus.redaction import redact
from curt.corpus.store import read_cases, write_cases
from curt.dialogue import (
    BUDGET_LEVELS,
    CHAT_TEMPLATE,
    PROMPT_VERSION,
    THINK_END,
    normalise_fact,
    prepare_fact,
    render_completion,
    render_prompt,
)
from curt.files import sha256, whole_folder, write_json
from curt.law.verdict import Verdict
from train.data.candidates import Candidate
from train.data.feedback_records import Fact, Feedback, find_files, read_facts, read_latest
from train.data.views import pairs, write_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SCHEMA = 1  # of the manifest
_MARK = "\x00"  # parts a fact from its reasoning while both are redacted as one text


class FromFeedbackConfig(Config):
    """What to read and where to write."""

    feedback: list[Path] = Field(min_length=1)
    """Files of feedback, or folders that hold feedback.jsonl and its full predecessors."""
    out: Path
    """Folder to make."""
    facts: Path | None = None
    """Facts that go with it: the server's facts.jsonl, or lines with request_id and fact. Without
    them nothing can be made, and all that comes of it are the counts."""
    test_corpus: list[Path] = []
    """Case files whose cases must not be trained on."""
    contamination_threshold: float = Field(0.5, gt=0, le=1)
    """Share of common 13-grams from which on a fact counts as a test case."""
    tokenizer: Path | None = None
    """Model folder whose chat template and length of facts to use; else the project's template,
    and facts are not cut."""
    max_fact_tokens: int = Field(400, ge=16)
    """With a tokenizer: where longer facts are cut."""
    thinking: Literal["none", "answered"] = "none"
    """Which reasoning both sides of a pair have."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A word of feedback that can be learnt from: redacted, and beside no test case."""

    feedback: Feedback
    fact: Fact
    truth: Verdict


@dataclass(slots=True)
class Outcome:
    """Counts by what became of the lines, and of what was masked."""

    counts: Counter[str]
    redactions: Counter[str]


def main(config: FromFeedbackConfig) -> None:
    """Make the folder and say what is in it and what could not be used."""
    manifest = make_dataset(config)
    logger.info("%s: %s", config.out, json.dumps(manifest["rows"]))
    logger.info("not used: %s", json.dumps(manifest["not_used"]))


def make_dataset(config: FromFeedbackConfig) -> dict[str, Any]:
    """Write the folder in one go and return its manifest.

    Raises ValueError when a source can't be read, or nothing can be made of it, with the reasons.
    """
    outcome = Outcome(Counter(), Counter())
    files = find_files(config.feedback)
    latest = read_latest(files, outcome.counts)
    facts = read_facts(config.facts, {f.answer_id for f in latest} | {f.request_id for f in latest})
    held_out = HeldOut.build(
        (case.id, case.fact) for path in config.test_corpus for case in read_cases(path)
    )
    lessons = list(keep_usable(latest, facts, held_out, config, outcome))
    lessons = drop_disputed(lessons, outcome.counts)
    if not lessons:
        raise ValueError(f"nothing can be made of this feedback: {dict(outcome.counts)}")
    if not config.test_corpus:
        logger.warning("no --test_corpus: test cases among these facts are not found")
    tokenizer = load_tokenizer(config.tokenizer)
    rows = {
        "pairs.jsonl": _unique(make_pairs(lessons, tokenizer, config)),
        "sft.jsonl": _unique(make_examples(lessons, tokenizer, config)),
    }
    with whole_folder(config.out) as folder:
        for name, table in rows.items():
            write_rows(folder / name, table)
        cases = write_cases(folder / "cases.jsonl", make_cases(lessons))
        manifest = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config.model_dump(mode="json"),
            "prompt_version": PROMPT_VERSION,
            "sources": {str(path): sha256(path) for path in _sources(config, files)},
            "contamination_checked": bool(config.test_corpus),
            "lines": outcome.counts["lines"],
            "answers": len(latest),
            "used": len(lessons),
            "not_used": {
                reason: count
                for reason, count in sorted(outcome.counts.items())
                if reason != "lines"
            },
            "redactions": dict(outcome.redactions),
            "rows": {name: len(table) for name, table in rows.items()} | {"cases.jsonl": cases},
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def keep_usable(
    latest: Iterable[Feedback],
    facts: Mapping[str, Fact],
    held_out: HeldOut,
    config: FromFeedbackConfig,
    outcome: Outcome,
) -> Iterator[Lesson]:
    """What can be learnt from, redacted; the rest is counted by its reason."""
    for feedback in latest:
        fact = facts.get(feedback.answer_id) or facts.get(feedback.request_id)
        reason = None
        if feedback.prompt_version != PROMPT_VERSION:
            reason = "another prompt version"
        elif feedback.truth is None:
            reason = "wrong without a correction"
        elif fact is None:
            reason = "no fact kept"
        elif not normalise_fact(fact.text):
            reason = "empty fact"
        else:
            clean, found = redact_fact(fact)
            threshold = config.contamination_threshold
            if any(held_out.match(text, threshold) for text in (fact.text, clean.text)):
                reason = "test case"
            else:
                outcome.redactions.update(found)
                yield Lesson(feedback, clean, feedback.truth)
        if reason:
            outcome.counts[reason] += 1


def redact_fact(fact: Fact) -> tuple[Fact, dict[str, int]]:
    """A fact and its reasoning without what identifies people, and how much of each kind.

    They are one text while names are looked for: a name stands bare in a reasoning.
    """
    text, thinking = normalise_fact(fact.text), (fact.thinking or "").replace(_MARK, "")
    clean, found = redact(text + _MARK + thinking)
    text, _, thinking = clean.partition(_MARK)
    return Fact(text, None if fact.thinking is None else thinking), found


def drop_disputed(lessons: Iterable[Lesson], counts: Counter[str]) -> list[Lesson]:
    """Lessons on facts that people agree on: where two truths are told, neither is taken."""
    by_fact: dict[str, list[Lesson]] = {}
    for lesson in lessons:
        by_fact.setdefault(normalise_for_comparison(lesson.fact.text), []).append(lesson)
    kept = []
    for group in by_fact.values():
        if len({lesson.truth for lesson in group}) > 1:
            counts["disputed"] += len(group)
        else:
            kept += group
    return kept


def load_tokenizer(folder: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, or one that has the project's chat template and no more."""
    if folder is not None:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")), chat_template=CHAT_TEMPLATE
    )


def make_pairs(
    lessons: Iterable[Lesson], tokenizer: PreTrainedTokenizerBase, config: FromFeedbackConfig
) -> Iterator[dict[str, Any]]:
    """A pair for every correction of an answer that the model gave."""
    for lesson in lessons:
        feedback = lesson.feedback
        if feedback.is_correct or feedback.answered is None or feedback.source != "model":
            continue
        thinks = config.thinking == "answered" and can_tell_thinking(lesson)
        chosen = _candidate(lesson, lesson.truth, tokenizer, config, thinks=thinks, reward=1.0)
        rejected = _candidate(
            lesson, feedback.answered, tokenizer, config, thinks=thinks, reward=0.0
        )
        yield from pairs([chosen, rejected], "reward", 0.0)


def make_examples(
    lessons: Iterable[Lesson], tokenizer: PreTrainedTokenizerBase, config: FromFeedbackConfig
) -> Iterator[dict[str, Any]]:
    """A right completion for every lesson; only a right answer of the model keeps its reasoning."""
    for lesson in lessons:
        thinks = (
            lesson.feedback.is_correct
            and lesson.feedback.source == "model"
            and can_tell_thinking(lesson)
        )
        yield _candidate(
            lesson, lesson.truth, tokenizer, config, thinks=thinks, reward=1.0
        ).to_row()


def make_cases(lessons: Iterable[Lesson]) -> Iterator[Case]:
    """The cases, each fact once."""
    seen = set()
    for lesson in lessons:
        fact = normalise_for_comparison(lesson.fact.text)
        if fact not in seen:
            seen.add(fact)
            yield Case(_case_id(lesson), lesson.fact.text, lesson.truth, "feedback")


def can_tell_thinking(lesson: Lesson) -> bool:
    """Whether the reasoning was kept and can stand in a completion."""
    thinking = lesson.fact.thinking
    return thinking is not None and THINK_END not in thinking


def _candidate(
    lesson: Lesson,
    verdict: Verdict,
    tokenizer: PreTrainedTokenizerBase,
    config: FromFeedbackConfig,
    *,
    thinks: bool,
    reward: float,
) -> Candidate:
    feedback, fact = lesson.feedback, lesson.fact.text
    if config.tokenizer is not None:
        fact = prepare_fact(tokenizer, fact, config.max_fact_tokens)
    budget = feedback.stated_budget if thinks else BUDGET_LEVELS[0]
    is_own = verdict == feedback.answered and feedback.source == "model"
    return Candidate(
        prompt=render_prompt(tokenizer, fact, budget),
        completion=render_completion((lesson.fact.thinking or "") if thinks else "", verdict),
        reward=reward,
        exact=verdict == lesson.truth,
        thinking_tokens=feedback.thinking_tokens if thinks else 0,
        source=feedback.model if is_own else "feedback",
        columns={"case_id": _case_id(lesson), "budget": budget},
    )


def _case_id(lesson: Lesson) -> str:
    return f"feedback-{lesson.feedback.answer_id[:16]}"


def _unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that say something new, whatever case they are of."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row.get(n) for n in ("prompt", "completion", "chosen", "rejected"))
        kept.setdefault(key, row)
    return list(kept.values())


def _sources(config: FromFeedbackConfig, files: list[Path]) -> list[Path]:
    return [*files, *([config.facts] if config.facts else []), *config.test_corpus]


if __name__ == "__main__":
    run(FromFeedbackConfig, main)
