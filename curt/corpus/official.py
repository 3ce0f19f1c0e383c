"""Predictions in the form the official CAIL2018 scorer reads: one JSON object a line.

    {"accusation": [3], "articles": [41, 7], "imprisonment": 8}

`accusation` and `articles` count lines of `accu.txt` and `law.txt`, from 1; `imprisonment` is in
months, -2 for death and -1 for life. The form says less than a verdict: no kind of a counted term,
no probation, no fine, no charge or article beside the 202 and 183 of the lists, and 133 stands for
133之一 too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from curt.dialogue import ParseFailure
from curt.files import write_atomic
from curt.law.numerals import article_number, article_order
from curt.law.statutes import CAIL_ARTICLES, CAIL_CHARGES, CHARGES, MIN_FIXED_MONTHS, locate_article
from curt.law.verdict import MAX_MONTHS, Term, Verdict

DEATH, LIFE = -2, -1

Label = TypeVar("Label", str, int)

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


def read_predictions(path: Path) -> Iterator[Verdict | ParseFailure]:
    """Yield what each line predicts; a line without a charge is a ParseFailure.

    Raises ValueError naming file and line for a line that is no prediction.
    """
    if not path.is_file():
        raise ValueError(f"no predictions {path}: write them with `write_predictions`")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                prediction = from_prediction(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number} is no prediction: {error}") from error
            yield prediction


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
    months = {"death": DEATH, "life": LIFE}.get(term.kind, term.months)
    return {"accusation": charges, "articles": list(articles), "imprisonment": months}


def from_prediction(row: Any) -> Verdict | ParseFailure:
    """The verdict a prediction tells, as far as it does; a ParseFailure where it has no charge.

    Raises KeyError, TypeError or ValueError on a malformed one.
    """
    names = [_at(CAIL_CHARGES, line, "accusation") for line in row["accusation"]]
    charges = tuple(dict.fromkeys(names))
    numbers = {_at(CAIL_ARTICLES, line, "articles") for line in row["articles"]}
    term = _read_months(row["imprisonment"], charges)
    if not charges:
        return ParseFailure("no charge")
    articles = sorted({locate_article(n, charges) for n in numbers}, key=article_order)
    return Verdict(charges, tuple(articles), term)


def _at(labels: tuple[Label, ...], line: Any, name: str) -> Label:
    if type(line) is not int or not 1 <= line <= len(labels):
        raise ValueError(f"{name} {line!r}: use 1 to {len(labels)}")
    return labels[line - 1]


def _read_months(months: Any, charges: tuple[str, ...]) -> Term:
    """The likeliest kind: 拘役 under six months, and where no charge carries imprisonment."""
    if type(months) is not int or not DEATH <= months <= MAX_MONTHS["fixed"]:
        raise ValueError(f"imprisonment {months!r}: use -2, -1 or 0 to {MAX_MONTHS['fixed']}")
    if months in (DEATH, LIFE):
        return Term("death" if months == DEATH else "life")
    if months == 0:
        return Term("exempt")
    tiers = [tier for charge in charges for tier in CHARGES[charge].tiers]
    imprisons = not tiers or any(tier.max_months for tier in tiers)
    if months < MIN_FIXED_MONTHS or (not imprisons and months <= MAX_MONTHS["detention"]):
        return Term("detention", months)
    return Term("fixed", months)
