"""Facts to refuse and warnings to give: pure rules over a fact's text and a verdict."""

from __future__ import annotations

import re
from datetime import date

from pydantic import BaseModel

from curt.dialogue import normalise_fact
from curt.law.figures import foreign_money
from curt.law.statutes import is_charge, term_in_range
from curt.law.verdict import CAPITAL_KINDS, Verdict
from serve.answering.confidence import LOW_CONFIDENCE_MESSAGE, UNFAMILIAR_MESSAGE
from serve.errors import UnusableFactError

MIN_CHINESE_SHARE = 0.2  # of the letters; below it the text is refused
MIXED_CHINESE_SHARE = 0.6  # below it the reader is warned
SHORT_FACT_CHARS = 20

MESSAGES = {
    "multi_defendant": "事实中似有多名被告人，本版本只给出一名被告人的结果。",
    "too_short": "事实过短，结果可靠性低。",
    "not_chinese": "事实中非中文内容较多，模型只学过中文裁判事实。",
    "not_criminal": "文中未见刑事案件常见用语，可能不是犯罪事实。",
    "appeal": "文中似为二审或上诉案件，模型只学过一审公诉案件。",
    "retrial": "文中似为再审案件，模型只学过一审公诉案件。",
    "commutation": "文中似为减刑或假释案件，并非定罪量刑。",
    "private_prosecution": "文中似为自诉案件，模型只学过公诉案件。",
    "civil": "文中似为民事或附带民事诉讼，并非刑事指控。",
    "jurisdiction": "文中似为管辖决定，并非定罪量刑。",
    "withdrawn": "文中似有撤回起诉，未必有判决。",
    "compulsory_treatment": "文中似为强制医疗程序，并非定罪量刑。",
    "state_compensation": "文中似为国家赔偿案件，并非刑事指控。",
    "foreign_currency": "文中有以{}计的金额，未按任何汇率折算，也未计入数额。",
    "figure_out_of_range": "{}超出训练案件中数额的范围，结果可靠性低。",
    "markup_neutralised": "事实中的尖括号已替换为全角字符，按普通文字处理。",
    "fact_clipped": "事实超过模型可读长度，较次要的句子已略去。",
    "short_thinking": "推理用量少于模型通常所需，结果的准确率会降低。",
    "term_outside_statute": "刑期不在该罪名任何法定量刑幅度之内，请核对有无减轻情节。",
    "life_or_death": "结果涉及无期徒刑或死刑，务必由人复核。",
    "unknown_charge": "罪名不在已知罪名表中。",
    "low_confidence": LOW_CONFIDENCE_MESSAGE,
    "unfamiliar_text": UNFAMILIAR_MESSAGE,
    "fallback": "模型未能在时限内给出完整结果，以下为分类器的估计。",
}

# Half a character, which JSON can express and no tokenizer can read.
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+")
_COMMON_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+")
_CRIME_WORDS = (
    "被告|犯罪|嫌疑|作案|公安|派出所|民警|抓获|归案|自首|投案|供述|赃|窃|盗|抢|骗|毒品|冰毒|海洛因|"
    "贩卖|吸食|持刀|殴打|打伤|刺|砍|轻伤|重伤|死亡|致死|杀|强奸|猥亵|拘禁|绑架|敲诈|勒索|赌|醉酒|酒后|"
    "乙醇|血醇|肇事|逃逸|枪|爆炸|放火|纵火|伪造|假冒|走私|受贿|行贿|贪污|挪用|侵占|职务|虚开|发票|"
    "非法|拒不|寻衅|滋事|聚众|妨害|故意|损毁|砍伐|滥伐|猎捕|容留|卖淫|引诱|介绍|传播|淫秽|洗钱|集资"
)
_CRIME = re.compile(_CRIME_WORDS)

# Procedures other than a public prosecution at first instance, each by words that are hardly ever
# in the facts of one: former convictions there tell of appeals and of sentences cut short.
_PROCEDURES = {
    "appeal": re.compile(r"二审|原审|上诉人|抗诉机关|(?:宣判|判决|一审)后[^。]{0,40}提[出起]上诉"),
    "retrial": re.compile(r"再审|申诉人|审判监督程序"),
    "commutation": re.compile(
        r"执行机关|(?:提请|建议|报请)[^，。；]{0,12}(?:减刑|假释)|(?:减刑|假释)建议"
    ),
    "private_prosecution": re.compile(r"自诉人|提起(?:刑事)?自诉|自诉案件"),
    "jurisdiction": re.compile(r"指定管辖|管辖权?异议"),
    "withdrawn": re.compile(r"撤回(?:起诉|公诉)"),
    "compulsory_treatment": re.compile(r"强制医疗"),
    "state_compensation": re.compile(r"赔偿请求人|国家赔偿"),
}
_PLAINTIFF = re.compile(r"原告(?!人)|原告人[^。；]{0,20}(?:诉称|请求|要求)")
_PROSECUTION = re.compile(
    r"公诉|指控|检察院|起诉书"
)  # beside which a plaintiff only claims damages

# The commonest family names: a rule that took any two characters after 被告人 for a name would
# take 归案, 供述 and 驾驶 as well.
_FAMILY = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩冯邓曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕"
    "丁任卢姚沈钟姜崔谭陆范汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱"
    "戴严莫孔向常汤康易乔赖文施洪辛柯欧倪温季俞章鲁葛殷翟申甘牛阮"
)
_NAME = rf"[{_FAMILY}](?:某某|某[甲乙丙丁戊己庚辛0-9A-Z]?|[\u4e00-\u9fff])"
_DEFENDANTS = re.compile(rf"被告人((?:{_NAME})(?:[、和与及](?:被告人)?(?:{_NAME}))*)")
_EACH_NAME = re.compile(_NAME)


class Caution(BaseModel):
    """Something a reader should know before relying on the verdict."""

    code: str
    message: str


def refuse_unusable(fact: str, max_chars: int) -> None:
    """Raise UnusableFactError when no verdict can be given: empty, too long, torn, not Chinese."""
    if len(fact) > max_chars:
        raise UnusableFactError(
            "fact_too_long", f"the fact has {len(fact)} characters: send {max_chars} or fewer"
        )
    if _SURROGATE.search(fact):
        raise UnusableFactError(
            "not_unicode", "the fact holds half of a surrogate pair: send whole characters"
        )
    common = _count_common(fact)
    if not common and not normalise_fact(fact):
        raise UnusableFactError("empty_fact", "the fact is empty: send the facts of one case")
    if not _is_chinese(fact, common, MIN_CHINESE_SHARE):
        raise UnusableFactError(
            "not_chinese", "the fact holds hardly any Chinese: send the facts in Chinese"
        )


def fact_warnings(fact: str) -> list[Caution]:
    """The warnings that the text of a fact calls for."""
    codes = []
    if len(set(defendant_names(fact))) > 1:
        codes.append("multi_defendant")
    common = _count_common(fact)
    if common < SHORT_FACT_CHARS and len(normalise_fact(fact)) < SHORT_FACT_CHARS:
        codes.append("too_short")
    if not _is_chinese(fact, common, MIXED_CHINESE_SHARE):
        codes.append("not_chinese")
    if not _CRIME.search(fact):
        codes.append("not_criminal")
    codes += procedures(fact)
    if "<" in fact or ">" in fact:
        codes.append("markup_neutralised")
    foreign = foreign_money(fact)
    told = [warning("foreign_currency", "、".join(foreign))] if foreign else []
    return [warning(code) for code in codes] + told


def procedures(fact: str) -> list[str]:
    """Codes of the procedures a fact tells of that are no prosecution at first instance."""
    codes = [code for code, words in _PROCEDURES.items() if words.search(fact)]
    if _PLAINTIFF.search(fact) and not _PROSECUTION.search(fact):
        codes.append("civil")
    return codes


def verdict_warnings(verdict: Verdict, on: date | None = None) -> list[Caution]:
    """The warnings that a verdict calls for under the law of a day, by default today."""
    codes = []
    if not all(is_charge(charge) for charge in verdict.charges):
        codes.append("unknown_charge")
    elif statutory_range(verdict, on) is False:
        codes.append("term_outside_statute")
    if verdict.term.kind in CAPITAL_KINDS:
        codes.append("life_or_death")
    return [warning(code) for code in codes]


def statutory_range(verdict: Verdict, on: date | None = None) -> bool | None:
    """Whether the charge's statute, as of a day, allows the term.

    None for several charges: their terms are combined (article 69), and no single charge's tiers
    apply to the sum.
    """
    if len(verdict.charges) > 1:
        return None
    return term_in_range(verdict.charges[0], verdict.term, on)


def defendant_names(fact: str) -> list[str]:
    """Names that follow 被告人, by a simple rule: a common family name, 某 or one character."""
    return [name for group in _DEFENDANTS.findall(fact) for name in _EACH_NAME.findall(str(group))]


def warning(code: str, named: str = "") -> Caution:
    """The warning of a code of `MESSAGES`; `named` is what it is about, where that is told."""
    return Caution(code=code, message=MESSAGES[code].format(named))


def _count_common(text: str) -> int:
    """How many characters are Chinese ones of the two blocks where every code point is one."""
    return sum(map(len, _COMMON_CHINESE.findall(text)))


def _is_chinese(text: str, common: int, share: float) -> bool:
    """Whether at least that share of the letters is Chinese; `common` is `_count_common`."""
    if 0 < common >= share * len(text):  # enough already, whatever the other characters are
        return True
    letters = sum(map(str.isalpha, text))
    return letters > 0 and sum(map(len, _CHINESE.findall(text))) / letters >= share
