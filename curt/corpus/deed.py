"""The day of a deed, as far as a fact tells it."""

from __future__ import annotations

import re
from datetime import date

_DATE = re.compile(
    r"(?<![0-9])((?:19|20)[0-9]{2})年([0-9]{1,2})月(?:([0-9]{1,2})日)?(?=([^。；\n]{0,40}))"
)
# Of these, other days are told: of birth, earlier sentences, arrest, proceedings and evidence.
_NO_DEED = re.compile(
    "[出所]?生[，,。；）)]|出生|曾因|因犯|判处|判决|裁定|刑满|释放|假释|减刑|抓获|归案|投案|到案|自首|拘留|"
    "逮捕|取保|传唤|起诉|立案|受理|报案|报警|鉴定|检验|评估|谅解|赔偿|退赔|退赃|退还|退缴|强制隔离|"
    "行政处罚|结婚|登记|注册|成立|出具"
)
_FIRST_CLAUSE = re.compile("[^，,]*[，,]?[^，,]*")


def deed_day(text: str) -> date | None:
    """The last day on which a text tells a deed, whose law counts; None where it tells none.

    A month without a day counts as its first. Days of arrest, earlier sentences and the like are
    told from the words that follow them; years alone, 同年 and masked years are not read.
    """
    days = []
    for year, month, day, after in _DATE.findall(text):
        told = _FIRST_CLAUSE.match(after)
        if told and not _NO_DEED.search(told[0]):
            try:
                days.append(date(int(year), int(month), int(day or 1)))
            except ValueError:  # 2021年2月30日
                continue
    return max(days, default=None)
