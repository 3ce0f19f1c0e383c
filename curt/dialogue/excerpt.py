"""Which parts of a long fact stand in a prompt: those that a court needs for the verdict.

A fact is cut into sentences, and a long sentence into clauses. Each part is weighed by what it
says: quantities, injuries, the act and the circumstances weigh much, evidence, procedure and
personal data little. The heaviest parts that fit are kept in their order.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ELLIPSIS = "……"
LONG_CHARACTERS, CLAUSE_CHARACTERS = 60, 30  # a longer sentence is cut into clauses of at least 30

Spans = Sequence[tuple[int, int]]
"""Where each token of a text, or each part of it, begins and ends, in characters."""

_SENTENCE_ENDS = re.compile(
    r"[。；！？]+[”’」』）)]*|(?<![0-9])(?=[0-9]{1,2}[、．](?![0-9])|[(（][0-9]{1,2}[)）])"
)
_CLAUSE_ENDS = re.compile("[，,：:]")

_WEIGHTS: tuple[tuple[float, str], ...] = (
    # Not `[0-9,.]*` with a unit that may fail: a long number would be tried at each of its digits.
    (6.0, r"(?<![0-9.])[0-9][0-9,.]{0,15}[余多]?[百千万亿]?[余多]?"
          r"(?:元|克|千克|公斤|毫克|mg|毫升|ml|张|株|棵|立方米|亩|枚|支|发|吨|平方米|人次|只|台|部|辆)"),
    (5.0, "共计|合计|总计|总价值|总额|数额|金额|价值"),
    (6.0, "轻伤|重伤|轻微伤|死亡|致死|身亡|伤残|残疾|抢救无效"),
    (8.0, "自首|自动投案|主动投案|投案|如实供述|坦白|累犯|前科|曾因|有期徒刑|刑满释放|谅解|赔偿|"
          "退赔|退赃|退还|认罪认罚|自愿认罪|未遂|未得逞|中止|预备|从犯|主犯|胁从|未成年|未满|"
          "已满七十五|限制刑事责任能力|立功|检举|揭发|缓刑考验期|假释|逃逸|全部责任|主要责任"),
    (4.0, "盗窃|窃取|窃得|盗走|扒窃|入户|抢劫|抢夺|抢走|诈骗|骗取|骗得|虚构|隐瞒|冒充|敲诈|勒索|"
          "殴打|捅|砍|刺|打伤|伤害|杀|强奸|奸淫|猥亵|拘禁|绑架|拐卖|贩卖|贩毒|出售|购买|运输|走私|"
          "制造|种植|持有|吸食|容留|醉酒|驾驶|肇事|碰撞|相撞|超速|无证|赌博|开设赌场|赌场|卖淫|"
          "嫖娼|介绍|组织|受贿|行贿|贪污|挪用|侵占|职务|伪造|变造|买卖|销售|假冒|生产|砍伐|采伐|"
          "采矿|捕捞|猎捕|污染|倾倒|排放|放火|纵火|爆炸|寻衅|滋事|聚众|斗殴|毁坏|打砸|妨害|阻碍|"
          "拒不|拒绝|窝藏|掩饰|转移|洗钱|集资|吸收|存款|传销|信用卡|透支|虚开|发票|偷越|枪支|弹药"),
    (-3.0, "上述事实|证据|证言|证实|笔录|鉴定意见|书证|物证|辨认|户籍|勘验|到案经过|提取|扣押|清单|"
           "予以认定|质证|庭审|当庭|公诉机关|检察院|起诉|指控|提请|诉讼|本院|审查|侦查|立案|羁押|"
           "逮捕|取保候审|辩护|意见"),
    (-2.0, "出生|身份证|汉族|文化程度|文化|户籍地|住所|居住|务农|无业|职业"),
)  # fmt: skip
_STARTS = "".join({word[0] for _, pattern in _WEIGHTS[1:] for word in pattern.split("|")})
# Most characters start none of the words: seen at once, in place of trying them all.
_WEIGHED = re.compile(
    f"(?=[0-9{_STARTS}])(?:{'|'.join(f'({pattern})' for _, pattern in _WEIGHTS)})"
)
_LEAST_WEIGHT = 0.1
_PART_TOKENS = 12  # added to a part's length, or short parts would win however little they say


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How much of a fact does not stand in its prompt; a sentence counts if any of it lacks."""

    characters: int = 0
    sentences: int = 0

    def __bool__(self) -> bool:
        return self.characters > 0


NOTHING = LeftOut()


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What stands in a prompt in place of a fact, and how much was left out."""

    text: str
    left_out: LeftOut = NOTHING


def make_excerpt(fact: str, max_tokens: int, find_tokens: Callable[[str], Spans]) -> Excerpt:
    """The heaviest parts of a fact that fit `max_tokens`, in their order; all of it where it fits.

    An ellipsis stands where something lacks. Of a single part that is too long the two ends are
    kept. `find_tokens` tells where the tokens of a text lie.
    """
    # A token is a byte or more, so a short fact need not be tokenised to tell.
    if len(fact.encode()) <= max_tokens:
        return Excerpt(fact)
    tokens = find_tokens(fact)
    if len(tokens) <= max_tokens:
        return Excerpt(fact)
    sentences = split_sentences(fact)
    parts = [part for sentence in sentences for part in _split_clauses(fact, sentence)]
    starts = [start for start, _ in tokens]
    ends = [end for _, end in tokens]
    # A token that two parts share counts for both.
    lengths = [bisect_left(starts, end) - bisect_right(ends, start) for start, end in parts]
    weights = _weigh(fact, parts)
    order = sorted(range(len(parts)), key=lambda i: (-weights[i] / (lengths[i] + _PART_TOKENS), i))
    gap_tokens = len(find_tokens(ELLIPSIS))
    kept: set[int] = set()
    used = gap_tokens
    for place in order:
        needed = lengths[place] + gap_tokens
        if used + needed <= max_tokens:
            kept.add(place)
            used += needed
    spans = [parts[place] for place in sorted(kept)]
    # Cut out of its surroundings a part may come apart into other tokens, rarely into more.
    for lightest in (place for place in reversed(order) if place in kept):
        text = _join(fact, spans)
        if len(find_tokens(text)) <= max_tokens:
            break
        spans.remove(parts[lightest])
    if not spans:
        spans = _keep_ends(fact, tokens, parts[order[0]], max_tokens, find_tokens)
    return Excerpt(_join(fact, spans), _count_left_out(fact, sentences, spans))


def split_sentences(fact: str) -> list[tuple[int, int]]:
    """Where the sentences and numbered items of a fact begin and end; together they are all."""
    ends = [match.end() for match in _SENTENCE_ENDS.finditer(fact)]
    return _between(0, [*ends, len(fact)])


def _split_clauses(fact: str, sentence: tuple[int, int]) -> list[tuple[int, int]]:
    start, end = sentence
    if end - start <= LONG_CHARACTERS:
        return [sentence]
    cuts, last = [], start
    for match in _CLAUSE_ENDS.finditer(fact, start, end - CLAUSE_CHARACTERS):
        if match.end() - last >= CLAUSE_CHARACTERS:
            last = match.end()
            cuts.append(last)
    return _between(start, [*cuts, end])


def _between(start: int, ends: Sequence[int]) -> list[tuple[int, int]]:
    spans = []
    for end in ends:
        if end > start:
            spans.append((start, end))
            start = end
    return spans


def _weigh(fact: str, parts: Spans) -> list[float]:
    """What each part says that matters; each kind counts twice at most."""
    starts = [start for start, _ in parts]
    counts = [[0] * len(_WEIGHTS) for _ in parts]
    for match in _WEIGHED.finditer(fact):
        assert match.lastindex  # every alternative is a group
        counts[bisect_right(starts, match.start()) - 1][match.lastindex - 1] += 1
    return [
        max(
            _LEAST_WEIGHT,
            1 + sum(w * min(n, 2) for (w, _), n in zip(_WEIGHTS, found, strict=True)),
        )
        for found in counts
    ]


def _keep_ends(
    fact: str,
    tokens: Spans,
    part: tuple[int, int],
    max_tokens: int,
    find_tokens: Callable[[str], Spans],
) -> list[tuple[int, int]]:
    """The head and the tail of a part that is too long alone, the head twice as long."""
    inside = [(s, e) for s, e in tokens if s >= part[0] and e <= part[1]]
    for wanted in range(max_tokens, 0, -1):
        head, tail = inside[: wanted * 2 // 3], inside[len(inside) - wanted // 3 :]
        spans = [(run[0][0], run[-1][1]) for run in (head, tail) if run]
        if len(find_tokens(_join(fact, spans))) <= max_tokens:
            return spans
    return []


def _join(fact: str, spans: Spans) -> str:
    """The spans of a fact, with an ellipsis at every gap."""
    pieces, last = [], 0
    for start, end in spans:
        if start > last:
            pieces.append(ELLIPSIS)
        pieces.append(fact[start:end])
        last = end
    if last < len(fact):
        pieces.append(ELLIPSIS)
    return "".join(pieces)


def _count_left_out(fact: str, sentences: Spans, spans: Spans) -> LeftOut:
    kept = sum(end - start for start, end in spans)
    incomplete = 0
    for start, end in sentences:
        held = sum(max(0, min(end, e) - max(start, s)) for s, e in spans)
        incomplete += held < end - start
    return LeftOut(len(fact) - kept, incomplete)
