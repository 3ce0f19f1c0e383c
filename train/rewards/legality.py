"""Check a verdict against the law alone; no reference is needed."""

from __future__ import annotations

from statistics import fmean

from curt.dialogue import Completion, ParseFailure
from curt.law.legality import is_in_tier, share_carried, share_defining
from curt.law.verdict import Verdict


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
    return fmean((share_carried(verdict), share_defining(verdict), float(is_in_tier(verdict))))
