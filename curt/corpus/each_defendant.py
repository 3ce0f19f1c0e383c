"""What a fact that names several defendants tells of each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from curt.corpus.defendants import COUNTED, defendant_names

# What is told of a person rather than of what several did together.
_PERSONAL = re.compile(
    "自首|投案|如实供述|坦白|供认|认罪|悔罪|累犯|前科|曾因|因犯|判处|判刑|刑满|释放|假释|缓刑|谅解|"
    "赔偿|垫付|报警|报案|退赔|退赃|退还|退缴|从犯|主犯|胁从|次要|主要作用|辅助|未成年|周岁|出生|聋哑|盲人|怀孕|"
    "刑事责任能力|立功|检举|揭发|抓获|归案|到案|罚金|初犯|偶犯|分得|分赃|获利|明知|"
    "参与.{0,8}[0-9一二两三四五六七八九十](?:次|起|笔)"
)
_SHARE = re.compile("分得|分赃")  # of what is counted whole for each
_HARM = re.compile("窃得|盗得|盗走|骗得|抢得|抢走|劫得|捅|砍|刺|致.{0,10}[伤死]")
_PLAN = re.compile("预谋|合谋|共谋|密谋|商议|商量|商定|提议|约定|策划|踩点")
_DONE = re.compile(r"[0-9](?:余)?[元克]|[伤死得走]")
_BEGINS = re.compile(
    r"\s*(?:[（(]?[0-9一二三四五六七八九十]{1,3}(?:[）)、．]|\.(?![0-9]))|(?:19|20)[0-9×xX*]{2}年"
    "|同年|另|此外|[0-9]{1,2}月[0-9]{1,2}日)"
)
_ALONE = re.compile("单独|独自|自行")
_ALL = re.compile("均|都|各自|分别|一并")
_PEOPLE = re.compile(
    r"(?<![其另0-9十])([二两三四五六七八九十]|[2-9]|各|众|诸|全体)[名个位]?(?:被告)?人(?![民员们])"
)
_NO_SUBJECT = re.compile(
    "(?:[与同跟向对将被把给替为受经在从]|伙同|检举|揭发|协助|抓获|指使|供出|规劝)$"
)
_SENTENCE = re.compile(r"(?:[（(][^（()）]{0,60}[）)]|[^。；！？\n])*[。；！？\n]*")
_CLAUSE = re.compile(r"(?:[（(][^（()）]{0,60}[）)]|[^，。；！？\n])*[，。；！？\n]*")


@dataclass(slots=True)
class _Clause:
    text: str
    concerns: set[str]
    """Whom it is about; everybody where empty. All acts of an incident share one set."""
    personal: bool = False


def facts_of_each(text: str) -> dict[str, str]:
    """What a text tells of each defendant that it names, by name, as a text on him alone.

    Incidents in which he took part are kept whole; of what is told of persons (自首, 累犯) his own,
    but no share of the loot: the whole counts. A number, a date or 单独 begins an incident.
    """
    names = defendant_names(text)
    if len(names) < 2:
        return dict.fromkeys(names, text)
    text = text if "被告人" in text else text.replace("犯罪嫌疑人", "被告人")
    spelled = re.compile("|".join(map(_spell, sorted(names, key=len, reverse=True))))
    sentences = list(_Reading(names, spelled).read(text))
    return {name: _tell(sentences, name, spelled) for name in names}


class _Reading:
    """Goes through a text and says of each clause whom it concerns."""

    def __init__(self, names: list[str], spelled: re.Pattern[str]) -> None:
        self._everybody, self._spelled, self._run = set(names), spelled, _list_of(spelled)
        self._incident: set[str] = set()
        self._joint = self._incident  # the one that a deed of one alone interrupts
        self._so_far = ""
        self._last = _Clause("", self._incident)

    def read(self, text: str) -> Iterator[list[_Clause]]:
        """The sentences of a text, each in its clauses."""
        for sentence in filter(None, _SENTENCE.findall(text)):
            parts = list(filter(None, _CLAUSE.findall(sentence)))
            acts = "".join(part for part in parts if not _is_personal(part))
            named = set(self._spelled.findall(acts))
            self._enter(sentence, named)
            self._incident |= named
            self._incident |= self._count(acts, self._incident)
            self._so_far += acts
            yield list(self._read_clauses(parts))

    def _enter(self, sentence: str, named: set[str]) -> None:
        """Begin another incident where this sentence does."""
        plans = bool(_PLAN.search(self._so_far)) and not _DONE.search(self._so_far)
        if named and _ALONE.search(sentence):
            self._incident = set()
        elif named and _BEGINS.match(sentence) and not plans:
            self._incident = self._joint = set()
            self._so_far = ""
        elif not named <= self._incident:
            self._incident = self._joint

    def _read_clauses(self, parts: list[str]) -> Iterator[_Clause]:
        subject: set[str] = set()
        opening: list[_Clause] = []  # goes with what follows: 案发后，
        follows = self._last.personal
        for place, part in enumerate(parts):
            runs = (
                m for m in self._run.finditer(part) if not _NO_SUBJECT.search(part[: m.start()])
            )
            own = set(self._spelled.findall(run[0])) if (run := next(runs, None)) else set()
            clause = _Clause(part, self._incident, personal=_is_personal(part))
            if clause.personal:
                told = subject or (self._last.concerns if follows else self._incident)
                if len(told) == 1 and _ALL.search(part):
                    told = self._everybody
                clause.concerns = subject = own or self._count(part, told) or told
            elif self._spelled.search(part) or _PEOPLE.search(part):
                subject, follows = own or subject, False
            elif place == len(opening):
                opening.append(clause)
                continue
            elif self._last.personal:
                clause = _Clause(part, self._last.concerns, personal=True)
            for before in opening:
                before.concerns = clause.concerns
            yield from opening
            opening, self._last = [], clause
            yield clause
        if opening:
            self._last = opening[-1]
        yield from opening

    def _count(self, part: str, told: set[str]) -> set[str]:
        """Those whom 二人 or 各被告人 means, where `told` were told of before; else nobody."""
        if not (counted := _PEOPLE.search(part)):
            return set()
        number = counted[1].replace("两", "二")
        size = max("〇一二三四五六七八九十".find(number), "0123456789".find(number))
        return told if size == len(told) else self._everybody


def _is_personal(part: str) -> bool:
    return bool(_PERSONAL.search(part)) and not _HARM.search(part)


def _tell(sentences: list[list[_Clause]], name: str, spelled: re.Pattern[str]) -> str:
    told = ""
    for sentence in sentences:
        kept = [each for each in sentence if not each.concerns or name in each.concerns]
        kept = [each for each in kept if not (each.personal and _SHARE.search(each.text))]
        if kept:
            told += "".join(_address(each, name, spelled) for each in kept)
            if kept[-1] is not sentence[-1]:
                told = told.rstrip("，") + "。"
    told = re.sub("[；，]$", "。", told.strip())
    if name not in told:
        return f"{told}本案被告人：{name}。"
    return told if f"被告人{name}" in told else re.sub(_spell(name), r"被告人\g<0>", told, count=1)


def _address(clause: _Clause, name: str, spelled: re.Pattern[str]) -> str:
    """A clause in which one of several alone is called defendant."""

    def one(listed: re.Match[str]) -> str:
        people = list(dict.fromkeys(spelled.findall(listed[0])))
        title = "被告人" if "被告人" in listed[0] else ""
        if name not in people:
            return listed[0].replace("被告人", "")
        if len(people) < 2 or not (title or clause.personal):
            return listed[0]
        if clause.personal:
            return f"{title}{name}"
        # Who leads a clause acts with the others; elsewhere, something is done with all of them.
        leads = not spelled.search(clause.text[: listed.start()])
        link = "伙同" if leads and clause.text[listed.end() : listed.end() + 1] != "系" else "和"
        return f"{title}{name}{link}{'、'.join(each for each in people if each != name)}"

    text = _list_of(spelled).sub(one, clause.text)
    if not clause.personal:
        return COUNTED.sub(lambda counted: re.sub("[名个位]?被告人", "人", counted[0]), text)
    text = COUNTED.sub(f"被告人{name}", text)
    return text if text == clause.text else re.sub("均|各自|分别", "", text)


def _list_of(spelled: re.Pattern[str]) -> re.Pattern[str]:
    """Several names, or one, with what calls them defendants."""
    one = rf"(?:被告人[：:]?)?(?:{spelled.pattern})(?:[（(][^）)]{{0,24}}[）)])?"
    return re.compile(rf"{one}(?:[、,和与及]{one})*")


def _spell(name: str) -> str:
    """The pattern of a name where it is not the beginning of another (张某 of 张某甲)."""
    if len(name) == 1:
        return rf"(?<![A-Za-z0-9某]){re.escape(name)}(?![A-Za-z0-9方级类基型醇烷酸状])"
    return re.escape(name) + ("(?![甲乙丙丁戊己庚辛0-9A-Za-z])" if name[-1] == "某" else "")
