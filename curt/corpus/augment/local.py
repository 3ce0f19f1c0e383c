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
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from curt.corpus.augment.distractors import leans_back, split_sentences
from curt.corpus.augment.paraphrase import keep_checked

_SWAP_SHARE, _MOVE_SHARE, _JOIN_SHARE = 0.8, 0.6, 0.3
_SHORT = 60  # characters of a sentence that may be joined with another

SYNONYMS: Mapping[str, list[str]] = tomllib.loads(
    Path(__file__).with_name("synonyms.toml").read_text(encoding="utf-8")
)
"""Patterns of phrases, and what may stand in place of each."""

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
        return rng.choice(_CHOICES[int(match.lastgroup[1:])])

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
    "|".join(f"(?P<p{number}>{pattern})" for number, pattern in enumerate(SYNONYMS))
)
_CHOICES = list(SYNONYMS.values())
