"""From a finished generation to the reply a client reads."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from curt.artifact import MANIFEST, Manifest
from curt.dialogue import Completion, ParseFailure, parse_completion, render_ruling, render_term
from curt.engines.protocol import Generation
from curt.law.numerals import write_article, write_months
from curt.law.statutes import Tier, tier_of
from curt.law.verdict import TERM_NAMES, Verdict
from serve.answering.checks import fact_warnings, statutory_range, verdict_warnings, warning
from serve.answering.confidence import UNFAMILIAR, Confidence
from serve.api.schemas import Defendant, DegradedReason, Model, PredictReply, Task

if TYPE_CHECKING:
    from curt.classifier.model import Prediction


@dataclass(frozen=True)
class Served:
    """A generation with what the scheduler granted it.

    `fallback` is the classifier's answer where the model gave no full verdict. `unserved` says
    why the model never ran at all; the generation is then empty. What is read off the text is
    read once, whoever asks.
    """

    generation: Generation
    thinking_allowed: int
    stated_budget: int
    fact_clipped: bool
    queue_ms: float
    fallback: Prediction | None = None
    unserved: DegradedReason | None = None

    @property
    def source(self) -> Literal["model", "fallback"]:
        """Who gave the verdict."""
        return "model" if self.fallback is None else "fallback"

    @cached_property
    def completion(self) -> Completion:
        """The generation's text, parsed."""
        return parse_completion(self.generation.text)

    @cached_property
    def degraded_reason(self) -> DegradedReason | None:
        """Why there is no full verdict of the model, or None where there is one."""
        return self.unserved or why_degraded(self.generation, self.completion)

    @property
    def model_verdict(self) -> Verdict | None:
        """The model's own full verdict; a classifier's in its place does not count."""
        if self.degraded_reason is not None:
            return None
        assert isinstance(self.completion.verdict, Verdict)
        return self.completion.verdict

    @property
    def verdict(self) -> Verdict | None:
        """The whole verdict that a reply tells: the model's, else the classifier's, else none."""
        if self.degraded_reason is None:
            return self.model_verdict
        return self.fallback.verdict if self.fallback else None

    def with_fallback(self, answer: Prediction | None) -> Served:
        """The same with a classifier's answer, if there is one."""
        return replace(self, fallback=answer)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model answers: name, manifest hash and what the manifest says."""

    model: Model
    manifest: Manifest
    manifest_sha256: str = ""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Identity:
        """The identity of a model folder whose manifest has been verified."""
        digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        name = folder.resolve().name
        model = Model(name=name, manifest=digest[:12], precision=manifest.precision)
        return cls(model, manifest, digest)


def build_reply(
    served: Served,
    *,
    fact: str,
    tasks: Sequence[Task],
    include_reasoning: bool,
    identity: Identity,
    request_id: str,
    deadline_ms: int,
    total_ms: float,
    variant: str | None = None,
    confidence: Confidence | None = None,
    doubt: str | None = None,
    withheld: Collection[str] = (),
) -> PredictReply:
    """The reply for a served request.

    Where the model gave no full verdict it is degraded: with the classifier's, or without a
    defendant. `doubt` is the code of the warning that the verdict is probably wrong, or that
    nothing can be said of it; `withheld` names the parts of a defendant to leave out for it.
    """
    generation = served.generation
    reason, verdict = served.degraded_reason, served.verdict
    warnings = fact_warnings(fact)
    if served.fact_clipped:
        warnings.append(warning("fact_clipped"))
    if reason is not None and verdict is not None:
        warnings.append(warning("fallback"))
    if verdict is not None:
        warnings += verdict_warnings(verdict)
    if doubt is not None:
        warnings.append(warning(doubt))
    defendants = []
    if verdict is not None:
        # A classifier's verdict says nothing of fines: no fine is not a fine of nothing.
        unsaid = () if reason is None else ("fine_yuan", "ruling")
        defendants.append(_describe(verdict, tasks) | dict.fromkeys((*unsaid, *withheld)))
    sure = served.fallback.confidences if served.fallback and doubt != UNFAMILIAR else None
    # Read at one go: built part by part, the same reply takes several times as long.
    return PredictReply.model_validate(
        {
            "request_id": request_id,
            "model": {
                "name": identity.model.name,
                "manifest": identity.model.manifest,
                "precision": identity.model.precision,
                "variant": variant or identity.model.variant,
            },
            "statute_version": identity.manifest.statute_version,
            "prompt_version": identity.manifest.prompt_version,
            "defendants": defendants,
            "reasoning": served.completion.thinking if include_reasoning else None,
            "thinking": {
                "tokens": generation.thinking_tokens,
                "allowed": served.thinking_allowed,
                "stated_budget": served.stated_budget,
                "cut": generation.thinking_cut,
            },
            "degraded": reason is not None,
            "degraded_reason": reason,
            "source": served.source,
            "confidences": None if sure is None else {str(part): sure[part] for part in sure},
            "confidence": confidence,
            "warnings": warnings,
            "deadline_ms": deadline_ms,
            "timings_ms": {
                "queue": round(served.queue_ms, 2),
                "prefill": round(generation.prefill_ms, 2),
                "decode": round(generation.decode_ms, 2),
                "total": round(total_ms, 2),
            },
        }
    )


def why_degraded(generation: Generation, completion: Completion) -> DegradedReason | None:
    """Why a generation holds no full verdict, or None when it does.

    An answer that was cut is not read, even where its first lines parse: 罚金：2000 may be the
    beginning of 20000元.
    """
    if generation.finish == "deadline":
        return "deadline"
    if generation.finish == "length":
        return "answer_too_long"
    return "unreadable_answer" if isinstance(completion.verdict, ParseFailure) else None


def build_defendant(verdict: Verdict, tasks: Sequence[Task]) -> Defendant:
    """The parts of a verdict that were asked for; the others are None."""
    return Defendant.model_validate(_describe(verdict, tasks))


def _describe(verdict: Verdict, tasks: Sequence[Task]) -> dict[str, object]:
    """The fields of a `Defendant`."""
    return {
        "charges": [{"name": c, "title": f"{c}罪"} for c in verdict.charges]
        if "charge" in tasks
        else None,
        "articles": [{"id": a, "title": write_article(a)} for a in verdict.articles]
        if "article" in tasks
        else None,
        "term": _describe_term(verdict) if "term" in tasks else None,
        "fine_yuan": verdict.fine_yuan if "term" in tasks else None,
        "ruling": render_ruling(verdict) if "ruling" in tasks else None,
    }


def _describe_term(verdict: Verdict) -> dict[str, object]:
    """The fields of a `PredictedTerm`."""
    term = verdict.term
    tier = tier_of(verdict.charges[0], term) if len(verdict.charges) == 1 else None
    return {
        "kind": term.kind,
        "kind_name": TERM_NAMES[term.kind],
        "months": term.months,
        "probation_months": term.probation_months,
        "text": render_term(term)
        + (f"，缓刑{term.probation_months}个月" if term.probation_months else ""),
        "statutory": {
            "in_range": statutory_range(verdict),
            "tier": describe_tier(tier) if tier else None,
        },
    }


@cache
def describe_tier(tier: Tier) -> str:
    """A statutory tier in words: 有期徒刑三年至十年、罚金."""
    parts = []
    if tier.max_months:
        low, high = write_months(tier.min_months), write_months(tier.max_months)
        parts.append(f"有期徒刑{low}至{high}")
    names = (
        ("detention", "拘役"),
        ("surveillance", "管制"),
        ("life", "无期徒刑"),
        ("death", "死刑"),
        ("fine", "罚金或没收财产"),
    )
    return "、".join(parts + [name for field, name in names if getattr(tier, field)])
