from __future__ import annotations

import json
import logging
import random
import re
from collections import Counter
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curt.corpus.augment.local import SYNONYMS, LocalParaphraser, tell_otherwise
from curt.corpus.augment.paraphrase import (
    EndpointParaphraser,
    check_paraphrase,
    list_figures,
    list_names,
)
from curt.corpus.generate.generator import generate_cases
from curt.corpus.read.cail import read_records
from curt.corpus.read.extract import extract_reasoning
from curt.endpoint import EndpointSettings, EndpointUnavailableError
from tests.train.judge.judge_server import Reply, judge_server

FACT = "2015年3月2日，被告人张某在某市窃得李某甲现金3000元。案发后张某主动投案，取得谅解。"
TOLD = "被告人张某于2015年3月2日在某市盗走李某甲现金3000元。张某事后主动投案，并取得谅解。"


# --- the check -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("", ""), ""),
        (("3000元", "三千元"), ""),
        (("3000元", "0.3万元"), ""),
        (("3000元", "3,000元"), ""),
        (("3000元", "4000元"), "figures"),
        (("3000元", "3000余元"), "figures"),
        (("3000元", "3000美元"), "figures"),
        (("3000元", "3000元，即3000元"), "figures"),
        (("3月2日", "3月3日"), "figures"),
        (("李某甲", "李某乙"), "names"),
        (("李某甲", "被害人"), "names"),
        (("，并取得谅解", ""), "circumstances"),
        (("主动投案", "被抓获"), "circumstances"),
        (("，并取得谅解", "，并取得谅解，系累犯"), "circumstances"),
    ],
)
def test_what_a_paraphrase_may_not_change(change, reason):
    assert check_paraphrase(FACT, TOLD.replace(*change)) == reason


@pytest.mark.parametrize(
    ("told", "reason"),
    [("", "empty"), (" \n", "empty"), (FACT, "unchanged"), (FACT[:20], "length"),
     (FACT + "某" * 60, "length")],
)  # fmt: skip
def test_what_is_no_paraphrase_at_all(told, reason):
    assert check_paraphrase(FACT, told) == reason


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        ("一亿二千万元", {"120000000元": 1}),
        ("1.5万元、15000元、一万五千元", {"15000元": 3}),
        ("二〇一四年十月", {"2014年": 1, "10月": 1}),
        ("三人轻伤，血液乙醇147.58mg", {"3人": 1, "147.58mg": 1}),
        ("一直同一处之一", {}),
        ("９５００余元", {"9500余元": 1}),
        ("盗窃2起，共12,500元", {"2起": 1, "12500元": 1}),
    ],
)
def test_figures_are_read_by_value_and_unit(text, figures):
    assert list_figures(text) == figures


def test_masked_names_are_no_places():
    names, marks = list_names("张某某在某市某区见李某1与陈2某，车牌闽C×××××，某公司")
    assert names == {"张某某", "李某1", "陈2某"}
    assert marks == {"×××××": 1}


@given(text=st.text(alphabet="张某0123456789.,万亿千百十零两元年月余×一二", max_size=40))
def test_any_text_can_be_compared(text):
    assert check_paraphrase(text, text + "。") in ("", "length")


# --- the local paraphraser -------------------------------------------------------------------


def test_generated_facts_are_told_otherwise_and_keep_what_counts():
    facts = [case.fact for case in generate_cases(200, "paraphrase")]
    paraphraser = LocalParaphraser(3)
    told = paraphraser.paraphrase(facts)
    kept = [(fact, text) for fact, text in zip(facts, told, strict=True) if text is not None]
    assert len(kept) > 180
    assert paraphraser.counts["told"] == len(kept)
    for fact, text in kept:
        assert text != fact
        assert list_figures(text) == list_figures(fact)
        assert list_names(text) == list_names(fact)
        assert extract_reasoning(text) == extract_reasoning(fact)


def test_the_same_seed_tells_the_same_and_another_does_not():
    facts = [case.fact for case in generate_cases(30, "paraphrase")]
    first = LocalParaphraser(1).paraphrase(facts)
    assert LocalParaphraser(1).paraphrase(facts[::-1]) == first[::-1]
    assert LocalParaphraser(2).paraphrase(facts) != first


def test_circumstances_keep_the_order_in_which_reasoning_lists_them():
    for case in generate_cases(200, "order"):
        told = tell_otherwise(case.fact, random.Random(case.id))
        for words in (("谅解", "认罪认罚"), ("退赔", "退缴", "谅解"), ("刑满释放", "未得逞")):
            places = [(case.fact.find(w), told.find(w)) for w in words if w in case.fact]
            assert sorted(places) == sorted(places, key=lambda pair: pair[1])


def test_a_sentence_that_leans_back_stays_behind_its_own():
    fact = "被告人张某盗窃。张某的户籍地为外省某县。张某已退赔。其另取得谅解。"
    for seed in range(50):
        told = tell_otherwise(fact, random.Random(seed))
        assert "张某已退赔。其另取得谅解" in told


def test_synonyms_compile_and_bring_no_figure():
    for pattern, others in SYNONYMS.items():
        assert re.compile(pattern).groups == 0  # numbered groups would shift those of the whole
        assert others
        assert not any(re.search(r"[0-9]", other) for other in others)


def test_a_fact_with_nothing_to_change_is_counted_and_left_out():
    paraphraser = LocalParaphraser()
    assert paraphraser.paraphrase(["张某打人。"]) == [None]
    assert paraphraser.counts == {"asked": 1, "refused_unchanged": 1}


def test_real_facts_keep_figures_names_and_circumstances(real_cases: Path, record_property):
    facts = []
    with open(real_cases / "dev.json", encoding="utf-8") as file:
        for line in islice(file, 300):
            facts.append(next(read_records(json.loads(line))).fact)
    paraphraser = LocalParaphraser(5)
    told = paraphraser.paraphrase(facts)
    kept = [(fact, text) for fact, text in zip(facts, told, strict=True) if text is not None]
    for fact, text in kept:
        assert not check_paraphrase(fact, text)
        # without reading units: not one digit more or less
        assert Counter(re.findall("[0-9]", text)) == Counter(re.findall("[0-9]", fact))
    refused = {k: v for k, v in paraphraser.counts.items() if k.startswith("refused_")}
    record_property("refused", refused)
    assert len(kept) + sum(refused.values()) == len(facts)
    assert len(kept) > 0.9 * len(facts)


# --- the endpoint ----------------------------------------------------------------------------


@contextmanager
def paraphrasing(behaviour, method="direct", *, redact=True, **changes):
    with judge_server(behaviour) as server:
        options = {"base_url": server.url, "model": "m", "timeout_s": 5.0, "retries": 0}
        yield (
            EndpointParaphraser(EndpointSettings(**options | changes), method, redact=redact),
            server,
        )


def test_a_model_tells_it_in_other_words():
    with paraphrasing(lambda *_: Reply(f"<think>改</think>\n{TOLD}")) as (paraphraser, server):
        assert paraphraser.paraphrase([FACT]) == [TOLD]
    assert server.requests[0]["messages"][1]["content"] == FACT
    assert (paraphraser.name, paraphraser.counts["told"]) == ("direct", 1)


def test_back_translation_goes_through_english():
    english = "On 2 March 2015 the defendant 张某 stole 3000 yuan from 李某甲."

    def behaviour(body, _):
        return Reply(TOLD if body["messages"][1]["content"] == english else english)

    with paraphrasing(behaviour, "back") as (paraphraser, server):
        assert paraphraser.paraphrase([FACT]) == [TOLD]
    assert len(server.requests) == 2


def test_back_translation_keeps_facts_and_replies_together_where_some_fail():
    def behaviour(body, _):
        text = body["messages"][1]["content"]
        if text.startswith("被告人王某"):
            return Reply(status=400, body=b"{}")
        return Reply(text[3:] if text.startswith("EN:") else f"EN:经查，{text}")

    facts = [FACT, "被告人王某盗窃500元，后被抓获，现在案。", FACT.replace("3000", "4000")]
    with paraphrasing(behaviour, "back") as (paraphraser, _):
        told = paraphraser.paraphrase(facts)
    assert told == [f"经查，{facts[0]}", None, f"经查，{facts[2]}"]
    assert paraphraser.counts["failed_status_400"] == 1


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(TOLD.replace("3000元", "5000元")), "refused_figures"),
        (Reply(TOLD.replace("张某", "王某")), "refused_names"),
        (Reply(TOLD.replace("谅解", "好评")), "refused_circumstances"),
        (Reply("抱歉，我不能改写这段内容。"), "refused_length"),
        (Reply(FACT), "refused_unchanged"),
        (Reply("<think>没想完</think>"), "failed_reply"),
        (Reply(status=500, body=b"{}"), "failed_status_500"),
        (Reply(TOLD, pause_s=0.6), "failed_timeout"),
        (Reply(body=b"<html>"), "failed_reply"),
    ],
)
def test_what_is_wrong_or_never_comes_is_counted_and_not_used(reply, reason):
    with paraphrasing(lambda *_: reply, timeout_s=0.4) as (paraphraser, _):
        assert paraphraser.paraphrase([FACT]) == [None]
    assert paraphraser.counts[reason] == 1
    assert not paraphraser.counts["told"]


def test_numbers_that_identify_do_not_leave_unless_told_so():
    fact = f"张某电话13812345678，邮箱a.b@example.com，卡号6222 0212 3456 7890 123。{FACT}"
    for redact in (True, False):
        with paraphrasing(lambda *_: Reply(TOLD), redact=redact) as (paraphraser, server):
            paraphraser.paraphrase([fact])
        sent = server.requests[0]["messages"][1]["content"]
        assert [s in sent for s in ("13812345678", "example", "6222")] == [not redact] * 3
        assert "3000元" in sent


def test_an_endpoint_that_fails_stops_the_run_and_no_fact_is_logged(caplog):
    caplog.set_level(logging.INFO)
    facts = [f"{FACT}{n}" for n in range(20)]
    with paraphrasing(lambda *_: Reply(status=500, body=b"{}"), failure_window=20) as (one, _):
        with pytest.raises(EndpointUnavailableError) as stopped:
            one.paraphrase(facts)
        assert one.counts["failed_status_500"] == 20
    assert "张某" not in f"{caplog.text} {stopped.value}"
