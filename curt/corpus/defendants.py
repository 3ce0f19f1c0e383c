"""The defendants that a text names, as it writes them.

Published facts write names whole (李大勇, 买买提·吐尔逊), masked (张某, 王某宏, 李××) or as letters
(甲, A). Those that stand behind 被告人, alone or in a list, are taken (behind 犯罪嫌疑人 where no
被告人 is told of); who is judged elsewhere (另案处理, 已判刑) is none of them. A name that no such
word introduces is not found, nor always a whole one of a surname that is rare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from curt.corpus.redaction import AFTER_NAMES, COMPOUND_SURNAMES, SURNAMES, WORDS_LIKE_NAMES

_NO_PERSONS = "供述|辩|身份|家属|亲属|单位|公司|证|本人|住|户籍|人口|基本|年龄|讯问|前科"
_HAN = "[一-鿿]"
# Any character may be a surname before 某, but these make words of it: 在某市, 系某公司.
_NO_SURNAME = "在从到对将以由为与及至该其有被把给让同是等系因经使驾窃了和往去来用的并又均某犯"
_PLACE = (
    "(?:[年月日时地市县区乡镇村街巷省州厂栋楼店些个人次天]|酒(?![后醉驾])|商(?![量议谈定])|公(?!然)|学(?!得)"
    "|车(?!上)|路(?!过)|[宾银医小饭国]|超(?=市)|[工网站](?=[厂地程吧站点上]))"
)
# What follows a name and is never, or hardly ever, part of one.
_VERBS = (
    f"[{AFTER_NAMES.replace('明', '')}窃抢盗砸撞捅砍刺杀骗谎瞒购卖索敲诈勒欺迫逼雇擅毁烧贩闯拦结指"
    "唆醉打持驾系商预密借介约邀开伪伤见隐喝等]|明(?=[知确显白])|深夜|凌晨|当[晚天日场即]|随[即后]|负责|"
    "提[议供出起]|要求|认为|决定|联系|组织|纠集|安排|前往|进入|发现|得知|知道|看到|同意|答应|逃[离跑]|饮酒|"
    "翻墙|入[户室]|动手|出[面资租]|投资|经营|承[包租]|租[用住]|收[取受]|虚[构开]|冒[充用]|化名|合[伙谋]|"
    "串通|勾结|策划|分[头工别]|轮流|各自|互相|相互|[原现时身]任|身为|案发|到案|强[奸行制迫]|平时|一伙|"
    "夫妇|夫妻|父子|兄弟|姐妹"
)
_END = (
    rf"(?:{_VERBS}|"
    "[共一二三四五先无男女兄姐夫父母主起招亲坐私进走跑追制造转送放窜采乘骑拿趁撬接运发])"
)
_GIVEN = rf"(?!{_VERBS}|[共应合单]){_HAN}"
_APART = rf"(?:(?![将等和与及的]){_HAN}){{1,2}}(?=[、（(])"
_GIVEN_NAMES = (
    "军伟芳娜秀英敏静丽磊勇艳杰娟涛兰霞桂辉鹏玲斌宇浩健俊凯鑫琴莲燕莉萍红梅龙峰雷兵强平荣奎亮超林波华文海江根"
    "国东志明山光贵福富春祥玉金忠德义友民宝彬锋飞毅帆洋阳柱栋"
)
_MASK = "[×＊*○ＸxX]"
_AFTER_MASK = rf"(?:{_GIVEN}(?={_END}|$)|{_APART}|·{_HAN}{{1,6}}?(?={_END}))"
_MASKED = (
    rf"(?:{COMPOUND_SURNAMES}|(?![{_NO_SURNAME}]){_HAN}|(?<=、)和|[A-Z])[0-9]?"
    rf"(?:某(?!{_PLACE})(?:某[甲乙丙丁戊己庚辛]?|[甲乙丙丁戊己庚辛]|[0-9A-Za-z]{{1,2}}|{_MASK}{{1,3}}"
    rf"|{_AFTER_MASK})?|{_MASK}{{1,3}}"
    rf"(?:(?<!{_MASK}{_MASK})(?:[{_GIVEN_NAMES}](?={_END})|{_APART}))?)"
)
_LETTER = (
    r"(?:[甲乙丙丁戊己庚辛](?:[0-9](?![0-9])|(?![方级类基型醇烷酸状]))"
    rf"|[{SURNAMES}]?[A-Z](?![A-Za-z0-9])|[{SURNAMES}][0-9](?![0-9]))"
)
_WHOLE = (
    rf"(?:(?:{COMPOUND_SURNAMES}|(?:(?<=、)|(?![于时曾向应]))[{SURNAMES}]|[向于](?={_APART})"
    rf"|[小阿老](?=[{SURNAMES}]{_END}))(?:{_APART}|(?:{_GIVEN}){{1,2}}(?={_END}|$))"
    rf"|(?:{COMPOUND_SURNAMES})(?:{_GIVEN}){{2}}|(?<=、)[{SURNAMES}]{_GIVEN}[{_GIVEN_NAMES}]?)"
)
_PLAIN = rf"(?!{_NO_PERSONS})(?:(?!的){_GIVEN})"  # of any surname, or none
# 买买提 is a name
_ENDS = "、，。（(在于因与和及将等到对向为从携驾伙均系持酒以被经用窃盗抢打窜骑又曾先"
_FORM = (
    rf"{_HAN}{{1,8}}(?:[·•・]{_HAN}{{1,8}}?)+(?=[{_ENDS}])|{_MASKED}|{_LETTER}"
    rf"|(?!{'|'.join(WORDS_LIKE_NAMES)}){_WHOLE}"
    rf"|(?<!、被告人){_PLAIN}{{2,5}}(?=、被告人)|(?:{_GIVEN}){{2}}某某(?={_END})"
)
_NAME = re.compile(rf"{_FORM}|(?=({_PLAIN}{{2,3}}).{{1,300}}\1)[{SURNAMES}]{_GIVEN}{{1,2}}")
_LATER = re.compile(rf"{_NAME.pattern}|(?<=、被告人){_PLAIN}{{2,5}}(?={_END})")
_AWAY = r"[（(][^）)]{0,16}(?:另案|判|逃|批捕|起诉|处理|死亡|已决|分案|未到案)[^）)]{0,10}[）)]"
_JOINTLY = "(?:共同(?!生活)|合谋|经(?!营)|预谋|结伙|商量|密谋|二人|两人|分别|先后)"
_INTRODUCED = re.compile(
    '(?<!同案)(?<!另案)被告人[：:]?(?:[“"][^”"]{1,8}[”"](?:[（(](?:真名|本名|即)))?'
)
_NOTE = re.compile("(?:[（(][^）)]{0,24})?[）)]")
_JOINED = re.compile(rf"[、,](?:被告人)?|[和与及](?:被告人)?(?=(?:{_FORM}){_JOINTLY})|和(?=被告人)")
_LAST = re.compile(rf"(?:{_FORM})$")
_GONE = re.compile(_AWAY)
_MASKED_GIVEN = re.compile(rf".{{1,3}}某(?![甲乙丙丁戊己庚辛某{_GIVEN_NAMES}]){_HAN}")
_COUNTED = re.compile(
    r"(?<!另)(?<!其他)(?<!其余)(?<!同案)(?:[二两三四五六七八九十]|(?<![0-9])(?:[2-9]|1[0-9]))"
    r"[名个位]?被告人|(?:各|众|诸|全体)被告人"
)


def defendant_names(text: str) -> list[str]:
    """The names in their order; several forms of one name (张某, 张某某) count as the first."""
    away = set(_judged_elsewhere(text))
    names: list[str] = []
    for group, followed in _read_lists(text):
        doubtful = len(group) == 1 and _MASKED_GIVEN.fullmatch(group[0])  # 王某窜至某村
        if doubtful and text.count(group[0]) < 2 and followed not in "、，。（和与及伙":
            group = [group[0][:-1]]
        for name in group:
            others = [old for old in names if old not in group]
            same = (old for old in others if old.startswith(name) or name.startswith(old))
            if name not in {*names, *away} and not any(same):
                names.append(name)
    return names


def has_several_defendants(text: str) -> bool:
    """Whether a text names more than one defendant, or counts them (三被告人).

    A company (被告单位) is one too, though `defendant_names` gives the persons alone.
    """
    names = defendant_names(text)
    return len(names) > 1 or bool(_COUNTED.search(text) or (names and "被告单位" in text))


def _read_lists(text: str) -> Iterator[tuple[list[str], str]]:
    """The names of each list but for those judged elsewhere, and the character after it."""
    place = 0
    text = text if "被告人" in text else text.replace("犯罪嫌疑人", "被告人")
    while introduced := _INTRODUCED.search(text, place):
        place, group = introduced.end(), []
        while name := (_LATER if group else _NAME).match(text, place):
            note = _NOTE.match(text, name.end())
            group.append((name[0], note[0] if note and _GONE.fullmatch(note[0]) else ""))
            end = place = note.end() if note else name.end()
            if not (joined := _JOINED.match(text, place)):
                break
            place = joined.end()
        if group:
            all_away = "均" in group[-1][1]
            kept = [n for at, (n, away) in enumerate(group) if not (away or (all_away and at))]
            yield kept, text[end : end + 1]


def _judged_elsewhere(text: str) -> Iterator[str]:
    for gone in _GONE.finditer(text):
        if name := _LAST.search(text[max(0, gone.start() - 5) : gone.start()]):
            yield name[0]
