"""Make training data of the feedback that a server wrote.

    python -m train.data.feedback --feedback feedback --facts feedback/facts.jsonl \
        --test_corpus artifacts/demo/corpus/test.jsonl --tokenizer artifacts/demo/grpo-default \
        --out artifacts/feedback

| file | a row |
|---|---|
| pairs.jsonl | `prompt`, `chosen` (the correction), `rejected` (what was answered): view `pairs` |
| sft.jsonl | a prompt and the completion that was right or should have been: view `shortest` |
| cases.jsonl | the facts with the right verdict, for `train.sft` and `train.grpo` |
| manifest.json | what it was made from, every count, the hash of every file |

Nobody wrote a reasoning for a correction. So both sides of a pair answer at once under a budget of
0 (`--thinking none`), or both share the reasoning that was given, under its budget (`--thinking
answered`): then only the answers differ, which is all a preference loss sees.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasPath, BaseModel, Field, PlainValidator

from curt.artifact import load_manifest
from curt.classifier.candidates import load_prompts
from curt.config import Config, run
from curt.corpus.build.contamination import HeldOut
from curt.corpus.build.fingerprint import normalise_for_comparison
from curt.corpus.case import Case
from curt.corpus.redaction import redact
from curt.corpus.store import read_cases, write_cases
from curt.dialogue import (
    BUDGET_LEVELS,
    CHAT_TEMPLATE,
    GRAMMAR_VERSION,
    PROMPT_VERSION,
    THINK_END,
    Prompts,
    normalise_fact,
    render_completion,
)
from curt.engines.tokenizer import PromptTokenizer
from curt.files import sha256, whole_folder, write_json, write_rows
from curt.law.verdict import Verdict
from train.data.candidates import Candidate
from train.data.views import pairs

logger = logging.getLogger(__name__)

SCHEMA = 1  # of the manifest
_MARK = "\x00"  # separates a fact from its reasoning while both are redacted as one text


class FeedbackConfig(Config):
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
    """Model folder whose prompts to use; else those of the project's chat template, with whole
    facts and no candidates."""
    thinking: Literal["none", "answered"] = "none"
    """Which reasoning both sides of a pair have."""


def _read_verdict(row: Mapping[str, Any] | None) -> Verdict | None:
    return None if row is None else Verdict.from_json(row)


def _of_answer(name: str) -> Any:
    return Field(validation_alias=AliasPath("answer", name))


GivenVerdict = Annotated[Verdict | None, PlainValidator(_read_verdict)]


class Feedback(BaseModel, frozen=True):
    """The newest feedback on one answer, read from a line of the server's file."""

    row_schema: Literal[1] = Field(validation_alias="schema")
    request_id: str
    at_s: float
    verdict: Literal["correct", "wrong"]
    correction: GivenVerdict
    answer_id: str = _of_answer("answer_id")
    answered: GivenVerdict = _of_answer("verdict")
    source: str = _of_answer("source")
    """Who gave the verdict: "model" or "fallback"."""
    model: str = _of_answer("model")
    manifest: str = _of_answer("manifest")
    stated_budget: int = _of_answer("stated_budget")
    thinking_tokens: int = _of_answer("thinking_tokens")
    prompt_version: str = _of_answer("prompt_version")

    @property
    def truth(self) -> Verdict | None:
        """The right verdict: the one answered, or its correction; None where none was given."""
        return self.answered if self.verdict == "correct" else self.correction


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, and the reasoning of the answer on it; None where that was not kept."""

    text: str
    thinking: str | None


@dataclass(frozen=True, slots=True)
class UsableFeedback:
    """Feedback to train on: with its redacted fact and the right verdict, and of no test case."""

    feedback: Feedback
    fact: Fact
    truth: Verdict


@dataclass(slots=True)
class FeedbackCounts:
    """Lines by why they were not used, and masked text by its kind."""

    counts: Counter[str]
    redactions: Counter[str]


def main(config: FeedbackConfig) -> None:
    """Make the folder and say what is in it and what could not be used."""
    manifest = make_dataset(config)
    logger.info("%s: %s", config.out, json.dumps(manifest["rows"]))
    logger.info("not used: %s", json.dumps(manifest["not_used"]))


def make_dataset(config: FeedbackConfig) -> dict[str, Any]:
    """Write the folder in one go and return its manifest.

    Raises ValueError when a source can't be read, or nothing can be made of it, with the reasons.
    """
    counted = FeedbackCounts(Counter(), Counter())
    files = find_files(config.feedback)
    latest = read_latest(files, counted.counts)
    facts = read_facts(config.facts, {f.answer_id for f in latest} | {f.request_id for f in latest})
    held_out = HeldOut.build(
        (case.id, case.fact) for path in config.test_corpus for case in read_cases(path)
    )
    usable = list(keep_usable(latest, facts, held_out, config, counted))
    usable = drop_disputed(usable, counted.counts)
    if not usable:
        raise ValueError(f"nothing can be made of this feedback: {dict(counted.counts)}")
    if not config.test_corpus:
        logger.warning("no --test_corpus: test cases among these facts are not found")
    prompts = make_prompts(config.tokenizer)
    rows = {
        "pairs.jsonl": _unique(make_pairs(usable, prompts, config)),
        "sft.jsonl": _unique(make_examples(usable, prompts)),
    }
    with whole_folder(config.out) as folder:
        for name, table in rows.items():
            write_rows(folder / name, table)
        cases = write_cases(folder / "cases.jsonl", make_cases(usable))
        manifest = {
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "config": config.model_dump(mode="json"),
            "prompt_version": PROMPT_VERSION,
            "sources": {str(path): sha256(path) for path in _sources(config, files)},
            "contamination_checked": bool(config.test_corpus),
            "lines": counted.counts["lines"],
            "answers": len(latest),
            "used": len(usable),
            "not_used": {
                reason: count
                for reason, count in sorted(counted.counts.items())
                if reason != "lines"
            },
            "redactions": dict(counted.redactions),
            "rows": {name: len(table) for name, table in rows.items()} | {"cases.jsonl": cases},
            "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def find_files(sources: Iterable[Path]) -> list[Path]:
    """The files of feedback in the order they were written.

    Raises ValueError for a path that doesn't exist and a folder without such files.
    """
    files = []
    for source in sources:
        if source.is_dir():
            full = sorted(source.glob("feedback-[0-9]*.jsonl"), key=lambda p: (len(p.name), p.name))
            last = source / "feedback.jsonl"
            found = full + ([last] if last.is_file() else [])
            if not found:
                raise ValueError(f"{source} holds no feedback.jsonl: give a server's folder")
            files += found
        elif source.is_file():
            files.append(source)
        else:
            raise ValueError(f"no feedback in {source}: give files or folders that exist")
    return files


def read_latest(files: Iterable[Path], counts: Counter[str]) -> list[Feedback]:
    """The newest feedback on every answer; unreadable and superseded lines are counted.

    The later time wins, then the later line.
    """
    latest: dict[str, Feedback] = {}
    for path in files:
        with open(path, "rb") as file:
            for line in file:
                counts["lines"] += 1
                try:
                    feedback = Feedback.model_validate_json(line)
                except (ValueError, KeyError, TypeError):
                    counts["unreadable line"] += 1
                    continue
                earlier = latest.get(feedback.answer_id)
                if earlier:
                    counts["superseded"] += 1
                if earlier is None or feedback.at_s >= earlier.at_s:
                    latest[feedback.answer_id] = feedback
    return list(latest.values())


def read_facts(path: Path | None, wanted: set[str]) -> dict[str, Fact]:
    """Facts whose id is in `wanted`: by answer id, or by request id where a line has no answer id.

    Raises ValueError naming the line that can't be read.
    """
    facts: dict[str, Fact] = {}
    if path is None:
        return facts
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                key = str(row.get("answer_id") or row["request_id"])
                fact = Fact(str(row["fact"]), row.get("thinking"))
            except (ValueError, KeyError, AttributeError):
                raise ValueError(
                    f"{path}:{number} is no fact: give lines with request_id and fact"
                ) from None
            if key in wanted:
                facts[key] = fact
    return facts


def keep_usable(
    latest: Iterable[Feedback],
    facts: Mapping[str, Fact],
    held_out: HeldOut,
    config: FeedbackConfig,
    counted: FeedbackCounts,
) -> Iterator[UsableFeedback]:
    """Feedback to train on, redacted; the rest is counted by its reason."""
    for feedback in latest:
        fact = facts.get(feedback.answer_id) or facts.get(feedback.request_id)
        reason = None
        if feedback.prompt_version not in (PROMPT_VERSION, GRAMMAR_VERSION):
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
                counted.redactions.update(found)
                yield UsableFeedback(feedback, clean, feedback.truth)
        if reason:
            counted.counts[reason] += 1


def redact_fact(fact: Fact) -> tuple[Fact, dict[str, int]]:
    """A fact and its reasoning without what identifies people, and how much of each kind.

    Redacted as one text, because a reasoning names people without the words that introduce them.
    """
    text, thinking = normalise_fact(fact.text), (fact.thinking or "").replace(_MARK, "")
    clean, found = redact(text + _MARK + thinking)
    text, _, thinking = clean.partition(_MARK)
    return Fact(text, None if fact.thinking is None else thinking), found


def drop_disputed(usable: Iterable[UsableFeedback], counts: Counter[str]) -> list[UsableFeedback]:
    """Leave out and count feedback on facts for which people call different verdicts right."""
    by_fact: dict[str, list[UsableFeedback]] = {}
    for item in usable:
        by_fact.setdefault(normalise_for_comparison(item.fact.text), []).append(item)
    kept = []
    for group in by_fact.values():
        if len({item.truth for item in group}) > 1:
            counts["disputed"] += len(group)
        else:
            kept += group
    return kept


def make_prompts(folder: Path | None) -> Prompts:
    """The prompts of a model folder, or those of the project's chat template.

    Raises ArtifactError when the folder must not be used.
    """
    if folder is not None:
        manifest = load_manifest(folder)
        return load_prompts(folder, PromptTokenizer(folder), manifest.max_fact_tokens)
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")), chat_template=CHAT_TEMPLATE
    )
    return Prompts(tokenizer, None)


def make_pairs(
    usable: Iterable[UsableFeedback], prompts: Prompts, config: FeedbackConfig
) -> Iterator[dict[str, Any]]:
    """A pair for every correction of an answer that the model gave."""
    for item in usable:
        feedback = item.feedback
        if feedback.verdict == "correct" or feedback.answered is None or feedback.source != "model":
            continue
        thinks = config.thinking == "answered" and has_usable_thinking(item)
        chosen = _candidate(item, item.truth, prompts, thinks=thinks, reward=1.0)
        rejected = _candidate(item, feedback.answered, prompts, thinks=thinks, reward=0.0)
        yield from pairs([chosen, rejected], "reward", 0.0)


def make_examples(usable: Iterable[UsableFeedback], prompts: Prompts) -> Iterator[dict[str, Any]]:
    """A right completion for each; only a right answer of the model keeps its reasoning."""
    for item in usable:
        thinks = (
            item.feedback.verdict == "correct"
            and item.feedback.source == "model"
            and has_usable_thinking(item)
        )
        yield _candidate(item, item.truth, prompts, thinks=thinks, reward=1.0).to_row()


def make_cases(usable: Iterable[UsableFeedback]) -> Iterator[Case]:
    """The cases, each fact once."""
    seen = set()
    for item in usable:
        fact = normalise_for_comparison(item.fact.text)
        if fact not in seen:
            seen.add(fact)
            yield Case(_case_id(item), item.fact.text, item.truth, "feedback")


def has_usable_thinking(item: UsableFeedback) -> bool:
    """Whether the reasoning was kept and doesn't end itself with a closing mark."""
    thinking = item.fact.thinking
    return thinking is not None and THINK_END not in thinking


def _candidate(
    item: UsableFeedback,
    verdict: Verdict,
    prompts: Prompts,
    *,
    thinks: bool,
    reward: float,
) -> Candidate:
    feedback = item.feedback
    budget = feedback.stated_budget if thinks else BUDGET_LEVELS[0]
    is_own = verdict == feedback.answered and feedback.source == "model"
    return Candidate(
        prompt=prompts.text(item.fact.text, budget),
        completion=render_completion((item.fact.thinking or "") if thinks else "", verdict),
        reward=reward,
        exact=verdict == item.truth,
        thinking_tokens=feedback.thinking_tokens if thinks else 0,
        source=f"{feedback.model}@{feedback.manifest}" if is_own else "feedback",
        columns={"case_id": _case_id(item), "budget": budget},
    )


def _case_id(item: UsableFeedback) -> str:
    return f"feedback-{item.feedback.answer_id[:16]}"


def _unique(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with different texts, the first of each."""
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = tuple(row.get(n) for n in ("prompt", "completion", "chosen", "rejected"))
        kept.setdefault(key, row)
    return list(kept.values())


def _sources(config: FeedbackConfig, files: list[Path]) -> list[Path]:
    return [*files, *([config.facts] if config.facts else []), *config.test_corpus]


if __name__ == "__main__":
    run(FeedbackConfig, main)
