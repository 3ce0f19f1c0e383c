from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from curt.dialogue import (
    EXAMPLE_ANSWER,
    THINK_END,
    ParseFailure,
    answer_pattern,
    parse_answer,
    parse_completion,
    parse_fine,
    parse_term,
    render_answer,
    render_completion,
    render_ruling,
)
from curt.dialogue.answer import LINES, describe_grammar
from curt.law.numerals import article_order, write_number
from curt.law.statutes import CHARGES
from curt.law.verdict import COUNTED_KINDS, MAX_MONTHS, TERM_NAMES, Term, Verdict


@st.composite
def terms(draw):
    kind = draw(st.sampled_from(sorted(TERM_NAMES)))
    months = draw(st.integers(1, MAX_MONTHS[kind])) if kind in COUNTED_KINDS else 0
    return Term(kind, months, draw(st.integers(0, 60)))


@st.composite
def verdicts(draw):
    charges = draw(st.lists(st.sampled_from(sorted(CHARGES)), min_size=1, max_size=3, unique=True))
    article = st.builds(
        lambda number, branch: str(number) + (f"之{write_number(branch)}" if branch else ""),
        st.integers(1, 452),
        st.integers(0, 3),
    )
    articles = draw(st.lists(article, min_size=1, max_size=4, unique=True))
    return Verdict(
        tuple(charges),
        tuple(sorted(articles, key=article_order)),
        draw(terms()),
        draw(st.integers(0, 10**12)),
    )


@given(verdicts())
def test_an_answer_reads_back_as_the_verdict_it_states(verdict):
    assert parse_answer(render_answer(verdict)) == verdict


@given(verdicts(), st.text(string.ascii_letters + "金额自首；\n", max_size=40))
def test_a_completion_reads_back(verdict, thinking):
    completion = parse_completion(render_completion(thinking, verdict))
    assert completion.verdict == verdict
    assert completion.thinking == thinking
    assert completion.thinking_closed


FIELD = st.sampled_from(["罪名：", "法条：", "刑期：", "缓刑：", "罚金：", "罪名:", "", "罪"])
VALUE = st.one_of(
    st.text(max_size=12),
    st.text("0123456789.万元年个月条第之；有期徒刑拘役缓罚金罪盗窃", max_size=400),
)
HOSTILE = st.lists(st.tuples(FIELD, VALUE), max_size=6).map(
    lambda rows: "\n".join(name + value for name, value in rows)
)


@given(HOSTILE)
@example("罪名：盗窃\n法条：264\n刑期：拘役3个月\n罚金：" + "9" * 400 + "元")
@example("罪名：盗窃\n法条：" + "9" * 5000 + "\n刑期：拘役3个月")
@example("罪名：盗窃\n法条：264之99999\n刑期：拘役3个月")
@example("罪名：罪\n法条：264\n刑期：拘役3个月")
@example("罪名：盗窃\n法条：264\n刑期：有期徒刑3年\n罚金：1.2.3元")
def test_hostile_answers_never_raise(text):
    assert isinstance(parse_answer(text), Verdict | ParseFailure)
    completion = parse_completion(THINK_END + text)
    assert isinstance(completion.verdict, Verdict | ParseFailure)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "罪名 missing"),
        ("罪名：盗窃\n法条：264", "刑期 missing"),
        ("罪名：盗窃\n罪名：诈骗\n法条：264\n刑期：拘役1个月", "罪名 given twice"),
        ("判决如下\n罪名：盗窃\n法条：264\n刑期：拘役1个月", "outside the grammar"),
        ("罪名：盗窃\n法条：999\n刑期：拘役1个月", "no article 999"),
        ("罪名：盗窃\n法条：264\n刑期：有期徒刑900个月", "900 months"),
    ],
)
def test_failures_say_why(text, reason):
    failure = parse_answer(text)
    assert isinstance(failure, ParseFailure)
    assert reason in failure.reason


def test_charges_are_separated_by_semicolons_never_by_list_marks():
    answer = "罪名：走私、贩卖、运输、制造毒品；容留他人吸毒罪\n法条：347；354\n刑期：拘役3个月"
    verdict = parse_answer(answer)
    assert isinstance(verdict, Verdict)
    assert verdict.charges == ("走私、贩卖、运输、制造毒品", "容留他人吸毒")


def test_words_and_aliases_of_judgments_are_read():
    answer = "罪名：贩卖毒品罪\n法条：第三百四十七条\n刑期：有期徒刑三年六个月\n罚金：人民币五千元"
    assert parse_answer(answer) == Verdict(
        ("走私、贩卖、运输、制造毒品",), ("347",), Term("fixed", 42), 5000
    )


def test_an_unclosed_thinking_has_no_verdict():
    completion = parse_completion("罪名：盗窃\n法条：264\n刑期：拘役1个月")
    assert not completion.thinking_closed
    assert isinstance(completion.verdict, ParseFailure)


def test_terms_with_probation_are_read_in_one_piece():
    assert parse_term("拘役四个月，缓刑六个月") == Term("detention", 4, 6)
    assert parse_term("免予刑事处分") == Term("exempt")
    told = ("死刑缓期二年执行", "死刑，缓期两年执行", "死缓")
    assert {parse_term(text) for text in told} == {Term("reprieve")}
    assert parse_term("死刑") == Term("death")
    with pytest.raises(ValueError, match="not a penalty"):
        parse_term("赔礼道歉")


def test_fines_are_read_in_yuan():
    assert [parse_fine(t) for t in ("2000元", "人民币五千元", "1.5万元", "三万元")] == [
        2000,
        5000,
        15_000,
        30_000,
    ]
    with pytest.raises(ValueError, match="not a sum of money"):
        parse_fine("若干")


def test_fines_in_capital_numerals_are_read():
    told = ("叁仟元", "人民币 贰万元", "1万2千元", "二仟元整")
    assert [parse_fine(text) for text in told] == [3000, 20_000, 12_000, 2000]


def test_a_ruling_states_the_whole_verdict():
    ruling = render_ruling(Verdict(("危险驾驶",), ("133之一",), Term("detention", 2, 4), 3000))
    for part in ("第一百三十三条之一", "危险驾驶罪", "拘役二个月", "缓刑四个月", "3000元"):
        assert part in ruling


PLAIN = Verdict(("盗窃",), ("264", "266"), Term("fixed", 8))


@pytest.mark.parametrize(
    "answer",
    [
        "罪名：盗窃\n\n法条：264；266\n\n刑期：有期徒刑8个月\n",
        "罪名：盗窃罪\n法条：《刑法》第二百六十四条、第二百六十六条第一款\n刑期：有期徒刑八个月",
        "罪名：盗窃\n法条：《中华人民共和国刑法》第264条第1款，第266条\n刑期：有期徒刑8个月",
        "罪名：盗窃\n法条：刑法第264条第1款、第2款；266\n刑期：有期徒刑8个月。",
        "罪名：盗窃\n法条：264；266\n刑期：有期徒刑8个月\n缓刑：无\n罚金：无。",
        "**罪名：**盗窃\n- **法条**：264；266\n> 刑期：有期徒刑8个月",
        "```\n罪名：盗窃\n法条：２６４；２６６\n刑期：有期徒刑８个月\n```",
        "---\n罪名: 盗窃\n法条: 264, 266\n刑期: 有期徒刑8个月",
    ],
)
def test_what_untrained_models_write_is_read(answer):
    assert parse_answer(answer) == PLAIN


@pytest.mark.parametrize(
    "answer",
    [
        "罪名：无\n法条：264\n刑期：拘役1个月",
        "罪名：盗窃\n法条：《刑事诉讼法》第15条\n刑期：拘役1个月",
        "罪名：盗窃\n法条：第一款\n刑期：拘役1个月",
        "罪名：盗窃\n法条：264\n刑期：无",
    ],
)
def test_generosity_makes_no_verdict_up(answer):
    assert isinstance(parse_answer(answer), ParseFailure)


def test_fines_with_thousands_are_read():
    assert parse_fine("人民币12,000元") == 12_000


def test_the_grammar_in_words_names_every_line_and_its_example_is_an_answer():
    told = describe_grammar()
    assert all(line.label + line.hint in told for line in LINES)
    assert told.endswith(EXAMPLE_ANSWER)
    assert re.fullmatch(answer_pattern(), EXAMPLE_ANSWER)
    assert render_answer(parse_answer(EXAMPLE_ANSWER)) == EXAMPLE_ANSWER
