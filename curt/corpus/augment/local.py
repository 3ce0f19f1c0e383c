"""A paraphraser without a model: words of the same register, movable sentences, sentence joints.

It knows three moves, all of them shallow, and makes no claim to more:

- a phrase for another that means the same in a judgment (案发后 → 事发后); terms of art on which a
  sentence turns (自首, 累犯, 秘密窃取) are left alone;
- 20××年3月5日，被告人张某… → 被告人张某于20××年3月5日…;
- sentences that say nothing about guilt (evidence, registers, seized things) change places with a
  neighbour, and two sentences are joined by ；. Those that tell circumstances keep their order, in
  which reasoning lists them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from curt.corpus.augment.distractors import leans_back, split_sentences
from curt.corpus.augment.paraphrase import keep_checked

_SWAP_SHARE, _MOVE_SHARE, _JOIN_SHARE = 0.8, 0.6, 0.3
_SHORT = 60  # characters of a sentence that may be joined with another

# What may stand around a phrase is part of its pattern; each alternative fits all of its uses.
SYNONYMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"经审理查明", ("经依法审理查明", "审理查明")),
    (r"公诉机关指控(?!称)", ("检察机关指控", "公诉机关诉称")),
    (r"人民检察院指控", ("人民检察院起诉指控",)),
    (r"案发后", ("事发后",)),
    (r"(?<!抓获)归案后", ("到案后",)),
    (r"到案后", ("归案后",)),
    (r"(?<!公安)(?<!办案)民警", ("公安民警", "办案民警")),
    (r"公安机关", ("公安部门",)),
    (r"自行到案", ("自动到案",)),
    (r"如实供述", ("如实供认",)),
    (r"如实交代", ("如实交待",)),
    (r"因琐事", ("为琐事",)),
    (r"发生口角", ("发生争吵",)),
    (r"发生争执", ("产生争执",)),
    (r"随后", ("之后", "而后")),
    (r"窜至", ("来到", "行至")),
    (r"窜到", ("来到",)),
    (r"(?<!步)行至", ("来到",)),
    (r"趁(?!机)", ("乘",)),
    (r"盗走", ("窃得", "盗取")),
    (r"窃走", ("窃取",)),
    (r"(?<!盗)窃得", ("盗走",)),
    (r"骗走", ("骗得",)),
    (r"骗得", ("骗取",)),
    (r"谎称", ("假称", "诈称")),
    (r"相要挟", ("相威胁",)),
    (r"位于", ("坐落于",)),
    (r"住处", ("住所",)),
    (r"共计(?=[人价现窃盗骗获0-9])", ("合计", "总计")),
    (r"经现场检测", ("经当场检测",)),
    (r"经检测", ("经检验",)),
    (r"的家属", ("的亲属",)),
    (r"请求对", ("请求司法机关对",)),
    (r"(?<![0-9])十年前曾因", ("十年以前曾因",)),
    (r"(?<=某)曾因", ("此前曾因",)),
    (r"(?<=[，。；某])系(?![统列因属])", ("是",)),
    (r"，并(?=如实|主动|自愿|积极)", ("，且",)),
    (r"均(?=[构系属为被已由])", ("都",)),
    (r"(?<!以)上述事实", ("前述事实", "以上事实")),
    (r"上述指控", ("前述指控", "以上指控")),
    (r"提供了", ("提交了",)),
    (r"等相关证据", ("等有关证据",)),
    (r"等证据在案佐证", ("等证据在案为证",)),
    (r"等证据证实", ("等证据予以证实", "等证据证明")),
    (r"应当以(?=[^，。；]{1,40}追究)", ("应以",)),
    (r"提请本院依法判处", ("请求本院依法判处",)),
    (r"其行为已构成", ("其行为已经构成",)),
    (r"的行为已构成", ("的行为已经构成",)),
    (r"(?<!已)(?<!已经)触犯了", ("已触犯",)),
    (r"与被告人", ("同被告人",)),
    (r"被抓获(?!归案)", ("被抓获归案",)),
    (r"购买", ("购入",)),
    (r"并且", ("而且",)),
    (r"将(?=被害人)", ("把",)),
)

_DATE_FIRST = re.compile(
    r"(?<![0-9.．])(?<!被告人)((?:19|20)[0-9]{2}年[0-9]{1,2}月[0-9]{1,2}日(?:[0-9]{1,2}时)?(?:许|上午|下午|凌晨|晚)?)，"
    r"(被告人[一-鿿][0-9]?某{1,2}[甲乙丙丁]?)(?=[在骑驾以因趁乘将翻用谎冒持酒利伙携到窜来明虚])"
)
# Says nothing about guilt.
_MOVABLE = re.compile(
    r"户籍|在案佐证|侦查终结|随案移送|监控录像|扣押[^，。]{0,20}在案|月收入|门诊费|保安工作"
)


class LocalParaphraser:
    """The moves above, drawn from the seed and the fact: the same fact always reads the same."""

    def __init__(self, seed: int = 0) -> None:
        self.name = "local"
        self.counts: Counter[str] = Counter()
        self.seed = seed

    def paraphrase(self, facts: Sequence[str]) -> list[str | None]:
        """See curt.corpus.augment.paraphrase.Paraphraser."""
        self.counts["asked"] += len(facts)
        told = [tell_otherwise(fact, random.Random(f"{self.seed}:{fact}")) for fact in facts]
        return keep_checked(facts, told, self.counts)


def tell_otherwise(fact: str, rng: random.Random) -> str:
    """The fact after all moves, unchecked; itself where none applies."""
    fact = _DATE_FIRST.sub(
        lambda m: f"{m[2]}于{m[1]}" if rng.random() < _SWAP_SHARE else m[0], fact
    )
    return _swap_phrases(_join(_move(split_sentences(fact), rng), rng), rng)


def _swap_phrases(fact: str, rng: random.Random) -> str:
    """One pass over the fact, so that no phrase that was put in is taken for another."""

    def swap(match: re.Match[str]) -> str:
        if rng.random() >= _SWAP_SHARE:
            return match[0]
        assert match.lastgroup is not None
        return rng.choice(SYNONYMS[int(match.lastgroup[1:])][1])

    return _ANY_PHRASE.sub(swap, fact)


def _move(sentences: list[str], rng: random.Random) -> list[str]:
    """Swap a neutral sentence with the next where neither, nor the one behind, leans back."""
    moved = list(sentences)
    at = 1  # the first sentence says who is accused
    while at + 1 < len(moved):
        around = moved[at : at + 3]
        neutral = any(_MOVABLE.search(sentence) for sentence in around[:2])
        free = all(not leans_back(sentence) for sentence in around)
        whole = all(sentence.endswith("。") for sentence in around[:2])
        if neutral and free and whole and rng.random() < _MOVE_SHARE:
            moved[at : at + 2] = reversed(moved[at : at + 2])
            at += 1
        at += 1
    return moved


def _join(sentences: list[str], rng: random.Random) -> str:
    """Put ； between two short sentences here and there, never between three."""
    joined: list[str] = []
    for sentence, following in zip(sentences, [*sentences[1:], ""], strict=True):
        fits = (
            0 < len(following) < _SHORT > len(sentence)
            and sentence.endswith("。")
            and not leans_back(following)
            and not (joined and joined[-1].endswith("；"))
        )
        joined.append(f"{sentence[:-1]}；" if fits and rng.random() < _JOIN_SHARE else sentence)
    return "".join(joined)


_ANY_PHRASE = re.compile(
    "|".join(f"(?P<p{number}>{pattern})" for number, (pattern, _) in enumerate(SYNONYMS))
)
