"""Masks personal data in texts that are published or sent: numbers, e-mail addresses, names.

Published judgments mask most names as 张某; where one was missed it stands behind what a person is
in the case (被告人张建国) or before what became of them (李娜（另案处理）). Such a name is masked
wherever it stands in the text. A name that no such word introduces is not found.
"""

from __future__ import annotations

import re

NAMED = "某"

_GAP = r"[ \-　]?"  # people write 138 1234 5678


def _digits(count: str) -> str:
    return rf"(?:[0-9０-９]{_GAP}){{{count}}}[0-9０-９]"


_ALONE, _END = r"(?<![0-9０-９.])", r"(?![0-9０-９])"
# The longest first: an identity card holds what looks like a phone number.
PATTERNS = {
    "identity card": re.compile(
        rf"{_ALONE}{_digits('16')}{_GAP}[0-9０-９XxＸｘ](?![0-9０-９XxＸｘ])"
    ),
    "bank account": re.compile(rf"{_ALONE}{_digits('15,18')}{_END}"),
    "old identity card": re.compile(rf"{_ALONE}{_digits('14')}{_END}"),
    "mobile phone": re.compile(
        rf"(?:[+＋]?(?:86|８６){_GAP})?{_ALONE}[1１]{_GAP}[3-9３-９]{_GAP}{_digits('8')}{_END}"
        rf"|[+＋](?:86|８６){_GAP}[1１]{_GAP}[3-9３-９]{_GAP}{_digits('8')}{_END}"
    ),
    "e-mail": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.ASCII),
}


SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡"
    "贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷"
    "钱汤尹黎易常武乔贺赖龚文庞樊兰殷施陶洪翟安颜倪严牛温芦季俞章鲁葛伍韦申尤毕聂丛焦向柳邢路"
    "岳齐沿梅莫庄辛管祝左涂谷祁时舒耿牟卜詹关苗凌费纪靳盛童欧甄项曲成游阳裴席卫查屈鲍位覃霍翁"
    "隋植甘景薄单包司柏宁柯阮桂闵解强柴华车冉房边辜吉饶刁瞿戚丘古米池滕晋苑邬臧畅宫来嵺苟全褚"
    "廉简娄盖符奚木穆党燕郎邸冀谈姬屠连郜晏栾郁商蒙计喻揭窦迟宇敖糜鄢冷卓花仇艾蓝都巩稽井练仲"
    "乐虞卞封竺冼原官衣楚佟栗匡宗应台巫鞠僧桑荆谌银扬明凤酆岑湛禹狄贝茅骆昝裘缪宣贲杭嵇芮羿汲邴弓"
    "宓郗戎韶蓟蒲邰鄂蔺胥莘逄扈郦雍郤璩濮郏慕茹宦戈庾衡寇阙殳蔚夔晁訾阚巢蒯逯佘邝谯禤鄞仝厉钭荀伊荣丰沙危麻"
)
COMPOUND_SURNAMES = "欧阳|上官|司马|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐|司徒|夏侯|端木|轩辕"
_ROLE = (
    "被告人|被害人|被害者|受害人|证人|同案犯|同案人|犯罪嫌疑人|嫌疑人|上诉人|自诉人|原告人|"
    "辩护人|同伙|死者|伤者|委托代理人|法定代理人|户主|车主|货主|店主|业主|老板|其妻|其夫|其子|"
    "其女|其父|其母"
)
_GIVEN = r"[一-鿿]"
_FATE = r"(?=（(?:均?已?另案|均?已判|均?在逃|均?另处|已死亡|男|女|殁年|时年))"
_INTRODUCED = re.compile(rf"(?:{_ROLE})((?:{COMPOUND_SURNAMES}|[{SURNAMES}]){_GIVEN}{{1,2}})")
_JUDGED_ELSEWHERE = re.compile(
    rf"(?<=[、，。；和与及伙同向从找对])((?:{COMPOUND_SURNAMES}|[{SURNAMES}]){_GIVEN}{{1,2}}){_FATE}"
)
# Words that begin like a name.
WORDS_LIKE_NAMES = (
    "陈述", "全部", "申请", "常住", "常年", "管部", "管理", "向法", "向公", "应当",
    "应负", "明知", "安全", "单独", "单位", "成立", "连续", "连同", "解除", "强行",
    "石头", "时许", "左右", "曾因", "方面", "高达", "高度", "金额", "平时", "万元",
    "于一", "和解", "游玩", "经营", "项目", "房屋", "车辆", "家中", "应赔",
    "危险", "危害", "麻醉", "麻将",
)  # fmt: skip
# What follows a name: it can't be the second letter of a given name here.
AFTER_NAMES = (
    "于在因与和及、，。；：（）伙到将以驾酒犯等对向为从携窃用趁的又先经系被受自至明非"
    "故利持多均已不未是有没归供证辩述称说认提承投主退赔取把给让叫使通帮随跟同由其之"
    "后前并还曾则即便就也都而但或"
)
_AFTER = frozenset(f"{AFTER_NAMES},.;:() ")


def redact(text: str) -> tuple[str, dict[str, int]]:
    """The text with identifying numbers, addresses and names masked, and how many of each kind.

    Numbers and addresses become 某, a name its surname with 某.

    >>> redact("电话13812345678，金额13812345元")
    ('电话某，金额13812345元', {'mobile phone': 1})
    >>> redact("被告人张建国伙同李娜（另案处理）窃取手机，张建国逃逸")
    ('被告人张某伙同李某（另案处理）窃取手机，张某逃逸', {'name': 3})
    """
    found = {}
    for kind, pattern in PATTERNS.items():
        text, count = pattern.subn(NAMED, text)
        if count:
            found[kind] = count
    for name in sorted(_find_names(text), key=len, reverse=True):
        masked = (name[:2] if re.match(COMPOUND_SURNAMES, name) else name[0]) + NAMED
        found["name"] = found.get("name", 0) + text.count(name)
        text = text.replace(name, masked)
    return text, found


def _find_names(text: str) -> set[str]:
    names = {match[1] for match in _JUDGED_ELSEWHERE.finditer(text)}
    for match in _INTRODUCED.finditer(text):
        long, following = match[1], text[match.end() : match.end() + 1]
        short = long[:-1]
        if NAMED in long or "×" in long or long.startswith(WORDS_LIKE_NAMES):
            continue
        surname = 2 if re.match(COMPOUND_SURNAMES, long) else 1
        if len(short) == surname or (following in _AFTER and long[-1] not in _AFTER):
            names.add(long)
        elif long[-1] in _AFTER or text.count(short) > text.count(long):
            names.add(short)
        else:
            names.add(long)
    return {name for name in names if NAMED not in name}
