"""Scores of predicted verdicts against real ones. Pure functions, no torch.

Sources:
- CAIL2018, the official scorer (`judger.py` of its release; tasks in arXiv:1807.02478): micro
  and macro F1 over the official label lists, and a term score that falls in steps with the log
  distance. Two of its traits are kept on purpose: a label that neither a prediction nor a
  reference holds scores F1 = 1 in its macro average, which lifts it on small test sets, and
  labels outside the lists are not seen. `*_macro_f1_present`, over the labels that references
  hold, is the honest figure beside it.
- LawBench (arXiv:2309.16289), tasks 3-4 and 3-5: mean log distance scaled by log 216.
- JuDGE (arXiv:2503.14258): one minus the difference of two terms over the longer one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from curt.dialogue import ParseFailure
from curt.law.numerals import article_number
from curt.law.statutes import CAIL_ARTICLES, CAIL_CHARGES
from curt.law.verdict import CAPITAL_KINDS, Term, Verdict

# (largest log distance, score), from the CAIL2018 task description
CAIL_TERM_STEPS = ((0.2, 1.0), (0.4, 0.8), (0.6, 0.6), (0.8, 0.4), (1.0, 0.2))
LAWBENCH_SCALE = math.log(216)  # also the distance LawBench gives to an answer without a term

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True, slots=True)
class LabelF1:
    """F1 over a label list, each in [0, 1]; `score_official` is the task score in [0, 100]."""

    micro: float
    macro_official: float
    macro_present: float

    @property
    def score_official(self) -> float:
        """Mean of micro and official macro F1, times 100."""
        return (self.micro + self.macro_official) / 2 * 100


def label_f1(
    predicted: Sequence[Collection[Label]],
    truth: Sequence[Collection[Label]],
    labels: Sequence[Label],
) -> LabelF1:
    """Micro and macro F1 of label sets over `labels`, as the CAIL2018 scorer counts them.

    One collection of labels per case, in the same order. Raises ValueError on unequal lengths
    and where there are no cases or labels.
    """
    _check_pairs(predicted, truth)
    if not labels:
        raise ValueError("no labels: give the label list the scores are over")
    hit, extra, missed = Counter[Label](), Counter[Label](), Counter[Label]()
    for guess, real in zip(map(set, predicted), map(set, truth), strict=True):
        hit.update(guess & real)
        extra.update(guess - real)
        missed.update(real - guess)
    f1 = [_f1(hit[label], extra[label], missed[label]) for label in labels]
    present = [value for label, value in zip(labels, f1, strict=True) if hit[label] + missed[label]]
    return LabelF1(
        micro=_f1(*(sum(count[label] for label in labels) for count in (hit, extra, missed))),
        macro_official=fmean(f1),
        macro_present=fmean(present) if present else 0.0,
    )


def set_f1(predicted: AbstractSet[Label], truth: AbstractSet[Label]) -> float:
    """F1 of one predicted set; 1 when both are empty, 0 when they share nothing."""
    hit = len(predicted & truth)
    return _f1(hit, len(predicted) - hit, len(truth) - hit)


def cail_term_score(predicted: Term | None, truth: Term) -> float:
    """The official term score of one case, in [0, 1]; None, an unreadable answer, scores 0.

    Death and life (-2 and -1 in the official encoding) score 1 when they are met exactly and 0
    otherwise; so does death with reprieve, which the official encoding has no number for. Months
    score by |ln(p + 1) - ln(t + 1)|; the kind of a counted term and its probation are not seen, and
    an exemption counts 0 months.
    """
    if predicted is None:
        return 0.0
    if _is_capital(predicted) or _is_capital(truth):
        return float(predicted.kind == truth.kind)
    distance = _log_distance(predicted.months, truth.months)
    return next((score for limit, score in CAIL_TERM_STEPS if distance <= limit), 0.0)


def lawbench_term_score(predicted: Term | None, truth: Term) -> float:
    """LawBench's term score of one case: 1 - |ln(p + 1) - ln(t + 1)| / ln 216, at least 0.

    LawBench leaves out cases of death and life; here those score 1 when met, else 0. An
    unreadable answer takes the whole distance ln 216, so 0.
    """
    if predicted is None:
        return 0.0
    if _is_capital(predicted) or _is_capital(truth):
        return float(predicted.kind == truth.kind)
    return max(0.0, 1 - _log_distance(predicted.months, truth.months) / LAWBENCH_SCALE)


def judge_term_score(predicted: Term | None, truth: Term) -> float:
    """JuDGE's ratio score of one case: 1 - |p - t| / max(p, t), in months.

    Two exemptions score 1, an exemption against months 0; death and life score 1 when met
    exactly, else 0, where JuDGE has no rule of its own.
    """
    if predicted is None:
        return 0.0
    if _is_capital(predicted) or _is_capital(truth):
        return float(predicted.kind == truth.kind)
    longer = max(predicted.months, truth.months)
    return 1 - abs(predicted.months - truth.months) / longer if longer else 1.0


def length_statistics(lengths_tokens: Sequence[int]) -> dict[str, float]:
    """Mean, median and 95th percentile (nearest rank) of lengths. Raises ValueError on none."""
    if not lengths_tokens:
        raise ValueError("no lengths to describe: give at least one")
    ordered = sorted(lengths_tokens)

    def rank(share: float) -> float:
        return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])

    return {"mean": fmean(ordered), "p50": rank(0.5), "p95": rank(0.95)}


def is_exact(prediction: Verdict | ParseFailure, reference: Verdict) -> bool:
    """Whether charges, articles and principal penalty are all those of the reference."""
    return (
        isinstance(prediction, Verdict)
        and set(prediction.charges) == set(reference.charges)
        and set(prediction.articles) == set(reference.articles)
        and _same_penalty(prediction.term, reference.term)
    )


def score_verdicts(
    predictions: Sequence[Verdict | ParseFailure], references: Sequence[Verdict]
) -> dict[str, float]:
    """Every score of a test set, case by case in the same order.

    An unreadable prediction counts as no charge, no article and no term, which scores 0
    everywhere. `exact` asks for the same charges, articles and principal penalty. The F1 and
    official scores compare articles by number (133之一 as 133), as CAIL2018 labels them; `exact`
    and `article_accuracy` by id. `*_score_official` run to 100, all else to 1.
    `term_error_months` is the mean over cases where neither side is death or life, with no term
    or an exemption as 0 months. `probation_accuracy` asks for the same probation, none included;
    `fine_accuracy` for the same fine in yuan. Raises ValueError on unequal lengths or no cases.
    """
    _check_pairs(predictions, references)
    guesses = [p if isinstance(p, Verdict) else None for p in predictions]
    pairs = list(zip(guesses, references, strict=True))
    charges = [set(g.charges) if g else set() for g in guesses]
    articles = [set(g.articles) if g else set() for g in guesses]
    numbers = [{article_number(a) for a in ids} for ids in articles]
    true_charges = [set(r.charges) for r in references]
    true_articles = [set(r.articles) for r in references]
    true_numbers = [{article_number(a) for a in ids} for ids in true_articles]
    same_charges = [a == b for a, b in zip(charges, true_charges, strict=True)]
    same_articles = [a == b for a, b in zip(articles, true_articles, strict=True)]
    same_term = [g is not None and _same_penalty(g.term, r.term) for g, r in pairs]
    terms = [(g.term if g else None, r.term) for g, r in pairs]
    errors = [
        abs((p.months if p else 0) - t.months)
        for p, t in terms
        if not _is_capital(t) and not (p and _is_capital(p))
    ]
    charge_f1 = label_f1(charges, true_charges, CAIL_CHARGES)
    article_f1 = label_f1(numbers, true_numbers, CAIL_ARTICLES)
    return {
        "n": float(len(pairs)),
        "parsed": fmean(g is not None for g in guesses),
        "exact": fmean(map(all, zip(same_charges, same_articles, same_term, strict=True))),
        "charge_accuracy": fmean(same_charges),
        "article_accuracy": fmean(same_articles),
        "term_accuracy": fmean(same_term),
        **_named("charge", charge_f1),
        **_named("article", article_f1),
        "charge_set_f1": fmean(map(set_f1, charges, true_charges)),
        "article_set_f1": fmean(map(set_f1, numbers, true_numbers)),
        "term_score_official": fmean(cail_term_score(p, t) for p, t in terms),
        "term_score_lawbench": fmean(lawbench_term_score(p, t) for p, t in terms),
        "term_score_judge": fmean(judge_term_score(p, t) for p, t in terms),
        "term_error_months": fmean(errors) if errors else 0.0,
        "probation_accuracy": fmean(
            g is not None and g.term.probation_months == r.term.probation_months for g, r in pairs
        ),
        "fine_accuracy": fmean(g is not None and g.fine_yuan == r.fine_yuan for g, r in pairs),
    }


def _named(task: str, f1: LabelF1) -> dict[str, float]:
    return {
        f"{task}_micro_f1": f1.micro,
        f"{task}_macro_f1_official": f1.macro_official,
        f"{task}_macro_f1_present": f1.macro_present,
        f"{task}_score_official": f1.score_official,
    }


def _f1(hit: int, extra: int, missed: int) -> float:
    """F1 from counts; 1 where there was nothing to find and nothing was claimed."""
    if not hit:
        return float(not extra and not missed)
    return 2 * hit / (2 * hit + extra + missed)


def _log_distance(months: int, other_months: int) -> float:
    return abs(math.log(months + 1) - math.log(other_months + 1))


def _is_capital(term: Term) -> bool:
    return term.kind in CAPITAL_KINDS


def _same_penalty(term: Term, other: Term) -> bool:
    return term.kind == other.kind and term.months == other.months


def _check_pairs(predictions: Sequence[object], references: Sequence[object]) -> None:
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions for {len(references)} references: give one each"
        )
    if not references:
        raise ValueError("no cases to score: give at least one")
