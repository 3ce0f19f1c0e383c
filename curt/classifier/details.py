"""What a term turns on, read out of a fact: the harm and the circumstances.

Some charges are graded by quantity (8600+4700=13300元), others by what came of the act (轻伤二级).
Which of the figures of a fact count is judged by the characters around each; grades and
circumstances by the runs of characters that tell them apart from each other, in a text in which
the names of defendant and victim give way to their roles.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress, pairwise
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from curt.config import FrozenModel
from curt.corpus.age import read_age
from curt.corpus.deed import deed_day
from curt.law.figures import Figure, read_figures, write_figure
from curt.law.term_scale import count_term
from curt.law.verdict import Term
from curt.law.weighing import scale_months, sum_ratios

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

HASHES = 1 << 14
LEFT, RIGHT = 14, 8  # characters around a figure
MOST_PARTS = 6
CLASSES = ("other", "part", "total")
"""What a figure may be: beside the matter, a quantity that counts, the told sum of several."""
_OTHER, _PART, _TOTAL = range(3)

_SINGLE, _PAIR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(1 << 21), np.uint64(32)
_ROLES = ("被告人", "被害人")
_SENTENCE_END = re.compile("[。；！？]")
_CLAUSE_END = re.compile("[，、：]")
_DENIED = re.compile("[不未没无非拒][^，、]{0,3}$")
"""A negation right before a sign, in its clause."""
_FREE = "(?:出来|出狱|释放|刑满|坐完牢)(?:以?后|至今|到现在)?[已还才刚仅不没未足到满有过了都早就]*"
_LONG_FREE = re.compile(
    _FREE + "(?:[6-9]|[1-9][0-9]|[六七八九十]|好?多)[几一二三四五六七八九]?多?年"
)
_JUST_FREE = re.compile(
    _FREE + "(?:[1-5一二两三四五半几][多来]?年|[0-9一二两三四五六七八九十半几]{1,3}[多来]?个?月)"
    "|(?:[去前今]年|上个月|刚刚?|才)[^，。；]{0,6}(?:出来|出狱|释放|坐完牢|刑满)"
)
_RECORD = ("累犯", "前科")
_AGES = {"未成年": range(12, 18), "老年": range(75, 101)}
_RELEASED = re.compile(
    r"((?:19|20)[0-9]{2})年([0-9]{1,2})月(?:([0-9]{1,2})日)?[^,。；0-9]{0,8}(?:释放|刑满|出狱|执行完毕)"
)
_PRISON = re.compile("有期徒刑|××")
_LIGHTER = re.compile("拘役|管制|缓刑|免予|免除")
_RECIDIVIST = re.compile("(?<![不非无])(?:系|是|为|属于?|成|以|有)累犯")
_MINOR = re.compile("未成年|未满(?:十八|18)")
_RECIDIVISM_YEARS = 5
_DISCLAIMED = re.compile("[不未]予?(?:认定|确认|计入|计算)|与本案无关")
_COURT = re.compile("被告人|公诉机关|检察院|本院|经审理")
_NO_NAME = re.compile("[，。；：、,.;:（）()《》“”0-9]")


_DEAD = "死|亡|丧生|遇难|殒|不治|抢救无效|命案|毙|断气|没能?抢?救|停止呼吸|[人就]没了|去世"
_MAIMED = "重伤|伤残|残疾|致残|植物人"
_REPEATED = (
    "多次|[数几屡好]几?[次回起]|先后|连续|同样手段|第二|反复|经常|等人|"
    "(?:[二两三四五六七八九十百2-9]|[0-9]{2,})余?多?[次起回趟宗笔名人个]"
)
_CLAUSE = "，。；！？,;!?"
_SPOKEN = (
    ("死", re.compile(_DEAD)),
    ("自杀", re.compile("自杀|自尽|轻生|寻短|跳楼|跳河|服毒|农药|上吊|割腕")),
    ("重伤", re.compile(_MAIMED)),
    ("一重", re.compile(_MAIMED)),
    ("轻伤", re.compile("轻伤")),
    ("轻微伤", re.compile("轻微伤")),
    ("损失", re.compile("损失|烧毁|毁损|元")),
    ("多次", re.compile(_REPEATED)),
    ("持枪", re.compile("枪")),
    ("金融机构", re.compile("银行|信用社|储蓄|邮政|运钞|押运|金融")),
    ("公共交通", re.compile("[车船]|地铁|飞机|航班")),
    ("当众", re.compile("众|公共|在场|围观|面前?[，。,强]|多人|广场|大街")),
    (
        "尚未",
        re.compile(
            rf"\A(?!(?:.*[{_CLAUSE}])?(?:(?!未|没|足以|险些|可能|避免|防止|幸)[^{_CLAUSE}])*"
            "造成了?(?:特别)?严重的?后果)",
            re.DOTALL,
        ),
    ),
)
"""No grade of these names without such a word: what scores best is otherwise the least unlikely."""


@dataclass(frozen=True, slots=True)
class Hints:
    """A linear score for each of some names over the runs of characters that a text holds."""

    names: tuple[str, ...] = ()
    """The commonest first."""
    hints: tuple[str, ...] = ()
    weights: Floats = field(default_factory=lambda: np.zeros((1, 0), np.float32))
    """Intercepts first: (1 + hints, names)."""

    def score(self, text: str) -> Floats:
        """The scores for a text of `name_roles`, of shape (names,)."""
        held = np.array([True, *(hint in text for hint in self.hints)])
        scores: Floats = self.weights[held].sum(axis=0)
        return scores

    def choose(self, text: str) -> str:
        """The name that scores best of those that the text speaks of; the first where none is."""
        order: list[int] = self.score(text).argsort()[::-1].tolist()
        ordered = (self.names[place] for place in order)
        return next((name for name in ordered if _is_spoken(name, text)), self.names[0])


class Scale(FrozenModel):
    """What the declared law makes of the harm of one charge."""

    unit: str = ""
    brackets: tuple[tuple[float, int, float], ...] = ()
    """From so many units on so many months, and one month more for every so many units."""
    grades: dict[str, int] = {}
    """Months by grade, where there are no brackets."""
    fine: int = 0
    """Yuan a month."""
    ceiling: int = 180
    """The most months."""
    ratios: dict[str, int] = {}
    """Percent by which a circumstance that only this charge has moves a term."""

    def tell(self, harm: str) -> str:
        """20000元一档7+6=13，罚1500 for 60975元; empty for a harm that it does not know."""
        if harm in self.grades:
            told = self._name(self.grades[harm])
        elif reached := self._reach(harm):
            threshold, months, added = reached
            told = f"{write_figure(threshold)}{self.unit}一档{self._name(months)}"
            told += f"+{added}={months + added}" if months >= 0 else ""
        else:
            return ""
        return f"{told}，罚{self.fine}" if self.fine else told

    def compute(self, harm: str, ratio: int) -> Term | None:
        """The term of a harm that circumstances move by `ratio` percent; None as in `tell`."""
        if harm in self.grades:
            base = self.grades[harm]
        elif reached := self._reach(harm):
            base = reached[1] + reached[2] if reached[1] >= 0 else reached[1]
        else:
            return None
        return (
            Term("life") if base < 0 else count_term(min(scale_months(base, ratio), self.ceiling))
        )

    def _reach(self, harm: str) -> tuple[float, int, int] | None:
        """The threshold of the bracket that a quantity reaches, its months, and those added."""
        quantity = split_sum(harm, self.unit)
        reached = [bracket for bracket in self.brackets if quantity and quantity[1] >= bracket[0]]
        if not quantity or not reached:
            return None
        threshold, months, every = reached[-1]
        return threshold, months, int(quantity[1] / every + 1e-9)

    def _name(self, months: int) -> str:
        return f"{months}" if months >= 0 else "无期"


@dataclass(frozen=True, slots=True)
class SentenceReader:
    """Circumstances of one charge by the sentences that tell them.

    `weights` score a sentence's hashed features for each name: (`HASHES` + 1, names). A
    circumstance is told where a sentence scores above 0.
    """

    names: tuple[str, ...] = ()
    weights: Floats = field(default_factory=lambda: np.zeros((HASHES + 1, 0), np.float32))

    def find(self, text: str) -> list[str]:
        """The circumstances told in a text of `name_roles`, in their order."""
        hashes, starts = hash_sentences(text)
        if not len(hashes):
            return []
        best = np.add.reduceat(self.weights[hashes], starts, axis=0).max(axis=0)
        return list(compress(self.names, best > 0))


@dataclass(frozen=True, slots=True)
class Signs:
    """Circumstances by the sentences that hold one of their signs.

    `weights` score such a sentence's hashed features for each name: (names, `HASHES`). A
    circumstance is told where one of its sentences scores above 0, and no other of its group more.
    """

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    """Of those with the same one a case holds at most one; a name of its own where empty."""
    signs: tuple[tuple[str, ...], ...] = ()
    weights: Floats = field(default_factory=lambda: np.zeros((0, HASHES), np.float32))

    def find(self, text: str, barred: Collection[str] = ()) -> list[str]:
        """The circumstances told in a text of `name_roles`, in their order, but those `barred`."""
        sentences = split_sentences(text)
        best: dict[str, tuple[float, str]] = {}
        for name, group, signs, weights in zip(
            self.names, self.groups, self.signs, self.weights, strict=True
        ):
            if name in barred:
                continue
            found = hash_signs(text, sentences, signs)
            score = max((float(weights[features].sum()) for features in found), default=0.0)
            if score > 0:
                best[group or name] = max(best.get(group or name, (0.0, "")), (score, name))
        told = {name for _, name in best.values()}
        return [name for name in self.names if name in told]


@dataclass(frozen=True, slots=True)
class Told:
    """What a fact tells of that a charge's term turns on, and the term that follows."""

    charge: str
    harm: str
    circumstances: tuple[str, ...]
    term: Term | None
    """None where the declared law has no scale for such a harm."""


@dataclass(frozen=True, slots=True)
class DetailReader:
    """Reads harm and circumstances; charges of neither `units` nor `grades` have no harm here.

    `weights` score a figure's hashed features for each of `CLASSES`: (`HASHES`, 3).
    """

    units: Mapping[str, str] = field(default_factory=dict)
    weights: Floats = field(default_factory=lambda: np.zeros((HASHES, 3), np.float32))
    grades: Mapping[str, Hints] = field(default_factory=dict)
    shared: Signs = field(default_factory=Signs)
    """The circumstances that any charge may have, but for those `barred` for it."""
    barred: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By charge: 赔偿 is 退赔 where money was taken."""
    own: Mapping[str, SentenceReader] = field(default_factory=dict)
    """Those that only a charge has, by charge."""
    scales: Mapping[str, Scale] = field(default_factory=dict)
    ratios: Mapping[str, int] = field(default_factory=dict)
    """Percent by which a shared circumstance moves a term, where the declared law says."""

    def read(self, text: str, charge: str) -> Told:
        """What a text of `familiarity.read_text` tells, and what the declared law makes of it."""
        harm, found = self.read_harm(text, charge), self.find_circumstances(text, charge)
        term = None
        if scale := self.scales.get(charge):
            term = scale.compute(harm, sum_ratios(self.ratio_of(charge, n) or 0 for n in found))
        return Told(charge, harm, tuple(found), term)

    def ratio_of(self, charge: str, name: str) -> int | None:
        """Percent by which a circumstance moves a term under this charge."""
        scale = self.scales.get(charge)
        own = scale.ratios if scale else {}
        return own.get(name, self.ratios.get(name))

    def read_harm(self, text: str, charge: str) -> str:
        """The harm as `Case.harm` tells it, of a text of `familiarity.read_text`; may be empty."""
        if unit := self.units.get(charge):
            chosen = self._choose_figures(text, unit)
            return write_sum(chosen) + unit if chosen else ""
        grades = self.grades.get(charge)
        return grades.choose(name_roles(text)) if grades else ""

    def tell_scale(self, charge: str, harm: str) -> str:
        """What the charge's scale says of a harm; empty where it has none."""
        return self.scales[charge].tell(harm) if charge in self.scales else ""

    def find_circumstances(self, text: str, charge: str) -> list[str]:
        """What a text of `familiarity.read_text` tells: a charge's own circumstances first."""
        named = name_roles(text)
        own = self.own[charge].find(named) if charge in self.own else ()
        barred = self.barred.get(charge, ())
        found = self.shared.find(named, barred)
        told = ((_RECORD, read_record(text)), (tuple(_AGES), age_of(named)))
        for names, name in told:
            if name in self.shared.names and name not in barred:
                others = [other for other in found if other not in names]
                found = sorted([*others, name], key=self.shared.names.index)
        return [*own, *found]

    def _choose_figures(self, text: str, unit: str) -> list[float]:
        figures = drop_disclaimed(text, read_figures_in(text, unit))
        if not figures:
            return []
        scores = np.array(
            [self.weights[hash_figure(text, figures, i)].sum(axis=0) for i in range(len(figures))]
        )
        kinds = scores.argmax(axis=1)
        values = [figure.value for figure in figures]
        parts = list(dict.fromkeys(v for v, kind in zip(values, kinds, strict=True) if kind))
        totals = [v for v, kind in zip(values, kinds, strict=True) if kind == _TOTAL]
        if totals:
            return [totals[-1]]
        if not parts:  # a charge that is graded by quantity has one
            return [values[int((scores[:, _PART] - scores[:, _OTHER]).argmax())]]
        largest = max(parts)
        is_sum = len(parts) > 2 and abs(2 * largest - sum(parts)) < 1e-6
        return [largest] if is_sum or len(parts) > MOST_PARTS else parts

    def pack(self) -> bytes:
        """A compressed npz without pickles; `unpack` takes it back."""
        arrays: dict[str, Any] = {
            "charges": np.array(list(self.units) or [""]),
            "units": np.array(list(self.units.values()) or [""]),
            "weights": self.weights.astype(np.float16),
            "graded": np.array(list(self.grades) or [""]),
            "special": np.array(list(self.own) or [""]),
            "shared": np.array(self.shared.names or [""]),
            "groups": np.array(self.shared.groups or [""]),
            "signs": np.array(list(map("|".join, self.shared.signs)) or [""]),
            "weighed": np.array(list(self.ratios) or [""]),
            "ratios": np.array(list(self.ratios.values()), np.int32),
            "scaled": np.array(list(self.scales) or [""]),
            "scales": np.array([s.model_dump_json() for s in self.scales.values()] or [""]),
            "sign_weights": self.shared.weights.astype(np.float16),
            "barring": np.array(list(self.barred) or [""]),
            "barred": np.array(list(map("|".join, self.barred.values())) or [""]),
        }
        for place, grades in enumerate(self.grades.values()):
            arrays[f"names_{place}"] = np.array(grades.names or [""])
            arrays[f"hints_{place}"] = np.array(grades.hints or [""])
            arrays[f"weights_{place}"] = grades.weights.astype(np.float16)
        for place, one in enumerate(self.own.values()):
            arrays[f"told_{place}"] = np.array(one.names)
            arrays[f"sentences_{place}"] = one.weights.astype(np.float16)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> DetailReader:
        """Inverse of `pack`. Raises ValueError or KeyError on other bytes."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:

            def texts(key: str) -> tuple[str, ...]:
                return tuple(str(text) for text in arrays[key] if text)

            def floats(key: str) -> Floats:
                return np.asarray(arrays[key], np.float32)

            grades = {
                name: Hints(texts(f"names_{n}"), texts(f"hints_{n}"), floats(f"weights_{n}"))
                for n, name in enumerate(texts("graded"))
            }
            own = {
                name: SentenceReader(texts(f"told_{n}"), floats(f"sentences_{n}"))
                for n, name in enumerate(texts("special"))
            }
            signs = tuple(tuple(words.split("|")) for words in texts("signs"))
            names = texts("shared")
            groups = tuple(map(str, arrays["groups"]))[: len(names)]
            shared = Signs(names, groups, signs, floats("sign_weights"))
            scales = map(Scale.model_validate_json, texts("scales"))
            barring = texts("barring") if "barring" in arrays else ()
            barred = (tuple(names.split("|")) for names in (texts("barred") if barring else ()))
            return cls(
                dict(zip(texts("charges"), texts("units"), strict=True)),
                floats("weights"),
                grades,
                shared,
                dict(zip(barring, barred, strict=True)),
                own,
                dict(zip(texts("scaled"), scales, strict=True)),
                dict(zip(texts("weighed"), arrays["ratios"].tolist(), strict=True)),
            )


def name_roles(text: str) -> str:
    """A text with the names that follow 被告人 and 被害人 replaced by those roles."""
    for role in _ROLES:
        if name := _find_name(text, role):
            text = text.replace(role + name, role).replace(name, role)
    return text


def read_record(text: str) -> str:
    """累犯 or 前科 by the days that a text of `familiarity.read_text` tells; empty where none do.

    A recidivist commits an offence within five years of the end of a prison sentence (Criminal
    Law, article 65). Days settle nothing where a text speaks of a minor, whoever that is, who can't
    be one, or calls somebody 累犯 itself; a masked sentence (××) that was served counts as prison.
    """
    deed, judged = None if _MINOR.search(text) else deed_day(text), ""
    if deed is None:
        return ""
    for release in _RELEASED.finditer(text):
        sentence = text[text.rfind("。", 0, release.start()) + 1 : release.start()]
        since = sentence[sentence.rfind("判") :]
        if not _PRISON.search(since) or _LIGHTER.search(since):
            continue
        year, month, day = (int(part or 1) for part in release.groups())
        years_later = (deed.year - year) + ((deed.month, deed.day) >= (month, day)) - 1
        if 0 <= years_later < _RECIDIVISM_YEARS:
            return "累犯"
        if years_later >= _RECIDIVISM_YEARS:
            judged = "" if _RECIDIVIST.search(text) else "前科"
    return judged


def age_of(text: str) -> str:
    """未成年 or 老年 by the age that a text of `name_roles` tells; empty where it tells neither."""
    age = read_age(text)
    return next((name for name, years in _AGES.items() if age in years), "")


def read_figures_in(text: str, unit: str) -> list[Figure]:
    """The figures of a text that are in a unit; kilograms are grams where those are asked for."""
    sizes = {"公斤": 1000, "克": 1} if unit == "克" else {unit: 1}
    found: list[Figure] = []
    for each in read_figures(text):
        if each.unit not in sizes:
            continue
        value, start = each.value * sizes[each.unit], each.start
        if found and found[-1].end == start and found[-1].value >= sizes.get("公斤", np.inf):
            start, value = found[-1].start, found.pop().value + value  # 1公斤350克
        found.append(replace(each, start=start, value=value, unit=unit))
    return found


def drop_disclaimed(text: str, figures: list[Figure]) -> list[Figure]:
    """Figures but for the last one before words of its sentence that it does not count.

    All of them where none would be left.
    """
    dropped = set()
    for words in _DISCLAIMED.finditer(text):
        before = [f for f in figures if f.end <= words.start()]
        if before and not _SENTENCE_END.search(text, before[-1].end, words.start()):
            dropped.add(before[-1])
    return [f for f in figures if f not in dropped] or figures


def hash_figure(text: str, figures: Sequence[Figure], place: int) -> Integers:
    """The hashed features of one of the figures, all of one unit, that stand in a text."""
    names = (crc32(name.encode()) % HASHES for name in _describe(text, figures, place))
    return np.fromiter(names, np.int64)


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Where the sentences of a text begin and end."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    starts = [0, *ends]
    return [(a, b) for a, b in zip(starts, [*ends, len(text)], strict=True) if b > a]


def hash_sentences(text: str) -> tuple[Integers, Integers]:
    """The hashed features of a text's characters and pairs, and where each sentence's begin.

    Each character has two, itself and the pair it begins; in place of a pair that would leave its
    sentence stands the sentence's intercept, `HASHES`. So there are two times len(text).
    """
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    spans = split_sentences(text)
    features = np.full((len(codes), 2), HASHES, np.int64)
    features[:, 0] = (codes * _SINGLE >> _SHIFT) % HASHES
    features[:-1, 1] = ((codes[:-1] * _PAIR + codes[1:]) * _SINGLE >> _SHIFT) % HASHES
    features[[end - 1 for _, end in spans], 1] = HASHES
    return features.ravel(), np.array([2 * start for start, _ in spans], np.int64)


def hash_signs(
    text: str, sentences: Sequence[tuple[int, int]], signs: Sequence[str]
) -> Iterator[Integers]:
    """The hashed features of each sentence that holds one of the signs."""
    held, lay = [sign for sign in signs if sign in text], not _COURT.search(text)
    for start, end in sentences:
        places = {sign: place for sign in held if (place := text.find(sign, start, end)) >= 0}
        if places:
            told = {sign: place - start for sign, place in places.items()}
            names = set(_describe_sentence(text[start:end], told))
            if lay:  # what words tell there is learned beside what they tell anywhere
                names |= {f"lay {name}" for name in names}
            yield np.array([crc32(name.encode()) % HASHES for name in sorted(names)], np.int64)


def write_sum(values: Sequence[float]) -> str:
    """7600+4100=11700, or one value by itself."""
    told = "+".join(map(write_figure, values))
    return f"{told}={write_figure(round(sum(values), 6))}" if len(values) > 1 else told


def split_sum(harm: str, unit: str) -> tuple[list[float], float] | None:
    """The parts and the sum of a harm written by `write_sum` and its unit; None for a grade."""
    if not unit or not harm.endswith(unit):
        return None
    told, _, total = harm.removesuffix(unit).rpartition("=")
    parts = [float(part) for part in (told or total).split("+")]
    return parts, float(total)


def _is_spoken(grade: str, text: str) -> bool:
    """Whether a text has a word for each thing that a grade's name tells, or one of 甲或乙."""
    return any(
        all(key not in part or words.search(text) for key, words in _SPOKEN)
        for part in grade.split("或")
    )


def _find_name(text: str, role: str) -> str:
    """The longest run of two to four characters that most often follows a role.

    A name is followed by many things, so that of longer runs each is rarer than the name.
    """
    followers = [text[m.end() : m.end() + 4] for m in re.finditer(role, text)]
    names = Counter(run[:2] for run in followers if len(run) > 1 and not _NO_NAME.search(run[:2]))
    if not names:
        return ""
    name, times = names.most_common(1)[0]
    for size in (3, 4):
        longer = Counter(run[:size] for run in followers if run.startswith(name))
        run, count = longer.most_common(1)[0]
        if len(run) < size or _NO_NAME.search(run[:-1]) or run[-1] in "，。；：、的于在与因将":
            break
        if text.count(run) < 2 or count < 0.7 * times or text.count(run) < 0.8 * text.count(name):
            break
        name = run
    return name


def _describe(text: str, figures: Sequence[Figure], place: int) -> Iterator[str]:
    figure = figures[place]
    left = text[max(0, figure.start - LEFT) : figure.start]
    right = text[figure.end : figure.end + RIGHT]
    yield "bias"
    yield f"unit {figure.unit}"
    for size in range(1, 7):
        yield f"l{size} {left[-size:]}"
        if size < 5:
            yield f"r{size} {right[:size]}"
    yield from _grams("L", left)
    yield from _grams("R", right)
    clause = max(text.rfind(mark, 0, figure.start) for mark in "，。；：")
    yield from _grams("C", text[clause + 1 : figure.start][-LEFT:])
    start = max(text.rfind(mark, 0, figure.start) for mark in "。；") + 1
    yield from _grams("S", text[start : figure.start][:6])
    end = _SENTENCE_END.search(text, figure.end)
    sentence = text[start : end.start() if end else None]
    # What makes a figure beside the matter (与本案无关) may stand far from it.
    yield from {f"Z{one}{other}" for one, other in pairwise(sentence)}
    values = [one.value for one in figures]
    before = values[:place]
    sums = accumulate(reversed(before))
    yield f"sum {any(abs(total - figure.value) < 1e-6 for total in list(sums)[1:])}"
    yield f"largest {figure.value == max(values)}"
    yield f"first {place == 0} of {min(len(values), 4)}"
    yield f"again {figure.value in before}"
    yield f"place {10 * figure.start // max(1, len(text))}"


def _describe_sentence(sentence: str, places: Mapping[str, int]) -> Iterator[str]:
    yield "bias"
    marked: set[int] = set()
    for sign, place in places.items():
        yield f"sign {sign}"
        if denied := _DENIED.search(sentence[max(0, place - 8) : place]):
            start = max(sentence.rfind(mark, 0, place) for mark in "，、：") + 1
            end = _CLAUSE_END.search(sentence, place)
            marked.update(range(start, end.start() if end else len(sentence)))
            yield "denied"
            yield f"denied {denied[0][0]} {sign}"
        if "被告人" in sentence[:place]:
            yield f"defendant {sign}"
    yield f"starts {sentence[:3]}"
    yield f"defendant {'被告人' in sentence}"
    yield f"free {bool(_LONG_FREE.search(sentence))} {bool(_JUST_FREE.search(sentence))}"
    # What 未受过刑事处罚 teaches of a pair of characters is not taught of 曾受过刑事处罚.
    for size in (1, 2):
        for start in range(len(sentence) - size + 1):
            yield ("~" if start in marked else "") + sentence[start : start + size]


def _grams(side: str, text: str) -> Iterable[str]:
    for size in (2, 3):
        for start in range(len(text) - size + 1):
            yield f"{side}{text[start : start + size]}"
