"""Whether a verdict could stand in law, whatever the facts: no reference is needed."""

from __future__ import annotations

from statistics import fmean

from curt.schema import Completion, ParseFailure, Verdict
from curt.statutes import article_carries, article_charges, is_charge, term_in_range


def legality_reward(completion: Completion, reference: Verdict) -> float:
    """Mean of three checks, in [0, 1]; 0 when the answer can't be read.

    1. share of charges that exist and are carried by a cited article;
    2. share of cited articles that carry some charge;
    3. the term lies in a statutory tier of a charge. Where several offences are sentenced
       together (article 69) the sum belongs to no tier and passes.

    A court may go below a tier where the law mitigates (article 63): a verdict that is right can
    score 2/3 here, so this is a metric or a small weight, no gate.
    """
    verdict = completion.verdict
    if isinstance(verdict, ParseFailure):
        return 0.0
    return fmean((_carried(verdict), _existing(verdict), float(_in_tier(verdict))))


def _carried(verdict: Verdict) -> float:
    return fmean(
        is_charge(charge) and any(article_carries(a, charge) for a in verdict.articles)
        for charge in verdict.charges
    )


def _existing(verdict: Verdict) -> float:
    return fmean(bool(article_charges(a)) for a in verdict.articles) if verdict.articles else 0.0


def _in_tier(verdict: Verdict) -> bool:
    known = [charge for charge in verdict.charges if is_charge(charge)]
    return len(known) > 1 or any(term_in_range(charge, verdict.term) for charge in known)
