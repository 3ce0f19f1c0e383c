"""How sure a verdict is: charges with probabilities, an interval for the term, agreement.

Everything here reads the scores that `curt.classifier.model` computes anyway, with figures fitted
on cases the classifier was not trained on (`compress.classifier.confidence`):

- the probability that a charge is in the verdict, Platt-scaled from its score and its lead over
  the best other charge, then corrected by isotonic regression, so that a charge that scores higher
  never gets the lower probability;
- a term interval by conformalised quantile regression (Romano et al., 2019): quantiles of the
  tempered shares of the bins, widened by what the development cases of the same predicted charge
  needed (Mondrian where there are enough of them) and clipped to the statutory tiers;
- the probability that another model's verdict is right, given what the classifier thinks of it,
  and an interval around that model's term.

Some true terms lie outside the tiers (article 63, exemption). They count as missed by a clipped
interval when margins are fitted, so that the stated coverage holds with clipping.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import Field

from curt.config import FrozenModel
from curt.law.term_scale import (
    DEATH,
    TermInterval,
    legal_range,
    severity,
    to_interval,
)
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import CAIL_TERM_STEPS, is_exact

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

COVERAGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DEFAULT_COVERAGE = 0.8
MAX_GAP = 4.0  # bounds a charge's lead over the best other one, in the scores' own unit
MAX_LOGIT = 6.0  # bounds the evidence of a fit: a probability of 0.0025 or 0.9975
POOL = ""  # the group of all charges with too few cases for one of their own
_FULL_SCORE = CAIL_TERM_STEPS[0][0]  # largest distance that earns the full CAIL2018 term score


class Calibration(FrozenModel):
    """Platt scaling: confidence = sigmoid(weights · evidence + bias)."""

    weights: tuple[float, ...]
    bias: float

    def confidence(self, evidence: tuple[float, ...]) -> float:
        """The probability, in [0, 1], that an answer with this evidence is right."""
        logit = self.bias + sum(w * e for w, e in zip(self.weights, evidence, strict=True))
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, logit))))


class AgreementGroup(FrozenModel):
    """How much intervals of a group of cases are widened, for each coverage.

    A margin is None where only the whole scale is wide enough. `clip` says whether intervals are
    cut to the statutory tiers, which is wrong where too many of the group's terms lie outside.
    """

    cases: int
    clip: tuple[bool, ...]
    margins: tuple[float | None, ...]


class Uncertainty(FrozenModel):
    """What is fitted with the classifier, on its development cases.

    `charge` calibrates the score of a charge and its lead; the result is corrected by interpolation
    between rising `knots` of (logit, probability). `verdict` calibrates the logits of the
    classifier's own confidences for charge and term. `temperature` softens the shares of the bins
    of terms, each `bin_width` wide in severity. `groups` go by the charge that scores best.
    """

    charge: Calibration
    knots: tuple[tuple[float, float], ...] = ()
    verdict: Calibration
    temperature: float = Field(gt=0)
    bin_width: float = Field(gt=0)
    coverages: tuple[float, ...] = COVERAGES
    groups: dict[str, AgreementGroup]


class Disputes(FrozenModel):
    """Who was right where a language model's verdict was `in_dispute` with the classifier's own.

    Of `cases` development cases, one answer each at the largest budget. The model `is_overruled`
    where the classifier's verdict was nearer the truth so much more often that it is no chance.
    The counts named `right` are the classifier's too.
    """

    cases: int
    model_nearer: int
    classifier_nearer: int
    classifier_right: int
    charge_right: int
    term_right: int
    is_overruled: bool

    @property
    def odds(self) -> Odds:
        """Of the classifier's verdict in a dispute, by the rule of succession."""
        right = (self.charge_right, self.term_right, self.classifier_right)
        return Odds(*((count + 1) / (self.cases + 2) for count in right))


def in_dispute(verdict: Verdict, own: Verdict) -> bool:
    """Whether a model's verdict is another than the classifier's, with as many charges.

    A charge more is no dispute: of real development cases the classifier was right about it in
    one of twelve, the model without it in nine.
    """
    return not is_exact(verdict, own) and len(verdict.charges) == len(own.charges)


class Agreement(FrozenModel):
    """What is fitted on one language model's answers (`compress.classifier.agreement`).

    `charge` calibrates the logit of the classifier's probability of the model's charges together
    with `thought_evidence`, `term` the same for the term, `verdict` both logits together. `groups`
    hold margins around the model's term: the first for terms whose probability is below the first
    of `edges`, and one more from each edge on. Fits of before lack `disputes`.
    """

    model: str
    manifest_sha256: str
    charge: Calibration
    term: Calibration
    verdict: Calibration
    coverages: tuple[float, ...] = COVERAGES
    edges: tuple[float, ...]
    groups: tuple[AgreementGroup, ...]
    disputes: Disputes | None = None

    def group_of(self, term_probability: float) -> AgreementGroup:
        """The group of an answer, given the calibrated probability of its term."""
        return self.groups[place_in(self.edges, term_probability)]


@dataclass(frozen=True, slots=True)
class Odds:
    """Probabilities that the charges, the term (full CAIL2018 score) and both are right."""

    charge: float
    term: float
    verdict: float


class Assessor:
    """Reads probabilities and intervals off the classifier's scores."""

    def __init__(
        self, charges: Sequence[str], terms: Sequence[Term], first_term: int, fit: Uncertainty
    ) -> None:
        self.charges, self.fit = tuple(charges), fit
        self._columns = {charge: i for i, charge in enumerate(self.charges)}
        self._terms = slice(first_term, first_term + len(terms))
        self._weights = np.array(fit.charge.weights)
        knots = np.array(fit.knots, np.float64).reshape(-1, 2)
        self._knots = np.ascontiguousarray(knots.T)  # logits, probabilities
        places = np.array([severity(term) for term in terms])
        # A bin's mass lies evenly over its width, around the term that stands for it.
        edges = np.concatenate([places - fit.bin_width / 2, places + fit.bin_width / 2])
        self.grid = np.unique(edges)
        below = (self.grid[None, :] - places[:, None]) / fit.bin_width + 0.5
        self._below = np.clip(below, 0.0, 1.0)  # (bins, grid)

    def charge_probabilities(self, scores: Floats) -> Doubles:
        """For each charge, the probability that it is in the verdict; shape (charges,)."""
        evidence = charge_evidence(scores[: len(self.charges)])
        logits = evidence @ self._weights + self.fit.charge.bias
        if not self._knots.size:
            return _sigmoid(logits)
        corrected: Doubles = np.interp(logits, *self._knots)
        return corrected

    def top_charges(
        self, scores: Floats, top_k: int, *, sure: Doubles | None = None
    ) -> tuple[tuple[str, float], ...]:
        """The likeliest charges, best first. Raises ValueError when `top_k` is below 1.

        `sure` are the `charge_probabilities`, where they are known already.
        """
        if top_k < 1:
            raise ValueError(f"top_k of {top_k}: use 1 or more")
        order = (-scores[: len(self.charges)]).argsort(kind="stable")[:top_k].tolist()
        probabilities = self.charge_probabilities(scores) if sure is None else sure
        return tuple((self.charges[i], float(probabilities[i])) for i in order)

    def group_name(self, scores: Floats) -> str:
        """The charge that scores best where it has a group of its own, else `POOL`."""
        best = self.charges[int(np.argmax(scores[: len(self.charges)]))]
        return best if best in self.fit.groups else POOL

    def distribution(self, scores: Floats) -> Doubles:
        """Probability that the term lies at or below each point of the grid."""
        logits = scores[self._terms].astype(np.float64) / self.fit.temperature
        shares = np.exp(logits - logits.max())
        cumulative: Doubles = (shares / shares.sum()) @ self._below
        return cumulative

    def quantiles(self, scores: Floats, coverage: float) -> tuple[float, float]:
        """Severities that leave the same share of the classifier's distribution on each side."""
        tail = (1 - coverage) / 2
        rising = self.distribution(scores) + np.arange(len(self.grid)) * 1e-12
        low, high = np.interp([tail, 1 - tail], rising, self.grid)
        return max(0.0, float(low)), min(DEATH, float(high))

    def interval(
        self, scores: Floats, charges: Sequence[str], coverage: float = DEFAULT_COVERAGE
    ) -> TermInterval:
        """Where the term lies with a stated coverage, for a verdict of these charges.

        Raises ValueError on a coverage above those fitted or not above 0.
        """
        place = coverage_index(self.fit.coverages, coverage)
        low, high = self.quantiles(scores, self.fit.coverages[place])
        group = self.fit.groups[self.group_name(scores)]
        return widen(low, high, group, place, charges)

    def odds_of(
        self, scores: Floats, verdict: Verdict, *, sure: Doubles | None = None
    ) -> tuple[float, float]:
        """What the classifier gives a verdict's charges, exactly these, and its term.

        `sure` are the `charge_probabilities`, where they are known already.
        """
        asked = [self._columns.get(charge, -1) for charge in verdict.charges]
        if -1 in asked:
            exactly = 0.0  # a charge no training case had
        else:
            sure = self.charge_probabilities(scores) if sure is None else sure
            each = 1 - sure
            each[asked] = sure[asked]
            exactly = float(each.prod())
        middle = severity(verdict.term)
        low, high = np.interp(
            [middle - _FULL_SCORE, middle + _FULL_SCORE],
            self.grid,
            self.distribution(scores),
            left=0.0,
        )
        return exactly, float(high - low)

    def agree(
        self,
        scores: Floats,
        verdict: Verdict,
        thought: tuple[float, float],
        fit: Agreement,
        *,
        sure: Doubles | None = None,
    ) -> Odds:
        """How likely a model's verdict is right, given what the classifier thinks of it.

        `thought` is the `thought_evidence` of the model's answer, `sure` the
        `charge_probabilities`, where they are known already.
        """
        charge, term = map(logit_of, self.odds_of(scores, verdict, sure=sure))
        return Odds(
            fit.charge.confidence((charge, *thought)),
            fit.term.confidence((term, *thought)),
            fit.verdict.confidence((charge, term, *thought)),
        )


def thought_evidence(thinking_cut: bool, thinking_tokens: int) -> tuple[float, float]:
    """Whether thinking was cut, and if so the logarithm of its tokens."""
    return float(thinking_cut), math.log1p(thinking_tokens) if thinking_cut else 0.0


def charge_evidence(scores: Floats) -> Doubles:
    """Each charge's score and its lead over the best other one, of shape (charges, 2)."""
    own = scores.astype(np.float64)
    best = own.argmax()
    others = own.copy()
    others[best] = -np.inf
    leads = own - own[best]
    leads[best] = own[best] - others.max()
    evidence = np.empty((len(own), 2))
    evidence[:, 0] = own
    np.minimum(np.maximum(leads, -MAX_GAP), MAX_GAP, out=evidence[:, 1])
    return evidence


def widen(
    low: float, high: float, group: AgreementGroup, coverage_place: int, charges: Sequence[str]
) -> TermInterval:
    """An interval of severities with its group's margin, clipped to the tiers of the charges."""
    margin = group.margins[coverage_place]
    if margin is None:
        return to_interval(0.0, DEATH, charges)
    middle = (low + high) / 2  # a negative margin narrows, to a point at most
    low, high = min(low - margin, middle), max(high + margin, middle)
    if group.clip[coverage_place]:
        least, most = legal_range(charges)
        low, high = min(max(low, least), most), max(min(high, most), least)
    return to_interval(max(0.0, low), min(DEATH, high), charges)


def around(
    term: Term, charges: Sequence[str], group: AgreementGroup, coverage_place: int
) -> TermInterval:
    """An interval around a model's own term, which it contains even where clipping cut it off."""
    place = severity(term)
    found = widen(place, place, group, coverage_place, charges)
    if found.contains(term):
        return found
    return TermInterval(*sorted((found.low, found.high, term), key=severity)[::2])


def coverage_index(coverages: Sequence[float], coverage: float) -> int:
    """The place of the least fitted coverage that is not below the one asked for.

    Raises ValueError when there is none, or when it is not above 0.
    """
    for place, fitted in enumerate(coverages):
        if 0 < coverage <= fitted + 1e-9:
            return place
    raise ValueError(f"a coverage of {coverage}: use above 0 and up to {max(coverages)}")


def place_in(edges: Sequence[float], probability: float) -> int:
    """How many of the edges a probability is not below: the number of its group."""
    return sum(probability >= edge for edge in edges)


def logit_of(probability: float) -> float:
    """ln(p / (1 - p)), within ±`MAX_LOGIT`."""
    if probability <= 0 or probability >= 1:
        return math.copysign(MAX_LOGIT, probability - 0.5)
    return max(-MAX_LOGIT, min(MAX_LOGIT, math.log(probability / (1 - probability))))


def _sigmoid(logits: Doubles) -> Doubles:
    result: Doubles = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    return result
