"""How sure the server is of a verdict, by the fallback classifier.

A `Reading` is one pass of the classifier over a fact. Where the model folder's reader is the same
classifier, the worker has made it for the prompt and sends its findings; else the front makes it.
From it come the probabilities that `python -m compress.classifier.train` fitted
for charges and terms, and those that `python -m compress.classifier.agreement` fitted for the
verdicts of one language model, which are used for that very model folder only.

All of them hold for cases like those they were fitted on. For a fact unlike those
(`Reading.unfamiliar`) none is given: programs act on a number even where a warning beside it says
that it does not hold.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict

from curt.classifier.confidence import (
    DEFAULT_COVERAGE,
    Agreement,
    Doubles,
    Floats,
    Odds,
    around,
    coverage_index,
    in_dispute,
    logit_of,
    thought_evidence,
)
from curt.classifier.model import Classifier, Reading
from curt.dialogue import render_term
from curt.law.term_scale import TermInterval
from curt.law.verdict import MAX_SUSPENDED_MONTHS, TERM_NAMES, Term, TermKind, Verdict
from serve.served import Source

logger = logging.getLogger(__name__)

LOW_CONFIDENCE = "low_confidence"  # code of the warning where `Confidence.abstain` is set
UNFAMILIAR = "unfamiliar_text"  # code of the warning where probabilities don't hold
DEFAULT_TOP_K, MAX_TOP_K = 3, 20
DEFAULT_ABSTAIN_BELOW = 0.5
# Parts of a defendant to leave out where confidence is low and the client asked for intervals.
WITHHELD: dict[str, None] = {"term": None, "fine_yuan": None, "ruling": None}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class LikelyCharge(_Part):
    """A charge that may be in the verdict, answered or not."""

    name: str
    title: str
    probability: float
    """Calibrated probability that the charge is in the verdict; they need not add up to 1."""


class TermEnd(_Part):
    """One end of an interval of terms."""

    kind: TermKind
    kind_name: str
    months: int
    text: str


class LikelyTerm(_Part):
    """Two penalties between which, in severity, the court's lies with the stated coverage.

    A month of 管制 counts half; life and death lie above every number of months.
    """

    low: TermEnd
    high: TermEnd
    coverage: float
    """Share of cases whose term lies in such an interval, over cases like those fitted on."""
    basis: Literal["model", "classifier"]
    """Whether it lies around the model's own term or comes from the classifier alone."""


class Probabilities(_Part):
    """Calibrated probabilities that the given verdict is right."""

    charge: float
    """That the charges are exactly right."""
    term: float
    """That the term is near enough for the full CAIL2018 score."""
    verdict: float
    """That both are."""


class Confidence(_Part):
    """How sure a verdict is.

    Where this model's answers were never compared with the truth, `probabilities` is null and
    `abstain` false.
    """

    charges: list[LikelyCharge]
    term_interval: LikelyTerm
    probabilities: Probabilities | None
    abstain: bool
    """Whether the verdict is less probably right than the server's threshold."""


class ConfidenceReader:
    """Assesses verdicts with one classifier for one served model."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        model_manifest: str | None = None,
        coverage: float = DEFAULT_COVERAGE,
        abstain_below: float = DEFAULT_ABSTAIN_BELOW,
    ) -> None:
        """`model_manifest` is the SHA-256 of the served model's manifest, or its first digits.

        Raises ValueError for a classifier folder without probabilities, a coverage that was not
        fitted, or a threshold outside 0..1.
        """
        if classifier.assessor is None:
            raise ValueError(
                "the classifier folder has no probabilities: make it again with "
                "`python -m compress.classifier.train`"
            )
        if not 0 <= abstain_below <= 1:
            raise ValueError(f"abstain_below of {abstain_below}: use 0 to 1")
        self._classifier, self._assessor = classifier, classifier.assessor
        self._abstain_below = abstain_below
        self._coverage = coverage
        coverage_index(self._assessor.fit.coverages, coverage)
        self._agreement = _agreement_for(classifier.agreement, model_manifest)
        if self._agreement is not None:
            coverage_index(self._agreement.coverages, coverage)

    def overrule(self, verdict: Verdict, reading: Reading) -> Verdict | None:
        """What to answer in place of a model's `verdict`; None where that stands.

        It stands unless the classifier has another one and was right more often in such disputes
        (`Disputes`). Probation and fine, which the classifier can't tell, stay the model's.
        """
        disputes = self._agreement.disputes if self._agreement else None
        if not disputes or not disputes.is_overruled or reading.scores is None:
            return None
        own = self._classifier.read(reading.scores).verdict
        if not in_dispute(verdict, own):
            return None
        may_be_suspended = own.term.kind in ("fixed", "detention") and (
            own.term.months <= MAX_SUSPENDED_MONTHS
        )
        probation_months = verdict.term.probation_months if may_be_suspended else 0
        term = replace(own.term, probation_months=probation_months)
        return replace(own, term=term, fine_yuan=verdict.fine_yuan)

    def assess(
        self,
        fact: str,
        verdict: Verdict,
        thinking_cut: bool,
        *,
        thinking_tokens: int = 0,
        source: Source = "model",
        top_k: int = DEFAULT_TOP_K,
        reading: Reading | None = None,
    ) -> Confidence | None:
        """How sure a verdict on a raw fact is; None where the fact holds no letter or digit.

        `thinking_tokens` is how far cut thinking came, or 0, the cautious guess, if unknown.
        `source` says whose verdict it is; `reading` is that of the fact, if there is one already.
        Raises ValueError on a `top_k` below 1.
        """
        reading = reading or self._classifier.reading(fact)
        scores, sure = reading.scores, reading.sure
        if scores is None or sure is None:
            return None
        thought = thought_evidence(thinking_cut, thinking_tokens)
        odds = self._odds(scores, sure, verdict, thought, source)
        likely = self._assessor.top_charges(scores, min(top_k, MAX_TOP_K), sure=sure)
        told: dict[str, object] = {
            "charges": [
                {"name": name, "title": f"{name}罪", "probability": _rounded(probability)}
                for name, probability in likely
            ],
            "term_interval": self._interval(scores, verdict, source, odds),
            "probabilities": None,
            "abstain": False,
        }
        if odds is not None:
            told["probabilities"] = {
                "charge": _rounded(odds.charge),
                "term": _rounded(odds.term),
                "verdict": _rounded(odds.verdict),
            }
            told["abstain"] = odds.verdict < self._abstain_below
        return Confidence.model_validate(told)  # in one call: part by part takes ten times as long

    def _odds(
        self,
        scores: Floats,
        sure: Doubles,
        verdict: Verdict,
        thought: tuple[float, float],
        source: Source,
    ) -> Odds | None:
        if source == "fallback":
            own = self._classifier.read(scores).confidences
            charge, term = own["charge"], own["term"]
            evidence = logit_of(charge), logit_of(term)
            return Odds(charge, term, self._assessor.fit.verdict.confidence(evidence))
        if self._agreement is None:
            return None
        if source == "overruled":
            return self._agreement.disputes.odds if self._agreement.disputes else None
        return self._assessor.agree(scores, verdict, thought, self._agreement, sure=sure)

    def _interval(
        self,
        scores: Floats,
        verdict: Verdict,
        source: Source,
        odds: Odds | None,
    ) -> dict[str, object]:
        if source == "model" and self._agreement is not None and odds is not None:
            fitted = self._agreement.coverages
            place = coverage_index(fitted, self._coverage)
            group = self._agreement.group_of(odds.term)
            found = around(verdict.term, verdict.charges, group, place)
            return _describe(found, fitted[place], "model")
        fitted = self._assessor.fit.coverages
        found = self._assessor.interval(scores, verdict.charges, self._coverage)
        return _describe(found, fitted[coverage_index(fitted, self._coverage)], "classifier")


def _agreement_for(fit: Agreement | None, model_manifest: str | None) -> Agreement | None:
    """The fit if it is of the served model, else None: another model errs in other ways."""
    if fit is None or model_manifest is None:
        return None
    if model_manifest and fit.manifest_sha256.startswith(model_manifest):
        return fit
    logger.warning(
        "the classifier folder judges %s (manifest %s), not the served model (manifest %s): "
        "run `python -m compress.classifier.agreement` for it",
        fit.model,
        fit.manifest_sha256[:12],
        model_manifest[:12],
    )
    return None


def _describe(
    interval: TermInterval, coverage: float, basis: Literal["model", "classifier"]
) -> dict[str, object]:
    """The fields of a `LikelyTerm`."""
    low, high = _end(interval.low), _end(interval.high)
    return {"low": low, "high": high, "coverage": coverage, "basis": basis}


def _end(term: Term) -> dict[str, object]:
    """The fields of a `TermEnd`; probation is no part of the text."""
    return {
        "kind": term.kind,
        "kind_name": TERM_NAMES[term.kind],
        "months": term.months,
        "text": render_term(term),
    }


def _rounded(probability: float) -> float:
    return round(probability, 4)
