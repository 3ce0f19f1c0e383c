"""From a finished generation to the reply a client reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from datetime import date
from functools import cache

from fastapi import Request
from fastapi.responses import Response

from curt.classifier.candidates import parse_candidates
from curt.corpus.deed import deed_day
from curt.corpus.kinds import kind_of
from curt.dialogue import render_ruling, render_term
from curt.law.numerals import write_article, write_months
from curt.law.statutes import Tier, law_day, tier_of, version_on
from curt.law.verdict import TERM_NAMES, Verdict
from serve.answering.answering import Answering, Way
from serve.answering.checks import fact_warnings, statutory_range, verdict_warnings, warning
from serve.answering.confidence import UNFAMILIAR, WITHHELD, Confidence
from serve.api.schemas import BatchReply, Defendant, PredictReply, PredictRequest, Task
from serve.metrics import Metrics
from serve.served import Identity, Served
from serve.settings import Settings

Observer = Callable[[Request, PredictRequest, Served, PredictReply], None]
"""Told of every reply that goes out: request, its body, what was served, the reply."""


class Replies:
    """Builds the replies of all routes, counts them and tells the observers of each."""

    def __init__(self, answering: Answering, settings: Settings, metrics: Metrics) -> None:
        self.observers: list[Observer] = []
        self._answering, self._settings, self._metrics = answering, settings, metrics

    def reply_to(self, request: Request, body: PredictRequest, served: Served) -> PredictReply:
        """Build, record and return the reply to a served request."""
        state = request.state
        way: Way = state.way
        served = self._answering.settle(request, body.fact, served)
        confidence, doubt = self._answering.assess(request, body.fact, served, top_k=body.top_k)
        holds_back = doubt is not None and body.on_low_confidence == "interval"
        reply = build_reply(
            served,
            fact=body.fact,
            date_given=body.date,
            tasks=body.tasks,
            include_reasoning=body.include_reasoning,
            identity=way.identity,
            request_id=state.request_id,
            deadline_ms=self._settings.deadline_ms(body.deadline_ms),
            total_ms=(time.monotonic() - state.started_s) * 1e3,
            variant=way.name,
            confidence=confidence,
            doubt=doubt,
            beyond=self._answering.figures_beyond(request, body.fact, served),
            withheld=WITHHELD if holds_back else (),
        )
        if not getattr(state, "background", False):  # a case of a batch says nothing of the load
            self._record(request, served, reply)
            for observe in self.observers:
                observe(request, body, served, reply)
        return reply

    def _record(self, request: Request, served: Served, reply: PredictReply) -> None:
        timings, thinking, generation = reply.timings_ms, reply.thinking, served.generation
        request.state.log.update(
            outcome=self._metrics.record_answer(
                served, total_ms=timings.total, deadline_ms=reply.deadline_ms
            ),
            deadline_ms=reply.deadline_ms,
            queue_ms=timings.queue,
            prefill_ms=timings.prefill,
            decode_ms=timings.decode,
            prompt_tokens=generation.prompt_tokens,
            thinking_tokens=thinking.tokens,
            thinking_allowed=thinking.allowed,
            thinking_cut=thinking.cut,
            answer_tokens=generation.answer_tokens,
            degraded=reply.degraded_reason,
            source=reply.source,
            warnings=[caution.code for caution in reply.warnings],
        )


def to_response(reply: PredictReply | BatchReply) -> Response:
    """The HTTP response of a reply, serialised once: FastAPI would validate the reply again."""
    data = type(reply).__pydantic_serializer__.to_json(reply)  # bytes, which model_dump_json is not
    return Response(data, media_type="application/json")


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
    date_given: date | None = None,
    variant: str | None = None,
    confidence: Confidence | None = None,
    doubt: str | None = None,
    beyond: Sequence[str] = (),
    withheld: Collection[str] = (),
) -> PredictReply:
    """The reply for a served request.

    Where the model gave no full verdict the reply is degraded: it has the classifier's verdict and
    no reasoning, or no defendant. Nor has it reasoning where the model was overruled. `doubt` is
    the code of a warning: the verdict is probably wrong, or no probability can be given;
    `withheld` names the parts of a defendant that are left out because of it. `beyond` are figures
    unlike all that were trained on. `date_given` is the day of the deed where the client tells it.
    """
    generation = served.generation
    led_here = include_reasoning and served.source == "model"
    thinking = served.completion.thinking if led_here else None
    reason, verdict = served.degraded_reason, served.verdict
    law = law_day(identity.manifest.statute_version)  # the model's own, which the reply names
    day = date_given or deed_day(fact)
    version = version_on(day) if day and day <= date.today() else None
    day = day if version else None  # the table holds no other law
    kind = kind_of(fact)
    warnings = fact_warnings(fact, kind)
    if beyond:
        warnings.append(warning("figure_out_of_range", "、".join(beyond)))
    if generation.left_out:
        warnings.append(warning("fact_clipped"))
    if reason is None and served.short_thinking:
        warnings.append(warning("short_thinking"))
    if reason is not None and verdict is not None:
        warnings.append(warning("fallback"))
    if served.overruled and (own := served.model_verdict):
        said = f"{'、'.join(own.charges)}，{render_term(own.term)}"
        warnings.append(warning("overruled", said))
    if verdict is not None:
        warnings += verdict_warnings(verdict, law, day, fact)
    if doubt is not None:
        warnings.append(warning(doubt))
    defendants = []
    if verdict is not None:
        # The classifier does not predict fines, which is not the same as predicting none.
        unsaid = () if reason is None else ("fine_yuan", "ruling")
        defendants.append(
            _describe(verdict, tasks, day or law) | dict.fromkeys((*unsaid, *withheld))
        )
    sure = served.fallback.confidences if served.fallback and doubt != UNFAMILIAR else None
    # Validated as one dict: building the models part by part takes several times as long.
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
            "law": {
                "version": version or identity.manifest.statute_version,
                "day": day,
                "told_by": ("request" if date_given else "fact") if day else None,
            },
            "kind": kind,
            "defendants": defendants,
            "reasoning": thinking,
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
            "left_out": {
                "characters": generation.left_out.characters,
                "sentences": generation.left_out.sentences,
            }
            if generation.left_out
            else None,
            "proposed": _describe_candidates(generation.candidates)
            if generation.candidates
            else None,
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


def build_defendant(verdict: Verdict, tasks: Sequence[Task], law: date | None = None) -> Defendant:
    """The parts of a verdict that were asked for, by the `law` of a day; the others are None."""
    return Defendant.model_validate(_describe(verdict, tasks, law))


def _describe(
    verdict: Verdict, tasks: Sequence[Task], law: date | None = None
) -> dict[str, object]:
    """The fields of a `Defendant`."""
    return {
        "charges": [{"name": c, "title": f"{c}罪"} for c in verdict.charges]
        if "charge" in tasks
        else None,
        "articles": [{"id": a, "title": write_article(a)} for a in verdict.articles]
        if "article" in tasks
        else None,
        "term": _describe_term(verdict, law) if "term" in tasks else None,
        "fine_yuan": verdict.fine_yuan if "term" in tasks else None,
        "ruling": render_ruling(verdict) if "ruling" in tasks else None,
    }


def _describe_candidates(line: str) -> dict[str, object]:
    """The fields of a `Proposed`."""
    proposed = parse_candidates(line)
    low, high = proposed.months
    return {
        "charges": [
            {"name": name, "title": f"{name}罪", "probability": probability}
            for name, probability in proposed.charges.items()
        ],
        "articles": [{"id": a, "title": write_article(a)} for a in proposed.articles],
        "term": {
            "text": proposed.terms,
            "answer": proposed.term,
            "low_months": low,
            "high_months": high,
        },
        "harm": proposed.harm or None,
        "circumstances": list(proposed.circumstances),
    }


def _describe_term(verdict: Verdict, law: date | None) -> dict[str, object]:
    """The fields of a `PredictedTerm`."""
    term = verdict.term
    tier = tier_of(verdict.charges[0], term, law) if len(verdict.charges) == 1 else None
    return {
        "kind": term.kind,
        "kind_name": TERM_NAMES[term.kind],
        "months": term.months,
        "probation_months": term.probation_months,
        "text": render_term(term)
        + (f"，缓刑{term.probation_months}个月" if term.probation_months else ""),
        "statutory": {
            "in_range": statutory_range(verdict, law),
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
