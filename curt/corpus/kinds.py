"""What a text seems to be: the facts of a prosecution at first instance, or something else.

Models here have read nothing but public prosecutions of mainland China at first instance. Rules
know the words of other procedures that are hardly ever in the facts of one, though former
convictions there tell of appeals and of sentences cut short. What no rule names goes to a
classifier: multinomial logistic regression over single characters and pairs, fitted when first
asked, in half a second, to the examples in `kinds.toml` and to generated facts. Another example
there teaches it more.
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
_STRENGTH = 100.0  # of the fit: the inverse weight of the squared coefficients

_COMMON_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
_KANA = re.compile(r"[\u3041-\u30ff]")
_REPUBLIC_YEAR = re.compile(r"民[国國](?:[0-9０-９]{2,3}|[一二三四五六七八九十百零〇○]{2,6})年")
_TAIWAN = re.compile(
    r"新[台臺][币幣]|(?:地方|高等)[^。，]{0,4}检察署|台湾[^。，]{0,6}地方(?:法院|检察)|告诉人|声请|谕知|"
    r"易科罚金|诈欺|窃盗罪|坦承|爰|嗣[经于]|始悉上情|级毒品危害|公共危险罪|吐气所含|每公升|"
    r"重型机车|不确定故意|真实姓名年籍不详|提款卡"
)
_PROSECUTED = re.compile(
    r"公诉机关|检察院[^。，]{0,12}指控|起诉书|指控[^。，]{0,12}被告人|(?:审理|经审)查明[^。]{0,60}被告人"
)
_RULES: Mapping[Kind, re.Pattern[str]] = {
    "state_compensation": re.compile(
        r"赔偿请求人|国家赔偿|赔偿义务机关|刑事赔偿|赔偿委员会|(?:侵犯|限制)人身自由的?(?:损失|赔偿)"
    ),
    "compulsory_treatment": re.compile(
        r"强制医疗|被申请人[^。]{0,80}(?:精神|责任能力)|不负刑事责任的精神病人"
    ),
    "retrial": re.compile(
        r"(?<!代理)(?<!案经)再审|申诉人|审判监督程序|(?:多次|提出)申诉|(?:原判|生效)[^。]{0,30}确有错误|提审本案"
    ),
    "commutation": re.compile(
        r"执行机关[^。]{0,30}(?:减刑|假释|减去|报送|提请|建议)|"
        r"(?:提请|建议|报请|呈报|拟)[^，。；]{0,14}(?:减刑|假释|减去)|(?:减刑|假释)(?:建议|一案)|"
        r"罪犯[^。]{0,60}(?:悔改表现|减刑|减为)"
    ),
    "private_prosecution": re.compile(r"自诉人|刑事自诉|提起自诉|自诉案件"),
    "withdrawn": re.compile(
        r"撤回(?:[该本]案)?(?:对[^。]{0,30}的)?(?:起诉|公诉)|"
        r"(?:公诉机关|检察院|检察机关|公诉人)[^。]{0,24}(?:撤回对|撤诉)"
    ),
    "jurisdiction": re.compile(
        r"指定[^。]{0,24}管辖(?!相关|通知|函)|(?:没有|无|不具有)管辖权|管辖[^。]{0,8}(?:争议|异议)|"
        r"指定[^。]{0,24}法院[^。]{0,24}审[判理]"
    ),
    "appeal": re.compile(
        r"上诉人|原审(?!原告)|(?<!没有上诉、)抗诉|二审(?:审理|法院|查明|期间|依法|开庭)|上诉(?:称|状|来院|[至于]本院)|"
        r"(?:宣判|判决|送达|一审)[^。]{0,40}(?:提[出起]上诉|递交上诉)|不服[^。，]{0,12}，?(?:提[出起])?上诉|"
        r"一审判决认定|原判(?:认定|量刑)"
    ),
}


def chinese_share(text: str) -> float:
    """The share of Chinese characters among the letters of a text; 0.0 where it has no letter."""
    if sum(map(len, _COMMON_CHINESE.findall(text))) == len(text) > 0:
        return 1.0
    letters = sum(map(str.isalpha, text))
    chinese = sum(map(len, _CHINESE.findall(text)))
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
    named = (kind for kind, words in _RULES.items() if words.search(text))
    if named_kind := next(named, None):
        return named_kind
    return ORDINARY if _PROSECUTED.search(text) else fit_classifier().classify(text)


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
    # Kinds count the same however many examples they have. The coefficients are sums of the
    # examples' own rows, whose weights are looked for.
    balance = (labels / labels.sum(axis=0)).sum(axis=1, keepdims=True)
    balance *= len(texts) / balance.sum()
    alike = (matrix @ matrix.T).toarray()

    def loss(flat: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        own = flat.reshape(labels.shape)
        scores = alike @ own
        chances = log_softmax(scores, axis=1)
        slope = balance * (np.exp(chances) - labels) + own / _STRENGTH
        fit = -(balance * labels * chances).sum() + (own * scores).sum() / 2 / _STRENGTH
        return float(fit), (alike @ slope).ravel()

    own = minimize(loss, np.zeros(labels.size), jac=True, method="L-BFGS-B").x
    weights = (matrix.T @ own.reshape(labels.shape)).astype(np.float32)
    return KindClassifier(kinds, places, rarity, weights)


def _grams(text: str) -> list[str]:
    plain = re.sub("[0-9]", "0", text[:_READ_CHARS])
    return [*plain, *map("".join, pairwise(plain))]


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
    han = "".join(_COMMON_CHINESE.findall(text))
    if sum(map(_traditional().__contains__, han)) > TRADITIONAL_SHARE * len(han):
        return True
    return bool(_REPUBLIC_YEAR.search(text)) or len(set(_TAIWAN.findall(text))) > 1


@cache
def _traditional() -> frozenset[str]:
    """Characters that Taiwan's character set holds and the mainland's of 1980 does not."""
    han = "".join(map(chr, range(0x4E00, 0x9FA6)))
    simplified = set(han.encode("gb2312", "ignore").decode("gb2312"))
    return frozenset(han.encode("big5", "ignore").decode("big5")) - simplified
