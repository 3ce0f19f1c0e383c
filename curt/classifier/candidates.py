"""What the classifier proposes before a language model reads: the line of candidates in a prompt.

    参考：盗窃8抢夺1；264；5个月，4至8个月；后果4200元，500元一档5+2=7，罚1000；自首-20、退赔-10，×70%

These are the likeliest charges with their probabilities in tenths, the articles and the term of the
classifier's verdict, the shortest range of terms that holds `TERM_SHARE` of the probability, the
harm that the likeliest charge is graded by, and the circumstances. The declared law says what each
weighs: months at the start of a bracket and added by quantity, yuan of fine a month, percent, and
what percents leave of the months. What was not found is left out.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from curt.artifact import MANIFEST, READER
from curt.dialogue import PROMPT_VERSION, Prompts
from curt.files import read_rows
from curt.law.statutes import CHARGES
from curt.law.term_scale import severity
from curt.law.verdict import COUNTED_KINDS, TERM_NAMES, Term
from curt.law.weighing import sum_ratios

if TYPE_CHECKING:
    from curt.classifier.details import DetailReader, Told
    from curt.classifier.model import Classifier, Decider
    from curt.dialogue.prompt import ChatTokenizer

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

HEAD, HARM = "参考：", "后果"
MOST_CHARGES = 3
MOST_CIRCUMSTANCES = 5
LEAST_SHARE = 0.05  # half a tenth
TERM_SHARE = 0.7
LONGEST_TOKENS = 120  # of the line, but for charges with very long names
PROBE = (
    f"{HEAD}盗窃8抢夺1；264；8个月，6至10个月；"
    f"{HARM}7600+4100=11700元，500元一档5+5=10，罚1000；自首-20、退赔-10，×70%"
)
"""A line to measure prompts with."""
_LINE = re.compile(
    rf"{HEAD}((?:[^；\d]+\d+)+)；([^；]*)；([^；，]+)(?:，([^；]+))?(?:；{HARM}([^；，]+)(?:，([^；]+))?)?(?:；([^；，]+)(?:，×\d+%)?)?"
)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What a line of candidates says."""

    charges: dict[str, float]
    """Charges with their probabilities in steps of a tenth, the likeliest first."""
    articles: tuple[str, ...]
    term: str
    """The classifier's own term."""
    terms: str
    """The range of terms, as `write_range` writes it."""
    months: tuple[int | None, int | None]
    """The ends of that range; None for an end that is not counted in months, such as life."""
    harm: str = ""
    scale: str = ""
    """What the declared law makes of the harm, as `details.Scale` tells it."""
    circumstances: tuple[str, ...] = ()


class Reader:
    """Proposes a line of candidates for a raw fact; it goes with a model's prompts."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def __call__(self, fact: str, known: Sequence[str] = ()) -> str:
        """The line; empty where the fact has nothing to read or no charge is likely.

        Charges that are `known` stand there in place of those found, where all have a score.
        """
        classifier = self.classifier
        try:
            scores, told = (
                classifier.study(fact, known) if known else classifier.reading(fact).studied
            )
        except ValueError:  # no letter and no digit
            return ""
        softness = classifier.assessor.fit.temperature if classifier.assessor else 1.0
        return write_candidates(classifier.decider, scores, softness, classifier.details, told)


def load_prompts(
    folder: Path | str,
    tokenizer: ChatTokenizer,
    max_fact_tokens: int | None,
    version: str | None = None,
) -> Prompts:
    """The prompts of a verified model folder, with its reader where it has one.

    They are of the version that the folder's manifest names, where none is given. Raises
    ArtifactError when the reader can't be loaded.
    """
    reader, manifest = Path(folder) / READER, Path(folder) / MANIFEST
    if version is None and manifest.is_file():
        version = json.loads(manifest.read_text(encoding="utf-8"))["prompt_version"]
    proposer = load_reader(reader) if reader.is_dir() else None
    return Prompts(tokenizer, max_fact_tokens, proposer, version or PROMPT_VERSION)


def load_reader(folder: Path) -> Reader:
    """The reader in a classifier folder. Raises ArtifactError when it can't be loaded."""
    from curt.classifier.model import load_classifier  # onnxruntime, which not every stage needs

    return Reader(load_classifier(folder))


def write_candidates(
    decider: Decider,
    scores: Floats,
    term_temperature: float,
    details: DetailReader | None = None,
    told: Told | None = None,
) -> str:
    """The line of candidates that scores stand for; empty where no charge is likely.

    `term_temperature` softens the shares of the bins of terms; the rest of the line is what
    `details` has `told` of the fact.
    """
    labels = decider.labels
    shares = charge_shares(scores[: len(labels.charges)], labels.charge_temperature)
    likeliest = np.argsort(-shares, kind="stable")[:MOST_CHARGES]
    charges = "".join(
        f"{labels.charges[i]}{_tenths(float(shares[i]))}"
        for i in likeliest
        if shares[i] >= LEAST_SHARE
    )
    if not charges:
        return ""
    verdict = decider.decide(scores).verdict
    logits = scores[labels.term_columns].astype(np.float64)
    shares_of_terms = _softmax(logits / term_temperature)
    ranges = (
        write_range(verdict.term, verdict.term),
        write_range(*term_range(labels.terms, shares_of_terms)),
    )
    terms = "，".join(dict.fromkeys(ranges))
    line = f"{HEAD}{charges}；{'、'.join(verdict.articles)}；{terms}"
    if details and told:
        scale = details.tell_scale(told.charge, told.harm)
        line += f"；{HARM}{told.harm}" if told.harm else ""
        line += f"，{scale}" if scale else ""
        ratios = {name: details.ratio_of(told.charge, name) for name in told.circumstances}
        weighed = [name if r is None else f"{name}{r:+d}" for name, r in ratios.items()]
        line += f"；{'、'.join(weighed[:MOST_CIRCUMSTANCES])}" if weighed else ""
        if any(ratios.values()):
            line += f"，×{100 + sum_ratios(filter(None, ratios.values()))}%"
    return line


def parse_candidates(line: str) -> Candidates:
    """Inverse of `write_candidates`. Raises ValueError on anything else."""
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError("no line of candidates")
    charges, articles, term, terms, harm, scale, circumstances = match.groups()
    terms = terms or term
    low, _, high = terms.partition("至")
    return Candidates(
        {name: int(tenths) / 10 for name, tenths in re.findall(r"(\D+)(\d+)", charges)},
        tuple(articles.split("、")) if articles else (),
        term,
        terms,
        (_read_months(low), _read_months(high or low)),
        harm or "",
        scale or "",
        tuple(re.findall(r"([^、+\-\d]+)[+\-\d]*", circumstances or "")),
    )


def known_charges(line: str) -> tuple[str, ...]:
    """The charges of a line of candidates that the statutes know, none where the line is empty."""
    names = re.findall(r"(\D+)\d+", line.removeprefix(HEAD).partition("；")[0])
    return tuple(name for name in names if name in CHARGES)


def charge_shares(scores: npt.NDArray[np.floating], temperature: float) -> Doubles:
    """A softmax over the scores of the charges, the last axis, at a fitted temperature."""
    return _softmax(scores.astype(np.float64) / temperature)


def term_range(terms: tuple[Term, ...], shares: Doubles) -> tuple[Term, Term]:
    """The lightest and the heaviest of the fewest neighbouring terms that hold `TERM_SHARE`.

    Of several such ranges it is the one that holds most.
    """
    order = sorted(range(len(terms)), key=lambda i: severity(terms[i]))
    held = np.concatenate([[0.0], np.cumsum(shares[order])])
    for width in range(1, len(terms) + 1):
        masses = held[width:] - held[:-width]
        best = int(masses.argmax())
        if masses[best] >= TERM_SHARE or width == len(terms):
            return terms[order[best]], terms[order[best + width - 1]]
    raise AssertionError("a classifier has terms")


def write_range(low: Term, high: Term) -> str:
    """A range of terms in few words: 6至10个月, 8个月, 120个月至无期徒刑."""
    if low.kind in COUNTED_KINDS and high.kind in COUNTED_KINDS:
        first, last = sorted((low.months, high.months))
        return f"{first}个月" if first == last else f"{first}至{last}个月"
    ends = list(dict.fromkeys(map(_name_term, (low, high))))
    return "至".join(ends)


def read_candidates(path: Path | None) -> dict[str, str]:
    """The lines of `compress.classifier.train --candidates`, by case; none without a file.

    Raises ValueError naming the file when a row lacks its parts.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"no candidates in {path}: `compress.classifier.train` writes them")
    try:
        return {str(row["id"]): str(row["text"]) for row in read_rows(path)}
    except KeyError as error:
        raise ValueError(f"{path}: a row lacks {error}") from None


def draw_candidates(
    rng: random.Random, prompts: Prompts, case_id: str, known: Mapping[str, str], share: float
) -> str | None:
    """The `candidates` of a training prompt: a `share` of prompts has them, the others none.

    A case without an entry in `known` gets the reader's own; a model without a reader, none.
    """
    if prompts.reader is None or rng.random() >= share:
        return ""
    return known.get(case_id)


def _tenths(share: float) -> int:
    return math.floor(share * 10 + 0.5)


def _read_months(end: str) -> int | None:
    """Months at one end of a range; in 6至10个月 the first lacks its unit."""
    count = end.removesuffix("个月")
    return int(count) if count.isdecimal() else None


def _name_term(term: Term) -> str:
    return f"{term.months}个月" if term.kind in COUNTED_KINDS else TERM_NAMES[term.kind]


def _softmax(logits: Doubles) -> Doubles:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Doubles = shares / shares.sum(axis=-1, keepdims=True)
    return result
