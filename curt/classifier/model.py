"""A linear classifier of facts: charges, articles and term in a millisecond or two.

A fact becomes hashed runs of characters and rounded quantities, weighed by tf-idf; one ONNX product
scores charges, articles and bins of terms. `curt.classifier.details` reads harm and circumstances,
the declared law computes a term from them, and the bins are drawn to it as far as that made
development cases likelier. `Decider` turns the scores into a verdict. The server reads every fact
with it, to say how probable a verdict is, and gives its verdict where the language model has no
time left. `python -m compress.classifier.train` makes the folder read here and measures it through
this same code.

Fine and probation are not predicted: a verdict from here has neither.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from pydantic import Field, ValidationError

from curt.artifact import MANIFEST, ArtifactError
from curt.classifier.confidence import Agreement, Assessor, Calibration, Doubles, Uncertainty
from curt.classifier.details import DetailReader, Told
from curt.classifier.familiarity import Familiarity, ReadFact, read_fact
from curt.config import FrozenModel
from curt.corpus.build.fingerprint import Hashes
from curt.law.numerals import article_order
from curt.law.statutes import article_carries, charge_articles, law_day, term_in_range
from curt.law.term_scale import LIFE, count_term, severity
from curt.law.verdict import Term, Verdict
from curt.scores.metrics import cail_term_score

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Part = Literal["charge", "article", "term"]
Row = dict[str, float]

PARTS: tuple[Part, ...] = ("charge", "article", "term")
MODEL, VOCABULARY, LABELS = "model.onnx", "vocabulary.npz", "labels.json"
CONFIDENCE, AGREEMENT = "confidence.json", "agreement.json"
FAMILIARITY, DETAILS = "familiarity.npz", "details.npz"
OPTIONAL: Mapping[str, tuple[str, Callable[[bytes], Any]]] = {
    CONFIDENCE: ("uncertainty", Uncertainty.model_validate_json),
    AGREEMENT: ("agreement", Agreement.model_validate_json),
    FAMILIARITY: ("familiarity", Familiarity.read),
    DETAILS: ("details", DetailReader.unpack),
}
"""Files that a folder may do without: what each is to a `Classifier`, and how it is read."""
FINDING = MODEL, VOCABULARY, LABELS, FAMILIARITY, DETAILS
"""Files that `Findings` depend on."""
KNOWN_SCORE = 1.0  # of a charge that is given; of every other one its negative
UNCOMPUTED = -1.0  # in place of the severity of a computed term
DECLARED = 64.0  # weight of the computed term among cases that follow the declared law
REACH = 1.0  # in severity: what is further from the computed term loses no more
NO_RIVAL = 2.0  # margin where no other answer was possible, in the scores' own unit

_QUANTITY = re.compile(
    r"([0-9][0-9,]{0,15}(?:\.[0-9]{1,6})?)[余多]?([百千万]?)[余多]?(mg|[^\W0-9a-z年月日时分秒号某])"
)
_SCALES = {"": 1, "百": 100, "千": 1000, "万": 10_000}
_ZERO = np.zeros(1, np.int64)
_PROBE = "被告人王某窃得现金3万余元、手机2部，Ａ轻伤二级。"


class ArticleHabit(FrozenModel):
    """Which articles a charge brings, as training cases had it.

    `always` are added whatever the scores, `sometimes` where their score is above 0, and of those
    that carry the charge the best where none else does; `usual` is the commonest set, the answer
    where neither gives any.
    """

    always: tuple[str, ...]
    sometimes: tuple[str, ...]
    usual: tuple[str, ...]


class Labels(FrozenModel):
    """What the columns of the model mean and how an answer is read off them.

    The columns are a score for each charge, then one for each article, then a logit for each bin
    of terms. `terms[i]` stands for bin i,
    and `payoff[i][j]` is what answering it earns when the truth is in bin j. Charges that score
    above 0 are answered, and always the best one. Their shares are a softmax of the scores over
    `charge_temperature` (`curt.classifier.candidates`).
    """

    charges: tuple[str, ...] = Field(min_length=1)
    articles: tuple[str, ...]
    habits: dict[str, ArticleHabit]
    terms: tuple[Term, ...] = Field(min_length=1)
    payoff: tuple[tuple[float, ...], ...]
    charge_temperature: float = Field(default=1.0, gt=0)
    calculus_weight: float = Field(default=0.0, ge=0)
    """How fast a bin's logit falls with its distance in severity from the computed term; from
    `DECLARED` on that term is the answer."""
    calibration: dict[Part, Calibration] = Field(default_factory=dict)

    @property
    def severities(self) -> npt.NDArray[np.float64]:
        """The place of each bin's term on the scale of penalties."""
        return np.array([severity(term) for term in self.terms])

    @property
    def term_columns(self) -> slice:
        """The columns of the bins of terms."""
        first = len(self.charges) + len(self.articles)
        return slice(first, first + len(self.terms))


class ClassifierManifest(FrozenModel):
    """What a classifier folder is, how well it did, and the hash of every file in it.

    `features` is a digest of how facts are read: a folder made by other code is refused.
    `reliability` says, for each set of cases and each bin of probabilities, how often charges that
    were given such a probability were right.
    """

    format: Literal["fallback-onnx"] = "fallback-onnx"
    features: str
    statute_version: str
    config: dict[str, Any]
    evaluation: dict[str, float]
    reliability: dict[str, list[Row]] = Field(default_factory=dict)
    tools: dict[str, str]
    created: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and, for each part of it, the evidence that calibration looks at.

    For charges the best score and the margin, which is the least change of a score that would give
    other charges; for articles the same and their own margin, given the charges; for the term its
    expected payoff, how much that is above the next best, and the largest share of a bin.
    """

    verdict: Verdict
    evidence: Mapping[Part, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A verdict and how sure each part of it is.

    A confidence is the calibrated probability that the charges are exactly right, the articles
    are, or the term earns the full CAIL2018 score.
    """

    verdict: Verdict
    confidences: Mapping[Part, float]


@dataclass(frozen=True, slots=True)
class Findings:
    """What a classifier found in a fact, for a process that has the same: by its `digest`.

    `scores` are those of `Classifier.study` in base64, None for a fact that has none.
    """

    by: str
    scores: str | None
    unfamiliar: bool
    figures_beyond: tuple[str, ...]


def extract_features(fact: str | ReadFact) -> tuple[Hashes, Integers]:
    """Hashes of a fact's runs of characters and quantities, sorted, and how often each occurs.

    The same in every process. Raises ValueError when the fact holds no letter and no digit.
    """
    read = read_fact(fact)
    if not read.plain:
        raise ValueError("a fact without a letter or digit: give what the defendant did")
    hashes = np.concatenate([*read.grams, _hash_quantities(read.text)])
    # What `np.unique` does with counts, in half its time.
    hashes.sort()
    starts = np.flatnonzero(hashes[1:] != hashes[:-1]) + 1
    edges = np.concatenate([_ZERO, starts, [len(hashes)]])
    return hashes[edges[:-1]], edges[1:] - edges[:-1]


def digest_features() -> str:
    """A digest of what `extract_features` does with a fixed fact; kept in every manifest."""
    hashes, counts = extract_features(_PROBE)
    return hashlib.sha256(hashes.tobytes() + counts.astype(np.int64).tobytes()).hexdigest()[:16]


def is_right(part: Part, answer: Verdict, truth: Verdict) -> bool:
    """The event a part's confidence is the probability of."""
    if part == "charge":
        return set(answer.charges) == set(truth.charges)
    if part == "article":
        return set(answer.articles) == set(truth.articles)
    return cail_term_score(answer.term, truth.term) == 1.0


def _hash_quantities(text: str) -> Hashes:
    """A fact's largest number of each unit, as a bin of its logarithm and the steps below it."""
    largest: dict[str, float] = {}
    for number, scale, unit in _QUANTITY.findall(text):
        value = float(number.replace(",", "")) * _SCALES[scale]
        largest[unit] = max(value, largest.get(unit, 0))
    names = []
    for unit, value in largest.items():
        if value > 0:
            names.append(f"{unit} {math.floor(math.log(value) * 4)}")
            steps = range(-2, math.floor(math.log(value) * 2) + 1)
            names += [f"{unit} over {step}" for step in steps]
    return np.frombuffer(b"".join(map(_digest_name, names)), "<u8").astype(np.uint64)


@lru_cache(maxsize=4096)
def _digest_name(name: str) -> bytes:
    """8 bytes for a unit and a step; the same few hundred are met again and again."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The known features: sorted hashes and their inverse document frequencies, both (known,)."""

    hashes: Hashes
    idf: Floats

    def weigh(self, fact: str | ReadFact) -> tuple[Integers, Floats]:
        """Rows of the model's matrix and their weights, both (found + 1,).

        Row 0 is the intercept; the rest is (1 + ln count) · idf, scaled to Euclidean length 1.
        Unknown features are left out.
        """
        hashes, counts = extract_features(fact)
        places = self.hashes.searchsorted(hashes)
        known = self.hashes.take(places, mode="clip") == hashes
        places = places[known]
        weights = (1 + np.log(counts[known])) * self.idf[places]
        norm = math.sqrt((weights * weights).sum()) or 1.0
        rows = np.zeros(len(places) + 1, np.int64)
        np.add(places, 1, out=rows[1:])
        scaled = np.ones(len(rows), np.float32)
        scaled[1:] = weights / norm
        return rows, scaled


class Decider:
    """Reads a verdict off the scores, with the law's bounds on what a charge may bring.

    `on` is the day whose law that is, by default today.
    """

    def __init__(self, labels: Labels, on: date | None = None) -> None:
        self.labels = labels
        self._article_columns = {a: i for i, a in enumerate(labels.articles, len(labels.charges))}
        self.width = labels.term_columns.stop
        self._payoff = np.array(labels.payoff, np.float64)  # (answers, bins)
        if self._payoff.shape != (len(labels.terms),) * 2:
            raise ValueError(f"a payoff of shape {self._payoff.shape} for {len(labels.terms)} bins")
        self._severities = labels.severities
        self._lawful = np.array(
            [[term_in_range(c, term, on) for term in labels.terms] for c in labels.charges]
        )

    def decide(self, scores: Floats) -> Decision:
        """The verdict for scores of `Classifier.study`, or without its last column."""
        chosen, charge_evidence = self._choose_charges(scores)
        charges = tuple(self.labels.charges[i] for i in chosen)
        articles, article_margin = self._choose_articles(charges, scores)
        term, term_evidence = self._choose_term(chosen, scores)
        return Decision(
            Verdict(charges, articles, term),
            {
                "charge": charge_evidence,
                "article": (*charge_evidence, article_margin),
                "term": term_evidence,
            },
        )

    def find_likeliest(self, scores: Floats) -> str:
        """The charge that scores best."""
        return self.labels.charges[int(scores[: len(self.labels.charges)].argmax())]

    def _choose_charges(self, scores: Floats) -> tuple[list[int], tuple[float, ...]]:
        charges = scores[: len(self.labels.charges)].astype(np.float64)
        order = np.argsort(-charges, kind="stable")
        best = float(charges[order[0]])
        rival = float(charges[order[1]]) if len(order) > 1 else -NO_RIVAL
        chosen = [int(i) for i in order if charges[i] > 0] or [int(order[0])]
        if len(chosen) > 1:
            margin = float(np.abs(charges).min())
        else:  # the best one stays in any case: only another can change the answer
            margin = -rival if best > 0 else best - rival
        return chosen, (min(best, NO_RIVAL), min(margin, NO_RIVAL))

    def _choose_articles(
        self, charges: tuple[str, ...], scores: Floats
    ) -> tuple[tuple[str, ...], float]:
        habits = [self.labels.habits[charge] for charge in charges]
        articles = {article for habit in habits for article in habit.always}
        open_ones = {article for habit in habits for article in habit.sometimes} - articles
        open_scores = {a: float(scores[self._article_columns[a]]) for a in open_ones}
        margin = min((abs(score) for score in open_scores.values()), default=NO_RIVAL)
        articles |= {article for article, score in open_scores.items() if score > 0}
        for charge, habit in zip(charges, habits, strict=True):
            if not any(article_carries(article, charge) for article in articles):
                own = [article for article in habit.sometimes if article_carries(article, charge)]
                articles |= {max(own, key=open_scores.__getitem__)} if own else set()
        if not articles:
            articles = set(habits[0].usual) or set(charge_articles(charges[0])[:1])
        return tuple(sorted(articles, key=article_order)), min(margin, NO_RIVAL)

    def _choose_term(self, chosen: list[int], scores: Floats) -> tuple[Term, tuple[float, ...]]:
        logits = scores[self.labels.term_columns].astype(np.float64)
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        payoffs = self._payoff @ shares
        lawful = np.asarray(self._lawful[chosen].any(axis=0))
        computed, nearest = self._find_computed(scores)
        if nearest is not None:  # mitigation goes below a minimum (article 63)
            lawful[nearest] = True
        if len(chosen) == 1 and lawful.any():  # sums of several offences go over each one's bounds
            payoffs = np.where(lawful, payoffs, -1.0)
        if nearest is not None and self.labels.calculus_weight >= DECLARED:
            payoffs[nearest] += 1.0
        order = np.argsort(-payoffs, kind="stable")
        best = float(payoffs[order[0]])
        margin = best - float(payoffs[order[1]]) if len(order) > 1 else 1.0
        place = int(order[0])
        term = self.labels.terms[place]
        if place == nearest:  # a bin stands for many terms, the computed one is one of them
            term = Term("life") if computed >= LIFE else count_term(round(math.expm1(computed)))
        return term, (best, margin, float(shares.max()))

    def _find_computed(self, scores: Floats) -> tuple[float, int | None]:
        """The severity of the computed term and the bin it lies in, None without either."""
        computed = float(scores[self.width]) if len(scores) > self.width else UNCOMPUTED
        if not self.labels.calculus_weight or computed == UNCOMPUTED:
            return computed, None
        return computed, int(np.abs(self._severities - computed).argmin())


class Classifier:
    """A loaded classifier.

    What is optional: `manifest`, until the folder is published; `assessor` (probabilities and
    intervals), `familiarity` (which facts are unlike those trained on) and `details` (what the
    term turns on), which older folders lack; and `agreement`, where no language model's answers
    were compared.
    """

    def __init__(
        self,
        labels: Labels,
        vocabulary: Vocabulary,
        model: bytes,
        manifest: ClassifierManifest | None = None,
        *,
        uncertainty: Uncertainty | None = None,
        agreement: Agreement | None = None,
        familiarity: Familiarity | None = None,
        details: DetailReader | None = None,
    ) -> None:
        self.labels, self.vocabulary, self.manifest = labels, vocabulary, manifest
        self.decider = Decider(labels, law_day(manifest.statute_version) if manifest else None)
        self.agreement, self.familiarity, self.details = agreement, familiarity, details
        self.digest = "".join(manifest.files.get(name, "-") for name in FINDING) if manifest else ""
        # Who asks for one fact asks several times in a row: for a verdict, then how sure it is.
        self.reading = lru_cache(maxsize=1)(partial(Reading, self))
        self.assessor = None
        if uncertainty is not None:
            first_term = labels.term_columns.start
            self.assessor = Assessor(labels.charges, labels.terms, first_term, uncertainty)
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(
            model, sess_options=options, providers=["CPUExecutionProvider"]
        )

    def score(self, fact: str | ReadFact) -> Floats:
        """What `Decider` reads, as `study` has it. Raises ValueError on an empty fact."""
        return self.study(fact)[0]

    def study(self, fact: str | ReadFact, known: Sequence[str] = ()) -> tuple[Floats, Told | None]:
        """The scores of all columns, drawn to the computed term, and what the fact tells.

        Charges that are `known` are those found, where all of them have a score. Raises ValueError
        on a fact that holds no letter and no digit.
        """
        read, charges = read_fact(fact), self.labels.charges
        scores = self.score_features(read)
        if known and set(known) <= set(charges):
            scores[: len(charges)] = [KNOWN_SCORE if c in known else -KNOWN_SCORE for c in charges]
        if self.details is None:
            return scores, None
        told = self.details.read(read.text, self.decider.find_likeliest(scores))
        return lean_on_calculus(self.labels, scores[None], [told.term])[0], told

    def score_features(self, fact: str | ReadFact) -> Floats:
        """The linear model's own scores, of shape (charges + articles + bins,)."""
        rows, weights = self.vocabulary.weigh(fact)
        (scores,) = self._session.run(None, {"rows": rows, "weights": weights[None, :]})
        return np.array(scores[0], np.float32)

    def is_unfamiliar(self, fact: str | ReadFact) -> bool:
        """Whether a fact is unlike those trained on, so that no probability here holds for it."""
        return self.familiarity is not None and self.familiarity.is_unfamiliar(fact)

    def figures_beyond(self, fact: str | ReadFact) -> list[str]:
        """Figures of a fact that are larger or smaller than all of those trained on."""
        return self.familiarity.figures_beyond(fact) if self.familiarity else []

    def predict(self, fact: str) -> Prediction:
        """A verdict for a raw fact. Raises ValueError when it holds no letter and no digit."""
        return self.read(self.reading(fact).studied[0])

    def read(self, scores: Floats) -> Prediction:
        """The verdict that scores of `score` stand for, with its confidences."""
        decision = self.decider.decide(scores)
        confidences = {
            part: self.labels.calibration[part].confidence(decision.evidence[part])
            for part in PARTS
        }
        return Prediction(decision.verdict, confidences)


class Reading:
    """What a classifier finds in a fact, whatever the verdict; each part is computed once."""

    def __init__(self, classifier: Classifier, fact: str, findings: Findings | None = None) -> None:
        """`findings` are those of another process, by the same classifier."""
        self._classifier, self._fact = classifier, fact
        if findings:
            data = findings.scores and base64.b64decode(findings.scores)
            self.scores = np.frombuffer(data, np.float32) if data else None
            self.unfamiliar = findings.unfamiliar
            self.figures_beyond = findings.figures_beyond

    @cached_property
    def studied(self) -> tuple[Floats, Told | None]:
        """As of `Classifier.study`. Raises ValueError where the fact holds no letter or digit."""
        return self._classifier.study(self._read)

    @cached_property
    def scores(self) -> Floats | None:
        """Its scores; None where the fact holds no letter or digit."""
        try:
            return self.studied[0]
        except ValueError:
            return None

    @cached_property
    def sure(self) -> Doubles | None:
        """The probability of each charge; None without scores, or in a folder without any."""
        if self.scores is None or self._classifier.assessor is None:
            return None
        return self._classifier.assessor.charge_probabilities(self.scores)

    @cached_property
    def unfamiliar(self) -> bool:
        """Whether the fact is unlike those fitted on, so that no probability holds.

        False with a classifier folder that can't tell.
        """
        return self._classifier.is_unfamiliar(self._read)

    @cached_property
    def figures_beyond(self) -> Sequence[str]:
        """Figures that are larger or smaller than all of those fitted on."""
        return self._classifier.figures_beyond(self._read)

    def look(self) -> None:
        """Compute every part now."""
        _ = self.sure, self.unfamiliar, self.figures_beyond

    def find(self) -> Findings:
        """What another process may take instead of reading the fact itself."""
        scores = None if self.scores is None else base64.b64encode(self.scores.tobytes()).decode()
        digest = self._classifier.digest
        return Findings(digest, scores, self.unfamiliar, tuple(self.figures_beyond))

    @cached_property
    def _read(self) -> ReadFact:
        return read_fact(self._fact)


def lean_on_calculus(labels: Labels, scores: Floats, terms: Sequence[Term | None]) -> Floats:
    """Scores whose bins are drawn to the computed terms: a product of both opinions.

    `scores` are (cases, columns); the severities of `terms` come as one column more.
    """
    computed = np.array([[UNCOMPUTED if t is None else severity(t)] for t in terms])
    far = np.minimum(np.abs(computed - labels.severities), REACH)
    drawn = scores.copy()
    drawn[:, labels.term_columns] -= labels.calculus_weight * np.where(computed < 0, 0.0, far)
    return np.hstack([drawn, computed]).astype(scores.dtype)


def load_classifier(folder: Path | str) -> Classifier:
    """Load a folder of `python -m compress.classifier.train` from the very bytes that were checked.

    Raises ArtifactError when the folder, its manifest or a file is missing or altered, or when it
    was made by code that reads facts in another way.
    """
    folder = Path(folder)
    remedy = "make it again with `python -m compress.classifier.train`"
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}, so it is no classifier folder: {remedy}")
    try:
        manifest = ClassifierManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError as error:
        raise ArtifactError(f"{folder} holds no classifier: {error}") from error
    if manifest.features != digest_features():
        raise ArtifactError(f"{folder} was made by code that reads facts in another way: {remedy}")
    content = {}
    for name in (MODEL, VOCABULARY, LABELS, *OPTIONAL):
        if name in OPTIONAL and name not in manifest.files:
            continue
        if name not in manifest.files or not (folder / name).is_file():
            raise ArtifactError(f"{folder} lacks {name}: {remedy}")
        content[name] = (folder / name).read_bytes()
        if hashlib.sha256(content[name]).hexdigest() != manifest.files[name]:
            raise ArtifactError(f"{folder / name} is not the file that was made: {remedy}")
    try:
        with np.load(io.BytesIO(content[VOCABULARY]), allow_pickle=False) as arrays:
            vocabulary = Vocabulary(arrays["hashes"], arrays["idf"])
        optional = {
            part: read(content[name]) for name, (part, read) in OPTIONAL.items() if name in content
        }
        labels = Labels.model_validate_json(content[LABELS])
        return Classifier(labels, vocabulary, content[MODEL], manifest, **optional)
    except (KeyError, ValueError) as error:  # a ValidationError is a ValueError
        what = error.title if isinstance(error, ValidationError) else str(error)
        raise ArtifactError(f"{folder} was made by other code ({what}): {remedy}") from error


def pack(labels: Labels, vocabulary: Vocabulary) -> dict[str, bytes]:
    """The bytes of the files beside the model, by name; `load_classifier` reads them back."""
    buffer = io.BytesIO()
    np.savez(buffer, hashes=vocabulary.hashes, idf=vocabulary.idf)
    return {LABELS: labels.model_dump_json(indent=1).encode(), VOCABULARY: buffer.getvalue()}
