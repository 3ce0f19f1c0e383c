"""What a text seems to be: the facts of a prosecution at first instance, or something else.

Models here have read nothing but public prosecutions of mainland China at first instance. Rules
(`kind_rules.toml`) know the words of other procedures that are hardly ever in the facts of one,
though former convictions there tell of appeals and of sentences cut short. What no rule names, or
a short text that asks or reports, goes to a classifier: multinomial logistic regression over
single characters, pairs and a few signs, fitted when first asked, in half a second, to the
examples in `kinds.toml` and to generated facts. Another example there teaches it more.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import log_softmax

from curt.corpus.age import read_age
from curt.corpus.generate.generator import generate_cases

Kind = Literal[
    "prosecution", "not_chinese", "taiwan", "state_compensation", "compulsory_treatment", "retrial",
    "commutation", "private_prosecution", "withdrawn", "jurisdiction", "appeal", "incidental_civil",
    "civil", "administrative", "child", "press", "question", "not_criminal",
]  # fmt: skip
ORDINARY: Kind = "prosecution"

MIN_CHINESE_SHARE = 0.2
"""Of the letters; a text with fewer is in another language."""
TRADITIONAL_SHARE = 0.1  # of the Chinese characters

_EXAMPLES = Path(__file__).with_name("kinds.toml")
_GENERATED = 40  # facts, longer than the examples
_READ_CHARS = 600  # what a text is shows at its beginning
_RETOLD_CHARS = 200  # of shorter texts only what asks or reports is known by its words
_STRENGTH = 100.0  # of the fit: the inverse weight of the squared coefficients

_COMMON_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
_KANA = re.compile(r"[\u3041-\u30ff]")
_REPUBLIC_YEAR = re.compile(r"民[国國](?:[0-9０-９]{2,3}|[一二三四五六七八九十百零〇○]{2,6})年")
_WORDS = tomllib.loads(Path(__file__).with_name("kind_rules.toml").read_text(encoding="utf-8"))
_TAIWAN, _PROSECUTED, _RETOLD = (
    re.compile("|".join(_WORDS[name])) for name in ("taiwan_words", "prosecuted", "retold")
)
_RULES: dict[Kind, re.Pattern[str]]
_RULES, _SIGNS = (
    {name: re.compile("|".join(words)) for name, words in _WORDS[table].items()}
    for table in ("procedures", "signs")
)
_NUMBER = re.compile(
    "[0-9]+(?:[.,][0-9]+)?|[零一二两三四五六七八九十百千万亿〇]+(?=[元克人次岁年月日天起名个万份只块张])"
)
_TOO_YOUNG = re.compile("(?:[未不]满|未达到?|不到|不足|没到)(?:十[一二三四]|1[0-4])|责任年龄")
_MASKED_NAME = re.compile(".某[某甲乙丙]?")


def chinese_share(text: str) -> float:
    """The share of Chinese characters among the letters of a text; 0.0 where it has no letter."""
    others = _COMMON_CHINESE.sub("", text)
    common = len(text) - len(others)
    letters = common + sum(map(str.isalpha, others))
    chinese = common + sum(map(len, _CHINESE.findall(others)))
    return min(1.0, chinese / letters) if letters else 0.0  # some of them are not yet letters


def other_law(text: str) -> Kind | None:
    """`not_chinese` or `taiwan` where a text is of another law; it takes no classifier."""
    if chinese_share(text) < MIN_CHINESE_SHARE or len(_KANA.findall(text)) > 0.1 * len(text):
        return "not_chinese"
    return "taiwan" if _is_taiwanese(text) else None


def kind_of(text: str) -> Kind:
    """What a text seems to be."""
    if other := other_law(text):
        return other
    if len(text) >= _RETOLD_CHARS or not _RETOLD.search(text):
        named = (kind for kind, words in _RULES.items() if words.search(text))
        if kind := next(named, ORDINARY if _PROSECUTED.search(text) else None):
            return kind
    kind = fit_classifier().classify(text)
    return ORDINARY if kind == "child" and _is_answerable(text) else kind


def _is_answerable(text: str) -> bool:
    """Whether a text tells of the age of fourteen or more, and of nobody younger."""
    if (age := read_age(text)) is not None:
        return age >= 14
    return bool(_SIGNS["grown"].search(text)) and not (
        _SIGNS["young"].search(text) or _TOO_YOUNG.search(text)
    )


@dataclass(frozen=True, slots=True)
class KindClassifier:
    """Rows of `weights` for the grams of `places`, a column for each of `kinds`."""

    kinds: Sequence[Kind]
    places: Mapping[str, int]
    rarity: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]

    def classify(self, text: str) -> Kind:
        """The likeliest kind."""
        rows, values = _weigh(text, self.places, self.rarity)
        return self.kinds[int((values @ self.weights[rows]).argmax())] if len(rows) else ORDINARY


@cache
def fit_classifier() -> KindClassifier:
    """The classifier, fitted once a process; ask for it where half a second does not matter."""
    examples: dict[Any, list[str]] = tomllib.loads(_EXAMPLES.read_text(encoding="utf-8"))
    examples[ORDINARY] += [case.fact for case in generate_cases(_GENERATED, seed=1)]
    kinds = [kind for kind in get_args(Kind) if kind in examples]
    texts = [text for kind in kinds for text in examples[kind]]
    labels = np.repeat(np.eye(len(kinds)), [len(examples[kind]) for kind in kinds], axis=0)
    holders = Counter(gram for text in texts for gram in set(_grams(text)))
    shared = {gram: count for gram, count in holders.items() if count > 1}
    places = {gram: place for place, gram in enumerate(shared)}
    rarity = np.log(len(texts) / np.array(list(shared.values()))).astype(np.float32) + 1
    weighed = [_weigh(text, places, rarity) for text in texts]
    columns, values = (np.concatenate(part) for part in zip(*weighed, strict=True))
    ends = np.cumsum([0, *(len(own) for own, _ in weighed)])
    matrix = csr_array((values, columns, ends), shape=(len(texts), len(places)))
    # Kinds count the same however many examples they have.
    balance = (labels / labels.sum(axis=0)).sum(axis=1, keepdims=True) * len(texts) / len(kinds)

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights = flat.reshape(len(places), len(kinds))
        chances = log_softmax(matrix @ weights, axis=1)
        slope = matrix.T @ (balance * (np.exp(chances) - labels)) + weights / _STRENGTH
        fit = flat @ flat / 2 / _STRENGTH - (balance * labels * chances).sum()
        return float(fit), slope.ravel()

    found = minimize(loss, np.zeros(len(places) * len(kinds)), jac=True, method="L-BFGS-B").x
    return KindClassifier(kinds, places, rarity, found.reshape(len(places), -1).astype(np.float32))


def _grams(text: str) -> list[str]:
    plain = _MASKED_NAME.sub("某", _NUMBER.sub("0", text[:_READ_CHARS]))
    signs = (name for name, words in _SIGNS.items() if words.search(text))
    return [*plain, *map("".join, pairwise(plain)), *signs]


def _weigh(
    text: str, places: Mapping[str, int], rarity: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Places of the known grams of a text, and their weights, of which the squares add up to 1."""
    counts = Counter(gram for gram in _grams(text) if gram in places)
    rows = np.array([places[gram] for gram in counts], np.int64)
    values = (1 + np.log(np.array(list(counts.values()), np.float32))) * rarity[rows]
    return rows, values / np.linalg.norm(values) if len(rows) else values


def _is_taiwanese(text: str) -> bool:
    """Traditional characters, years of the Republic, or several words of its courts."""
    traditional = len(_traditional().findall(text))
    if traditional > TRADITIONAL_SHARE * sum(map(len, _COMMON_CHINESE.findall(text))):
        return True
    return bool(_REPUBLIC_YEAR.search(text)) or len(set(_TAIWAN.findall(text))) > 1


@cache
def _traditional() -> re.Pattern[str]:
    """The characters that Taiwan's character set holds and the mainland's of 1980 does not."""
    han = "".join(map(chr, range(0x4E00, 0x9FA6)))
    simplified = set(han.encode("gb2312", "ignore").decode("gb2312"))
    traditional = set(han.encode("big5", "ignore").decode("big5")) - simplified
    return re.compile(f"[{''.join(sorted(traditional))}]")
