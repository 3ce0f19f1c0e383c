"""Predictions in the form the official CAIL2018 scorer reads: one JSON object a line.

    {"accusation": [3], "articles": [41, 7], "imprisonment": 8}

`accusation` and `articles` count lines of `accu.txt` and `law.txt`, from 1; `imprisonment` is in
months, -2 for death, with reprieve or without, and -1 for life. The form says less than a verdict:
no kind of a counted term, no probation, no fine, no charge or article beside the 202 and 183 of
the lists, and 133 stands for 133之一 too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curt.dialogue import ParseFailure
from curt.files import write_atomic
from curt.law.numerals import article_number
from curt.law.statutes import CAIL_ARTICLES, CAIL_CHARGES
from curt.law.verdict import Verdict

DEATH, LIFE = -2, -1

_CHARGE_INDEX = {name: line for line, name in enumerate(CAIL_CHARGES, start=1)}
_ARTICLE_INDEX = {number: line for line, number in enumerate(CAIL_ARTICLES, start=1)}


@dataclass
class PredictionCounts:
    """What was written, and what the form could not hold."""

    predictions: int = 0
    unreadable: int = 0
    charges_left_out: int = 0
    articles_left_out: int = 0

    def to_json(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def write_predictions(path: Path, verdicts: Iterable[Verdict | ParseFailure]) -> PredictionCounts:
    """Write predictions atomically, in order, and return the counts.

    An unreadable answer becomes a prediction of nothing: no labels and 0 months.
    """
    counts = PredictionCounts()
    lines = [json.dumps(to_prediction(verdict, counts)) + "\n" for verdict in verdicts]
    write_atomic(path, "".join(lines))
    return counts


def to_prediction(
    verdict: Verdict | ParseFailure, counts: PredictionCounts | None = None
) -> dict[str, Any]:
    """One prediction; `counts`, when given, is added to."""
    counts = PredictionCounts() if counts is None else counts
    counts.predictions += 1
    if isinstance(verdict, ParseFailure):
        counts.unreadable += 1
        return {"accusation": [], "articles": [], "imprisonment": 0}
    charges = [_CHARGE_INDEX[name] for name in verdict.charges if name in _CHARGE_INDEX]
    numbers = [article_number(article) for article in verdict.articles]
    articles = dict.fromkeys(_ARTICLE_INDEX[n] for n in numbers if n in _ARTICLE_INDEX)
    counts.charges_left_out += len(verdict.charges) - len(charges)
    counts.articles_left_out += sum(number not in _ARTICLE_INDEX for number in numbers)
    term = verdict.term
    months = {"death": DEATH, "reprieve": DEATH, "life": LIFE}.get(term.kind, term.months)
    return {"accusation": charges, "articles": list(articles), "imprisonment": months}
