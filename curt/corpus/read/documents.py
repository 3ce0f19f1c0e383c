"""The parts of a judgment document, and its facts without what gives the answer away.

What a model may see is `mask_leaks` of the facts: sentences that state a charge, a recommended
sentence or the ruling go.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from curt.corpus.read.records import RecordError

RULING_MARK = "判决如下"
SHORT_FACTS = 80
LEAST_FACTS = 60  # characters; a court that only refers to the charge writes fewer


@dataclass(frozen=True, slots=True)
class Sections:
    """The parts of a document, blanks removed; empty where a part is missing."""

    header: str
    prosecution: str
    facts: str
    opinion: str
    law: str
    ruling: str


# 依照《刑法》, 适用《刑法》, and 依照 with something between: a year, an interpretation
_LAW = re.compile(
    r"(?:依照|依据|根据|按照|照|适用)(?=《(?:中华人民共和国)?刑法|"
    r"(?:[0-9]{4}年|[^。；，]{0,40}解释)[^。；]{0,40}《(?:中华人民共和国)?刑法)"
)
_END = re.compile(r"如不服|本判决为终审|审判长|审判员|(?:上述)?罚金于本判决生效之日起十日内向本院")
_OPINION = re.compile(r"本院认[为某]")
_FACTS = re.compile(r"(?:本院)?(?:经(?:依法)?(?:开庭)?审理|经本院|原审)?查明|审理查明|原审判决认定")
_CHARGED = re.compile(r"(?:公诉机关|[^。]{2,20}检察院)?指控")
_EVIDENCE = re.compile(r"(?:上述|以上)(?:犯罪)?(?:事实|指控)")
_FULL_WIDTH = str.maketrans("０１２３４５６７８９，．", "0123456789，.")
_THOUSANDS = re.compile(r"(?<=[0-9])[,，](?=[0-9]{3}(?![0-9]))")
_UNSEEN = re.compile(r"(?is)<(script|style)\b.*?(?:</\1>|\Z)|<!--.*?(?:-->|\Z)")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,500}>|<![A-Za-z][^<>]*>")
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#[0-9]{2,5}|#x[0-9A-Fa-f]{2,5});")
_SPACED = re.compile(r"(?:^|(?<=\s))\S\s+(?=\S(?:\s|$))")


def plain_text(text: str) -> str:
    """A text as a person reads it: no HTML, and closed up where blanks part all characters."""
    for _ in range(2):  # some pages are escaped twice
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = _TAG.sub("", _UNSEEN.sub("", text))
    spaced = len(_SPACED.findall(text)) > 0.3 * len(text)  # half of it, with a blank after each
    return re.sub(r"\s+", "", text) if spaced else text


def split_document(document: str) -> Sections:
    """The parts of a judgment. Raises RecordError without a ruling."""
    text = _THOUSANDS.sub("", re.sub(r"\s+", "", plain_text(document)).translate(_FULL_WIDTH))
    mark = text.rfind(RULING_MARK)
    if mark < 0:
        raise RecordError("no ruling")
    ruling = text[mark + len(RULING_MARK) :].lstrip("：:")
    if end := _END.search(ruling):
        ruling = ruling[: end.start()]
    before = text[:mark]
    cited = [m.start() for m in _LAW.finditer(before)]
    # One sentence may cite twice: 依照…定罪；依照…处罚
    last_sentence = before.rfind("。", 0, cited[-1]) if cited else 0
    law_at = next((start for start in cited if start > last_sentence), mark)
    opinion_at = _start(_OPINION, before, law_at)
    # The introduction names the charge; what was charged in full and found comes after it.
    introduced = before.find("审理终结", 0, opinion_at) + 1
    facts_at = _start(_FACTS, before[:opinion_at], opinion_at, after=introduced)
    charged_at = _start(_CHARGED, before[:facts_at], facts_at, after=introduced)
    return Sections(
        header=before[:charged_at],
        prosecution=before[charged_at:facts_at],
        facts=_without_evidence(before[facts_at:opinion_at]),
        opinion=before[opinion_at:law_at],
        law=before[law_at:],
        ruling=ruling,
    )


def _start(pattern: re.Pattern[str], text: str, default: int, *, after: int = 0) -> int:
    match = pattern.search(text, after)
    return match.start() if match else default


def _without_evidence(facts: str) -> str:
    match = _EVIDENCE.search(facts)
    return facts[: match.start()] if match else facts


_LEAKS = (
    re.compile(r"建议.{0,40}(?:判处|量刑|适用缓刑|从[轻重])|量刑建议|判决如下|判处如下"),
    re.compile(r"本院认[为某]|(?:公诉机关|检察院|检察机关|公诉人)[^。]{0,20}认[为某]"),
    re.compile(r"(?:指控|涉嫌)[^。]{0,40}犯[^。]{1,40}罪|起诉书"),
    re.compile(r"应当?以[^。]{1,40}罪(?:追究|定罪|处罚)|追究(?:其|被告人)?[^。]{0,20}刑事责任"),
    re.compile(r"(?:已|其行为|均|之行为)[^。]{0,12}构成[^。]{1,40}罪|触犯[^。]{0,60}条"),
)
_REFERS = re.compile(r"与[^。]{0,20}(?:一致|相同|相符)|(?:同|如)(?:起诉书?)?指控")
_RECORD = re.compile(r"曾因|前科|刑满释放|因犯|累犯|原判|假释")
_SENTENCE = re.compile(r"[^。；;]*[。；;]?")


def read_facts(sections: Sections) -> str:
    """What was found, without what gives the answer away; and what was charged, where that is all.

    Empty when too little is left to judge by.
    """
    found = mask_leaks(sections.facts)
    if len(found) < LEAST_FACTS or _REFERS.search(found[:SHORT_FACTS]):
        found = mask_leaks(sections.prosecution) + found
    return found if len(found) >= LEAST_FACTS else ""


def mask_leaks(facts: str) -> str:
    """Facts without the sentences that give the answer away.

    Recommended sentences go, what prosecution or court hold the conduct to be, and the ruling. A
    previous conviction stays, as it is a fact of the case: of a sentence that gives the answer
    away, the clauses that tell of one.
    """
    return "".join(map(_mask_sentence, _SENTENCE.findall(facts)))


def _mask_sentence(sentence: str) -> str:
    if not _leaks(sentence):
        return sentence
    clauses = (c.rstrip("。；;") for c in re.split("[，,]", sentence))
    kept = [c for c in clauses if _RECORD.search(c) and not _leaks(c)]
    return "，".join(kept) + "。" if kept else ""


def _leaks(sentence: str) -> bool:
    return any(pattern.search(sentence) for pattern in _LEAKS)
